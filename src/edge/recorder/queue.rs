//! The queue of events for the stream. Pure.
//!
//! In: events, the time, and the stream's answers. Out: batches with at most one record per key, each key's events in
//! order. Must not know Kinesis, tasks or clocks: the caller passes the time in ms of its own monotonic clock, so that
//! a test can cover an outage of an hour.
//!
//! Events in flight stay at the front of their key and count as queued until the stream acknowledges them. A refusal
//! only clears the in-flight mark: they are sent again before anything newer of their key, perhaps together with
//! it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use crate::bus::ChannelKey;
use crate::edge::drop_reason::DropReason;
use crate::protocol::record::{EventKind, EventOrder, RecordedEvent};

/// Bounds of the queue and of a batch.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Events that the queue holds at most.
    pub events: usize,
    /// Bytes that the queue holds at most.
    pub bytes: usize,
    /// Bytes of events in one record at most.
    pub record_bytes: usize,
    /// Records in one batch at most.
    pub batch_records: usize,
    /// Bytes in one batch at most.
    pub batch_bytes: usize,
    /// Delay for collecting further events of a key, in ms.
    pub linger_ms: u64,
    /// Age at which a client event is dropped, in ms.
    pub client_event_ms: u64,
    /// First back-off after a refusal, in ms.
    pub backoff_ms: u64,
    /// Longest back-off after a refusal, in ms.
    pub max_backoff_ms: u64,
}

impl QueueLimits {
    /// The limits of an edge. A batch stays below the 5 MiB of `PutRecords`, which counts keys too.
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

/// Bounds the bytes that a record's envelope adds to its events: a generous estimate.
const RECORD_ENVELOPE_BYTES: usize = 768;

/// The events of one key that go into one record.
#[derive(Clone, Debug)]
pub struct OutgoingRecord {
    /// The key of the record.
    pub subject: ChannelKey,
    /// The events, oldest first.
    pub events: Vec<RecordedEvent>,
}

struct QueuedEvent {
    serial: u64,
    at_ms: u64,
    bytes: usize,
    event: RecordedEvent,
}

#[derive(Default)]
struct KeyBacklog {
    events: VecDeque<QueuedEvent>,
    /// Number of events at the front that are in flight.
    in_flight: usize,
    refusals: u32,
    /// The key's entry in the lane's schedule, if it has one.
    due: Option<(u64, u64)>,
}

/// The order in which events are dropped when the queue is full; of one rank the oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum DropRank {
    /// A subscription count that a later one has replaced.
    SupersededCount,
    /// A client event, or a cache miss.
    Client,
    /// The latest subscription count of a channel.
    Count,
    /// A state that a later one has ended.
    SupersededState,
    /// The latest state, with which a receiver must end.
    State,
}

impl DropRank {
    const ALL: [Self; 5] = [Self::SupersededCount, Self::Client, Self::Count, Self::SupersededState, Self::State];

    fn of_event(event: &RecordedEvent) -> Self {
        match event.kind {
            EventKind::ClientEvent { .. } | EventKind::CacheMiss => Self::Client,
            EventKind::SubscriptionCount { .. } => Self::Count,
            EventKind::ChannelOccupied
            | EventKind::ChannelVacated
            | EventKind::MemberAdded { .. }
            | EventKind::MemberRemoved { .. } => Self::State,
        }
    }

    /// The rank of an event once a later one of the same topic is queued.
    fn superseded(self) -> Self {
        match self {
            Self::Count | Self::SupersededCount => Self::SupersededCount,
            Self::State | Self::SupersededState => Self::SupersededState,
            Self::Client => Self::Client,
        }
    }

    fn drop_reason(self) -> DropReason {
        match self {
            Self::SupersededCount | Self::SupersededState => DropReason::Compacted,
            Self::Client | Self::Count => DropReason::ClientEventOverflow,
            Self::State => DropReason::StateOverflow,
        }
    }

    /// Whether events of this rank have an age limit.
    fn can_expire(self) -> bool {
        self < Self::SupersededState
    }
}

/// The state of a channel of which an event is the newest version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum EventTopic {
    Count,
    Occupancy,
    Member(String),
}

impl EventTopic {
    fn of_event(event: &RecordedEvent) -> Option<Self> {
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

/// The queue of all keys.
pub struct RecordQueue {
    limits: QueueLimits,
    backlogs: HashMap<ChannelKey, KeyBacklog>,
    /// Per lane, the earliest time at which each key may be sent. A key is listed exactly while it has events and none
    /// of them is in flight.
    lanes: Vec<BTreeMap<(u64, u64), ChannelKey>>,
    /// The droppable events, by rank and oldest first: events that are not in flight.
    droppable: [BTreeMap<u64, ChannelKey>; DropRank::ALL.len()],
    /// The latest event of each topic: by the bus's order, or else by arrival.
    latest: HashMap<(ChannelKey, EventTopic), (Option<EventOrder>, u64)>,
    hasher: std::hash::BuildHasherDefault<std::hash::DefaultHasher>,
    serial: u64,
    events: usize,
    bytes: usize,
}

impl RecordQueue {
    /// Creates an empty queue with this number of lanes.
    pub fn new(limits: QueueLimits, lanes: usize) -> Self {
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

    /// Number of queued events, including those in flight.
    pub fn len(&self) -> usize {
        self.events
    }

    /// Returns the lane of a key, which never changes.
    pub fn lane_of(&self, subject: &ChannelKey) -> usize {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(subject.app.as_str().as_bytes());
        hasher.write_u8(b'/');
        hasher.write(subject.channel.as_str().as_bytes());
        usize::try_from(hasher.finish() % self.lanes.len() as u64).unwrap_or_default()
    }

    /// Queues an event and returns the reasons of events that were dropped for it.
    pub fn push(&mut self, subject: &ChannelKey, event: RecordedEvent, now: u64) -> Vec<DropReason> {
        let bytes = measure_event(&event);
        self.serial += 1;
        let serial = self.serial;
        self.add_droppable(subject, serial, &event);
        let backlog = self.backlogs.entry(subject.clone()).or_default();
        let place = backlog.insertion_index(&event);
        backlog.events.insert(place, QueuedEvent { serial, at_ms: now, bytes, event });
        self.events += 1;
        self.bytes += bytes;
        self.schedule_key(subject);
        self.evict_overflow()
    }

    /// Returns the next batch of a lane: due keys, earliest first. Keys that were refused before fill at most half of
    /// it, so that a hot shard does not delay the others.
    pub fn take_batch(&mut self, lane: usize, now: u64) -> Vec<OutgoingRecord> {
        let Some(schedule) = self.lanes.get(lane) else { return Vec::new() };
        let (mut chosen, mut bytes, mut again) = (Vec::new(), 0, 0);
        for (due, subject) in schedule.range(..=(now, u64::MAX)) {
            let Some(backlog) = self.backlogs.get(subject) else { continue };
            if backlog.refusals > 0 && again >= self.limits.batch_records.div_ceil(2) {
                continue;
            }
            let (count, size) = backlog.measure_next_record(self.limits.record_bytes);
            let size = size + RECORD_ENVELOPE_BYTES;
            let full = chosen.len() >= self.limits.batch_records || bytes + size > self.limits.batch_bytes;
            if full && !chosen.is_empty() {
                break;
            }
            again += usize::from(backlog.refusals > 0);
            bytes += size;
            chosen.push((*due, subject.clone(), count));
        }
        chosen.into_iter().map(|(due, subject, count)| self.mark_in_flight(lane, due, subject, count)).collect()
    }

    /// Applies the stream's answer to a record and returns the number of completed events. `jitter` is from 0 to 1.
    pub fn complete_record(&mut self, subject: &ChannelKey, acknowledged: bool, now: u64, jitter: f64) -> usize {
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
                self.schedule_key(subject);
            }
            return count;
        }
        backlog.refusals = backlog.refusals.saturating_add(1);
        let wait = compute_backoff(self.limits.backoff_ms, self.limits.max_backoff_ms, backlog.refusals, jitter);
        let again: Vec<(u64, RecordedEvent)> =
            backlog.events.iter().take(count).map(|waiting| (waiting.serial, waiting.event.clone())).collect();
        for (serial, event) in &again {
            self.add_droppable(subject, *serial, event);
        }
        self.put_on_schedule(subject, now + wait);
        0
    }

    /// Returns the time at which the lane next has something to send.
    pub fn next_due(&self, lane: usize) -> Option<u64> {
        self.lanes.get(lane)?.first_key_value().map(|(&(due, _), _)| due)
    }

    /// Drops client events that exceeded their age limit.
    pub fn drop_expired(&mut self, now: u64) -> usize {
        let mut count = 0;
        for rank in DropRank::ALL.into_iter().filter(|rank| rank.can_expire()) {
            while let Some((&serial, subject)) = self.droppable[rank as usize].first_key_value() {
                let subject = subject.clone();
                let old = self
                    .backlogs
                    .get(&subject)
                    .and_then(|backlog| backlog.find_event(serial))
                    .is_none_or(|(_, waiting)| now.saturating_sub(waiting.at_ms) >= self.limits.client_event_ms);
                if !old {
                    break;
                }
                self.droppable[rank as usize].remove(&serial);
                count += usize::from(self.discard_event(&subject, serial));
            }
        }
        count
    }

    fn evict_overflow(&mut self) -> Vec<DropReason> {
        let mut dropped = Vec::new();
        while self.events > self.limits.events || self.bytes > self.limits.bytes {
            let first = |rank: &DropRank| !self.droppable[*rank as usize].is_empty();
            // Otherwise everything is in flight: the next answer makes room.
            let Some(rank) = DropRank::ALL.into_iter().find(first) else { break };
            let Some((serial, subject)) = self.droppable[rank as usize].pop_first() else { break };
            if self.discard_event(&subject, serial) {
                dropped.push(rank.drop_reason());
            }
        }
        dropped
    }

    /// Adds an event to its rank and updates the latest event of its topic.
    fn add_droppable(&mut self, subject: &ChannelKey, serial: u64, event: &RecordedEvent) {
        let mut rank = DropRank::of_event(event);
        if let Some(topic) = EventTopic::of_event(event) {
            let own = (event.order, serial);
            match self.latest.entry((subject.clone(), topic)) {
                Entry::Vacant(latest) => {
                    latest.insert(own);
                }
                Entry::Occupied(mut latest) if *latest.get() < own => {
                    let (_, before) = latest.insert(own);
                    self.droppable[rank as usize].remove(&before);
                    self.droppable[rank.superseded() as usize].insert(before, subject.clone());
                }
                Entry::Occupied(_) => rank = rank.superseded(),
            }
        }
        self.droppable[rank as usize].insert(serial, subject.clone());
    }

    /// Removes an event as the latest of its topic, if it is.
    fn clear_latest(&mut self, subject: &ChannelKey, serial: u64, event: &RecordedEvent) {
        let Some(topic) = EventTopic::of_event(event) else { return };
        if let Entry::Occupied(latest) = self.latest.entry((subject.clone(), topic))
            && latest.get().1 == serial
        {
            latest.remove();
        }
    }

    fn discard_event(&mut self, subject: &ChannelKey, serial: u64) -> bool {
        let Some(backlog) = self.backlogs.get_mut(subject) else { return false };
        let Some(place) = backlog.find_event(serial).map(|(place, _)| place) else { return false };
        let Some(waiting) = backlog.events.remove(place) else { return false };
        self.events -= 1;
        self.bytes -= waiting.bytes;
        if backlog.events.is_empty() {
            let due = backlog.due;
            self.backlogs.remove(subject);
            let lane = self.lane_of(subject);
            if let Some(due) = due {
                self.lanes[lane].remove(&due);
            }
        }
        self.clear_latest(subject, serial, &waiting.event);
        true
    }

    fn mark_in_flight(&mut self, lane: usize, due: (u64, u64), subject: ChannelKey, count: usize) -> OutgoingRecord {
        self.lanes[lane].remove(&due);
        let Some(backlog) = self.backlogs.get_mut(&subject) else {
            return OutgoingRecord { subject, events: Vec::new() };
        };
        backlog.due = None;
        backlog.in_flight = count;
        let taken: Vec<(u64, RecordedEvent)> =
            backlog.events.iter().take(count).map(|waiting| (waiting.serial, waiting.event.clone())).collect();
        let mut events = Vec::with_capacity(count);
        for (serial, event) in taken {
            let rank = DropRank::of_event(&event);
            self.droppable[rank as usize].remove(&serial);
            self.droppable[rank.superseded() as usize].remove(&serial);
            self.clear_latest(&subject, serial, &event);
            events.push(event);
        }
        OutgoingRecord { subject, events }
    }

    /// Schedules a key that has events, none of them in flight, and no schedule entry yet.
    fn schedule_key(&mut self, subject: &ChannelKey) {
        let Some(backlog) = self.backlogs.get(subject) else { return };
        if backlog.in_flight > 0 || backlog.due.is_some() {
            return;
        }
        let Some(first) = backlog.events.front() else { return };
        let due = first.at_ms + self.limits.linger_ms;
        self.put_on_schedule(subject, due);
    }

    fn put_on_schedule(&mut self, subject: &ChannelKey, due: u64) {
        let lane = self.lane_of(subject);
        self.serial += 1;
        let entry = (due, self.serial);
        if let Some(backlog) = self.backlogs.get_mut(subject) {
            backlog.due = Some(entry);
            self.lanes[lane].insert(entry, subject.clone());
        }
    }
}

impl KeyBacklog {
    /// The index of a new event: at the end, but before queued state events that the bus decided later. Two connections may
    /// record transitions in another order than the bus decided them.
    fn insertion_index(&self, event: &RecordedEvent) -> usize {
        let end = self.events.len();
        let Some(order) = event.order else { return end };
        let later = |waiting: &QueuedEvent| waiting.event.order.is_some_and(|other| other > order);
        (self.in_flight..end).find(|&place| later(&self.events[place])).unwrap_or(end)
    }

    fn find_event(&self, serial: u64) -> Option<(usize, &QueuedEvent)> {
        self.events.iter().enumerate().skip(self.in_flight).find(|(_, waiting)| waiting.serial == serial)
    }

    /// Returns the number of events in the next record, and their bytes.
    fn measure_next_record(&self, most: usize) -> (usize, usize) {
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

/// Returns the back-off after this many consecutive refusals: doubled up to a bound, then 50 to 100 % of it.
pub fn compute_backoff(first_ms: u64, most_ms: u64, refusals: u32, jitter: f64) -> u64 {
    let doubled = first_ms.saturating_mul(1 << refusals.saturating_sub(1).min(16)).min(most_ms);
    let wait = Duration::from_millis(doubled).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
    u64::try_from(wait.as_millis()).unwrap_or(most_ms)
}

fn measure_event(event: &RecordedEvent) -> usize {
    serde_json::to_vec(event).map_or(256, |bytes| bytes.len() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ChannelName;
    use proptest::prelude::*;

    fn test_key(channel: &str) -> ChannelKey {
        ChannelKey { app: "1".into(), channel: ChannelName::parse(channel).expect("a name") }
    }

    fn client_event(n: u64) -> RecordedEvent {
        let kind = EventKind::ClientEvent {
            event: "client-a".into(),
            data: "{}".into(),
            socket_id: "1.2".into(),
            user_id: None,
        };
        RecordedEvent { id: n.to_string(), time_ms: 0, order: None, n: Some(n), cause: None, kind }
    }

    fn count_event(n: u64) -> RecordedEvent {
        let kind = EventKind::SubscriptionCount { subscription_count: n };
        RecordedEvent { id: n.to_string(), time_ms: 0, order: None, n: Some(n), cause: None, kind }
    }

    fn state_event(seq: u64) -> RecordedEvent {
        let order = Some(EventOrder { epoch: 1, seq });
        RecordedEvent { id: seq.to_string(), time_ms: 0, order, n: None, cause: None, kind: EventKind::ChannelOccupied }
    }

    fn test_queue(limits: QueueLimits) -> RecordQueue {
        RecordQueue::new(limits, 1)
    }

    fn event_ids(batch: &[OutgoingRecord]) -> Vec<Vec<&str>> {
        batch.iter().map(|taken| taken.events.iter().map(|event| event.id.as_str()).collect()).collect()
    }

    #[test]
    fn events_of_one_key_share_a_record_after_the_linger() {
        let mut queue = test_queue(QueueLimits::DEFAULT);
        queue.push(&test_key("a"), client_event(1), 0);
        queue.push(&test_key("a"), client_event(2), 19);
        queue.push(&test_key("b"), client_event(3), 5);
        assert_eq!(event_ids(&queue.take_batch(0, 19)), [[""; 0]; 0], "the linger is not over");
        assert_eq!(queue.next_due(0), Some(20));
        assert_eq!(event_ids(&queue.take_batch(0, 30)), [vec!["1", "2"], vec!["3"]]);
    }

    #[test]
    fn a_key_in_flight_waits_and_a_refusal_goes_first() {
        let mut queue = test_queue(QueueLimits::DEFAULT);
        let a = test_key("a");
        queue.push(&a, client_event(1), 0);
        assert_eq!(event_ids(&queue.take_batch(0, 20)), [["1"]]);
        queue.push(&a, client_event(2), 21);
        assert!(queue.take_batch(0, 1000).is_empty(), "one record of a key at a time");
        assert_eq!(queue.complete_record(&a, false, 1000, 1.0), 0);
        assert!(queue.take_batch(0, 1049).is_empty(), "after a wait");
        assert_eq!(event_ids(&queue.take_batch(0, 1050)), [["1", "2"]], "extended by what came since");
        assert_eq!(queue.complete_record(&a, true, 1060, 0.0), 2);
        assert_eq!((queue.len(), queue.bytes, queue.next_due(0)), (0, 0, None));
    }

    #[test]
    fn state_events_are_put_into_the_order_of_the_bus_while_they_wait() {
        let mut queue = test_queue(QueueLimits::DEFAULT);
        for event in [state_event(2), client_event(9), state_event(1), state_event(3)] {
            queue.push(&test_key("a"), event, 0);
        }
        assert_eq!(event_ids(&queue.take_batch(0, 20)), [["1", "2", "9", "3"]]);
    }

    #[test]
    fn a_full_queue_drops_the_oldest_client_events_and_state_last() {
        let mut queue = test_queue(QueueLimits { events: 2, ..QueueLimits::DEFAULT });
        let a = test_key("a");
        assert_eq!(queue.push(&a, state_event(1), 0), []);
        assert_eq!(queue.push(&test_key("b"), client_event(2), 0), []);
        assert_eq!(queue.push(&a, client_event(3), 0), [DropReason::ClientEventOverflow]);
        assert_eq!(queue.push(&a, state_event(4), 0), [DropReason::ClientEventOverflow]);
        assert_eq!(queue.push(&a, state_event(5), 0), [DropReason::Compacted]);
        assert_eq!(queue.push(&test_key("c"), state_event(6), 0), [DropReason::Compacted]);
        assert_eq!(
            queue.push(&test_key("d"), state_event(7), 0),
            [DropReason::StateOverflow],
            "nothing but last states is left"
        );
        assert_eq!(event_ids(&queue.take_batch(0, 20)), [["6"], ["7"]]);
        assert_eq!(
            queue.push(&a, client_event(8), 0),
            [DropReason::ClientEventOverflow],
            "what is in flight cannot go"
        );
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn a_full_queue_keeps_the_latest_count_of_each_channel() {
        let mut queue = test_queue(QueueLimits { events: 4, ..QueueLimits::DEFAULT });
        let (a, b) = (test_key("a"), test_key("b"));
        queue.push(&a, client_event(1), 0);
        for (subject, n) in [(&a, 2), (&b, 3), (&a, 4)] {
            assert_eq!(queue.push(subject, count_event(n), 0), []);
        }
        assert_eq!(queue.push(&a, count_event(5), 0), [DropReason::Compacted]);
        assert_eq!(queue.push(&b, count_event(6), 0), [DropReason::Compacted]);
        assert_eq!(queue.push(&b, count_event(7), 0), [DropReason::Compacted]);
        assert_eq!(event_ids(&queue.take_batch(0, 19)), [[""; 0]; 0]);
        assert_eq!(queue.push(&a, state_event(8), 0), [DropReason::Compacted], "the last old count");
        assert_eq!(queue.push(&a, state_event(9), 0), [DropReason::ClientEventOverflow]);
        let waiting: Vec<&str> =
            queue.backlogs.values().flat_map(|backlog| &backlog.events).map(|waiting| &*waiting.event.id).collect();
        assert!(waiting.contains(&"5") && waiting.contains(&"7") && !waiting.contains(&"1"), "{waiting:?}");
        assert_eq!(
            queue.push(&a, state_event(10), 0),
            [DropReason::ClientEventOverflow],
            "a last count before a state"
        );
        assert_eq!(queue.push(&b, state_event(11), 0), [DropReason::ClientEventOverflow]);
        assert_eq!(event_ids(&queue.take_batch(0, 20)), [vec!["8", "9", "10"], vec!["11"]]);
    }

    #[test]
    fn a_count_that_was_refused_is_old_once_another_came() {
        let mut queue = test_queue(QueueLimits { events: 3, ..QueueLimits::DEFAULT });
        let a = test_key("a");
        queue.push(&a, count_event(1), 0);
        assert_eq!(event_ids(&queue.take_batch(0, 20)), [["1"]]);
        queue.push(&a, count_event(2), 21);
        queue.complete_record(&a, false, 30, 0.0);
        queue.push(&a, client_event(3), 30);
        assert_eq!(queue.push(&a, client_event(4), 30), [DropReason::Compacted]);
        assert_eq!(event_ids(&queue.take_batch(0, 1000)), [["2", "3", "4"]]);
        assert_eq!(queue.complete_record(&a, true, 1000, 0.0), 3);
        assert_eq!((queue.len(), queue.bytes, queue.latest.len()), (0, 0, 0));
    }

    #[test]
    fn of_a_members_states_the_last_one_by_the_buss_order_is_kept() {
        let mut queue = test_queue(QueueLimits { events: 2, ..QueueLimits::DEFAULT });
        let member = |seq, user: &str, joined: bool| {
            let user_id = user.to_owned();
            let kind = if joined { EventKind::MemberAdded { user_id } } else { EventKind::MemberRemoved { user_id } };
            RecordedEvent { kind, ..state_event(seq) }
        };
        let a = test_key("presence-a");
        queue.push(&a, member(3, "ann", false), 0);
        assert_eq!(queue.push(&a, member(2, "ann", true), 0), []);
        assert_eq!(queue.push(&a, member(4, "bob", true), 0), [DropReason::Compacted]);
        assert_eq!(event_ids(&queue.take_batch(0, 20)), [["3", "4"]]);
    }

    #[test]
    fn client_events_that_waited_too_long_are_dropped_and_state_is_not() {
        let mut queue = test_queue(QueueLimits::DEFAULT);
        queue.push(&test_key("a"), client_event(1), 0);
        queue.push(&test_key("b"), state_event(2), 0);
        queue.push(&test_key("a"), client_event(3), 1);
        assert_eq!(queue.drop_expired(599_999), 0);
        assert_eq!(queue.drop_expired(600_000), 1);
        assert_eq!(event_ids(&queue.take_batch(0, 600_100)).concat().len(), 2);
    }

    #[test]
    fn refused_keys_fill_half_a_batch() {
        let mut queue = test_queue(QueueLimits { batch_records: 4, ..QueueLimits::DEFAULT });
        let names: Vec<String> = (0..6).map(|n| format!("c{n}")).collect();
        for name in &names {
            queue.push(&test_key(name), state_event(1), 0);
        }
        for now in [20, 21] {
            for taken in queue.take_batch(0, now) {
                queue.complete_record(&taken.subject, false, now, 0.0);
            }
        }
        for name in ["new1", "new2", "new3"] {
            queue.push(&test_key(name), state_event(1), 1000);
        }
        let batch = queue.take_batch(0, 2000);
        let new = batch.iter().filter(|taken| taken.subject.channel.as_str().starts_with("new")).count();
        assert_eq!((batch.len(), new), (4, 2));
    }

    #[test]
    fn waits_grow_and_end_at_the_bound() {
        let waits: Vec<u64> = [1, 2, 3, 7, 8, 99].map(|refusals| compute_backoff(50, 5_000, refusals, 1.0)).into();
        assert_eq!(waits, [50, 100, 200, 3_200, 5_000, 5_000]);
        assert_eq!(compute_backoff(50, 5_000, 1, 0.0), 25);
    }

    proptest! {
        /// For any sequence of refusals, each key's events are acknowledged exactly once, in order of arrival, and the
        /// queue ends empty.
        #[test]
        fn the_order_of_a_key_survives_any_refusals(
            keys in proptest::collection::vec(0_u8..5, 1..200),
            refusals in proptest::collection::vec(any::<bool>(), 1..50),
            step in 1_u64..40,
        ) {
            let limits = QueueLimits { record_bytes: 400, batch_records: 3, max_backoff_ms: 100, ..QueueLimits::DEFAULT };
            let mut queue = RecordQueue::new(limits, 3);
            let mut arrived: HashMap<ChannelKey, Vec<String>> = HashMap::new();
            let mut stored: HashMap<ChannelKey, Vec<String>> = HashMap::new();
            let mut refused = refusals.iter().cycle();
            let mut pending = keys.iter().zip(1..);
            for now in (0..).map(|n| n * step) {
                if let Some((key, n)) = pending.next() {
                    let subject = test_key(&format!("c{key}"));
                    prop_assert!(queue.push(&subject, client_event(n), now).is_empty());
                    arrived.entry(subject).or_default().push(n.to_string());
                } else if queue.len() == 0 {
                    break;
                }
                prop_assert!(now < 1_000_000, "it never ends");
                let healed = now / step > 500;
                for lane in 0..3 {
                    for taken in queue.take_batch(lane, now) {
                        prop_assert_eq!(queue.lane_of(&taken.subject), lane);
                        let no = !healed && *refused.next().expect("a cycle");
                        if !no {
                            let ids = taken.events.iter().map(|event| event.id.clone());
                            stored.entry(taken.subject.clone()).or_default().extend(ids);
                        }
                        let done = queue.complete_record(&taken.subject, !no, now, 0.5);
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
