//! This process's connections and events in each channel, and how far the store has confirmed them.
//!
//! After the store was unavailable or lost its data, reports are made from this state. Pure: it must not know the store's
//! client, and the caller passes the time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::super::{ChannelKey, Transition};
use crate::protocol::frame::PresenceMember;
use crate::protocol::record::EventOrder;
use crate::protocol::{AppId, ChannelKind, SocketId};

/// Bounds the channels whose order is remembered after this process has left them.
const REMEMBERED_ORDERS_MAX: usize = 50_000;

/// Back-off after the first failure of a channel's report or sweep; it doubles with each.
const CHANNEL_FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// Longest back-off of one channel.
const CHANNEL_BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Channels in which this process has connections or unacknowledged events.
#[derive(Default)]
pub(super) struct LocalState {
    channels: HashMap<ChannelKey, LocalChannel>,
    /// The highest order seen of each channel, and when it was last seen.
    known_orders: HashMap<ChannelKey, (EventOrder, Instant)>,
    /// Channels whose state the store may not have, or not have in full.
    uncertain: HashSet<ChannelKey>,
    /// Channels whose report or sweep failed: the number of failures in a row, and when the next attempt is due.
    failures: HashMap<ChannelKey, (u32, Instant)>,
    /// Channels that changed while settling, so that their transitions are deferred.
    unsettled: HashSet<ChannelKey>,
    /// Channels to check for removal.
    maybe_empty: HashSet<ChannelKey>,
    /// Number of events in the outboxes of all channels.
    outbox_len: usize,
}

#[derive(Default)]
struct LocalChannel {
    sockets: HashMap<SocketId, LocalConnection>,
    /// Connections whose leave the store has not confirmed.
    departed: HashMap<SocketId, LocalConnection>,
    /// Events whose receipts are not acknowledged.
    outbox: BTreeMap<EventOrder, KeptTransition>,
    /// Generation of the name under which the process's index has the channel.
    indexed_generation: Option<u64>,
}

#[derive(Clone)]
struct LocalConnection {
    member: Option<PresenceMember>,
    /// Whether the store has decided on the join, and so published its transitions if there were any.
    announced: bool,
}

struct KeptTransition {
    transition: Transition,
    /// Whether a receipt is outstanding; without one the transition is emitted again.
    is_emitted: bool,
}

/// The process's state of one channel, for the store.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ChannelReport {
    /// Whether the channel was published as occupied.
    pub occupied_announced: bool,
    /// Members that were published as added.
    pub announced_members: Vec<PresenceMember>,
    /// Connections of this process in the channel.
    pub connections: Vec<(SocketId, Option<PresenceMember>)>,
    /// Connections whose leave is not confirmed.
    pub departed: Vec<SocketId>,
    /// Events that are not yet acknowledged.
    pub outbox: Vec<Transition>,
}

impl LocalState {
    /// Adds a connection; one that left unconfirmed is taken back.
    pub fn add_connection(&mut self, subject: &ChannelKey, socket: &SocketId, member: Option<&PresenceMember>) {
        let channel = self.channels.entry(subject.clone()).or_default();
        let announced = channel.departed.remove(socket).is_some_and(|presence| presence.announced);
        let connection = LocalConnection { member: member.cloned(), announced };
        channel.sockets.entry(socket.clone()).or_insert(connection);
    }

    /// Returns whether the process's index of this generation has the channel.
    pub fn is_indexed(&self, subject: &ChannelKey, generation: u64) -> bool {
        self.channels.get(subject).is_some_and(|channel| channel.indexed_generation == Some(generation))
    }

    /// Notes that the process's index of this generation has the channel.
    pub fn mark_indexed(&mut self, subject: &ChannelKey, generation: u64) {
        if let Some(channel) = self.channels.get_mut(subject) {
            channel.indexed_generation = Some(generation);
        }
    }

    /// Tracks a channel in which the process has no connection, for its events.
    pub fn track_channel(&mut self, subject: &ChannelKey) {
        self.channels.entry(subject.clone()).or_default();
        self.maybe_empty.insert(subject.clone());
    }

    /// Removes a connection whose join was refused.
    pub fn remove_refused(&mut self, subject: &ChannelKey, socket: &SocketId) {
        if let Some(channel) = self.channels.get_mut(subject) {
            channel.sockets.remove(socket);
            self.maybe_empty.insert(subject.clone());
        }
    }

    /// Removes a connection that leaves. Returns whether it was in the channel, or its leave is not confirmed.
    pub fn remove_connection(&mut self, subject: &ChannelKey, socket: &SocketId) -> bool {
        let Some(channel) = self.channels.get_mut(subject) else { return false };
        let Some(presence) = channel.sockets.remove(socket) else { return channel.departed.contains_key(socket) };
        channel.departed.insert(socket.clone(), presence);
        true
    }

    /// Notes that the store has these joins and leaves. `settling` is whether it deferred their transitions.
    pub fn confirm_connections<'a>(
        &mut self,
        subject: &ChannelKey,
        joined: impl Iterator<Item = &'a SocketId>,
        left: impl Iterator<Item = &'a SocketId>,
        settling: bool,
    ) {
        let Some(channel) = self.channels.get_mut(subject) else { return };
        // If the store may lack the join, it may not have published the leave either: the report must repeat it.
        if !self.uncertain.contains(subject) {
            for socket in left {
                channel.departed.remove(socket);
            }
        }
        if settling {
            self.unsettled.insert(subject.clone());
        } else {
            for socket in joined {
                if let Some(presence) = channel.sockets.get_mut(socket) {
                    presence.announced = true;
                }
            }
        }
        if channel.is_empty() {
            self.maybe_empty.insert(subject.clone());
        }
    }

    /// Adds transitions to the outbox, and remembers their order. Returns those without an outstanding receipt. Transitions
    /// of internal channels are never recorded, so no outbox keeps them.
    pub fn add_transitions(
        &mut self,
        subject: &ChannelKey,
        transitions: &[Transition],
        now: Instant,
    ) -> Vec<Transition> {
        let Some(last) = transitions.iter().map(|transition| transition.order).max() else { return Vec::new() };
        self.remember_order(subject, last, now);
        if subject.channel.kind() == ChannelKind::Internal {
            return transitions.to_vec();
        }
        let channel = self.channels.entry(subject.clone()).or_default();
        let before = channel.outbox.len();
        let is_new = |transition: &&Transition| {
            let kept = KeptTransition { transition: (*transition).clone(), is_emitted: true };
            channel.outbox.insert(transition.order, kept).is_none_or(|kept| !kept.is_emitted)
        };
        let new = transitions.iter().filter(is_new).cloned().collect();
        self.outbox_len += channel.outbox.len() - before;
        new
    }

    /// Removes an event from the outbox: its receipt is acknowledged, here and in the store.
    pub fn mark_recorded(&mut self, subject: &ChannelKey, order: EventOrder) {
        let Some(channel) = self.channels.get_mut(subject) else { return };
        self.outbox_len -= usize::from(channel.outbox.remove(&order).is_some());
        if channel.is_empty() {
            self.maybe_empty.insert(subject.clone());
        }
    }

    /// Marks an event whose receipt was dropped, and its channel for a report, which emits the event again.
    pub fn mark_returned(&mut self, subject: &ChannelKey, order: EventOrder) {
        if let Some(kept) = self.channels.get_mut(subject).and_then(|channel| channel.outbox.get_mut(&order)) {
            kept.is_emitted = false;
            self.mark_uncertain(subject);
        }
    }

    /// Returns the events of a channel that have no receipt. The store may lack some: it keeps a bounded number per channel.
    pub fn returned_transitions(&self, subject: &ChannelKey) -> Vec<Transition> {
        let Some(channel) = self.channels.get(subject) else { return Vec::new() };
        let returned = channel.outbox.values().filter(|kept| !kept.is_emitted);
        returned.map(|kept| kept.transition.clone()).collect()
    }

    /// Number of events whose receipts are not acknowledged here and in the store.
    pub fn outbox_len(&self) -> usize {
        self.outbox_len
    }

    /// Returns the highest order known of a channel.
    pub fn known_order(&self, subject: &ChannelKey) -> EventOrder {
        self.known_orders.get(subject).map_or(EventOrder { epoch: 0, seq: 0 }, |(order, _)| *order)
    }

    fn remember_order(&mut self, subject: &ChannelKey, order: EventOrder, now: Instant) {
        if self.known_orders.len() >= REMEMBERED_ORDERS_MAX && !self.known_orders.contains_key(subject) {
            // The counter of a channel that was not seen for an hour has expired in the store too.
            let age = super::super::TOMBSTONE_MAX_TTL;
            self.known_orders.retain(|_, (_, at)| now.duration_since(*at) < age);
            if self.known_orders.len() >= REMEMBERED_ORDERS_MAX {
                self.known_orders.clear();
            }
        }
        let entry = self.known_orders.entry(subject.clone()).or_insert((order, now));
        *entry = (entry.0.max(order), now);
    }

    /// Marks a channel for a report: the store may not have its state.
    pub fn mark_uncertain(&mut self, subject: &ChannelKey) {
        self.uncertain.insert(subject.clone());
    }

    /// Marks every channel for a report.
    pub fn mark_all_uncertain(&mut self) {
        self.uncertain.extend(self.channels.keys().cloned());
    }

    /// Marks a channel whose report or sweep failed for another report, after a back-off of its own.
    pub fn mark_failed(&mut self, subject: &ChannelKey, now: Instant) {
        self.mark_uncertain(subject);
        let (count, due) = self.failures.entry(subject.clone()).or_insert((0, now));
        let delay = CHANNEL_FIRST_BACKOFF.saturating_mul(1 << (*count).min(16)).min(CHANNEL_BACKOFF_MAX);
        (*count, *due) = (*count + 1, now + delay);
    }

    /// Ends a channel's back-off.
    pub fn clear_failures(&mut self, subject: &ChannelKey) {
        self.failures.remove(subject);
    }

    /// Ends all back-offs: the store answers again.
    pub fn clear_all_failures(&mut self) {
        self.failures.clear();
    }

    /// Returns the channels whose report is due.
    pub fn uncertain_channels(&self, now: Instant) -> Vec<ChannelKey> {
        let is_due = |subject: &&ChannelKey| self.failures.get(*subject).is_none_or(|(_, due)| *due <= now);
        self.uncertain.iter().filter(is_due).cloned().collect()
    }

    /// Takes the channels whose transitions settling deferred.
    pub fn take_unsettled(&mut self) -> Vec<ChannelKey> {
        self.unsettled.drain().collect()
    }

    /// Takes the channels to check for removal.
    pub fn take_maybe_empty(&mut self) -> Vec<ChannelKey> {
        self.maybe_empty.drain().collect()
    }

    /// Returns the report of a channel, which then counts as certain.
    pub fn channel_report(&mut self, subject: &ChannelKey) -> ChannelReport {
        self.uncertain.remove(subject);
        let Some(channel) = self.channels.get(subject) else { return ChannelReport::default() };
        let all = || channel.sockets.values().chain(channel.departed.values());
        let mut members: Vec<PresenceMember> =
            all().filter(|presence| presence.announced).filter_map(|presence| presence.member.clone()).collect();
        members.sort_by(|one, other| one.user_id.cmp(&other.user_id));
        members.dedup_by(|one, other| one.user_id == other.user_id);
        ChannelReport {
            occupied_announced: all().any(|presence| presence.announced),
            announced_members: members,
            connections: channel
                .sockets
                .iter()
                .map(|(socket, presence)| (socket.clone(), presence.member.clone()))
                .collect(),
            departed: channel.departed.keys().cloned().collect(),
            outbox: channel.outbox.values().map(|kept| kept.transition.clone()).collect(),
        }
    }

    /// Removes a channel without connections and events. Returns whether it was removed and is in the process's index.
    pub fn remove_if_empty(&mut self, subject: &ChannelKey) -> bool {
        if !self.channels.get(subject).is_some_and(LocalChannel::is_empty) {
            return false;
        }
        self.channels.remove(subject).is_some_and(|channel| channel.indexed_generation.is_some())
    }

    /// The apps whose channels are listed from the process's indexes.
    pub fn listed_apps(&self) -> Vec<AppId> {
        let listed = self.channels.keys().filter(|subject| subject.channel.kind() != ChannelKind::Internal);
        let apps: BTreeSet<&AppId> = listed.map(|subject| &subject.app).collect();
        apps.into_iter().cloned().collect()
    }

    /// Whether the process has neither connections nor unacknowledged events.
    pub fn is_empty(&self) -> bool {
        self.channels.values().all(LocalChannel::is_empty)
    }
}

impl LocalChannel {
    fn is_empty(&self) -> bool {
        self.sockets.is_empty() && self.departed.is_empty() && self.outbox.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ChannelName;
    use crate::protocol::record::EventKind;

    fn channel_key() -> ChannelKey {
        ChannelKey { app: "1".into(), channel: ChannelName::parse("presence-a").expect("a name") }
    }

    fn member(user: &str) -> PresenceMember {
        PresenceMember { user_id: user.into(), user_info: serde_json::Value::Null }
    }

    fn transition(seq: u64) -> Transition {
        let order = EventOrder { epoch: 9, seq };
        Transition { id: seq.to_string(), kind: EventKind::ChannelOccupied, order, time_ms: 1, cause: None }
    }

    #[test]
    fn a_report_keeps_announced_members_apart_from_the_others() {
        let (mut state, room) = (LocalState::default(), channel_key());
        let (a, b, c) = (SocketId::from("1.1"), SocketId::from("2.2"), SocketId::from("3.3"));
        state.add_connection(&room, &a, Some(&member("a")));
        assert!(!state.is_indexed(&room, 0));
        state.mark_indexed(&room, 0);
        state.add_connection(&room, &b, Some(&member("b")));
        assert!(state.is_indexed(&room, 0));
        state.add_connection(&room, &c, Some(&member("c")));
        assert!(!state.is_indexed(&room, 1), "another name of the process");
        state.confirm_connections(&room, [&a, &b].into_iter(), [].into_iter(), false);
        state.confirm_connections(&room, [&c].into_iter(), [].into_iter(), true);
        assert!(
            state.remove_connection(&room, &b)
                && state.remove_connection(&room, &b)
                && !state.remove_connection(&room, &"9.9".into())
        );
        let report = state.channel_report(&room);
        assert_eq!((report.occupied_announced, report.announced_members), (true, vec![member("a"), member("b")]));
        assert_eq!((report.connections.len(), report.departed), (2, vec![b.clone()]));
        assert_eq!(state.take_unsettled(), std::slice::from_ref(&room));
        state.confirm_connections(&room, [].into_iter(), [&b].into_iter(), false);
        assert_eq!(state.channel_report(&room).announced_members, [member("a")], "its leave was published");
    }

    #[test]
    fn a_channel_that_fails_waits_longer_each_time_and_no_other_waits() {
        let (mut state, start) = (LocalState::default(), Instant::now());
        let (failing, other) = (channel_key(), ChannelKey { app: "2".into(), ..channel_key() });
        let due = |state: &LocalState, ms| {
            let mut due = state.uncertain_channels(start + Duration::from_millis(ms));
            due.sort();
            due
        };
        state.mark_failed(&failing, start);
        state.mark_uncertain(&other);
        assert_eq!(due(&state, 199), std::slice::from_ref(&other));
        assert_eq!(due(&state, 200), [failing.clone(), other.clone()]);
        state.mark_failed(&failing, start);
        assert_eq!((due(&state, 399).len(), due(&state, 400).len()), (1, 2));
        for _ in 0..100 {
            state.mark_failed(&failing, start);
        }
        assert_eq!((due(&state, 9_999).len(), due(&state, 10_000).len()), (1, 2));
        state.clear_failures(&failing);
        assert_eq!(due(&state, 0).len(), 2);
    }

    #[test]
    fn a_channel_is_removed_once_all_its_events_are_recorded() {
        let (mut state, room, a, now) = (LocalState::default(), channel_key(), SocketId::from("1.1"), Instant::now());
        state.add_connection(&room, &a, None);
        state.mark_indexed(&room, 0);
        let added = state.add_transitions(&room, &[transition(1), transition(2)], now);
        assert_eq!(added.len(), 2);
        assert_eq!(state.add_transitions(&room, &[transition(2)], now), [], "known");
        state.remove_connection(&room, &a);
        state.confirm_connections(&room, [].into_iter(), [&a].into_iter(), false);
        assert!(
            state.take_maybe_empty().is_empty() && !state.remove_if_empty(&room),
            "two events are not acknowledged"
        );
        state.mark_recorded(&room, EventOrder { epoch: 9, seq: 1 });
        assert_eq!((state.outbox_len(), state.take_maybe_empty()), (1, vec![]));
        state.mark_recorded(&room, EventOrder { epoch: 9, seq: 2 });
        assert_eq!(state.take_maybe_empty(), std::slice::from_ref(&room));
        assert!(state.remove_if_empty(&room) && !state.remove_if_empty(&room));
        assert_eq!(state.known_order(&room), EventOrder { epoch: 9, seq: 2 }, "its order outlives it");
        assert!(state.is_empty());
    }

    #[test]
    fn a_returned_event_is_emitted_once_more_and_stays_until_it_is_acknowledged() {
        let (mut state, room, now) = (LocalState::default(), channel_key(), Instant::now());
        assert_eq!(state.add_transitions(&room, &[transition(1), transition(2)], now).len(), 2);
        assert_eq!(state.returned_transitions(&room), []);
        let order = EventOrder { epoch: 9, seq: 2 };
        state.mark_returned(&room, order);
        assert_eq!(state.uncertain_channels(Instant::now()), std::slice::from_ref(&room));
        assert_eq!(state.channel_report(&room).outbox.len(), 2, "the store gets it again if it lost it");
        assert_eq!(state.returned_transitions(&room), [transition(2)]);
        let both = [transition(1), transition(2)];
        assert_eq!(state.add_transitions(&room, &both, now), [transition(2)], "the other has its receipt");
        assert_eq!((state.returned_transitions(&room), state.outbox_len()), (vec![], 2));
        for seq in [1, 2, 2] {
            state.mark_recorded(&room, EventOrder { epoch: 9, seq });
        }
        state.mark_returned(&room, order);
        assert!(state.outbox_len() == 0 && state.is_empty() && state.returned_transitions(&room).is_empty());
    }

    #[test]
    fn transitions_of_the_servers_own_channels_leave_nothing_behind() {
        let (mut state, now, socket) = (LocalState::default(), Instant::now(), SocketId::from("1.1"));
        for channel in [ChannelName::signed_in("7").expect("a name"), ChannelName::all_connections()] {
            let own = ChannelKey { app: "1".into(), channel };
            state.add_connection(&own, &socket, None);
            assert_eq!(state.add_transitions(&own, &[transition(1)], now), [transition(1)], "its caller sees it");
            state.remove_connection(&own, &socket);
            state.confirm_connections(&own, [].into_iter(), [&socket].into_iter(), false);
            assert_eq!(state.add_transitions(&own, &[transition(2)], now), [transition(2)]);
            assert!(state.is_empty() && state.outbox_len() == 0, "{own:?}");
            assert!(state.take_maybe_empty().contains(&own));
        }
    }
}
