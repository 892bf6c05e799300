//! A track as a person reads it: three facts about its weight, and the next step with its owner.

use super::answers::share_of;
use super::gates::judge_gates;
use super::{TrackObservations, TrackPlan};
use crate::api::migration::{
    MigrationPhase, MigrationReason, RollbackSessions, TrackProgress, TrackStatus, TrackTransport,
};

/// The status of a track. `observed` is the number of new connections at the target, and of all.
#[must_use]
pub fn describe_track(
    (plan, transport): (&TrackPlan, TrackTransport),
    progress: &TrackProgress,
    observations: &TrackObservations,
    observed: Option<(u64, u64)>,
) -> TrackStatus {
    let step = progress.step as usize + usize::from(progress.phase >= MigrationPhase::Shifting);
    let applied = observations.answers.filter(|answers| answers.queries > 0);
    TrackStatus {
        transport,
        host: plan.host.clone(),
        step: format!("{step}/{}", plan.steps.len()),
        desired: progress.desired.map_or_else(|| "no record".to_owned(), |weight| weight.to_string()),
        applied: applied.map_or_else(
            || "not known".to_owned(),
            |answers| format!("{} of {}", percent(answers.target.into(), answers.queries.into()), answers.queries),
        ),
        observed: observed.map_or_else(|| "not known".to_owned(), |(target, all)| percent(target, all)),
        source_weight: source_weight(plan, progress),
        sessions_left: count_sessions_left(progress),
        bake_left: describe_bake_left(plan, progress),
        gates: judge_gates(plan, progress, observations, progress.turn_ms),
        reason: progress.reason,
        message: progress.message.clone(),
        next_step: describe_next_step(plan, progress),
        progress: progress.clone(),
    }
}

/// Sessions that a rollback left at the target, as far as they are known.
fn count_sessions_left(progress: &TrackProgress) -> Option<u64> {
    let rollback = progress.rollback.as_ref().filter(|_| progress.phase == MigrationPhase::RolledBack)?;
    rollback.sessions_left
}

/// Weight that the source's record should have now.
fn source_weight(plan: &TrackPlan, progress: &TrackProgress) -> u8 {
    match progress.phase {
        MigrationPhase::CuttingOver | MigrationPhase::Completed | MigrationPhase::Frozen => {
            plan.source_weight_at(progress.step)
        }
        _ => plan.source_weight,
    }
}

fn describe_bake_left(plan: &TrackPlan, progress: &TrackProgress) -> String {
    let is_baking = progress.phase == MigrationPhase::Baking
        || (progress.phase == MigrationPhase::CuttingOver && progress.applied_ms.is_some());
    if is_baking {
        describe_duration(plan.step(progress.step).bake_ms.saturating_sub(progress.baked_ms))
    } else {
        String::new()
    }
}

/// A duration in its two largest units: `2 d 3 h`, `11 h 20 min`, `45 s`.
#[must_use]
pub fn describe_duration(ms: u64) -> String {
    let seconds = ms.div_ceil(1000);
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let first = units.iter().position(|(size, _)| seconds >= *size).unwrap_or(3);
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, unit) in &units[first..units.len().min(first + 2)] {
        let count = rest / size;
        rest %= size;
        if count > 0 || parts.is_empty() {
            parts.push(format!("{count} {unit}"));
        }
    }
    parts.join(" ")
}

fn percent(part: u64, whole: u64) -> String {
    let thousandths = part.saturating_mul(1000).checked_div(whole).unwrap_or(0);
    format!("{}.{} %", thousandths / 10, thousandths % 10)
}

/// The next step, and whose it is.
fn describe_next_step(plan: &TrackPlan, progress: &TrackProgress) -> String {
    let weight = progress.desired.unwrap_or(0);
    let next = plan.step(progress.step + 1).weight;
    let text = match progress.reason {
        MigrationReason::ClusterMissing => "apply the RealtimeCluster of clusterRef, and wait for its status",
        MigrationReason::PreflightFailed => "the checks go on; mend what the message names",
        MigrationReason::RecordExists => "delete the record of the target, unless its traffic is wanted",
        MigrationReason::SnapshotMissing => "publish a snapshot of the source with `realtime snapshot`",
        MigrationReason::ReviewBlocked => "mend the finding, or accept it with `realtime migrate review --accept`",
        MigrationReason::ReviewNotApproved => {
            "read `realtime migrate review`, and write its hash into spec.review.approvedHash"
        }
        MigrationReason::TargetNotProven => "mend the target: `realtime status` names the hop; no lookup reaches it",
        MigrationReason::TestingBrake => "wait: the brake is tested before any bake",
        MigrationReason::ApplyingWeight => "wait until the zone's servers answer by the weight, and one TTL longer",
        MigrationReason::WeightNotApplied => {
            return format!(
                "look at external-dns and at the zone: the target's record must have weight {weight}, the source's {}; the \
                 change batch of `realtime migrate plan` does it by hand",
                source_weight(plan, progress)
            );
        }
        MigrationReason::WeightsDiffer => "find out who changes the records; the bake goes on once the answers fit",
        MigrationReason::BakeRunning | MigrationReason::FingerprintChanged => {
            return if plan.is_cutover(progress.step) {
                "wait for the end of the bake; keep the source at full size".to_owned()
            } else {
                format!("wait for the end of the bake; then weight {next}")
            };
        }
        MigrationReason::ApprovalMissing => {
            return format!("write spec.approvedThrough: {next} to go on");
        }
        MigrationReason::GateFailing => {
            "mend what the message names, or change the gate in spec.tracks[].gates; delete this object to go back"
        }
        MigrationReason::Suspended => {
            "remove spec.suspend to go on; a target that fails is taken out of the answers meanwhile"
        }
        MigrationReason::SourceWeightAwaited => "set the weight of the source's record to 1",
        MigrationReason::MoveCompleted => {
            "remove the source's record, then the source, once no client connects there; this object can be deleted"
        }
        MigrationReason::TargetFailing if progress.phase == MigrationPhase::Frozen => {
            "decide: mend the target and resume, or delete this object to go back"
        }
        MigrationReason::TargetFailing if plan.after_rollback == RollbackSessions::Drain => {
            "wait until weight 0 is answered and the record is deleted; then open sessions are asked to reconnect"
        }
        MigrationReason::TargetFailing | MigrationReason::MoveDeleted => {
            "wait until weight 0 is answered and the record is deleted; open sessions stay until their clients leave"
        }
        MigrationReason::TargetUnknown => "look at the operator of this cluster: journeys have no result",
        MigrationReason::SharedFailure => "mend what both clusters share; moving cannot help",
        MigrationReason::SourceFailing => "decide: mend the source, or go on by hand with the change batch of the plan",
        MigrationReason::NoWayBack => {
            return format!(
                "give the source's record its weight {} again: without it, nothing would answer for {}",
                plan.source_weight, plan.host
            );
        }
        MigrationReason::BrakeFailed => {
            "look at external-dns (it needs `--policy sync`), then resume; remove the record by hand if it is still there"
        }
        MigrationReason::DrainingSessions => {
            let left = count_sessions_left(progress).unwrap_or_default();
            return format!(
                "wait: {left} sessions at the target are asked to reconnect, a share at a time; then mend the target"
            );
        }
        MigrationReason::RecordDeleted => {
            let wait = progress.rollback.as_ref().map_or(0, |rollback| plan.cool_down_ms(rollback.count));
            let stayed = count_sessions_left(progress).filter(|left| *left > 0);
            let stayed = stayed.map_or_else(String::new, |left| format!("; {left} sessions stayed at the target"));
            return format!(
                "mend the target: another configuration that passes begins anew after {}, a resumption by hand at once{stayed}",
                describe_duration(wait)
            );
        }
    };
    if progress.phase == MigrationPhase::Frozen && weight > 0 {
        let share = share_of(weight, source_weight(plan, progress)) * 100.0;
        return format!("{text}; weight {weight} stays, {share:.0} % of lookups");
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_its_two_largest_units() {
        for (ms, text) in [
            (0, "0 s"),
            (1, "1 s"),
            (45_000, "45 s"),
            (60_000, "1 min"),
            (61_000, "1 min 1 s"),
            (40_800_000, "11 h 20 min"),
            (3_600_000, "1 h"),
            (183_600_000, "2 d 3 h"),
            (604_800_000, "7 d"),
        ] {
            assert_eq!(describe_duration(ms), text);
        }
    }

    #[test]
    fn a_share_has_one_digit_behind_the_point() {
        assert_eq!((percent(97, 200).as_str(), percent(0, 0).as_str()), ("48.5 %", "0.0 %"));
    }
}
