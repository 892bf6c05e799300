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
const MAX_ERRORS: usize = 1_000;

/// Why an event is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelValue)]
pub enum Loss {
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
pub enum Settled {
    /// One half of an absence that was undone.
    Cancelled,
    /// Something newer of its subject was told.
    Superseded,
    /// Read before.
    Duplicate,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Tried {
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
enum Reading {
    /// It is in force.
    Applied,
    /// The one before stays.
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReadingLabels {
    result: Reading,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LossLabels {
    reason: Loss,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SettledLabels {
    reason: Settled,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TriedLabels {
    result: Tried,
}

/// Where an error comes from: a success of the same source clears it, and no other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
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
pub struct Metrics {
    delivered: Counter,
    attempts: Family<TriedLabels, Counter>,
    dropped: Family<LossLabels, Counter>,
    settled: Family<SettledLabels, Counter>,
    registry_reads: Family<ReadingLabels, Counter>,
    gaps: Counter,
    unfinished: Gauge,
    shards: Gauge,
    behind: Gauge<f64, AtomicU64>,
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    shards: BTreeMap<ShardId, (ShardFlow, usize)>,
    losses: BTreeMap<Loss, u64>,
    failed_attempts: u64,
    errors: BTreeMap<Source, (u64, String)>,
    noted: u64,
}

/// What became of attempts since the process started.
#[derive(Clone, Copy, Debug)]
pub struct Attempts {
    /// Events that an endpoint took.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed: u64,
}

impl Metrics {
    /// What became of attempts since the process started.
    pub fn attempts(&self) -> Attempts {
        Attempts { delivered: self.delivered.get(), failed: self.live().failed_attempts }
    }

    /// Registers everything under its name.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("realtime_dispatcher");
        registry.register("delivered", "Events that an endpoint took", self.delivered.clone());
        registry.register("attempts", "Attempts to post", self.attempts.clone());
        registry.register("dropped", "Events lost", self.dropped.clone());
        registry.register("settled", "Events rightly not told", self.settled.clone());
        registry.register("registry_reads", "Changed app registries", self.registry_reads.clone());
        registry.register("order_gaps", "Missing events that were passed", self.gaps.clone());
        registry.register("unfinished_events", "Events read and not yet done", self.unfinished.clone());
        registry.register("shards", "Shards held", self.shards.clone());
        let help = "How far the slowest held shard is behind";
        registry.register_with_unit("behind", help, Unit::Seconds, self.behind.clone());
    }

    /// Events that an endpoint took.
    pub fn delivered(&self, events: usize) {
        self.delivered.inc_by(events as u64);
    }

    /// The app registry changed, and could be read or not.
    pub fn registry_read(&self, applied: bool) {
        let result = if applied { Reading::Applied } else { Reading::Refused };
        self.registry_reads.get_or_create(&ReadingLabels { result }).inc();
    }

    /// An attempt ended.
    pub fn tried(&self, result: Tried) {
        self.attempts.get_or_create(&TriedLabels { result }).inc();
        if result != Tried::Success {
            self.live().failed_attempts += 1;
        }
    }

    /// Events were lost.
    pub fn lost(&self, reason: Loss, events: usize) {
        self.dropped.get_or_create(&LossLabels { reason }).inc_by(events as u64);
        *self.live().losses.entry(reason).or_default() += events as u64;
    }

    /// Events are rightly not told.
    pub fn settled(&self, reason: Settled, events: usize) {
        self.settled.get_or_create(&SettledLabels { reason }).inc_by(events as u64);
    }

    /// Missing events were passed.
    pub fn gaps(&self, gaps: u64) {
        self.gaps.inc_by(gaps);
    }

    /// Something failed; the newest is shown.
    pub fn failed(&self, source: Source, error: String) {
        let mut live = self.live();
        live.noted += 1;
        let noted = live.noted;
        if live.errors.len() < MAX_ERRORS || live.errors.contains_key(&source) {
            live.errors.insert(source, (noted, error));
        }
    }

    /// The source works again.
    pub fn recovered(&self, source: &Source) {
        self.live().errors.remove(source);
    }

    /// How a held shard is.
    pub fn shard(&self, id: &ShardId, flow: ShardFlow, unfinished: usize) {
        let mut live = self.live();
        live.shards.insert(id.clone(), (flow, unfinished));
        self.gauges(&live);
    }

    /// A shard is not held any more.
    pub fn shard_left(&self, id: &ShardId) {
        let mut live = self.live();
        live.shards.remove(id);
        live.errors.remove(&Source::Shard(id.clone()));
        live.errors.remove(&Source::Record(id.clone()));
        self.gauges(&live);
    }

    /// What `/flow` says.
    #[must_use]
    pub fn flow(&self, stream: &str) -> DispatcherFlow {
        let live = self.live();
        DispatcherFlow {
            stream: stream.to_owned(),
            shards: live.shards.iter().map(|(id, (flow, _))| (id.clone(), flow.clone())).collect(),
            delivered: self.delivered.get(),
            failed_attempts: live.failed_attempts,
            dropped: live.losses.iter().map(|(reason, count)| (format!("{reason:?}"), *count)).collect(),
            unfinished: live.shards.values().map(|(_, unfinished)| *unfinished as u64).sum(),
            last_error: live.errors.values().max().map(|(_, error)| error.clone()),
        }
    }

    fn gauges(&self, live: &Live) {
        let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.shards, live.shards.len() as u64);
        set(&self.unfinished, live.shards.values().map(|(_, unfinished)| *unfinished as u64).sum());
        let behind = live.shards.values().map(|(flow, _)| flow.behind_ms).max().unwrap_or(0);
        self.behind.set(Duration::from_millis(behind).as_secs_f64());
    }

    // A holder that failed within these few lines leaves numbers behind that are still worth showing.
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_cleared_by_its_own_source_only() {
        let metrics = Metrics::default();
        metrics.failed(Source::Endpoint("1/a".into()), "refused".into());
        metrics.recovered(&Source::Discovery);
        assert_eq!(metrics.flow("s").last_error.as_deref(), Some("refused"));
        metrics.failed(Source::Discovery, "missing".into());
        assert_eq!(metrics.flow("s").last_error.as_deref(), Some("missing"), "the newest is shown");
        metrics.recovered(&Source::Discovery);
        metrics.recovered(&Source::Endpoint("1/a".into()));
        assert_eq!(metrics.flow("s").last_error, None);
    }

    #[test]
    fn names_and_reasons_are_readable() {
        let (metrics, mut registry) = (Metrics::default(), Registry::default());
        metrics.register(&mut registry);
        metrics.lost(Loss::ForeignCluster, 2);
        metrics.tried(Tried::Success);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for line in [
            "realtime_dispatcher_dropped_total{reason=\"ForeignCluster\"} 2",
            "realtime_dispatcher_attempts_total{result=\"Success\"} 1",
            "realtime_dispatcher_delivered_total 0",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert_eq!(metrics.flow("s").dropped["ForeignCluster"], 2);
    }
}
