//! How much evidence opens the gate, and how much closes it.

use std::time::Duration;

/// Settings of a gate, from the manifest.
#[derive(Clone, Copy, Debug)]
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
        }
    }
}
