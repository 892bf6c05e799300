//! The bus of many processes: Redis 7 or Valkey, alone, behind Sentinel, or a cluster of them.
//!
//! Who is where is decided by one script per channel, atomic: two edges that decided for themselves would both say
//! "occupied". Frames travel by publish and subscribe, which loses what nobody hears; state does not depend on it.
//!
//! Every process keeps a lease. Whoever finds that one has ended sweeps after it: its connections leave, and what it had
//! decided and not yet recorded is told by the sweeper, under the same ids. A store that was away is told again who is
//! where; one that lost its memory tells nothing until everyone has told it ([`Timing::settle`]).

mod change;
mod core;
mod held;
mod keeper;
mod message;
#[cfg(test)]
mod model;
mod names;
mod rooms;
mod sessions;
mod store;
mod trust;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::SubscriberClient;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use futures::future::BoxFuture;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::core::Core;
use self::names::Names;
pub use self::store::Address;
use self::store::{PIPELINE, away, unavailable};
use super::peers::{Alive, Peer};
use super::{Bus, BusError, Count, Decided, Joined, Last, Message, Recalled, Seen, Subject, Transition};
use crate::protocol::frame::Member;
use crate::protocol::record::{Cause, Order};
use crate::protocol::{AppId, ChannelName, SocketId};

/// Seconds for which the counter of a vacated channel is kept, so that its sequence never starts again while events of
/// its past may still be under way.
const TOMBSTONE_SECONDS: u64 = 3_600;
/// Frames that wait for this process.
const QUEUE: usize = 16_384;
/// Channels of which something was decided unasked and waits to be taken.
const DECIDED: usize = 16_384;
/// Longest that a process waits for its first contact before it goes on without.
const FIRST: Duration = Duration::from_secs(5);
/// Longest for a farewell.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long things take on the bus.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A process that was silent for so long is dead.
    pub lease: Duration,
    /// Time between two signs of life.
    pub renew: Duration,
    /// A store that lost its memory is told everything in this time, and tells nothing.
    pub settle: Duration,
    /// Nobody sweeps whose own contact with the store, or the store's memory, is younger.
    pub rest: Duration,
}

impl Timing {
    /// What edges use.
    pub const DEFAULT: Self = Self {
        lease: Duration::from_secs(10),
        renew: Duration::from_secs(3),
        settle: Duration::from_secs(5),
        rest: Duration::from_secs(15),
    };
}

/// One process's end of a bus in Redis.
pub struct RedisBus {
    core: Arc<Core>,
    process: String,
    rooms: rooms::Rooms,
    sessions: sessions::Sessions,
    inbox: Mutex<Option<mpsc::Receiver<Message>>>,
    decided: Mutex<Option<mpsc::Receiver<Decided>>>,
    safe: mpsc::Sender<(Subject, Vec<Order>)>,
    lost: Arc<AtomicU64>,
    first: watch::Receiver<Option<Result<(), String>>>,
    _subscriber: SubscriberClient,
}

impl RedisBus {
    /// An end of the bus of `cluster`, and its first contact. Redis need not answer yet: until it does, calls fail
    /// soon.
    ///
    /// # Errors
    /// The address is none, or what answers there cannot be a bus.
    pub async fn connect<'a>(
        address: impl Into<Address<'a>>,
        cluster: &str,
        process: &str,
        shutdown: CancellationToken,
    ) -> Result<Self, BusError> {
        let bus = Self::start(address, cluster, process, Timing::DEFAULT, shutdown)?;
        let mut first = bus.first.clone();
        if let Ok(Ok(found)) = timeout(FIRST, first.wait_for(Option::is_some)).await {
            if let Some(Err(reason)) = &*found {
                return Err(BusError::Unfit(reason.clone()));
            }
        } else {
            tracing::warn!("the bus does not answer yet; the server goes on and tries again");
        }
        Ok(bus)
    }

    /// The same without waiting, and with other times.
    ///
    /// # Errors
    /// The address is none.
    pub fn start<'a>(
        address: impl Into<Address<'a>>,
        cluster: &str,
        process: &str,
        timing: Timing,
        shutdown: CancellationToken,
    ) -> Result<Self, BusError> {
        let builder = store::builder(address.into(), QUEUE)?;
        let client = builder.build().map_err(unavailable)?;
        let subscriber = builder.build_subscriber_client().map_err(unavailable)?;
        let names = Names { cluster: cluster.to_owned(), clustered: client.is_clustered() };
        let (told, decided) = mpsc::channel(DECIDED);
        let core = Core::new(client.clone(), names.clone(), process.to_owned(), timing, told);
        let core = Arc::new(core);
        let (first_sender, first) = watch::channel(None);
        let (safe, acknowledged) = mpsc::channel(keeper::SAFE);
        // They listen before there is anything to hear.
        tokio::spawn(trust::watch(client.error_rx(), first_sender.clone(), shutdown.clone()));
        tokio::spawn(keeper::Keeper::new(core.clone()).keep_lease(first_sender, shutdown.clone()));
        tokio::spawn(keeper::Keeper::new(core.clone()).work(shutdown.clone()));
        tokio::spawn(keeper::acknowledge(core.clone(), acknowledged, shutdown.clone()));
        client.connect();
        subscriber.connect();
        subscriber.manage_subscriptions();
        let (sender, inbox) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let listening = receive(subscriber.clone(), names.frames(), process.to_owned(), sender, lost.clone(), shutdown);
        tokio::spawn(listening);
        Ok(Self {
            sessions: sessions::Sessions::new(client.clone(), names.clone()),
            rooms: rooms::Rooms::new(client, names),
            core,
            process: process.to_owned(),
            inbox: Mutex::new(Some(inbox)),
            decided: Mutex::new(Some(decided)),
            safe,
            lost,
            first,
            _subscriber: subscriber,
        })
    }

    /// Nobody waits for a store that is known to be away.
    async fn ask<T>(&self, call: impl Future<Output = Result<T, BusError>>) -> Result<T, BusError> {
        if self.up() { call.await } else { Err(away()) }
    }
}

/// Takes the frames of other processes until the token ends it. The subscription outlives a connection; frames sent in
/// between are lost to this process, as they are to a client whose own connection breaks.
async fn receive(
    subscriber: SubscriberClient,
    frames: String,
    process: String,
    sender: mpsc::Sender<Message>,
    lost: Arc<AtomicU64>,
    shutdown: CancellationToken,
) {
    let mut arriving = subscriber.message_rx();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            answer = subscriber.subscribe(frames.clone()) => match answer {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(%error, "the bus cannot be listened to; trying again");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }
    loop {
        let message = tokio::select! {
            () = shutdown.cancelled() => return,
            message = arriving.recv() => message,
        };
        let bytes: Bytes = match message {
            Ok(message) => match message.value.into_bytes() {
                Some(bytes) => bytes,
                None => continue,
            },
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                lost.fetch_add(missed, Ordering::Relaxed);
                continue;
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        match message::decode(&bytes, &process) {
            message::Decoded::Own => {}
            message::Decoded::Message(message) => {
                if sender.try_send(message).is_err() {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
            message::Decoded::Garbled => {
                lost.fetch_add(1, Ordering::Relaxed);
                tracing::warn!("a frame on the bus cannot be read: is another release or program using it?");
            }
        }
    }
}

impl Bus for RedisBus {
    fn join<'a>(
        &'a self,
        subject: &'a Subject,
        socket: &'a SocketId,
        member: Option<&'a Member>,
    ) -> BoxFuture<'a, Result<Joined, BusError>> {
        Box::pin(self.core.enter(subject, socket, member))
    }

    fn leave<'a>(
        &'a self,
        subject: &'a Subject,
        socket: &'a SocketId,
        cause: Option<Cause>,
    ) -> BoxFuture<'a, Result<Vec<Transition>, BusError>> {
        Box::pin(self.core.leave(subject, socket, cause))
    }

    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), BusError>> {
        Box::pin(async move {
            if !self.up() {
                return Err(away());
            }
            let bytes = message::encode(&message, &self.process)?;
            let sent = self.core.client.publish::<i64, _, _>(self.core.names.frames(), bytes).await;
            sent.map(|_| ()).map_err(unavailable)
        })
    }

    fn publish_all(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), BusError>> {
        let messages = match <[Message; 1]>::try_from(messages) {
            Ok([message]) => return self.publish(message),
            Err(messages) => messages,
        };
        Box::pin(async move {
            if !self.up() {
                return Err(away());
            }
            for part in messages.chunks(PIPELINE) {
                // In one go: a round trip for each would take most of the time of a sweep.
                let pipeline = self.core.client.pipeline();
                for message in part {
                    let bytes = message::encode(message, &self.process)?;
                    pipeline.publish::<(), _, _>(self.core.names.frames(), bytes).await.map_err(unavailable)?;
                }
                pipeline.all::<Vec<i64>>().await.map_err(unavailable)?;
            }
            Ok(())
        })
    }

    fn keep<'a>(&'a self, subject: &'a Subject, last: &'a Last) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(self.ask(self.rooms.keep(subject, last)))
    }

    fn recall<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Recalled, BusError>> {
        Box::pin(self.ask(self.rooms.recall(subject)))
    }

    fn count<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Count, BusError>> {
        Box::pin(self.ask(self.rooms.count(subject)))
    }

    fn look<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Seen, BusError>> {
        Box::pin(self.ask(self.rooms.look(subject)))
    }

    fn occupied<'a>(&'a self, subjects: &'a [Subject]) -> BoxFuture<'a, Result<Vec<bool>, BusError>> {
        Box::pin(self.ask(self.rooms.occupied(subjects)))
    }

    fn list<'a>(&'a self, app: &'a AppId, prefix: &'a str) -> BoxFuture<'a, Result<Vec<(ChannelName, u64)>, BusError>> {
        Box::pin(self.ask(self.rooms.list(app, prefix)))
    }

    fn messages(&self) -> Option<mpsc::Receiver<Message>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed) + self.core.untaken.load(Ordering::Relaxed)
    }

    fn recorded(&self, subject: &Subject, orders: &[Order]) {
        // What does not fit stays in the outbox, and is told again, under the same id, should this process die.
        let _ = self.safe.try_send((subject.clone(), orders.to_vec()));
    }

    fn decided(&self) -> Option<mpsc::Receiver<Decided>> {
        self.decided.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn up(&self) -> bool {
        self.core.up()
    }

    fn knows(&self) -> bool {
        self.core.knows()
    }

    fn resign(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if timeout(FAREWELL, keeper::resign(&self.core)).await.is_err() {
                tracing::debug!("the bus did not hear the farewell; the lease ends by itself");
            }
        })
    }

    fn alive<'a>(&'a self, peer: &'a Peer) -> BoxFuture<'a, Result<Alive, BusError>> {
        Box::pin(self.sessions.alive(peer))
    }

    fn own<'a>(&'a self, session: &'a str, process: &'a str) -> BoxFuture<'a, Result<Option<String>, BusError>> {
        Box::pin(self.sessions.own(session, process))
    }

    fn name<'a>(&'a self, sessions: &'a [String], process: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(self.sessions.name(sessions, process))
    }

    fn owner<'a>(&'a self, session: &'a str) -> BoxFuture<'a, Result<Option<String>, BusError>> {
        Box::pin(self.sessions.owner(session))
    }

    fn disown<'a>(&'a self, session: &'a str, process: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(self.sessions.disown(session, process))
    }

    fn lose<'a>(&'a self, session: &'a str, owner: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(self.sessions.lose(session, owner))
    }
}
