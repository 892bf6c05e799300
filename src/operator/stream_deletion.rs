//! Deletes the stream of a deleted cluster, if the manifest says so in two words.

use kube::runtime::events::EventType;

use super::context::ControllerContext;
use super::dereference;
use super::reconcile_error::ReconcileError;
use super::stream_ownership::StreamOwner;
use super::stream_request::find_owner;
use super::validation::validate_stream;
use crate::api::RealtimeCluster;
use crate::api::cluster::{RealtimeClusterStatus, StreamStatus};
use crate::kinesis::{KinesisClient, KinesisErrorClass};

/// Deletes the streams of a deleted cluster whose pods have ended. `None` once they are gone, or if the manifest keeps them;
/// otherwise the line for which the deletion waits. An error is published as an Event, since a deleted cluster has no condition
/// for it.
///
/// # Errors
/// A Secret is missing, or a call to Kinesis failed.
pub async fn delete_streams(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
) -> Result<Option<String>, ReconcileError> {
    // A manifest that is invalid keeps its streams.
    let Ok(valid) = validate_stream(cluster, &context.policy) else { return Ok(None) };
    let Some(status) = cluster.status.as_ref().filter(|_| valid.goal.is_deleted_with_cluster) else { return Ok(None) };
    let RealtimeClusterStatus { stream, dead_letter_stream, .. } = status;
    let known: Vec<&StreamStatus> =
        [stream, dead_letter_stream].into_iter().flatten().filter(|stream| !stream.arn.is_empty()).collect();
    let secrets = dereference::read_cluster_secrets(context, cluster).await?;
    let client = dereference::connect_stream(context, &valid, &secrets).await?;
    for known in known {
        context.ensure_leader()?;
        let owner = find_owner(context, cluster);
        match delete_stream_of(&client.of_stream(known.name.as_str().into()), known, &owner).await {
            Ok(None) => {}
            Ok(waiting) => return Ok(waiting),
            Err(error) => {
                let note = format!("{error}. Write deletionPolicy: Retain to keep the stream and let the cluster go");
                let (kind, reason) = (EventType::Warning, "StreamNotDeleted");
                context.publish_event(cluster, kind, reason, "Delete", note).await;
                return Err(error);
            }
        }
    }
    Ok(None)
}

/// Deletes the stream that the status describes. `None` once it is gone, or if it is not the cluster's own: another one of the
/// same name, or one whose tags name another owner. Otherwise the line for which the deletion waits.
///
/// # Errors
/// A call to Kinesis failed.
pub async fn delete_stream_of(
    client: &KinesisClient,
    known: &StreamStatus,
    owner: &StreamOwner,
) -> Result<Option<String>, ReconcileError> {
    let summary = match client.describe_stream().await {
        Ok(summary) => summary,
        Err(error) if error.class == KinesisErrorClass::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if known.arn != summary.arn || u64::try_from(known.created_ms) != Ok(summary.created_ms) {
        return Ok(None);
    }
    match client.list_tags().await {
        Ok(tags) if owner.owns(&tags) => {}
        Ok(_) => return Ok(None),
        Err(error) if error.class == KinesisErrorClass::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let waiting = format!("waiting for stream {} to be deleted", client.stream());
    match summary.status.as_str() {
        // Kinesis refuses to delete a stream that it creates.
        "DELETING" | "CREATING" => Ok(Some(waiting)),
        _ => match client.delete_stream().await {
            Ok(()) => Ok(Some(waiting)),
            Err(error) if error.class == KinesisErrorClass::Busy => Ok(Some(waiting)),
            Err(error) if error.class == KinesisErrorClass::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        },
    }
}
