//! Reconciles the stream: creates it, or adopts the one that this cluster created before; owns `status.stream` and
//! `StreamReady`, and with [`dead_letter_stream`] `DeadLetterReady`. Any stream but the cluster's own is left alone.

use std::time::Duration;

use kube::ResourceExt;
use serde_json::{Map, Value};

use super::context::{ControllerContext, SharedContext};
use super::dead_letter_stream::{self, DeadLetterFinding};
use super::dereference;
use super::reconcile_error::ReconcileError;
use super::status::{self, ConditionUpdate, StatusPatch};
use super::stream_ownership::{build_owner_tags, claim_stream};
use super::validation::validate_stream;
use crate::api::cluster::{StreamStatus, WebhooksMode};
use crate::api::conditions::condition;
use crate::api::{RealtimeCluster, Reason};
use crate::desired::{StreamCapacity, ValidStream};
use crate::kinesis::{KinesisClient, KinesisError, KinesisErrorClass, LiveCapacity, StreamSummary};

/// Conditions that this controller writes.
const OWNED_CONDITIONS: &[&str] = &[condition::STREAM_READY, condition::DEAD_LETTER_READY];
/// Time between two reconciles of an active stream; the end of Ready=True triggers an earlier one. AWS limits descriptions
/// per account.
const RESYNC_INTERVAL: Duration = Duration::from_mins(5);
/// Time between two reconciles until the stream is active.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Reconciles the stream of one cluster, and returns the time until the next reconcile without a change.
///
/// # Errors
/// The stream cannot be created, adopted or described; the status has the same reason.
pub async fn reconcile(context: &SharedContext, cluster: &RealtimeCluster) -> Result<Option<Duration>, ReconcileError> {
    if cluster.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let known = cluster.status.as_ref().and_then(|status| status.stream.clone()).unwrap_or_default();
    if cluster.spec.webhooks.mode == WebhooksMode::Off {
        // The stream stays, with its undelivered events, and nothing is known about it any more.
        write_status(context, cluster, &known, None, None).await?;
        return Ok(None);
    }
    let (stream, result) = match reconcile_stream(context, cluster, known.clone()).await {
        Ok((stream, update)) => (stream, Ok(update)),
        Err(error) => (known, Err(error)),
    };
    let update = match &result {
        Ok(update) => update.clone(),
        Err(error) => ConditionUpdate::of_error(condition::STREAM_READY, error),
    };
    let dead_letter = dead_letter_stream::reconcile(context, cluster).await;
    let is_settled = |update: &ConditionUpdate| update.status == "True" || update.reason == Reason::Suspended;
    let is_all_settled = is_settled(&update) && dead_letter.as_ref().is_none_or(|found| is_settled(&found.update));
    let wait = if is_all_settled { RESYNC_INTERVAL } else { RECHECK_INTERVAL };
    let failure = dead_letter.as_ref().and_then(|found| found.error.clone());
    write_status(context, cluster, &stream, Some(update), dead_letter).await?;
    match (result, failure) {
        (Ok(_), Some(error)) | (Err(error), _) => Err(error),
        (Ok(_), None) => Ok(Some(wait)),
    }
}

async fn write_status(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    stream: &StreamStatus,
    update: Option<ConditionUpdate>,
    dead_letter: Option<DeadLetterFinding>,
) -> Result<(), ReconcileError> {
    let mut fields = Map::new();
    let mut conditions = Vec::from_iter(update);
    if !stream.name.is_empty() {
        fields.insert("stream".to_owned(), serde_json::to_value(stream).unwrap_or(Value::Null));
    }
    let manager = "realtime-operator-stream";
    if let Some(found) = dead_letter {
        fields.insert("deadLetterStream".to_owned(), serde_json::to_value(found.stream).unwrap_or(Value::Null));
        conditions.push(found.update);
    }
    let part = StatusPatch { manager, owned_conditions: OWNED_CONDITIONS, conditions, fields };
    status::write(context, cluster, part).await
}

async fn reconcile_stream(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    known: StreamStatus,
) -> Result<(StreamStatus, ConditionUpdate), ReconcileError> {
    // Validated first: an endpoint that is not allowed gets no request.
    let stream = validate_stream(cluster, &context.policy)?;
    let secrets = dereference::read_cluster_secrets(context, cluster).await?;
    ensure_same_stream(&known, &stream)?;
    let client = dereference::connect_stream(context, &stream, &secrets).await?;
    // The name was corrected before a stream existed.
    let known = if known.name == stream.name.as_str() {
        known
    } else {
        StreamStatus { name: stream.name.to_string(), ..StreamStatus::default() }
    };
    match client.describe_stream().await {
        Ok(summary) => {
            let pending = find_pending_steps(stream.capacity, summary.capacity);
            let (adopted, mut update) = adopt_stream(context, cluster, &client, known, summary).await?;
            if !pending.is_empty() {
                update.message = format!("{}; pending: {}", update.message, pending.join("; "));
            }
            Ok((StreamStatus { pending_steps: pending, ..adopted }, update))
        }
        Err(error) if error.class == KinesisErrorClass::NotFound && known.arn.is_empty() && cluster.spec.suspend => {
            let message = format!("suspended: stream {} does not exist and is not created", known.name);
            Ok((known, ConditionUpdate::new(condition::STREAM_READY, "False", Reason::Suspended, message)))
        }
        Err(error) if error.class == KinesisErrorClass::NotFound && known.arn.is_empty() => {
            create_stream(context, cluster, &client, stream.capacity, known).await
        }
        Err(error) if error.class == KinesisErrorClass::NotFound => {
            let message = format!(
                "{error}. It existed before, and its records are lost; it is not created again automatically, since a wrong region or account looks the same. Correct the region or account, or create the stream"
            );
            Err(ReconcileError::transient(Reason::StreamMissing, message))
        }
        Err(error) => Err(error.into()),
    }
}

/// Refuses another name than that of the stream that the cluster has. An API server refuses the edit, unless its schema is
/// older than the rule.
fn ensure_same_stream(known: &StreamStatus, wanted: &ValidStream) -> Result<(), ReconcileError> {
    if known.arn.is_empty() || known.name == wanted.name.as_str() {
        return Ok(());
    }
    let message = format!(
        "webhooks.stream.name asks for the stream {}, and the cluster has the stream {} with its undelivered events: write {} again, or create another cluster and move to it",
        wanted.name, known.name, known.name
    );
    Err(ReconcileError::terminal(Reason::SpecInvalid, message))
}

/// The settings of the manifest that a live stream does not have. The operator creates streams with their capacity and does
/// not change it later: a change has limits per day, and reshards what dispatchers read.
fn find_pending_steps(wanted: StreamCapacity, live: Option<LiveCapacity>) -> Vec<String> {
    let remedy = "the operator does not change the capacity of a stream: change it with the AWS CLI";
    let step = match (wanted, live) {
        (StreamCapacity::OnDemand, Some(LiveCapacity::Provisioned(shards))) => format!(
            "mode is OnDemand, and the stream is Provisioned with {shards} shards: {remedy} (update-stream-mode), or write mode: Provisioned and shards: {shards}"
        ),
        (StreamCapacity::Provisioned(_), Some(LiveCapacity::OnDemand)) => format!(
            "mode is Provisioned, and the stream is OnDemand: {remedy} (update-stream-mode), or write mode: OnDemand without shards"
        ),
        (StreamCapacity::Provisioned(wanted), Some(LiveCapacity::Provisioned(shards))) if wanted != shards => format!(
            "shards is {wanted}, and the stream has {shards}: {remedy} (update-shard-count), or write shards: {shards}"
        ),
        _ => return vec![],
    };
    vec![step]
}

async fn create_stream(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    client: &KinesisClient,
    capacity: StreamCapacity,
    known: StreamStatus,
) -> Result<(StreamStatus, ConditionUpdate), ReconcileError> {
    context.ensure_leader()?;
    let shards = match capacity {
        StreamCapacity::OnDemand => None,
        StreamCapacity::Provisioned(shards) => Some(i32::try_from(shards).unwrap_or(i32::MAX)),
    };
    // A stream that is created and then not written into the status is adopted by these tags.
    let known = StreamStatus { cluster_id: cluster.uid().unwrap_or_default(), ..known };
    let tags = build_owner_tags(context, cluster, &known.cluster_id);
    match client.create_stream(shards, &tags).await {
        Ok(()) => {
            let note = format!("stream {} was created", known.name);
            context
                .publish_event(cluster, kube::runtime::events::EventType::Normal, "StreamCreated", "Create", note)
                .await;
        }
        // The stream exists by now, or the answer to an earlier call was lost: the next reconcile describes it.
        Err(error) if error.class == KinesisErrorClass::Busy => {}
        Err(error) => return Err(explain_create_failure(error, capacity)),
    }
    let message = format!("stream {} is being created", known.name);
    Ok((known, ConditionUpdate::new(condition::STREAM_READY, "False", Reason::StreamCreating, message)))
}

/// Adds a hint to a refused creation: Kinesis supports both modes, an emulator may not.
fn explain_create_failure(error: KinesisError, capacity: StreamCapacity) -> ReconcileError {
    let error = ReconcileError::from(error);
    if error.reason != Reason::StreamInvalid || capacity != StreamCapacity::OnDemand {
        return error;
    }
    let message = format!(
        "{}. If the endpoint does not support on-demand streams, write mode: Provisioned and shards in webhooks.stream",
        error.message
    );
    ReconcileError { message, ..error }
}

async fn adopt_stream(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    client: &KinesisClient,
    known: StreamStatus,
    summary: StreamSummary,
) -> Result<(StreamStatus, ConditionUpdate), ReconcileError> {
    let created = i64::try_from(summary.created_ms).unwrap_or(i64::MAX);
    let same = known.arn == summary.arn && known.created_ms == created;
    let cluster_id = if same {
        known.cluster_id.clone()
    } else {
        claim_stream(context, cluster, client, "webhooks.stream.name").await?
    };
    let stream = StreamStatus {
        name: known.name,
        cluster_id,
        arn: summary.arn,
        status: summary.status.clone(),
        created_ms: created,
        pending_steps: vec![],
    };
    let update = if summary.status == "ACTIVE" || summary.status == "UPDATING" {
        let message = format!("stream {} is {}", stream.name, summary.status);
        ConditionUpdate::new(condition::STREAM_READY, "True", Reason::StreamActive, message)
    } else {
        let message = format!("stream {} is {}", stream.name, summary.status);
        ConditionUpdate::new(condition::STREAM_READY, "False", Reason::StreamCreating, message)
    };
    Ok((stream, update))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;
    use crate::desired::PlatformPolicy;

    #[test]
    fn a_refused_on_demand_stream_is_reported_with_the_setting_to_write() {
        let error = |class, code: &str| KinesisError {
            operation: "CreateStream",
            stream: "s".to_owned(),
            region: "eu-west-1".to_owned(),
            class,
            code: format!("{code}: "),
            message: "ShardCount is required".to_owned(),
        };
        let answer = "CreateStream on stream s in eu-west-1: ValidationException: ShardCount is required";
        let hint = ". If the endpoint does not support on-demand streams, write mode: Provisioned and shards in webhooks.stream";
        let invalid = || error(KinesisErrorClass::Invalid, "ValidationException");
        for (name, error, mode, reason, terminal, message) in [
            ("on demand", invalid(), StreamCapacity::OnDemand, Reason::StreamInvalid, true, format!("{answer}{hint}")),
            ("provisioned", invalid(), StreamCapacity::Provisioned(1), Reason::StreamInvalid, true, answer.to_owned()),
            (
                "a failure of another kind",
                error(KinesisErrorClass::Transient, "InternalFailure"),
                StreamCapacity::OnDemand,
                Reason::StreamUnreachable,
                false,
                answer.replace("ValidationException", "InternalFailure"),
            ),
        ] {
            let error = explain_create_failure(error, mode);
            assert_eq!((error.reason, error.terminal, error.message), (reason, terminal, message), "{name}");
        }
    }

    #[test]
    fn a_capacity_that_the_stream_does_not_have_is_pending_with_its_remedy() {
        use StreamCapacity::{OnDemand, Provisioned};
        for (case, wanted, live, says) in [
            ("as wanted", OnDemand, Some(LiveCapacity::OnDemand), ""),
            ("as many shards as wanted", Provisioned(2), Some(LiveCapacity::Provisioned(2)), ""),
            ("an endpoint that reports no mode", Provisioned(2), None, ""),
            ("more shards", Provisioned(4), Some(LiveCapacity::Provisioned(2)), "shards is 4, and the stream has 2"),
            ("another mode", Provisioned(4), Some(LiveCapacity::OnDemand), "or write mode: OnDemand without shards"),
            ("on demand", OnDemand, Some(LiveCapacity::Provisioned(2)), "or write mode: Provisioned and shards: 2"),
        ] {
            let steps = find_pending_steps(wanted, live);
            assert_eq!(steps.len(), usize::from(!says.is_empty()), "{case}: {steps:?}");
            assert!(steps.iter().all(|step| step.contains(says)), "{case}: {steps:?}");
        }
    }

    #[test]
    fn another_name_is_refused_once_the_cluster_has_a_stream() {
        let named = |name: &str| {
            let extra = format!("  webhooks: {{ stream: {{ name: {name} }} }}\n");
            validate_stream(&applied_cluster(&extra), &PlatformPolicy::default()).expect("a stream")
        };
        let known = |arn: &str| StreamStatus { name: "a".to_owned(), arn: arn.to_owned(), ..StreamStatus::default() };
        assert!(ensure_same_stream(&known("arn:a"), &named("a")).is_ok());
        assert!(ensure_same_stream(&known(""), &named("b")).is_ok(), "no stream exists yet");
        let error = ensure_same_stream(&known("arn:a"), &named("b")).expect_err("another name");
        assert!(error.terminal && error.reason == Reason::SpecInvalid && error.message.contains("write a again"));
    }
}
