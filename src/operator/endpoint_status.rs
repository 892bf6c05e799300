//! The state of an app's webhook endpoints, merged from the reports of a cluster's dispatchers. Pure.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::api::app::{AppEndpointState, AppEndpointStatus, WebhookSpec};
use crate::api::{EnabledState, RealtimeApp};
use crate::prober::EndpointReports;
use crate::protocol::admin::EndpointReport;

/// Time after a failure in which a delivery by another dispatcher does not end it: each dispatcher that has events for a
/// failing endpoint tries it every few seconds.
const FAILURE_MEMORY_MS: u64 = 60_000;
/// Least growth of the time of the last delivery, in s, that is written without another change: otherwise the status of every
/// app with traffic would be written all the time.
const DELIVERY_STEP_SECONDS: i64 = 600;

/// The reports of all dispatchers of a cluster, by app id and name of the endpoint.
#[derive(Debug, Default)]
pub struct ReportIndex<'a>(HashMap<(&'a str, &'a str), Vec<&'a EndpointReport>>);

impl<'a> ReportIndex<'a> {
    /// Indexes the reports once for all apps: dispatchers report thousands of endpoints.
    #[must_use]
    pub fn new(reports: &'a EndpointReports) -> Self {
        let mut found: HashMap<_, Vec<_>> = HashMap::new();
        for report in reports.values().flatten() {
            found.entry((report.app.as_str(), report.name.as_str())).or_default().push(report);
        }
        Self(found)
    }
}

/// Merges the reports of all dispatchers of a cluster on the endpoints of an app, in the order of its manifest. Facts that
/// dispatchers lost by a restart stay as they were written before.
#[must_use]
pub fn merge_endpoints(app: &RealtimeApp, cluster: &str, reports: &ReportIndex<'_>) -> Vec<AppEndpointStatus> {
    let known = app.status.iter().flat_map(|status| &status.endpoints).filter(|entry| entry.cluster == cluster);
    let known: BTreeMap<&str, &AppEndpointStatus> = known.map(|entry| (entry.name.as_str(), entry)).collect();
    let merge = |webhook: &WebhookSpec| {
        let found = reports.0.get(&(app.spec.app_id.as_str(), webhook.name.as_str()));
        let before = known.get(webhook.name.as_str()).copied();
        let merged = merge_endpoint(webhook, cluster, before, found.map(Vec::as_slice).unwrap_or_default());
        match before {
            Some(before) if !is_worth_writing(before, &merged) => before.clone(),
            _ => merged,
        }
    };
    app.spec.webhooks.iter().map(merge).collect()
}

fn merge_endpoint(
    webhook: &WebhookSpec,
    cluster: &str,
    before: Option<&AppEndpointStatus>,
    found: &[&EndpointReport],
) -> AppEndpointStatus {
    let delivered_ms = found.iter().filter_map(|report| report.last_delivered_ms).max();
    let is_failing = |report: &&EndpointReport| {
        let is_recent = |failed: u64| failed.saturating_add(FAILURE_MEMORY_MS) >= delivered_ms.unwrap_or(0);
        report.failing_since_ms.is_some() && report.last_failed_ms.is_some_and(is_recent)
    };
    let failing: Vec<&EndpointReport> = found.iter().copied().filter(is_failing).collect();
    let is_known = delivered_ms.is_some() || !failing.is_empty();
    let latest = match failing.iter().max_by_key(|report| report.last_failed_ms) {
        Some(latest) => Some(latest.last_answer.clone()),
        None => found.iter().max_by_key(|report| report.last_delivered_ms).map(|report| report.last_answer.clone()),
    };
    let since = failing.iter().filter_map(|report| report.failing_since_ms).min().and_then(to_time);
    // The dispatchers count from their starts; without a report the last known number stays.
    let count = |of_report: fn(&EndpointReport) -> u64, known: fn(&AppEndpointStatus) -> i64| {
        if found.is_empty() {
            before.map_or(0, known)
        } else {
            i64::try_from(found.iter().map(|report| of_report(report)).sum::<u64>()).unwrap_or(i64::MAX)
        }
    };
    let disabled = webhook.state == EnabledState::Disabled;
    let failing_since = if is_known { since } else { before.and_then(|it| it.failing_since.clone()) };
    let last_delivered_at =
        delivered_ms.and_then(to_time).into_iter().chain(before.and_then(|it| it.last_delivered_at.clone())).max();
    AppEndpointStatus {
        name: webhook.name.clone(),
        cluster: cluster.to_owned(),
        state: match (disabled, failing_since.is_some(), &last_delivered_at) {
            (true, ..) => AppEndpointState::Disabled,
            (false, true, _) => AppEndpointState::Failing,
            (false, false, Some(_)) => AppEndpointState::Delivering,
            (false, false, None) => AppEndpointState::Idle,
        },
        failing_since: failing_since.filter(|_| !disabled),
        last_answer: latest
            .filter(|answer| !answer.is_empty())
            .or_else(|| before.map(|it| it.last_answer.clone()))
            .unwrap_or_default(),
        dropped: count(|report| report.dropped, |it| it.dropped),
        dead_lettered: count(|report| report.dead_lettered, |it| it.dead_lettered),
        last_delivered_at,
    }
}

/// Whether a change is written: at once for a change of state or answer, rarely for values that grow with every event.
fn is_worth_writing(before: &AppEndpointStatus, now: &AppEndpointStatus) -> bool {
    let second = |time: &Option<Time>| time.as_ref().map_or(0, |time| time.0.as_second());
    let has_news = before.state != now.state
        || before.failing_since != now.failing_since
        || before.last_answer != now.last_answer
        || is_step(before.dropped, now.dropped)
        || is_step(before.dead_lettered, now.dead_lettered);
    has_news || second(&now.last_delivered_at) - second(&before.last_delivered_at) >= DELIVERY_STEP_SECONDS
}

/// Whether a count of lost events began anew or doubled.
fn is_step(before: i64, now: i64) -> bool {
    now < before || now > before.saturating_mul(2)
}

/// A time in whole seconds, as the API server writes it.
fn to_time(ms: u64) -> Option<Time> {
    Timestamp::from_second(i64::try_from(ms / 1_000).ok()?).ok().map(Time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::app::RealtimeAppStatus;

    const NOW: u64 = 1_800_000_000_000;

    fn app(state: &str, known: Option<AppEndpointStatus>) -> RealtimeApp {
        let text = format!(
            "apiVersion: realtime-operator.dev/v1alpha1\nkind: RealtimeApp\nmetadata: {{ name: shop }}\nspec:\n  appID: '1'\n  webhooks: [{{ name: a, url: 'https://a.test/', state: {state} }}]\n"
        );
        let mut app: RealtimeApp = serde_yaml::from_str(&text).expect("an app");
        app.status = known.map(|known| RealtimeAppStatus {
            observed_generation: 1,
            conditions: vec![],
            clusters: vec![],
            endpoints: vec![known],
        });
        app
    }

    fn report(delivered: Option<u64>, failing: Option<(u64, u64)>, answer: &str, dropped: u64) -> EndpointReport {
        EndpointReport {
            app: "1".into(),
            name: "a".into(),
            last_delivered_ms: delivered,
            failing_since_ms: failing.map(|(since, _)| since),
            last_failed_ms: failing.map(|(_, last)| last),
            last_answer: answer.to_owned(),
            dropped,
            dead_lettered: 0,
        }
    }

    fn merge(app: &RealtimeApp, reports: &[EndpointReport]) -> AppEndpointStatus {
        let other = EndpointReport { app: "2".into(), ..report(Some(1), None, "another app", 9) };
        let pods = (0..).zip(reports).map(|(n, report)| (format!("pod-{n}"), vec![other.clone(), report.clone()]));
        let reports: EndpointReports = pods.collect();
        let mut merged = merge_endpoints(app, "eu", &ReportIndex::new(&reports));
        assert_eq!(merged.len(), 1);
        merged.remove(0)
    }

    fn line(status: &AppEndpointStatus) -> String {
        let ago = |time: &Option<Time>| {
            time.as_ref().map_or("-".to_owned(), |time| (NOW.cast_signed() / 1_000 - time.0.as_second()).to_string())
        };
        let (delivered, since) = (ago(&status.last_delivered_at), ago(&status.failing_since));
        format!(
            "{:?} delivered {delivered} failing {since} {:?} dropped {}",
            status.state, status.last_answer, status.dropped
        )
    }

    #[test]
    fn reports_of_all_dispatchers_are_merged() {
        let ago = |seconds: u64| NOW - seconds * 1_000;
        let failing = |since: u64, last: u64| Some((ago(since), ago(last)));
        for (name, reports, expected) in [
            ("none", vec![], "Idle delivered - failing - \"\" dropped 0"),
            (
                "one that works",
                vec![report(Some(ago(5)), None, "200", 0)],
                "Delivering delivered 5 failing - \"200\" dropped 0",
            ),
            (
                "two that work: the later",
                vec![report(Some(ago(9)), None, "204", 1), report(Some(ago(5)), None, "200", 2)],
                "Delivering delivered 5 failing - \"200\" dropped 3",
            ),
            (
                "one that never worked",
                vec![report(None, failing(300, 2), "connection refused", 4)],
                "Failing delivered - failing 300 \"connection refused\" dropped 4",
            ),
            (
                "both fail: since the first, with the latest answer",
                vec![report(Some(ago(900)), failing(300, 9), "500", 0), report(None, failing(200, 2), "503", 0)],
                "Failing delivered 900 failing 300 \"503\" dropped 0",
            ),
            (
                "one fails now although the other delivers",
                vec![report(Some(ago(1)), None, "200", 0), report(None, failing(200, 6), "500", 0)],
                "Failing delivered 1 failing 200 \"500\" dropped 0",
            ),
            (
                "one failed long ago and had no event since",
                vec![report(Some(ago(1)), None, "200", 0), report(None, failing(900, 300), "500", 7)],
                "Delivering delivered 1 failing - \"200\" dropped 7",
            ),
        ] {
            assert_eq!(line(&merge(&app("Enabled", None), &reports)), expected, "{name}");
        }
        let disabled = merge(&app("Disabled", None), &[report(Some(ago(50)), failing(9, 9), "500", 2)]);
        assert_eq!(line(&disabled), "Disabled delivered 50 failing - \"500\" dropped 2");
    }

    #[test]
    fn facts_outlive_the_dispatcher_that_knew_them_and_only_news_is_written() {
        let ago = |seconds: u64| NOW - seconds * 1_000;
        let known = merge(&app("Enabled", None), &[report(Some(ago(900)), Some((ago(300), ago(200))), "500", 4)]);
        let shown = "Failing delivered 900 failing 300 \"500\" dropped 4";
        assert_eq!(line(&known), shown);
        let app = app("Enabled", Some(known));
        for (name, reports, expected) in [
            ("no dispatcher answers", vec![], shown),
            ("a dispatcher that restarted", vec![report(None, None, "", 4)], shown),
            ("some more are dropped", vec![report(Some(ago(900)), Some((ago(300), ago(5))), "500", 8)], shown),
            (
                "many more are dropped",
                vec![report(Some(ago(900)), Some((ago(300), ago(5))), "500", 9)],
                "Failing delivered 900 failing 300 \"500\" dropped 9",
            ),
            (
                "it works again",
                vec![report(Some(ago(1)), None, "200", 4)],
                "Delivering delivered 1 failing - \"200\" dropped 4",
            ),
        ] {
            assert_eq!(line(&merge(&app, &reports)), expected, "{name}");
        }
        let works = merge(&super::tests::app("Enabled", None), &[report(Some(ago(900)), None, "200", 0)]);
        let app = super::tests::app("Enabled", Some(works));
        let later = |seconds| line(&merge(&app, &[report(Some(ago(seconds)), None, "200", 0)]));
        assert_eq!(later(301), "Delivering delivered 900 failing - \"200\" dropped 0", "within ten minutes");
        assert_eq!(later(300), "Delivering delivered 300 failing - \"200\" dropped 0");
    }

    #[test]
    fn dead_letters_are_counted_beside_drops() {
        let kept = |dead_lettered| EndpointReport { dead_lettered, ..report(Some(NOW), None, "200", 1) };
        let merged = merge(&app("Enabled", None), &[kept(2), kept(3)]);
        assert_eq!((merged.dropped, merged.dead_lettered), (2, 5));
        let app = app("Enabled", Some(merged));
        assert_eq!(merge(&app, &[]).dead_lettered, 5, "no dispatcher answers");
        assert_eq!(merge(&app, &[kept(2), kept(8)]).dead_lettered, 5, "not doubled yet");
        assert_eq!(merge(&app, &[kept(3), kept(8)]).dead_lettered, 11);
    }

    #[test]
    fn entries_of_another_cluster_and_of_removed_endpoints_are_left_out() {
        let of_other = AppEndpointStatus { cluster: "us".to_owned(), ..merge(&app("Enabled", None), &[]) };
        let app = app("Enabled", Some(AppEndpointStatus { dropped: 7, ..of_other }));
        let merged = merge(&app, &[]);
        assert_eq!((merged.cluster.as_str(), merged.dropped), ("eu", 0));
    }
}
