//! Findings of the other controllers about the present generation of a cluster, read from their conditions. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;

use crate::api::Reason;
use crate::api::cluster::RealtimeClusterStatus;

/// Time in s after which a refusal by AWS is a matter for a person: a new permission takes minutes to be in force.
const ACCESS_DENIED_GRACE_SECONDS: i64 = 300;

/// The finding of one controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerFinding {
    /// Whether the condition holds.
    pub holds: bool,
    pub reason: Reason,
    /// One line for the conditions that repeat it.
    pub message: String,
}

impl ControllerFinding {
    /// The finding in a condition, unless it is of another generation, which says nothing about this one.
    pub fn of_generation(status: &RealtimeClusterStatus, kind: &str, generation: Option<i64>) -> Option<Self> {
        let is_current = |found: &&Condition| found.type_ == kind && found.observed_generation == generation;
        let found = status.conditions.iter().find(is_current)?;
        Some(Self {
            holds: found.status == "True",
            reason: Reason::by_name(&found.reason)?,
            message: found.message.clone(),
        })
    }

    /// Whether AWS has refused with this message, for this generation and without a break, for so long that a person must
    /// act. The gate's last failure has the time of the first refusal: a condition's time moves with its status alone.
    fn is_denied_for_long(&self, status: &RealtimeClusterStatus, generation: Option<i64>, now: Timestamp) -> bool {
        let failure = status.gate.as_ref().and_then(|gate| gate.last_failure.as_ref());
        let failure = failure.filter(|failure| {
            Some(status.observed_generation) == generation
                && failure.reason == Reason::AccessDenied.name()
                && failure.message == self.message
        });
        let since = failure.and_then(|failure| failure.time.parse::<Timestamp>().ok());
        since.is_some_and(|since| now.as_second() - since.as_second() >= ACCESS_DENIED_GRACE_SECONDS)
    }

    /// Whether a person must act.
    pub fn is_terminal(&self, status: &RealtimeClusterStatus, generation: Option<i64>, now: Timestamp) -> bool {
        !self.holds
            && match self.reason {
                Reason::StreamNotOurs
                | Reason::StreamInvalid
                | Reason::StreamKeyUnusable
                | Reason::ChildNotOurs
                | Reason::SpecInvalid
                | Reason::NotAllowedByPolicy => true,
                Reason::AccessDenied => self.is_denied_for_long(status, generation, now),
                _ => false,
            }
    }

    /// Whether the operator's own call failed, however long it has done so.
    pub fn is_operator_call(&self) -> bool {
        !self.holds && self.reason.is_operator_call()
    }
}
