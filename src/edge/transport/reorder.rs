//! The messages of a session's client, in the order in which it sent them, and each once.
//!
//! Sends travel on many connections and over many processes, so a later one may overtake. pusher-js numbers every
//! request of a page, those that receive too: as long as each number comes, nothing waits. If one is missing,
//! later requests wait for a moment, perhaps in vain: the number may belong to another session of the same page, or to a
//! request that was lost. A request that was relayed twice, because no answer came, has one id.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Bounds the wait for a missing number.
const MISSING_NUMBER_TIMEOUT: Duration = Duration::from_millis(500);

/// The same on a page whose numbers are missing again and again.
const UNRELIABLE_NUMBER_TIMEOUT: Duration = Duration::from_millis(5);

/// Consecutive futile waits that identify such a page.
const FUTILE_WAITS_MAX: u8 = 3;

/// Request ids that are remembered: more than can be in flight for one session.
const SEEN_IDS_MAX: usize = 256;

/// The ids of relayed requests.
#[derive(Debug, Default)]
pub struct DuplicateFilter {
    seen: VecDeque<u128>,
}

impl DuplicateFilter {
    /// Whether this id is new. A request without an id always is.
    pub fn insert_if_new(&mut self, id: Option<u128>) -> bool {
        let Some(id) = id else { return true };
        if self.seen.contains(&id) {
            return false;
        }
        if self.seen.len() == SEEN_IDS_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(id);
        true
    }
}

/// The requests that wait for an earlier one.
pub struct ReorderBuffer<T> {
    /// The next expected number, once there was one.
    next: Option<u64>,
    waiting: BTreeMap<u64, (Instant, Vec<T>)>,
    futile_waits: u8,
}

impl<T> Default for ReorderBuffer<T> {
    fn default() -> Self {
        Self { next: None, waiting: BTreeMap::new(), futile_waits: 0 }
    }
}

impl<T> ReorderBuffer<T> {
    /// Accepts a request. Returns the requests to apply now, in order. A request without a number does not wait.
    pub fn push(&mut self, number: Option<u64>, item: T, now: Instant) -> Vec<T> {
        let Some(number) = number else { return vec![item] };
        match self.next {
            Some(next) if number > next => {
                let until = now
                    + if self.futile_waits < FUTILE_WAITS_MAX {
                        MISSING_NUMBER_TIMEOUT
                    } else {
                        UNRELIABLE_NUMBER_TIMEOUT
                    };
                self.waiting.entry(number).or_insert_with(|| (until, vec![])).1.push(item);
                vec![]
            }
            Some(next) if number < next => {
                // The wait was too short.
                self.futile_waits = 0;
                vec![item]
            }
            _ => {
                let mut ready = vec![item];
                if !self.waiting.is_empty() {
                    self.futile_waits = 0;
                }
                self.next = Some(number.saturating_add(1));
                self.release_following(&mut ready);
                ready
            }
        }
    }

    /// The time at which the next request is overdue.
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting.values().map(|(until, _)| *until).min()
    }

    /// Releases the requests that waited long enough, and those that then wait no more.
    pub fn release_overdue(&mut self, now: Instant) -> Vec<T> {
        let mut ready = Vec::new();
        let late = self.waiting.iter().rev().find(|(_, (until, _))| *until <= now).map(|(number, _)| *number);
        let Some(late) = late else { return ready };
        self.futile_waits = self.futile_waits.saturating_add(1);
        while let Some(first) = self.waiting.first_entry().filter(|entry| *entry.key() <= late) {
            ready.extend(first.remove().1);
        }
        self.next = Some(late.saturating_add(1));
        self.release_following(&mut ready);
        ready
    }

    /// Releases every request that waits, in order: no further one arrives.
    pub fn release_all(&mut self) -> Vec<T> {
        std::mem::take(&mut self.waiting).into_values().flat_map(|(_, items)| items).collect()
    }

    fn release_following(&mut self, ready: &mut Vec<T>) {
        while let Some(next) = self.next
            && let Some((_, items)) = self.waiting.remove(&next)
        {
            ready.extend(items);
            self.next = Some(next.saturating_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_waits_while_every_number_comes() {
        let (mut order, now) = (ReorderBuffer::default(), Instant::now());
        for number in 7..20 {
            assert_eq!(order.push(Some(number), number, now), [number]);
        }
        assert_eq!(order.push(None, 99, now), [99], "without a number");
        assert_eq!(order.push(Some(3), 3, now), [3], "too late");
        assert_eq!((order.next_due(), order.push(Some(20), 20, now)), (None, vec![20]));
    }

    #[test]
    fn what_overtook_waits_for_what_is_missing() {
        let (mut order, now) = (ReorderBuffer::default(), Instant::now());
        assert_eq!(order.push(Some(1), "1", now), ["1"]);
        assert_eq!(order.push(Some(4), "4", now), [""; 0]);
        assert_eq!(order.push(Some(3), "3", now), [""; 0]);
        assert_eq!(order.push(Some(2), "2", now), ["2", "3", "4"]);
        assert_eq!(order.push(Some(5), "5", now), ["5"]);
    }

    #[test]
    fn a_missing_number_is_waited_for_a_while_and_shortly_once_it_is_known_to_be_in_vain() {
        let (mut order, start) = (ReorderBuffer::default(), Instant::now());
        assert_eq!(order.push(Some(1), 1, start), [1]);
        let mut number = 1;
        for vain in 0..FUTILE_WAITS_MAX {
            number += 2;
            assert_eq!(order.push(Some(number), number, start), [0; 0], "{vain}");
            let due = order.next_due().expect("a time");
            assert_eq!((due, order.release_overdue(start)), (start + MISSING_NUMBER_TIMEOUT, vec![]));
            assert_eq!(order.release_overdue(due), [number]);
        }
        assert_eq!(order.push(Some(number + 2), 0, start), [0; 0]);
        assert_eq!(order.next_due(), Some(start + UNRELIABLE_NUMBER_TIMEOUT));
        // A late arrival shows that waiting is worthwhile.
        assert_eq!(order.push(Some(number + 1), 1, start), [1, 0]);
        assert_eq!(order.push(Some(number + 9), 0, start), [0; 0]);
        assert_eq!(order.next_due(), Some(start + MISSING_NUMBER_TIMEOUT));
    }

    #[test]
    fn a_copy_is_known_as_one() {
        let mut copies = DuplicateFilter::default();
        assert!(
            copies.insert_if_new(Some(1))
                && !copies.insert_if_new(Some(1))
                && copies.insert_if_new(Some(2))
                && copies.insert_if_new(None)
        );
        assert!(copies.insert_if_new(None), "what has no id is no copy");
        for id in 3..3 + SEEN_IDS_MAX as u128 {
            assert!(copies.insert_if_new(Some(id)));
        }
        assert!(copies.insert_if_new(Some(1)), "long ago");
    }

    proptest! {
        #[test]
        fn whatever_the_order_of_arrival_nothing_is_lost_and_within_the_patience_nothing_moves(
            order in Just((0..40_u64).collect::<Vec<_>>()).prop_shuffle()
        ) {
            let (mut sorted, now) = (ReorderBuffer::default(), Instant::now());
            let mut done = sorted.push(Some(0), 0, now);
            for number in order.into_iter().filter(|number| *number > 0) {
                done.extend(sorted.push(Some(number), number, now));
            }
            prop_assert_eq!(done, (0..40).collect::<Vec<_>>());
        }
    }
}
