//! The local subscribers of each channel.
//!
//! In: subscribers, and serialised frames. Out: the frames, in the subscribers' queues. A subscriber without its answer
//! yet has its frames held back: it must see the answer first, and must not miss
//! frames in between.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::bus::{BroadcastFrame, ChannelKey};
use crate::edge::close_reason::CloseReason;
use crate::edge::session::{QUEUED_FRAMES_MAX, Session};
use crate::process::locks::lock_unpoisoned;
use crate::protocol::frame::code;
use crate::protocol::record::EventOrder;
use crate::protocol::{AppId, ChannelKind, SocketId};

/// Number of independently locked tables.
const SHARD_COUNT: usize = 16;

/// Frames held back for one subscriber without its answer: as many as may wait for a client in any case. The session of
/// more is closed, since the bus is too slow for the channel.
pub const HELD_FRAMES_MAX: usize = QUEUED_FRAMES_MAX;

/// The message for clients whose user's connections the app's backend terminated.
pub const TERMINATED_MESSAGE: &str = "the app's backend ended the connections of this user";

type SubscriberShard = HashMap<ChannelKey, SharedChannel>;

/// A channel with a lock of its own: the fan-out of a large channel delays no other.
type SharedChannel = Arc<Mutex<LocalChannel>>;

/// The local subscribers of one channel.
#[derive(Default)]
struct LocalChannel {
    subscribers: HashMap<SocketId, Subscriber>,
    /// Order of the membership change that was reported last.
    reported_order: Option<EventOrder>,
    /// Callers that wait until a membership change is reported.
    report_waiters: Vec<(EventOrder, oneshot::Sender<()>)>,
    /// Whether the last subscriber has left, so that the next one needs a new entry.
    is_removed: bool,
}

/// The local subscribers by channel, in shards.
pub struct ChannelSubscribers {
    shards: Vec<Mutex<SubscriberShard>>,
    /// Number of channels of each app, without those of the server's own.
    app_channels: Mutex<HashMap<AppId, usize>>,
    hasher: RandomState,
}

struct Subscriber {
    session: Arc<Session>,
    /// Frames held back until the answer to the subscription, each with the order of the change that it reports; `None`
    /// once the answer was sent.
    held_frames: Option<Vec<(Bytes, Option<EventOrder>)>>,
    /// Order up to which the client's roster has the membership changes.
    roster_order: Option<EventOrder>,
}

/// The answer to a subscription.
#[derive(Default)]
pub struct SubscriptionAnswer {
    /// The frame that confirms the subscription.
    pub frame: Option<Bytes>,
    /// The channel's last event.
    pub last_event: Option<Bytes>,
    /// Order up to which the roster in the frame has the membership changes.
    pub roster_order: Option<EventOrder>,
}

impl ChannelSubscribers {
    /// An empty table of subscribers.
    pub fn new() -> Self {
        let shards = (0..SHARD_COUNT).map(|_| Mutex::default()).collect();
        Self { shards, app_channels: Mutex::default(), hasher: RandomState::new() }
    }

    /// Adds a session that waits for its answer: frames are held back from now on.
    pub fn begin_join(&self, subject: &ChannelKey, session: &Arc<Session>) {
        let subscriber = Subscriber { session: session.clone(), held_frames: Some(Vec::new()), roster_order: None };
        loop {
            let channel = self.find_or_insert(subject);
            let mut there = lock_unpoisoned(&channel);
            if !there.is_removed {
                there.subscribers.insert(session.socket.clone(), subscriber);
                return;
            }
            drop(there);
            self.remove_channel(subject, &channel);
        }
    }

    fn find_or_insert(&self, subject: &ChannelKey) -> SharedChannel {
        let mut part = self.lock_shard(subject);
        let channel = part.entry(subject.clone()).or_insert_with(|| {
            if subject.channel.kind() != ChannelKind::Internal {
                *lock_unpoisoned(&self.app_channels).entry(subject.app.clone()).or_default() += 1;
            }
            SharedChannel::default()
        });
        channel.clone()
    }

    fn find(&self, subject: &ChannelKey) -> Option<SharedChannel> {
        self.lock_shard(subject).get(subject).cloned()
    }

    /// Whether the channel has subscribers here, or its app may have one more channel.
    pub fn has_room(&self, subject: &ChannelKey, channels_max: Option<u32>) -> bool {
        let Some(most) = channels_max else { return true };
        let is_known = self.lock_shard(subject).contains_key(subject);
        let count = lock_unpoisoned(&self.app_channels).get(&subject.app).copied().unwrap_or_default();
        is_known || u32::try_from(count).unwrap_or(u32::MAX) < most
    }

    /// It was admitted: it gets the answer, the channel's last event, what was held back, and from now on everything.
    /// An event that was stored while it arrived is delivered once.
    pub fn complete_join(&self, subject: &ChannelKey, socket: &SocketId, answer: SubscriptionAnswer) {
        let Some(channel) = self.find(subject) else { return };
        let mut there = lock_unpoisoned(&channel);
        let Some(subscriber) = there.subscribers.get_mut(socket) else { return };
        let SubscriptionAnswer { frame, last_event, roster_order } = answer;
        subscriber.roster_order = roster_order;
        let held = subscriber.held_frames.take().unwrap_or_default();
        let held = held.into_iter().filter(|(_, order)| !is_covered(*order, roster_order)).map(|(frame, _)| frame);
        let held: Vec<Bytes> = held.collect();
        let last = last_event.filter(|last| !held.contains(last));
        for frame in frame.into_iter().chain(last).chain(held) {
            subscriber.session.push(frame);
        }
    }

    /// Waits until a membership change is reported to the channel's subscribers; at once when the channel has none.
    pub async fn wait_reported(&self, subject: &ChannelKey, order: EventOrder) {
        let reported = {
            let Some(channel) = self.find(subject) else { return };
            let mut there = lock_unpoisoned(&channel);
            if there.is_removed || is_covered(Some(order), there.reported_order) {
                return;
            }
            let (sender, reported) = oneshot::channel();
            there.report_waiters.push((order, sender));
            reported
        };
        // Fails when the channel loses its last subscriber.
        let _ = reported.await;
    }

    /// Removes a session from a channel.
    pub fn remove(&self, subject: &ChannelKey, socket: &SocketId) {
        let Some(channel) = self.find(subject) else { return };
        {
            let mut there = lock_unpoisoned(&channel);
            there.subscribers.remove(socket);
            if !there.subscribers.is_empty() {
                return;
            }
            there.is_removed = true;
            there.report_waiters.clear();
        }
        self.remove_channel(subject, &channel);
    }

    /// Removes the entry of a channel whose last subscriber has left, unless it is another entry by now.
    fn remove_channel(&self, subject: &ChannelKey, channel: &SharedChannel) {
        {
            let mut part = self.lock_shard(subject);
            if !part.get(subject).is_some_and(|there| Arc::ptr_eq(there, channel)) {
                return;
            }
            part.remove(subject);
        }
        if subject.channel.kind() == ChannelKind::Internal {
            return;
        }
        let mut counts = lock_unpoisoned(&self.app_channels);
        if let Entry::Occupied(mut count) = counts.entry(subject.app.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// Delivers a frame to all subscribers but the excepted one; closes them if the message says so.
    pub fn deliver(&self, message: &BroadcastFrame) {
        let Some(channel) = self.find(&message.subject) else { return };
        let mut channel = lock_unpoisoned(&channel);
        let there = &mut *channel;
        for (socket, subscriber) in &mut there.subscribers {
            if message.except.as_ref() == Some(socket) || is_covered(message.order, subscriber.roster_order) {
                continue;
            }
            if message.ends {
                if message.issued_at.is_some_and(|issued_at| issued_at < subscriber.session.opened_at) {
                    continue;
                }
                subscriber.session.push(message.frame.clone());
                subscriber.session.close(CloseReason::new(code::UNAUTHORIZED, TERMINATED_MESSAGE));
                continue;
            }
            match &mut subscriber.held_frames {
                None => subscriber.session.push(message.frame.clone()),
                Some(held) if held.len() < HELD_FRAMES_MAX => held.push((message.frame.clone(), message.order)),
                Some(_) => subscriber.session.close_for_slow_bus(),
            }
        }
        if message.order.is_some() {
            there.reported_order = message.order;
            for (_, waiter) in there.report_waiters.extract_if(.., |(order, _)| is_covered(Some(*order), message.order))
            {
                // Fails when the caller has given up.
                let _ = waiter.send(());
            }
        }
    }

    fn lock_shard(&self, subject: &ChannelKey) -> MutexGuard<'_, SubscriberShard> {
        let hash = self.hasher.hash_one(subject);
        let index = usize::try_from(hash % SHARD_COUNT as u64).unwrap_or_default();
        lock_unpoisoned(&self.shards[index])
    }
}

/// Whether a change is part of the state at `seen`. Orders of two epochs are not compared: the clock of a store that
/// replaced another one may be behind.
fn is_covered(change: Option<EventOrder>, seen: Option<EventOrder>) -> bool {
    matches!((change, seen), (Some(change), Some(seen)) if change.epoch == seen.epoch && change.seq <= seen.seq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::session::OutgoingItem;
    use crate::edge::session::tests::test_session;
    use crate::protocol::ChannelName;
    use futures::FutureExt;

    #[test]
    fn what_arrives_before_the_answer_comes_after_it() {
        let (channels, session) = (ChannelSubscribers::new(), test_session());
        let subject = ChannelKey { app: "1".into(), channel: ChannelName::parse("room").expect("a name") };
        let send = |text: &'static str, except: Option<SocketId>| {
            let frame = Bytes::from_static(text.as_bytes());
            channels.deliver(&BroadcastFrame { except, ..BroadcastFrame::new(subject.clone(), frame) });
        };
        let outlet = session.attach_receiver();
        send("nobody is there", None);
        channels.begin_join(&subject, &session);
        send("early", None);
        send("kept", None);
        assert!(outlet.next(100).now_or_never().is_none());
        let (answer, last) = (Bytes::from_static(b"answer"), Bytes::from_static(b"kept"));
        let answer = SubscriptionAnswer { frame: Some(answer), last_event: Some(last), roster_order: None };
        channels.complete_join(&subject, &session.socket, answer);
        send("late", None);
        send("own", Some(session.socket.clone()));
        let expected = ["answer", "early", "kept", "late"].map(|text| Bytes::from_static(text.as_bytes()));
        assert_eq!(outlet.next(100).now_or_never(), Some(OutgoingItem::Frames(expected.into())));
        channels.remove(&subject, &session.socket);
        send("gone", None);
        assert!(outlet.next(100).now_or_never().is_none());
        channels.begin_join(&subject, &session);
        let last_event = Some(Bytes::from_static(b"kept"));
        let answer = SubscriptionAnswer { last_event, ..SubscriptionAnswer::default() };
        channels.complete_join(&subject, &session.socket, answer);
        assert_eq!(outlet.next(100).now_or_never(), Some(OutgoingItem::Frames(vec![Bytes::from_static(b"kept")])));
        let frame = Bytes::from_static(b"end");
        channels.deliver(&BroadcastFrame { ends: true, ..BroadcastFrame::new(subject.clone(), frame.clone()) });
        assert_eq!(outlet.next(100).now_or_never(), Some(OutgoingItem::Frames(vec![frame])));
        assert_eq!(session.close_reason().map(|closing| closing.code), Some(code::UNAUTHORIZED));
    }

    #[test]
    fn a_late_termination_ends_older_sessions_only() {
        let (channels, session) = (ChannelSubscribers::new(), test_session());
        let subject = ChannelKey { app: "1".into(), channel: ChannelName::signed_in("u").expect("a name") };
        channels.begin_join(&subject, &session);
        let end = |issued_at| {
            let frame = BroadcastFrame::new(subject.clone(), "end");
            channels.deliver(&BroadcastFrame { ends: true, issued_at: Some(issued_at), ..frame });
            session.close_reason().is_some()
        };
        let second = std::time::Duration::from_secs(1);
        assert!(!end(session.opened_at.checked_sub(second).expect("a clock that runs for a second")));
        assert!(end(session.opened_at + second));
    }

    #[test]
    fn changes_that_a_roster_has_are_not_reported_to_its_client_again() {
        let (channels, session) = (ChannelSubscribers::new(), test_session());
        let subject = ChannelKey { app: "1".into(), channel: ChannelName::parse("presence-a").expect("a name") };
        let order = |epoch, seq| Some(EventOrder { epoch, seq });
        let report = |order: Option<EventOrder>, text: &'static str| {
            channels.deliver(&BroadcastFrame { order, ..BroadcastFrame::new(subject.clone(), text) });
        };
        let outlet = session.attach_receiver();
        channels.begin_join(&subject, &session);
        report(order(1, 1), "old");
        report(order(1, 3), "later");
        let answer = SubscriptionAnswer { roster_order: order(1, 2), ..SubscriptionAnswer::default() };
        channels.complete_join(&subject, &session.socket, answer);
        report(order(1, 2), "delayed");
        report(order(1, 4), "new");
        report(order(2, 1), "of another history");
        let expected = ["later", "new", "of another history"].map(|text| Bytes::from_static(text.as_bytes()));
        assert_eq!(outlet.next(100).now_or_never(), Some(OutgoingItem::Frames(expected.into())));
    }

    #[test]
    fn a_report_is_awaited_until_it_is_delivered_or_nobody_is_left() {
        let (channels, session) = (ChannelSubscribers::new(), test_session());
        let subject = ChannelKey { app: "1".into(), channel: ChannelName::parse("presence-a").expect("a name") };
        let order = |seq| EventOrder { epoch: 1, seq };
        assert!(channels.wait_reported(&subject, order(1)).now_or_never().is_some(), "a channel without subscribers");
        channels.begin_join(&subject, &session);
        let mut second = Box::pin(channels.wait_reported(&subject, order(2)));
        let mut third = Box::pin(channels.wait_reported(&subject, order(3)));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        channels.deliver(&BroadcastFrame { order: Some(order(2)), ..BroadcastFrame::new(subject.clone(), "x") });
        assert!((&mut second).now_or_never().is_some() && (&mut third).now_or_never().is_none());
        assert!(channels.wait_reported(&subject, order(1)).now_or_never().is_some());
        channels.remove(&subject, &session.socket);
        assert!((&mut third).now_or_never().is_some());
    }
}
