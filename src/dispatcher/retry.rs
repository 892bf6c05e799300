//! When to try again.

use jiff::fmt::rfc2822::DateTimeParser;

/// The first wait's upper end.
const FIRST_BACKOFF_MS: u64 = 500;
/// Longest `Retry-After` that is honoured.
const RETRY_AFTER_MAX_MS: u64 = 60_000;

/// For how long and how patiently a webhook is tried.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// From an event's turn to its last try.
    pub window_ms: u64,
    /// The longest wait between two tries.
    pub max_backoff_ms: u64,
}

/// The wait after so many failures: anywhere up to a bound that doubles, so that many senders spread out.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small numbers"
)]
pub fn backoff_ms(failures: u32, max_ms: u64, random: f64) -> u64 {
    let doubled = FIRST_BACKOFF_MS.saturating_mul(1 << failures.saturating_sub(1).min(20));
    (doubled.min(max_ms) as f64 * random) as u64
}

/// What a `Retry-After` header asks for, in either of its forms.
#[must_use]
pub fn retry_after_ms(header: &str, now_ms: u64) -> Option<u64> {
    let header = header.trim();
    let asked = if let Ok(seconds) = header.parse::<u64>() {
        seconds.saturating_mul(1_000)
    } else {
        let time = DateTimeParser::new().parse_timestamp(header).ok()?;
        u64::try_from(time.as_millisecond()).ok()?.saturating_sub(now_ms)
    };
    Some(asked.min(RETRY_AFTER_MAX_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_are_spread() {
        for (failures, random, expected) in
            [(1, 1.0, 500), (2, 1.0, 1_000), (3, 0.5, 1_000), (9, 1.0, 30_000), (99, 1.0, 30_000), (5, 0.0, 0)]
        {
            assert_eq!(backoff_ms(failures, 30_000, random), expected, "{failures}");
        }
    }

    #[test]
    fn a_table_of_retry_after() {
        for (name, header, expected) in [
            ("seconds", "7", Some(7_000)),
            ("no more than a minute", "3600", Some(60_000)),
            ("a date", "Sun, 06 Nov 1994 08:49:37 GMT", Some(7_000)),
            ("a date in the past", "Sat, 05 Nov 1994 08:49:37 GMT", Some(0)),
            ("rubbish", "soon", None),
        ] {
            assert_eq!(retry_after_ms(header, 784_111_770_000), expected, "{name}");
        }
    }
}
