//! Renders the objects that lead clients to the servers: Services with load balancers, Ingresses, routes and their policies.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule, IngressServiceBackend, IngressSpec,
    IngressTLS, ServiceBackendPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::super::ValidCluster;
use super::super::expose::{
    AwsController, Entrance, Exposure, GatewayDialect, IngressEntrance, PLAIN_PORT, ParentGateway, TLS_PORT,
    dns_annotations, entrance_annotations,
};
use super::{GATEWAY_API_VERSION, PUBLIC_PORT, child_metadata, child_name, pod_selector};
use crate::config::ServerKind;

/// Port of the Services behind an Ingress or a route.
const SERVICE_PORT: i32 = 80;

/// Connections, and requests in progress, of one Envoy to the servers: more than it has memory for, so that its own default of
/// 1,024 refuses no client. An edge bounds its connections itself.
const ENVOY_CONNECTIONS_MAX: u32 = 1_000_000;

/// Time for which Envoy keeps an idle connection to a server: shorter than any server keeps it.
const ENVOY_IDLE_TIMEOUT: &str = "60s";

/// Name of the Ingress, the route and the policies of an exposure.
#[must_use]
pub fn entrance_name(cluster: &str, exposure: &Exposure) -> String {
    format!("{cluster}-{}", exposure.part_name())
}

/// Name of the Service of an exposure with a load balancer. It is not the one within the Kubernetes cluster, whose port and
/// class stay as they are.
#[must_use]
pub fn balancer_name(cluster: &str, exposure: &Exposure) -> String {
    format!("{cluster}-{}-public", exposure.server)
}

/// Renders the Services with load balancers.
pub(super) fn render_load_balancers(cluster: &ValidCluster) -> Vec<Service> {
    let rendered = cluster.exposures.iter().filter_map(|exposure| {
        let class = match &exposure.entrance {
            Entrance::LoadBalancer(class) => class.clone(),
            Entrance::Nlb(aws) => Some(
                match aws.controller {
                    AwsController::LoadBalancerController => "service.k8s.aws/nlb",
                    AwsController::AutoMode => "eks.amazonaws.com/nlb",
                }
                .to_owned(),
            ),
            _ => return None,
        };
        Some(render_load_balancer(cluster, exposure, class))
    });
    rendered.collect()
}

fn render_load_balancer(cluster: &ValidCluster, exposure: &Exposure, class: Option<String>) -> Service {
    let behind = cluster.servers.iter().find(|server| server.kind.serves_as(exposure.server));
    let behind = behind.map_or(exposure.server, |server| server.kind);
    let (name, port) = if exposure.has_tls() { ("https", TLS_PORT) } else { ("http", PLAIN_PORT) };
    let is_aws = matches!(exposure.entrance, Entrance::Nlb(_));
    let spec = ServiceSpec {
        type_: Some("LoadBalancer".to_owned()),
        load_balancer_class: class,
        // An NLB leads to pods: a port of every node would be an entrance beside it.
        allocate_load_balancer_node_ports: is_aws.then_some(false),
        load_balancer_source_ranges: (!exposure.source_ranges.is_empty()).then(|| exposure.source_ranges.clone()),
        selector: Some(pod_selector(cluster, behind.name())),
        ports: Some(vec![ServicePort {
            name: Some(name.to_owned()),
            port: port.into(),
            target_port: Some(IntOrString::Int(PUBLIC_PORT)),
            ..ServicePort::default()
        }]),
        ..ServiceSpec::default()
    };
    let mut metadata = exposure_metadata(cluster, exposure);
    metadata.name = Some(balancer_name(&cluster.name, exposure));
    Service { metadata, spec: Some(spec), ..Service::default() }
}

/// Renders the Ingresses, those of Application Load Balancers among them.
pub(super) fn render_ingresses(cluster: &ValidCluster) -> Vec<Ingress> {
    let rendered = cluster.exposures.iter().filter_map(|exposure| {
        let (class, certificate) = match &exposure.entrance {
            Entrance::Alb(_, class) => (Some(class.clone()), None),
            Entrance::Ingress(IngressEntrance { class_name, certificate, .. }) => {
                (class_name.clone(), certificate.clone())
            }
            _ => return None,
        };
        let rules = exposure.hosts.iter().map(|host| IngressRule {
            host: Some(host.clone()),
            http: Some(HTTPIngressRuleValue { paths: render_ingress_paths(cluster, exposure) }),
        });
        let tls = certificate
            .map(|secret| vec![IngressTLS { hosts: Some(exposure.hosts.clone()), secret_name: Some(secret) }]);
        let spec =
            IngressSpec { ingress_class_name: class, rules: Some(rules.collect()), tls, ..IngressSpec::default() };
        let metadata = exposure_metadata(cluster, exposure);
        Some(Ingress { metadata, spec: Some(spec), ..Ingress::default() })
    });
    rendered.collect()
}

fn render_ingress_paths(cluster: &ValidCluster, exposure: &Exposure) -> Vec<HTTPIngressPath> {
    let path = |(path, asked): (String, ServerKind)| HTTPIngressPath {
        // Traefik takes a prefix as text by default: without the slash, `/app` of the clients would lead `/apps` there, too.
        path: Some(format!("{path}/")),
        path_type: "Prefix".to_owned(),
        backend: IngressBackend {
            service: Some(IngressServiceBackend {
                name: child_name(cluster, asked.name()),
                port: Some(ServiceBackendPort { number: Some(SERVICE_PORT), name: None }),
            }),
            resource: None,
        },
    };
    exposure.paths().into_iter().map(path).collect()
}

/// Renders the routes of Gateways.
pub(super) fn render_routes(cluster: &ValidCluster) -> Vec<Value> {
    let routes = cluster.exposures.iter().filter_map(|exposure| {
        let Entrance::Gateway(_, parents) = &exposure.entrance else { return None };
        let rule = |(path, asked): (String, ServerKind)| {
            json!({
                "matches": [{ "path": { "type": "PathPrefix", "value": path } }],
                "backendRefs": [{ "name": child_name(cluster, asked.name()), "port": SERVICE_PORT, "weight": 1 }],
                // A socket and a stream have no end; Envoy's own limit is 15 s.
                "timeouts": { "request": "0s", "backendRequest": "0s" },
            })
        };
        let spec = json!({
            "parentRefs": parents.iter().map(render_parent).collect::<Vec<_>>(),
            "hostnames": exposure.hosts,
            "rules": exposure.paths().into_iter().map(rule).collect::<Vec<_>>(),
        });
        let metadata = exposure_metadata(cluster, exposure);
        Some(json!({ "apiVersion": GATEWAY_API_VERSION, "kind": "HTTPRoute", "metadata": metadata, "spec": spec }))
    });
    routes.collect()
}

fn render_parent(parent: &ParentGateway) -> Value {
    let mut reference = json!({ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": parent.name });
    if let Some(namespace) = &parent.namespace {
        reference["namespace"] = json!(namespace);
    }
    if let Some(section) = &parent.section_name {
        reference["sectionName"] = json!(section);
    }
    reference
}

/// Renders the policies of Envoy Gateway.
pub(super) fn render_envoy_policies(cluster: &ValidCluster) -> Vec<Value> {
    let kind = ("gateway.envoyproxy.io/v1alpha1", "BackendTrafficPolicy");
    render_policies(cluster, GatewayDialect::EnvoyGateway, kind, |route| {
        json!({
            "targetRefs": [route],
            "circuitBreaker": {
                "maxConnections": ENVOY_CONNECTIONS_MAX,
                "maxPendingRequests": ENVOY_CONNECTIONS_MAX,
                "maxParallelRequests": ENVOY_CONNECTIONS_MAX,
            },
            "timeout": { "http": { "connectionIdleTimeout": ENVOY_IDLE_TIMEOUT } },
            "loadBalancer": { "type": "LeastRequest" },
        })
    })
}

/// Renders the policies of NGINX Gateway Fabric for answers of the servers.
pub(super) fn render_nginx_proxy_policies(cluster: &ValidCluster) -> Vec<Value> {
    let kind = ("gateway.nginx.org/v1alpha1", "ProxySettingsPolicy");
    render_policies(
        cluster,
        GatewayDialect::NginxGatewayFabric,
        kind,
        |route| json!({ "targetRefs": [route], "buffering": { "disable": true } }),
    )
}

/// Renders the policies of NGINX Gateway Fabric for requests of clients.
pub(super) fn render_nginx_client_policies(cluster: &ValidCluster) -> Vec<Value> {
    let kind = ("gateway.nginx.org/v1alpha1", "ClientSettingsPolicy");
    render_policies(
        cluster,
        GatewayDialect::NginxGatewayFabric,
        kind,
        |route| json!({ "targetRef": route, "body": { "maxSize": "1m" } }),
    )
}

/// Renders one policy per route of a dialect; `spec` gets the reference to the route.
fn render_policies(
    cluster: &ValidCluster,
    dialect: GatewayDialect,
    (api_version, kind): (&str, &str),
    spec: impl Fn(Value) -> Value,
) -> Vec<Value> {
    let policies = cluster.exposures.iter().filter_map(|exposure| {
        let Entrance::Gateway(found, _) = &exposure.entrance else { return None };
        let name = entrance_name(&cluster.name, exposure);
        let route = json!({ "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": name });
        let spec = spec(route);
        let metadata = child_metadata(cluster, name, exposure.server.name());
        (*found == dialect)
            .then(|| json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec }))
    });
    policies.collect()
}

/// Metadata of an object that carries hosts: annotations of its controller and of external-dns, and those of the manifest.
fn exposure_metadata(cluster: &ValidCluster, exposure: &Exposure) -> ObjectMeta {
    let mut services: Vec<String> =
        exposure.paths().iter().map(|(_, asked)| child_name(cluster, asked.name())).collect();
    services.dedup();
    let own = entrance_annotations(exposure, &services).into_iter().chain(dns_annotations(exposure));
    let annotations: BTreeMap<String, String> = exposure.annotations.clone().into_iter().chain(own).collect();
    let mut metadata = child_metadata(cluster, entrance_name(&cluster.name, exposure), exposure.server.name());
    let labels = metadata.labels.take().unwrap_or_default();
    metadata.labels = Some(exposure.labels.clone().into_iter().chain(labels).collect());
    metadata.annotations = Some(annotations);
    metadata
}
