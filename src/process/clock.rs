//! The wall clock and the monotonic clock, read at the rim only: pure code receives the time as an argument.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// The current time, in ms since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, whole_ms)
}

/// A duration in whole ms, at most [`u64::MAX`].
#[must_use]
pub fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Formats a time in ms since 1970 as RFC 3339, such as `2026-09-21T14:13:20Z`; empty beyond the year 9999.
#[must_use]
pub fn format_time(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map(|time| time.to_string()).unwrap_or_default()
}

/// A clock that counts from its start, unaffected by corrections of the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock {
    started: Instant,
}

impl MonotonicClock {
    /// Starts a clock at zero.
    #[must_use]
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// The time since the start, in ms.
    #[must_use]
    pub fn elapsed_ms(&self) -> u64 {
        whole_ms(self.started.elapsed())
    }
}
