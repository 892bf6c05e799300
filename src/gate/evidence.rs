//! The evidence so far, per dimension, and whether it opens or closes the gate.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::journey_history::{HistoryState, JourneyHistory};
use super::{ConfigDrift, GatePolicy, Hop, HopFailure, Journey, JourneyOutcome};
use crate::protocol::{ShardId, Transport};

/// Number of latest journeys over which the loss rate is computed.
const LOSS_RATE_WINDOW_COUNT: usize = 200;

/// Bounds the failed share of these journeys, in percent; the gate closes above it.
const LOSS_RATE_MAX_PERCENT: usize = 5;

/// The targets to be proven, per dimension. A dimension without a value is a failure, not a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoverageTargets {
    /// Transports that the manifest asks for.
    pub transports: BTreeSet<Transport>,
    /// Existing pods, with the transports that they carry.
    pub pods: BTreeMap<String, BTreeSet<Transport>>,
    /// Paths of clients to the pods, with the transports that use them.
    pub paths: BTreeMap<String, BTreeSet<Transport>>,
    /// Processes that must report their configuration: edges and dispatchers.
    pub processes: BTreeSet<String>,
    /// Processes among them that are not admitted yet. While the gate is open, they need not have answered; drifts and
    /// failures of theirs count all the same.
    pub newcomers: BTreeSet<String>,
    /// Whether webhooks are on; without them shards and dispatchers prove nothing.
    pub webhooks: bool,
    /// Open shards of the stream.
    pub shards: BTreeSet<ShardId>,
    /// Dispatchers that hold an open shard.
    pub dispatchers: BTreeSet<String>,
}

impl CoverageTargets {
    /// The transports that a pod or a path carries; `None` when it does not exist.
    fn transports_of(&self, entrance: &str) -> Option<&BTreeSet<Transport>> {
        self.pods.get(entrance).or_else(|| self.paths.get(entrance))
    }
}

/// Proof of one process by itself, apart from the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessProof {
    /// Whether the process runs the rendered configuration and journeys through it passed: by each transport through an
    /// edge, at least one through a dispatcher.
    pub proven: bool,
    /// Whether the process runs the rendered configuration and journeys through it hold up to the stream.
    pub reached: bool,
    /// The latest failure, confirmed or not.
    pub failure: Option<HopFailure>,
}

/// Values of each dimension that passed since the last complete round.
#[derive(Clone, Debug, Default)]
struct RoundCoverage {
    transports: BTreeSet<Transport>,
    /// Pods, and paths to pods.
    entrances: BTreeSet<String>,
    shards: BTreeSet<ShardId>,
    dispatchers: BTreeSet<String>,
}

/// Evidence for and against a cluster. Grows by [`Evidence::add_journey`], shrinks when a pod is deleted.
#[derive(Clone, Debug)]
pub struct Evidence {
    pub(super) policy: GatePolicy,
    pub(super) targets: CoverageTargets,
    histories: BTreeMap<(Transport, String), JourneyHistory>,
    /// Drifts by pod, as of the latest observation.
    pub(super) drifts: BTreeMap<String, Vec<ConfigDrift>>,
    /// Id of each process that reported its configuration; a restart gets another.
    process_ids: BTreeMap<String, String>,
    /// Journeys by the dispatcher that read their events.
    dispatcher_histories: BTreeMap<String, JourneyHistory>,
    coverage: RoundCoverage,
    rounds: usize,
    /// Whether each of the latest journeys failed, newest last.
    recent_failures: VecDeque<bool>,
    latest_failure: Option<(Transport, String, HopFailure)>,
    /// End of the latest failure: a pass that began before it proves nothing of the time since.
    failed_ms: u64,
    pub(super) open: bool,
    pub(super) ever_open: bool,
}

impl Evidence {
    /// Creates evidence without any journey or observation.
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

    /// Replaces the targets. Evidence of a deleted pod is dropped.
    pub fn set_targets(&mut self, targets: CoverageTargets) {
        self.replace_targets(targets);
        self.update_gate();
    }

    /// Replaces the targets and the observations of every process before the gate is updated: targets without
    /// observations would count as unknown.
    pub fn observe_all<'a>(
        &mut self,
        targets: CoverageTargets,
        observations: impl IntoIterator<Item = (&'a String, &'a String, &'a Vec<ConfigDrift>)>,
    ) {
        self.replace_targets(targets);
        for (pod, process, drifts) in observations {
            self.replace_observation(pod, process, drifts.clone());
        }
        self.update_gate();
    }

    fn replace_targets(&mut self, targets: CoverageTargets) {
        self.histories.retain(|(transport, entrance), _| {
            targets.transports_of(entrance).is_some_and(|carries| carries.contains(transport))
        });
        self.drifts.retain(|pod, _| targets.processes.contains(pod));
        self.process_ids.retain(|pod, _| targets.processes.contains(pod));
        self.dispatcher_histories.retain(|pod, _| targets.processes.contains(pod));
        if !self.open && targets != self.targets {
            self.reset_rounds();
        }
        self.targets = targets;
    }

    /// Restores a proof that a former leader recorded; `open` unless the gate closed since.
    pub fn restore_proof(&mut self, open: bool) {
        self.open = open;
        self.ever_open = true;
    }

    /// Drops all evidence: the cluster to be proven is another one now.
    pub fn reset_proof(&mut self) {
        let targets = std::mem::take(&mut self.targets);
        *self = Self { targets, ..Self::new(self.policy) };
    }

    /// Replaces the observation of one process; no drifts mean that it runs the rendered configuration. If the pod's
    /// process was restarted, its evidence is dropped.
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

    /// Notes that a process does not report its configuration: unknown is not proven. Its drifts and failures stay.
    pub fn mark_unreachable(&mut self, pod: &str) {
        self.process_ids.remove(pod);
        self.update_gate();
    }

    /// The first process that has not reported its configuration.
    pub(super) fn first_unanswered(&self) -> Option<&str> {
        let excused = |process: &String| self.open && self.targets.newcomers.contains(process);
        let missing = |process: &&String| !self.process_ids.contains_key(*process) && !excused(process);
        self.targets.processes.iter().find(missing).map(String::as_str)
    }

    /// Whether a process is not admitted yet: it may still be starting.
    pub(super) fn is_newcomer(&self, process: &str) -> bool {
        self.targets.newcomers.contains(process)
    }

    /// Adds a finished journey. A journey through a deleted pod or path is ignored.
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

    /// Returns the proof of one process by itself.
    #[must_use]
    pub fn process_proof(&self, pod: &str) -> ProcessProof {
        let sound = self.process_ids.contains_key(pod) && !self.drifts.contains_key(pod);
        let Some(carries) = self.targets.pods.get(pod) else {
            let state =
                self.dispatcher_histories.get(pod).map(|history| history.current_state(&self.policy, self.ever_open));
            let proven = sound && state == Some(HistoryState::Passing);
            let failure = match state {
                Some(HistoryState::Suspect(failure) | HistoryState::Failing(failure)) => Some(failure),
                _ => None,
            };
            return ProcessProof { proven, reached: proven, failure };
        };
        let states: Vec<HistoryState> = carries
            .iter()
            .map(|transport| {
                let history = self.histories.get(&(*transport, pod.to_owned()));
                history.map_or(HistoryState::Unknown, |history| history.current_state(&self.policy, self.ever_open))
            })
            .collect();
        let reached = |state: &HistoryState| match state {
            HistoryState::Passing => true,
            HistoryState::Suspect(failure) | HistoryState::Failing(failure) => failure.hop >= Hop::Record,
            HistoryState::Unknown => false,
        };
        let failure = states.iter().find_map(|state| match state {
            HistoryState::Suspect(failure) | HistoryState::Failing(failure) => Some(failure.clone()),
            _ => None,
        });
        ProcessProof {
            proven: sound && states.iter().all(|state| *state == HistoryState::Passing),
            reached: sound && states.iter().all(reached),
            failure,
        }
    }

    /// Transports and entrances whose latest failure needs a confirmation.
    #[must_use]
    pub fn suspect_routes(&self) -> Vec<(Transport, String)> {
        let suspect = |history: &JourneyHistory| {
            matches!(history.current_state(&self.policy, self.ever_open), HistoryState::Suspect(_))
        };
        self.histories.iter().filter(|(_, history)| suspect(history)).map(|(key, _)| key.clone()).collect()
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

    /// Describes the first dimension that has no value.
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
            // Rounds before a failure prove nothing of the time after it.
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

    /// Whether confirmed evidence speaks against the cluster.
    fn is_refuted(&self) -> bool {
        self.missing_dimension().is_some()
            || !self.drifts.is_empty()
            || self.first_unanswered().is_some()
            || self.counted_failures().next().is_some()
            || self.failing_dispatcher().is_some()
            || self.is_loss_rate_exceeded()
    }

    /// A dispatcher with confirmed failures. One that is not admitted does not close an open gate: other dispatchers take
    /// its shards soon.
    pub(super) fn failing_dispatcher(&self) -> Option<(&str, HopFailure)> {
        let excused = |pod: &str| self.open && self.is_newcomer(pod);
        self.dispatcher_histories.iter().filter(|(pod, _)| !excused(pod)).find_map(|(pod, history)| {
            match history.current_state(&self.policy, self.ever_open) {
                HistoryState::Failing(failure) => Some((pod.as_str(), failure)),
                _ => None,
            }
        })
    }

    /// Whether more than 5 % of the last 200 journeys failed.
    pub(super) fn is_loss_rate_exceeded(&self) -> bool {
        let failed = self.recent_failures.iter().filter(|failed| **failed).count();
        self.recent_failures.len() == LOSS_RATE_WINDOW_COUNT
            && failed * 100 > LOSS_RATE_MAX_PERCENT * LOSS_RATE_WINDOW_COUNT
    }

    /// Failures that count, with transport and pod: confirmed ones, and unconfirmed ones that a known drift explains.
    pub(super) fn counted_failures(&self) -> impl Iterator<Item = (Transport, &str, HopFailure)> {
        self.histories.iter().filter_map(|((transport, pod), history)| {
            match history.current_state(&self.policy, self.ever_open) {
                HistoryState::Failing(failure) => Some((*transport, pod.as_str(), failure)),
                HistoryState::Suspect(failure) if self.explaining_drifts(pod, &failure).is_some() => {
                    Some((*transport, pod.as_str(), failure))
                }
                _ => None,
            }
        })
    }

    /// The drifts that explain a failure: on the pod itself, or for a hop past the stream on a pod that is no edge.
    pub(super) fn explaining_drifts(&self, pod: &str, failure: &HopFailure) -> Option<(&str, &[ConfigDrift])> {
        let own = self.drifts.get_key_value(pod);
        let past = || self.drifts.iter().find(|(found, _)| !self.targets.pods.contains_key(*found));
        let found = if failure.hop > Hop::Record { past().or(own) } else { own };
        found.map(|(pod, drifts)| (pod.as_str(), drifts.as_slice()))
    }

    /// The latest failure of any journey, confirmed or not.
    pub(super) fn latest_failure(&self) -> Option<&(Transport, String, HopFailure)> {
        self.latest_failure.as_ref()
    }

    /// Number of a transport's pods that pass, and number of its pods.
    pub(super) fn count_passing_pods(&self, transport: Transport) -> (usize, usize) {
        let pods = self.targets.pods.iter().filter(|(_, carries)| carries.contains(&transport));
        let passes = |pod: &String| {
            let history = self.histories.get(&(transport, pod.clone()));
            history.is_some_and(|history| history.current_state(&self.policy, self.ever_open) == HistoryState::Passing)
        };
        let pods: Vec<bool> = pods.map(|(pod, _)| passes(pod)).collect();
        (pods.iter().filter(|passes| **passes).count(), pods.len())
    }

    /// Median latency of each hop of a transport, in ms.
    pub(super) fn median_latencies(&self, transport: Transport) -> BTreeMap<Hop, u64> {
        let mut all: BTreeMap<Hop, Vec<u64>> = BTreeMap::new();
        for (_, history) in self.histories.iter().filter(|((found, _), _)| *found == transport) {
            history.latencies().for_each(|(hop, ms)| all.entry(hop).or_default().push(ms));
        }
        all.into_iter()
            .map(|(hop, mut ms)| {
                ms.sort_unstable();
                (hop, ms[ms.len() / 2])
            })
            .collect()
    }
}
