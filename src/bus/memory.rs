//! The bus of one process, or of several edges within one: a table behind a lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::{BoxFuture, ready};
use tokio::sync::mpsc;
use ulid::Ulid;

use super::memory_sessions::Sessions;
use super::peers::{Alive, Peer};
use super::{
    Bus, BusError, COUNT_EVERY, Count, Decided, Joined, KEPT, Last, MANY, MAX_MEMBERS, MISSED, Message, Recalled, Seen,
    Subject, Transition,
};
use crate::protocol::frame::Member;
use crate::protocol::record::{Cause, EventKind, Order};
use crate::protocol::{AppId, ChannelKind, ChannelName, SocketId};

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
    sessions: Mutex<Sessions>,
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
    /// The last event, and until when it is kept.
    last: Option<(Last, Instant)>,
    /// When someone was to tell that there is none.
    missed: Option<Instant>,
    /// How many connections were last told of, and when.
    told: Option<(u64, Instant)>,
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

    fn send(&self, message: &Message) {
        let state = lock(&self.hub.state);
        for (process, (sender, lost)) in state.processes.iter().enumerate() {
            if process != self.process && sender.try_send(message.clone()).is_err() {
                lost.fetch_add(1, Ordering::Relaxed);
            }
        }
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
        cause: Option<Cause>,
    ) -> BoxFuture<'a, Result<Vec<Transition>, BusError>> {
        let mut state = lock(&self.hub.state);
        let left = |channel: &mut Channel| channel.leave(socket, cause);
        Box::pin(ready(Ok(state.channels.get_mut(subject).map(left).unwrap_or_default())))
    }

    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), BusError>> {
        self.send(&message);
        Box::pin(ready(Ok(())))
    }

    fn publish_all(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<(), BusError>> {
        for message in &messages {
            self.send(message);
        }
        Box::pin(ready(Ok(())))
    }

    fn keep<'a>(&'a self, subject: &'a Subject, last: &'a Last) -> BoxFuture<'a, Result<(), BusError>> {
        let mut state = lock(&self.hub.state);
        state.sweep(Instant::now());
        let channel = state.channels.entry(subject.clone()).or_insert_with(Channel::new);
        channel.keep(last, Instant::now());
        Box::pin(ready(Ok(())))
    }

    fn recall<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Recalled, BusError>> {
        let mut state = lock(&self.hub.state);
        let channel = state.channels.entry(subject.clone()).or_insert_with(Channel::new);
        Box::pin(ready(Ok(channel.recall(Instant::now()))))
    }

    fn count<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Count, BusError>> {
        let mut state = lock(&self.hub.state);
        let counted = state.channels.get_mut(subject).map_or(Count::Told, |channel| channel.count(Instant::now()));
        Box::pin(ready(Ok(counted)))
    }

    fn look<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Seen, BusError>> {
        let state = lock(&self.hub.state);
        let seen = state.channels.get(subject).map(|channel| channel.look(Instant::now())).unwrap_or_default();
        Box::pin(ready(Ok(seen)))
    }

    fn occupied<'a>(&'a self, subjects: &'a [Subject]) -> BoxFuture<'a, Result<Vec<bool>, BusError>> {
        let state = lock(&self.hub.state);
        let occupied = |subject| state.channels.get(subject).is_some_and(|channel| !channel.sockets.is_empty());
        Box::pin(ready(Ok(subjects.iter().map(occupied).collect())))
    }

    fn list<'a>(&'a self, app: &'a AppId, prefix: &'a str) -> BoxFuture<'a, Result<Vec<(ChannelName, u64)>, BusError>> {
        let state = lock(&self.hub.state);
        let listed = |subject: &Subject, channel: &Channel| {
            subject.app == *app
                && subject.channel.as_str().starts_with(prefix)
                && subject.channel.kind() != ChannelKind::Internal
                && !channel.sockets.is_empty()
        };
        let mut channels: Vec<(ChannelName, u64)> = state
            .channels
            .iter()
            .filter(|(subject, channel)| listed(subject, channel))
            .map(|(subject, channel)| (subject.channel.clone(), channel.members.len() as u64))
            .collect();
        channels.sort();
        Box::pin(ready(Ok(channels)))
    }

    fn messages(&self) -> Option<mpsc::Receiver<Message>> {
        lock(&self.inbox).take()
    }

    fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// What dies here dies with the process.
    fn recorded(&self, _subject: &Subject, _orders: &[Order]) {}

    fn decided(&self) -> Option<mpsc::Receiver<Decided>> {
        None
    }

    fn up(&self) -> bool {
        true
    }

    fn resign(&self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }

    fn alive<'a>(&'a self, peer: &'a Peer) -> BoxFuture<'a, Result<Alive, BusError>> {
        Box::pin(ready(Ok(lock(&self.hub.sessions).alive(peer, Instant::now()))))
    }

    fn own<'a>(&'a self, session: &'a str, process: &'a str) -> BoxFuture<'a, Result<Option<String>, BusError>> {
        Box::pin(ready(Ok(lock(&self.hub.sessions).own(session, process, Instant::now()))))
    }

    fn name<'a>(&'a self, sessions: &'a [String], process: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        lock(&self.hub.sessions).name(sessions, process, Instant::now());
        Box::pin(ready(Ok(())))
    }

    fn owner<'a>(&'a self, session: &'a str) -> BoxFuture<'a, Result<Option<String>, BusError>> {
        Box::pin(ready(Ok(lock(&self.hub.sessions).owner(session, Instant::now()))))
    }

    fn disown<'a>(&'a self, session: &'a str, process: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        lock(&self.hub.sessions).disown(session, process);
        Box::pin(ready(Ok(())))
    }

    fn lose<'a>(&'a self, session: &'a str, owner: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        lock(&self.hub.sessions).lose(session, owner);
        Box::pin(ready(Ok(())))
    }
}

impl State {
    /// Forgets channels that have been empty for an hour; looks once a minute.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|last| now.duration_since(last) < Duration::from_mins(1)) {
            return;
        }
        self.swept = Some(now);
        self.channels.retain(|_, channel| {
            channel.vacated.is_none_or(|at| now.duration_since(at) < TOMBSTONE) || channel.kept(now).is_some()
        });
    }
}

impl Channel {
    fn new() -> Self {
        Self {
            epoch: u64::try_from(now().as_micros()).unwrap_or(u64::MAX),
            seq: 0,
            sockets: HashMap::new(),
            members: BTreeMap::new(),
            // Until someone comes.
            vacated: Some(Instant::now()),
            last: None,
            missed: None,
            told: None,
        }
    }

    fn keep(&mut self, last: &Last, now: Instant) {
        (self.last, self.missed) = (Some((last.clone(), now + KEPT)), None);
    }

    fn kept(&self, now: Instant) -> Option<(&Last, Duration)> {
        let (last, until) = self.last.as_ref()?;
        (*until > now).then(|| (last, *until - now))
    }

    fn recall(&mut self, now: Instant) -> Recalled {
        if let Some((last, _)) = self.kept(now) {
            return Recalled::Kept(last.clone());
        }
        let first = self.missed.is_none_or(|at| now.duration_since(at) >= MISSED);
        if first {
            self.missed = Some(now);
        }
        Recalled::Missing { first }
    }

    fn count(&mut self, now: Instant) -> Count {
        let count = self.sockets.len() as u64;
        match self.told {
            None if count == 0 => return Count::Told,
            Some((told, _)) if told == count => return Count::Told,
            Some((_, at)) if count > MANY && now < at + COUNT_EVERY => return Count::Later(at + COUNT_EVERY - now),
            _ => {}
        }
        self.told = Some((count, now));
        Count::Tell(count)
    }

    fn look(&self, now: Instant) -> Seen {
        Seen {
            connections: self.sockets.len() as u64,
            users: self.members.keys().cloned().collect(),
            last: self.kept(now).map(|(last, remaining)| (last.clone(), remaining)),
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
                transitions.push(self.decide(EventKind::ChannelOccupied, None));
            }
            self.sockets.insert(socket.clone(), member.map(|member| member.user_id.clone()));
            if let Some(member) = member {
                let entry = self.members.entry(member.user_id.clone()).or_insert_with(|| (member.clone(), 0));
                entry.1 += 1;
                if entry.1 == 1 {
                    transitions.push(self.decide(EventKind::MemberAdded { user_id: member.user_id.clone() }, None));
                }
            }
        }
        Ok(Joined { transitions, roster: self.members.values().map(|(member, _)| member.clone()).collect() })
    }

    fn leave(&mut self, socket: &SocketId, cause: Option<Cause>) -> Vec<Transition> {
        let mut transitions = Vec::new();
        let Some(user) = self.sockets.remove(socket) else { return transitions };
        if let Some(user_id) = user
            && let Some((_, connections)) = self.members.get_mut(&user_id)
        {
            *connections -= 1;
            if *connections == 0 {
                self.members.remove(&user_id);
                transitions.push(self.decide(EventKind::MemberRemoved { user_id }, cause));
            }
        }
        if self.sockets.is_empty() {
            self.vacated = Some(Instant::now());
            transitions.push(self.decide(EventKind::ChannelVacated, cause));
        }
        transitions
    }

    fn decide(&mut self, kind: EventKind, cause: Option<Cause>) -> Transition {
        self.seq += 1;
        Transition {
            id: Ulid::new().to_string(),
            kind,
            order: Order { epoch: self.epoch, seq: self.seq },
            time_ms: u64::try_from(now().as_millis()).unwrap_or(u64::MAX),
            cause,
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
        assert_eq!(told(&one.leave(&room, &a, None).await.expect("left")), []);
        assert_eq!(told(&two.leave(&room, &b, None).await.expect("left")), [("channel_vacated", 2)]);
        assert_eq!(told(&two.leave(&room, &b, None).await.expect("left")), [], "leaving twice");
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
        assert_eq!(told(&bus.leave(&room, &a, None).await.expect("left")), []);
        let last = bus.leave(&room, &b, None).await.expect("left");
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
        let message = Message { subject: subject("room"), frame: Bytes::from_static(b"x"), except: None, ends: false };
        one.publish(message).await.expect("published");
        assert_eq!(other.recv().await.map(|message| message.frame), Some(Bytes::from_static(b"x")));
        assert!(own.try_recv().is_err());
    }

    #[test]
    fn the_last_event_is_kept_for_half_an_hour_and_its_absence_told_once_by_those_who_come_together() {
        let (mut channel, start) = (Channel::new(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let last = |event: &str| Last { event: event.into(), data: "{}".into() };
        assert_eq!(channel.recall(at(0)), Recalled::Missing { first: true });
        assert_eq!(channel.recall(at(4)), Recalled::Missing { first: false });
        assert_eq!(channel.recall(at(5)), Recalled::Missing { first: true });
        channel.keep(&last("a"), at(6));
        channel.keep(&last("b"), at(7));
        assert_eq!(channel.recall(at(7)), Recalled::Kept(last("b")));
        assert_eq!(channel.look(at(8)).last, Some((last("b"), Duration::from_secs(1799))));
        assert_eq!(channel.recall(at(1806)), Recalled::Kept(last("b")));
        assert_eq!(channel.look(at(1807)).last, None);
        assert_eq!(channel.recall(at(1807)), Recalled::Missing { first: true });
    }

    #[test]
    fn a_count_is_told_once_and_of_a_large_channel_every_five_seconds() {
        let (mut channel, start) = (Channel::new(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let join = |channel: &mut Channel, n: u64| {
            channel.join(&SocketId::from_random(1, n), None).expect("joined");
        };
        join(&mut channel, 0);
        assert_eq!([channel.count(at(0)), channel.count(at(0))], [Count::Tell(1), Count::Told]);
        for n in 1..100 {
            join(&mut channel, n);
        }
        assert_eq!(channel.count(at(1)), Count::Tell(100), "up to a hundred at once");
        join(&mut channel, 100);
        assert_eq!(channel.count(at(2)), Count::Later(Duration::from_millis(4999)));
        join(&mut channel, 101);
        assert_eq!(channel.count(at(5001)), Count::Tell(102));
        channel.leave(&SocketId::from_random(1, 0), None);
        assert_eq!(channel.count(at(5002)), Count::Later(Duration::from_millis(4999)));
        channel.leave(&SocketId::from_random(1, 1), None);
        assert_eq!(channel.count(at(5003)), Count::Tell(100), "down to a hundred at once");
    }

    #[tokio::test]
    async fn occupied_channels_are_listed_by_prefix_without_the_servers_own() {
        let bus = MemoryBus::new();
        let socket = SocketId::from("1.1");
        let own = Subject { app: "1".into(), channel: ChannelName::signed_in("u").expect("a name") };
        let other = Subject { app: "2".into(), channel: subject("room").channel };
        for room in [&subject("room"), &subject("left"), &own, &other] {
            bus.join(room, &socket, None).await.expect("joined");
        }
        bus.join(&subject("presence-room"), &socket, Some(&member("u"))).await.expect("joined");
        bus.leave(&subject("left"), &socket, None).await.expect("left");
        bus.keep(&subject("cache-empty"), &Last { event: "e".into(), data: String::new() }).await.expect("kept");
        let names = async |prefix| {
            let channels = bus.list(&"1".into(), prefix).await.expect("channels");
            channels.into_iter().map(|(name, users)| (name.to_string(), users)).collect::<Vec<_>>()
        };
        assert_eq!(names("").await, [("presence-room".to_owned(), 1), ("room".to_owned(), 0)]);
        assert_eq!(names("presence-").await, [("presence-room".to_owned(), 1)]);
        let asked = [own, subject("left"), subject("never")];
        assert_eq!(bus.occupied(&asked).await, Ok(vec![true, false, false]));
    }
}
