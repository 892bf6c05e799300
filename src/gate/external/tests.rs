//! Tests of the paths from outside: their state, and its effect on the gate.

use super::*;
use crate::gate::{CoverageTargets, Evidence, GatePhase, Verdict};

const PATHS: [&str; 2] = ["a.test at 192.0.2.1:443", "b.test at 192.0.2.1:443"];
const POD: &str = "eu-websocket-0";

/// Time between two rounds of these tests: three failures span more than the shortest run that closes.
const ROUND_MS: u64 = 30_000;

fn targets(gate: Option<ExternalGate>, paths: &[&str], pending: &[&str]) -> CoverageTargets {
    let websocket = || BTreeSet::from([Transport::Websocket]);
    CoverageTargets {
        transports: websocket(),
        pods: [(POD.to_owned(), websocket())].into(),
        processes: [POD.to_owned()].into(),
        external: ExternalTargets {
            gate,
            paths: paths.iter().map(|path| ((*path).to_owned(), websocket())).collect(),
            pending: pending.iter().map(|text| (*text).to_owned()).collect(),
            source: "10.0.0.7".to_owned(),
        },
        ..CoverageTargets::default()
    }
}

fn evidence(targets: CoverageTargets) -> Evidence {
    let mut evidence = Evidence::new(GatePolicy { open_after: 1, ..GatePolicy::default() }, "f1");
    evidence.set_targets(targets);
    evidence.observe_process(POD, "p1", vec![]);
    evidence
}

fn journey(entrance: &str, round: u64, outcome: JourneyOutcome) -> Journey {
    Journey {
        fingerprint: "f1".to_owned(),
        transport: Transport::Websocket,
        entrance: entrance.to_owned(),
        shards: vec![],
        dispatcher: None,
        started_ms: round * ROUND_MS,
        ended_ms: round * ROUND_MS + 500,
        latency_ms: BTreeMap::new(),
        fan_out_tried: true,
        outcome,
    }
}

fn failure(hop: Hop, reason: Reason) -> HopFailure {
    HopFailure { hop, reason, detail: format!("it says {reason}") }
}

fn refused() -> JourneyOutcome {
    JourneyOutcome::Ambiguous(failure(Hop::Connect, Reason::EdgeUnreachable))
}

fn unanswered() -> JourneyOutcome {
    JourneyOutcome::Ambiguous(failure(Hop::Handshake, Reason::HandshakeRejected))
}

fn wrong(reason: Reason) -> JourneyOutcome {
    JourneyOutcome::Decisive(failure(Hop::Session, reason))
}

/// Rounds in which the pod passes, and each path ends as given.
fn run_rounds(evidence: &mut Evidence, rounds: std::ops::Range<u64>, paths: &[(&str, JourneyOutcome)]) -> Verdict {
    for round in rounds {
        evidence.add_journey(&journey(POD, round, JourneyOutcome::Pass));
        for (path, outcome) in paths {
            evidence.add_journey(&journey(path, round, outcome.clone()));
        }
    }
    evidence.verdict()
}

fn external(verdict: &Verdict) -> Option<(&'static str, Reason)> {
    verdict.external.as_ref().map(|external| (external.status, external.reason))
}

/// Name, targets, how each path ends, whether the gate is open, and the condition.
type ProofCase<'a> = (&'a str, CoverageTargets, Vec<(&'a str, JourneyOutcome)>, bool, Option<(&'a str, Reason)>);

#[test]
fn the_first_proof_waits_for_a_pass_through_every_published_address() {
    use ExternalGate::{Auto, Disabled, Required};
    let pass = || JourneyOutcome::Pass;
    let both = |outcome: fn() -> JourneyOutcome| vec![(PATHS[0], outcome()), (PATHS[1], outcome())];
    let one_wrong = |reason| vec![(PATHS[0], JourneyOutcome::Pass), (PATHS[1], wrong(reason))];
    let cases: Vec<ProofCase<'_>> = vec![
        ("no load balancer", targets(None, &[], &[]), vec![], true, None),
        ("every path passes", targets(Some(Auto), &PATHS, &[]), both(pass), true, Some(("True", Reason::Proven))),
        (
            "one of two was not tried",
            targets(Some(Auto), &PATHS, &[]),
            vec![(PATHS[0], pass())],
            false,
            Some(("Unknown", Reason::Proving)),
        ),
        ("none was tried", targets(Some(Required), &PATHS, &[]), vec![], false, Some(("Unknown", Reason::Proving))),
        (
            "no address yet",
            targets(Some(Auto), &[], &["Service a: no address yet"]),
            vec![],
            true,
            Some(("Unknown", Reason::LoadBalancerPending)),
        ),
        (
            "no address yet, and one is required",
            targets(Some(Required), &[], &["Service a: no address yet"]),
            vec![],
            false,
            Some(("Unknown", Reason::LoadBalancerPending)),
        ),
        (
            "every path refuses the connection",
            targets(Some(Auto), &PATHS, &[]),
            both(refused),
            true,
            Some(("Unknown", Reason::NotReachableFromHere)),
        ),
        (
            "every path refuses the connection, and they are required",
            targets(Some(Required), &PATHS, &[]),
            both(refused),
            false,
            Some(("Unknown", Reason::NotReachableFromHere)),
        ),
        (
            "one of two refuses the connection, and has time",
            targets(Some(Auto), &PATHS, &[]),
            vec![(PATHS[0], pass()), (PATHS[1], refused())],
            false,
            Some(("Unknown", Reason::Proving)),
        ),
        (
            "another cluster answers",
            targets(Some(Auto), &PATHS, &[]),
            one_wrong(Reason::WrongCluster),
            false,
            Some(("False", Reason::WrongCluster)),
        ),
        (
            "a certificate does not cover the host",
            targets(Some(Auto), &PATHS, &[]),
            one_wrong(Reason::CertificateInvalid),
            false,
            Some(("False", Reason::CertificateInvalid)),
        ),
        (
            "the journeys are switched off",
            targets(Some(Disabled), &[], &["Service a: no address yet"]),
            vec![],
            true,
            Some(("Unknown", Reason::ExternalDisabled)),
        ),
    ];
    for (name, targets, paths, ready, expected) in cases {
        let verdict = run_rounds(&mut evidence(targets), 1..5, &paths);
        assert_eq!((verdict.ready, external(&verdict)), (ready, expected), "{name}: {verdict:?}");
    }
}

#[test]
fn the_message_of_an_unreachable_load_balancer_names_the_address_to_allow() {
    let mut evidence = evidence(targets(Some(ExternalGate::Auto), &PATHS[..1], &[]));
    let verdict = run_rounds(&mut evidence, 1..5, &[(PATHS[0], refused())]);
    let message = verdict.external.expect("a result").message;
    assert!(
        message.starts_with("it says EdgeUnreachable. Journeys begin at 10.0.0.7: allow this address"),
        "{message}"
    );
    assert_eq!(verdict.phase, GatePhase::Open);
}

#[test]
fn a_path_that_never_passed_has_time_for_its_registration() {
    let proven = |rounds| {
        let mut evidence = evidence(targets(None, &[], &[]));
        assert!(run_rounds(&mut evidence, 1..2, &[]).ready);
        evidence.set_targets(targets(Some(ExternalGate::Auto), &PATHS[..1], &[]));
        run_rounds(&mut evidence, 2..rounds, &[(PATHS[0], unanswered())])
    };
    let early = proven(9);
    assert_eq!((early.ready, external(&early)), (true, Some(("Unknown", Reason::Proving))), "{early:?}");
    let late = proven(14);
    assert_eq!((late.ready, late.reason), (false, Reason::HandshakeRejected), "{late:?}");
    assert_eq!(external(&late), Some(("False", Reason::HandshakeRejected)));
}

#[test]
fn an_open_gate_closes_for_a_measured_fault_at_once_and_for_a_loss_once_it_is_confirmed() {
    let auto = || targets(Some(ExternalGate::Auto), &PATHS[..1], &[]);
    let pass = (PATHS[0], JourneyOutcome::Pass);
    for (name, outcome, rounds, ready, reason) in [
        ("a wrong certificate", wrong(Reason::CertificateInvalid), 1, false, Reason::CertificateInvalid),
        ("one loss", unanswered(), 1, true, Reason::ReadyWithoutWebhooks),
        ("three losses", unanswered(), 3, false, Reason::HandshakeRejected),
        ("no connection", refused(), 9, true, Reason::ReadyWithoutWebhooks),
    ] {
        let mut evidence = evidence(auto());
        assert!(run_rounds(&mut evidence, 1..3, std::slice::from_ref(&pass)).ready);
        let verdict = run_rounds(&mut evidence, 3..3 + rounds, &[(PATHS[0], outcome)]);
        assert_eq!((verdict.ready, verdict.reason), (ready, reason), "{name}: {verdict:?}");
        let again = run_rounds(&mut evidence, 20..22, std::slice::from_ref(&pass));
        assert!(again.ready && external(&again) == Some(("True", Reason::Proven)), "{name}: {again:?}");
    }
}

#[test]
fn losses_through_a_load_balancer_are_no_losses_of_the_cluster() {
    let mut evidence = evidence(targets(Some(ExternalGate::Auto), &PATHS, &[]));
    let verdict = run_rounds(&mut evidence, 1..150, &[(PATHS[0], refused()), (PATHS[1], refused())]);
    assert!(verdict.ready, "{verdict:?}");
    assert!(verdict.transports.iter().all(|transport| transport.hop.is_none()), "{verdict:?}");
}

#[test]
fn journeys_that_no_longer_end_make_an_open_gate_stale() {
    let mut evidence = evidence(targets(Some(ExternalGate::Auto), &PATHS[..1], &[]));
    assert!(run_rounds(&mut evidence, 1..3, &[(PATHS[0], JourneyOutcome::Pass)]).ready);
    run_rounds(&mut evidence, 3..7, &[]);
    evidence.advance(7 * ROUND_MS);
    let verdict = evidence.verdict();
    assert_eq!((verdict.ready, verdict.reason), (false, Reason::EvidenceStale), "{verdict:?}");
    assert_eq!(external(&verdict), Some(("Unknown", Reason::EvidenceStale)));
}

#[test]
fn another_fingerprint_has_no_pass_from_outside() {
    let mut evidence = evidence(targets(Some(ExternalGate::Auto), &PATHS[..1], &[]));
    assert!(run_rounds(&mut evidence, 1..3, &[(PATHS[0], JourneyOutcome::Pass)]).ready);
    evidence.reset_proof("f2");
    assert_eq!(external(&evidence.verdict()), Some(("Unknown", Reason::Proving)));
}
