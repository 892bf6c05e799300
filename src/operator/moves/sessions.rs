//! The sessions of clients at a move's target: counted by the edges themselves, and asked to reconnect after a rollback.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::{BoxFuture, join_all};

use crate::api::RealtimeCluster;
use crate::config::ServerKind;
use crate::migration::SessionSnapshot;
use crate::operator::cluster_probers::ClusterProbers;
use crate::prober::EdgeSessions;

/// Age from which a look at the edges does not count, in ms: three looks at a proven cluster, which are 15 s apart by default.
const SESSIONS_AGE_MAX_MS: u64 = 45_000;

/// The edges of clusters, as a move needs them.
pub trait EdgeControl: Send + Sync {
    /// The latest looks at the edges of a cluster, one for each plan that is proven; empty while none is.
    fn sessions(&self, cluster: &RealtimeCluster) -> Vec<Arc<EdgeSessions>>;

    /// Asks each edge with clients of a server's transports to have a share of them reconnect, in percent.
    fn shed<'a>(&'a self, cluster: &RealtimeCluster, server: ServerKind, share: u8) -> BoxFuture<'a, ()>;
}

impl EdgeControl for ClusterProbers {
    fn sessions(&self, cluster: &RealtimeCluster) -> Vec<Arc<EdgeSessions>> {
        Self::sessions(self, cluster)
    }

    fn shed<'a>(&'a self, cluster: &RealtimeCluster, server: ServerKind, share: u8) -> BoxFuture<'a, ()> {
        let shedders = self.shedders(cluster);
        Box::pin(async move {
            join_all(shedders.iter().map(|shedder| shedder.shed(server, share))).await;
        })
    }
}

/// Open sessions of a server's clients; `None` while an edge was not read, or the look at them is too old.
pub fn count_open_sessions(looks: &[Arc<EdgeSessions>], server: ServerKind, now_ms: u64) -> Option<u64> {
    if looks.is_empty() || !looks.iter().all(|look| is_known(look, now_ms)) {
        return None;
    }
    let processes = looks.iter().flat_map(|look| look.processes.values());
    Some(processes.filter_map(|process| process.servers.get(&server)).map(|flow| flow.open).sum())
}

/// Sessions that the edges opened since their start; `None` under the same conditions as [`count_open_sessions`].
pub fn count_opened_sessions(looks: &[Arc<EdgeSessions>], now_ms: u64) -> Option<SessionSnapshot> {
    let at_ms = looks.iter().filter(|look| is_known(look, now_ms)).map(|look| look.at_ms).min()?;
    if !looks.iter().all(|look| is_known(look, now_ms)) {
        return None;
    }
    let mut processes: BTreeMap<String, BTreeMap<ServerKind, u64>> = BTreeMap::new();
    for (process, found) in looks.iter().flat_map(|look| &look.processes) {
        let opened = found.servers.iter().map(|(server, flow)| (*server, flow.opened));
        processes.insert(process.clone(), opened.collect());
    }
    Some(SessionSnapshot { at_ms, processes })
}

fn is_known(look: &EdgeSessions, now_ms: u64) -> bool {
    look.unread == 0 && look.at_ms > 0 && now_ms.saturating_sub(look.at_ms) <= SESSIONS_AGE_MAX_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prober::ProcessSessions;
    use crate::protocol::admin::SessionFlow;

    fn look(at_ms: u64, unread: usize, open: &[(ServerKind, u64)]) -> Arc<EdgeSessions> {
        let process = |(number, (server, open)): (usize, &(ServerKind, u64))| {
            let servers = [(*server, SessionFlow { open: *open, opened: 100 })].into();
            (number.to_string(), ProcessSessions { pod: format!("eu-{number}"), started_ms: 1, servers })
        };
        Arc::new(EdgeSessions { at_ms, processes: open.iter().enumerate().map(process).collect(), unread })
    }

    #[test]
    fn sessions_are_counted_only_while_every_edge_is_known() {
        use ServerKind::{Sockjs, Websocket};
        let all = look(100_000, 0, &[(Sockjs, 3), (Websocket, 50), (Sockjs, 4)]);
        let former = look(100_000, 0, &[(Sockjs, 2)]);
        for (case, looks, now_ms, expected) in [
            ("no prober", vec![], 100_000, None),
            ("one plan", vec![all.clone()], 100_000, Some(7)),
            ("pods of a former template too", vec![all.clone(), former], 100_000, Some(9)),
            ("none open", vec![look(100_000, 0, &[(Websocket, 50)])], 100_000, Some(0)),
            ("an edge that did not answer", vec![look(100_000, 1, &[(Sockjs, 3)])], 100_000, None),
            ("an old look", vec![all.clone()], 145_001, None),
            ("never looked", vec![look(0, 0, &[])], 100, None),
        ] {
            assert_eq!(count_open_sessions(&looks, Sockjs, now_ms), expected, "{case}");
            let opened = count_opened_sessions(&looks, now_ms);
            assert_eq!(opened.is_some(), expected.is_some(), "{case}: {opened:?}");
            let opened = opened.map(|found| found.processes);
            assert!(opened.is_none_or(|found| found.values().flat_map(BTreeMap::values).all(|count| *count == 100)));
        }
    }
}
