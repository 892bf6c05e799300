//! The times of the gate in the status: the effective interval between rounds, and the estimated time until Ready.

use std::time::Duration;

use kube::runtime::events::EventType;

use super::context::ControllerContext;
use crate::api::cluster::GateStatus;
use crate::api::{RealtimeCluster, Reason};

/// Interval between two rounds above which a warning is published.
const EFFECTIVE_INTERVAL_MAX: Duration = Duration::from_mins(5);

/// Divisor of the known interval that gives the least change to report: other clusters that come and go change every interval
/// a little, which is no reason to write a status.
const REPORTED_CHANGE_DIVISOR: u32 = 10;

/// The effective interval to report, in s: the known one while the change is less than a tenth.
#[must_use]
pub fn report_interval(known: Option<u32>, interval: Duration) -> u32 {
    let seconds = round_up_seconds(interval);
    let tolerance = |known: u32| (known / REPORTED_CHANGE_DIVISOR).max(1);
    known.filter(|known| known.abs_diff(seconds) < tolerance(*known)).unwrap_or(seconds)
}

/// Whole seconds, rounded up.
#[must_use]
pub fn round_up_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX)
}

/// Describes an effective interval that has passed [`EFFECTIVE_INTERVAL_MAX`], in either direction.
fn describe_crossing(known: Option<u32>, reported: u32) -> Option<(EventType, String)> {
    let max = round_up_seconds(EFFECTIVE_INTERVAL_MAX);
    let was_long = known.is_some_and(|known| known > max);
    match (was_long, reported > max) {
        (false, true) => Some((
            EventType::Warning,
            format!(
                "journeys run every {reported} s only: the clusters of this operator ask for more journeys per second than it \
                 starts. Raise --journeys-per-second, or gate.intervalSeconds of large clusters"
            ),
        )),
        (true, false) => Some((EventType::Normal, format!("journeys run every {reported} s again"))),
        _ => None,
    }
}

/// Publishes an Event when the effective interval passes five minutes, in either direction.
pub async fn publish_interval_event(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    known: Option<&GateStatus>,
    reported: Option<u32>,
) {
    let known = known.and_then(|gate| gate.effective_interval_seconds);
    let Some((kind, note)) = reported.and_then(|reported| describe_crossing(known, reported)) else { return };
    context.publish_event(cluster, kind, Reason::IntervalStretched.name(), "Pace", note).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_reported_anew_when_it_changed_by_a_tenth() {
        for (known, interval_ms, expected) in [
            (None, 15_000, 15),
            (None, 15_001, 16),
            (Some(15), 15_000, 15),
            (Some(15), 16_000, 16),
            (Some(100), 109_000, 100),
            (Some(100), 110_000, 110),
            (Some(100), 89_000, 89),
            (Some(1), 2_000, 2),
        ] {
            let reported = report_interval(known, Duration::from_millis(interval_ms));
            assert_eq!(reported, expected, "{known:?}, {interval_ms} ms");
        }
    }

    #[test]
    fn an_event_is_published_when_the_interval_passes_five_minutes() {
        for (known, reported, expected) in [
            (None, 15, None),
            (None, 301, Some(EventType::Warning)),
            (Some(15), 300, None),
            (Some(300), 301, Some(EventType::Warning)),
            (Some(301), 600, None),
            (Some(301), 300, Some(EventType::Normal)),
        ] {
            let event = describe_crossing(known, reported).map(|(kind, _)| kind);
            assert_eq!(event, expected, "{known:?}, {reported}");
        }
    }
}
