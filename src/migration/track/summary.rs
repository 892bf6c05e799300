//! The status of a whole move: its phase, and whether it runs well and is over.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::conditions::condition;
use crate::api::migration::{MigrationPhase, MigrationReason, RealtimeMigrationStatus, TrackStatus};

/// Type of the condition of a move that is over, apart from Ready: a tool that waits for Ready must not wait for weeks.
const COMPLETED: &str = "Completed";

/// Summarizes the tracks of a move: the first that is not complete decides.
#[must_use]
pub fn summarize_move(
    tracks: Vec<TrackStatus>,
    generation: i64,
    former: &RealtimeMigrationStatus,
    now: jiff::Timestamp,
) -> RealtimeMigrationStatus {
    let is_complete = |track: &&TrackStatus| track.progress.phase == MigrationPhase::Completed;
    let deciding = tracks.iter().find(|track| !is_complete(track)).or(tracks.last());
    let (phase, reason) = deciding.map_or_else(Default::default, |track| (track.progress.phase, track.reason));
    let message = deciding.map_or_else(String::new, |track| format!("{}; next: {}", track.message, track.next_step));
    let completed = if phase == MigrationPhase::Completed { "True" } else { "False" };
    let build = |kind: &str, status: &str| {
        let known = former.conditions.iter().find(|known| known.type_ == kind && known.status == status);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_string(),
            message: message.clone(),
            observed_generation: Some(generation),
            last_transition_time: known.map_or(Time(now), |known| known.last_transition_time.clone()),
        }
    };
    let conditions = vec![build(condition::READY, judge_ready(phase, reason)), build(COMPLETED, completed)];
    RealtimeMigrationStatus {
        observed_generation: generation,
        phase,
        conditions,
        source: former.source.clone(),
        tracks,
    }
}

/// Whether a move runs well: its plan is accepted, and nothing waits for a repair.
fn judge_ready(phase: MigrationPhase, reason: MigrationReason) -> &'static str {
    match phase {
        MigrationPhase::Pending => "Unknown",
        MigrationPhase::Shifting
        | MigrationPhase::Baking
        | MigrationPhase::AwaitingApproval
        | MigrationPhase::CuttingOver
        | MigrationPhase::Completed
            if !reason.needs_repair() =>
        {
            "True"
        }
        _ => "False",
    }
}

#[cfg(test)]
mod tests {
    use super::super::describe_track;
    use super::super::simulation::World;
    use super::*;
    use crate::api::migration::TrackTransport;
    use crate::migration::track::TrackProof;

    fn summarize(world: &World, former: &RealtimeMigrationStatus, second: i64) -> RealtimeMigrationStatus {
        let plan = (&world.plan, TrackTransport::Sockjs);
        let track = describe_track(plan, &world.stored, &world.observations, None);
        summarize_move(vec![track], 3, former, jiff::Timestamp::from_second(second).expect("a time"))
    }

    fn read(status: &RealtimeMigrationStatus) -> Vec<(String, String, String)> {
        let conditions = status.conditions.iter();
        conditions.map(|found| (found.type_.clone(), found.status.clone(), found.reason.clone())).collect()
    }

    #[test]
    fn a_move_is_ready_while_it_runs_well_and_completed_at_its_end() {
        let expected = |ready: &str, completed: &str, reason: &str| {
            [("Ready", ready), ("Completed", completed)]
                .map(|(kind, status)| (kind.to_owned(), status.to_owned(), reason.to_owned()))
                .to_vec()
        };
        let mut world = World::new();
        let pending = summarize(&world, &RealtimeMigrationStatus::default(), 1);
        assert_eq!(read(&pending), expected("Unknown", "False", "ClusterMissing"));
        world.run_until_baking(5);
        let baking = summarize(&world, &pending, 2);
        assert_eq!(read(&baking), expected("True", "False", "BakeRunning"));
        assert_eq!(baking.conditions[1].last_transition_time, pending.conditions[1].last_transition_time);
        assert_ne!(baking.conditions[0].last_transition_time, pending.conditions[0].last_transition_time);
        let mut failed = World::new();
        failed.run_until_baking(5);
        failed.set_target(TrackProof::Failing("record".to_owned()));
        failed.run_until(MigrationPhase::RolledBack);
        assert_eq!(read(&summarize(&failed, &baking, 3)), expected("False", "False", "RecordDeleted"));
        world.run_until(MigrationPhase::Completed);
        let completed = summarize(&world, &baking, 4);
        assert_eq!(read(&completed), expected("True", "True", "MoveCompleted"));
        assert_eq!((completed.observed_generation, completed.phase), (3, MigrationPhase::Completed));
    }
}
