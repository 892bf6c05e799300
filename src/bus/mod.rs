//! What joins the edges of one cluster: fan-out of events, who is where, and the last event of channels that keep it.
//!
//! In: a connection that enters or leaves a channel, or a frame for a channel. Out: what that changed for the whole
//! cluster, with the (epoch, seq) that orders it, and the frames of others. Occupancy is decided here, in one place and
//! at once, because two edges that decided for themselves would both say "occupied".
//!
//! This room must not know transports, sockets or records.

mod memory;
mod memory_sessions;
mod redis;
pub mod relay;

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use memory::MemoryBus;
pub use redis::{BusTiming, RedisAddress, RedisBus};
pub use relay::{HeartbeatResponse, RelayPeer};

use crate::protocol::frame::PresenceMember;
use crate::protocol::record::{EventKind, EventOrder, LeaveCause};
use crate::protocol::{AppId, ChannelName, SocketId};

/// Most members of a presence channel, as Pusher documents it.
pub const PRESENCE_MEMBERS_MAX: usize = 100;

/// How long a channel's last event is kept, as Pusher documents it.
const LAST_EVENT_TTL: Duration = Duration::from_mins(30);

/// Those who come to a channel without a last event are told of once in this time: they come together, and the app's
/// backend needs a moment to publish one.
const CACHE_MISS_INTERVAL: Duration = Duration::from_secs(5);

/// A channel with more connections than this is counted aloud only every [`COUNT_EVERY`].
const LARGE_CHANNEL_THRESHOLD: u64 = 100;

/// Time between two counts of a large channel.
const LARGE_CHANNEL_COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// One channel of one app.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelKey {
    /// The app.
    pub app: AppId,
    /// The channel.
    pub channel: ChannelName,
}

/// Something that changed for the whole cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    /// Unique, and the same through every retry.
    pub id: String,
    /// What changed: occupied, vacated, added or removed.
    pub kind: EventKind,
    /// Its place in the channel's history.
    pub order: EventOrder,
    /// When it was decided, in ms since 1970.
    pub time_ms: u64,
    /// What made a member leave.
    pub cause: Option<LeaveCause>,
}

/// What the bus decided without being asked: about the connections of a process that died, or once a store that lost
/// its memory has heard everyone again.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteTransitions {
    /// The channel.
    pub subject: ChannelKey,
    /// In the order decided.
    pub transitions: Vec<Transition>,
    /// Those who were added.
    pub members: Vec<PresenceMember>,
}

/// What entering a channel changed and found.
#[derive(Clone, Debug, Default)]
pub struct JoinOutcome {
    /// In the order decided.
    pub transitions: Vec<Transition>,
    /// Everyone who is there now, on a presence channel.
    pub roster: Vec<PresenceMember>,
}

/// A frame on its way to the subscribers of a channel.
#[derive(Clone, Debug)]
pub struct BroadcastFrame {
    /// Where it goes.
    pub subject: ChannelKey,
    /// The serialised frame, shared by all who get it.
    pub frame: Bytes,
    /// A connection that must not get it.
    pub except: Option<SocketId>,
    /// Whether those who get it are ended after it.
    pub ends: bool,
}

/// An event that a server published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastEvent {
    /// Its name.
    pub event: String,
    /// Its data, as text.
    pub data: String,
}

/// What a channel that keeps its last event has for someone who comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastEventLookup {
    /// The event.
    Found(LastEvent),
    /// Nothing.
    Missing {
        /// Whether this is the one who is to tell.
        report_miss: bool,
    },
}

/// What to tell of how many connections are in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountUpdate {
    /// This, now.
    Publish(u64),
    /// Ask again after this time.
    RetryAfter(Duration),
    /// Nothing: it was told already.
    Unchanged,
}

/// What is known of a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelInfo {
    /// How many connections are in it.
    pub connections: u64,
    /// The ids of the users in it, on a presence channel.
    pub users: Vec<String>,
    /// Its last event, and for how long it is kept.
    pub last: Option<(LastEvent, Duration)>,
}

/// Why the bus did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The channel has as many members as it may.
    #[error("the presence channel is full: {0} members")]
    ChannelFull(usize),
    /// The other side does not answer. Who enters and who leaves is noted, and decided once it answers again.
    #[error("the bus does not answer: {0}")]
    Unavailable(String),
    /// The other side answers, and is not fit to be a bus.
    #[error("{0}")]
    Unusable(String),
}

/// A process's end of the bus.
pub trait Bus: Send + Sync {
    /// A connection enters a channel, as a member on a presence channel. Entering twice changes nothing.
    fn join_channel<'a>(
        &'a self,
        subject: &'a ChannelKey,
        socket: &'a SocketId,
        member: Option<&'a PresenceMember>,
    ) -> BoxFuture<'a, Result<JoinOutcome, BusError>>;

    /// A connection leaves a channel. Leaving twice changes nothing.
    fn leave_channel<'a>(
        &'a self,
        subject: &'a ChannelKey,
        socket: &'a SocketId,
        cause: Option<LeaveCause>,
    ) -> BoxFuture<'a, Result<Vec<Transition>, BusError>>;

    /// Sends a frame to the subscribers of a channel on the *other* processes; this process has served its own.
    fn publish_frame(&self, message: BroadcastFrame) -> BoxFuture<'_, Result<(), BusError>>;

    /// Sends frames as [`Bus::publish`] does, in their order.
    fn publish_frames(&self, messages: Vec<BroadcastFrame>) -> BoxFuture<'_, Result<(), BusError>>;

    /// Keeps an event as a channel's last.
    fn store_last_event<'a>(
        &'a self,
        subject: &'a ChannelKey,
        last: &'a LastEvent,
    ) -> BoxFuture<'a, Result<(), BusError>>;

    /// A channel's last event, for someone who comes. Of those who find nothing at one time, one is to tell.
    fn look_up_last_event<'a>(&'a self, subject: &'a ChannelKey) -> BoxFuture<'a, Result<LastEventLookup, BusError>>;

    /// Whether to tell how many connections are in a channel. Each count is told by one process.
    fn claim_count_update<'a>(&'a self, subject: &'a ChannelKey) -> BoxFuture<'a, Result<CountUpdate, BusError>>;

    /// What is known of a channel.
    fn inspect_channel<'a>(&'a self, subject: &'a ChannelKey) -> BoxFuture<'a, Result<ChannelInfo, BusError>>;

    /// Which of these channels have a connection in them, in their order.
    fn are_occupied<'a>(&'a self, subjects: &'a [ChannelKey]) -> BoxFuture<'a, Result<Vec<bool>, BusError>>;

    /// The app's channels with this prefix that have a connection in them, and how many users are in each. The
    /// server's own are not among them.
    fn list_channels<'a>(
        &'a self,
        app: &'a AppId,
        prefix: &'a str,
    ) -> BoxFuture<'a, Result<Vec<(ChannelName, u64)>, BusError>>;

    /// The frames of other processes. Taken once; `None` afterwards. The queue is bounded: a process that does not
    /// keep up loses the newest, which [`Bus::lost`] counts.
    fn take_incoming_frames(&self) -> Option<mpsc::Receiver<BroadcastFrame>>;

    /// Frames that this process was too slow to take.
    fn lost_frames(&self) -> u64;

    /// These transitions of a channel are safe elsewhere. Until it hears so, the bus keeps them for whoever comes after
    /// this process.
    fn acknowledge_recorded(&self, subject: &ChannelKey, orders: &[EventOrder]);

    /// What the bus decides without being asked. Taken once; `None` afterwards.
    fn take_remote_transitions(&self) -> Option<mpsc::Receiver<RemoteTransitions>>;

    /// Whether the other processes can be reached.
    fn is_available(&self) -> bool;

    /// Whether it can be told who is in a presence channel: the others can be reached, and each could say whom it has.
    fn is_presence_ready(&self) -> bool {
        self.is_available()
    }

    /// The process ends in order: it has nobody anywhere, and nobody need sweep after it.
    fn leave_cluster(&self) -> BoxFuture<'_, ()>;

    /// This process is alive and may be asked, for [`peers::LEASE`] from now. Tells who else is.
    fn send_heartbeat<'a>(&'a self, peer: &'a RelayPeer) -> BoxFuture<'a, Result<HeartbeatResponse, BusError>>;

    /// Takes a session for a process, for [`peers::ENTRY`]; `None` when it has it now. Otherwise nothing changes, and the
    /// process is named that has it.
    fn claim_session<'a>(
        &'a self,
        session: &'a str,
        process: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, BusError>>;

    /// A process still has these sessions, whatever is known of them.
    fn refresh_sessions<'a>(&'a self, sessions: &'a [String], process: &'a str) -> BoxFuture<'a, Result<(), BusError>>;

    /// The process that has a session, or had it when it died.
    fn session_owner<'a>(&'a self, session: &'a str) -> BoxFuture<'a, Result<Option<String>, BusError>>;

    /// A process has a session no more.
    fn release_session<'a>(&'a self, session: &'a str, process: &'a str) -> BoxFuture<'a, Result<(), BusError>>;

    /// A message of a session did not reach its owner, which is to be told: see [`Alive::losers`].
    fn report_lost_send<'a>(&'a self, session: &'a str, owner: &'a str) -> BoxFuture<'a, Result<(), BusError>>;
}
