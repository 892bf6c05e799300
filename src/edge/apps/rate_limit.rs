//! Rate limits of one connection. Pure.

use std::time::{Duration, Instant};

/// Counts events in windows of a second; each window begins with its first event.
#[derive(Clone, Copy, Debug, Default)]
pub struct FixedWindow {
    since: Option<Instant>,
    count: u32,
}

impl FixedWindow {
    /// Whether one more event is within the limit. A refused event does not count.
    pub fn try_take(&mut self, limit: u32, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            *self = Self { since: Some(now), count: 0 };
        }
        let within = self.count < limit;
        self.count += u32::from(within);
        within
    }
}

/// A token bucket: a burst, then a steady rate.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    burst: u32,
    per_second: u32,
    /// Tokens in use, in thousandths.
    taken: u64,
    last: Option<Instant>,
}

impl TokenBucket {
    /// Creates a full bucket.
    pub const fn new(burst: u32, per_second: u32) -> Self {
        Self { burst, per_second, taken: 0, last: None }
    }

    /// Whether one more is within the limit. A refused event does not count.
    pub fn try_take(&mut self, now: Instant) -> bool {
        let since = self.last.map_or(0, |last| now.duration_since(last).as_millis());
        let back = u64::try_from(since).unwrap_or(u64::MAX).saturating_mul(self.per_second.into());
        self.last = Some(now);
        self.taken = self.taken.saturating_sub(back);
        let within = self.taken + 1_000 <= u64::from(self.burst) * 1_000;
        self.taken += if within { 1_000 } else { 0 };
        within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_so_many_events() {
        let (mut rate, start) = (FixedWindow::default(), Instant::now());
        assert_eq!([0, 1, 2].map(|_| rate.try_take(2, start)), [true, true, false]);
        assert!(!rate.try_take(2, start + Duration::from_millis(999)));
        assert!(rate.try_take(2, start + Duration::from_secs(1)));
        assert!(!rate.try_take(0, start + Duration::from_secs(3)));
    }

    #[test]
    fn a_burst_goes_through_and_then_so_many_in_a_second() {
        let (mut bucket, start) = (TokenBucket::new(3, 2), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!([0, 1, 2, 3].map(|_| bucket.try_take(at(0))), [true, true, true, false]);
        assert_eq!([499, 500, 501].map(|ms| bucket.try_take(at(ms))), [false, true, false]);
        assert_eq!([0; 4].map(|_| bucket.try_take(at(60_000))), [true, true, true, false], "no more than the burst");
    }
}
