//! The proof of dead letters in the schedule: when it begins anew, its attempts, and what they say of the cluster.

use std::time::Duration;

use tokio::time::Instant;

use super::dead_letter::LetterAttempt;
use super::scheduler::{JourneySchedule, ScheduleEvent};
use crate::gate::DeadLetterProof;
use crate::process::clock;

/// Timeouts of a journey for which a letter is awaited: the dispatcher pauses 5 s at most between two puts, and notices a
/// dead holder of the shard after 8 s.
const LETTER_TIMEOUT_FACTOR: u32 = 3;

impl JourneySchedule {
    /// Begins the proof anew: another fingerprint, or a requested proof.
    pub(super) fn restart_letter_proof(&mut self) {
        let plan = &self.context.plan;
        let is_kept = plan.webhooks && plan.stream.is_some() && plan.dead_letter.is_some();
        self.letter_prover = self.letter_prover.restart(is_kept, clock::now_ms());
        let proof = if is_kept { DeadLetterProof::Pending } else { DeadLetterProof::NotApplicable };
        self.evidence.set_dead_letter_proof(proof);
    }

    /// Starts the next attempt when it is due, in a separate task.
    pub(super) fn attempt_letter_proof(&mut self, now: Instant) {
        let plan = &self.context.plan;
        let (Some(stream), Some(name)) = (plan.stream.clone(), plan.dead_letter.clone()) else { return };
        let letters = stream.of_stream(name);
        let timeout = self.letter_timeout();
        let attempt = self.letter_prover.begin_attempt((stream, letters), &self.observation, timeout, now);
        let Some(attempt) = attempt else { return };
        let results = self.results.clone();
        tokio::spawn(async move {
            // The schedule may have ended.
            let _ = results.send(ScheduleEvent::LettersRead(attempt.await)).await;
        });
    }

    pub(super) fn add_letter_attempt(&mut self, attempt: LetterAttempt) {
        let Some(name) = self.context.plan.dead_letter.clone() else { return };
        let waited = self.letter_timeout();
        if let Some(proof) = self.letter_prover.add_attempt(attempt, &name, &self.observation, waited) {
            self.evidence.set_dead_letter_proof(proof);
        }
    }

    fn letter_timeout(&self) -> Duration {
        self.context.plan.policy.timeout * LETTER_TIMEOUT_FACTOR
    }
}
