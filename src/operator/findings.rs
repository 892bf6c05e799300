//! What the other controllers found about the present generation of a cluster, read from their conditions. Pure.

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
    /// When the condition became what it is, in s since 1970.
    since: i64,
}

/// What a finding means for Ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingClass {
    /// The condition holds, so there is nothing to report.
    Fine,
    /// A person must act.
    Terminal,
    /// A fault of the cluster that may mend itself.
    Fault,
    /// The work is in progress.
    UnderWay,
    /// The operator could not read or write: nothing is known about the cluster.
    OperatorCall,
}

impl ControllerFinding {
    /// The finding in a condition, unless it is of another generation, which says nothing about this one.
    pub fn of_generation(status: &RealtimeClusterStatus, kind: &str, generation: Option<i64>) -> Option<Self> {
        let is_current = |found: &&Condition| found.type_ == kind && found.observed_generation == generation;
        let found = status.conditions.iter().find(is_current)?;
        Some(Self {
            holds: found.status == "True",
            reason: Reason::ALL.iter().copied().find(|reason| reason.name() == found.reason)?,
            message: found.message.clone(),
            since: found.last_transition_time.0.as_second(),
        })
    }

    /// What the finding means for Ready at this time.
    pub fn class(&self, now: Timestamp) -> FindingClass {
        if self.holds {
            return FindingClass::Fine;
        }
        match self.reason {
            Reason::StreamNotOurs | Reason::StreamInvalid | Reason::ChildNotOurs | Reason::SpecInvalid => {
                FindingClass::Terminal
            }
            Reason::AccessDenied if now.as_second() - self.since >= ACCESS_DENIED_GRACE_SECONDS => {
                FindingClass::Terminal
            }
            Reason::StreamMissing => FindingClass::Fault,
            Reason::AccessDenied | Reason::StreamUnreachable | Reason::ApplyFailed | Reason::OperatorFault => {
                FindingClass::OperatorCall
            }
            _ => FindingClass::UnderWay,
        }
    }

    /// Whether the operator's own call failed, however long it has done so.
    pub fn is_operator_call(&self, now: Timestamp) -> bool {
        !self.holds && (self.reason == Reason::AccessDenied || self.class(now) == FindingClass::OperatorCall)
    }
}
