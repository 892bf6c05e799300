//! The metrics that an operator exports.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::kinesis::KinesisCallMetrics;
use crate::kubernetes::call_metrics::ApiCallMetrics;
use crate::kubernetes::lease::Leadership;
use crate::prober::JourneyMetrics;
use crate::process::metrics::{
    ClusterGauge, DurationHistogram, Labeled, MetricRow, SampledGauge, label_values, metric_table,
};

label_values! {
    /// A controller of the operator.
    pub enum ControllerName as "controller" {
        /// Creates or adopts the stream.
        Stream = "stream",
        /// Applies the children of the cluster.
        Workload = "workload",
        /// Writes the app registry.
        Apps = "apps",
        /// Runs journeys, admits pods and sets Ready.
        Gate = "gate",
        /// Moves transports between clusters.
        Migration = "migration",
    }
}

label_values! {
    /// An answer of a zone's server about the host of a move.
    pub enum ZoneAnswer as "result" {
        /// The record of the target.
        Target = "target",
        /// Another record, that of the source.
        Other = "other",
        /// An answer without a record.
        None = "none",
        /// No answer, an error, or a server that is not in charge.
        Failed = "failed",
    }
}

label_values! {
    /// The result of a reconcile, by class.
    pub enum ReconcileResult as "result" {
        /// It did what it had to do.
        Success = "success",
        /// The object had changed since it was read.
        Conflict = "conflict",
        /// A user has to fix the cluster.
        Terminal = "terminal",
        /// A permission is missing.
        Denied = "denied",
        /// An error that may resolve by itself.
        Transient = "transient",
        /// It did not end in time.
        TimedOut = "timed_out",
        /// The operator's own code failed.
        Panicked = "panicked",
    }
}

metric_table! {
    /// The metrics of an operator beside those of its journeys.
    pub struct OperatorSeries of "operator" {
        /// Leadership leases that this replica holds: 1 on the replica that writes, 0 on the others.
        held_leases: SampledGauge => "Over all replicas the sum is 1; at 0 for longer than a lease, read the log of each replica.",
        /// Reconciles that ended, by controller and result.
        reconciles: Labeled<(ControllerName, ReconcileResult), Counter> =>
            "If results other than `success` grow, read the conditions of the clusters and the log of the leader.",
        /// Time from the start to the end of a reconcile, in seconds.
        reconcile_duration_seconds: Labeled<ControllerName, DurationHistogram> =>
            "Look for slow calls to the API server or to AWS in the log of the leader.",
        /// Reconciles of each controller that are under way.
        running_reconciles: Labeled<ControllerName, Gauge> =>
            "At 8 for long, the controller is at its limit: look at the duration of its reconciles.",
        /// Requests of watches and journeys that wait for a reconcile of each controller.
        queued_reconciles: Labeled<ControllerName, Gauge> => "Look at the duration of the reconciles.",
        /// Age of the evidence on which a cluster is Ready, by cluster, in seconds.
        evidence_age_seconds: ClusterGauge =>
            "Beyond a minute or three intervals the cluster is not Ready: read its condition, it names the missing evidence.",
        /// Time in force between two rounds of journeys through a cluster, in seconds.
        round_interval_seconds: ClusterGauge =>
            "Above the interval in the spec, the journeys of all clusters exceed the limit of this operator; below it, the cluster is being proven.",
        /// Desired weights of the records that lead to clusters of moves, by cluster; 0 without a record.
        migration_weights: ClusterGauge =>
            "If it fell to 0, read `kubectl describe realtimemigration`: its Events name the cluster, the transport and the hop.",
        /// Desired shares of lookups that lead to clusters of moves, by cluster, from 0 to 1.
        migration_shares: ClusterGauge =>
            "Compare it with `realtime_operator_migration_observed_shares`: they differ while resolvers still have the former answer.",
        /// Shares of new connections that clusters of moves get, by cluster, from 0 to 1; absent while they are not known.
        migration_observed_shares: ClusterGauge =>
            "Compare it with `realtime_operator_migration_shares`; where it is absent, publish snapshots of the source with its counts.",
        /// Age of the snapshot of a move's source, by cluster of the move, in seconds.
        migration_snapshot_age_seconds: ClusterGauge =>
            "Beyond 360 s the source counts as passing, whatever happens there; after a week no step begins: publish a new snapshot.",
        /// Age of the snapshot of a move's target as its source has it, by cluster of the source, in seconds; absent until one was read.
        target_snapshot_age_seconds: ClusterGauge =>
            "Beyond 360 s the operator of the target, or the copy of its snapshots, has stopped: read the condition `TargetReporting` of the cluster.",
        /// Tracks of moves from a cluster that have a record, by the latest snapshot of their target; absent until one was read.
        target_open_tracks: ClusterGauge =>
            "Above 0 with an old snapshot, nobody takes a target that fails out of the answers: the condition `TargetReporting` has the change by hand.",
        /// Clusters that watch the target of a move and know no snapshot of it that can be judged: 1, otherwise 0.
        unread_targets: ClusterGauge =>
            "At 1 nothing would report here that the target's operator has stopped: the condition `TargetReporting` names the obstacle.",
        /// Answers of the zones' servers about the hosts of moves.
        zone_answers: Labeled<ZoneAnswer, Counter> =>
            "If `failed` grows, the operator's path to port 53 of the zone's servers is broken: weights that were written are not seen.",
    }
}

/// All metrics of an operator.
#[derive(Debug, Default)]
pub struct OperatorMetrics {
    /// The operator's own series.
    pub series: OperatorSeries,
    /// The series of the journeys.
    pub journeys: Arc<JourneyMetrics>,
    /// The series of the calls to the API server.
    pub api_calls: Arc<ApiCallMetrics>,
    /// The series of the calls to Kinesis.
    pub kinesis_calls: Arc<KinesisCallMetrics>,
}

impl OperatorMetrics {
    /// The metrics of the replica with this leadership.
    #[must_use]
    pub fn new(leadership: Leadership) -> Self {
        let held_leases = SampledGauge::new(move || i64::from(leadership.may_write()));
        Self { series: OperatorSeries { held_leases, ..OperatorSeries::default() }, ..Self::default() }
    }

    /// Registers every metric under its name.
    pub fn register(&self, registry: &mut Registry) {
        self.series.register(registry);
        self.journeys.register(registry);
        self.api_calls.register(registry);
        self.kinesis_calls.register(registry);
    }

    /// Lists every metric, in the order of the exposition.
    #[must_use]
    pub fn metric_rows() -> Vec<MetricRow> {
        [
            OperatorSeries::metric_rows(),
            JourneyMetrics::metric_rows(),
            ApiCallMetrics::metric_rows(),
            KinesisCallMetrics::metric_rows(),
        ]
        .concat()
    }
}
