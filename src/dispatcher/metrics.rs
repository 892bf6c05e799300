//! What the dispatcher says of itself: counters, gauges, and what stands in `/flow`.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::protocol::ShardId;
use crate::protocol::admin::{DispatcherFlow, ShardFlow};

/// Errors that are shown at most; beyond, new sources are not noted.
const SHOWN_ERRORS_MAX: usize = 1_000;

/// Why an event is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelValue)]
pub enum DropReason {
    /// Another cluster wrote it.
    ForeignCluster,
    /// Not a record of ours.
    Poison,
    /// No such app, after waiting for the registry.
    UnknownApp,
    /// Nobody took it in time.
    RetryWindowOver,
    /// Its endpoint fails and holds too much.
    EndpointBehind,
    /// Its endpoint was taken away while it waited.
    EndpointRemoved,
}

/// Why an event is rightly not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum SkipReason {
    /// One half of an absence that was undone.
    Cancelled,
    /// Something newer of its subject was told.
    Superseded,
    /// Read before.
    Duplicate,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ResponseClass {
    /// Any 2xx.
    Success,
    /// Another answer.
    Answered,
    /// No answer.
    Unanswered,
    /// Not allowed to go there.
    Refused,
}

/// How a reading of the app registry ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum RegistryReadResult {
    /// It is in force.
    Applied,
    /// The one before stays.
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegistryReadLabels {
    result: RegistryReadResult,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    reason: DropReason,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SkipLabels {
    reason: SkipReason,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    result: ResponseClass,
}

/// Where an error comes from: a success of the same source clears it, and no other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorSource {
    /// Finding the shards.
    Discovery,
    /// The leases.
    Leases,
    /// Reading a shard.
    Shard(ShardId),
    /// A record that the shard waits at.
    Record(ShardId),
    /// Sending to an endpoint, called by app and name.
    Endpoint(String),
}

/// Everything that is counted; one per process.
#[derive(Debug, Default)]
pub struct DispatcherMetrics {
    delivered: Counter,
    attempts: Family<AttemptLabels, Counter>,
    dropped: Family<DropLabels, Counter>,
    skipped: Family<SkipLabels, Counter>,
    registry_reads: Family<RegistryReadLabels, Counter>,
    gaps: Counter,
    unfinished: Gauge,
    shards: Gauge,
    behind: Gauge<f64, AtomicU64>,
    live: Mutex<FlowState>,
}

#[derive(Debug, Default)]
struct FlowState {
    shards: BTreeMap<ShardId, (ShardFlow, usize)>,
    drop_counts: BTreeMap<DropReason, u64>,
    failed_attempts: u64,
    errors: BTreeMap<ErrorSource, (u64, String)>,
    error_count: u64,
}

/// What became of attempts since the process started.
#[derive(Clone, Copy, Debug)]
pub struct AttemptCounts {
    /// Events that an endpoint took.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed: u64,
}

impl DispatcherMetrics {
    /// What became of attempts since the process started.
    pub fn attempt_counts(&self) -> AttemptCounts {
        AttemptCounts { delivered: self.delivered.get(), failed: self.live().failed_attempts }
    }

    /// Registers everything under its name.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("realtime_dispatcher");
        registry.register("delivered", "Events that an endpoint took", self.delivered.clone());
        registry.register("attempts", "Attempts to post", self.attempts.clone());
        registry.register("dropped", "Events lost", self.dropped.clone());
        registry.register("settled", "Events rightly not told", self.skipped.clone());
        registry.register("registry_reads", "Changed app registries", self.registry_reads.clone());
        registry.register("order_gaps", "Missing events that were passed", self.gaps.clone());
        registry.register("unfinished_events", "Events read and not yet done", self.unfinished.clone());
        registry.register("shards", "Shards held", self.shards.clone());
        let help = "How far the slowest held shard is behind";
        registry.register_with_unit("behind", help, Unit::Seconds, self.behind.clone());
    }

    /// Events that an endpoint took.
    pub fn count_delivered(&self, events: usize) {
        self.delivered.inc_by(events as u64);
    }

    /// The app registry changed, and could be read or not.
    pub fn count_registry_read(&self, applied: bool) {
        let result = if applied { RegistryReadResult::Applied } else { RegistryReadResult::Refused };
        self.registry_reads.get_or_create(&RegistryReadLabels { result }).inc();
    }

    /// An attempt ended.
    pub fn count_attempt(&self, result: ResponseClass) {
        self.attempts.get_or_create(&AttemptLabels { result }).inc();
        if result != ResponseClass::Success {
            self.live().failed_attempts += 1;
        }
    }

    /// Events were lost.
    pub fn count_dropped(&self, reason: DropReason, events: usize) {
        self.dropped.get_or_create(&DropLabels { reason }).inc_by(events as u64);
        *self.live().drop_counts.entry(reason).or_default() += events as u64;
    }

    /// Events are rightly not told.
    pub fn count_skipped(&self, reason: SkipReason, events: usize) {
        self.skipped.get_or_create(&SkipLabels { reason }).inc_by(events as u64);
    }

    /// Missing events were passed.
    pub fn count_gaps(&self, gaps: u64) {
        self.gaps.inc_by(gaps);
    }

    /// Something failed; the newest is shown.
    pub fn set_error(&self, source: ErrorSource, error: String) {
        let mut live = self.live();
        live.error_count += 1;
        let noted = live.error_count;
        if live.errors.len() < SHOWN_ERRORS_MAX || live.errors.contains_key(&source) {
            live.errors.insert(source, (noted, error));
        }
    }

    /// The source works again.
    pub fn clear_error(&self, source: &ErrorSource) {
        self.live().errors.remove(source);
    }

    /// How a held shard is.
    pub fn set_shard(&self, id: &ShardId, flow: ShardFlow, unfinished: usize) {
        let mut live = self.live();
        live.shards.insert(id.clone(), (flow, unfinished));
        self.update_gauges(&live);
    }

    /// A shard is not held any more.
    pub fn remove_shard(&self, id: &ShardId) {
        let mut live = self.live();
        live.shards.remove(id);
        live.errors.remove(&ErrorSource::Shard(id.clone()));
        live.errors.remove(&ErrorSource::Record(id.clone()));
        self.update_gauges(&live);
    }

    /// What `/flow` says.
    #[must_use]
    pub fn flow_report(&self, stream: &str) -> DispatcherFlow {
        let live = self.live();
        DispatcherFlow {
            stream: stream.to_owned(),
            shards: live.shards.iter().map(|(id, (flow, _))| (id.clone(), flow.clone())).collect(),
            delivered: self.delivered.get(),
            failed_attempts: live.failed_attempts,
            dropped: live.drop_counts.iter().map(|(reason, count)| (format!("{reason:?}"), *count)).collect(),
            unfinished: live.shards.values().map(|(_, unfinished)| *unfinished as u64).sum(),
            last_error: live.errors.values().max().map(|(_, error)| error.clone()),
        }
    }

    fn update_gauges(&self, live: &FlowState) {
        let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.shards, live.shards.len() as u64);
        set(&self.unfinished, live.shards.values().map(|(_, unfinished)| *unfinished as u64).sum());
        let behind = live.shards.values().map(|(flow, _)| flow.behind_ms).max().unwrap_or(0);
        self.behind.set(Duration::from_millis(behind).as_secs_f64());
    }

    // A holder that failed within these few lines leaves numbers behind that are still worth showing.
    fn live(&self) -> MutexGuard<'_, FlowState> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
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
        assert_eq!(metrics.flow_report("s").last_error.as_deref(), Some("refused"));
        metrics.set_error(ErrorSource::Discovery, "missing".into());
        assert_eq!(metrics.flow_report("s").last_error.as_deref(), Some("missing"), "the newest is shown");
        metrics.clear_error(&ErrorSource::Discovery);
        metrics.clear_error(&ErrorSource::Endpoint("1/a".into()));
        assert_eq!(metrics.flow_report("s").last_error, None);
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
            "realtime_dispatcher_dropped_total{reason=\"ForeignCluster\"} 2",
            "realtime_dispatcher_attempts_total{result=\"Success\"} 1",
            "realtime_dispatcher_delivered_total 0",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert_eq!(metrics.flow_report("s").dropped["ForeignCluster"], 2);
    }
}
