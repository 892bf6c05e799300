//! The evidence so far, per value of each dimension, and whether it opens or closes the gate.
//!
//! Evidence belongs to one fingerprint of what runs, and it ages: the caller advances the time. Every call folds its fact
//! into the record of its values, then decides the gate by the chain of checks.

use std::collections::BTreeMap;

use super::coverage::Coverage;
use super::external::{ExternalEvidence, ExternalState, ExternalVerdict};
use super::journey_history::{HistoryState, JourneyHistory};
use super::loss_window::LossWindow;
use super::target_index::TargetValue;
use super::{ConfigDrift, CoverageTargets, DeadLetterProof, GatePolicy, Hop, HopFailure, Journey, JourneyOutcome};
use crate::api::Reason;
use crate::protocol::Transport;

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

/// A proof that a former leader recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoredProof {
    /// Whether the gate is open still.
    pub open: bool,
    /// Start of the oldest pass of its last complete round, in ms since 1970.
    pub passed_ms: u64,
}

/// Evidence for and against a cluster. Grows by [`Evidence::add_journey`], shrinks when a pod is deleted.
#[derive(Clone, Debug)]
pub struct Evidence {
    pub(super) policy: GatePolicy,
    pub(super) fingerprint: String,
    pub(super) targets: CoverageTargets,
    /// Journeys by the number of their route; `None` before the first one.
    histories: Vec<Option<JourneyHistory>>,
    /// Drifts by pod, as of the latest observation.
    pub(super) drifts: BTreeMap<String, Vec<ConfigDrift>>,
    /// Id of each process that reported its configuration; a restart gets another.
    process_ids: BTreeMap<String, String>,
    /// Journeys by the dispatcher that read their events.
    dispatcher_histories: BTreeMap<String, JourneyHistory>,
    /// Proof that lost events are kept.
    pub(super) dead_letter: DeadLetterProof,
    /// Description of a failed self-test of the gate.
    pub(super) gate_fault: Option<String>,
    pub(super) coverage: Coverage,
    pub(super) losses: LossWindow,
    pub(super) external: ExternalEvidence,
    latest_failure: Option<(Transport, String, HopFailure)>,
    /// End of the latest decisive failure: a pass that began before it proves nothing of the time since.
    decisive_ms: u64,
    /// The latest time that the caller gave, in ms since 1970.
    pub(super) now_ms: u64,
    /// Start of the oldest pass of a former leader's last round, until this one has completed a round of its own.
    pub(super) inherited_ms: Option<u64>,
    /// Reason and message of the latest closing, until the gate opens again.
    pub(super) closing: Option<(Reason, String)>,
    pub(super) open: bool,
    pub(super) ever_open: bool,
}

impl Evidence {
    /// Creates evidence without any journey or observation, of what has this fingerprint.
    #[must_use]
    pub fn new(policy: GatePolicy, fingerprint: impl Into<String>) -> Self {
        Self {
            policy,
            fingerprint: fingerprint.into(),
            targets: CoverageTargets::default(),
            histories: vec![],
            drifts: BTreeMap::new(),
            process_ids: BTreeMap::new(),
            dispatcher_histories: BTreeMap::new(),
            dead_letter: DeadLetterProof::default(),
            gate_fault: None,
            coverage: Coverage::default(),
            losses: LossWindow::default(),
            external: ExternalEvidence::default(),
            latest_failure: None,
            decisive_ms: 0,
            now_ms: 0,
            inherited_ms: None,
            closing: None,
            open: false,
            ever_open: false,
        }
    }

    /// Advances the time, in ms since 1970: evidence that is too old closes the gate. The time never goes back.
    pub fn advance(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        self.update_gate();
    }

    /// Replaces the policy; it is in force at once.
    pub fn set_policy(&mut self, policy: GatePolicy) {
        self.policy = policy;
        self.update_gate();
    }

    /// Replaces the proof that lost events are kept.
    pub fn set_dead_letter_proof(&mut self, proof: DeadLetterProof) {
        self.dead_letter = proof;
        self.update_gate();
    }

    /// Replaces the description of a failed self-test of the gate.
    pub fn set_gate_fault(&mut self, fault: Option<String>) {
        self.gate_fault = fault;
        self.update_gate();
    }

    /// Whether the latest self-test of the gate failed.
    #[must_use]
    pub fn has_gate_fault(&self) -> bool {
        self.gate_fault.is_some()
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
        if targets == self.targets {
            return;
        }
        self.drifts.retain(|pod, _| targets.processes.contains(pod));
        self.process_ids.retain(|pod, _| targets.processes.contains(pod));
        self.dispatcher_histories.retain(|pod, _| targets.processes.contains(pod));
        self.targets = targets;
        // A former leader had these paths proven: they are no new ones.
        let since_ms = if self.inherited_ms.is_some() { 0 } else { self.now_ms };
        self.external.set_targets(&self.targets.external, since_ms);
        let before = self.coverage.set_targets(&self.targets, self.open, self.now_ms);
        let index = self.coverage.index();
        let kept = index.take_records(&before, std::mem::take(&mut self.histories)).map(Option::flatten);
        self.histories = kept.take(index.routes().len()).collect();
    }

    /// Restores a proof of this fingerprint that a former leader recorded.
    pub fn restore_proof(&mut self, restored: RestoredProof) {
        self.open = restored.open;
        self.ever_open = true;
        self.inherited_ms = Some(restored.passed_ms);
    }

    /// Drops all evidence: what is to be proven has another fingerprint now.
    pub fn reset_proof(&mut self, fingerprint: impl Into<String>) {
        let (targets, now_ms) = (std::mem::take(&mut self.targets), self.now_ms);
        *self = Self { now_ms, ..Self::new(self.policy, fingerprint) };
        self.replace_targets(targets);
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
            for ((_, found), history) in self.coverage.index().routes().iter().zip(&mut self.histories) {
                if found == pod {
                    *history = None;
                }
            }
            self.dispatcher_histories.remove(pod);
            self.coverage.forget_process(pod);
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
        let missing = |process: &&String| !self.process_ids.contains_key(*process) && !self.is_excused(process);
        self.targets.processes.iter().find(missing).map(String::as_str)
    }

    /// Whether a process is not admitted yet: it may still be starting.
    pub(super) fn is_newcomer(&self, process: &str) -> bool {
        self.targets.newcomers.contains(process)
    }

    /// Whether a process does not count: clients do not reach it, so it does not close an open gate.
    fn is_excused(&self, process: &str) -> bool {
        self.open && self.is_newcomer(process)
    }

    /// Whether at most one edge pod counts, so that no journey can meet another pod.
    fn is_single_pod(&self) -> bool {
        self.targets.pods.keys().filter(|pod| !self.is_excused(pod)).count() <= 1
    }

    /// Hops that the journeys of a transport pass without a trial, because the cluster has one pod.
    pub(super) fn not_applicable_hops(&self, transport: Transport) -> Vec<Hop> {
        let mut histories = self.tried_routes().filter(|(found, _, _)| *found == transport);
        let lacks_fan_out = histories.any(|(_, _, history)| history.lacks_fan_out());
        if lacks_fan_out { vec![Hop::FanOut] } else { vec![] }
    }

    /// The first drift of a process that counts.
    pub(super) fn first_drift(&self) -> Option<(&str, &[ConfigDrift])> {
        let counts = |(pod, _): &(&String, &Vec<ConfigDrift>)| !self.is_excused(pod);
        self.drifts.iter().find(counts).map(|(pod, drifts)| (pod.as_str(), drifts.as_slice()))
    }

    /// Adds a finished journey. A journey through a deleted pod or path, or of another fingerprint, is ignored.
    pub fn add_journey(&mut self, journey: &Journey) {
        if journey.fingerprint != self.fingerprint {
            return;
        }
        if self.external.add_journey(journey) {
            self.advance(journey.ended_ms);
            return;
        }
        let index = self.coverage.index();
        let Some(route) = index.find(TargetValue::Route(journey.transport, &journey.entrance)) else { return };
        let shards = journey.shards.iter().filter_map(|shard| index.find(TargetValue::Shard(shard.as_str())));
        let dispatcher = journey.dispatcher.as_deref().and_then(|pod| index.find(TargetValue::Dispatcher(pod)));
        let values: Vec<usize> = std::iter::once(route).chain(shards).chain(dispatcher).collect();
        self.now_ms = self.now_ms.max(journey.ended_ms);
        self.histories[route].get_or_insert_default().add(journey);
        let excused = self.is_excused(&journey.entrance);
        if let Some(dispatcher) =
            journey.dispatcher.as_ref().filter(|_| !excused || journey.outcome == JourneyOutcome::Pass)
        {
            match self.dispatcher_histories.get_mut(dispatcher) {
                Some(history) => history.add(journey),
                None => self.dispatcher_histories.entry(dispatcher.clone()).or_default().add(journey),
            }
        }
        if journey.outcome == JourneyOutcome::Void {
            return;
        }
        self.coverage.add_finish(&values, journey.ended_ms);
        match &journey.outcome {
            JourneyOutcome::Void => {}
            JourneyOutcome::Pass => {
                // A pass without the fan-out admits a pod; where there are others, it opens and renews nothing.
                let complete = journey.fan_out_tried || self.is_single_pod();
                if complete
                    && journey.started_ms >= self.decisive_ms
                    && self.coverage.add_pass(&values, journey.started_ms)
                {
                    self.inherited_ms = None;
                }
            }
            JourneyOutcome::Decisive(failure) | JourneyOutcome::Ambiguous(failure) => {
                // One outage fails journeys everywhere: the first of equal failures is named, so that the text stays.
                if self.latest_failure.as_ref().is_none_or(|(_, _, latest)| !latest.is_same_as(failure)) {
                    self.latest_failure = Some((journey.transport, journey.entrance.clone(), failure.clone()));
                }
            }
        }
        match &journey.outcome {
            _ if excused => {}
            JourneyOutcome::Decisive(_) => {
                // What was measured wrong closes at once, and everything is proven anew.
                self.decisive_ms = self.decisive_ms.max(journey.ended_ms);
                self.coverage.restart_proof(journey.ended_ms);
                self.losses.restart();
            }
            outcome => self.losses.add(*outcome != JourneyOutcome::Pass),
        }
        // A pass cannot close an open gate, and a failure cannot open a closed one.
        let passed = journey.outcome == JourneyOutcome::Pass;
        if self.open != passed && (self.open || self.has_enough_passes()) {
            self.update_gate();
        }
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
                Some(HistoryState::Suspect(failure) | HistoryState::Failing(failure)) => Some(failure.clone()),
                _ => None,
            };
            return ProcessProof { proven, reached: proven, failure };
        };
        let states: Vec<HistoryState<'_>> = carries.iter().map(|transport| self.route_state(*transport, pod)).collect();
        let reached = |state: &HistoryState<'_>| match state {
            HistoryState::Passing => true,
            HistoryState::Suspect(failure) | HistoryState::Failing(failure) => failure.hop >= Hop::Record,
            HistoryState::Unknown => false,
        };
        let failure = states.iter().find_map(|state| match state {
            HistoryState::Suspect(failure) | HistoryState::Failing(failure) => Some((*failure).clone()),
            _ => None,
        });
        ProcessProof {
            proven: sound && states.iter().all(|state| *state == HistoryState::Passing),
            reached: sound && states.iter().all(reached),
            failure,
        }
    }

    fn route_state(&self, transport: Transport, entrance: &str) -> HistoryState<'_> {
        let history = self.coverage.index().find(TargetValue::Route(transport, entrance));
        let history = history.and_then(|number| self.histories[number].as_ref());
        history.map_or(HistoryState::Unknown, |history| history.current_state(&self.policy, self.ever_open))
    }

    /// Routes with a journey so far: transport, entrance and history.
    fn tried_routes(&self) -> impl Iterator<Item = (Transport, &str, &JourneyHistory)> {
        let routes = self.coverage.index().routes().iter().zip(&self.histories);
        routes.filter_map(|((transport, entrance), history)| Some((*transport, entrance.as_str(), history.as_ref()?)))
    }

    /// Transports and entrances whose latest failure needs a confirmation.
    #[must_use]
    pub fn suspect_routes(&self) -> Vec<(Transport, String)> {
        let suspect = |history: &JourneyHistory| {
            matches!(history.current_state(&self.policy, self.ever_open), HistoryState::Suspect(_))
        };
        let suspects = self.tried_routes().filter(|(_, _, history)| suspect(history));
        suspects.map(|(transport, entrance, _)| (transport, entrance.to_owned())).collect()
    }

    pub(super) fn newest_journeys_passed(&self) -> bool {
        let passed =
            |history: &JourneyHistory| history.current_state(&self.policy, self.ever_open) == HistoryState::Passing;
        self.tried_routes().all(|(_, _, history)| passed(history))
    }

    /// A dispatcher with confirmed failures. One that is not admitted does not close an open gate: other dispatchers take
    /// its shards soon.
    pub(super) fn failing_dispatcher(&self) -> Option<(&str, &HopFailure)> {
        self.dispatcher_histories.iter().filter(|(pod, _)| !self.is_excused(pod)).find_map(|(pod, history)| {
            match history.current_state(&self.policy, self.ever_open) {
                HistoryState::Failing(failure) => Some((pod.as_str(), failure)),
                _ => None,
            }
        })
    }

    /// Failures that count, with transport and pod: confirmed ones, and unconfirmed ones that a known drift explains.
    pub(super) fn counted_failures(&self) -> impl Iterator<Item = (Transport, &str, &HopFailure)> {
        self.tried_routes().filter(|(_, pod, _)| !self.is_excused(pod)).filter_map(|(transport, pod, history)| {
            match history.current_state(&self.policy, self.ever_open) {
                HistoryState::Failing(failure) => Some((transport, pod, failure)),
                HistoryState::Suspect(failure) if self.explaining_drifts(pod, failure).is_some() => {
                    Some((transport, pod, failure))
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

    /// The state of the paths from outside.
    pub(super) fn external_state(&self) -> ExternalState {
        self.external.state(&self.policy, self.ever_open, self.now_ms)
    }

    /// The result of the journeys from outside; `None` if the manifest has no such path.
    pub(super) fn external_verdict(&self) -> Option<ExternalVerdict> {
        self.external.verdict(&self.policy, self.ever_open, self.now_ms)
    }

    /// The latest failure of any journey, confirmed or not.
    pub(super) fn latest_failure(&self) -> Option<&(Transport, String, HopFailure)> {
        self.latest_failure.as_ref()
    }

    /// Number of a transport's pods that pass, and number of those that exist or that the manifest asks for.
    pub(super) fn count_passing_pods(&self, transport: Transport) -> (usize, usize) {
        let carrying = self.targets.pods.iter().filter(|(_, carries)| carries.contains(&transport));
        let passing = carrying.filter(|(pod, _)| self.route_state(transport, pod) == HistoryState::Passing).count();
        let wanted = self.targets.wanted_pods.get(&transport).copied().unwrap_or_default();
        (passing, wanted.max(self.targets.count_pods(transport)))
    }

    /// Median latency of each hop of a transport, in ms.
    pub(super) fn median_latencies(&self, transport: Transport) -> BTreeMap<Hop, u64> {
        let mut all: BTreeMap<Hop, Vec<u64>> = BTreeMap::new();
        for (_, _, history) in self.tried_routes().filter(|(found, _, _)| *found == transport) {
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
