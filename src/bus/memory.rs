//! The bus of one process, or of several edges within one: a table behind a lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::{BoxFuture, ready};
use tokio::sync::mpsc;
use ulid::Ulid;

use super::{Bus, BusError, Joined, Message, Subject, Transition};
use crate::protocol::SocketId;
use crate::protocol::frame::Member;
use crate::protocol::record::{EventKind, Order};

/// Most members of a presence channel, as Pusher documents it.
const MAX_MEMBERS: usize = 100;

/// Frames that wait for one process.
const QUEUE: usize = 16_384;

/// How long the counter of a vacated channel is kept, so that its sequence never starts again while events of its past
/// may still be under way.
const TOMBSTONE: Duration = Duration::from_hours(1);

/// One process's end of a bus in memory.
pub struct MemoryBus {
    hub: Arc<Hub>,
    process: usize,
    inbox: Mutex<Option<mpsc::Receiver<Message>>>,
    lost: Arc<AtomicU64>,
}

#[derive(Default)]
struct Hub {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    channels: HashMap<Subject, Channel>,
    processes: Vec<(mpsc::Sender<Message>, Arc<AtomicU64>)>,
    swept: Option<Instant>,
}

struct Channel {
    epoch: u64,
    seq: u64,
    /// Each connection, and the user it stands for.
    sockets: HashMap<SocketId, Option<String>>,
    members: BTreeMap<String, (Member, usize)>,
    vacated: Option<Instant>,
}

impl MemoryBus {
    /// A bus with one end.
    #[must_use]
    pub fn new() -> Self {
        Self::attach(Arc::default())
    }

    /// Another end of the same bus, for another process.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::attach(self.hub.clone())
    }

    fn attach(hub: Arc<Hub>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let process = {
            let mut state = lock(&hub.state);
            state.processes.push((sender, lost.clone()));
            state.processes.len() - 1
        };
        Self { hub, process, inbox: Mutex::new(Some(receiver)), lost }
    }
}

impl Default for MemoryBus {
    fn default() -> Self {
        Self::new()
    }
}

impl Bus for MemoryBus {
    fn join<'a>(
        &'a self,
        subject: &'a Subject,
        socket: &'a SocketId,
        member: Option<&'a Member>,
    ) -> BoxFuture<'a, Result<Joined, BusError>> {
        let mut state = lock(&self.hub.state);
        state.sweep(Instant::now());
        let channel = state.channels.entry(subject.clone()).or_insert_with(Channel::new);
        Box::pin(ready(channel.join(socket, member)))
    }

    fn leave<'a>(
        &'a self,
        subject: &'a Subject,
        socket: &'a SocketId,
    ) -> BoxFuture<'a, Result<Vec<Transition>, BusError>> {
        let mut state = lock(&self.hub.state);
        let transitions = state.channels.get_mut(subject).map(|channel| channel.leave(socket)).unwrap_or_default();
        Box::pin(ready(Ok(transitions)))
    }

    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), BusError>> {
        let state = lock(&self.hub.state);
        for (process, (sender, lost)) in state.processes.iter().enumerate() {
            if process != self.process && sender.try_send(message.clone()).is_err() {
                lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        Box::pin(ready(Ok(())))
    }

    fn messages(&self) -> Option<mpsc::Receiver<Message>> {
        lock(&self.inbox).take()
    }

    fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl State {
    /// Forgets channels that have been empty for an hour; looks once a minute.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|last| now.duration_since(last) < Duration::from_mins(1)) {
            return;
        }
        self.swept = Some(now);
        self.channels.retain(|_, channel| channel.vacated.is_none_or(|at| now.duration_since(at) < TOMBSTONE));
    }
}

impl Channel {
    fn new() -> Self {
        Self {
            epoch: u64::try_from(now().as_micros()).unwrap_or(u64::MAX),
            seq: 0,
            sockets: HashMap::new(),
            members: BTreeMap::new(),
            vacated: None,
        }
    }

    fn join(&mut self, socket: &SocketId, member: Option<&Member>) -> Result<Joined, BusError> {
        let mut transitions = Vec::new();
        if !self.sockets.contains_key(socket) {
            if let Some(member) = member
                && !self.members.contains_key(&member.user_id)
                && self.members.len() >= MAX_MEMBERS
            {
                return Err(BusError::Full(MAX_MEMBERS));
            }
            if self.sockets.is_empty() {
                self.vacated = None;
                transitions.push(self.decide(EventKind::ChannelOccupied));
            }
            self.sockets.insert(socket.clone(), member.map(|member| member.user_id.clone()));
            if let Some(member) = member {
                let entry = self.members.entry(member.user_id.clone()).or_insert_with(|| (member.clone(), 0));
                entry.1 += 1;
                if entry.1 == 1 {
                    transitions.push(self.decide(EventKind::MemberAdded { user_id: member.user_id.clone() }));
                }
            }
        }
        Ok(Joined { transitions, roster: self.members.values().map(|(member, _)| member.clone()).collect() })
    }

    fn leave(&mut self, socket: &SocketId) -> Vec<Transition> {
        let mut transitions = Vec::new();
        let Some(user) = self.sockets.remove(socket) else { return transitions };
        if let Some(user_id) = user
            && let Some((_, connections)) = self.members.get_mut(&user_id)
        {
            *connections -= 1;
            if *connections == 0 {
                self.members.remove(&user_id);
                transitions.push(self.decide(EventKind::MemberRemoved { user_id }));
            }
        }
        if self.sockets.is_empty() {
            self.vacated = Some(Instant::now());
            transitions.push(self.decide(EventKind::ChannelVacated));
        }
        transitions
    }

    fn decide(&mut self, kind: EventKind) -> Transition {
        self.seq += 1;
        Transition {
            id: Ulid::new().to_string(),
            kind,
            order: Order { epoch: self.epoch, seq: self.seq },
            time_ms: u64::try_from(now().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The state behind a lock, also after a panic of another holder: every change here is complete in itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde_json::Value;

    fn subject(channel: &str) -> Subject {
        Subject { app: "1".into(), channel: crate::protocol::ChannelName::parse(channel).expect("a valid name") }
    }

    fn member(user: &str) -> Member {
        Member { user_id: user.into(), user_info: Value::Null }
    }

    fn told(transitions: &[Transition]) -> Vec<(&'static str, u64)> {
        transitions.iter().map(|t| (t.kind.name(), t.order.seq)).collect()
    }

    #[tokio::test]
    async fn the_first_and_the_last_are_told_across_processes() {
        let (one, room) = (MemoryBus::new(), subject("room"));
        let two = one.another();
        let (a, b) = (SocketId::from("1.1"), SocketId::from("2.2"));
        assert_eq!(told(&one.join(&room, &a, None).await.expect("joined").transitions), [("channel_occupied", 1)]);
        assert_eq!(told(&two.join(&room, &b, None).await.expect("joined").transitions), []);
        assert_eq!(told(&one.join(&room, &a, None).await.expect("joined").transitions), [], "entering twice");
        assert_eq!(told(&one.leave(&room, &a).await.expect("left")), []);
        assert_eq!(told(&two.leave(&room, &b).await.expect("left")), [("channel_vacated", 2)]);
        assert_eq!(told(&two.leave(&room, &b).await.expect("left")), [], "leaving twice");
        let again = one.join(&room, &a, None).await.expect("joined").transitions;
        assert_eq!(told(&again), [("channel_occupied", 3)], "the counter goes on");
    }

    #[tokio::test]
    async fn a_user_counts_once_however_many_connections_it_has() {
        let (bus, room) = (MemoryBus::new(), subject("presence-room"));
        let (a, b, user) = (SocketId::from("1.1"), SocketId::from("2.2"), member("u"));
        let first = bus.join(&room, &a, Some(&user)).await.expect("joined");
        assert_eq!(told(&first.transitions), [("channel_occupied", 1), ("member_added", 2)]);
        let second = bus.join(&room, &b, Some(&user)).await.expect("joined");
        assert_eq!((told(&second.transitions).len(), second.roster.len()), (0, 1));
        assert_eq!(told(&bus.leave(&room, &a).await.expect("left")), []);
        let last = bus.leave(&room, &b).await.expect("left");
        assert_eq!(told(&last), [("member_removed", 3), ("channel_vacated", 4)]);
    }

    #[tokio::test]
    async fn a_presence_channel_has_room_for_a_hundred_users() {
        let (bus, room) = (MemoryBus::new(), subject("presence-room"));
        for n in 0..MAX_MEMBERS {
            let socket = SocketId::from_random(1, n.try_into().unwrap_or_default());
            assert!(bus.join(&room, &socket, Some(&member(&n.to_string()))).await.is_ok());
        }
        let late = SocketId::from("9.9");
        assert_eq!(bus.join(&room, &late, Some(&member("late"))).await.err(), Some(BusError::Full(MAX_MEMBERS)));
        assert!(bus.join(&room, &late, Some(&member("7"))).await.is_ok(), "another connection of one who is there");
    }

    #[tokio::test]
    async fn frames_reach_the_other_processes_only() {
        let one = MemoryBus::new();
        let two = one.another();
        let (mut own, mut other) = (one.messages().expect("an inbox"), two.messages().expect("an inbox"));
        assert!(one.messages().is_none(), "taken once");
        let message = Message { subject: subject("room"), frame: Bytes::from_static(b"x"), except: None };
        one.publish(message).await.expect("published");
        assert_eq!(other.recv().await.map(|message| message.frame), Some(Bytes::from_static(b"x")));
        assert!(own.try_recv().is_err());
    }
}
