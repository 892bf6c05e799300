//! The chain of checks: what speaks against the cluster, most telling first. Pure.
//!
//! Each check reads the evidence and returns a finding or nothing; the first finding counts. Another observation of a
//! cluster becomes another row of [`CHECKS`].

use std::time::Duration;

use super::external::{ExternalState, describe_failure};
use super::target_index::TargetValue;
use super::{ConfigDrift, DeadLetterProof, Evidence, HopFailure};
use crate::api::Reason;
use crate::protocol::Transport;

/// Effect of a finding on the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FindingClass {
    /// Closes the gate and keeps it closed.
    Refutes,
    /// As [`Self::Refutes`], and rounds meanwhile prove nothing, because something that they rely on is wrong or unknown.
    RefutesRounds,
    /// Keeps a closed gate closed, and leaves an open one open.
    Delays,
    /// Says why the gate was closed, and does not keep it so.
    Explains,
}

/// A finding of one check.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finding<'a> {
    pub class: FindingClass,
    pub subject: FindingSubject<'a>,
}

impl Finding<'_> {
    /// Whether it speaks against the cluster: measured wrong, missing or unknown.
    pub fn refutes(&self) -> bool {
        matches!(self.class, FindingClass::Refutes | FindingClass::RefutesRounds)
    }
}

/// The subject of a finding, from which its reason and its message are made.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum FindingSubject<'a> {
    /// Evidence that is too old for an open gate.
    Stale(String),
    /// Confirmed failures, of which this one names the hop.
    Failure { pod: &'a str, failure: &'a HopFailure },
    /// A dimension without a value.
    EmptyDimension { reason: Reason, message: String },
    /// A process that runs another configuration.
    Drift { pod: &'a str, drifts: &'a [ConfigDrift] },
    /// A process that does not report its configuration.
    Unanswered { pod: &'a str },
    /// A dispatcher through which journeys fail.
    Dispatcher { pod: &'a str, failure: &'a HopFailure },
    /// Too many journeys failed; the latest one.
    LossRate { transport: Transport, pod: &'a str, failure: &'a HopFailure },
    /// The gate passes what it must refuse.
    BrokenGate(&'a str),
    /// A lost event would not be kept.
    BrokenDeadLetter(&'a str),
    /// AWS does not let the operator list the shards.
    DeniedListing(&'a str),
    /// Fewer pods run than the manifest asks for.
    MissingPods(String),
    /// The paths from outside: they fail, or are not proven yet.
    External { reason: Reason, message: String },
    /// The letter of a test record is awaited.
    AwaitedDeadLetter,
    /// The latest closing; nothing speaks against the cluster since, and too little for it.
    Closing { reason: Reason, message: &'a str },
}

type Check = for<'a> fn(&'a Evidence) -> Option<Finding<'a>>;

/// The checks in their order.
const CHECKS: [Check; 16] = [
    find_stale_evidence,
    find_explained_failure,
    find_empty_dimension,
    find_failure,
    find_drift,
    find_unanswered_process,
    find_failing_dispatcher,
    find_external_failure,
    find_loss_rate,
    find_broken_gate,
    find_broken_dead_letter,
    find_denied_listing,
    find_missing_pods,
    find_unproven_external,
    find_awaited_dead_letter,
    find_closing,
];

/// Returns the first finding against the cluster.
pub(super) fn first_finding(evidence: &Evidence) -> Option<Finding<'_>> {
    CHECKS.iter().find_map(|check| check(evidence))
}

/// Evidence that is too old. A closed gate relies on none, so it is asked before the opening alone.
fn find_stale_evidence(evidence: &Evidence) -> Option<Finding<'_>> {
    let message = evidence.open.then(|| describe_stale_evidence(evidence))??;
    Some(Finding { class: FindingClass::Refutes, subject: FindingSubject::Stale(message) })
}

fn find_explained_failure(evidence: &Evidence) -> Option<Finding<'_>> {
    let explained =
        |(_, pod, failure): &(Transport, &str, &HopFailure)| evidence.explaining_drifts(pod, failure).is_some();
    first_failure(evidence.counted_failures().filter(explained))
}

/// A dimension without a value. A known drift says more: it may be the cause. Before the first proof, pods that are yet to
/// start are no failure.
fn find_empty_dimension(evidence: &Evidence) -> Option<Finding<'_>> {
    let rolling_out = !evidence.ever_open && find_missing_pods(evidence).is_some();
    if !evidence.drifts.is_empty() || rolling_out {
        return None;
    }
    let (reason, message) = describe_empty_dimension(evidence)?;
    let subject = FindingSubject::EmptyDimension { reason, message };
    Some(Finding { class: FindingClass::RefutesRounds, subject })
}

fn find_failure(evidence: &Evidence) -> Option<Finding<'_>> {
    first_failure(evidence.counted_failures())
}

/// The failure at the first hop.
fn first_failure<'a>(failures: impl Iterator<Item = (Transport, &'a str, &'a HopFailure)>) -> Option<Finding<'a>> {
    let (_, pod, failure) = failures.min_by_key(|(transport, _, failure)| (failure.hop, *transport))?;
    Some(Finding { class: FindingClass::Refutes, subject: FindingSubject::Failure { pod, failure } })
}

fn find_drift(evidence: &Evidence) -> Option<Finding<'_>> {
    let (pod, drifts) = evidence.first_drift()?;
    Some(Finding { class: FindingClass::RefutesRounds, subject: FindingSubject::Drift { pod, drifts } })
}

fn find_unanswered_process(evidence: &Evidence) -> Option<Finding<'_>> {
    let pod = evidence.first_unanswered()?;
    Some(Finding { class: FindingClass::RefutesRounds, subject: FindingSubject::Unanswered { pod } })
}

fn find_failing_dispatcher(evidence: &Evidence) -> Option<Finding<'_>> {
    let (pod, failure) = evidence.failing_dispatcher()?;
    Some(Finding { class: FindingClass::Refutes, subject: FindingSubject::Dispatcher { pod, failure } })
}

fn find_loss_rate(evidence: &Evidence) -> Option<Finding<'_>> {
    if !evidence.losses.is_exceeded() {
        return None;
    }
    let (transport, pod, failure) = evidence.latest_failure()?;
    let subject = FindingSubject::LossRate { transport: *transport, pod, failure };
    Some(Finding { class: FindingClass::Refutes, subject })
}

/// A failed self-test: no pass is worth anything, but a failure still is, so that this comes after every failure.
fn find_broken_gate(evidence: &Evidence) -> Option<Finding<'_>> {
    let fault = evidence.gate_fault.as_deref()?;
    Some(Finding { class: FindingClass::Refutes, subject: FindingSubject::BrokenGate(fault) })
}

/// A test record whose letter was not written. Journeys pass, so this comes after everything that concerns each event.
fn find_broken_dead_letter(evidence: &Evidence) -> Option<Finding<'_>> {
    let DeadLetterProof::Broken(message) = &evidence.dead_letter else { return None };
    Some(Finding { class: FindingClass::Refutes, subject: FindingSubject::BrokenDeadLetter(message) })
}

/// A test record that is on its way. An open gate does not wait for it: journeys have proven the path of events.
fn find_awaited_dead_letter(evidence: &Evidence) -> Option<Finding<'_>> {
    let is_awaited = evidence.dead_letter == DeadLetterProof::Pending;
    is_awaited.then_some(Finding { class: FindingClass::Delays, subject: FindingSubject::AwaitedDeadLetter })
}

/// Shards that the operator may not list. They are unknown and not missing: a first proof needs them, and an open gate has the
/// passes of its journeys.
fn find_denied_listing(evidence: &Evidence) -> Option<Finding<'_>> {
    let error = evidence.targets.denied_listing.as_deref()?;
    Some(Finding { class: FindingClass::Delays, subject: FindingSubject::DeniedListing(error) })
}

fn find_missing_pods(evidence: &Evidence) -> Option<Finding<'_>> {
    let subject = evidence.targets.wanted_pods.iter().find_map(|(transport, wanted)| {
        let running = evidence.targets.count_pods(*transport);
        (running < *wanted).then(|| {
            format!(
                "{}/{transport}: {running} of {wanted} pods run what the manifest asks for",
                transport.server_kind()
            )
        })
    })?;
    Some(Finding { class: FindingClass::Delays, subject: FindingSubject::MissingPods(subject) })
}

/// A path from outside that fails. Every path that takes no connection is one only if the manifest requires the paths: the
/// network between the operator and a load balancer is not the cluster's.
fn find_external_failure(evidence: &Evidence) -> Option<Finding<'_>> {
    let (reason, message) = match evidence.external_state() {
        ExternalState::Failing { path, transport, failure } => {
            (failure.reason, describe_failure(&path, transport, &failure))
        }
        ExternalState::Unreachable(message) if evidence.external.is_required() => {
            (Reason::NotReachableFromHere, message)
        }
        ExternalState::Stale(message) if evidence.open => (Reason::EvidenceStale, message),
        _ => return None,
    };
    Some(Finding { class: FindingClass::Refutes, subject: FindingSubject::External { reason, message } })
}

/// A path from outside without a pass: the first proof waits for it. A load balancer without an address is waited for only
/// if the manifest requires it.
fn find_unproven_external(evidence: &Evidence) -> Option<Finding<'_>> {
    let (reason, message) = match evidence.external_state() {
        ExternalState::Unproven(message) => (Reason::Proving, format!("paths from outside: {message}")),
        ExternalState::Pending(message) if evidence.external.is_required() => (Reason::LoadBalancerPending, message),
        _ => return None,
    };
    Some(Finding { class: FindingClass::Delays, subject: FindingSubject::External { reason, message } })
}

fn find_closing(evidence: &Evidence) -> Option<Finding<'_>> {
    let (reason, message) = evidence.closing.as_ref()?;
    Some(Finding { class: FindingClass::Explains, subject: FindingSubject::Closing { reason: *reason, message } })
}

/// Describes the first dimension that has no value. A dispatcher that runs and holds no shard says why.
pub(super) fn describe_empty_dimension(evidence: &Evidence) -> Option<(Reason, String)> {
    let targets = &evidence.targets;
    let carried = |transport: &Transport| targets.pods.values().any(|carries| carries.contains(transport));
    if targets.transports.is_empty() {
        return Some((Reason::NoPods, "no transport is asked for".to_owned()));
    }
    if let Some(transport) = targets.transports.iter().find(|transport| !carried(transport)) {
        return Some((Reason::NoPods, format!("{}/{transport}: no pod serves it", transport.server_kind())));
    }
    if targets.webhooks && targets.shards.is_empty() && targets.denied_listing.is_none() {
        return Some((Reason::NoPods, "the stream has no open shard".to_owned()));
    }
    if targets.webhooks && targets.dispatchers.is_empty() {
        let message = "dispatcher: no process holds a shard";
        return Some(match &targets.dispatcher_error {
            Some(error) => (Reason::DispatcherStuck, format!("{message}; {error}")),
            None => (Reason::NoPods, message.to_owned()),
        });
    }
    None
}

/// Describes the first evidence that is too old for an open gate.
pub(super) fn describe_stale_evidence(evidence: &Evidence) -> Option<String> {
    let policy = &evidence.policy;
    if let Some(passed_ms) = evidence.inherited_ms {
        let age = Duration::from_millis(evidence.now_ms.saturating_sub(passed_ms));
        if age > policy.inherited_evidence_max {
            return Some(format!(
                "the last complete round began {} s ago, before this operator led, and none was completed since",
                age.as_secs()
            ));
        }
    }
    // Shards take turns: with more shards than journeys in a round, each is visited every few rounds.
    let targets = &evidence.targets;
    let tour_rounds = |transport| targets.tour_rounds.get(&transport).copied().unwrap_or(1);
    let longest_tour = targets.tour_rounds.values().copied().max().unwrap_or(1).max(1);
    let routes = evidence.coverage.index().routes().len();
    let pipeline_rounds = targets.shards.len().div_ceil((routes / longest_tour).max(1));
    let stale_after = |value: TargetValue<'_>| match value {
        TargetValue::Route(_, path) if targets.paths.contains_key(path) => policy.stale_after(1),
        TargetValue::Route(transport, _) => policy.stale_after(tour_rounds(transport)),
        TargetValue::Shard(_) | TargetValue::Dispatcher(_) => policy.stale_after(pipeline_rounds),
    };
    let (value, silence) = evidence.coverage.first_stale(evidence.now_ms, stale_after)?;
    let value = match value {
        TargetValue::Route(transport, entrance) => {
            format!("{}/{transport} through {entrance}", transport.server_kind())
        }
        TargetValue::Shard(shard) => format!("shard {shard}"),
        TargetValue::Dispatcher(pod) => format!("dispatcher {pod}"),
    };
    Some(format!("{value}: no journey has ended for {} s", silence.as_secs()))
}
