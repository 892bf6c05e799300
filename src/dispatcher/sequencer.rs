//! Restores the order in which the bus decided events.
//!
//! In: events in Kinesis's order, which for several pods is not the order in which the bus decided them. Out: the state
//! events of each channel by (epoch, seq). A missing event is waited for, for a bounded time; one that arrives after a
//! newer event of the same subject is dropped, since a receiver would take an outdated state for the current one. Pure:
//! the caller passes the time.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::events::{ChannelKey, TrackedEvent};
use crate::protocol::record::EventOrder;

/// Longest that an event waits for an earlier one, counted from its own arrival.
pub const GAP_TIMEOUT_MS: u64 = 3_000;
/// Bounds the channels whose history is remembered. A forgotten channel's next event waits as for a gap.
const CHANNEL_HISTORIES_MAX: usize = 50_000;

/// The result of pushing an event.
#[derive(Clone, Debug, PartialEq)]
pub enum SequencedEvent {
    /// The event is next in its channel's order.
    Release(TrackedEvent),
    /// A newer event of the same subject was released before.
    Superseded(TrackedEvent),
}

/// The order of the channels of one shard.
#[derive(Debug, Default)]
pub struct Sequencer {
    channels: HashMap<ChannelKey, ChannelHistory>,
    /// Deadlines of arrivals; the timeout is the same for all, so this stays sorted.
    deadlines: VecDeque<(u64, ChannelKey)>,
    gaps: u64,
}

#[derive(Debug, Default)]
struct ChannelHistory {
    last: Option<EventOrder>,
    subjects: HashMap<Option<String>, EventOrder>,
    waiting: BTreeMap<EventOrder, (u64, TrackedEvent)>,
    touched_ms: u64,
}

impl Sequencer {
    /// Accepts an event that arrived now. Events without an order pass at once.
    pub fn push(&mut self, event: TrackedEvent, now_ms: u64) -> Vec<SequencedEvent> {
        let Some(order) = event.event.order else {
            return vec![SequencedEvent::Release(event)];
        };
        self.evict_idle_channels();
        let place = event.channel_key();
        let history = self.channels.entry(place.clone()).or_default();
        history.touched_ms = now_ms;
        let twin = history.waiting.insert(order, (now_ms, event)).map(|(_, twin)| SequencedEvent::Superseded(twin));
        let mut steps: Vec<SequencedEvent> = twin.into_iter().collect();
        self.gaps += history.release_ready(now_ms, &mut steps);
        if history.waiting.contains_key(&order) {
            self.deadlines.push_back((now_ms + GAP_TIMEOUT_MS, place));
        }
        steps
    }

    /// Releases the events that have waited for the gap timeout.
    pub fn release_due(&mut self, now_ms: u64) -> Vec<SequencedEvent> {
        let mut steps = Vec::new();
        while self.deadlines.front().is_some_and(|(at, _)| *at <= now_ms) {
            let Some((_, place)) = self.deadlines.pop_front() else { break };
            if let Some(history) = self.channels.get_mut(&place) {
                self.gaps += history.release_ready(now_ms, &mut steps);
            }
        }
        steps
    }

    /// Returns the gaps passed since the last call.
    pub fn take_gaps(&mut self) -> u64 {
        std::mem::take(&mut self.gaps)
    }

    /// Evicts the half of the histories that was touched longest ago, except those with waiting events.
    fn evict_idle_channels(&mut self) {
        if self.channels.len() < CHANNEL_HISTORIES_MAX {
            return;
        }
        let mut touched: Vec<u64> = self.channels.values().map(|history| history.touched_ms).collect();
        let middle = touched.len() / 2;
        let (_, median, _) = touched.select_nth_unstable(middle);
        let median = *median;
        self.channels.retain(|_, history| history.touched_ms > median || !history.waiting.is_empty());
    }
}

impl ChannelHistory {
    /// Releases the next events, and all up to an event whose deadline has passed. Returns the gaps passed.
    fn release_ready(&mut self, now_ms: u64, steps: &mut Vec<SequencedEvent>) -> u64 {
        let tired = |(order, (arrived, _)): (&EventOrder, &(u64, TrackedEvent))| {
            (arrived + GAP_TIMEOUT_MS <= now_ms).then_some(*order)
        };
        let until = self.waiting.iter().filter_map(tired).next_back();
        let mut gaps = 0;
        while let Some(entry) = self.waiting.first_entry() {
            let order = *entry.key();
            let next =
                self.last.is_none_or(|last| order <= last) && self.last.is_some() || is_successor(self.last, order);
            if !next && until.is_none_or(|until| order > until) {
                break;
            }
            gaps += u64::from(!next);
            let (_, event) = entry.remove();
            steps.push(self.release_or_supersede(order, event));
        }
        gaps
    }

    fn release_or_supersede(&mut self, order: EventOrder, event: TrackedEvent) -> SequencedEvent {
        let subject = event.subject_user_id().map(str::to_owned);
        if self.subjects.get(&subject).is_some_and(|known| *known >= order) {
            return SequencedEvent::Superseded(event);
        }
        self.subjects.insert(subject, order);
        self.last = self.last.max(Some(order));
        SequencedEvent::Release(event)
    }
}

/// Whether no event can lie between the two: the numbers are contiguous, and a new epoch starts at one.
fn is_successor(last: Option<EventOrder>, order: EventOrder) -> bool {
    match last {
        None => order.seq == 1,
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
        TrackedEvent { record: seq, app: "1".into(), channel, event }
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
}
