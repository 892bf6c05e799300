//! The watches: each keeps an index of live objects up to date, and requeues the clusters that a change concerns.
//!
//! One stream per kind, each with its own back-off, so that one kind that cannot be watched delays no other.

use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::{DeserializeGuard, GroupVersionKind, TypeMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt};
use tokio::sync::mpsc;

use super::context::ControllerContext;
use super::live_objects::INSTANCE_LABEL;
use super::metrics::ControllerName;
use super::object_index::{ObjectChange, ObjectIndex};
use super::unreadable_objects::{LastVersion, keep_readable};
use crate::api::conditions::condition;
use crate::api::{RealtimeApp, RealtimeCluster, RealtimeMigration};
use crate::desired::render::{REGISTRY_ANNOTATION, WATCHED_KINDS};
use crate::kubernetes::scope::WatchRange;
use crate::kubernetes::watch::{build_api, open_watch};

/// Label selector of the children of all clusters.
pub const CHILDREN_SELECTOR: &str = "app.kubernetes.io/managed-by=realtime-operator";

/// Requests that one controller's queue holds; a watch whose request finds no room waits.
const REQUEUE_BUFFER_LEN: usize = 1024;

fn build_dynamic_api(client: &Client, range: &WatchRange, resource: &ApiResource) -> Api<DynamicObject> {
    match range {
        WatchRange::All => Api::all_with(client.clone(), resource),
        WatchRange::Namespace(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
    }
}

/// A queue of requests to reconcile a cluster.
pub type RequeueSender = mpsc::Sender<ObjectRef<RealtimeCluster>>;

/// The queues of the controllers that watches requeue clusters for.
#[derive(Clone)]
pub struct ControllerQueues {
    pub workload: RequeueSender,
    pub apps: RequeueSender,
    pub gate: RequeueSender,
}

/// The other ends of [`ControllerQueues`].
pub struct QueueReceivers {
    pub workload: mpsc::Receiver<ObjectRef<RealtimeCluster>>,
    pub apps: mpsc::Receiver<ObjectRef<RealtimeCluster>>,
    pub gate: mpsc::Receiver<ObjectRef<RealtimeCluster>>,
}

impl ControllerQueues {
    pub fn new() -> (Self, QueueReceivers) {
        let (workload, workload_receiver) = mpsc::channel(REQUEUE_BUFFER_LEN);
        let (apps, apps_receiver) = mpsc::channel(REQUEUE_BUFFER_LEN);
        let (gate, gate_receiver) = mpsc::channel(REQUEUE_BUFFER_LEN);
        let receivers = QueueReceivers { workload: workload_receiver, apps: apps_receiver, gate: gate_receiver };
        (Self { workload, apps, gate }, receivers)
    }
}

/// Runs the watches of apps, moves, pods and children in one range of the scope. Never ends by itself.
pub async fn run_watches(
    client: &Client,
    range: &WatchRange,
    context: &ControllerContext,
    clusters: &Store<RealtimeCluster>,
    queues: &ControllerQueues,
) {
    let (live, unreadable) = (&context.live, &context.unreadable);
    let labelled = || watcher::Config::default().labels(CHILDREN_SELECTOR);
    let apps = open_watch(build_api::<DeserializeGuard<RealtimeApp>>(client, range), watcher::Config::default());
    // Removing an app ends its sessions: one that becomes unreadable is served as it was.
    let find = |namespace: &str, name: &str| live.apps.get(namespace, name).map(|app| (*app).clone());
    let apps = keep_readable(apps, unreadable.clone(), LastVersion::Kept, find);
    let apps = follow(("realtimeapps", range), apps.modify(trim_metadata), &live.apps, |change| {
        let references = if is_spec_change(&change) { find_clusters_of_app(&change, clusters) } else { vec![] };
        async move {
            for reference in references {
                send(&queues.apps, &reference).await;
                send(&queues.gate, &reference).await;
            }
        }
    });
    let moves = open_watch(build_api::<DeserializeGuard<RealtimeMigration>>(client, range), watcher::Config::default());
    // A record must not stay for want of its move.
    let find = |namespace: &str, name: &str| live.migrations.get(namespace, name).map(|found| (*found).clone());
    let moves = keep_readable(moves, unreadable.clone(), LastVersion::Kept, find);
    let moves = follow(("realtimemigrations", range), moves.modify(trim_metadata), &live.migrations, |_| async {});
    let pods = open_watch(build_api::<Pod>(client, range), labelled()).modify(trim_metadata);
    let pods = follow(("pods", range), pods, &live.pods, |change| async move {
        let Some(reference) = change.object().and_then(|pod| find_cluster_by_label(&**pod)) else { return };
        send(&queues.gate, &reference).await;
        // A new pod has to load the registry at once.
        if change.after.as_ref().is_some_and(|pod| !pod.annotations().contains_key(REGISTRY_ANNOTATION)) {
            send(&queues.apps, &reference).await;
        }
    });
    let children = WATCHED_KINDS.into_iter().filter_map(|(version, kind)| {
        let types = TypeMeta { api_version: version.to_owned(), kind: kind.to_owned() };
        let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types).ok()?);
        let api = build_dynamic_api(client, range, &resource);
        let index = live.children(kind)?;
        let complete = move |object: &mut DynamicObject| {
            // Items of a listing carry no kind.
            object.types = Some(types.clone());
            // The managers of a Deployment's fields are named in Events.
            if kind != "Deployment" {
                trim_metadata(object);
            }
        };
        Some(follow((kind, range), open_watch(api, labelled()).modify(complete), index, |change| async move {
            let Some(reference) = change.object().and_then(|object| find_cluster_by_label(&**object)) else { return };
            send(&queues.workload, &reference).await;
        }))
    });
    tokio::join!(apps, moves, pods, futures::future::join_all(children));
}

/// Follows one watch, and keeps its index up to date before it reports a change.
async fn follow<K, F>(
    (kind, range): (&str, &WatchRange),
    events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    index: &ObjectIndex<K>,
    report: impl Fn(ObjectChange<K>) -> F,
) where
    K: ResourceExt,
    F: Future<Output = ()>,
{
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                for change in index.apply_event(range, event) {
                    report(change).await;
                }
            }
            Err(error) => tracing::warn!(kind, %range, %error, "watch failed: it is opened again after a back-off"),
        }
    }
}

fn trim_metadata<K: ResourceExt>(object: &mut K) {
    object.managed_fields_mut().clear();
}

async fn send(queue: &RequeueSender, reference: &ObjectRef<RealtimeCluster>) {
    // A closed queue means that the operator ends.
    let _ = queue.send(reference.clone()).await;
}

/// Whether a change concerns more than the status.
fn is_spec_change<K: ResourceExt>(change: &ObjectChange<K>) -> bool {
    let version = |object: &Arc<K>| {
        let metadata = object.meta();
        (metadata.uid.clone(), metadata.generation, metadata.deletion_timestamp.is_some())
    };
    change.before.as_ref().map(version) != change.after.as_ref().map(version)
}

fn find_clusters_of_app(
    change: &ObjectChange<RealtimeApp>,
    clusters: &Store<RealtimeCluster>,
) -> Vec<ObjectRef<RealtimeCluster>> {
    let namespace = change.object().and_then(|app| app.namespace());
    let found = clusters.state_filter(|cluster| cluster.namespace() == namespace);
    found.iter().map(|cluster| ObjectRef::from_obj(&**cluster)).collect()
}

/// Finds the cluster of a child by its labels.
fn find_cluster_by_label<K: ResourceExt>(object: &K) -> Option<ObjectRef<RealtimeCluster>> {
    let name = object.labels().get(INSTANCE_LABEL)?;
    Some(ObjectRef::new(name).within(&object.namespace()?))
}

impl ControllerName {
    /// Digest of the parts of a cluster that this controller acts on: only a change of it starts a reconcile.
    pub fn digest_inputs(self, cluster: &RealtimeCluster) -> u64 {
        let mut hasher = DefaultHasher::new();
        let metadata = &cluster.metadata;
        (&metadata.uid, metadata.generation, metadata.deletion_timestamp.is_some()).hash(&mut hasher);
        (&metadata.finalizers, &metadata.annotations).hash(&mut hasher);
        let status = cluster.status.as_ref();
        if let (Self::Workload | Self::Apps | Self::Gate, Some(stream)) = (self, status.and_then(|s| s.stream.as_ref()))
        {
            (&stream.name, &stream.arn, &stream.cluster_id, stream.created_ms).hash(&mut hasher);
        }
        let condition = |kind: &str| {
            status.and_then(|status| status.find_condition(kind)).map(|found| {
                (found.status.clone(), found.reason.clone(), found.message.clone(), found.observed_generation)
            })
        };
        match self {
            // A cluster that stops working is a reason to look at its stream before the next resync.
            Self::Stream => condition(condition::READY).map(|(status, ..)| status).hash(&mut hasher),
            Self::Gate => {
                condition(condition::STREAM_READY).hash(&mut hasher);
                condition(condition::WORKLOADS_AVAILABLE).hash(&mut hasher);
            }
            Self::Workload | Self::Apps | Self::Migration => {}
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::cluster::{RealtimeClusterStatus, StreamStatus};
    use crate::api::fixture::applied_cluster;
    use ControllerName::{Apps, Gate, Stream, Workload};

    #[test]
    fn a_status_write_starts_only_the_controllers_that_read_the_changed_part() {
        let change = |edit: &dyn Fn(&mut RealtimeCluster)| {
            let before = RealtimeCluster { status: Some(RealtimeClusterStatus::default()), ..applied_cluster("") };
            let mut after = before.clone();
            edit(&mut after);
            let started =
                |controller: &ControllerName| controller.digest_inputs(&before) != controller.digest_inputs(&after);
            [Stream, Workload, Apps, Gate].into_iter().filter(started).collect::<Vec<_>>()
        };
        let with_condition = |kind: &'static str| {
            move |cluster: &mut RealtimeCluster| {
                let condition = serde_json::json!({
                    "type": kind, "status": "False", "reason": "X", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
                });
                let condition = serde_json::from_value(condition).expect("a condition");
                cluster.status.as_mut().expect("a status").conditions.push(condition);
            }
        };
        let spec = |cluster: &mut RealtimeCluster| cluster.metadata.generation = Some(9);
        let observed = |cluster: &mut RealtimeCluster| {
            cluster.status.as_mut().expect("a status").observed_generation = 9;
        };
        let stream = |cluster: &mut RealtimeCluster| {
            let stream = StreamStatus { arn: "a".to_owned(), ..StreamStatus::default() };
            cluster.status.as_mut().expect("a status").stream = Some(stream);
        };
        assert_eq!(change(&spec), [Stream, Workload, Apps, Gate]);
        assert_eq!(change(&observed), []);
        assert_eq!(change(&stream), [Workload, Apps, Gate]);
        assert_eq!(change(&with_condition(condition::READY)), [Stream]);
        assert_eq!(change(&with_condition(condition::STREAM_READY)), [Gate]);
        assert_eq!(change(&with_condition(condition::WORKLOADS_AVAILABLE)), [Gate]);
        assert_eq!(change(&with_condition(condition::APPS_SYNCED)), []);
    }
}
