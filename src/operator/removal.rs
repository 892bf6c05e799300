//! Takes a deleted cluster down in order: its servers first, while what they need is still there.
//!
//! An API server collects the children of a deleted object in no order. A dispatcher that loses its Role before it has
//! ended cannot write how far it is, and whoever takes the stream back tells everything since again. So a cluster stays
//! until its pods have ended; the rest goes with it, as the API server collects it.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

use super::context::{Context, Stop};
use crate::api::RealtimeCluster;
use crate::desired::build::pod_labels;
use crate::kubernetes::apply;

/// Keeps a cluster until its pods have ended.
pub const FINALIZER: &str = "realtime-operator.dev/servers";

/// Set by who deletes a cluster and wants to keep what it made.
const ORPHAN: &str = "orphan";

/// How long a pod may outlive the end of its grace, in s: one on a node that is gone never ends.
const OVERDUE: i64 = 30;

/// Marks a cluster before anything is made for it. `true` when that changed the object, which must be read again then.
///
/// # Errors
/// The API server does not let us, or does not answer.
pub async fn mark(context: &Context, cluster: &RealtimeCluster) -> Result<bool, Stop> {
    if cluster.finalizers().iter().any(|found| found == FINALIZER) {
        return Ok(false);
    }
    let finalizers = cluster.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
    write(context, cluster, finalizers).await?;
    Ok(true)
}

/// Takes the servers of a deleted cluster away. `None` once they have ended and the cluster may go; else what is waited
/// for.
///
/// # Errors
/// The API server does not let us, or does not answer.
pub async fn take_down(context: &Context, cluster: &RealtimeCluster) -> Result<Option<String>, Stop> {
    let marked = cluster.finalizers().iter().any(|found| found == FINALIZER);
    if !marked {
        return Ok(None);
    }
    if !cluster.finalizers().iter().any(|found| found == ORPHAN) {
        let (namespace, uid) = (cluster.namespace().unwrap_or_default(), cluster.uid().unwrap_or_default());
        let labels = pod_labels(&cluster.name_any());
        context.leading()?;
        apply::prune(&context.client, (&namespace, &labels, &uid), &[("apps/v1", "Deployment")], &[]).await?;
        let api: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
        let pods = api.list(&ListParams::default().labels(&labels)).await;
        let pods = pods.map_err(|error| Stop::call("listing pods", &error))?.items;
        let now = Timestamp::now().as_second();
        let left: Vec<String> = pods.iter().filter(|pod| ends(pod, now)).map(ResourceExt::name_any).collect();
        if !left.is_empty() {
            return Ok(Some(format!("pods that still end: {}", left.join(", "))));
        }
    }
    let finalizers = cluster.finalizers().iter().map(String::as_str).filter(|found| *found != FINALIZER).collect();
    write(context, cluster, finalizers).await?;
    Ok(None)
}

/// Whether this pod is a Deployment's and will still end.
fn ends(pod: &Pod, now: i64) -> bool {
    let replica = pod.owner_references().iter().any(|owner| owner.kind == "ReplicaSet");
    let overdue = pod.metadata.deletion_timestamp.as_ref().is_some_and(|at| now > at.0.as_second() + OVERDUE);
    replica && !overdue
}

async fn write(context: &Context, cluster: &RealtimeCluster, finalizers: Vec<&str>) -> Result<(), Stop> {
    context.leading()?;
    let (name, namespace) = (cluster.name_any(), cluster.namespace().unwrap_or_default());
    let api: Api<RealtimeCluster> = Api::namespaced(context.client.clone(), &namespace);
    // Of the version that was read: another may have set a finalizer meanwhile.
    let patch = json!({
        "metadata": { "resourceVersion": cluster.metadata.resource_version, "finalizers": finalizers }
    });
    let parameters = PatchParams { field_manager: Some(apply::MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch(&name, &parameters, &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(Stop::call("writing the finalizer", &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(owner: &str, deleted: Option<&str>) -> Pod {
        let mut pod = json!({ "metadata": { "name": "p", "ownerReferences": [
            { "apiVersion": "apps/v1", "kind": owner, "name": "o", "uid": "u" }
        ] } });
        if let Some(deleted) = deleted {
            pod["metadata"]["deletionTimestamp"] = json!(deleted);
        }
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn a_cluster_waits_for_the_pods_of_its_deployments_until_they_are_overdue() {
        for (name, pod, now, expected) in [
            ("it runs", pod("ReplicaSet", None), 100, true),
            ("it ends", pod("ReplicaSet", Some("1970-01-01T00:01:00Z")), 60 + OVERDUE, true),
            ("its node is gone", pod("ReplicaSet", Some("1970-01-01T00:01:00Z")), 61 + OVERDUE, false),
            ("someone else made it", pod("Job", None), 100, false),
        ] {
            assert_eq!(ends(&pod, now), expected, "{name}");
        }
    }
}
