//! The way back: weight 0, a TTL, no record; and the conditions of another attempt.

use super::turn::Turn;
use crate::api::migration::{BrakeTest, MigrationPhase, MigrationReason, RecordedRollback};

/// Begins the way back, unless lookups would be left without an answer.
pub(super) fn begin_retreat(turn: &mut Turn<'_>, reason: MigrationReason, message: String) {
    turn.next.baked_ms = 0;
    match turn.observations.written {
        None if turn.next.step == 0 && turn.next.brake == BrakeTest::Untested => {
            turn.decide_weight(None);
            turn.enter(MigrationPhase::Gated, reason, message);
        }
        Some(weight) if weight > 0 && !turn.has_way_back() => {
            // A deleted object asks again each turn; a failing target as long as it fails.
            let message = format!("{message}; the zone's servers answer with no other record");
            turn.decide_weight(Some(weight));
            turn.enter(MigrationPhase::Frozen, MigrationReason::NoWayBack, message);
        }
        written => {
            turn.decide_weight(written.map(|_| 0));
            turn.enter(MigrationPhase::RollingBack, reason, message);
        }
    }
}

/// Deletes the record once weight 0 is answered and a TTL has passed. A target that passes meanwhile changes nothing.
pub(super) fn advance_retreat(turn: &mut Turn<'_>) {
    // The source may be asked for its former weight at the same time; at 0 and without a record both are answered alike.
    let is_answered = turn.is_answered(turn.plan.source_weight);
    if turn.next.desired.is_some() && turn.observations.written.is_some() {
        if !is_answered {
            turn.next.applied_ms = None;
            report_stuck(turn);
            return;
        }
        let applied_ms = *turn.next.applied_ms.get_or_insert(turn.now_ms);
        if turn.now_ms.saturating_sub(applied_ms) >= turn.plan.ttl_ms {
            turn.decide_weight(None);
            // Weight 0 and no record are answered alike.
            turn.next.applied_ms = Some(applied_ms);
        }
        return;
    }
    turn.decide_weight(None);
    if turn.observations.written.is_none() {
        let count = turn.next.rollback.as_ref().map_or(0, |rollback| rollback.count).saturating_add(1);
        let fingerprint = turn.next.fingerprint.clone();
        turn.next.rollback = Some(RecordedRollback { fingerprint, at_ms: turn.now_ms, count, sessions_left: None });
        turn.next.brake = BrakeTest::Untested;
        turn.next.resume_token.clone_from(&turn.observations.resume_token);
        let message = format!("{}: the record is deleted", turn.next.message);
        turn.enter(MigrationPhase::RolledBack, MigrationReason::RecordDeleted, message);
    } else {
        report_stuck(turn);
    }
}

/// Names the obstacle of a way back that does not end.
fn report_stuck(turn: &mut Turn<'_>) {
    if turn.observations.written != turn.next.desired && !turn.has_way_back() {
        turn.next.reason = MigrationReason::NoWayBack;
    } else if turn.is_late() {
        turn.next.reason = MigrationReason::WeightNotApplied;
    }
}

/// Begins anew for a person, or for another configuration after the cool-down; never by itself. A brake that failed is for a
/// person alone.
pub(super) fn advance_rolled_back(turn: &mut Turn<'_>) {
    let is_failed = turn.next.phase == MigrationPhase::Failed;
    if turn.observations.written.is_some() {
        return;
    }
    let is_asked = turn.observations.resume_token != turn.next.resume_token;
    let is_changed = !is_failed
        && turn.next.rollback.as_ref().is_none_or(|rollback| {
            let since = turn.now_ms.saturating_sub(rollback.at_ms);
            rollback.fingerprint != turn.observations.fingerprint && since >= turn.plan.cool_down_ms(rollback.count)
        });
    if is_asked || is_changed {
        turn.next.resume_token.clone_from(&turn.observations.resume_token);
        turn.next.brake = BrakeTest::Untested;
        let message =
            if is_asked { "a person asked for another attempt" } else { "the target's configuration changed" };
        turn.enter(MigrationPhase::Preflight, MigrationReason::PreflightFailed, message);
    }
}
