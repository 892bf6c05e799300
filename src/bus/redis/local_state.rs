//! What this process has in the channels, and what of it the store has confirmed.
//!
//! A store that was away, or that comes back without its memory, is told from here. Pure: knows no connection and no
//! clock but the one that is passed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::super::{ChannelKey, Transition};
use crate::protocol::SocketId;
use crate::protocol::frame::PresenceMember;
use crate::protocol::record::EventOrder;

/// Channels whose order is remembered after this process has left them.
const REMEMBERED_ORDERS_MAX: usize = 50_000;

/// The channels in which this process has someone, or of which it has something to tell.
#[derive(Default)]
pub(super) struct LocalState {
    channels: HashMap<ChannelKey, LocalChannel>,
    /// The highest order seen of a channel, and when.
    known_orders: HashMap<ChannelKey, (EventOrder, Instant)>,
    /// What the store was not told, or may not have heard.
    uncertain: HashSet<ChannelKey>,
    /// What changed while the store's memory was young, so that nothing was told of it yet.
    unsettled: HashSet<ChannelKey>,
    /// Channels that may hold nothing any more.
    maybe_empty: HashSet<ChannelKey>,
}

#[derive(Default)]
struct LocalChannel {
    sockets: HashMap<SocketId, LocalConnection>,
    /// Who left, and the store has not confirmed it.
    departed: HashMap<SocketId, LocalConnection>,
    /// Decided here and not yet safe in the stream.
    outbox: BTreeMap<EventOrder, Transition>,
    /// Under which of its names the process has told that it has someone here.
    indexed_generation: Option<u64>,
}

#[derive(Clone)]
struct LocalConnection {
    member: Option<PresenceMember>,
    /// Whether it was told of, as far as there was anything to tell.
    announced: bool,
}

/// What the store must hear of one channel.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ChannelReport {
    /// Whether the channel was told of as occupied.
    pub occupied_announced: bool,
    /// Users that were told of.
    pub announced_members: Vec<PresenceMember>,
    /// Who is here.
    pub connections: Vec<(SocketId, Option<PresenceMember>)>,
    /// Who left meanwhile.
    pub departed: Vec<SocketId>,
    /// What was decided and is not safe yet.
    pub outbox: Vec<Transition>,
}

impl LocalState {
    /// Someone enters. Returns whether the process must first tell under `name` that it has someone here.
    pub fn add_connection(
        &mut self,
        subject: &ChannelKey,
        socket: &SocketId,
        member: Option<&PresenceMember>,
        name: u64,
    ) -> bool {
        let channel = self.channels.entry(subject.clone()).or_default();
        let told = channel.departed.remove(socket).is_some_and(|presence| presence.announced);
        let fresh = LocalConnection { member: member.cloned(), announced: told };
        channel.sockets.entry(socket.clone()).or_insert(fresh);
        channel.indexed_generation != Some(name)
    }

    /// The process has told so.
    pub fn mark_indexed(&mut self, subject: &ChannelKey, name: u64) {
        if let Some(channel) = self.channels.get_mut(subject) {
            channel.indexed_generation = Some(name);
        }
    }

    /// The process has to do with a channel, though it has nobody there.
    pub fn track_channel(&mut self, subject: &ChannelKey) {
        self.channels.entry(subject.clone()).or_default();
        self.maybe_empty.insert(subject.clone());
    }

    /// Someone was refused, and is nowhere.
    pub fn remove_refused(&mut self, subject: &ChannelKey, socket: &SocketId) {
        if let Some(channel) = self.channels.get_mut(subject) {
            channel.sockets.remove(socket);
            self.maybe_empty.insert(subject.clone());
        }
    }

    /// Someone leaves. Returns whether it was here.
    pub fn remove_connection(&mut self, subject: &ChannelKey, socket: &SocketId) -> bool {
        let Some(channel) = self.channels.get_mut(subject) else { return false };
        let Some(presence) = channel.sockets.remove(socket) else { return channel.departed.contains_key(socket) };
        channel.departed.insert(socket.clone(), presence);
        true
    }

    /// The store has heard of these sockets. `settling` is whether it told nothing yet.
    pub fn confirm_connections<'a>(
        &mut self,
        subject: &ChannelKey,
        come: impl Iterator<Item = &'a SocketId>,
        go: impl Iterator<Item = &'a SocketId>,
        settling: bool,
    ) {
        let Some(channel) = self.channels.get_mut(subject) else { return };
        // A store that does not know how things stood may not know either what its leaving changed.
        if !self.uncertain.contains(subject) {
            for socket in go {
                channel.departed.remove(socket);
            }
        }
        if settling {
            self.unsettled.insert(subject.clone());
        } else {
            for socket in come {
                if let Some(presence) = channel.sockets.get_mut(socket) {
                    presence.announced = true;
                }
            }
        }
        if channel.is_empty() {
            self.maybe_empty.insert(subject.clone());
        }
    }

    /// Notes what was decided: its order, and that it is not yet safe. Returns what was not known.
    pub fn add_transitions(
        &mut self,
        subject: &ChannelKey,
        transitions: &[Transition],
        now: Instant,
    ) -> Vec<Transition> {
        let Some(last) = transitions.iter().map(|transition| transition.order).max() else { return Vec::new() };
        self.remember_order(subject, last, now);
        let channel = self.channels.entry(subject.clone()).or_default();
        let fresh = |transition: &&Transition| channel.outbox.insert(transition.order, (*transition).clone()).is_none();
        transitions.iter().filter(fresh).cloned().collect()
    }

    /// These are safe in the stream, and the store has heard so.
    pub fn mark_recorded(&mut self, subject: &ChannelKey, orders: &[EventOrder]) {
        let Some(channel) = self.channels.get_mut(subject) else { return };
        for order in orders {
            channel.outbox.remove(order);
        }
        if channel.is_empty() {
            self.maybe_empty.insert(subject.clone());
        }
    }

    /// The highest order known of a channel.
    pub fn known_order(&self, subject: &ChannelKey) -> EventOrder {
        self.known_orders.get(subject).map_or(EventOrder { epoch: 0, seq: 0 }, |(order, _)| *order)
    }

    fn remember_order(&mut self, subject: &ChannelKey, order: EventOrder, now: Instant) {
        if self.known_orders.len() >= REMEMBERED_ORDERS_MAX && !self.known_orders.contains_key(subject) {
            // What was not touched for an hour has no counter any more either.
            let age = Duration::from_secs(super::timing::TOMBSTONE_TTL_SECONDS);
            self.known_orders.retain(|_, (_, at)| now.duration_since(*at) < age);
            if self.known_orders.len() >= REMEMBERED_ORDERS_MAX {
                self.known_orders.clear();
            }
        }
        let entry = self.known_orders.entry(subject.clone()).or_insert((order, now));
        *entry = (entry.0.max(order), now);
    }

    /// The store may not know how things stand in this channel.
    pub fn mark_uncertain(&mut self, subject: &ChannelKey) {
        self.uncertain.insert(subject.clone());
    }

    /// The store may not know how things stand anywhere.
    pub fn mark_all_uncertain(&mut self) {
        self.uncertain.extend(self.channels.keys().cloned());
    }

    /// Channels that the store must be told of.
    pub fn uncertain_channels(&self) -> Vec<ChannelKey> {
        self.uncertain.iter().cloned().collect()
    }

    /// Channels of which something may have to be told now that the store's memory has settled.
    pub fn take_unsettled(&mut self) -> Vec<ChannelKey> {
        self.unsettled.drain().collect()
    }

    /// Channels that may hold nothing any more.
    pub fn take_maybe_empty(&mut self) -> Vec<ChannelKey> {
        self.maybe_empty.drain().collect()
    }

    /// What the store must hear of a channel, which is no longer in doubt once it has.
    pub fn channel_report(&mut self, subject: &ChannelKey) -> ChannelReport {
        self.uncertain.remove(subject);
        let Some(channel) = self.channels.get(subject) else { return ChannelReport::default() };
        let all = || channel.sockets.values().chain(channel.departed.values());
        let mut present: Vec<PresenceMember> =
            all().filter(|presence| presence.announced).filter_map(|presence| presence.member.clone()).collect();
        present.sort_by(|one, other| one.user_id.cmp(&other.user_id));
        present.dedup_by(|one, other| one.user_id == other.user_id);
        ChannelReport {
            occupied_announced: all().any(|presence| presence.announced),
            announced_members: present,
            connections: channel
                .sockets
                .iter()
                .map(|(socket, presence)| (socket.clone(), presence.member.clone()))
                .collect(),
            departed: channel.departed.keys().cloned().collect(),
            outbox: channel.outbox.values().cloned().collect(),
        }
    }

    /// Forgets a channel if it holds nothing. Returns whether it did and the process had told that it is here.
    pub fn remove_if_empty(&mut self, subject: &ChannelKey) -> bool {
        if !self.channels.get(subject).is_some_and(LocalChannel::is_empty) {
            return false;
        }
        self.channels.remove(subject).is_some_and(|channel| channel.indexed_generation.is_some())
    }

    /// Whether the process has nobody anywhere and nothing to tell.
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
    fn what_was_told_is_told_from_what_was_not() {
        let (mut held, room) = (LocalState::default(), channel_key());
        let (a, b, c) = (SocketId::from("1.1"), SocketId::from("2.2"), SocketId::from("3.3"));
        assert!(held.add_connection(&room, &a, Some(&member("a")), 0));
        held.mark_indexed(&room, 0);
        assert!(!held.add_connection(&room, &b, Some(&member("b")), 0));
        assert!(held.add_connection(&room, &c, Some(&member("c")), 1), "another name of the process");
        held.confirm_connections(&room, [&a, &b].into_iter(), [].into_iter(), false);
        held.confirm_connections(&room, [&c].into_iter(), [].into_iter(), true);
        assert!(
            held.remove_connection(&room, &b)
                && held.remove_connection(&room, &b)
                && !held.remove_connection(&room, &"9.9".into())
        );
        let account = held.channel_report(&room);
        assert_eq!((account.occupied_announced, account.announced_members), (true, vec![member("a"), member("b")]));
        assert_eq!((account.connections.len(), account.departed), (2, vec![b.clone()]));
        assert_eq!(held.take_unsettled(), std::slice::from_ref(&room));
        held.confirm_connections(&room, [].into_iter(), [&b].into_iter(), false);
        assert_eq!(held.channel_report(&room).announced_members, [member("a")], "its leave was told");
    }

    #[test]
    fn a_channel_is_forgotten_once_all_of_it_is_safe() {
        let (mut held, room, a, now) = (LocalState::default(), channel_key(), SocketId::from("1.1"), Instant::now());
        held.add_connection(&room, &a, None, 0);
        held.mark_indexed(&room, 0);
        let fresh = held.add_transitions(&room, &[transition(1), transition(2)], now);
        assert_eq!(fresh.len(), 2);
        assert_eq!(held.add_transitions(&room, &[transition(2)], now), [], "known");
        held.remove_connection(&room, &a);
        held.confirm_connections(&room, [].into_iter(), [&a].into_iter(), false);
        assert!(held.take_maybe_empty().is_empty() && !held.remove_if_empty(&room), "two events are under way");
        held.mark_recorded(&room, &[EventOrder { epoch: 9, seq: 1 }, EventOrder { epoch: 9, seq: 2 }]);
        assert_eq!(held.take_maybe_empty(), std::slice::from_ref(&room));
        assert!(held.remove_if_empty(&room) && !held.remove_if_empty(&room));
        assert_eq!(held.known_order(&room), EventOrder { epoch: 9, seq: 2 }, "its order outlives it");
        assert!(held.is_empty());
    }
}
