//! Counts and times the calls to Kinesis, by operation and result.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use super::{KinesisError, KinesisErrorClass};
use crate::process::metrics::{DurationHistogram, Labeled, label_values, metric_table};

label_values! {
    /// An operation of the Kinesis API.
    pub enum KinesisOperation as "operation" {
        /// Writes records to a stream.
        PutRecords = "put_records",
        /// Lists the shards of a stream.
        ListShards = "list_shards",
        /// Opens an iterator over a shard.
        GetShardIterator = "get_shard_iterator",
        /// Reads records of a shard.
        GetRecords = "get_records",
        /// Reads the state of a stream.
        DescribeStreamSummary = "describe_stream_summary",
        /// Creates a stream of a cluster.
        CreateStream = "create_stream",
        /// Raises the retention of a stream.
        IncreaseStreamRetentionPeriod = "increase_stream_retention_period",
        /// Lowers the retention of a stream.
        DecreaseStreamRetentionPeriod = "decrease_stream_retention_period",
        /// Sets the capacity mode of a stream.
        UpdateStreamMode = "update_stream_mode",
        /// Sets the number of shards of a stream.
        UpdateShardCount = "update_shard_count",
        /// Encrypts a stream with a key.
        StartStreamEncryption = "start_stream_encryption",
        /// Reads the owner of a stream.
        ListTagsForStream = "list_tags_for_stream",
        /// Writes the owner and the tags of a stream.
        AddTagsToStream = "add_tags_to_stream",
        /// Removes tags that the manifest does not have any more.
        RemoveTagsFromStream = "remove_tags_from_stream",
        /// Deletes the stream of a deleted cluster.
        DeleteStream = "delete_stream",
    }
}

impl KinesisOperation {
    /// The name of the operation in AWS's API.
    #[must_use]
    pub fn api_name(self) -> &'static str {
        match self {
            Self::PutRecords => "PutRecords",
            Self::ListShards => "ListShards",
            Self::GetShardIterator => "GetShardIterator",
            Self::GetRecords => "GetRecords",
            Self::DescribeStreamSummary => "DescribeStreamSummary",
            Self::CreateStream => "CreateStream",
            Self::IncreaseStreamRetentionPeriod => "IncreaseStreamRetentionPeriod",
            Self::DecreaseStreamRetentionPeriod => "DecreaseStreamRetentionPeriod",
            Self::UpdateStreamMode => "UpdateStreamMode",
            Self::UpdateShardCount => "UpdateShardCount",
            Self::StartStreamEncryption => "StartStreamEncryption",
            Self::ListTagsForStream => "ListTagsForStream",
            Self::AddTagsToStream => "AddTagsToStream",
            Self::RemoveTagsFromStream => "RemoveTagsFromStream",
            Self::DeleteStream => "DeleteStream",
        }
    }
}

label_values! {
    /// The result of a call, by the class of the error.
    pub enum KinesisCallResult as "result" {
        /// Kinesis answered without an error.
        Success = "success",
        /// The stream does not exist.
        NotFound = "not_found",
        /// The identity lacks the permission, or there are no credentials.
        Denied = "denied",
        /// A rate limit was exceeded.
        Throttled = "throttled",
        /// Another operation was in progress, or the stream exists.
        Busy = "busy",
        /// An iterator was too old.
        Expired = "expired",
        /// The request can never succeed.
        Invalid = "invalid",
        /// No answer, or a failure of the service.
        Transient = "transient",
    }
}

impl From<KinesisErrorClass> for KinesisCallResult {
    fn from(class: KinesisErrorClass) -> Self {
        match class {
            KinesisErrorClass::NotFound => Self::NotFound,
            KinesisErrorClass::Denied => Self::Denied,
            KinesisErrorClass::Throttled => Self::Throttled,
            KinesisErrorClass::Busy => Self::Busy,
            KinesisErrorClass::Expired => Self::Expired,
            KinesisErrorClass::Invalid => Self::Invalid,
            KinesisErrorClass::Transient => Self::Transient,
        }
    }
}

metric_table! {
    /// The metrics of the calls to Kinesis.
    pub struct KinesisCallMetrics of "operator" {
        /// Calls to Kinesis, by operation and result.
        kinesis_calls: Labeled<(KinesisOperation, KinesisCallResult), Counter> =>
            "If `throttled` grows, other users of the account or too many clusters share its limits; for the others read the condition StreamReady of the clusters.",
        /// Time from a call to Kinesis to its answer, by operation, in seconds.
        kinesis_call_duration_seconds: Labeled<KinesisOperation, DurationHistogram> =>
            "Look at the network to AWS; a call without an answer ends after 5 s.",
    }
}

impl KinesisCallMetrics {
    /// Counts a call that ended.
    pub(super) fn count_call<T>(
        &self,
        operation: KinesisOperation,
        answer: &Result<T, KinesisError>,
        duration: Duration,
    ) {
        let result = answer.as_ref().map_or_else(|error| error.class.into(), |_| KinesisCallResult::Success);
        self.kinesis_calls.with_label((operation, result)).inc();
        self.kinesis_call_duration_seconds.with_label(operation).observe(duration);
    }
}
