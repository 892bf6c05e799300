//! Reconciles the stream: creates it, or adopts the one that this cluster created before; owns `status.stream` and
//! `StreamReady`, and with [`dead_letter_stream`] `DeadLetterReady`. Any stream but the cluster's own is left alone.

use std::time::Duration;

use serde_json::{Map, Value};

use super::context::{ControllerContext, SharedContext};
use super::dead_letter_stream;
use super::dereference;
use super::owned_stream::{OwnedStream, StreamFinding, StreamTexts, keep_status};
use super::reconcile_error::ReconcileError;
use super::status::{self, ConditionUpdate, StatusPatch};
use super::validation::validate_stream;
use crate::api::cluster::{StreamStatus, WebhooksMode};
use crate::api::conditions::condition;
use crate::api::{RealtimeCluster, Reason};
use crate::desired::{StreamCapacity, ValidStream};
use crate::kinesis::LiveCapacity;

/// Conditions that this controller writes.
const OWNED_CONDITIONS: &[&str] = &[condition::STREAM_READY, condition::DEAD_LETTER_READY];
/// Texts of the main stream.
const STREAM_TEXTS: StreamTexts = StreamTexts {
    condition: condition::STREAM_READY,
    name_field: "webhooks.stream.name",
    purpose: "",
    loss: "its records are lost; it is not created again automatically, since a wrong region or account looks the same. Correct the region or account, or create the stream",
};
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
    let result = reconcile_stream(context, cluster, known.clone()).await;
    let main = StreamFinding::of_result(condition::STREAM_READY, known, result);
    let dead_letter = dead_letter_stream::reconcile(context, cluster).await;
    let is_settled = main.is_settled() && dead_letter.as_ref().is_none_or(StreamFinding::is_settled);
    let wait = if is_settled { RESYNC_INTERVAL } else { RECHECK_INTERVAL };
    let error = main.error.or_else(|| dead_letter.as_ref().and_then(|found| found.error.clone()));
    write_status(context, cluster, &main.stream, Some(main.update), dead_letter).await?;
    error.map_or(Ok(Some(wait)), Err)
}

async fn write_status(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    stream: &StreamStatus,
    update: Option<ConditionUpdate>,
    dead_letter: Option<StreamFinding>,
) -> Result<(), ReconcileError> {
    let mut fields = Map::new();
    let mut conditions = Vec::from_iter(update);
    if !stream.name.is_empty() {
        fields.insert("stream".to_owned(), serde_json::to_value(stream).unwrap_or(Value::Null));
    }
    if let Some(found) = dead_letter {
        fields.insert("deadLetterStream".to_owned(), serde_json::to_value(found.stream).unwrap_or(Value::Null));
        conditions.push(found.update);
    }
    let manager = "realtime-operator-stream";
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
    let capacity = stream.capacity;
    let owned =
        OwnedStream { context, cluster, client: &client, texts: &STREAM_TEXTS, capacity, retention_hours: None };
    // The name may have been corrected before a stream existed.
    let known = keep_status(known, &stream.name);
    owned.reconcile(known, |live| find_pending_steps(capacity, live.capacity)).await
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;
    use crate::desired::PlatformPolicy;

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
