//! The bus that joins the edges of one cluster, or of a group of clusters: fan-out of frames, membership of channels, and the last events of cache
//! channels.
//!
//! In: a connection that joins or leaves a channel, or a frame for a channel. Out: the transitions that follow for the
//! whole cluster, each with the (epoch, seq) that orders it, and the frames of other processes. Occupancy is decided here,
//! in one place and atomically, because two edges that decided for themselves would both publish "occupied". Each
//! transition comes with a [`Receipt`]; the bus keeps the transition until its receipt is acknowledged. Internal channels,
//! such as those of signed-in users, are never recorded: their transitions are not kept.
//!
//! This room must not know transports, sockets or records.

mod load;
mod memory;
mod memory_sessions;
mod receipt;
mod redis;
pub mod relay;
mod reports;
mod scope;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use load::EdgeLoad;
pub use memory::MemoryBus;
pub use receipt::{DecidedTransition, DecidedTransitions, Receipt};
pub use redis::{BusTiming, RedisAddress, RedisBus, check_store};
pub use relay::{HeartbeatResponse, RelayPeer};
pub use scope::BusScope;

use crate::protocol::frame::PresenceMember;
use crate::protocol::record::{EventKind, EventOrder, LeaveCause};
use crate::protocol::registry::PRESENCE_MEMBERS_DEFAULT;
use crate::protocol::{AppId, ChannelName, SocketId};

/// Least time between two reported cache misses of one channel. Subscribers join in bursts, and the app's backend needs
/// a moment to publish an event after the first report.
const CACHE_MISS_INTERVAL: Duration = Duration::from_secs(5);

/// TTL of a channel's counter once it is vacated, by the age of its history: ten times as long, so that channels which a
/// stranger opens and leaves cost no memory for long. A counter that expires is followed by a later epoch, so orders repeat
/// only if the store's clock goes back by more than the least TTL.
fn tombstone_ttl(age: Duration) -> Duration {
    age.saturating_mul(TOMBSTONE_AGE_FACTOR).clamp(TOMBSTONE_MIN_TTL, TOMBSTONE_MAX_TTL)
}

/// TTL of a vacated channel's counter in relation to the age of its history.
const TOMBSTONE_AGE_FACTOR: u32 = 10;

/// Least TTL of a vacated channel's counter: longer than the debounce of webhooks, and than clocks are set back.
const TOMBSTONE_MIN_TTL: Duration = Duration::from_mins(1);

/// Longest TTL of a vacated channel's counter. A sequence that restarted earlier could give new events the orders of
/// events that are still in the stream or on their way to a webhook.
const TOMBSTONE_MAX_TTL: Duration = Duration::from_hours(1);

/// Connections above which a channel's count is published only every [`LARGE_CHANNEL_COUNT_INTERVAL`].
const LARGE_CHANNEL_THRESHOLD: u64 = 100;

/// Least time between two published counts of a large channel.
const LARGE_CHANNEL_COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// One channel of one app.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelKey {
    /// App that the channel belongs to.
    pub app: AppId,
    /// Name of the channel within its app.
    pub channel: ChannelName,
}

/// A change of a channel's membership as the whole cluster sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    /// Unique, and the same through every retry.
    pub id: String,
    /// Kind of the change: occupied, vacated, added or removed.
    pub kind: EventKind,
    /// Order within the channel's history.
    pub order: EventOrder,
    /// Time of the decision, in ms since 1970.
    pub time_ms: u64,
    /// Cause of a member's leave, unless the client itself left.
    pub cause: Option<LeaveCause>,
}

/// Transitions that the bus emits on its own: after another process dies, or after the store loses its data.
#[derive(Debug)]
pub struct RemoteTransitions {
    /// Channel whose membership changed.
    pub subject: ChannelKey,
    /// Transitions in the order of the channel's history.
    pub transitions: DecidedTransitions,
}

/// Outcome of a join: the transitions that it caused, and the members that it found.
#[derive(Debug, Default)]
pub struct JoinOutcome {
    /// Transitions in the order of the channel's history.
    pub transitions: DecidedTransitions,
    /// Members of a presence channel after the join; empty on other channels.
    pub roster: Vec<PresenceMember>,
    /// Order of the channel's latest transition, up to which the roster is complete; `None` while the bus has not decided.
    pub order: Option<EventOrder>,
}

/// The limits of a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinLimits {
    /// Members that the presence channel may have.
    pub members_max: usize,
    /// Connections that the channel may have; `None` for any number.
    pub connections_max: Option<u64>,
}

impl Default for JoinLimits {
    fn default() -> Self {
        Self { members_max: PRESENCE_MEMBERS_DEFAULT, connections_max: None }
    }
}

/// A frame for the subscribers of one channel.
#[derive(Clone, Debug)]
pub struct BroadcastFrame {
    /// Channel whose subscribers get the frame.
    pub subject: ChannelKey,
    /// The serialised frame, shared by all its receivers.
    pub frame: Bytes,
    /// A connection that does not get the frame: its sender.
    pub except: Option<SocketId>,
    /// Whether the receiving connections are closed after the frame.
    pub ends: bool,
    /// Order of the membership change that the frame reports, of a frame that the bus itself published.
    pub order: Option<EventOrder>,
    /// Time at which the frame was published, of one that arrives late: a termination concerns older sessions only.
    pub issued_at: Option<Instant>,
}

impl BroadcastFrame {
    /// A frame for all subscribers of a channel.
    pub fn new(subject: ChannelKey, frame: impl Into<Bytes>) -> Self {
        Self { subject, frame: frame.into(), except: None, ends: false, order: None, issued_at: None }
    }
}

/// The last event that a server published to a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastEvent {
    /// Name of the event.
    pub event: String,
    /// Data of the event, as text.
    pub data: String,
}

/// Outcome of a new subscriber's look-up in a cache channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastEventLookup {
    /// The channel's last event.
    Found(LastEvent),
    /// The channel has no last event.
    Missing {
        /// Whether the caller reports the cache miss, to the client and as a webhook.
        report_miss: bool,
    },
}

/// Decision on a channel's subscription count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountUpdate {
    /// This count was published.
    Published(u64),
    /// Claim again after this time: the channel is large and its count was published a moment ago.
    RetryAfter(Duration),
    /// Nothing was published: this count is published already.
    Unchanged,
}

/// Connections, users and last event of a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelInfo {
    /// Number of connections in the channel.
    pub connections: u64,
    /// Ids of a presence channel's users.
    pub users: Vec<String>,
    /// The last event, and its remaining TTL.
    pub last: Option<(LastEvent, Duration)>,
}

/// Why a call of the bus failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The presence channel has as many members as it may have.
    #[error("the presence channel is full: {0} members")]
    ChannelFull(usize),
    /// The channel has as many connections as it may have.
    #[error("the channel has all its connections")]
    ConnectionLimit {
        /// Whether some of them may be those of a dead process, which are removed soon.
        is_temporary: bool,
    },
    /// The store does not answer. Joins and leaves are noted, and decided once it answers again.
    #[error("the bus does not answer: {0}")]
    Unavailable(String),
    /// The store answers, but cannot be a bus, such as a read-only replica.
    #[error("{0}")]
    Unusable(String),
}

/// Membership of channels, as the whole cluster sees it: joins, leaves and the transitions that follow.
///
/// The bus reports each transition to the subscribers itself, by frames that every process receives in the order of the
/// decisions: `member_added` and `member_removed` on presence channels, and the online state of users to their watchers.
/// The caller records the transitions.
pub trait Membership: Send + Sync {
    /// Adds a connection to a channel, as a member on a presence channel. A second join changes nothing.
    fn join_channel<'a>(
        &'a self,
        subject: &'a ChannelKey,
        socket: &'a SocketId,
        member: Option<&'a PresenceMember>,
    ) -> BoxFuture<'a, Result<JoinOutcome, BusError>> {
        self.join_bounded_channel(subject, socket, member, JoinLimits::default())
    }

    /// Adds a connection to a channel within limits, decided in one step with all other joins.
    fn join_bounded_channel<'a>(
        &'a self,
        subject: &'a ChannelKey,
        socket: &'a SocketId,
        member: Option<&'a PresenceMember>,
        limits: JoinLimits,
    ) -> BoxFuture<'a, Result<JoinOutcome, BusError>>;

    /// Removes a connection from a channel. A second leave changes nothing.
    fn leave_channel<'a>(
        &'a self,
        subject: &'a ChannelKey,
        socket: &'a SocketId,
        cause: Option<LeaveCause>,
    ) -> BoxFuture<'a, Result<DecidedTransitions, BusError>>;

    /// Number of transitions of this process whose receipts the store has not confirmed. The bus keeps them for the
    /// process that sweeps this one.
    fn unacknowledged_count(&self) -> usize;

    /// Takes the queue of transitions that the bus emits on its own; `None` after the first call.
    fn take_remote_transitions(&self) -> Option<mpsc::Receiver<RemoteTransitions>>;

    /// Leaves the cluster on an orderly shutdown. The process has no connections, so that no other need sweep it.
    fn leave_cluster(&self) -> BoxFuture<'_, ()>;
}

/// Fan-out of frames between the processes of a cluster.
pub trait Broadcast: Send + Sync {
    /// Publishes a frame to a channel's subscribers on the *other* processes; this process delivers to its own itself. A
    /// frame that ends connections and could not be published is published once the store answers.
    fn publish_frame(&self, message: BroadcastFrame) -> BoxFuture<'_, Result<(), BusError>>;

    /// Publishes frames as [`Broadcast::publish_frame`] does, in their order.
    fn publish_frames(&self, messages: Vec<BroadcastFrame>) -> BoxFuture<'_, Result<(), BusError>>;

    /// Takes the queue of frames from other processes, and of those that the bus itself published; `None` after the first
    /// call. The queue is bounded: a process that does not keep up loses the newest frames, which
    /// [`Broadcast::lost_frames`] counts.
    fn take_incoming_frames(&self) -> Option<mpsc::Receiver<BroadcastFrame>>;

    /// Number of frames that were dropped because this process did not keep up.
    fn lost_frames(&self) -> u64;

    /// Number of this process's leases that expired, after each of which it re-registered all connections.
    fn lost_leases(&self) -> u64;
}

/// Values that the bus keeps for each channel: the last event, the published count, and its connections.
pub trait ChannelStore: Send + Sync {
    /// Stores an event as a channel's last event, for so long.
    fn store_last_event<'a>(
        &'a self,
        subject: &'a ChannelKey,
        last: &'a LastEvent,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), BusError>>;

    /// Looks up a channel's last event for a new subscriber. Of the subscribers that miss it at one time, one reports it.
    fn look_up_last_event<'a>(&'a self, subject: &'a ChannelKey) -> BoxFuture<'a, Result<LastEventLookup, BusError>>;

    /// Publishes a channel's subscription count to its subscribers on every process, unless it is published already or
    /// was a moment ago. Each count is published once, and the caller records it.
    fn claim_count_update<'a>(&'a self, subject: &'a ChannelKey) -> BoxFuture<'a, Result<CountUpdate, BusError>>;

    /// Returns a channel's connections, users and last event.
    fn inspect_channel<'a>(&'a self, subject: &'a ChannelKey) -> BoxFuture<'a, Result<ChannelInfo, BusError>>;

    /// Returns for each channel, in their order, whether it has a connection.
    fn are_occupied<'a>(&'a self, subjects: &'a [ChannelKey]) -> BoxFuture<'a, Result<Vec<bool>, BusError>>;

    /// Lists the app's occupied channels with this prefix, each with its number of users. Channels that the server
    /// itself uses are left out.
    fn list_channels<'a>(
        &'a self,
        app: &'a AppId,
        prefix: &'a str,
    ) -> BoxFuture<'a, Result<Vec<(ChannelName, u64)>, BusError>>;
}

/// The processes of this cluster that are alive, and the HTTP sessions of the whole group with their owners. Callers check [`Health::is_available`]
/// before a call, so that an unavailable store costs a request nothing.
pub trait SessionDirectory: Health {
    /// Registers this process as alive for [`relay::PEER_LEASE_TTL`], and returns every process that is alive.
    fn send_heartbeat<'a>(&'a self, peer: &'a RelayPeer) -> BoxFuture<'a, Result<HeartbeatResponse, BusError>>;

    /// Claims a session for a process, for [`relay::SESSION_ENTRY_TTL`]; `None` when the claim succeeded. Otherwise
    /// nothing changes, and the session's owner is returned.
    fn claim_session<'a>(
        &'a self,
        session: &'a str,
        process: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, BusError>>;

    /// Renews a process's claims to these sessions, even where an entry has expired.
    fn refresh_sessions<'a>(&'a self, sessions: &'a [String], process: &'a str) -> BoxFuture<'a, Result<(), BusError>>;

    /// Returns the process that owns a session, or owned it when it died.
    fn session_owner<'a>(&'a self, session: &'a str) -> BoxFuture<'a, Result<Option<String>, BusError>>;

    /// Releases a process's claim to a session.
    fn release_session<'a>(&'a self, session: &'a str, process: &'a str) -> BoxFuture<'a, Result<(), BusError>>;

    /// Reports that a client's message did not reach its session's owner, which learns of it with its next heartbeat:
    /// see [`HeartbeatResponse::sessions_with_lost_sends`].
    fn report_lost_send<'a>(&'a self, session: &'a str, owner: &'a str) -> BoxFuture<'a, Result<(), BusError>>;
}

/// The load of the edges of one cluster.
pub trait LoadBoard: Send + Sync {
    /// Shares the load of a process for [`load::LOAD_TTL`], and returns those of the others that are alive.
    fn exchange_load<'a>(
        &'a self,
        process: &'a str,
        load: &'a EdgeLoad,
    ) -> BoxFuture<'a, Result<Vec<EdgeLoad>, BusError>>;
}

/// State of the bus's connection to its store.
pub trait Health: Send + Sync {
    /// Whether the store answers, so that other processes can be reached.
    fn is_available(&self) -> bool;

    /// Whether member lists are complete: the store answers, and every process had the time to report its connections.
    fn is_presence_ready(&self) -> bool {
        self.is_available()
    }
}

/// One process's connection to the bus, with all its parts. A user that needs one part takes that trait alone.
pub trait Bus: Membership + Broadcast + ChannelStore + SessionDirectory + LoadBoard + Health {}

impl<T: Membership + Broadcast + ChannelStore + SessionDirectory + LoadBoard + Health> Bus for T {}
