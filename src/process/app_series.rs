//! Metrics with one series per app, for a bounded number of apps; the others share one series.
//!
//! In: the apps of the registry, and values per app. Out: at most so many series as the process may have. An app keeps its
//! series as long as it exists, so that an app which comes moves no other.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, RwLock};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::{MetricType, TypedMetric};

use super::locks::{read_unpoisoned, write_unpoisoned};
use super::metrics::{MetricKind, MetricLabel, TableMetric};

/// The label with the app's id.
const APP_LABEL: &str = "app";

/// The value of the label for all apps without a series of their own; no app id contains an underscore first.
pub const OTHER_APPS: &str = "_other";

/// A metric with one series per app, for a bounded number of apps.
#[derive(Clone, Debug)]
pub struct AppSeries<M> {
    series: Family<AppLabel, M>,
    listed: Arc<RwLock<BTreeSet<String>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct AppLabel(String);

impl<M: Clone + Default> AppSeries<M> {
    /// The series of an app. A series that was taken before the app's own existed is still that of the others.
    #[must_use]
    pub fn of_app(&self, app: &str) -> M {
        let is_listed = read_unpoisoned(&self.listed).contains(app);
        self.series.get_or_create_owned(&AppLabel(if is_listed { app } else { OTHER_APPS }.to_owned()))
    }

    /// Gives series to the apps that exist now, to `most` at most; the series of removed apps end.
    pub fn list_apps<'a>(&self, apps: impl Iterator<Item = &'a str>, most: usize) {
        let mut listed = write_unpoisoned(&self.listed);
        let chosen = choose_apps(&listed, &apps.collect(), most);
        for removed in listed.difference(&chosen) {
            self.series.remove(&AppLabel(removed.clone()));
        }
        // Every series exists from the start, so that a rate over it misses no first increment.
        for app in chosen.iter().map(String::as_str).chain([OTHER_APPS]) {
            self.series.get_or_create_owned(&AppLabel(app.to_owned()));
        }
        *listed = chosen;
    }
}

/// The apps with a series of their own: those that have one and still exist, then others in the order of their ids.
fn choose_apps(listed: &BTreeSet<String>, apps: &BTreeSet<&str>, most: usize) -> BTreeSet<String> {
    let kept = listed.iter().map(String::as_str).filter(|app| apps.contains(app));
    let others = apps.iter().copied().filter(|app| !listed.contains(*app));
    kept.chain(others).take(most).map(str::to_owned).collect()
}

impl<M: Clone + Default> Default for AppSeries<M> {
    fn default() -> Self {
        Self { series: Family::default(), listed: Arc::default() }
    }
}

impl EncodeLabelSet for AppLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        [(APP_LABEL, self.0.as_str())].encode(encoder)
    }
}

impl<M: EncodeMetric + TypedMetric> EncodeMetric for AppSeries<M> {
    fn encode(&self, encoder: MetricEncoder) -> fmt::Result {
        self.series.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

impl<M: TableMetric + TypedMetric + Default> TableMetric for AppSeries<M> {
    const KIND: MetricKind = M::KIND;
    fn labels() -> Vec<MetricLabel> {
        vec![MetricLabel { name: APP_LABEL, values: vec![] }]
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn an_app_keeps_its_series_while_it_exists_and_the_rest_share_one() {
        let choose = |listed: &[&str], apps: &[&str]| {
            let listed = listed.iter().map(|app| (*app).to_owned()).collect();
            choose_apps(&listed, &apps.iter().copied().collect(), 2).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(choose(&[], &["3", "1", "2"]), ["1", "2"]);
        assert_eq!(choose(&["2", "3"], &["1", "2", "3"]), ["2", "3"], "an app that comes moves no other");
        assert_eq!(choose(&["2", "3"], &["1", "3"]), ["1", "3"], "the series of a removed app is free");
    }

    #[test]
    fn the_page_has_no_more_series_than_apps_that_may_have_one() {
        let series = AppSeries::<Counter>::default();
        let mut registry = Registry::default();
        registry.register("events", "Events", series.clone());
        let page = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).expect("encoded");
            let mut lines: Vec<String> =
                text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
            lines.sort();
            lines
        };
        series.list_apps(["1", "2", "3"].into_iter(), 2);
        for app in ["1", "2", "3", "3"] {
            series.of_app(app).inc();
        }
        let both = [r#"events_total{app="1"} 1"#, r#"events_total{app="2"} 1"#, r#"events_total{app="_other"} 2"#];
        assert_eq!(page(), both);
        series.list_apps(["2", "3"].into_iter(), 2);
        series.of_app("3").inc();
        let moved = [r#"events_total{app="2"} 1"#, r#"events_total{app="3"} 1"#, r#"events_total{app="_other"} 2"#];
        assert_eq!(page(), moved);
        series.list_apps([].into_iter(), 0);
        assert_eq!(page(), [r#"events_total{app="_other"} 2"#]);
    }
}
