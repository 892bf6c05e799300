//! Evidence about the paths from outside the Kubernetes cluster: through the published addresses of load balancers.
//!
//! In: the paths that the manifest and the addresses of its load balancers give, and journeys through them. Out: one
//! state, which the chain of checks and the condition `ExternalPathProven` read. The paths have records of their own: a load
//! balancer that refuses the operator's network says nothing about the cluster, and must not count as a loss.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::journey_history::{HistoryState, JourneyHistory};
use super::{GatePolicy, Hop, HopFailure, Journey, JourneyOutcome};
use crate::api::Reason;
use crate::api::cluster::ExternalGate;
use crate::process::clock::whole_ms;
use crate::protocol::Transport;

/// Time from the publication of an address until a path that never passed counts as failing: the registration of pods with
/// a load balancer takes up to 4 minutes (aws-load-balancer-controller#1834).
const REGISTRATION_GRACE: Duration = Duration::from_mins(5);

/// Paths that a message names.
const LISTED_PATHS_MAX: usize = 3;

/// The paths from outside that are to be proven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExternalTargets {
    /// Whether Ready waits for the paths; `None` if no load balancer of the manifest has a host.
    pub gate: Option<ExternalGate>,
    /// Paths through published addresses, with the transports that use them.
    pub paths: BTreeMap<String, BTreeSet<Transport>>,
    /// Load balancers without a published address, each with the cause.
    pub pending: Vec<String>,
    /// Address from which journeys begin, for a message.
    pub source: String,
}

/// The state of all paths from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExternalState {
    /// The manifest asks for no journey through a load balancer.
    Absent,
    /// The manifest switches the journeys off.
    Disabled,
    /// A journey through a path was measured wrong, or failed often enough.
    Failing { path: String, transport: Transport, failure: HopFailure },
    /// Every path refuses the connection or does not answer.
    Unreachable(String),
    /// A load balancer has no address yet.
    Pending(String),
    /// No journey has ended for too long.
    Stale(String),
    /// A path has not passed yet.
    Unproven(String),
    /// Every path passed lately; the number of paths and transports.
    Proven(usize),
}

/// Result of the journeys from outside, for the condition `ExternalPathProven`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalVerdict {
    /// Status of the condition: `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// Reason of the condition.
    pub reason: Reason,
    /// Message of the condition.
    pub message: String,
}

#[derive(Clone, Debug, Default)]
struct PathRecord {
    history: JourneyHistory,
    /// Since when the path has to be proven, in ms since 1970.
    since_ms: u64,
    /// End of the latest journey that passed or failed, in ms since 1970; 0 before the first one.
    finished_ms: u64,
    has_passed: bool,
}

/// The journeys through each path from outside.
#[derive(Clone, Debug, Default)]
pub(super) struct ExternalEvidence {
    targets: ExternalTargets,
    records: BTreeMap<(String, Transport), PathRecord>,
}

impl ExternalEvidence {
    /// Replaces the paths; those that stay keep their journeys. The time is that from which a new path has to be proven.
    pub fn set_targets(&mut self, targets: &ExternalTargets, since_ms: u64) {
        if *targets == self.targets {
            return;
        }
        let mut known = std::mem::take(&mut self.records);
        for (path, transports) in &targets.paths {
            for transport in transports {
                let key = (path.clone(), *transport);
                let create = || PathRecord { since_ms, ..PathRecord::default() };
                let record = known.remove(&key).unwrap_or_else(create);
                self.records.insert(key, record);
            }
        }
        self.targets = targets.clone();
    }

    /// Adds a journey; `false` if it took no path from outside.
    pub fn add_journey(&mut self, journey: &Journey) -> bool {
        let Some(record) = self.records.get_mut(&(journey.entrance.clone(), journey.transport)) else { return false };
        record.history.add(journey);
        if journey.outcome != JourneyOutcome::Void {
            record.finished_ms = record.finished_ms.max(journey.ended_ms);
            record.has_passed |= journey.outcome == JourneyOutcome::Pass;
        }
        true
    }

    /// Whether Ready waits for the paths whatever the network says.
    pub fn is_required(&self) -> bool {
        self.targets.gate == Some(ExternalGate::Required)
    }

    /// Returns the state of all paths. `proven` says whether the cluster was proven before.
    pub fn state(&self, policy: &GatePolicy, proven: bool, now_ms: u64) -> ExternalState {
        match self.targets.gate {
            None => return ExternalState::Absent,
            Some(ExternalGate::Disabled) => return ExternalState::Disabled,
            Some(ExternalGate::Auto | ExternalGate::Required) => {}
        }
        if let Some(message) = self.describe_unreachable(policy, proven) {
            return ExternalState::Unreachable(message);
        }
        if let Some(failing) = self.find_failing(policy, proven, now_ms) {
            return failing;
        }
        if !self.targets.pending.is_empty() {
            return ExternalState::Pending(self.targets.pending.join("; "));
        }
        if let Some(message) = self.describe_stale(policy, now_ms) {
            return ExternalState::Stale(message);
        }
        match self.describe_unproven(policy, proven) {
            Some(message) => ExternalState::Unproven(message),
            None => ExternalState::Proven(self.records.len()),
        }
    }

    fn states<'a>(
        &'a self,
        policy: &'a GatePolicy,
        proven: bool,
    ) -> impl Iterator<Item = (&'a str, Transport, &'a PathRecord, HistoryState<'a>)> {
        self.records.iter().map(move |((path, transport), record)| {
            (path.as_str(), *transport, record, record.history.current_state(policy, proven))
        })
    }

    /// Describes paths none of which takes a connection, at least one of them confirmed.
    fn describe_unreachable(&self, policy: &GatePolicy, proven: bool) -> Option<String> {
        let is_refused =
            |failure: &HopFailure| failure.reason == Reason::EdgeUnreachable && failure.hop == Hop::Connect;
        let mut details: Vec<&str> = Vec::new();
        let mut is_confirmed = false;
        for (_, _, _, state) in self.states(policy, proven) {
            match state {
                HistoryState::Suspect(failure) | HistoryState::Failing(failure) if is_refused(failure) => {
                    is_confirmed |= matches!(state, HistoryState::Failing(_));
                    if !details.contains(&failure.detail.as_str()) {
                        details.push(&failure.detail);
                    }
                }
                _ => return None,
            }
        }
        is_confirmed.then(|| {
            let more = details.len().saturating_sub(LISTED_PATHS_MAX);
            let more = if more == 0 { String::new() } else { format!("; and {more} more") };
            let listed = details.iter().take(LISTED_PATHS_MAX).copied().collect::<Vec<_>>().join("; ");
            let source = if self.targets.source.is_empty() { "the operator's pod" } else { &self.targets.source };
            format!(
                "{listed}{more}. Journeys begin at {source}: allow this address, or that of its NAT gateway, in \
                 expose.sourceRanges and security groups"
            )
        })
    }

    /// The failure at the earliest hop. A path that never passed has time until its load balancer knows the pods, unless the
    /// failure was measured.
    fn find_failing(&self, policy: &GatePolicy, proven: bool, now_ms: u64) -> Option<ExternalState> {
        let grace_ms = whole_ms(REGISTRATION_GRACE);
        let failing = self.states(policy, proven).filter_map(|(path, transport, record, state)| {
            let HistoryState::Failing(failure) = state else { return None };
            let is_new = !record.has_passed && now_ms.saturating_sub(record.since_ms) < grace_ms;
            (record.history.is_decisive() || !is_new).then_some((path, transport, failure))
        });
        let (path, transport, failure) = failing.min_by_key(|(_, transport, failure)| (failure.hop, *transport))?;
        Some(ExternalState::Failing { path: path.to_owned(), transport, failure: failure.clone() })
    }

    fn describe_stale(&self, policy: &GatePolicy, now_ms: u64) -> Option<String> {
        let stale_ms = whole_ms(policy.stale_after(1));
        self.records.iter().find_map(|((path, transport), record)| {
            let silence_ms = now_ms.saturating_sub(record.finished_ms);
            let is_stale = record.finished_ms > 0 && silence_ms > stale_ms;
            is_stale.then(|| format!("{transport} through {path}: no journey has ended for {} s", silence_ms / 1000))
        })
    }

    fn describe_unproven(&self, policy: &GatePolicy, proven: bool) -> Option<String> {
        // A single loss through a path that passed is not confirmed yet.
        let is_missing = |record: &PathRecord, state: &HistoryState<'_>| match state {
            HistoryState::Passing => false,
            HistoryState::Suspect(_) => !record.has_passed,
            HistoryState::Unknown | HistoryState::Failing(_) => true,
        };
        let mut missing = self.states(policy, proven).filter(|(_, _, record, state)| is_missing(record, state));
        let (path, transport, _, state) = missing.next()?;
        let count = 1 + missing.count();
        let loss = match state {
            HistoryState::Suspect(failure) | HistoryState::Failing(failure) => {
                format!("; last loss: {}", failure.detail)
            }
            HistoryState::Unknown | HistoryState::Passing => String::new(),
        };
        Some(format!("{count} of {} not proven yet, {transport} through {path} the first{loss}", self.records.len()))
    }

    /// Returns the content of the condition; `None` if the manifest has no path from outside.
    pub fn verdict(&self, policy: &GatePolicy, proven: bool, now_ms: u64) -> Option<ExternalVerdict> {
        let (status, reason, message) = match self.state(policy, proven, now_ms) {
            ExternalState::Absent => return None,
            ExternalState::Disabled => {
                let message = "gate.external is Disabled: no journey goes through a load balancer".to_owned();
                ("Unknown", Reason::ExternalDisabled, message)
            }
            ExternalState::Failing { path, transport, failure } => {
                ("False", failure.reason, describe_failure(&path, transport, &failure))
            }
            ExternalState::Unreachable(message) => ("Unknown", Reason::NotReachableFromHere, message),
            ExternalState::Pending(message) => ("Unknown", Reason::LoadBalancerPending, message),
            ExternalState::Stale(message) => ("Unknown", Reason::EvidenceStale, message),
            ExternalState::Unproven(message) => ("Unknown", Reason::Proving, message),
            ExternalState::Proven(count) => {
                let paths = self.targets.paths.keys().take(LISTED_PATHS_MAX).cloned().collect::<Vec<_>>().join(", ");
                let transports = if count == 1 { "journey passes" } else { "journeys pass" };
                ("True", Reason::Proven, format!("{count} {transports} through {paths}"))
            }
        };
        Some(ExternalVerdict { status, reason, message })
    }
}

/// Describes a failure with its path.
pub(super) fn describe_failure(path: &str, transport: Transport, failure: &HopFailure) -> String {
    format!("{}/{transport} through {path}: {}", transport.server_kind(), failure.detail)
}

#[cfg(test)]
mod tests;
