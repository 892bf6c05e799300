//! The phases before the first record: checks, review, proof.

use super::judgement::{at_hop, read_source, read_target};
use super::turn::Turn;
use super::{PreflightResult, TrackProof};
use crate::api::migration::{BrakeTest, MigrationPhase, MigrationReason};

/// Looks for the first obstacle, from the beginning: each turn checks everything again, so that nothing is taken as proven
/// that is not any more.
pub(super) fn advance_closed(turn: &mut Turn<'_>) {
    turn.next.step = 0;
    turn.decide_weight(None);
    let (phase, reason, message) = find_obstacle(turn);
    turn.enter(phase, reason, message);
    if phase == MigrationPhase::Shifting {
        turn.next.brake = BrakeTest::Untested;
        turn.next.baked_ms = 0;
        turn.next.fingerprint.clone_from(&turn.observations.fingerprint);
        turn.next.resume_token.clone_from(&turn.observations.resume_token);
        let weight = turn.plan.step(0).weight;
        turn.decide_weight(Some(weight));
    }
}

fn find_obstacle(turn: &Turn<'_>) -> (MigrationPhase, MigrationReason, String) {
    let observations = turn.observations;
    if observations.target.is_none() {
        let message = "the cluster of the move is not found, or has no status";
        return (MigrationPhase::Pending, MigrationReason::ClusterMissing, message.to_owned());
    }
    match &observations.preflight {
        PreflightResult::Running => {
            let message = "the record, the bus and the sessions are being checked";
            return (MigrationPhase::Preflight, MigrationReason::PreflightFailed, message.to_owned());
        }
        PreflightResult::Obstacle(message) => {
            return (MigrationPhase::Preflight, MigrationReason::PreflightFailed, message.clone());
        }
        PreflightResult::Passed => {}
    }
    if let Some(weight) = observations.written {
        let message = format!("a record of this cluster exists with weight {weight}, which no step wrote");
        return (MigrationPhase::Preflight, MigrationReason::RecordExists, message);
    }
    if let Some((reason, message)) = find_review_obstacle(turn) {
        return (MigrationPhase::Reviewing, reason, message);
    }
    let gated = |reason, message: String| (MigrationPhase::Gated, reason, message);
    match read_target(turn.plan, observations, turn.now_ms) {
        Some(TrackProof::Passing) => {}
        Some(TrackProof::Failing(hop)) => {
            let message = format!("the target fails{}, and has no record", at_hop(&hop));
            return gated(MigrationReason::TargetNotProven, message);
        }
        Some(TrackProof::Unknown) | None => {
            let message = "the target's journeys have no result yet".to_owned();
            return gated(MigrationReason::TargetNotProven, message);
        }
    }
    if let TrackProof::Failing(hop) = read_source(turn.plan, observations.source.as_ref(), turn.now_ms) {
        let message = format!("the source fails{}, and the target passes", at_hop(&hop));
        return gated(MigrationReason::SourceFailing, message);
    }
    if let Some(message) = &turn.hold {
        return gated(MigrationReason::GateFailing, message.clone());
    }
    if observations.is_suspended {
        let message = "the target is proven, and gets no record while the move is suspended".to_owned();
        return gated(MigrationReason::Suspended, message);
    }
    let message = "the target is proven: its record gets weight 1 for the brake's test".to_owned();
    (MigrationPhase::Shifting, MigrationReason::TestingBrake, message)
}

/// The reason for which the review does not allow a further step; `None` when it does.
pub(super) fn find_review_obstacle(turn: &Turn<'_>) -> Option<(MigrationReason, String)> {
    let review = match &turn.observations.review {
        Ok(review) => review,
        Err(message) => return Some((MigrationReason::SnapshotMissing, message.clone())),
    };
    if let Some(finding) = &review.blocked {
        return Some((MigrationReason::ReviewBlocked, finding.clone()));
    }
    if turn.observations.approved_hash.as_ref() == Some(&review.hash) {
        return None;
    }
    Some((MigrationReason::ReviewNotApproved, format!("the review of both clusters has the hash {}", review.hash)))
}
