//! Tracks how far a shard is done.
//!
//! In: records as they are read, and a note for each of their events that is finished. Out: the sequence number that
//! ends the contiguous done prefix, the records done beyond it, and the amount that is unfinished. Pure.

use std::collections::VecDeque;

use super::leases::AckedOutOfOrder;

/// Bounds the unfinished events of a shard; reading pauses at it.
pub const UNFINISHED_EVENTS_MAX: usize = 10_000;
/// Bounds the bytes of a shard's unfinished records, and with them the memory of a process that holds many shards.
pub const UNFINISHED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Bounds how far cancelled pairs may hold the checkpoint back, in records: pairs that overlap without end, as when
/// many clients join and leave, would hold it for ever. Beyond the bound, a take-over may deliver half of a pair.
const HELD_RECORDS_MAX: u64 = 1_000;

/// Bounds the open records that are listed beyond the prefix, so that a checkpoint stays small.
const OPEN_RECORDS_MAX: usize = 100;

/// The records of one shard that are not behind the checkpoint.
#[derive(Debug, Default)]
pub struct CheckpointTracker {
    /// Number of the record at the front.
    first: u64,
    records: VecDeque<TrackedRecord>,
    /// Spans of cancelled pairs, sorted by their ends. A checkpoint within one would replay half of the pair.
    spans: Vec<(u64, u64)>,
    checkpoint: Option<String>,
    /// Unfinished events that count towards the bounds, and their bytes.
    events: usize,
    bytes: usize,
    /// Unfinished events that do not count.
    parked: usize,
}

#[derive(Debug)]
struct TrackedRecord {
    sequence: String,
    open: usize,
    /// How many of the open events are parked.
    parked: usize,
    bytes: usize,
}

impl TrackedRecord {
    /// Events and bytes that count towards the bounds.
    fn counted(&self) -> (usize, usize) {
        let events = self.open - self.parked;
        (events, if events > 0 { self.bytes } else { 0 })
    }
}

impl CheckpointTracker {
    /// A tracker that resumes behind a checkpoint.
    #[must_use]
    pub fn resume_from(checkpoint: Option<String>) -> Self {
        Self { checkpoint, ..Self::default() }
    }

    /// Adds a record that was read with `events` events; returns its number.
    pub fn begin_record(&mut self, sequence: &str, events: usize, bytes: usize) -> u64 {
        let number = self.first + self.records.len() as u64;
        let bytes = if events == 0 { 0 } else { bytes };
        self.records.push_back(TrackedRecord { sequence: sequence.to_owned(), open: events, parked: 0, bytes });
        self.events += events;
        self.bytes += bytes;
        self.advance_checkpoint();
        number
    }

    /// Counts further deliveries of a record, when one event goes to several endpoints.
    pub fn add_deliveries(&mut self, record: u64, more: usize) {
        self.change_record(record, |slot| slot.open += more);
    }

    /// Takes one of the record's events out of the bounds: another store bounds it while it waits. The checkpoint still
    /// waits for it.
    pub fn park_event(&mut self, record: u64) {
        self.change_record(record, |slot| slot.parked = slot.open.min(slot.parked + 1));
    }

    /// Returns a parked event into the bounds.
    pub fn unpark_event(&mut self, record: u64) {
        self.change_record(record, |slot| slot.parked = slot.parked.saturating_sub(1));
    }

    /// Marks one of the record's events as finished, with any outcome.
    pub fn finish_event(&mut self, record: u64) {
        self.change_record(record, |slot| {
            slot.open = slot.open.saturating_sub(1);
            slot.parked = slot.parked.min(slot.open);
        });
        self.advance_checkpoint();
    }

    /// Joins two records that hold the halves of a cancelled pair: the checkpoint passes both or none. Must be called
    /// before they are done.
    pub fn join_records(&mut self, one: u64, other: u64) {
        if one != other {
            let span = (one.min(other), one.max(other));
            let at = self.spans.partition_point(|(_, to)| *to <= span.1);
            self.spans.insert(at, span);
        }
    }

    /// The end of the contiguous done prefix, if there is one yet.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&str> {
        self.checkpoint.as_deref()
    }

    /// The records done beyond that prefix. A held event, such as an absence that may still be cancelled, then holds
    /// back the prefix only and not the records after it.
    #[must_use]
    pub fn acked_out_of_order(&self) -> Option<AckedOutOfOrder> {
        let all = self.records.len();
        let mut open = self.records.iter().enumerate().filter(|(_, slot)| slot.open > 0).map(|(at, _)| at);
        let cut = open.by_ref().nth(OPEN_RECORDS_MAX).unwrap_or(all);
        let end = self.clamp_to_spans(self.first + cut as u64);
        let known = self.records.iter().take(usize::try_from(end.checked_sub(self.first)?).ok()?);
        let through = known.clone().rfind(|slot| slot.open == 0)?.sequence.clone();
        let open = known.take_while(|slot| slot.sequence != through).filter(|slot| slot.open > 0);
        Some(AckedOutOfOrder { open: open.map(|slot| slot.sequence.clone()).collect(), through })
    }

    /// Whether an event of the record is unfinished.
    #[must_use]
    pub fn is_open(&self, record: u64) -> bool {
        let index = record.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.records.get(index)).is_some_and(|slot| slot.open > 0)
    }

    /// The sequence number of a record that is not behind the checkpoint.
    #[must_use]
    pub fn sequence(&self, record: u64) -> Option<&str> {
        let index = record.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.records.get(index)).map(|slot| slot.sequence.as_str())
    }

    /// Number of events that are not finished.
    #[must_use]
    pub fn unfinished_events(&self) -> usize {
        self.events + self.parked
    }

    /// Whether more than half of a bound is taken.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        self.events > UNFINISHED_EVENTS_MAX / 2 || self.bytes > UNFINISHED_BYTES_MAX / 2
    }

    /// Whether reading must pause until events finish.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.events >= UNFINISHED_EVENTS_MAX || self.bytes >= UNFINISHED_BYTES_MAX
    }

    fn record_mut(&mut self, record: u64) -> Option<&mut TrackedRecord> {
        let index = usize::try_from(record.checked_sub(self.first)?).ok()?;
        self.records.get_mut(index)
    }

    /// Changes a record, and what it counts for.
    fn change_record(&mut self, record: u64, change: impl FnOnce(&mut TrackedRecord)) {
        let Some(slot) = self.record_mut(record) else { return };
        let ((events, bytes), parked) = (slot.counted(), slot.parked);
        change(slot);
        let ((events_now, bytes_now), parked_now) = (slot.counted(), slot.parked);
        self.events = self.events + events_now - events;
        self.bytes = self.bytes + bytes_now - bytes;
        self.parked = self.parked + parked_now - parked;
    }

    fn advance_checkpoint(&mut self) {
        let done = self.records.iter().take_while(|slot| slot.open == 0).count();
        let oldest = (self.first + self.records.len() as u64).saturating_sub(HELD_RECORDS_MAX);
        self.spans.retain(|(from, _)| *from >= oldest);
        let end = self.clamp_to_spans(self.first + done as u64);
        while self.first < end {
            let Some(slot) = self.records.pop_front() else { break };
            self.checkpoint = Some(slot.sequence);
            self.first += 1;
        }
        self.spans.retain(|(_, to)| *to >= end);
    }

    /// The latest end at or before this one that does not split a pair.
    fn clamp_to_spans(&self, end: u64) -> u64 {
        // From the latest end down: moving the end back to a span's start can only bring earlier spans into play.
        self.spans.iter().rev().fold(end, |end, (from, to)| if *from < end && end <= *to { *from } else { end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracker_of(events: &[usize]) -> CheckpointTracker {
        let mut tracker = CheckpointTracker::default();
        for (n, events) in events.iter().enumerate() {
            assert_eq!(tracker.begin_record(&n.to_string(), *events, 10), n as u64);
        }
        tracker
    }

    #[test]
    fn the_checkpoint_is_the_contiguous_done_prefix() {
        let mut tracker = tracker_of(&[1, 2, 0, 1]);
        assert_eq!(tracker.checkpoint(), None);
        tracker.finish_event(1);
        tracker.finish_event(1);
        assert_eq!(tracker.checkpoint(), None, "the first is open");
        tracker.finish_event(0);
        assert_eq!(tracker.checkpoint(), Some("2"), "an empty record is done");
        assert_eq!(tracker.unfinished_events(), 1);
        tracker.finish_event(3);
        tracker.finish_event(3);
        assert_eq!(
            (tracker.checkpoint(), tracker.unfinished_events()),
            (Some("3"), 0),
            "finishing a record twice changes nothing"
        );
    }

    #[test]
    fn a_record_is_done_after_all_deliveries_of_its_event() {
        let mut tracker = tracker_of(&[1]);
        tracker.add_deliveries(0, 1);
        tracker.finish_event(0);
        assert_eq!(tracker.checkpoint(), None);
        tracker.finish_event(0);
        assert_eq!(tracker.checkpoint(), Some("0"));
    }

    #[test]
    fn a_checkpoint_never_lies_between_the_halves_of_a_pair() {
        let mut tracker = tracker_of(&[1, 1, 1, 1]);
        tracker.join_records(1, 3);
        for done in [1, 3, 0] {
            tracker.finish_event(done);
        }
        assert_eq!(tracker.checkpoint(), Some("0"), "2 is open, so 1 may not be passed");
        tracker.finish_event(2);
        assert_eq!(tracker.checkpoint(), Some("3"));
    }

    #[test]
    fn overlapping_pairs_hold_the_checkpoint_back_by_at_most_the_bound() {
        let mut tracker = CheckpointTracker::default();
        for n in 0..5_000_u64 {
            tracker.begin_record(&n.to_string(), 1, 10);
            if n >= 3 {
                tracker.join_records(n - 3, n);
                tracker.finish_event(n - 3);
            }
        }
        let at: u64 = tracker.checkpoint().and_then(|sequence| sequence.parse().ok()).expect("a checkpoint");
        assert!(at >= 5_000 - HELD_RECORDS_MAX - 10, "{at}");
        assert!(tracker.spans.len() as u64 <= HELD_RECORDS_MAX, "{} spans", tracker.spans.len());
    }

    #[test]
    fn records_done_beyond_an_open_one_are_listed() {
        let acked = |tracker: &CheckpointTracker| {
            tracker.acked_out_of_order().map(|beyond| (beyond.through, beyond.open.join(" ")))
        };
        let beyond = |through: &str, open: &str| Some((through.to_owned(), open.to_owned()));
        let mut tracker = tracker_of(&[1, 1, 1, 0, 1]);
        assert_eq!(acked(&tracker), beyond("3", "0 1 2"), "an empty record is done");
        assert!(tracker.is_open(0) && !tracker.is_open(3) && !tracker.is_open(9));
        tracker.finish_event(1);
        assert_eq!(acked(&tracker), beyond("3", "0 2"));
        tracker.finish_event(0);
        assert_eq!((tracker.checkpoint(), acked(&tracker)), (Some("1"), beyond("3", "2")));
        assert!(!tracker.is_open(0), "behind the checkpoint");
        tracker.finish_event(2);
        tracker.finish_event(4);
        assert_eq!((tracker.checkpoint(), acked(&tracker)), (Some("4"), None), "nothing is beyond it");
    }

    #[test]
    fn the_list_of_open_records_is_bounded_and_splits_no_pair() {
        let mut tracker = tracker_of(&[1; 300]);
        (0..300).filter(|n| n % 2 == 1).for_each(|n| tracker.finish_event(n));
        let beyond = tracker.acked_out_of_order().expect("half of them are done");
        assert_eq!((beyond.through.as_str(), beyond.open.len()), ("199", OPEN_RECORDS_MAX));
        tracker.join_records(195, 205);
        let beyond = tracker.acked_out_of_order().expect("as before");
        assert_eq!((beyond.through.as_str(), beyond.open.len()), ("193", 97));
    }

    #[test]
    fn a_parked_event_holds_the_checkpoint_and_fills_no_bound() {
        let mut tracker = CheckpointTracker::default();
        tracker.begin_record("1", 2, UNFINISHED_BYTES_MAX);
        tracker.park_event(0);
        assert!(tracker.is_full(), "its other event counts with all bytes");
        tracker.park_event(0);
        assert!(!tracker.is_half_full());
        assert_eq!((tracker.unfinished_events(), tracker.checkpoint(), tracker.sequence(0)), (2, None, Some("1")));
        tracker.unpark_event(0);
        assert!(tracker.is_full());
        tracker.finish_event(0);
        assert!(!tracker.is_half_full(), "the other one is parked");
        tracker.unpark_event(0);
        tracker.finish_event(0);
        assert_eq!((tracker.unfinished_events(), tracker.checkpoint()), (0, Some("1")));
    }

    #[test]
    fn a_tracker_is_full_at_its_bounds() {
        let mut tracker = CheckpointTracker::default();
        tracker.begin_record("1", 1, UNFINISHED_BYTES_MAX);
        assert!(tracker.is_full());
        tracker.finish_event(0);
        assert!(!tracker.is_full());
        tracker.begin_record("2", UNFINISHED_EVENTS_MAX, 1);
        assert!(tracker.is_full());
    }
}
