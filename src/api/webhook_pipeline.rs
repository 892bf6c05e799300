//! The delivery of events as webhooks, as the manifest has it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pods::PodSettings;
use super::stream::StreamSpec;

/// Delivery of events as webhooks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WebhookPipelineSpec {
    /// Whether webhooks are sent.
    pub mode: WebhooksMode,
    /// Name of the cluster, required with mode `Off`, so that webhooks are not disabled by mistake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledge_no_webhooks: Option<String>,
    /// Private networks to which webhooks may be sent, such as `10.20.0.0/16`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_networks: Vec<String>,
    /// Networks with public addresses to which webhooks are not sent, such as the ranges of pods, Services and nodes. The
    /// operator adds those of the cluster's own pods and their nodes; private addresses are refused without an entry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_networks: Vec<String>,
    /// The dispatcher, which sends webhooks.
    pub dispatcher: DispatcherServer,
    /// The Kinesis stream between edges and dispatcher.
    pub stream: StreamSpec,
    /// The Kinesis stream for events that could not be delivered, from which `realtime replay` sends them again. Without it
    /// they are dropped, and counted by reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetterSpec>,
}

/// Whether webhooks are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WebhooksMode {
    /// Webhooks are sent through a Kinesis stream.
    #[default]
    Kinesis,
    /// No webhooks are sent.
    Off,
}

/// The dispatcher, which sends webhooks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DispatcherServer {
    /// Number of pods to run.
    #[schemars(range(min = 1, max = 100))]
    pub replicas: i32,
    /// Seconds in which a failed webhook is retried.
    #[schemars(range(min = 1, max = 86400))]
    pub retry_window_seconds: u32,
    /// Longest back-off between two attempts, in seconds.
    #[schemars(range(min = 1, max = 3600))]
    pub max_backoff_seconds: u32,
    /// Settings of the pods.
    #[serde(flatten)]
    pub pods: PodSettings,
}

impl Default for DispatcherServer {
    fn default() -> Self {
        Self { replicas: 2, retry_window_seconds: 300, max_backoff_seconds: 30, pods: PodSettings::default() }
    }
}

/// The Kinesis stream for events that could not be delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeadLetterSpec {
    /// Whether events that could not be delivered are written to the stream.
    pub mode: DeadLetterMode,
    /// Name of the stream; defaults to that of the main stream with `-dead-letter` behind it. It is
    /// created or adopted like the main stream, by `stream.management`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[a-zA-Z0-9_.-]+$"))]
    pub name: Option<String>,
    /// Number of shards; each takes 1,000 letters or 1 MiB a second.
    #[schemars(range(min = 1, max = 1000))]
    pub shards: i32,
    /// Hours for which letters are kept. The operator raises the retention of the stream and never lowers it.
    #[schemars(range(min = 24, max = 8760))]
    pub retention_hours: i32,
}

impl Default for DeadLetterSpec {
    fn default() -> Self {
        Self { mode: DeadLetterMode::Stream, name: None, shards: 1, retention_hours: 168 }
    }
}

/// The destination of events that could not be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeadLetterMode {
    /// They are written to a Kinesis stream.
    #[default]
    Stream,
    /// They are dropped, and counted by reason. An existing stream keeps its letters.
    Off,
}
