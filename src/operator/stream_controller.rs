//! Reconciles the stream: creates it, or adopts the one that this cluster created before; owns `status.stream` and
//! `StreamReady`.
//!
//! A stream belongs to the cluster that its owner tag names: the tag is part of the call that creates the stream, so a
//! stream without the tag was created by somebody else. Any stream but our own is left alone.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::ResourceExt;
use serde_json::{Map, Value};

use super::context::{ControllerContext, SharedContext};
use super::dereference;
use super::reconcile_error::ReconcileError;
use super::status::{self, ConditionUpdate, StatusPatch};
use super::validation::validate_stream;
use crate::api::cluster::{StreamStatus, WebhooksMode};
use crate::api::conditions::condition;
use crate::api::{RealtimeCluster, Reason};
use crate::desired::{StreamCapacity, ValidStream};
use crate::kinesis::{KinesisClient, KinesisError, KinesisErrorClass, LiveCapacity, StreamSummary};

/// Tag with the owner: the UID of this Kubernetes cluster, and the realtime cluster in it.
const OWNER_TAG: &str = "realtime-operator.dev/owner";
/// Tag with the cluster id that the stream's records carry.
const CLUSTER_ID_TAG: &str = "realtime-operator.dev/cluster-id";

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
        write_status(context, cluster, &known, None).await?;
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
    let is_settled = update.status == "True" || update.reason == Reason::Suspended;
    let wait = if is_settled { RESYNC_INTERVAL } else { RECHECK_INTERVAL };
    write_status(context, cluster, &stream, Some(update)).await?;
    result.map(|_| Some(wait))
}

async fn write_status(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    stream: &StreamStatus,
    update: Option<ConditionUpdate>,
) -> Result<(), ReconcileError> {
    let mut fields = Map::new();
    if !stream.name.is_empty() {
        fields.insert("stream".to_owned(), serde_json::to_value(stream).unwrap_or(Value::Null));
    }
    let manager = "realtime-operator-stream";
    let conditions = update.into_iter().collect();
    let part = StatusPatch { manager, owned_conditions: &[condition::STREAM_READY], conditions, fields };
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

fn format_owner(context: &ControllerContext, cluster: &RealtimeCluster) -> String {
    format!("{}/{}", context.kubernetes_uid, super::context::cluster_key(cluster))
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
    let tags = [(OWNER_TAG, format_owner(context, cluster)), (CLUSTER_ID_TAG, known.cluster_id.clone())];
    let tags: BTreeMap<String, String> = tags.map(|(name, value)| (name.to_owned(), value)).into();
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
    let cluster_id =
        if same { known.cluster_id.clone() } else { claim_stream(context, cluster, client, &known.name).await? };
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

/// Returns the cluster id that the stream's records carry.
async fn claim_stream(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    client: &KinesisClient,
    name: &str,
) -> Result<String, ReconcileError> {
    let tags = client.list_tags().await?;
    read_cluster_id(&tags, &format_owner(context, cluster)).map_err(|owner| {
        let message = format!(
            "stream {name} already exists and {owner}: it was not changed. Choose another webhooks.stream.name, or delete the stream if nobody needs it"
        );
        ReconcileError::terminal(Reason::StreamNotOurs, message)
    })
}

/// Reads the id of the cluster that created the stream, if the owner tag is ours; otherwise says as a clause whose it is.
fn read_cluster_id(tags: &BTreeMap<String, String>, ours: &str) -> Result<String, String> {
    match (tags.get(OWNER_TAG), tags.get(CLUSTER_ID_TAG)) {
        (Some(owner), Some(id)) if owner == ours && !id.is_empty() => Ok(id.clone()),
        (Some(owner), _) if owner == ours => Err(format!("has our owner tag, but no tag {CLUSTER_ID_TAG}")),
        (Some(owner), _) => Err(format!("belongs to {owner}")),
        (None, _) => Err("carries no tag of ours".to_owned()),
    }
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

    #[test]
    fn a_stream_is_ours_by_its_tags_alone() {
        for (name, tags, expected) in [
            ("our tags", &[(OWNER_TAG, "k/n/eu"), (CLUSTER_ID_TAG, "u1")][..], Ok("u1")),
            ("another cluster's", &[(OWNER_TAG, "k/n/us"), (CLUSTER_ID_TAG, "u1")], Err("belongs to k/n/us")),
            ("the same name in another Kubernetes", &[(OWNER_TAG, "x/n/eu")], Err("belongs to x/n/eu")),
            ("no tag", &[], Err("carries no tag of ours")),
            ("tags of somebody else", &[("team", "a"), (CLUSTER_ID_TAG, "u1")], Err("carries no tag of ours")),
            (
                "a part of our tags",
                &[(OWNER_TAG, "k/n/eu")],
                Err("has our owner tag, but no tag realtime-operator.dev/cluster-id"),
            ),
        ] {
            let tags = tags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let found = read_cluster_id(&tags, "k/n/eu");
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{name}");
        }
    }
}
