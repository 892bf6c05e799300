//! Reconciles the stream for events that could not be delivered, with the management of the main stream.
//!
//! Its failure is `DeadLetterReady=False` and nothing else: events are delivered without it, and dispatchers keep their
//! letters until it can be written.

use k8s_openapi::jiff::Timestamp;

use super::context::ControllerContext;
use super::managed_stream::{StreamFinding, StreamTexts, keep_status};
use super::stream_request::{StreamRequest, reconcile_stream};
use super::validation::validate_stream;
use crate::api::RealtimeCluster;
use crate::api::conditions::condition;
use crate::desired::StreamCapacity;

/// Texts of the dead-letter stream.
pub const DEAD_LETTER_STREAM_TEXTS: StreamTexts = StreamTexts {
    condition: condition::DEAD_LETTER_READY,
    name_field: "webhooks.deadLetter.name",
    purpose: " for dead letters",
    loss: "its letters are lost; it is not created again automatically. Correct the region or account, create the stream, or write another webhooks.deadLetter.name",
};

/// Reconciles the stream; `None` if the manifest asks for none.
pub async fn reconcile(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    now: Timestamp,
) -> Option<StreamFinding> {
    let status = cluster.status.as_ref();
    // An adopted main stream keeps the name that an earlier cluster of this name gave it.
    let mut stream = validate_stream(cluster, &context.policy).ok()?;
    if let Some(main) = status.and_then(|status| status.stream.as_ref()).filter(|main| !main.name.is_empty()) {
        stream.name = main.name.as_str().into();
    }
    let (name, wanted) = (stream.dead_letter_name()?, stream.dead_letter.clone()?);
    let known = status.and_then(|status| status.dead_letter_stream.clone()).unwrap_or_default();
    let known = keep_status(known, &name);
    let goal = stream.goal.of_dead_letters(wanted.shards, wanted.retention_hours);
    stream.name = name;
    stream.capacity = StreamCapacity::Provisioned(wanted.shards);
    let request = StreamRequest { stream: &stream, goal, texts: &DEAD_LETTER_STREAM_TEXTS };
    Some(reconcile_stream(context, cluster, request, known, now).await)
}
