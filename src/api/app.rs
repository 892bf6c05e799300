//! `RealtimeApp`: spec and status of an app whose clients a cluster serves.
#![expect(
    clippy::duplicated_attributes,
    reason = "columns have one type in common, and the lint reads their arguments apart"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EnabledState, SecretRef};

/// The desired state of an app.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "realtime-operator.dev",
    version = "v1alpha1",
    kind = "RealtimeApp",
    plural = "realtimeapps",
    shortname = "rta",
    category = "realtime",
    namespaced,
    cel,
    doc = "An app: credentials, limits and webhook endpoints of one customer of a realtime cluster.",
    status = "RealtimeAppStatus",
    derive = "PartialEq",
    printcolumn(name = "App", type_ = "string", json_path = ".spec.appID"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Failing", type_ = "string", json_path = ".status.endpoints[?(@.state=='Failing')].name"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct RealtimeAppSpec {
    /// Id of the app: digits only, because the server SDKs refuse other characters. Immutable.
    #[serde(rename = "appID")]
    #[schemars(regex(pattern = "^[0-9]{1,20}$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("appID is immutable: create another app"))]
    pub app_id: String,
    /// Pairs of key and secret, oldest first, each with a Secret of its own; by default one pair is generated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    #[x_kube(validation = Rule::new("self.all(pair, self.exists_one(other, other.secretRef.name == pair.secretRef.name))").message("two entries reference the same Secret: reference each Secret once"))]
    pub credentials: Vec<AppCredential>,
    /// Whether the app accepts connections and publishes.
    #[serde(default)]
    pub state: EnabledState,
    /// Whether clients may send client events.
    #[serde(default = "app_disabled")]
    pub client_events: EnabledState,
    /// Whether clients and webhooks receive the number of connections in a channel, except for presence channels.
    #[serde(default = "app_disabled")]
    pub subscription_count: EnabledState,
    /// Seconds in which a connection must sign in, or subscribe to a channel that needs a signature; by default it need
    /// not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub authorization_seconds: Option<u32>,
    /// Origins whose pages may connect, such as `https://shop.example.com`, `https://*.example.com` or
    /// `http://localhost:*`; by default all. Clients that send no origin are not browsers and may always connect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(max = 300), regex(pattern = r"^[A-Za-z0-9.:/*\[\]_+-]+$")))]
    pub allowed_origins: Vec<String>,
    /// Limits of the app and of each client.
    #[serde(default)]
    pub limits: AppLimitsSpec,
    /// Endpoints that receive the app's webhooks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub webhooks: Vec<WebhookSpec>,
}

fn app_disabled() -> EnabledState {
    EnabledState::Disabled
}

/// A pair of key and secret, by which clients and backends authenticate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppCredential {
    /// Secret with the keys `key` and `secret`.
    pub secret_ref: SecretRef,
    /// Whether webhooks are signed with this pair.
    #[serde(default)]
    pub state: CredentialState,
}

/// Use of a credential; clients may use both states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CredentialState {
    /// Signs webhooks and authenticates clients.
    #[default]
    Active,
    /// Only authenticates clients, until it is removed.
    Retiring,
}

/// Limits of the app and of each client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AppLimitsSpec {
    /// Largest number of connections of the app on all pods together; by default unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub connections: Option<u32>,
    /// Largest size of an event's data in bytes, from clients and from the app's backend.
    #[schemars(range(min = 1, max = 10240))]
    pub message_bytes: u32,
    /// Largest number of client events per second and connection.
    #[schemars(range(min = 1, max = 10000))]
    pub client_events_per_second: u32,
    /// Largest number of channels of the app on each pod; by default unlimited. A subscription beyond it is refused with
    /// status 403.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub channels: Option<u32>,
    /// Largest number of connections from one source address on each pod; more are closed with 4100. A network of IPv6 with
    /// a prefix of 64 bits is one source. Connections from private addresses are not counted unless a trusted proxy
    /// reports their address.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections_per_source: u32,
    /// Largest number of new connections per second on each pod; by default unlimited. More are closed with 4100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub handshakes_per_second: Option<u32>,
    /// Largest number of requests of the HTTP API per second on each pod; by default unlimited. More are answered with 429.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub api_requests_per_second: Option<u32>,
    /// Largest number of members of a presence channel. Each member of a full channel receives all others.
    #[schemars(range(min = 1, max = 1000))]
    pub presence_members: u32,
    /// Seconds for which a cache channel keeps its last event.
    #[schemars(range(min = 1, max = 86400))]
    pub cache_seconds: u32,
}

impl Default for AppLimitsSpec {
    fn default() -> Self {
        Self {
            connections: None,
            message_bytes: 10_240,
            client_events_per_second: 10,
            channels: None,
            connections_per_source: 1_000,
            handshakes_per_second: None,
            api_requests_per_second: None,
            presence_members: 100,
            cache_seconds: 1_800,
        }
    }
}

/// An endpoint that receives webhooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookSpec {
    /// Name of the endpoint, unique within the app.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// URL to which webhooks are posted. Without `webhooks.allowedNetworks` of the cluster it is `https://` with a public
    /// address and port 443 or 8443.
    // An API server accepts a rule only if it can bound its cost.
    #[schemars(length(max = 2048))]
    #[x_kube(
        validation = Rule::new("self.startsWith('https://') || self.startsWith('http://')").message("the URL has another scheme than https and http: write https://HOST/PATH"),
        validation = Rule::new("!self.matches('^https?://[^/?#]*@')").message("the URL contains a user or a password: remove them, webhooks are signed instead"),
        validation = Rule::new(r"!self.matches('^https?://') || self.matches('^https?://([^/?#@]*@)?(\\[[0-9A-Fa-f:.]+\\]|[^/?#@:\\\\\\[\\]\\s]+)(:[0-9]{1,5})?([/?#].*)?$')").message("the URL has no host that can be connected to: write https://HOST/PATH")
    )]
    pub url: String,
    /// Kinds of events to send; by default all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<EventName>,
    /// Prefix of the channel names whose events are sent; by default all channels.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub channel_prefix: String,
    /// Timeout of one attempt, in seconds.
    #[serde(default = "WebhookSpec::timeout")]
    #[schemars(range(min = 1, max = 30))]
    pub timeout_seconds: u32,
    /// Whether webhooks are sent. The events of a disabled endpoint are not kept for it; no answer of an endpoint disables
    /// it.
    #[serde(default)]
    pub state: EnabledState,
    /// Number of events in one body.
    #[serde(default)]
    pub batch: WebhookBatching,
    /// Secret whose keys and values are headers of every request, such as `Authorization`. Refused are `Host`,
    /// `Connection` and other headers of the connection, `Content-*`, `Transfer-Encoding`, `X-Pusher-*` and `X-Realtime-*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers_secret_ref: Option<SecretRef>,
}

/// Number of events in one body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WebhookBatching {
    /// Up to 100 events that are due at the same time.
    #[default]
    Many,
    /// One event, for receivers that read only the first event of a body.
    One,
}

impl WebhookSpec {
    fn timeout() -> u32 {
        4
    }
}

/// Kinds of events in webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventName {
    /// A channel got its first subscriber.
    ChannelOccupied,
    /// A channel lost its last subscriber.
    ChannelVacated,
    /// A user joined a presence channel.
    MemberAdded,
    /// A user left a presence channel.
    MemberRemoved,
    /// A client sent an event.
    ClientEvent,
    /// A client subscribed to a cache channel whose cache is empty.
    CacheMiss,
    /// The number of connections in a channel changed; sent only if `subscriptionCount` is `Enabled`.
    SubscriptionCount,
}

impl EventName {
    /// All kinds of events, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::ChannelOccupied,
        Self::ChannelVacated,
        Self::MemberAdded,
        Self::MemberRemoved,
        Self::ClientEvent,
        Self::CacheMiss,
        Self::SubscriptionCount,
    ];

    /// Name of the kind in a webhook.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ChannelOccupied => "channel_occupied",
            Self::ChannelVacated => "channel_vacated",
            Self::MemberAdded => "member_added",
            Self::MemberRemoved => "member_removed",
            Self::ClientEvent => "client_event",
            Self::CacheMiss => "cache_miss",
            Self::SubscriptionCount => "subscription_count",
        }
    }
}

/// Observed state of an app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RealtimeAppStatus {
    /// Generation of the spec that this status describes; -1 until it was first reconciled.
    #[serde(default = "unobserved_status")]
    pub observed_generation: i64,
    /// Conditions, one of each type.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Clusters that serve the app or refuse it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub clusters: Vec<AppClusterStatus>,
    /// Webhook endpoints of the app in each cluster, as its dispatchers last saw them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["cluster".into(), "name".into()]))]
    pub endpoints: Vec<AppEndpointStatus>,
}

/// State of a webhook endpoint in one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppEndpointStatus {
    /// Name of the endpoint.
    pub name: String,
    /// Name of the cluster that sends the webhooks.
    pub cluster: String,
    /// Whether webhooks arrive at the endpoint.
    #[serde(default)]
    pub state: AppEndpointState,
    /// Time of the last acknowledged webhook; written at most every ten minutes while nothing else changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_delivered_at: Option<Time>,
    /// Time since which no webhook was acknowledged, while one fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<Time>,
    /// The last answer, such as `308: write the final address, redirects are not followed`, `connection refused` or
    /// `429, Retry-After 7200`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_answer: String,
    /// Events that were dropped, because the endpoint did not acknowledge them; counted by the dispatchers that run now.
    #[serde(default)]
    pub dropped: i64,
    /// Events that became dead letters, because the endpoint did not acknowledge them; counted by the dispatchers that run
    /// now. `realtime replay` sends them again.
    #[serde(default)]
    pub dead_lettered: i64,
}

/// Whether webhooks arrive at an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AppEndpointState {
    /// No webhook was sent yet.
    #[default]
    Idle,
    /// The last webhook was acknowledged.
    Delivering,
    /// Webhooks fail and are retried.
    Failing,
    /// The endpoint is disabled in the manifest.
    Disabled,
}

/// State of an app in one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AppClusterStatus {
    /// Name of the cluster.
    pub name: String,
    /// Pods that have loaded the app, of those that the cluster wanted when they were counted: `6/6`. Empty if the cluster
    /// refuses the app.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub loaded: String,
    /// `AppAccepted`, or the reason of the refusal.
    #[serde(default)]
    pub reason: String,
    /// The refusal in one line; empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl AppClusterStatus {
    /// Whether the cluster accepts the app.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        self.message.is_empty()
    }

    /// Whether every wanted pod of the cluster has loaded the app.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.loaded.split_once('/').is_some_and(|(loaded, wanted)| loaded == wanted)
    }
}

fn unobserved_status() -> i64 {
    -1
}
