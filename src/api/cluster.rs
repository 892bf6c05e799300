//! `RealtimeCluster`: spec of a realtime cluster.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::expose::{
    DnsSpec, EntranceSpec, HttpApiSpec, alb_keep_alive_rule, alb_protocol_rule, api_host_rule, api_proxy_rule,
    api_type_rule, canonical_host_rule, certificate_rule, deregistration_rule, distinct_hosts_rule, dns_rule,
    immutable_class_rule, live_api_host_rule, live_hosts_rule, pathless_hosts_rule, public_certificate_rule,
    required_external_rule, routed_hosts_rule, shared_hosts_rule, tls_idle_rule, trusted_front_rule,
};
pub use super::image::{ImageSpec, PullPolicy};
use super::load_balancer::{LoadBalancerSpec, base_path_rule, keep_alive_rule};
pub use super::log_level::LogLevel;
pub use super::pods::ExtraVariable;
use super::pods::{PodSettings, ServiceAccounts};
pub use super::status::{
    ClientOptions, EndpointsStatus, EntranceStatus, GateStatus, HopTime, LastFailure, LimitedChange, PodReplacements,
    ProofState, ProofTransport, RealtimeClusterStatus, RequestedProofStatus, StreamChangeRecord, StreamStatus,
    TransportState, TransportStatus,
};
pub use super::stream::{DataLoss, StreamDeletionPolicy, StreamEncryption, StreamManagement, StreamMode, StreamSpec};
pub use super::webhook_pipeline::{
    DeadLetterMode, DeadLetterSpec, DispatcherServer, WebhookPipelineSpec, WebhooksMode,
};
use super::{EnabledState, SecretKeyRef, SecretRef};

/// Longest name of a cluster: children append up to 23 characters, and Kubernetes allows 63.
pub const MAX_NAME: usize = 40;

/// The desired state of a cluster.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "realtime-operator.dev",
    version = "v1alpha1",
    kind = "RealtimeCluster",
    plural = "realtimeclusters",
    shortname = "rtc",
    category = "realtime",
    namespaced,
    cel,
    doc = "A realtime cluster: edge servers, a Kinesis stream and a webhook dispatcher, Ready only while a client's event arrives as a signed webhook.",
    status = "RealtimeClusterStatus",
    derive = "PartialEq",
    // Not for a cluster that was reconciled before the rule: its finalizer must go, and the operator reports the name.
    validation = Rule::new("(has(self.status) && self.status.observedGeneration >= 0) || self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("no Service can have this name: write metadata.name with lower-case letters, digits and dashes, the first a letter, such as eu-prod"),
    validation = Rule::new("self.metadata.name.size() <= 40").message("the name has more than 40 characters: shorten metadata.name, children add to it"),
    validation = Rule::new("self.spec.websocket.state == 'Enabled' || self.spec.sockjs.state == 'Enabled'").message("websocket and sockjs are both Disabled: enable one of them"),
    validation = Rule::new("self.spec.servers != 'Combined' || (self.spec.websocket.state == 'Enabled' && self.spec.sockjs.state == 'Enabled')").message("servers: Combined serves both: enable websocket and sockjs, or write servers: Separate"),
    validation = Rule::new("self.spec.webhooks.mode != 'Off' || (has(self.spec.webhooks.acknowledgeNoWebhooks) && self.spec.webhooks.acknowledgeNoWebhooks == self.metadata.name)").message("webhooks.mode is Off: write the cluster's name into webhooks.acknowledgeNoWebhooks, or set mode: Kinesis"),
    validation = trusted_front_rule(), validation = shared_hosts_rule(), validation = pathless_hosts_rule(), validation = required_external_rule(), validation = api_host_rule(), validation = api_proxy_rule(), validation = dns_rule(),
    validation = Rule::new("!has(self.spec.sockjsClients.canonicalHost) || !has(self.spec.sockjs.canonicalHost)").message("sockjsClients.canonicalHost and sockjs.canonicalHost are the same setting: keep one of them"),
    // A name can be corrected until the stream exists, e.g. if another owner has a stream of that name.
    validation = Rule::new("(has(self.spec.webhooks.stream.name) == has(oldSelf.spec.webhooks.stream.name) && (!has(self.spec.webhooks.stream.name) || self.spec.webhooks.stream.name == oldSelf.spec.webhooks.stream.name)) || !has(oldSelf.status) || !has(oldSelf.status.stream) || oldSelf.status.stream.arn == '' || (has(self.spec.webhooks.stream.name) && self.spec.webhooks.stream.name == oldSelf.status.stream.name)").message("webhooks.stream.name is immutable once the stream exists, which holds undelivered events: keep the name in status.stream.name, or create another cluster and move to it"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "WS", type_ = "string", json_path = ".status.transports[?(@.name=='websocket')].state"),
    printcolumn(name = "SockJS", type_ = "string", json_path = ".status.transports[?(@.name=='xhr_streaming')].state"),
    printcolumn(name = "Proven", type_ = "date", json_path = ".status.gate.passedAt"),
    printcolumn(name = "Stream", type_ = "string", json_path = ".status.stream.name", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct RealtimeClusterSpec {
    /// Whether changes are held back: no child, no app registry and no stream is created or changed. Journeys, admission,
    /// status and deletion go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
    /// Release of the servers, such as `0.1.0`. Absent, it is the one that the cluster runs, so that an upgrade of the operator
    /// restarts no pod, and the operator's own for a new cluster. It cannot be newer than the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$"))]
    pub version: Option<String>,
    /// Container image of all servers. Its unset fields are those of `status.image`, and of the operator's own image for a new
    /// cluster.
    #[serde(default)]
    #[x_kube(
        validation = Rule::new("!has(self.repository) || self.repository.matches('^[a-zA-Z0-9][a-zA-Z0-9._/:-]*$')").message("repository is no image name: write REGISTRY/NAME without tag and digest"),
        validation = Rule::new("!has(self.tag) || self.tag.matches('^[a-zA-Z0-9_][a-zA-Z0-9_.-]*$')").message("tag is no image tag: write letters, digits, dots, dashes and underscores"),
        validation = Rule::new("!has(self.digest) || self.digest.matches('^sha256:[0-9a-f]{64}$')").message("digest is no image digest: write sha256: and 64 hexadecimal digits")
    )]
    pub image: ImageSpec,
    /// Region, endpoint and identity for the Kinesis stream.
    pub aws: AwsSpec,
    /// Service accounts of the servers.
    #[serde(default)]
    pub service_accounts: ServiceAccounts,
    /// The bus through which edges exchange events.
    pub bus: BusSpec,
    /// Whether WebSocket and the HTTP fallbacks are served by separate Deployments or by one, whose settings are those of
    /// `websocket`. The Services are the same in both cases. Immutable.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("servers is immutable: create another cluster and move to it"))]
    pub servers: ServerLayout,
    /// Edge servers for WebSocket.
    #[serde(default)]
    #[x_kube(
        validation = keep_alive_rule(), validation = base_path_rule(), validation = routed_hosts_rule(), validation = distinct_hosts_rule(), validation = canonical_host_rule(), validation = certificate_rule(), validation = public_certificate_rule(), validation = tls_idle_rule(), validation = deregistration_rule(), validation = alb_protocol_rule(), validation = alb_keep_alive_rule(), validation = immutable_class_rule(), validation = live_hosts_rule()
    )]
    pub websocket: EdgeServer,
    /// Edge servers for the HTTP fallbacks of `SockJS`.
    #[serde(default)]
    #[x_kube(
        validation = keep_alive_rule(), validation = base_path_rule(), validation = routed_hosts_rule(), validation = distinct_hosts_rule(), validation = canonical_host_rule(), validation = certificate_rule(), validation = public_certificate_rule(), validation = tls_idle_rule(), validation = deregistration_rule(), validation = alb_protocol_rule(), validation = alb_keep_alive_rule(), validation = immutable_class_rule(), validation = live_hosts_rule()
    )]
    pub sockjs: EdgeServer,
    /// Settings that the sockjs server sends to `SockJS` clients.
    #[serde(default)]
    pub sockjs_clients: SockjsClients,
    /// The HTTP API for backends outside the Kubernetes cluster. By default only a Service within it.
    #[serde(rename = "httpAPI", default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = api_type_rule(), validation = certificate_rule(), validation = live_api_host_rule())]
    pub http_api: Option<HttpApiSpec>,
    /// The DNS records of all hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsSpec>,
    /// Networks of the load balancers and proxies in front of the edges, such as `10.20.0.0/16`: `X-Forwarded-For` is
    /// trusted only from these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub trusted_proxies: Vec<String>,
    /// Delivery of events as webhooks.
    #[serde(default)]
    #[x_kube(validation = Rule::new("!has(self.deadLetter) || !has(self.deadLetter.name) || !has(self.stream.name) || self.deadLetter.name != self.stream.name").message("deadLetter.name is the name of the stream that the dispatcher reads: choose another name, or leave it out"))]
    pub webhooks: WebhookPipelineSpec,
    /// When the cluster counts as ready.
    #[serde(default)]
    pub gate: GateSpec,
    /// Detail of the logs of all servers. A change replaces the pods, one after another.
    #[serde(default, skip_serializing_if = "LogLevel::is_default")]
    pub log_level: LogLevel,
}

/// Region, endpoint and identity for the Kinesis stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.endpointURL) || self.endpointURL.startsWith('https://') || (has(self.allowInsecureEndpoint) && self.allowInsecureEndpoint)").message("endpointURL is not https://: use https://, or write allowInsecureEndpoint: true for an emulator"))]
pub struct AwsSpec {
    /// AWS region of the stream. Required and immutable.
    #[schemars(length(min = 1))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("region is immutable: create another cluster and move to it"))]
    pub region: String,
    /// URL of a Kinesis emulator or VPC endpoint; defaults to the public endpoint of the region.
    #[serde(rename = "endpointURL", default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^https?://.+"))]
    pub endpoint_url: Option<String>,
    /// Allows plain HTTP in `endpointURL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_insecure_endpoint: Option<bool>,
    /// Source of AWS credentials.
    pub identity: IdentitySpec,
}

/// Source of AWS credentials: exactly one, without a silent fallback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.type == 'StaticKeys') == has(self.secretRef)").message("secretRef goes with type: StaticKeys, and with nothing else: keep one identity"),
    validation = Rule::new("!(has(self.edge) || has(self.dispatcher)) || self.type in ['IRSA', 'PodIdentity', 'WebIdentity']").message("roles go with type: IRSA, PodIdentity or WebIdentity: keep one identity"),
    validation = Rule::new("!(self.type in ['IRSA', 'WebIdentity']) || (has(self.edge) && has(self.dispatcher))").message("type: IRSA and WebIdentity need edge.roleARN and dispatcher.roleARN")
)]
pub struct IdentitySpec {
    /// Type of the credential source.
    #[serde(rename = "type")]
    pub kind: IdentityType,
    /// IAM role of the edges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<IdentityRole>,
    /// IAM role of the dispatcher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatcher: Option<IdentityRole>,
    /// Secret with the keys `accessKeyID` and `secretAccessKey`; only with type `StaticKeys`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// Types of credential sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum IdentityType {
    /// EKS IAM roles for service accounts.
    #[serde(rename = "IRSA")]
    Irsa,
    /// EKS Pod Identity associations.
    PodIdentity,
    /// A projected service account token with an IAM role, on self-managed Kubernetes.
    WebIdentity,
    /// A pair of access keys in a Secret.
    StaticKeys,
    /// The IAM role of the node.
    NodeRole,
}

/// An IAM role of one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdentityRole {
    /// ARN of the role.
    #[serde(rename = "roleARN")]
    #[schemars(length(max = 2048), regex(pattern = "^arn:"))]
    pub role_arn: String,
}

/// The bus through which edges exchange events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.group) || self.group.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("bus.group is no name of a group: write lower-case letters, digits and dashes, such as fleet-eu"),
    validation = Rule::new("has(self.group) == has(oldSelf.group) && (!has(self.group) || self.group == oldSelf.group)").message("bus.group is immutable, since half of the pods would use another bus meanwhile: create another cluster and move to it")
)]
pub struct BusSpec {
    /// Type of the bus.
    #[serde(rename = "type")]
    pub kind: BusType,
    /// Name of the group of clusters that share channels, presence, limits of connections and the order of changes: each of
    /// them writes the same name and uses the same Redis, and has the same apps. By default this cluster alone. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub group: Option<String>,
    /// Settings for type `Redis`.
    pub redis: RedisSpec,
}

/// Supported types of bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BusType {
    /// A Redis that you operate.
    Redis,
}

/// A Redis that you operate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedisSpec {
    /// Secret key with the URL: `redis://`, `redis-sentinel://` or `redis-cluster://`, and `rediss…://` for TLS.
    pub url_secret_ref: SecretKeyRef,
    /// Secret key with CA certificates in PEM form that verify the certificate of Redis; only for TLS. By default only
    /// public CAs are trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
}

/// Whether edge servers share a Deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServerLayout {
    /// One Deployment for WebSocket and one for the HTTP fallbacks.
    #[default]
    Separate,
    /// One Deployment for both.
    Combined,
}

/// Edge servers of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EdgeServer {
    /// Whether this server is deployed.
    pub state: EnabledState,
    /// Number of pods to run.
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: i32,
    /// How a terminating pod moves its clients to other pods.
    pub drain: DrainSpec,
    /// Settings for the load balancer in front of the server.
    #[serde(flatten)]
    pub load_balancer: LoadBalancerSpec,
    /// Hosts of the server, their certificate, and the object that leads clients to it.
    #[serde(flatten)]
    pub entrance: EntranceSpec,
    /// Settings of the pods.
    #[serde(flatten)]
    pub pods: PodSettings,
}

/// How a terminating pod moves its clients to other pods. The termination grace period is 30 seconds longer than both
/// phases together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DrainSpec {
    /// Seconds in which the pod still serves and accepts clients although it is not ready any more, until load balancers
    /// have deregistered it. Defaults to 120 with `expose.type: EKSNLB`, to 30 with EKSALB, and to 15 otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub hold_seconds: Option<u32>,
    /// Seconds after the hold in which clients are asked to reconnect, about a hundred per second, and faster only when
    /// there are too many for this time.
    #[schemars(range(min = 1, max = 3600))]
    pub window_seconds: u32,
}

impl Default for DrainSpec {
    fn default() -> Self {
        Self { hold_seconds: None, window_seconds: 120 }
    }
}

impl Default for EdgeServer {
    fn default() -> Self {
        Self {
            state: EnabledState::Enabled,
            replicas: 3,
            drain: DrainSpec::default(),
            load_balancer: LoadBalancerSpec::default(),
            entrance: EntranceSpec::default(),
            pods: PodSettings::default(),
        }
    }
}

/// Settings that the sockjs server sends to `SockJS` clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SockjsClients {
    /// URLs of scripts that hidden frames may load: the first one, or another that `js_path` matches exactly. Defaults to
    /// the scripts of the current sockjs-client and pusher-js at their usual addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), inner(regex(pattern = r"^https?://[A-Za-z0-9._~:/@%+=?-]+$")))]
    pub scripts: Vec<String>,
    /// Whether sessions set the cookie `JSESSIONID`, for load balancers with cookie affinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<EnabledState>,
    /// Host to which clients send the further requests of a session. `{pod}` is replaced by the name of the pod, so that
    /// each pod can have its own host. Defaults to the host of the first request; any pod accepts any request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = r"^([A-Za-z0-9.-]|\{pod\})+$"))]
    pub canonical_host: Option<String>,
}

/// When the cluster counts as ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GateSpec {
    /// Seconds between two rounds of journeys, which test each transport from connect to webhook.
    #[schemars(range(min = 1, max = 3600))]
    pub interval_seconds: u32,
    /// Timeout of one journey in seconds, and the same again for its disconnect.
    #[schemars(range(min = 1, max = 300))]
    pub timeout_seconds: u32,
    /// Complete rounds after which the gate opens.
    #[schemars(range(min = 1, max = 100))]
    pub open_after: u32,
    /// Consecutive failures after which the gate closes.
    #[schemars(range(min = 1, max = 100))]
    pub close_after: u32,
    /// Seconds after which a missing proof is reported as `DeadlineExceeded`; journeys continue all the same. They count
    /// from the first moment at which a journey can run.
    #[schemars(range(min = 1, max = 86400))]
    pub deadline_seconds: u32,
    /// Whether Ready waits for journeys through the load balancers, by the hosts. They need hosts and an `expose` that creates an
    /// object.
    pub external: ExternalGate,
}

/// Whether Ready waits for journeys through load balancers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExternalGate {
    /// Ready waits for them, also for an address, and whatever the network between the operator and the load balancer allows.
    Required,
    /// Ready waits for them once an address is published; load balancers that take no connection from the operator are
    /// reported and not waited for.
    #[default]
    Auto,
    /// No journey goes through a load balancer.
    Disabled,
}

impl Default for GateSpec {
    fn default() -> Self {
        Self {
            interval_seconds: 15,
            timeout_seconds: 10,
            open_after: 3,
            close_after: 3,
            deadline_seconds: 600,
            external: ExternalGate::Auto,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;

    #[test]
    fn the_name_of_a_stream_is_immutable_once_the_stream_exists() {
        let cluster = |name: Option<&str>, live: &str, arn: &str| {
            let mut cluster = applied_cluster("");
            cluster.spec.webhooks.stream.name = name.map(str::to_owned);
            let stream = StreamStatus { name: live.to_owned(), arn: arn.to_owned(), ..StreamStatus::default() };
            cluster.status = Some(RealtimeClusterStatus { stream: Some(stream), ..RealtimeClusterStatus::default() });
            cluster
        };
        for (case, before, live, arn, after, allowed) in [
            ("no stream yet", Some("a"), "a", "", Some("b"), true),
            ("no change", Some("a"), "a", "arn:a", Some("a"), true),
            ("another name", Some("a"), "a", "arn:a", Some("b"), false),
            ("no name", Some("a"), "a", "arn:a", None, false),
            ("the name that was derived", None, "rtc-n-eu-1", "arn:a", Some("rtc-n-eu-1"), true),
            ("another than the derived name", None, "rtc-n-eu-1", "arn:a", Some("b"), false),
            ("a name that was changed before the rule", Some("b"), "a", "arn:a", Some("b"), true),
            ("the former name again", Some("b"), "a", "arn:a", Some("a"), true),
        ] {
            let result = cluster(after, live, arn).validate_cel_update(&cluster(before, live, arn));
            let messages = result.err().map(|errors| errors.to_string()).unwrap_or_default();
            assert_eq!(messages.is_empty(), allowed, "{case}: {messages}");
            assert!(allowed || messages.contains("keep the name in status.stream.name"), "{case}: {messages}");
        }
    }

    #[test]
    fn the_group_of_a_bus_is_immutable() {
        let cluster = |group: Option<&str>| {
            let mut cluster = applied_cluster("");
            cluster.spec.bus.group = group.map(str::to_owned);
            cluster
        };
        for (before, after, allowed) in [
            (None, None, true),
            (Some("fleet"), Some("fleet"), true),
            (None, Some("fleet"), false),
            (Some("fleet"), None, false),
            (Some("fleet"), Some("other"), false),
        ] {
            let result = cluster(after).validate_cel_update(&cluster(before));
            let messages = result.err().map(|errors| errors.to_string()).unwrap_or_default();
            assert_eq!(messages.is_empty(), allowed, "{before:?} to {after:?}: {messages}");
            assert!(allowed || messages.contains("bus.group is immutable"), "{messages}");
        }
    }

    #[test]
    fn the_dead_letter_stream_is_not_the_stream_that_is_read() {
        let check = |name: &str| {
            applied_cluster(&format!("  webhooks: {{ stream: {{ name: a }}, deadLetter: {{ name: {name} }} }}\n"))
                .validate_cel()
        };
        assert!(check("b").is_ok());
        let refusal = check("a").expect_err("the same name").to_string();
        assert!(refusal.contains("choose another name, or leave it out"), "{refusal}");
    }

    #[test]
    fn a_cluster_that_was_reconciled_under_an_invalid_name_can_still_be_deleted() {
        let mut cluster = applied_cluster("");
        cluster.metadata.name = Some("eu.prod".to_owned());
        assert!(cluster.validate_cel().is_err());
        cluster.status = Some(RealtimeClusterStatus { observed_generation: 1, ..RealtimeClusterStatus::default() });
        assert_eq!(cluster.validate_cel().map_err(|errors| errors.to_string()), Ok(()));
    }
}
