//! The stream that a manifest asks for, beyond its name: how far it is managed, and the settings that it should have. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::api::cluster::{DataLoss, StreamDeletionPolicy, StreamManagement, StreamSpec};

/// Shards with which an on-demand stream starts (Kinesis developer guide).
const ON_DEMAND_SHARD_COUNT: u32 = 4;

/// Capacity with which a stream is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamCapacity {
    /// Kinesis scales the shards by load.
    OnDemand,
    /// The manifest sets this number of shards.
    Provisioned(u32),
}

/// The settings that a stream should have; an absent one stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamGoal {
    /// How far the operator manages the stream.
    pub management: StreamManagement,
    /// Capacity of the stream.
    pub capacity: Option<StreamCapacity>,
    /// Hours for which records are kept.
    pub retention_hours: Option<u32>,
    /// KMS key of its encryption.
    pub encryption_key: Option<String>,
    /// Tags in addition to those of the owner.
    pub tags: BTreeMap<String, String>,
    /// Whether records may be lost by a lower retention.
    pub may_lower_retention: bool,
    /// Whether the stream is deleted with the cluster, which is acknowledged.
    pub is_deleted_with_cluster: bool,
}

impl StreamCapacity {
    /// Number of shards with which the stream starts.
    #[must_use]
    pub fn initial_shards(self) -> u32 {
        match self {
            Self::OnDemand => ON_DEMAND_SHARD_COUNT,
            Self::Provisioned(shards) => shards,
        }
    }
}

impl StreamGoal {
    /// The goal of a manifest whose rules hold. A stream that the manifest lets the operator create gets its default capacity;
    /// one that others made keeps its own.
    #[must_use]
    pub fn of_spec(spec: &StreamSpec, capacity: StreamCapacity) -> Self {
        let is_named = spec.mode.is_some() || spec.management == StreamManagement::Create;
        let acknowledges = |loss| spec.acknowledge_data_loss.contains(&loss);
        Self {
            management: spec.management,
            capacity: is_named.then_some(capacity),
            retention_hours: spec.retention_hours.and_then(|hours| u32::try_from(hours).ok()),
            encryption_key: spec.encryption.as_ref().map(|encryption| encryption.kms_key.clone()),
            tags: spec.tags.clone(),
            may_lower_retention: acknowledges(DataLoss::LowerRetention),
            is_deleted_with_cluster: spec.deletion_policy == StreamDeletionPolicy::Delete
                && spec.management != StreamManagement::Observe
                && acknowledges(DataLoss::Delete),
        }
    }

    /// The goal of a dead-letter stream, which is managed and deleted like the main one. Its retention is never lowered.
    #[must_use]
    pub fn of_dead_letters(&self, shards: u32, retention_hours: u32) -> Self {
        Self {
            capacity: Some(StreamCapacity::Provisioned(shards)),
            retention_hours: Some(retention_hours),
            encryption_key: self.encryption_key.clone(),
            tags: self.tags.clone(),
            may_lower_retention: false,
            ..*self
        }
    }

    /// Whether the operator may write to the stream at all.
    #[must_use]
    pub fn is_managed(&self) -> bool {
        self.management != StreamManagement::Observe
    }
}

/// Resolves `startAt` to a time in ms since 1970, from which a shard without a checkpoint is read; `None` is its oldest record.
///
/// # Errors
/// The text is no position.
pub fn resolve_start(start_at: Option<&str>, adopted_at: Option<&str>) -> Result<Option<u64>, String> {
    let parse = |text: &str| {
        let time: Timestamp = text
            .parse()
            .map_err(|_| format!("is `{text}`: write TrimHorizon, Now, or a time such as 2026-11-26T12:00:00Z"))?;
        // A time before 1970 is before every record.
        Ok(u64::try_from(time.as_millisecond()).ok().filter(|ms| *ms > 0))
    };
    match start_at {
        Some("TrimHorizon") => Ok(None),
        None | Some("Now") => adopted_at.map_or(Ok(None), parse),
        Some(time) => parse(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_read_from_the_adoption_unless_the_manifest_says_otherwise() {
        let (adopted, at) = (Some("2026-11-26T12:00:00Z"), 1_795_694_400_000);
        for (name, start, adopted, expected) in [
            ("a created stream", None, None, Ok(None)),
            ("an adopted stream", None, adopted, Ok(Some(at))),
            ("the adoption by name", Some("Now"), adopted, Ok(Some(at))),
            ("now, of a created stream", Some("Now"), None, Ok(None)),
            ("the oldest record", Some("TrimHorizon"), adopted, Ok(None)),
            ("a time", Some("2026-11-26T13:00:01+01:00"), adopted, Ok(Some(at + 1_000))),
            ("a time before every record", Some("1960-01-01T00:00:00Z"), adopted, Ok(None)),
        ] {
            assert_eq!(resolve_start(start, adopted), expected, "{name}");
        }
        let refusal = resolve_start(Some("2026-13-01T00:00:00Z"), None).expect_err("no such month");
        assert!(refusal.contains("write TrimHorizon, Now, or a time"), "{refusal}");
    }
}
