//! A suspended move: its weight stays and no bake counts, while failures are judged as ever.

use super::turn::Turn;
use crate::api::migration::{BrakeTest, MigrationPhase, MigrationReason};

/// Keeps a track with a record as it is. A failure that waits for a person keeps its reason.
pub(super) fn hold_track(turn: &mut Turn<'_>) {
    let (phase, reason) = (turn.next.phase, turn.next.reason);
    let is_kept = phase == MigrationPhase::Frozen && reason == MigrationReason::TargetFailing;
    if !is_kept && reason != MigrationReason::Suspended {
        turn.enter(phase, MigrationReason::Suspended, "the move is suspended: its weight stays, and no bake counts");
    }
}

/// Goes on after a suspension: the time for a weight to be applied begins anew, since nobody waited for it.
pub(super) fn end_suspension(turn: &mut Turn<'_>) {
    let phase = turn.next.phase;
    // The rules of other phases enter a reason of their own.
    let is_shifting = matches!(phase, MigrationPhase::Shifting | MigrationPhase::CuttingOver);
    if turn.next.reason != MigrationReason::Suspended || !is_shifting {
        return;
    }
    let is_applied = turn.next.applied_ms.is_some();
    if !is_applied {
        turn.next.desired_ms = turn.now_ms;
    }
    let is_test = !is_applied && turn.next.brake != BrakeTest::Proven;
    let reason = if is_test { MigrationReason::TestingBrake } else { MigrationReason::ApplyingWeight };
    turn.enter(phase, reason, "the suspension is over: the weight is being applied");
}
