//! Status of a `RealtimeCluster`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::image::ImageSpec;

/// Observed state of a cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RealtimeClusterStatus {
    /// Generation of the spec that this status describes; -1 until it was first reconciled.
    #[serde(default = "unobserved_status")]
    pub observed_generation: i64,
    /// Conditions, one of each type.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// State of the gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateStatus>,
    /// State of each transport.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub transports: Vec<TransportStatus>,
    /// The Kinesis stream, once its creation has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamStatus>,
    /// The Kinesis stream for events that could not be delivered, once its creation has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter_stream: Option<StreamStatus>,
    /// Names of the immutable copies of referenced Secrets that pods read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_copies: Vec<String>,
    /// Hosts whose DNS records external-dns may write: their server was proven once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published_hosts: Vec<String>,
    /// Objects of kinds that a cluster may lack, such as `HTTPRoute eu-websocket`, which the operator created.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub optional_children: Vec<String>,
    /// Addresses for clients and backends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<EndpointsStatus>,
    /// Release of the servers that run; the former one until a rollout is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Image of the servers that run, whose parts hold for every unset field of `spec.image`; the former one until a rollout
    /// is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSpec>,
    /// Value of the annotation `realtime-operator.dev/restarted-at` that the pods carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted_at: Option<String>,
}

/// State of the gate, which admits pods and decides Ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateStatus {
    /// Phase of the gate: `Proving`, `Open`, `Refused` or `Closed`.
    pub phase: String,
    /// Whether the gate was ever open with this fingerprint.
    #[serde(default)]
    pub ever_passed: bool,
    /// Digest of the templates, Secrets and stream that are proven.
    #[serde(default)]
    pub fingerprint: String,
    /// Last time at which the gate was known to be open, RFC 3339; updated when it opens and every five minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed_at: Option<String>,
    /// First moment at which a journey could run for this generation, RFC 3339, while the proof is not complete: the gate's
    /// deadline counts from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proving_since: Option<String>,
    /// Seconds between two rounds of journeys through a proven cluster: `gate.intervalSeconds`, or longer while the clusters of
    /// the operator share its pace. Updated when it changes by more than a tenth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_interval_seconds: Option<u32>,
    /// Estimated seconds from an apply that changes every pod until Ready, at usual speeds. The timeout of a tool is twice as
    /// long, or longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_seconds: Option<u32>,
    /// Failure for which the gate last closed or refused to open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
    /// Pods that were replaced because they differed from their template.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replacements: Vec<PodReplacements>,
    /// Injectors whose additions to the present pods are accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub injectors: Vec<String>,
    /// The latest proof that the annotation `realtime-operator.dev/prove-now` requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_proof: Option<RequestedProofStatus>,
}

/// A requested proof: one journey by each transport through each pod and each Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestedProofStatus {
    /// Value of the annotation that requested the proof.
    pub token: String,
    /// Whether the proof is complete, and how it ended.
    pub state: ProofState,
    /// Start of the proof, RFC 3339.
    pub started_at: String,
    /// End of the proof, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// Result in one line, with the first broken hop.
    #[serde(default)]
    pub message: String,
    /// The journeys of each transport.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transports: Vec<ProofTransport>,
}

/// State of a requested proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProofState {
    /// Journeys are under way or about to begin.
    Running,
    /// Every journey passed every hop.
    Passed,
    /// A journey failed, or a pod is missing.
    Failed,
}

/// Journeys of one transport in a requested proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProofTransport {
    /// Name of the transport.
    pub name: String,
    /// Pods and Services through which a journey passed, of all that are tried: `3/3`.
    pub routes: String,
    /// First hop that failed; empty when none did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hop: String,
    /// Passed hops with their times, of the journey that failed at the earliest hop, otherwise of the slowest one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hops: Vec<HopTime>,
}

/// Time that a hop took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HopTime {
    /// Name of the hop.
    pub name: String,
    /// Time since the former hop, in ms.
    pub milliseconds: u64,
}

/// Pods of one template that were replaced because they differed from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodReplacements {
    /// Name of the server.
    pub server: String,
    /// Digest of the template.
    pub template: String,
    /// Number of replacements of this template.
    pub count: u32,
    /// Time of the last one, RFC 3339.
    pub last_at: String,
}

/// Failure for which a gate closed or refused to open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastFailure {
    /// Reason, as in the condition.
    pub reason: String,
    /// Message, as in the condition.
    pub message: String,
    /// Time of the failure, RFC 3339.
    pub time: String,
}

/// Observed state of the Kinesis stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamStatus {
    /// Name of the stream.
    pub name: String,
    /// Cluster id in the stream's records: that of the cluster that created or adopted the stream.
    #[serde(rename = "clusterID", default)]
    pub cluster_id: String,
    /// ARN of the stream; empty until it exists.
    #[serde(default)]
    pub arn: String,
    /// Status as reported by Kinesis, e.g. `ACTIVE` or `CREATING`.
    #[serde(default)]
    pub status: String,
    /// Time of creation, in ms since 1970; distinguishes the stream from a later one of the same name.
    #[serde(default)]
    pub created_ms: i64,
    /// Capacity mode as Kinesis reports it: `OnDemand` or `Provisioned`; empty if the endpoint does not report it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mode: String,
    /// Number of open shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<u32>,
    /// Hours for which records are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_hours: Option<u32>,
    /// KMS key with which the stream is encrypted; empty without encryption.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub encryption_key: String,
    /// Settings of the manifest that the stream does not have, each with the step that follows, or the reason and the remedy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending_steps: Vec<String>,
    /// Changes of the number of shards that AWS still allows in the present 24 hours, of ten; only with mode `Provisioned`.
    #[serde(rename = "shardChangesLeft24h", default, skip_serializing_if = "Option::is_none")]
    pub shard_changes_left_24h: Option<u32>,
    /// Time of the adoption, RFC 3339, from which shards without a checkpoint are read by default; absent for a stream that
    /// the operator created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted_at: Option<String>,
    /// Changes of the last 24 hours that count against AWS's limits, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<StreamChangeRecord>,
    /// Key of `encryption.kmsKey` that was set last: Kinesis may report the same key under another name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub requested_key: String,
    /// Keys of `webhooks.stream.tags` that were written, so that they are removed with the manifest's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub written_tags: Vec<String>,
}

/// A change of a stream that counts against a limit of AWS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamChangeRecord {
    /// Kind of the change.
    pub kind: LimitedChange,
    /// Time of the change, RFC 3339.
    pub time: String,
}

/// Kinds of changes that AWS limits within 24 hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LimitedChange {
    /// Another number of shards: ten in 24 hours (API reference, `UpdateShardCount`).
    Shards,
    /// Another capacity mode: two in 24 hours (API reference, `UpdateStreamMode`).
    Mode,
    /// Another encryption: 25 in 24 hours (API reference, `StartStreamEncryption`).
    Encryption,
}

/// Addresses for clients and backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointsStatus {
    /// `HOST:PORT` of the WebSocket edges within the Kubernetes cluster; empty when they are disabled.
    #[serde(default)]
    pub websocket: String,
    /// `HOST:PORT` of the fallback edges within the Kubernetes cluster; empty when they are disabled.
    #[serde(default)]
    pub sockjs: String,
    /// URL of the HTTP API within the Kubernetes cluster, for backends.
    #[serde(default)]
    pub api: String,
    /// URL of the HTTP API for backends outside the Kubernetes cluster; absent without `httpAPI`.
    #[serde(rename = "publicAPI", default, skip_serializing_if = "Option::is_none")]
    pub public_api: Option<String>,
    /// Options of pusher-js for clients outside the Kubernetes cluster, ready to paste; absent without `hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_options: Option<ClientOptions>,
    /// The load balancers of the hosts, with their published addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrances: Vec<EntranceStatus>,
}

/// A load balancer of hosts, as its Service, Ingress or Gateway publishes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EntranceStatus {
    /// Object that publishes the addresses: `Ingress eu-websocket`.
    pub object: String,
    /// Hosts that it leads to the servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Published IP addresses and DNS names; empty until there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Port to which clients connect.
    #[serde(default)]
    pub port: u16,
    /// Whether clients use TLS at the port.
    #[serde(default)]
    pub tls: bool,
    /// Cause of a missing address, apart from time; empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

/// Options of pusher-js, in its own spelling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientOptions {
    /// Name of a cluster of Pusher, which pusher-js demands and does not use beside the hosts.
    #[serde(default)]
    pub cluster: String,
    /// Host for clients by WebSocket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ws_host: Option<String>,
    /// Port for WebSocket without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ws_port: Option<u16>,
    /// Port for WebSocket with TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wss_port: Option<u16>,
    /// Prefix of the path for WebSocket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ws_path: Option<String>,
    /// Host for the HTTP fallbacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_host: Option<String>,
    /// Port for the HTTP fallbacks without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_port: Option<u16>,
    /// Port for the HTTP fallbacks with TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https_port: Option<u16>,
    /// Path for the HTTP fallbacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_path: Option<String>,
    /// Whether clients use TLS only.
    #[serde(rename = "forceTLS", default)]
    pub force_tls: bool,
    /// Whether clients report statistics to Pusher.
    #[serde(default)]
    pub enable_stats: bool,
    /// Transports to try, where one server has hosts and the other has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub enabled_transports: Vec<String>,
}

fn unobserved_status() -> i64 {
    -1
}

impl RealtimeClusterStatus {
    /// The condition of a type, as it was written last.
    #[must_use]
    pub fn find_condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == kind)
    }
}

impl Default for RealtimeClusterStatus {
    fn default() -> Self {
        Self {
            secret_copies: vec![],
            published_hosts: vec![],
            optional_children: vec![],
            observed_generation: unobserved_status(),
            conditions: vec![],
            gate: None,
            transports: vec![],
            stream: None,
            dead_letter_stream: None,
            endpoints: None,
            version: None,
            image: None,
            restarted_at: None,
        }
    }
}

/// State of one transport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TransportStatus {
    /// Name of the transport.
    pub name: String,
    /// Server that serves the transport.
    pub server: String,
    /// Result of the latest journeys.
    pub state: TransportState,
    /// First hop that fails; empty when none does.
    #[serde(default)]
    pub hop: String,
    /// Hops that were not tried because they do not apply: `fan-out` in a cluster of one pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_applicable: Vec<String>,
    /// Number of proven pods of all pods: `3/3`.
    #[serde(default)]
    pub pods: String,
}

/// Result of the latest journeys through a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TransportState {
    /// Journeys through the transport pass.
    Passing,
    /// A journey through the transport failed.
    Failing,
    /// No journey has run yet, or the last one is too old.
    Unknown,
}
