//! Reconciles the stream: creates, adopts or observes it, and changes its settings; owns `status.stream` and
//! `StreamReady`, and with [`dead_letter_stream`] `DeadLetterReady`. Any stream but the cluster's own is left alone.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::EventType;
use serde_json::{Map, Value};

use super::context::{ControllerContext, SharedContext};
use super::dead_letter_stream;
use super::managed_stream::{StreamFinding, StreamTexts, keep_status};
use super::reconcile_error::ReconcileError;
use super::status::{self, ConditionUpdate, StatusPatch};
use super::stream_request::{StreamRequest, reconcile_stream};
use super::validation::validate_stream;
use crate::api::cluster::{StreamStatus, WebhooksMode};
use crate::api::conditions::condition;
use crate::api::{RealtimeCluster, Reason};
use crate::desired::ValidStream;

/// Conditions that this controller writes.
const OWNED_CONDITIONS: &[&str] = &[condition::STREAM_READY, condition::DEAD_LETTER_READY];
/// Texts of the main stream.
pub const EVENT_STREAM_TEXTS: StreamTexts = StreamTexts {
    condition: condition::STREAM_READY,
    name_field: "webhooks.stream.name",
    purpose: "",
    loss: "its records are lost; it is not created again automatically, since a wrong region or account looks the same. Correct the region or account, or create the stream",
};
/// Time between two reconciles of an active stream; the end of Ready=True triggers an earlier one. AWS limits descriptions
/// per account.
const RESYNC_INTERVAL: Duration = Duration::from_mins(5);
/// Time between two reconciles until the stream is active and has its settings.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Reconciles the stream of one cluster, and returns the time until the next reconcile without a change.
///
/// # Errors
/// The stream cannot be created, adopted, changed or described; the status has the same reason.
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
    let now = Timestamp::now();
    let main = reconcile_main(context, cluster, known, now).await;
    let dead_letter = dead_letter_stream::reconcile(context, cluster, now).await;
    for event in [Some(&main), dead_letter.as_ref()].into_iter().flatten().filter_map(|found| found.event.as_ref()) {
        let note = event.note.clone();
        context.publish_change(cluster, EventType::Normal, event.reason, event.action, note).await;
    }
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

async fn reconcile_main(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    known: StreamStatus,
    now: Timestamp,
) -> StreamFinding {
    // Validated first: an endpoint that is not allowed gets no request.
    let valid = validate_stream(cluster, &context.policy)
        .and_then(|stream| ensure_same_stream(&known, &stream).map(|()| stream));
    let stream = match valid {
        Ok(stream) => stream,
        Err(error) => return StreamFinding::of_error(condition::STREAM_READY, known, error),
    };
    // The name may have been corrected before a stream existed.
    let known = keep_status(known, &stream.name);
    let request = StreamRequest { stream: &stream, goal: stream.goal.clone(), texts: &EVENT_STREAM_TEXTS };
    reconcile_stream(context, cluster, request, known, now).await
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;
    use crate::desired::PlatformPolicy;

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
