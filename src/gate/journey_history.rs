//! History of the journeys of one transport through one entrance, or of all journeys through one dispatcher.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{GatePolicy, Hop, HopFailure, Journey, JourneyOutcome};

/// Bounds the journeys that are remembered for the medians of latencies.
const LATENCY_SAMPLES_MAX: usize = 20;

/// State of a history after its latest journey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HistoryState<'a> {
    /// No journey passed or failed yet.
    Unknown,
    /// The latest journey passed.
    Passing,
    /// The latest journey failed in a way that the network alone can cause: not confirmed yet.
    Suspect(&'a HopFailure),
    /// The latest journey failed, and the failure is decisive or confirmed.
    Failing(&'a HopFailure),
}

/// History of journeys that share a transport and an entrance, or a dispatcher.
#[derive(Clone, Debug, Default)]
pub(super) struct JourneyHistory {
    /// Number of ambiguous failures in a row.
    ambiguous_count: usize,
    /// Start of the first of these failures.
    run_started_ms: u64,
    /// End of the last of these failures.
    run_ended_ms: u64,
    /// End of the latest failure of any kind.
    failed_ms: u64,
    last_outcome: Option<JourneyOutcome>,
    /// Whether the latest journey that counts tried the fan-out, or failed before it.
    fan_out_tried: bool,
    latencies: VecDeque<BTreeMap<Hop, u64>>,
}

impl JourneyHistory {
    /// Adds a journey. A void one changes nothing, nor does a pass that began before a failure ended: journeys overlap,
    /// and an older one may end later.
    pub fn add(&mut self, journey: &Journey) {
        match &journey.outcome {
            JourneyOutcome::Void => return,
            JourneyOutcome::Pass if journey.started_ms < self.failed_ms => return,
            JourneyOutcome::Pass => self.ambiguous_count = 0,
            JourneyOutcome::Decisive(_) => self.failed_ms = self.failed_ms.max(journey.ended_ms),
            JourneyOutcome::Ambiguous(_) => {
                if self.ambiguous_count == 0 {
                    self.run_started_ms = journey.started_ms;
                }
                self.ambiguous_count += 1;
                self.run_ended_ms = journey.ended_ms;
                self.failed_ms = self.failed_ms.max(journey.ended_ms);
            }
        }
        if !self.is_repeat(&journey.outcome) {
            self.last_outcome = Some(journey.outcome.clone());
        }
        self.fan_out_tried = journey.fan_out_tried;
        // A journey that broke at its first hop has no sample.
        if !journey.latency_ms.is_empty() {
            if self.latencies.len() == LATENCY_SAMPLES_MAX {
                self.latencies.pop_front();
            }
            self.latencies.push_back(journey.latency_ms.clone());
        }
    }

    /// Returns the current state. Once a cluster has been proven, a run of failures must also span
    /// [`GatePolicy::min_span`], so that a shard's lease that moves cannot close the gate by itself.
    pub fn current_state(&self, policy: &GatePolicy, proven: bool) -> HistoryState<'_> {
        match &self.last_outcome {
            None | Some(JourneyOutcome::Void) => HistoryState::Unknown,
            Some(JourneyOutcome::Pass) => HistoryState::Passing,
            Some(JourneyOutcome::Decisive(failure)) => HistoryState::Failing(failure),
            Some(JourneyOutcome::Ambiguous(failure)) => {
                let span = Duration::from_millis(self.run_ended_ms.saturating_sub(self.run_started_ms));
                if self.ambiguous_count >= policy.close_after && (!proven || span >= policy.min_span) {
                    HistoryState::Failing(failure)
                } else {
                    HistoryState::Suspect(failure)
                }
            }
        }
    }

    /// Whether the latest journey was measured wrong.
    pub fn is_decisive(&self) -> bool {
        matches!(self.last_outcome, Some(JourneyOutcome::Decisive(_)))
    }

    /// Whether an outcome says the same as the latest one. The text of a failure that repeats stays as it was, so that an
    /// outage changes no verdict at each journey.
    fn is_repeat(&self, outcome: &JourneyOutcome) -> bool {
        match (&self.last_outcome, outcome) {
            (Some(JourneyOutcome::Decisive(last)), JourneyOutcome::Decisive(new))
            | (Some(JourneyOutcome::Ambiguous(last)), JourneyOutcome::Ambiguous(new)) => last.is_same_as(new),
            _ => false,
        }
    }

    /// Whether the latest journey passed without the fan-out, for want of another pod.
    pub fn lacks_fan_out(&self) -> bool {
        !self.fan_out_tried && self.last_outcome == Some(JourneyOutcome::Pass)
    }

    /// Latencies of each hop in the latest journeys, in ms.
    pub fn latencies(&self) -> impl Iterator<Item = (Hop, u64)> {
        self.latencies.iter().flat_map(|hops| hops.iter().map(|(hop, ms)| (*hop, *ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reason;
    use crate::protocol::Transport;

    fn failure(hop: Hop) -> HopFailure {
        HopFailure { hop, reason: Reason::WebhookMissing, detail: String::new() }
    }

    /// Journeys that take ten seconds each, one begun every `every` seconds.
    fn history(every: u64, outcomes: &[JourneyOutcome]) -> JourneyHistory {
        let mut history = JourneyHistory::default();
        for (n, outcome) in (0..).zip(outcomes) {
            history.add(&Journey {
                fingerprint: "f1".into(),
                transport: Transport::Websocket,
                entrance: "p".into(),
                shards: vec![],
                dispatcher: None,
                started_ms: n * every * 1000,
                ended_ms: (n * every + 10) * 1000,
                latency_ms: BTreeMap::new(),
                fan_out_tried: true,
                outcome: outcome.clone(),
            });
        }
        history
    }

    #[test]
    fn only_confirmed_or_decisive_failures_are_failing() {
        let lost = || JourneyOutcome::Ambiguous(failure(Hop::Delivery));
        let (at_delivery, at_record) = (failure(Hop::Delivery), failure(Hop::Record));
        let failing = |hop| HistoryState::Failing(if hop == Hop::Record { &at_record } else { &at_delivery });
        let suspect = || HistoryState::Suspect(&at_delivery);
        let (pass, void) = (JourneyOutcome::Pass, JourneyOutcome::Void);
        let decisive = JourneyOutcome::Decisive(failure(Hop::Record));
        for (name, every, outcomes, proven, expected) in [
            ("nothing yet", 15, vec![], true, HistoryState::Unknown),
            ("only void journeys", 15, vec![void.clone(), void.clone()], true, HistoryState::Unknown),
            ("one pass", 15, vec![pass.clone()], true, HistoryState::Passing),
            ("the first loss is not confirmed", 15, vec![pass.clone(), lost()], true, suspect()),
            ("three losses that span 40 s are", 15, vec![lost(), lost(), lost()], true, failing(Hop::Delivery)),
            (
                "three losses within 14 s are not: a lease may have moved",
                2,
                vec![lost(), lost(), lost()],
                true,
                suspect(),
            ),
            (
                "before the first proof nothing has moved",
                2,
                vec![lost(), lost(), lost()],
                false,
                failing(Hop::Delivery),
            ),
            ("a pass between starts the count again", 15, vec![lost(), lost(), pass.clone(), lost()], true, suspect()),
            (
                "void journeys neither count nor reset",
                15,
                vec![lost(), void.clone(), lost(), void, lost()],
                true,
                failing(Hop::Delivery),
            ),
            ("a decisive failure counts at once", 15, vec![pass.clone(), decisive.clone()], true, failing(Hop::Record)),
            ("a pass after it ends it", 15, vec![decisive, pass], true, HistoryState::Passing),
        ] {
            assert_eq!(history(every, &outcomes).current_state(&GatePolicy::default(), proven), expected, "{name}");
        }
    }
}
