//! `RealtimeApp`: one app whose clients a cluster serves.
#![expect(
    clippy::duplicated_attributes,
    reason = "columns have one type in common, and the lint reads their arguments apart"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EnabledState, SecretRef};

/// What a user wants of an app.
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
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct RealtimeAppSpec {
    /// Digits, because the server SDKs refuse others; immutable.
    #[serde(rename = "appID")]
    #[schemars(regex(pattern = "^[0-9]{1,20}$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("appID is immutable: create another app"))]
    pub app_id: String,
    /// Pairs of key and secret, oldest first; absent means that one is generated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<AppCredential>,
    /// A disabled app takes no connection and no publish.
    #[serde(default)]
    pub state: EnabledState,
    /// Whether clients may send client events.
    #[serde(default = "app_disabled")]
    pub client_events: EnabledState,
    /// Whether clients and webhooks are told how many connections are in a channel, presence channels left out.
    #[serde(default = "app_disabled")]
    pub subscription_count: EnabledState,
    /// Seconds in which a connection must sign in, or enter a channel that needs a signature; absent means that it
    /// need not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub authorization_seconds: Option<u32>,
    /// Origins whose pages may connect, such as `https://shop.example.com`, `https://*.example.com` or
    /// `http://localhost:*`; absent means all. Clients that send no origin are no browsers and may always connect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(max = 300), regex(pattern = r"^[A-Za-z0-9.:/*\[\]_+-]+$")))]
    pub allowed_origins: Vec<String>,
    /// What the app and each of its clients may do.
    #[serde(default)]
    pub limits: AppLimitsSpec,
    /// Where webhooks go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<WebhookSpec>,
}

fn app_disabled() -> EnabledState {
    EnabledState::Disabled
}

/// A pair of key and secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppCredential {
    /// A Secret with `key` and `secret`.
    pub secret_ref: SecretRef,
    /// Whether new signatures are made with it.
    #[serde(default)]
    pub state: CredentialState,
}

/// Both states are accepted from clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CredentialState {
    /// In use.
    #[default]
    Active,
    /// On its way out.
    Retiring,
}

/// What an app and each of its clients may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppLimitsSpec {
    /// Connections of the app, on all pods together; absent means any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub connections: Option<u32>,
    /// Bytes of data in one event, of clients and of the app's backend.
    #[serde(default = "AppLimitsSpec::message_bytes")]
    #[schemars(range(min = 1, max = 10240))]
    pub message_bytes: u32,
    /// Client events of one connection in a second.
    #[serde(default = "AppLimitsSpec::client_events")]
    #[schemars(range(min = 1, max = 10000))]
    pub client_events_per_second: u32,
}

impl AppLimitsSpec {
    fn message_bytes() -> u32 {
        10_240
    }

    fn client_events() -> u32 {
        10
    }
}

impl Default for AppLimitsSpec {
    fn default() -> Self {
        Self {
            connections: None,
            message_bytes: Self::message_bytes(),
            client_events_per_second: Self::client_events(),
        }
    }
}

/// One webhook endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookSpec {
    /// Unique within the app.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Where to post.
    #[schemars(regex(pattern = "^https?://.+"))]
    pub url: String,
    /// The events it wants; absent means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<EventName>,
    /// Only channels whose name begins so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub channel_prefix: String,
    /// Seconds for one attempt in total.
    #[serde(default = "WebhookSpec::timeout")]
    #[schemars(range(min = 1, max = 30))]
    pub timeout_seconds: u32,
}

impl WebhookSpec {
    fn timeout() -> u32 {
        4
    }
}

/// The kinds of event that a webhook may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventName {
    /// The first subscriber came.
    ChannelOccupied,
    /// The last subscriber left.
    ChannelVacated,
    /// A user came.
    MemberAdded,
    /// A user left.
    MemberRemoved,
    /// A client sent an event.
    ClientEvent,
    /// Someone came to a cache channel that had nothing to show.
    CacheMiss,
    /// How many connections are in a channel has changed; sent if `subscriptionCount` is `Enabled`.
    SubscriptionCount,
}

impl EventName {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::ChannelOccupied,
        Self::ChannelVacated,
        Self::MemberAdded,
        Self::MemberRemoved,
        Self::ClientEvent,
        Self::CacheMiss,
        Self::SubscriptionCount,
    ];

    /// The name in a webhook.
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

/// What the operator saw of an app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RealtimeAppStatus {
    /// The generation that this status is about; -1 until anyone looked.
    #[serde(default = "unobserved_status")]
    pub observed_generation: i64,
    /// The conditions, one of each type.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

fn unobserved_status() -> i64 {
    -1
}
