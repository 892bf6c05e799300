//! Rules of a move, each in a table or a story, and properties under crashes at any place.

use proptest::prelude::*;

use super::simulation::{Crash, HASH, TURN_MS, World, roomy_evidence};
use super::{
    ClusterEvidence, PreflightResult, ReviewReading, TrackAction, TrackObservations, TrackProof, describe_track,
};
use crate::api::EnabledState;
use crate::api::migration::{
    ApprovalMode, FailureReaction, GateName, GateState, MigrationPhase, MigrationReason, RollbackSessions,
    TrackTransport,
};

fn failing(hop: &str) -> TrackProof {
    TrackProof::Failing(hop.to_owned())
}

fn weights(world: &World) -> Vec<Option<u8>> {
    let written = world.executed.iter().filter_map(|action| match action {
        TrackAction::WriteWeight(weight) => Some(Some(*weight)),
        TrackAction::DeleteRecord => Some(None),
        TrackAction::ShedSessions(_) | TrackAction::ReleaseObject => None,
    });
    written.collect()
}

#[test]
fn a_move_tests_its_brake_bakes_each_weight_and_ends_with_the_cutover() {
    let mut world = World::new();
    world.run_until(MigrationPhase::Completed);
    assert_eq!(weights(&world), [1, 0, 1, 5, 20, 60, 180, 250, 255].map(Some));
    assert_eq!(world.source, Some(1), "the brake stays: the source keeps weight 1");
    let phases: Vec<MigrationPhase> = world.phases.iter().map(|(phase, _)| *phase).collect();
    assert!(phases.contains(&MigrationPhase::CuttingOver) && !phases.contains(&MigrationPhase::Frozen), "{phases:?}");
    let executed = world.executed.len();
    world.set_target(failing("record"));
    world.turns(20);
    assert_eq!(world.executed.len(), executed, "the record of a complete move stays");
}

/// A closed track has no record, and names its obstacle.
#[test]
fn a_target_gets_no_record_before_every_obstacle_is_gone() {
    type Change = fn(&mut TrackObservations);
    let cases: [(&str, Change, MigrationPhase, MigrationReason); 9] = [
        ("no cluster", |o| o.target = None, MigrationPhase::Pending, MigrationReason::ClusterMissing),
        (
            "checks under way",
            |o| o.preflight = PreflightResult::Running,
            MigrationPhase::Preflight,
            MigrationReason::PreflightFailed,
        ),
        (
            "an obstacle",
            |o| o.preflight = PreflightResult::Obstacle("the source's record is an alias".to_owned()),
            MigrationPhase::Preflight,
            MigrationReason::PreflightFailed,
        ),
        ("a record of nobody", |o| o.written = Some(20), MigrationPhase::Preflight, MigrationReason::RecordExists),
        (
            "no snapshot",
            |o| o.review = Err("stale".to_owned()),
            MigrationPhase::Reviewing,
            MigrationReason::SnapshotMissing,
        ),
        (
            "a blocking finding",
            |o| o.review = Ok(ReviewReading { hash: HASH.to_owned(), blocked: Some("WebhooksOff".to_owned()) }),
            MigrationPhase::Reviewing,
            MigrationReason::ReviewBlocked,
        ),
        ("no approval", |o| o.approved_hash = None, MigrationPhase::Reviewing, MigrationReason::ReviewNotApproved),
        (
            "a target without webhooks",
            |o| o.target.as_mut().expect("a target").proof = failing("record"),
            MigrationPhase::Gated,
            MigrationReason::TargetNotProven,
        ),
        (
            "a failing source",
            |o| o.source.as_mut().expect("a source").proof = failing("record"),
            MigrationPhase::Gated,
            MigrationReason::SourceFailing,
        ),
    ];
    for (what, change, phase, reason) in cases {
        let mut world = World::new();
        change(&mut world.observations);
        world.turns(30);
        assert_eq!((world.stored.phase, world.stored.reason), (phase, reason), "{what}");
        assert_eq!((weights(&world).len(), world.stored.desired), (0, None), "{what}");
    }
}

/// The judgement of both proofs at weight 20.
#[test]
fn proofs_of_both_clusters_decide_about_a_weight() {
    use MigrationPhase::{Baking, Frozen, RolledBack};
    use MigrationReason as Why;
    let pass = || TrackProof::Passing;
    let cases = [
        ("both pass", pass(), pass(), Baking, Why::BakeRunning, Some(20)),
        ("the target fails", failing("record"), pass(), RolledBack, Why::RecordDeleted, None),
        ("the source fails", pass(), failing("record"), Frozen, Why::SourceFailing, Some(20)),
        ("both fail at one hop", failing("record"), failing("record"), Frozen, Why::SharedFailure, Some(20)),
        ("both fail at two hops", failing("record"), failing("delivery"), RolledBack, Why::RecordDeleted, None),
        ("both fail somewhere", failing(""), failing(""), RolledBack, Why::RecordDeleted, None),
        ("the target is not known for long", TrackProof::Unknown, pass(), Frozen, Why::TargetUnknown, Some(0)),
        ("the source is not known", pass(), TrackProof::Unknown, Baking, Why::BakeRunning, Some(20)),
        (
            "the target fails, and the source is not known",
            failing("record"),
            TrackProof::Unknown,
            RolledBack,
            Why::RecordDeleted,
            None,
        ),
    ];
    for (what, target, source, phase, reason, written) in cases {
        let mut world = World::new();
        // Long enough to be still in the step at the end.
        world.plan.steps[2].bake_ms = 3_600_000;
        world.run_until_baking(20);
        world.set_target(target);
        world.set_source(source);
        world.turns(30);
        assert_eq!((world.stored.phase, world.stored.reason), (phase, reason), "{what}: {:?}", world.phases);
        assert_eq!(world.observations.written, written, "{what}");
    }
}

/// After a shared failure the target recovers first: the source's next snapshot is yet to report its recovery.
#[test]
fn a_target_whose_gate_opens_again_after_a_shared_failure_keeps_its_weight() {
    let mut world = World::new();
    world.plan.steps[2].bake_ms = 3_600_000;
    world.run_until_baking(20);
    world.set_target(failing("record"));
    world.set_source(failing("record"));
    world.turns(3);
    world.set_target(failing(""));
    world.turns(3);
    assert_eq!((world.stored.phase, world.stored.reason), (MigrationPhase::Frozen, MigrationReason::SharedFailure));
    world.set_target(TrackProof::Passing);
    world.set_source(TrackProof::Passing);
    world.turns(30);
    assert_eq!((world.phase(), world.observations.written), (MigrationPhase::Baking, Some(20)));
    world.set_target(failing(""));
    world.set_source(failing("record"));
    world.turns(30);
    assert_eq!(world.phase(), MigrationPhase::RolledBack, "another failure is judged anew");
}

#[test]
fn a_rollback_writes_weight_0_first_and_deletes_the_record_one_ttl_later() {
    let mut world = World::new();
    world.run_until_baking(20);
    world.set_target(failing("record"));
    world.turn(None);
    assert_eq!((world.phase(), world.observations.written), (MigrationPhase::RollingBack, Some(0)));
    world.turn(None);
    let applied_ms = world.now_ms;
    world.run_until(MigrationPhase::RolledBack);
    assert!(world.now_ms - applied_ms >= world.plan.ttl_ms);
    assert_eq!(weights(&world)[4..], [Some(20), Some(0), None]);
}

fn shares(world: &World) -> Vec<u8> {
    let shares = world.executed.iter().filter_map(|action| match action {
        TrackAction::ShedSessions(share) => Some(*share),
        _ => None,
    });
    shares.collect()
}

/// A target at weight 20 with a thousand sessions, which begins to fail.
fn fail_with_sessions() -> World {
    let mut world = World::new();
    world.run_until_baking(20);
    (world.sessions, world.observations.sessions) = (1_000, Some(0));
    world.turn(None);
    world.set_target(failing("record"));
    world
}

#[test]
fn a_rollback_is_followed_by_a_drain_whose_shares_grow_until_no_session_is_left() {
    let mut world = fail_with_sessions();
    let fault_ms = world.now_ms;
    world.run_until(MigrationPhase::RolledBack);
    assert!(shares(&world).is_empty(), "weight 0 and a TTL come first");
    while world.sessions > 10 {
        // A restarted operator finds the sessions that are left.
        world.turn((world.sessions > 700).then_some(Crash::BeforeStore));
        world.turn(None);
        assert!(world.now_ms - fault_ms <= 300_000, "{} sessions are left", world.sessions);
    }
    assert_eq!(world.stored.reason, MigrationReason::DrainingSessions);
    world.turns(4);
    assert_eq!((world.sessions, world.stored.reason), (0, MigrationReason::RecordDeleted));
    let asked = shares(&world);
    assert!(asked.is_sorted() && asked.starts_with(&[20]) && asked.ends_with(&[100]), "{asked:?}");
    assert_eq!(world.stored.rollback.as_ref().and_then(|rollback| rollback.sessions_left), Some(0));
    assert!(world.stored.message.contains("the record is deleted"), "{}", world.stored.message);
}

#[test]
fn clients_that_come_back_are_asked_twice_a_minute_until_the_drain_is_over() {
    let mut world = fail_with_sessions();
    world.run_until(MigrationPhase::RolledBack);
    let began_ms = world.now_ms;
    let mut times = vec![];
    for _ in 0..60 {
        let before = shares(&world).len();
        world.turn(None);
        if shares(&world).len() > before {
            times.push(world.now_ms - began_ms);
        }
        world.sessions = 3;
    }
    let late: Vec<u64> = times.iter().copied().filter(|at| *at > 70_000).collect();
    assert!(late.windows(2).all(|pair| pair[1] - pair[0] == 30_000), "{times:?}");
    assert!(late.len() >= 6 && times.iter().all(|at| *at < 300_000), "{times:?}");
    assert_eq!(world.stored.reason, MigrationReason::RecordDeleted);
    let status = describe_track((&world.plan, TrackTransport::Sockjs), &world.stored, &world.observations, None);
    assert_eq!(status.sessions_left, Some(3));
    assert!(status.next_step.contains("3 sessions stayed"), "{}", status.next_step);
}

#[test]
fn no_client_is_sent_to_a_source_that_fails_is_not_answered_or_is_not_wanted() {
    type Change = fn(&mut World);
    let cases: [(&str, Change); 6] = [
        ("the source fails", |world| world.set_source(failing("delivery"))),
        ("no other record", |world| world.source = None),
        ("sessions that are not known", |world| world.observations.sessions = None),
        ("no session", |world| world.sessions = 0),
        ("sessions that stay", |world| world.plan.after_rollback = RollbackSessions::Keep),
        ("a move that is deleted", |world| world.observations.is_deleted = true),
    ];
    for (case, change) in cases {
        let mut world = fail_with_sessions();
        world.run_until(MigrationPhase::RolledBack);
        change(&mut world);
        world.turns(10);
        assert!(shares(&world).is_empty(), "{case}: {:?}", shares(&world));
    }
    let mut frozen = fail_with_sessions();
    frozen.set_source(failing("record"));
    frozen.turns(60);
    assert_eq!((frozen.phase(), shares(&frozen).len()), (MigrationPhase::Frozen, 0));
}

#[test]
fn a_record_that_was_deleted_by_hand_is_followed_by_its_ttl_before_the_drain() {
    let mut world = fail_with_sessions();
    world.observations.written = None;
    world.run_until(MigrationPhase::RolledBack);
    let began_ms = world.now_ms;
    while shares(&world).is_empty() {
        world.turn(None);
        assert!(world.now_ms - began_ms <= 120_000, "{:?}", world.stored);
    }
    assert!(world.now_ms - began_ms >= world.plan.ttl_ms, "{:?}", world.stored);
}

#[test]
fn an_unknown_target_stops_the_bake_and_closes_after_its_time() {
    let mut world = World::new();
    world.run_until_baking(5);
    let baked = world.stored.baked_ms;
    world.set_target(TrackProof::Unknown);
    world.turns(12);
    assert_eq!((world.stored.baked_ms, world.observations.written), (baked, Some(5)), "two minutes pass");
    world.turns(3);
    assert_eq!((world.phase(), world.observations.written), (MigrationPhase::Frozen, Some(0)));
    world.set_target(TrackProof::Passing);
    world.run_until_baking(5);
    assert_eq!(world.stored.baked_ms, 0, "the step's bake begins again");
}

#[test]
fn evidence_that_is_too_old_closes_at_once_and_old_evidence_of_the_source_counts_as_passing() {
    let mut world = World::new();
    world.run_until_baking(5);
    let old = world.now_ms;
    let (mut progress, mut observations) = (world.stored.clone(), world.observations.clone());
    observations.target.as_mut().expect("a target").at_ms = old;
    let late = old + world.plan.limits.evidence_ms + 1;
    observations.answers.as_mut().expect("answers").at_ms = late;
    let (next, actions) = super::advance_track(&world.plan, &progress, &observations, late);
    assert_eq!((next.phase, next.reason), (MigrationPhase::Frozen, MigrationReason::TargetUnknown));
    assert_eq!(actions, [TrackAction::WriteWeight(0)]);
    progress.phase = MigrationPhase::Baking;
    let source = observations.source.as_mut().expect("a source");
    (source.at_ms, source.proof) = (old, failing("record"));
    let target = observations.target.as_mut().expect("a target");
    (target.at_ms, target.proof) = (late, failing("record"));
    let (next, _) = super::advance_track(&world.plan, &progress, &observations, late);
    assert_eq!(next.phase, MigrationPhase::RollingBack, "a stale failure of the source holds nobody at the target");
}

#[test]
fn a_new_fingerprint_repeats_the_bake_and_a_changed_review_waits() {
    let mut world = World::new();
    world.run_until_baking(5);
    world.turns(4);
    assert!(world.stored.baked_ms >= 3 * TURN_MS);
    world.observations.fingerprint = "two".to_owned();
    world.turn(None);
    assert_eq!((world.stored.baked_ms, world.stored.reason), (0, MigrationReason::FingerprintChanged));
    world.observations.approved_hash = None;
    world.run_until(MigrationPhase::AwaitingApproval);
    assert_eq!((world.stored.reason, world.observations.written), (MigrationReason::ReviewNotApproved, Some(5)));
    world.turns(10);
    assert_eq!(world.phase(), MigrationPhase::AwaitingApproval);
    world.observations.approved_hash = Some(HASH.to_owned());
    world.run_until_baking(20);
}

#[test]
fn steps_wait_for_their_approval() {
    let mut world = World::with(ApprovalMode::PerStep, FailureReaction::Rollback);
    world.observations.approved_through = Some(5);
    world.run_until_baking(5);
    world.run_until(MigrationPhase::AwaitingApproval);
    assert_eq!((world.observations.written, world.stored.reason), (Some(5), MigrationReason::ApprovalMissing));
    world.observations.approved_through = Some(20);
    world.run_until_baking(20);
    let mut world = World::with(ApprovalMode::Cutover, FailureReaction::Rollback);
    world.observations.approved_through = None;
    world.run_until(MigrationPhase::AwaitingApproval);
    assert_eq!(world.observations.written, Some(250), "the cutover alone waits");
    let mut world = World::with(ApprovalMode::None, FailureReaction::Rollback);
    world.observations.approved_through = None;
    world.run_until(MigrationPhase::Completed);
}

#[test]
fn a_rolled_back_move_begins_anew_for_a_change_after_the_cool_down_or_for_a_person() {
    let mut world = World::new();
    let roll_back = |world: &mut World| {
        world.run_until_baking(5);
        world.set_target(failing("record"));
        world.run_until(MigrationPhase::RolledBack);
        world.set_target(TrackProof::Passing);
    };
    roll_back(&mut world);
    world.turns(100);
    assert_eq!(world.phase(), MigrationPhase::RolledBack, "a target that passes again is the one that failed");
    world.observations.fingerprint = "two".to_owned();
    roll_back(&mut world);
    let rolled_back_ms = world.now_ms;
    world.observations.fingerprint = "three".to_owned();
    world.run_until(MigrationPhase::Shifting);
    let cool_down = world.plan.limits.cool_down_ms;
    assert!(world.now_ms - rolled_back_ms >= 2 * cool_down, "the cool-down doubles");
    assert!(world.now_ms - rolled_back_ms < 2 * cool_down + 5 * TURN_MS);
    roll_back(&mut world);
    world.observations.resume_token = "again".to_owned();
    world.turns(4);
    assert_eq!(world.phase(), MigrationPhase::Shifting, "a person waits for no cool-down");
    assert_eq!(world.plan.cool_down_ms(200), 144 * cool_down);
}

#[test]
fn a_suspended_move_keeps_its_weight_and_counts_no_bake_and_its_brake_works() {
    let mut world = World::new();
    world.observations.is_suspended = true;
    world.turns(20);
    assert_eq!((world.phase(), world.stored.reason), (MigrationPhase::Gated, MigrationReason::Suspended));
    assert!(world.executed.is_empty(), "no record: {:?}", world.executed);
    world.observations.is_suspended = false;
    world.run_until_baking(20);
    world.turns(2);
    world.observations.is_suspended = true;
    world.turn(None);
    let baked_ms = world.stored.baked_ms;
    world.turns(100);
    assert_eq!((world.phase(), world.stored.reason), (MigrationPhase::Baking, MigrationReason::Suspended));
    assert_eq!((world.stored.baked_ms, world.observations.written), (baked_ms, Some(20)));
    world.observations.is_suspended = false;
    world.turn(None);
    assert!(world.stored.baked_ms - baked_ms <= TURN_MS, "the time of the suspension is no bake");
    assert_eq!(world.stored.reason, MigrationReason::BakeRunning);
    world.observations.is_suspended = true;
    world.turns(3);
    world.set_target(failing("record"));
    world.run_until(MigrationPhase::RolledBack);
    world.set_target(TrackProof::Passing);
    world.observations.fingerprint = "two".to_owned();
    world.turns(200);
    assert_eq!(world.phase(), MigrationPhase::RolledBack, "nothing begins meanwhile");
    world.observations.is_suspended = false;
    world.run_until_baking(20);
}

#[test]
fn a_suspension_while_a_weight_is_applied_is_no_delay_of_external_dns_and_hides_no_failure() {
    let mut world = World::new();
    world.run_until_baking(1);
    world.syncs = false;
    world.run_until(MigrationPhase::Shifting);
    world.turns(2);
    world.observations.is_suspended = true;
    world.turns(200);
    assert_eq!((world.phase(), world.stored.reason), (MigrationPhase::Shifting, MigrationReason::Suspended));
    world.observations.is_suspended = false;
    world.turns(2);
    assert_eq!(world.stored.reason, MigrationReason::ApplyingWeight, "its time begins anew");
    world.syncs = true;
    world.run_until_baking(5);
    let mut frozen = World::with(ApprovalMode::None, FailureReaction::Freeze);
    frozen.run_until_baking(20);
    frozen.set_target(failing("record"));
    frozen.turns(2);
    frozen.observations.is_suspended = true;
    frozen.set_target(TrackProof::Passing);
    frozen.turns(5);
    frozen.observations.is_suspended = false;
    frozen.turns(5);
    assert_eq!((frozen.phase(), frozen.stored.reason), (MigrationPhase::Frozen, MigrationReason::TargetFailing));
}

fn fail_endpoints(world: &mut World, count: u64) {
    let delivery = world.observations.gates.target.delivery.as_mut().expect("deliveries");
    let names = (0..count).map(|number| number.to_string()).collect();
    delivery.failing = [("1".into(), names)].into();
}

/// Has the edges of the target take so many connections.
fn limit_target(world: &mut World, sessions_max: u64) {
    world.observations.gates.target.load.as_mut().expect("a load").sessions_max = sessions_max;
}

#[test]
fn a_gate_that_fails_stops_the_bake_keeps_the_weight_and_hides_no_failure_of_the_target() {
    let mut world = World::with_gates();
    world.run_until_baking(20);
    world.turns(2);
    let baked_ms = world.stored.baked_ms;
    fail_endpoints(&mut world, 2);
    world.turns(100);
    assert_eq!((world.phase(), world.stored.reason), (MigrationPhase::Baking, MigrationReason::GateFailing));
    assert_eq!((world.stored.baked_ms, world.observations.written), (baked_ms, Some(20)));
    let status = describe_track((&world.plan, TrackTransport::Sockjs), &world.stored, &world.observations, None);
    let shown: Vec<_> = status.gates.iter().map(|gate| (gate.name, gate.state)).collect();
    assert_eq!(shown, [(GateName::Delivery, GateState::Failing), (GateName::Headroom, GateState::Passing)]);
    assert!(status.message.contains("1/0, 1/1") && status.bake_left == "40 s", "{status:?}");
    // A pipeline that copies no snapshot any more is no repair.
    world.observations.gates.source = ClusterEvidence::default();
    world.turns(100);
    assert_eq!((world.stored.reason, world.stored.baked_ms), (MigrationReason::GateFailing, baked_ms));
    assert!(world.stored.message.contains("not measured any more"), "{}", world.stored.message);
    world.observations.gates = roomy_evidence();
    world.turn(None);
    assert_eq!(world.stored.reason, MigrationReason::BakeRunning);
    assert!(world.stored.baked_ms - baked_ms <= TURN_MS, "the time of the failure is no bake");
    fail_endpoints(&mut world, 2);
    world.turns(2);
    world.set_target(failing("record"));
    world.run_until(MigrationPhase::RolledBack);
    assert_eq!(world.observations.written, None);
}

#[test]
fn no_weight_rises_without_room_for_its_clients_in_any_phase() {
    let mut world = World::with_gates();
    limit_target(&mut world, 0);
    world.turns(20);
    assert_eq!((world.phase(), world.stored.reason), (MigrationPhase::Gated, MigrationReason::GateFailing));
    assert!(world.executed.is_empty(), "no record: {:?}", world.executed);
    // Weight 5 leads to 400 connections, and weight 20 to 1000.
    limit_target(&mut world, 600);
    world.run_until_baking(5);
    world.turns(60);
    assert_eq!((world.phase(), world.stored.reason), (MigrationPhase::Baking, MigrationReason::GateFailing));
    assert_eq!(world.observations.written, Some(5));
    limit_target(&mut world, 1_500);
    while world.stored.desired != Some(20) {
        world.turn(Some(Crash::BeforeAction));
    }
    assert_eq!(world.observations.written, Some(5), "decided, and not written");
    limit_target(&mut world, 600);
    world.turns(200);
    assert_eq!((world.phase(), world.stored.reason), (MigrationPhase::Shifting, MigrationReason::GateFailing));
    assert_eq!(world.observations.written, Some(5));
    limit_target(&mut world, 4_000);
    world.syncs = false;
    world.turns(3);
    assert_eq!(world.stored.reason, MigrationReason::ApplyingWeight, "its time begins with the write");
    world.syncs = true;
    world.run_until(MigrationPhase::CuttingOver);
    while world.stored.reason != MigrationReason::BakeRunning {
        world.turn(None);
    }
    let source = world.observations.gates.source.load.as_mut().expect("a load");
    (source.edges, source.sessions_max) = (1, 1_000);
    world.turns(200);
    assert_eq!((world.phase(), world.stored.reason), (MigrationPhase::CuttingOver, MigrationReason::GateFailing));
    assert!(world.stored.message.contains("a way back leads to 2000"), "{}", world.stored.message);
    world.observations.gates = roomy_evidence();
    world.run_until(MigrationPhase::Completed);
}

#[test]
fn a_disabled_gate_holds_nothing_and_is_not_shown() {
    let mut world = World::with_gates();
    (world.plan.delivery.state, world.plan.headroom.state) = (EnabledState::Disabled, EnabledState::Disabled);
    limit_target(&mut world, 0);
    fail_endpoints(&mut world, 50);
    world.run_until_baking(20);
    let status = describe_track((&world.plan, TrackTransport::Sockjs), &world.stored, &world.observations, None);
    assert!(status.gates.is_empty(), "{:?}", status.gates);
    world.run_until(MigrationPhase::Completed);
}

#[test]
fn a_person_that_disables_a_failing_gate_lets_the_move_go_on() {
    let mut world = World::with_gates();
    world.run_until_baking(5);
    fail_endpoints(&mut world, 50);
    world.turns(2);
    assert_eq!(world.stored.failing_gates, [GateName::Delivery]);
    world.observations.gates.source = ClusterEvidence::default();
    world.plan.delivery.state = EnabledState::Disabled;
    world.turn(None);
    assert_eq!((world.stored.failing_gates.len(), world.stored.reason), (0, MigrationReason::BakeRunning));
}

#[test]
fn a_freeze_keeps_the_weight_until_a_person_or_a_change() {
    let mut world = World::with(ApprovalMode::Cutover, FailureReaction::Freeze);
    world.run_until_baking(5);
    world.set_target(failing("record"));
    world.turns(10);
    assert_eq!((world.phase(), world.observations.written), (MigrationPhase::Frozen, Some(5)));
    world.set_source(failing("record"));
    world.turns(3);
    world.set_source(TrackProof::Passing);
    world.set_target(TrackProof::Passing);
    world.turns(10);
    assert_eq!(world.phase(), MigrationPhase::Frozen, "a shared failure in between excuses nothing");
    world.observations.resume_token = "again".to_owned();
    world.run_until_baking(5);
}

#[test]
fn a_brake_without_effect_ends_the_move() {
    let mut world = World::new();
    while world.observations.written != Some(0) {
        world.turn(None);
    }
    world.syncs = false;
    world.run_until(MigrationPhase::Failed);
    assert_eq!(world.stored.reason, MigrationReason::BrakeFailed);
    world.turns(5);
    assert_eq!(world.observations.written, Some(0), "the zone still answers: the record is no safe one to delete");
    world.syncs = true;
    world.observations.fingerprint = "two".to_owned();
    world.turns(100);
    assert_eq!((world.phase(), world.observations.written), (MigrationPhase::Failed, None));
    world.observations.resume_token = "again".to_owned();
    world.run_until_baking(5);
}

#[test]
fn a_weight_that_is_not_answered_is_reported_and_no_bake_counts() {
    let mut world = World::new();
    world.run_until_baking(5);
    world.answered = Some(200);
    world.syncs = false;
    world.turns(2);
    assert_eq!((world.phase(), world.stored.reason), (MigrationPhase::Shifting, MigrationReason::WeightsDiffer));
    world.turns(80);
    assert_eq!((world.stored.reason, world.stored.baked_ms < 60_000), (MigrationReason::WeightNotApplied, true));
    world.syncs = true;
    world.observations.written = Some(3);
    world.run_until_baking(5);
    assert_eq!(world.observations.written, Some(5), "an object that a person edited is written again");
}

#[test]
fn the_last_record_stays_whatever_fails() {
    let mut world = World::new();
    world.run_until_baking(60);
    world.source = None;
    world.set_target(failing("record"));
    world.turns(20);
    assert_eq!((world.phase(), world.stored.reason), (MigrationPhase::Frozen, MigrationReason::NoWayBack));
    assert_eq!(world.observations.written, Some(60));
    world.observations.is_deleted = true;
    world.turns(20);
    assert!(world.observations.written == Some(60) && !world.is_released, "a deleted move too");
    world.source = Some(20);
    world.turns(20);
    assert!(world.observations.written.is_none() && world.is_released);
}

#[test]
fn a_deleted_move_goes_back_first_and_a_complete_one_leaves_its_record() {
    let mut world = World::new();
    world.observations.is_deleted = true;
    world.turn(None);
    assert!(world.is_released, "nothing was moved yet");
    let mut world = World::new();
    world.run_until_baking(20);
    world.observations.is_deleted = true;
    world.turns(30);
    assert!(world.is_released && world.observations.written.is_none());
    assert_eq!(weights(&world)[5..], [Some(0), None]);
    let mut world = World::new();
    world.run_until(MigrationPhase::Completed);
    world.observations.is_deleted = true;
    world.turn(None);
    assert!(world.is_released && world.observations.written == Some(255));
}

#[test]
fn a_cutover_waits_for_the_source_and_still_has_its_brake() {
    let mut world = World::new();
    world.source_follows = false;
    world.run_until(MigrationPhase::CuttingOver);
    world.turns(100);
    assert_eq!(
        (world.phase(), world.stored.reason),
        (MigrationPhase::CuttingOver, MigrationReason::SourceWeightAwaited)
    );
    world.source_follows = true;
    world.turns(10);
    assert_eq!((world.stored.reason, world.source), (MigrationReason::BakeRunning, Some(1)));
    world.set_target(failing("record"));
    world.run_until(MigrationPhase::RolledBack);
    assert!(world.has_answer());
}

/// Every reason has a sentence with the next step, in any phase.
#[test]
fn every_reason_has_a_next_step() {
    let mut world = World::new();
    world.run_until_baking(5);
    for reason in MigrationReason::ALL {
        world.stored.reason = reason;
        let status =
            describe_track((&world.plan, TrackTransport::Sockjs), &world.stored, &world.observations, Some((1, 5)));
        assert!(status.next_step.len() > 20, "{reason}: {}", status.next_step);
        assert_eq!((status.step.as_str(), status.desired.as_str(), status.observed.as_str()), ("2/7", "5", "20.0 %"));
    }
}

/// An event of the world between two turns.
#[derive(Clone, Debug)]
enum Event {
    Target(u8),
    Source(u8),
    Syncs(bool),
    Fingerprint(u8),
    Approval(bool),
    Resume(u8),
    Suspend(bool),
    Gates(u8),
    Turns(u8, Option<u8>),
    RemoveSource,
    RestoreSource,
    Delete,
}

fn proof_of(number: u8) -> TrackProof {
    match number {
        0 => failing("record"),
        1 => failing("delivery"),
        2 => TrackProof::Unknown,
        _ => TrackProof::Passing,
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0_u8..8).prop_map(Event::Target),
        1 => (0_u8..12).prop_map(Event::Source),
        1 => any::<bool>().prop_map(Event::Syncs),
        1 => (0_u8..4).prop_map(Event::Fingerprint),
        1 => any::<bool>().prop_map(Event::Approval),
        1 => (0_u8..4).prop_map(Event::Resume),
        1 => any::<bool>().prop_map(Event::Suspend),
        1 => (0_u8..6).prop_map(Event::Gates),
        8 => (1_u8..40, proptest::option::of(0_u8..3)).prop_map(|(turns, crash)| Event::Turns(turns, crash)),
        1 => Just(Event::RemoveSource),
        1 => Just(Event::RestoreSource),
    ]
}

/// Lets an event happen. A person removes the source's record only while the zone follows the object: between a write and
/// its effect nobody could know.
fn apply_event(world: &mut World, event: &Event) {
    match event {
        Event::Target(number) => world.set_target(proof_of(*number)),
        Event::Source(number) => world.set_source(proof_of(*number)),
        Event::Syncs(follows) => world.syncs = *follows,
        Event::Fingerprint(number) => world.observations.fingerprint = number.to_string(),
        Event::Approval(given) => world.observations.approved_hash = given.then(|| HASH.to_owned()),
        Event::Resume(number) => world.observations.resume_token = number.to_string(),
        Event::Suspend(is_suspended) => world.observations.is_suspended = *is_suspended,
        Event::Gates(number) => {
            world.observations.gates = roomy_evidence();
            match number {
                0 => fail_endpoints(world, 2),
                1 => limit_target(world, 600),
                2 => limit_target(world, 0),
                3 => world.observations.gates.source = ClusterEvidence::default(),
                _ => {}
            }
        }
        Event::RemoveSource if world.answered == world.observations.written && world.answered.unwrap_or(0) > 0 => {
            world.source = None;
        }
        Event::RemoveSource => {}
        Event::RestoreSource => world.source = Some(20),
        Event::Delete => world.observations.is_deleted = true,
        Event::Turns(count, crash) => {
            let crash = crash.map(|kind| match kind {
                0 => Crash::BeforeStore,
                1 => Crash::BeforeAction,
                _ => Crash::AfterAction,
            });
            for number in 0..*count {
                let had_answer = world.has_answer();
                // Each kind of crash at every third turn: before and after any action.
                world.turn(crash.filter(|_| number % 3 == 0));
                assert!(world.has_answer() || !had_answer, "nothing answers any more: {:?}", world.stored);
            }
        }
    }
}

/// Everything passes again, and a person asks to go on.
fn calm(world: &mut World) {
    world.syncs = true;
    world.source = world.source.or(Some(20));
    world.set_target(TrackProof::Passing);
    world.set_source(TrackProof::Passing);
    world.observations.approved_hash = Some(HASH.to_owned());
    world.observations.is_suspended = false;
    world.observations.gates = roomy_evidence();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// The world itself asserts that no action comes twice, that a weight rises only for a target that passes and is
    /// approved, and while no gate fails, and that the last record stays.
    #[test]
    fn a_move_survives_any_events_and_crashes_and_ends(
        events in proptest::collection::vec(event(), 1..40),
        is_deleted in any::<bool>(),
        freezes in any::<bool>(),
    ) {
        let reaction = if freezes { FailureReaction::Freeze } else { FailureReaction::Rollback };
        let mut world = World::with(ApprovalMode::Cutover, reaction);
        (world.sessions, world.observations.sessions) = (500, Some(500));
        for event in &events {
            apply_event(&mut world, event);
        }
        calm(&mut world);
        if is_deleted {
            apply_event(&mut world, &Event::Delete);
            world.turns(200);
            prop_assert!(world.is_released, "{:?}", world.stored);
            let stays = world.phase() == MigrationPhase::Completed;
            prop_assert!(stays || world.observations.written.is_none(), "{:?}", world.stored);
        } else {
            world.turns(150);
            world.observations.resume_token = "by a person".to_owned();
            world.run_until(MigrationPhase::Completed);
            prop_assert_eq!(world.observations.written, Some(255));
        }
    }
}
