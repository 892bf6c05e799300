//! The bus of many processes: Redis 7, one node.
//!
//! Who is where is decided by scripts, one per change and atomic: two edges that decided for themselves would both say
//! "occupied". A channel's keys share one hash tag, so that they would share a slot too. Frames travel by publish and
//! subscribe, which loses what nobody hears; state does not depend on it.
//!
//! A process that dies without leaving stays a member here: nobody sweeps yet.

mod message;
mod rooms;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::clients::{Client, SubscriberClient};
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::Builder;
use fred::types::config::{Config, ReconnectPolicy};
use fred::types::scripts::Script;
use futures::future::BoxFuture;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use super::{Bus, BusError, Count, Joined, Last, Message, Recalled, Seen, Subject, Transition};
use crate::protocol::frame::Member;
use crate::protocol::record::{EventKind, Order};
use crate::protocol::{AppId, ChannelName, SocketId};

/// Most members of a presence channel, as Pusher documents it.
const MAX_MEMBERS: usize = 100;
/// Seconds for which the counter of a vacated channel is kept, so that its sequence never starts again while events of
/// its past may still be under way.
const TOMBSTONE_SECONDS: u64 = 3_600;
/// Frames that wait for this process.
const QUEUE: usize = 16_384;
/// Longest for one answer.
const ANSWER: Duration = Duration::from_secs(4);
/// Longest for a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Calls that wait while Redis is away; beyond, they fail at once.
const WAITING: usize = 10_000;
/// Channels whose order is remembered, against a store that loses its memory.
const REMEMBERED: usize = 50_000;

/// One process's end of a bus in Redis.
pub struct RedisBus {
    client: Client,
    /// Names the cluster in every key.
    cluster: String,
    process: String,
    join: Script,
    leave: Script,
    rooms: rooms::Rooms,
    frames: String,
    inbox: Mutex<Option<mpsc::Receiver<Message>>>,
    lost: Arc<AtomicU64>,
    /// The highest order that this process has seen of a channel.
    known: Mutex<HashMap<Subject, (Order, Instant)>>,
    _subscriber: SubscriberClient,
}

impl RedisBus {
    /// An end of the bus of `cluster`. Redis need not answer yet: until it does, calls fail soon.
    ///
    /// # Errors
    /// The address is none, or Redis refused the credentials.
    pub fn connect(url: &str, cluster: &str, process: &str, shutdown: CancellationToken) -> Result<Self, BusError> {
        // The address holds a password: it is never repeated.
        let mut config = Config::from_url(url).map_err(|_| {
            BusError::Unavailable(
                "REALTIME_REDIS_URL is no address of a Redis: write redis://USER:PASSWORD@HOST:PORT or rediss://…"
                    .to_owned(),
            )
        })?;
        // A Redis that is not up yet is waited for like one that went away.
        config.fail_fast = false;
        let mut builder = Builder::from_config(config);
        builder
            .with_connection_config(|connection| {
                connection.connection_timeout = CONNECT;
                connection.internal_command_timeout = CONNECT;
                connection.max_command_attempts = 1;
                connection.max_command_buffer_len = WAITING;
                connection.reconnect_on_auth_error = true;
                connection.unresponsive.max_timeout = Some(Duration::from_secs(10));
            })
            .with_performance_config(|performance| {
                performance.default_command_timeout = ANSWER;
                performance.broadcast_channel_capacity = QUEUE;
            })
            .set_policy(ReconnectPolicy::new_exponential(0, 100, 5_000, 2));
        let broken = |error: fred::error::Error| BusError::Unavailable(error.to_string());
        let client = builder.build().map_err(broken)?;
        let subscriber = builder.build_subscriber_client().map_err(broken)?;
        client.connect();
        subscriber.connect();
        subscriber.manage_subscriptions();
        let frames = format!("rt:{cluster}:frames");
        let (sender, inbox) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        tokio::spawn(receive(subscriber.clone(), frames.clone(), process.to_owned(), sender, lost.clone(), shutdown));
        Ok(Self {
            rooms: rooms::Rooms::new(client.clone(), cluster.to_owned()),
            client,
            cluster: cluster.to_owned(),
            process: process.to_owned(),
            join: Script::from_lua(include_str!("join.lua")),
            leave: Script::from_lua(include_str!("leave.lua")),
            frames,
            inbox: Mutex::new(Some(inbox)),
            lost,
            known: Mutex::default(),
            _subscriber: subscriber,
        })
    }

    fn keys(&self, subject: &Subject) -> Vec<String> {
        let tag = format!("rt:{{{}:{}:{}}}", self.cluster, subject.app, subject.channel);
        ["order", "sockets", "users", "infos"].map(|part| format!("{tag}:{part}")).into()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Subject, (Order, Instant)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, subject: &Subject) -> Order {
        self.known().get(subject).map_or(Order { epoch: 0, seq: 0 }, |(order, _)| *order)
    }

    fn remember(&self, subject: &Subject, transitions: &[Transition]) {
        let Some(last) = transitions.last() else { return };
        let mut known = self.known();
        if known.len() >= REMEMBERED {
            // What was not touched for an hour has no counter any more either.
            let age = Duration::from_secs(TOMBSTONE_SECONDS);
            known.retain(|_, (_, at)| at.elapsed() < age);
            if known.len() >= REMEMBERED {
                known.clear();
            }
        }
        known.insert(subject.clone(), (last.order, Instant::now()));
    }

    async fn run(&self, script: &Script, subject: &Subject, arguments: Vec<String>) -> Result<Vec<String>, BusError> {
        let answer = script.evalsha_with_reload::<Vec<String>, _, _>(&self.client, self.keys(subject), arguments).await;
        answer.map_err(|error| BusError::Unavailable(error.to_string()))
    }

    async fn enter(&self, subject: &Subject, socket: &SocketId, member: Option<&Member>) -> Result<Joined, BusError> {
        let order = self.order(subject);
        let info = member.map(serde_json::to_string).transpose();
        let info = info.map_err(|error| BusError::Unavailable(error.to_string()))?;
        let user = member.map(|member| member.user_id.clone()).unwrap_or_default();
        let arguments = vec![
            socket.to_string(),
            self.process.clone(),
            user.clone(),
            info.unwrap_or_default(),
            MAX_MEMBERS.to_string(),
            order.epoch.to_string(),
            order.seq.to_string(),
        ];
        let answer = self.run(&self.join, subject, arguments).await?;
        if answer.first().is_some_and(|word| word == "full") {
            return Err(BusError::Full(MAX_MEMBERS));
        }
        let Head { epoch, time_ms, count, rest } = head(&answer)?;
        let (decided, infos) = rest.split_at_checked(count * 2).ok_or_else(garbled)?;
        let transitions = decided
            .chunks_exact(2)
            .map(|pair| transition(&pair[0], (epoch, &pair[1]), time_ms, &user))
            .collect::<Result<Vec<_>, _>>()?;
        let roster = infos.iter().map(|info| serde_json::from_str(info)).collect::<Result<Vec<Member>, _>>();
        let mut roster = roster.map_err(|_| garbled())?;
        roster.sort_by(|one, other| one.user_id.cmp(&other.user_id));
        self.remember(subject, &transitions);
        Ok(Joined { transitions, roster })
    }

    async fn go(&self, subject: &Subject, socket: &SocketId) -> Result<Vec<Transition>, BusError> {
        let order = self.order(subject);
        let arguments =
            vec![socket.to_string(), order.epoch.to_string(), order.seq.to_string(), TOMBSTONE_SECONDS.to_string()];
        let answer = self.run(&self.leave, subject, arguments).await?;
        let Head { epoch, time_ms, count, rest } = head(&answer)?;
        let decided = rest.get(..count * 3).ok_or_else(garbled)?;
        let transitions = decided
            .chunks_exact(3)
            .map(|triple| transition(&triple[0], (epoch, &triple[1]), time_ms, &triple[2]))
            .collect::<Result<Vec<_>, _>>()?;
        self.remember(subject, &transitions);
        Ok(transitions)
    }
}

/// The beginning of a script's answer.
struct Head<'a> {
    epoch: u64,
    time_ms: u64,
    count: usize,
    rest: &'a [String],
}

fn head(answer: &[String]) -> Result<Head<'_>, BusError> {
    let [_, epoch, time_ms, count, rest @ ..] = answer else { return Err(garbled()) };
    let number = |text: &str| text.parse::<u64>().map_err(|_| garbled());
    let count = count.parse().map_err(|_| garbled())?;
    Ok(Head { epoch: number(epoch)?, time_ms: number(time_ms)?, count, rest })
}

fn transition(kind: &str, (epoch, seq): (u64, &str), time_ms: u64, user: &str) -> Result<Transition, BusError> {
    let user_id = user.to_owned();
    let kind = match kind {
        "occupied" => EventKind::ChannelOccupied,
        "vacated" => EventKind::ChannelVacated,
        "added" => EventKind::MemberAdded { user_id },
        "removed" => EventKind::MemberRemoved { user_id },
        _ => return Err(garbled()),
    };
    let seq = seq.parse().map_err(|_| garbled())?;
    Ok(Transition { id: Ulid::new().to_string(), kind, order: Order { epoch, seq }, time_ms })
}

fn garbled() -> BusError {
    BusError::Unavailable(
        "the answer of Redis is none of our scripts': is another program using the same keys?".to_owned(),
    )
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
        Box::pin(self.enter(subject, socket, member))
    }

    fn leave<'a>(
        &'a self,
        subject: &'a Subject,
        socket: &'a SocketId,
    ) -> BoxFuture<'a, Result<Vec<Transition>, BusError>> {
        Box::pin(self.go(subject, socket))
    }

    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), BusError>> {
        Box::pin(async move {
            let bytes = message::encode(&message, &self.process)?;
            let sent = self.client.publish::<i64, _, _>(self.frames.clone(), bytes).await;
            sent.map(|_| ()).map_err(|error| BusError::Unavailable(error.to_string()))
        })
    }

    fn keep<'a>(&'a self, subject: &'a Subject, last: &'a Last) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(self.rooms.keep(subject, last))
    }

    fn recall<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Recalled, BusError>> {
        Box::pin(self.rooms.recall(subject))
    }

    fn count<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Count, BusError>> {
        Box::pin(self.rooms.count(subject))
    }

    fn look<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Seen, BusError>> {
        Box::pin(self.rooms.look(subject))
    }

    fn occupied<'a>(&'a self, subjects: &'a [Subject]) -> BoxFuture<'a, Result<Vec<bool>, BusError>> {
        Box::pin(self.rooms.occupied(subjects))
    }

    fn list<'a>(&'a self, app: &'a AppId, prefix: &'a str) -> BoxFuture<'a, Result<Vec<(ChannelName, u64)>, BusError>> {
        Box::pin(self.rooms.list(app, prefix))
    }

    fn messages(&self) -> Option<mpsc::Receiver<Message>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}
