//! What is proven so far, per dimension, and what that makes of the gate.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::journey_history::{HistoryState, JourneyHistory};
use super::{ConfigDrift, GatePolicy, Hop, HopFailure, Journey, JourneyOutcome};
use crate::protocol::{ShardId, Transport};

/// Journeys over which the rate of failures is taken.
const LOSS_RATE_WINDOW_COUNT: usize = 200;

/// Most failures among them, in percent.
const LOSS_RATE_MAX_PERCENT: usize = 5;

/// What there is to be proven. A dimension without a value is a failure, not a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoverageTargets {
    /// Transports that the manifest asks for.
    pub transports: BTreeSet<Transport>,
    /// Pods that there are, with the transports that they carry.
    pub pods: BTreeMap<String, BTreeSet<Transport>>,
    /// Ways that clients take to the pods, with the transports that go there.
    pub paths: BTreeMap<String, BTreeSet<Transport>>,
    /// Every process that must say what it runs: edges and dispatchers.
    pub processes: BTreeSet<String>,
    /// Those among them that nobody has let in yet. While the gate is open they may take their time to answer; what is
    /// found against them counts all the same.
    pub newcomers: BTreeSet<String>,
    /// Whether there are webhooks at all; without them shards and dispatchers prove nothing.
    pub webhooks: bool,
    /// Open shards.
    pub shards: BTreeSet<ShardId>,
    /// Processes that hold an open shard.
    pub dispatchers: BTreeSet<String>,
}

impl CoverageTargets {
    /// The transports that a pod or a path carries; `None` for one that is not there.
    fn transports_of(&self, entrance: &str) -> Option<&BTreeSet<Transport>> {
        self.pods.get(entrance).or_else(|| self.paths.get(entrance))
    }
}

/// How one process stands by itself, apart from the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessProof {
    /// It runs what was rendered, and journeys through it passed: by each transport through an edge, one at least
    /// through a dispatcher.
    pub proven: bool,
    /// It runs what was rendered, and journeys through it hold up to the stream.
    pub reached: bool,
    /// What broke last, believed or not.
    pub failure: Option<HopFailure>,
}

/// The values that passed since the last complete round.
#[derive(Clone, Debug, Default)]
struct RoundCoverage {
    transports: BTreeSet<Transport>,
    /// Pods, and paths to them.
    entrances: BTreeSet<String>,
    shards: BTreeSet<ShardId>,
    dispatchers: BTreeSet<String>,
}

/// Everything that is known. Grows by [`Evidence::add`], shrinks when a pod goes.
#[derive(Clone, Debug)]
pub struct Evidence {
    pub(super) policy: GatePolicy,
    pub(super) targets: CoverageTargets,
    histories: BTreeMap<(Transport, String), JourneyHistory>,
    /// Differences by pod, as last seen.
    pub(super) drifts: BTreeMap<String, Vec<ConfigDrift>>,
    /// Processes that said what they run, by the id that each start makes anew.
    process_ids: BTreeMap<String, String>,
    /// Journeys whose events a dispatcher had read.
    dispatcher_histories: BTreeMap<String, JourneyHistory>,
    coverage: RoundCoverage,
    rounds: usize,
    /// Whether each of the latest journeys failed, newest last.
    recent_failures: VecDeque<bool>,
    latest_failure: Option<(Transport, String, HopFailure)>,
    /// When the latest failure ended: a pass that began before it proves nothing of the time since.
    failed_ms: u64,
    pub(super) open: bool,
    pub(super) ever_open: bool,
}

impl Evidence {
    /// No evidence.
    #[must_use]
    pub fn new(policy: GatePolicy) -> Self {
        Self {
            policy,
            targets: CoverageTargets::default(),
            histories: BTreeMap::new(),
            drifts: BTreeMap::new(),
            process_ids: BTreeMap::new(),
            dispatcher_histories: BTreeMap::new(),
            coverage: RoundCoverage::default(),
            rounds: 0,
            recent_failures: VecDeque::new(),
            latest_failure: None,
            failed_ms: 0,
            open: false,
            ever_open: false,
        }
    }

    /// Says what there is to be proven. Evidence of a pod that is gone goes with it.
    pub fn set_targets(&mut self, dimensions: CoverageTargets) {
        self.replace_targets(dimensions);
        self.update_gate();
    }

    /// Takes what there is to be proven and what every process said of itself, and judges the two together: a half of
    /// it would read as unknown.
    pub fn observe_all<'a>(
        &mut self,
        dimensions: CoverageTargets,
        said: impl IntoIterator<Item = (&'a String, &'a String, &'a Vec<ConfigDrift>)>,
    ) {
        self.replace_targets(dimensions);
        for (pod, process, drifts) in said {
            self.replace_observation(pod, process, drifts.clone());
        }
        self.update_gate();
    }

    fn replace_targets(&mut self, dimensions: CoverageTargets) {
        self.histories.retain(|(transport, entrance), _| {
            dimensions.transports_of(entrance).is_some_and(|carries| carries.contains(transport))
        });
        self.drifts.retain(|pod, _| dimensions.processes.contains(pod));
        self.process_ids.retain(|pod, _| dimensions.processes.contains(pod));
        self.dispatcher_histories.retain(|pod, _| dimensions.processes.contains(pod));
        if !self.open && dimensions != self.targets {
            self.reset_rounds();
        }
        self.targets = dimensions;
    }

    /// What was proven before holds, as an earlier keeper of this evidence wrote it down; `open` unless it broke since.
    pub fn restore_proof(&mut self, open: bool) {
        self.open = open;
        self.ever_open = true;
    }

    /// What is to be proven is another thing now: nothing known of the old one holds for it.
    pub fn reset_proof(&mut self) {
        let dimensions = std::mem::take(&mut self.targets);
        *self = Self { targets: dimensions, ..Self::new(self.policy) };
    }

    /// Takes what was found of one process; nothing means that it runs what was rendered. Of a pod whose process is
    /// another than before nothing is known any more.
    pub fn observe_process(&mut self, pod: &str, process: &str, drifts: Vec<ConfigDrift>) {
        self.replace_observation(pod, process, drifts);
        self.update_gate();
    }

    fn replace_observation(&mut self, pod: &str, process: &str, drifts: Vec<ConfigDrift>) {
        let before = self.process_ids.insert(pod.to_owned(), process.to_owned());
        if before.is_some_and(|before| before != process) {
            self.histories.retain(|(_, found), _| found != pod);
            self.dispatcher_histories.remove(pod);
        }
        if drifts.is_empty() {
            self.drifts.remove(pod);
        } else {
            self.drifts.insert(pod.to_owned(), drifts);
        }
    }

    /// A process no longer says what it runs: unknown is not proven. What was known of it against it stays.
    pub fn mark_unreachable(&mut self, pod: &str) {
        self.process_ids.remove(pod);
        self.update_gate();
    }

    /// The first process that has not said what it runs.
    pub(super) fn first_unanswered(&self) -> Option<&str> {
        let excused = |process: &String| self.open && self.targets.newcomers.contains(process);
        let missing = |process: &&String| !self.process_ids.contains_key(*process) && !excused(process);
        self.targets.processes.iter().find(missing).map(String::as_str)
    }

    /// Whether nobody has let this process in yet: it may still be on its way up.
    pub(super) fn is_newcomer(&self, process: &str) -> bool {
        self.targets.newcomers.contains(process)
    }

    /// Takes a finished journey. One through what is gone says nothing.
    pub fn add_journey(&mut self, journey: &Journey) {
        if self.targets.transports_of(&journey.entrance).is_none() {
            return;
        }
        let key = (journey.transport, journey.entrance.clone());
        self.histories.entry(key).or_default().add(journey);
        if let Some(dispatcher) = &journey.dispatcher {
            self.dispatcher_histories.entry(dispatcher.clone()).or_default().add(journey);
        }
        match &journey.outcome {
            JourneyOutcome::Void => return,
            JourneyOutcome::Pass if journey.started_ms < self.failed_ms => {}
            JourneyOutcome::Pass => self.count_toward_round(journey),
            JourneyOutcome::Decisive(failure) | JourneyOutcome::Ambiguous(failure) => {
                self.reset_rounds();
                self.failed_ms = self.failed_ms.max(journey.ended_ms);
                self.latest_failure = Some((journey.transport, journey.entrance.clone(), failure.clone()));
            }
        }
        if self.recent_failures.len() == LOSS_RATE_WINDOW_COUNT {
            self.recent_failures.pop_front();
        }
        self.recent_failures.push_back(journey.outcome != JourneyOutcome::Pass);
        self.update_gate();
    }

    /// What is known of one process by itself.
    #[must_use]
    pub fn process_proof(&self, pod: &str) -> ProcessProof {
        let sound = self.process_ids.contains_key(pod) && !self.drifts.contains_key(pod);
        let Some(carries) = self.targets.pods.get(pod) else {
            let standing =
                self.dispatcher_histories.get(pod).map(|series| series.current_state(&self.policy, self.ever_open));
            let proven = sound && standing == Some(HistoryState::Passing);
            let failure = match standing {
                Some(HistoryState::Suspect(failure) | HistoryState::Failing(failure)) => Some(failure),
                _ => None,
            };
            return ProcessProof { proven, reached: proven, failure };
        };
        let standings: Vec<HistoryState> = carries
            .iter()
            .map(|transport| {
                let series = self.histories.get(&(*transport, pod.to_owned()));
                series.map_or(HistoryState::Unknown, |series| series.current_state(&self.policy, self.ever_open))
            })
            .collect();
        let reached = |standing: &HistoryState| match standing {
            HistoryState::Passing => true,
            HistoryState::Suspect(failure) | HistoryState::Failing(failure) => failure.hop >= Hop::Record,
            HistoryState::Unknown => false,
        };
        let failure = standings.iter().find_map(|standing| match standing {
            HistoryState::Suspect(failure) | HistoryState::Failing(failure) => Some(failure.clone()),
            _ => None,
        });
        ProcessProof {
            proven: sound && standings.iter().all(|standing| *standing == HistoryState::Passing),
            reached: sound && standings.iter().all(reached),
            failure,
        }
    }

    /// Pairs whose latest failure asks for a confirmation.
    #[must_use]
    pub fn suspect_routes(&self) -> Vec<(Transport, String)> {
        let suspect = |series: &JourneyHistory| {
            matches!(series.current_state(&self.policy, self.ever_open), HistoryState::Suspect(_))
        };
        self.histories.iter().filter(|(_, series)| suspect(series)).map(|(key, _)| key.clone()).collect()
    }

    fn count_toward_round(&mut self, journey: &Journey) {
        let covered = &mut self.coverage;
        covered.transports.insert(journey.transport);
        covered.entrances.insert(journey.entrance.clone());
        covered.shards.extend(journey.shards.iter().cloned());
        covered.dispatchers.extend(journey.dispatcher.clone());
        let wanted = &self.targets;
        let edges = wanted.transports.is_subset(&covered.transports)
            && wanted.pods.keys().chain(wanted.paths.keys()).all(|entrance| covered.entrances.contains(entrance));
        let pipeline = !wanted.webhooks
            || (wanted.shards.is_subset(&covered.shards) && wanted.dispatchers.is_subset(&covered.dispatchers));
        if edges && pipeline && self.missing_dimension().is_none() {
            self.rounds += 1;
            self.coverage = RoundCoverage::default();
        }
    }

    /// The dimension that has no value.
    pub(super) fn missing_dimension(&self) -> Option<String> {
        let carried = |transport: &Transport| self.targets.pods.values().any(|carries| carries.contains(transport));
        if self.targets.transports.is_empty() {
            return Some("no transport is asked for".to_owned());
        }
        if let Some(transport) = self.targets.transports.iter().find(|transport| !carried(transport)) {
            return Some(format!("{}/{transport}: no pod serves it", transport.server_kind()));
        }
        if self.targets.webhooks && self.targets.shards.is_empty() {
            return Some("the stream has no open shard".to_owned());
        }
        if self.targets.webhooks && self.targets.dispatchers.is_empty() {
            return Some("dispatcher: no process holds a shard".to_owned());
        }
        None
    }

    fn update_gate(&mut self) {
        if self.is_refuted() {
            // What was proven before says nothing of what comes after.
            self.reset_rounds();
            self.open = false;
        } else if self.rounds >= self.policy.open_after {
            self.open = true;
            self.ever_open = true;
        }
    }

    fn reset_rounds(&mut self) {
        self.rounds = 0;
        self.coverage = RoundCoverage::default();
    }

    /// Whether anything that is believed speaks against the cluster.
    fn is_refuted(&self) -> bool {
        self.missing_dimension().is_some()
            || !self.drifts.is_empty()
            || self.first_unanswered().is_some()
            || self.believed_failures().next().is_some()
            || self.failing_dispatcher().is_some()
            || self.is_loss_rate_exceeded()
    }

    /// A dispatcher of which it is believed that it does not deliver. One that nobody has let in closes no gate that is
    /// open: others hold its shards soon.
    pub(super) fn failing_dispatcher(&self) -> Option<(&str, HopFailure)> {
        let excused = |pod: &str| self.open && self.is_newcomer(pod);
        self.dispatcher_histories.iter().filter(|(pod, _)| !excused(pod)).find_map(|(pod, series)| {
            match series.current_state(&self.policy, self.ever_open) {
                HistoryState::Failing(failure) => Some((pod.as_str(), failure)),
                _ => None,
            }
        })
    }

    /// More than 5 % of the last 200 journeys failed.
    pub(super) fn is_loss_rate_exceeded(&self) -> bool {
        let failed = self.recent_failures.iter().filter(|failed| **failed).count();
        self.recent_failures.len() == LOSS_RATE_WINDOW_COUNT
            && failed * 100 > LOSS_RATE_MAX_PERCENT * LOSS_RATE_WINDOW_COUNT
    }

    /// The failures that are believed, with transport and pod: those that are confirmed, and those that a known
    /// difference explains.
    pub(super) fn believed_failures(&self) -> impl Iterator<Item = (Transport, &str, HopFailure)> {
        self.histories.iter().filter_map(|((transport, pod), series)| {
            match series.current_state(&self.policy, self.ever_open) {
                HistoryState::Failing(failure) => Some((*transport, pod.as_str(), failure)),
                HistoryState::Suspect(failure) if self.explaining_drifts(pod, &failure).is_some() => {
                    Some((*transport, pod.as_str(), failure))
                }
                _ => None,
            }
        })
    }

    /// The differences that explain a failure: on the pod itself, or past the stream on a pod that is no edge.
    pub(super) fn explaining_drifts(&self, pod: &str, failure: &HopFailure) -> Option<(&str, &[ConfigDrift])> {
        let own = self.drifts.get_key_value(pod);
        let past = || self.drifts.iter().find(|(found, _)| !self.targets.pods.contains_key(*found));
        let found = if failure.hop > Hop::Record { past().or(own) } else { own };
        found.map(|(pod, drifts)| (pod.as_str(), drifts.as_slice()))
    }

    /// The latest failure of all, believed or not.
    pub(super) fn latest_failure(&self) -> Option<&(Transport, String, HopFailure)> {
        self.latest_failure.as_ref()
    }

    /// How many of a transport's pods pass, and of how many.
    pub(super) fn count_passing_pods(&self, transport: Transport) -> (usize, usize) {
        let pods = self.targets.pods.iter().filter(|(_, carries)| carries.contains(&transport));
        let passes = |pod: &String| {
            let series = self.histories.get(&(transport, pod.clone()));
            series.is_some_and(|series| series.current_state(&self.policy, self.ever_open) == HistoryState::Passing)
        };
        let pods: Vec<bool> = pods.map(|(pod, _)| passes(pod)).collect();
        (pods.iter().filter(|passes| **passes).count(), pods.len())
    }

    /// The median of each hop of a transport, in ms.
    pub(super) fn median_latencies(&self, transport: Transport) -> BTreeMap<Hop, u64> {
        let mut all: BTreeMap<Hop, Vec<u64>> = BTreeMap::new();
        for (_, series) in self.histories.iter().filter(|((found, _), _)| *found == transport) {
            series.latencies().for_each(|(hop, ms)| all.entry(hop).or_default().push(ms));
        }
        all.into_iter()
            .map(|(hop, mut ms)| {
                ms.sort_unstable();
                (hop, ms[ms.len() / 2])
            })
            .collect()
    }
}
