//! The values that must be proven, and the passes that cover them, round by round.
//!
//! In: the targets, and passes with their start. Out: complete rounds, how often each value passed since the proof began,
//! and values without a journey for too long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::protocol::{ShardId, Transport};

/// The targets to be proven, per dimension. A dimension without a value is a failure, not a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoverageTargets {
    /// Transports that the manifest asks for.
    pub transports: BTreeSet<Transport>,
    /// Existing pods, with the transports that they carry.
    pub pods: BTreeMap<String, BTreeSet<Transport>>,
    /// Number of pods that the manifest asks for, by the transport that they carry.
    pub wanted_pods: BTreeMap<Transport, usize>,
    /// Paths of clients to the pods, with the transports that use them.
    pub paths: BTreeMap<String, BTreeSet<Transport>>,
    /// Processes that must report their configuration: edges and dispatchers.
    pub processes: BTreeSet<String>,
    /// Processes among them that are not admitted yet. Clients do not reach them, so they do not close an open gate.
    pub newcomers: BTreeSet<String>,
    /// Whether webhooks are on; without them shards and dispatchers prove nothing.
    pub webhooks: bool,
    /// Open shards of the stream.
    pub shards: BTreeSet<ShardId>,
    /// Dispatchers that hold an open shard.
    pub dispatchers: BTreeSet<String>,
}

/// One value of a dimension.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TargetValue {
    /// A transport through a pod or a path.
    Route(Transport, String),
    /// A shard of the stream.
    Shard(ShardId),
    /// A dispatcher that holds a shard.
    Dispatcher(String),
}

impl CoverageTargets {
    /// The transports that a pod or a path carries; `None` when it does not exist.
    pub(super) fn transports_of(&self, entrance: &str) -> Option<&BTreeSet<Transport>> {
        self.pods.get(entrance).or_else(|| self.paths.get(entrance))
    }

    /// Number of existing pods that carry a transport.
    pub(super) fn count_pods(&self, transport: Transport) -> usize {
        self.pods.values().filter(|carries| carries.contains(&transport)).count()
    }

    /// Number of journeys of one round: one by each transport through each pod and each path.
    pub(super) fn route_count(&self) -> usize {
        self.pods.values().chain(self.paths.values()).map(BTreeSet::len).sum()
    }

    /// Every value, and the process that it belongs to alone.
    fn values(&self) -> impl Iterator<Item = (TargetValue, Option<&str>)> {
        let pods = self.pods.iter().flat_map(|(pod, carries)| {
            carries.iter().map(move |transport| (TargetValue::Route(*transport, pod.clone()), Some(pod.as_str())))
        });
        let paths = self.paths.iter().flat_map(|(path, carries)| {
            carries.iter().map(move |transport| (TargetValue::Route(*transport, path.clone()), None))
        });
        let shards = self.shards.iter().map(|shard| (TargetValue::Shard(shard.clone()), None));
        let dispatchers = self.dispatchers.iter().map(|pod| (TargetValue::Dispatcher(pod.clone()), Some(pod.as_str())));
        let pipeline = shards.chain(dispatchers).filter(|_| self.webhooks);
        pods.chain(paths).chain(pipeline)
    }
}

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
    records: BTreeMap<TargetValue, ValueRecord>,
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
    /// Replaces the values. Those that stay keep their passes: a change adds what must still be covered.
    pub fn set_targets(&mut self, targets: &CoverageTargets, excuses_newcomers: bool, now_ms: u64) {
        let mut before = std::mem::take(&mut self.records);
        for (value, process) in targets.values() {
            let mut record = before
                .remove(&value)
                .unwrap_or_else(|| ValueRecord { target_since_ms: now_ms, ..ValueRecord::default() });
            record.excused = excuses_newcomers && process.is_some_and(|process| targets.newcomers.contains(process));
            self.records.insert(value, record);
        }
        self.count_missing();
    }

    /// Drops the passes of one process: it was restarted.
    pub fn forget_process(&mut self, process: &str) {
        for (value, record) in &mut self.records {
            let belongs = match value {
                TargetValue::Route(_, name) | TargetValue::Dispatcher(name) => name == process,
                TargetValue::Shard(_) => false,
            };
            if belongs {
                (record.pass_count, record.round_pass_ms) = (0, None);
            }
        }
        self.count_missing();
    }

    /// Notes the end of a journey that passed or failed.
    pub fn add_finish(&mut self, value: &TargetValue, ended_ms: u64) {
        if let Some(record) = self.records.get_mut(value) {
            record.finished_ms = record.finished_ms.max(ended_ms);
        }
    }

    /// Counts a pass. Returns whether it completed a round.
    pub fn add_pass(&mut self, values: &[TargetValue], started_ms: u64) -> bool {
        if started_ms < self.proof_began_ms {
            return false;
        }
        let counts_for_round = self.former_round_ms.is_none_or(|former| started_ms > former);
        for value in values {
            let Some(record) = self.records.get_mut(value) else { continue };
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
            || self.records.values().filter(|record| !record.excused).filter_map(|record| record.round_pass_ms);
        let (Some(oldest), Some(newest)) = (required().min(), required().max()) else { return false };
        self.passed_ms = Some(oldest);
        self.former_round_ms = Some(newest);
        self.clear_round();
        true
    }

    /// Begins the proof anew: earlier passes count no more.
    pub fn restart_proof(&mut self, now_ms: u64) {
        self.proof_began_ms = self.proof_began_ms.max(now_ms);
        self.records.values_mut().for_each(|record| record.pass_count = 0);
        self.clear_round();
    }

    fn clear_round(&mut self) {
        self.records.values_mut().for_each(|record| record.round_pass_ms = None);
        self.count_missing();
    }

    fn count_missing(&mut self) {
        let missing = self.records.values().filter(|record| !record.excused && record.round_pass_ms.is_none());
        self.missing_count = missing.count();
    }

    /// Whether every value has passed this often since the proof began.
    pub fn has_passed_each(&self, times: usize) -> bool {
        !self.records.is_empty() && self.records.values().all(|record| record.excused || record.pass_count >= times)
    }

    /// Start of the oldest pass of the latest complete round, in ms since 1970.
    pub fn passed_ms(&self) -> Option<u64> {
        self.passed_ms
    }

    /// The first value without a finished journey for its time, and for how long.
    pub fn first_stale(
        &self,
        now_ms: u64,
        stale_after: impl Fn(&TargetValue) -> Duration,
    ) -> Option<(&TargetValue, Duration)> {
        self.records.iter().filter(|(_, record)| !record.excused).find_map(|(value, record)| {
            let since = record.finished_ms.max(record.target_since_ms);
            let silence = Duration::from_millis(now_ms.saturating_sub(since));
            (silence > stale_after(value)).then_some((value, silence))
        })
    }
}
