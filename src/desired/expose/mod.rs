//! How clients outside the Kubernetes cluster reach the servers: entrances with their hosts, and every number and annotation
//! of a load balancer, from the drain and the activity timeout of the server behind it. Pure.
//!
//! In: the manifest's `hosts`, `tls` and `expose`, and the resolved servers. Out: one [`Exposure`] per entrance, with the
//! annotations of each product in one table. This folder must not know the objects that carry them.

mod annotations;
mod defaults;
mod problems;
mod resolve;
mod timing;

use std::collections::BTreeMap;

use crate::config::ServerKind;

pub use annotations::{DNS_CONTROLLER_KEYS, dns_annotations, entrance_annotations};
pub use defaults::ExposeDefaults;
pub(super) use problems::find_expose_problems;
pub use resolve::find_published_hosts;
pub(super) use resolve::resolve_exposures;
pub use timing::{DrainPhases, ExposureTiming};

/// Port of a load balancer that ends TLS.
pub const TLS_PORT: u16 = 443;
/// Port of a load balancer that ends none.
pub const PLAIN_PORT: u16 = 80;

/// Paths of the HTTP API; the second is that of Pusher's SDK for Python, which terminates a user's connections there.
const HTTP_API_PATHS: [&str; 2] = ["/apps", "/users"];

/// An entrance for clients outside the Kubernetes cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// Server after which the objects are named.
    pub server: ServerKind,
    /// Servers that clients reach through it, as clients ask for them; none for the HTTP API.
    pub servers: Vec<ServerKind>,
    /// Whether it leads backends to the HTTP API, and nobody else.
    pub is_http_api: bool,
    /// Hosts, the canonical one last.
    pub hosts: Vec<String>,
    /// The object and its product.
    pub entrance: Entrance,
    /// Times of the servers behind it.
    pub timing: ExposureTiming,
    /// Prefix of every public path.
    pub base_path: Option<String>,
    /// Whether connections to the servers begin with a header of the PROXY protocol.
    pub has_proxy_header: bool,
    /// Networks from which clients are accepted; empty for every network.
    pub source_ranges: Vec<String>,
    /// Annotations that the manifest adds.
    pub annotations: BTreeMap<String, String>,
    /// Labels that the manifest adds.
    pub labels: BTreeMap<String, String>,
    /// Records of the hosts, as external-dns is asked for them.
    pub records: DnsRecords,
}

/// Whether external-dns may write records of the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsRecords {
    /// It writes them: the server was proven.
    Published,
    /// It writes none until the server is proven.
    HeldBack,
    /// It writes none: another author does.
    Manual,
}

/// The object that leads clients to the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// None: the front is the user's.
    ClusterIp,
    /// A Service of type `LoadBalancer`, of this class.
    LoadBalancer(Option<String>),
    /// A Service with a Network Load Balancer of AWS.
    Nlb(AwsEntrance),
    /// An Ingress with an Application Load Balancer of AWS, of this class.
    Alb(AwsEntrance, String),
    /// An Ingress with rules for the hosts.
    Ingress(IngressEntrance),
    /// An `HTTPRoute` of these Gateways.
    Gateway(GatewayDialect, Vec<ParentGateway>),
}

/// Settings of a load balancer of AWS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsEntrance {
    /// Controller that creates the load balancer.
    pub controller: AwsController,
    /// Whether it has public addresses.
    pub is_public: bool,
    /// ARN of the certificate.
    pub certificate: Option<String>,
    /// Name of the TLS policy.
    pub security_policy: String,
    /// Whether clients are sent to pods of other zones.
    pub has_cross_zone: bool,
}

/// Controllers of load balancers of AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AwsController {
    /// The AWS Load Balancer Controller.
    LoadBalancerController,
    /// EKS Auto Mode, which takes fewer settings.
    AutoMode,
}

/// Settings of an Ingress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressEntrance {
    /// Controller whose annotations are rendered.
    pub dialect: IngressDialect,
    /// Class of the Ingress; `None` for the default class.
    pub class_name: Option<String>,
    /// Secret with the certificate of all hosts.
    pub certificate: Option<String>,
}

/// Ingress controllers with annotations of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IngressDialect {
    /// ingress-nginx of the Kubernetes project.
    IngressNginx,
    /// NGINX Ingress Controller of F5.
    F5Nginx,
    /// No annotations: Traefik has its times in its static configuration.
    Portable,
}

/// Controllers of the Gateway API with policies of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayDialect {
    /// Envoy Gateway, with its traffic policy.
    EnvoyGateway,
    /// NGINX Gateway Fabric, with its policies.
    NginxGatewayFabric,
    /// No policies: the route alone.
    Portable,
}

/// A Gateway that a route attaches to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentGateway {
    /// Name of the Gateway.
    pub name: String,
    /// Namespace; `None` for that of the cluster.
    pub namespace: Option<String>,
    /// Listener; `None` for every one that accepts the hosts.
    pub section_name: Option<String>,
}

impl Exposure {
    /// Public path of a server, such as `/app`, behind the prefix.
    #[must_use]
    pub fn path_of(&self, server: ServerKind) -> String {
        let path = if server == ServerKind::Sockjs { "/pusher" } else { "/app" };
        format!("{}{path}", self.base_path.as_deref().unwrap_or_default())
    }

    /// Public paths with the server behind each: those of clients, or those of the HTTP API.
    #[must_use]
    pub fn paths(&self) -> Vec<(String, ServerKind)> {
        if self.is_http_api {
            return HTTP_API_PATHS.map(|path| (path.to_owned(), self.server)).into();
        }
        self.servers.iter().map(|asked| (self.path_of(*asked), *asked)).collect()
    }

    /// Name of the exposed part, which ends the names of its objects.
    #[must_use]
    pub fn part_name(&self) -> &'static str {
        if self.is_http_api { "api" } else { self.server.name() }
    }

    /// Field of the manifest that the entrance is described by.
    #[must_use]
    pub fn manifest_field(&self) -> &'static str {
        if self.is_http_api { "httpAPI" } else { self.server.name() }
    }

    /// Whether clients use TLS: at the object itself, or at a front that the operator does not see, for which TLS is assumed.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        match &self.entrance {
            Entrance::ClusterIp | Entrance::Gateway(..) | Entrance::Alb(..) => true,
            Entrance::LoadBalancer(_) => false,
            Entrance::Nlb(aws) => aws.certificate.is_some(),
            Entrance::Ingress(ingress) => ingress.certificate.is_some(),
        }
    }
}

/// Whether the controller of the load balancer can inject readiness gates into pods: EKS Auto Mode has none.
#[must_use]
pub fn has_injected_gates(exposure: &Exposure) -> bool {
    match &exposure.entrance {
        Entrance::Nlb(aws) | Entrance::Alb(aws, _) => aws.controller == AwsController::LoadBalancerController,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
