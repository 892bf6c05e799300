//! Has clients of a cluster's edges reconnect, a share at a time, while the edges serve on.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::ProbePlan;
use super::observe::{CONCURRENT_REQUESTS_MAX, EdgeSessions, PodObserver};
use crate::config::ServerKind;

/// Longest for the requests to all edges together. An edge that was not asked is asked the next time.
const SHED_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the edges of one plan.
#[derive(Clone)]
pub struct SessionShedder {
    pub(super) observer: PodObserver,
    pub(super) plans: watch::Receiver<Arc<ProbePlan>>,
}

impl SessionShedder {
    /// Sessions of clients at the edges, as of the latest look at them.
    #[must_use]
    pub fn sessions(&self) -> Arc<EdgeSessions> {
        self.observer.sessions().borrow().clone()
    }

    /// Asks each edge that has clients of a server's transports to have a share of them reconnect, in percent, at the pace of
    /// its drain. Returns the number of edges that begin; the others refused, or did not answer in time.
    pub async fn shed(&self, server: ServerKind, share: u8) -> usize {
        let (plan, sessions) = (self.plans.borrow().clone(), self.sessions());
        let edges = plan.edges.iter().filter(|edge| has_sessions(&sessions, &edge.pod, server));
        let asked: Vec<_> = edges.map(|edge| (edge.admin, self.observer.clone(), plan.admin_token.clone())).collect();
        let (mut begun, total) = (0, asked.len());
        let requests = asked
            .into_iter()
            .map(|(admin, observer, token)| async move { observer.move_share(&token, admin, server, share).await });
        let mut answers = stream::iter(requests).buffer_unordered(CONCURRENT_REQUESTS_MAX);
        let all = async {
            while let Some(begins) = answers.next().await {
                begun += usize::from(begins);
            }
        };
        if timeout(SHED_TIMEOUT, all).await.is_err() {
            tracing::warn!(edges = total, "some edges did not answer in time, and have their clients reconnect later");
        }
        tracing::info!(%server, share, edges = total, begun, "edges have clients reconnect");
        begun
    }
}

fn has_sessions(sessions: &EdgeSessions, pod: &str, server: ServerKind) -> bool {
    sessions.pods.get(pod).and_then(|found| found.servers.get(&server)).is_some_and(|flow| flow.open > 0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;
    use std::sync::Mutex;

    use axum::Router;
    use axum::extract::RawQuery;
    use axum::http::HeaderMap;
    use axum::routing::post;
    use tokio::net::TcpListener;

    use super::*;
    use crate::prober::observe::PodSessions;
    use crate::process::locks::lock_unpoisoned;
    use crate::protocol::Secret;
    use crate::protocol::admin::SessionFlow;

    type Queries = Arc<Mutex<Vec<String>>>;

    /// A double of an edge's admin listener, which keeps the queries of its drain.
    async fn start_admin(queries: Queries) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address");
        let drain = post(move |headers: HeaderMap, RawQuery(query): RawQuery| async move {
            assert_eq!(headers["authorization"], "Bearer token");
            lock_unpoisoned(&queries).push(query.unwrap_or_default());
            axum::http::StatusCode::ACCEPTED
        });
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/drain", drain)).await });
        address
    }

    #[tokio::test]
    async fn only_edges_with_clients_of_the_server_are_asked() {
        crate::process::install_tls();
        let observer = PodObserver::new().expect("a client");
        let queries = Queries::default();
        let address = start_admin(queries.clone()).await;
        let token = Secret::new("token");
        assert!(observer.move_share(&token, address, ServerKind::Sockjs, 20).await);
        assert_eq!(lock_unpoisoned(&queries).as_slice(), ["share=20&server=sockjs"]);
        // Nothing listens at the port.
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(!observer.move_share(&token, nobody, ServerKind::Sockjs, 20).await);
        let pod = |pod: &str, server, open| {
            let servers = BTreeMap::from([(server, SessionFlow { open, opened: 9 })]);
            (pod.to_owned(), PodSessions { process: "01J".to_owned(), servers, sessions_max: None })
        };
        let pods = [
            pod("busy", ServerKind::Sockjs, 3),
            pod("empty", ServerKind::Sockjs, 0),
            pod("other", ServerKind::Websocket, 3),
        ];
        let sessions = EdgeSessions { at_ms: 1, pods: pods.into(), unread: 0 };
        let asked = ["busy", "empty", "other", "unknown"].map(|pod| has_sessions(&sessions, pod, ServerKind::Sockjs));
        assert_eq!(asked, [true, false, false, false]);
    }
}
