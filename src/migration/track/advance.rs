//! One turn of a track: the phase's own rules, then the writes that are due.

use super::closed::{advance_closed, find_review_obstacle};
use super::drain::{advance_drain, find_share};
use super::judgement::{Judgement, judge_proofs};
use super::open::advance_open;
use super::retreat::{advance_retreat, advance_rolled_back, begin_retreat};
use super::turn::Turn;
use super::{TrackAction, TrackObservations, TrackPlan};
use crate::api::migration::{MigrationPhase, MigrationReason, TrackProgress};

/// Advances a track by one turn. The progress is to be stored before an action is executed.
#[must_use]
pub fn advance_track(
    plan: &TrackPlan,
    progress: &TrackProgress,
    observations: &TrackObservations,
    now_ms: u64,
) -> (TrackProgress, Vec<TrackAction>) {
    let mut turn = Turn { plan, observations, now_ms, next: progress.clone(), hold: None };
    turn.note_unknown();
    turn.note_gates();
    if observations.is_deleted {
        advance_deleted(&mut turn);
    } else {
        match progress.phase {
            MigrationPhase::Pending | MigrationPhase::Preflight | MigrationPhase::Reviewing | MigrationPhase::Gated => {
                advance_closed(&mut turn);
            }
            MigrationPhase::Shifting
            | MigrationPhase::Baking
            | MigrationPhase::AwaitingApproval
            | MigrationPhase::CuttingOver
            | MigrationPhase::Frozen => {
                let judgement = judge_proofs(plan, observations, &turn.next, now_ms);
                advance_open(&mut turn, judgement);
            }
            MigrationPhase::RollingBack => advance_retreat(&mut turn),
            MigrationPhase::RolledBack | MigrationPhase::Failed => {
                if !observations.is_suspended {
                    advance_rolled_back(&mut turn);
                }
                if turn.next.phase == MigrationPhase::RolledBack {
                    advance_drain(&mut turn);
                }
            }
            MigrationPhase::Completed => {}
        }
    }
    turn.next.turn_ms = now_ms;
    let mut actions = list_due_actions(&turn);
    if !observations.is_deleted {
        actions.extend(find_share(&turn, progress.turn_ms).map(TrackAction::ShedSessions));
    }
    (turn.next, actions)
}

/// A move that is being deleted goes back first, unless it is complete: then its record stays, and serves every lookup.
fn advance_deleted(turn: &mut Turn<'_>) {
    let phase = turn.next.phase;
    let has_record = turn.next.desired.is_some() || turn.observations.written.is_some();
    // A brake that failed cannot be asked for weight 0: the record is deleted at once.
    let is_over = matches!(phase, MigrationPhase::Completed | MigrationPhase::Failed);
    if is_over || (is_closed(phase) && turn.next.desired.is_none()) || !has_record {
        return;
    }
    if phase == MigrationPhase::RollingBack {
        advance_retreat(turn);
    } else {
        begin_retreat(turn, MigrationReason::MoveDeleted, "the move is being deleted".to_owned());
    }
}

/// Whether a phase has no record.
fn is_closed(phase: MigrationPhase) -> bool {
    phase < MigrationPhase::Shifting || phase == MigrationPhase::RolledBack
}

/// Whether a weight may rise in this turn: since the turn that decided it, the move may have been suspended, a gate may fail, and
/// the proofs and the approval may be gone.
fn may_rise(turn: &Turn<'_>) -> bool {
    !turn.observations.is_suspended
        && turn.hold.is_none()
        && find_review_obstacle(turn).is_none()
        && judge_proofs(turn.plan, turn.observations, &turn.next, turn.now_ms) == Judgement::Go
}

/// The writes that lead from the record to the progress. A weight rises only while the target passes and the review is
/// approved, and falls to 0 only while lookups have another answer.
fn list_due_actions(turn: &Turn<'_>) -> Vec<TrackAction> {
    let (desired, written) = (turn.next.desired, turn.observations.written);
    if is_closed(turn.next.phase) || turn.next.phase == MigrationPhase::Completed {
        // A record that no step wrote is not touched, and that of a complete move stays, deleted or not.
        let is_over = turn.next.phase == MigrationPhase::Completed || desired.is_none();
        let release = turn.observations.is_deleted && is_over;
        return if release { vec![TrackAction::ReleaseObject] } else { vec![] };
    }
    let action = match (desired, written) {
        (None, None) if turn.observations.is_deleted => Some(TrackAction::ReleaseObject),
        (None | Some(0), None) => None,
        (Some(wanted), Some(found)) if wanted == found => None,
        (None, Some(_)) => turn.has_way_back().then_some(TrackAction::DeleteRecord),
        (Some(0), Some(_)) => turn.has_way_back().then_some(TrackAction::WriteWeight(0)),
        (Some(wanted), found) => {
            let rises = found.is_none_or(|found| wanted > found);
            (!rises || may_rise(turn)).then_some(TrackAction::WriteWeight(wanted))
        }
    };
    action.into_iter().collect()
}
