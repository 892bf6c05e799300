//! What joins the edges of one cluster: fan-out of events, and who is where.
//!
//! In: a connection that enters or leaves a channel, or a frame for a channel. Out: what that changed for the whole
//! cluster, with the (epoch, seq) that orders it, and the frames of others. Occupancy is decided here, in one place and
//! at once, because two edges that decided for themselves would both say "occupied".
//!
//! This room must not know transports, sockets or records.

mod memory;
mod redis;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

pub use memory::MemoryBus;
pub use redis::RedisBus;

use crate::protocol::frame::Member;
use crate::protocol::record::{EventKind, Order};
use crate::protocol::{AppId, ChannelName, SocketId};

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
}

/// Why the bus did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The channel has as many members as it may.
    #[error("the presence channel is full: {0} members")]
    Full(usize),
    /// The other side does not answer.
    #[error("the bus does not answer: {0}")]
    Unavailable(String),
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
    ) -> BoxFuture<'a, Result<Vec<Transition>, BusError>>;

    /// Sends a frame to the subscribers of a channel on the *other* processes; this process has served its own.
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), BusError>>;

    /// The frames of other processes. Taken once; `None` afterwards. The queue is bounded: a process that does not
    /// keep up loses the newest, which [`Bus::lost`] counts.
    fn messages(&self) -> Option<mpsc::Receiver<Message>>;

    /// Frames that this process was too slow to take.
    fn lost(&self) -> u64;
}
