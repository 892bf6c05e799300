//! What a cluster's status says. Pure.
//!
//! In: what stands in the way before any journey, what the other controllers say, the gate's verdict, what was said
//! before. Out: the conditions that the gate owns, `status.gate` and `status.transports`. The first hit wins, from what
//! only a person can mend down to what proves that everything works.

use k8s_openapi::jiff::Timestamp;

use super::context::ReconcileError;
use super::status::ConditionUpdate;
use crate::api::Reason;
use crate::api::cluster::{GateStatus, LastFailure, RealtimeClusterStatus, TransportStatus};
use crate::api::conditions::condition;
use crate::gate::{GatePhase, Hop, Verdict};

/// How old a proof may be, in s, to be believed by who takes over.
pub const PROOF_TTL_SECONDS: i64 = 15 * 60;

/// Between two writings of the time of the proof, in s.
const PASSED_AT_INTERVAL_SECONDS: i64 = 5 * 60;

/// All that a decision is made of.
pub struct StatusInputs<'a> {
    /// What keeps the cluster from being built at all.
    pub error: Option<&'a ReconcileError>,
    /// A server that refuses to start: `eu-sockjs-x: REALTIME_…`.
    pub startup_refusal: Option<&'a str>,
    /// What the journeys show; `None` until enough is known.
    pub verdict: Option<&'a Verdict>,
    /// Whether there are to be webhooks.
    pub webhooks: bool,
    /// Names what is to be proven.
    pub fingerprint: &'a str,
    /// Pods let in on record, for the message.
    pub on_record: usize,
    /// What was said before, by this and the other controllers.
    pub known: &'a RealtimeClusterStatus,
    /// The version of the manifest.
    pub generation: Option<i64>,
    /// Seconds that a proof may take.
    pub deadline: i64,
    /// Now.
    pub now: Timestamp,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusDecision {
    /// The conditions.
    pub conditions: Vec<ConditionUpdate>,
    /// Where the gate stands.
    pub gate: GateStatus,
    /// Each transport.
    pub transports: Vec<TransportStatus>,
}

/// The types of conditions that are decided here.
pub const OWNED_CONDITIONS: &[&str] = &[
    condition::READY,
    condition::RECONCILING,
    condition::STALLED,
    condition::WEBHOOKS_DELIVERED,
    condition::WEBHOOKS_ENABLED,
];

/// How a cluster stands.
struct ReadyState {
    ready: &'static str,
    reason: Reason,
    message: String,
    /// Only a person can go on.
    stalled: bool,
    /// Something is under way.
    reconciling: bool,
}

/// Decides.
#[must_use]
pub fn decide_status(inputs: &StatusInputs<'_>) -> StatusDecision {
    let passed = is_proven(inputs);
    let mut stand = assess_readiness(inputs, passed);
    if inputs.on_record > 0 && stand.ready != "True" {
        stand.message = format!("{}; {} pods were let in on record", stand.message, inputs.on_record);
    }
    stall_if_overdue(inputs, &mut stand);
    let said = build_conditions(inputs, &stand);
    let ready = stand.ready == "True";
    StatusDecision {
        conditions: said,
        gate: build_gate_status(inputs, &stand, passed || ready),
        transports: build_transport_statuses(inputs),
    }
}

/// Whether the present fingerprint was proven before.
#[must_use]
pub fn was_proven(known: &RealtimeClusterStatus, fingerprint: &str) -> bool {
    known.gate.as_ref().is_some_and(|gate| gate.ever_passed && gate.fingerprint == fingerprint)
}

/// Whether who takes over may believe that the gate is open: proven, said to be open, and lately.
#[must_use]
pub fn is_open(known: &RealtimeClusterStatus, fingerprint: &str, now: Timestamp) -> bool {
    let Some(gate) = &known.gate else { return false };
    let fresh = gate.passed_at.as_ref().and_then(|at| at.parse::<Timestamp>().ok());
    let fresh = fresh.is_some_and(|at| now.as_second() - at.as_second() < PROOF_TTL_SECONDS);
    was_proven(known, fingerprint) && gate.phase == "Open" && fresh
}

fn is_proven(inputs: &StatusInputs<'_>) -> bool {
    was_proven(inputs.known, inputs.fingerprint)
}

fn assess_readiness(inputs: &StatusInputs<'_>, passed: bool) -> ReadyState {
    if let Some(stop) = inputs.error.filter(|stop| stop.reason == Reason::Deleting) {
        let message = stop.message.clone();
        return ReadyState { ready: "False", reason: stop.reason, message, stalled: false, reconciling: true };
    }
    let says = |kind: &str| inputs.known.conditions.iter().find(|condition| condition.type_ == kind);
    let is = |kind: &str, reasons: &[Reason]| {
        says(kind).filter(|c| c.status != "True").and_then(|c| {
            let reason = reasons.iter().find(|reason| reason.name() == c.reason)?;
            Some((*reason, c.message.clone()))
        })
    };
    let hopeless = [Reason::StreamNotOurs, Reason::AccessDenied, Reason::StreamInvalid];
    if let Some((reason, message)) = is(condition::STREAM_READY, &hopeless) {
        return ReadyState { ready: "False", reason, message, stalled: true, reconciling: false };
    }
    if let Some((reason, message)) = is(condition::WORKLOADS_AVAILABLE, &[Reason::ChildNotOurs, Reason::SpecInvalid]) {
        return ReadyState { ready: "False", reason, message, stalled: true, reconciling: false };
    }
    if let Some((reason, message)) = is(condition::STREAM_READY, &[Reason::StreamMissing]) {
        return ReadyState { ready: "False", reason, message, stalled: false, reconciling: false };
    }
    if let Some(stop) = inputs.error {
        // A first proof that has not begun is no failure.
        let under_way = matches!(stop.reason, Reason::StreamCreating | Reason::RollingOut | Reason::Proving);
        // What the stream's own controller says is nearer to the cause than that the stream is waited for.
        let (reason, message) = is(condition::STREAM_READY, &[Reason::StreamUnreachable])
            .filter(|_| under_way)
            .unwrap_or_else(|| (stop.reason, stop.message.clone()));
        let ready = if reason == stop.reason && under_way { "Unknown" } else { "False" };
        return ReadyState { ready, reason, message, stalled: stop.terminal, reconciling: !stop.terminal };
    }
    if let Some((reason, message)) = is(condition::WORKLOADS_AVAILABLE, &[Reason::ApplyFailed]) {
        return ReadyState { ready: "False", reason, message, stalled: false, reconciling: true };
    }
    // What was said of an older manifest says nothing of this one.
    let workloads = says(condition::WORKLOADS_AVAILABLE).filter(|c| c.observed_generation == inputs.generation);
    let rolling = workloads.is_none_or(|c| c.status != "True");
    let rollout = workloads.map_or_else(|| "the manifest is being applied".to_owned(), |c| c.message.clone());
    let under_way =
        |reason, message| ReadyState { ready: "Unknown", reason, message, stalled: false, reconciling: true };
    let Some(verdict) = inputs.verdict else {
        return inherit_readiness(inputs, passed)
            .unwrap_or_else(|| under_way(Reason::Proving, "looking at the pods".to_owned()));
    };
    let open = verdict.phase == GatePhase::Open;
    // A cluster that serves is not closed by one new pod that cannot start; it is never opened with one.
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
        // Pods that are not there yet are no failure of a first proof.
        GatePhase::Proving | GatePhase::Refused if rolling && !passed && reason == Reason::NoPods => {
            under_way(Reason::RollingOut, rollout)
        }
        // A known difference is told as such, also while the pods that replace each other were not all tried.
        GatePhase::Proving if matches!(reason, Reason::ConfigurationDrift | Reason::ClockSkew) => {
            ReadyState { ready: "False", reason, message, stalled: false, reconciling: true }
        }
        GatePhase::Proving => under_way(Reason::Proving, message),
        GatePhase::Refused => ReadyState { ready: "False", reason, message, stalled: false, reconciling: true },
        // Taken over with a proof that was too old: nothing speaks against it, and it is not believed yet.
        GatePhase::Closed
            if reason == Reason::Proving && says(condition::READY).is_some_and(|c| c.status == "Unknown") =>
        {
            under_way(Reason::EvidenceStale, message)
        }
        GatePhase::Closed => ReadyState { ready: "False", reason, message, stalled: false, reconciling: false },
    }
}

/// What who takes over says before it looked at anything: what was said of the same thing, unless the proof is too old.
fn inherit_readiness(inputs: &StatusInputs<'_>, passed: bool) -> Option<ReadyState> {
    let said = inputs.known.conditions.iter().find(|condition| condition.type_ == condition::READY)?;
    if !passed || said.observed_generation != inputs.generation {
        return None;
    }
    let message = said.message.clone();
    let reason = Reason::ALL.iter().copied().find(|reason| reason.name() == said.reason)?;
    match said.status.as_str() {
        "True" if is_open(inputs.known, inputs.fingerprint, inputs.now) => {
            Some(ReadyState { ready: "True", reason, message, stalled: false, reconciling: false })
        }
        "True" => Some(ReadyState {
            ready: "Unknown",
            reason: Reason::EvidenceStale,
            message: "nobody looked for more than 15 minutes: it is proven anew".to_owned(),
            stalled: false,
            reconciling: true,
        }),
        "False" => Some(ReadyState { ready: "False", reason, message, stalled: false, reconciling: false }),
        _ => None,
    }
}

/// What takes too long is told as stalled, so that deployment tools stop waiting; journeys go on and clear it.
fn stall_if_overdue(inputs: &StatusInputs<'_>, stand: &mut ReadyState) {
    if !stand.reconciling {
        return;
    }
    let since = |kind: &str| {
        let found =
            inputs.known.conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True");
        found.map(|condition| inputs.now.as_second() - condition.last_transition_time.0.as_second())
    };
    // Before a pod is there, no journey can run, and no time counts.
    let begun = inputs.verdict.is_some();
    let late = begun && since(condition::RECONCILING).is_some_and(|seconds| seconds > inputs.deadline);
    if late || since(condition::STALLED).is_some_and(|_| begun) {
        stand.stalled = true;
        stand.reconciling = false;
    }
}

fn build_conditions(inputs: &StatusInputs<'_>, stand: &ReadyState) -> Vec<ConditionUpdate> {
    let mut said = vec![ConditionUpdate::new(condition::READY, stand.ready, stand.reason, &stand.message)];
    if stand.stalled {
        said.push(ConditionUpdate::new(condition::STALLED, "True", stand.reason, &stand.message));
    } else if stand.reconciling {
        said.push(ConditionUpdate::new(condition::RECONCILING, "True", stand.reason, &stand.message));
    }
    if inputs.webhooks {
        let status = match inputs.verdict.map(|verdict| verdict.phase) {
            Some(GatePhase::Open) if stand.ready != "False" => "True",
            None if stand.ready == "True" => "True",
            Some(GatePhase::Refused | GatePhase::Closed) => "False",
            _ if stand.ready == "False" => "False",
            _ => "Unknown",
        };
        said.push(ConditionUpdate::new(condition::WEBHOOKS_DELIVERED, status, stand.reason, &stand.message));
        said.push(ConditionUpdate::new(
            condition::WEBHOOKS_ENABLED,
            "True",
            Reason::Applied,
            "webhooks.mode is Kinesis",
        ));
    } else {
        let message = "webhooks are off: webhooks.mode is Off and acknowledged";
        said.push(ConditionUpdate::new(condition::WEBHOOKS_ENABLED, "False", Reason::ReadyWithoutWebhooks, message));
    }
    said
}

fn build_gate_status(inputs: &StatusInputs<'_>, stand: &ReadyState, ever_passed: bool) -> GateStatus {
    let known = inputs.known.gate.clone().unwrap_or_default();
    let ready = stand.ready == "True";
    let phase = match (ready, stand.ready, ever_passed) {
        (true, _, _) => "Open",
        (false, "False", true) => "Closed",
        (false, "False", false) => "Refused",
        _ => "Proving",
    };
    let now = inputs.now.to_string();
    // Who says again what was said before has proven nothing itself.
    let passed_at = if ready && inputs.verdict.is_some() {
        let before = known.passed_at.as_ref().and_then(|at| at.parse::<Timestamp>().ok());
        let due = before.is_none_or(|at| inputs.now.as_second() - at.as_second() >= PASSED_AT_INTERVAL_SECONDS);
        if due || known.phase != "Open" { Some(now.clone()) } else { known.passed_at.clone() }
    } else {
        known.passed_at.clone()
    };
    let failed = stand.ready == "False";
    let last_failure = match &known.last_failure {
        Some(last) if !failed || last.message == stand.message => Some(last.clone()),
        _ if failed => {
            Some(LastFailure { reason: stand.reason.to_string(), message: stand.message.clone(), time: now })
        }
        _ => None,
    };
    // Without a fingerprint nothing new is to be proven: what was known of the former stays.
    let fingerprint = if inputs.fingerprint.is_empty() { known.fingerprint } else { inputs.fingerprint.to_owned() };
    let ever_passed = if inputs.fingerprint.is_empty() { known.ever_passed } else { ever_passed };
    GateStatus { phase: phase.to_owned(), ever_passed, fingerprint, passed_at, last_failure }
}

fn build_transport_statuses(inputs: &StatusInputs<'_>) -> Vec<TransportStatus> {
    let Some(verdict) = inputs.verdict else { return inputs.known.transports.clone() };
    let transports = verdict.transports.iter().map(|transport| TransportStatus {
        name: transport.transport.name().to_owned(),
        server: transport.server.name().to_owned(),
        state: transport.state,
        hop: transport.hop.map_or("", Hop::name).to_owned(),
        pods: format!("{}/{}", transport.pods_passing, transport.pods),
    });
    transports.collect()
}

#[cfg(test)]
mod tests;
