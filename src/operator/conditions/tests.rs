use super::*;
use crate::gate::ExternalVerdict;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use proptest::prelude::*;

const INHERITED_MAX: Duration = Duration::from_mins(15);
const PROOF_TTL_SECONDS: i64 = 15 * 60;
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
    vec![condition("StreamReady", "True", "StreamActive", 1), condition("WorkloadsAvailable", "False", "RollingOut", 1)]
}

fn verdict(phase: GatePhase, reason: Reason) -> Verdict {
    Verdict {
        fingerprint: "f1".to_owned(),
        passed_ms: Some(u64::try_from(NOW - 30).expect("positive") * 1_000),
        inherited: false,
        phase,
        ready: phase == GatePhase::Open,
        reason,
        message: "the verdict".to_owned(),
        transports: vec![],
        external: None,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it stands where there may be none")]
fn proven(fingerprint: &str) -> Option<GateStatus> {
    Some(GateStatus {
        phase: "Open".to_owned(),
        ever_passed: true,
        fingerprint: fingerprint.to_owned(),
        passed_at: Some(at(NOW - 60).to_string()),
        proving_since: None,
        last_failure: None,
        ..GateStatus::default()
    })
}

/// Inputs without an error, a refusal or a verdict.
fn inputs(known: &RealtimeClusterStatus) -> StatusInputs<'_> {
    StatusInputs {
        error: None,
        startup_refusal: None,
        verdict: None,
        webhooks: true,
        fingerprint: "f1",
        on_record: 0,
        pod_difference: None,
        known,
        suspended: false,
        generation: None,
        deadline: 600,
        inherited_max: INHERITED_MAX,
        now: at(NOW),
    }
}

/// Summarizes a decision: `Ready/reason`, and which kstatus condition is present.
fn summary(
    conditions: Vec<Condition>,
    gate: Option<GateStatus>,
    stop: Option<&ReconcileError>,
    refusal: Option<&str>,
    verdict: Option<&Verdict>,
) -> String {
    let known = RealtimeClusterStatus { conditions, gate, ..RealtimeClusterStatus::default() };
    let decision = decide_status(&StatusInputs { error: stop, startup_refusal: refusal, verdict, ..inputs(&known) });
    let has = |kind: &str| decision.conditions.iter().any(|said| said.kind == kind && said.status == "True");
    assert!(!(has("Reconciling") && has("Stalled")), "never both");
    let mark = match (has("Reconciling"), has("Stalled")) {
        (true, _) => " reconciling",
        (_, true) => " stalled",
        _ => "",
    };
    format!("{}/{}{mark}", decision.conditions[0].status, decision.conditions[0].reason)
}

#[test]
fn the_first_match_from_terminal_errors_to_the_proof_decides_ready() {
    let open = verdict(GatePhase::Open, Reason::Proven);
    let proving = verdict(GatePhase::Proving, Reason::Proving);
    let refused = verdict(GatePhase::Refused, Reason::ConfigurationDrift);
    let nobody = verdict(GatePhase::Refused, Reason::NoPods);
    let closed = verdict(GatePhase::Closed, Reason::RecordRefused);
    let waiting = ReconcileError::transient(Reason::StreamCreating, "waiting");
    let secret = ReconcileError::transient(Reason::SecretMissing, "no Secret");
    let bad = ReconcileError::terminal(Reason::SpecInvalid, "bad");
    let forbidden = ReconcileError::terminal(Reason::NotAllowedByPolicy, "forbidden");
    let unapplied = || vec![condition("WorkloadsAvailable", "False", "NotAllowedByPolicy", 1)];
    let deleted = ReconcileError::transient(Reason::Deleting, "going");
    let failed = ReconcileError::transient(Reason::ApplyFailed, "500");
    let denied_call = ReconcileError::transient(Reason::AccessDenied, "403");
    let not_ours = || vec![condition("StreamReady", "False", "StreamNotOurs", 1)];
    let invalid = || vec![condition("StreamReady", "False", "StreamInvalid", 1)];
    let missing = || vec![condition("StreamReady", "False", "StreamMissing", 1)];
    let child = || vec![condition("WorkloadsAvailable", "False", "ChildNotOurs", 1)];
    let denied = || vec![condition("StreamReady", "False", "AccessDenied", NOW - 900)];
    let unwritten = || vec![condition("WorkloadsAvailable", "False", "ApplyFailed", NOW - 5)];
    for (name, found, expected) in [
        ("the stream is made", summary(vec![], None, Some(&waiting), None, None), "Unknown/StreamCreating reconciling"),
        ("a Secret is missing", summary(vec![], None, Some(&secret), None, None), "False/SecretMissing reconciling"),
        ("a bad spec", summary(vec![], None, Some(&bad), None, None), "False/SpecInvalid stalled"),
        (
            "a manifest against the policy",
            summary(unapplied(), None, Some(&forbidden), None, None),
            "False/NotAllowedByPolicy stalled",
        ),
        ("it goes", summary(not_ours(), proven("f1"), Some(&deleted), None, None), "False/Deleting reconciling"),
        ("another's stream", summary(not_ours(), None, Some(&waiting), None, None), "False/StreamNotOurs stalled"),
        ("a stream that never is", summary(invalid(), None, Some(&waiting), None, None), "False/StreamInvalid stalled"),
        ("another's child", summary(child(), None, None, None, Some(&open)), "False/ChildNotOurs stalled"),
        ("the stream was deleted", summary(missing(), proven("f1"), None, None, Some(&open)), "False/StreamMissing"),
        ("nothing was looked at", summary(rolling(), None, None, None, None), "Unknown/Proving reconciling"),
        (
            "the first pods come up",
            summary(rolling(), None, None, None, Some(&nobody)),
            "Unknown/RollingOut reconciling",
        ),
        ("the first proof", summary(rolling(), None, None, None, Some(&proving)), "Unknown/Proving reconciling"),
        (
            "proven, and pods are not let in yet",
            summary(rolling(), None, None, None, Some(&open)),
            "Unknown/RollingOut reconciling",
        ),
        ("proven", summary(well(), None, None, None, Some(&open)), "True/Proven"),
        (
            "a pod is replaced in a proven cluster",
            summary(rolling(), proven("f1"), None, None, Some(&open)),
            "True/Proven",
        ),
        (
            "another template",
            summary(rolling(), proven("f0"), None, None, Some(&open)),
            "Unknown/RollingOut reconciling",
        ),
        ("refused", summary(rolling(), None, None, None, Some(&refused)), "False/ConfigurationDrift reconciling"),
        (
            "a difference before every pod was tried",
            summary(rolling(), None, None, None, Some(&verdict(GatePhase::Proving, Reason::ConfigurationDrift))),
            "False/ConfigurationDrift reconciling",
        ),
        ("closed", summary(well(), proven("f1"), None, None, Some(&closed)), "False/RecordRefused"),
        (
            "nobody is left",
            summary(rolling(), proven("f1"), None, None, Some(&verdict(GatePhase::Closed, Reason::NoPods))),
            "False/NoPods",
        ),
        (
            "a server refuses at install",
            summary(rolling(), None, None, Some("p: x"), Some(&proving)),
            "False/ConfigurationRefused reconciling",
        ),
        (
            "a new pod refuses in a proven cluster",
            summary(rolling(), proven("f1"), None, Some("p: x"), Some(&open)),
            "True/Proven",
        ),
        ("a missing right", summary(denied(), None, Some(&waiting), None, None), "False/AccessDenied reconciling"),
        ("no right, and events arrive", summary(denied(), proven("f1"), None, None, Some(&open)), "True/Proven"),
        (
            "no right, and events stop",
            summary(denied(), proven("f1"), None, None, Some(&closed)),
            "False/RecordRefused",
        ),
        (
            "children unwritten",
            summary(unwritten(), None, None, None, Some(&proving)),
            "Unknown/ApplyFailed reconciling",
        ),
        ("the first call fails", summary(vec![], None, Some(&failed), None, None), "Unknown/ApplyFailed reconciling"),
        (
            "the first call is refused",
            summary(vec![], None, Some(&denied_call), None, None),
            "False/AccessDenied reconciling",
        ),
        ("unwritten, and events arrive", summary(unwritten(), proven("f1"), None, None, Some(&open)), "True/Proven"),
    ] {
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_new_leader_keeps_the_previous_status_until_its_first_observation() {
    let ready = |status: &str, reason: &str| {
        let mut all = well();
        all.push(condition("Ready", status, reason, NOW - 60));
        all
    };
    let gate = |phase: &str, age: i64| {
        let passed_at = Some(at(NOW - age).to_string());
        proven("f1").map(|gate| GateStatus { phase: phase.to_owned(), passed_at, ..gate })
    };
    let lapsed = verdict(GatePhase::Closed, Reason::Proving);
    for (name, found, expected) in [
        ("proven lately", summary(ready("True", "Proven"), gate("Open", 60), None, None, None), "True/Proven"),
        (
            "proven long ago",
            summary(ready("True", "Proven"), gate("Open", PROOF_TTL_SECONDS), None, None, None),
            "Unknown/EvidenceStale reconciling",
        ),
        (
            "proven long ago, and looked at",
            summary(ready("Unknown", "EvidenceStale"), gate("Proving", PROOF_TTL_SECONDS), None, None, Some(&lapsed)),
            "Unknown/EvidenceStale reconciling",
        ),
        (
            "closed",
            summary(ready("False", "RecordRefused"), gate("Closed", 60), None, None, None),
            "False/RecordRefused",
        ),
        (
            "another template",
            summary(ready("True", "Proven"), proven("f0"), None, None, None),
            "Unknown/Proving reconciling",
        ),
    ] {
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn passed_at_is_the_time_of_a_complete_round_and_written_every_five_minutes() {
    let passed = |gate: Option<GateStatus>, open: &Verdict| {
        let known = RealtimeClusterStatus { conditions: well(), gate, ..RealtimeClusterStatus::default() };
        decide_status(&StatusInputs { verdict: Some(open), known: &known, ..inputs(&known) }).gate
    };
    let round_at = |second: i64| Verdict {
        passed_ms: Some(u64::try_from(second).expect("positive") * 1_000),
        ..verdict(GatePhase::Open, Reason::Proven)
    };
    let first = passed(None, &round_at(NOW - 30));
    assert_eq!(first.passed_at, Some(at(NOW - 30).to_string()), "the start of the round, not the time of writing");
    assert_eq!(passed(Some(first.clone()), &round_at(NOW + 269)).passed_at, first.passed_at);
    let later = round_at(NOW + 270);
    assert_eq!(passed(Some(first.clone()), &later).passed_at, Some(at(NOW + 270).to_string()));
    let inherited = Verdict { inherited: true, ..later };
    assert_eq!(
        passed(Some(first.clone()), &inherited).passed_at,
        first.passed_at,
        "a former leader's proof is not new"
    );
}

#[test]
fn a_verdict_on_another_fingerprint_is_no_verdict() {
    let known = RealtimeClusterStatus { conditions: well(), gate: proven("f0"), ..RealtimeClusterStatus::default() };
    let old = Verdict { fingerprint: "f0".to_owned(), ..verdict(GatePhase::Open, Reason::Proven) };
    let decision = decide_status(&StatusInputs { verdict: Some(&old), ..inputs(&known) });
    let ready = &decision.conditions[0];
    assert_eq!((ready.status, ready.reason), ("Unknown", Reason::Proving));
    assert_eq!((decision.gate.ever_passed, decision.gate.fingerprint.as_str()), (false, "f1"));
    assert_eq!(decision.gate.passed_at, proven("f0").and_then(|gate| gate.passed_at), "of the former proof");
    let new = verdict(GatePhase::Open, Reason::Proven);
    let decision = decide_status(&StatusInputs { verdict: Some(&new), ..inputs(&known) });
    assert_eq!((decision.conditions[0].status, decision.gate.ever_passed), ("True", true));
}

#[test]
fn a_pod_that_differs_is_named_while_a_rollout_waits_for_it() {
    let known = RealtimeClusterStatus { conditions: rolling(), gate: None, ..RealtimeClusterStatus::default() };
    let ready = |known: &RealtimeClusterStatus, verdict: &Verdict| {
        let line = "eu-sockjs-1 differs from its template: x".to_owned();
        let problem = PodProblem { reason: Reason::ConfigurationDrift, line };
        let pod_difference = Some(&problem);
        let decision = decide_status(&StatusInputs { verdict: Some(verdict), pod_difference, ..inputs(known) });
        let ready = &decision.conditions[0];
        format!("{}/{}", ready.status, ready.reason)
    };
    for (phase, reason, expected) in [
        (GatePhase::Open, Reason::Proven, "False/ConfigurationDrift"),
        (GatePhase::Proving, Reason::Proving, "False/ConfigurationDrift"),
        (GatePhase::Refused, Reason::NoPods, "False/ConfigurationDrift"),
        (GatePhase::Refused, Reason::RecordMissing, "False/RecordMissing"),
    ] {
        assert_eq!(ready(&known, &verdict(phase, reason)), expected, "{phase:?} {reason}");
    }
    let proven = RealtimeClusterStatus { gate: proven("f1"), ..known };
    assert_eq!(
        ready(&proven, &verdict(GatePhase::Open, Reason::Proven)),
        "True/Proven",
        "one new pod of a proven cluster"
    );
}

#[test]
fn a_missing_identity_is_the_reason_from_the_first_pod_on_and_neither_stalls_nor_meets_the_deadline() {
    let known = RealtimeClusterStatus {
        conditions: rolling(),
        gate: Some(GateStatus {
            fingerprint: "f1".to_owned(),
            proving_since: Some(at(NOW - 10_000).to_string()),
            ..GateStatus::default()
        }),
        observed_generation: 2,
        ..RealtimeClusterStatus::default()
    };
    let problem = PodProblem { reason: Reason::IdentityNotInjected, line: "run aws eks".to_owned() };
    let stuck = verdict(GatePhase::Refused, Reason::DispatcherStuck);
    let nobody = verdict(GatePhase::Refused, Reason::NoPods);
    for verdict in [None, Some(&nobody), Some(&stuck)] {
        let pod_difference = Some(&problem);
        let decision = decide_status(&StatusInputs { verdict, pod_difference, generation: Some(2), ..inputs(&known) });
        let ready = &decision.conditions[0];
        assert_eq!((ready.status, ready.reason), ("False", Reason::IdentityNotInjected), "{verdict:?}");
        assert_eq!(ready.message, "run aws eks");
        assert!(decision.conditions.iter().all(|found| found.kind != "Stalled"), "{verdict:?}");
        assert!(decision.conditions.iter().any(|found| found.kind == "Reconciling"), "{verdict:?}");
    }
    let proven = RealtimeClusterStatus { gate: proven("f1"), ..known };
    let open = verdict(GatePhase::Open, Reason::Proven);
    let pod_difference = Some(&problem);
    let decision = decide_status(&StatusInputs { verdict: Some(&open), pod_difference, ..inputs(&proven) });
    assert_eq!(decision.conditions[0].status, "True", "one new pod of a proven cluster");
}

#[test]
fn evidence_that_is_too_old_is_unknown() {
    let known = RealtimeClusterStatus { conditions: well(), gate: proven("f1"), ..RealtimeClusterStatus::default() };
    let stale = verdict(GatePhase::Closed, Reason::EvidenceStale);
    let decision = decide_status(&StatusInputs { verdict: Some(&stale), ..inputs(&known) });
    assert_eq!((decision.conditions[0].status, decision.conditions[0].reason), ("Unknown", Reason::EvidenceStale));
}

#[test]
fn a_new_leader_accepts_only_a_fresh_proof_of_the_same_fingerprint() {
    let known = |gate| RealtimeClusterStatus { gate, ..RealtimeClusterStatus::default() };
    assert!(is_open(&known(proven("f1")), "f1", at(NOW), INHERITED_MAX));
    assert!(!is_open(&known(proven("f1")), "f2", at(NOW), INHERITED_MAX));
    assert!(!is_open(&known(proven("f1")), "f1", at(NOW + PROOF_TTL_SECONDS), INHERITED_MAX));
    assert!(!is_open(&known(None), "f1", at(NOW), INHERITED_MAX));
}

/// The decision for generation 2, and the names of the conditions among Reconciling and Stalled that are True.
fn decide(known: &RealtimeClusterStatus, verdict: Option<&Verdict>, now: i64) -> (StatusDecision, Vec<&'static str>) {
    let decision = decide_status(&StatusInputs { verdict, generation: Some(2), now: at(now), ..inputs(known) });
    let is_present =
        |kind: &&str| decision.conditions.iter().any(|found| found.kind == *kind && found.status == "True");
    let present = ["Reconciling", "Stalled"].into_iter().filter(is_present).collect();
    (decision, present)
}

#[test]
fn the_deadline_counts_from_the_first_possible_journey_of_a_generation_and_never_stalls() {
    let refused = verdict(GatePhase::Refused, Reason::RecordMissing);
    let mut known = RealtimeClusterStatus { observed_generation: 2, ..RealtimeClusterStatus::default() };
    let (first, _) = decide(&known, None, NOW);
    assert_eq!(first.gate.proving_since, None, "no journey can run without a pod");
    known.gate = Some(first.gate);
    let (second, _) = decide(&known, Some(&refused), NOW + 5_000);
    assert_eq!(second.conditions[0].reason, Reason::RecordMissing, "the time without a pod does not count");
    known.gate = Some(second.gate);
    let (late, present) = decide(&known, Some(&refused), NOW + 5_601);
    assert_eq!((late.conditions[0].status, late.conditions[0].reason), ("False", Reason::DeadlineExceeded));
    assert_eq!(late.conditions[0].message, "not proven within 600 s: RecordMissing: the verdict");
    assert_eq!(present, ["Reconciling"]);
    known.gate = Some(late.gate);
    known.observed_generation = 1;
    let (edited, _) = decide(&known, Some(&refused), NOW + 5_602);
    assert_eq!(edited.conditions[0].reason, Reason::RecordMissing, "a new generation has its own deadline");
    known.observed_generation = 2;
    let (proven, present) = decide(&known, Some(&verdict(GatePhase::Open, Reason::Proven)), NOW + 5_603);
    assert!(proven.gate.proving_since.is_some() && present == ["Reconciling"], "pods are still rolling out");
}

#[test]
fn a_new_generation_shows_nothing_of_the_former_one() {
    let of_generation = |generation, reason: &str| Condition {
        observed_generation: Some(generation),
        ..condition("StreamReady", "False", reason, 1)
    };
    for reason in ["StreamNotOurs", "StreamInvalid", "StreamMissing"] {
        let known = |generation| RealtimeClusterStatus {
            conditions: vec![of_generation(generation, reason), condition("Stalled", "True", reason, 1)],
            observed_generation: generation,
            ..RealtimeClusterStatus::default()
        };
        let (former, present) = decide(&known(1), None, NOW);
        assert_eq!(
            (former.conditions[0].status, former.conditions[0].reason),
            ("Unknown", Reason::Proving),
            "{reason}"
        );
        assert_eq!(present, ["Reconciling"], "{reason}");
        assert_eq!(decide(&known(2), None, NOW).0.conditions[0].reason.name(), reason);
    }
}

#[test]
fn a_refusal_by_aws_stalls_after_five_minutes_without_a_break_in_one_generation() {
    let waiting = ReconcileError::transient(Reason::StreamCreating, "waiting");
    let mut known = RealtimeClusterStatus { observed_generation: 1, ..RealtimeClusterStatus::default() };
    let mut stalled = |reason: &str, generation: i64, now: i64| {
        let found = Condition { observed_generation: Some(generation), ..condition("StreamReady", "False", reason, 1) };
        known.conditions = vec![found];
        let inputs =
            StatusInputs { error: Some(&waiting), generation: Some(generation), now: at(now), ..inputs(&known) };
        let decision = decide_status(&inputs);
        known.gate = Some(decision.gate);
        known.observed_generation = generation;
        decision.conditions.iter().any(|found| found.kind == "Stalled")
    };
    assert!(!stalled("StreamCreating", 1, NOW), "the condition is False for long, by another reason");
    assert!(!stalled("AccessDenied", 1, NOW + 10));
    assert!(!stalled("AccessDenied", 1, NOW + 309));
    assert!(stalled("AccessDenied", 1, NOW + 310));
    assert!(!stalled("AccessDenied", 2, NOW + 311), "an edit has its own five minutes");
    assert!(!stalled("AccessDenied", 2, NOW + 610));
    assert!(stalled("AccessDenied", 2, NOW + 611));
}

#[test]
fn a_failed_call_of_the_operator_keeps_unknown_and_hides_no_closed_gate() {
    let failed = ReconcileError::transient(Reason::ApplyFailed, "reading Secret channels/eu-redis: 500");
    let ready = |status: &str, reason: &str| RealtimeClusterStatus {
        conditions: vec![condition("Ready", status, reason, 1)],
        gate: proven("f1"),
        ..RealtimeClusterStatus::default()
    };
    let closed = verdict(GatePhase::Closed, Reason::RecordRefused);
    for (known, verdict, expected) in [
        (ready("Unknown", "Proving"), None, ("Unknown", Reason::Proving)),
        (ready("Unknown", "EvidenceStale"), None, ("Unknown", Reason::EvidenceStale)),
        (ready("True", "Proven"), Some(&closed), ("False", Reason::RecordRefused)),
    ] {
        let inputs = StatusInputs { error: Some(&failed), fingerprint: "", verdict, ..inputs(&known) };
        let decision = decide_status(&inputs);
        assert_eq!((decision.conditions[0].status, decision.conditions[0].reason), expected);
    }
}

#[test]
fn a_failed_call_of_the_operator_changes_ready_only_when_the_proof_grows_old() {
    let known = |age: i64| RealtimeClusterStatus {
        conditions: vec![condition("Ready", "True", "Proven", 1)],
        gate: proven("f1").map(|gate| GateStatus { passed_at: Some(at(NOW - age).to_string()), ..gate }),
        ..RealtimeClusterStatus::default()
    };
    let failed = ReconcileError::transient(Reason::ApplyFailed, "reading Secret channels/eu-redis: 500");
    for (age, expected) in [(60, ("True", Reason::Proven)), (901, ("Unknown", Reason::EvidenceStale))] {
        let known = known(age);
        let decision = decide_status(&StatusInputs { error: Some(&failed), fingerprint: "", ..inputs(&known) });
        assert_eq!((decision.conditions[0].status, decision.conditions[0].reason), expected);
        let healthy = decision.conditions.iter().find(|found| found.kind == "OperatorHealthy").expect("a condition");
        assert_eq!((healthy.status, healthy.reason), ("False", Reason::ApplyFailed));
        assert_eq!(healthy.message, failed.message);
    }
}

proptest! {
    /// Whatever was found and decided before, the two kstatus conditions never stand together, and a generation that no
    /// other controller has looked at is never stalled.
    #[test]
    fn kstatus_conditions_exclude_each_other(
        steps in prop::collection::vec((0_usize..9, 0_usize..5, 0_i64..4, 1_i64..700), 1..30),
    ) {
        let reasons = ["StreamNotOurs", "StreamInvalid", "AccessDenied", "StreamMissing", "StreamUnreachable",
            "StreamCreating", "ChildNotOurs", "ApplyFailed", "RollingOut"];
        let phases = [GatePhase::Proving, GatePhase::Refused, GatePhase::Open, GatePhase::Closed];
        let mut known = RealtimeClusterStatus::default();
        let mut now = NOW;
        for (reason, phase, generation, seconds) in steps {
            now += seconds;
            let kind = if reason < 6 { "StreamReady" } else { "WorkloadsAvailable" };
            known.conditions.retain(|found| found.type_ != kind);
            known.conditions.push(Condition {
                observed_generation: Some(generation), ..condition(kind, "False", reasons[reason], now - 400)
            });
            let verdict = phases.get(phase).map(|phase| verdict(*phase, Reason::RecordMissing));
            let (decision, present) = decide(&known, verdict.as_ref(), now);
            prop_assert!(present.len() <= 1);
            if !known.conditions.iter().any(|found| found.observed_generation == Some(2)) {
                prop_assert!(!present.contains(&"Stalled"), "{:?}", decision.conditions);
            }
            known.gate = Some(decision.gate);
            known.observed_generation = 2;
        }
    }
}

#[test]
fn a_suspended_cluster_is_as_ready_as_its_journeys_say_and_nothing_is_in_progress() {
    let known = RealtimeClusterStatus {
        conditions: well(),
        gate: proven("f1"),
        observed_generation: 2,
        ..RealtimeClusterStatus::default()
    };
    for (name, verdict, expected) in [
        ("proven", verdict(GatePhase::Open, Reason::Proven), ("True", Reason::Proven)),
        (
            "edited by hand",
            verdict(GatePhase::Closed, Reason::ConfigurationDrift),
            ("False", Reason::ConfigurationDrift),
        ),
        ("not proven yet", verdict(GatePhase::Proving, Reason::Proving), ("Unknown", Reason::Proving)),
    ] {
        let inputs = StatusInputs { verdict: Some(&verdict), suspended: true, deadline: 0, ..inputs(&known) };
        let decision = decide_status(&inputs);
        assert_eq!((decision.conditions[0].status, decision.conditions[0].reason), expected, "{name}");
        let is_progress = |found: &&ConditionUpdate| ["Reconciling", "Stalled"].contains(&found.kind);
        assert_eq!(decision.conditions.iter().find(is_progress), None, "{name}");
        assert_eq!(decision.gate.proving_since, None, "{name}: the deadline does not run");
    }
}

#[test]
fn the_condition_of_paths_from_outside_is_that_of_the_verdict_and_outlives_it_for_what_was_proven() {
    let external = |status, reason| ExternalVerdict { status, reason, message: "m".to_owned() };
    let with = |external: Option<ExternalVerdict>| Verdict { external, ..verdict(GatePhase::Open, Reason::Proven) };
    let known = |status: &str, reason: &str| vec![condition("ExternalPathProven", status, reason, 1)];
    let found = |conditions: Vec<Condition>, gate: Option<GateStatus>, fingerprint: &str, verdict: Option<&Verdict>| {
        let known = RealtimeClusterStatus { conditions, gate, ..RealtimeClusterStatus::default() };
        let decision = decide_status(&StatusInputs { verdict, fingerprint, ..inputs(&known) });
        let found = decision.conditions.into_iter().find(|update| update.kind == "ExternalPathProven");
        found.map(|found| (found.status, found.reason))
    };
    let unreachable = with(Some(external("Unknown", Reason::NotReachableFromHere)));
    let (is_proven, is_wrong) = (("True", Reason::Proven), ("False", Reason::WrongCluster));
    for (name, result, expected) in [
        ("no load balancer", found(vec![], None, "f1", Some(&with(None))), None),
        ("none any more", found(known("True", "Proven"), proven("f1"), "f1", Some(&with(None))), None),
        (
            "the verdict's",
            found(vec![], None, "f1", Some(&unreachable)),
            Some(("Unknown", Reason::NotReachableFromHere)),
        ),
        ("a new leader without a verdict", found(known("True", "Proven"), proven("f1"), "f1", None), Some(is_proven)),
        ("no observation", found(known("False", "WrongCluster"), proven("f1"), "", None), Some(is_wrong)),
        (
            "what runs now was never proven",
            found(known("True", "Proven"), proven("f1"), "f2", Some(&unreachable)),
            Some(("Unknown", Reason::Proving)),
        ),
        ("nothing is known", found(vec![], None, "f1", None), None),
    ] {
        assert_eq!(result, expected, "{name}");
    }
}

#[test]
fn a_required_load_balancer_without_an_address_is_the_reason_of_ready() {
    let waiting = verdict(GatePhase::Proving, Reason::LoadBalancerPending);
    assert_eq!(summary(well(), None, None, None, Some(&waiting)), "Unknown/LoadBalancerPending reconciling");
}
