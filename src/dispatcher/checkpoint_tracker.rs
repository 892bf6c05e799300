//! Tracks how far a shard is done.
//!
//! In: records as they are read, and a note for each of their events that is finished. Out: the sequence number that
//! ends the contiguous done prefix, the records done beyond it, and the amount that is unfinished. Only open records are
//! kept, so that the memory is bounded by the bounds of what is open. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::byte_budget::BudgetShare;
use super::leases::AckedOutOfOrder;

/// Bounds the unfinished events of a shard; reading pauses at it.
pub const UNFINISHED_EVENTS_MAX: usize = 10_000;
/// Bounds the bytes of a shard's unfinished records, and with them the memory of a process that holds many shards.
pub const UNFINISHED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Bounds how far cancelled pairs may hold the checkpoint back from the first open record, in records: pairs that overlap
/// without end, as when many clients join and leave, would hold it for ever. Beyond the bound, a take-over may deliver half
/// of a pair.
const HELD_RECORDS_MAX: u64 = 1_000;

/// Bounds the cancelled pairs that are remembered.
const PAIRS_MAX: usize = 10_000;

/// Bounds the open records that are listed beyond the prefix, so that a checkpoint stays small.
const OPEN_RECORDS_MAX: usize = 100;

/// The open records of one shard, and its last record.
#[derive(Debug, Default)]
pub struct CheckpointTracker {
    /// Number of records that were read.
    read: u64,
    open: BTreeMap<u64, OpenRecord>,
    /// The last record that was read; at first the checkpoint at which reading resumed.
    last: Option<Arc<str>>,
    /// Pairs of records with the halves of a cancelled pair, the earlier first, and their places. A checkpoint that
    /// covers one of them would have half of the pair delivered.
    pairs: BTreeMap<(u64, u64), [RecordPlace; 2]>,
    /// Unfinished events that count towards the bounds, and their bytes.
    events: usize,
    bytes: usize,
    /// Unfinished events that do not count.
    parked: usize,
}

#[derive(Debug)]
struct OpenRecord {
    place: RecordPlace,
    /// Number of the record's unfinished events.
    events: usize,
    /// How many of them are parked.
    parked: usize,
    bytes: usize,
    /// The record's bytes in the budget of the process, freed when it is done.
    share: Option<BudgetShare>,
}

/// The place of a record in its shard.
#[derive(Clone, Debug)]
struct RecordPlace {
    sequence: Arc<str>,
    /// The sequence number of the record before it.
    previous: Option<Arc<str>>,
}

/// How far a shard is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardProgress {
    /// The end of the contiguous done prefix, if there is one yet.
    pub through: Option<String>,
    /// The records done beyond that prefix. A held event, such as an absence that may still be cancelled, then holds
    /// back the prefix only and not the records after it.
    pub beyond: Option<AckedOutOfOrder>,
}

impl OpenRecord {
    /// Events and bytes that count towards the bounds.
    fn counted(&self) -> (usize, usize) {
        let events = self.events - self.parked;
        (events, if events > 0 { self.bytes } else { 0 })
    }
}

impl CheckpointTracker {
    /// A tracker that resumes behind a checkpoint.
    #[must_use]
    pub fn resume_from(checkpoint: Option<&str>) -> Self {
        Self { last: checkpoint.map(Arc::from), ..Self::default() }
    }

    /// Adds a record that was read with `events` events; returns its number.
    pub fn begin_record(&mut self, sequence: &str, events: usize, bytes: usize) -> u64 {
        let number = self.read;
        self.read += 1;
        let sequence: Arc<str> = sequence.into();
        let previous = self.last.replace(Arc::clone(&sequence));
        if events > 0 {
            let place = RecordPlace { sequence, previous };
            self.open.insert(number, OpenRecord { place, events, parked: 0, bytes, share: None });
            self.events += events;
            self.bytes += bytes;
        }
        number
    }

    /// Keeps the record's share of the budget until it is done.
    pub fn keep_share(&mut self, record: u64, share: BudgetShare) {
        if let Some(open) = self.open.get_mut(&record) {
            open.share = Some(share);
        }
    }

    /// Counts further deliveries of a record, when one event goes to several endpoints.
    pub fn add_deliveries(&mut self, record: u64, more: usize) {
        self.change_record(record, |open| open.events += more);
    }

    /// Takes one of the record's events out of the bounds: another store bounds it while it waits. The checkpoint still
    /// waits for it.
    pub fn park_event(&mut self, record: u64) {
        self.change_record(record, |open| {
            open.parked = open.events.min(open.parked + 1);
            if open.parked == open.events {
                // The other store bounds the bytes too.
                open.share = None;
            }
        });
    }

    /// Returns a parked event into the bounds.
    pub fn unpark_event(&mut self, record: u64) {
        self.change_record(record, |open| open.parked = open.parked.saturating_sub(1));
    }

    /// Marks one of the record's events as finished, with any outcome.
    pub fn finish_event(&mut self, record: u64) {
        self.change_record(record, |open| {
            open.events = open.events.saturating_sub(1);
            open.parked = open.parked.min(open.events);
        });
        if self.open.get(&record).is_some_and(|open| open.events == 0) {
            self.open.remove(&record);
        }
    }

    /// Changes a record, and its part of the counts.
    fn change_record(&mut self, record: u64, change: impl FnOnce(&mut OpenRecord)) {
        let Some(open) = self.open.get_mut(&record) else { return };
        let ((events, bytes), parked) = (open.counted(), open.parked);
        change(open);
        let ((events_now, bytes_now), parked_now) = (open.counted(), open.parked);
        self.events = self.events + events_now - events;
        self.bytes = self.bytes + bytes_now - bytes;
        self.parked = self.parked + parked_now - parked;
    }

    /// Joins two records that hold the halves of a cancelled pair: a checkpoint covers both or none. Must be called
    /// before they are done.
    pub fn join_records(&mut self, one: u64, other: u64) {
        let (earlier, later) = (one.min(other), one.max(other));
        let place = |number: u64| self.open.get(&number).map(|open| open.place.clone());
        let (Some(first), Some(second)) = (place(earlier), place(later)) else { return };
        if earlier != later {
            self.pairs.insert((earlier, later), [first, second]);
        }
        // The list beyond the prefix may end anywhere from the first open record on.
        let first_open = self.open.first_key_value().map_or(self.read, |(number, _)| *number);
        let oldest = (first_open + 1).saturating_sub(HELD_RECORDS_MAX);
        while self.pairs.len() > PAIRS_MAX || self.pairs.keys().next().is_some_and(|(earlier, _)| *earlier < oldest) {
            self.pairs.pop_first();
        }
    }

    /// How far the shard is done, for a checkpoint that is written now. No cancelled pair is split by it.
    #[must_use]
    pub fn progress(&self) -> ShardProgress {
        let text = |sequence: Option<&Arc<str>>| sequence.map(ToString::to_string);
        let replayed = self.list_replayed();
        let Some((_, first)) = replayed.first_key_value() else {
            return ShardProgress { through: text(self.last.as_ref()), beyond: None };
        };
        let (mut end, mut last) = self.end_of_list(&replayed);
        // The list ends with a done record.
        while let Some(place) = end.checked_sub(1).and_then(|number| replayed.get(&number)) {
            (end, last) = (end - 1, place.previous.as_ref());
        }
        let open: Vec<String> = replayed.range(..end).map(|(_, place)| place.sequence.to_string()).collect();
        let beyond = text(last).filter(|_| !open.is_empty()).map(|through| AckedOutOfOrder { through, open });
        ShardProgress { through: text(first.previous.as_ref()), beyond }
    }

    /// The records that a successor must replay: open ones, and those that are joined to a replayed one.
    fn list_replayed(&self) -> BTreeMap<u64, &RecordPlace> {
        let mut joined: HashMap<u64, Vec<(u64, &RecordPlace)>> = HashMap::new();
        for ((earlier, later), [earlier_place, later_place]) in &self.pairs {
            joined.entry(*earlier).or_default().push((*later, later_place));
            joined.entry(*later).or_default().push((*earlier, earlier_place));
        }
        let mut replayed: BTreeMap<u64, &RecordPlace> =
            self.open.iter().map(|(number, open)| (*number, &open.place)).collect();
        let mut next: Vec<u64> = replayed.keys().copied().filter(|number| joined.contains_key(number)).collect();
        while let Some(number) = next.pop() {
            for (other, place) in joined.remove(&number).unwrap_or_default() {
                if replayed.insert(other, place).is_none() {
                    next.push(other);
                }
            }
        }
        replayed
    }

    /// The number at which the list of records beyond the prefix ends, and the sequence number before it. A successor
    /// replays all from there on.
    fn end_of_list<'a>(&'a self, replayed: &BTreeMap<u64, &'a RecordPlace>) -> (u64, Option<&'a Arc<str>>) {
        let cut = replayed.iter().nth(OPEN_RECORDS_MAX).map(|(number, place)| (*number, place.previous.as_ref()));
        let mut end = cut.unwrap_or((self.read, self.last.as_ref()));
        // From the latest pair down: an end that moves back can only split earlier pairs.
        let mut pairs: Vec<_> = self.pairs.iter().filter(|((earlier, _), _)| !replayed.contains_key(earlier)).collect();
        pairs.sort_unstable_by_key(|((_, later), _)| Reverse(*later));
        for ((earlier, later), [place, _]) in pairs {
            if *earlier < end.0 && end.0 <= *later {
                end = (*earlier, place.previous.as_ref());
            }
        }
        end
    }

    /// The end of the contiguous done prefix, whether or not it splits a cancelled pair.
    #[must_use]
    pub fn done_through(&self) -> Option<&str> {
        match self.open.first_key_value() {
            Some((_, first)) => first.place.previous.as_deref(),
            None => self.last.as_deref(),
        }
    }

    /// Whether an event of the record is unfinished.
    #[must_use]
    pub fn is_open(&self, record: u64) -> bool {
        self.open.contains_key(&record)
    }

    /// The sequence number of an open record.
    #[must_use]
    pub fn sequence(&self, record: u64) -> Option<&str> {
        self.open.get(&record).map(|open| &*open.place.sequence)
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

    /// End of the prefix, end of the list beyond it, and the open records of that list.
    fn progress(tracker: &CheckpointTracker) -> (Option<String>, Option<(String, String)>) {
        let ShardProgress { through, beyond } = tracker.progress();
        (through, beyond.map(|beyond| (beyond.through, beyond.open.join(" "))))
    }

    fn expected(through: &str, beyond: Option<(&str, &str)>) -> (Option<String>, Option<(String, String)>) {
        let through = (!through.is_empty()).then(|| through.to_owned());
        (through, beyond.map(|(through, open)| (through.to_owned(), open.to_owned())))
    }

    #[test]
    fn the_checkpoint_is_the_contiguous_done_prefix() {
        let mut tracker = tracker_of(&[1, 2, 0, 1]);
        assert_eq!(tracker.done_through(), None);
        tracker.finish_event(1);
        tracker.finish_event(1);
        assert_eq!(tracker.done_through(), None, "the first is open");
        tracker.finish_event(0);
        assert_eq!(tracker.done_through(), Some("2"), "an empty record is done");
        assert_eq!(tracker.unfinished_events(), 1);
        tracker.finish_event(3);
        tracker.finish_event(3);
        assert_eq!(
            (tracker.done_through(), tracker.unfinished_events()),
            (Some("3"), 0),
            "finishing a record twice changes nothing"
        );
        assert_eq!(progress(&tracker), expected("3", None));
    }

    #[test]
    fn a_record_is_done_after_all_deliveries_of_its_event() {
        let mut tracker = tracker_of(&[1]);
        tracker.add_deliveries(0, 1);
        tracker.finish_event(0);
        assert_eq!(tracker.done_through(), None);
        tracker.finish_event(0);
        assert_eq!(tracker.done_through(), Some("0"));
    }

    #[test]
    fn a_tracker_resumes_at_its_checkpoint() {
        let mut tracker = CheckpointTracker::resume_from(Some("7"));
        assert_eq!(progress(&tracker), expected("7", None));
        tracker.begin_record("8", 1, 10);
        assert_eq!(progress(&tracker), expected("7", None));
    }

    #[test]
    fn a_checkpoint_covers_both_halves_of_a_cancelled_pair_or_none() {
        for (name, events, joined, finished, checkpoint) in [
            (
                "both halves are done beyond an open record",
                [1, 1, 1, 1],
                vec![(1, 3)],
                vec![1, 3, 0],
                ("1", Some(("3", "2"))),
            ),
            (
                "the record of the later half has an open event",
                [1, 1, 1, 2],
                vec![(1, 3)],
                vec![0, 1, 2, 3],
                ("0", Some(("2", "1"))),
            ),
            (
                "the record of the earlier half has an open event",
                [1, 2, 1, 1],
                vec![(1, 3)],
                vec![0, 1, 2, 3],
                ("0", Some(("2", "1"))),
            ),
            (
                "two pairs share a record",
                [1, 2, 2, 2],
                vec![(0, 1), (1, 3)],
                vec![0, 1, 1, 2, 2, 3],
                ("", Some(("2", "0 1"))),
            ),
            ("all is done", [1, 1, 1, 1], vec![(1, 3)], vec![0, 1, 2, 3], ("3", None)),
        ] {
            let mut tracker = tracker_of(&events);
            for (one, other) in joined {
                tracker.join_records(other, one);
            }
            for record in finished {
                tracker.finish_event(record);
            }
            let (through, beyond) = checkpoint;
            assert_eq!(progress(&tracker), expected(through, beyond), "{name}");
        }
    }

    #[test]
    fn overlapping_pairs_hold_the_checkpoint_back_by_at_most_the_bound() {
        let mut tracker = CheckpointTracker::default();
        for n in 0..5_000_u64 {
            // The second event of each record is the earlier half of a pair, whose later half is in the next record.
            tracker.begin_record(&n.to_string(), if n == 0 { 1 } else { 2 }, 10);
            if n > 0 {
                tracker.join_records(n - 1, n);
                tracker.finish_event(n - 1);
                tracker.finish_event(n);
            }
        }
        let at: u64 = tracker.progress().through.and_then(|sequence| sequence.parse().ok()).expect("a checkpoint");
        assert!(at >= 5_000 - HELD_RECORDS_MAX - 10, "{at}");
        assert!(tracker.pairs.len() as u64 <= HELD_RECORDS_MAX, "{} pairs", tracker.pairs.len());
    }

    #[test]
    fn a_list_that_ends_far_behind_the_last_record_splits_no_pair_either() {
        // More records than are listed stay open: a receiver refuses some of their events for the whole retry window.
        let mut tracker = tracker_of(&vec![1; 10_000]);
        tracker.join_records(2_000, 2_002);
        let stays_open = |record: u64| record < OPEN_RECORDS_MAX as u64 || record == 2_001;
        (0..10_000).filter(|record| !stays_open(*record)).for_each(|record| tracker.finish_event(record));
        let beyond = tracker.progress().beyond.expect("most of them are done");
        assert_eq!((beyond.through.as_str(), beyond.open.len()), ("1999", OPEN_RECORDS_MAX));
    }

    #[test]
    fn records_done_beyond_an_open_one_are_listed() {
        let mut tracker = tracker_of(&[1, 1, 1, 0, 1]);
        assert_eq!(progress(&tracker), expected("", Some(("3", "0 1 2"))), "an empty record is done");
        assert!(tracker.is_open(0) && !tracker.is_open(3) && !tracker.is_open(9));
        tracker.finish_event(1);
        assert_eq!(progress(&tracker), expected("", Some(("3", "0 2"))));
        tracker.finish_event(0);
        assert_eq!(progress(&tracker), expected("1", Some(("3", "2"))));
        assert!(!tracker.is_open(0), "behind the checkpoint");
        tracker.finish_event(2);
        tracker.finish_event(4);
        assert_eq!(progress(&tracker), expected("4", None), "nothing is beyond it");
    }

    #[test]
    fn the_list_of_open_records_is_bounded_and_splits_no_pair() {
        let mut tracker = tracker_of(&[1; 300]);
        tracker.join_records(195, 205);
        (0..300).filter(|n| n % 2 == 1).for_each(|n| tracker.finish_event(n));
        let beyond = tracker.progress().beyond.expect("half of them are done");
        assert_eq!((beyond.through.as_str(), beyond.open.len()), ("193", 97));
        let mut tracker = tracker_of(&[1; 300]);
        (0..300).filter(|n| n % 2 == 1).for_each(|n| tracker.finish_event(n));
        let beyond = tracker.progress().beyond.expect("half of them are done");
        assert_eq!((beyond.through.as_str(), beyond.open.len()), ("199", OPEN_RECORDS_MAX));
    }

    /// `cargo test --lib done_records_take -- --nocapture` prints the time.
    #[test]
    fn done_records_take_no_memory_behind_an_open_one() {
        let (mut tracker, started) = (CheckpointTracker::default(), std::time::Instant::now());
        let sequence = |n: u64| format!("{:056}", n + 1);
        tracker.begin_record(&sequence(0), 1, 100);
        for n in 1..300_000 {
            let record = tracker.begin_record(&sequence(n), 1, 100);
            tracker.finish_event(record);
        }
        assert_eq!((tracker.open.len(), tracker.bytes, tracker.unfinished_events()), (1, 100, 1));
        println!("300,000 records behind an open one: {} kept, {:?}", tracker.open.len(), started.elapsed());
        assert_eq!(progress(&tracker), expected("", Some((&sequence(299_999), &sequence(0)))));
    }

    #[test]
    fn a_parked_event_holds_the_checkpoint_and_fills_no_bound() {
        let mut tracker = CheckpointTracker::default();
        tracker.begin_record("1", 2, UNFINISHED_BYTES_MAX);
        tracker.park_event(0);
        assert!(tracker.is_full(), "its other event counts with all bytes");
        tracker.park_event(0);
        assert!(!tracker.is_half_full());
        assert_eq!((tracker.unfinished_events(), tracker.done_through(), tracker.sequence(0)), (2, None, Some("1")));
        tracker.unpark_event(0);
        assert!(tracker.is_full());
        tracker.finish_event(0);
        assert!(!tracker.is_half_full(), "the other one is parked");
        tracker.unpark_event(0);
        tracker.finish_event(0);
        assert_eq!((tracker.unfinished_events(), tracker.done_through()), (0, Some("1")));
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
