//! One turn of a track: its input, the progress that it changes, and the questions that every phase asks.

use super::gates::{describe_hold, judge_gates, list_failing};
use super::judgement::read_target;
use super::{TrackObservations, TrackPlan, TrackProof};
use crate::api::migration::{MigrationPhase, MigrationReason, TrackProgress};

/// One turn: its input, and the progress that it changes.
pub(super) struct Turn<'a> {
    pub plan: &'a TrackPlan,
    pub observations: &'a TrackObservations,
    pub now_ms: u64,
    pub next: TrackProgress,
    /// The reason for which gates beyond the proof hold the track; `None` while none does.
    pub hold: Option<String>,
}

impl Turn<'_> {
    /// Enters a phase, or stays in it for another reason.
    pub fn enter(&mut self, phase: MigrationPhase, reason: MigrationReason, message: impl Into<String>) {
        self.next.phase = phase;
        self.next.reason = reason;
        self.next.message = message.into();
    }

    /// Decides a weight, or no record; what was known about the former one does not hold any more.
    pub fn decide_weight(&mut self, weight: Option<u8>) {
        if self.next.desired != weight {
            self.next.desired = weight;
            self.next.desired_ms = self.now_ms;
            self.next.applied_ms = None;
        }
    }

    /// Whether the record is written and the zone's servers answer by it, beside this weight of the source.
    pub fn is_answered(&self, source_weight: u8) -> bool {
        let Some(answers) = self.observations.answers else { return false };
        self.observations.written == self.next.desired
            && self.has_fresh_answers()
            && answers.at_ms >= self.next.desired_ms
            && answers.fits(self.next.desired, source_weight)
    }

    /// Whether the desired weight was not answered within the time for it.
    pub fn is_late(&self) -> bool {
        self.now_ms.saturating_sub(self.next.desired_ms) > self.plan.limits.apply_ms
    }

    /// Whether lookups have an answer without the target: the zone's servers have just answered with another record. Of
    /// records that all have weight 0 each is answered, so that an answer of the target at weight 0 is no way back.
    pub fn has_way_back(&self) -> bool {
        let Some(answers) = self.observations.answers else { return false };
        let is_released = !matches!(self.observations.written, None | Some(0));
        self.has_fresh_answers() && answers.source > 0 && (is_released || answers.target == 0)
    }

    fn has_fresh_answers(&self) -> bool {
        let at = self.observations.answers.map_or(0, |answers| answers.at_ms);
        self.now_ms.saturating_sub(at) <= self.plan.limits.sample_ms
    }

    /// Time since the former turn that counts for a bake, in ms.
    pub fn watched_ms(&self) -> u64 {
        let since = self.now_ms.saturating_sub(self.next.turn_ms);
        if since > self.plan.limits.turn_ms { 0 } else { since }
    }

    /// Notes since when the target's state is not known.
    pub fn note_unknown(&mut self) {
        let proof = read_target(self.plan, self.observations, self.now_ms);
        let is_unknown = matches!(proof, None | Some(TrackProof::Unknown));
        self.next.unknown_ms = is_unknown.then(|| self.next.unknown_ms.unwrap_or(self.now_ms));
    }

    /// Notes the gates that hold the track.
    pub fn note_gates(&mut self) {
        let gates = judge_gates(self.plan, &self.next, self.observations, self.now_ms);
        self.next.failing_gates = list_failing(&self.next.failing_gates, &gates, self.observations.written);
        self.hold = describe_hold(&self.next.failing_gates, &gates);
    }
}
