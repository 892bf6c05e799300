//! Back-off of webhook attempts and `Retry-After`.

use jiff::fmt::rfc2822::DateTimeParser;

/// Upper end of the first back-off; each further failure doubles it.
const FIRST_BACKOFF_MS: u64 = 500;
/// Longest `Retry-After` that is honoured.
const RETRY_AFTER_MAX_MS: u64 = 60_000;

/// The retry window and back-off of webhooks.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Time from an event's turn to its last attempt.
    pub window_ms: u64,
    /// The longest back-off between two attempts.
    pub max_backoff_ms: u64,
}

/// The back-off after a number of failures: random up to a bound that doubles, so that many senders spread out.
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

/// The delay that a `Retry-After` header asks for, in either of its forms.
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
    fn the_back_off_doubles_up_to_its_bound_and_is_spread() {
        for (failures, random, expected) in
            [(1, 1.0, 500), (2, 1.0, 1_000), (3, 0.5, 1_000), (9, 1.0, 30_000), (99, 1.0, 30_000), (5, 0.0, 0)]
        {
            assert_eq!(backoff_ms(failures, 30_000, random), expected, "{failures}");
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_bounded() {
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
