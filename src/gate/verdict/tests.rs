use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::gate::{ConfigDrift, CoverageTargets, GatePolicy, Journey, JourneyOutcome};

const SERVED: [Transport; 3] = [Transport::Websocket, Transport::XhrStreaming, Transport::XhrPolling];

const PODS: [(&str, &[Transport]); 2] =
    [("eu-websocket-0", &[Transport::Websocket]), ("eu-sockjs-0", &[Transport::XhrStreaming, Transport::XhrPolling])];

fn test_targets() -> CoverageTargets {
    CoverageTargets {
        transports: SERVED.into(),
        pods: PODS.map(|(pod, carries)| (pod.to_owned(), carries.iter().copied().collect())).into(),
        paths: BTreeMap::new(),
        processes: ["eu-websocket-0".to_owned(), "eu-sockjs-0".to_owned(), "eu-dispatcher-0".to_owned()].into(),
        newcomers: BTreeSet::new(),
        webhooks: true,
        shards: ["s0".into(), "s1".into()].into(),
        dispatchers: ["eu-dispatcher-0".to_owned()].into(),
    }
}

fn evidence() -> Evidence {
    let mut evidence = Evidence::new(GatePolicy { open_after: 2, ..GatePolicy::default() });
    evidence.set_targets(test_targets());
    for process in test_targets().processes {
        evidence.observe_process(&process, "p1", vec![]);
    }
    evidence
}

fn journey(transport: Transport, at: u64, outcome: JourneyOutcome) -> Journey {
    let pod = if transport == Transport::Websocket { "eu-websocket-0" } else { "eu-sockjs-0" };
    let shard = if at.is_multiple_of(2) { "s0" } else { "s1" };
    Journey {
        transport,
        entrance: pod.to_owned(),
        shards: vec![shard.into()],
        dispatcher: Some("eu-dispatcher-0".to_owned()),
        started_ms: at * 10_000,
        ended_ms: at * 10_000 + 500,
        latency_ms: BTreeMap::from([(Hop::Delivery, at)]),
        outcome,
    }
}

fn rounds(evidence: &mut Evidence, from: u64, count: u64) {
    for at in from..from + count {
        for (n, transport) in (0..).zip(SERVED) {
            evidence.add_journey(&journey(transport, at + n, JourneyOutcome::Pass));
        }
    }
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
    late.ended_ms = 95_000;
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
    evidence.add_journey(&journey(Transport::Websocket, 3, lost()));
    assert!(evidence.verdict().ready);
    assert_eq!(evidence.suspect_routes(), [(Transport::Websocket, "eu-websocket-0".to_owned())]);
    evidence.add_journey(&journey(Transport::Websocket, 4, lost()));
    evidence.add_journey(&journey(Transport::Websocket, 5, lost()));
    let verdict = evidence.verdict();
    assert_eq!((verdict.phase, verdict.reason), (GatePhase::Closed, Reason::WebhookMissing));
    rounds(&mut evidence, 6, 1);
    assert!(!evidence.verdict().ready, "one round does not open again");
    rounds(&mut evidence, 7, 1);
    assert!(evidence.verdict().ready);
}

#[test]
fn a_steady_rate_of_losses_closes() {
    let mut evidence = evidence();
    rounds(&mut evidence, 0, 2);
    for at in 0..200 {
        let outcome = if at % 10 == 0 { lost() } else { JourneyOutcome::Pass };
        evidence.add_journey(&journey(Transport::Websocket, at, outcome));
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

proptest! {
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
