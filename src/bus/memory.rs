//! The bus in memory, for one process or several edges within one: a table behind a lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::{BoxFuture, ready};
use tokio::sync::mpsc;
use ulid::Ulid;

use super::load::EdgeLoad;
use super::memory_sessions::MemorySessionOwners;
use super::relay::{HeartbeatResponse, RelayPeer};
use super::reports::{report_channel, report_frame};
use super::{
    Broadcast, BroadcastFrame, BusError, CACHE_MISS_INTERVAL, ChannelInfo, ChannelKey, ChannelStore, CountUpdate,
    DecidedTransitions, Health, JoinLimits, JoinOutcome, LARGE_CHANNEL_COUNT_INTERVAL, LARGE_CHANNEL_THRESHOLD,
    LastEvent, LastEventLookup, LoadBoard, Membership, RemoteTransitions, SessionDirectory, Transition, tombstone_ttl,
};
use crate::process::clock::whole_ms;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::frame::{self, PresenceMember};
use crate::protocol::record::{EventKind, EventOrder, LeaveCause};
use crate::protocol::{AppId, ChannelKind, ChannelName, SocketId};

/// Least time between two removals of vacated channels.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// Bounds the frames that wait for one process.
const PROCESS_QUEUE_LEN: usize = 16_384;

/// One process's connection to a bus in memory.
pub struct MemoryBus {
    store: Arc<MemoryStore>,
    process: usize,
    inbox: Mutex<Option<mpsc::Receiver<BroadcastFrame>>>,
    lost: Arc<AtomicU64>,
}

#[derive(Default)]
struct MemoryStore {
    state: Mutex<ChannelTable>,
    sessions: Mutex<MemorySessionOwners>,
}

#[derive(Default)]
struct ChannelTable {
    channels: HashMap<ChannelKey, ChannelState>,
    processes: Vec<(mpsc::Sender<BroadcastFrame>, Arc<AtomicU64>)>,
    last_sweep: Option<Instant>,
}

struct ChannelState {
    epoch: u64,
    seq: u64,
    /// Each connection, with its user on a presence channel.
    sockets: HashMap<SocketId, Option<String>>,
    members: BTreeMap<String, (PresenceMember, usize)>,
    created_at: Instant,
    vacated_at: Option<Instant>,
    /// The last event, and its expiry.
    last_event: Option<(LastEvent, Instant)>,
    /// Time of the last reported cache miss.
    miss_reported_at: Option<Instant>,
    /// The last published count, and its time.
    last_count: Option<(u64, Instant)>,
}

impl MemoryBus {
    /// Creates a bus with one connection.
    #[must_use]
    pub fn new() -> Self {
        Self::attach_process(Arc::default())
    }

    /// Connects another process to the same bus.
    #[must_use]
    pub fn for_another_process(&self) -> Self {
        Self::attach_process(self.store.clone())
    }

    fn attach_process(store: Arc<MemoryStore>) -> Self {
        let (sender, receiver) = mpsc::channel(PROCESS_QUEUE_LEN);
        let lost = Arc::new(AtomicU64::new(0));
        let process = {
            let mut state = lock_unpoisoned(&store.state);
            state.processes.push((sender, lost.clone()));
            state.processes.len() - 1
        };
        Self { store, process, inbox: Mutex::new(Some(receiver)), lost }
    }

    fn send(&self, message: &BroadcastFrame) {
        lock_unpoisoned(&self.store.state).send(message, Some(self.process));
    }

    fn join(
        &self,
        subject: &ChannelKey,
        socket: &SocketId,
        member: Option<&PresenceMember>,
        limits: JoinLimits,
    ) -> Result<JoinOutcome, BusError> {
        let mut state = lock_unpoisoned(&self.store.state);
        state.remove_expired_channels(Instant::now());
        let channel = state.channels.entry(subject.clone()).or_insert_with(ChannelState::new);
        let is_known = channel.sockets.contains_key(socket);
        if !is_known && limits.connections_max.is_some_and(|most| channel.sockets.len() as u64 >= most) {
            return Err(BusError::ConnectionLimit { is_temporary: false });
        }
        let joined = channel.add_connection(socket, member, limits.members_max)?;
        state.report(subject, joined.transitions.iter(), member, Some(socket));
        Ok(joined)
    }
}

impl Default for MemoryBus {
    fn default() -> Self {
        Self::new()
    }
}

impl Membership for MemoryBus {
    fn join_bounded_channel<'a>(
        &'a self,
        subject: &'a ChannelKey,
        socket: &'a SocketId,
        member: Option<&'a PresenceMember>,
        limits: JoinLimits,
    ) -> BoxFuture<'a, Result<JoinOutcome, BusError>> {
        Box::pin(ready(self.join(subject, socket, member, limits)))
    }

    fn leave_channel<'a>(
        &'a self,
        subject: &'a ChannelKey,
        socket: &'a SocketId,
        cause: Option<LeaveCause>,
    ) -> BoxFuture<'a, Result<DecidedTransitions, BusError>> {
        let mut state = lock_unpoisoned(&self.store.state);
        let left = |channel: &mut ChannelState| channel.remove_connection(socket, cause);
        let transitions = state.channels.get_mut(subject).map(left).unwrap_or_default();
        state.report(subject, transitions.iter(), None, None);
        Box::pin(ready(Ok(DecidedTransitions::without_outbox(transitions))))
    }

    /// Always 0: the bus ends with its process, so no sweeper would read an outbox.
    fn unacknowledged_count(&self) -> usize {
        0
    }

    fn take_remote_transitions(&self) -> Option<mpsc::Receiver<RemoteTransitions>> {
        None
    }

    fn leave_cluster(&self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }
}

impl Broadcast for MemoryBus {
    fn publish_frame(&self, message: BroadcastFrame) -> BoxFuture<'_, Result<(), BusError>> {
        self.send(&message);
        Box::pin(ready(Ok(())))
    }

    fn publish_frames(&self, messages: Vec<BroadcastFrame>) -> BoxFuture<'_, Result<(), BusError>> {
        for message in &messages {
            self.send(message);
        }
        Box::pin(ready(Ok(())))
    }

    fn take_incoming_frames(&self) -> Option<mpsc::Receiver<BroadcastFrame>> {
        lock_unpoisoned(&self.inbox).take()
    }

    fn lost_frames(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Always 0: no other process could sweep this one.
    fn lost_leases(&self) -> u64 {
        0
    }
}

impl ChannelStore for MemoryBus {
    fn store_last_event<'a>(
        &'a self,
        subject: &'a ChannelKey,
        last: &'a LastEvent,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        let mut state = lock_unpoisoned(&self.store.state);
        state.remove_expired_channels(Instant::now());
        let channel = state.channels.entry(subject.clone()).or_insert_with(ChannelState::new);
        channel.store_last_event(last, Instant::now() + ttl);
        Box::pin(ready(Ok(())))
    }

    fn look_up_last_event<'a>(&'a self, subject: &'a ChannelKey) -> BoxFuture<'a, Result<LastEventLookup, BusError>> {
        let mut state = lock_unpoisoned(&self.store.state);
        let channel = state.channels.entry(subject.clone()).or_insert_with(ChannelState::new);
        Box::pin(ready(Ok(channel.look_up_last_event(Instant::now()))))
    }

    fn claim_count_update<'a>(&'a self, subject: &'a ChannelKey) -> BoxFuture<'a, Result<CountUpdate, BusError>> {
        let mut state = lock_unpoisoned(&self.store.state);
        let update = state
            .channels
            .get_mut(subject)
            .map_or(CountUpdate::Unchanged, |channel| channel.claim_count_update(Instant::now()));
        if let CountUpdate::Published(count) = update {
            let frame = frame::subscription_count(&subject.channel, count);
            state.send(&BroadcastFrame::new(subject.clone(), frame), None);
        }
        Box::pin(ready(Ok(update)))
    }

    fn inspect_channel<'a>(&'a self, subject: &'a ChannelKey) -> BoxFuture<'a, Result<ChannelInfo, BusError>> {
        let state = lock_unpoisoned(&self.store.state);
        let info =
            state.channels.get(subject).map(|channel| channel.inspect_channel(Instant::now())).unwrap_or_default();
        Box::pin(ready(Ok(info)))
    }

    fn are_occupied<'a>(&'a self, subjects: &'a [ChannelKey]) -> BoxFuture<'a, Result<Vec<bool>, BusError>> {
        let state = lock_unpoisoned(&self.store.state);
        let occupied = |subject| state.channels.get(subject).is_some_and(|channel| !channel.sockets.is_empty());
        Box::pin(ready(Ok(subjects.iter().map(occupied).collect())))
    }

    fn list_channels<'a>(
        &'a self,
        app: &'a AppId,
        prefix: &'a str,
    ) -> BoxFuture<'a, Result<Vec<(ChannelName, u64)>, BusError>> {
        let state = lock_unpoisoned(&self.store.state);
        let listed = |subject: &ChannelKey, channel: &ChannelState| {
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
}

impl SessionDirectory for MemoryBus {
    fn send_heartbeat<'a>(&'a self, peer: &'a RelayPeer) -> BoxFuture<'a, Result<HeartbeatResponse, BusError>> {
        Box::pin(ready(Ok(lock_unpoisoned(&self.store.sessions).record_heartbeat(peer, Instant::now()))))
    }

    fn claim_session<'a>(
        &'a self,
        session: &'a str,
        process: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, BusError>> {
        Box::pin(ready(Ok(lock_unpoisoned(&self.store.sessions).claim_session(session, process, Instant::now()))))
    }

    fn refresh_sessions<'a>(&'a self, sessions: &'a [String], process: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        lock_unpoisoned(&self.store.sessions).refresh_sessions(sessions, process, Instant::now());
        Box::pin(ready(Ok(())))
    }

    fn session_owner<'a>(&'a self, session: &'a str) -> BoxFuture<'a, Result<Option<String>, BusError>> {
        Box::pin(ready(Ok(lock_unpoisoned(&self.store.sessions).session_owner(session, Instant::now()))))
    }

    fn release_session<'a>(&'a self, session: &'a str, process: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        lock_unpoisoned(&self.store.sessions).release_session(session, process);
        Box::pin(ready(Ok(())))
    }

    fn report_lost_send<'a>(&'a self, session: &'a str, owner: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        lock_unpoisoned(&self.store.sessions).report_lost_send(session, owner);
        Box::pin(ready(Ok(())))
    }
}

impl LoadBoard for MemoryBus {
    fn exchange_load<'a>(
        &'a self,
        process: &'a str,
        load: &'a EdgeLoad,
    ) -> BoxFuture<'a, Result<Vec<EdgeLoad>, BusError>> {
        Box::pin(ready(Ok(lock_unpoisoned(&self.store.sessions).exchange_load(process, load, Instant::now()))))
    }
}

impl Health for MemoryBus {
    fn is_available(&self) -> bool {
        true
    }
}

impl ChannelTable {
    /// Queues a frame for every process but the excepted one.
    fn send(&self, message: &BroadcastFrame, except: Option<usize>) {
        for (process, (sender, lost)) in self.processes.iter().enumerate() {
            if Some(process) != except && sender.try_send(message.clone()).is_err() {
                lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Reports transitions to the subscribers on every process, under the lock that decided them.
    fn report<'a>(
        &self,
        subject: &ChannelKey,
        transitions: impl IntoIterator<Item = &'a Transition>,
        member: Option<&PresenceMember>,
        except: Option<&SocketId>,
    ) {
        let Some(target) = report_channel(subject) else { return };
        for transition in transitions {
            if let Some(frame) = report_frame(subject, &transition.kind, member) {
                let (except, order) = (except.cloned(), Some(transition.order));
                self.send(&BroadcastFrame { except, order, ..BroadcastFrame::new(target.clone(), frame) }, None);
            }
        }
    }

    /// Removes channels that have been vacant for their [`tombstone_ttl`]; runs at most once in [`SWEEP_INTERVAL`].
    fn remove_expired_channels(&mut self, now: Instant) {
        if self.last_sweep.is_some_and(|last| now.duration_since(last) < SWEEP_INTERVAL) {
            return;
        }
        self.last_sweep = Some(now);
        self.channels.retain(|_, channel| {
            channel
                .vacated_at
                .is_none_or(|at| now.duration_since(at) < tombstone_ttl(at.duration_since(channel.created_at)))
                || channel.last_event(now).is_some()
        });
    }
}

impl ChannelState {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            epoch: u64::try_from(unix_time().as_micros()).unwrap_or(u64::MAX),
            seq: 0,
            sockets: HashMap::new(),
            members: BTreeMap::new(),
            created_at: now,
            // Vacant until the first connection joins.
            vacated_at: Some(now),
            last_event: None,
            miss_reported_at: None,
            last_count: None,
        }
    }

    fn store_last_event(&mut self, last: &LastEvent, expires_at: Instant) {
        (self.last_event, self.miss_reported_at) = (Some((last.clone(), expires_at)), None);
    }

    fn last_event(&self, now: Instant) -> Option<(&LastEvent, Duration)> {
        let (last, until) = self.last_event.as_ref()?;
        (*until > now).then(|| (last, *until - now))
    }

    fn look_up_last_event(&mut self, now: Instant) -> LastEventLookup {
        if let Some((last, _)) = self.last_event(now) {
            return LastEventLookup::Found(last.clone());
        }
        let first = self.miss_reported_at.is_none_or(|at| now.duration_since(at) >= CACHE_MISS_INTERVAL);
        if first {
            self.miss_reported_at = Some(now);
        }
        LastEventLookup::Missing { report_miss: first }
    }

    fn claim_count_update(&mut self, now: Instant) -> CountUpdate {
        let count = self.sockets.len() as u64;
        match self.last_count {
            None if count == 0 => return CountUpdate::Unchanged,
            Some((published, _)) if published == count => return CountUpdate::Unchanged,
            Some((_, at)) if count > LARGE_CHANNEL_THRESHOLD && now < at + LARGE_CHANNEL_COUNT_INTERVAL => {
                return CountUpdate::RetryAfter(at + LARGE_CHANNEL_COUNT_INTERVAL - now);
            }
            _ => {}
        }
        self.last_count = Some((count, now));
        CountUpdate::Published(count)
    }

    fn inspect_channel(&self, now: Instant) -> ChannelInfo {
        ChannelInfo {
            connections: self.sockets.len() as u64,
            users: self.members.keys().cloned().collect(),
            last: self.last_event(now).map(|(last, remaining)| (last.clone(), remaining)),
        }
    }

    fn add_connection(
        &mut self,
        socket: &SocketId,
        member: Option<&PresenceMember>,
        members_max: usize,
    ) -> Result<JoinOutcome, BusError> {
        let mut transitions = Vec::new();
        if !self.sockets.contains_key(socket) {
            if let Some(member) = member
                && !self.members.contains_key(&member.user_id)
                && self.members.len() >= members_max
            {
                return Err(BusError::ChannelFull(members_max));
            }
            if self.sockets.is_empty() {
                self.vacated_at = None;
                transitions.push(self.next_transition(EventKind::ChannelOccupied, None));
            }
            self.sockets.insert(socket.clone(), member.map(|member| member.user_id.clone()));
            if let Some(member) = member {
                let entry = self.members.entry(member.user_id.clone()).or_insert_with(|| (member.clone(), 0));
                entry.1 += 1;
                if entry.1 == 1 {
                    transitions
                        .push(self.next_transition(EventKind::MemberAdded { user_id: member.user_id.clone() }, None));
                }
            }
        }
        let transitions = DecidedTransitions::without_outbox(transitions);
        let roster = self.members.values().map(|(member, _)| member.clone()).collect();
        Ok(JoinOutcome { transitions, roster, order: Some(EventOrder { epoch: self.epoch, seq: self.seq }) })
    }

    fn remove_connection(&mut self, socket: &SocketId, cause: Option<LeaveCause>) -> Vec<Transition> {
        let mut transitions = Vec::new();
        let Some(user) = self.sockets.remove(socket) else { return transitions };
        if let Some(user_id) = user
            && let Some((_, connections)) = self.members.get_mut(&user_id)
        {
            *connections -= 1;
            if *connections == 0 {
                self.members.remove(&user_id);
                transitions.push(self.next_transition(EventKind::MemberRemoved { user_id }, cause));
            }
        }
        if self.sockets.is_empty() {
            self.vacated_at = Some(Instant::now());
            transitions.push(self.next_transition(EventKind::ChannelVacated, cause));
        }
        transitions
    }

    fn next_transition(&mut self, kind: EventKind, cause: Option<LeaveCause>) -> Transition {
        self.seq += 1;
        Transition {
            id: Ulid::new().to_string(),
            kind,
            order: EventOrder { epoch: self.epoch, seq: self.seq },
            time_ms: whole_ms(unix_time()),
            cause,
        }
    }
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::registry::PRESENCE_MEMBERS_DEFAULT;
    use bytes::Bytes;
    use serde_json::Value;

    fn channel_key(channel: &str) -> ChannelKey {
        ChannelKey { app: "1".into(), channel: crate::protocol::ChannelName::parse(channel).expect("a valid name") }
    }

    fn member(user: &str) -> PresenceMember {
        PresenceMember { user_id: user.into(), user_info: Value::Null }
    }

    fn names_and_seqs(transitions: &DecidedTransitions) -> Vec<(&'static str, u64)> {
        transitions.iter().map(|t| (t.kind.name(), t.order.seq)).collect()
    }

    #[tokio::test]
    async fn the_first_join_and_the_last_leave_of_all_processes_are_transitions() {
        let (one, room) = (MemoryBus::new(), channel_key("room"));
        let two = one.for_another_process();
        let (a, b) = (SocketId::from("1.1"), SocketId::from("2.2"));
        assert_eq!(
            names_and_seqs(&one.join_channel(&room, &a, None).await.expect("joined").transitions),
            [("channel_occupied", 1)]
        );
        assert_eq!(names_and_seqs(&two.join_channel(&room, &b, None).await.expect("joined").transitions), []);
        assert_eq!(
            names_and_seqs(&one.join_channel(&room, &a, None).await.expect("joined").transitions),
            [],
            "joining twice"
        );
        assert_eq!(names_and_seqs(&one.leave_channel(&room, &a, None).await.expect("left")), []);
        assert_eq!(names_and_seqs(&two.leave_channel(&room, &b, None).await.expect("left")), [("channel_vacated", 2)]);
        assert_eq!(names_and_seqs(&two.leave_channel(&room, &b, None).await.expect("left")), [], "leaving twice");
        let again = one.join_channel(&room, &a, None).await.expect("joined").transitions;
        assert_eq!(names_and_seqs(&again), [("channel_occupied", 3)], "the counter goes on");
    }

    #[tokio::test]
    async fn a_user_counts_once_however_many_connections_it_has() {
        let (bus, room) = (MemoryBus::new(), channel_key("presence-room"));
        let (a, b, user) = (SocketId::from("1.1"), SocketId::from("2.2"), member("u"));
        let first = bus.join_channel(&room, &a, Some(&user)).await.expect("joined");
        assert_eq!(names_and_seqs(&first.transitions), [("channel_occupied", 1), ("member_added", 2)]);
        let second = bus.join_channel(&room, &b, Some(&user)).await.expect("joined");
        assert_eq!((names_and_seqs(&second.transitions).len(), second.roster.len()), (0, 1));
        assert_eq!(names_and_seqs(&bus.leave_channel(&room, &a, None).await.expect("left")), []);
        let last = bus.leave_channel(&room, &b, None).await.expect("left");
        assert_eq!(names_and_seqs(&last), [("member_removed", 3), ("channel_vacated", 4)]);
    }

    #[tokio::test]
    async fn a_presence_channel_has_room_for_a_hundred_users() {
        let (bus, room) = (MemoryBus::new(), channel_key("presence-room"));
        for n in 0..PRESENCE_MEMBERS_DEFAULT {
            let socket = SocketId::from_random(1, n.try_into().unwrap_or_default());
            assert!(bus.join_channel(&room, &socket, Some(&member(&n.to_string()))).await.is_ok());
        }
        let late = SocketId::from("9.9");
        assert_eq!(
            bus.join_channel(&room, &late, Some(&member("late"))).await.err(),
            Some(BusError::ChannelFull(PRESENCE_MEMBERS_DEFAULT))
        );
        assert!(
            bus.join_channel(&room, &late, Some(&member("7"))).await.is_ok(),
            "another connection of a user who is a member"
        );
    }

    #[tokio::test]
    async fn frames_reach_the_other_processes_only() {
        let one = MemoryBus::new();
        let two = one.for_another_process();
        let (mut own, mut other) =
            (one.take_incoming_frames().expect("an inbox"), two.take_incoming_frames().expect("an inbox"));
        assert!(one.take_incoming_frames().is_none(), "taken once");
        let message = BroadcastFrame::new(channel_key("room"), "x");
        one.publish_frame(message).await.expect("published");
        assert_eq!(other.recv().await.map(|message| message.frame), Some(Bytes::from_static(b"x")));
        assert!(own.try_recv().is_err());
    }

    #[tokio::test]
    async fn members_and_counts_are_reported_to_every_process_in_the_order_of_the_decisions() {
        let (one, room) = (MemoryBus::new(), channel_key("presence-room"));
        let two = one.for_another_process();
        let user = member("u");
        one.join_channel(&room, &"1.1".into(), Some(&user)).await.expect("joined").transitions.acknowledge_all();
        two.leave_channel(&room, &"1.1".into(), None).await.expect("left").acknowledge_all();
        one.claim_count_update(&room).await.expect("claimed");
        two.join_channel(&channel_key("room"), &"1.1".into(), None)
            .await
            .expect("joined")
            .transitions
            .acknowledge_all();
        assert_eq!(two.claim_count_update(&channel_key("room")).await, Ok(CountUpdate::Published(1)));
        let expected = [
            (frame::member_added(&room.channel, &user), Some("1.1".into()), Some(2)),
            (frame::member_removed(&room.channel, "u"), None, Some(3)),
            (frame::subscription_count(&channel_key("room").channel, 1), None, None),
        ];
        for bus in [one, two] {
            let mut inbox = bus.take_incoming_frames().expect("an inbox");
            for (frame, except, seq) in expected.clone() {
                let found = inbox.try_recv().expect("a frame");
                let found = (found.frame, found.except, found.order.map(|order| order.seq));
                assert_eq!(found, (Bytes::from(frame), except, seq));
            }
            assert!(inbox.try_recv().is_err());
        }
    }

    #[test]
    fn the_last_event_is_kept_for_half_an_hour_and_its_absence_is_reported_once_in_five_seconds() {
        let (mut channel, start) = (ChannelState::new(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let last = |event: &str| LastEvent { event: event.into(), data: "{}".into() };
        assert_eq!(channel.look_up_last_event(at(0)), LastEventLookup::Missing { report_miss: true });
        assert_eq!(channel.look_up_last_event(at(4)), LastEventLookup::Missing { report_miss: false });
        assert_eq!(channel.look_up_last_event(at(5)), LastEventLookup::Missing { report_miss: true });
        channel.store_last_event(&last("a"), at(1806));
        channel.store_last_event(&last("b"), at(1807));
        assert_eq!(channel.look_up_last_event(at(7)), LastEventLookup::Found(last("b")));
        assert_eq!(channel.inspect_channel(at(8)).last, Some((last("b"), Duration::from_secs(1799))));
        assert_eq!(channel.look_up_last_event(at(1806)), LastEventLookup::Found(last("b")));
        assert_eq!(channel.inspect_channel(at(1807)).last, None);
        assert_eq!(channel.look_up_last_event(at(1807)), LastEventLookup::Missing { report_miss: true });
    }

    #[test]
    fn a_count_is_published_once_and_of_a_large_channel_every_five_seconds() {
        let (mut channel, start) = (ChannelState::new(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let join = |channel: &mut ChannelState, n: u64| {
            channel.add_connection(&SocketId::from_random(1, n), None, 100).expect("joined");
        };
        join(&mut channel, 0);
        assert_eq!(
            [channel.claim_count_update(at(0)), channel.claim_count_update(at(0))],
            [CountUpdate::Published(1), CountUpdate::Unchanged]
        );
        for n in 1..100 {
            join(&mut channel, n);
        }
        assert_eq!(channel.claim_count_update(at(1)), CountUpdate::Published(100), "up to a hundred at once");
        join(&mut channel, 100);
        assert_eq!(channel.claim_count_update(at(2)), CountUpdate::RetryAfter(Duration::from_millis(4999)));
        join(&mut channel, 101);
        assert_eq!(channel.claim_count_update(at(5001)), CountUpdate::Published(102));
        channel.remove_connection(&SocketId::from_random(1, 0), None);
        assert_eq!(channel.claim_count_update(at(5002)), CountUpdate::RetryAfter(Duration::from_millis(4999)));
        channel.remove_connection(&SocketId::from_random(1, 1), None);
        assert_eq!(channel.claim_count_update(at(5003)), CountUpdate::Published(100), "down to a hundred at once");
    }

    #[tokio::test]
    async fn occupied_channels_are_listed_by_prefix_without_the_servers_own() {
        let bus = MemoryBus::new();
        let socket = SocketId::from("1.1");
        let own = ChannelKey { app: "1".into(), channel: ChannelName::signed_in("u").expect("a name") };
        let other = ChannelKey { app: "2".into(), channel: channel_key("room").channel };
        for room in [&channel_key("room"), &channel_key("left"), &own, &other] {
            bus.join_channel(room, &socket, None).await.expect("joined");
        }
        bus.join_channel(&channel_key("presence-room"), &socket, Some(&member("u"))).await.expect("joined");
        bus.leave_channel(&channel_key("left"), &socket, None).await.expect("left").acknowledge_all();
        bus.store_last_event(
            &channel_key("cache-empty"),
            &LastEvent { event: "e".into(), data: String::new() },
            Duration::from_mins(30),
        )
        .await
        .expect("kept");
        let names = async |prefix| {
            let channels = bus.list_channels(&"1".into(), prefix).await.expect("channels");
            channels.into_iter().map(|(name, users)| (name.to_string(), users)).collect::<Vec<_>>()
        };
        assert_eq!(names("").await, [("presence-room".to_owned(), 1), ("room".to_owned(), 0)]);
        assert_eq!(names("presence-").await, [("presence-room".to_owned(), 1)]);
        let asked = [own, channel_key("left"), channel_key("never")];
        assert_eq!(bus.are_occupied(&asked).await, Ok(vec![true, false, false]));
    }
}
