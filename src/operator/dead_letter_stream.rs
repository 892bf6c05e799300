//! Reconciles the stream for events that could not be delivered like the main stream, and raises its retention.
//!
//! Its failure is `DeadLetterReady=False` and nothing else: events are delivered without it, and dispatchers keep their
//! letters until it can be written.

use super::context::ControllerContext;
use super::dereference;
use super::owned_stream::{OwnedStream, StreamFinding, StreamTexts, keep_status};
use super::reconcile_error::ReconcileError;
use super::status::ConditionUpdate;
use super::validation::validate_stream;
use crate::api::RealtimeCluster;
use crate::api::cluster::StreamStatus;
use crate::api::conditions::condition;
use crate::desired::{DeadLetterStream, StreamCapacity, ValidStream};
use crate::kinesis::{LiveCapacity, StreamSummary};
use crate::protocol::StreamName;

/// Texts of the dead-letter stream.
const STREAM_TEXTS: StreamTexts = StreamTexts {
    condition: condition::DEAD_LETTER_READY,
    name_field: "webhooks.deadLetter.name",
    purpose: " for dead letters",
    loss: "its letters are lost; it is not created again automatically. Correct the region or account, create the stream, or write another webhooks.deadLetter.name",
};

/// Reconciles the stream; `None` if the manifest asks for none.
pub async fn reconcile(context: &ControllerContext, cluster: &RealtimeCluster) -> Option<StreamFinding> {
    let status = cluster.status.as_ref();
    // An adopted main stream keeps the name that an earlier cluster of this name gave it.
    let mut stream = validate_stream(cluster, &context.policy).ok()?;
    if let Some(main) = status.and_then(|status| status.stream.as_ref()).filter(|main| !main.name.is_empty()) {
        stream.name = main.name.as_str().into();
    }
    let (name, wanted) = (stream.dead_letter_name()?, stream.dead_letter.clone()?);
    let known = status.and_then(|status| status.dead_letter_stream.clone()).unwrap_or_default();
    let known = keep_status(known, &name);
    let result = reconcile_stream(context, cluster, (&stream, name), &wanted, known.clone()).await;
    Some(StreamFinding::of_result(STREAM_TEXTS.condition, known, result))
}

async fn reconcile_stream(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    (main, name): (&ValidStream, StreamName),
    wanted: &DeadLetterStream,
    known: StreamStatus,
) -> Result<(StreamStatus, ConditionUpdate), ReconcileError> {
    let secrets = dereference::read_cluster_secrets(context, cluster).await?;
    let client = dereference::connect_stream(context, main, &secrets).await?.of_stream(name);
    let owned = OwnedStream {
        context,
        cluster,
        client: &client,
        texts: &STREAM_TEXTS,
        capacity: StreamCapacity::Provisioned(wanted.shards),
        retention_hours: Some(wanted.retention_hours),
    };
    owned.reconcile(known, |live| find_pending_steps(wanted, live)).await
}

/// The settings of the manifest that the operator does not change on a live stream.
fn find_pending_steps(wanted: &DeadLetterStream, live: &StreamSummary) -> Vec<String> {
    let mut steps = Vec::new();
    if let Some(LiveCapacity::Provisioned(shards)) = live.capacity
        && shards != wanted.shards
    {
        steps.push(format!(
            "deadLetter.shards is {}, and the stream has {shards}: change it with the AWS CLI (update-shard-count), or write shards: {shards}",
            wanted.shards
        ));
    }
    if live.retention_hours > wanted.retention_hours {
        let (wanted, live) = (wanted.retention_hours, live.retention_hours);
        steps.push(format!(
            "deadLetter.retentionHours is {wanted}, and the stream keeps letters for {live}: a lower retention deletes letters, so lower it with the AWS CLI (decrease-stream-retention-period), or write retentionHours: {live}"
        ));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_could_delete_letters_is_pending_with_its_remedy() {
        let wanted = DeadLetterStream { name: None, shards: 1, retention_hours: 168 };
        let live = |capacity, retention_hours| StreamSummary {
            arn: "arn:a".to_owned(),
            status: "ACTIVE".to_owned(),
            created_ms: 1,
            capacity,
            retention_hours,
        };
        for (case, capacity, hours, says) in [
            ("as wanted", Some(LiveCapacity::Provisioned(1)), 168, ""),
            ("a retention that is raised", Some(LiveCapacity::Provisioned(1)), 24, ""),
            ("on demand, by a person", Some(LiveCapacity::OnDemand), 168, ""),
            ("more shards", Some(LiveCapacity::Provisioned(2)), 168, "or write shards: 2"),
            ("a longer retention", None, 720, "or write retentionHours: 720"),
        ] {
            let steps = find_pending_steps(&wanted, &live(capacity, hours));
            assert_eq!(steps.len(), usize::from(!says.is_empty()), "{case}: {steps:?}");
            assert!(steps.iter().all(|step| step.ends_with(says)), "{case}: {steps:?}");
        }
    }
}
