//! The wall clock, read at the rim only: pure code receives the time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// The current time, in ms since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
