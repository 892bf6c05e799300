//! Cancels absences that are too short to report, such as a page that reloads.
//!
//! In: events in the bus's order. Out: the same events, but "vacated" and "removed" are held for a grace period, and
//! when their subject returns within it, neither half is delivered. The grace period is over only once the shard was
//! *read* past it: a slow reader must not mistake its own delay for an absence. Pure: the caller passes the times.
//!
//! A replayed event is one that a former holder finished: it is never delivered. Within a shard, a checkpoint covers both
//! halves of a cancelled pair or none, so a replayed event and one that is not are no such pair. Across shards, as after a
//! split, two halves are a pair if the arrival was decided within the grace period, however late it is read: any holder
//! decides the same, also one that reads one half only.

use std::collections::{BTreeMap, HashMap};

use super::events::{ChannelKey, ShardSlot, TrackedEvent};
use crate::protocol::record::{EventKind, EventOrder, LeaveCause};

/// Shortest absence that is delivered: Pusher documents up to 3 s.
const ABSENCE_GRACE_MS: u64 = 3_000;
/// Shortest absence after a server asked its clients to reconnect, which takes them longer.
const DRAIN_GRACE_MS: u64 = 10_000;

/// The result of pushing an event.
#[derive(Clone, Debug, PartialEq)]
pub enum DebounceVerdict {
    /// The event can be delivered now.
    Pass(TrackedEvent),
    /// The event is held for its grace period.
    Held,
    /// The event cancels held ones; none of them is delivered.
    Cancels {
        /// The held absences, oldest first.
        held: Vec<TrackedEvent>,
        /// The arrival that cancels them.
        by: TrackedEvent,
    },
    /// The event can be delivered after held absences that its own subject's arrival ends too late to cancel.
    Follows {
        /// The absences, oldest first.
        absences: Vec<TrackedEvent>,
        /// The arrival that ends the last of them.
        event: TrackedEvent,
    },
}

/// The absences of a lineage of shards that may still be cancelled.
#[derive(Debug, Default)]
pub struct AbsenceDebouncer {
    held: HashMap<ChannelKey, BTreeMap<EventOrder, HeldAbsence>>,
}

#[derive(Debug)]
struct HeldAbsence {
    until_ms: u64,
    event: TrackedEvent,
    replayed: bool,
}

impl HeldAbsence {
    /// Whether an arrival of the same subject cancels this absence.
    fn is_cancelled_by(&self, arrival: &TrackedEvent, replayed: bool) -> bool {
        let crosses_shards = self.event.slot != arrival.slot;
        if crosses_shards { arrival.event.time_ms < self.until_ms } else { self.replayed == replayed }
    }

    /// Whether the absence is to be delivered although this arrival comes before the shard was read past it.
    fn precedes(&self, arrival: &TrackedEvent) -> bool {
        !self.replayed && self.until_ms <= arrival.event.time_ms
    }
}

impl AbsenceDebouncer {
    /// Accepts an event that the sequencer released now.
    pub fn push(&mut self, event: TrackedEvent, replayed: bool, now_ms: u64) -> DebounceVerdict {
        let Some(order) = event.event.order else {
            return DebounceVerdict::Pass(event);
        };
        if event.is_departure() {
            let hold = if event.event.cause == Some(LeaveCause::Drain) { DRAIN_GRACE_MS } else { ABSENCE_GRACE_MS };
            // A clock that runs ahead must not hold an event for longer than its grace period.
            let until_ms = event.event.time_ms.min(now_ms) + hold;
            self.held.entry(event.channel_key()).or_default().insert(order, HeldAbsence { until_ms, event, replayed });
            return DebounceVerdict::Held;
        }
        if !event.is_arrival() {
            return DebounceVerdict::Pass(event);
        }
        let held = self.cancel_absences(&event, order, replayed);
        if !held.is_empty() {
            return DebounceVerdict::Cancels { held, by: event };
        }
        let absences = if replayed { Vec::new() } else { self.take_preceding(&event, order) };
        if absences.is_empty() { DebounceVerdict::Pass(event) } else { DebounceVerdict::Follows { absences, event } }
    }

    /// Takes the absences of a channel that are over, if one of them is of the arrival's subject: those of its members
    /// precede that of the channel.
    fn take_preceding(&mut self, arrival: &TrackedEvent, order: EventOrder) -> Vec<TrackedEvent> {
        let place = arrival.channel_key();
        let Some(channel) = self.held.get_mut(&place) else { return Vec::new() };
        let over: Vec<EventOrder> =
            channel.range(..order).filter(|(_, held)| held.precedes(arrival)).map(|(order, _)| *order).collect();
        let is_own = |order: &EventOrder| {
            channel.get(order).is_some_and(|held| held.event.subject_user_id() == arrival.subject_user_id())
        };
        if !over.iter().any(is_own) {
            return Vec::new();
        }
        let taken = over.iter().filter_map(|order| channel.remove(order)).map(|held| held.event).collect();
        if channel.is_empty() {
            self.held.remove(&place);
        }
        taken
    }

    /// Releases absences that outlasted their grace period, in the bus's order per channel; `read_past_ms` is the time
    /// up to which a shard and its children were read. Replayed ones are forgotten then.
    pub fn release_due(&mut self, now_ms: u64, read_past_ms: impl Fn(ShardSlot) -> u64) -> Vec<TrackedEvent> {
        let mut out = Vec::new();
        self.held.retain(|_, channel| {
            let mut members_wait = false;
            let ripe: Vec<EventOrder> = channel
                .iter()
                .filter(|(_, held)| {
                    let vacated = held.event.event.kind == EventKind::ChannelVacated;
                    // A replayed absence waits for the reading too: the arrival that cancelled it may be in a child.
                    let ripe = held.until_ms <= now_ms
                        && held.until_ms <= read_past_ms(held.event.slot)
                        && !(vacated && members_wait);
                    // A channel is vacated only after its members were removed.
                    members_wait |= !ripe && !vacated && !held.replayed;
                    ripe
                })
                .map(|(order, _)| *order)
                .collect();
            let ripe = ripe.iter().filter_map(|order| channel.remove(order)).filter(|held| !held.replayed);
            out.extend(ripe.map(|held| held.event));
            !channel.is_empty()
        });
        out
    }

    /// Adds the absences of another lineage.
    pub fn absorb(&mut self, other: Self) {
        self.held.extend(other.held);
    }

    /// Removes the absences of a shard that is no longer held.
    pub fn remove_slot(&mut self, slot: ShardSlot) {
        self.held.retain(|_, channel| {
            channel.retain(|_, held| held.event.slot != slot);
            !channel.is_empty()
        });
    }

    fn cancel_absences(&mut self, event: &TrackedEvent, order: EventOrder, replayed: bool) -> Vec<TrackedEvent> {
        let place = event.channel_key();
        let Some(channel) = self.held.get_mut(&place) else {
            return Vec::new();
        };
        let is_cancelled = |held: &HeldAbsence| {
            held.event.subject_user_id() == event.subject_user_id() && held.is_cancelled_by(event, replayed)
        };
        let orders: Vec<EventOrder> =
            channel.range(..order).filter(|(_, held)| is_cancelled(held)).map(|(order, _)| *order).collect();
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

    use super::super::events::FOREIGN_SLOT;
    use super::super::sequencer::tests::tracked_event;
    use super::super::sequencer::{GAP_TIMEOUT_MS, SequencedEvent, Sequencer};
    use super::*;

    const FOREVER: u64 = u64::MAX / 2;

    fn member_removed(seq: u64) -> TrackedEvent {
        tracked_event(seq, EventKind::MemberRemoved { user_id: "u".into() })
    }

    fn sequence_numbers(events: &[TrackedEvent]) -> Vec<u64> {
        events.iter().map(|event| event.record).collect()
    }

    #[test]
    fn an_absence_is_delivered_after_its_grace_period_and_after_reading_past_it() {
        let mut debounce = AbsenceDebouncer::default();
        let vacated = tracked_event(2, EventKind::ChannelVacated);
        assert_eq!(debounce.push(vacated.clone(), false, 2), DebounceVerdict::Held);
        assert!(debounce.release_due(3_001, |_| FOREVER).is_empty(), "too early");
        assert!(debounce.release_due(FOREVER, |_| 3_001).is_empty(), "not read so far");
        assert_eq!(debounce.release_due(3_002, |_| 3_002), [vacated]);
    }

    #[test]
    fn an_arrival_cancels_the_absence_and_neither_is_delivered() {
        let mut debounce = AbsenceDebouncer::default();
        debounce.push(member_removed(2), false, 2);
        let other = tracked_event(3, EventKind::MemberAdded { user_id: "v".into() });
        assert!(
            matches!(debounce.push(other, false, 3), DebounceVerdict::Pass(_)),
            "another user's arrival cancels nothing"
        );
        let back = tracked_event(4, EventKind::MemberAdded { user_id: "u".into() });
        let DebounceVerdict::Cancels { held, by } = debounce.push(back, false, 4) else { panic!("undone") };
        assert_eq!((sequence_numbers(&held), by.record), (vec![2], 4));
        assert!(debounce.release_due(FOREVER, |_| FOREVER).is_empty());
    }

    #[test]
    fn a_channel_is_vacated_after_its_members_left_and_a_drain_has_a_longer_grace() {
        let mut debounce = AbsenceDebouncer::default();
        let mut slow = member_removed(2);
        slow.event.cause = Some(LeaveCause::Drain);
        debounce.push(slow, false, 2);
        debounce.push(tracked_event(3, EventKind::ChannelVacated), false, 3);
        assert!(debounce.release_due(9_000, |_| FOREVER).is_empty());
        assert_eq!(sequence_numbers(&debounce.release_due(10_002, |_| FOREVER)), [2, 3]);
    }

    #[test]
    fn a_clock_that_runs_ahead_does_not_prolong_the_grace_period() {
        let mut debounce = AbsenceDebouncer::default();
        let mut vacated = tracked_event(2, EventKind::ChannelVacated);
        vacated.event.time_ms = 1_000_000;
        debounce.push(vacated, false, 10);
        assert_eq!(debounce.release_due(3_010, |_| FOREVER).len(), 1);
    }

    #[test]
    fn a_replayed_half_cancels_across_shards_within_the_grace_period_only() {
        let added = |slot: u64, time_ms: u64| {
            let mut event = tracked_event(5, EventKind::MemberAdded { user_id: "u".into() });
            (event.slot, event.event.time_ms) = (slot, time_ms);
            event
        };
        for (name, removed_replayed, added_replayed, arrival, cancelled) in [
            ("both are new", false, false, added(2, 1_000), true),
            ("both are new, and the arrival is later", false, false, added(2, 4_000), false),
            ("both are new in one shard that is read late", false, false, added(1, 4_000), true),
            ("both are replayed", true, true, added(1, 1_000), true),
            ("the absence was finished in the parent", true, false, added(2, 1_000), true),
            ("and delivered", true, false, added(2, 4_000), false),
            ("in one shard it was delivered", true, false, added(1, 1_000), false),
            ("the arrival was finished in the child", false, true, added(2, 1_000), true),
            ("in one shard the absence was being delivered", false, true, added(1, 1_000), false),
        ] {
            let mut debounce = AbsenceDebouncer::default();
            assert_eq!(debounce.push(member_removed(2), removed_replayed, 2), DebounceVerdict::Held);
            let verdict = debounce.push(arrival.clone(), added_replayed, 10);
            assert_eq!(matches!(verdict, DebounceVerdict::Cancels { .. }), cancelled, "{name}");
            let mut left = debounce.release_due(FOREVER, |_| FOREVER);
            if let DebounceVerdict::Follows { absences, event } = verdict {
                assert_eq!(event, arrival, "{name}");
                left.extend(absences);
            }
            assert_eq!(left.len(), usize::from(!cancelled && !removed_replayed), "{name}");
        }
    }

    #[test]
    fn a_replayed_absence_cancels_an_arrival_that_is_read_late_and_delays_nothing() {
        let mut debounce = AbsenceDebouncer::default();
        let mut replayed = member_removed(2);
        replayed.slot = FOREIGN_SLOT;
        debounce.push(replayed, true, 2);
        let vacated = tracked_event(3, EventKind::ChannelVacated);
        debounce.push(vacated.clone(), false, 3);
        let read_past = |slot| if slot == FOREIGN_SLOT { 0 } else { FOREVER };
        assert_eq!(debounce.release_due(FOREVER, read_past), [vacated]);
        let back = tracked_event(4, EventKind::MemberAdded { user_id: "u".into() });
        assert!(matches!(debounce.push(back.clone(), false, FOREVER), DebounceVerdict::Cancels { .. }));
        debounce.push(member_removed(5), true, 2);
        assert!(debounce.release_due(FOREVER, |_| FOREVER).is_empty());
        let again = tracked_event(6, EventKind::MemberAdded { user_id: "u".into() });
        assert_eq!(debounce.push(again.clone(), false, FOREVER), DebounceVerdict::Pass(again));
    }

    #[test]
    fn an_arrival_in_a_child_follows_the_absences_that_it_is_too_late_to_cancel() {
        let mut debounce = AbsenceDebouncer::default();
        let vacated = tracked_event(3, EventKind::ChannelVacated);
        debounce.push(member_removed(2), false, 2);
        debounce.push(vacated.clone(), false, 3);
        let occupied = |seq: u64, time_ms: u64| {
            let mut event = tracked_event(seq, EventKind::ChannelOccupied);
            (event.slot, event.event.time_ms) = (2, time_ms);
            event
        };
        let late = occupied(4, 4_000);
        let absences = vec![member_removed(2), vacated];
        assert_eq!(debounce.push(late.clone(), false, 5_000), DebounceVerdict::Follows { absences, event: late });
        debounce.push(member_removed(5), false, 5_000);
        let other = occupied(6, 9_000);
        assert_eq!(debounce.push(other.clone(), false, 9_000), DebounceVerdict::Pass(other), "of another subject");
        assert_eq!(sequence_numbers(&debounce.release_due(FOREVER, |_| FOREVER)), [5]);
    }

    #[test]
    fn an_absence_waits_for_its_own_shard_and_goes_with_it() {
        let mut debounce = AbsenceDebouncer::default();
        let mut other = tracked_event(3, EventKind::ChannelVacated);
        other.slot = 2;
        debounce.push(member_removed(2), false, 2);
        debounce.push(other, false, 3);
        let read_past = |slot: u64| if slot == 1 { FOREVER } else { 0 };
        assert_eq!(sequence_numbers(&debounce.release_due(FOREVER, read_past)), [2]);
        debounce.remove_slot(2);
        assert!(debounce.release_due(FOREVER, |_| FOREVER).is_empty());
    }

    /// Two users join and leave a channel: `choices` selects who changes next. Returns the history in the bus's order;
    /// the channel is occupied before a user joins and vacated only when it is empty.
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

    fn state(events: &[TrackedEvent]) -> BTreeMap<Option<String>, bool> {
        let arrivals = events.iter().map(|event| (event.subject_user_id().map(str::to_owned), event.is_arrival()));
        // A subject without any delivered event is absent, as one that left.
        arrivals.collect::<BTreeMap<_, _>>().into_iter().filter(|(_, there)| *there).collect()
    }

    proptest! {
        /// For any arrival order within the gap timeout, each subject's events are released by seq, each event is
        /// accounted for, and replaying them gives the final state.
        #[test]
        fn any_arrival_order_replays_to_the_final_state(
            choices in proptest::collection::vec(0u8..3, 1..30),
            delays in proptest::collection::vec(0u64..GAP_TIMEOUT_MS, 30),
            spacing in 1u64..2_000,
        ) {
            let events: Vec<TrackedEvent> = (1u64..).zip(history(&choices)).map(|(seq, kind)| {
                let mut event = tracked_event(seq, kind);
                event.event.time_ms = seq * spacing;
                event
            }).collect();
            let truth = state(&events);
            let mut arrivals: Vec<(u64, TrackedEvent)> =
                events.iter().zip(&delays).map(|(event, delay)| (event.event.time_ms + delay, event.clone())).collect();
            arrivals.sort_by_key(|(at, _)| *at);

            let (mut sequencer, mut debounce) = (Sequencer::default(), AbsenceDebouncer::default());
            let (mut posted, mut cancelled) = (Vec::new(), 0);
            let mut feed = |steps: Vec<SequencedEvent>, now: u64, posted: &mut Vec<TrackedEvent>| {
                for step in steps {
                    let SequencedEvent::Release(event) = step else { panic!("nothing is superseded within the gap time") };
                    match debounce.push(event, false, now) {
                        DebounceVerdict::Pass(event) => posted.push(event),
                        DebounceVerdict::Held => {}
                        DebounceVerdict::Cancels { held, .. } => cancelled += held.len() + 1,
                        DebounceVerdict::Follows { absences, event } => {
                            posted.extend(absences);
                            posted.push(event);
                        }
                    }
                }
                posted.extend(debounce.release_due(now, |_| now));
            };
            for (now, event) in arrivals {
                feed(sequencer.release_due(now), now, &mut posted);
                feed(sequencer.push(event, now), now, &mut posted);
            }
            feed(sequencer.release_due(FOREVER), FOREVER, &mut posted);

            prop_assert_eq!(posted.len() + cancelled, events.len());
            for subject in [None, Some("0"), Some("1")] {
                let of: Vec<u64> = posted.iter().filter(|e| e.subject_user_id() == subject).map(|e| e.record).collect();
                prop_assert!(of.is_sorted(), "{:?}: {:?}", subject, of);
            }
            prop_assert_eq!(state(&posted), truth);
        }
    }
}
