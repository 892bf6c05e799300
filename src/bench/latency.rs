//! Latencies of many clients, kept in HDR histograms.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest latency that is told apart, in microseconds; longer ones count as this.
const LONGEST_US: u64 = 60_000_000;

/// Histograms that are written apart, so that clients do not wait for each other.
const PARTS: usize = 8;

/// Collects latencies.
pub struct Latencies {
    parts: Vec<Mutex<Histogram<u64>>>,
}

/// What was collected.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).expect("constants that the library accepts")
}

impl Latencies {
    /// None yet.
    pub fn new() -> Self {
        Self { parts: (0..PARTS).map(|_| Mutex::new(empty())).collect() }
    }

    /// One latency of one client.
    pub fn record(&self, client: usize, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(LONGEST_US).clamp(1, LONGEST_US);
        let mut part = self.parts[client % PARTS].lock().unwrap_or_else(PoisonError::into_inner);
        part.saturating_record(us);
    }

    /// All of them together.
    pub fn merge(&self) -> Latency {
        let mut all = empty();
        for part in &self.parts {
            // Same bounds, so nothing can be out of range.
            let _ = all.add(&*part.lock().unwrap_or_else(PoisonError::into_inner));
        }
        Latency(all)
    }
}

impl Latency {
    /// The latency in ms that this share of all, such as 0.99, does not exceed.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        Duration::from_micros(self.0.value_at_quantile(share)).as_secs_f64() * 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_merged_without_a_loss() {
        let latencies = Latencies::new();
        for n in 1..=1000_u64 {
            latencies.record(usize::try_from(n).expect("small"), Duration::from_micros(n * 1000));
        }
        latencies.record(0, Duration::from_hours(1));
        let merged = latencies.merge();
        assert_eq!(merged.0.len(), 1001);
        assert!((merged.quantile_ms(0.5) - 501.0).abs() < 2.0, "{}", merged.quantile_ms(0.5));
        assert!((merged.quantile_ms(0.99) - 991.0).abs() < 2.0, "{}", merged.quantile_ms(0.99));
        assert!(merged.quantile_ms(1.0) >= 60_000.0, "an hour counts as the longest");
    }
}
