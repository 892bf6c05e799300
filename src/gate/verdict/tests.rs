use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::gate::{
    ConfigDrift, CoverageTargets, DeadLetterProof, ExternalTargets, GatePolicy, Journey, JourneyOutcome, RestoredProof,
};

const SERVED: [Transport; 3] = [Transport::Websocket, Transport::XhrStreaming, Transport::XhrPolling];

const PODS: [(&str, &[Transport]); 2] =
    [("eu-websocket-0", &[Transport::Websocket]), ("eu-sockjs-0", &[Transport::XhrStreaming, Transport::XhrPolling])];

fn test_targets() -> CoverageTargets {
    CoverageTargets {
        transports: SERVED.into(),
        pods: PODS.map(|(pod, carries)| (pod.to_owned(), carries.iter().copied().collect())).into(),
        wanted_pods: BTreeMap::new(),
        tour_rounds: BTreeMap::new(),
        paths: BTreeMap::new(),
        external: ExternalTargets::default(),
        processes: ["eu-websocket-0".to_owned(), "eu-sockjs-0".to_owned(), "eu-dispatcher-0".to_owned()].into(),
        newcomers: BTreeSet::new(),
        webhooks: true,
        shards: ["s0".into(), "s1".into()].into(),
        denied_listing: None,
        dispatcher_error: None,
        dispatchers: ["eu-dispatcher-0".to_owned()].into(),
    }
}

fn evidence() -> Evidence {
    let mut evidence = Evidence::new(GatePolicy { open_after: 2, ..GatePolicy::default() }, "f1");
    evidence.set_targets(test_targets());
    for process in test_targets().processes {
        evidence.observe_process(&process, "p1", vec![]);
    }
    evidence
}

/// Time between two rounds of these tests.
const ROUND_MS: u64 = 30_000;

/// A journey that begins with the round of this number.
fn journey(transport: Transport, at: u64, outcome: JourneyOutcome) -> Journey {
    let pod = if transport == Transport::Websocket { "eu-websocket-0" } else { "eu-sockjs-0" };
    let shard = if at.is_multiple_of(2) { "s0" } else { "s1" };
    Journey {
        fingerprint: "f1".to_owned(),
        transport,
        entrance: pod.to_owned(),
        shards: vec![shard.into()],
        dispatcher: Some("eu-dispatcher-0".to_owned()),
        started_ms: at * ROUND_MS,
        ended_ms: at * ROUND_MS + 500,
        latency_ms: BTreeMap::from([(Hop::Delivery, at)]),
        fan_out_tried: true,
        outcome,
    }
}

fn rounds(evidence: &mut Evidence, from: u64, count: u64) {
    for at in from..from + count {
        for (n, transport) in (0..).zip(SERVED) {
            evidence.add_journey(&pass_in_round(transport, at, n));
        }
    }
}

/// The pass of one transport in a round; every round visits both shards.
fn pass_in_round(transport: Transport, at: u64, number: u64) -> Journey {
    let visited = journey(transport, number, JourneyOutcome::Pass).shards;
    let started_ms = at * ROUND_MS + number * 1_000;
    Journey { shards: visited, started_ms, ended_ms: started_ms + 500, ..journey(transport, at, JourneyOutcome::Pass) }
}

fn silent() -> JourneyOutcome {
    JourneyOutcome::Decisive(HopFailure {
        hop: Hop::Record,
        reason: Reason::RecordMissing,
        detail: "subscribed on eu-sockjs-0, but no channel_occupied record reached stream s in 10 s".to_owned(),
    })
}

fn lost() -> JourneyOutcome {
    JourneyOutcome::Ambiguous(HopFailure {
        hop: Hop::Delivery,
        reason: Reason::WebhookMissing,
        detail: "no webhook from eu-websocket-0 in 10 s".to_owned(),
    })
}

fn off() -> Vec<ConfigDrift> {
    let text = |text: &str| Some(text.to_owned());
    vec![ConfigDrift::Variable { name: "REALTIME_WEBHOOKS".to_owned(), wanted: text("kinesis"), found: text("off") }]
}

#[test]
fn it_opens_after_complete_rounds_and_not_before() {
    let mut evidence = evidence();
    assert_eq!((evidence.verdict().phase, evidence.verdict().reason), (GatePhase::Proving, Reason::Proving));
    rounds(&mut evidence, 0, 1);
    assert!(!evidence.verdict().ready);
    rounds(&mut evidence, 1, 1);
    let verdict = evidence.verdict();
    assert_eq!((verdict.phase, verdict.ready, verdict.reason), (GatePhase::Open, true, Reason::Proven));
    assert!(verdict.transports.iter().all(|transport| transport.state == TransportState::Passing));
}

#[test]
fn a_process_that_does_not_report_its_configuration_keeps_the_gate_closed() {
    let mut evidence = evidence();
    evidence.mark_unreachable("eu-dispatcher-0");
    rounds(&mut evidence, 0, 3);
    let verdict = evidence.verdict();
    assert_eq!((verdict.ready, verdict.reason), (false, Reason::EdgeUnreachable));
    assert!(verdict.message.starts_with("eu-dispatcher-0: its admin listener does not answer"), "{}", verdict.message);
    evidence.observe_process("eu-dispatcher-0", "p1", vec![]);
    rounds(&mut evidence, 3, 2);
    assert!(evidence.verdict().ready);
    evidence.mark_unreachable("eu-dispatcher-0");
    evidence.observe_process("eu-dispatcher-0", "p1", vec![]);
    assert!(!evidence.verdict().ready, "it must be proven anew");
}

#[test]
fn the_gate_needs_a_pass_through_every_path_and_closes_when_a_path_fails() {
    let mut evidence = evidence();
    let path = ("Service eu-websocket".to_owned(), [Transport::Websocket].into());
    evidence.set_targets(CoverageTargets { paths: [path].into(), ..test_targets() });
    rounds(&mut evidence, 0, 3);
    assert_eq!(
        evidence.verdict().phase,
        GatePhase::Proving,
        "every pod passed, but no journey went through the Service"
    );
    let through = |at, outcome| Journey {
        entrance: "Service eu-websocket".to_owned(),
        ..journey(Transport::Websocket, at, outcome)
    };
    evidence.add_journey(&through(3, JourneyOutcome::Pass));
    evidence.add_journey(&through(4, JourneyOutcome::Pass));
    rounds(&mut evidence, 4, 2);
    evidence.add_journey(&through(6, JourneyOutcome::Pass));
    assert!(evidence.verdict().ready);
    let nowhere = JourneyOutcome::Ambiguous(HopFailure {
        hop: Hop::Connect,
        reason: Reason::EdgeUnreachable,
        detail: "no connection to Service eu-websocket".to_owned(),
    });
    for at in 7..10 {
        evidence.add_journey(&through(at, nowhere.clone()));
    }
    let verdict = evidence.verdict();
    assert_eq!((verdict.phase, verdict.reason), (GatePhase::Closed, Reason::EdgeUnreachable));
    assert!(verdict.message.contains("no connection to Service eu-websocket"), "{}", verdict.message);
    assert_eq!(verdict.transports[0].pods_passing, 1, "the pod itself passes");
}

#[test]
fn a_dispatcher_that_does_not_deliver_is_named_although_others_do() {
    let two = |newcomers: &[&str]| {
        let mut targets = test_targets();
        targets.processes.insert("eu-dispatcher-1".to_owned());
        targets.newcomers = newcomers.iter().map(|name| (*name).to_owned()).collect();
        targets
    };
    let by = |dispatcher: &str, at, outcome| Journey {
        dispatcher: Some(dispatcher.to_owned()),
        ..journey(Transport::Websocket, at, outcome)
    };
    let fails = |newcomers: &[&str], first: u64| {
        let mut evidence = evidence();
        evidence.set_targets(two(newcomers));
        evidence.observe_process("eu-dispatcher-1", "p1", vec![]);
        if first > 0 {
            rounds(&mut evidence, 0, first);
        }
        for at in 0..4 {
            // The other dispatcher delivers between the losses, so that no transport and no pod fails.
            evidence.add_journey(&by("eu-dispatcher-1", first + 2 * at, lost()));
            for transport in SERVED {
                evidence.add_journey(&journey(transport, first + 2 * at + 1, JourneyOutcome::Pass));
            }
        }
        (evidence.verdict(), evidence.process_proof("eu-dispatcher-1"))
    };
    let (verdict, proof) = fails(&["eu-dispatcher-1"], 0);
    assert_eq!((verdict.phase, verdict.reason), (GatePhase::Refused, Reason::WebhookMissing));
    assert!(verdict.message.starts_with("eu-dispatcher-1: "), "{}", verdict.message);
    assert!(!proof.proven && proof.failure.is_some());
    assert_eq!(fails(&["eu-dispatcher-1"], 3).0.phase, GatePhase::Open, "a newcomer does not close the gate");
    assert_eq!(fails(&[], 3).0.phase, GatePhase::Closed, "an admitted dispatcher does");
}

#[test]
fn a_newcomer_that_has_not_answered_keeps_the_gate_proving() {
    let mut evidence = evidence();
    let mut targets = test_targets();
    targets.newcomers = targets.processes.clone();
    evidence.set_targets(targets);
    evidence.mark_unreachable("eu-dispatcher-0");
    rounds(&mut evidence, 0, 3);
    let verdict = evidence.verdict();
    assert_eq!((verdict.phase, verdict.reason), (GatePhase::Proving, Reason::Proving));
    assert!(verdict.message.contains("eu-dispatcher-0 has not answered yet"), "{}", verdict.message);
}

#[test]
fn passes_that_began_before_a_failure_do_not_clear_it() {
    let mut evidence = evidence();
    let mut late = journey(Transport::Websocket, 9, silent());
    late.ended_ms = 9 * ROUND_MS + 5_000;
    evidence.add_journey(&late);
    rounds(&mut evidence, 0, 6);
    let verdict = evidence.verdict();
    assert!(!verdict.ready && verdict.transports[0].state == TransportState::Failing, "{verdict:?}");
    rounds(&mut evidence, 10, 2);
    assert!(evidence.verdict().ready);
}

#[test]
fn a_round_without_one_of_the_shards_is_not_complete() {
    let mut evidence = evidence();
    for _ in 0..20 {
        for transport in SERVED {
            evidence.add_journey(&journey(transport, 0, JourneyOutcome::Pass));
        }
    }
    assert!(!evidence.verdict().ready, "s1 was never passed");
}

#[test]
fn webhooks_off_on_the_fallbacks_is_reported_with_hop_and_variable() {
    let mut evidence = evidence();
    evidence.observe_process("eu-sockjs-0", "p1", off());
    evidence.add_journey(&journey(Transport::Websocket, 0, JourneyOutcome::Pass));
    evidence.add_journey(&journey(Transport::XhrStreaming, 0, silent()));
    assert_eq!(evidence.verdict().phase, GatePhase::Proving, "polling has not been tried");
    evidence.add_journey(&journey(Transport::XhrPolling, 0, silent()));
    let verdict = evidence.verdict();
    assert_eq!((verdict.phase, verdict.reason), (GatePhase::Refused, Reason::ConfigurationDrift));
    assert_eq!(
        verdict.message,
        "sockjs/xhr_streaming, sockjs/xhr_polling: subscribed on eu-sockjs-0, but no channel_occupied record reached \
         stream s in 10 s (websocket: Passing); REALTIME_WEBHOOKS differs: want kinesis, pod runs off"
    );
    let states: Vec<_> = verdict.transports.iter().map(|t| (t.state, t.hop)).collect();
    let failing = (TransportState::Failing, Some(Hop::Record));
    assert_eq!(states, [(TransportState::Passing, None), failing, failing]);
}

#[test]
fn without_a_drift_no_variable_is_blamed() {
    let mut evidence = evidence();
    evidence.add_journey(&journey(Transport::Websocket, 0, JourneyOutcome::Pass));
    evidence.add_journey(&journey(Transport::XhrStreaming, 0, silent()));
    evidence.add_journey(&journey(Transport::XhrPolling, 0, JourneyOutcome::Pass));
    let verdict = evidence.verdict();
    assert_eq!((verdict.phase, verdict.reason), (GatePhase::Refused, Reason::RecordMissing));
    assert!(!verdict.message.contains("REALTIME_"), "{}", verdict.message);
}

#[test]
fn a_drift_refuses_although_every_journey_passes() {
    let mut evidence = evidence();
    evidence.observe_process("eu-dispatcher-0", "p1", vec![ConfigDrift::App("1001".into())]);
    rounds(&mut evidence, 0, 5);
    let verdict = evidence.verdict();
    assert_eq!((verdict.phase, verdict.ready, verdict.reason), (GatePhase::Refused, false, Reason::AppsInconsistent));
    assert!(verdict.message.starts_with("eu-dispatcher-0: app 1001 differs"), "{}", verdict.message);
    evidence.observe_process("eu-dispatcher-0", "p1", vec![]);
    assert!(!evidence.verdict().ready, "rounds during the drift prove nothing");
    rounds(&mut evidence, 5, 2);
    assert!(evidence.verdict().ready);
}

#[test]
fn a_dispatchers_drift_explains_failures_past_the_stream() {
    let mut evidence = evidence();
    let mut changed = off();
    if let Some(ConfigDrift::Variable { name, .. }) = changed.first_mut() {
        *name = "REALTIME_STREAM_NAME".to_owned();
    }
    evidence.observe_process("eu-dispatcher-0", "p1", changed);
    let stuck =
        HopFailure { hop: Hop::Dispatch, reason: Reason::DispatcherStuck, detail: "the shard is not read".to_owned() };
    for transport in SERVED {
        evidence.add_journey(&journey(transport, 0, JourneyOutcome::Decisive(stuck.clone())));
    }
    let verdict = evidence.verdict();
    assert_eq!(verdict.reason, Reason::ConfigurationDrift);
    assert!(verdict.message.contains("on eu-dispatcher-0, REALTIME_STREAM_NAME differs"), "{}", verdict.message);
}

#[test]
fn an_empty_dimension_is_a_failure() {
    for (name, change, says) in [
        (
            "no pod",
            Box::new(|d: &mut CoverageTargets| d.pods.clear()) as Box<dyn Fn(&mut CoverageTargets)>,
            "no pod serves it",
        ),
        ("no shard", Box::new(|d: &mut CoverageTargets| d.shards.clear()), "no open shard"),
        ("no dispatcher", Box::new(|d: &mut CoverageTargets| d.dispatchers.clear()), "no process holds a shard"),
    ] {
        let mut evidence = evidence();
        rounds(&mut evidence, 0, 2);
        assert!(evidence.verdict().ready, "{name}");
        let mut targets = test_targets();
        change(&mut targets);
        evidence.set_targets(targets);
        let verdict = evidence.verdict();
        assert_eq!((verdict.phase, verdict.reason), (GatePhase::Closed, Reason::NoPods), "{name}");
        assert!(verdict.message.contains(says), "{name}: {}", verdict.message);
    }
}

#[test]
fn without_webhooks_shards_and_dispatchers_prove_nothing() {
    let mut evidence = evidence();
    evidence.set_targets(CoverageTargets {
        webhooks: false,
        shards: BTreeSet::new(),
        dispatchers: BTreeSet::new(),
        ..test_targets()
    });
    rounds(&mut evidence, 0, 2);
    assert_eq!(evidence.verdict().reason, Reason::ReadyWithoutWebhooks);
}

#[test]
fn one_loss_does_not_close_and_asks_for_confirmation() {
    let mut evidence = evidence();
    rounds(&mut evidence, 0, 2);
    lose_websocket(&mut evidence, 2);
    assert!(evidence.verdict().ready);
    assert_eq!(evidence.suspect_routes(), [(Transport::Websocket, "eu-websocket-0".to_owned())]);
    lose_websocket(&mut evidence, 3);
    lose_websocket(&mut evidence, 4);
    let verdict = evidence.verdict();
    assert_eq!((verdict.phase, verdict.reason), (GatePhase::Closed, Reason::WebhookMissing));
    rounds(&mut evidence, 5, 1);
    assert!(!evidence.verdict().ready, "one round does not open again");
    rounds(&mut evidence, 6, 1);
    assert!(evidence.verdict().ready);
}

/// A round in which every transport but one passes.
fn lose_websocket(evidence: &mut Evidence, at: u64) {
    for (number, transport) in [(1, Transport::XhrStreaming), (2, Transport::XhrPolling)] {
        evidence.add_journey(&pass_in_round(transport, at, number));
    }
    evidence.add_journey(&Journey { outcome: lost(), ..pass_in_round(Transport::Websocket, at, 3) });
}

#[test]
fn a_steady_rate_of_losses_closes() {
    let mut evidence = evidence();
    rounds(&mut evidence, 0, 2);
    for at in 2..14 {
        // Never the same transport twice in a row, so that no failure is confirmed.
        for (number, transport) in (0..).zip(SERVED) {
            let outcome = if number == at % 3 { lost() } else { JourneyOutcome::Pass };
            evidence.add_journey(&Journey { outcome, ..pass_in_round(transport, at, number) });
        }
    }
    let verdict = evidence.verdict();
    assert!(!verdict.ready && verdict.message.contains("more than 5 %"), "{verdict:?}");
}

#[test]
fn evidence_of_a_deleted_pod_is_dropped() {
    let mut evidence = evidence();
    evidence.add_journey(&journey(Transport::Websocket, 0, silent()));
    let mut targets = test_targets();
    if let Some(carries) = targets.pods.remove("eu-websocket-0") {
        targets.pods.insert("eu-websocket-1".to_owned(), carries);
    }
    evidence.set_targets(targets);
    assert_eq!(evidence.verdict().phase, GatePhase::Proving);
}

#[test]
fn a_journey_of_another_fingerprint_proves_nothing() {
    let mut evidence = evidence();
    for at in 0..4 {
        for (number, transport) in (0..).zip(SERVED) {
            let journey = Journey { fingerprint: "f0".to_owned(), ..pass_in_round(transport, at, number) };
            evidence.add_journey(&journey);
        }
    }
    assert_eq!(evidence.verdict().phase, GatePhase::Proving);
    rounds(&mut evidence, 4, 2);
    assert!(evidence.verdict().ready);
    evidence.reset_proof("f2");
    let verdict = evidence.verdict();
    assert_eq!((verdict.fingerprint.as_str(), verdict.ready, verdict.passed_ms), ("f2", false, None));
}

#[test]
fn evidence_that_no_journey_renews_closes_the_gate_and_is_unknown() {
    let mut evidence = evidence();
    rounds(&mut evidence, 0, 2);
    let last_ms = ROUND_MS + 2_500;
    evidence.advance(last_ms + 50_000);
    assert!(evidence.verdict().ready);
    // One transport goes on, which says nothing of the others.
    evidence.add_journey(&pass_in_round(Transport::Websocket, 2, 0));
    evidence.advance(last_ms + 61_000);
    let verdict = evidence.verdict();
    assert_eq!((verdict.phase, verdict.reason), (GatePhase::Closed, Reason::EvidenceStale));
    assert!(verdict.message.contains("xhr_streaming through eu-sockjs-0: no journey has ended for"), "{verdict:?}");
    rounds(&mut evidence, 4, 1);
    assert_eq!(evidence.verdict().reason, Reason::EvidenceStale, "one round is not enough");
    rounds(&mut evidence, 5, 1);
    assert!(evidence.verdict().ready);
}

#[test]
fn a_pod_that_rounds_take_turns_with_ages_by_its_tour() {
    let mut evidence = evidence();
    evidence.set_targets(CoverageTargets { tour_rounds: [(Transport::Websocket, 4)].into(), ..test_targets() });
    rounds(&mut evidence, 0, 2);
    let last_ms = ROUND_MS + 500;
    for at in 2..=6 {
        evidence.add_journey(&pass_in_round(Transport::XhrStreaming, at, 1));
        evidence.add_journey(&pass_in_round(Transport::XhrPolling, at, 2));
    }
    // Three tours of four rounds, 15 s each.
    evidence.advance(last_ms + 180_000);
    assert!(evidence.verdict().ready, "{:?}", evidence.verdict());
    evidence.advance(last_ms + 180_001);
    let verdict = evidence.verdict();
    assert_eq!(verdict.reason, Reason::EvidenceStale);
    assert!(verdict.message.contains("websocket through eu-websocket-0: no journey has ended for"), "{verdict:?}");
}

#[test]
fn an_inherited_proof_is_marked_is_not_renewed_and_ends_after_a_quarter_of_an_hour() {
    let passed_ms = 1_000_000;
    let inherit = |now_ms| {
        let mut evidence = Evidence::new(GatePolicy { open_after: 2, ..GatePolicy::default() }, "f1");
        evidence.advance(now_ms);
        evidence.restore_proof(RestoredProof { open: true, passed_ms });
        let observed: Vec<_> =
            test_targets().processes.into_iter().map(|process| (process, "p1".to_owned(), vec![])).collect();
        evidence.observe_all(test_targets(), observed.iter().map(|(pod, process, drifts)| (pod, process, drifts)));
        evidence
    };
    let mut evidence = inherit(passed_ms + 30_000);
    let verdict = evidence.verdict();
    assert_eq!((verdict.ready, verdict.inherited, verdict.passed_ms), (true, true, Some(passed_ms)));
    let first = passed_ms / ROUND_MS + 3;
    evidence.add_journey(&pass_in_round(Transport::Websocket, first, 0));
    assert_eq!(evidence.verdict().passed_ms, Some(passed_ms), "one journey is no round");
    rounds(&mut evidence, first, 1);
    let verdict = evidence.verdict();
    assert_eq!((verdict.inherited, verdict.passed_ms), (false, Some(first * ROUND_MS)), "the oldest pass of the round");
    let mut late = inherit(passed_ms + 15 * 60_000);
    assert!(late.verdict().ready);
    late.advance(passed_ms + 15 * 60_000 + 1);
    assert_eq!((late.verdict().ready, late.verdict().reason), (false, Reason::EvidenceStale));
}

#[test]
fn an_inherited_proof_stands_until_the_first_observation() {
    let mut evidence = Evidence::new(GatePolicy::default(), "f1");
    evidence.advance(30_000);
    evidence.restore_proof(RestoredProof { open: true, passed_ms: 10_000 });
    evidence.set_dead_letter_proof(DeadLetterProof::Pending);
    evidence.set_gate_fault(None);
    evidence.set_policy(GatePolicy { open_after: 2, ..GatePolicy::default() });
    evidence.advance(31_000);
    let verdict = evidence.verdict();
    assert_eq!((verdict.ready, verdict.inherited, verdict.passed_ms), (true, true, Some(10_000)), "{verdict:?}");
    evidence.set_targets(CoverageTargets { pods: BTreeMap::new(), ..test_targets() });
    assert_eq!((evidence.verdict().ready, evidence.verdict().reason), (false, Reason::NoPods), "pods that are gone");
}

#[test]
fn a_change_of_pods_while_closed_adds_what_must_be_covered() {
    let mut evidence = evidence();
    rounds(&mut evidence, 0, 1);
    let mut targets = test_targets();
    targets.pods.insert("eu-websocket-1".to_owned(), [Transport::Websocket].into());
    evidence.set_targets(targets);
    rounds(&mut evidence, 1, 1);
    let second = |at| Journey { entrance: "eu-websocket-1".to_owned(), ..pass_in_round(Transport::Websocket, at, 3) };
    evidence.add_journey(&second(1));
    assert!(!evidence.verdict().ready, "the new pod has passed once");
    evidence.add_journey(&second(2));
    assert!(evidence.verdict().ready, "the others' passes count still");
}

#[test]
fn pods_that_the_manifest_asks_for_delay_the_opening_and_do_not_close() {
    let mut evidence = evidence();
    let wanted = |count| CoverageTargets { wanted_pods: [(Transport::Websocket, count)].into(), ..test_targets() };
    evidence.set_targets(wanted(2));
    rounds(&mut evidence, 0, 3);
    let verdict = evidence.verdict();
    assert_eq!((verdict.phase, verdict.reason), (GatePhase::Proving, Reason::RollingOut));
    assert!(verdict.message.starts_with("websocket/websocket: 1 of 2 pods run"), "{}", verdict.message);
    assert_eq!((verdict.transports[0].pods_passing, verdict.transports[0].pods), (1, 2));
    evidence.set_targets(wanted(1));
    assert!(evidence.verdict().ready);
    evidence.set_targets(wanted(3));
    assert!(evidence.verdict().ready);
}

#[test]
fn a_dispatcher_that_runs_and_holds_no_shard_is_stuck_by_its_error() {
    let mut evidence = evidence();
    evidence.set_targets(CoverageTargets {
        dispatchers: BTreeSet::new(),
        dispatcher_error: Some("eu-dispatcher-0 says: ListShards: AccessDeniedException".to_owned()),
        ..test_targets()
    });
    rounds(&mut evidence, 0, 2);
    let verdict = evidence.verdict();
    assert_eq!((verdict.phase, verdict.reason), (GatePhase::Refused, Reason::DispatcherStuck), "{verdict:?}");
    assert!(
        verdict.message.ends_with("eu-dispatcher-0 says: ListShards: AccessDeniedException"),
        "{}",
        verdict.message
    );
}

#[test]
fn shards_that_the_operator_may_not_list_delay_the_first_proof_and_close_no_open_gate() {
    let denied = || CoverageTargets {
        shards: BTreeSet::new(),
        denied_listing: Some("ListShards: AccessDeniedException".to_owned()),
        ..test_targets()
    };
    let mut fresh = evidence();
    fresh.set_targets(denied());
    rounds(&mut fresh, 0, 2);
    let verdict = fresh.verdict();
    assert_eq!((verdict.phase, verdict.reason), (GatePhase::Proving, Reason::AccessDenied), "{verdict:?}");
    assert!(verdict.message.contains("unknown: ListShards: AccessDeniedException"), "{}", verdict.message);
    let mut proven = evidence();
    rounds(&mut proven, 0, 2);
    proven.set_targets(denied());
    assert!(proven.verdict().ready, "{:?}", proven.verdict());
    fresh.set_targets(test_targets());
    rounds(&mut fresh, 2, 4);
    assert!(fresh.verdict().ready, "{:?}", fresh.verdict());
}

#[test]
fn pods_that_are_yet_to_start_are_a_rollout_before_the_first_proof_and_a_failure_after_it() {
    let nowhere = || CoverageTargets {
        pods: BTreeMap::new(),
        wanted_pods: SERVED.map(|transport| (transport, 1)).into(),
        ..test_targets()
    };
    let mut evidence = evidence();
    evidence.set_targets(nowhere());
    assert_eq!((evidence.verdict().phase, evidence.verdict().reason), (GatePhase::Proving, Reason::RollingOut));
    evidence.set_targets(CoverageTargets { pods: test_targets().pods, ..nowhere() });
    rounds(&mut evidence, 0, 2);
    assert!(evidence.verdict().ready);
    evidence.set_targets(nowhere());
    assert_eq!((evidence.verdict().phase, evidence.verdict().reason), (GatePhase::Closed, Reason::NoPods));
}

#[test]
fn a_pod_that_no_client_reaches_does_not_close_an_open_gate() {
    let mut evidence = evidence();
    rounds(&mut evidence, 0, 2);
    let mut targets = test_targets();
    targets.pods.insert("eu-websocket-1".to_owned(), [Transport::Websocket].into());
    targets.processes.insert("eu-websocket-1".to_owned());
    targets.newcomers.insert("eu-websocket-1".to_owned());
    evidence.set_targets(targets.clone());
    evidence.observe_process("eu-websocket-1", "p1", off());
    let through = |at| Journey {
        entrance: "eu-websocket-1".to_owned(),
        outcome: silent(),
        ..pass_in_round(Transport::Websocket, at, 3)
    };
    for at in 2..6 {
        rounds(&mut evidence, at, 1);
        evidence.add_journey(&through(at));
        assert!(evidence.verdict().ready);
    }
    assert_eq!(evidence.verdict().passed_ms, Some(5 * ROUND_MS), "rounds are complete without it");
    assert!(!evidence.process_proof("eu-websocket-1").proven);
    targets.newcomers.clear();
    evidence.set_targets(targets);
    evidence.advance(0);
    assert_eq!(evidence.verdict().reason, Reason::ConfigurationDrift, "an admitted pod does");
}

#[test]
fn another_policy_is_in_force_at_once() {
    let mut evidence = evidence();
    rounds(&mut evidence, 0, 1);
    assert!(!evidence.verdict().ready);
    evidence.set_policy(GatePolicy { open_after: 1, ..GatePolicy::default() });
    assert!(evidence.verdict().ready);
}

#[test]
fn an_outage_changes_the_verdict_once_and_not_at_each_journey() {
    let mut evidence = evidence();
    rounds(&mut evidence, 0, 2);
    assert!(evidence.verdict().ready);
    let stuck = |at: u64| {
        JourneyOutcome::Ambiguous(HopFailure {
            hop: Hop::Dispatch,
            reason: Reason::DispatcherStuck,
            detail: format!("the event of eu-sockjs-0 is in shardId-{:012}, which no dispatcher holds", at % 4),
        })
    };
    let (mut last, mut changes) = (evidence.verdict(), Vec::new());
    for at in 2..40 {
        for (n, transport) in (0..).zip(SERVED) {
            let (started_ms, latency_ms) = (at * ROUND_MS + n, BTreeMap::from([(Hop::Connect, at * 7 + n)]));
            evidence.add_journey(&Journey { started_ms, latency_ms, ..journey(transport, at, stuck(at)) });
            evidence.advance(at * ROUND_MS + 500);
            let verdict = evidence.verdict();
            if !verdict.is_same_as(&last) {
                changes.push((at, verdict.message.clone()));
            }
            last = verdict;
        }
    }
    assert!(!last.ready && last.reason == Reason::DispatcherStuck, "{last:?}");
    // One transport after the other is confirmed to fail by three rounds; nothing is new in the 35 rounds after.
    assert!(changes.iter().all(|(at, _)| *at <= 4), "{changes:#?}");
    assert!(last.transports[0].latency_ms[&Hop::Connect] > 20 * 7, "the latencies are new still: {last:?}");
}

#[test]
fn a_pass_without_the_fan_out_proves_a_pod_and_opens_only_a_cluster_of_one_pod() {
    let alone = |at, n, transport| Journey { fan_out_tried: false, ..pass_in_round(transport, at, n) };
    let mut evidence = evidence();
    let add_rounds = |evidence: &mut Evidence| {
        for (at, (n, transport)) in (0..3).flat_map(|at| (0..).zip(SERVED).map(move |found| (at, found))) {
            evidence.add_journey(&alone(at, n, transport));
        }
    };
    add_rounds(&mut evidence);
    assert!(evidence.process_proof("eu-sockjs-0").proven);
    let verdict = evidence.verdict();
    assert!(!verdict.ready && verdict.passed_ms.is_none(), "{verdict:?}");
    assert_eq!(verdict.transports[0].not_applicable, [Hop::FanOut]);

    let mut targets = test_targets();
    targets.pods = [("eu-websocket-0".to_owned(), SERVED.into())].into();
    let mut single = self::evidence();
    single.set_targets(targets);
    for at in 0..3 {
        for (n, transport) in (0..).zip(SERVED) {
            single.add_journey(&Journey { entrance: "eu-websocket-0".to_owned(), ..alone(at, n, transport) });
        }
    }
    assert!(single.verdict().ready, "{:?}", single.verdict());
}

#[test]
fn a_lost_event_that_is_not_kept_closes_the_gate_until_a_test_record_became_a_letter() {
    let broken = || DeadLetterProof::Broken("lost events are not kept: no stream".to_owned());
    let denied = || DeadLetterProof::Unproven("PutRecords: denied".to_owned());
    // The proof, the verdict of a cluster that was not proven yet, that of a proven one, and a part of its message.
    for (proof, at_first, later, part) in [
        (DeadLetterProof::NotApplicable, Some(Reason::Proven), Some(Reason::Proven), "and 1 dispatcher"),
        (DeadLetterProof::Pending, None, Some(Reason::Proven), "and 1 dispatcher"),
        (DeadLetterProof::Proven, Some(Reason::Proven), Some(Reason::Proven), "; a test record became a dead letter"),
        (denied(), Some(Reason::Proven), Some(Reason::Proven), "; dead letters are not proven: PutRecords: denied"),
        (broken(), None, None, "lost events are not kept: no stream"),
    ] {
        let mut evidence = self::evidence();
        evidence.set_dead_letter_proof(proof.clone());
        rounds(&mut evidence, 0, 2);
        let verdict = evidence.verdict();
        assert_eq!(verdict.ready.then_some(verdict.reason), at_first, "{proof:?}, not proven yet: {verdict:?}");
        let mut evidence = self::evidence();
        rounds(&mut evidence, 0, 2);
        evidence.set_dead_letter_proof(proof.clone());
        let verdict = evidence.verdict();
        assert_eq!(verdict.ready.then_some(verdict.reason), later, "{proof:?}, proven: {verdict:?}");
        assert!(verdict.message.ends_with(part), "{proof:?}: {}", verdict.message);
    }
    let mut evidence = evidence();
    rounds(&mut evidence, 0, 2);
    evidence.set_dead_letter_proof(broken());
    let verdict = evidence.verdict();
    assert_eq!((verdict.phase, verdict.reason), (GatePhase::Closed, Reason::DeadLetterBroken));
    rounds(&mut evidence, 2, 3);
    assert!(!evidence.verdict().ready, "passed journeys say nothing of it");
    let mut losing = evidence.clone();
    (5..8).for_each(|at| lose_websocket(&mut losing, at));
    assert_eq!(losing.verdict().reason, Reason::WebhookMissing, "events that do not arrive are named first");
    evidence.set_dead_letter_proof(DeadLetterProof::Proven);
    rounds(&mut evidence, 5, 2);
    assert!(evidence.verdict().ready, "{:?}", evidence.verdict());
    evidence.reset_proof("f2");
    assert_eq!(evidence.verdict().phase, GatePhase::Proving, "of another fingerprint nothing is known");
}

#[test]
fn a_gate_that_fails_its_self_test_is_closed_until_it_is_sound_and_a_real_failure_is_named_first() {
    let mut evidence = evidence();
    rounds(&mut evidence, 0, 2);
    assert!(evidence.verdict().ready);
    evidence.set_gate_fault(Some("a journey passed".to_owned()));
    let verdict = evidence.verdict();
    assert_eq!((verdict.phase, verdict.reason), (GatePhase::Closed, Reason::GateBroken));
    assert_eq!(verdict.message, "a journey passed");
    rounds(&mut evidence, 2, 3);
    assert!(!evidence.verdict().ready, "passes of a gate that passes everything prove nothing");
    let mut losing = evidence.clone();
    (5..8).for_each(|at| lose_websocket(&mut losing, at));
    assert_eq!(losing.verdict().reason, Reason::WebhookMissing);
    evidence.set_gate_fault(None);
    rounds(&mut evidence, 5, 2);
    assert!(evidence.verdict().ready, "{:?}", evidence.verdict());
}

/// One fact of a generated history.
#[derive(Clone, Debug)]
enum Fact {
    /// A journey of one transport, which began so many ms ago.
    Journey { transport: usize, age_ms: u64, outcome: u8, own_fingerprint: bool },
    /// Time passes.
    Wait { ms: u64 },
    /// A pod comes or goes.
    Pods { extra: bool },
    /// Another configuration runs, so the fingerprint changes.
    Fingerprint,
}

fn any_fact() -> impl Strategy<Value = Fact> {
    prop_oneof![
        12 => (0_usize..3, 0_u64..20_000, 0_u8..12, prop::bool::weighted(0.9))
            .prop_map(|(transport, age_ms, outcome, own_fingerprint)| Fact::Journey {
                transport, age_ms, outcome, own_fingerprint
            }),
        4 => (0_u64..40_000).prop_map(|ms| Fact::Wait { ms }),
        1 => any::<bool>().prop_map(|extra| Fact::Pods { extra }),
        1 => Just(Fact::Fingerprint),
    ]
}

proptest! {
    /// In every history with a clock, the gate opens on its own fingerprint only, is not open past the age of its
    /// evidence, and the time of the proof is that of a pass in a complete round.
    #[test]
    fn no_history_opens_on_other_evidence_or_keeps_it_too_long(facts in prop::collection::vec(any_fact(), 0..200)) {
        let mut evidence = evidence();
        let (mut now_ms, mut fingerprint) = (1_000_000_u64, 1);
        evidence.advance(now_ms);
        evidence.reset_proof("f1");
        // Starts of the passes under the current fingerprint, and the end of the latest journey of each transport.
        let (mut passes, mut finished): (Vec<(usize, u64)>, [u64; 3]) = (vec![], [0; 3]);
        let mut passed_ms = None;
        for fact in facts {
            match fact {
                Fact::Journey { transport, age_ms, outcome, own_fingerprint } => {
                    let outcome = match outcome {
                        0 => silent(),
                        1 => lost(),
                        2 => JourneyOutcome::Void,
                        _ => JourneyOutcome::Pass,
                    };
                    let name = if own_fingerprint { fingerprint } else { fingerprint - 1 };
                    let (started_ms, shards) = (now_ms - age_ms, vec!["s0".into(), "s1".into()]);
                    if own_fingerprint && outcome == JourneyOutcome::Pass {
                        passes.push((transport, started_ms));
                    }
                    if own_fingerprint && outcome != JourneyOutcome::Void {
                        finished[transport] = now_ms;
                    }
                    evidence.add_journey(&Journey {
                        fingerprint: format!("f{name}"),
                        started_ms,
                        ended_ms: now_ms,
                        shards,
                        ..journey(SERVED[transport], 0, outcome)
                    });
                }
                Fact::Wait { ms } => {
                    now_ms += ms;
                    evidence.advance(now_ms);
                }
                Fact::Pods { extra } => {
                    let mut targets = test_targets();
                    if extra {
                        targets.pods.insert("eu-websocket-1".to_owned(), [Transport::Websocket].into());
                    }
                    evidence.set_targets(targets);
                }
                Fact::Fingerprint => {
                    fingerprint += 1;
                    passes.clear();
                    evidence.reset_proof(format!("f{fingerprint}"));
                    for process in test_targets().processes {
                        evidence.observe_process(&process, "p1", vec![]);
                    }
                    passed_ms = None;
                }
            }
            let verdict = evidence.verdict();
            prop_assert_eq!(&verdict.fingerprint, &format!("f{fingerprint}"));
            if verdict.ready {
                for (transport, ended_ms) in finished.iter().enumerate() {
                    let count = passes.iter().filter(|(found, _)| *found == transport).count();
                    prop_assert!(count >= 2, "{transport} passed {count} times");
                    prop_assert!(now_ms - ended_ms <= 60_000, "{transport} is too old");
                }
            }
            if verdict.passed_ms != passed_ms {
                passed_ms = verdict.passed_ms;
                let known = passes.iter().any(|(_, started_ms)| Some(*started_ms) == passed_ms);
                prop_assert!(known, "{passed_ms:?} is no pass under this fingerprint");
            }
        }
    }

    /// In every history, ready means that every transport's latest journey passed or is one unconfirmed loss, that
    /// enough journeys passed, and that no drift is known.
    #[test]
    fn the_gate_is_never_ready_without_proof(steps in prop::collection::vec((0_usize..3, 0_u8..10), 0..120)) {
        let mut evidence = evidence();
        let mut passes = 0;
        for (at, (transport, dice)) in (0..).zip(steps) {
            let outcome = match dice {
                0 => silent(),
                1 => lost(),
                2 => JourneyOutcome::Void,
                _ => JourneyOutcome::Pass,
            };
            passes += usize::from(outcome == JourneyOutcome::Pass);
            let decisive = matches!(outcome, JourneyOutcome::Decisive(_));
            evidence.add_journey(&journey(SERVED[transport], at, outcome));
            let verdict = evidence.verdict();
            prop_assert!(!(verdict.ready && decisive));
            prop_assert!(!verdict.ready || passes >= 6, "two rounds of three transports");
            prop_assert_eq!(verdict.ready, verdict.phase == GatePhase::Open);
            let failing = verdict.transports.iter().any(|t| t.state != TransportState::Passing);
            prop_assert!(!(verdict.ready && failing));
        }
    }
}
