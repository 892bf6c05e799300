//! How much evidence opens the gate, and how much closes it.

use std::time::Duration;

use super::GatePhase;

/// Settings of a gate, from the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatePolicy {
    /// Time between two rounds once the cluster is proven.
    pub interval: Duration,
    /// Timeout for hops 1 to 10 together, and another of the same length for the farewell.
    pub timeout: Duration,
    /// Number of complete rounds that open the gate.
    pub open_after: usize,
    /// Number of ambiguous failures in a row that close it.
    pub close_after: usize,
    /// Least time from the start of the first of these failures to the end of the last.
    pub min_span: Duration,
    /// Time between two confirming journeys after an ambiguous failure.
    pub confirm_every: Duration,
    /// Age at which evidence of a former leader is too old.
    pub inherited_evidence_max: Duration,
}

/// Evidence counts for so many intervals at least.
const STALE_INTERVALS: u32 = 3;

/// Evidence counts for so long at least.
const SHORTEST_EVIDENCE_TTL: Duration = Duration::from_mins(1);

/// Evidence counts for so long at most.
const LONGEST_EVIDENCE_TTL: Duration = Duration::from_mins(15);

/// Pods of one transport that every round of an open gate visits.
const TOURED_PODS_MIN: usize = 12;

/// Bounds the rounds that visit every pod once, at the interval of the manifest.
const TOUR_MAX: Duration = Duration::from_mins(5);

/// Interval of rounds before the first proof.
const UNPROVEN_ROUND_INTERVAL: Duration = Duration::from_millis(500);

/// Interval of rounds while the gate is closed, so that a mended cluster is Ready again soon.
const CLOSED_ROUND_INTERVAL: Duration = Duration::from_secs(2);

/// Rounds with failures in a row after which rounds keep their usual interval again.
const FAILED_ROUNDS_MAX: usize = 10;

/// State on which the pace of rounds depends.
#[derive(Clone, Copy, Debug)]
pub struct RoundState {
    /// Phase of the gate.
    pub phase: GatePhase,
    /// Whether no journey is under way.
    pub idle: bool,
    /// Whether a journey has failed since the latest round began.
    pub failed: bool,
    /// Number of rounds in a row with a failed journey.
    pub failed_rounds: usize,
}

/// The pace of a cluster's rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundPace {
    /// The gate is open.
    Open,
    /// The gate may open with the next rounds.
    Proving,
    /// The gate is not open, and rounds have failed for long.
    Failing,
}

impl RoundState {
    /// The pace of the next round.
    #[must_use]
    pub fn pace(&self) -> RoundPace {
        match self.phase {
            GatePhase::Open => RoundPace::Open,
            GatePhase::Refused | GatePhase::Closed if self.failed_rounds >= FAILED_ROUNDS_MAX => RoundPace::Failing,
            GatePhase::Proving | GatePhase::Refused | GatePhase::Closed => RoundPace::Proving,
        }
    }
}

impl GatePolicy {
    /// Time from the start of a round to that of the next one: short until the gate is open, unless rounds have failed
    /// for long.
    #[must_use]
    pub fn round_interval(&self, round: RoundState) -> Duration {
        match round.pace() {
            // A loss asks for the next round at once. While journeys hang, those of other routes go on: enough of them end
            // in time to close the gate within 45 s when many are lost.
            RoundPace::Open if round.failed || round.failed_rounds > 0 => self.interval.min(self.timeout / 2),
            // A first proof is as fast as its slowest journey; one that hangs does not delay the others for long.
            RoundPace::Proving if round.phase == GatePhase::Proving && round.idle => {
                UNPROVEN_ROUND_INTERVAL.min(self.interval)
            }
            RoundPace::Proving => CLOSED_ROUND_INTERVAL.min(self.interval),
            RoundPace::Open | RoundPace::Failing => self.interval,
        }
    }

    /// Journeys of one route that rounds may have under way at once. Until the gate is open, a journey that hangs does not
    /// delay the next one of its route.
    #[must_use]
    pub fn concurrent_journeys_max(phase: GatePhase) -> usize {
        if phase == GatePhase::Open { 1 } else { 2 }
    }

    /// Number of pods, of so many that carry a transport, that one round of an open gate visits: in a large cluster rounds take
    /// turns with the pods.
    #[must_use]
    pub fn pods_per_round(&self, pods: usize) -> usize {
        let rounds = TOUR_MAX.as_millis() / self.interval.as_millis().max(1);
        let rounds = usize::try_from(rounds).unwrap_or(usize::MAX).max(1);
        pods.min(pods.div_ceil(rounds).max(TOURED_PODS_MIN))
    }

    /// Number of rounds that visit every pod of so many once.
    #[must_use]
    pub fn tour_rounds(&self, pods: usize) -> usize {
        pods.div_ceil(self.pods_per_round(pods).max(1)).max(1)
    }

    /// Time until the next confirming journey, after so many of them. As many as can confirm a failure follow each other
    /// at once; later ones wait until the one before must be over.
    #[must_use]
    pub fn confirmation_delay(&self, count: usize) -> Duration {
        if count + 1 < self.close_after { self.confirm_every } else { self.confirm_every + self.timeout }
    }

    /// Time without a finished journey after which a value that is visited every `rounds` rounds is unknown.
    #[must_use]
    pub fn stale_after(&self, rounds: usize) -> Duration {
        let rounds = u32::try_from(rounds.max(1)).unwrap_or(u32::MAX);
        self.interval
            .saturating_mul(rounds)
            .saturating_mul(STALE_INTERVALS)
            .clamp(SHORTEST_EVIDENCE_TTL, LONGEST_EVIDENCE_TTL)
    }
}

impl Default for GatePolicy {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(15),
            timeout: Duration::from_secs(10),
            open_after: 3,
            close_after: 3,
            min_span: Duration::from_secs(20),
            confirm_every: Duration::from_secs(2),
            inherited_evidence_max: Duration::from_mins(15),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tour_takes_five_minutes_at_most_and_a_round_at_least_twelve_pods() {
        for (pods, seconds, per_round, rounds) in [
            (0, 15, 0, 1),
            (1, 15, 1, 1),
            (12, 15, 12, 1),
            (13, 15, 12, 2),
            (40, 15, 12, 4),
            (240, 15, 12, 20),
            (241, 15, 13, 19),
            (1_000, 15, 50, 20),
            (40, 100, 14, 3),
            (40, 3_600, 40, 1),
        ] {
            let policy = GatePolicy { interval: Duration::from_secs(seconds), ..GatePolicy::default() };
            assert_eq!(policy.pods_per_round(pods), per_round, "{pods} pods every {seconds} s");
            assert_eq!(policy.tour_rounds(pods), rounds, "{pods} pods every {seconds} s");
        }
    }
}
