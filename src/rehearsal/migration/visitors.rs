//! Clients that come and go while weights move, and the webhooks that each visit must lead to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::Rng;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::zone::{CachingResolver, Side, WeightedZone};
use crate::prober::{ProbeApp, Visitor};
use crate::protocol::{ChannelName, Transport};
use crate::rehearsal::DeliveredWebhook;

/// Number of clients that visit at once.
const CLIENTS: usize = 24;

/// Time of a visit, and of the pause after it on average.
const VISIT_INTERVAL: Duration = Duration::from_millis(400);

/// Longest time for a client to get its session.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Prefix of the clients' channels.
const CHANNEL_PREFIX: &str = "private-visit-";

/// An edge of each cluster, with the credentials of the same app there.
#[derive(Clone)]
pub struct Entrances {
    /// That of the source.
    pub source: (SocketAddr, ProbeApp),
    /// That of the target.
    pub target: (SocketAddr, ProbeApp),
}

/// Visits and webhooks so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VisitCounts {
    /// Lookups that were answered with the source.
    pub source_lookups: u64,
    /// Lookups that were answered with the target.
    pub target_lookups: u64,
    /// Sessions at the source.
    pub source_sessions: u64,
    /// Sessions at the target.
    pub target_sessions: u64,
    /// Clients that got no session.
    pub refused: u64,
    /// Webhooks that the visits must lead to: one for the start and one for the end of each channel.
    pub expected_webhooks: u64,
    /// Webhooks that arrived, each counted once.
    pub arrived_webhooks: u64,
    /// Webhooks that did not arrive.
    pub missing_webhooks: u64,
    /// Missing webhooks of sessions at the target.
    pub missing_at_target: u64,
    /// Webhooks that arrived again.
    pub doubled_webhooks: u64,
}

#[derive(Default)]
struct VisitLedger {
    counts: VisitCounts,
    /// Channels that had a session, with its side.
    visited: BTreeMap<String, Side>,
    /// Events that arrived: channel and name.
    arrived: BTreeSet<(String, String)>,
}

/// Clients and readers that run as tasks.
pub struct Visitors {
    ledger: Arc<Mutex<VisitLedger>>,
    clients: JoinSet<()>,
    readers: JoinSet<()>,
    leaving: CancellationToken,
    ended: CancellationToken,
}

impl Visitors {
    /// Starts the clients, and the readers of both clusters' webhooks.
    pub fn start(
        zone: &WeightedZone,
        ttl: Duration,
        entrances: &Entrances,
        webhooks: [broadcast::Receiver<DeliveredWebhook>; 2],
    ) -> Self {
        let ledger: Arc<Mutex<VisitLedger>> = Arc::default();
        let (leaving, ended) = (CancellationToken::new(), CancellationToken::new());
        let (mut clients, mut readers) = (JoinSet::new(), JoinSet::new());
        for webhooks in webhooks {
            readers.spawn(read_webhooks(webhooks, ledger.clone(), ended.clone()));
        }
        for number in 0..CLIENTS {
            let resolver = CachingResolver::new(zone.clone(), ttl);
            clients.spawn(visit_repeatedly(number, resolver, entrances.clone(), ledger.clone(), leaving.clone()));
        }
        Self { ledger, clients, readers, leaving, ended }
    }

    /// The counts so far.
    pub fn counts(&self) -> VisitCounts {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |side: Option<Side>| {
            let visited = ledger.visited.iter().filter(|(_, found)| side.is_none_or(|side| side == **found));
            let events = visited.flat_map(|(channel, _)| {
                ["channel_occupied", "channel_vacated"].map(|name| (channel.clone(), name.to_owned()))
            });
            events.filter(|event| !ledger.arrived.contains(event)).count() as u64
        };
        VisitCounts {
            expected_webhooks: 2 * ledger.visited.len() as u64,
            arrived_webhooks: ledger.arrived.len() as u64,
            missing_webhooks: missing(None),
            missing_at_target: missing(Some(Side::Target)),
            ..ledger.counts.clone()
        }
    }

    /// Ends the clients, waits for their webhooks, `timeout` at most, and returns the counts.
    pub async fn finish(mut self, timeout: Duration) -> VisitCounts {
        self.leaving.cancel();
        while self.clients.join_next().await.is_some() {}
        let complete = async {
            while self.counts().missing_webhooks > 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        // Webhooks that are still missing then are counted as such.
        let _ = tokio::time::timeout(timeout, complete).await;
        self.ended.cancel();
        while self.readers.join_next().await.is_some() {}
        self.counts()
    }
}

async fn visit_repeatedly(
    number: usize,
    mut resolver: CachingResolver,
    entrances: Entrances,
    ledger: Arc<Mutex<VisitLedger>>,
    leaving: CancellationToken,
) {
    let transports = [Transport::XhrStreaming, Transport::XhrPolling];
    for visit in 0_u64.. {
        if leaving.is_cancelled() {
            return;
        }
        let transport = transports[(number + usize::from(visit % 2 == 1)) % transports.len()];
        visit_once(&format!("{CHANNEL_PREFIX}{number}-{visit}"), transport, &mut resolver, &entrances, &ledger).await;
        // Each at its own pace, so that clients do not come in step.
        let pause = VISIT_INTERVAL.mul_f64(rand::rng().random_range(0.5..1.5));
        tokio::time::sleep(pause).await;
    }
}

async fn visit_once(
    channel: &str,
    transport: Transport,
    resolver: &mut CachingResolver,
    entrances: &Entrances,
    ledger: &Mutex<VisitLedger>,
) {
    let note = |change: &dyn Fn(&mut VisitLedger)| change(&mut ledger.lock().unwrap_or_else(PoisonError::into_inner));
    let (Some((side, is_lookup)), Ok(name)) = (resolver.resolve(), ChannelName::parse(channel)) else {
        note(&|ledger| ledger.counts.refused += 1);
        return;
    };
    if is_lookup {
        note(&|ledger| match side {
            Side::Source => ledger.counts.source_lookups += 1,
            Side::Target => ledger.counts.target_lookups += 1,
        });
    }
    let (address, app) = match side {
        Side::Source => &entrances.source,
        Side::Target => &entrances.target,
    };
    match Visitor::connect(*address, transport, app, &name, CONNECT_TIMEOUT).await {
        Ok(session) => {
            note(&|ledger| {
                ledger.visited.insert(channel.to_owned(), side);
                match side {
                    Side::Source => ledger.counts.source_sessions += 1,
                    Side::Target => ledger.counts.target_sessions += 1,
                }
            });
            tokio::time::sleep(VISIT_INTERVAL).await;
            drop(session);
        }
        Err(error) => {
            tracing::info!(error, ?side, "visit refused");
            note(&|ledger| ledger.counts.refused += 1);
        }
    }
}

async fn read_webhooks(
    mut webhooks: broadcast::Receiver<DeliveredWebhook>,
    ledger: Arc<Mutex<VisitLedger>>,
    ended: CancellationToken,
) {
    loop {
        let webhook = tokio::select! {
            () = ended.cancelled() => return,
            webhook = webhooks.recv() => webhook,
        };
        match webhook {
            Ok(webhook) => {
                let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
                for event in webhook.body["events"].as_array().into_iter().flatten() {
                    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
                    let (channel, name) = (text("channel"), text("name"));
                    let is_awaited = matches!(name.as_str(), "channel_occupied" | "channel_vacated");
                    if channel.starts_with(CHANNEL_PREFIX) && is_awaited && !ledger.arrived.insert((channel, name)) {
                        ledger.counts.doubled_webhooks += 1;
                    }
                }
            }
            // A reader that is too slow counts the webhooks as missing.
            Err(broadcast::error::RecvError::Lagged(missed)) => tracing::warn!(missed, "webhooks were not counted"),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
