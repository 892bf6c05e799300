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

impl GatePolicy {
    /// Time from the start of a round to that of the next one: short until the gate is open, unless rounds have failed
    /// for long.
    #[must_use]
    pub fn round_interval(&self, round: RoundState) -> Duration {
        match round.phase {
            // A loss asks for the next round at once. While journeys hang, those of other routes go on: enough of them end
            // in time to close the gate within 45 s when many are lost.
            GatePhase::Open if round.failed || round.failed_rounds > 0 => self.interval.min(self.timeout / 2),
            GatePhase::Open => self.interval,
            // A first proof is as fast as its slowest journey; one that hangs does not delay the others for long.
            GatePhase::Proving if round.idle => UNPROVEN_ROUND_INTERVAL.min(self.interval),
            GatePhase::Refused | GatePhase::Closed if round.failed_rounds >= FAILED_ROUNDS_MAX => self.interval,
            GatePhase::Proving | GatePhase::Refused | GatePhase::Closed => CLOSED_ROUND_INTERVAL.min(self.interval),
        }
    }

    /// Journeys of one route that rounds may have under way at once. Until the gate is open, a journey that hangs does not
    /// delay the next one of its route.
    #[must_use]
    pub fn concurrent_journeys_max(phase: GatePhase) -> usize {
        if phase == GatePhase::Open { 1 } else { 2 }
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
