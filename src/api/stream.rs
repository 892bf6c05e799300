//! `webhooks.stream` of a `RealtimeCluster`: the Kinesis stream, and how far the operator manages it.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The Kinesis stream between edges and dispatcher.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.mode) && self.mode == 'Provisioned') == has(self.shards)").message("shards go with mode: Provisioned, and with nothing else"),
    validation = Rule::new("self.deletionPolicy != 'Delete' || (has(self.acknowledgeDataLoss) && 'Delete' in self.acknowledgeDataLoss)").message("deletionPolicy: Delete loses undelivered events: write acknowledgeDataLoss: [Delete], or deletionPolicy: Retain"),
    validation = Rule::new("self.deletionPolicy != 'Delete' || self.management != 'Observe'").message("management: Observe never deletes the stream: write deletionPolicy: Retain, or management: Adopt")
)]
pub struct StreamSpec {
    /// Name of the stream; defaults to `rtc-<namespace>-<name>-<first 6 of the UID>`. Immutable once the stream exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[a-zA-Z0-9_.-]+$"))]
    pub name: Option<String>,
    /// Whether the operator creates the stream, adopts one that exists, or only observes it.
    #[serde(default)]
    pub management: StreamManagement,
    /// Position at which a dispatcher begins to read a shard without a checkpoint: `TrimHorizon`, the oldest record; `Now`, the
    /// adoption; or a time such as `2026-11-26T12:00:00Z`. Defaults to the adoption, and to the oldest record of a stream that
    /// the operator created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    #[x_kube(validation = Rule::new("self == 'TrimHorizon' || self == 'Now' || self.matches('^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$')").message("startAt is no position: write TrimHorizon, Now, or a time such as 2026-11-26T12:00:00Z"))]
    pub start_at: Option<String>,
    /// Capacity mode of the stream. Absent, a stream is created on demand, and one that was adopted or is observed keeps its
    /// mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<StreamMode>,
    /// Number of shards; only with mode `Provisioned`. It is reached in steps that halve or double it, at most ten in 24 hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub shards: Option<i32>,
    /// Hours for which records are kept. Absent, the retention stays as it is; a created stream has 24. It is lowered only with
    /// `acknowledgeDataLoss: [LowerRetention]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 24, max = 8760))]
    pub retention_hours: Option<i32>,
    /// Encryption at rest. Absent, it stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<StreamEncryption>,
    /// Tags of the stream, beside those by which the operator knows its owner. Other tags stay.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 45))]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('aws:') && !key.startsWith('realtime-operator.dev/'))").message("a tag begins with aws: or realtime-operator.dev/, which belong to AWS and to the operator: choose another key"))]
    pub tags: BTreeMap<String, String>,
    /// Whether the stream is deleted with the cluster.
    #[serde(default)]
    pub deletion_policy: StreamDeletionPolicy,
    /// Losses that you accept: nothing that loses records is done without its word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub acknowledge_data_loss: Vec<DataLoss>,
}

/// How far the operator manages a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StreamManagement {
    /// It creates the stream, and uses an existing one only if this cluster created or adopted it.
    #[default]
    Create,
    /// It adopts the stream that exists, tags it with its owner and changes its settings; it never creates one.
    Adopt,
    /// It adopts the stream if it exists, and creates it otherwise.
    AdoptOrCreate,
    /// It uses the stream and changes nothing; it needs no right to create, change or delete one.
    Observe,
}

/// Encryption of a stream at rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamEncryption {
    /// KMS key, as id, ARN or alias: `alias/aws/kinesis` is the key of AWS.
    #[schemars(length(min = 1, max = 2048))]
    pub kms_key: String,
}

/// Whether a stream is deleted with its cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StreamDeletionPolicy {
    /// The stream is kept, with its undelivered events.
    #[default]
    Retain,
    /// The stream is deleted once the pods have ended, with all its records.
    Delete,
}

/// A loss of records that a change causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DataLoss {
    /// A lower retention deletes the records that are older.
    LowerRetention,
    /// The deletion of the stream deletes all records.
    Delete,
}

/// Capacity mode of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StreamMode {
    /// Kinesis scales the shards by load.
    #[default]
    OnDemand,
    /// The manifest sets the number of shards.
    Provisioned,
}

#[cfg(test)]
mod tests {
    use crate::api::fixture::applied_cluster;

    #[test]
    fn contradictions_of_a_stream_are_refused_with_their_remedy() {
        let check = |stream: &str| {
            let cluster = applied_cluster(&format!("  webhooks: {{ stream: {{ {stream} }} }}\n"));
            cluster.validate_cel().err().map(|errors| errors.to_string()).unwrap_or_default()
        };
        for (stream, says) in [
            ("management: Observe, mode: Provisioned, shards: 4", ""),
            ("startAt: Now", ""),
            ("startAt: '2026-11-26T12:00:00.5+01:00'", ""),
            ("startAt: yesterday", "write TrimHorizon, Now, or a time"),
            ("deletionPolicy: Delete, acknowledgeDataLoss: [Delete]", ""),
            ("deletionPolicy: Delete", "write acknowledgeDataLoss: [Delete]"),
            ("deletionPolicy: Delete, acknowledgeDataLoss: [LowerRetention]", "write acknowledgeDataLoss: [Delete]"),
            ("management: Observe, deletionPolicy: Delete, acknowledgeDataLoss: [Delete]", "Observe never deletes"),
            ("tags: { team: chat }", ""),
            ("tags: { 'aws:team': chat }", "choose another key"),
            ("tags: { 'realtime-operator.dev/owner': me }", "choose another key"),
            ("shards: 2", "shards go with mode: Provisioned"),
        ] {
            let found = check(stream);
            assert!(found.is_empty() == says.is_empty() && found.contains(says), "{stream}: {found}");
        }
    }
}
