//! The plan of one track, in ms, as its manifest has it.

use crate::api::migration::{
    ApprovalMode, DeliveryGate, FailureReaction, HeadroomGate, MigrationTrack, RECORD_WEIGHT_MAX,
    RealtimeMigrationSpec, RollbackSessions,
};

/// Weight of the source's record after the cutover: 255 against 1 are 99.6 % of lookups, and the brake still works.
pub const CUTOVER_SOURCE_WEIGHT: u8 = 1;

/// A track without its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackPlan {
    /// Host that clients look up.
    pub host: String,
    /// Weight of the source's record before the cutover.
    pub source_weight: u8,
    /// TTL of the record, in ms.
    pub ttl_ms: u64,
    /// The steps; the last is the cutover, with weight 255.
    pub steps: Vec<PlannedStep>,
    /// Reaction to a failure of the target while the source passes.
    pub on_failure: FailureReaction,
    /// Treatment of the target's sessions after a rollback.
    pub after_rollback: RollbackSessions,
    /// Steps that wait for a person.
    pub approval: ApprovalMode,
    /// Limit of endpoints that fail at the target alone.
    pub delivery: DeliveryGate,
    /// Room for clients at both clusters.
    pub headroom: HeadroomGate,
    /// Times after which something counts as late.
    pub limits: MoveLimits,
}

/// One weight and its bake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedStep {
    /// Weight of the target's record.
    pub weight: u8,
    /// Duration of the bake, in ms.
    pub bake_ms: u64,
}

/// Times after which something counts as late, in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveLimits {
    /// Time for which the target's state may be unknown before its weight becomes 0.
    pub unknown_ms: u64,
    /// Age from which evidence counts as none. A gate renews the time of its last pass every five minutes.
    pub evidence_ms: u64,
    /// Age from which answers of the zone's servers count as none.
    pub sample_ms: u64,
    /// Longest time between two turns that counts for a bake: nobody watched during a longer one.
    pub turn_ms: u64,
    /// Time for a written weight to be answered: external-dns and Route 53 need two minutes at most.
    pub apply_ms: u64,
    /// Shortest time from a rollback to the next attempt; it doubles with each.
    pub cool_down_ms: u64,
    /// Time for which the target's clients are asked to reconnect after a rollback: those whose resolvers ignore the TTL would
    /// come back for a day.
    pub drain_ms: u64,
}

/// Longest time from a rollback to the next attempt, as a multiple of the shortest: a day for ten minutes.
pub const COOL_DOWN_FACTOR_MAX: u64 = 144;

const SECOND_MS: u64 = 1000;

impl Default for MoveLimits {
    fn default() -> Self {
        Self {
            unknown_ms: 120 * SECOND_MS,
            evidence_ms: 360 * SECOND_MS,
            sample_ms: 60 * SECOND_MS,
            turn_ms: 60 * SECOND_MS,
            apply_ms: 600 * SECOND_MS,
            cool_down_ms: 600 * SECOND_MS,
            drain_ms: 300 * SECOND_MS,
        }
    }
}

impl TrackPlan {
    /// The plan of a track of a migration.
    #[must_use]
    pub fn of_track(spec: &RealtimeMigrationSpec, track: &MigrationTrack) -> Self {
        let ms = |seconds: u32| u64::from(seconds) * SECOND_MS;
        let steps = track.steps.iter().map(|step| (step.weight, step.bake_seconds));
        let cutover = (RECORD_WEIGHT_MAX, track.cutover.bake_seconds);
        let steps = steps.chain([cutover]).map(|(weight, bake)| PlannedStep { weight, bake_ms: ms(bake) });
        Self {
            host: track.host.clone(),
            source_weight: spec.source.weight,
            ttl_ms: ms(track.ttl_seconds),
            steps: steps.collect(),
            on_failure: track.on_failure,
            after_rollback: track.after_rollback,
            approval: spec.approval,
            delivery: track.gates.delivery,
            headroom: track.gates.headroom,
            limits: MoveLimits { unknown_ms: ms(track.gates.unknown_seconds), ..MoveLimits::default() },
        }
    }

    /// The step of an index; the cutover for every later one.
    #[must_use]
    pub fn step(&self, index: u32) -> PlannedStep {
        let last = PlannedStep { weight: RECORD_WEIGHT_MAX, bake_ms: 0 };
        self.steps.get(index as usize).or(self.steps.last()).copied().unwrap_or(last)
    }

    /// Whether an index is that of the cutover, which is the last step.
    #[must_use]
    pub fn is_cutover(&self, index: u32) -> bool {
        index as usize + 1 >= self.steps.len()
    }

    /// Weight that the source's record should have at a step.
    #[must_use]
    pub fn source_weight_at(&self, index: u32) -> u8 {
        if self.is_cutover(index) { CUTOVER_SOURCE_WEIGHT } else { self.source_weight }
    }

    /// Whether a step waits for a person.
    #[must_use]
    pub fn needs_approval(&self, index: u32) -> bool {
        match self.approval {
            ApprovalMode::None => false,
            ApprovalMode::Cutover => self.is_cutover(index),
            // The first step follows the approval of the review.
            ApprovalMode::PerStep => index > 0,
        }
    }

    /// Time from the rollback of this number to the next attempt, in ms.
    #[must_use]
    pub fn cool_down_ms(&self, rollbacks: u32) -> u64 {
        let factor = 1_u64.checked_shl(rollbacks.saturating_sub(1)).unwrap_or(COOL_DOWN_FACTOR_MAX);
        self.limits.cool_down_ms.saturating_mul(factor.clamp(1, COOL_DOWN_FACTOR_MAX))
    }
}
