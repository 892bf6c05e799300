//! The values that must be proven, and the passes that cover them, round by round.
//!
//! In: the targets, and passes of numbered values with their start. Out: complete rounds, how often each value passed since
//! the proof began, and values without a journey for too long.

use std::time::Duration;

use super::CoverageTargets;
use super::target_index::{TargetIndex, TargetValue};

#[derive(Clone, Debug, Default)]
struct ValueRecord {
    /// Since when the value has to be proven, in ms since 1970.
    target_since_ms: u64,
    /// End of the latest journey that passed or failed, in ms since 1970.
    finished_ms: u64,
    /// Number of passes since the proof began.
    pass_count: usize,
    /// Start of the latest pass that counts for the current round, in ms since 1970.
    round_pass_ms: Option<u64>,
    /// Whether the value belongs to a process that need not be proven.
    excused: bool,
}

/// The passes of each value.
#[derive(Clone, Debug, Default)]
pub(super) struct Coverage {
    index: TargetIndex,
    /// By the number of the value.
    records: Vec<ValueRecord>,
    /// Number of values without a pass in the current round.
    missing_count: usize,
    /// Passes that began before count neither for the proof nor for the round, in ms since 1970.
    proof_began_ms: u64,
    /// Start of the newest pass of the former round, in ms since 1970: passes of a round begin after it.
    former_round_ms: Option<u64>,
    /// Start of the oldest pass of the latest complete round, in ms since 1970.
    passed_ms: Option<u64>,
}

impl Coverage {
    /// The numbers of the values.
    pub fn index(&self) -> &TargetIndex {
        &self.index
    }

    /// Replaces the values. Those that stay keep their passes: a change adds what must still be covered. Returns the former
    /// numbers.
    pub fn set_targets(&mut self, targets: &CoverageTargets, excuses_newcomers: bool, now_ms: u64) -> TargetIndex {
        let before = std::mem::replace(&mut self.index, TargetIndex::of_targets(targets));
        let records = self.index.take_records(&before, std::mem::take(&mut self.records));
        let create = || ValueRecord { target_since_ms: now_ms, ..ValueRecord::default() };
        self.records = records.map(|record| record.unwrap_or_else(create)).collect();
        self.excuse_newcomers(targets, excuses_newcomers);
        before
    }

    /// Excuses the values of newcomers, or of nobody.
    pub fn excuse_newcomers(&mut self, targets: &CoverageTargets, excuses_newcomers: bool) {
        for (value, record) in self.index.values().zip(&mut self.records) {
            record.excused = excuses_newcomers && value.process().is_some_and(|pod| targets.newcomers.contains(pod));
        }
        self.count_missing();
    }

    /// Drops the passes of one process: it was restarted.
    pub fn forget_process(&mut self, process: &str) {
        for (value, record) in self.index.values().zip(&mut self.records) {
            if value.process() == Some(process) {
                (record.pass_count, record.round_pass_ms) = (0, None);
            }
        }
        self.count_missing();
    }

    /// Notes the end of a journey that passed or failed.
    pub fn add_finish(&mut self, numbers: &[usize], ended_ms: u64) {
        for number in numbers {
            let finished_ms = &mut self.records[*number].finished_ms;
            *finished_ms = ended_ms.max(*finished_ms);
        }
    }

    /// Counts a pass. Returns whether it completed a round.
    pub fn add_pass(&mut self, numbers: &[usize], started_ms: u64) -> bool {
        if started_ms < self.proof_began_ms {
            return false;
        }
        let counts_for_round = self.former_round_ms.is_none_or(|former| started_ms > former);
        for number in numbers {
            let record = &mut self.records[*number];
            record.pass_count += 1;
            if counts_for_round {
                if record.round_pass_ms.is_none() && !record.excused {
                    self.missing_count -= 1;
                }
                record.round_pass_ms = record.round_pass_ms.max(Some(started_ms));
            }
        }
        self.complete_round()
    }

    fn complete_round(&mut self) -> bool {
        if self.missing_count > 0 {
            return false;
        }
        let required =
            || self.records.iter().filter(|record| !record.excused).filter_map(|record| record.round_pass_ms);
        let (Some(oldest), Some(newest)) = (required().min(), required().max()) else { return false };
        self.passed_ms = Some(oldest);
        self.former_round_ms = Some(newest);
        self.clear_round();
        true
    }

    /// Begins the proof anew: earlier passes count no more.
    pub fn restart_proof(&mut self, now_ms: u64) {
        self.proof_began_ms = self.proof_began_ms.max(now_ms);
        self.records.iter_mut().for_each(|record| record.pass_count = 0);
        self.clear_round();
    }

    fn clear_round(&mut self) {
        self.records.iter_mut().for_each(|record| record.round_pass_ms = None);
        self.count_missing();
    }

    fn count_missing(&mut self) {
        let missing = self.records.iter().filter(|record| !record.excused && record.round_pass_ms.is_none());
        self.missing_count = missing.count();
    }

    /// Whether every value has passed this often since the proof began.
    pub fn has_passed_each(&self, times: usize) -> bool {
        !self.records.is_empty() && self.records.iter().all(|record| record.excused || record.pass_count >= times)
    }

    /// Start of the oldest pass of the latest complete round, in ms since 1970.
    pub fn passed_ms(&self) -> Option<u64> {
        self.passed_ms
    }

    /// The first value without a finished journey for its time, and for how long.
    pub fn first_stale(
        &self,
        now_ms: u64,
        stale_after: impl Fn(TargetValue<'_>) -> Duration,
    ) -> Option<(TargetValue<'_>, Duration)> {
        let mut required = self.index.values().zip(&self.records).filter(|(_, record)| !record.excused);
        required.find_map(|(value, record)| {
            let since = record.finished_ms.max(record.target_since_ms);
            let silence = Duration::from_millis(now_ms.saturating_sub(since));
            (silence > stale_after(value)).then_some((value, silence))
        })
    }
}
