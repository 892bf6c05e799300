//! What a user reads back of a cluster.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator saw of a cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RealtimeClusterStatus {
    /// The generation that this status is about; -1 until anyone looked.
    #[serde(default = "unobserved_status")]
    pub observed_generation: i64,
    /// The conditions, one of each type.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Where the gate stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateStatus>,
    /// What is proven of each transport.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub transports: Vec<TransportStatus>,
    /// The stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamStatus>,
    /// Where clients connect, within Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<EndpointsStatus>,
}

/// Where the gate stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateStatus {
    /// `Proving`, `Open`, `Refused` or `Closed`.
    pub phase: String,
    /// Whether it was ever open on this fingerprint.
    #[serde(default)]
    pub ever_passed: bool,
    /// Names what was proven: templates, Secrets and stream.
    #[serde(default)]
    pub fingerprint: String,
    /// When it was last known to be open, RFC 3339; written when it turns and every five minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed_at: Option<String>,
    /// Why it last closed or refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
}

/// Why a gate last closed or refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastFailure {
    /// In a word.
    pub reason: String,
    /// In a line.
    pub message: String,
    /// When, RFC 3339.
    pub time: String,
}

/// The stream as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamStatus {
    /// Its name.
    pub name: String,
    /// The id that records carry: of the cluster that made the stream.
    #[serde(rename = "clusterID", default)]
    pub cluster_id: String,
    /// Its ARN; empty until it exists.
    #[serde(default)]
    pub arn: String,
    /// As Kinesis says: `ACTIVE`, `CREATING`.
    #[serde(default)]
    pub status: String,
    /// When it was created, in ms since 1970: what tells it from a later stream of the same name.
    #[serde(default)]
    pub created_ms: i64,
    /// Since when this cluster has been making it, in ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creating_since_ms: Option<i64>,
}

/// Where clients connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointsStatus {
    /// `HOST:PORT` of the WebSocket edges; empty when they are disabled.
    #[serde(default)]
    pub websocket: String,
    /// `HOST:PORT` of the fallback edges; empty when they are disabled.
    #[serde(default)]
    pub sockjs: String,
}

fn unobserved_status() -> i64 {
    -1
}

impl Default for RealtimeClusterStatus {
    fn default() -> Self {
        Self {
            observed_generation: unobserved_status(),
            conditions: vec![],
            gate: None,
            transports: vec![],
            stream: None,
            endpoints: None,
        }
    }
}

/// What is proven of one transport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TransportStatus {
    /// The transport.
    pub name: String,
    /// The server that carries it.
    pub server: String,
    /// How it fares.
    pub state: TransportState,
    /// The first hop that is broken; empty when none is.
    #[serde(default)]
    pub hop: String,
    /// Pods that are proven, of all: `3/3`.
    #[serde(default)]
    pub pods: String,
}

/// How a transport fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TransportState {
    /// Proven.
    Passing,
    /// A journey broke.
    Failing,
    /// Not yet tried, or too long ago.
    Unknown,
}
