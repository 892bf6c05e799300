//! Turns the measurements of several edges into figures. Pure.

use super::super::figures::{Figure, FigureTarget, RoundAggregation, build_figure, median_of_finite};
use super::super::machine::as_f64;
use super::super::sequence::DeliveryTally;
use super::crash_recovery::SweepMeasurement;
use super::deliver::{LoadMeasurement, SideMeasurement};
use super::disturbance::DisturbanceMeasurement;
use super::join_leave::OccupancyMeasurement;

/// Bounds the busy share of the host's CPU for a time to count: above it, processes wait for a core, and times are not
/// those of the bus.
const HOST_BUSY_SHARE_MAX: f64 = 0.6;

/// Measurements of one round.
#[derive(Clone, Debug, Default)]
pub struct PodsRound {
    /// Measurements of the single edge.
    pub single: SideMeasurement,
    /// Measurements of the several edges.
    pub pods: SideMeasurement,
    /// Measurements of as many edges of a former build, if there is one.
    pub former: Option<SideMeasurement>,
    /// Joins and leaves of private channels.
    pub private: OccupancyMeasurement,
    /// Joins and leaves of presence channels.
    pub presence: OccupancyMeasurement,
    /// Sweep after an edge was killed.
    pub sweep: SweepMeasurement,
    /// Other clients beside disturbances.
    pub disturbance: DisturbanceMeasurement,
}

impl PodsRound {
    /// Latency that the bus adds; `None` where the host was too busy on either side.
    fn added_ms(&self) -> Option<f64> {
        (self.busy_share() < HOST_BUSY_SHARE_MAX).then_some(self.pods.calm.p99_ms - self.single.calm.p99_ms)
    }

    /// Longest time for which a command blocked Redis; `None` where the host was too busy.
    fn block_ms(&self) -> Option<f64> {
        (self.sweep.busy < HOST_BUSY_SHARE_MAX).then_some(self.sweep.slowest_command.ms)
    }

    fn busy_share(&self) -> f64 {
        self.single.calm.busy.max(self.pods.calm.busy)
    }

    /// Deliveries of all loads on all sides.
    fn total_tally(&self) -> DeliveryTally {
        let mut all = DeliveryTally::default();
        for side in [Some(&self.single), Some(&self.pods), self.former.as_ref()].into_iter().flatten() {
            for load in [side.fan_out, side.crowd, side.calm] {
                all += load.tally;
            }
        }
        all
    }
}

/// Pairs of a join and a leave per second of one core of Redis.
fn pairs_per_second(occupied: OccupancyMeasurement) -> f64 {
    1e6 / (occupied.enter_us + occupied.leave_us)
}

/// Ratio of the deliveries per CPU second of several edges to those of a single one.
fn delivery_ratio(single: LoadMeasurement, pods: LoadMeasurement) -> f64 {
    single.cpu_us / pods.cpu_us
}

/// Computes every figure. A comparison is the median of the rounds' own comparisons: both sides of each ran one after the
/// other.
pub fn compute_pods_figures(rounds: &[PodsRound]) -> Vec<Figure> {
    type RoundFigure = fn(&PodsRound) -> Option<f64>;
    let values = |of: RoundFigure| rounds.iter().filter_map(of).filter(|value| value.is_finite()).collect::<Vec<f64>>();
    let no_target =
        |id, name, unit, of: RoundFigure| build_figure(id, name, unit, None, (RoundAggregation::Median, values(of)));
    let most = |id, name, unit, most, of: RoundFigure| {
        build_figure(id, name, unit, Some(FigureTarget::AtMost(most)), (RoundAggregation::Median, values(of)))
    };
    let least = |id, name, unit, least, of: RoundFigure| {
        build_figure(id, name, unit, Some(FigureTarget::AtLeast(least)), (RoundAggregation::Median, values(of)))
    };
    let none = |id, name, of: RoundFigure| {
        build_figure(id, name, "", Some(FigureTarget::AtMost(0.0)), (RoundAggregation::Sum, values(of)))
    };
    vec![
        least("fan_ratio", "fan-out: deliveries per CPU second, to a single edge's", "×", 0.8, |r| {
            Some(delivery_ratio(r.single.fan_out, r.pods.fan_out))
        }),
        no_target("fan_us", "  CPU of the edges per delivery", "µs", |r| Some(r.pods.fan_out.cpu_us)),
        no_target("fan_single_us", "  a single edge's", "µs", |r| Some(r.single.fan_out.cpu_us)),
        no_target("fan_redis_us", "  CPU of Redis per publish", "µs", |r| r.pods.fan_out.redis_us),
        least("crowd_ratio", "crowd: deliveries per CPU second, to a single edge's", "×", 0.8, |r| {
            Some(delivery_ratio(r.single.crowd, r.pods.crowd))
        }),
        no_target("crowd_us", "  CPU of the edges per delivery", "µs", |r| Some(r.pods.crowd.cpu_us)),
        no_target("crowd_single_us", "  a single edge's", "µs", |r| Some(r.single.crowd.cpu_us)),
        no_target("crowd_redis_us", "  CPU of Redis per publish", "µs", |r| r.pods.crowd.redis_us),
        build_figure(
            "delivered",
            "events delivered",
            "",
            None,
            (RoundAggregation::Sum, values(|r| Some(as_f64(r.total_tally().delivered)))),
        ),
        none("missed", "  missed", |r| Some(as_f64(r.total_tally().missed))),
        none("repeated", "  repeated", |r| Some(as_f64(r.total_tally().repeated))),
        most("added_ms", "latency that the bus adds, 99th percentile", "ms", 5.0, PodsRound::added_ms),
        no_target("calm_p99_ms", "  of several edges", "ms", |r| Some(r.pods.calm.p99_ms)),
        no_target("calm_single_p99_ms", "  of a single edge", "ms", |r| Some(r.single.calm.p99_ms)),
        no_target("calm_p50_ms", "  median of several edges", "ms", |r| Some(r.pods.calm.p50_ms)),
        no_target("calm_single_p50_ms", "  median of a single edge", "ms", |r| Some(r.single.calm.p50_ms)),
        no_target("calm_busy", "  the host's load meanwhile", "%", |r| Some(r.busy_share() * 100.0)),
        no_target("one_ms", "a single delivery from edge to edge, median", "ms", |r| Some(r.pods.single_delivery_ms)),
        no_target("one_single_ms", "  at a single edge", "ms", |r| Some(r.single.single_delivery_ms)),
        least("private_pairs", "subscribe and unsubscribe, private channels, per core of Redis", "/s", 5_000.0, |r| {
            Some(pairs_per_second(r.private))
        }),
        no_target("private_enter_us", "  CPU of Redis to subscribe", "µs", |r| Some(r.private.enter_us)),
        no_target("private_leave_us", "  CPU of Redis to unsubscribe", "µs", |r| Some(r.private.leave_us)),
        least(
            "presence_pairs",
            "subscribe and unsubscribe, presence channels, per core of Redis",
            "/s",
            5_000.0,
            |r| Some(pairs_per_second(r.presence)),
        ),
        no_target("presence_enter_us", "  CPU of Redis to subscribe", "µs", |r| Some(r.presence.enter_us)),
        no_target("presence_leave_us", "  CPU of Redis to unsubscribe", "µs", |r| Some(r.presence.leave_us)),
        none("stayed", "channels still occupied after everyone left", |r| {
            Some(as_f64(r.private.still_occupied.max(r.presence.still_occupied)))
        }),
        most("private_kib", "memory of Redis per occupied private channel", "KiB", 1.0, |r| Some(r.private.held_kib)),
        most("presence_kib", "memory of Redis per presence channel with one member", "KiB", 1.0, |r| {
            Some(r.presence.held_kib)
        }),
        no_target("member_kib", "  per presence member among a hundred", "KiB", |r| Some(r.sweep.member_kib)),
        no_target("left_kib", "  per channel in the hour after it was left", "KiB", |r| Some(r.private.left_kib)),
        most("sweep_s", "an edge is killed: from the first removal to the last", "s", 2.0, |r| Some(r.sweep.took_s)),
        most("sweep_block_ms", "  longest that one command held up Redis", "ms", 5.0, PodsRound::block_ms),
        no_target("sweep_longest_ms", "  the same, however busy the host was", "ms", |r| {
            Some(r.sweep.slowest_command.ms)
        }),
        no_target("sweep_half_ms", "  half of these commands took at most", "ms", |r| {
            Some(r.sweep.slowest_command.half_ms)
        }),
        no_target("dead_s", "  from its death to the first removal", "s", |r| Some(r.sweep.dead_s)),
        build_figure(
            "removed",
            "  removals heard",
            "",
            None,
            (RoundAggregation::Sum, values(|r| Some(as_f64(r.sweep.tally.delivered)))),
        ),
        none("removed_missed", "  missed", |r| Some(as_f64(r.sweep.tally.missed))),
        none("removed_repeated", "  repeated", |r| Some(as_f64(r.sweep.tally.repeated))),
    ]
}

/// Computes the figures of clients beside disturbances.
pub fn compute_disturbance_figures(rounds: &[PodsRound]) -> Vec<Figure> {
    type DisturbanceFigure = fn(&DisturbanceMeasurement) -> f64;
    let median = |of: DisturbanceFigure| median_of_finite(rounds.iter().map(|round| of(&round.disturbance)));
    let most = |id, name, unit, most, of: DisturbanceFigure| {
        build_figure(id, name, unit, Some(FigureTarget::AtMost(most)), median(of))
    };
    let missed = rounds.iter().map(|round| as_f64(round.disturbance.missed)).collect();
    vec![
        most("churn_p99_ms", "beside joins and leaves of others: latency, 99th percentile", "ms", 20.0, |d| {
            d.churn_p99_ms
        }),
        build_figure("churn_per_second", "  these joins and leaves", "/s", None, median(|d| d.changes_per_second)),
        most("back_s", "an edge is killed: until all of its clients are back", "s", 15.0, |d| d.back_s),
        most("storm_p99_ms", "  others meanwhile: latency, 99th percentile", "ms", 50.0, |d| d.storm_p99_ms),
        build_figure(
            "others_missed",
            "  events that others missed",
            "",
            Some(FigureTarget::AtMost(0.0)),
            (RoundAggregation::Sum, missed),
        ),
    ]
}

/// Compares the edges with as many of a former build: the former's value, and the ratio of ours to it.
pub fn compare_with_former_build(rounds: &[PodsRound]) -> Vec<Figure> {
    type SideValue = fn(&SideMeasurement) -> f64;
    let rows: [([&'static str; 3], &'static str, SideValue); 4] = [
        (["fan_former_us", "fan_former_ratio", "fan-out: CPU per delivery, the former build's"], "µs", |side| {
            side.fan_out.cpu_us
        }),
        (["crowd_former_us", "crowd_former_ratio", "crowd: CPU per delivery, the former build's"], "µs", |side| {
            side.crowd.cpu_us
        }),
        (
            ["calm_former_p99_ms", "calm_former_ratio", "calm: latency, 99th percentile, the former build's"],
            "ms",
            |side| side.calm.p99_ms,
        ),
        (
            ["one_former_ms", "one_former_ratio", "a single delivery from edge to edge, the former build's"],
            "ms",
            |side| side.single_delivery_ms,
        ),
    ];
    let mut figures = Vec::new();
    for ([value_id, ratio_id, name], unit, of) in rows {
        let former = median_of_finite(rounds.iter().filter_map(|round| Some(of(round.former.as_ref()?))));
        let ratio =
            median_of_finite(rounds.iter().filter_map(|round| Some(of(&round.pods) / of(round.former.as_ref()?))));
        figures.push(build_figure(value_id, name, unit, None, former));
        figures.push(build_figure(ratio_id, "  ours to the former build's", "×", None, ratio));
    }
    figures
}

/// Composes the notes: times that were not counted, and the longest command of a sweep.
pub fn compose_notes(rounds: &[PodsRound]) -> Vec<String> {
    let mut notes = Vec::new();
    for (what, counted) in [
        ("The latency that the bus adds", PodsRound::added_ms as fn(&PodsRound) -> Option<f64>),
        ("How long a command of a sweep held up Redis", PodsRound::block_ms),
    ] {
        let busy = rounds.iter().filter(|round| counted(round).is_none()).count();
        if busy > 0 {
            let (all, most) = (rounds.len(), HOST_BUSY_SHARE_MAX * 100.0);
            notes.push(format!(
                "{what} was not counted in {busy} of {all} rounds: the host was {most:.0} % busy or more."
            ));
        }
    }
    let longest =
        rounds.iter().map(|round| &round.sweep.slowest_command).max_by(|one, other| one.ms.total_cmp(&other.ms));
    if let Some(longest) = longest {
        notes.push(format!("The longest command of any sweep was {} with {:.2} ms.", longest.command, longest.ms));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::super::super::figures::TargetOutcome;
    use super::super::redis::SlowestCommand;
    use super::*;

    fn find_figure<'a>(figures: &'a [Figure], id: &str) -> &'a Figure {
        figures.iter().find(|figure| figure.id == id).expect("a figure")
    }

    fn test_load(cpu_us: f64, p99_ms: f64, busy: f64) -> LoadMeasurement {
        LoadMeasurement { cpu_us, p99_ms, busy, ..LoadMeasurement::default() }
    }

    #[test]
    fn each_figure_has_its_value_and_outcome() {
        let side = |cpu_us, p99_ms, busy| SideMeasurement {
            fan_out: test_load(cpu_us, 0.0, 1.0),
            calm: test_load(cpu_us, p99_ms, busy),
            ..SideMeasurement::default()
        };
        let occupied =
            OccupancyMeasurement { enter_us: 120.0, leave_us: 80.0, held_kib: 1.1, ..OccupancyMeasurement::default() };
        let longest = SlowestCommand { ms: 5.1, command: "evalsha".to_owned(), half_ms: 1.0 };
        let broken = DeliveryTally { delivered: 9, missed: 0, repeated: 1 };
        let round = PodsRound {
            single: side(8.0, 1.0, 0.2),
            pods: side(10.0, 6.0, 0.5),
            private: occupied,
            sweep: SweepMeasurement {
                took_s: 2.0,
                slowest_command: longest,
                tally: broken,
                ..SweepMeasurement::default()
            },
            ..PodsRound::default()
        };
        let figures = compute_pods_figures(std::slice::from_ref(&round));
        for (id, value, outcome) in [
            ("fan_ratio", Some(0.8), TargetOutcome::Met),
            ("added_ms", Some(5.0), TargetOutcome::Met),
            ("private_pairs", Some(5_000.0), TargetOutcome::Met),
            ("private_kib", Some(1.1), TargetOutcome::Missed),
            ("sweep_s", Some(2.0), TargetOutcome::Met),
            ("sweep_block_ms", Some(5.1), TargetOutcome::Missed),
            ("missed", Some(0.0), TargetOutcome::Met),
            ("removed_repeated", Some(1.0), TargetOutcome::Missed),
            ("fan_redis_us", None, TargetOutcome::NotMeasured),
        ] {
            let figure = find_figure(&figures, id);
            assert_eq!((figure.value, figure.outcome), (value, outcome), "{id}");
        }
        assert_eq!(compose_notes(&[round]), ["The longest command of any sweep was evalsha with 5.10 ms."]);
    }

    #[test]
    fn others_beside_a_disturbance_have_figures_and_each_of_their_missed_events_counts() {
        let disturbance = DisturbanceMeasurement {
            changes_per_second: 990.0,
            churn_p99_ms: 21.0,
            back_s: 11.0,
            storm_p99_ms: 50.0,
            missed: 1,
        };
        let round = PodsRound { disturbance, ..PodsRound::default() };
        let figures = compute_disturbance_figures(&[round.clone(), round]);
        for (id, value, outcome) in [
            ("churn_p99_ms", 21.0, TargetOutcome::Missed),
            ("churn_per_second", 990.0, TargetOutcome::NoTarget),
            ("back_s", 11.0, TargetOutcome::Met),
            ("storm_p99_ms", 50.0, TargetOutcome::Met),
            ("others_missed", 2.0, TargetOutcome::Missed),
        ] {
            let figure = find_figure(&figures, id);
            assert_eq!((figure.value, figure.outcome), (Some(value), outcome), "{id}");
        }
    }

    #[test]
    fn times_on_a_busy_host_are_not_counted_and_a_note_says_so() {
        let with = |busy: f64, p99_ms| PodsRound {
            pods: SideMeasurement { calm: test_load(1.0, p99_ms, busy), ..SideMeasurement::default() },
            sweep: SweepMeasurement { busy, ..SweepMeasurement::default() },
            ..PodsRound::default()
        };
        let rounds = [with(0.6, 90.0), with(0.59, 3.0), with(0.9, 90.0)];
        let figures = compute_pods_figures(&rounds);
        let added = find_figure(&figures, "added_ms");
        assert_eq!((added.value, added.outcome, added.rounds.len()), (Some(3.0), TargetOutcome::Met, 1));
        let notes = compose_notes(&rounds);
        assert!(notes[..2].iter().all(|note| note.contains("2 of 3 rounds")) && notes.len() == 3, "{notes:?}");
        assert_eq!(find_figure(&figures, "sweep_block_ms").rounds.len(), 1);
        assert_eq!(find_figure(&figures, "sweep_longest_ms").rounds.len(), 3);
        assert_eq!(
            find_figure(&super::compute_pods_figures(&rounds[..1]), "added_ms").outcome,
            TargetOutcome::NotMeasured
        );
    }
}
