//! Turns the measurements of the pipeline into figures. Pure.

use super::super::figures::{Figure, FigureTarget, RoundAggregation, build_figure, median_of_finite};
use super::super::latency::LatencyHistogram;
use super::super::machine::as_f64;
use super::super::sequence::DeliveryTally;
use super::chat::ChatLatency;
use super::memory::LoadMemory;
use super::stream_double::StreamCondition;
use crate::dispatcher::READ_INTERVAL;
use crate::edge::QueueLimits;

/// Work beyond the mean wait by design that the median latency may take, in ms.
const MEDIAN_WORK_MS_MAX: f64 = 10.0;

/// Work beyond the longest wait by design that the 99th percentile may take, in ms.
const LONGEST_WORK_MS_MAX: f64 = 60.0;

/// Measurements of one round.
#[derive(Clone, Debug, Default)]
pub struct PipelineRound {
    /// Records per second of the bare `PutRecords` loop.
    pub bare_puts: f64,
    /// Records per second of the bare loop of `GetRecords` and posts.
    pub bare_reads: f64,
    /// Throughput with records and bodies in batches.
    pub batched: Throughput,
    /// Throughput with one event in each record and body.
    pub single: Throughput,
    /// Deliveries of the round.
    pub tally: DeliveryTally,
    /// Memory of the idle dispatcher, in KiB.
    pub idle_kib: u64,
    /// Reads of a shard per hour.
    pub reads_per_shard_hour: f64,
    /// Latency at a steady rate.
    pub latency: Option<LatencyHistogram>,
    /// `PutRecords` calls per 1,000 events at the steady rate.
    pub calm_puts: f64,
    /// Records per 1,000 events at the steady rate.
    pub calm_records: f64,
    /// PUT payload units per 1,000 events at the steady rate.
    pub calm_units: f64,
}

/// Measurements of events that were recorded as fast as possible.
#[derive(Clone, Copy, Debug, Default)]
pub struct Throughput {
    /// Events per second, from the first record to the last arrival.
    pub events_per_second: f64,
    /// CPU of the dispatcher per event, in microseconds.
    pub dispatcher_us: f64,
    /// Largest memory of the dispatcher meanwhile, in KiB.
    pub peak_kib: u64,
    /// `PutRecords` calls per 1,000 events.
    pub puts_per_thousand: f64,
    /// Events of one webhook on average.
    pub events_per_body: f64,
    /// Events that the recorder dropped.
    pub dropped: u64,
}

impl PipelineRound {
    /// Ratio of the throughput to the slower bare loop.
    fn ratio_to_bare(&self) -> f64 {
        self.batched.events_per_second / self.bare_puts.min(self.bare_reads)
    }

    fn latency_ms(&self, share: f64) -> f64 {
        self.latency.as_ref().map_or(f64::NAN, |latency| latency.quantile_ms(share))
    }
}

/// Computes every figure of the pipeline.
pub fn compute_pipeline_figures(rounds: &[PipelineRound], memory: &LoadMemory, chat: &ChatLatency) -> Vec<Figure> {
    let mut figures = throughput_figures(rounds);
    figures.extend(delivery_figures(rounds, memory));
    figures.extend(memory_figures(rounds, memory));
    figures.extend(latency_figures(rounds));
    figures.extend(chat_figures(chat));
    figures.extend(cost_figures(rounds));
    figures
}

type MeasuredValue = fn(&PipelineRound) -> f64;

fn median(
    rounds: &[PipelineRound],
    [id, name, unit]: [&'static str; 3],
    target: Option<FigureTarget>,
    of: MeasuredValue,
) -> Figure {
    build_figure(id, name, unit, target, median_of_finite(rounds.iter().map(of)))
}

/// A figure that is measured once.
fn single([id, name, unit]: [&'static str; 3], target: Option<FigureTarget>, value: f64) -> Figure {
    build_figure(id, name, unit, target, median_of_finite([value].into_iter()))
}

fn throughput_figures(rounds: &[PipelineRound]) -> Vec<Figure> {
    let least = |least| Some(FigureTarget::AtLeast(least));
    vec![
        median(rounds, ["events_s", "throughput, in batches", "/s"], least(8_000.0), |r| r.batched.events_per_second),
        median(rounds, ["bare_puts_s", "  a bare PutRecords loop's", "/s"], None, |r| r.bare_puts),
        median(rounds, ["bare_reads_s", "  a bare GetRecords and POST loop's", "/s"], None, |r| r.bare_reads),
        median(
            rounds,
            ["bare_ratio", "  ours to the slower bare loop's", "×"],
            least(0.5),
            PipelineRound::ratio_to_bare,
        ),
        median(rounds, ["body_events", "  events per webhook", ""], None, |r| r.batched.events_per_body),
        median(rounds, ["dispatcher_us", "  CPU of the dispatcher per event", "µs"], None, |r| {
            r.batched.dispatcher_us
        }),
        median(rounds, ["single_s", "throughput, each event alone", "/s"], least(2_000.0), |r| {
            r.single.events_per_second
        }),
        median(rounds, ["single_body_events", "  events per webhook", ""], None, |r| r.single.events_per_body),
        median(rounds, ["single_us", "  CPU of the dispatcher per event", "µs"], None, |r| r.single.dispatcher_us),
    ]
}

fn delivery_figures(rounds: &[PipelineRound], memory: &LoadMemory) -> Vec<Figure> {
    let none = Some(FigureTarget::AtMost(0.0));
    let sum = |id, name, target, counts: Vec<u64>| {
        build_figure(id, name, "", target, (RoundAggregation::Sum, counts.into_iter().map(as_f64).collect()))
    };
    let tallies = |of: fn(&DeliveryTally) -> u64| {
        rounds.iter().map(|round| &round.tally).chain([&memory.tally]).map(of).collect()
    };
    let dropped = rounds.iter().map(|round| round.batched.dropped + round.single.dropped).collect();
    vec![
        sum("delivered", "events delivered", None, tallies(|tally| tally.delivered)),
        sum("missed", "  missed", none, tallies(|tally| tally.missed)),
        sum("repeated", "  repeated, or not in order", none, tallies(|tally| tally.repeated)),
        sum("dropped", "  dropped by the recorder", none, dropped),
    ]
}

fn memory_figures(rounds: &[PipelineRound], memory: &LoadMemory) -> Vec<Figure> {
    let most = |most| Some(FigureTarget::AtMost(most));
    let mib = |kib: u64| as_f64(kib) / 1024.0;
    let users_ratio = as_f64(memory.users_kib) / as_f64(memory.half_users_kib);
    let refused = "  with an endpoint that refuses its events";
    vec![
        median(rounds, ["idle_mib", "memory of the idle dispatcher", "MiB"], most(24.0), |r| {
            as_f64(r.idle_kib) / 1024.0
        }),
        median(rounds, ["load_mib", "memory of the dispatcher at full load", "MiB"], most(64.0), |r| {
            as_f64(r.batched.peak_kib) / 1024.0
        }),
        single(["refused_mib", refused, "MiB"], most(128.0), mib(memory.refused_kib)),
        single(["users_mib", "  after joins of distinct users", "MiB"], most(64.0), mib(memory.users_kib)),
        single(["users_ratio", "    to that after half of them", "×"], most(1.1), users_ratio),
    ]
}

fn latency_figures(rounds: &[PipelineRound]) -> Vec<Figure> {
    // By design an event waits for the recorder's linger, then for the next poll of the dispatcher.
    let (linger_ms, polling_ms) = (as_f64(QueueLimits::DEFAULT.linger_ms), READ_INTERVAL.as_secs_f64() * 1e3);
    let median_most = Some(FigureTarget::AtMost(polling_ms / 2.0 + linger_ms + MEDIAN_WORK_MS_MAX));
    let longest_most = Some(FigureTarget::AtMost(polling_ms + linger_ms + LONGEST_WORK_MS_MAX));
    vec![
        median(rounds, ["p50_ms", "from event to webhook, median", "ms"], median_most, |r| r.latency_ms(0.5)),
        median(rounds, ["p99_ms", "from event to webhook, 99th percentile", "ms"], longest_most, |r| {
            r.latency_ms(0.99)
        }),
    ]
}

fn chat_figures(chat: &ChatLatency) -> Vec<Figure> {
    let ratio =
        |id, name, condition| single([id, name, "×"], Some(FigureTarget::AtMost(1.5)), chat.ratio_to_well(condition));
    vec![
        single(["chat_p99_ms", "chat message, 99th percentile", "ms"], None, chat.p99_ms(StreamCondition::Well)),
        ratio("chat_down_ratio", "  with the stream down", StreamCondition::Down),
        ratio("chat_slow_ratio", "  with calls of 5 s", StreamCondition::Slow),
        ratio("chat_throttled_ratio", "  with the stream throttled", StreamCondition::Throttled),
    ]
}

fn cost_figures(rounds: &[PipelineRound]) -> Vec<Figure> {
    vec![
        median(rounds, ["puts", "PutRecords calls per 1,000 events", ""], None, |r| r.calm_puts),
        median(rounds, ["load_puts", "  at full load", ""], None, |r| r.batched.puts_per_thousand),
        median(rounds, ["records", "records per 1,000 events", ""], None, |r| r.calm_records),
        median(rounds, ["payload_units", "PUT payload units per 1,000 events", ""], None, |r| r.calm_units),
        median(rounds, ["shard_reads", "reads per shard and hour", ""], None, |r| r.reads_per_shard_hour),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::super::figures::TargetOutcome;
    use super::*;

    fn find<'a>(figures: &'a [Figure], id: &str) -> &'a Figure {
        figures.iter().find(|figure| figure.id == id).expect("the figure")
    }

    #[test]
    fn the_throughput_is_compared_with_the_slower_bare_loop() {
        let round = PipelineRound {
            bare_puts: 40_000.0,
            bare_reads: 20_000.0,
            batched: Throughput { events_per_second: 9_000.0, peak_kib: 65 * 1024, ..Throughput::default() },
            tally: DeliveryTally { delivered: 9, missed: 1, repeated: 0 },
            ..PipelineRound::default()
        };
        let figures = compute_pipeline_figures(&[round], &LoadMemory::default(), &ChatLatency::default());
        for (id, value, outcome) in [
            ("events_s", Some(9_000.0), TargetOutcome::Met),
            ("bare_ratio", Some(0.45), TargetOutcome::Missed),
            ("load_mib", Some(65.0), TargetOutcome::Missed),
            ("missed", Some(1.0), TargetOutcome::Missed),
            ("repeated", Some(0.0), TargetOutcome::Met),
            ("p99_ms", None, TargetOutcome::NotMeasured),
            ("chat_down_ratio", None, TargetOutcome::NotMeasured),
        ] {
            let figure = find(&figures, id);
            assert_eq!((figure.value, figure.outcome), (value, outcome), "{id}");
        }
    }
}
