//! The local subscribers of each channel.
//!
//! In: subscribers, and serialised frames. Out: the frames, in the subscribers' queues. A subscriber without its answer
//! yet has its frames held back: it must see the answer first, and must not miss
//! frames in between.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::bus::{BroadcastFrame, ChannelKey};
use crate::edge::close_reason::CloseReason;
use crate::edge::session::Session;
use crate::protocol::SocketId;
use crate::protocol::frame::code;

/// Number of independently locked tables.
const SHARD_COUNT: usize = 16;

/// Frames held back for one subscriber without its answer. The wait is short; beyond this the session is closed.
pub const HELD_FRAMES_MAX: usize = 1_024;

/// The message for clients whose user's connections the app's backend terminated.
pub const TERMINATED_MESSAGE: &str = "the app's backend ended the connections of this user";

type SubscriberShard = HashMap<ChannelKey, HashMap<SocketId, Subscriber>>;

/// The local subscribers by channel, in shards.
pub struct ChannelSubscribers {
    shards: Vec<Mutex<SubscriberShard>>,
    hasher: RandomState,
}

struct Subscriber {
    session: Arc<Session>,
    /// Frames held back until the answer to the subscription; `None` once it was sent.
    held_frames: Option<Vec<Bytes>>,
}

impl ChannelSubscribers {
    /// An empty table of subscribers.
    pub fn new() -> Self {
        Self { shards: (0..SHARD_COUNT).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    /// Adds a session that waits for its answer: frames are held back from now on.
    pub fn begin_join(&self, subject: &ChannelKey, session: &Arc<Session>) {
        let subscriber = Subscriber { session: session.clone(), held_frames: Some(Vec::new()) };
        self.lock_shard(subject).entry(subject.clone()).or_default().insert(session.socket.clone(), subscriber);
    }

    /// It was admitted: it gets the answer, the channel's last event, what was held back, and from now on everything.
    /// An event that was stored while it arrived is delivered once.
    pub fn complete_join(&self, subject: &ChannelKey, socket: &SocketId, answer: Option<Bytes>, last: Option<Bytes>) {
        let mut part = self.lock_shard(subject);
        let Some(subscriber) = part.get_mut(subject).and_then(|there| there.get_mut(socket)) else { return };
        let held = subscriber.held_frames.take().unwrap_or_default();
        let last = last.filter(|last| !held.contains(last));
        for frame in answer.into_iter().chain(last).chain(held) {
            subscriber.session.push(frame);
        }
    }

    /// Removes a session from a channel.
    pub fn remove(&self, subject: &ChannelKey, socket: &SocketId) {
        let mut part = self.lock_shard(subject);
        let Some(there) = part.get_mut(subject) else { return };
        there.remove(socket);
        if there.is_empty() {
            part.remove(subject);
        }
    }

    /// Delivers a frame to all subscribers but the excepted one; closes them if the message says so.
    pub fn deliver(&self, message: &BroadcastFrame) {
        let mut part = self.lock_shard(&message.subject);
        let Some(there) = part.get_mut(&message.subject) else { return };
        for (socket, subscriber) in there {
            if message.except.as_ref() == Some(socket) {
                continue;
            }
            if message.ends {
                subscriber.session.push(message.frame.clone());
                subscriber.session.close(CloseReason::new(code::UNAUTHORIZED, TERMINATED_MESSAGE));
                continue;
            }
            match &mut subscriber.held_frames {
                None => subscriber.session.push(message.frame.clone()),
                Some(held) if held.len() < HELD_FRAMES_MAX => held.push(message.frame.clone()),
                Some(_) => subscriber.session.close_slow_consumer(),
            }
        }
    }

    fn lock_shard(&self, subject: &ChannelKey) -> MutexGuard<'_, SubscriberShard> {
        let hash = self.hasher.hash_one(subject);
        let index = usize::try_from(hash % SHARD_COUNT as u64).unwrap_or_default();
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
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
            channels.deliver(&BroadcastFrame { subject: subject.clone(), frame, except, ends: false });
        };
        let outlet = session.attach_receiver();
        send("nobody is there", None);
        channels.begin_join(&subject, &session);
        send("early", None);
        send("kept", None);
        assert!(outlet.next(100).now_or_never().is_none());
        let (answer, last) = (Bytes::from_static(b"answer"), Bytes::from_static(b"kept"));
        channels.complete_join(&subject, &session.socket, Some(answer), Some(last));
        send("late", None);
        send("own", Some(session.socket.clone()));
        let expected = ["answer", "early", "kept", "late"].map(|text| Bytes::from_static(text.as_bytes()));
        assert_eq!(outlet.next(100).now_or_never(), Some(OutgoingItem::Frames(expected.into())));
        channels.remove(&subject, &session.socket);
        send("gone", None);
        assert!(outlet.next(100).now_or_never().is_none());
        channels.begin_join(&subject, &session);
        channels.complete_join(&subject, &session.socket, None, Some(Bytes::from_static(b"kept")));
        assert_eq!(outlet.next(100).now_or_never(), Some(OutgoingItem::Frames(vec![Bytes::from_static(b"kept")])));
        let frame = Bytes::from_static(b"end");
        channels.deliver(&BroadcastFrame { subject: subject.clone(), frame: frame.clone(), except: None, ends: true });
        assert_eq!(outlet.next(100).now_or_never(), Some(OutgoingItem::Frames(vec![frame])));
        assert_eq!(session.close_reason().map(|closing| closing.code), Some(code::UNAUTHORIZED));
    }
}
