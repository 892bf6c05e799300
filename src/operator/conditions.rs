//! Decides the status of a cluster. Pure.
//!
//! In: the error that prevents journeys, the findings of the other controllers, the gate's verdict, the previous status.
//! Out: the conditions that the gate owns, `status.gate` and `status.transports`. The first match wins, from errors that
//! only a user can fix down to the proof that everything works.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::findings::ControllerFinding;
use super::pod_admission::PodProblem;
use super::reconcile_error::ReconcileError;
use super::status::ConditionUpdate;
use crate::api::Reason;
use crate::api::cluster::{GateStatus, LastFailure, RealtimeClusterStatus, TransportStatus};
use crate::api::conditions::condition;
use crate::gate::{GatePhase, Hop, Verdict};

/// Updates of `status.gate.passedAt` within the age that a new leader accepts: each is a write of the object, and a proof
/// that is renewed later would be too old for the next leader.
const PASSED_AT_UPDATES: u32 = 3;

/// Inputs from which [`decide_status`] decides.
pub struct StatusInputs<'a> {
    /// The error that keeps the cluster from being rendered.
    pub error: Option<&'a ReconcileError>,
    /// Pod and message of a server that refuses to start: `eu-sockjs-x: REALTIME_…`.
    pub startup_refusal: Option<&'a str>,
    /// A pod of the rendered template that is not admitted since it differs from it: `eu-sockjs-x differs from …`.
    pub pod_difference: Option<&'a PodProblem>,
    /// The gate's verdict on the journeys; `None` until the prober has observed a pod.
    pub verdict: Option<&'a Verdict>,
    /// Whether webhooks are enabled.
    pub webhooks: bool,
    /// Digest of the templates, Secrets and stream that are to be proven.
    pub fingerprint: &'a str,
    /// Number of pods admitted on record, for the message.
    pub on_record: usize,
    /// The previous status, written by this and the other controllers.
    pub known: &'a RealtimeClusterStatus,
    /// Generation of the manifest.
    pub generation: Option<i64>,
    /// Whether changes are held back, so that nothing is in progress.
    pub suspended: bool,
    /// Seconds after which a missing proof is reported as overdue.
    pub deadline: i64,
    /// Oldest proof that a new leader accepts without journeys of its own.
    pub inherited_max: Duration,
    pub now: Timestamp,
}

impl StatusInputs<'_> {
    /// The verdict, if it was reached on what has to be proven now.
    fn current_verdict(&self) -> Option<&Verdict> {
        self.verdict.filter(|verdict| verdict.fingerprint == self.fingerprint)
    }
}

/// The status fields that the gate owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusDecision {
    pub conditions: Vec<ConditionUpdate>,
    pub gate: GateStatus,
    pub transports: Vec<TransportStatus>,
}

/// Types of conditions that [`decide_status`] owns.
pub const OWNED_CONDITIONS: &[&str] = &[
    condition::READY,
    condition::RECONCILING,
    condition::STALLED,
    condition::WEBHOOKS_DELIVERED,
    condition::WEBHOOKS_ENABLED,
    condition::OPERATOR_HEALTHY,
    condition::EXTERNAL_PATH_PROVEN,
];

/// Content of Ready, and which of Stalled and Reconciling is present.
struct ReadyState {
    ready: &'static str,
    reason: Reason,
    message: String,
    /// Only a user can fix it.
    stalled: bool,
    /// A change or a proof is in progress.
    reconciling: bool,
}

/// Decides the conditions, the gate's status and the status of each transport.
#[must_use]
pub fn decide_status(inputs: &StatusInputs<'_>) -> StatusDecision {
    let passed = is_proven(inputs);
    let mut state = assess_readiness(inputs, passed);
    state.reconciling &= !inputs.suspended;
    report_difference(inputs, &mut state);
    if inputs.on_record > 0 && state.ready != "True" {
        state.message = format!("{}; {} pods were admitted on record", state.message, inputs.on_record);
    }
    let proving_since = find_proving_since(inputs, &state);
    report_overdue(inputs, &mut state, proving_since);
    let conditions = build_conditions(inputs, &state);
    let ready = state.ready == "True";
    StatusDecision {
        conditions,
        gate: GateStatus {
            proving_since: proving_since.map(|since| since.to_string()),
            ..build_gate_status(inputs, &state, passed || ready)
        },
        transports: build_transport_statuses(inputs),
    }
}

/// Names the pod that differs from its template as the cause for which a rollout waits.
fn report_difference(inputs: &StatusInputs<'_>, state: &mut ReadyState) {
    let waits = matches!(state.reason, Reason::RollingOut | Reason::Proving | Reason::NoPods);
    // A missing identity is the cause of whatever else fails: a journey without a dispatcher, a server that does not start.
    let explains = |problem: &&PodProblem| waits || problem.reason == Reason::IdentityNotInjected;
    let is_open = state.ready != "True" && !state.stalled;
    if let Some(problem) = inputs.pod_difference.filter(|_| is_open).filter(explains) {
        (state.ready, state.reason) = ("False", problem.reason);
        problem.line.clone_into(&mut state.message);
    }
}

/// Whether this fingerprint was proven before.
#[must_use]
pub fn was_proven(known: &RealtimeClusterStatus, fingerprint: &str) -> bool {
    known.gate.as_ref().is_some_and(|gate| gate.ever_passed && gate.fingerprint == fingerprint)
}

/// Start of the oldest pass of the last complete round, in ms since 1970, as the status has it.
#[must_use]
pub fn passed_ms(known: &RealtimeClusterStatus) -> Option<u64> {
    u64::try_from(parse_passed_at(known.gate.as_ref()?)?.as_millisecond()).ok()
}

fn parse_passed_at(gate: &GateStatus) -> Option<Timestamp> {
    gate.passed_at.as_ref()?.parse().ok()
}

/// Whether a new leader may assume that the gate is open: it was proven, `Open`, and the proof is younger than
/// `inherited_max`.
#[must_use]
pub fn is_open(known: &RealtimeClusterStatus, fingerprint: &str, now: Timestamp, inherited_max: Duration) -> bool {
    let Some(gate) = &known.gate else { return false };
    let fresh = parse_passed_at(gate).is_some_and(|at| age_of(at, now) < inherited_max);
    was_proven(known, fingerprint) && gate.phase == "Open" && fresh
}

/// Age of a time; zero for one in the future.
fn age_of(at: Timestamp, now: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(now.as_millisecond() - at.as_millisecond()).unwrap_or(0))
}

fn is_proven(inputs: &StatusInputs<'_>) -> bool {
    was_proven(inputs.known, inputs.fingerprint)
}

fn assess_readiness(inputs: &StatusInputs<'_>, passed: bool) -> ReadyState {
    if let Some(error) = inputs.error.filter(|error| error.reason == Reason::Deleting) {
        let message = error.message.clone();
        return ReadyState { ready: "False", reason: error.reason, message, stalled: false, reconciling: true };
    }
    let find = |kind: &str| ControllerFinding::of_generation(inputs.known, kind, inputs.generation);
    let (stream, workloads) = (find(condition::STREAM_READY), find(condition::WORKLOADS_AVAILABLE));
    let is_terminal = |found: &&ControllerFinding| {
        // The operator's own rights say nothing about a cluster that was proven: its journeys do.
        found.is_terminal(inputs.known, inputs.generation, inputs.now)
            && !(passed && found.reason == Reason::AccessDenied)
    };
    if let Some(found) = [&stream, &workloads].into_iter().flatten().find(is_terminal) {
        let (reason, message) = (found.reason, found.message.clone());
        return ReadyState { ready: "False", reason, message, stalled: true, reconciling: false };
    }
    if let Some(found) = stream.as_ref().filter(|found| !found.holds && found.reason == Reason::StreamMissing) {
        let (reason, message) = (found.reason, found.message.clone());
        return ReadyState { ready: "False", reason, message, stalled: false, reconciling: false };
    }
    if let Some(error) = inputs.error {
        if let Some(kept) = keep_readiness(inputs, error) {
            return kept;
        }
        // A first proof that has not started is no failure.
        let under_way = matches!(error.reason, Reason::StreamCreating | Reason::RollingOut | Reason::Proving);
        // The stream controller's own error is nearer to the cause than `waiting for the stream`.
        let (reason, message) = stream
            .filter(|found| under_way && found.is_operator_call())
            .map_or_else(|| (error.reason, error.message.clone()), |found| (found.reason, found.message));
        let ready = if reason == error.reason && under_way { "Unknown" } else { reason.failure_status() };
        return ReadyState { ready, reason, message, stalled: error.terminal, reconciling: !error.terminal };
    }
    if let Some(found) = workloads.as_ref().filter(|found| found.is_operator_call() && !passed) {
        let (reason, message) = (found.reason, found.message.clone());
        return ReadyState { ready: reason.failure_status(), reason, message, stalled: false, reconciling: true };
    }
    let rolling = workloads.as_ref().is_none_or(|found| !found.holds);
    let rollout = workloads.map_or_else(|| "the manifest is being applied".to_owned(), |found| found.message);
    let under_way =
        |reason, message| ReadyState { ready: "Unknown", reason, message, stalled: false, reconciling: true };
    // A verdict on what ran before says nothing of what is to run now.
    let Some(verdict) = inputs.current_verdict() else {
        return inherit_readiness(inputs, passed)
            .unwrap_or_else(|| under_way(Reason::Proving, "observing the pods".to_owned()));
    };
    let open = verdict.phase == GatePhase::Open;
    // One new pod that cannot start does not close a cluster that serves; a closed cluster never opens with such a pod.
    if let Some(line) = inputs.startup_refusal
        && !(open && passed)
    {
        let message = format!("a server refuses to start: {line}");
        return ReadyState {
            ready: "False",
            reason: Reason::ConfigurationRefused,
            message,
            stalled: false,
            reconciling: true,
        };
    }
    let (reason, message) = (verdict.reason, verdict.message.clone());
    match verdict.phase {
        GatePhase::Open if passed || !rolling => {
            ReadyState { ready: "True", reason, message, stalled: false, reconciling: false }
        }
        GatePhase::Open => under_way(Reason::RollingOut, rollout),
        // Missing pods are no failure during the first rollout.
        GatePhase::Proving | GatePhase::Refused if rolling && !passed && reason == Reason::NoPods => {
            under_way(Reason::RollingOut, rollout)
        }
        // A known difference is reported at once, also during a rollout in which some pods were not tried yet.
        GatePhase::Proving if matches!(reason, Reason::ConfigurationDrift | Reason::ClockSkew) => {
            ReadyState { ready: "False", reason, message, stalled: false, reconciling: true }
        }
        GatePhase::Proving if matches!(reason, Reason::RollingOut | Reason::LoadBalancerPending) => {
            under_way(reason, message)
        }
        GatePhase::Proving => under_way(Reason::Proving, message),
        GatePhase::Refused => ReadyState { ready: "False", reason, message, stalled: false, reconciling: true },
        // A new leader found a proof that was too old: no failure is known, and the new proof is not complete.
        GatePhase::Closed
            if reason == Reason::Proving
                && inputs.known.find_condition(condition::READY).is_some_and(|c| c.status == "Unknown") =>
        {
            under_way(Reason::EvidenceStale, message)
        }
        GatePhase::Closed if reason == Reason::EvidenceStale => under_way(reason, message),
        GatePhase::Closed => ReadyState { ready: "False", reason, message, stalled: false, reconciling: false },
    }
}

/// Readiness that a new leader reports before its first observation: the previous one of the same generation and
/// fingerprint, unless the proof is too old.
fn inherit_readiness(inputs: &StatusInputs<'_>, passed: bool) -> Option<ReadyState> {
    let previous = inputs.known.find_condition(condition::READY)?;
    if !passed || previous.observed_generation != inputs.generation {
        return None;
    }
    let message = previous.message.clone();
    let reason = Reason::by_name(&previous.reason)?;
    match previous.status.as_str() {
        "True" if is_open(inputs.known, inputs.fingerprint, inputs.now, inputs.inherited_max) => {
            Some(ReadyState { ready: "True", reason, message, stalled: false, reconciling: false })
        }
        "True" => Some(ReadyState {
            ready: "Unknown",
            reason: Reason::EvidenceStale,
            message: format!(
                "the last proof is more than {} minutes old: proving again",
                inputs.inherited_max.as_secs().div_ceil(60)
            ),
            stalled: false,
            reconciling: true,
        }),
        "False" => Some(ReadyState { ready: "False", reason, message, stalled: false, reconciling: false }),
        _ => None,
    }
}

/// Readiness while the operator's own calls fail, which is no finding about the cluster: the previous one of the same
/// generation, until its proof is too old.
fn keep_readiness(inputs: &StatusInputs<'_>, error: &ReconcileError) -> Option<ReadyState> {
    if !error.reason.is_operator_call() {
        return None;
    }
    let previous = inputs
        .known
        .find_condition(condition::READY)
        .filter(|previous| previous.observed_generation == inputs.generation)?;
    if previous.status == "Unknown" {
        let reason = Reason::by_name(&previous.reason)?;
        let message = previous.message.clone();
        return Some(ReadyState { ready: "Unknown", reason, message, stalled: false, reconciling: true });
    }
    let fingerprint = &inputs.known.gate.as_ref()?.fingerprint;
    // Journeys run on, and may have closed the gate meanwhile.
    if let Some(verdict) = inputs.verdict.filter(|verdict| {
        verdict.fingerprint == *fingerprint && verdict.phase == GatePhase::Closed && previous.status == "True"
    }) {
        let (reason, message) = (verdict.reason, verdict.message.clone());
        return Some(ReadyState { ready: "False", reason, message, stalled: false, reconciling: false });
    }
    inherit_readiness(&StatusInputs { fingerprint, ..*inputs }, was_proven(inputs.known, fingerprint))
}

/// The first moment at which a journey could run for this generation and fingerprint; `None` while none can, and once the
/// cluster is Ready or has failed after it was.
fn find_proving_since(inputs: &StatusInputs<'_>, state: &ReadyState) -> Option<Timestamp> {
    // Without an identity no server starts, and no journey can run.
    inputs.current_verdict().filter(|_| state.reconciling && state.reason != Reason::IdentityNotInjected)?;
    let known = inputs.known.gate.as_ref().filter(|gate| {
        gate.fingerprint == inputs.fingerprint && Some(inputs.known.observed_generation) == inputs.generation
    });
    let known = known.and_then(|gate| gate.proving_since.as_ref()?.parse().ok());
    Some(known.unwrap_or(inputs.now))
}

/// Reports a proof that did not complete within the deadline. Journeys continue and may still complete it, so the cluster
/// is not stalled: that would end the waiting of deployment tools for good.
fn report_overdue(inputs: &StatusInputs<'_>, state: &mut ReadyState, proving_since: Option<Timestamp>) {
    let Some(since) = proving_since else { return };
    if inputs.now.as_second() - since.as_second() > inputs.deadline {
        state.message = format!("not proven within {} s: {}: {}", inputs.deadline, state.reason, state.message);
        state.reason = Reason::DeadlineExceeded;
        state.ready = "False";
    }
}

/// Whether the operator can read and write what it needs for this cluster.
fn assess_operator(inputs: &StatusInputs<'_>) -> ConditionUpdate {
    let finding = [condition::STREAM_READY, condition::WORKLOADS_AVAILABLE, condition::APPS_SYNCED]
        .into_iter()
        .filter_map(|kind| ControllerFinding::of_generation(inputs.known, kind, inputs.generation))
        .find(ControllerFinding::is_operator_call);
    let own = inputs.error.filter(|error| error.reason.is_operator_call());
    let failed = own.map(|error| (error.reason, error.message.clone()));
    let failed = failed.or_else(|| finding.map(|finding| (finding.reason, finding.message)));
    let (status, reason, message) = failed.map_or_else(
        || ("True", Reason::Applied, "the operator's calls to the API server and to AWS succeed".to_owned()),
        |(reason, message)| ("False", reason, message),
    );
    ConditionUpdate::new(condition::OPERATOR_HEALTHY, status, reason, message)
}

/// The result of the journeys through load balancers. Without a verdict on what runs now, the last one stays, unless it was
/// reached on something else.
fn assess_external(inputs: &StatusInputs<'_>) -> Option<ConditionUpdate> {
    let kind = condition::EXTERNAL_PATH_PROVEN;
    if let Some(verdict) = inputs.current_verdict() {
        let external = verdict.external.as_ref()?;
        return Some(ConditionUpdate::new(kind, external.status, external.reason, &external.message));
    }
    let known = inputs.known.find_condition(kind)?;
    let is_same = inputs.fingerprint.is_empty() || is_proven(inputs);
    let status = ["True", "False"].into_iter().find(|status| *status == known.status).unwrap_or("Unknown");
    let reason = Reason::by_name(&known.reason)?;
    if is_same || status == "Unknown" {
        return Some(ConditionUpdate::new(kind, status, reason, &known.message));
    }
    Some(ConditionUpdate::new(kind, "Unknown", Reason::Proving, "not proven yet on what runs now"))
}

fn build_conditions(inputs: &StatusInputs<'_>, state: &ReadyState) -> Vec<ConditionUpdate> {
    let mut updates = vec![ConditionUpdate::new(condition::READY, state.ready, state.reason, &state.message)];
    if state.stalled {
        updates.push(ConditionUpdate::new(condition::STALLED, "True", state.reason, &state.message));
    } else if state.reconciling {
        updates.push(ConditionUpdate::new(condition::RECONCILING, "True", state.reason, &state.message));
    }
    updates.push(assess_operator(inputs));
    updates.extend(assess_external(inputs));
    if inputs.webhooks {
        let status = match inputs.current_verdict().map(|verdict| verdict.phase) {
            Some(GatePhase::Open) if state.ready != "False" => "True",
            None if state.ready == "True" => "True",
            Some(GatePhase::Refused | GatePhase::Closed) => "False",
            _ if state.ready == "False" => "False",
            _ => "Unknown",
        };
        updates.push(ConditionUpdate::new(condition::WEBHOOKS_DELIVERED, status, state.reason, &state.message));
        updates.push(ConditionUpdate::new(
            condition::WEBHOOKS_ENABLED,
            "True",
            Reason::Applied,
            "webhooks.mode is Kinesis",
        ));
    } else {
        let message = "webhooks are off: webhooks.mode is Off and acknowledged";
        updates.push(ConditionUpdate::new(condition::WEBHOOKS_ENABLED, "False", Reason::ReadyWithoutWebhooks, message));
    }
    updates
}

fn build_gate_status(inputs: &StatusInputs<'_>, state: &ReadyState, ever_passed: bool) -> GateStatus {
    let known = inputs.known.gate.clone().unwrap_or_default();
    let ready = state.ready == "True";
    let phase = match (ready, state.ready, ever_passed) {
        (true, _, _) => "Open",
        (false, "False", true) => "Closed",
        (false, "False", false) => "Refused",
        _ => "Proving",
    };
    let now = inputs.now.to_string();
    let passed_at = decide_passed_at(inputs, &known, ready);
    let failed = state.ready == "False";
    let same_generation = inputs.generation.is_none_or(|generation| generation == inputs.known.observed_generation);
    let last_failure = match &known.last_failure {
        Some(last) if !failed || (last.message == state.message && same_generation) => Some(last.clone()),
        _ if failed => {
            Some(LastFailure { reason: state.reason.to_string(), message: state.message.clone(), time: now })
        }
        _ => None,
    };
    // Without a fingerprint, e.g. during deletion, the previous proof stays.
    let fingerprint = if inputs.fingerprint.is_empty() { known.fingerprint } else { inputs.fingerprint.to_owned() };
    let ever_passed = if inputs.fingerprint.is_empty() { known.ever_passed } else { ever_passed };
    GateStatus {
        phase: phase.to_owned(),
        ever_passed,
        fingerprint,
        passed_at,
        proving_since: None,
        effective_interval_seconds: known.effective_interval_seconds,
        estimated_seconds: known.estimated_seconds,
        last_failure,
        replacements: known.replacements,
        injectors: known.injectors,
        requested_proof: known.requested_proof,
    }
}

/// The time of the last complete round: the start of its oldest pass, never the time of writing. An inherited proof is no
/// new one.
fn decide_passed_at(inputs: &StatusInputs<'_>, known: &GateStatus, ready: bool) -> Option<String> {
    let proof = inputs.current_verdict().filter(|verdict| ready && !verdict.inherited);
    let passed = proof.and_then(|verdict| Timestamp::from_millisecond(i64::try_from(verdict.passed_ms?).ok()?).ok());
    let Some(passed) = passed else { return known.passed_at.clone() };
    let due =
        parse_passed_at(known).is_none_or(|before| age_of(before, passed) >= inputs.inherited_max / PASSED_AT_UPDATES);
    let same_proof = known.phase == "Open" && known.fingerprint == inputs.fingerprint;
    if due || !same_proof { Some(passed.to_string()) } else { known.passed_at.clone() }
}

fn build_transport_statuses(inputs: &StatusInputs<'_>) -> Vec<TransportStatus> {
    let Some(verdict) = inputs.current_verdict() else { return inputs.known.transports.clone() };
    let transports = verdict.transports.iter().map(|transport| TransportStatus {
        name: transport.transport.name().to_owned(),
        server: transport.server.name().to_owned(),
        state: transport.state,
        hop: transport.hop.map_or("", Hop::name).to_owned(),
        not_applicable: transport.not_applicable.iter().map(|hop| hop.name().to_owned()).collect(),
        pods: format!("{}/{}", transport.pods_passing, transport.pods),
    });
    transports.collect()
}

#[cfg(test)]
mod tests;
