//! The journeys of one transport through one pod, or those through one dispatcher.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{Failure, Hop, Journey, Outcome, Policy};

/// Journeys that are remembered for latencies.
const REMEMBERED: usize = 20;

/// How a series stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing is known.
    Unknown,
    /// The latest journey passed.
    Passing,
    /// A failure that the network alone can cause: not yet believed.
    Suspect(Failure),
    /// A failure that is believed.
    Failing(Failure),
}

/// The journeys of one transport through one pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    /// Ambiguous failures in a row.
    run: usize,
    /// When the first of them began.
    run_started_ms: u64,
    /// When the last of them ended.
    run_ended_ms: u64,
    /// When the latest failure ended.
    failed_ms: u64,
    last: Option<Outcome>,
    latencies: VecDeque<BTreeMap<Hop, u64>>,
}

impl Series {
    /// Takes the latest journey. A void one changes nothing, nor does a pass that began before a failure ended: journeys
    /// overlap, and an older one may end later.
    pub fn add(&mut self, journey: &Journey) {
        match &journey.outcome {
            Outcome::Void => return,
            Outcome::Pass if journey.started_ms < self.failed_ms => return,
            Outcome::Pass => self.run = 0,
            Outcome::Decisive(_) => self.failed_ms = self.failed_ms.max(journey.ended_ms),
            Outcome::Ambiguous(_) => {
                if self.run == 0 {
                    self.run_started_ms = journey.started_ms;
                }
                self.run += 1;
                self.run_ended_ms = journey.ended_ms;
                self.failed_ms = self.failed_ms.max(journey.ended_ms);
            }
        }
        self.last = Some(journey.outcome.clone());
        if self.latencies.len() == REMEMBERED {
            self.latencies.pop_front();
        }
        self.latencies.push_back(journey.latency_ms.clone());
    }

    /// How it stands. Once a cluster has been proven, a run of failures must also span some time, so that a hand-over
    /// of a lease alone cannot close it.
    pub fn standing(&self, policy: &Policy, proven: bool) -> Standing {
        match &self.last {
            None | Some(Outcome::Void) => Standing::Unknown,
            Some(Outcome::Pass) => Standing::Passing,
            Some(Outcome::Decisive(failure)) => Standing::Failing(failure.clone()),
            Some(Outcome::Ambiguous(failure)) => {
                let span = Duration::from_millis(self.run_ended_ms.saturating_sub(self.run_started_ms));
                if self.run >= policy.close_after && (!proven || span >= policy.min_span) {
                    Standing::Failing(failure.clone())
                } else {
                    Standing::Suspect(failure.clone())
                }
            }
        }
    }

    /// How long each hop takes, the median of the latest journeys, in ms.
    pub fn latencies(&self) -> impl Iterator<Item = (Hop, u64)> {
        self.latencies.iter().flat_map(|hops| hops.iter().map(|(hop, ms)| (*hop, *ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reason;
    use crate::protocol::Transport;

    fn failure(hop: Hop) -> Failure {
        Failure { hop, reason: Reason::WebhookMissing, detail: String::new() }
    }

    /// Journeys that take ten seconds each, one begun every `every` seconds.
    fn series(every: u64, outcomes: &[Outcome]) -> Series {
        let mut series = Series::default();
        for (n, outcome) in (0..).zip(outcomes) {
            series.add(&Journey {
                transport: Transport::Websocket,
                entrance: "p".into(),
                shards: vec![],
                dispatcher: None,
                started_ms: n * every * 1000,
                ended_ms: (n * every + 10) * 1000,
                latency_ms: BTreeMap::new(),
                outcome: outcome.clone(),
            });
        }
        series
    }

    #[test]
    fn a_table_of_series() {
        let lost = || Outcome::Ambiguous(failure(Hop::Delivery));
        let failing = |hop| Standing::Failing(failure(hop));
        let suspect = || Standing::Suspect(failure(Hop::Delivery));
        let (pass, void) = (Outcome::Pass, Outcome::Void);
        let decisive = Outcome::Decisive(failure(Hop::Record));
        for (name, every, outcomes, proven, expected) in [
            ("nothing yet", 15, vec![], true, Standing::Unknown),
            ("only void journeys", 15, vec![void.clone(), void.clone()], true, Standing::Unknown),
            ("one pass", 15, vec![pass.clone()], true, Standing::Passing),
            ("the first loss is not believed", 15, vec![pass.clone(), lost()], true, suspect()),
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
            ("a pass after it ends it", 15, vec![decisive, pass], true, Standing::Passing),
        ] {
            assert_eq!(series(every, &outcomes).standing(&Policy::default(), proven), expected, "{name}");
        }
    }
}
