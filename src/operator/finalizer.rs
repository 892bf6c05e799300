//! Deletes a cluster in order: its servers first, while the objects that they need still exist.
//!
//! The garbage collector deletes the children of an object in no order. A dispatcher that loses its Role before it has
//! ended cannot write its checkpoint, and a later cluster that adopts the stream sends every webhook since again. So a
//! finalizer keeps the cluster until its pods have ended; the garbage collector deletes the rest.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::context::ControllerContext;
use super::reconcile_error::ReconcileError;
use super::stream_deletion::delete_streams;
use crate::api::migration::MigrationPhase;
use crate::api::{RealtimeCluster, RealtimeMigration};
use crate::config::ServerKind;
use crate::desired::render::pod_labels;
use crate::kubernetes::apply;

/// Finalizer that keeps a cluster until its pods have ended.
pub const SERVERS_FINALIZER: &str = "realtime-operator.dev/servers";

/// Finalizer that the API server sets when a cluster is deleted with `--cascade=orphan`: its children stay.
const ORPHAN_FINALIZER: &str = "orphan";

/// How long to wait for a pod after its termination grace period, in s: a pod on a lost node never ends.
const TERMINATION_OVERRUN_MAX_SECONDS: i64 = 30;

/// Adds the finalizer before any child is created. `true` when that changed the object, which must be read again then.
///
/// # Errors
/// The API server refuses the call or does not answer.
pub async fn add_finalizer(context: &ControllerContext, cluster: &RealtimeCluster) -> Result<bool, ReconcileError> {
    if cluster.finalizers().iter().any(|found| found == SERVERS_FINALIZER) {
        return Ok(false);
    }
    let finalizers = cluster.finalizers().iter().map(String::as_str).chain([SERVERS_FINALIZER]).collect();
    patch_finalizers(context, cluster, finalizers).await?;
    Ok(true)
}

/// Deletes the Deployments of a deleted cluster. `None` once their pods have ended and the finalizer is removed, else
/// the pods that still run.
///
/// # Errors
/// The API server refuses the call or does not answer.
pub async fn finalize_cluster(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
) -> Result<Option<String>, ReconcileError> {
    let marked = cluster.finalizers().iter().any(|found| found == SERVERS_FINALIZER);
    if !marked {
        return Ok(None);
    }
    if let Some(waiting) = find_move_with_record(context, cluster) {
        return Ok(Some(waiting));
    }
    if !cluster.finalizers().iter().any(|found| found == ORPHAN_FINALIZER) {
        let (namespace, uid) = (cluster.namespace().unwrap_or_default(), cluster.uid().unwrap_or_default());
        let labels = pod_labels(&cluster.name_any());
        context.ensure_leader()?;
        let deployments = context.live.children_of_kind(cluster, "Deployment").into_iter();
        let deployments: Vec<_> = deployments.map(|deployment| (("apps/v1", "Deployment"), deployment)).collect();
        apply::prune_children(&context.client, &deployments, &uid, &[]).await?;
        let api: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
        let pods = api.list(&ListParams::default().labels(&labels)).await;
        let pods = pods.map_err(|error| ReconcileError::from_call("listing pods", &error))?.items;
        let now = Timestamp::now().as_second();
        let left: Vec<String> = pods
            .iter()
            .filter(|pod| is_expected_to_end(pod, &cluster.name_any(), now))
            .map(ResourceExt::name_any)
            .collect();
        if !left.is_empty() {
            return Ok(Some(format!("waiting for pods to terminate: {}", left.join(", "))));
        }
        // After the dispatchers: they send what the edges wrote last.
        if let Some(waiting) = delete_streams(context, cluster).await? {
            return Ok(Some(waiting));
        }
    }
    let finalizers =
        cluster.finalizers().iter().map(String::as_str).filter(|found| *found != SERVERS_FINALIZER).collect();
    patch_finalizers(context, cluster, finalizers).await?;
    Ok(None)
}

/// A move by whose record lookups still lead to the cluster: its servers stay until the move is deleted, which goes back first.
fn find_move_with_record(context: &ControllerContext, cluster: &RealtimeCluster) -> Option<String> {
    let namespace = cluster.namespace().unwrap_or_default();
    let leads_here = |found: &RealtimeMigration| {
        let tracks = found.status.iter().flat_map(|status| &status.tracks);
        found.spec.cluster_ref.name == cluster.name_any()
            && tracks.into_iter().any(|track| track.progress.desired.is_some())
    };
    let found = context.live.migrations.find(&namespace, leads_here).into_iter().next()?;
    let name = found.name_any();
    let is_over = found.status.as_ref().is_some_and(|status| status.phase == MigrationPhase::Completed);
    let delete = format!("`kubectl delete realtimemigration/{name} -n {namespace}`");
    Some(if is_over {
        format!(
            "the record of RealtimeMigration {name} leads clients here: have another record answer, delete this one, then {delete}"
        )
    } else {
        format!("the record of RealtimeMigration {name} leads clients here: {delete} takes it back first")
    })
}

/// Whether a pod belongs to a Deployment of the cluster and is expected to terminate. Its `ReplicaSet`, which may be gone
/// by now, is known by its name.
fn is_expected_to_end(pod: &Pod, cluster: &str, now: i64) -> bool {
    let ours = |name: &str| ServerKind::ALL.iter().any(|server| name.starts_with(&format!("{cluster}-{server}-")));
    let replica = pod.owner_references().iter().any(|owner| owner.kind == "ReplicaSet" && ours(&owner.name));
    let overdue = pod
        .metadata
        .deletion_timestamp
        .as_ref()
        .is_some_and(|at| now > at.0.as_second() + TERMINATION_OVERRUN_MAX_SECONDS);
    replica && !overdue
}

/// Replaces the finalizers of an object in the version that was read: another controller may have added one since.
///
/// # Errors
/// The lease is lost, the object changed, or the API server does not answer.
pub async fn patch_finalizers<K>(
    context: &ControllerContext,
    object: &K,
    finalizers: Vec<&str>,
) -> Result<(), ReconcileError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    context.ensure_leader()?;
    let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
    let api: Api<K> = Api::namespaced(context.client.clone(), &namespace);
    let patch = json!({ "metadata": { "resourceVersion": object.resource_version(), "finalizers": finalizers } });
    let parameters = PatchParams { field_manager: Some(apply::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch(&name, &parameters, &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(ReconcileError::from_call("writing the finalizer", &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod((kind, name): (&str, &str), deleted: Option<&str>) -> Pod {
        let mut pod = json!({ "metadata": { "name": "p", "ownerReferences": [
            { "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u" }
        ] } });
        if let Some(deleted) = deleted {
            pod["metadata"]["deletionTimestamp"] = json!(deleted);
        }
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn a_cluster_waits_for_the_pods_of_its_deployments_until_they_are_overdue() {
        let ours = ("ReplicaSet", "eu-sockjs-1");
        for (name, pod, now, expected) in [
            ("it runs", pod(ours, None), 100, true),
            ("it ends", pod(ours, Some("1970-01-01T00:01:00Z")), 60 + TERMINATION_OVERRUN_MAX_SECONDS, true),
            ("its node is gone", pod(ours, Some("1970-01-01T00:01:00Z")), 61 + TERMINATION_OVERRUN_MAX_SECONDS, false),
            ("a Job made it", pod(("Job", "eu-sockjs-1"), None), 100, false),
            ("another Deployment with these labels made it", pod(("ReplicaSet", "eu-canary-1"), None), 100, false),
        ] {
            assert_eq!(is_expected_to_end(&pod, "eu", now), expected, "{name}");
        }
    }
}
