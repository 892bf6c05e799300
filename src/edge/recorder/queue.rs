//! The queue of events for the stream: lanes with a lock each, and the bounds that they share.
//!
//! In: events, the time, and the stream's answers. Out: batches with at most one record per key, each key's events in
//! order, and the events that were dropped. Must not know Kinesis, tasks or clocks: the caller passes the time in ms of its
//! own monotonic clock, so that a test can cover an outage of an hour.
//!
//! A lock is held for one event or one record at a time, so that a socket never waits long: also with a full queue and a
//! stream that is unavailable.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::app_shares::AppShares;
use super::event::{DroppedEvent, RecordableEvent};
use super::lane::{BatchBudget, CompletedRecord, Lane, OutgoingRecord};
use super::limits::QueueLimits;
use crate::bus::ChannelKey;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::AppId;

/// Expired events that are dropped under one lock.
const EXPIRED_PER_LOCK_MAX: usize = 256;

/// The result of queueing an event.
#[must_use = "a lane is woken, and drops are counted"]
pub struct PushOutcome {
    /// The event's lane, if it has something to send earlier than before.
    pub earlier_lane: Option<usize>,
    /// Events that were dropped for the new one.
    pub dropped: Vec<DroppedEvent>,
}

/// The queue of all keys.
pub struct RecordQueue {
    limits: QueueLimits,
    lanes: Vec<Mutex<Lane>>,
    /// Never locked together with a lane.
    shares: Mutex<AppShares>,
    hasher: std::hash::BuildHasherDefault<std::hash::DefaultHasher>,
    serial: AtomicU64,
}

impl RecordQueue {
    /// Creates an empty queue with this number of lanes.
    pub fn new(limits: QueueLimits, lanes: usize) -> Self {
        Self {
            limits,
            lanes: (0..lanes.max(1)).map(|_| Mutex::new(Lane::new(limits))).collect(),
            shares: Mutex::new(AppShares::new(limits.events, limits.bytes)),
            hasher: std::hash::BuildHasherDefault::default(),
            serial: AtomicU64::new(0),
        }
    }

    /// Number of queued events, including those in flight.
    pub fn len(&self) -> usize {
        lock_unpoisoned(&self.shares).events()
    }

    /// The apps that have had events for longer than `wait_ms` while the stream acknowledged none of them.
    pub fn silent_apps(&self, now: u64, wait_ms: u64) -> BTreeSet<AppId> {
        lock_unpoisoned(&self.shares).silent_apps(now, wait_ms)
    }

    /// Returns the lane of a key, which never changes.
    fn lane_of(&self, subject: &ChannelKey) -> usize {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(subject.app.as_str().as_bytes());
        hasher.write_u8(b'/');
        hasher.write(subject.channel.as_str().as_bytes());
        usize::try_from(hasher.finish() % self.lanes.len() as u64).unwrap_or_default()
    }

    /// Queues an event in the lane of its key, and evicts when a bound is passed.
    pub fn push(&self, subject: &ChannelKey, event: RecordableEvent, now: u64) -> PushOutcome {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        // First, so that the event cannot leave before it is counted.
        lock_unpoisoned(&self.shares).add_event(&subject.app, event.len(), now);
        let lane = self.lane_of(subject);
        let is_earlier = self.lane(lane).push(subject, event, serial, now);
        PushOutcome { earlier_lane: is_earlier.then_some(lane), dropped: self.evict_overflow() }
    }

    /// Returns the next batch of a lane: due keys, earliest first.
    pub fn take_batch(&self, lane: usize, now: u64) -> Vec<OutgoingRecord> {
        self.take_records(lane, now, BatchBudget::new(&self.limits)).collect()
    }

    /// The same after a call that failed as a whole: a small batch.
    pub fn take_trial(&self, lane: usize, now: u64) -> Vec<OutgoingRecord> {
        self.take_records(lane, now, BatchBudget::of_trial(&self.limits)).collect()
    }

    /// Takes the records of one batch, each with a lock of its own, so that no socket waits for a whole batch.
    fn take_records(&self, lane: usize, now: u64, mut budget: BatchBudget) -> impl Iterator<Item = OutgoingRecord> {
        std::iter::from_fn(move || self.lane(lane).take_record(now, &mut budget))
    }

    /// Applies the stream's answer to a record of this lane. `jitter` is from 0 to 1.
    pub fn complete_record(
        &self,
        lane: usize,
        subject: &ChannelKey,
        acknowledged: bool,
        now: u64,
        jitter: f64,
    ) -> CompletedRecord {
        let completed = self.lane(lane).complete_record(subject, acknowledged, now, jitter);
        if completed.events > 0 {
            let mut shares = lock_unpoisoned(&self.shares);
            shares.acknowledge_events(&subject.app, completed.events, completed.bytes, now);
        }
        completed
    }

    /// Returns the time at which the lane next has something to send.
    pub fn next_due(&self, lane: usize) -> Option<u64> {
        self.lane(lane).next_due()
    }

    /// Drops client events that exceeded their age limit.
    #[must_use = "drops are counted"]
    pub fn drop_expired(&self, now: u64) -> Vec<DroppedEvent> {
        let mut all = Vec::new();
        for lane in 0..self.lanes.len() {
            loop {
                let expired = self.lane(lane).drop_expired(now, EXPIRED_PER_LOCK_MAX);
                if expired.is_empty() {
                    break;
                }
                for (app, event, bytes) in expired {
                    lock_unpoisoned(&self.shares).drop_events(&app, 1, bytes);
                    all.push(event);
                }
            }
        }
        all
    }

    /// Number of queued events that a bus keeps, and number of the others.
    pub fn count_by_receipt(&self) -> (usize, usize) {
        let counts = (0..self.lanes.len()).map(|lane| self.lane(lane).count_by_receipt());
        counts.fold((0, 0), |(kept, others), (more_kept, more)| (kept + more_kept, others + more))
    }

    /// Drops events of the apps above their fair share, of the largest first, until the queue is within its bounds or all
    /// of theirs are in flight: then the next answer makes room.
    fn evict_overflow(&self) -> Vec<DroppedEvent> {
        let (mut dropped, mut place) = (Vec::new(), 0);
        loop {
            let Some(app) = lock_unpoisoned(&self.shares).app_over_share(place) else { return dropped };
            let evicted = self.evict_first(&app);
            place = if evicted.is_empty() { place + 1 } else { 0 };
            dropped.extend(evicted);
        }
    }

    /// Drops the first droppable event of an app in all lanes, or the pair that it belongs to.
    fn evict_first(&self, app: &AppId) -> Vec<DroppedEvent> {
        let first = |lane: usize| self.lane(lane).first_droppable(app).map(|first| (first, lane));
        let Some((_, lane)) = (0..self.lanes.len()).filter_map(first).min() else { return Vec::new() };
        let evicted = self.lane(lane).drop_first(app);
        let bytes = evicted.iter().map(|(_, bytes)| bytes).sum();
        lock_unpoisoned(&self.shares).drop_events(app, evicted.len(), bytes);
        evicted.into_iter().map(|(event, _)| event).collect()
    }

    fn lane(&self, lane: usize) -> MutexGuard<'_, Lane> {
        lock_unpoisoned(&self.lanes[lane])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::edge::drop_reason::DropReason;
    use crate::protocol::ChannelName;
    use crate::protocol::record::{EventKind, EventOrder, RecordedEvent};

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

    impl RecordQueue {
        /// Queues an event without a receipt and returns the reasons of drops.
        fn push_event(&self, subject: &ChannelKey, event: &RecordedEvent, now: u64) -> Vec<DropReason> {
            let outcome = self.push(subject, RecordableEvent::new(event, None), now);
            outcome.dropped.into_iter().map(|event| event.reason).collect()
        }

        fn is_clean(&self) -> bool {
            let shares = lock_unpoisoned(&self.shares);
            (shares.events(), shares.bytes()) == (0, 0) && (0..self.lanes.len()).all(|lane| self.lane(lane).is_clean())
        }
    }

    fn record_ids(record: &OutgoingRecord) -> Vec<String> {
        let parse = |json| serde_json::from_slice::<RecordedEvent>(json).expect("an event");
        record.events.iter().map(|json| parse(json).id).collect()
    }

    fn event_ids(batch: &[OutgoingRecord]) -> Vec<Vec<String>> {
        batch.iter().map(record_ids).collect()
    }

    #[test]
    fn events_of_one_key_share_a_record_after_the_linger() {
        let queue = test_queue(QueueLimits::DEFAULT);
        queue.push_event(&test_key("a"), &client_event(1), 0);
        queue.push_event(&test_key("a"), &client_event(2), 19);
        queue.push_event(&test_key("b"), &client_event(3), 5);
        assert!(queue.take_batch(0, 19).is_empty(), "the linger is not over");
        assert_eq!(queue.next_due(0), Some(20));
        assert_eq!(event_ids(&queue.take_batch(0, 30)), [vec!["1", "2"], vec!["3"]]);
    }

    #[test]
    fn a_lane_is_woken_only_for_an_event_that_is_due_earlier() {
        let queue = test_queue(QueueLimits::DEFAULT);
        let earlier = |channel: &str, n: u64, now: u64| {
            let outcome = queue.push(&test_key(channel), RecordableEvent::new(&client_event(n), None), now);
            outcome.earlier_lane
        };
        assert_eq!(earlier("a", 1, 0), Some(0), "the first one");
        assert_eq!((earlier("a", 2, 5), earlier("b", 3, 5)), (None, None), "the lane wakes before them");
        assert_eq!(queue.take_batch(0, 30).len(), 2);
        assert_eq!(earlier("a", 4, 31), None, "its key is in flight");
        assert_eq!(earlier("c", 5, 32), Some(0), "nothing else waits");
        assert_eq!(queue.complete_record(0, &test_key("b"), false, 33, 1.0).events, 0);
        assert_eq!(queue.next_due(0), Some(52));
        assert_eq!(queue.take_batch(0, 52).len(), 1);
        assert_eq!(queue.next_due(0), Some(83), "a refused key backs off");
        assert_eq!(earlier("d", 6, 60), Some(0), "due before the refused key");
    }

    #[test]
    fn a_key_in_flight_waits_and_a_refusal_goes_first() {
        let queue = test_queue(QueueLimits::DEFAULT);
        let a = test_key("a");
        queue.push_event(&a, &client_event(1), 0);
        assert_eq!(event_ids(&queue.take_batch(0, 20)), [["1"]]);
        queue.push_event(&a, &client_event(2), 21);
        assert!(queue.take_batch(0, 1000).is_empty(), "one record of a key at a time");
        assert_eq!(queue.complete_record(0, &a, false, 1000, 1.0).events, 0);
        assert!(queue.take_batch(0, 1049).is_empty(), "after a wait");
        assert_eq!(event_ids(&queue.take_batch(0, 1050)), [["1", "2"]], "extended by what came since");
        assert_eq!(queue.complete_record(0, &a, true, 1060, 0.0).events, 2);
        assert!(queue.len() == 0 && queue.next_due(0).is_none() && queue.is_clean());
    }

    #[test]
    fn state_events_are_put_into_the_order_of_the_bus_while_they_wait() {
        let queue = test_queue(QueueLimits::DEFAULT);
        for event in [state_event(2), client_event(9), state_event(1), state_event(3)] {
            queue.push_event(&test_key("a"), &event, 0);
        }
        assert_eq!(event_ids(&queue.take_batch(0, 20)), [["1", "2", "9", "3"]]);
    }

    #[test]
    fn a_full_queue_drops_the_oldest_client_events_and_state_last() {
        let queue = test_queue(QueueLimits { events: 2, ..QueueLimits::DEFAULT });
        let a = test_key("a");
        assert_eq!(queue.push_event(&a, &state_event(1), 0), []);
        assert_eq!(queue.push_event(&test_key("b"), &client_event(2), 0), []);
        assert_eq!(queue.push_event(&a, &client_event(3), 0), [DropReason::ClientEventOverflow]);
        assert_eq!(queue.push_event(&a, &state_event(4), 0), [DropReason::ClientEventOverflow]);
        assert_eq!(queue.push_event(&a, &state_event(5), 0), [DropReason::Compacted]);
        assert_eq!(queue.push_event(&test_key("c"), &state_event(6), 0), [DropReason::Compacted]);
        assert_eq!(
            queue.push_event(&test_key("d"), &state_event(7), 0),
            [DropReason::StateOverflow],
            "nothing but last states is left"
        );
        assert_eq!(event_ids(&queue.take_batch(0, 20)), [["6"], ["7"]]);
        assert_eq!(
            queue.push_event(&a, &client_event(8), 0),
            [DropReason::ClientEventOverflow],
            "what is in flight cannot go"
        );
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn a_trial_is_a_small_batch_of_at_least_one_record() {
        let queue = test_queue(QueueLimits { trial_bytes: 1, ..QueueLimits::DEFAULT });
        for (n, channel) in (1..).zip(["a", "b", "c"]) {
            queue.push_event(&test_key(channel), &client_event(n), 0);
        }
        assert_eq!(event_ids(&queue.take_trial(0, 20)), [["1"]]);
        assert_eq!(event_ids(&queue.take_batch(0, 20)), [["2"], ["3"]]);
    }

    #[test]
    fn a_full_queue_keeps_the_latest_count_of_each_channel() {
        let queue = test_queue(QueueLimits { events: 4, ..QueueLimits::DEFAULT });
        let (a, b) = (test_key("a"), test_key("b"));
        queue.push_event(&a, &client_event(1), 0);
        for (subject, n) in [(&a, 2), (&b, 3), (&a, 4)] {
            assert_eq!(queue.push_event(subject, &count_event(n), 0), []);
        }
        assert_eq!(queue.push_event(&a, &count_event(5), 0), [DropReason::Compacted]);
        assert_eq!(queue.push_event(&b, &count_event(6), 0), [DropReason::Compacted]);
        assert_eq!(queue.push_event(&b, &count_event(7), 0), [DropReason::Compacted]);
        assert!(queue.take_batch(0, 19).is_empty());
        assert_eq!(queue.push_event(&a, &state_event(8), 0), [DropReason::Compacted], "the last old count");
        assert_eq!(queue.push_event(&a, &state_event(9), 0), [DropReason::ClientEventOverflow]);
        assert_eq!(
            queue.push_event(&a, &state_event(10), 0),
            [DropReason::ClientEventOverflow],
            "a last count before a state"
        );
        assert_eq!(queue.push_event(&b, &state_event(11), 0), [DropReason::ClientEventOverflow]);
        assert_eq!(event_ids(&queue.take_batch(0, 20)), [vec!["8", "9", "10"], vec!["11"]]);
    }

    #[test]
    fn a_count_that_was_refused_is_old_once_another_came() {
        let queue = test_queue(QueueLimits { events: 3, ..QueueLimits::DEFAULT });
        let a = test_key("a");
        queue.push_event(&a, &count_event(1), 0);
        assert_eq!(event_ids(&queue.take_batch(0, 20)), [["1"]]);
        queue.push_event(&a, &count_event(2), 21);
        assert_eq!(queue.complete_record(0, &a, false, 30, 0.0).events, 0);
        queue.push_event(&a, &client_event(3), 30);
        assert_eq!(queue.push_event(&a, &client_event(4), 30), [DropReason::Compacted]);
        assert_eq!(event_ids(&queue.take_batch(0, 1000)), [["2", "3", "4"]]);
        assert_eq!(queue.complete_record(0, &a, true, 1000, 0.0).events, 3);
        assert!(queue.is_clean());
    }

    #[test]
    fn of_a_members_states_the_last_one_by_the_buss_order_is_kept() {
        let queue = test_queue(QueueLimits { events: 2, ..QueueLimits::DEFAULT });
        let member = |seq, user: &str, joined: bool| {
            let user_id = user.to_owned();
            let kind = if joined { EventKind::MemberAdded { user_id } } else { EventKind::MemberRemoved { user_id } };
            RecordedEvent { kind, ..state_event(seq) }
        };
        let a = test_key("presence-a");
        queue.push_event(&a, &member(4, "ann", false), 0);
        assert_eq!(queue.push_event(&a, &member(2, "ann", true), 0), []);
        assert_eq!(queue.push_event(&a, &member(5, "bob", true), 0), [DropReason::Compacted]);
        assert_eq!(event_ids(&queue.take_batch(0, 20)), [["4", "5"]]);
    }

    #[test]
    fn a_full_queue_drops_both_halves_of_a_pair_of_states() {
        let kind = |text: &str| match text.split_once(' ') {
            Some(("added", user)) => EventKind::MemberAdded { user_id: user.to_owned() },
            Some((_, user)) => EventKind::MemberRemoved { user_id: user.to_owned() },
            None if text == "occupied" => EventKind::ChannelOccupied,
            None => EventKind::ChannelVacated,
        };
        for (name, queued, left) in [
            ("a pair", &[(1, "occupied"), (2, "vacated")][..], &[][..]),
            ("two pairs", &[(1, "occupied"), (2, "vacated"), (3, "occupied"), (4, "vacated")], &[3, 4]),
            ("a departure first", &[(4, "vacated"), (5, "occupied"), (6, "vacated")], &[6]),
            ("with others between", &[(1, "occupied"), (2, "added a"), (3, "removed a"), (4, "vacated")], &[2, 3]),
            ("of one member", &[(2, "added a"), (3, "added b"), (4, "removed a")], &[3]),
            ("another edge has what is between", &[(1, "occupied"), (4, "vacated")], &[4]),
            ("of two histories", &[(2, "occupied"), (1_003, "vacated")], &[1_003]),
            ("no pair", &[(1, "occupied"), (2, "added a")], &[2]),
        ] {
            let queue = test_queue(QueueLimits { events: queued.len(), ..QueueLimits::DEFAULT });
            let a = test_key("presence-a");
            for (seq, text) in queued {
                let order = EventOrder { epoch: seq / 1_000, seq: seq % 1_000 };
                let event = RecordedEvent { order: Some(order), kind: kind(text), ..state_event(*seq) };
                assert_eq!(queue.push_event(&a, &event, 0), [], "{name}");
            }
            let reasons = queue.push_event(&test_key("b"), &state_event(99), 0);
            let is_alone = queued.len() - left.len() == 1;
            let expected = if name == "no pair" {
                vec![DropReason::StateOverflow]
            } else {
                vec![DropReason::Compacted; if is_alone { 1 } else { 2 }]
            };
            assert_eq!(reasons, expected, "{name}");
            let ids: Vec<String> = left.iter().chain([&99]).map(u64::to_string).collect();
            assert_eq!(event_ids(&queue.take_batch(0, 20)).concat(), ids, "{name}");
            for subject in [a, test_key("b")] {
                drop(queue.complete_record(0, &subject, true, 30, 0.0));
            }
            assert!(queue.is_clean(), "{name}");
        }
    }

    #[test]
    fn a_flood_of_one_app_takes_nothing_from_another_app() {
        let queue = test_queue(QueueLimits { events: 100, ..QueueLimits::DEFAULT });
        let key = |app: &str, n: u64| ChannelKey { app: app.into(), ..test_key(&format!("c{n}")) };
        for n in 0..30 {
            assert_eq!(queue.push_event(&key("2", n), &client_event(n), 0), []);
        }
        for n in 0..1_000 {
            let dropped = queue.push_event(&key("1", n), &state_event(1), 0);
            assert!(dropped.iter().all(|reason| *reason == DropReason::StateOverflow), "{dropped:?}");
        }
        assert_eq!(queue.len(), 100);
        let apps = |batch: &[OutgoingRecord]| batch.iter().filter(|taken| taken.subject.app.as_str() == "2").count();
        let batch = queue.take_batch(0, 20);
        assert_eq!((batch.len(), apps(&batch)), (100, 30), "the small app keeps its client events");
        for n in 0..50 {
            assert_eq!(queue.push_event(&key("2", n), &client_event(n), 20).len(), usize::from(n >= 20), "at {n}");
        }
        assert_eq!(
            queue.push_event(&key("1", 0), &state_event(1), 20),
            [DropReason::StateOverflow],
            "the large app is in flight"
        );
        for taken in &batch {
            assert_eq!(queue.complete_record(0, &taken.subject, true, 30, 0.0).events, 1);
        }
        assert_eq!(queue.len(), 20, "up to its fair share the small app was admitted meanwhile");
    }

    #[test]
    fn client_events_that_waited_too_long_are_dropped_and_state_is_not() {
        let queue = test_queue(QueueLimits::DEFAULT);
        queue.push_event(&test_key("a"), &client_event(1), 0);
        queue.push_event(&test_key("b"), &state_event(2), 0);
        queue.push_event(&test_key("a"), &client_event(3), 1);
        assert_eq!(queue.drop_expired(599_999).len(), 0);
        assert_eq!(queue.drop_expired(600_000).len(), 1);
        assert_eq!(event_ids(&queue.take_batch(0, 600_100)).concat().len(), 2);
    }

    #[test]
    fn refused_keys_fill_half_a_batch() {
        let queue = test_queue(QueueLimits { batch_records: 4, ..QueueLimits::DEFAULT });
        let names: Vec<String> = (0..6).map(|n| format!("c{n}")).collect();
        for name in &names {
            queue.push_event(&test_key(name), &state_event(1), 0);
        }
        for now in [20, 21] {
            for taken in queue.take_batch(0, now) {
                assert_eq!(queue.complete_record(0, &taken.subject, false, now, 0.0).events, 0);
            }
        }
        for name in ["new1", "new2", "new3"] {
            queue.push_event(&test_key(name), &state_event(1), 1000);
        }
        let batch = queue.take_batch(0, 2000);
        let new = batch.iter().filter(|taken| taken.subject.channel.as_str().starts_with("new")).count();
        assert_eq!((batch.len(), new), (4, 2));
    }

    #[test]
    fn the_lock_of_a_lane_is_free_between_the_records_of_a_batch() {
        let queue = test_queue(QueueLimits::DEFAULT);
        for n in 0..1_000 {
            assert_eq!(queue.push_event(&test_key(&format!("c{}", n % 100)), &client_event(n), 0), []);
        }
        let mut taken = 0;
        for record in queue.take_records(0, 20, BatchBudget::new(&queue.limits)) {
            taken += 1;
            assert!(queue.lanes[0].try_lock().is_ok(), "a socket can push");
            assert_eq!(queue.push_event(&record.subject, &state_event(1), 20), []);
        }
        assert!(taken > 1, "{taken} records in the batch");
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
            let queue = RecordQueue::new(limits, 3);
            let mut arrived: HashMap<ChannelKey, Vec<String>> = HashMap::new();
            let mut stored: HashMap<ChannelKey, Vec<String>> = HashMap::new();
            let mut refused = refusals.iter().cycle();
            let mut pending = keys.iter().zip(1..);
            for now in (0..).map(|n| n * step) {
                if let Some((key, n)) = pending.next() {
                    let subject = test_key(&format!("c{key}"));
                    prop_assert!(queue.push_event(&subject, &client_event(n), now).is_empty());
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
                            stored.entry((*taken.subject).clone()).or_default().extend(record_ids(&taken));
                        }
                        let done = queue.complete_record(lane, &taken.subject, !no, now, 0.5).events;
                        prop_assert_eq!(done, if no { 0 } else { taken.events.len() });
                    }
                }
            }
            prop_assert_eq!(arrived, stored);
            prop_assert!(queue.is_clean());
        }
    }
}
