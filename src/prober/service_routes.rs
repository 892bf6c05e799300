//! Delays journeys through a route until the route can work. Pure.
//!
//! In: the routes of a plan, with whether an admitted pod is behind each. Out: the routes that must work by now. A
//! Service needs a moment from the first ready pod to the rules on every node; a failure in that moment proves nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::ServiceRoute;

/// Grace period from the first admitted pod to a working route: kubelet, endpoints and every node's rules.
const ROUTE_GRACE: Duration = Duration::from_secs(2);

/// Since when each path has pods behind it.
#[derive(Default)]
pub(super) struct RouteTracker {
    serving_since: BTreeMap<String, Instant>,
}

impl RouteTracker {
    /// Takes down which paths have pods behind them.
    pub fn update<'a>(&mut self, paths: impl IntoIterator<Item = &'a ServiceRoute>, now: Instant) {
        let since = |path: &ServiceRoute| self.serving_since.get(&path.name).copied().unwrap_or(now);
        self.serving_since =
            paths.into_iter().filter(|path| path.serving).map(|path| (path.name.clone(), since(path))).collect();
    }

    /// Whether a path must lead somewhere by now.
    pub fn is_expected_to_work(&self, path: &ServiceRoute, now: Instant) -> bool {
        self.serving_since.get(&path.name).is_some_and(|since| now.duration_since(*since) >= ROUTE_GRACE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prober::ClientAddress;

    #[test]
    fn a_path_is_expected_to_lead_somewhere_a_moment_after_the_first_pod() {
        let path = |serving| ServiceRoute {
            name: "Service eu-websocket".to_owned(),
            public: ClientAddress::plain(([127, 0, 0, 1], 1).into()),
            transports: vec![],
            serving,
            api: None,
            has_large_events: false,
        };
        let (mut paths, start) = (RouteTracker::default(), Instant::now());
        paths.update(&[path(false)], start);
        assert!(!paths.is_expected_to_work(&path(false), start + ROUTE_GRACE), "nobody is behind it");
        let first = start + ROUTE_GRACE;
        paths.update(&[path(true)], first);
        assert!(!paths.is_expected_to_work(&path(true), first), "not yet");
        paths.update(&[path(true)], first + ROUTE_GRACE);
        assert!(paths.is_expected_to_work(&path(true), first + ROUTE_GRACE), "another look does not begin anew");
        paths.update(&[path(false)], first + ROUTE_GRACE);
        assert!(!paths.is_expected_to_work(&path(true), first + ROUTE_GRACE * 2), "nobody is behind it any more");
    }
}
