//! Clients and state shared by the controllers, and the error that ends a reconcile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, Resource};

use super::live_objects::LiveObjects;
use super::registry_histories::RegistryHistories;
use super::rendered_clusters::RenderedClusters;
use super::secret_reader::SecretReader;
use crate::api::{RealtimeCluster, Reason};
use crate::kinesis::{KinesisConnections, KinesisError};
use crate::kubernetes::apply::ApplyError;
use crate::prober::WebhookReceiver;

/// Bounds one reconcile, so that a call that hangs cannot hold one of the controller's workers for ever.
pub const RECONCILE_TIMEOUT: Duration = Duration::from_secs(90);

/// First back-off after a failure; it doubles with each further failure.
const RETRY_MIN_BACKOFF: Duration = Duration::from_millis(500);

/// Longest back-off for an error that a user fixes with kubectl: the controller gets no event of the fix, and a retry
/// costs little.
const USER_FIX_BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Longest back-off for any other error: AWS limits the rate of calls.
const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Clients and state shared by all controllers.
pub struct ControllerContext {
    /// Client for calls, not for watches: each call is answered within seconds or fails.
    pub client: Client,
    pub recorder: Recorder,
    /// Whether this process may still write: false from the moment at which another process may hold the lease.
    pub may_write: Box<dyn Fn() -> bool + Send + Sync>,
    /// Receives the webhooks of the journeys.
    pub receiver: WebhookReceiver,
    /// `HOST:PORT` under which dispatchers reach the receiver.
    pub receiver_address: String,
    /// Identifies this Kubernetes cluster: the UID of its `kube-system` namespace.
    pub kubernetes_uid: String,
    /// The live objects of the watched kinds.
    pub live: LiveObjects,
    /// Reads Secrets, which are not watched.
    pub secrets: SecretReader,
    /// The rendered clusters.
    pub rendered: RenderedClusters,
    /// Connections to Kinesis, shared by all clusters of one region, endpoint and identity.
    pub kinesis: KinesisConnections,
    /// The versions of each cluster's app registry.
    pub registries: RegistryHistories,
    /// Consecutive failures by controller and object.
    pub failures: Mutex<HashMap<(&'static str, String), u32>>,
}

/// An error that ends a reconcile early.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct ReconcileError {
    pub reason: Reason,
    /// One line, with the remedy.
    pub message: String,
    /// Whether only a user can fix it.
    pub terminal: bool,
    /// Whether the object changed since it was read: then the reconcile is repeated, and no failure is counted.
    pub is_conflict: bool,
}

impl ReconcileError {
    /// An error that may resolve without a user.
    pub fn transient(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), terminal: false, is_conflict: false }
    }

    /// An error that only a user can fix.
    pub fn terminal(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), terminal: true, is_conflict: false }
    }

    /// Longest back-off before the next reconcile after this error.
    fn backoff_max(&self) -> Duration {
        match self.reason {
            Reason::ChildNotOurs | Reason::RollingOut | Reason::SecretMissing | Reason::StreamCreating => {
                USER_FIX_BACKOFF_MAX
            }
            _ => RETRY_BACKOFF_MAX,
        }
    }

    /// Classifies a failed call to the API server.
    pub fn from_call(operation: &str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let reason = if status.is_forbidden() { Reason::AccessDenied } else { Reason::ApplyFailed };
                let late = status.is_conflict();
                Self { is_conflict: late, ..Self::transient(reason, format!("{operation}: {}", status.message)) }
            }
            _ => Self::transient(Reason::ApplyFailed, format!("{operation}: {error}")),
        }
    }
}

impl From<ApplyError> for ReconcileError {
    fn from(error: ApplyError) -> Self {
        match &error {
            ApplyError::NotOurs { .. } => Self::terminal(Reason::ChildNotOurs, error.to_string()),
            ApplyError::Api { operation, error } => Self::from_call(operation, error),
            ApplyError::Malformed(_) => Self::transient(Reason::ApplyFailed, error.to_string()),
        }
    }
}

impl From<KinesisError> for ReconcileError {
    fn from(error: KinesisError) -> Self {
        use crate::kinesis::KinesisErrorClass;
        match error.class {
            KinesisErrorClass::Denied => Self::terminal(Reason::AccessDenied, error.to_string()),
            KinesisErrorClass::Invalid => Self::terminal(Reason::StreamInvalid, error.to_string()),
            KinesisErrorClass::NotFound => Self::transient(Reason::StreamMissing, error.to_string()),
            _ => Self::transient(Reason::StreamUnreachable, error.to_string()),
        }
    }
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
    pub fn count_failure(
        &self,
        controller: &'static str,
        cluster: &RealtimeCluster,
        error: &ReconcileError,
    ) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry((controller, cluster_key(cluster))).or_default();
        let wait = RETRY_MIN_BACKOFF.saturating_mul(2_u32.saturating_pow((*count).min(10)));
        *count += 1;
        wait.min(error.backoff_max())
    }

    /// Resets the back-off after a successful reconcile.
    pub fn reset_failures(&self, controller: &'static str, cluster: &RealtimeCluster) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(&(controller, cluster_key(cluster)));
    }

    /// Publishes a Kubernetes Event about a cluster, and logs it. An Event that cannot be written is only logged.
    pub async fn publish_event(
        &self,
        cluster: &RealtimeCluster,
        kind: EventType,
        reason: &str,
        action: &str,
        note: String,
    ) {
        let note: String = note.chars().take(1000).collect();
        tracing::info!(cluster = cluster_key(cluster), reason, action, note, "publishing Event");
        let (reason, action) = (reason.to_owned(), action.to_owned());
        let event = Event { type_: kind, reason, note: Some(note), action, secondary: None };
        if let Err(error) = self.recorder.publish(&event, &cluster.object_ref(&())).await {
            tracing::warn!(%error, "Event could not be written");
        }
    }
}

/// Key of a cluster in maps and logs: `namespace/name`.
#[must_use]
pub fn cluster_key(cluster: &RealtimeCluster) -> String {
    let metadata = &cluster.metadata;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", text(&metadata.namespace), text(&metadata.name))
}

/// Reference of a cluster for a controller's queue.
#[must_use]
pub fn cluster_ref(cluster: &RealtimeCluster) -> ObjectRef<RealtimeCluster> {
    ObjectRef::from_obj(cluster)
}

pub type SharedContext = Arc<ControllerContext>;
