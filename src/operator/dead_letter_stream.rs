//! Reconciles the stream for events that could not be delivered: creates it like the main stream, and raises its retention.
//!
//! Its failure is `DeadLetterReady=False` and nothing else: events are delivered without it, and dispatchers keep their
//! letters until it can be written.

use kube::runtime::events::EventType;

use super::context::ControllerContext;
use super::dereference;
use super::reconcile_error::ReconcileError;
use super::status::ConditionUpdate;
use super::stream_ownership::{build_owner_tags, claim_stream};
use super::validation::validate_stream;
use crate::api::cluster::StreamStatus;
use crate::api::conditions::condition;
use crate::api::{RealtimeCluster, Reason};
use crate::desired::DeadLetterStream;
use crate::kinesis::{KinesisClient, KinesisErrorClass, LiveCapacity, StreamSummary};

/// The dead-letter stream of a cluster as it was found.
pub struct DeadLetterFinding {
    /// State of the stream.
    pub stream: StreamStatus,
    /// Content of the condition.
    pub update: ConditionUpdate,
    /// The reason for which the reconcile is repeated with a back-off.
    pub error: Option<ReconcileError>,
}

/// Reconciles the stream; `None` if the manifest asks for none.
pub async fn reconcile(context: &ControllerContext, cluster: &RealtimeCluster) -> Option<DeadLetterFinding> {
    let status = cluster.status.as_ref();
    let known = status.and_then(|status| status.dead_letter_stream.clone()).unwrap_or_default();
    // The name of the main stream can be the one that an earlier cluster of this name created.
    let mut stream = validate_stream(cluster, &context.policy).ok()?;
    if let Some(main) = status.and_then(|status| status.stream.as_ref()).filter(|main| !main.name.is_empty()) {
        stream.name = main.name.as_str().into();
    }
    let (name, wanted) = (stream.dead_letter_name()?, stream.dead_letter.clone()?);
    let known = if known.name == name.as_str() {
        known
    } else {
        StreamStatus { name: name.to_string(), ..StreamStatus::default() }
    };
    let connected = async {
        let secrets = dereference::read_cluster_secrets(context, cluster).await?;
        Ok::<_, ReconcileError>(dereference::connect_stream(context, &stream, &secrets).await?.of_stream(name))
    };
    let result = match connected.await {
        Ok(client) => reconcile_stream(context, cluster, &client, &wanted, known.clone()).await,
        Err(error) => Err(error),
    };
    Some(match result {
        Ok((stream, update)) => DeadLetterFinding { stream, update, error: None },
        Err(error) => DeadLetterFinding {
            stream: known,
            update: ConditionUpdate::of_error(condition::DEAD_LETTER_READY, &error),
            error: Some(error),
        },
    })
}

async fn reconcile_stream(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    client: &KinesisClient,
    wanted: &DeadLetterStream,
    known: StreamStatus,
) -> Result<(StreamStatus, ConditionUpdate), ReconcileError> {
    match client.describe_stream().await {
        Ok(summary) => adopt_stream(context, cluster, client, wanted, known, summary).await,
        Err(error) if error.class == KinesisErrorClass::NotFound && !known.arn.is_empty() => {
            let message = format!(
                "{error}. It existed before, and its letters are lost; it is not created again automatically. Correct the region or account, create the stream, or write another webhooks.deadLetter.name"
            );
            Err(ReconcileError::transient(Reason::StreamMissing, message))
        }
        Err(error) if error.class == KinesisErrorClass::NotFound && cluster.spec.suspend => {
            let message = format!("suspended: stream {} does not exist and is not created", known.name);
            Ok((known, ConditionUpdate::new(condition::DEAD_LETTER_READY, "False", Reason::Suspended, message)))
        }
        Err(error) if error.class == KinesisErrorClass::NotFound => {
            create_stream(context, cluster, client, wanted, known).await
        }
        Err(error) => Err(error.into()),
    }
}

async fn create_stream(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    client: &KinesisClient,
    wanted: &DeadLetterStream,
    known: StreamStatus,
) -> Result<(StreamStatus, ConditionUpdate), ReconcileError> {
    context.ensure_leader()?;
    let shards = i32::try_from(wanted.shards).unwrap_or(i32::MAX);
    let known = StreamStatus { cluster_id: cluster.metadata.uid.clone().unwrap_or_default(), ..known };
    match client.create_stream(Some(shards), &build_owner_tags(context, cluster, &known.cluster_id)).await {
        Ok(()) => {
            let note = format!("stream {} for dead letters was created", known.name);
            context.publish_event(cluster, EventType::Normal, "StreamCreated", "Create", note).await;
        }
        // It exists by now, or the answer to an earlier call was lost: the next reconcile describes it.
        Err(error) if error.class == KinesisErrorClass::Busy => {}
        Err(error) => return Err(error.into()),
    }
    let message = format!("stream {} is being created", known.name);
    Ok((known, ConditionUpdate::new(condition::DEAD_LETTER_READY, "False", Reason::StreamCreating, message)))
}

async fn adopt_stream(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    client: &KinesisClient,
    wanted: &DeadLetterStream,
    known: StreamStatus,
    summary: StreamSummary,
) -> Result<(StreamStatus, ConditionUpdate), ReconcileError> {
    let created_ms = i64::try_from(summary.created_ms).unwrap_or(i64::MAX);
    let cluster_id = if known.arn == summary.arn && known.created_ms == created_ms {
        known.cluster_id.clone()
    } else {
        claim_stream(context, cluster, client, "webhooks.deadLetter.name").await?
    };
    let pending_steps = find_pending_steps(wanted, &summary);
    let (name, status) = (known.name, summary.status);
    let mut message = format!("stream {name} is {status}");
    let is_ready = status == "ACTIVE" || status == "UPDATING";
    if is_ready && summary.retention_hours < wanted.retention_hours && !cluster.spec.suspend {
        context.ensure_leader()?;
        match client.increase_retention(wanted.retention_hours).await {
            // Another change of the stream is in progress: the next reconcile tries again.
            Err(error) if error.class == KinesisErrorClass::Busy => {}
            result => result?,
        }
    }
    if !pending_steps.is_empty() {
        message = format!("{message}; pending: {}", pending_steps.join("; "));
    }
    let stream = StreamStatus { name, cluster_id, arn: summary.arn, status, created_ms, pending_steps };
    let (ready, reason) = if is_ready { ("True", Reason::StreamActive) } else { ("False", Reason::StreamCreating) };
    Ok((stream, ConditionUpdate::new(condition::DEAD_LETTER_READY, ready, reason, message)))
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
