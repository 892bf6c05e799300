//! The sessions of clients at a move's target: counted by the edges themselves, and asked to reconnect after a rollback.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::{BoxFuture, join_all};

use crate::api::RealtimeCluster;
use crate::config::ServerKind;
use crate::migration::{EdgeLoad, SessionSnapshot, sum_edge_loads};
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

/// Open sessions of a server's clients at the edges that answer: one that hangs must not keep the clients of the others.
/// `None` while no edge counts them, or the look at them is too old.
pub fn count_open_sessions(looks: &[Arc<EdgeSessions>], server: ServerKind, now_ms: u64) -> Option<u64> {
    let looks = looks.iter().filter(|look| is_fresh(look, now_ms));
    let flows = looks.flat_map(|look| look.pods.values()).filter_map(|pod| pod.servers.get(&server));
    flows.map(|flow| flow.open).reduce(u64::saturating_add)
}

/// Sessions that the edges opened since their start; `None` while one of them was not read, or the look at them is too old.
pub fn count_opened_sessions(looks: &[Arc<EdgeSessions>], now_ms: u64) -> Option<SessionSnapshot> {
    let at_ms = looks.iter().map(|look| look.at_ms).min()?;
    if !looks.iter().all(|look| is_fresh(look, now_ms) && look.unread == 0) {
        return None;
    }
    let mut processes: BTreeMap<String, BTreeMap<ServerKind, u64>> = BTreeMap::new();
    for pod in looks.iter().flat_map(|look| look.pods.values()) {
        let opened = pod.servers.iter().map(|(server, flow)| (*server, flow.opened));
        processes.insert(pod.process.clone(), opened.collect());
    }
    Some(SessionSnapshot { at_ms, processes })
}

/// Load of the edges that answer, by server. An edge that does not answer takes no further client.
pub fn sum_fresh_loads(looks: &[Arc<EdgeSessions>], now_ms: u64) -> BTreeMap<ServerKind, EdgeLoad> {
    let looks = looks.iter().filter(|look| is_fresh(look, now_ms));
    sum_edge_loads(looks.flat_map(|look| look.pods.values()).map(|pod| (&pod.servers, pod.sessions_max)))
}

fn is_fresh(look: &EdgeSessions, now_ms: u64) -> bool {
    look.at_ms > 0 && now_ms.saturating_sub(look.at_ms) <= SESSIONS_AGE_MAX_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prober::PodSessions;
    use crate::protocol::admin::SessionFlow;

    fn look(at_ms: u64, unread: usize, open: &[(ServerKind, u64)]) -> Arc<EdgeSessions> {
        let pod = |(number, (server, open)): (usize, &(ServerKind, u64))| {
            let servers = [(*server, SessionFlow { open: *open, opened: 100 })].into();
            (format!("eu-{number}"), PodSessions { process: number.to_string(), servers, sessions_max: Some(1_000) })
        };
        Arc::new(EdgeSessions { at_ms, pods: open.iter().enumerate().map(pod).collect(), unread })
    }

    #[test]
    fn open_sessions_are_those_of_edges_that_answer_and_opened_ones_need_every_edge() {
        use ServerKind::{Sockjs, Websocket};
        let all = look(100_000, 0, &[(Sockjs, 3), (Websocket, 50), (Sockjs, 4)]);
        let former = look(100_000, 0, &[(Sockjs, 2)]);
        for (case, looks, now_ms, open, is_counted) in [
            ("no prober", vec![], 100_000, None, false),
            ("one plan", vec![all.clone()], 100_000, Some(7), true),
            ("pods of a former template too", vec![all.clone(), former.clone()], 100_000, Some(9), true),
            ("none open", vec![look(100_000, 0, &[(Sockjs, 0)])], 100_000, Some(0), true),
            ("an edge that did not answer", vec![look(100_000, 1, &[(Sockjs, 3)]), former], 100_000, Some(5), false),
            ("edges that count nothing", vec![look(100_000, 2, &[])], 100_000, None, false),
            ("an old look", vec![all.clone()], 145_001, None, false),
            ("never looked", vec![look(0, 0, &[])], 100, None, false),
        ] {
            assert_eq!(count_open_sessions(&looks, Sockjs, now_ms), open, "{case}");
            let opened = count_opened_sessions(&looks, now_ms);
            assert_eq!(opened.is_some(), is_counted, "{case}: {opened:?}");
            let load = sum_fresh_loads(&looks, now_ms).get(&Sockjs).copied();
            assert_eq!(load.map(|load| load.open), open, "{case}: {load:?}");
            assert!(load.is_none_or(|load| load.sessions_max == load.edges * 1_000), "{case}: {load:?}");
            let counts = opened.iter().flat_map(|found| found.processes.values()).flat_map(BTreeMap::values);
            assert!(counts.copied().all(|count| count == 100), "{case}: {opened:?}");
        }
    }
}
