//! When journeys through a path may begin. Pure.
//!
//! In: the paths of a plan, with whether a pod that was let in stands behind each. Out: those that must lead there by
//! now. A Service needs a moment from the first ready pod to the rules on every node, and a failure in that moment would
//! say nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Path;

/// How long a path may take to lead to the first pod that was let in: kubelet, endpoints and every node's rules.
const ROUTED: Duration = Duration::from_secs(2);

/// Since when each path has pods behind it.
#[derive(Default)]
pub(super) struct Paths {
    since: BTreeMap<String, Instant>,
}

impl Paths {
    /// Takes down which paths have pods behind them.
    pub fn note(&mut self, paths: &[Path], now: Instant) {
        let since = |path: &Path| self.since.get(&path.name).copied().unwrap_or(now);
        self.since = paths.iter().filter(|path| path.serving).map(|path| (path.name.clone(), since(path))).collect();
    }

    /// Whether a path must lead somewhere by now.
    pub fn leads(&self, path: &Path, now: Instant) -> bool {
        self.since.get(&path.name).is_some_and(|since| now.duration_since(*since) >= ROUTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_expected_to_lead_somewhere_a_moment_after_the_first_pod() {
        let path = |serving| Path {
            name: "Service eu-websocket".to_owned(),
            public: ([127, 0, 0, 1], 1).into(),
            transports: vec![],
            serving,
        };
        let (mut paths, start) = (Paths::default(), Instant::now());
        paths.note(&[path(false)], start);
        assert!(!paths.leads(&path(false), start + ROUTED), "nobody is behind it");
        let first = start + ROUTED;
        paths.note(&[path(true)], first);
        assert!(!paths.leads(&path(true), first), "not yet");
        paths.note(&[path(true)], first + ROUTED);
        assert!(paths.leads(&path(true), first + ROUTED), "another look does not begin anew");
        paths.note(&[path(false)], first + ROUTED);
        assert!(!paths.leads(&path(true), first + ROUTED * 2), "nobody is behind it any more");
    }
}
