//! Rate limits of a connection, of an app, and of a source address. Pure.

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

    /// Changes burst and rate; tokens in use stay so.
    pub fn set_limits(&mut self, burst: u32, per_second: u32) {
        (self.burst, self.per_second) = (burst, per_second);
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

/// A token bucket that lends: a burst, then a steady rate at which each taker waits for its turn.
#[derive(Clone, Copy, Debug)]
pub struct PacedBucket {
    burst: Duration,
    interval: Duration,
    pause_max: Duration,
    /// The time at which all that was taken is paid for.
    paid_at: Option<Instant>,
}

impl PacedBucket {
    /// Creates a full bucket of which nobody waits longer than `pause_max`.
    pub fn new(burst: u32, per_second: u32, pause_max: Duration) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { burst: interval * burst, interval, pause_max, paid_at: None }
    }

    /// Takes one, and returns the time to wait before the next; `None`, and nothing is taken, where that is too long.
    pub fn take(&mut self, now: Instant) -> Option<Duration> {
        let paid_at = self.paid_at.map_or(now, |at| at.max(now)) + self.interval;
        let pause = paid_at.duration_since(now).saturating_sub(self.burst);
        if pause > self.pause_max {
            return None;
        }
        self.paid_at = Some(paid_at);
        Some(pause)
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
    fn a_burst_is_lent_and_then_each_waits_its_turn() {
        let (mut bucket, start) = (PacedBucket::new(2, 10, Duration::from_millis(200)), Instant::now());
        let mut take = |ms| bucket.take(start + Duration::from_millis(ms)).map(|pause| pause.as_millis());
        assert_eq!([0; 5].map(&mut take), [Some(0), Some(0), Some(100), Some(200), None]);
        assert_eq!([100, 100].map(&mut take), [Some(200), None], "a refused one is not charged");
        assert_eq!(take(60_000), Some(0));
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
