//! Connects to one of a cluster's streams, and reconciles it for its controller.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::context::{ControllerContext, object_key};
use super::dereference;
use super::managed_stream::{ManagedStream, StreamFinding, StreamTexts};
use super::stream_ownership::StreamOwner;
use crate::api::RealtimeCluster;
use crate::api::cluster::StreamStatus;
use crate::desired::{StreamGoal, ValidStream};

/// One of a cluster's streams, as the manifest asks for it.
pub struct StreamRequest<'a> {
    /// Its name, its access and the capacity with which it is created.
    pub stream: &'a ValidStream,
    /// The settings that it should have.
    pub goal: StreamGoal,
    /// The texts in which it differs from the other stream.
    pub texts: &'static StreamTexts,
}

/// Reconciles one of the cluster's streams, with the operator's identity or the cluster's keys.
pub async fn reconcile_stream(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    request: StreamRequest<'_>,
    known: StreamStatus,
    now: Timestamp,
) -> StreamFinding {
    let StreamRequest { stream, goal, texts } = request;
    let client = match dereference::read_cluster_secrets(context, cluster).await {
        Ok(secrets) => dereference::connect_stream(context, stream, &secrets).await,
        Err(error) => Err(error),
    };
    let client = match client {
        Ok(client) => client,
        Err(error) => return StreamFinding::of_error(texts.condition, known, error),
    };
    let managed = ManagedStream {
        client: &client,
        texts,
        owner: find_owner(context, cluster),
        goal,
        created_capacity: stream.capacity,
        endpoint: stream.endpoint_url.as_deref(),
        is_suspended: cluster.spec.suspend,
        ensure_leader: &|| context.ensure_leader(),
    };
    managed.reconcile(known, now).await
}

/// The owner in the tags of the cluster's streams.
pub fn find_owner(context: &ControllerContext, cluster: &RealtimeCluster) -> StreamOwner {
    StreamOwner {
        tag: format!("{}/{}", context.kubernetes_uid, object_key(cluster)),
        uid: cluster.uid().unwrap_or_default(),
    }
}
