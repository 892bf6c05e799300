//! Clients of one app at one source address: their connections, and the rates of their handshakes and requests.
//!
//! In: an app, the source address of a client, the limits of the app. Out: a slot for a connection, or the reason to refuse
//! it; and for each request of the client to the bus, how long its connection pauses. A key is public: without these
//! bounds one stranger keeps the bus busy for everyone.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::edge::apps::rate_limit::{PacedBucket, TokenBucket};
use crate::process::address_counts::source_network;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::AppId;

/// Handshakes of one source that are accepted per second, after a burst of as many as it may have connections: all its
/// clients reconnect at once after the end of a pod.
pub const SOURCE_HANDSHAKES_PER_SECOND: u32 = 20;

/// Requests to the bus (subscriptions, sign-ins, look-ups of sessions) that one source makes at once.
pub const SOURCE_REQUESTS_BURST: u32 = 4_096;

/// Requests to the bus that one source makes per second, once [`SOURCE_REQUESTS_BURST`] is used up. Each that exceeds the
/// rate pauses its connection. A subscription and its end take 0.1 ms of Redis, so the rate takes 0.5 % of a core.
pub const SOURCE_REQUESTS_PER_SECOND: u32 = 50;

/// Longest pause; a request beyond it is refused.
pub const SOURCE_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Sources that are kept apart. Beyond it, new sources of an app share one entry.
const SOURCES_MAX: usize = 65_536;

/// Sources above which those without connections are removed.
const PRUNED_SOURCES_MIN: usize = 1_024;

/// Least time between two removals of sources without connections.
const PRUNE_INTERVAL: Duration = Duration::from_secs(5);

/// Silence after which a source without connections has its full burst again.
const SOURCE_IDLE_TTL: Duration = Duration::from_mins(2);

/// Least time between two warnings about refused sources.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// The sources that are known now.
#[derive(Default)]
pub struct ClientSources {
    table: Mutex<SourceTable>,
    warned_at: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct SourceTable {
    entries: HashMap<(AppId, IpAddr), Arc<ClientSource>>,
    pruned_at: Option<Instant>,
}

/// One source of one app.
pub struct ClientSource {
    counts: Mutex<SourceCounts>,
}

struct SourceCounts {
    connections: u32,
    handshakes: TokenBucket,
    requests: PacedBucket,
    last_used: Instant,
}

/// The place of one connection among those of its source; given back when dropped.
pub struct SourceSlot(Arc<ClientSource>);

/// The reason for which a source has no place for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceRefusal {
    /// It has as many connections as it may have.
    Connections,
    /// It connects too often.
    HandshakeRate,
}

/// The cost of a request for the connection that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestPace {
    /// Nothing: the request is within the rate.
    Free,
    /// The request is made, and the connection is read again at this time.
    PauseUntil(Instant),
    /// The source is too far beyond its rate.
    Refused,
}

impl ClientSources {
    /// Takes a place for a connection of a source.
    ///
    /// # Errors
    /// The source has all its connections, or connects too often.
    pub fn take_slot(&self, app: &AppId, source: IpAddr, most: u32, now: Instant) -> Result<SourceSlot, SourceRefusal> {
        let source = self.find_or_insert(app, source, now);
        {
            let mut counts = lock_unpoisoned(&source.counts);
            counts.last_used = now;
            if counts.connections >= most {
                return Err(SourceRefusal::Connections);
            }
            counts.handshakes.set_limits(most, SOURCE_HANDSHAKES_PER_SECOND);
            if !counts.handshakes.try_take(now) {
                return Err(SourceRefusal::HandshakeRate);
            }
            counts.connections += 1;
        }
        Ok(SourceSlot(source))
    }

    /// Whether a refused source should be logged as a warning now: at most once a minute, whatever strangers do.
    pub fn take_warning(&self, now: Instant) -> bool {
        let mut warned_at = lock_unpoisoned(&self.warned_at);
        let is_due = warned_at.is_none_or(|at| now.duration_since(at) >= WARNING_INTERVAL);
        if is_due {
            *warned_at = Some(now);
        }
        is_due
    }

    /// Charges a request to the bus that belongs to no connection.
    pub fn charge_request(&self, app: &AppId, source: IpAddr, now: Instant) -> RequestPace {
        self.find_or_insert(app, source, now).charge_request(now)
    }

    fn find_or_insert(&self, app: &AppId, address: IpAddr, now: Instant) -> Arc<ClientSource> {
        let mut table = lock_unpoisoned(&self.table);
        table.remove_idle(now);
        let mut key = (app.clone(), source_network(address));
        if table.entries.len() >= SOURCES_MAX && !table.entries.contains_key(&key) {
            key.1 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        }
        table.entries.entry(key).or_insert_with(|| Arc::new(ClientSource::new(now))).clone()
    }
}

impl SourceTable {
    fn remove_idle(&mut self, now: Instant) {
        let is_due = self.pruned_at.is_none_or(|at| now.duration_since(at) >= PRUNE_INTERVAL);
        if is_due && self.entries.len() >= PRUNED_SOURCES_MIN {
            self.pruned_at = Some(now);
            self.entries.retain(|_, source| !lock_unpoisoned(&source.counts).is_idle(now));
        }
    }
}

impl ClientSource {
    fn new(now: Instant) -> Self {
        let counts = SourceCounts {
            connections: 0,
            handshakes: TokenBucket::new(1, SOURCE_HANDSHAKES_PER_SECOND),
            requests: PacedBucket::new(SOURCE_REQUESTS_BURST, SOURCE_REQUESTS_PER_SECOND, SOURCE_PAUSE_MAX),
            last_used: now,
        };
        Self { counts: Mutex::new(counts) }
    }

    /// Charges a request of a connection to the bus.
    pub fn charge_request(&self, now: Instant) -> RequestPace {
        let mut counts = lock_unpoisoned(&self.counts);
        counts.last_used = now;
        match counts.requests.take(now) {
            Some(pause) if pause.is_zero() => RequestPace::Free,
            Some(pause) => RequestPace::PauseUntil(now + pause),
            None => RequestPace::Refused,
        }
    }
}

impl SourceCounts {
    fn is_idle(&self, now: Instant) -> bool {
        self.connections == 0 && now.duration_since(self.last_used) >= SOURCE_IDLE_TTL
    }
}

impl SourceSlot {
    /// The source of the connection.
    pub fn source(&self) -> Arc<ClientSource> {
        self.0.clone()
    }
}

impl Drop for SourceSlot {
    fn drop(&mut self) {
        let mut counts = lock_unpoisoned(&self.0.counts);
        counts.connections = counts.connections.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn refused_sources_are_warned_about_once_a_minute() {
        let (sources, now) = (ClientSources::default(), Instant::now());
        let due = [0, 1, 59, 60, 61].map(|second| sources.take_warning(now + Duration::from_secs(second)));
        assert_eq!(due, [true, false, false, true, false]);
    }

    #[test]
    fn a_source_has_so_many_connections_of_an_app_and_others_have_theirs() {
        let (sources, now) = (ClientSources::default(), Instant::now());
        let take = |app: &str, source| sources.take_slot(&app.into(), address(source), 2, now);
        let held = [take("1", "192.0.2.1").ok(), take("1", "192.0.2.1").ok()];
        assert!(held.iter().all(Option::is_some));
        assert_eq!(take("1", "192.0.2.1").err(), Some(SourceRefusal::Connections));
        assert!(take("2", "192.0.2.1").is_ok() && take("1", "192.0.2.2").is_ok());
        drop(held);
        assert_eq!(
            take("1", "192.0.2.1").err(),
            Some(SourceRefusal::HandshakeRate),
            "both places were used a moment ago"
        );
        let later = sources.take_slot(&"1".into(), address("192.0.2.1"), 2, now + Duration::from_secs(1));
        assert!(later.is_ok());
    }

    #[test]
    fn hosts_of_one_ipv6_network_are_one_source() {
        let (sources, now) = (ClientSources::default(), Instant::now());
        let take = |source| sources.take_slot(&"1".into(), address(source), 1, now);
        let _held = take("2001:db8:1:2::1").expect("a place");
        assert_eq!(take("2001:db8:1:2:ffff::9").err(), Some(SourceRefusal::Connections));
        assert!(take("2001:db8:1:3::1").is_ok());
    }

    #[test]
    fn requests_beyond_the_rate_pause_their_connection_and_far_beyond_are_refused() {
        let (sources, now) = (ClientSources::default(), Instant::now());
        let slot = sources.take_slot(&"1".into(), address("192.0.2.1"), 2, now).expect("a place");
        let source = slot.source();
        for _ in 0..SOURCE_REQUESTS_BURST {
            assert_eq!(source.charge_request(now), RequestPace::Free);
        }
        let pause = Duration::from_millis(20);
        assert_eq!(source.charge_request(now), RequestPace::PauseUntil(now + pause));
        assert_eq!(
            sources.charge_request(&"1".into(), address("192.0.2.1"), now),
            RequestPace::PauseUntil(now + 2 * pause)
        );
        let paused = (0..10_000).take_while(|_| source.charge_request(now) != RequestPace::Refused).count();
        assert_eq!(paused, 1_498, "thirty seconds at fifty a second");
        assert_eq!(source.charge_request(now + pause), RequestPace::PauseUntil(now + pause + SOURCE_PAUSE_MAX));
    }

    #[test]
    fn sources_without_connections_are_forgotten_and_too_many_share_one() {
        let (sources, now) = (ClientSources::default(), Instant::now());
        let number = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(n + (1 << 24)));
        let held = sources.take_slot(&"1".into(), number(0), 1, now).expect("a place");
        for n in 1..u32::try_from(SOURCES_MAX).expect("a number") {
            sources.charge_request(&"1".into(), number(n), now);
        }
        let count = || lock_unpoisoned(&sources.table).entries.len();
        for n in 70_000..70_100 {
            sources.charge_request(&"1".into(), number(n), now);
        }
        assert_eq!(count(), SOURCES_MAX + 1);
        sources.charge_request(&"1".into(), number(1), now + SOURCE_IDLE_TTL + PRUNE_INTERVAL);
        assert_eq!(count(), 2, "the one with a connection, and the newest");
        drop(held);
    }
}
