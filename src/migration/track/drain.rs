//! The drain of the target after a rollback: weights move lookups, and open sessions stay until they are asked to reconnect.

use super::judgement::read_source;
use super::turn::Turn;
use super::{TrackPlan, TrackProof};
use crate::api::migration::{MigrationPhase, MigrationReason, RollbackSessions, TrackProgress};

/// Shares of the clients that are asked to reconnect in a turn, in percent, each from a time after the drain's start in ms:
/// the source gets few at first.
const DRAIN_SHARES: [(u64, u8); 3] = [(0, 20), (30_000, 50), (60_000, 100)];

/// Time between two turns that ask all clients. Those that come back have a resolver that ignores the TTL, or a connection that
/// a proxy keeps open.
const DRAIN_REPEAT_MS: u64 = 30_000;

/// Start of the drain, once it is known: no lookup leads to the target, and one TTL has passed.
fn drain_start(plan: &TrackPlan, progress: &TrackProgress) -> Option<u64> {
    let (applied_ms, rollback) = (progress.applied_ms?, progress.rollback.as_ref()?);
    let is_wanted = plan.after_rollback == RollbackSessions::Drain && progress.phase == MigrationPhase::RolledBack;
    is_wanted.then(|| applied_ms.saturating_add(plan.ttl_ms).max(rollback.at_ms))
}

/// Whether the target is within the time in which its clients are asked to reconnect.
#[must_use]
pub fn is_draining(plan: &TrackPlan, progress: &TrackProgress, now_ms: u64) -> bool {
    let since = drain_start(plan, progress).and_then(|start| now_ms.checked_sub(start));
    since.is_some_and(|since| since < plan.limits.drain_ms)
}

/// Notes the sessions that are left. Each turn looks at the target anew, so that an operator that was restarted goes on.
pub(super) fn advance_drain(turn: &mut Turn<'_>) {
    if turn.next.applied_ms.is_none() && turn.is_answered(turn.plan.source_weight) {
        turn.next.applied_ms = Some(turn.now_ms);
    }
    let is_draining = is_draining(turn.plan, &turn.next, turn.now_ms);
    let sessions = turn.observations.sessions;
    if let Some(rollback) = turn.next.rollback.as_mut().filter(|_| is_draining) {
        rollback.sessions_left = sessions;
    }
    let has_work = is_draining && sessions.is_some_and(|left| left > 0) && may_ask(turn);
    let (phase, message) = (turn.next.phase, turn.next.message.clone());
    match (has_work, turn.next.reason) {
        (true, MigrationReason::RecordDeleted) => turn.enter(phase, MigrationReason::DrainingSessions, message),
        (false, MigrationReason::DrainingSessions) => turn.enter(phase, MigrationReason::RecordDeleted, message),
        _ => {}
    }
}

/// Whether clients may be asked to reconnect: they would find the source, which is not known to fail.
fn may_ask(turn: &Turn<'_>) -> bool {
    let source = read_source(turn.plan, turn.observations.source.as_ref(), turn.now_ms);
    turn.observations.written.is_none() && turn.has_way_back() && !matches!(source, TrackProof::Failing(_))
}

/// The share of clients to ask in this turn, in percent. `former_ms` is the time of the turn before.
pub(super) fn find_share(turn: &Turn<'_>, former_ms: u64) -> Option<u8> {
    if turn.next.reason != MigrationReason::DrainingSessions {
        return None;
    }
    let start = drain_start(turn.plan, &turn.next)?;
    let since = turn.now_ms.checked_sub(start)?;
    let (_, share) = *DRAIN_SHARES.iter().rev().find(|(from, _)| since >= *from)?;
    let rounds = |at_ms: u64| at_ms.checked_sub(start).map(|since| since / DRAIN_REPEAT_MS);
    let is_due = share < 100 || rounds(former_ms) != rounds(turn.now_ms);
    is_due.then_some(share)
}
