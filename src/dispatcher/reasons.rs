//! The reasons for which an event is lost, needs no delivery, or waits in a shard that is not read: words of the log, of
//! `/flow` and of the metrics.

use crate::process::metrics::label_values;

label_values! {
    /// The reason for which an event is lost, or becomes a dead letter.
    pub enum DropReason as "reason" {
        /// Another cluster wrote the record.
        ForeignCluster = "foreign_cluster",
        /// The bytes are not a record.
        Poison = "poison",
        /// The app is unknown, even after waiting for the registry.
        UnknownApp = "unknown_app",
        /// No endpoint acknowledged it within the retry window.
        RetryWindowOver = "retry_window_over",
        /// The endpoint fails or is slow, and the events of such endpoints exceed their share of the shard's bound.
        EndpointBehind = "endpoint_behind",
        /// The endpoint was removed while the event waited.
        EndpointRemoved = "endpoint_removed",
        /// The endpoint was disabled while the event waited.
        EndpointDisabled = "endpoint_disabled",
    }
}

/// Unit that a loss is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossScope {
    /// A record that is none of the cluster.
    Record,
    /// An event, before its release to endpoints.
    Event,
    /// The delivery of an event to one endpoint.
    Delivery,
}

impl DropReason {
    /// The scope of a loss for this reason.
    #[must_use]
    pub fn scope(self) -> LossScope {
        match self {
            Self::ForeignCluster | Self::Poison => LossScope::Record,
            Self::UnknownApp => LossScope::Event,
            Self::RetryWindowOver | Self::EndpointBehind | Self::EndpointRemoved | Self::EndpointDisabled => {
                LossScope::Delivery
            }
        }
    }
}

label_values! {
    /// The reason for which an event needs no delivery.
    pub enum SkipReason as "reason" {
        /// One half of an absence that was cancelled.
        Cancelled = "cancelled",
        /// A newer event of its subject was delivered.
        Superseded = "superseded",
        /// The event was read before.
        Duplicate = "duplicate",
        /// The endpoint that subscribes to it is disabled.
        EndpointDisabled = "endpoint_disabled",
    }
}

label_values! {
    /// The reason for which a shard is not read: in the log, in `/flow` and in metrics.
    pub enum PauseReason as "reason" {
        /// A record of a newer release: upgrade the dispatchers.
        RecordTooNew = "record_too_new",
        /// As many events as the shard may hold wait for endpoints, for their app, or for the end of an absence.
        Full = "full",
        /// The process keeps as many bytes of unfinished events as it may, over all its shards.
        Budget = "budget",
        /// No dispatcher has held the shard for a while.
        NotHeld = "not_held",
        /// Kinesis does not answer, or refuses the read.
        ReadFailed = "read_failed",
    }
}

/// A change of a pause that is to be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseChange {
    /// The shard has not been read for a while.
    Paused(PauseReason),
    /// The shard is read again after so many ms.
    Resumed(PauseReason, u64),
}
