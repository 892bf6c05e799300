//! Clients and state shared by the controllers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, Resource};
use tokio_util::sync::CancellationToken;

use super::live_objects::LiveObjects;
use super::metrics::OperatorMetrics;
use super::reconcile_error::ReconcileError;
use super::registry_histories::RegistryHistories;
use super::rendered_clusters::RenderedClusters;
use super::secret_reader::SecretReader;
use super::unreadable_objects::UnreadableObjects;
use crate::api::{RealtimeCluster, Reason};
use crate::desired::{KnownInjectors, PlatformPolicy, ServerImage};
use crate::kinesis::KinesisConnections;
use crate::kubernetes::scope::WatchScope;
use crate::prober::{JourneyBudget, WebhookReceiver};
use crate::process::heartbeat::Heartbeats;
use crate::process::locks::lock_unpoisoned;

/// Bounds one reconcile, so that a call that hangs cannot hold one of the controller's workers for ever.
pub const RECONCILE_TIMEOUT: Duration = Duration::from_secs(90);

/// Clients and state shared by all controllers.
pub struct ControllerContext {
    /// Client for calls, not for watches: each call is answered within seconds or fails.
    pub client: Client,
    /// Publishes Events; repeated ones within some minutes become one, with the note of the first.
    pub recorder: Recorder,
    /// The author of the Events.
    pub reporter: Reporter,
    /// Whether this process may still write: false from the moment at which another process may hold the lease.
    pub may_write: Box<dyn Fn() -> bool + Send + Sync>,
    /// Receives the webhooks of the journeys.
    pub receiver: WebhookReceiver,
    /// Paces the journeys of all clusters.
    pub journeys: JourneyBudget,
    /// Age from which on a proof of a former leader does not count.
    pub inherited_evidence_max: Duration,
    /// `HOST:PORT` under which dispatchers reach the receiver.
    pub receiver_address: String,
    /// Address of the operator's pod, from which journeys begin.
    pub own_address: IpAddr,
    /// Identifies this Kubernetes cluster: the UID of its `kube-system` namespace.
    pub kubernetes_uid: String,
    /// The live objects of the watched kinds.
    pub live: LiveObjects,
    /// Reads Secrets, which are not watched.
    pub secrets: SecretReader,
    /// The rendering of each cluster, shared by the controllers.
    pub rendered: RenderedClusters,
    /// Connections to Kinesis, shared by all clusters of one region, endpoint and identity.
    pub kinesis: KinesisConnections,
    /// The versions of each cluster's app registry.
    pub registries: RegistryHistories,
    /// The operator's own image, which a new cluster runs by default.
    pub own_image: ServerImage,
    /// The images, endpoints, regions and roles that clusters may name.
    pub policy: PlatformPolicy,
    /// The injectors whose additions to pods are accepted.
    pub known_injectors: KnownInjectors,
    /// Namespaces whose clusters are reconciled.
    pub scope: WatchScope,
    /// The objects that this version cannot read.
    pub unreadable: UnreadableObjects,
    /// The metrics of the process.
    pub metrics: Arc<OperatorMetrics>,
    /// The tasks on which the process depends.
    pub heartbeats: Heartbeats,
    /// Stops the controllers and all that they started.
    pub stop: CancellationToken,
    /// Consecutive failures by controller and object.
    pub failures: Mutex<HashMap<(&'static str, String), u32>>,
}

impl ControllerContext {
    /// Refuses to write once another process may lead. Called right before every write.
    ///
    /// # Errors
    /// The lease's renew deadline has passed.
    pub fn ensure_leader(&self) -> Result<(), ReconcileError> {
        if (self.may_write)() {
            Ok(())
        } else {
            Err(ReconcileError::transient(
                Reason::ApplyFailed,
                "this operator lost the lease and must not write; the new leader continues",
            ))
        }
    }

    /// Counts a failure and returns the back-off, which doubles with each consecutive failure.
    pub fn count_failure<K: Resource>(&self, controller: &'static str, object: &K, error: &ReconcileError) -> Duration {
        let mut failures = lock_unpoisoned(&self.failures);
        let count = failures.entry((controller, object_key(object))).or_default();
        let wait = error.backoff(*count);
        *count += 1;
        wait
    }

    /// Resets the back-off after a successful reconcile.
    pub fn reset_failures<K: Resource>(&self, controller: &'static str, object: &K) {
        let mut failures = lock_unpoisoned(&self.failures);
        failures.remove(&(controller, object_key(object)));
    }

    /// Publishes a Kubernetes Event about an object, and logs it. An Event that cannot be written is only logged. Within some
    /// minutes an Event of the same reason and action keeps its first note.
    pub async fn publish_event<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        kind: EventType,
        reason: &str,
        action: &str,
        note: String,
    ) {
        publish_with(&self.recorder, object, kind, (reason, action), note).await;
    }

    /// Publishes a new Event for each call, so that every note is kept: the shared recorder would count it as a repetition of a
    /// former Event of the same reason and action. For changes only, since repetitions are written one by one.
    pub async fn publish_change<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        kind: EventType,
        reason: &str,
        action: &str,
        note: String,
    ) {
        // A new recorder knows no former Event.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        publish_with(&recorder, object, kind, (reason, action), note).await;
    }
}

async fn publish_with<K: Resource<DynamicType = ()>>(
    recorder: &Recorder,
    object: &K,
    kind: EventType,
    (reason, action): (&str, &str),
    note: String,
) {
    let note: String = note.chars().take(1000).collect();
    tracing::info!(object = object_key(object), reason, action, note, "publishing Event");
    let (reason, action) = (reason.to_owned(), action.to_owned());
    let event = Event { type_: kind, reason, note: Some(note), action, secondary: None };
    if let Err(error) = recorder.publish(&event, &object.object_ref(&())).await {
        tracing::warn!(%error, "Event could not be written");
    }
}

/// Key of an object of a namespace in maps and logs: `namespace/name`.
#[must_use]
pub fn object_key<K: Resource>(object: &K) -> String {
    let metadata = object.meta();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", text(&metadata.namespace), text(&metadata.name))
}

/// Reference of a cluster for a controller's queue.
#[must_use]
pub fn cluster_ref(cluster: &RealtimeCluster) -> ObjectRef<RealtimeCluster> {
    ObjectRef::from_obj(cluster)
}

pub type SharedContext = Arc<ControllerContext>;
