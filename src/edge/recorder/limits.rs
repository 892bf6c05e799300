//! The bounds of the recorder's queue and its back-off.

use std::time::Duration;

/// Bounds of the queue and of a batch.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Events that the queue holds at most. Events in flight cannot be dropped: while they fill the queue, the other apps may
    /// exceed the bound by their fair shares, to twice the bound at most.
    pub events: usize,
    /// Bytes that the queue holds at most, with the same exception.
    pub bytes: usize,
    /// Bytes of events in one record at most.
    pub record_bytes: usize,
    /// Records in one batch at most.
    pub batch_records: usize,
    /// Bytes in one batch at most.
    pub batch_bytes: usize,
    /// Bytes in one batch at most while calls fail as a whole. A call holds its records once more, and in base64 too: the
    /// batches of all lanes would take more memory than the queue.
    pub trial_bytes: usize,
    /// Delay for collecting further events of a key, in ms.
    pub linger_ms: u64,
    /// Age at which a client event is dropped, in ms.
    pub client_event_ms: u64,
    /// First back-off after a refusal, in ms.
    pub backoff_ms: u64,
    /// Longest back-off after a refusal, in ms.
    pub max_backoff_ms: u64,
}

impl QueueLimits {
    /// The limits of an edge. A batch stays below the 5 MiB of `PutRecords`, which counts keys too.
    pub const DEFAULT: Self = Self {
        events: 50_000,
        bytes: 32 << 20,
        record_bytes: 64 << 10,
        batch_records: 500,
        batch_bytes: 4 << 20,
        trial_bytes: 256 << 10,
        linger_ms: 20,
        client_event_ms: 600_000,
        backoff_ms: 50,
        max_backoff_ms: 5_000,
    };
}

/// Returns the back-off after this many consecutive refusals: doubled up to a bound, then 50 to 100 % of it.
pub fn compute_backoff(first_ms: u64, most_ms: u64, refusals: u32, jitter: f64) -> u64 {
    let doubled = first_ms.saturating_mul(1 << refusals.saturating_sub(1).min(16)).min(most_ms);
    let wait = Duration::from_millis(doubled).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
    u64::try_from(wait.as_millis()).unwrap_or(most_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end_at_the_bound() {
        let waits: Vec<u64> = [1, 2, 3, 7, 8, 99].map(|refusals| compute_backoff(50, 5_000, refusals, 1.0)).into();
        assert_eq!(waits, [50, 100, 200, 3_200, 5_000, 5_000]);
        assert_eq!(compute_backoff(50, 5_000, 1, 0.0), 25);
    }
}
