//! What a session's client sent, in the order in which it sent it, and each once.
//!
//! Sends travel on many connections and over many processes, so a later one may overtake. pusher-js numbers every
//! request of a page, those that receive too: as long as each number comes, nothing waits. Where one is missing, what
//! comes behind it waits for a moment, which may be in vain: the number may have been that of another session of the
//! same page, or of a request that was lost. A request that was handed on twice, because no answer came, has one id.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// How long a missing number is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long it is waited for on a page whose numbers are missing again and again.
const SHORT: Duration = Duration::from_millis(5);

/// Waits in vain, one after the other, that show such a page.
const VAIN: u8 = 3;

/// Ids of requests that are remembered: more than can be under way for one session.
const REMEMBERED: usize = 256;

/// Ids of requests that were handed on.
#[derive(Debug, Default)]
pub struct Copies {
    seen: VecDeque<u128>,
}

impl Copies {
    /// Whether this is the first of its kind. What has no id is.
    pub fn first(&mut self, id: Option<u128>) -> bool {
        let Some(id) = id else { return true };
        if self.seen.contains(&id) {
            return false;
        }
        if self.seen.len() == REMEMBERED {
            self.seen.pop_front();
        }
        self.seen.push_back(id);
        true
    }
}

/// What came so far, and what waits for what came too late.
pub struct Order<T> {
    /// The number that is to come next, once there was one.
    next: Option<u64>,
    waiting: BTreeMap<u64, (Instant, Vec<T>)>,
    vain: u8,
}

impl<T> Default for Order<T> {
    fn default() -> Self {
        Self { next: None, waiting: BTreeMap::new(), vain: 0 }
    }
}

impl<T> Order<T> {
    /// Something came. Out: what is to be done now, in order. What has no number does not wait.
    pub fn arrive(&mut self, number: Option<u64>, item: T, now: Instant) -> Vec<T> {
        let Some(number) = number else { return vec![item] };
        match self.next {
            Some(next) if number > next => {
                let until = now + if self.vain < VAIN { PATIENCE } else { SHORT };
                self.waiting.entry(number).or_insert_with(|| (until, vec![])).1.push(item);
                vec![]
            }
            Some(next) if number < next => {
                // It was waited for too shortly.
                self.vain = 0;
                vec![item]
            }
            _ => {
                let mut ready = vec![item];
                if !self.waiting.is_empty() {
                    self.vain = 0;
                }
                self.next = Some(number.saturating_add(1));
                self.follow(&mut ready);
                ready
            }
        }
    }

    /// When to look for what waited long enough.
    pub fn due(&self) -> Option<Instant> {
        self.waiting.values().map(|(until, _)| *until).min()
    }

    /// What waited long enough, and what waits no more then.
    pub fn overdue(&mut self, now: Instant) -> Vec<T> {
        let mut ready = Vec::new();
        let late = self.waiting.iter().rev().find(|(_, (until, _))| *until <= now).map(|(number, _)| *number);
        let Some(late) = late else { return ready };
        self.vain = self.vain.saturating_add(1);
        while let Some(first) = self.waiting.first_entry().filter(|entry| *entry.key() <= late) {
            ready.extend(first.remove().1);
        }
        self.next = Some(late.saturating_add(1));
        self.follow(&mut ready);
        ready
    }

    fn follow(&mut self, ready: &mut Vec<T>) {
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
        let (mut order, now) = (Order::default(), Instant::now());
        for number in 7..20 {
            assert_eq!(order.arrive(Some(number), number, now), [number]);
        }
        assert_eq!(order.arrive(None, 99, now), [99], "without a number");
        assert_eq!(order.arrive(Some(3), 3, now), [3], "too late");
        assert_eq!((order.due(), order.arrive(Some(20), 20, now)), (None, vec![20]));
    }

    #[test]
    fn what_overtook_waits_for_what_is_missing() {
        let (mut order, now) = (Order::default(), Instant::now());
        assert_eq!(order.arrive(Some(1), "1", now), ["1"]);
        assert_eq!(order.arrive(Some(4), "4", now), [""; 0]);
        assert_eq!(order.arrive(Some(3), "3", now), [""; 0]);
        assert_eq!(order.arrive(Some(2), "2", now), ["2", "3", "4"]);
        assert_eq!(order.arrive(Some(5), "5", now), ["5"]);
    }

    #[test]
    fn a_missing_number_is_waited_for_a_while_and_shortly_once_it_is_known_to_be_in_vain() {
        let (mut order, start) = (Order::default(), Instant::now());
        assert_eq!(order.arrive(Some(1), 1, start), [1]);
        let mut number = 1;
        for vain in 0..VAIN {
            number += 2;
            assert_eq!(order.arrive(Some(number), number, start), [0; 0], "{vain}");
            let due = order.due().expect("a time");
            assert_eq!((due, order.overdue(start)), (start + PATIENCE, vec![]));
            assert_eq!(order.overdue(due), [number]);
        }
        assert_eq!(order.arrive(Some(number + 2), 0, start), [0; 0]);
        assert_eq!(order.due(), Some(start + SHORT));
        // One that comes after all shows that it is worth while.
        assert_eq!(order.arrive(Some(number + 1), 1, start), [1, 0]);
        assert_eq!(order.arrive(Some(number + 9), 0, start), [0; 0]);
        assert_eq!(order.due(), Some(start + PATIENCE));
    }

    #[test]
    fn a_copy_is_known_as_one() {
        let mut copies = Copies::default();
        assert!(copies.first(Some(1)) && !copies.first(Some(1)) && copies.first(Some(2)) && copies.first(None));
        assert!(copies.first(None), "what has no id is no copy");
        for id in 3..3 + REMEMBERED as u128 {
            assert!(copies.first(Some(id)));
        }
        assert!(copies.first(Some(1)), "long ago");
    }

    proptest! {
        #[test]
        fn whatever_the_order_of_arrival_nothing_is_lost_and_within_the_patience_nothing_moves(
            order in Just((0..40_u64).collect::<Vec<_>>()).prop_shuffle()
        ) {
            let (mut sorted, now) = (Order::default(), Instant::now());
            let mut done = sorted.arrive(Some(0), 0, now);
            for number in order.into_iter().filter(|number| *number > 0) {
                done.extend(sorted.arrive(Some(number), number, now));
            }
            prop_assert_eq!(done, (0..40).collect::<Vec<_>>());
        }
    }
}
