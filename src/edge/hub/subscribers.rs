//! The local subscribers of each channel.
//!
//! In: subscribers, and serialised frames. Out: the frames, on the subscribers' sockets or in their queues, in one order
//! for all. A subscriber without its answer yet has its frames held back: it must see the answer first, and must not miss
//! frames in between. The delivery to many subscribers is done in slices, between which other tasks run.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::yield_now;

use crate::bus::{BroadcastFrame, ChannelKey};
use crate::edge::close_reason::CloseReason;
use crate::edge::metrics::EdgeMetrics;
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

/// Subscribers that a frame is delivered to before other tasks run: about two milliseconds of writes.
const SLICE_SUBSCRIBERS: usize = 512;

/// Frames that wait for the delivery of another one of their channel: as many as may wait for a client.
const WAITING_FRAMES_MAX: usize = QUEUED_FRAMES_MAX;

/// The message for clients whose user's connections the app's backend terminated.
pub const TERMINATED_MESSAGE: &str = "the app's backend ended the connections of this user";

type SubscriberShard = HashMap<ChannelKey, SharedChannel>;

/// A channel with a lock of its own: the fan-out of a large channel delays no other.
type SharedChannel = Arc<Mutex<LocalChannel>>;

/// The local subscribers of one channel.
#[derive(Default)]
struct LocalChannel {
    /// In the order in which frames are delivered, so that a delivery can be continued.
    subscribers: BTreeMap<SocketId, Subscriber>,
    /// Number of frames that were to be delivered.
    frame_count: u64,
    /// The frame whose delivery goes on in a task of its own, and those behind it, each with its number.
    unfinished: VecDeque<Delivery>,
    /// Order of the membership change that was reported last.
    reported_order: Option<EventOrder>,
    /// Callers that wait until a membership change is reported.
    report_waiters: Vec<(EventOrder, oneshot::Sender<()>)>,
    /// Whether the last subscriber has left, so that the next one needs a new entry.
    is_removed: bool,
}

/// The delivery of one frame that goes on later.
struct Delivery {
    message: BroadcastFrame,
    place: DeliveryPlace,
    began_at: Instant,
}

/// The place at which the delivery of a frame stands.
struct DeliveryPlace {
    /// Number of the frame within its channel: subscribers that came after it do not receive it.
    number: u64,
    /// The subscriber that received it last.
    delivered_to: Option<SocketId>,
}

/// The local subscribers by channel, in shards.
pub struct ChannelSubscribers {
    shards: Vec<Mutex<SubscriberShard>>,
    /// Number of channels of each app, without those of the server's own.
    app_channels: Mutex<HashMap<AppId, usize>>,
    hasher: RandomState,
    metrics: Arc<EdgeMetrics>,
}

struct Subscriber {
    session: Arc<Session>,
    /// Number of frames of the channel before it came.
    frames_before: u64,
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
    pub fn new(metrics: Arc<EdgeMetrics>) -> Self {
        let shards = (0..SHARD_COUNT).map(|_| Mutex::default()).collect();
        Self { shards, app_channels: Mutex::default(), hasher: RandomState::new(), metrics }
    }

    /// Adds a session that waits for its answer: frames are held back from now on.
    pub fn begin_join(&self, subject: &ChannelKey, session: &Arc<Session>) {
        loop {
            let channel = self.find_or_insert(subject);
            let mut there = lock_unpoisoned(&channel);
            if !there.is_removed {
                let (session, frames_before) = (session.clone(), there.frame_count);
                let subscriber =
                    Subscriber { session, frames_before, held_frames: Some(Vec::new()), roster_order: None };
                there.subscribers.insert(subscriber.session.socket.clone(), subscriber);
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

    /// Delivers a frame to all subscribers but the excepted one; closes them if the message says so. The frames of one
    /// channel are delivered one after another: when another one is unfinished, the frame waits behind it.
    pub fn deliver(&self, message: &BroadcastFrame) {
        let Some(channel) = self.find(&message.subject) else { return };
        let mut there = lock_unpoisoned(&channel);
        there.frame_count += 1;
        if there.unfinished.len() > WAITING_FRAMES_MAX {
            self.metrics.fan_out_frames_dropped.inc();
            return;
        }
        let is_first = there.unfinished.is_empty();
        let mut place = DeliveryPlace { number: there.frame_count, delivered_to: None };
        let began_at = Instant::now();
        if is_first && there.deliver_slice(message, &mut place) {
            drop(there);
            self.metrics.fan_out_duration_seconds.observe(began_at.elapsed());
            return;
        }
        there.unfinished.push_back(Delivery { message: message.clone(), place, began_at });
        drop(there);
        if is_first {
            tokio::spawn(finish_deliveries(channel, self.metrics.clone()));
        }
    }

    fn lock_shard(&self, subject: &ChannelKey) -> MutexGuard<'_, SubscriberShard> {
        let hash = self.hasher.hash_one(subject);
        let index = usize::try_from(hash % SHARD_COUNT as u64).unwrap_or_default();
        lock_unpoisoned(&self.shards[index])
    }
}

/// Delivers the unfinished frames of a channel, and those that come behind them meanwhile.
async fn finish_deliveries(channel: SharedChannel, metrics: Arc<EdgeMetrics>) {
    loop {
        yield_now().await;
        let mut there = lock_unpoisoned(&channel);
        let Some(mut delivery) = there.unfinished.pop_front() else { return };
        if !there.deliver_slice(&delivery.message, &mut delivery.place) {
            there.unfinished.push_front(delivery);
            continue;
        }
        let is_last = there.unfinished.is_empty();
        drop(there);
        metrics.fan_out_duration_seconds.observe(delivery.began_at.elapsed());
        if is_last {
            return;
        }
    }
}

impl LocalChannel {
    /// Delivers a frame to the next subscribers; `true` once all have received it.
    fn deliver_slice(&mut self, message: &BroadcastFrame, place: &mut DeliveryPlace) -> bool {
        let begin = place.delivered_to.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut subscribers = self.subscribers.range_mut((begin, Bound::Unbounded));
        let mut last = None;
        for (socket, subscriber) in subscribers.by_ref().take(SLICE_SUBSCRIBERS) {
            last = Some(socket);
            if message.except.as_ref() != Some(socket) && subscriber.frames_before < place.number {
                subscriber.deliver(message);
            }
        }
        let is_complete = subscribers.next().is_none();
        if !is_complete {
            place.delivered_to = last.cloned();
            return false;
        }
        if message.order.is_some() {
            self.reported_order = message.order;
            for (_, waiter) in self.report_waiters.extract_if(.., |(order, _)| is_covered(Some(*order), message.order))
            {
                // Fails when the caller has given up.
                let _ = waiter.send(());
            }
        }
        true
    }
}

impl Subscriber {
    /// Delivers a frame unless the client's roster covers its change, or holds it back.
    fn deliver(&mut self, message: &BroadcastFrame) {
        if is_covered(message.order, self.roster_order) {
            return;
        }
        if message.ends {
            if message.issued_at.is_none_or(|issued_at| issued_at >= self.session.opened_at) {
                self.session.push(message.frame.clone());
                self.session.close(CloseReason::new(code::UNAUTHORIZED, TERMINATED_MESSAGE));
            }
            return;
        }
        match &mut self.held_frames {
            None => self.session.push(message.frame.clone()),
            Some(held) if held.len() < HELD_FRAMES_MAX => held.push((message.frame.clone(), message.order)),
            Some(_) => self.session.close_for_slow_bus(),
        }
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
    use crate::edge::session::tests::{named_session, test_session};
    use crate::protocol::ChannelName;
    use futures::FutureExt;

    #[test]
    fn what_arrives_before_the_answer_comes_after_it() {
        let (channels, session) = (ChannelSubscribers::new(Arc::default()), test_session());
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

    #[tokio::test]
    async fn a_large_channel_receives_every_frame_once_in_one_order_while_others_come() {
        const SUBSCRIBERS: usize = 3 * SLICE_SUBSCRIBERS;
        const FRAMES: usize = 20;
        let channels = ChannelSubscribers::new(Arc::default());
        let subject = ChannelKey { app: "1".into(), channel: ChannelName::parse("room").expect("a name") };
        let join = |name: String| {
            let session = named_session(&name);
            channels.begin_join(&subject, &session);
            channels.complete_join(&subject, &session.socket, SubscriptionAnswer::default());
            let outlet = session.attach_receiver();
            (session, outlet)
        };
        let frame = |number: usize| Bytes::from(number.to_string());
        let early: Vec<_> = (0..SUBSCRIBERS).map(|number| join(format!("{number}.1"))).collect();
        // Each comes within the delivery of the frame before: it receives those after it alone.
        let late: Vec<_> = (0..FRAMES)
            .map(|number| {
                channels.deliver(&BroadcastFrame::new(subject.clone(), frame(number)));
                join(format!("9{number}.2"))
            })
            .collect();
        // One leaves before its turn.
        channels.remove(&subject, &early[0].0.socket);
        let channel = channels.find(&subject).expect("there");
        while !lock_unpoisoned(&channel).unfinished.is_empty() {
            yield_now().await;
        }
        for (_, outlet) in &early[1..] {
            let expected = (0..FRAMES).map(frame).collect();
            assert_eq!(outlet.next(1_000).now_or_never(), Some(OutgoingItem::Frames(expected)));
        }
        for (before, (_, outlet)) in late.iter().enumerate() {
            let expected: Vec<_> = (before + 1..FRAMES).map(frame).collect();
            let received = outlet.next(1_000).now_or_never();
            assert_eq!(received, (!expected.is_empty()).then_some(OutgoingItem::Frames(expected)), "{before}");
        }
        assert_eq!(channels.metrics.fan_out_frames_dropped.get(), 0);
    }

    #[test]
    fn a_late_termination_ends_older_sessions_only() {
        let (channels, session) = (ChannelSubscribers::new(Arc::default()), test_session());
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
        let (channels, session) = (ChannelSubscribers::new(Arc::default()), test_session());
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
        let (channels, session) = (ChannelSubscribers::new(Arc::default()), test_session());
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
