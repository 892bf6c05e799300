//! Every annotation of every product, in one table per product. `tests/fixtures/exposure_keys.txt` lists each key with its
//! source; a test fails on a key that is not listed, since a controller ignores a misspelt one in silence.

use std::time::Duration;

use super::{AwsController, AwsEntrance, DnsRecords, Entrance, Exposure, IngressDialect, PLAIN_PORT, TLS_PORT};

/// Prefix of the annotations of a Network Load Balancer.
const NLB_PREFIX: &str = "service.beta.kubernetes.io/aws-load-balancer-";

/// Prefix of the annotations of an Application Load Balancer.
const ALB_PREFIX: &str = "alb.ingress.kubernetes.io/";

/// Largest request body: the servers refuse larger ones, and nginx's own limit is the same 1 MiB.
const BODY_SIZE_MAX: &str = "1m";

/// Seconds between two health checks of a load balancer of AWS, and the timeout of one: a pod is healthy 20 s after its
/// registration, 150 s with the defaults of AWS.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(10);
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Silence that an NLB allows beyond that of a healthy connection: 350 s in all with the default activity timeout, as long as
/// its own default.
const NLB_IDLE_GRACE: Duration = Duration::from_secs(170);

/// Annotations by which external-dns knows its objects: the prefix of 0.22 and later, then the former one.
pub const DNS_CONTROLLER_KEYS: [&str; 2] =
    ["external-dns.kubernetes.io/controller", "external-dns.alpha.kubernetes.io/controller"];

/// Annotations with the hosts of a Service, for the same releases.
const DNS_HOSTNAME_KEYS: [&str; 2] =
    ["external-dns.kubernetes.io/hostname", "external-dns.alpha.kubernetes.io/hostname"];

/// The controller whose objects external-dns reads.
const DNS_CONTROLLER: &str = "dns-controller";

/// Any other name makes external-dns ignore an object and remove its records.
const FOREIGN_CONTROLLER: &str = "realtime-operator";

/// An annotation: its key and its value.
type Annotation = (String, String);

/// The annotations of the object of an exposure that its controller reads. `services` are the names of the Services behind it.
#[must_use]
pub fn entrance_annotations(exposure: &Exposure, services: &[String]) -> Vec<Annotation> {
    match &exposure.entrance {
        Entrance::ClusterIp | Entrance::LoadBalancer(_) | Entrance::Gateway(..) => vec![],
        Entrance::Nlb(aws) => list_nlb_annotations(exposure, aws),
        Entrance::Alb(aws, _) => list_alb_annotations(exposure, aws),
        Entrance::Ingress(ingress) => list_ingress_annotations(exposure, ingress.dialect, services),
    }
}

/// The annotations by which external-dns writes the records of the hosts, or none.
#[must_use]
pub fn dns_annotations(exposure: &Exposure) -> Vec<Annotation> {
    let is_service = matches!(exposure.entrance, Entrance::LoadBalancer(_) | Entrance::Nlb(_));
    if exposure.hosts.is_empty() {
        return vec![];
    }
    let controller = if exposure.records == DnsRecords::Published { DNS_CONTROLLER } else { FOREIGN_CONTROLLER };
    let controllers = DNS_CONTROLLER_KEYS.map(|key| (key.to_owned(), controller.to_owned()));
    // Of an Ingress or a route the hosts are read from its rules.
    let has_hostnames = is_service && exposure.records != DnsRecords::Manual;
    let hostnames = DNS_HOSTNAME_KEYS.map(|key| (key.to_owned(), exposure.hosts.join(",")));
    controllers.into_iter().chain(hostnames.into_iter().filter(|_| has_hostnames)).collect()
}

fn list_nlb_annotations(exposure: &Exposure, aws: &AwsEntrance) -> Vec<Annotation> {
    let delay = exposure.timing.deregistration_delay();
    let target_group = join_attributes(&[
        // A preserved address breaks connections from a pod to its own node through the load balancer; the PROXY protocol
        // carries it instead.
        ("preserve_client_ip.enabled", "false".to_owned()),
        ("proxy_protocol_v2.enabled", exposure.has_proxy_header.to_string()),
        ("deregistration_delay.timeout_seconds", format_seconds(delay)),
        ("deregistration_delay.connection_termination.enabled", "false".to_owned()),
        // True by default: it would cut every connection of a pod as soon as the pod drains.
        ("target_health_state.unhealthy.connection_termination.enabled", "false".to_owned()),
        ("target_health_state.unhealthy.draining_interval_seconds", format_seconds(delay)),
        ("stickiness.enabled", "false".to_owned()),
    ]);
    let mut rows = vec![
        ("nlb-target-type".to_owned(), "ip".to_owned()),
        ("scheme".to_owned(), scheme_word(aws).to_owned()),
        ("target-group-attributes".to_owned(), target_group),
        (
            "attributes".to_owned(),
            join_attributes(&[("load_balancing.cross_zone.enabled", aws.has_cross_zone.to_string())]),
        ),
        ("healthcheck-protocol".to_owned(), "http".to_owned()),
        // With the PROXY protocol a check carries its header too, which the public port alone understands.
        ("healthcheck-port".to_owned(), "traffic-port".to_owned()),
        // It fails from the first moment of the drain: an NLB stops sending new clients sooner than by deregistration.
        ("healthcheck-path".to_owned(), "/readyz".to_owned()),
        ("healthcheck-interval".to_owned(), format_seconds(HEALTH_CHECK_INTERVAL)),
        ("healthcheck-timeout".to_owned(), format_seconds(HEALTH_CHECK_TIMEOUT)),
        ("healthcheck-healthy-threshold".to_owned(), "2".to_owned()),
        ("healthcheck-unhealthy-threshold".to_owned(), "2".to_owned()),
        ("healthcheck-success-codes".to_owned(), "200".to_owned()),
    ];
    match &aws.certificate {
        Some(certificate) => rows.extend([
            ("ssl-cert".to_owned(), certificate.clone()),
            ("ssl-ports".to_owned(), TLS_PORT.to_string()),
            ("ssl-negotiation-policy".to_owned(), aws.security_policy.clone()),
        ]),
        // The idle timeout of a TLS listener is fixed, and EKS Auto Mode takes no attributes of a listener.
        None if aws.controller == AwsController::LoadBalancerController => {
            let idle = exposure.timing.idle_timeout() + NLB_IDLE_GRACE;
            rows.push((
                format!("listener-attributes.TCP-{PLAIN_PORT}"),
                join_attributes(&[("tcp.idle_timeout.seconds", format_seconds(idle))]),
            ));
        }
        None => {}
    }
    rows.into_iter().map(|(key, value)| (format!("{NLB_PREFIX}{key}"), value)).collect()
}

fn list_alb_annotations(exposure: &Exposure, aws: &AwsEntrance) -> Vec<Annotation> {
    let load_balancer = join_attributes(&[
        // 60 s by default, which would close a silent connection before its ping.
        ("idle_timeout.timeout_seconds", format_seconds(exposure.timing.idle_timeout())),
        ("routing.http.drop_invalid_header_fields.enabled", "true".to_owned()),
    ]);
    let target_group = join_attributes(&[
        // An ALB closes all that is left when this time ends.
        ("deregistration_delay.timeout_seconds", format_seconds(exposure.timing.deregistration_delay())),
        ("load_balancing.algorithm.type", "least_outstanding_requests".to_owned()),
        // pusher-js sends no cookies, and any pod takes any request.
        ("stickiness.enabled", "false".to_owned()),
    ]);
    let mut rows = vec![
        ("target-type", "ip".to_owned()),
        ("backend-protocol", "HTTP".to_owned()),
        ("backend-protocol-version", "HTTP1".to_owned()),
        ("scheme", scheme_word(aws).to_owned()),
        ("listen-ports", format!(r#"[{{"HTTP":{PLAIN_PORT}}},{{"HTTPS":{TLS_PORT}}}]"#)),
        ("ssl-redirect", TLS_PORT.to_string()),
        ("ssl-policy", aws.security_policy.clone()),
        ("load-balancer-attributes", load_balancer),
        ("target-group-attributes", target_group),
        ("healthcheck-protocol", "HTTP".to_owned()),
        ("healthcheck-port", "traffic-port".to_owned()),
        // It answers through the hold: AWS does not document the fate of the connections of an unhealthy target of an ALB.
        ("healthcheck-path", "/healthz".to_owned()),
        ("healthcheck-interval-seconds", format_seconds(HEALTH_CHECK_INTERVAL)),
        ("healthcheck-timeout-seconds", format_seconds(HEALTH_CHECK_TIMEOUT)),
        ("healthy-threshold-count", "2".to_owned()),
        ("unhealthy-threshold-count", "3".to_owned()),
        ("success-codes", "200".to_owned()),
    ];
    // Without an ARN the controller finds the certificate by the hosts.
    rows.extend(aws.certificate.clone().map(|certificate| ("certificate-arn", certificate)));
    if !exposure.source_ranges.is_empty() {
        rows.push(("inbound-cidrs", exposure.source_ranges.join(",")));
    }
    rows.into_iter().map(|(key, value)| (format!("{ALB_PREFIX}{key}"), value)).collect()
}

fn list_ingress_annotations(exposure: &Exposure, dialect: IngressDialect, services: &[String]) -> Vec<Annotation> {
    let idle = format_seconds(exposure.timing.idle_timeout());
    let (prefix, rows) = match dialect {
        IngressDialect::Portable => return vec![],
        IngressDialect::IngressNginx => (
            "nginx.ingress.kubernetes.io/",
            vec![
                ("proxy-read-timeout", idle.clone()),
                ("proxy-send-timeout", idle),
                ("proxy-buffering", "off".to_owned()),
                ("proxy-request-buffering", "off".to_owned()),
                ("proxy-body-size", BODY_SIZE_MAX.to_owned()),
                ("proxy-http-version", "1.1".to_owned()),
            ],
        ),
        IngressDialect::F5Nginx => (
            "nginx.org/",
            vec![
                // An upgrade is passed on to these Services alone.
                ("websocket-services", services.join(",")),
                ("proxy-read-timeout", format!("{idle}s")),
                ("proxy-send-timeout", format!("{idle}s")),
                ("proxy-buffering", "False".to_owned()),
                ("client-max-body-size", BODY_SIZE_MAX.to_owned()),
                ("keepalive", "64".to_owned()),
            ],
        ),
    };
    rows.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)).collect()
}

fn scheme_word(aws: &AwsEntrance) -> &'static str {
    if aws.is_public { "internet-facing" } else { "internal" }
}

fn join_attributes(attributes: &[(&str, String)]) -> String {
    attributes.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn format_seconds(duration: Duration) -> String {
    duration.as_secs().to_string()
}

/// Whether the operator renders this annotation, for any exposure of the same product.
pub(super) fn is_rendered_key(exposure: &Exposure, key: &str) -> bool {
    let own = entrance_annotations(exposure, &[]).into_iter().chain(dns_annotations(exposure));
    let is_own = own.map(|(name, _)| name).any(|name| name == key);
    is_own || DNS_CONTROLLER_KEYS.contains(&key) || DNS_HOSTNAME_KEYS.contains(&key)
}
