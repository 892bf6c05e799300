//! Turns measurements into figures: values, targets, and whether each target is met. Pure.

use serde::Serialize;

use super::sequence::DeliveryTally;
use super::sockets::MEMORY_RELEASED_RATIO_MAX;

/// Seconds after which the edge answers an idle poll: its heartbeat.
const POLL_HEARTBEAT_SECONDS: f64 = 20.0;

/// Measurements of one server in one round.
#[derive(Clone, Debug, Default)]
pub struct ServerMeasurement {
    /// CPU to accept one authenticated socket, in microseconds.
    pub accept_us: f64,
    /// Memory of an idle socket in a private channel, in KiB.
    pub plain_kib: f64,
    /// Memory of an idle member of a presence channel, in KiB.
    pub member_kib: f64,
    /// Ratio of the memory after the crowd left to that at the start.
    pub released_ratio: Option<f64>,
    /// Deliveries to the crowd.
    pub crowd: DeliveryTally,
    /// 99th percentile of the crowd's latency, in ms.
    pub crowd_p99_ms: f64,
    /// Measurements of the fan-out.
    pub fan_out: FanOutMeasurement,
}

/// Measurements of one fan-out.
#[derive(Clone, Copy, Debug, Default)]
pub struct FanOutMeasurement {
    /// CPU for one delivery, in microseconds.
    pub cpu_us: f64,
    /// 50th percentile of the latency, in ms.
    pub p50_ms: f64,
    /// 99th percentile of the latency, in ms.
    pub p99_ms: f64,
    /// Deliveries to the subscribers.
    pub tally: DeliveryTally,
}

/// Measurements of one round.
#[derive(Clone, Debug, Default)]
pub struct EdgeRound {
    /// Measurements of our edge.
    pub edge: ServerMeasurement,
    /// Measurements of the peer, if there is one.
    pub peer: Option<ServerMeasurement>,
    /// Fan-out of the bare broadcast.
    pub baseline: FanOutMeasurement,
    /// Memory of an idle session over `xhr_streaming`, in KiB.
    pub session_kib: f64,
    /// Median of single deliveries without load, in ms.
    pub single_delivery_ms: f64,
    /// Median of the echo, in ms.
    pub echo_ms: f64,
}

/// Target of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum FigureTarget {
    /// The value must not exceed this one.
    AtMost(f64),
    /// The value must reach this one.
    AtLeast(f64),
}

/// Outcome of a figure against its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TargetOutcome {
    /// The value meets its target.
    Met,
    /// The value misses its target.
    Missed,
    /// The figure has no target.
    #[serde(rename = "told")]
    NoTarget,
    /// The figure could not be measured, such as one of a peer that was not given.
    NotMeasured,
}

/// One figure of the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    /// Identifier of the figure for programs.
    pub id: &'static str,
    /// Name for readers of the report.
    pub name: &'static str,
    /// The median of the rounds, or their sum where every single one counts.
    pub value: Option<f64>,
    /// Unit of the value.
    pub unit: &'static str,
    /// Target of the value, if it has one.
    pub target: Option<FigureTarget>,
    /// Outcome against the target.
    #[serde(rename = "standing")]
    pub outcome: TargetOutcome,
    /// Values of the rounds, in their order.
    pub rounds: Vec<f64>,
}

impl FigureTarget {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

/// Aggregation of the rounds' values into one.
#[derive(Clone, Copy)]
pub(super) enum RoundAggregation {
    /// The middle one of the rounds' values.
    Median,
    /// The sum of the rounds' values, for counts of which every single one matters.
    Sum,
}

/// Builds a figure from the values of its rounds.
pub(super) fn build_figure(
    id: &'static str,
    name: &'static str,
    unit: &'static str,
    target: Option<FigureTarget>,
    (aggregation, rounds): (RoundAggregation, Vec<f64>),
) -> Figure {
    let value = match aggregation {
        _ if rounds.is_empty() => None,
        RoundAggregation::Median => Some(median_of(&rounds)),
        RoundAggregation::Sum => Some(rounds.iter().sum()),
    };
    let outcome = match (value, target) {
        (None, _) => TargetOutcome::NotMeasured,
        (Some(_), None) => TargetOutcome::NoTarget,
        (Some(value), Some(goal)) if goal.is_met_by(value) => TargetOutcome::Met,
        (Some(_), Some(_)) => TargetOutcome::Missed,
    };
    Figure { id, name, value, unit, target, outcome, rounds }
}

/// Computes the median: the middle value, or the mean of the two in the middle; NaN without values.
pub fn median_of(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle.wrapping_sub(1)), sorted.get(middle)) {
        (Some(lower), Some(upper)) if sorted.len().is_multiple_of(2) => f64::midpoint(*lower, *upper),
        (_, Some(middle)) => *middle,
        _ => f64::NAN,
    }
}

/// Computes every figure. A comparison is the median of the rounds' own comparisons: both of its sides ran one after
/// the other, so a host that was slow for one round was slow for both.
pub fn compute_edge_figures(rounds: &[EdgeRound], polling: Option<f64>) -> Vec<Figure> {
    let mut figures = memory_figures(rounds);
    figures.extend(accept_figures(rounds));
    figures.extend(fan_out_figures(rounds));
    figures.extend(crowd_figures(rounds));
    figures.extend(idle_figures(rounds, polling));
    figures
}

fn at_most(value: f64) -> FigureTarget {
    FigureTarget::AtMost(value)
}

fn median(rounds: &[EdgeRound], of: fn(&EdgeRound) -> Option<f64>) -> (RoundAggregation, Vec<f64>) {
    let values = rounds.iter().filter_map(of).filter(|value| value.is_finite());
    (RoundAggregation::Median, values.collect())
}

fn sum(rounds: &[EdgeRound], of: fn(&EdgeRound) -> Option<f64>) -> (RoundAggregation, Vec<f64>) {
    (RoundAggregation::Sum, rounds.iter().filter_map(of).collect())
}

fn memory_figures(rounds: &[EdgeRound]) -> Vec<Figure> {
    vec![
        build_figure(
            "plain_kib",
            "memory of an idle subscribed socket",
            "KiB",
            Some(at_most(12.0)),
            median(rounds, |r| Some(r.edge.plain_kib)),
        ),
        build_figure(
            "plain_peer_kib",
            "  sockudo's",
            "KiB",
            None,
            median(rounds, |r| Some(r.peer.as_ref()?.plain_kib)),
        ),
        build_figure(
            "plain_ratio",
            "  ours to sockudo's",
            "×",
            Some(at_most(0.1)),
            median(rounds, |r| peer_ratio(r, |n| n.plain_kib)),
        ),
        build_figure(
            "member_kib",
            "memory of an idle presence member",
            "KiB",
            Some(at_most(16.0)),
            median(rounds, |r| Some(r.edge.member_kib)),
        ),
        build_figure(
            "member_peer_kib",
            "  sockudo's",
            "KiB",
            None,
            median(rounds, |r| Some(r.peer.as_ref()?.member_kib)),
        ),
        build_figure(
            "member_ratio",
            "  ours to sockudo's",
            "×",
            Some(at_most(0.1)),
            median(rounds, |r| peer_ratio(r, |n| n.member_kib)),
        ),
        build_figure(
            "back",
            "memory after they left, to the start",
            "×",
            Some(at_most(MEMORY_RELEASED_RATIO_MAX)),
            median(rounds, |r| r.edge.released_ratio),
        ),
        build_figure(
            "session_kib",
            "memory of an idle xhr_streaming session",
            "KiB",
            Some(at_most(24.0)),
            median(rounds, |r| Some(r.session_kib)),
        ),
    ]
}

fn accept_figures(rounds: &[EdgeRound]) -> Vec<Figure> {
    vec![
        build_figure(
            "accept_us",
            "CPU to take in an authenticated socket",
            "µs",
            None,
            median(rounds, |r| Some(r.edge.accept_us)),
        ),
        build_figure("accept_peer_us", "  sockudo's", "µs", None, median(rounds, |r| Some(r.peer.as_ref()?.accept_us))),
        build_figure(
            "accept_ratio",
            "  ours to sockudo's",
            "×",
            Some(at_most(0.67)),
            median(rounds, |r| peer_ratio(r, |n| n.accept_us)),
        ),
    ]
}

fn fan_out_figures(rounds: &[EdgeRound]) -> Vec<Figure> {
    vec![
        build_figure(
            "fan_us",
            "fan-out: CPU per delivery",
            "µs",
            None,
            median(rounds, |r| Some(r.edge.fan_out.cpu_us)),
        ),
        build_figure(
            "fan_bare_us",
            "  a bare axum broadcast's",
            "µs",
            None,
            median(rounds, |r| Some(r.baseline.cpu_us)),
        ),
        build_figure(
            "fan_bare_ratio",
            "  ours to the bare one's",
            "×",
            Some(at_most(1.3)),
            median(rounds, |r| Some(r.edge.fan_out.cpu_us / r.baseline.cpu_us)),
        ),
        build_figure(
            "fan_peer_us",
            "  sockudo's",
            "µs",
            None,
            median(rounds, |r| Some(r.peer.as_ref()?.fan_out.cpu_us)),
        ),
        build_figure(
            "fan_peer_ratio",
            "  ours to sockudo's",
            "×",
            Some(at_most(0.7)),
            median(rounds, |r| peer_ratio(r, |n| n.fan_out.cpu_us)),
        ),
        build_figure(
            "fan_p50_ms",
            "fan-out: latency, median",
            "ms",
            None,
            median(rounds, |r| Some(r.edge.fan_out.p50_ms)),
        ),
        build_figure(
            "fan_p99_ms",
            "fan-out: latency, 99th percentile",
            "ms",
            None,
            median(rounds, |r| Some(r.edge.fan_out.p99_ms)),
        ),
        build_figure(
            "fan_bare_p99_ms",
            "  a bare axum broadcast's",
            "ms",
            None,
            median(rounds, |r| Some(r.baseline.p99_ms)),
        ),
        build_figure(
            "fan_peer_p99_ms",
            "  sockudo's",
            "ms",
            None,
            median(rounds, |r| Some(r.peer.as_ref()?.fan_out.p99_ms)),
        ),
        build_figure(
            "fan_p99_ratio",
            "  ours to sockudo's",
            "×",
            Some(at_most(1.0)),
            median(rounds, |r| peer_ratio(r, |n| n.fan_out.p99_ms)),
        ),
        build_figure(
            "fan_missed",
            "fan-out: events missed",
            "",
            Some(at_most(0.0)),
            sum(rounds, |r| Some(count_to_f64(r.edge.fan_out.tally.missed))),
        ),
        build_figure(
            "fan_repeated",
            "fan-out: events repeated",
            "",
            Some(at_most(0.0)),
            sum(rounds, |r| Some(count_to_f64(r.edge.fan_out.tally.repeated))),
        ),
    ]
}

fn crowd_figures(rounds: &[EdgeRound]) -> Vec<Figure> {
    vec![
        build_figure(
            "crowd_delivered",
            "crowd: events delivered",
            "",
            None,
            sum(rounds, |r| Some(count_to_f64(r.edge.crowd.delivered))),
        ),
        build_figure(
            "crowd_missed",
            "crowd: events missed",
            "",
            Some(at_most(0.0)),
            sum(rounds, |r| Some(count_to_f64(r.edge.crowd.missed))),
        ),
        build_figure(
            "crowd_repeated",
            "crowd: events repeated",
            "",
            Some(at_most(0.0)),
            sum(rounds, |r| Some(count_to_f64(r.edge.crowd.repeated))),
        ),
        build_figure(
            "crowd_peer_missed",
            "  sockudo's missed",
            "",
            None,
            sum(rounds, |r| Some(count_to_f64(r.peer.as_ref()?.crowd.missed))),
        ),
        build_figure(
            "crowd_p99_ms",
            "crowd: latency, 99th percentile",
            "ms",
            None,
            median(rounds, |r| Some(r.edge.crowd_p99_ms)),
        ),
        build_figure(
            "crowd_peer_p99_ms",
            "  sockudo's",
            "ms",
            None,
            median(rounds, |r| Some(r.peer.as_ref()?.crowd_p99_ms)),
        ),
    ]
}

/// Figures of servers without load: the polling interval, and single deliveries.
fn idle_figures(rounds: &[EdgeRound], polling: Option<f64>) -> Vec<Figure> {
    vec![
        build_figure(
            "polling_s",
            "idle xhr_polling: shortest time between requests",
            "s",
            Some(FigureTarget::AtLeast(POLL_HEARTBEAT_SECONDS)),
            (RoundAggregation::Median, polling.into_iter().collect()),
        ),
        build_figure(
            "one_ms",
            "a single delivery without load, median",
            "ms",
            None,
            median(rounds, |r| Some(r.single_delivery_ms)),
        ),
        build_figure("echo_ms", "  a bare loopback echo", "ms", None, median(rounds, |r| Some(r.echo_ms))),
        build_figure(
            "distance_ms",
            "  distance to the echo",
            "ms",
            None,
            median(rounds, |r| Some(r.single_delivery_ms - r.echo_ms)),
        ),
    ]
}

fn peer_ratio(round: &EdgeRound, of: fn(&ServerMeasurement) -> f64) -> Option<f64> {
    Some(of(&round.edge) / of(round.peer.as_ref()?))
}

fn count_to_f64(number: u64) -> f64 {
    super::machine::as_f64(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test_measurement(accept_us: f64) -> ServerMeasurement {
        ServerMeasurement { accept_us, plain_kib: 10.0, member_kib: 10.0, ..ServerMeasurement::default() }
    }

    fn find_figure<'a>(figures: &'a [Figure], id: &str) -> &'a Figure {
        figures.iter().find(|figure| figure.id == id).expect("a figure")
    }

    #[test]
    fn the_median_of_an_even_number_of_values_is_the_mean_of_the_middle_two() {
        for (values, expected) in [(&[3.0][..], 3.0), (&[9.0, 1.0, 2.0], 2.0), (&[4.0, 1.0, 2.0, 9.0], 3.0)] {
            assert!((median_of(values) - expected).abs() < 1e-9, "{values:?}");
        }
        assert!(median_of(&[]).is_nan());
    }

    #[test]
    fn a_value_at_its_bound_is_met() {
        for (goal, value, expected) in [
            (FigureTarget::AtMost(12.0), 12.0, TargetOutcome::Met),
            (FigureTarget::AtMost(12.0), 12.01, TargetOutcome::Missed),
            (FigureTarget::AtLeast(20.0), 20.0, TargetOutcome::Met),
            (FigureTarget::AtLeast(20.0), 19.9, TargetOutcome::Missed),
        ] {
            let figure = build_figure("x", "x", "", Some(goal), (RoundAggregation::Median, vec![value]));
            assert_eq!(figure.outcome, expected, "{goal:?} {value}");
        }
        assert_eq!(
            build_figure("x", "x", "", None, (RoundAggregation::Median, vec![1.0])).outcome,
            TargetOutcome::NoTarget
        );
        assert_eq!(
            build_figure("x", "x", "", Some(FigureTarget::AtMost(0.0)), (RoundAggregation::Sum, vec![])).outcome,
            TargetOutcome::NotMeasured
        );
    }

    #[test]
    fn comparisons_are_made_within_each_round() {
        let round = |ours, theirs| EdgeRound {
            edge: test_measurement(ours),
            peer: Some(test_measurement(theirs)),
            ..EdgeRound::default()
        };
        // The host was slower in the second round, for both.
        let figures = compute_edge_figures(&[round(10.0, 20.0), round(50.0, 100.0), round(10.0, 10.0)], Some(20.1));
        let ratio = find_figure(&figures, "accept_ratio");
        assert_eq!((ratio.value, ratio.outcome, ratio.rounds.len()), (Some(0.5), TargetOutcome::Met, 3));
        assert_eq!(find_figure(&figures, "plain_ratio").outcome, TargetOutcome::Missed);
        assert_eq!(find_figure(&figures, "polling_s").outcome, TargetOutcome::Met);
    }

    #[test]
    fn without_a_peer_its_rows_are_there_and_not_measured() {
        let figures = compute_edge_figures(&[EdgeRound { edge: test_measurement(1.0), ..EdgeRound::default() }], None);
        for id in ["plain_peer_kib", "plain_ratio", "accept_ratio", "fan_peer_ratio", "fan_p99_ratio", "polling_s"] {
            assert_eq!(find_figure(&figures, id).outcome, TargetOutcome::NotMeasured, "{id}");
        }
        assert_eq!(find_figure(&figures, "plain_kib").outcome, TargetOutcome::Met);
    }

    #[test]
    fn one_event_missed_in_one_round_is_a_miss() {
        let broken = DeliveryTally { delivered: 9, missed: 1, repeated: 0 };
        let missed = EdgeRound {
            edge: ServerMeasurement { crowd: broken, ..ServerMeasurement::default() },
            ..EdgeRound::default()
        };
        let figures = compute_edge_figures(&[EdgeRound::default(), missed, EdgeRound::default()], None);
        assert_eq!(find_figure(&figures, "crowd_missed").outcome, TargetOutcome::Missed);
        assert_eq!(find_figure(&figures, "crowd_repeated").outcome, TargetOutcome::Met);
    }
}
