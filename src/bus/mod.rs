//! What joins the edges of one cluster: fan-out of events, who is where, and the last event of channels that keep it.
//!
//! In: a connection that enters or leaves a channel, or a frame for a channel. Out: what that changed for the whole
//! cluster, with the (epoch, seq) that orders it, and the frames of others. Occupancy is decided here, in one place and
//! at once, because two edges that decided for themselves would both say "occupied".
//!
//! This room must not know transports, sockets or records.

mod memory;
mod memory_sessions;
pub mod peers;
mod redis;

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use memory::MemoryBus;
pub use peers::{Alive, Peer};
pub use redis::{Address, RedisBus, Timing};

use crate::protocol::frame::Member;
use crate::protocol::record::{Cause, EventKind, Order};
use crate::protocol::{AppId, ChannelName, SocketId};

/// Most members of a presence channel, as Pusher documents it.
pub const MAX_MEMBERS: usize = 100;

/// How long a channel's last event is kept, as Pusher documents it.
const KEPT: Duration = Duration::from_mins(30);

/// Those who come to a channel without a last event are told of once in this time: they come together, and the app's
/// backend needs a moment to publish one.
const MISSED: Duration = Duration::from_secs(5);

/// A channel with more connections than this is counted aloud only every [`COUNT_EVERY`].
const MANY: u64 = 100;

/// Time between two counts of a large channel.
const COUNT_EVERY: Duration = Duration::from_secs(5);

/// One channel of one app.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
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
    pub order: Order,
    /// When it was decided, in ms since 1970.
    pub time_ms: u64,
    /// What made a member leave.
    pub cause: Option<Cause>,
}

/// What the bus decided without being asked: about the connections of a process that died, or once a store that lost
/// its memory has heard everyone again.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    /// The channel.
    pub subject: Subject,
    /// In the order decided.
    pub transitions: Vec<Transition>,
    /// Those who were added.
    pub members: Vec<Member>,
}

/// What entering a channel changed and found.
#[derive(Clone, Debug, Default)]
pub struct Joined {
    /// In the order decided.
    pub transitions: Vec<Transition>,
    /// Everyone who is there now, on a presence channel.
    pub roster: Vec<Member>,
}

/// A frame on its way to the subscribers of a channel.
#[derive(Clone, Debug)]
pub struct Message {
    /// Where it goes.
    pub subject: Subject,
    /// The serialised frame, shared by all who get it.
    pub frame: Bytes,
    /// A connection that must not get it.
    pub except: Option<SocketId>,
    /// Whether those who get it are ended after it.
    pub ends: bool,
}

/// An event that a server published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// Its name.
    pub event: String,
    /// Its data, as text.
    pub data: String,
}

/// What a channel that keeps its last event has for someone who comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recalled {
    /// The event.
    Kept(Last),
    /// Nothing.
    Missing {
        /// Whether this is the one who is to tell.
        first: bool,
    },
}

/// What to tell of how many connections are in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// This, now.
    Tell(u64),
    /// Ask again after this time.
    Later(Duration),
    /// Nothing: it was told already.
    Told,
}

/// What is known of a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How many connections are in it.
    pub connections: u64,
    /// The ids of the users in it, on a presence channel.
    pub users: Vec<String>,
    /// Its last event, and for how long it is kept.
    pub last: Option<(Last, Duration)>,
}

/// Why the bus did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The channel has as many members as it may.
    #[error("the presence channel is full: {0} members")]
    Full(usize),
    /// The other side does not answer. Who enters and who leaves is noted, and decided once it answers again.
    #[error("the bus does not answer: {0}")]
    Unavailable(String),
    /// The other side answers, and is not fit to be a bus.
    #[error("{0}")]
    Unfit(String),
}

/// A process's end of the bus.
pub trait Bus: Send + Sync {
    /// A connection enters a channel, as a member on a presence channel. Entering twice changes nothing.
    fn join<'a>(
        &'a self,
        subject: &'a Subject,
        socket: &'a SocketId,
        member: Option<&'a Member>,
    ) -> BoxFuture<'a, Result<Joined, BusError>>;

    /// A connection leaves a channel. Leaving twice changes nothing.
    fn leave<'a>(
        &'a self,
        subject: &'a Subject,
        socket: &'a SocketId,
        cause: Option<Cause>,
    ) -> BoxFuture<'a, Result<Vec<Transition>, BusError>>;

    /// Sends a frame to the subscribers of a channel on the *other* processes; this process has served its own.
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), BusError>>;

    /// Sends frames as [`Bus::publish`] does, in their order.
    fn publish_all(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), BusError>>;

    /// Keeps an event as a channel's last.
    fn keep<'a>(&'a self, subject: &'a Subject, last: &'a Last) -> BoxFuture<'a, Result<(), BusError>>;

    /// A channel's last event, for someone who comes. Of those who find nothing at one time, one is to tell.
    fn recall<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Recalled, BusError>>;

    /// Whether to tell how many connections are in a channel. Each count is told by one process.
    fn count<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Count, BusError>>;

    /// What is known of a channel.
    fn look<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Seen, BusError>>;

    /// Which of these channels have a connection in them, in their order.
    fn occupied<'a>(&'a self, subjects: &'a [Subject]) -> BoxFuture<'a, Result<Vec<bool>, BusError>>;

    /// The app's channels with this prefix that have a connection in them, and how many users are in each. The
    /// server's own are not among them.
    fn list<'a>(&'a self, app: &'a AppId, prefix: &'a str) -> BoxFuture<'a, Result<Vec<(ChannelName, u64)>, BusError>>;

    /// The frames of other processes. Taken once; `None` afterwards. The queue is bounded: a process that does not
    /// keep up loses the newest, which [`Bus::lost`] counts.
    fn messages(&self) -> Option<mpsc::Receiver<Message>>;

    /// Frames that this process was too slow to take.
    fn lost(&self) -> u64;

    /// These transitions of a channel are safe elsewhere. Until it hears so, the bus keeps them for whoever comes after
    /// this process.
    fn recorded(&self, subject: &Subject, orders: &[Order]);

    /// What the bus decides without being asked. Taken once; `None` afterwards.
    fn decided(&self) -> Option<mpsc::Receiver<Decided>>;

    /// Whether the other processes can be reached.
    fn up(&self) -> bool;

    /// Whether it can be told who is in a presence channel: the others can be reached, and each could say whom it has.
    fn knows(&self) -> bool {
        self.up()
    }

    /// The process ends in order: it has nobody anywhere, and nobody need sweep after it.
    fn resign(&self) -> BoxFuture<'_, ()>;

    /// This process is alive and may be asked, for [`peers::LEASE`] from now. Tells who else is.
    fn alive<'a>(&'a self, peer: &'a Peer) -> BoxFuture<'a, Result<Alive, BusError>>;

    /// Takes a session for a process, for [`peers::ENTRY`]; `None` when it has it now. Otherwise nothing changes, and the
    /// process is named that has it.
    fn own<'a>(&'a self, session: &'a str, process: &'a str) -> BoxFuture<'a, Result<Option<String>, BusError>>;

    /// A process still has these sessions, whatever is known of them.
    fn name<'a>(&'a self, sessions: &'a [String], process: &'a str) -> BoxFuture<'a, Result<(), BusError>>;

    /// The process that has a session, or had it when it died.
    fn owner<'a>(&'a self, session: &'a str) -> BoxFuture<'a, Result<Option<String>, BusError>>;

    /// A process has a session no more.
    fn disown<'a>(&'a self, session: &'a str, process: &'a str) -> BoxFuture<'a, Result<(), BusError>>;

    /// A message of a session did not reach its owner, which is to be told: see [`Alive::losers`].
    fn lose<'a>(&'a self, session: &'a str, owner: &'a str) -> BoxFuture<'a, Result<(), BusError>>;
}
