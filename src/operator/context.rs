//! What every controller works with, and why one stops.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, Resource};

use crate::api::{RealtimeCluster, Reason};
use crate::kinesis::KinesisError;
use crate::kubernetes::apply::ApplyError;
use crate::prober::WebhookReceiver;

/// Longest that one turn of a controller may take.
pub const RECONCILE_TIMEOUT: Duration = Duration::from_secs(90);

/// The shortest wait after a failure.
const RETRY_BACKOFF_MIN: Duration = Duration::from_millis(500);

/// The longest wait for what a person mends with kubectl: nothing tells of it, and to look costs little.
const USER_FIX_BACKOFF_MAX: Duration = Duration::from_secs(5);

/// The longest wait for anything else: AWS counts calls.
const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(30);

/// What every controller works with.
pub struct ControllerContext {
    /// Calls that are answered within seconds or fail.
    pub client: Client,
    /// Tells people.
    pub recorder: Recorder,
    /// Whether this process may still write: false from the moment at which another may have taken over.
    pub may_write: Box<dyn Fn() -> bool + Send + Sync>,
    /// Where webhooks of the journeys arrive.
    pub receiver: WebhookReceiver,
    /// `HOST:PORT` under which dispatchers reach it.
    pub receiver_address: String,
    /// Names this Kubernetes: the UID of its `kube-system` namespace.
    pub kubernetes_uid: String,
    /// Failures in a row, by controller and object.
    pub failures: Mutex<HashMap<(&'static str, String), u32>>,
}

/// Why a controller's turn ended early.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct ReconcileError {
    /// In a word.
    pub reason: Reason,
    /// In a line, with what to do.
    pub message: String,
    /// Whether only a person can go on.
    pub terminal: bool,
    /// Whether the object changed since it was read: then the turn is taken again, and nothing is wrong.
    pub is_conflict: bool,
}

impl ReconcileError {
    /// It may mend itself.
    pub fn transient(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), terminal: false, is_conflict: false }
    }

    /// Only a person can go on.
    pub fn terminal(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), terminal: true, is_conflict: false }
    }

    /// The longest wait until it is looked at again.
    fn backoff_max(&self) -> Duration {
        match self.reason {
            Reason::ChildNotOurs | Reason::RollingOut | Reason::SecretMissing | Reason::StreamCreating => {
                USER_FIX_BACKOFF_MAX
            }
            _ => RETRY_BACKOFF_MAX,
        }
    }

    /// A call that failed.
    pub fn from_call(what: &str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let reason = if status.is_forbidden() { Reason::AccessDenied } else { Reason::ApplyFailed };
                let late = status.is_conflict();
                Self { is_conflict: late, ..Self::transient(reason, format!("{what}: {}", status.message)) }
            }
            _ => Self::transient(Reason::ApplyFailed, format!("{what}: {error}")),
        }
    }
}

impl From<ApplyError> for ReconcileError {
    fn from(error: ApplyError) -> Self {
        match &error {
            ApplyError::NotOurs { .. } => Self::terminal(Reason::ChildNotOurs, error.to_string()),
            ApplyError::Api { what, error } => Self::from_call(what, error),
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
    /// Refuses to write once another may lead. Asked right before every write.
    ///
    /// # Errors
    /// The lease's renew deadline has passed.
    pub fn ensure_leader(&self) -> Result<(), ReconcileError> {
        if (self.may_write)() {
            Ok(())
        } else {
            Err(ReconcileError::transient(Reason::ApplyFailed, "this operator no longer leads: another writes"))
        }
    }

    /// How long to wait after a failure: longer after each.
    pub fn count_failure(
        &self,
        controller: &'static str,
        cluster: &RealtimeCluster,
        stop: &ReconcileError,
    ) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry((controller, cluster_key(cluster))).or_default();
        let wait = RETRY_BACKOFF_MIN.saturating_mul(2_u32.saturating_pow((*count).min(10)));
        *count += 1;
        wait.min(stop.backoff_max())
    }

    /// The turn went through.
    pub fn reset_failures(&self, controller: &'static str, cluster: &RealtimeCluster) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(&(controller, cluster_key(cluster)));
    }

    /// Tells people about a cluster. What cannot be told stands in the log.
    pub async fn publish_event(
        &self,
        cluster: &RealtimeCluster,
        kind: EventType,
        reason: &str,
        action: &str,
        note: String,
    ) {
        let note: String = note.chars().take(1000).collect();
        tracing::info!(cluster = cluster_key(cluster), reason, action, note, "told");
        let (reason, action) = (reason.to_owned(), action.to_owned());
        let event = Event { type_: kind, reason, note: Some(note), action, secondary: None };
        if let Err(error) = self.recorder.publish(&event, &cluster.object_ref(&())).await {
            tracing::warn!(%error, "an Event could not be written");
        }
    }
}

/// `namespace/name`.
#[must_use]
pub fn cluster_key(cluster: &RealtimeCluster) -> String {
    let metadata = &cluster.metadata;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", text(&metadata.namespace), text(&metadata.name))
}

/// A reference for a controller's queue.
#[must_use]
pub fn cluster_ref(cluster: &RealtimeCluster) -> ObjectRef<RealtimeCluster> {
    ObjectRef::from_obj(cluster)
}

/// Shared by every controller.
pub type SharedContext = Arc<ControllerContext>;
