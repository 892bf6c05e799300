//! How much evidence opens the gate, and how much closes it.

use std::time::Duration;

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

impl GatePolicy {
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
