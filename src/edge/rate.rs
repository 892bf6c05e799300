//! How many client events a connection may send in a second.

use std::time::{Duration, Instant};

/// Counts events in whole seconds that begin with the first event of each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    since: Option<Instant>,
    count: u32,
}

impl Rate {
    /// Whether one more is within the limit. A refused event does not count.
    pub fn take(&mut self, limit: u32, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            *self = Self { since: Some(now), count: 0 };
        }
        let within = self.count < limit;
        self.count += u32::from(within);
        within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_so_many_events() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        assert_eq!([0, 1, 2].map(|_| rate.take(2, start)), [true, true, false]);
        assert!(!rate.take(2, start + Duration::from_millis(999)));
        assert!(rate.take(2, start + Duration::from_secs(1)));
        assert!(!rate.take(0, start + Duration::from_secs(3)));
    }
}
