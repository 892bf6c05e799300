//! The error that ends a reconcile early, and its back-off.

use std::time::Duration;

use kube::core::Status;

use super::metrics::ReconcileResult;
use crate::api::Reason;
use crate::kinesis::KinesisError;
use crate::kubernetes::apply::ApplyError;

/// First back-off after a failure; it doubles with each further failure.
const RETRY_MIN_BACKOFF: Duration = Duration::from_millis(500);

/// Longest back-off for an error that a user fixes with kubectl: the controller gets no event of the fix, and a retry
/// costs little.
const USER_FIX_BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Longest back-off for any other error: AWS limits the rate of calls.
const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(30);

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

    /// Back-off before the next reconcile after this error, which doubles with each failure before it.
    pub fn backoff(&self, failures: u32) -> Duration {
        let longest = match self.reason {
            Reason::ChildNotOurs | Reason::RollingOut | Reason::SecretMissing | Reason::StreamCreating => {
                USER_FIX_BACKOFF_MAX
            }
            _ => RETRY_BACKOFF_MAX,
        };
        RETRY_MIN_BACKOFF.saturating_mul(2_u32.saturating_pow(failures.min(10))).min(longest)
    }

    /// The class of the error in metrics.
    pub fn metric_result(&self) -> ReconcileResult {
        match self.reason {
            _ if self.is_conflict => ReconcileResult::Conflict,
            Reason::AccessDenied => ReconcileResult::Denied,
            _ if self.terminal => ReconcileResult::Terminal,
            _ => ReconcileResult::Transient,
        }
    }

    /// Classifies a failed call to the API server.
    pub fn from_call(operation: &str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if is_namespace_ending(status) => {
                Self::transient(Reason::Deleting, format!("{operation}: the namespace is being deleted"))
            }
            kube::Error::Api(status) => {
                let reason = if status.is_forbidden() { Reason::AccessDenied } else { Reason::ApplyFailed };
                let late = status.is_conflict();
                Self { is_conflict: late, ..Self::transient(reason, format!("{operation}: {}", status.message)) }
            }
            _ => Self::transient(Reason::ApplyFailed, format!("{operation}: {error}")),
        }
    }
}

impl From<serde_json::Error> for ReconcileError {
    /// An object of the manifest that cannot be rendered as JSON.
    fn from(error: serde_json::Error) -> Self {
        Self::terminal(Reason::SpecInvalid, error.to_string())
    }
}

impl From<ApplyError> for ReconcileError {
    fn from(error: ApplyError) -> Self {
        match &error {
            ApplyError::NotOurs { .. } => Self::terminal(Reason::ChildNotOurs, error.to_string()),
            ApplyError::Api { operation, error } => Self::from_call(operation, error),
            ApplyError::Malformed(_) | ApplyError::Unserved { .. } => {
                Self::transient(Reason::ApplyFailed, error.to_string())
            }
        }
    }
}

impl From<KinesisError> for ReconcileError {
    fn from(error: KinesisError) -> Self {
        use crate::kinesis::KinesisErrorClass;
        match error.class {
            KinesisErrorClass::Denied if error.is_key_failure() => {
                Self::terminal(Reason::StreamKeyUnusable, error.to_string())
            }
            KinesisErrorClass::Denied => Self::terminal(Reason::AccessDenied, error.to_string()),
            KinesisErrorClass::Invalid => Self::terminal(Reason::StreamInvalid, error.to_string()),
            KinesisErrorClass::NotFound => Self::transient(Reason::StreamMissing, error.to_string()),
            _ => Self::transient(Reason::StreamUnreachable, error.to_string()),
        }
    }
}

/// Whether the API server refused to create an object because its namespace is being deleted.
fn is_namespace_ending(status: &Status) -> bool {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    status.is_forbidden() && causes.any(|cause| cause.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_namespace_that_is_being_deleted_is_no_missing_permission() {
        for (name, causes, expected) in [
            ("a missing permission", json!([]), Reason::AccessDenied),
            (
                "no creation in a namespace that ends",
                json!([{ "reason": "NamespaceTerminating", "message": "namespace a is being terminated", "field": "metadata.namespace" }]),
                Reason::Deleting,
            ),
        ] {
            let status =
                json!({ "code": 403, "reason": "Forbidden", "message": "no", "details": { "causes": causes } });
            let status: Status = serde_json::from_value(status).expect("a status");
            let error = ReconcileError::from_call("applying Service eu", &kube::Error::Api(Box::new(status)));
            assert_eq!(error.reason, expected, "{name}: {error}");
        }
    }
}
