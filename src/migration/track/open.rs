//! The phases with a record: a weight is applied, baked and followed by the next, unless the proofs judge otherwise.

use super::closed::find_review_obstacle;
use super::judgement::Judgement;
use super::retreat::begin_retreat;
use super::suspension::{end_suspension, hold_track};
use super::turn::Turn;
use crate::api::migration::{BrakeTest, MigrationPhase, MigrationReason};

/// Applies the judgement of the proofs, then the rules of the phase.
pub(super) fn advance_open(turn: &mut Turn<'_>, judgement: Judgement) {
    match judgement {
        Judgement::Go if turn.observations.is_suspended => hold_track(turn),
        Judgement::Go => {
            end_suspension(turn);
            advance_passing(turn);
        }
        Judgement::Hold(message) => turn.next.message = message,
        Judgement::Freeze(reason, message) => freeze_weight(turn, reason, message),
        Judgement::Close(reason, message) => close_weight(turn, reason, message),
        Judgement::RollBack(reason, message) => begin_retreat(turn, reason, message),
    }
}

/// Keeps what is written. A target without a record goes back to its gate.
fn freeze_weight(turn: &mut Turn<'_>, reason: MigrationReason, message: String) {
    let written = turn.observations.written;
    turn.decide_weight(written);
    turn.next.baked_ms = 0;
    let (reason, message) = keep_failure(turn, reason, message);
    if written.is_none() {
        turn.enter(MigrationPhase::Gated, reason, message);
    } else {
        turn.enter(MigrationPhase::Frozen, reason, message);
    }
}

/// The reason of a freeze: a failure of the target alone waits for a person, whatever follows.
fn keep_failure(turn: &Turn<'_>, reason: MigrationReason, message: String) -> (MigrationReason, String) {
    let is_kept = turn.next.phase == MigrationPhase::Frozen && turn.next.reason == MigrationReason::TargetFailing;
    if is_kept { (MigrationReason::TargetFailing, message) } else { (reason, message) }
}

/// Weight 0 until the target is known to pass again.
fn close_weight(turn: &mut Turn<'_>, reason: MigrationReason, message: String) {
    turn.next.baked_ms = 0;
    let (reason, message) = keep_failure(turn, reason, message);
    if turn.observations.written.is_none() {
        turn.decide_weight(None);
        turn.enter(MigrationPhase::Gated, reason, message);
    } else if turn.observations.written == Some(0) || turn.has_way_back() {
        turn.decide_weight(Some(0));
        turn.enter(MigrationPhase::Frozen, reason, message);
    } else {
        let message = format!("{message}; the zone's servers answer with no other record");
        let is_kept = reason == MigrationReason::TargetFailing;
        turn.enter(MigrationPhase::Frozen, if is_kept { reason } else { MigrationReason::NoWayBack }, message);
    }
}

fn advance_passing(turn: &mut Turn<'_>) {
    match turn.next.phase {
        MigrationPhase::Frozen => resume_step(turn),
        MigrationPhase::Baking => count_bake(turn),
        MigrationPhase::AwaitingApproval => {
            if !repeat_bake_of_new_fingerprint(turn) {
                begin_next_step(turn);
            }
        }
        MigrationPhase::CuttingOver if turn.next.applied_ms.is_some() => count_bake(turn),
        _ => apply_weight(turn),
    }
}

/// Goes on at the same step, whose bake begins again. A target that failed under `onFailure: Freeze` waits for a change or a
/// person, as after a rollback.
fn resume_step(turn: &mut Turn<'_>) {
    let is_changed = turn.observations.fingerprint != turn.next.fingerprint;
    let is_asked = turn.observations.resume_token != turn.next.resume_token;
    if turn.next.reason == MigrationReason::TargetFailing && !is_changed && !is_asked {
        "the target passes again, with the configuration that failed".clone_into(&mut turn.next.message);
        return;
    }
    turn.next.resume_token.clone_from(&turn.observations.resume_token);
    enter_step(turn, turn.next.step, "both clusters pass again: the step is repeated");
}

/// Enters a step: its weight is to be applied, then baked.
fn enter_step(turn: &mut Turn<'_>, step: u32, message: &str) {
    turn.next.step = step;
    turn.next.baked_ms = 0;
    turn.next.fingerprint.clone_from(&turn.observations.fingerprint);
    turn.next.applied_ms = None;
    let weight = turn.plan.step(step).weight;
    turn.decide_weight(Some(weight));
    let is_test = step == 0 && turn.next.brake != BrakeTest::Proven;
    if is_test {
        turn.next.brake = BrakeTest::Untested;
    }
    let reason = if is_test { MigrationReason::TestingBrake } else { MigrationReason::ApplyingWeight };
    let phase = if turn.plan.is_cutover(step) { MigrationPhase::CuttingOver } else { MigrationPhase::Shifting };
    turn.enter(phase, reason, message);
}

/// Waits until the zone's servers answer by the weight, and one TTL longer.
fn apply_weight(turn: &mut Turn<'_>) {
    let source_weight = turn.plan.source_weight_at(turn.next.step);
    if turn.next.brake != BrakeTest::Proven {
        test_brake(turn);
        return;
    }
    if !turn.is_answered(source_weight) {
        turn.next.applied_ms = None;
        report_unapplied(turn);
        return;
    }
    let phase = turn.next.phase;
    if turn.next.applied_ms.is_none() {
        turn.enter(phase, MigrationReason::ApplyingWeight, "the zone's servers answer by the weight: one TTL more");
    }
    let applied_ms = *turn.next.applied_ms.get_or_insert(turn.now_ms);
    if phase == MigrationPhase::CuttingOver {
        turn.enter(phase, MigrationReason::BakeRunning, "the cutover is applied, and bakes");
    } else if turn.now_ms.saturating_sub(applied_ms) >= turn.plan.ttl_ms {
        turn.enter(MigrationPhase::Baking, MigrationReason::BakeRunning, "the weight is applied, and bakes");
    }
}

/// Weight 1, weight 0, weight 1: a brake that was never used is none.
fn test_brake(turn: &mut Turn<'_>) {
    let source_weight = turn.plan.source_weight;
    match turn.next.brake {
        BrakeTest::Untested if turn.is_answered(source_weight) && turn.has_way_back() => {
            turn.next.brake = BrakeTest::Releasing;
            turn.decide_weight(Some(0));
            turn.enter(MigrationPhase::Shifting, MigrationReason::TestingBrake, "weight 1 is applied: now weight 0");
        }
        BrakeTest::Releasing if turn.is_answered(source_weight) => {
            turn.next.brake = BrakeTest::Proven;
            let weight = turn.plan.step(0).weight;
            turn.decide_weight(Some(weight));
            let message = "weight 0 took the target out of the answers: now weight 1 again";
            turn.enter(MigrationPhase::Shifting, MigrationReason::ApplyingWeight, message);
        }
        BrakeTest::Releasing if turn.is_late() => {
            let message = "weight 0 is written, and the zone's servers still answer with the target".to_owned();
            turn.decide_weight(None);
            turn.enter(MigrationPhase::Failed, MigrationReason::BrakeFailed, message);
        }
        _ => report_unapplied(turn),
    }
}

fn report_unapplied(turn: &mut Turn<'_>) {
    let phase = turn.next.phase;
    let rises = turn.observations.written.unwrap_or(0) < turn.next.desired.unwrap_or(0);
    if let Some((reason, message)) = find_review_obstacle(turn).filter(|_| rises) {
        turn.enter(phase, reason, message);
        return;
    }
    if let Some(message) = turn.hold.clone().filter(|_| rises) {
        // The time for a weight to be applied begins with its write.
        turn.next.desired_ms = turn.now_ms;
        turn.enter(phase, MigrationReason::GateFailing, message);
        return;
    }
    let is_source_awaited = phase == MigrationPhase::CuttingOver && turn.is_answered(turn.plan.source_weight);
    let (reason, message) = if is_source_awaited {
        (MigrationReason::SourceWeightAwaited, "the target has weight 255, and the source its former weight")
    } else if turn.is_late() {
        (MigrationReason::WeightNotApplied, "the zone's servers do not answer by the weight")
    } else if turn.next.reason == MigrationReason::GateFailing {
        (MigrationReason::ApplyingWeight, "the gates do not fail any more: the weight is being applied")
    } else {
        return;
    };
    turn.enter(phase, reason, message);
}

/// Counts the bake while the weight is answered, from one TTL on, and begins the next step at its end.
fn count_bake(turn: &mut Turn<'_>) {
    if repeat_bake_of_new_fingerprint(turn) {
        return;
    }
    let phase = turn.next.phase;
    if !turn.is_answered(turn.plan.source_weight_at(turn.next.step)) {
        turn.next.applied_ms = None;
        let phase = if phase == MigrationPhase::Baking { MigrationPhase::Shifting } else { phase };
        turn.enter(phase, MigrationReason::WeightsDiffer, "the answers do not fit the weight any more");
        return;
    }
    let applied_ms = turn.next.applied_ms.unwrap_or(turn.now_ms);
    if turn.now_ms.saturating_sub(applied_ms) < turn.plan.ttl_ms {
        return;
    }
    if let Some(message) = turn.hold.clone() {
        turn.enter(phase, MigrationReason::GateFailing, message);
        return;
    }
    if turn.next.reason != MigrationReason::BakeRunning {
        turn.enter(phase, MigrationReason::BakeRunning, "the bake goes on");
    }
    turn.next.baked_ms = turn.next.baked_ms.saturating_add(turn.watched_ms());
    if turn.next.baked_ms >= turn.plan.step(turn.next.step).bake_ms {
        begin_next_step(turn);
    }
}

/// Evidence of a bake holds for the configuration that ran: with another one it begins again.
fn repeat_bake_of_new_fingerprint(turn: &mut Turn<'_>) -> bool {
    if turn.observations.fingerprint == turn.next.fingerprint {
        return false;
    }
    turn.next.fingerprint.clone_from(&turn.observations.fingerprint);
    turn.next.baked_ms = 0;
    let phase = turn.next.phase;
    let phase = if phase == MigrationPhase::AwaitingApproval { MigrationPhase::Baking } else { phase };
    let message = "the target runs with another configuration: the bake begins again";
    turn.enter(phase, MigrationReason::FingerprintChanged, message);
    true
}

fn begin_next_step(turn: &mut Turn<'_>) {
    if turn.plan.is_cutover(turn.next.step) {
        turn.enter(MigrationPhase::Completed, MigrationReason::MoveCompleted, "the cutover's bake is over");
        return;
    }
    let step = turn.next.step + 1;
    let weight = turn.plan.step(step).weight;
    let is_approved = turn.observations.approved_through.is_some_and(|approved| approved >= weight);
    if let Some((reason, message)) = find_review_obstacle(turn) {
        turn.enter(MigrationPhase::AwaitingApproval, reason, message);
    } else if let Some(message) = turn.hold.clone() {
        turn.enter(MigrationPhase::AwaitingApproval, MigrationReason::GateFailing, message);
    } else if turn.plan.needs_approval(step) && !is_approved {
        let message = format!("the bake is over, and weight {weight} is not approved");
        turn.enter(MigrationPhase::AwaitingApproval, MigrationReason::ApprovalMissing, message);
    } else {
        enter_step(turn, step, &format!("the bake is over: now weight {weight}"));
    }
}
