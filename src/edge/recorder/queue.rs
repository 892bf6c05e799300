//! The events that wait for the stream.
//!
//! In: events as they happen, the time, and what the stream answered. Out: batches, at most one record per key, each
//! key's events in order. Knows nothing of Kinesis, tasks or clocks: the caller passes the time in ms of its own
//! monotonic clock, so that an outage of an hour can be tested at once.
//!
//! Events in flight stay at the front of their key and count as waiting until the stream has acknowledged them. A
//! refusal only marks them as not in flight: they go again before anything newer of their key, perhaps together with
//! it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use crate::bus::Subject;
use crate::protocol::record::{Event, EventKind, Order};

/// Bounds of the queue and of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Events that may wait.
    pub events: usize,
    /// Bytes that may wait.
    pub bytes: usize,
    /// Bytes of events in one record.
    pub record_bytes: usize,
    /// Records in one batch.
    pub batch_records: usize,
    /// Bytes in one batch.
    pub batch_bytes: usize,
    /// How long an event waits for others of its key, in ms.
    pub linger_ms: u64,
    /// How old a client event may get, in ms.
    pub client_event_ms: u64,
    /// The first wait after a refusal, in ms.
    pub backoff_ms: u64,
    /// The longest wait after a refusal, in ms.
    pub max_backoff_ms: u64,
}

impl Limits {
    /// What an edge uses. A batch stays below the 5 MiB of `PutRecords`, which counts keys too.
    pub const DEFAULT: Self = Self {
        events: 50_000,
        bytes: 32 << 20,
        record_bytes: 64 << 10,
        batch_records: 500,
        batch_bytes: 4 << 20,
        linger_ms: 20,
        client_event_ms: 600_000,
        backoff_ms: 50,
        max_backoff_ms: 5_000,
    };
}

/// What a record's envelope adds to its events, generously.
const ENVELOPE_BYTES: usize = 768;

/// Why an event was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dropped {
    /// A count or a state that a later one of the same has made old, because the queue was full.
    Compacted,
    /// A client event, because the queue was full.
    ClientEventOverflow,
    /// A state event, because the queue was full of nothing else.
    StateOverflow,
    /// A client event that had waited too long.
    Expired,
    /// Still waiting when the process ended.
    Shutdown,
}

impl Dropped {
    /// Every reason.
    pub const ALL: [Self; 5] =
        [Self::Compacted, Self::ClientEventOverflow, Self::StateOverflow, Self::Expired, Self::Shutdown];

    /// The name in metrics and in `/flow`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compacted => "compacted",
            Self::ClientEventOverflow => "client_event_overflow",
            Self::StateOverflow => "state_overflow",
            Self::Expired => "expired",
            Self::Shutdown => "shutdown",
        }
    }
}

/// The events of one key that go into one record.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The key.
    pub subject: Subject,
    /// Oldest first.
    pub events: Vec<Event>,
}

struct Waiting {
    serial: u64,
    at_ms: u64,
    bytes: usize,
    event: Event,
}

#[derive(Default)]
struct Backlog {
    events: VecDeque<Waiting>,
    /// How many of the front are in flight.
    in_flight: usize,
    refusals: u32,
    /// Its entry in the lane's schedule, when it has one.
    due: Option<(u64, u64)>,
}

/// What may be dropped when the queue is full, in the order in which it goes; of one rank the oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The count of a channel of which a later count waits.
    OldCount,
    /// A client event, or that a channel's last event was missed.
    Client,
    /// The latest count of a channel.
    Count,
    /// A state that a later one has ended.
    OldState,
    /// What a receiver must end with.
    State,
}

impl Rank {
    const ALL: [Self; 5] = [Self::OldCount, Self::Client, Self::Count, Self::OldState, Self::State];

    fn of(event: &Event) -> Self {
        match event.kind {
            EventKind::ClientEvent { .. } | EventKind::CacheMiss => Self::Client,
            EventKind::SubscriptionCount { .. } => Self::Count,
            EventKind::ChannelOccupied
            | EventKind::ChannelVacated
            | EventKind::MemberAdded { .. }
            | EventKind::MemberRemoved { .. } => Self::State,
        }
    }

    /// What it becomes once a later one of the same topic waits.
    fn old(self) -> Self {
        match self {
            Self::Count | Self::OldCount => Self::OldCount,
            Self::State | Self::OldState => Self::OldState,
            Self::Client => Self::Client,
        }
    }

    fn dropped(self) -> Dropped {
        match self {
            Self::OldCount | Self::OldState => Dropped::Compacted,
            Self::Client | Self::Count => Dropped::ClientEventOverflow,
            Self::State => Dropped::StateOverflow,
        }
    }

    /// Whether it may get too old.
    fn expires(self) -> bool {
        self < Self::OldState
    }
}

/// What of a channel an event tells the newest of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Topic {
    Count,
    Occupancy,
    Member(String),
}

impl Topic {
    fn of(event: &Event) -> Option<Self> {
        match &event.kind {
            EventKind::SubscriptionCount { .. } => Some(Self::Count),
            EventKind::ChannelOccupied | EventKind::ChannelVacated => Some(Self::Occupancy),
            EventKind::MemberAdded { user_id } | EventKind::MemberRemoved { user_id } => {
                Some(Self::Member(user_id.clone()))
            }
            EventKind::ClientEvent { .. } | EventKind::CacheMiss => None,
        }
    }
}

/// The queue.
pub struct Queue {
    limits: Limits,
    backlogs: HashMap<Subject, Backlog>,
    /// Per lane: when which key may go, earliest first. A key stands here exactly while it has events and none of them
    /// is in flight.
    lanes: Vec<BTreeMap<(u64, u64), Subject>>,
    /// What may be dropped, by rank and oldest first: events that are not in flight.
    droppable: [BTreeMap<u64, Subject>; Rank::ALL.len()],
    /// The latest of those of each topic: by the bus's order, or else by arrival.
    latest: HashMap<(Subject, Topic), (Option<Order>, u64)>,
    hasher: std::hash::BuildHasherDefault<std::hash::DefaultHasher>,
    serial: u64,
    events: usize,
    bytes: usize,
}

impl Queue {
    /// An empty queue with so many lanes.
    pub fn new(limits: Limits, lanes: usize) -> Self {
        Self {
            limits,
            backlogs: HashMap::new(),
            lanes: vec![BTreeMap::new(); lanes.max(1)],
            droppable: Default::default(),
            latest: HashMap::new(),
            hasher: std::hash::BuildHasherDefault::default(),
            serial: 0,
            events: 0,
            bytes: 0,
        }
    }

    /// Events that wait, those in flight too.
    pub fn len(&self) -> usize {
        self.events
    }

    /// Which lane a key goes through, always the same.
    pub fn lane(&self, subject: &Subject) -> usize {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(subject.app.as_str().as_bytes());
        hasher.write_u8(b'/');
        hasher.write(subject.channel.as_str().as_bytes());
        usize::try_from(hasher.finish() % self.lanes.len() as u64).unwrap_or_default()
    }

    /// Takes an event in and says what had to go for it.
    pub fn push(&mut self, subject: &Subject, event: Event, now: u64) -> Vec<Dropped> {
        let bytes = size(&event);
        self.serial += 1;
        let serial = self.serial;
        self.list(subject, serial, &event);
        let backlog = self.backlogs.entry(subject.clone()).or_default();
        let place = backlog.place(&event);
        backlog.events.insert(place, Waiting { serial, at_ms: now, bytes, event });
        self.events += 1;
        self.bytes += bytes;
        self.schedule(subject);
        self.make_room()
    }

    /// The next batch of a lane: keys that are due, earliest first. Keys that were refused before fill at most half of
    /// it, so that a hot shard does not hold up the others.
    pub fn take(&mut self, lane: usize, now: u64) -> Vec<Taken> {
        let Some(schedule) = self.lanes.get(lane) else { return Vec::new() };
        let (mut chosen, mut bytes, mut again) = (Vec::new(), 0, 0);
        for (due, subject) in schedule.range(..=(now, u64::MAX)) {
            let Some(backlog) = self.backlogs.get(subject) else { continue };
            if backlog.refusals > 0 && again >= self.limits.batch_records.div_ceil(2) {
                continue;
            }
            let (count, size) = backlog.record(self.limits.record_bytes);
            let size = size + ENVELOPE_BYTES;
            let full = chosen.len() >= self.limits.batch_records || bytes + size > self.limits.batch_bytes;
            if full && !chosen.is_empty() {
                break;
            }
            again += usize::from(backlog.refusals > 0);
            bytes += size;
            chosen.push((*due, subject.clone(), count));
        }
        chosen.into_iter().map(|(due, subject, count)| self.send(lane, due, subject, count)).collect()
    }

    /// Notes what the stream answered to a record. `jitter` is from 0 to 1. Returns how many events are done.
    pub fn settle(&mut self, subject: &Subject, acknowledged: bool, now: u64, jitter: f64) -> usize {
        let Some(backlog) = self.backlogs.get_mut(subject) else { return 0 };
        let count = std::mem::take(&mut backlog.in_flight);
        if acknowledged {
            backlog.refusals = 0;
            let freed: usize = backlog.events.drain(..count).map(|waiting| waiting.bytes).sum();
            self.events -= count;
            self.bytes -= freed;
            if backlog.events.is_empty() {
                self.backlogs.remove(subject);
            } else {
                self.schedule(subject);
            }
            return count;
        }
        backlog.refusals = backlog.refusals.saturating_add(1);
        let wait = backoff(self.limits.backoff_ms, self.limits.max_backoff_ms, backlog.refusals, jitter);
        let again: Vec<(u64, Event)> =
            backlog.events.iter().take(count).map(|waiting| (waiting.serial, waiting.event.clone())).collect();
        for (serial, event) in &again {
            self.list(subject, *serial, event);
        }
        self.put_on_schedule(subject, now + wait);
        0
    }

    /// When the lane next has something to send.
    pub fn next_due(&self, lane: usize) -> Option<u64> {
        self.lanes.get(lane)?.first_key_value().map(|(&(due, _), _)| due)
    }

    /// Drops client events that have waited too long.
    pub fn expire(&mut self, now: u64) -> usize {
        let mut count = 0;
        for rank in Rank::ALL.into_iter().filter(|rank| rank.expires()) {
            while let Some((&serial, subject)) = self.droppable[rank as usize].first_key_value() {
                let subject = subject.clone();
                let old = self
                    .backlogs
                    .get(&subject)
                    .and_then(|backlog| backlog.find(serial))
                    .is_none_or(|(_, waiting)| now.saturating_sub(waiting.at_ms) >= self.limits.client_event_ms);
                if !old {
                    break;
                }
                self.droppable[rank as usize].remove(&serial);
                count += usize::from(self.discard(&subject, serial));
            }
        }
        count
    }

    fn make_room(&mut self) -> Vec<Dropped> {
        let mut dropped = Vec::new();
        while self.events > self.limits.events || self.bytes > self.limits.bytes {
            let first = |rank: &Rank| !self.droppable[*rank as usize].is_empty();
            // Otherwise everything is in flight: the next answer makes room.
            let Some(rank) = Rank::ALL.into_iter().find(first) else { break };
            let Some((serial, subject)) = self.droppable[rank as usize].pop_first() else { break };
            if self.discard(&subject, serial) {
                dropped.push(rank.dropped());
            }
        }
        dropped
    }

    /// Lists an event among those that may be dropped, and finds out which of its topic is the latest.
    fn list(&mut self, subject: &Subject, serial: u64, event: &Event) {
        let mut rank = Rank::of(event);
        if let Some(topic) = Topic::of(event) {
            let own = (event.order, serial);
            match self.latest.entry((subject.clone(), topic)) {
                Entry::Vacant(latest) => {
                    latest.insert(own);
                }
                Entry::Occupied(mut latest) if *latest.get() < own => {
                    let (_, before) = latest.insert(own);
                    self.droppable[rank as usize].remove(&before);
                    self.droppable[rank.old() as usize].insert(before, subject.clone());
                }
                Entry::Occupied(_) => rank = rank.old(),
            }
        }
        self.droppable[rank as usize].insert(serial, subject.clone());
    }

    /// Forgets that an event is the latest of its topic, if it is.
    fn delist(&mut self, subject: &Subject, serial: u64, event: &Event) {
        let Some(topic) = Topic::of(event) else { return };
        if let Entry::Occupied(latest) = self.latest.entry((subject.clone(), topic))
            && latest.get().1 == serial
        {
            latest.remove();
        }
    }

    fn discard(&mut self, subject: &Subject, serial: u64) -> bool {
        let Some(backlog) = self.backlogs.get_mut(subject) else { return false };
        let Some(place) = backlog.find(serial).map(|(place, _)| place) else { return false };
        let Some(waiting) = backlog.events.remove(place) else { return false };
        self.events -= 1;
        self.bytes -= waiting.bytes;
        if backlog.events.is_empty() {
            let due = backlog.due;
            self.backlogs.remove(subject);
            let lane = self.lane(subject);
            if let Some(due) = due {
                self.lanes[lane].remove(&due);
            }
        }
        self.delist(subject, serial, &waiting.event);
        true
    }

    fn send(&mut self, lane: usize, due: (u64, u64), subject: Subject, count: usize) -> Taken {
        self.lanes[lane].remove(&due);
        let Some(backlog) = self.backlogs.get_mut(&subject) else { return Taken { subject, events: Vec::new() } };
        backlog.due = None;
        backlog.in_flight = count;
        let taken: Vec<(u64, Event)> =
            backlog.events.iter().take(count).map(|waiting| (waiting.serial, waiting.event.clone())).collect();
        let mut events = Vec::with_capacity(count);
        for (serial, event) in taken {
            let rank = Rank::of(&event);
            self.droppable[rank as usize].remove(&serial);
            self.droppable[rank.old() as usize].remove(&serial);
            self.delist(&subject, serial, &event);
            events.push(event);
        }
        Taken { subject, events }
    }

    /// Plans a key that has events, none of them in flight, and no plan yet.
    fn schedule(&mut self, subject: &Subject) {
        let Some(backlog) = self.backlogs.get(subject) else { return };
        if backlog.in_flight > 0 || backlog.due.is_some() {
            return;
        }
        let Some(first) = backlog.events.front() else { return };
        let due = first.at_ms + self.limits.linger_ms;
        self.put_on_schedule(subject, due);
    }

    fn put_on_schedule(&mut self, subject: &Subject, due: u64) {
        let lane = self.lane(subject);
        self.serial += 1;
        let entry = (due, self.serial);
        if let Some(backlog) = self.backlogs.get_mut(subject) {
            backlog.due = Some(entry);
            self.lanes[lane].insert(entry, subject.clone());
        }
    }
}

impl Backlog {
    /// Where a new event goes: at the end; but before waiting state events that the bus decided later. Two connections
    /// may hand in what the bus told them in another order than it decided.
    fn place(&self, event: &Event) -> usize {
        let end = self.events.len();
        let Some(order) = event.order else { return end };
        let later = |waiting: &Waiting| waiting.event.order.is_some_and(|other| other > order);
        (self.in_flight..end).find(|&place| later(&self.events[place])).unwrap_or(end)
    }

    fn find(&self, serial: u64) -> Option<(usize, &Waiting)> {
        self.events.iter().enumerate().skip(self.in_flight).find(|(_, waiting)| waiting.serial == serial)
    }

    /// How many events the next record takes, and their bytes.
    fn record(&self, most: usize) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        for waiting in &self.events {
            if count > 0 && bytes + waiting.bytes > most {
                break;
            }
            count += 1;
            bytes += waiting.bytes;
        }
        (count, bytes)
    }
}

/// The wait after so many refusals in a row: doubled each time up to a bound, then a part from half to all of it.
pub fn backoff(first_ms: u64, most_ms: u64, refusals: u32, jitter: f64) -> u64 {
    let doubled = first_ms.saturating_mul(1 << refusals.saturating_sub(1).min(16)).min(most_ms);
    let wait = Duration::from_millis(doubled).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
    u64::try_from(wait.as_millis()).unwrap_or(most_ms)
}

fn size(event: &Event) -> usize {
    serde_json::to_vec(event).map_or(256, |bytes| bytes.len() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ChannelName;
    use proptest::prelude::*;

    fn subject(channel: &str) -> Subject {
        Subject { app: "1".into(), channel: ChannelName::parse(channel).expect("a name") }
    }

    fn client(n: u64) -> Event {
        let kind = EventKind::ClientEvent {
            event: "client-a".into(),
            data: "{}".into(),
            socket_id: "1.2".into(),
            user_id: None,
        };
        Event { id: n.to_string(), time_ms: 0, order: None, n: Some(n), cause: None, kind }
    }

    fn count(n: u64) -> Event {
        let kind = EventKind::SubscriptionCount { subscription_count: n };
        Event { id: n.to_string(), time_ms: 0, order: None, n: Some(n), cause: None, kind }
    }

    fn state(seq: u64) -> Event {
        let order = Some(Order { epoch: 1, seq });
        Event { id: seq.to_string(), time_ms: 0, order, n: None, cause: None, kind: EventKind::ChannelOccupied }
    }

    fn queue(limits: Limits) -> Queue {
        Queue::new(limits, 1)
    }

    fn ids(batch: &[Taken]) -> Vec<Vec<&str>> {
        batch.iter().map(|taken| taken.events.iter().map(|event| event.id.as_str()).collect()).collect()
    }

    #[test]
    fn events_of_one_key_share_a_record_after_the_linger() {
        let mut queue = queue(Limits::DEFAULT);
        queue.push(&subject("a"), client(1), 0);
        queue.push(&subject("a"), client(2), 19);
        queue.push(&subject("b"), client(3), 5);
        assert_eq!(ids(&queue.take(0, 19)), [[""; 0]; 0], "the linger is not over");
        assert_eq!(queue.next_due(0), Some(20));
        assert_eq!(ids(&queue.take(0, 30)), [vec!["1", "2"], vec!["3"]]);
    }

    #[test]
    fn a_key_in_flight_waits_and_a_refusal_goes_first() {
        let mut queue = queue(Limits::DEFAULT);
        let a = subject("a");
        queue.push(&a, client(1), 0);
        assert_eq!(ids(&queue.take(0, 20)), [["1"]]);
        queue.push(&a, client(2), 21);
        assert!(queue.take(0, 1000).is_empty(), "one record of a key at a time");
        assert_eq!(queue.settle(&a, false, 1000, 1.0), 0);
        assert!(queue.take(0, 1049).is_empty(), "after a wait");
        assert_eq!(ids(&queue.take(0, 1050)), [["1", "2"]], "extended by what came since");
        assert_eq!(queue.settle(&a, true, 1060, 0.0), 2);
        assert_eq!((queue.len(), queue.bytes, queue.next_due(0)), (0, 0, None));
    }

    #[test]
    fn state_events_are_put_into_the_order_of_the_bus_while_they_wait() {
        let mut queue = queue(Limits::DEFAULT);
        for event in [state(2), client(9), state(1), state(3)] {
            queue.push(&subject("a"), event, 0);
        }
        assert_eq!(ids(&queue.take(0, 20)), [["1", "2", "9", "3"]]);
    }

    #[test]
    fn a_full_queue_drops_the_oldest_client_events_and_state_last() {
        let mut queue = queue(Limits { events: 2, ..Limits::DEFAULT });
        let a = subject("a");
        assert_eq!(queue.push(&a, state(1), 0), []);
        assert_eq!(queue.push(&subject("b"), client(2), 0), []);
        assert_eq!(queue.push(&a, client(3), 0), [Dropped::ClientEventOverflow]);
        assert_eq!(queue.push(&a, state(4), 0), [Dropped::ClientEventOverflow]);
        assert_eq!(queue.push(&a, state(5), 0), [Dropped::Compacted]);
        assert_eq!(queue.push(&subject("c"), state(6), 0), [Dropped::Compacted]);
        assert_eq!(queue.push(&subject("d"), state(7), 0), [Dropped::StateOverflow], "nothing but last states is left");
        assert_eq!(ids(&queue.take(0, 20)), [["6"], ["7"]]);
        assert_eq!(queue.push(&a, client(8), 0), [Dropped::ClientEventOverflow], "what is in flight cannot go");
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn a_full_queue_keeps_the_latest_count_of_each_channel() {
        let mut queue = queue(Limits { events: 4, ..Limits::DEFAULT });
        let (a, b) = (subject("a"), subject("b"));
        queue.push(&a, client(1), 0);
        for (subject, n) in [(&a, 2), (&b, 3), (&a, 4)] {
            assert_eq!(queue.push(subject, count(n), 0), []);
        }
        assert_eq!(queue.push(&a, count(5), 0), [Dropped::Compacted]);
        assert_eq!(queue.push(&b, count(6), 0), [Dropped::Compacted]);
        assert_eq!(queue.push(&b, count(7), 0), [Dropped::Compacted]);
        assert_eq!(ids(&queue.take(0, 19)), [[""; 0]; 0]);
        assert_eq!(queue.push(&a, state(8), 0), [Dropped::Compacted], "the last old count");
        assert_eq!(queue.push(&a, state(9), 0), [Dropped::ClientEventOverflow]);
        let waiting: Vec<&str> =
            queue.backlogs.values().flat_map(|backlog| &backlog.events).map(|waiting| &*waiting.event.id).collect();
        assert!(waiting.contains(&"5") && waiting.contains(&"7") && !waiting.contains(&"1"), "{waiting:?}");
        assert_eq!(queue.push(&a, state(10), 0), [Dropped::ClientEventOverflow], "a last count before a state");
        assert_eq!(queue.push(&b, state(11), 0), [Dropped::ClientEventOverflow]);
        assert_eq!(ids(&queue.take(0, 20)), [vec!["8", "9", "10"], vec!["11"]]);
    }

    #[test]
    fn a_count_that_was_refused_is_old_once_another_came() {
        let mut queue = queue(Limits { events: 3, ..Limits::DEFAULT });
        let a = subject("a");
        queue.push(&a, count(1), 0);
        assert_eq!(ids(&queue.take(0, 20)), [["1"]]);
        queue.push(&a, count(2), 21);
        queue.settle(&a, false, 30, 0.0);
        queue.push(&a, client(3), 30);
        assert_eq!(queue.push(&a, client(4), 30), [Dropped::Compacted]);
        assert_eq!(ids(&queue.take(0, 1000)), [["2", "3", "4"]]);
        assert_eq!(queue.settle(&a, true, 1000, 0.0), 3);
        assert_eq!((queue.len(), queue.bytes, queue.latest.len()), (0, 0, 0));
    }

    #[test]
    fn of_a_members_states_the_last_one_by_the_buss_order_is_kept() {
        let mut queue = queue(Limits { events: 2, ..Limits::DEFAULT });
        let member = |seq, user: &str, joined: bool| {
            let user_id = user.to_owned();
            let kind = if joined { EventKind::MemberAdded { user_id } } else { EventKind::MemberRemoved { user_id } };
            Event { kind, ..state(seq) }
        };
        let a = subject("presence-a");
        queue.push(&a, member(3, "ann", false), 0);
        assert_eq!(queue.push(&a, member(2, "ann", true), 0), []);
        assert_eq!(queue.push(&a, member(4, "bob", true), 0), [Dropped::Compacted]);
        assert_eq!(ids(&queue.take(0, 20)), [["3", "4"]]);
    }

    #[test]
    fn client_events_that_waited_too_long_are_dropped_and_state_is_not() {
        let mut queue = queue(Limits::DEFAULT);
        queue.push(&subject("a"), client(1), 0);
        queue.push(&subject("b"), state(2), 0);
        queue.push(&subject("a"), client(3), 1);
        assert_eq!(queue.expire(599_999), 0);
        assert_eq!(queue.expire(600_000), 1);
        assert_eq!(ids(&queue.take(0, 600_100)).concat().len(), 2);
    }

    #[test]
    fn refused_keys_fill_half_a_batch() {
        let mut queue = queue(Limits { batch_records: 4, ..Limits::DEFAULT });
        let names: Vec<String> = (0..6).map(|n| format!("c{n}")).collect();
        for name in &names {
            queue.push(&subject(name), state(1), 0);
        }
        for now in [20, 21] {
            for taken in queue.take(0, now) {
                queue.settle(&taken.subject, false, now, 0.0);
            }
        }
        for name in ["new1", "new2", "new3"] {
            queue.push(&subject(name), state(1), 1000);
        }
        let batch = queue.take(0, 2000);
        let new = batch.iter().filter(|taken| taken.subject.channel.as_str().starts_with("new")).count();
        assert_eq!((batch.len(), new), (4, 2));
    }

    #[test]
    fn waits_grow_and_end_at_the_bound() {
        let waits: Vec<u64> = [1, 2, 3, 7, 8, 99].map(|refusals| backoff(50, 5_000, refusals, 1.0)).into();
        assert_eq!(waits, [50, 100, 200, 3_200, 5_000, 5_000]);
        assert_eq!(backoff(50, 5_000, 1, 0.0), 25);
    }

    proptest! {
        /// Whatever is refused, and however often: each key's events are acknowledged in the order of their arrival,
        /// each once, and nothing is left.
        #[test]
        fn the_order_of_a_key_survives_any_refusals(
            keys in proptest::collection::vec(0_u8..5, 1..200),
            refusals in proptest::collection::vec(any::<bool>(), 1..50),
            step in 1_u64..40,
        ) {
            let limits = Limits { record_bytes: 400, batch_records: 3, max_backoff_ms: 100, ..Limits::DEFAULT };
            let mut queue = Queue::new(limits, 3);
            let mut arrived: HashMap<Subject, Vec<String>> = HashMap::new();
            let mut stored: HashMap<Subject, Vec<String>> = HashMap::new();
            let mut refused = refusals.iter().cycle();
            let mut pending = keys.iter().zip(1..);
            for now in (0..).map(|n| n * step) {
                if let Some((key, n)) = pending.next() {
                    let subject = subject(&format!("c{key}"));
                    prop_assert!(queue.push(&subject, client(n), now).is_empty());
                    arrived.entry(subject).or_default().push(n.to_string());
                } else if queue.len() == 0 {
                    break;
                }
                prop_assert!(now < 1_000_000, "it never ends");
                let healed = now / step > 500;
                for lane in 0..3 {
                    for taken in queue.take(lane, now) {
                        prop_assert_eq!(queue.lane(&taken.subject), lane);
                        let no = !healed && *refused.next().expect("a cycle");
                        if !no {
                            let ids = taken.events.iter().map(|event| event.id.clone());
                            stored.entry(taken.subject.clone()).or_default().extend(ids);
                        }
                        let done = queue.settle(&taken.subject, !no, now, 0.5);
                        prop_assert_eq!(done, if no { 0 } else { taken.events.len() });
                    }
                }
            }
            prop_assert_eq!(arrived, stored);
            prop_assert_eq!((queue.bytes, queue.droppable.iter().map(BTreeMap::len).sum::<usize>()), (0, 0));
            prop_assert_eq!((queue.latest.len(), queue.backlogs.len()), (0, 0));
        }
    }
}
