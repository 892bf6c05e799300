//! Restores the order in which the bus decided events.
//!
//! In: events in Kinesis's order, which for several pods is not the order in which the bus decided them. Out: the state
//! events of each channel by (epoch, seq). A missing event is waited for, for a bounded time; one that arrives after a
//! newer event of the same subject is dropped, since a receiver would take an outdated state for the current one. A new
//! holder learns the order from the records before its checkpoint. Pure: the caller passes the time.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::aging_map::{AgingMap, hash_key};
use super::events::{ChannelKey, ShardSlot, TrackedEvent};
use crate::protocol::record::EventOrder;

/// Longest that an event waits for an earlier one, counted from its own arrival.
pub const GAP_TIMEOUT_MS: u64 = 3_000;
/// Bounds the channels, and the subjects, whose last event a lineage remembers: those of a minute at the thousand records a
/// second that a shard takes.
const HISTORIES_MAX: usize = 57_344;
/// Bounds those of all lineages of a process: their memory must not grow with the number of shards that it holds.
const PROCESS_HISTORIES_MAX: usize = 4 * HISTORIES_MAX;
/// Time for which the last event of a channel and of a subject is remembered: longer than an edge keeps a record that
/// the stream refuses.
const HISTORY_TTL_MS: u64 = 600_000;

/// Time before a checkpoint from which a new holder reads again: far longer than an event arrives late. So the
/// predecessor of a channel's first event is older, if the channel is.
pub const REREAD_WINDOW_MS: u64 = 60_000;

/// The result of pushing an event.
#[derive(Clone, Debug, PartialEq)]
pub enum SequencedEvent {
    /// The event is next in its channel's order.
    Release(TrackedEvent),
    /// A newer event of the same subject was released before.
    Superseded(TrackedEvent),
}

/// The order of the channels of a lineage of shards.
#[derive(Debug)]
pub struct Sequencer {
    /// The last released event of each channel and its shard, by a hash: names are long.
    channels: AgingMap<u64, (EventOrder, ShardSlot)>,
    /// The last released event of each subject and its shard.
    subjects: AgingMap<u64, (EventOrder, ShardSlot)>,
    /// Events that wait for an earlier one, with the times of their arrival.
    waiting: HashMap<ChannelKey, BTreeMap<EventOrder, (u64, TrackedEvent)>>,
    /// Deadlines of arrivals; the timeout is the same for all, so this stays sorted.
    deadlines: VecDeque<(u64, ChannelKey)>,
    gaps: u64,
}

impl Default for Sequencer {
    fn default() -> Self {
        Self {
            channels: AgingMap::new(HISTORIES_MAX, HISTORY_TTL_MS),
            subjects: AgingMap::new(HISTORIES_MAX, HISTORY_TTL_MS),
            waiting: HashMap::new(),
            deadlines: VecDeque::new(),
            gaps: 0,
        }
    }
}

impl Sequencer {
    /// Accepts an event that arrived now. Events without an order pass at once.
    pub fn push(&mut self, event: TrackedEvent, now_ms: u64) -> Vec<SequencedEvent> {
        let Some(order) = event.event.order else {
            return vec![SequencedEvent::Release(event)];
        };
        let key = event.channel_key();
        let waiting = self.waiting.entry(key.clone()).or_default();
        let twin = waiting.insert(order, (now_ms, event)).map(|(_, twin)| SequencedEvent::Superseded(twin));
        let mut steps: Vec<SequencedEvent> = twin.into_iter().collect();
        self.release_ready(&key, now_ms, &mut steps);
        if self.waiting.get(&key).is_some_and(|waiting| waiting.contains_key(&order)) {
            self.deadlines.push_back((now_ms + GAP_TIMEOUT_MS, key));
        }
        steps
    }

    /// Releases the events that have waited for the gap timeout.
    pub fn release_due(&mut self, now_ms: u64) -> Vec<SequencedEvent> {
        let mut steps = Vec::new();
        while self.deadlines.front().is_some_and(|(at, _)| *at <= now_ms) {
            let Some((_, key)) = self.deadlines.pop_front() else { break };
            self.release_ready(&key, now_ms, &mut steps);
        }
        steps
    }

    /// Learns the order of an event that a former holder released.
    pub fn learn(&mut self, event: &TrackedEvent, now_ms: u64) {
        let Some(order) = event.event.order else { return };
        let channel = hash_key(&event.channel_key());
        let subject = hash_key(&(&event.app, &event.channel, event.subject_user_id()));
        for (histories, key) in [(&mut self.channels, channel), (&mut self.subjects, subject)] {
            if histories.get(key).is_none_or(|(last, _)| *last < order) {
                histories.insert(key, (order, event.slot), now_ms);
            }
        }
    }

    /// Adds the channels of another lineage, whose shards were merged with one of this.
    pub fn absorb(&mut self, other: Self, now_ms: u64) {
        let Self { waiting, deadlines, gaps, channels, subjects } = other;
        self.channels.absorb(channels, now_ms);
        self.subjects.absorb(subjects, now_ms);
        self.waiting.extend(waiting);
        self.deadlines.extend(deadlines);
        self.deadlines.make_contiguous().sort_unstable_by_key(|(at, _)| *at);
        self.gaps += gaps;
    }

    /// Removes the events and the histories of a shard that is no longer held: its next holder, who may be this process,
    /// begins before the events that were not finished.
    pub fn remove_slot(&mut self, slot: ShardSlot) {
        self.channels.retain(|(_, last)| *last != slot);
        self.subjects.retain(|(_, last)| *last != slot);
        self.waiting.retain(|_, waiting| {
            waiting.retain(|_, (_, event)| event.slot != slot);
            !waiting.is_empty()
        });
    }

    /// Sets the share of the process's histories that this lineage may remember: so many of the held shards are its own.
    pub fn share_histories(&mut self, own_shards: usize, held_shards: usize) {
        let own_shards = own_shards.max(1);
        let share = PROCESS_HISTORIES_MAX * own_shards / held_shards.max(own_shards);
        let entries_max = share.min(HISTORIES_MAX);
        self.channels.set_entries_max(entries_max);
        self.subjects.set_entries_max(entries_max);
    }

    /// Returns the gaps passed since the last call.
    pub fn take_gaps(&mut self) -> u64 {
        std::mem::take(&mut self.gaps)
    }

    /// Releases the next events of a channel, and all up to an event whose deadline has passed.
    fn release_ready(&mut self, key: &ChannelKey, now_ms: u64, steps: &mut Vec<SequencedEvent>) {
        let Some(mut waiting) = self.waiting.remove(key) else { return };
        let channel = hash_key(key);
        let expired = waiting.iter().rev().find(|(_, (arrived, _))| arrived + GAP_TIMEOUT_MS <= now_ms);
        let until = expired.map(|(order, _)| *order);
        while let Some(entry) = waiting.first_entry() {
            let (order, time_ms) = (*entry.key(), entry.get().1.event.time_ms);
            let last = self.channels.get(channel).map(|(last, _)| *last);
            let is_next = last.is_some_and(|last| order <= last) || is_successor(last, order, time_ms);
            if !is_next && until.is_none_or(|until| order > until) {
                break;
            }
            self.gaps += u64::from(!is_next);
            let (_, event) = entry.remove();
            if last.is_none_or(|last| last < order) {
                self.channels.insert(channel, (order, event.slot), now_ms);
            }
            steps.push(self.release_or_supersede(order, event, now_ms));
        }
        if !waiting.is_empty() {
            self.waiting.insert(key.clone(), waiting);
        }
    }

    fn release_or_supersede(&mut self, order: EventOrder, event: TrackedEvent, now_ms: u64) -> SequencedEvent {
        let subject = hash_key(&(&event.app, &event.channel, event.subject_user_id()));
        if self.subjects.get(subject).is_some_and(|(known, _)| *known >= order) {
            return SequencedEvent::Superseded(event);
        }
        self.subjects.insert(subject, (order, event.slot), now_ms);
        SequencedEvent::Release(event)
    }
}

/// Whether no event can lie between the two: the numbers are contiguous, and a new epoch starts at one. An unknown channel
/// that is older than the window that was read again has its predecessor before it.
fn is_successor(last: Option<EventOrder>, order: EventOrder, time_ms: u64) -> bool {
    match last {
        None => order.seq == 1 || order.epoch / 1_000 + REREAD_WINDOW_MS < time_ms,
        Some(last) if order.epoch == last.epoch => order.seq == last.seq + 1,
        Some(last) => order.epoch > last.epoch && order.seq == 1,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::protocol::ChannelName;
    use crate::protocol::record::{EventKind, RecordedEvent};

    pub fn tracked_event(seq: u64, kind: EventKind) -> TrackedEvent {
        let order = (seq > 0).then_some(EventOrder { epoch: 1, seq });
        let event = RecordedEvent { id: seq.to_string(), time_ms: seq, order, n: None, cause: None, kind };
        let channel = ChannelName::parse("presence-a").expect("a valid name");
        TrackedEvent { slot: 1, record: seq, app: "1".into(), channel, event }
    }

    fn state_event(seq: u64) -> TrackedEvent {
        tracked_event(seq, if seq % 2 == 1 { EventKind::ChannelOccupied } else { EventKind::ChannelVacated })
    }

    /// Pushes (time, seq) pairs, advances to a time, and returns the released seqs: negative for superseded.
    fn run(arrivals: &[(u64, u64)], end: u64) -> (Vec<i64>, u64) {
        let mut sequencer = Sequencer::default();
        let mut steps = Vec::new();
        for (now, seq) in arrivals {
            steps.extend(sequencer.release_due(*now));
            steps.extend(sequencer.push(state_event(*seq), *now));
        }
        steps.extend(sequencer.release_due(end));
        let signed_seq = |step: SequencedEvent| match step {
            SequencedEvent::Release(event) => event.record.cast_signed(),
            SequencedEvent::Superseded(event) => -event.record.cast_signed(),
        };
        (steps.into_iter().map(signed_seq).collect(), sequencer.take_gaps())
    }

    #[test]
    fn late_and_missing_events_are_ordered_or_passed() {
        for (name, arrivals, end, out, gaps) in [
            ("events in order pass at once", &[(0, 1), (0, 2), (1, 3)][..], 1, vec![1, 2, 3], 0),
            ("a late first is waited for", &[(0, 2), (100, 1)], 100, vec![1, 2], 0),
            ("an unknown history waits for the gap time", &[(0, 7)], 2_999, vec![], 0),
            ("and passes after it", &[(0, 7)], 3_000, vec![7], 1),
            ("after a gap the numbers go on", &[(0, 7), (3_000, 8)], 3_000, vec![7, 8], 1),
            (
                "an event that fills no gap is released with the expired one",
                &[(0, 5), (2_900, 3)],
                3_000,
                vec![3, 5],
                2,
            ),
            ("an outdated event of the same subject is superseded", &[(0, 4), (3_100, 2)], 3_100, vec![4, -2], 1),
            ("a repeat is superseded", &[(0, 1), (5, 1)], 5, vec![1, -1], 0),
        ] {
            assert_eq!(run(arrivals, end), (out, gaps), "{name}");
        }
    }

    #[test]
    fn other_subjects_and_other_kinds_are_not_superseded() {
        let mut sequencer = Sequencer::default();
        sequencer.push(state_event(4), 0);
        assert_eq!(sequencer.release_due(3_000).len(), 1);
        let joined = tracked_event(3, EventKind::MemberAdded { user_id: "u".into() });
        assert!(
            matches!(sequencer.push(joined, 3_001)[..], [SequencedEvent::Release(_)]),
            "late, but the newest of its subject"
        );
        assert!(matches!(
            sequencer.push(tracked_event(0, EventKind::ChannelOccupied), 3_001)[..],
            [SequencedEvent::Release(_)]
        ));
    }

    #[test]
    fn a_new_epoch_starts_at_one() {
        let mut sequencer = Sequencer::default();
        sequencer.push(state_event(1), 0);
        let mut newer = state_event(1);
        newer.event.order = Some(EventOrder { epoch: 2, seq: 1 });
        assert!(matches!(sequencer.push(newer, 0)[..], [SequencedEvent::Release(_)]));
        assert!(matches!(sequencer.push(state_event(2), 0)[..], [SequencedEvent::Superseded(_)]));
    }

    #[test]
    fn the_histories_of_channels_and_subjects_are_bounded_and_age_out() {
        let mut sequencer = Sequencer::default();
        let joined = |seq: u64| tracked_event(seq, EventKind::MemberAdded { user_id: seq.to_string() });
        for seq in 1..=500_000 {
            assert_eq!(sequencer.push(joined(seq), 0).len(), 1, "{seq}");
        }
        assert!(sequencer.subjects.len() <= HISTORIES_MAX, "{}", sequencer.subjects.len());
        assert!(matches!(sequencer.push(joined(499_000), 0)[..], [SequencedEvent::Superseded(_)]));
        for (kind, seq, now) in [("other", 500_001, HISTORY_TTL_MS), ("later", 500_002, 2 * HISTORY_TTL_MS)] {
            assert_eq!(sequencer.push(joined(seq), now).len(), 1, "{kind}");
        }
        assert!(sequencer.subjects.len() <= 2 && sequencer.waiting.is_empty(), "{}", sequencer.subjects.len());
    }

    #[test]
    fn the_histories_of_all_lineages_of_a_process_are_bounded() {
        let joined = |seq: u64| tracked_event(seq, EventKind::MemberAdded { user_id: seq.to_string() });
        for (own, held, most) in
            [(1, 1, HISTORIES_MAX), (1, 16, HISTORIES_MAX / 4), (0, 0, HISTORIES_MAX), (3, 6, HISTORIES_MAX)]
        {
            let mut sequencer = Sequencer::default();
            sequencer.share_histories(own, held);
            (1..=100_000).for_each(|seq| drop(sequencer.push(joined(seq), 0)));
            let kept = sequencer.subjects.len();
            assert!((most / 2..=most).contains(&kept), "{own} of {held}: {kept}");
        }
    }

    #[test]
    fn an_event_below_one_that_a_former_holder_released_is_superseded() {
        let mut sequencer = Sequencer::default();
        sequencer.learn(&state_event(4), 0);
        sequencer.learn(&state_event(3), 0);
        assert!(matches!(sequencer.push(state_event(2), 0)[..], [SequencedEvent::Superseded(_)]));
        assert!(matches!(sequencer.push(state_event(5), 0)[..], [SequencedEvent::Release(_)]), "the next one");
    }

    #[test]
    fn the_first_event_of_an_old_channel_does_not_wait_and_that_of_a_young_one_does() {
        let mut sequencer = Sequencer::default();
        let mut old = state_event(7);
        old.event.time_ms = REREAD_WINDOW_MS + 1;
        assert_eq!(sequencer.push(old.clone(), 0).len(), 1);
        let mut young = old;
        young.channel = ChannelName::parse("presence-b").expect("a valid name");
        young.event.order = Some(EventOrder { epoch: 2_000, seq: 7 });
        assert!(sequencer.push(young, 0).is_empty());
    }

    #[test]
    fn events_of_a_shard_that_is_no_longer_held_wait_no_longer() {
        let mut sequencer = Sequencer::default();
        let mut other = state_event(9);
        other.slot = 2;
        assert!(sequencer.push(state_event(7), 0).is_empty() && sequencer.push(other.clone(), 0).is_empty());
        sequencer.remove_slot(1);
        assert_eq!(sequencer.release_due(GAP_TIMEOUT_MS), [SequencedEvent::Release(other)]);
        sequencer.remove_slot(2);
        assert!(sequencer.push(state_event(9), 0).is_empty(), "read again, it is not superseded by itself");
    }

    #[test]
    fn two_lineages_become_one() {
        let (mut one, mut other) = (Sequencer::default(), Sequencer::default());
        other.push(state_event(1), 0);
        other.push(state_event(3), 10);
        let mut elsewhere = state_event(7);
        elsewhere.channel = ChannelName::parse("presence-b").expect("a valid name");
        one.push(elsewhere.clone(), 20);
        one.absorb(other, 30);
        assert!(matches!(one.push(state_event(1), 30)[..], [SequencedEvent::Superseded(_)]));
        assert_eq!(one.push(state_event(2), 30).len(), 2);
        assert_eq!(one.release_due(20 + GAP_TIMEOUT_MS), [SequencedEvent::Release(elsewhere)]);
    }
}
