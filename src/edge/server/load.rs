//! The load of the other edges, as far as a drain needs it.
//!
//! In: the sessions of this edge, and the loads that others share over the bus. Out: the close code for the clients of a
//! drain. While the bus does not answer, the last loads that it returned stand.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, EdgeLoad};
use crate::edge::session::opener::SessionOpener;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::frame::code;

/// Time between two exchanges: the load of a moment ago is good enough for a drain that takes minutes.
const EXCHANGE_INTERVAL: Duration = Duration::from_secs(5);

/// Bounds the wait for the answer of the bus.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(2);

/// The share of their capacity, in percent, that the other edges may use once they have taken the clients of this one.
const USED_PERCENT_MAX: u64 = 90;

/// The loads of the other edges of the cluster that serve the same clients.
#[derive(Default)]
pub struct PeerLoads(Mutex<Vec<EdgeLoad>>);

impl PeerLoads {
    /// The close code with which so many clients move to the other edges: 4100, come back after a second, when these are
    /// near their limit with them; else 4200, come back at once.
    pub fn close_code(&self, clients: usize) -> u16 {
        choose_close_code(&lock_unpoisoned(&self.0), clients as u64)
    }

    fn set(&self, loads: Vec<EdgeLoad>) {
        *lock_unpoisoned(&self.0) = loads;
    }
}

/// Without another edge 4200: nothing is known of those that come, such as the next one of a single replica.
fn choose_close_code(others: &[EdgeLoad], clients: u64) -> u16 {
    let sessions = others.iter().fold(clients, |sum, load| sum.saturating_add(load.sessions));
    let sessions_max = others.iter().fold(0_u64, |sum, load| sum.saturating_add(load.sessions_max));
    let is_near_limit = sessions.saturating_mul(100) > sessions_max.saturating_mul(USED_PERCENT_MAX);
    if !others.is_empty() && is_near_limit { code::OVER_CAPACITY } else { code::RECONNECT }
}

/// The parts of an edge whose load is shared.
pub struct LoadExchange {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) process: String,
    pub(crate) server: String,
    pub(crate) opener: Arc<SessionOpener>,
    pub(crate) sessions_max: usize,
    /// Whether the edge takes clients of others.
    pub(crate) is_serving: Box<dyn Fn() -> bool + Send + Sync>,
    pub(crate) loads: Arc<PeerLoads>,
}

impl LoadExchange {
    /// Exchanges the loads until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut exchanges = interval(EXCHANGE_INTERVAL);
        exchanges.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = exchanges.tick() => self.exchange().await,
            }
        }
    }

    async fn exchange(&self) {
        if !self.bus.is_available() {
            return;
        }
        let sessions = self.opener.sessions.open_count() as u64;
        let (sessions, sessions_max) = if (self.is_serving)() { (sessions, self.sessions_max as u64) } else { (0, 0) };
        let load = EdgeLoad { server: self.server.clone(), sessions, sessions_max };
        match timeout(EXCHANGE_TIMEOUT, self.bus.exchange_load(&self.process, &load)).await {
            Ok(Ok(mut others)) => {
                others.retain(|other| other.server == self.server && other.sessions_max > 0);
                self.loads.set(others);
            }
            Ok(Err(error)) => tracing::debug!(%error, "the load of the other edges is not known"),
            Err(_) => tracing::debug!("the load of the other edges is not known in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_wait_when_the_other_edges_are_near_their_limit_with_them() {
        let load = |sessions, sessions_max| EdgeLoad { server: "websocket".to_owned(), sessions, sessions_max };
        for (others, clients, expected) in [
            (vec![], 1_000, 4200),
            (vec![load(0, 1_000)], 900, 4200),
            (vec![load(0, 1_000)], 901, 4100),
            (vec![load(800, 1_000)], 100, 4200),
            (vec![load(800, 1_000)], 101, 4100),
            (vec![load(900, 1_000), load(0, 1_000)], 900, 4200),
            (vec![load(1_000, 1_000), load(1_000, 1_000)], 1, 4100),
            (vec![load(1, u64::MAX), load(1, u64::MAX)], 1, 4200),
        ] {
            assert_eq!(choose_close_code(&others, clients), expected, "{others:?} {clients}");
        }
    }
}
