//! The table of metrics: each process declares its metrics once, with name, help, unit, label and remedy, and both its
//! registration and `docs/metrics.md` follow from that declaration.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Registry, Unit};

use super::metric_labels::LabelSet;
pub(crate) use super::metric_labels::label_values;
pub use super::metric_labels::{LabelValue, MetricLabel, SeriesLabels};

label_values! {
    /// The result of reading a changed app registry.
    pub enum RegistryReadResult as "result" {
        /// The new registry is in force.
        Applied = "applied",
        /// The new registry is invalid, and the previous one stays in force.
        Refused = "refused",
    }
}

/// A metric with one series per value of a label, or per combination of two or three. Every series exists from the start,
/// so that a rate over it misses no first increment, unless the metric is sparse.
#[derive(Clone, Debug)]
pub struct Labeled<L, M, const IS_SPARSE: bool = false>(Family<LabelSet<L>, M>);

/// A metric whose series exist from their first value on: for labels with many combinations, of which a process uses few.
/// The values of the labels bound their number all the same.
pub type SparseLabeled<L, M> = Labeled<L, M, true>;

impl<L: SeriesLabels, M: Clone + Default, const IS_SPARSE: bool> Labeled<L, M, IS_SPARSE> {
    /// The series of one value.
    pub fn with_label(&self, value: L) -> M {
        self.0.get_or_create_owned(&LabelSet(value))
    }
}

impl<L: SeriesLabels, M: Clone + Default, const IS_SPARSE: bool> Default for Labeled<L, M, IS_SPARSE> {
    fn default() -> Self {
        let series = Self(Family::default());
        if !IS_SPARSE {
            for value in L::all() {
                series.with_label(value);
            }
        }
        series
    }
}

impl<L: SeriesLabels, M: EncodeMetric + TypedMetric, const IS_SPARSE: bool> EncodeMetric for Labeled<L, M, IS_SPARSE> {
    fn encode(&self, encoder: MetricEncoder) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

/// A gauge whose value is read at each scrape.
#[derive(Clone)]
pub struct SampledGauge(Arc<dyn Fn() -> i64 + Send + Sync>);

impl SampledGauge {
    /// A gauge that `read` supplies.
    pub fn new(read: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
}

impl Default for SampledGauge {
    fn default() -> Self {
        Self::new(|| 0)
    }
}

impl fmt::Debug for SampledGauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SampledGauge").field(&(self.0)()).finish()
    }
}

impl EncodeMetric for SampledGauge {
    fn encode(&self, encoder: MetricEncoder) -> fmt::Result {
        ConstGauge::new((self.0)()).encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// Upper bounds of the buckets of durations, in seconds: from a call of Redis to the longest reconcile.
const DURATION_BUCKETS_SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 90.0];

/// A histogram of durations.
#[derive(Clone, Debug)]
pub struct DurationHistogram(Histogram);

impl DurationHistogram {
    /// Counts a duration in its bucket.
    pub fn observe(&self, duration: Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

impl Default for DurationHistogram {
    fn default() -> Self {
        Self(Histogram::new(DURATION_BUCKETS_SECONDS))
    }
}

impl EncodeMetric for DurationHistogram {
    fn encode(&self, encoder: MetricEncoder) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for DurationHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

/// Labels of a cluster.
const CLUSTER_LABELS: [&str; 2] = ["namespace", "cluster"];

/// The label set of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ClusterLabels {
    namespace: String,
    name: String,
}

impl EncodeLabelSet for ClusterLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        let [namespace, cluster] = CLUSTER_LABELS;
        [(namespace, self.namespace.as_str()), (cluster, self.name.as_str())].encode(encoder)
    }
}

/// A gauge with one series per cluster, from its first value until the cluster is gone.
#[derive(Clone, Debug, Default)]
pub struct ClusterGauge(Family<ClusterLabels, Gauge<f64, AtomicU64>>);

impl ClusterGauge {
    /// Sets the value of a cluster.
    pub fn set(&self, namespace: &str, name: &str, value: f64) {
        let labels = ClusterLabels { namespace: namespace.to_owned(), name: name.to_owned() };
        self.0.get_or_create_owned(&labels).set(value);
    }

    /// Removes the series of a cluster that is gone.
    pub fn remove(&self, namespace: &str, name: &str) {
        self.0.remove(&ClusterLabels { namespace: namespace.to_owned(), name: name.to_owned() });
    }
}

impl EncodeMetric for ClusterGauge {
    fn encode(&self, encoder: MetricEncoder) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

impl TableMetric for ClusterGauge {
    const KIND: MetricKind = MetricKind::Gauge;

    fn labels() -> Vec<MetricLabel> {
        CLUSTER_LABELS.into_iter().map(|name| MetricLabel { name, values: vec![] }).collect()
    }
}

impl TableMetric for DurationHistogram {
    const KIND: MetricKind = MetricKind::Histogram;
}

/// The type of a metric: counters only grow and end in `_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// A number that only grows while the process lives.
    Counter,
    /// A number that rises and falls.
    Gauge,
    /// Observations, counted in buckets.
    Histogram,
}

impl MetricKind {
    /// The type in the exposition.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A Rust type that is one metric of the table.
pub trait TableMetric: EncodeMetric + Clone + fmt::Debug + Send + Sync + 'static {
    /// The type of the metric.
    const KIND: MetricKind;

    /// Whether a series exists only from its first value on, although its labels are known.
    const IS_SPARSE: bool = false;

    /// The labels of the metric.
    #[must_use]
    fn labels() -> Vec<MetricLabel> {
        vec![]
    }
}

impl TableMetric for Counter {
    const KIND: MetricKind = MetricKind::Counter;
}

impl TableMetric for Gauge {
    const KIND: MetricKind = MetricKind::Gauge;
}

impl TableMetric for Gauge<f64, AtomicU64> {
    const KIND: MetricKind = MetricKind::Gauge;
}

impl TableMetric for SampledGauge {
    const KIND: MetricKind = MetricKind::Gauge;
}

impl<L: SeriesLabels, M: TableMetric + TypedMetric, const IS_SPARSE: bool> TableMetric for Labeled<L, M, IS_SPARSE> {
    const KIND: MetricKind = M::KIND;
    const IS_SPARSE: bool = IS_SPARSE;

    fn labels() -> Vec<MetricLabel> {
        L::labels()
    }
}

/// One metric of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricRow {
    /// The process that exports the metric.
    pub process: &'static str,
    /// The part of the name between the process and `_total`, with the unit.
    pub stem: &'static str,
    /// The type of the metric.
    pub kind: MetricKind,
    /// The labels of the metric.
    pub labels: Vec<MetricLabel>,
    /// Whether a series exists only from its first value on.
    pub is_sparse: bool,
    /// The meaning of the metric: the help text of the exposition.
    pub help: &'static str,
    /// The remedy when the metric grows.
    pub remedy: &'static str,
}

/// Units, each with its suffix in names.
const UNITS: [(&str, Unit); 2] = [("_seconds", Unit::Seconds), ("_bytes", Unit::Bytes)];

impl MetricRow {
    /// The row of a metric of type `M`.
    #[must_use]
    pub fn of<M: TableMetric>(
        process: &'static str,
        stem: &'static str,
        help: &'static str,
        remedy: &'static str,
    ) -> Self {
        Self { process, stem, kind: M::KIND, labels: M::labels(), is_sparse: M::IS_SPARSE, help, remedy }
    }

    /// The name of the metric's series.
    #[must_use]
    pub fn name(&self) -> String {
        let total = if self.kind == MetricKind::Counter { "_total" } else { "" };
        format!("{}{total}", self.family())
    }

    /// The name of the metric's family, to which a counter's series add `_total`.
    #[must_use]
    pub fn family(&self) -> String {
        format!("realtime_{}_{}", self.process, self.stem)
    }

    /// The unit of the metric; empty for a plain number.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        UNITS.iter().find(|(suffix, _)| self.stem.ends_with(suffix)).map_or("", |(suffix, _)| &suffix[1..])
    }

    /// Registers the metric under its name.
    pub fn register<M: TableMetric>(&self, registry: &mut Registry, metric: M) {
        // The library writes the full stop of the help and the suffix of the unit itself.
        let (family, help) = (self.family(), self.help.trim_end_matches('.'));
        let unit = UNITS.into_iter().find_map(|(suffix, unit)| Some((family.strip_suffix(suffix)?, unit)));
        match unit {
            Some((name, unit)) => registry.register_with_unit(name, help, unit, metric),
            None => registry.register(family.clone(), help, metric),
        }
    }
}

/// Declares the metrics of a process: a struct with one public field per metric, whose name is the field's name, whose
/// help is the field's comment, and whose remedy follows the type.
macro_rules! metric_table {
    (
        $(#[doc = $about:literal])+
        $visibility:vis struct $name:ident of $process:literal {
            $($(#[doc = $help:literal])+ $metric:ident: $kind:ty => $remedy:literal,)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Default)]
        $visibility struct $name {
            $($(#[doc = $help])+ pub $metric: $kind,)+
        }

        impl $name {
            /// Lists every metric, in the order of the exposition.
            $visibility fn metric_rows() -> Vec<$crate::process::metrics::MetricRow> {
                vec![$($crate::process::metrics::MetricRow::of::<$kind>(
                    $process,
                    stringify!($metric),
                    concat!($($help),+).trim_ascii(),
                    $remedy,
                )),+]
            }

            /// Registers every metric under its name.
            $visibility fn register(&self, registry: &mut prometheus_client::registry::Registry) {
                let mut rows = Self::metric_rows().into_iter();
                $(if let Some(row) = rows.next() {
                    row.register(registry, self.$metric.clone());
                })+
            }
        }
    };
}
pub(crate) use metric_table;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::metrics_page::render_metrics_page;

    label_values! {
        /// A side.
        enum TestSide as "side" {
            /// The left one.
            Left = "left",
        }
    }

    metric_table! {
        /// Metrics of a test.
        struct TestMetrics of "test" {
            /// Registries that were read again.
            reads: Labeled<RegistryReadResult, Counter> => "Read the log.",
            /// Time since the last read, in seconds.
            age_seconds: Gauge<f64, AtomicU64> => "Nothing.",
            /// Reads by result and side.
            pairs: Labeled<(RegistryReadResult, TestSide), Counter> => "Nothing.",
            /// Reads of which few combinations occur.
            rare_reads: SparseLabeled<(RegistryReadResult, TestSide), Counter> => "Nothing.",
            /// Time of one read, in seconds.
            read_duration_seconds: DurationHistogram => "Nothing.",
            /// Age of a cluster, in seconds.
            cluster_age_seconds: ClusterGauge => "Nothing.",
            /// Whether the store answers.
            store_up: SampledGauge => "Nothing.",
        }
    }

    #[test]
    fn a_declaration_is_the_exposition() {
        let metrics = TestMetrics { store_up: SampledGauge::new(|| 1), ..TestMetrics::default() };
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        metrics.reads.with_label(RegistryReadResult::Refused).inc();
        metrics.rare_reads.with_label((RegistryReadResult::Refused, TestSide::Left)).inc();
        metrics.age_seconds.set(0.5);
        metrics.read_duration_seconds.observe(Duration::from_millis(40));
        metrics.cluster_age_seconds.set("a", "eu", 2.0);
        metrics.cluster_age_seconds.set("a", "us", 2.0);
        metrics.cluster_age_seconds.remove("a", "us");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for line in [
            "# HELP realtime_test_reads Registries that were read again.\n# TYPE realtime_test_reads counter",
            "realtime_test_reads_total{result=\"applied\"} 0",
            "realtime_test_reads_total{result=\"refused\"} 1",
            "# UNIT realtime_test_age_seconds seconds\nrealtime_test_age_seconds 0.5",
            "realtime_test_pairs_total{result=\"applied\",side=\"left\"} 0",
            "realtime_test_rare_reads_total{result=\"refused\",side=\"left\"} 1",
            "# TYPE realtime_test_read_duration_seconds histogram",
            "realtime_test_read_duration_seconds_bucket{le=\"0.01\"} 0",
            "realtime_test_read_duration_seconds_bucket{le=\"0.05\"} 1",
            "realtime_test_cluster_age_seconds{namespace=\"a\",cluster=\"eu\"} 2",
            "# TYPE realtime_test_store_up gauge\nrealtime_test_store_up 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!text.contains("rare_reads_total{result=\"applied\""), "a combination that did not occur: {text}");
        assert!(!text.contains("cluster=\"us\""), "the series of a removed cluster: {text}");
    }

    #[test]
    fn a_declaration_is_a_row_of_the_page() {
        let page = render_metrics_page(&TestMetrics::metric_rows());
        for line in [
            "\n## Metrics of the test\n",
            "| `realtime_test_reads_total` | counter |  | `result` | Registries that were read again. | Read the log. |",
            "| `realtime_test_age_seconds` | gauge | seconds |  | Time since the last read, in seconds. | Nothing. |",
            "| `realtime_test_cluster_age_seconds` | gauge | seconds | `namespace`, `cluster` | Age of a cluster, in seconds. | Nothing. |",
            "\nValues of `result` in `realtime_test_reads_total` and `realtime_test_pairs_total` and `realtime_test_rare_reads_total`:\n",
            "| `applied` | The new registry is in force. |",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
    }
}
