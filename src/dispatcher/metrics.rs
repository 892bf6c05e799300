//! The dispatcher's counters and gauges, and the report at `/flow`.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::endpoint_monitor::EndpointMonitor;
use super::ledger::{
    DeliveryCounters, DeliveryHop, EventCounters, EventHop, build_delivery_ledger, build_event_ledger,
};
use super::reasons::{DropReason, LossScope, PauseChange, PauseReason, SkipReason};
use crate::process::locks::lock_unpoisoned;
use crate::process::metrics::{LabelValue, Labeled, RegistryReadResult, label_values, metric_table};
use crate::protocol::admin::{DeadLetterFlow, DispatcherFlow, ShardFlow};
use crate::protocol::{ShardId, StreamName};

/// Bounds the error sources that are remembered; beyond it, new sources are not noted.
const SHOWN_ERRORS_MAX: usize = 1_000;

label_values! {
    /// The result of an attempt, by class.
    pub enum ResponseClass as "result" {
        /// The endpoint acknowledged with a 2xx.
        Success = "success",
        /// The endpoint answered with another status.
        Answered = "answered",
        /// The endpoint did not answer.
        Unanswered = "unanswered",
        /// The egress policy refused the address.
        Refused = "refused",
    }
}

metric_table! {
    /// Counters and gauges of a dispatcher.
    pub struct DispatcherSeries of "dispatcher" {
        /// Events that an endpoint acknowledged.
        events_delivered: Counter => "Nothing; it is the load of the endpoints.",
        /// Attempts to post a webhook.
        attempts: Labeled<ResponseClass, Counter> =>
            "If others than `success` grow, read the last error in `/flow`: it names the endpoint.",
        /// Events that are lost, with their webhooks: there is no dead-letter stream.
        events_dropped: Labeled<DropReason, Counter> =>
            "Look the reason up below; most of them need the owner of the endpoint. With `webhooks.deadLetter` they are kept.",
        /// Events that were given up and written to the dead-letter stream.
        events_dead_lettered: Labeled<DropReason, Counter> =>
            "Look the reason up below, mend its cause, then send the events again with `realtime replay`.",
        /// Puts to the dead-letter stream that failed in part or in all.
        dead_letter_write_failures: Counter =>
            "If it grows, read `DeadLetterUnavailable` in `/flow`: name, region, permission or throughput of the stream.",
        /// Dead letters that are not written yet.
        waiting_dead_letters: Gauge =>
            "If it stays above 0, check the dead-letter stream: shards that are full of waiting letters are not read.",
        /// Events that need no delivery.
        events_skipped: Labeled<SkipReason, Counter> =>
            "Nothing; `duplicate` grows after a restart, by the events behind the checkpoint, `endpoint_disabled` with the events \
             of endpoints with `state: Disabled`.",
        /// Reads of an app registry that has changed.
        registry_reads: Labeled<RegistryReadResult, Counter> =>
            "If `refused` grows, read the log of the dispatcher and correct the app that it names.",
        /// Events by hop of the ledger: those read are the sum of the others and of the events that wait.
        ledger_events: EventCounters => "Nothing; `/flow` has the same counts, and the events that wait.",
        /// Deliveries by hop of the ledger: those created are the sum of the others but attempts, and of those that wait.
        ledger_deliveries: DeliveryCounters => "Nothing; `/flow` has the same counts, and the deliveries that wait.",
        /// Positions in the stream whose records were trimmed before they were read: webhooks are lost.
        trimmed_positions: Counter => "Raise the retention of the stream, and find out why the dispatcher did not read.",
        /// Missing events of a channel that were passed without them.
        order_gaps: Counter => "Compare with the events that edges dropped: `realtime_edge_recorder_events_dropped_total`.",
        /// Events that were read and are neither delivered nor dropped yet.
        unfinished_events: Gauge => "Check the endpoints: each event waits until its endpoint acknowledges it.",
        /// Tasks of shards that panicked and were started again.
        worker_panics: Counter => "Report the message in the log of the dispatcher; the events are read again.",
        /// Shards that this dispatcher holds now.
        shards: Gauge => "Nothing; over all dispatchers the sum is the number of shards.",
        /// Held shards that are not read now, and shards that nobody holds as far as this dispatcher sees.
        paused_shards: Labeled<PauseReason, Gauge> =>
            "Look the reason up below: `full` and `budget` need more dispatchers or shards, `record_too_new` an upgrade.",
        /// Distance of the slowest held shard from the end of the stream, in seconds.
        lag_seconds: Gauge<f64, AtomicU64> => "Add dispatchers or shards, or find the endpoint that is slow.",
    }
}

/// The source of an error: only a success of the same source clears it. Ordered by weight: an error that stops a shard for
/// every customer is shown before the error of one customer's endpoint, however new that is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorSource {
    /// A shard that is not read.
    Paused(ShardId),
    /// A shard's checkpoint, which this release cannot read.
    Checkpoint(ShardId),
    /// Shards that nobody holds.
    NotHeld,
    /// Listing the shards of the stream.
    Discovery,
    /// Reading or writing the leases.
    Leases,
    /// Reading one shard's records.
    Shard(ShardId),
    /// Writing letters to the dead-letter stream.
    DeadLetter,
    /// Sending to an endpoint, identified by app and name.
    Endpoint(String),
}

impl ErrorSource {
    /// Whether the error concerns one customer only.
    fn is_of_customer(&self) -> bool {
        matches!(self, Self::Endpoint(_))
    }
}

/// All counters and gauges of the process.
#[derive(Debug, Default)]
pub struct DispatcherMetrics {
    /// The state of each endpoint.
    pub endpoints: EndpointMonitor,
    series: DispatcherSeries,
    live: Mutex<FlowState>,
}

/// A shard that this process holds.
#[derive(Clone, Debug)]
pub struct ShardState {
    /// Its place in the stream.
    pub flow: ShardFlow,
    /// Number of events that were read and are not finished, each delivery of a released one counted for itself.
    pub unfinished: usize,
    /// Number of events among them that are not released yet.
    pub waiting_events: usize,
    /// Number of deliveries among them that no endpoint's queue has: letters that are being written, and deliveries that
    /// were withdrawn before the shard's release.
    pub waiting_deliveries: usize,
    /// Why it is not read now.
    pub paused: Option<PauseReason>,
}

impl ShardState {
    /// The shard's flow, with the reason of its pause.
    fn flow(&self) -> ShardFlow {
        ShardFlow { paused: self.paused.map(|reason| reason.name().to_owned()), ..self.flow.clone() }
    }
}

#[derive(Debug, Default)]
struct FlowState {
    shards: BTreeMap<ShardId, ShardState>,
    drop_counts: BTreeMap<DropReason, u64>,
    dead_letters: Option<DeadLetterFlow>,
    failed_attempts: u64,
    /// Number of shards that nobody holds.
    not_held: usize,
    errors: BTreeMap<ErrorSource, (u64, String)>,
    error_count: u64,
}

impl FlowState {
    /// The first error by source, or else the newest of an endpoint.
    fn heaviest_error(&self) -> Option<&str> {
        let of_process = self.errors.iter().find(|(source, _)| !source.is_of_customer()).map(|(_, noted)| noted);
        of_process.or_else(|| self.errors.values().max()).map(|(_, error)| error.as_str())
    }
}

/// Deliveries and failures since the process started.
#[derive(Clone, Copy, Debug)]
pub struct AttemptCounts {
    /// Events that an endpoint acknowledged.
    pub delivered: u64,
    /// Attempts to post that failed.
    pub failed: u64,
}

impl DispatcherMetrics {
    /// Deliveries and failures since the process started.
    pub fn attempt_counts(&self) -> AttemptCounts {
        AttemptCounts { delivered: self.series.events_delivered.get(), failed: self.live().failed_attempts }
    }

    /// Registers each metric under its name.
    pub fn register(&self, registry: &mut Registry) {
        self.series.register(registry);
    }

    /// Counts events that an endpoint acknowledged.
    pub fn count_delivered(&self, events: usize) {
        self.series.events_delivered.inc_by(events as u64);
    }

    /// Counts a changed app registry, by whether it is valid.
    pub fn count_registry_read(&self, applied: bool) {
        let result = if applied { RegistryReadResult::Applied } else { RegistryReadResult::Refused };
        self.series.registry_reads.with_label(result).inc();
    }

    /// Counts an attempt by its result.
    pub fn count_attempt(&self, result: ResponseClass) {
        self.series.attempts.with_label(result).inc();
        if result != ResponseClass::Success {
            self.live().failed_attempts += 1;
        }
    }

    /// Counts events that were read, of which so many were read or delivered before.
    pub fn count_read(&self, events: usize, repeated: usize) {
        self.count_events(EventHop::Read, events);
        self.count_skipped(SkipReason::Duplicate, repeated);
    }

    /// Counts an event that was released to so many endpoints.
    pub fn count_released(&self, deliveries: usize) {
        self.count_events(if deliveries == 0 { EventHop::Unwanted } else { EventHop::Released }, 1);
        self.count_deliveries(DeliveryHop::Created, deliveries);
    }

    /// Counts the unfinished events and deliveries of a shard that is given up.
    pub fn count_relinquished(&self, events: usize, deliveries: usize) {
        self.count_events(EventHop::Relinquished, events);
        self.count_deliveries(DeliveryHop::Relinquished, deliveries);
    }

    /// Counts deliveries that are at a hop now.
    pub fn count_deliveries(&self, hop: DeliveryHop, deliveries: usize) {
        if deliveries == 0 {
            return;
        }
        self.series.ledger_deliveries.with_label(hop).inc_by(deliveries as u64);
    }

    /// Counts a position whose records were trimmed before they were read.
    pub fn count_trimmed(&self) {
        self.series.trimmed_positions.inc();
    }

    /// Counts events of a record that was read and is no record of the cluster, at the hop at which they stay.
    pub fn count_refused(&self, hop: EventHop, events: usize) {
        self.count_events(EventHop::Read, events);
        self.count_events(hop, events);
    }

    /// Counts lost events in the ledger; those of refused records are counted since they were read.
    fn count_lost(&self, reason: DropReason, events: usize, hop: DeliveryHop) {
        match reason.scope() {
            LossScope::Record => {}
            LossScope::Event => self.count_events(EventHop::UnknownApp, events),
            LossScope::Delivery => self.count_deliveries(hop, events),
        }
    }

    fn count_events(&self, hop: EventHop, events: usize) {
        if events == 0 {
            return;
        }
        self.series.ledger_events.with_label(hop).inc_by(events as u64);
    }

    /// Counts lost events by reason.
    pub fn count_dropped(&self, reason: DropReason, events: usize) {
        self.series.events_dropped.with_label(reason).inc_by(events as u64);
        self.count_lost(reason, events, DeliveryHop::Dropped);
        *self.live().drop_counts.entry(reason).or_default() += events as u64;
    }

    /// Shows the dead-letter stream in `/flow`.
    pub fn open_dead_letters(&self, stream: &StreamName) {
        self.live().dead_letters = Some(DeadLetterFlow { stream: stream.to_string(), ..DeadLetterFlow::default() });
    }

    /// Counts events whose letters were written, by reason.
    pub fn count_dead_lettered(&self, reason: DropReason, events: usize) {
        self.series.events_dead_lettered.with_label(reason).inc_by(events as u64);
        self.count_lost(reason, events, DeliveryHop::DeadLettered);
        if let Some(flow) = &mut self.live().dead_letters {
            *flow.written.entry(format!("{reason:?}")).or_default() += events as u64;
        }
    }

    /// Counts a put to the dead-letter stream that failed in part or in all.
    pub fn count_dead_letter_failure(&self) {
        self.series.dead_letter_write_failures.inc();
    }

    /// Shows the number of letters that are not written yet.
    pub fn set_dead_letters_waiting(&self, letters: usize) {
        self.series.waiting_dead_letters.set(i64::try_from(letters).unwrap_or(i64::MAX));
        if let Some(flow) = &mut self.live().dead_letters {
            flow.waiting = letters as u64;
        }
    }

    /// Counts events that need no delivery, by reason.
    pub fn count_skipped(&self, reason: SkipReason, events: usize) {
        if events == 0 {
            return;
        }
        self.series.events_skipped.with_label(reason).inc_by(events as u64);
        let hop = match reason {
            SkipReason::Cancelled => EventHop::Cancelled,
            SkipReason::Superseded => EventHop::Superseded,
            SkipReason::Duplicate => EventHop::Duplicate,
            // The event is counted at its release, by the number of its other endpoints.
            SkipReason::EndpointDisabled => return,
        };
        self.count_events(hop, events);
    }

    /// Counts a task of shards that panicked.
    pub fn count_worker_panic(&self) {
        self.series.worker_panics.inc();
    }

    /// Counts missing events that were passed.
    pub fn count_gaps(&self, gaps: u64) {
        self.series.order_gaps.inc_by(gaps);
    }

    /// Notes an error; `/flow` shows the heaviest, and of the endpoints the newest.
    pub fn set_error(&self, source: ErrorSource, error: String) {
        let mut live = self.live();
        live.error_count += 1;
        let noted = live.error_count;
        // Only endpoints are bounded: the others are as many as shards.
        if !source.is_of_customer() || live.errors.len() < SHOWN_ERRORS_MAX || live.errors.contains_key(&source) {
            live.errors.insert(source, (noted, error));
        }
    }

    /// Removes the error of a source that works again.
    pub fn clear_error(&self, source: &ErrorSource) {
        self.live().errors.remove(source);
    }

    /// Reports a pause of a shard's reading that lasts, or its end. `too_new` describes a record of a newer release.
    pub fn report_pause(&self, shard: &ShardId, change: PauseChange, too_new: Option<&str>, unfinished: usize) {
        let source = ErrorSource::Paused(shard.clone());
        match change {
            PauseChange::Paused(reason) => {
                let word = reason.name();
                tracing::warn!(%shard, reason = word, unfinished, "shard reading paused");
                // The reader reports a failed read itself, with Kinesis's error.
                if let Some(why) = too_new {
                    self.set_error(source, why.to_owned());
                } else if reason != PauseReason::ReadFailed {
                    self.set_error(source, format!("shard {shard} is not read ({word}): {}", reason.meaning()));
                }
            }
            PauseChange::Resumed(reason, ms) => {
                tracing::info!(%shard, reason = reason.name(), ms, "shard reading resumed");
                self.clear_error(&source);
            }
        }
    }

    /// Whether the records of a shard cannot be read now.
    #[must_use]
    pub fn has_read_error(&self) -> bool {
        self.live().errors.keys().any(|source| matches!(source, ErrorSource::Shard(_)))
    }

    /// Sets the state of a held shard.
    pub fn set_shard(&self, id: &ShardId, state: ShardState) {
        let mut live = self.live();
        live.shards.insert(id.clone(), state);
        self.update_gauges(&live);
    }

    /// Reports the shards that nobody has held for a while.
    pub fn set_not_held(&self, shards: &[ShardId]) {
        if shards.is_empty() {
            self.clear_error(&ErrorSource::NotHeld);
        } else {
            let ids: Vec<&str> = shards.iter().map(ShardId::as_str).collect();
            let error =
                format!("no dispatcher holds shard {}: check the leases and the other dispatchers", ids.join(", "));
            self.set_error(ErrorSource::NotHeld, error);
        }
        let mut live = self.live();
        live.not_held = shards.len();
        self.update_gauges(&live);
    }

    /// Removes a shard that is no longer held.
    pub fn remove_shard(&self, id: &ShardId) {
        let mut live = self.live();
        live.shards.remove(id);
        live.errors.remove(&ErrorSource::Shard(id.clone()));
        live.errors.remove(&ErrorSource::Paused(id.clone()));
        self.update_gauges(&live);
    }

    /// Builds the report that `/flow` answers. So many deliveries wait in the queues of the endpoints.
    #[must_use]
    pub fn flow_report(&self, stream: &str, queued_deliveries: usize) -> DispatcherFlow {
        let live = self.live();
        let waiting_events: usize = live.shards.values().map(|state| state.waiting_events).sum();
        let waiting_deliveries: usize =
            queued_deliveries + live.shards.values().map(|state| state.waiting_deliveries).sum::<usize>();
        DispatcherFlow {
            stream: stream.to_owned(),
            shards: live.shards.iter().map(|(id, state)| (id.clone(), state.flow())).collect(),
            delivered: self.series.events_delivered.get(),
            failed_attempts: live.failed_attempts,
            dropped: live.drop_counts.iter().map(|(reason, count)| (format!("{reason:?}"), *count)).collect(),
            unfinished: live.shards.values().map(|state| state.unfinished as u64).sum(),
            events: Some(build_event_ledger(&self.series.ledger_events, waiting_events as u64)),
            deliveries: Some(build_delivery_ledger(&self.series.ledger_deliveries, waiting_deliveries as u64)),
            trimmed: self.series.trimmed_positions.get(),
            last_error: live.heaviest_error().map(str::to_owned),
            dead_letter: live.dead_letters.clone().map(|flow| DeadLetterFlow {
                error: live.errors.get(&ErrorSource::DeadLetter).map(|(_, error)| error.clone()),
                ..flow
            }),
        }
    }

    fn update_gauges(&self, live: &FlowState) {
        let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.series.shards, live.shards.len() as u64);
        set(&self.series.unfinished_events, live.shards.values().map(|state| state.unfinished as u64).sum());
        let behind = live.shards.values().map(|state| state.flow.behind_ms).max().unwrap_or(0);
        for reason in PauseReason::ALL {
            let of_reason = live.shards.values().filter(|state| state.paused == Some(*reason)).count();
            let paused = if *reason == PauseReason::NotHeld { live.not_held } else { of_reason };
            set(&self.series.paused_shards.with_label(*reason), paused as u64);
        }
        self.series.lag_seconds.set(Duration::from_millis(behind).as_secs_f64());
    }

    // A worker that panicked within these few lines leaves numbers behind that are still worth showing.
    fn live(&self) -> MutexGuard<'_, FlowState> {
        lock_unpoisoned(&self.live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_cleared_by_its_own_source_only() {
        let metrics = DispatcherMetrics::default();
        metrics.set_error(ErrorSource::Endpoint("1/a".into()), "refused".into());
        metrics.clear_error(&ErrorSource::Discovery);
        assert_eq!(metrics.flow_report("s", 0).last_error.as_deref(), Some("refused"));
        metrics.set_error(ErrorSource::Discovery, "missing".into());
        assert_eq!(metrics.flow_report("s", 0).last_error.as_deref(), Some("missing"), "the newest is shown");
        metrics.clear_error(&ErrorSource::Discovery);
        metrics.clear_error(&ErrorSource::Endpoint("1/a".into()));
        assert_eq!(metrics.flow_report("s", 0).last_error, None);
    }

    #[test]
    fn an_endpoints_error_hides_no_error_that_stops_a_shard() {
        let metrics = DispatcherMetrics::default();
        let record = ErrorSource::Paused(ShardId("shard-0".to_owned()));
        metrics.set_error(record.clone(), "RecordTooNew: version 2".into());
        for n in 0..2 * SHOWN_ERRORS_MAX {
            metrics.set_error(ErrorSource::Endpoint(format!("1/{n}")), format!("endpoint {n}: answered 500"));
        }
        let shown = || metrics.flow_report("s", 0).last_error.unwrap_or_default();
        assert_eq!(shown(), "RecordTooNew: version 2");
        metrics.set_error(ErrorSource::Leases, "no answer".into());
        assert_eq!(shown(), "RecordTooNew: version 2", "a newer one of another source");
        metrics.clear_error(&record);
        assert_eq!(shown(), "no answer");
        metrics.clear_error(&ErrorSource::Leases);
        assert!(shown().starts_with("endpoint "), "{}", shown());
    }

    #[test]
    fn names_and_reasons_are_readable() {
        let (metrics, mut registry) = (DispatcherMetrics::default(), Registry::default());
        metrics.register(&mut registry);
        metrics.count_dropped(DropReason::ForeignCluster, 2);
        metrics.count_attempt(ResponseClass::Success);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for line in [
            "realtime_dispatcher_events_dropped_total{reason=\"foreign_cluster\"} 2",
            "realtime_dispatcher_attempts_total{result=\"success\"} 1",
            "realtime_dispatcher_events_delivered_total 0",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert_eq!(metrics.flow_report("s", 0).dropped["ForeignCluster"], 2);
    }
}
