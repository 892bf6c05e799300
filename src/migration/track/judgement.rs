//! The judgement of both clusters' proofs: whether to go on, to hold, or to go back.

use super::{ProofReading, TrackObservations, TrackPlan, TrackProof};
use crate::api::migration::{FailureReaction, MigrationPhase, MigrationReason, TrackProgress};

/// Consequence of the proofs of both clusters, for a target that has a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The target passes, and the source is not known to fail.
    Go,
    /// The target's state is not known, for a short time so far: nothing changes, and no bake counts.
    Hold(String),
    /// Weights stay, because another weight cannot help or a person decides.
    Freeze(MigrationReason, String),
    /// The target's weight becomes 0, and rises again once it passes.
    Close(MigrationReason, String),
    /// The target's weight becomes 0, and its record is deleted.
    RollBack(MigrationReason, String),
}

/// Judges the proofs of a track with this progress.
pub(super) fn judge_proofs(
    plan: &TrackPlan,
    observations: &TrackObservations,
    progress: &TrackProgress,
    now_ms: u64,
) -> Judgement {
    let target = read_target(plan, observations, now_ms);
    let source = read_source(plan, observations.source.as_ref(), now_ms);
    match (target, source) {
        (Some(TrackProof::Passing), TrackProof::Failing(hop)) => {
            let message = format!("the source fails{}, and the target passes", at_hop(&hop));
            Judgement::Freeze(MigrationReason::SourceFailing, message)
        }
        (Some(TrackProof::Passing), _) => Judgement::Go,
        (Some(TrackProof::Failing(hop)), TrackProof::Failing(other)) if hop == other && !hop.is_empty() => {
            let message = format!("both clusters fail{}: they share the cause", at_hop(&hop));
            Judgement::Freeze(MigrationReason::SharedFailure, message)
        }
        // A gate stays closed for some rounds after the cause is gone, while no hop fails any more.
        (Some(TrackProof::Failing(hop)), TrackProof::Failing(other))
            if hop.is_empty() && is_shared_freeze(progress) =>
        {
            let message = format!("the source fails{}, and the target's gate is not open again", at_hop(&other));
            Judgement::Freeze(MigrationReason::SharedFailure, message)
        }
        (Some(TrackProof::Failing(hop)), source) => {
            let beside = match source {
                TrackProof::Failing(other) => format!("the source fails{} too", at_hop(&other)),
                _ => "the source is not known to fail".to_owned(),
            };
            let message = format!("the target fails{}, and {beside}", at_hop(&hop));
            match plan.on_failure {
                FailureReaction::Rollback => Judgement::RollBack(MigrationReason::TargetFailing, message),
                FailureReaction::Freeze => Judgement::Freeze(MigrationReason::TargetFailing, message),
            }
        }
        (Some(TrackProof::Unknown), _) => {
            let since = now_ms.saturating_sub(progress.unknown_ms.unwrap_or(now_ms));
            let message = "the target's journeys have no result".to_owned();
            if since > plan.limits.unknown_ms {
                Judgement::Close(MigrationReason::TargetUnknown, message)
            } else {
                Judgement::Hold(message)
            }
        }
        (None, _) => {
            let message = "the target's evidence is too old, or its cluster is gone".to_owned();
            Judgement::Close(MigrationReason::TargetUnknown, message)
        }
    }
}

/// Whether a track is frozen since both clusters failed at one hop.
fn is_shared_freeze(progress: &TrackProgress) -> bool {
    progress.phase == MigrationPhase::Frozen && progress.reason == MigrationReason::SharedFailure
}

/// The target's proof; `None` for evidence that is too old, and for a cluster that is gone.
pub(super) fn read_target(plan: &TrackPlan, observations: &TrackObservations, now_ms: u64) -> Option<TrackProof> {
    let fresh = observations.target.as_ref().filter(|reading| is_fresh(plan, reading, now_ms));
    fresh.map(|reading| reading.proof.clone())
}

/// The source's proof. Old or absent evidence must not keep a failing target in the answers, so it counts as passing.
pub(super) fn read_source(plan: &TrackPlan, reading: Option<&ProofReading>, now_ms: u64) -> TrackProof {
    match reading {
        Some(reading) if is_fresh(plan, reading, now_ms) && reading.proof != TrackProof::Unknown => {
            reading.proof.clone()
        }
        _ => TrackProof::Passing,
    }
}

fn is_fresh(plan: &TrackPlan, reading: &ProofReading, now_ms: u64) -> bool {
    now_ms.saturating_sub(reading.at_ms) <= plan.limits.evidence_ms
}

/// ` at hop record`, or nothing for a hop that is not known.
pub(super) fn at_hop(hop: &str) -> String {
    if hop.is_empty() { String::new() } else { format!(" at hop {hop}") }
}
