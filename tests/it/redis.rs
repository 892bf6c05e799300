//! The bus in Redis, on a real `redis-server`.

// Helpers end a test where they stand; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

mod access;
mod channel_index;
mod crash;
mod group;
mod occupancy;
mod outage;
mod outbox;
pub mod server;
pub mod switch_proxy;
mod watch;

use std::time::Duration;

use fred::interfaces::ClientLike;
use realtime_operator::bus::{
    Broadcast, BroadcastFrame, BusError, BusTiming, ChannelKey, ChannelStore, CountUpdate, DecidedTransitions, Health,
    LastEvent, LastEventLookup, Membership, RedisAddress, RedisBus, RelayPeer, RemoteTransitions, SessionDirectory,
    Transition,
};
use realtime_operator::protocol::frame::PresenceMember;
use realtime_operator::protocol::record::{EventKind, LeaveCause};
use realtime_operator::protocol::{ChannelName, SocketId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::waiting::{WAIT_TIMEOUT, describe_last, eventually, eventually_ok};
use server::Redis;

/// Short, so that a test sees a death in a second.
const TIMING: BusTiming = BusTiming {
    lease_ttl: Duration::from_millis(900),
    renew_interval: Duration::from_millis(200),
    settling_period: Duration::from_millis(800),
    sweep_grace: Duration::from_millis(1_200),
};

impl Redis {
    /// A bus that its token stops dead, as a kill does.
    async fn bus_until(&self, process: &str, life: CancellationToken) -> RedisBus {
        start_bus(&self.url(), process, life).await
    }

    async fn bus(&self, process: &str) -> RedisBus {
        self.bus_until(process, CancellationToken::new()).await
    }

    /// A client beside the bus.
    async fn client(&self) -> fred::clients::Client {
        let config = fred::types::config::Config::from_url(&self.url()).expect("an address");
        let client = fred::types::Builder::from_config(config).build().expect("a client");
        client.init().await.expect("a connection");
        client
    }
}

/// A bus in the store at this address.
async fn start_bus(url: &str, process: &str, life: CancellationToken) -> RedisBus {
    let bus = RedisBus::start(url, "uid-1", process, TIMING, life).expect("a bus");
    wait_until_available(&bus).await;
    // A store that has just begun is not believed yet.
    tokio::time::sleep(TIMING.settling_period).await;
    bus
}

/// Waits until calls are answered.
pub async fn wait_until_available(bus: &RedisBus) {
    eventually_ok("an answer of Redis on an available bus", async || {
        match bus.inspect_channel(&subject("nowhere")).await {
            Ok(_) if bus.is_available() => Ok(()),
            answer => Err(answer.map(|_| "an answer, but the bus is not available")),
        }
    })
    .await;
}

fn subject(channel: &str) -> ChannelKey {
    ChannelKey { app: "1".into(), channel: ChannelName::parse(channel).expect("a valid name") }
}

fn member(user: &str) -> PresenceMember {
    PresenceMember { user_id: user.into(), user_info: serde_json::json!({ "name": format!("\"{user}\" é") }) }
}

fn names_and_seqs<'a>(transitions: impl IntoIterator<Item = &'a Transition>) -> Vec<(&'static str, u64)> {
    transitions.into_iter().map(|t| (t.kind.name(), t.order.seq)).collect()
}

/// Receives so many transitions that a bus decides on its own.
async fn collect_remote_transitions(
    decided: &mut mpsc::Receiver<RemoteTransitions>,
    count: usize,
) -> Vec<(ChannelKey, Transition)> {
    let mut all = Vec::new();
    let wanted = async {
        while all.len() < count {
            let decided = decided.recv().await.expect("a bus");
            let transitions = decided.transitions.acknowledge_all();
            all.extend(transitions.into_iter().map(|transition| (decided.subject.clone(), transition)));
        }
    };
    let wanted = tokio::time::timeout(WAIT_TIMEOUT, wanted).await;
    assert!(wanted.is_ok(), "{count} transitions wanted, {} came; {}", all.len(), describe_last(all.last()));
    all
}

/// Waits for a transition of the channel `room` that the bus emits on its own.
async fn expect_remote_transition(decided: &mut mpsc::Receiver<RemoteTransitions>, kind: &EventKind) {
    let mut seen = Vec::new();
    let expected = async {
        while let Some(remote) = decided.recv().await {
            seen.extend(remote.transitions.iter().map(|transition| transition.kind.clone()));
            remote.transitions.acknowledge_all();
            if remote.subject == subject("room") && seen.last() == Some(kind) {
                return;
            }
        }
    };
    let found = tokio::time::timeout(WAIT_TIMEOUT, expected).await;
    assert!(found.is_ok(), "no {kind:?} within {WAIT_TIMEOUT:?}; seen: {seen:?}");
}
