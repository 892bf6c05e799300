//! Turns measurements into figures: values, targets, and whether each target is met. Pure.

use serde::Serialize;

use super::plan::PeerKind;
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
    /// Measurements of the further fan-outs.
    pub other_fan_outs: [FanOutMeasurement; 2],
    /// Memory of an idle session over `xhr_streaming`, in KiB.
    pub session_kib: f64,
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
pub fn compute_edge_figures(rounds: &[EdgeRound], polling: Option<f64>, peer: PeerKind) -> Vec<Figure> {
    let peer = PeerRows::of(peer);
    let mut figures = memory_figures(rounds, &peer);
    figures.extend(accept_figures(rounds, &peer));
    figures.extend(fan_out_figures(rounds, &peer));
    if peer.kind == PeerKind::Nchan {
        figures.extend(other_fan_out_figures(rounds, &peer));
    }
    figures.extend(crowd_figures(rounds, &peer));
    figures.extend(idle_figures(rounds, polling));
    figures
}

/// Wording of the rows that compare with a peer.
struct PeerRows {
    value: &'static str,
    ratio: &'static str,
    missed: &'static str,
    kind: PeerKind,
}

/// The largest ratios of ours to a server that is not ours; `None` where there is no target.
#[derive(Clone, Copy, Default)]
struct RatioTargets {
    sockudo: Option<f64>,
    nchan: Option<f64>,
}

impl PeerRows {
    fn of(kind: PeerKind) -> Self {
        match kind {
            PeerKind::Sockudo => {
                Self { value: "  sockudo's", ratio: "  ours to sockudo's", missed: "  sockudo's missed", kind }
            }
            PeerKind::Nchan => {
                Self { value: "  nchan's", ratio: "  ours to nchan's", missed: "  nchan's missed", kind }
            }
            PeerKind::Realtime => Self {
                value: "  the former build's",
                ratio: "  ours to the former build's",
                missed: "  the former build's missed",
                kind,
            },
        }
    }

    /// The rows of one measurement: the peer's value, and the ratio of ours to it.
    fn compare(
        &self,
        rounds: &[EdgeRound],
        [value_id, ratio_id]: [&'static str; 2],
        unit: &'static str,
        targets: RatioTargets,
        of: MeasuredValue,
    ) -> [Figure; 2] {
        let ratio_max = match self.kind {
            PeerKind::Sockudo => targets.sockudo,
            PeerKind::Nchan => targets.nchan,
            // Another build has everything that ours has: every figure is compared, and no ratio is a target.
            PeerKind::Realtime => None,
        };
        let target = ratio_max.map(at_most);
        [
            build_figure(
                value_id,
                self.value,
                unit,
                None,
                median_of_finite(rounds.iter().filter_map(|round| Some(of(round.peer.as_ref()?)))),
            ),
            build_figure(
                ratio_id,
                self.ratio,
                "×",
                target,
                median_of_finite(rounds.iter().filter_map(|round| Some(of(&round.edge) / of(round.peer.as_ref()?)))),
            ),
        ]
    }
}

/// One value of a server's measurements.
type MeasuredValue = fn(&ServerMeasurement) -> f64;

/// The largest ratios to sockudo and to nchan.
fn ratio(sockudo: f64, nchan: impl Into<Option<f64>>) -> RatioTargets {
    RatioTargets { sockudo: Some(sockudo), nchan: nchan.into() }
}

fn at_most(value: f64) -> FigureTarget {
    FigureTarget::AtMost(value)
}

fn median(rounds: &[EdgeRound], of: fn(&EdgeRound) -> Option<f64>) -> (RoundAggregation, Vec<f64>) {
    median_of_finite(rounds.iter().filter_map(of))
}

/// The median of the values that could be measured.
pub(super) fn median_of_finite(values: impl Iterator<Item = f64>) -> (RoundAggregation, Vec<f64>) {
    (RoundAggregation::Median, values.filter(|value| value.is_finite()).collect())
}

fn sum(rounds: &[EdgeRound], of: fn(&EdgeRound) -> Option<f64>) -> (RoundAggregation, Vec<f64>) {
    (RoundAggregation::Sum, rounds.iter().filter_map(of).collect())
}

fn memory_figures(rounds: &[EdgeRound], peer: &PeerRows) -> Vec<Figure> {
    let most = |id, name, unit, most, of| build_figure(id, name, unit, Some(at_most(most)), median(rounds, of));
    let mut figures =
        vec![most("plain_kib", "memory of an idle subscribed socket", "KiB", 12.0, |r| Some(r.edge.plain_kib))];
    figures.extend(
        peer.compare(rounds, ["plain_peer_kib", "plain_ratio"], "KiB", ratio(0.1, 1.0), |server| server.plain_kib),
    );
    figures.push(most("member_kib", "memory of an idle presence member", "KiB", 16.0, |r| Some(r.edge.member_kib)));
    figures.extend(
        peer.compare(rounds, ["member_peer_kib", "member_ratio"], "KiB", ratio(0.1, None), |server| server.member_kib),
    );
    figures.push(most("back", "memory after they left, to the start", "×", MEMORY_RELEASED_RATIO_MAX, |r| {
        r.edge.released_ratio
    }));
    figures.push(most("session_kib", "memory of an idle xhr_streaming session", "KiB", 24.0, |r| {
        Some(r.edge.session_kib)
    }));
    if peer.kind == PeerKind::Realtime {
        figures.extend(peer.compare(
            rounds,
            ["session_peer_kib", "session_ratio"],
            "KiB",
            RatioTargets::default(),
            |server| server.session_kib,
        ));
    }
    figures
}

fn accept_figures(rounds: &[EdgeRound], peer: &PeerRows) -> Vec<Figure> {
    let accept = median(rounds, |r| Some(r.edge.accept_us));
    let mut figures = vec![build_figure("accept_us", "CPU to take in an authenticated socket", "µs", None, accept)];
    figures.extend(
        peer.compare(rounds, ["accept_peer_us", "accept_ratio"], "µs", ratio(0.67, None), |server| server.accept_us),
    );
    figures
}

fn fan_out_figures(rounds: &[EdgeRound], peer: &PeerRows) -> Vec<Figure> {
    let value = |id, name, unit, of| build_figure(id, name, unit, None, median(rounds, of));
    let none = |id, name, of| build_figure(id, name, "", Some(at_most(0.0)), sum(rounds, of));
    let mut figures = vec![
        value("fan_us", "fan-out: CPU per delivery", "µs", |r| Some(r.edge.fan_out.cpu_us)),
        value("fan_bare_us", "  a bare axum broadcast's", "µs", |r| Some(r.baseline.cpu_us)),
        build_figure(
            "fan_bare_ratio",
            "  ours to the bare one's",
            "×",
            Some(at_most(1.3)),
            median(rounds, |r| Some(r.edge.fan_out.cpu_us / r.baseline.cpu_us)),
        ),
    ];
    figures.extend(
        peer.compare(rounds, ["fan_peer_us", "fan_peer_ratio"], "µs", ratio(0.7, 1.3), |server| server.fan_out.cpu_us),
    );
    figures.extend([
        value("fan_p50_ms", "fan-out: latency, median", "ms", |r| Some(r.edge.fan_out.p50_ms)),
        value("fan_p99_ms", "fan-out: latency, 99th percentile", "ms", |r| Some(r.edge.fan_out.p99_ms)),
        value("fan_bare_p99_ms", "  a bare axum broadcast's", "ms", |r| Some(r.baseline.p99_ms)),
    ]);
    figures.extend(
        peer.compare(rounds, ["fan_peer_p99_ms", "fan_p99_ratio"], "ms", ratio(1.0, 1.0), |server| {
            server.fan_out.p99_ms
        }),
    );
    figures.extend([
        none("fan_missed", "fan-out: events missed", |r| Some(count_to_f64(r.edge.fan_out.tally.missed))),
        none("fan_repeated", "fan-out: events repeated", |r| Some(count_to_f64(r.edge.fan_out.tally.repeated))),
    ]);
    figures
}

fn other_fan_out_figures(rounds: &[EdgeRound], peer: &PeerRows) -> Vec<Figure> {
    let value = |id, name, of| build_figure(id, name, "µs", None, median(rounds, of));
    let mut figures = vec![value("fan_200_us", "fan-out to 200, 100 events/s: CPU per delivery", |r| {
        Some(r.edge.other_fan_outs[0].cpu_us)
    })];
    figures.extend(peer.compare(rounds, ["fan_200_peer_us", "fan_200_ratio"], "µs", ratio(1.3, 1.3), |server| {
        server.other_fan_outs[0].cpu_us
    }));
    figures.push(value("fan_5000_us", "fan-out to 5,000, 8 events/s: CPU per delivery", |r| {
        Some(r.edge.other_fan_outs[1].cpu_us)
    }));
    figures.extend(peer.compare(rounds, ["fan_5000_peer_us", "fan_5000_ratio"], "µs", ratio(1.3, 1.3), |server| {
        server.other_fan_outs[1].cpu_us
    }));
    figures
}

fn crowd_figures(rounds: &[EdgeRound], peer: &PeerRows) -> Vec<Figure> {
    let count = |id, name, target, of| build_figure(id, name, "", target, sum(rounds, of));
    let mut figures = vec![
        count("crowd_delivered", "crowd: events delivered", None, |r| Some(count_to_f64(r.edge.crowd.delivered))),
        count("crowd_missed", "crowd: events missed", Some(at_most(0.0)), |r| Some(count_to_f64(r.edge.crowd.missed))),
        count("crowd_repeated", "crowd: events repeated", Some(at_most(0.0)), |r| {
            Some(count_to_f64(r.edge.crowd.repeated))
        }),
        count("crowd_peer_missed", peer.missed, None, |r| Some(count_to_f64(r.peer.as_ref()?.crowd.missed))),
        build_figure(
            "crowd_p99_ms",
            "crowd: latency, 99th percentile",
            "ms",
            None,
            median(rounds, |r| Some(r.edge.crowd_p99_ms)),
        ),
    ];
    let [value, compared] =
        peer.compare(rounds, ["crowd_peer_p99_ms", "crowd_p99_ratio"], "ms", ratio(1.0, 1.0), |server| {
            server.crowd_p99_ms
        });
    figures.extend([value, compared]);
    figures
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
        let figures = compute_edge_figures(
            &[round(10.0, 20.0), round(50.0, 100.0), round(10.0, 10.0)],
            Some(20.1),
            PeerKind::Sockudo,
        );
        let ratio = find_figure(&figures, "accept_ratio");
        assert_eq!((ratio.value, ratio.outcome, ratio.rounds.len()), (Some(0.5), TargetOutcome::Met, 3));
        assert_eq!(find_figure(&figures, "plain_ratio").outcome, TargetOutcome::Missed);
        assert_eq!(find_figure(&figures, "polling_s").outcome, TargetOutcome::Met);
    }

    #[test]
    fn without_a_peer_its_rows_are_there_and_not_measured() {
        let figures = compute_edge_figures(
            &[EdgeRound { edge: test_measurement(1.0), ..EdgeRound::default() }],
            None,
            PeerKind::Sockudo,
        );
        for id in ["plain_peer_kib", "plain_ratio", "accept_ratio", "fan_peer_ratio", "fan_p99_ratio", "polling_s"] {
            assert_eq!(find_figure(&figures, id).outcome, TargetOutcome::NotMeasured, "{id}");
        }
        assert_eq!(find_figure(&figures, "plain_kib").outcome, TargetOutcome::Met);
    }

    #[test]
    fn ratios_to_a_former_build_have_no_target() {
        let round =
            EdgeRound { edge: test_measurement(3.0), peer: Some(test_measurement(1.0)), ..EdgeRound::default() };
        let figures = compute_edge_figures(&[round], None, PeerKind::Realtime);
        let ratio = find_figure(&figures, "accept_ratio");
        assert_eq!((ratio.value, ratio.outcome), (Some(3.0), TargetOutcome::NoTarget));
        assert_eq!(ratio.name, "  ours to the former build's");
        for id in ["session_ratio", "crowd_p99_ratio"] {
            assert!(figures.iter().any(|figure| figure.id == id), "{id} is missing");
        }
    }

    #[test]
    fn one_event_missed_in_one_round_is_a_miss() {
        let broken = DeliveryTally { delivered: 9, missed: 1, repeated: 0 };
        let missed = EdgeRound {
            edge: ServerMeasurement { crowd: broken, ..ServerMeasurement::default() },
            ..EdgeRound::default()
        };
        let figures =
            compute_edge_figures(&[EdgeRound::default(), missed, EdgeRound::default()], None, PeerKind::Sockudo);
        assert_eq!(find_figure(&figures, "crowd_missed").outcome, TargetOutcome::Missed);
        assert_eq!(find_figure(&figures, "crowd_repeated").outcome, TargetOutcome::Met);
    }
}
