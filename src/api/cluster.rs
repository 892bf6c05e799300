//! `RealtimeCluster`: one realtime cluster.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::status::{
    EndpointsStatus, GateStatus, LastFailure, RealtimeClusterStatus, StreamStatus, TransportState, TransportStatus,
};
use super::{EnabledState, SecretKeyRef, SecretRef};

/// Longest name of a cluster: children add up to 23 characters, and a name has 63.
pub const MAX_NAME: usize = 40;

/// What a user wants of a cluster.
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
    validation = Rule::new("self.metadata.name.size() <= 40").message("the name has more than 40 characters: shorten metadata.name, children add to it"),
    validation = Rule::new("self.spec.websocket.state == 'Enabled' || self.spec.sockjs.state == 'Enabled'").message("websocket and sockjs are both Disabled: enable one of them"),
    validation = Rule::new("self.spec.servers != 'Combined' || (self.spec.websocket.state == 'Enabled' && self.spec.sockjs.state == 'Enabled')").message("servers: Combined serves both: enable websocket and sockjs, or write servers: Separate"),
    validation = Rule::new("self.spec.webhooks.mode != 'Off' || (has(self.spec.webhooks.acknowledgeNoWebhooks) && self.spec.webhooks.acknowledgeNoWebhooks == self.metadata.name)").message("webhooks.mode is Off: write the cluster's name into webhooks.acknowledgeNoWebhooks, or set mode: Kinesis"),
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
    /// The image of every server.
    #[serde(default)]
    pub image: ImageSpec,
    /// Where the stream is, and who may use it.
    pub aws: AwsSpec,
    /// What joins the edges.
    pub bus: BusSpec,
    /// Whether WebSocket and the HTTP fallbacks are served apart or by one Deployment, whose `replicas`, `drain` and `env`
    /// are those of `websocket`. The Services are the same either way. Immutable.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("servers is immutable: create another cluster and move to it"))]
    pub servers: ServerLayout,
    /// The edges that serve WebSocket.
    #[serde(default)]
    pub websocket: EdgeServer,
    /// The edges that serve the HTTP fallbacks.
    #[serde(default)]
    pub sockjs: EdgeServer,
    /// What clients of `SockJS` are given by the sockjs server.
    #[serde(default)]
    pub sockjs_clients: SockjsClients,
    /// Networks of the load balancers and proxies in front of the edges, such as `10.20.0.0/16`: only from there
    /// `X-Forwarded-For` is believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub trusted_proxies: Vec<String>,
    /// How events become webhooks.
    #[serde(default)]
    pub webhooks: WebhookPipelineSpec,
    /// When the cluster counts as operational.
    #[serde(default)]
    pub gate: GateSpec,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    /// Without tag.
    #[serde(default = "ImageSpec::default_repository")]
    pub repository: String,
    /// The release; absent means the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// `sha256:…`; wins over the tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

impl ImageSpec {
    fn default_repository() -> String {
        "realtime-operator/realtime".to_owned()
    }
}

impl Default for ImageSpec {
    fn default() -> Self {
        Self { repository: Self::default_repository(), tag: None, digest: None }
    }
}

/// Where the stream is, and who may use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.endpointURL) || self.endpointURL.startsWith('https://') || (has(self.allowInsecureEndpoint) && self.allowInsecureEndpoint)").message("endpointURL is not https://: use https://, or write allowInsecureEndpoint: true for an emulator"))]
pub struct AwsSpec {
    /// The stream's region: never guessed, immutable.
    #[schemars(length(min = 1))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("region is immutable: create another cluster and move to it"))]
    pub region: String,
    /// Address of an emulator or of a VPC endpoint.
    #[serde(rename = "endpointURL", default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^https?://.+"))]
    pub endpoint_url: Option<String>,
    /// Lets `endpointURL` be plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_insecure_endpoint: Option<bool>,
    /// Where credentials come from.
    pub identity: IdentitySpec,
}

/// Where credentials come from: exactly one way, without a silent fallback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.type == 'StaticKeys') == has(self.secretRef)").message("secretRef goes with type: StaticKeys, and with nothing else: keep one identity"),
    validation = Rule::new("!(has(self.edge) || has(self.dispatcher)) || self.type in ['IRSA', 'PodIdentity', 'WebIdentity']").message("roles go with type: IRSA, PodIdentity or WebIdentity: keep one identity"),
    validation = Rule::new("!(self.type in ['IRSA', 'WebIdentity']) || (has(self.edge) && has(self.dispatcher))").message("type: IRSA and WebIdentity need edge.roleARN and dispatcher.roleARN")
)]
pub struct IdentitySpec {
    /// The way.
    #[serde(rename = "type")]
    pub kind: IdentityType,
    /// The edges' role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<IdentityRole>,
    /// The dispatcher's role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatcher: Option<IdentityRole>,
    /// With `StaticKeys`: a Secret with `accessKeyID` and `secretAccessKey`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// The ways to credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum IdentityType {
    /// IAM roles for service accounts, on EKS.
    #[serde(rename = "IRSA")]
    Irsa,
    /// EKS Pod Identity.
    PodIdentity,
    /// A projected token and a role, on self-managed Kubernetes.
    WebIdentity,
    /// A pair of keys in a Secret.
    StaticKeys,
    /// The node's own role.
    NodeRole,
}

impl IdentityType {
    /// The word, as in the manifest and in the variable.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Irsa => "IRSA",
            Self::PodIdentity => "PodIdentity",
            Self::WebIdentity => "WebIdentity",
            Self::StaticKeys => "StaticKeys",
            Self::NodeRole => "NodeRole",
        }
    }
}

/// An IAM role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdentityRole {
    /// Its ARN.
    #[serde(rename = "roleARN")]
    #[schemars(regex(pattern = "^arn:"))]
    pub role_arn: String,
}

/// What joins the edges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BusSpec {
    /// The kind of bus.
    #[serde(rename = "type")]
    pub kind: BusType,
    /// With `type: Redis`.
    pub redis: RedisSpec,
}

/// The kinds of bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BusType {
    /// A Redis that you run.
    Redis,
}

/// A Redis that you run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedisSpec {
    /// Where its address stands: `redis://`, `redis-sentinel://` or `redis-cluster://`, and `rediss…://` with TLS.
    pub url_secret_ref: SecretKeyRef,
    /// With TLS: where the certificates stand, in PEM form, of the authorities that may have signed Redis's. Without it,
    /// only public ones are believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
}

/// Which edges are one Deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServerLayout {
    /// One for WebSocket, one for the HTTP fallbacks.
    #[default]
    Separate,
    /// One for both.
    Combined,
}

/// One kind of edge server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EdgeServer {
    /// Whether it runs.
    #[serde(default)]
    pub state: EnabledState,
    /// How many pods.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: i32,
    /// How a pod that ends sends its clients to others.
    #[serde(default)]
    pub drain: DrainSpec,
    /// Extra variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub env: Vec<ExtraVariable>,
}

/// How a pod that ends sends its clients to others. It has 30 seconds more than both together before it is killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DrainSpec {
    /// Seconds for which it still serves and takes clients in, though it is not ready any more: what load balancers need
    /// to learn of it. An NLB in front of pods needs about 120, an ALB 30.
    #[serde(default = "DrainSpec::hold")]
    #[schemars(range(min = 0, max = 3600))]
    pub hold_seconds: u32,
    /// Seconds after that in which clients are told to go. They go one by one, about a hundred in a second, and faster
    /// only when there are too many for this time.
    #[serde(default = "DrainSpec::window")]
    #[schemars(range(min = 1, max = 3600))]
    pub window_seconds: u32,
}

impl DrainSpec {
    fn hold() -> u32 {
        15
    }

    fn window() -> u32 {
        120
    }
}

impl Default for DrainSpec {
    fn default() -> Self {
        Self { hold_seconds: Self::hold(), window_seconds: Self::window() }
    }
}

fn default_replicas() -> i32 {
    3
}

impl Default for EdgeServer {
    fn default() -> Self {
        Self { state: EnabledState::Enabled, replicas: default_replicas(), drain: DrainSpec::default(), env: vec![] }
    }
}

/// What clients of `SockJS` are given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SockjsClients {
    /// Scripts that hidden frames may load: the first one, or another that `js_path` names to the letter. Absent means
    /// those of the current sockjs-client and pusher-js, at their usual addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), inner(regex(pattern = r"^https?://[A-Za-z0-9._~:/@%+=?-]+$")))]
    pub scripts: Vec<String>,
    /// Whether sessions set the cookie `JSESSIONID`, for a load balancer that keeps a client on one pod by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<EnabledState>,
    /// This cluster's own name for its host: clients are told to send the rest of a session there. In it `{pod}` stands
    /// for the pod's name, so that each pod can have a host of its own. Absent means where they began; any pod takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = r"^([A-Za-z0-9.-]|\{pod\})+$"))]
    pub canonical_host: Option<String>,
}

/// A variable beside those that the operator renders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct ExtraVariable {
    /// Its name.
    // An API server takes a rule only where it can bound what the rule costs: by lengths of texts and lists.
    #[schemars(length(min = 1, max = 200))]
    #[x_kube(validation = Rule::new("!self.startsWith('REALTIME_') && !self.startsWith('AWS_') && !self.startsWith('SSL_') && !self.lowerAscii().endsWith('_proxy')").message("this variable belongs to the operator: remove it and use the field of the spec that sets it"))]
    pub name: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

/// How events become webhooks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookPipelineSpec {
    /// Whether there are webhooks.
    #[serde(default)]
    pub mode: WebhooksMode,
    /// With `mode: Off`: the cluster's name, so that nobody switches webhooks off by a slip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledge_no_webhooks: Option<String>,
    /// Private networks that webhooks may go to, such as `10.20.0.0/16`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_networks: Vec<String>,
    /// The server that sends them.
    #[serde(default)]
    pub dispatcher: DispatcherServer,
    /// What they travel through.
    #[serde(default)]
    pub stream: StreamSpec,
}

/// Whether there are webhooks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WebhooksMode {
    /// Through Kinesis.
    #[default]
    Kinesis,
    /// None.
    Off,
}

/// The server that sends webhooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DispatcherServer {
    /// How many pods.
    #[serde(default = "DispatcherServer::replicas")]
    #[schemars(range(min = 1, max = 100))]
    pub replicas: i32,
    /// How long a webhook is tried again, in seconds.
    #[serde(default = "DispatcherServer::retry_window")]
    #[schemars(range(min = 1, max = 86400))]
    pub retry_window_seconds: u32,
    /// Longest wait between two tries, in seconds.
    #[serde(default = "DispatcherServer::max_backoff")]
    #[schemars(range(min = 1, max = 3600))]
    pub max_backoff_seconds: u32,
    /// Extra variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub env: Vec<ExtraVariable>,
}

impl DispatcherServer {
    fn replicas() -> i32 {
        2
    }

    fn retry_window() -> u32 {
        300
    }

    fn max_backoff() -> u32 {
        30
    }
}

impl Default for DispatcherServer {
    fn default() -> Self {
        Self {
            replicas: Self::replicas(),
            retry_window_seconds: Self::retry_window(),
            max_backoff_seconds: Self::max_backoff(),
            env: vec![],
        }
    }
}

/// What webhook events travel through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.mode) && self.mode == 'Provisioned') == has(self.shards)").message("shards go with mode: Provisioned, and with nothing else"))]
pub struct StreamSpec {
    /// Its name; absent means `rtc-<namespace>-<name>-<first 6 of the UID>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[a-zA-Z0-9_.-]+$"))]
    pub name: Option<String>,
    /// Who decides how many shards there are.
    #[serde(default)]
    pub mode: StreamMode,
    /// With `mode: Provisioned`: how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub shards: Option<i32>,
}

/// Who decides how many shards a stream has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StreamMode {
    /// Kinesis, by load.
    #[default]
    OnDemand,
    /// You.
    Provisioned,
}

/// When the cluster counts as operational.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateSpec {
    /// Seconds between two rounds of journeys.
    #[serde(default = "GateSpec::interval")]
    #[schemars(range(min = 1, max = 3600))]
    pub interval_seconds: u32,
    /// Seconds for one journey, and apart from it for its farewell.
    #[serde(default = "GateSpec::timeout")]
    #[schemars(range(min = 1, max = 300))]
    pub timeout_seconds: u32,
    /// Complete rounds that open.
    #[serde(default = "GateSpec::rounds")]
    #[schemars(range(min = 1, max = 100))]
    pub open_after: u32,
    /// Failures in a row that close.
    #[serde(default = "GateSpec::rounds")]
    #[schemars(range(min = 1, max = 100))]
    pub close_after: u32,
    /// Seconds after which a proof that does not come is told as stalled; it goes on all the same.
    #[serde(default = "GateSpec::deadline")]
    #[schemars(range(min = 1, max = 86400))]
    pub deadline_seconds: u32,
}

impl GateSpec {
    fn interval() -> u32 {
        15
    }

    fn timeout() -> u32 {
        10
    }

    fn deadline() -> u32 {
        600
    }

    fn rounds() -> u32 {
        3
    }
}

impl Default for GateSpec {
    fn default() -> Self {
        Self {
            interval_seconds: Self::interval(),
            timeout_seconds: Self::timeout(),
            open_after: Self::rounds(),
            close_after: Self::rounds(),
            deadline_seconds: Self::deadline(),
        }
    }
}
