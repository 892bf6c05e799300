//! A page that reloads is not an absence.
//!
//! In: events in the bus's order. Out: the same, but "vacated" and "removed" are held for a while, and when their subject
//! comes back in that while, neither half is told. The while has passed only when the shard was *read* past it: a slow
//! reader must not take its own delay for an absence. Pure: the caller passes the times.

use std::collections::{BTreeMap, HashMap};

use super::events::{Place, Tracked};
use crate::protocol::record::{Cause, EventKind, Order};

/// How long an absence must last (Pusher documents up to 3 s).
const HOLD_MS: u64 = 3_000;
/// The same when a server asked its clients to move.
const DRAIN_HOLD_MS: u64 = 10_000;

/// What becomes of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Tell it now.
    Pass(Tracked),
    /// Nothing yet.
    Held,
    /// It undoes these; none of them is told.
    Cancels {
        /// What was held, oldest first.
        held: Vec<Tracked>,
        /// The return that undid it.
        by: Tracked,
    },
}

/// The absences of one shard that may still be undone.
#[derive(Debug, Default)]
pub struct Debounce {
    held: HashMap<Place, BTreeMap<Order, Held>>,
}

#[derive(Debug)]
struct Held {
    until_ms: u64,
    event: Tracked,
}

impl Debounce {
    /// Takes an event that the sequencer released now.
    pub fn push(&mut self, event: Tracked, now_ms: u64) -> Verdict {
        let Some(order) = event.event.order else {
            return Verdict::Pass(event);
        };
        if event.leaves() {
            let hold = if event.event.cause == Some(Cause::Drain) { DRAIN_HOLD_MS } else { HOLD_MS };
            // A clock that runs ahead must not hold an event for longer than its while.
            let until_ms = event.event.time_ms.min(now_ms) + hold;
            self.held.entry(event.place()).or_default().insert(order, Held { until_ms, event });
            return Verdict::Held;
        }
        let held = if event.enters() { self.undo(&event, order) } else { Vec::new() };
        if held.is_empty() { Verdict::Pass(event) } else { Verdict::Cancels { held, by: event } }
    }

    /// The absences that lasted, in the bus's order per channel; `read_past_ms` is the time up to which the shard was
    /// read.
    pub fn due(&mut self, now_ms: u64, read_past_ms: u64) -> Vec<Tracked> {
        let passed = now_ms.min(read_past_ms);
        let mut out = Vec::new();
        self.held.retain(|_, channel| {
            let mut members_wait = false;
            let ripe: Vec<Order> = channel
                .iter()
                .filter(|(_, held)| {
                    let vacated = held.event.event.kind == EventKind::ChannelVacated;
                    let ripe = held.until_ms <= passed && !(vacated && members_wait);
                    // A channel is empty only after its members have gone.
                    members_wait |= !ripe && !vacated;
                    ripe
                })
                .map(|(order, _)| *order)
                .collect();
            out.extend(ripe.iter().filter_map(|order| channel.remove(order)).map(|held| held.event));
            !channel.is_empty()
        });
        out
    }

    fn undo(&mut self, event: &Tracked, order: Order) -> Vec<Tracked> {
        let place = event.place();
        let Some(channel) = self.held.get_mut(&place) else {
            return Vec::new();
        };
        let same = |held: &Held| held.event.subject() == event.subject();
        let orders: Vec<Order> =
            channel.range(..order).filter(|(_, held)| same(held)).map(|(order, _)| *order).collect();
        let undone = orders.iter().filter_map(|order| channel.remove(order)).map(|held| held.event).collect();
        if channel.is_empty() {
            self.held.remove(&place);
        }
        undone
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::sequencer::tests::event;
    use super::super::sequencer::{GAP_MS, Sequencer, Step};
    use super::*;

    const FOREVER: u64 = u64::MAX / 2;

    fn removed(seq: u64) -> Tracked {
        event(seq, EventKind::MemberRemoved { user_id: "u".into() })
    }

    fn seqs(events: &[Tracked]) -> Vec<u64> {
        events.iter().map(|event| event.record).collect()
    }

    #[test]
    fn an_absence_is_told_after_its_while_and_after_reading_past_it() {
        let mut debounce = Debounce::default();
        let vacated = event(2, EventKind::ChannelVacated);
        assert_eq!(debounce.push(vacated.clone(), 2), Verdict::Held);
        assert!(debounce.due(3_001, FOREVER).is_empty(), "too early");
        assert!(debounce.due(FOREVER, 3_001).is_empty(), "not read so far");
        assert_eq!(debounce.due(3_002, 3_002), [vacated]);
    }

    #[test]
    fn a_return_undoes_it_and_neither_is_told() {
        let mut debounce = Debounce::default();
        debounce.push(removed(2), 2);
        let other = event(3, EventKind::MemberAdded { user_id: "v".into() });
        assert!(matches!(debounce.push(other, 3), Verdict::Pass(_)), "another user is no return");
        let back = event(4, EventKind::MemberAdded { user_id: "u".into() });
        let Verdict::Cancels { held, by } = debounce.push(back, 4) else { panic!("undone") };
        assert_eq!((seqs(&held), by.record), (vec![2], 4));
        assert!(debounce.due(FOREVER, FOREVER).is_empty());
    }

    #[test]
    fn a_channel_is_vacated_after_its_members_left_and_a_drain_takes_longer() {
        let mut debounce = Debounce::default();
        let mut slow = removed(2);
        slow.event.cause = Some(Cause::Drain);
        debounce.push(slow, 2);
        debounce.push(event(3, EventKind::ChannelVacated), 3);
        assert!(debounce.due(9_000, FOREVER).is_empty());
        assert_eq!(seqs(&debounce.due(10_002, FOREVER)), [2, 3]);
    }

    #[test]
    fn a_clock_that_runs_ahead_holds_for_its_while_only() {
        let mut debounce = Debounce::default();
        let mut vacated = event(2, EventKind::ChannelVacated);
        vacated.event.time_ms = 1_000_000;
        debounce.push(vacated, 10);
        assert_eq!(debounce.due(3_010, FOREVER).len(), 1);
    }

    /// Two users and the channel itself come and go: `choices` says who turns next. Returns the history in the bus's
    /// order; the channel is occupied before anyone joins and vacated only when nobody is there.
    fn history(choices: &[u8]) -> Vec<EventKind> {
        let (mut kinds, mut there) = (Vec::new(), [false; 3]);
        for choice in choices {
            let who = usize::from(choice % 3);
            if who == 2 {
                kinds.push(if there[2] { EventKind::ChannelVacated } else { EventKind::ChannelOccupied });
            } else {
                let user_id = who.to_string();
                kinds.push(if there[who] {
                    EventKind::MemberRemoved { user_id }
                } else {
                    EventKind::MemberAdded { user_id }
                });
            }
            there[who] = !there[who];
        }
        kinds
    }

    fn state(events: &[Tracked]) -> BTreeMap<Option<String>, bool> {
        let told = events.iter().map(|event| (event.subject().map(str::to_owned), event.enters()));
        // A subject that was never told of is absent, as one that left.
        told.collect::<BTreeMap<_, _>>().into_iter().filter(|(_, there)| *there).collect()
    }

    proptest! {
        /// Whatever the arrival order within the gap time, each subject's events come out by seq, no event is lost
        /// without a word, and replaying them ends in the truth.
        #[test]
        fn any_arrival_order_tells_the_truth(
            choices in proptest::collection::vec(0u8..3, 1..30),
            delays in proptest::collection::vec(0u64..GAP_MS, 30),
            spacing in 1u64..2_000,
        ) {
            let events: Vec<Tracked> = (1u64..).zip(history(&choices)).map(|(seq, kind)| {
                let mut event = event(seq, kind);
                event.event.time_ms = seq * spacing;
                event
            }).collect();
            let truth = state(&events);
            let mut arrivals: Vec<(u64, Tracked)> =
                events.iter().zip(&delays).map(|(event, delay)| (event.event.time_ms + delay, event.clone())).collect();
            arrivals.sort_by_key(|(at, _)| *at);

            let (mut sequencer, mut debounce) = (Sequencer::default(), Debounce::default());
            let (mut posted, mut cancelled) = (Vec::new(), 0);
            let mut feed = |steps: Vec<Step>, now: u64, posted: &mut Vec<Tracked>| {
                for step in steps {
                    let Step::Release(event) = step else { panic!("nothing is superseded within the gap time") };
                    match debounce.push(event, now) {
                        Verdict::Pass(event) => posted.push(event),
                        Verdict::Held => {}
                        Verdict::Cancels { held, .. } => cancelled += held.len() + 1,
                    }
                }
                posted.extend(debounce.due(now, now));
            };
            for (now, event) in arrivals {
                feed(sequencer.due(now), now, &mut posted);
                feed(sequencer.push(event, now), now, &mut posted);
            }
            feed(sequencer.due(FOREVER), FOREVER, &mut posted);

            prop_assert_eq!(posted.len() + cancelled, events.len());
            for subject in [None, Some("0"), Some("1")] {
                let of: Vec<u64> = posted.iter().filter(|e| e.subject() == subject).map(|e| e.record).collect();
                prop_assert!(of.is_sorted(), "{:?}: {:?}", subject, of);
            }
            prop_assert_eq!(state(&posted), truth);
        }
    }
}
