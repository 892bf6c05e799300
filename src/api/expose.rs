//! How clients outside the Kubernetes cluster reach a server: its hosts, their certificate, and the load balancer, Ingress or
//! route that leads to it.

use std::collections::BTreeMap;

use kube::KubeSchema;
use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pods::OBJECT_NAME_PATTERN;
use super::{EnabledState, SecretRef};

/// Hosts of a server, their certificate, and the object that leads clients to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EntranceSpec {
    /// Names under which clients reach the server, the one for new clients first. The same names on both servers share one
    /// Ingress or route.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), inner(length(max = 253), regex(pattern = OBJECT_NAME_PATTERN)))]
    pub hosts: Vec<String>,
    /// One more name, which leads to this cluster alone when several clusters share `hosts`. Sessions over HTTP send their
    /// further requests to that of `sockjs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = OBJECT_NAME_PATTERN))]
    pub canonical_host: Option<String>,
    /// Certificate for the hosts, at the load balancer or Ingress: servers end no TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// The object that leads clients to the server. By default only a Service within the Kubernetes cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expose: Option<ExposeSpec>,
}

/// A host under which backends outside the Kubernetes cluster publish, its certificate, and the object that leads to the HTTP API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpApiSpec {
    /// Name under which backends reach the HTTP API; no name of a server.
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME_PATTERN))]
    pub host: String,
    /// Certificate for the host, at the load balancer or Ingress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// The object that leads the paths of the HTTP API to it, and no other path of the host.
    pub expose: ExposeSpec,
}

/// Certificate for the hosts of a server: one of the two fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsSpec {
    /// ARN of a certificate in AWS Certificate Manager, for types EKSNLB and EKSALB.
    #[serde(rename = "acmCertificateARN", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = "^arn:"))]
    pub acm_certificate_arn: Option<String>,
    /// Secret with a certificate for all hosts, for type Ingress. The operator does not read it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1))]
    pub certificate_refs: Vec<SecretRef>,
}

/// The object that leads clients to a server; docs/exposure.md lists all that is rendered, by type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = controller_rule(),
    validation = Rule::new("!has(self.className) || self.type in ['LoadBalancer', 'EKSALB', 'Ingress']").message("className goes with type: LoadBalancer, EKSALB or Ingress: remove it"),
    validation = Rule::new("(self.type == 'Gateway') == (has(self.parentRefs) && self.parentRefs.size() > 0)").message("parentRefs go with type: Gateway, and with nothing else: name the Gateway"),
    validation = Rule::new("(self.type in ['EKSNLB', 'EKSALB']) == has(self.scheme)").message("scheme goes with type: EKSNLB and EKSALB, and with nothing else: write InternetFacing or Internal"),
    validation = Rule::new("!has(self.sourceRanges) || self.type in ['LoadBalancer', 'EKSNLB', 'EKSALB']").message("sourceRanges go with type: LoadBalancer, EKSNLB or EKSALB: limit sources at the Ingress controller or Gateway"),
    validation = Rule::new("!has(self.securityPolicy) || self.type in ['EKSNLB', 'EKSALB']").message("securityPolicy goes with type: EKSNLB or EKSALB: remove it"),
    validation = Rule::new("!has(self.crossZone) || self.type == 'EKSNLB'").message("crossZone goes with type: EKSNLB: remove it, an ALB always balances across zones"),
    validation = Rule::new("self.type != 'ClusterIP' || (!has(self.annotations) && !has(self.labels))").message("annotations and labels go with a type that creates an object: remove them from type: ClusterIP")
)]
pub struct ExposeSpec {
    /// Kind of object that leads clients to the server.
    #[serde(rename = "type")]
    pub kind: ExposeType,
    /// The controller that reads the object, whose settings are rendered; required except for `ClusterIP` and `LoadBalancer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<ExposeController>,
    /// Class of the Ingress, or of a `LoadBalancer` Service. Defaults to `alb` for EKSALB, and to the default class otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub class_name: Option<String>,
    /// Gateways that the route attaches to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub parent_refs: Vec<ParentGatewayRef>,
    /// Whether the load balancer has public addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<LoadBalancerScheme>,
    /// Networks from which the load balancer accepts clients, such as `203.0.113.0/24`. By default every network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub source_ranges: Vec<String>,
    /// Name of the load balancer's TLS policy. Defaults to `ELBSecurityPolicy-TLS13-1-2-2021-06`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[a-zA-Z0-9_.-]+$"))]
    pub security_policy: Option<String>,
    /// Whether an NLB sends clients to pods of other zones too. Enabled by default, so that a zone whose only pod restarts
    /// still serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross_zone: Option<EnabledState>,
    /// Annotations of the object in addition to those that the operator renders.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    #[x_kube(validation = Rule::new("self.all(name, !name.startsWith('realtime-operator.dev/'))").message("annotations of realtime-operator.dev/ belong to the operator: write others"))]
    pub annotations: BTreeMap<String, String>,
    /// Labels of the object in addition to those of the operator.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    #[x_kube(validation = Rule::new("self.all(name, !name.startsWith('app.kubernetes.io/') && !name.startsWith('realtime-operator.dev/'))").message("labels of app.kubernetes.io/ and realtime-operator.dev/ belong to the operator: write others"))]
    pub labels: BTreeMap<String, String>,
}

/// Kinds of objects that lead clients to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExposeType {
    /// A Service within the Kubernetes cluster; the front is yours.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// A Service of type `LoadBalancer`, whose annotations are yours.
    LoadBalancer,
    /// A Network Load Balancer of AWS, in front of pod addresses.
    #[serde(rename = "EKSNLB")]
    EksNlb,
    /// An Application Load Balancer of AWS, in front of pod addresses.
    #[serde(rename = "EKSALB")]
    EksAlb,
    /// An Ingress, read by an Ingress controller.
    Ingress,
    /// An `HTTPRoute` of the Gateway API.
    Gateway,
}

/// Controllers whose settings are rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExposeController {
    /// The AWS Load Balancer Controller, version 2.13 or later.
    #[serde(rename = "AWSLoadBalancerController")]
    AwsLoadBalancerController,
    /// The load balancing of EKS Auto Mode.
    #[serde(rename = "EKSAutoMode")]
    EksAutoMode,
    /// ingress-nginx of the Kubernetes project, or Traefik's provider for its annotations.
    IngressNginx,
    /// NGINX Ingress Controller of F5.
    F5Nginx,
    /// Traefik, by Ingress or by Gateway.
    Traefik,
    /// Envoy Gateway, version 1.
    EnvoyGateway,
    /// NGINX Gateway Fabric, version 2.
    NginxGatewayFabric,
    /// Any other controller: the portable object alone is rendered.
    Other,
}

/// Whether a load balancer has public addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LoadBalancerScheme {
    /// The load balancer has public addresses.
    InternetFacing,
    /// The load balancer has addresses of its network alone.
    Internal,
}

/// A Gateway that a route attaches to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentGatewayRef {
    /// Name of the Gateway.
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME_PATTERN))]
    pub name: String,
    /// Namespace of the Gateway; by default that of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = OBJECT_NAME_PATTERN))]
    pub namespace: Option<String>,
    /// Listener of the Gateway; by default every listener that accepts the hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME_PATTERN))]
    pub section_name: Option<String>,
}

/// The DNS records of all hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DnsSpec {
    /// The author of the records.
    #[serde(rename = "type")]
    pub kind: DnsType,
}

/// Authors of DNS records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DnsType {
    /// external-dns writes them, once journeys have proven the server for the first time.
    #[default]
    #[serde(rename = "ExternalDNS")]
    ExternalDns,
    /// A person or another tool writes them, and external-dns is kept from it.
    Manual,
}

/// The rule that names the controllers of each type.
fn controller_rule() -> Rule {
    Rule::new("self.type in ['EKSNLB', 'EKSALB'] ? has(self.controller) && self.controller in ['AWSLoadBalancerController', 'EKSAutoMode'] : self.type == 'Ingress' ? has(self.controller) && self.controller in ['IngressNginx', 'F5Nginx', 'Traefik', 'Other'] : self.type == 'Gateway' ? has(self.controller) && self.controller in ['EnvoyGateway', 'NginxGatewayFabric', 'Traefik', 'Other'] : !has(self.controller)")
        .message("controller does not go with the type: EKSNLB and EKSALB need AWSLoadBalancerController or EKSAutoMode, Ingress needs IngressNginx, F5Nginx, Traefik or Other, Gateway needs EnvoyGateway, NginxGatewayFabric, Traefik or Other, and the other types take none")
}

/// The rule that an object which leads clients by their host has hosts.
pub(super) fn routed_hosts_rule() -> Rule {
    Rule::new("!has(self.expose) || !(self.expose.type in ['EKSALB', 'Ingress', 'Gateway']) || (has(self.hosts) && self.hosts.size() > 0)")
        .message("expose.type EKSALB, Ingress and Gateway lead clients by their host: write hosts")
}

/// The rule that required journeys from outside have a load balancer.
pub(super) fn required_external_rule() -> Rule {
    Rule::new("self.spec.gate.external != 'Required' || (has(self.spec.websocket.hosts) && self.spec.websocket.hosts.size() > 0 && has(self.spec.websocket.expose) && self.spec.websocket.expose.type != 'ClusterIP') || (has(self.spec.sockjs.hosts) && self.spec.sockjs.hosts.size() > 0 && has(self.spec.sockjs.expose) && self.spec.sockjs.expose.type != 'ClusterIP') || has(self.spec.httpAPI)")
        .message("gate.external: Required needs a load balancer with hosts: write hosts and expose, or external: Auto")
}

/// The rule that no host stands twice.
pub(super) fn distinct_hosts_rule() -> Rule {
    Rule::new("!has(self.hosts) || self.hosts.all(host, self.hosts.exists_one(other, host == other))")
        .message("a host stands twice in hosts: remove one of them")
}

/// The rule that the canonical host is one more name.
pub(super) fn canonical_host_rule() -> Rule {
    Rule::new(
        "!has(self.canonicalHost) || (has(self.hosts) && self.hosts.size() > 0 && !(self.canonicalHost in self.hosts))",
    )
    .message("canonicalHost is one more name beside those of hosts: write another one, or leave it out")
}

/// The rule that a certificate is of the form which the type reads.
pub(super) fn certificate_rule() -> Rule {
    Rule::new("!has(self.tls) || (has(self.expose) && (has(self.tls.acmCertificateARN) ? !has(self.tls.certificateRefs) && self.expose.type in ['EKSNLB', 'EKSALB'] : has(self.tls.certificateRefs) && self.expose.type == 'Ingress'))")
        .message("tls has acmCertificateARN with expose.type EKSNLB or EKSALB, or certificateRefs with Ingress, and nothing with other types: there the certificate is set at the Gateway or the load balancer")
}

/// The rule that a public Network Load Balancer ends TLS.
pub(super) fn public_certificate_rule() -> Rule {
    Rule::new("!has(self.expose) || self.expose.type != 'EKSNLB' || (has(self.tls) && has(self.tls.acmCertificateARN)) || (has(self.expose.scheme) && self.expose.scheme == 'Internal' && !has(self.expose.securityPolicy))")
        .message("an EKSNLB with public addresses, or with a securityPolicy, needs tls.acmCertificateARN: servers end no TLS")
}

/// The rule that pings are more frequent than the idle timeout of a TLS listener.
pub(super) fn tls_idle_rule() -> Rule {
    // ELB: a TLS listener of an NLB closes a silent connection after 350 s; a ping and its answer take 30 s, and so much again is the margin.
    Rule::new("!has(self.expose) || self.expose.type != 'EKSNLB' || !has(self.tls) || !has(self.activityTimeoutSeconds) || self.activityTimeoutSeconds <= 260")
        .message("activityTimeoutSeconds is above 260: the TLS listener of an NLB closes silent connections after 350 s")
}

/// The rule that a drain fits into the longest deregistration delay.
pub(super) fn deregistration_rule() -> Rule {
    // ELB: a target group waits for at most 3600 s.
    Rule::new("!has(self.expose) || !(self.expose.type in ['EKSNLB', 'EKSALB']) || (has(self.drain.holdSeconds) ? self.drain.holdSeconds : self.expose.type == 'EKSNLB' ? 120 : 30) + self.drain.windowSeconds <= 3570")
        .message("holdSeconds and windowSeconds are above 3570 together: a load balancer of AWS waits for at most an hour")
}

/// The rule that no PROXY protocol is expected from a load balancer that has none.
pub(super) fn alb_protocol_rule() -> Rule {
    Rule::new("!has(self.expose) || self.expose.type != 'EKSALB' || !has(self.proxyProtocol) || self.proxyProtocol == 'Disabled'")
        .message("an ALB speaks no PROXY protocol: remove proxyProtocol")
}

/// The rule that a server keeps idle connections for longer than an ALB.
pub(super) fn alb_keep_alive_rule() -> Rule {
    Rule::new("!has(self.expose) || self.expose.type != 'EKSALB' || !has(self.keepAliveSeconds) || self.keepAliveSeconds >= (has(self.activityTimeoutSeconds) ? self.activityTimeoutSeconds : 120) + 75")
        .message("keepAliveSeconds is less than activityTimeoutSeconds plus 75: the ALB would keep idle connections for longer than the server, and answer 502")
}

/// The rule that the class of a load balancer stays: the API server refuses another one on the same Service.
pub(super) fn immutable_class_rule() -> Rule {
    Rule::new("!has(self.expose) || !(self.expose.type in ['EKSNLB', 'LoadBalancer']) || !has(oldSelf.expose) || oldSelf.expose.type != self.expose.type || ((has(self.expose.controller) ? self.expose.controller : '') == (has(oldSelf.expose.controller) ? oldSelf.expose.controller : '') && (has(self.expose.className) ? self.expose.className : '') == (has(oldSelf.expose.className) ? oldSelf.expose.className : ''))")
        .message("the class of a load balancer is immutable: create another cluster and move to it, or write expose.type: ClusterIP without hosts first, which deletes the load balancer")
}

/// The rule that a load balancer with hosts is not replaced by another entrance.
pub(super) fn live_hosts_rule() -> Rule {
    Rule::new("!has(oldSelf.expose) || !(oldSelf.expose.type in ['EKSNLB', 'EKSALB', 'LoadBalancer']) || (has(self.expose) && self.expose.type == oldSelf.expose.type) || !has(self.hosts) || !has(oldSelf.hosts)")
        .message("clients of hosts would lose the load balancer that its records name: create another cluster and move to it, or remove hosts together with expose")
}

/// The rule that the object of the HTTP API leads by host and path: the rest of a server is no place for backends.
pub(super) fn api_type_rule() -> Rule {
    Rule::new("self.expose.type in ['EKSALB', 'Ingress', 'Gateway']")
        .message("httpAPI.expose leads some paths of its host to the HTTP API: write type: EKSALB, Ingress or Gateway")
}

/// The rule that the HTTP API has a host of its own.
pub(super) fn api_host_rule() -> Rule {
    let named = |server: &str| {
        format!(
            "(has(self.spec.{server}.hosts) && self.spec.httpAPI.host in self.spec.{server}.hosts) || (has(self.spec.{server}.canonicalHost) && self.spec.httpAPI.host == self.spec.{server}.canonicalHost)"
        )
    };
    Rule::new(format!("!has(self.spec.httpAPI) || !({} || {})", named("websocket"), named("sockjs"))).message(
        "httpAPI.host is a host of websocket or sockjs, whose clients it would lead elsewhere: write another name",
    )
}

/// The rule that backends do not lose the load balancer that the record of their host names.
pub(super) fn live_api_host_rule() -> Rule {
    Rule::new("oldSelf.expose.type != 'EKSALB' || self.expose.type == 'EKSALB' || self.host != oldSelf.host")
        .message("backends would lose the load balancer that the record of httpAPI.host names: write another host together with another type, or remove httpAPI first")
}

/// The rule that the pods behind the HTTP API take connections without a header of the PROXY protocol.
pub(super) fn api_proxy_rule() -> Rule {
    let is_free = |server: &str| {
        format!("(!has(self.spec.{server}.proxyProtocol) || self.spec.{server}.proxyProtocol != 'Required')")
    };
    let (websocket, sockjs) = (is_free("websocket"), is_free("sockjs"));
    Rule::new(format!("!has(self.spec.httpAPI) || (self.spec.websocket.state == 'Enabled' ? {websocket} : {sockjs})"))
        .message("the load balancer of httpAPI speaks no PROXY protocol: write proxyProtocol: Accepted at the server behind it, websocket if it is enabled")
}

/// The rule that a load balancer of AWS is trusted with the addresses of clients.
pub(super) fn trusted_front_rule() -> Rule {
    Rule::new("!((has(self.spec.websocket.expose) && self.spec.websocket.expose.type in ['EKSNLB', 'EKSALB']) || (has(self.spec.sockjs.expose) && self.spec.sockjs.expose.type in ['EKSNLB', 'EKSALB'])) || (has(self.spec.trustedProxies) && self.spec.trustedProxies.size() > 0)")
        .message("expose.type EKSNLB and EKSALB need trustedProxies: write the networks of the load balancer's subnets, or every client has its address")
}

/// The rule that servers share all of their hosts or none.
pub(super) fn shared_hosts_rule() -> Rule {
    Rule::new("!has(self.spec.websocket.hosts) || !has(self.spec.sockjs.hosts) || self.spec.websocket.hosts == self.spec.sockjs.hosts || !self.spec.websocket.hosts.exists(host, host in self.spec.sockjs.hosts)")
        .message("websocket and sockjs share some of their hosts: write the same hosts for both, or none in common")
}

/// The rule that a load balancer without paths leads a host to one server.
pub(super) fn pathless_hosts_rule() -> Rule {
    Rule::new("self.spec.servers == 'Combined' || !has(self.spec.websocket.hosts) || !has(self.spec.sockjs.hosts) || self.spec.websocket.hosts != self.spec.sockjs.hosts || !has(self.spec.websocket.expose) || !(self.spec.websocket.expose.type in ['EKSNLB', 'LoadBalancer'])")
        .message("a load balancer without paths leads a host to one server only: write other hosts for sockjs, or servers: Combined")
}

/// The rule that records have hosts.
pub(super) fn dns_rule() -> Rule {
    Rule::new("!has(self.spec.dns) || has(self.spec.websocket.hosts) || has(self.spec.sockjs.hosts) || has(self.spec.httpAPI)")
        .message("dns without hosts has no record: write hosts, or remove dns")
}
