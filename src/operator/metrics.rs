//! The operator's Prometheus metrics.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::kubernetes::lease::Leadership;

/// Gauge of leadership, read at each scrape.
#[derive(Debug)]
struct LeaderGauge(Leadership);

impl Collector for LeaderGauge {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let leads = ConstGauge::new(i64::from(self.0.may_write()));
        let help = "Whether this process is the one that writes.";
        leads.encode(encoder.encode_descriptor("realtime_operator_leads", help, None, leads.metric_type())?)
    }
}

pub fn build_registry(leadership: Leadership) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(LeaderGauge(leadership)));
    registry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gauge_is_zero_without_leadership() {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &build_registry(Leadership::not_leading())).expect("text");
        let expected = "# HELP realtime_operator_leads Whether this process is the one that writes.\n\
                        # TYPE realtime_operator_leads gauge\nrealtime_operator_leads 0\n# EOF\n";
        assert_eq!(text, expected);
    }
}
