//! The calls to Kinesis that each holder of a role makes. Pure.
//!
//! A test compares these lists with the calls in the code of each holder.

use crate::api::cluster::StreamManagement;
use crate::desired::StreamGoal;
use crate::kinesis::KinesisOperation;

/// Holder of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermissionHolder {
    /// The edges, which write the stream.
    Edge,
    /// The dispatcher, which reads the stream and writes dead letters.
    Dispatcher,
    /// The operator, which manages the stream, and reads it for its journeys.
    Operator,
    /// The operator, while it deletes the stream of a deleted cluster.
    OperatorDeletion,
    /// The operator, while it proves that lost events are kept. Only with a dead-letter stream.
    OperatorLetterProof,
    /// The user of `realtime replay`.
    Replay,
}

/// Purpose of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamPurpose {
    /// Events between edges and dispatcher.
    Events,
    /// Events that could not be delivered.
    DeadLetters,
}

/// Lists the operations of a holder on a stream with this goal.
#[must_use]
pub fn list_operations(holder: PermissionHolder, purpose: StreamPurpose, goal: &StreamGoal) -> Vec<KinesisOperation> {
    match (holder, purpose) {
        (PermissionHolder::Edge, StreamPurpose::Events) => {
            vec![KinesisOperation::DescribeStreamSummary, KinesisOperation::PutRecords]
        }
        (PermissionHolder::Dispatcher, StreamPurpose::Events) => {
            vec![
                KinesisOperation::DescribeStreamSummary,
                KinesisOperation::ListShards,
                KinesisOperation::GetShardIterator,
                KinesisOperation::GetRecords,
            ]
        }
        (PermissionHolder::Operator, StreamPurpose::Events) => {
            let mut operations =
                vec![KinesisOperation::ListShards, KinesisOperation::GetShardIterator, KinesisOperation::GetRecords];
            operations.extend(list_management(goal));
            operations
        }
        (PermissionHolder::Operator, StreamPurpose::DeadLetters) => list_management(goal),
        // An observer writes nothing, and so proves nothing.
        (PermissionHolder::OperatorLetterProof, _) if !goal.is_managed() => vec![],
        (PermissionHolder::Dispatcher, StreamPurpose::DeadLetters)
        | (PermissionHolder::OperatorLetterProof, StreamPurpose::Events) => vec![KinesisOperation::PutRecords],
        (PermissionHolder::OperatorLetterProof, StreamPurpose::DeadLetters) | (PermissionHolder::Replay, _) => {
            vec![KinesisOperation::ListShards, KinesisOperation::GetShardIterator, KinesisOperation::GetRecords]
        }
        (PermissionHolder::OperatorDeletion, _) if goal.is_deleted_with_cluster => vec![KinesisOperation::DeleteStream],
        (PermissionHolder::Edge, StreamPurpose::DeadLetters) | (PermissionHolder::OperatorDeletion, _) => vec![],
    }
}

/// The operations by which the operator manages a stream. One that loses records is there with its word only.
fn list_management(goal: &StreamGoal) -> Vec<KinesisOperation> {
    let mut operations = vec![KinesisOperation::DescribeStreamSummary, KinesisOperation::ListTagsForStream];
    if goal.is_managed() {
        operations.extend([
            KinesisOperation::AddTagsToStream,
            KinesisOperation::RemoveTagsFromStream,
            KinesisOperation::UpdateStreamMode,
            KinesisOperation::UpdateShardCount,
        ]);
        operations.extend([KinesisOperation::IncreaseStreamRetentionPeriod, KinesisOperation::StartStreamEncryption]);
    }
    if matches!(goal.management, StreamManagement::Create | StreamManagement::AdoptOrCreate) {
        operations.push(KinesisOperation::CreateStream);
    }
    if goal.is_managed() && goal.may_lower_retention {
        operations.push(KinesisOperation::DecreaseStreamRetentionPeriod);
    }
    operations
}
