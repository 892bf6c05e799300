//! Load of the edges that carry one server's transports, beside the sessions that they take.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::ServerKind;
use crate::protocol::admin::SessionFlow;

/// Sessions at the edges that carry one server's transports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeLoad {
    /// Edges that take clients: admitted ones that do not drain.
    pub edges: u64,
    /// Sessions that these edges take, open ones included.
    pub sessions_max: u64,
    /// Open sessions of clients on the transports of the server.
    pub open: u64,
    /// Open sessions of clients on other transports of the same edges.
    pub others: u64,
}

/// The report of one edge: its sessions, and the number that it takes; `None` from one of an older release.
pub type EdgeReport<'a> = (&'a BTreeMap<ServerKind, SessionFlow>, Option<u64>);

/// Sums the reports of a cluster's edges by server. A server of which an edge does not report its limit is left out.
#[must_use]
pub fn sum_edge_loads<'a>(reports: impl IntoIterator<Item = EdgeReport<'a>>) -> BTreeMap<ServerKind, EdgeLoad> {
    let mut loads: BTreeMap<ServerKind, Option<EdgeLoad>> = BTreeMap::new();
    for (servers, sessions_max) in reports {
        let all = servers.values().map(|flow| flow.open).fold(0, u64::saturating_add);
        for (server, flow) in servers {
            let load = loads.entry(*server).or_insert(Some(EdgeLoad::default()));
            *load = load.zip(sessions_max).map(|(load, sessions_max)| EdgeLoad {
                edges: load.edges + u64::from(sessions_max > 0),
                sessions_max: load.sessions_max.saturating_add(sessions_max),
                open: load.open.saturating_add(flow.open),
                others: load.others.saturating_add(all.saturating_sub(flow.open)),
            });
        }
    }
    loads.into_iter().filter_map(|(server, load)| Some((server, load?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_summed_by_server_and_those_that_share_their_limit_are_counted_with_it() {
        use ServerKind::{Sockjs, Websocket};
        let flow = |open| SessionFlow { open, opened: 9 * open };
        let (both, sockjs) =
            (BTreeMap::from([(Sockjs, flow(30)), (Websocket, flow(500))]), BTreeMap::from([(Sockjs, flow(7))]));
        let sum = |reports: &[EdgeReport<'_>]| sum_edge_loads(reports.iter().copied());
        let one = |edges, sessions_max, open, others| EdgeLoad { edges, sessions_max, open, others };
        assert!(sum(&[]).is_empty());
        let found = sum(&[(&both, Some(1_000)), (&sockjs, Some(200)), (&sockjs, Some(0))]);
        assert_eq!(found[&Sockjs], one(2, 1_200, 44, 500), "one that drains has sessions, and takes none");
        assert_eq!(found[&Websocket], one(1, 1_000, 500, 30));
        let found = sum(&[(&sockjs, None), (&both, Some(1_000)), (&sockjs, Some(200))]);
        assert!(
            !found.contains_key(&Sockjs) && found.contains_key(&Websocket),
            "an edge of an older release: {found:?}"
        );
    }
}
