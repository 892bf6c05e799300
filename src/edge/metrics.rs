//! The metrics of an edge. Labels take values from fixed lists only, so that no client can make series.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::edge::drop_reason::DropReason;
use crate::protocol::Transport;

/// The label of one transport.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransportLabel {
    transport: &'static str,
}

/// The label of a reason from a fixed list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// The label of a registry read's result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// All counters and gauges of an edge.
#[derive(Debug, Default)]
pub struct EdgeMetrics {
    connections: Family<TransportLabel, Gauge>,
    opened: Family<TransportLabel, Counter>,
    recorder_dropped: Family<ReasonLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    registry_reads: Family<ResultLabel, Counter>,
    relay_refused: Family<ReasonLabel, Counter>,
    relay_failed: Family<ReasonLabel, Counter>,
    pending_outcomes: Family<ResultLabel, Counter>,
    /// Subscriptions that wait for the bus.
    pub pending_subscriptions: Gauge,
    /// Requests that another process answered, because it owns their session.
    pub relayed: Counter,
    /// Duplicate sends that were dropped.
    pub sends_repeated: Counter,
    /// Sessions closed because they read too slowly.
    pub slow_consumers: Counter,
    /// Fallback responses cut while open; frames in flight may be lost.
    pub receivers_cut: Counter,
    /// Frames queued for sessions.
    pub frames: Counter,
    /// The client events that were accepted.
    pub client_events: Counter,
    /// Events published over the HTTP API.
    pub published: Counter,
    /// Failed calls to the bus.
    pub bus_errors: Counter,
    /// Events queued by the recorder.
    pub recorder_accepted: Counter,
    /// Events acknowledged by the stream.
    pub recorder_acknowledged: Counter,
    /// Records that the stream refused and that are retried.
    pub records_refused: Counter,
    /// Events queued for the stream; sampled on each scrape.
    pub recorder_queued: Gauge,
    /// Frames of other processes that were dropped because this one was too slow; updated every second.
    pub bus_lost: Counter,
    /// Whether the other processes are reachable; sampled on each scrape.
    pub bus_up: Gauge,
    /// Transitions that the bus emitted on its own.
    pub remote_transitions: Counter,
}

impl EdgeMetrics {
    /// Returns the gauge of a transport's open sessions.
    pub fn connections(&self, transport: Transport) -> Gauge {
        self.connections.get_or_create(&TransportLabel { transport: transport.name() }).clone()
    }

    /// Returns the counter of a transport's sessions since the start.
    pub fn opened(&self, transport: Transport) -> Counter {
        self.opened.get_or_create(&TransportLabel { transport: transport.name() }).clone()
    }

    /// Returns the counter of dropped events.
    pub fn recorder_dropped(&self, reason: DropReason) -> Counter {
        self.recorder_dropped.get_or_create(&ReasonLabel { reason: reason.name() }).clone()
    }

    /// The refusals of clients by reason: a word from the source, never from a client.
    pub fn refused(&self, reason: &'static str) -> Counter {
        self.refused.get_or_create(&ReasonLabel { reason }).clone()
    }

    /// Returns the counter of registry reads.
    pub fn registry_read(&self, applied: bool) {
        let result = if applied { "applied" } else { "refused" };
        self.registry_reads.get_or_create(&ResultLabel { result }).inc();
    }

    /// The relayed requests that were refused, by reason.
    pub fn relay_refused(&self, reason: &'static str) -> Counter {
        self.relay_refused.get_or_create(&ReasonLabel { reason }).clone()
    }

    /// Returns the counter of requests that the owning process did not answer.
    pub fn relay_failed(&self, reason: &'static str) -> Counter {
        self.relay_failed.get_or_create(&ReasonLabel { reason }).clone()
    }

    /// Returns the counter of pending subscriptions by outcome.
    pub fn pending_outcomes(&self, result: &'static str) -> Counter {
        self.pending_outcomes.get_or_create(&ResultLabel { result }).clone()
    }

    /// Registers every metric of the edge.
    pub fn register(&self, registry: &mut Registry) {
        let edge = registry.sub_registry_with_prefix("realtime_edge");
        edge.register("connections", "Open sessions", self.connections.clone());
        edge.register("connections_opened", "Sessions since the start", self.opened.clone());
        edge.register("refused", "What clients were refused", self.refused.clone());
        edge.register("registry_reads", "Changed app registries", self.registry_reads.clone());
        edge.register("relayed", "Requests that another process answered", self.relayed.clone());
        edge.register("relay_failed", "Requests that another process did not answer", self.relay_failed.clone());
        edge.register("relay_refused", "Requests of other processes refused", self.relay_refused.clone());
        edge.register("sends_repeated", "Sends that came again and were dropped", self.sends_repeated.clone());
        edge.register("slow_consumers", "Sessions closed because they read too slowly", self.slow_consumers.clone());
        edge.register("receivers_cut", "Fallback answers cut while open", self.receivers_cut.clone());
        edge.register("frames", "Frames put into the queues of sessions", self.frames.clone());
        edge.register("client_events", "Client events accepted", self.client_events.clone());
        edge.register("published", "Events published over the HTTP API", self.published.clone());
        edge.register("bus_errors", "Calls to the bus that failed", self.bus_errors.clone());
        edge.register("bus_up", "Whether the other edges can be reached", self.bus_up.clone());
        edge.register(
            "subscriptions_waiting",
            "Subscriptions that wait for the bus",
            self.pending_subscriptions.clone(),
        );
        edge.register("subscriptions_waited", "Subscriptions that waited for the bus", self.pending_outcomes.clone());
        edge.register("bus_decided", "Changes that nobody asked for: a process died", self.remote_transitions.clone());
        edge.register("bus_lost", "Frames of other processes lost here", self.bus_lost.clone());
        edge.register("recorder_accepted", "Events handed to the recorder", self.recorder_accepted.clone());
        edge.register("recorder_acknowledged", "Events that the stream took", self.recorder_acknowledged.clone());
        edge.register("recorder_dropped", "Events given up", self.recorder_dropped.clone());
        edge.register("recorder_records_refused", "Records refused and sent again", self.records_refused.clone());
        edge.register("recorder_queued", "Events that wait for the stream", self.recorder_queued.clone());
    }
}
