//! From what was measured to figures: values, targets, and which are met. Pure.

use serde::Serialize;

use super::crowd::BACK_WITHIN;
use super::sequence::Tally;

/// Seconds after which a poll with nothing to bring is answered; the edge's heartbeat.
const HEARTBEAT: f64 = 20.0;

/// What one server gave in one round.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// CPU for one socket that was taken in, in microseconds.
    pub accept_us: f64,
    /// Memory of an idle socket in a private channel, in KiB.
    pub plain_kib: f64,
    /// Memory of an idle member of a presence channel, in KiB.
    pub member_kib: f64,
    /// Memory after the crowd left, to that at the start.
    pub back: Option<f64>,
    /// What the crowd heard.
    pub crowd: Tally,
    /// 99th percentile of the crowd's latency, in ms.
    pub crowd_p99_ms: f64,
    /// The fan-out.
    pub fan: Fan,
}

/// What the fan-out gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fan {
    /// CPU for one delivery, in microseconds.
    pub cpu_us: f64,
    /// 50th percentile of the latency, in ms.
    pub p50_ms: f64,
    /// 99th percentile of the latency, in ms.
    pub p99_ms: f64,
    /// What was heard.
    pub tally: Tally,
}

/// One round.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// Ours.
    pub edge: Numbers,
    /// The peer's.
    pub peer: Option<Numbers>,
    /// The bare broadcast.
    pub bare: Fan,
    /// Memory of an idle session over `xhr_streaming`, in KiB.
    pub session_kib: f64,
    /// Median of single deliveries without load, in ms.
    pub one_ms: f64,
    /// Median of the echo, in ms.
    pub echo_ms: f64,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Goal {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

/// How a figure stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Standing {
    /// As it should be.
    Met,
    /// Not as it should be.
    Missed,
    /// It has no target.
    Told,
    /// What it needs was not there.
    NotMeasured,
}

/// One line of the result.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    /// For programs.
    pub id: &'static str,
    /// For people.
    pub name: &'static str,
    /// The median of the rounds, or their sum where every single one counts.
    pub value: Option<f64>,
    /// Of the value.
    pub unit: &'static str,
    /// What it should be.
    pub target: Option<Goal>,
    /// How it stands.
    pub standing: Standing,
    /// Each round's own, in their order.
    pub rounds: Vec<f64>,
}

impl Goal {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

/// How rounds become one value.
#[derive(Clone, Copy)]
pub(super) enum Whole {
    /// The one in the middle.
    Median,
    /// All of them together.
    Sum,
}

/// One figure of these rounds.
pub(super) fn figure(
    id: &'static str,
    name: &'static str,
    unit: &'static str,
    target: Option<Goal>,
    (whole, rounds): (Whole, Vec<f64>),
) -> Figure {
    let value = match whole {
        _ if rounds.is_empty() => None,
        Whole::Median => Some(median(&rounds)),
        Whole::Sum => Some(rounds.iter().sum()),
    };
    let standing = match (value, target) {
        (None, _) => Standing::NotMeasured,
        (Some(_), None) => Standing::Told,
        (Some(value), Some(goal)) if goal.met(value) => Standing::Met,
        (Some(_), Some(_)) => Standing::Missed,
    };
    Figure { id, name, value, unit, target, standing, rounds }
}

/// The middle one, or the mean of the two in the middle; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle.wrapping_sub(1)), sorted.get(middle)) {
        (Some(lower), Some(upper)) if sorted.len().is_multiple_of(2) => f64::midpoint(*lower, *upper),
        (_, Some(middle)) => *middle,
        _ => f64::NAN,
    }
}

/// Every figure. A comparison is the median of the rounds' own comparisons: both sides of each ran one after the other.
pub fn figures(rounds: &[Round], polling: Option<f64>) -> Vec<Figure> {
    let each = |of: fn(&Round) -> Option<f64>| {
        let values = rounds.iter().filter_map(of).filter(|value| value.is_finite());
        (Whole::Median, values.collect::<Vec<f64>>())
    };
    let all = |of: fn(&Round) -> Option<f64>| (Whole::Sum, rounds.iter().filter_map(of).collect::<Vec<f64>>());
    let most = |value| Some(Goal::AtMost(value));
    vec![
        figure("plain_kib", "memory of an idle subscribed socket", "KiB", most(12.0), each(|r| Some(r.edge.plain_kib))),
        figure("plain_peer_kib", "  sockudo's", "KiB", None, each(|r| Some(r.peer.as_ref()?.plain_kib))),
        figure("plain_ratio", "  ours to sockudo's", "×", most(0.1), each(|r| ratio(r, |n| n.plain_kib))),
        figure("member_kib", "memory of an idle presence member", "KiB", most(16.0), each(|r| Some(r.edge.member_kib))),
        figure("member_peer_kib", "  sockudo's", "KiB", None, each(|r| Some(r.peer.as_ref()?.member_kib))),
        figure("member_ratio", "  ours to sockudo's", "×", most(0.1), each(|r| ratio(r, |n| n.member_kib))),
        figure("back", "memory after they left, to the start", "×", most(BACK_WITHIN), each(|r| r.edge.back)),
        figure(
            "session_kib",
            "memory of an idle xhr_streaming session",
            "KiB",
            most(24.0),
            each(|r| Some(r.session_kib)),
        ),
        figure("accept_us", "CPU to take in an authenticated socket", "µs", None, each(|r| Some(r.edge.accept_us))),
        figure("accept_peer_us", "  sockudo's", "µs", None, each(|r| Some(r.peer.as_ref()?.accept_us))),
        figure("accept_ratio", "  ours to sockudo's", "×", most(0.67), each(|r| ratio(r, |n| n.accept_us))),
        figure("fan_us", "fan-out: CPU per delivery", "µs", None, each(|r| Some(r.edge.fan.cpu_us))),
        figure("fan_bare_us", "  a bare axum broadcast's", "µs", None, each(|r| Some(r.bare.cpu_us))),
        figure(
            "fan_bare_ratio",
            "  ours to the bare one's",
            "×",
            most(1.3),
            each(|r| Some(r.edge.fan.cpu_us / r.bare.cpu_us)),
        ),
        figure("fan_peer_us", "  sockudo's", "µs", None, each(|r| Some(r.peer.as_ref()?.fan.cpu_us))),
        figure("fan_peer_ratio", "  ours to sockudo's", "×", most(0.7), each(|r| ratio(r, |n| n.fan.cpu_us))),
        figure("fan_p50_ms", "fan-out: latency, median", "ms", None, each(|r| Some(r.edge.fan.p50_ms))),
        figure("fan_p99_ms", "fan-out: latency, 99th percentile", "ms", None, each(|r| Some(r.edge.fan.p99_ms))),
        figure("fan_bare_p99_ms", "  a bare axum broadcast's", "ms", None, each(|r| Some(r.bare.p99_ms))),
        figure("fan_peer_p99_ms", "  sockudo's", "ms", None, each(|r| Some(r.peer.as_ref()?.fan.p99_ms))),
        figure("fan_p99_ratio", "  ours to sockudo's", "×", most(1.0), each(|r| ratio(r, |n| n.fan.p99_ms))),
        figure("fan_missed", "fan-out: events missed", "", most(0.0), all(|r| Some(count(r.edge.fan.tally.missed)))),
        figure(
            "fan_repeated",
            "fan-out: events repeated",
            "",
            most(0.0),
            all(|r| Some(count(r.edge.fan.tally.repeated))),
        ),
        figure("crowd_delivered", "crowd: events delivered", "", None, all(|r| Some(count(r.edge.crowd.delivered)))),
        figure("crowd_missed", "crowd: events missed", "", most(0.0), all(|r| Some(count(r.edge.crowd.missed)))),
        figure("crowd_repeated", "crowd: events repeated", "", most(0.0), all(|r| Some(count(r.edge.crowd.repeated)))),
        figure(
            "crowd_peer_missed",
            "  sockudo's missed",
            "",
            None,
            all(|r| Some(count(r.peer.as_ref()?.crowd.missed))),
        ),
        figure("crowd_p99_ms", "crowd: latency, 99th percentile", "ms", None, each(|r| Some(r.edge.crowd_p99_ms))),
        figure("crowd_peer_p99_ms", "  sockudo's", "ms", None, each(|r| Some(r.peer.as_ref()?.crowd_p99_ms))),
        figure(
            "polling_s",
            "idle xhr_polling: shortest time between requests",
            "s",
            Some(Goal::AtLeast(HEARTBEAT)),
            (Whole::Median, polling.into_iter().collect()),
        ),
        figure("one_ms", "a single delivery without load, median", "ms", None, each(|r| Some(r.one_ms))),
        figure("echo_ms", "  a bare loopback echo", "ms", None, each(|r| Some(r.echo_ms))),
        figure("distance_ms", "  distance to the echo", "ms", None, each(|r| Some(r.one_ms - r.echo_ms))),
    ]
}

fn ratio(round: &Round, of: fn(&Numbers) -> f64) -> Option<f64> {
    Some(of(&round.edge) / of(round.peer.as_ref()?))
}

fn count(number: u64) -> f64 {
    super::machine::as_f64(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(accept_us: f64) -> Numbers {
        Numbers { accept_us, plain_kib: 10.0, member_kib: 10.0, ..Numbers::default() }
    }

    fn found<'a>(figures: &'a [Figure], id: &str) -> &'a Figure {
        figures.iter().find(|figure| figure.id == id).expect("a figure")
    }

    #[test]
    fn a_table_of_medians() {
        for (values, expected) in [(&[3.0][..], 3.0), (&[9.0, 1.0, 2.0], 2.0), (&[4.0, 1.0, 2.0, 9.0], 3.0)] {
            assert!((median(values) - expected).abs() < 1e-9, "{values:?}");
        }
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_value_at_its_bound_is_met() {
        for (goal, value, expected) in [
            (Goal::AtMost(12.0), 12.0, Standing::Met),
            (Goal::AtMost(12.0), 12.01, Standing::Missed),
            (Goal::AtLeast(20.0), 20.0, Standing::Met),
            (Goal::AtLeast(20.0), 19.9, Standing::Missed),
        ] {
            let figure = figure("x", "x", "", Some(goal), (Whole::Median, vec![value]));
            assert_eq!(figure.standing, expected, "{goal:?} {value}");
        }
        assert_eq!(figure("x", "x", "", None, (Whole::Median, vec![1.0])).standing, Standing::Told);
        assert_eq!(figure("x", "x", "", Some(Goal::AtMost(0.0)), (Whole::Sum, vec![])).standing, Standing::NotMeasured);
    }

    #[test]
    fn comparisons_are_made_within_each_round() {
        let round = |ours, theirs| Round { edge: numbers(ours), peer: Some(numbers(theirs)), ..Round::default() };
        // The host was slower in the second round, for both.
        let figures = figures(&[round(10.0, 20.0), round(50.0, 100.0), round(10.0, 10.0)], Some(20.1));
        let ratio = found(&figures, "accept_ratio");
        assert_eq!((ratio.value, ratio.standing, ratio.rounds.len()), (Some(0.5), Standing::Met, 3));
        assert_eq!(found(&figures, "plain_ratio").standing, Standing::Missed);
        assert_eq!(found(&figures, "polling_s").standing, Standing::Met);
    }

    #[test]
    fn without_a_peer_its_rows_are_there_and_not_measured() {
        let figures = figures(&[Round { edge: numbers(1.0), ..Round::default() }], None);
        for id in ["plain_peer_kib", "plain_ratio", "accept_ratio", "fan_peer_ratio", "fan_p99_ratio", "polling_s"] {
            assert_eq!(found(&figures, id).standing, Standing::NotMeasured, "{id}");
        }
        assert_eq!(found(&figures, "plain_kib").standing, Standing::Met);
    }

    #[test]
    fn one_event_missed_in_one_round_is_a_miss() {
        let broken = Tally { delivered: 9, missed: 1, repeated: 0 };
        let missed = Round { edge: Numbers { crowd: broken, ..Numbers::default() }, ..Round::default() };
        let figures = figures(&[Round::default(), missed, Round::default()], None);
        assert_eq!(found(&figures, "crowd_missed").standing, Standing::Missed);
        assert_eq!(found(&figures, "crowd_repeated").standing, Standing::Met);
    }
}
