//! The state of each endpoint for its owner: the last delivery, the current failure, the number of dropped events.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Mutex;

use crate::process::locks::lock_unpoisoned;
use crate::protocol::AppId;
use crate::protocol::admin::{EndpointReport, EndpointsReport};
use crate::protocol::registry::AppRegistry;

/// Bounds the endpoints that are monitored.
const MONITORED_ENDPOINTS_MAX: usize = 20_000;
/// Bounds the text of an answer, in characters.
const ANSWER_LENGTH_MAX: usize = 300;

/// The app of an endpoint, and its name.
type EndpointKey = (AppId, String);

/// The endpoints that this process sent to.
#[derive(Debug, Default)]
pub struct EndpointMonitor {
    /// By app and name.
    endpoints: Mutex<HashMap<EndpointKey, EndpointReport>>,
}

impl EndpointMonitor {
    /// Records an attempt that the endpoint acknowledged with this status.
    pub fn note_success(&self, app: &AppId, name: &str, status: u16, now_ms: u64) {
        self.update(app, name, |report| {
            report.last_delivered_ms = Some(now_ms);
            (report.failing_since_ms, report.last_failed_ms) = (None, None);
            report.last_answer = status.to_string();
        });
    }

    /// Records a failed attempt. The answer is for the endpoint's owner, without secrets.
    pub fn note_failure(&self, app: &AppId, name: &str, answer: &str, now_ms: u64) {
        self.update(app, name, |report| {
            report.failing_since_ms.get_or_insert(now_ms);
            report.last_failed_ms = Some(now_ms);
            report.last_answer = answer.chars().take(ANSWER_LENGTH_MAX).collect();
        });
    }

    /// Counts an event that the endpoint does not get: dropped, or kept as a dead letter.
    pub fn count_lost(&self, app: &AppId, name: &str, is_kept: bool) {
        self.update(app, name, |report| *(if is_kept { &mut report.dead_lettered } else { &mut report.dropped }) += 1);
    }

    fn update(&self, app: &AppId, name: &str, change: impl FnOnce(&mut EndpointReport)) {
        let mut endpoints = lock_unpoisoned(&self.endpoints);
        let is_full = endpoints.len() >= MONITORED_ENDPOINTS_MAX;
        match endpoints.entry((app.clone(), name.to_owned())) {
            Entry::Occupied(known) => change(known.into_mut()),
            Entry::Vacant(_) if is_full => {}
            Entry::Vacant(free) => {
                let (app, name) = free.key().clone();
                change(free.insert(EndpointReport::new(app, name)));
            }
        }
    }

    /// The report at `/endpoints`, by app and name. Entries of endpoints that no app has any more are removed.
    pub fn report(&self, process: &str, registry: &AppRegistry) -> EndpointsReport {
        let mut endpoints = lock_unpoisoned(&self.endpoints);
        endpoints.retain(|(app, name), _| {
            let app = registry.by_id(app);
            app.is_some_and(|app| app.webhooks.iter().chain(&app.disabled_webhooks).any(|it| it.name == *name))
        });
        let mut found: Vec<EndpointReport> = endpoints.values().cloned().collect();
        drop(endpoints);
        found.sort_by(|one, other| (&one.app, &one.name).cmp(&(&other.app, &other.name)));
        EndpointsReport { process: process.to_owned(), endpoints: found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::registry::App;
    use crate::protocol::registry::tests::{app, endpoint};

    #[test]
    fn an_endpoint_fails_from_its_first_failure_until_its_next_success() {
        let monitor = EndpointMonitor::default();
        let registry = AppRegistry::new([App { webhooks: vec![endpoint("a")], ..app("1", &[]) }]);
        let only = || monitor.report("p", &registry).endpoints.remove(0);
        monitor.note_success(&"1".into(), "a", 204, 10);
        assert_eq!((only().last_delivered_ms, only().last_answer.as_str()), (Some(10), "204"));
        monitor.note_failure(&"1".into(), "a", "500", 20);
        monitor.note_failure(&"1".into(), "a", &"x".repeat(1_000), 30);
        monitor.count_lost(&"1".into(), "a", false);
        monitor.count_lost(&"1".into(), "a", true);
        let failing = only();
        assert_eq!((failing.failing_since_ms, failing.last_failed_ms, failing.dropped), (Some(20), Some(30), 1));
        assert_eq!(failing.dead_lettered, 1);
        assert_eq!((failing.last_delivered_ms, failing.last_answer.len()), (Some(10), ANSWER_LENGTH_MAX));
        monitor.note_success(&"1".into(), "a", 200, 40);
        assert_eq!((only().failing_since_ms, only().last_failed_ms, only().dropped), (None, None, 1));
    }

    #[test]
    fn removed_endpoints_are_forgotten_and_their_number_is_bounded() {
        let monitor = EndpointMonitor::default();
        (0..MONITORED_ENDPOINTS_MAX + 5).for_each(|n| monitor.note_success(&n.to_string().into(), "a", 200, 1));
        let registry = AppRegistry::new([App {
            webhooks: vec![endpoint("a")],
            disabled_webhooks: vec![endpoint("off")],
            ..app("7", &[])
        }]);
        assert_eq!(monitor.report("p", &registry).endpoints.len(), 1);
        monitor.note_success(&"7".into(), "off", 200, 1);
        monitor.note_success(&"7".into(), "gone", 200, 1);
        let names: Vec<String> = monitor.report("p", &registry).endpoints.into_iter().map(|it| it.name).collect();
        assert_eq!(names, ["a", "off"]);
    }
}
