//! What a cluster's status says. Pure.
//!
//! In: what stands in the way before any journey, what the other controllers say, the gate's verdict, what was said
//! before. Out: the conditions that the gate owns, `status.gate` and `status.transports`. The first hit wins, from what
//! only a person can mend down to what proves that everything works.

use k8s_openapi::jiff::Timestamp;

use super::context::Stop;
use super::status::Said;
use crate::api::Reason;
use crate::api::cluster::{GateStatus, LastFailure, RealtimeClusterStatus, TransportStatus};
use crate::api::conditions::condition;
use crate::gate::{Hop, Phase, Verdict};

/// How old a proof may be, in s, to be believed by who takes over.
pub const FRESH: i64 = 15 * 60;

/// Between two writings of the time of the proof, in s.
const PASSED_EVERY: i64 = 5 * 60;

/// All that a decision is made of.
pub struct Inputs<'a> {
    /// What keeps the cluster from being built at all.
    pub stop: Option<&'a Stop>,
    /// A server that refuses to start: `eu-sockjs-x: REALTIME_…`.
    pub refusal: Option<&'a str>,
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
pub struct Decision {
    /// The conditions.
    pub said: Vec<Said>,
    /// Where the gate stands.
    pub gate: GateStatus,
    /// Each transport.
    pub transports: Vec<TransportStatus>,
}

/// The types of conditions that are decided here.
pub const OWNS: &[&str] = &[
    condition::READY,
    condition::RECONCILING,
    condition::STALLED,
    condition::WEBHOOKS_DELIVERED,
    condition::WEBHOOKS_ENABLED,
];

/// How a cluster stands.
struct Stand {
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
pub fn decide(inputs: &Inputs<'_>) -> Decision {
    let passed = passed(inputs);
    let mut stand = stand(inputs, passed);
    if inputs.on_record > 0 && stand.ready != "True" {
        stand.message = format!("{}; {} pods were let in on record", stand.message, inputs.on_record);
    }
    overdue(inputs, &mut stand);
    let said = conditions(inputs, &stand);
    let ready = stand.ready == "True";
    Decision { said, gate: gate(inputs, &stand, passed || ready), transports: transports(inputs) }
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
    let fresh = fresh.is_some_and(|at| now.as_second() - at.as_second() < FRESH);
    was_proven(known, fingerprint) && gate.phase == "Open" && fresh
}

fn passed(inputs: &Inputs<'_>) -> bool {
    was_proven(inputs.known, inputs.fingerprint)
}

fn stand(inputs: &Inputs<'_>, passed: bool) -> Stand {
    let says = |kind: &str| inputs.known.conditions.iter().find(|condition| condition.type_ == kind);
    let is = |kind: &str, reasons: &[Reason]| {
        says(kind).filter(|c| c.status != "True").and_then(|c| {
            let reason = reasons.iter().find(|reason| reason.name() == c.reason)?;
            Some((*reason, c.message.clone()))
        })
    };
    if let Some((reason, message)) = is(condition::STREAM_READY, &[Reason::StreamNotOurs, Reason::AccessDenied]) {
        return Stand { ready: "False", reason, message, stalled: true, reconciling: false };
    }
    if let Some((reason, message)) = is(condition::WORKLOADS_AVAILABLE, &[Reason::ChildNotOurs, Reason::SpecInvalid]) {
        return Stand { ready: "False", reason, message, stalled: true, reconciling: false };
    }
    if let Some((reason, message)) = is(condition::STREAM_READY, &[Reason::StreamMissing]) {
        return Stand { ready: "False", reason, message, stalled: false, reconciling: false };
    }
    if let Some(stop) = inputs.stop {
        // A first proof that has not begun is no failure.
        let under_way = matches!(stop.reason, Reason::StreamCreating | Reason::RollingOut | Reason::Proving);
        // What the stream's own controller says is nearer to the cause than that the stream is waited for.
        let (reason, message) = is(condition::STREAM_READY, &[Reason::StreamUnreachable])
            .filter(|_| under_way)
            .unwrap_or_else(|| (stop.reason, stop.message.clone()));
        let ready = if reason == stop.reason && under_way { "Unknown" } else { "False" };
        return Stand { ready, reason, message, stalled: stop.terminal, reconciling: !stop.terminal };
    }
    if let Some((reason, message)) = is(condition::WORKLOADS_AVAILABLE, &[Reason::ApplyFailed]) {
        return Stand { ready: "False", reason, message, stalled: false, reconciling: true };
    }
    // What was said of an older manifest says nothing of this one.
    let workloads = says(condition::WORKLOADS_AVAILABLE).filter(|c| c.observed_generation == inputs.generation);
    let rolling = workloads.is_none_or(|c| c.status != "True");
    let rollout = workloads.map_or_else(|| "the manifest is being applied".to_owned(), |c| c.message.clone());
    let under_way = |reason, message| Stand { ready: "Unknown", reason, message, stalled: false, reconciling: true };
    let Some(verdict) = inputs.verdict else {
        return under_way(Reason::Proving, "looking at the pods".to_owned());
    };
    let open = verdict.phase == Phase::Open;
    // A cluster that serves is not closed by one new pod that cannot start; it is never opened with one.
    if let Some(line) = inputs.refusal
        && !(open && passed)
    {
        let message = format!("a server refuses to start: {line}");
        return Stand {
            ready: "False",
            reason: Reason::ConfigurationRefused,
            message,
            stalled: false,
            reconciling: true,
        };
    }
    let (reason, message) = (verdict.reason, verdict.message.clone());
    match verdict.phase {
        Phase::Open if passed || !rolling => {
            Stand { ready: "True", reason, message, stalled: false, reconciling: false }
        }
        Phase::Open => under_way(Reason::RollingOut, rollout),
        // Pods that are not there yet are no failure of a first proof.
        Phase::Proving | Phase::Refused if rolling && !passed && reason == Reason::NoPods => {
            under_way(Reason::RollingOut, rollout)
        }
        // A known difference is told as such, also while the pods that replace each other were not all tried.
        Phase::Proving if matches!(reason, Reason::ConfigurationDrift | Reason::ClockSkew) => {
            Stand { ready: "False", reason, message, stalled: false, reconciling: true }
        }
        Phase::Proving => under_way(Reason::Proving, message),
        Phase::Refused => Stand { ready: "False", reason, message, stalled: false, reconciling: true },
        Phase::Closed => Stand { ready: "False", reason, message, stalled: false, reconciling: false },
    }
}

/// What takes too long is told as stalled, so that deployment tools stop waiting; journeys go on and clear it.
fn overdue(inputs: &Inputs<'_>, stand: &mut Stand) {
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

fn conditions(inputs: &Inputs<'_>, stand: &Stand) -> Vec<Said> {
    let mut said = vec![Said::new(condition::READY, stand.ready, stand.reason, &stand.message)];
    if stand.stalled {
        said.push(Said::new(condition::STALLED, "True", stand.reason, &stand.message));
    } else if stand.reconciling {
        said.push(Said::new(condition::RECONCILING, "True", stand.reason, &stand.message));
    }
    if inputs.webhooks {
        let status = match inputs.verdict.map(|verdict| verdict.phase) {
            Some(Phase::Open) if stand.ready != "False" => "True",
            Some(Phase::Refused | Phase::Closed) => "False",
            _ if stand.ready == "False" => "False",
            _ => "Unknown",
        };
        said.push(Said::new(condition::WEBHOOKS_DELIVERED, status, stand.reason, &stand.message));
        said.push(Said::new(condition::WEBHOOKS_ENABLED, "True", Reason::Applied, "webhooks.mode is Kinesis"));
    } else {
        let message = "webhooks are off: webhooks.mode is Off and acknowledged";
        said.push(Said::new(condition::WEBHOOKS_ENABLED, "False", Reason::ReadyWithoutWebhooks, message));
    }
    said
}

fn gate(inputs: &Inputs<'_>, stand: &Stand, ever_passed: bool) -> GateStatus {
    let known = inputs.known.gate.clone().unwrap_or_default();
    let ready = stand.ready == "True";
    let phase = match (ready, stand.ready, ever_passed) {
        (true, _, _) => "Open",
        (false, "False", true) => "Closed",
        (false, "False", false) => "Refused",
        _ => "Proving",
    };
    let now = inputs.now.to_string();
    let passed_at = if ready {
        let before = known.passed_at.as_ref().and_then(|at| at.parse::<Timestamp>().ok());
        let due = before.is_none_or(|at| inputs.now.as_second() - at.as_second() >= PASSED_EVERY);
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

fn transports(inputs: &Inputs<'_>) -> Vec<TransportStatus> {
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
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    const NOW: i64 = 1_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn condition(kind: &str, status: &str, reason: &str, since: i64) -> Condition {
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: format!("{kind} says {reason}"),
            observed_generation: None,
            last_transition_time: Time(at(since)),
        }
    }

    fn well() -> Vec<Condition> {
        vec![condition("StreamReady", "True", "StreamActive", 1), condition("WorkloadsAvailable", "True", "Applied", 1)]
    }

    fn rolling() -> Vec<Condition> {
        vec![
            condition("StreamReady", "True", "StreamActive", 1),
            condition("WorkloadsAvailable", "False", "RollingOut", 1),
        ]
    }

    fn verdict(phase: Phase, reason: Reason) -> Verdict {
        Verdict { phase, ready: phase == Phase::Open, reason, message: "the verdict".to_owned(), transports: vec![] }
    }

    #[expect(clippy::unnecessary_wraps, reason = "it stands where there may be none")]
    fn proven(fingerprint: &str) -> Option<GateStatus> {
        Some(GateStatus {
            phase: "Open".to_owned(),
            ever_passed: true,
            fingerprint: fingerprint.to_owned(),
            passed_at: Some(at(NOW - 60).to_string()),
            last_failure: None,
        })
    }

    /// `Ready/reason` and the kstatus marks.
    fn told(
        conditions: Vec<Condition>,
        gate: Option<GateStatus>,
        stop: Option<&Stop>,
        refusal: Option<&str>,
        verdict: Option<&Verdict>,
    ) -> String {
        let known = RealtimeClusterStatus { conditions, gate, ..RealtimeClusterStatus::default() };
        let inputs = Inputs {
            stop,
            refusal,
            verdict,
            webhooks: true,
            fingerprint: "f1",
            on_record: 0,
            known: &known,
            generation: None,
            deadline: 600,
            now: at(NOW),
        };
        let decision = decide(&inputs);
        let has = |kind: &str| decision.said.iter().any(|said| said.kind == kind && said.status == "True");
        assert!(!(has("Reconciling") && has("Stalled")), "never both");
        let mark = match (has("Reconciling"), has("Stalled")) {
            (true, _) => " reconciling",
            (_, true) => " stalled",
            _ => "",
        };
        format!("{}/{}{mark}", decision.said[0].status, decision.said[0].reason)
    }

    #[test]
    fn a_table_of_states() {
        let open = verdict(Phase::Open, Reason::Proven);
        let proving = verdict(Phase::Proving, Reason::Proving);
        let refused = verdict(Phase::Refused, Reason::ConfigurationDrift);
        let nobody = verdict(Phase::Refused, Reason::NoPods);
        let closed = verdict(Phase::Closed, Reason::RecordRefused);
        let waiting = Stop::waiting(Reason::StreamCreating, "waiting");
        let secret = Stop::waiting(Reason::SecretMissing, "no Secret");
        let bad = Stop::terminal(Reason::SpecInvalid, "bad");
        let not_ours = || vec![condition("StreamReady", "False", "StreamNotOurs", 1)];
        let missing = || vec![condition("StreamReady", "False", "StreamMissing", 1)];
        let child = || vec![condition("WorkloadsAvailable", "False", "ChildNotOurs", 1)];
        let late = || {
            let mut all = rolling();
            all.push(condition("Reconciling", "True", "Proving", NOW - 601));
            all
        };
        for (name, found, expected) in [
            (
                "the stream is made",
                told(vec![], None, Some(&waiting), None, None),
                "Unknown/StreamCreating reconciling",
            ),
            ("a Secret is missing", told(vec![], None, Some(&secret), None, None), "False/SecretMissing reconciling"),
            ("a bad spec", told(vec![], None, Some(&bad), None, None), "False/SpecInvalid stalled"),
            ("another's stream", told(not_ours(), None, Some(&waiting), None, None), "False/StreamNotOurs stalled"),
            ("another's child", told(child(), None, None, None, Some(&open)), "False/ChildNotOurs stalled"),
            ("the stream was deleted", told(missing(), proven("f1"), None, None, Some(&open)), "False/StreamMissing"),
            ("nothing was looked at", told(rolling(), None, None, None, None), "Unknown/Proving reconciling"),
            (
                "the first pods come up",
                told(rolling(), None, None, None, Some(&nobody)),
                "Unknown/RollingOut reconciling",
            ),
            ("the first proof", told(rolling(), None, None, None, Some(&proving)), "Unknown/Proving reconciling"),
            (
                "proven, and pods are not let in yet",
                told(rolling(), None, None, None, Some(&open)),
                "Unknown/RollingOut reconciling",
            ),
            ("proven", told(well(), None, None, None, Some(&open)), "True/Proven"),
            (
                "a pod is replaced in a proven cluster",
                told(rolling(), proven("f1"), None, None, Some(&open)),
                "True/Proven",
            ),
            (
                "another template",
                told(rolling(), proven("f0"), None, None, Some(&open)),
                "Unknown/RollingOut reconciling",
            ),
            ("refused", told(rolling(), None, None, None, Some(&refused)), "False/ConfigurationDrift reconciling"),
            (
                "a difference before every pod was tried",
                told(rolling(), None, None, None, Some(&verdict(Phase::Proving, Reason::ConfigurationDrift))),
                "False/ConfigurationDrift reconciling",
            ),
            ("closed", told(well(), proven("f1"), None, None, Some(&closed)), "False/RecordRefused"),
            (
                "nobody is left",
                told(rolling(), proven("f1"), None, None, Some(&verdict(Phase::Closed, Reason::NoPods))),
                "False/NoPods",
            ),
            (
                "a server refuses at install",
                told(rolling(), None, None, Some("p: x"), Some(&proving)),
                "False/ConfigurationRefused reconciling",
            ),
            (
                "a new pod refuses in a proven cluster",
                told(rolling(), proven("f1"), None, Some("p: x"), Some(&open)),
                "True/Proven",
            ),
            ("too late", told(late(), None, None, None, Some(&refused)), "False/ConfigurationDrift stalled"),
        ] {
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn the_time_of_the_proof_is_written_when_it_turns_and_every_five_minutes() {
        let open = verdict(Phase::Open, Reason::Proven);
        let passed = |gate: Option<GateStatus>, now: i64| {
            let known = RealtimeClusterStatus { conditions: well(), gate, ..RealtimeClusterStatus::default() };
            let inputs = Inputs {
                stop: None,
                refusal: None,
                verdict: Some(&open),
                webhooks: true,
                fingerprint: "f1",
                on_record: 0,
                known: &known,
                generation: None,
                deadline: 600,
                now: at(now),
            };
            decide(&inputs).gate
        };
        let first = passed(None, NOW);
        assert_eq!(first.passed_at, Some(at(NOW).to_string()));
        assert_eq!(passed(Some(first.clone()), NOW + 299).passed_at, first.passed_at);
        assert_eq!(passed(Some(first), NOW + 300).passed_at, Some(at(NOW + 300).to_string()));
    }

    #[test]
    fn who_takes_over_believes_a_fresh_proof_of_the_same_thing_only() {
        let known = |gate| RealtimeClusterStatus { gate, ..RealtimeClusterStatus::default() };
        assert!(is_open(&known(proven("f1")), "f1", at(NOW)));
        assert!(!is_open(&known(proven("f1")), "f2", at(NOW)));
        assert!(!is_open(&known(proven("f1")), "f1", at(NOW + FRESH)));
        assert!(!is_open(&known(None), "f1", at(NOW)));
    }
}
