//! Latencies of many clients, kept in HDR histograms.

use std::sync::Mutex;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::process::locks::lock_unpoisoned;

/// Bounds a recorded latency, in microseconds; longer ones count as this one.
const LATENCY_MAX_US: u64 = 60_000_000;

/// Number of histograms that clients are spread over, so that they do not wait for each other's lock.
const HISTOGRAM_SHARD_COUNT: usize = 8;

/// Records the latencies of many clients.
pub struct LatencyRecorder {
    shards: Vec<Mutex<Histogram<u64>>>,
}

/// Merged latencies of all clients.
#[derive(Clone, Debug)]
pub struct LatencyHistogram(Histogram<u64>);

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("constants that the library accepts")
}

impl LatencyRecorder {
    /// Creates a recorder without latencies.
    pub fn new() -> Self {
        Self { shards: (0..HISTOGRAM_SHARD_COUNT).map(|_| Mutex::new(new_histogram())).collect() }
    }

    /// Records one latency of one client.
    pub fn record(&self, client: usize, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_MAX_US).clamp(1, LATENCY_MAX_US);
        let mut part = lock_unpoisoned(&self.shards[client % HISTOGRAM_SHARD_COUNT]);
        part.saturating_record(us);
    }

    /// Merges the latencies of all clients.
    pub fn merge_shards(&self) -> LatencyHistogram {
        let mut all = new_histogram();
        for part in &self.shards {
            // The bounds are the same, so no value is out of range.
            let _ = all.add(&*lock_unpoisoned(part));
        }
        LatencyHistogram(all)
    }
}

impl LatencyHistogram {
    /// The latency in ms that this share of all, such as 0.99, does not exceed.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        Duration::from_micros(self.0.value_at_quantile(share)).as_secs_f64() * 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_merged_without_a_loss() {
        let latencies = LatencyRecorder::new();
        for n in 1..=1000_u64 {
            latencies.record(usize::try_from(n).expect("small"), Duration::from_micros(n * 1000));
        }
        latencies.record(0, Duration::from_hours(1));
        let merged = latencies.merge_shards();
        assert_eq!(merged.0.len(), 1001);
        assert!((merged.quantile_ms(0.5) - 501.0).abs() < 2.0, "{}", merged.quantile_ms(0.5));
        assert!((merged.quantile_ms(0.99) - 991.0).abs() < 2.0, "{}", merged.quantile_ms(0.99));
        assert!(merged.quantile_ms(1.0) >= 60_000.0, "an hour counts as the longest");
    }
}
