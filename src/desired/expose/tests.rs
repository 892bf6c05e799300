//! Tests of entrances: every combination of type and controller, from a manifest to annotations.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::*;
use crate::api::cluster::{RealtimeClusterStatus, TransportState, TransportStatus};
use crate::api::fixture::applied_cluster;
use crate::api::yaml::yaml_document;
use crate::api::{RealtimeApp, RealtimeCluster};
use crate::config::Release;
use crate::desired::{
    ClusterInputs, DesiredObjects, ManifestProblem, SecretTexts, ServerImage, ValidCluster, generate_all_credentials,
    render_objects, validate,
};
use crate::protocol::Transport;

/// Each type and controller, with the fields that it needs.
const COMBINATIONS: [(&str, &str); 15] = [
    ("cluster-ip", "hosts: [ws.example.com], expose: { type: ClusterIP }"),
    ("load-balancer", "hosts: [ws.example.com], expose: { type: LoadBalancer, sourceRanges: [203.0.113.0/24] }"),
    (
        "eks-nlb",
        "hosts: [ws.example.com], tls: { acmCertificateARN: 'arn:aws:acm:eu-west-1:123456789012:certificate/a' }, expose: { type: EKSNLB, controller: AWSLoadBalancerController, scheme: InternetFacing }",
    ),
    (
        "eks-nlb-auto-mode",
        "hosts: [ws.example.com], tls: { acmCertificateARN: 'arn:aws:acm:eu-west-1:123456789012:certificate/a' }, expose: { type: EKSNLB, controller: EKSAutoMode, scheme: InternetFacing }",
    ),
    (
        "eks-nlb-internal",
        "expose: { type: EKSNLB, controller: AWSLoadBalancerController, scheme: Internal, crossZone: Disabled }",
    ),
    (
        "eks-alb",
        "hosts: [ws.example.com], tls: { acmCertificateARN: 'arn:aws:acm:eu-west-1:123456789012:certificate/a' }, expose: { type: EKSALB, controller: AWSLoadBalancerController, scheme: InternetFacing, sourceRanges: [203.0.113.0/24] }",
    ),
    (
        "eks-alb-auto-mode",
        "hosts: [ws.example.com], expose: { type: EKSALB, controller: EKSAutoMode, scheme: Internal }",
    ),
    (
        "ingress-nginx",
        "hosts: [ws.example.com], canonicalHost: ws-eu.example.com, tls: { certificateRefs: [{ name: ws-tls }] }, expose: { type: Ingress, controller: IngressNginx, className: nginx }",
    ),
    ("ingress-f5-nginx", "hosts: [ws.example.com], expose: { type: Ingress, controller: F5Nginx, className: nginx }"),
    ("ingress-traefik", "hosts: [ws.example.com], expose: { type: Ingress, controller: Traefik }"),
    ("ingress-other", "hosts: [ws.example.com], expose: { type: Ingress, controller: Other }"),
    (
        "gateway-envoy-gateway",
        "hosts: [ws.example.com], expose: { type: Gateway, controller: EnvoyGateway, parentRefs: [{ name: public, namespace: gateways, sectionName: https }] }",
    ),
    (
        "gateway-nginx",
        "hosts: [ws.example.com], expose: { type: Gateway, controller: NginxGatewayFabric, parentRefs: [{ name: public }] }",
    ),
    (
        "gateway-traefik",
        "hosts: [ws.example.com], expose: { type: Gateway, controller: Traefik, parentRefs: [{ name: public }] }",
    ),
    (
        "gateway-other",
        "hosts: [ws.example.com], expose: { type: Gateway, controller: Other, parentRefs: [{ name: public }] }",
    ),
];

/// The HTTP API by each object that leads to it.
const API_COMBINATIONS: [(&str, &str); 3] = [
    ("api-eks-alb", "expose: { type: EKSALB, controller: AWSLoadBalancerController, scheme: Internal }"),
    (
        "api-ingress-f5-nginx",
        "tls: { certificateRefs: [{ name: api-tls }] }, expose: { type: Ingress, controller: F5Nginx, className: nginx }",
    ),
    (
        "api-gateway-envoy-gateway",
        "expose: { type: Gateway, controller: EnvoyGateway, parentRefs: [{ name: public, namespace: gateways }] }",
    ),
];

/// The list of rendered keys: product, key, source, date.
const KNOWN_KEYS: &str = include_str!("../../../tests/fixtures/exposure_keys.txt");

fn manifest(extra: &str) -> RealtimeCluster {
    applied_cluster(&format!("  trustedProxies: [10.0.0.0/16]\n{extra}"))
}

/// A manifest whose WebSocket server has these fields.
fn with_websocket(fields: &str) -> RealtimeCluster {
    manifest(&format!("  websocket: {{ {fields} }}\n"))
}

/// A manifest whose HTTP API has these fields, and a host.
fn with_api(fields: &str) -> RealtimeCluster {
    manifest(&format!("  httpAPI: {{ host: api.example.com, {fields} }}\n"))
}

fn check(cluster: &RealtimeCluster) -> Result<ValidCluster, Vec<ManifestProblem>> {
    assert_eq!(cluster.validate_cel().map_err(|errors| errors.to_string()), Ok(()));
    let apps: [RealtimeApp; 0] = [];
    let generate = |purpose: &str| format!("generated-{purpose}");
    validate(&ClusterInputs {
        cluster,
        apps: &apps,
        secrets: &SecretTexts::new(),
        credentials: &generate_all_credentials(cluster, &apps, generate),
        receiver: "receiver.svc:8090",
        own_networks: &[],
        own_image: &ServerImage::of_operator(None),
        recorded_image: None,
        stream: None,
    })
}

fn valid(cluster: &RealtimeCluster) -> ValidCluster {
    check(cluster).expect("a valid cluster")
}

fn rendered(cluster: &RealtimeCluster) -> DesiredObjects {
    render_objects(&valid(cluster)).expect("objects")
}

fn find<'a>(desired: &'a DesiredObjects, kind: &str, name: &str) -> &'a Value {
    let mut found = desired.children.iter().filter(|object| object["kind"] == kind);
    found.find(|object| object["metadata"]["name"] == name).unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn annotations(object: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(object["metadata"]["annotations"].clone()).expect("annotations")
}

fn count(desired: &DesiredObjects, kind: &str) -> usize {
    desired.children.iter().filter(|object| object["kind"] == kind).count()
}

/// The objects of an entrance: those of kinds that nothing else needs, and load balancers.
fn entrance_objects(desired: &DesiredObjects) -> Vec<Value> {
    let kinds = ["Ingress", "HTTPRoute", "BackendTrafficPolicy", "ProxySettingsPolicy", "ClientSettingsPolicy"];
    let is_of_entrance =
        |object: &&Value| kinds.iter().any(|kind| object["kind"] == *kind) || object["spec"]["type"] == "LoadBalancer";
    desired.children.iter().filter(is_of_entrance).cloned().collect()
}

/// The golden file of each combination: `UPDATE_GOLDEN=1` writes it.
#[test]
fn every_type_renders_its_objects_as_they_are_committed() {
    for (name, fields) in COMBINATIONS {
        let objects = entrance_objects(&rendered(&with_websocket(fields)));
        if objects.is_empty() {
            assert_eq!(name, "cluster-ip", "the one type without an object");
            continue;
        }
        compare_with_golden(name, &objects);
    }
    for (name, fields) in API_COMBINATIONS {
        compare_with_golden(name, &entrance_objects(&rendered(&with_api(fields))));
    }
}

fn compare_with_golden(name: &str, objects: &[Value]) {
    let documents = objects.iter().map(|object| yaml_document(object).expect("YAML"));
    let text = format!("---\n{}", documents.collect::<Vec<_>>().join("---\n"));
    let path = format!("{}/tests/golden/exposure/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(format!("{}/tests/golden/exposure", env!("CARGO_MANIFEST_DIR"))).expect("a folder");
        std::fs::write(&path, &text).expect("written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, committed, "{path}: UPDATE_GOLDEN=1 writes it");
}

/// Every annotation, attribute and field of a policy: `PRODUCT KEY`.
fn list_keys(object: &Value) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for (key, value) in annotations(object) {
        // An attribute is inside the text of an annotation.
        if key.ends_with("attributes") || key.contains("listener-attributes.") {
            keys.extend(value.split(',').filter_map(|pair| Some(format!("{key}: {}", pair.split_once('=')?.0))));
        }
        keys.insert(key);
    }
    let kind = object["kind"].as_str().unwrap_or_default();
    if object["apiVersion"].as_str().is_some_and(|version| version.starts_with("gateway.")) {
        collect_paths(&object["spec"], &format!("{kind} spec"), &mut keys);
    }
    keys
}

fn collect_paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                collect_paths(value, &format!("{path}.{name}"), found);
            }
        }
        Value::Array(items) => {
            for item in items {
                collect_paths(item, &format!("{path}[]"), found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

#[test]
fn every_rendered_key_is_listed_with_its_source_and_every_listed_one_is_rendered() {
    let mut listed = BTreeSet::new();
    for line in KNOWN_KEYS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let parts: Vec<&str> = line.split(" | ").collect();
        let [key, source, date] = parts.as_slice() else { panic!("`{line}`: write KEY | SOURCE | DATE") };
        assert!(source.len() > 10, "{line}");
        assert!(format!("{date}T00:00:00Z").parse::<Timestamp>().is_ok(), "{line}");
        assert!(listed.insert((*key).to_owned()), "twice: {key}");
    }
    let mut keys = BTreeSet::new();
    for (_, fields) in COMBINATIONS {
        for object in entrance_objects(&rendered(&with_websocket(fields))) {
            keys.extend(list_keys(&object));
        }
    }
    keys.remove("realtime-operator.dev/rendering");
    let unknown: Vec<&String> = keys.difference(&listed).collect();
    assert!(unknown.is_empty(), "misspelt, or without a source: {unknown:#?}");
    let unused: Vec<&String> = listed.difference(&keys).collect();
    assert!(unused.is_empty(), "listed and not rendered: {unused:#?}");
}

#[test]
fn every_number_follows_from_the_activity_timeout_and_the_drain() {
    let nlb = |more: &str| {
        let fields =
            format!("expose: {{ type: EKSNLB, controller: AWSLoadBalancerController, scheme: Internal }}{more}");
        let desired = rendered(&with_websocket(&fields));
        let found = annotations(find(&desired, "Service", "eu-websocket-public"));
        let key = |name: &str| found[&format!("service.beta.kubernetes.io/aws-load-balancer-{name}")].clone();
        let pod = &find(&desired, "Deployment", "eu-websocket")["spec"]["template"]["spec"];
        let grace = pod["terminationGracePeriodSeconds"].to_string();
        (key("target-group-attributes"), key("listener-attributes.TCP-80"), grace)
    };
    let (attributes, listener, grace) = nlb("");
    // 120 s of hold, 120 s of window and 30 s.
    assert_eq!(grace, "270");
    assert!(attributes.contains("deregistration_delay.timeout_seconds=270"), "{attributes}");
    assert!(attributes.contains("proxy_protocol_v2.enabled=true"), "{attributes}");
    assert_eq!(listener, "tcp.idle_timeout.seconds=350");
    let (attributes, listener, grace) =
        nlb(", activityTimeoutSeconds: 60, proxyProtocol: Disabled, drain: { holdSeconds: 10, windowSeconds: 20 }");
    assert_eq!(grace, "60");
    assert!(attributes.contains("draining_interval_seconds=60"), "{attributes}");
    assert!(attributes.contains("proxy_protocol_v2.enabled=false"), "{attributes}");
    assert_eq!(listener, "tcp.idle_timeout.seconds=290");
}

#[test]
fn servers_get_their_defaults_from_the_type_and_explicit_values_win() {
    let settings = |fields: &str| {
        let cluster = valid(&with_websocket(fields));
        let edge = cluster.servers[0].edge().expect("an edge").clone();
        let balancer = edge.load_balancer;
        (
            edge.drain.hold.as_secs(),
            balancer.activity_timeout_seconds,
            balancer.keep_alive_seconds,
            balancer.proxy_protocol,
            edge.min_ready_seconds,
        )
    };
    let of = |name: &str| {
        let (_, fields) = COMBINATIONS.iter().find(|(found, _)| *found == name).expect("a combination");
        settings(fields)
    };
    let untuned = (15, None, None, None, 0);
    let tuned = (15, Some(120), Some(240), None, 0);
    for (name, expected) in [
        ("cluster-ip", untuned),
        ("load-balancer", untuned),
        ("eks-nlb", (120, Some(120), Some(240), Some("accepted"), 180)),
        ("eks-alb-auto-mode", (30, Some(120), Some(240), None, 60)),
        ("ingress-nginx", tuned),
        ("ingress-f5-nginx", tuned),
        ("ingress-traefik", untuned),
        ("ingress-other", untuned),
        ("gateway-envoy-gateway", tuned),
        ("gateway-nginx", untuned),
        ("gateway-other", untuned),
    ] {
        assert_eq!(of(name), expected, "{name}");
    }
    assert_eq!(settings(""), untuned);
    let explicit = "expose: { type: EKSNLB, controller: EKSAutoMode, scheme: Internal }, activityTimeoutSeconds: 50, \
                    keepAliveSeconds: 100, proxyProtocol: Required, drain: { holdSeconds: 7 }";
    assert_eq!(settings(explicit), (7, Some(50), Some(100), Some("required"), 180));
}

#[test]
fn the_schema_judges_the_keep_alive_by_the_same_defaults() {
    for (name, fields) in COMBINATIONS {
        let cluster = with_websocket(fields);
        let tuned = valid(&cluster).servers[0].edge().expect("an edge").load_balancer.keep_alive_seconds.is_some();
        let raised = with_websocket(&format!("{fields}, activityTimeoutSeconds: 70"));
        assert_eq!(raised.validate_cel().is_ok(), tuned, "{name}: 140 s fit 240 s and not 120 s");
    }
}

#[test]
fn the_service_within_the_cluster_stays_as_it_is_behind_a_load_balancer() {
    let plain = rendered(&manifest(""));
    for (name, fields) in COMBINATIONS {
        let desired = rendered(&with_websocket(fields));
        assert_eq!(find(&plain, "Service", "eu-websocket"), find(&desired, "Service", "eu-websocket"), "{name}");
    }
}

#[test]
fn a_new_pod_is_ready_for_some_time_before_the_next_one_is_replaced() {
    let of = |fields: &str| {
        let desired = rendered(&with_websocket(fields));
        let seconds = |name: &str| find(&desired, "Deployment", name)["spec"]["minReadySeconds"].as_i64();
        (seconds("eu-websocket"), seconds("eu-sockjs"))
    };
    assert_eq!(of(COMBINATIONS[2].1), (Some(180), None));
    assert_eq!(of(COMBINATIONS[5].1), (Some(60), None));
    assert_eq!(of(COMBINATIONS[9].1), (None, None));
}

#[test]
fn equal_hosts_share_one_object_with_a_path_for_each_server() {
    let same = "hosts: [rt.example.com], basePath: /rt, expose: { type: Ingress, controller: IngressNginx }";
    let desired = rendered(&manifest(&format!("  websocket: {{ {same} }}\n  sockjs: {{ {same} }}\n")));
    assert_eq!(count(&desired, "Ingress"), 1);
    let paths = &find(&desired, "Ingress", "eu-websocket")["spec"]["rules"][0]["http"]["paths"];
    let paths: Vec<(&str, &str)> = paths
        .as_array()
        .expect("paths")
        .iter()
        .map(|path| {
            let name = &path["backend"]["service"]["name"];
            (path["path"].as_str().expect("a path"), name.as_str().expect("a Service"))
        })
        .collect();
    assert_eq!(paths, [("/rt/app/", "eu-websocket"), ("/rt/pusher/", "eu-sockjs")]);
    let apart = |host: &str| {
        format!("hosts: [{host}], expose: {{ type: Gateway, controller: Other, parentRefs: [{{ name: g }}] }}")
    };
    let (websocket, sockjs) = (apart("ws.example.com"), apart("sockjs.example.com"));
    let desired = rendered(&manifest(&format!("  websocket: {{ {websocket} }}\n  sockjs: {{ {sockjs} }}\n")));
    assert_eq!(count(&desired, "HTTPRoute"), 2);
}

#[test]
fn one_deployment_for_both_has_one_entrance_for_both() {
    let text = "  servers: Combined\n  websocket: { hosts: [rt.example.com], expose: { type: EKSALB, controller: EKSAutoMode, scheme: Internal } }\n";
    let desired = rendered(&manifest(text));
    let paths = &find(&desired, "Ingress", "eu-websocket")["spec"]["rules"][0]["http"]["paths"];
    assert_eq!(paths.as_array().map(Vec::len), Some(2));
    let text =
        "  servers: Combined\n  websocket: { expose: { type: EKSNLB, controller: EKSAutoMode, scheme: Internal } }\n";
    let desired = rendered(&manifest(text));
    let service = find(&desired, "Service", "eu-websocket-public");
    assert_eq!(service["spec"]["selector"]["app.kubernetes.io/component"], "edge");
    assert_eq!(count(&desired, "Service"), 3);
}

fn status(states: &[(Transport, TransportState)], published: &[&str]) -> RealtimeClusterStatus {
    let transports = states.iter().map(|(transport, state)| TransportStatus {
        name: transport.name().to_owned(),
        server: transport.server_kind().to_string(),
        state: *state,
        hop: String::new(),
        not_applicable: vec![],
        pods: "3/3".to_owned(),
    });
    let published_hosts = published.iter().map(|host| (*host).to_owned()).collect();
    RealtimeClusterStatus { transports: transports.collect(), published_hosts, ..RealtimeClusterStatus::default() }
}

#[test]
fn external_dns_is_kept_from_a_host_until_its_server_was_proven_once() {
    let host = COMBINATIONS[9].1;
    let controller = |cluster: &RealtimeCluster| {
        let desired = rendered(cluster);
        let found = annotations(find(&desired, "Ingress", "eu-websocket"));
        let [new, former] = DNS_CONTROLLER_KEYS;
        assert_eq!(found[new], found[former], "both prefixes");
        found[new].clone()
    };
    let mut cluster = with_websocket(host);
    assert_eq!(controller(&cluster), "realtime-operator");
    assert_eq!(find_published_hosts(&cluster), [""; 0]);
    cluster.status = Some(status(&[(Transport::Websocket, TransportState::Failing)], &[]));
    assert_eq!(find_published_hosts(&cluster), [""; 0]);
    cluster.status = Some(status(&[(Transport::Websocket, TransportState::Passing)], &[]));
    assert_eq!(find_published_hosts(&cluster), ["ws.example.com"]);
    assert_eq!(controller(&cluster), "realtime-operator", "once the status has it");
    // A later failure must not remove the records: clients in other places may still be served.
    cluster.status =
        Some(status(&[(Transport::Websocket, TransportState::Failing)], &["ws.example.com", "old.example.com"]));
    assert_eq!(controller(&cluster), "dns-controller");
    assert_eq!(find_published_hosts(&cluster), ["ws.example.com"], "a host that is not named any more is forgotten");
    cluster.spec.dns = Some(crate::api::expose::DnsSpec { kind: crate::api::expose::DnsType::Manual });
    assert_eq!(controller(&cluster), "realtime-operator", "another author writes the records");
}

#[test]
fn a_host_of_two_servers_is_published_once_both_are_proven() {
    let same = "hosts: [rt.example.com], expose: { type: Ingress, controller: Other }";
    let mut cluster = manifest(&format!("  websocket: {{ {same} }}\n  sockjs: {{ {same} }}\n"));
    let mut states: Vec<(Transport, TransportState)> =
        Transport::ALL.into_iter().map(|transport| (transport, TransportState::Passing)).collect();
    cluster.status = Some(status(&states[..1], &[]));
    assert_eq!(find_published_hosts(&cluster), [""; 0]);
    cluster.status = Some(status(&states, &[]));
    assert_eq!(find_published_hosts(&cluster), ["rt.example.com"]);
    states[3].1 = TransportState::Unknown;
    cluster.status = Some(status(&states, &[]));
    assert_eq!(find_published_hosts(&cluster), [""; 0]);
}

#[test]
fn the_http_api_alone_is_led_to_and_published_once_its_server_is_proven() {
    let mut cluster = with_api(API_COMBINATIONS[1].1);
    let ingress = |cluster: &RealtimeCluster| find(&rendered(cluster), "Ingress", "eu-api").clone();
    let rules = &ingress(&cluster)["spec"]["rules"];
    assert_eq!(rules[0]["host"], "api.example.com");
    let paths = rules[0]["http"]["paths"].as_array().expect("paths");
    let paths: Vec<_> = paths.iter().map(|path| (&path["path"], &path["backend"]["service"]["name"])).collect();
    let (api, users, service) = (Value::from("/apps/"), Value::from("/users/"), Value::from("eu-websocket"));
    assert_eq!(paths, [(&api, &service), (&users, &service)]);
    let controller = |cluster: &RealtimeCluster| annotations(&ingress(cluster))[DNS_CONTROLLER_KEYS[0]].clone();
    assert_eq!(controller(&cluster), "realtime-operator");
    cluster.status = Some(status(&[(Transport::Websocket, TransportState::Failing)], &[]));
    assert_eq!(find_published_hosts(&cluster), [""; 0]);
    cluster.status = Some(status(&[(Transport::Websocket, TransportState::Passing)], &[]));
    assert_eq!(find_published_hosts(&cluster), ["api.example.com"]);
    cluster.status = Some(status(&[(Transport::Websocket, TransportState::Failing)], &["api.example.com"]));
    assert_eq!(controller(&cluster), "dns-controller");
    let fallbacks = manifest(
        "  websocket: { state: Disabled }\n  httpAPI: { host: api.example.com, expose: { type: Ingress, controller: Other } }\n",
    );
    assert_eq!(ingress(&fallbacks)["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"], "eu-sockjs");
}

#[test]
fn pods_behind_a_load_balancer_of_the_http_api_wait_for_it_too() {
    let edges = |cluster: &RealtimeCluster| {
        let cluster = valid(cluster);
        let edges: Vec<_> = cluster.servers.iter().filter_map(|server| server.edge().cloned()).collect();
        edges.iter().map(|edge| (edge.drain.hold.as_secs(), edge.min_ready_seconds)).collect::<Vec<_>>()
    };
    assert_eq!(edges(&with_api(API_COMBINATIONS[0].1)), [(30, 60), (15, 0)]);
    assert_eq!(edges(&with_api(API_COMBINATIONS[1].1)), [(15, 0), (15, 0)]);
}

#[test]
fn a_load_balancer_of_the_http_api_stays_under_its_host() {
    let alb = with_api(API_COMBINATIONS[0].1);
    let ingress = with_api(API_COMBINATIONS[1].1);
    assert!(ingress.validate_cel_update(&alb).is_err());
    let mut renamed = ingress.clone();
    renamed.spec.http_api.as_mut().expect("an HTTP API").host = "other.example.com".to_owned();
    assert!(renamed.validate_cel_update(&alb).is_ok());
    assert!(manifest("").validate_cel_update(&alb).is_ok(), "without it, nobody uses the host");
}

#[test]
fn a_service_names_its_hosts_to_external_dns_unless_another_author_writes_records() {
    let with_records = |author: &str| {
        let mut cluster = with_websocket(COMBINATIONS[1].1);
        cluster.spec.dns = Some(serde_json::from_value(serde_json::json!({ "type": author })).expect("an author"));
        let desired = rendered(&cluster);
        annotations(find(&desired, "Service", "eu-websocket-public")).remove("external-dns.kubernetes.io/hostname")
    };
    assert_eq!(with_records("ExternalDNS").as_deref(), Some("ws.example.com"));
    assert_eq!(with_records("Manual"), None);
}

#[test]
fn annotations_of_the_manifest_are_added_and_never_replace_those_of_the_operator() {
    let expose = |annotations: &str, labels: &str| {
        let fields = format!(
            "hosts: [a.test], expose: {{ type: Ingress, controller: IngressNginx, annotations: {{ {annotations} }}, labels: {{ {labels} }} }}"
        );
        check(&with_websocket(&fields))
    };
    let desired = render_objects(&expose("example.com/a: b", "team: web").expect("valid")).expect("objects");
    let ingress = find(&desired, "Ingress", "eu-websocket");
    assert_eq!(annotations(ingress)["example.com/a"], "b");
    assert_eq!((&ingress["metadata"]["labels"]["team"]), "web");
    for (added, labels, says) in [
        ("nginx.ingress.kubernetes.io/proxy-buffering: 'on'", "", "which the operator renders: remove it"),
        ("external-dns.kubernetes.io/controller: dns-controller", "", "which the operator renders: remove it"),
        ("'a b': c", "", "which is no annotation"),
        ("", "'team': 'a b'", "which is no label"),
    ] {
        let problems = expose(added, labels).expect_err("refused");
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(text.len() == 1 && text[0].contains(says), "{text:?}");
    }
}

#[test]
fn problems_that_the_schema_cannot_express_name_their_field_and_remedy() {
    let long = "a".repeat(64);
    let ingress = "expose: { type: Ingress, controller: Other }";
    for (name, text, path) in [
        ("two dots", format!("  websocket: {{ hosts: [a..test], {ingress} }}\n"), "spec.websocket.hosts"),
        ("a long label", format!("  websocket: {{ hosts: [{long}.test], {ingress} }}\n"), "spec.websocket.hosts"),
        (
            "a range",
            "  websocket: { expose: { type: LoadBalancer, sourceRanges: ['10.0.0.0/33'] } }\n".to_owned(),
            "spec.websocket.expose.sourceRanges",
        ),
        (
            "a class",
            "  websocket: { expose: { type: LoadBalancer, className: 'a b' } }\n".to_owned(),
            "spec.websocket.expose.className",
        ),
        (
            "an old release",
            "  version: 0.1.0\n  websocket: { expose: { type: EKSNLB, controller: EKSAutoMode, scheme: Internal } }\n"
                .to_owned(),
            "spec.websocket.expose.type",
        ),
        (
            "one host, two objects",
            format!(
                "  websocket: {{ hosts: [a.test], {ingress} }}\n  sockjs: {{ hosts: [a.test], expose: {{ type: Ingress, controller: Traefik }} }}\n"
            ),
            "spec.sockjs.hosts",
        ),
        (
            "a canonical host that is the other's host",
            format!(
                "  websocket: {{ hosts: [a.test], {ingress} }}\n  sockjs: {{ hosts: [b.test], canonicalHost: a.test, {ingress} }}\n"
            ),
            "spec.sockjs.hosts",
        ),
    ] {
        let problems = check(&manifest(&text)).expect_err(name);
        assert!(problems.len() == 1 && problems[0].path == path, "{name}: {problems:?}");
    }
}

#[test]
fn servers_of_an_older_release_are_exposed_by_the_times_that_they_have() {
    let mut cluster = with_websocket(COMBINATIONS[7].1);
    cluster.spec.version = Some(Release::FIRST.to_string());
    let desired = rendered(&cluster);
    let found = annotations(find(&desired, "Ingress", "eu-websocket"));
    // 120 s of activity timeout, 30 s for the answer and 30 s of margin.
    assert_eq!(found["nginx.ingress.kubernetes.io/proxy-read-timeout"], "180");
}

#[test]
fn the_canonical_host_is_that_of_further_requests_of_a_session() {
    let sockjs = "hosts: [a.test], canonicalHost: a-eu.test, expose: { type: Ingress, controller: Other }";
    let cluster = valid(&manifest(&format!("  sockjs: {{ {sockjs} }}\n")));
    assert_eq!(cluster.sockjs.session_host.as_deref(), Some("a-eu.test"));
    assert_eq!(cluster.exposures[0].hosts, ["a.test", "a-eu.test"]);
}

#[test]
fn another_load_balancer_under_a_live_host_is_refused() {
    let nlb = "expose: { type: EKSNLB, controller: AWSLoadBalancerController, scheme: Internal }";
    let auto = "expose: { type: EKSNLB, controller: EKSAutoMode, scheme: Internal }";
    for (name, before, after, says) in [
        ("another class", nlb.to_owned(), auto.to_owned(), Some("the class of a load balancer is immutable")),
        (
            "another type",
            format!("hosts: [a.test], {nlb}"),
            "hosts: [a.test], expose: { type: ClusterIP }".to_owned(),
            Some("clients of hosts would lose the load balancer"),
        ),
        ("no load balancer any more", format!("hosts: [a.test], {nlb}"), String::new(), None),
        ("the same with a host", nlb.to_owned(), format!("hosts: [a.test], {nlb}"), None),
        ("a first load balancer", "hosts: [a.test]".to_owned(), format!("hosts: [a.test], {nlb}"), None),
    ] {
        let result = with_websocket(&after).validate_cel_update(&with_websocket(&before));
        let text = result.err().map(|errors| errors.to_string()).unwrap_or_default();
        assert!(says.map_or(text.is_empty(), |says| text.contains(says)), "{name}: {text}");
    }
}
