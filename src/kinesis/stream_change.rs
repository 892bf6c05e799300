//! Calls that create, change and delete a stream.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_kinesis::types::{EncryptionType, ScalingType, StreamMode, StreamModeDetails};

use super::call_metrics::KinesisOperation;
use super::{KinesisClient, KinesisError, LiveCapacity};

/// One change of one attribute of a stream. Kinesis accepts a change of capacity or encryption only while the stream is
/// `ACTIVE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamChange {
    /// Switches the stream to on-demand capacity.
    SwitchToOnDemand,
    /// Switches the stream to provisioned capacity, with the shards that it has.
    SwitchToProvisioned,
    /// Sets the number of open shards: at least half and at most double of the present number.
    SetShardCount(u32),
    /// Raises the retention to this number of hours.
    RaiseRetention(u32),
    /// Lowers the retention to this number of hours, which deletes older records.
    LowerRetention(u32),
    /// Encrypts new records with this KMS key.
    Encrypt(String),
    /// Adds tags, or gives them new values: ten at most in one call.
    AddTags(BTreeMap<String, String>),
    /// Removes the tags of these keys: ten at most in one call.
    RemoveTags(BTreeSet<String>),
}

impl StreamChange {
    /// The operation that makes the change.
    #[must_use]
    pub fn operation(&self) -> KinesisOperation {
        match self {
            Self::SwitchToOnDemand | Self::SwitchToProvisioned => KinesisOperation::UpdateStreamMode,
            Self::SetShardCount(_) => KinesisOperation::UpdateShardCount,
            Self::RaiseRetention(_) => KinesisOperation::IncreaseStreamRetentionPeriod,
            Self::LowerRetention(_) => KinesisOperation::DecreaseStreamRetentionPeriod,
            Self::Encrypt(_) => KinesisOperation::StartStreamEncryption,
            Self::AddTags(_) => KinesisOperation::AddTagsToStream,
            Self::RemoveTags(_) => KinesisOperation::RemoveTagsFromStream,
        }
    }
}

impl KinesisClient {
    /// Creates the stream with this capacity. Its tags are part of the same call, so that the stream is never without an
    /// owner.
    ///
    /// # Errors
    /// The call failed; [`KinesisErrorClass::Busy`](super::KinesisErrorClass::Busy) when the stream exists.
    pub async fn create_stream(
        &self,
        capacity: LiveCapacity,
        tags: &BTreeMap<String, String>,
    ) -> Result<(), KinesisError> {
        let (mode, shards) = match capacity {
            LiveCapacity::OnDemand => (StreamMode::OnDemand, None),
            LiveCapacity::Provisioned(shards) => (StreamMode::Provisioned, Some(to_request_number(shards))),
        };
        let operation = KinesisOperation::CreateStream;
        let mut request = self.sdk.create_stream().stream_name(self.stream.as_str()).set_shard_count(shards);
        for (name, value) in tags {
            request = request.tags(name, value);
        }
        let request = request.stream_mode_details(self.build_mode(operation, mode)?);
        self.call(operation, request.send()).await?;
        Ok(())
    }

    /// Makes one change of the stream with this ARN. The answer comes before the change is complete.
    ///
    /// # Errors
    /// The call failed; [`KinesisErrorClass::Busy`](super::KinesisErrorClass::Busy) while another change is in progress.
    pub async fn change_stream(&self, arn: &str, change: &StreamChange) -> Result<(), KinesisError> {
        let (sdk, name, operation) = (&self.sdk, self.stream.as_str(), change.operation());
        match change {
            StreamChange::SwitchToOnDemand => self.switch_mode(arn, StreamMode::OnDemand).await,
            StreamChange::SwitchToProvisioned => self.switch_mode(arn, StreamMode::Provisioned).await,
            StreamChange::SetShardCount(shards) => {
                let request = sdk.update_shard_count().stream_name(name).target_shard_count(to_request_number(*shards));
                self.call(operation, request.scaling_type(ScalingType::UniformScaling).send()).await.map(drop)
            }
            StreamChange::RaiseRetention(hours) => {
                let request = sdk.increase_stream_retention_period().stream_name(name);
                self.call(operation, request.retention_period_hours(to_request_number(*hours)).send()).await.map(drop)
            }
            StreamChange::LowerRetention(hours) => {
                let request = sdk.decrease_stream_retention_period().stream_name(name);
                self.call(operation, request.retention_period_hours(to_request_number(*hours)).send()).await.map(drop)
            }
            StreamChange::Encrypt(key) => {
                let request = sdk.start_stream_encryption().stream_name(name).encryption_type(EncryptionType::Kms);
                self.call(operation, request.key_id(key).send()).await.map(drop)
            }
            StreamChange::AddTags(tags) => {
                let mut request = sdk.add_tags_to_stream().stream_name(name);
                for (key, value) in tags {
                    request = request.tags(key, value);
                }
                self.call(operation, request.send()).await.map(drop)
            }
            StreamChange::RemoveTags(keys) => {
                let keys = keys.iter().cloned().collect();
                let request = sdk.remove_tags_from_stream().stream_name(name).set_tag_keys(Some(keys));
                self.call(operation, request.send()).await.map(drop)
            }
        }
    }

    /// Deletes the stream with all its records, and the registrations of its consumers.
    ///
    /// # Errors
    /// The call failed; [`KinesisErrorClass::Busy`](super::KinesisErrorClass::Busy) while the stream is being created.
    pub async fn delete_stream(&self) -> Result<(), KinesisError> {
        let request = self.sdk.delete_stream().stream_name(self.stream.as_str()).enforce_consumer_deletion(true);
        self.call(KinesisOperation::DeleteStream, request.send()).await?;
        Ok(())
    }

    async fn switch_mode(&self, arn: &str, mode: StreamMode) -> Result<(), KinesisError> {
        let operation = KinesisOperation::UpdateStreamMode;
        let mode = self.build_mode(operation, mode)?;
        let request = self.sdk.update_stream_mode().stream_arn(arn).stream_mode_details(mode);
        self.call(operation, request.send()).await.map(drop)
    }

    fn build_mode(&self, operation: KinesisOperation, mode: StreamMode) -> Result<StreamModeDetails, KinesisError> {
        let built = StreamModeDetails::builder().stream_mode(mode).build();
        built.map_err(|error| self.malformed_answer(operation, &error.to_string()))
    }
}

/// A number of a request, whose type is signed.
fn to_request_number(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
