//! What this process has in the channels, and what of it the store has confirmed.
//!
//! A store that was away, or that comes back without its memory, is told from here. Pure: knows no connection and no
//! clock but the one that is passed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::super::{Subject, Transition};
use crate::protocol::SocketId;
use crate::protocol::frame::Member;
use crate::protocol::record::Order;

/// Channels whose order is remembered after this process has left them.
const REMEMBERED: usize = 50_000;

/// The channels in which this process has someone, or of which it has something to tell.
#[derive(Default)]
pub(super) struct Held {
    channels: HashMap<Subject, Channel>,
    /// The highest order seen of a channel, and when.
    known: HashMap<Subject, (Order, Instant)>,
    /// What the store was not told, or may not have heard.
    dirty: HashSet<Subject>,
    /// What changed while the store's memory was young, so that nothing was told of it yet.
    unsettled: HashSet<Subject>,
    /// Channels that may hold nothing any more.
    left: HashSet<Subject>,
}

#[derive(Default)]
struct Channel {
    sockets: HashMap<SocketId, Presence>,
    /// Who left, and the store has not confirmed it.
    gone: HashMap<SocketId, Presence>,
    /// Decided here and not yet safe in the stream.
    outbox: BTreeMap<Order, Transition>,
    /// Under which of its names the process has told that it has someone here.
    indexed: Option<u64>,
}

#[derive(Clone)]
struct Presence {
    member: Option<Member>,
    /// Whether it was told of, as far as there was anything to tell.
    told: bool,
}

/// What the store must hear of one channel.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Account {
    /// Whether the channel was told of as occupied.
    pub told: bool,
    /// Users that were told of.
    pub present: Vec<Member>,
    /// Who is here.
    pub come: Vec<(SocketId, Option<Member>)>,
    /// Who left meanwhile.
    pub go: Vec<SocketId>,
    /// What was decided and is not safe yet.
    pub outbox: Vec<Transition>,
}

impl Held {
    /// Someone enters. Returns whether the process must first tell under `name` that it has someone here.
    pub fn enter(&mut self, subject: &Subject, socket: &SocketId, member: Option<&Member>, name: u64) -> bool {
        let channel = self.channels.entry(subject.clone()).or_default();
        let told = channel.gone.remove(socket).is_some_and(|presence| presence.told);
        let fresh = Presence { member: member.cloned(), told };
        channel.sockets.entry(socket.clone()).or_insert(fresh);
        channel.indexed != Some(name)
    }

    /// The process has told so.
    pub fn indexed(&mut self, subject: &Subject, name: u64) {
        if let Some(channel) = self.channels.get_mut(subject) {
            channel.indexed = Some(name);
        }
    }

    /// The process has to do with a channel, though it has nobody there.
    pub fn touch(&mut self, subject: &Subject) {
        self.channels.entry(subject.clone()).or_default();
        self.left.insert(subject.clone());
    }

    /// Someone was refused, and is nowhere.
    pub fn refused(&mut self, subject: &Subject, socket: &SocketId) {
        if let Some(channel) = self.channels.get_mut(subject) {
            channel.sockets.remove(socket);
            self.left.insert(subject.clone());
        }
    }

    /// Someone leaves. Returns whether it was here.
    pub fn leave(&mut self, subject: &Subject, socket: &SocketId) -> bool {
        let Some(channel) = self.channels.get_mut(subject) else { return false };
        let Some(presence) = channel.sockets.remove(socket) else { return channel.gone.contains_key(socket) };
        channel.gone.insert(socket.clone(), presence);
        true
    }

    /// The store has heard of these sockets. `settling` is whether it told nothing yet.
    pub fn confirmed<'a>(
        &mut self,
        subject: &Subject,
        come: impl Iterator<Item = &'a SocketId>,
        go: impl Iterator<Item = &'a SocketId>,
        settling: bool,
    ) {
        let Some(channel) = self.channels.get_mut(subject) else { return };
        // A store that does not know how things stood may not know either what its leaving changed.
        if !self.dirty.contains(subject) {
            for socket in go {
                channel.gone.remove(socket);
            }
        }
        if settling {
            self.unsettled.insert(subject.clone());
        } else {
            for socket in come {
                if let Some(presence) = channel.sockets.get_mut(socket) {
                    presence.told = true;
                }
            }
        }
        if channel.is_empty() {
            self.left.insert(subject.clone());
        }
    }

    /// Notes what was decided: its order, and that it is not yet safe. Returns what was not known.
    pub fn decided(&mut self, subject: &Subject, transitions: &[Transition], now: Instant) -> Vec<Transition> {
        let Some(last) = transitions.iter().map(|transition| transition.order).max() else { return Vec::new() };
        self.remember(subject, last, now);
        let channel = self.channels.entry(subject.clone()).or_default();
        let fresh = |transition: &&Transition| channel.outbox.insert(transition.order, (*transition).clone()).is_none();
        transitions.iter().filter(fresh).cloned().collect()
    }

    /// These are safe in the stream, and the store has heard so.
    pub fn recorded(&mut self, subject: &Subject, orders: &[Order]) {
        let Some(channel) = self.channels.get_mut(subject) else { return };
        for order in orders {
            channel.outbox.remove(order);
        }
        if channel.is_empty() {
            self.left.insert(subject.clone());
        }
    }

    /// The highest order known of a channel.
    pub fn order(&self, subject: &Subject) -> Order {
        self.known.get(subject).map_or(Order { epoch: 0, seq: 0 }, |(order, _)| *order)
    }

    fn remember(&mut self, subject: &Subject, order: Order, now: Instant) {
        if self.known.len() >= REMEMBERED && !self.known.contains_key(subject) {
            // What was not touched for an hour has no counter any more either.
            let age = Duration::from_secs(super::TOMBSTONE_SECONDS);
            self.known.retain(|_, (_, at)| now.duration_since(*at) < age);
            if self.known.len() >= REMEMBERED {
                self.known.clear();
            }
        }
        let entry = self.known.entry(subject.clone()).or_insert((order, now));
        *entry = (entry.0.max(order), now);
    }

    /// The store may not know how things stand in this channel.
    pub fn doubt(&mut self, subject: &Subject) {
        self.dirty.insert(subject.clone());
    }

    /// The store may not know how things stand anywhere.
    pub fn doubt_all(&mut self) {
        self.dirty.extend(self.channels.keys().cloned());
    }

    /// Channels that the store must be told of.
    pub fn in_doubt(&self) -> Vec<Subject> {
        self.dirty.iter().cloned().collect()
    }

    /// Channels of which something may have to be told now that the store's memory has settled.
    pub fn take_unsettled(&mut self) -> Vec<Subject> {
        self.unsettled.drain().collect()
    }

    /// Channels that may hold nothing any more.
    pub fn take_left(&mut self) -> Vec<Subject> {
        self.left.drain().collect()
    }

    /// What the store must hear of a channel, which is no longer in doubt once it has.
    pub fn account(&mut self, subject: &Subject) -> Account {
        self.dirty.remove(subject);
        let Some(channel) = self.channels.get(subject) else { return Account::default() };
        let all = || channel.sockets.values().chain(channel.gone.values());
        let mut present: Vec<Member> =
            all().filter(|presence| presence.told).filter_map(|presence| presence.member.clone()).collect();
        present.sort_by(|one, other| one.user_id.cmp(&other.user_id));
        present.dedup_by(|one, other| one.user_id == other.user_id);
        Account {
            told: all().any(|presence| presence.told),
            present,
            come: channel.sockets.iter().map(|(socket, presence)| (socket.clone(), presence.member.clone())).collect(),
            go: channel.gone.keys().cloned().collect(),
            outbox: channel.outbox.values().cloned().collect(),
        }
    }

    /// Forgets a channel if it holds nothing. Returns whether it did and the process had told that it is here.
    pub fn forget(&mut self, subject: &Subject) -> bool {
        if !self.channels.get(subject).is_some_and(Channel::is_empty) {
            return false;
        }
        self.channels.remove(subject).is_some_and(|channel| channel.indexed.is_some())
    }

    /// Whether the process has nobody anywhere and nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.channels.values().all(Channel::is_empty)
    }
}

impl Channel {
    fn is_empty(&self) -> bool {
        self.sockets.is_empty() && self.gone.is_empty() && self.outbox.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ChannelName;
    use crate::protocol::record::EventKind;

    fn subject() -> Subject {
        Subject { app: "1".into(), channel: ChannelName::parse("presence-a").expect("a name") }
    }

    fn member(user: &str) -> Member {
        Member { user_id: user.into(), user_info: serde_json::Value::Null }
    }

    fn transition(seq: u64) -> Transition {
        let order = Order { epoch: 9, seq };
        Transition { id: seq.to_string(), kind: EventKind::ChannelOccupied, order, time_ms: 1, cause: None }
    }

    #[test]
    fn what_was_told_is_told_from_what_was_not() {
        let (mut held, room) = (Held::default(), subject());
        let (a, b, c) = (SocketId::from("1.1"), SocketId::from("2.2"), SocketId::from("3.3"));
        assert!(held.enter(&room, &a, Some(&member("a")), 0));
        held.indexed(&room, 0);
        assert!(!held.enter(&room, &b, Some(&member("b")), 0));
        assert!(held.enter(&room, &c, Some(&member("c")), 1), "another name of the process");
        held.confirmed(&room, [&a, &b].into_iter(), [].into_iter(), false);
        held.confirmed(&room, [&c].into_iter(), [].into_iter(), true);
        assert!(held.leave(&room, &b) && held.leave(&room, &b) && !held.leave(&room, &"9.9".into()));
        let account = held.account(&room);
        assert_eq!((account.told, account.present), (true, vec![member("a"), member("b")]));
        assert_eq!((account.come.len(), account.go), (2, vec![b.clone()]));
        assert_eq!(held.take_unsettled(), std::slice::from_ref(&room));
        held.confirmed(&room, [].into_iter(), [&b].into_iter(), false);
        assert_eq!(held.account(&room).present, [member("a")], "its leave was told");
    }

    #[test]
    fn a_channel_is_forgotten_once_all_of_it_is_safe() {
        let (mut held, room, a, now) = (Held::default(), subject(), SocketId::from("1.1"), Instant::now());
        held.enter(&room, &a, None, 0);
        held.indexed(&room, 0);
        let fresh = held.decided(&room, &[transition(1), transition(2)], now);
        assert_eq!(fresh.len(), 2);
        assert_eq!(held.decided(&room, &[transition(2)], now), [], "known");
        held.leave(&room, &a);
        held.confirmed(&room, [].into_iter(), [&a].into_iter(), false);
        assert!(held.take_left().is_empty() && !held.forget(&room), "two events are under way");
        held.recorded(&room, &[Order { epoch: 9, seq: 1 }, Order { epoch: 9, seq: 2 }]);
        assert_eq!(held.take_left(), std::slice::from_ref(&room));
        assert!(held.forget(&room) && !held.forget(&room));
        assert_eq!(held.order(&room), Order { epoch: 9, seq: 2 }, "its order outlives it");
        assert!(held.is_empty());
    }
}
