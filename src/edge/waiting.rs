//! Subscriptions to presence channels that wait for the bus.
//!
//! Whoever enters a presence channel is told who is there, which nobody knows while the bus is away. A client that is
//! refused does not ask again by itself, so it waits for a while: most stores are back by then. Pure but for the clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;

use super::metrics::Metrics;
use crate::protocol::ChannelName;
use crate::protocol::frame::Member;

/// How long a subscription waits for the bus.
pub const WAIT: Duration = Duration::from_secs(25);

/// Subscriptions of one connection that wait.
pub const MAX_WAITING: usize = 100;

/// Subscriptions of all connections of the process that wait.
pub const MAX_ALL: i64 = 50_000;

/// How often it is looked whether the bus is back.
const LOOK: Duration = Duration::from_millis(250);

/// One of them.
pub struct Waiter {
    /// Where it will be.
    pub channel: ChannelName,
    /// As whom.
    pub member: Member,
    until: Instant,
    _place: Place,
}

/// A place among those of the process, given back when dropped.
struct Place(Gauge);

impl Place {
    fn take(all: Gauge) -> Option<Self> {
        let taken = all.inc();
        let place = Self(all);
        (taken < MAX_ALL).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Waiter {
    /// One that waits from now on; `None` when too many do.
    pub fn new(channel: ChannelName, member: Member, metrics: &Metrics, now: Instant) -> Option<Self> {
        let place = Place::take(metrics.waiting.clone())?;
        Some(Self { channel, member, until: now + WAIT, _place: place })
    }
}

/// Those of one connection, in the order in which they came.
#[derive(Default)]
pub struct Waiting {
    queue: VecDeque<Waiter>,
    look: Option<Instant>,
}

impl Waiting {
    /// Lets one wait, or wait on; gives it back when there are too many.
    pub fn wait(&mut self, waiter: Waiter, now: Instant) -> Option<Waiter> {
        if self.queue.len() >= MAX_WAITING {
            return Some(waiter);
        }
        // One that waits again keeps its time.
        let place = self.queue.partition_point(|other| other.until <= waiter.until);
        self.queue.insert(place, waiter);
        self.look = Some(now + LOOK);
        None
    }

    /// It no longer wants to.
    pub fn remove(&mut self, channel: &ChannelName) -> Option<Waiter> {
        let index = self.queue.iter().position(|waiter| waiter.channel == *channel)?;
        self.queue.remove(index)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// When to look at them.
    pub fn due(&self) -> Option<Instant> {
        if self.queue.is_empty() { None } else { self.look }
    }

    /// The next whose time has come: to enter if the bus is back, or else to be refused. One at a time, so that the
    /// client is heard in between.
    pub fn next(&mut self, back: bool, now: Instant) -> Option<(Waiter, Turn)> {
        let late = self.queue.front().is_some_and(|waiter| waiter.until <= now);
        self.look = Some(if back || late { now } else { now + LOOK });
        if back {
            self.queue.pop_front().map(|waiter| (waiter, Turn::Enter))
        } else if late {
            self.queue.pop_front().map(|waiter| (waiter, Turn::Refuse))
        } else {
            None
        }
    }
}

/// What becomes of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It may enter.
    Enter,
    /// It waited in vain.
    Refuse,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(channel: &str, metrics: &Metrics, now: Instant) -> Option<Waiter> {
        let member = Member { user_id: "u".into(), user_info: serde_json::Value::Null };
        Waiter::new(ChannelName::parse(channel).expect("a name"), member, metrics, now)
    }

    #[test]
    fn they_enter_in_their_order_once_the_bus_is_back_and_are_refused_in_time() {
        let (metrics, start) = (Metrics::default(), Instant::now());
        let mut waiting = Waiting::default();
        assert_eq!(waiting.due(), None);
        let later = start + WAIT / 2;
        for (channel, at) in [("presence-a", start), ("presence-b", start), ("presence-c", later)] {
            assert!(waiting.wait(waiter(channel, &metrics, at).expect("a place"), start).is_none());
        }
        assert_eq!((waiting.due(), metrics.waiting.get()), (Some(start + LOOK), 3));
        assert!(waiting.next(false, start + LOOK).is_none(), "neither back nor late");
        assert_eq!(waiting.due(), Some(start + 2 * LOOK));
        let mut next = |back, now| waiting.next(back, now).map(|(waiter, turn)| (waiter.channel.to_string(), turn));
        assert_eq!(next(true, later), Some(("presence-a".into(), Turn::Enter)));
        assert_eq!(next(false, start + WAIT), Some(("presence-b".into(), Turn::Refuse)));
        assert_eq!(next(false, start + WAIT), None, "the last came later");
        let last = ChannelName::parse("presence-c").expect("a name");
        assert!(waiting.remove(&last).is_some() && waiting.remove(&last).is_none());
        assert_eq!((waiting.due(), waiting.len(), metrics.waiting.get()), (None, 0, 0), "its place is given back");
    }

    #[test]
    fn there_are_so_many_places_only() {
        let (metrics, now) = (Metrics::default(), Instant::now());
        let mut waiting = Waiting::default();
        for _ in 0..MAX_WAITING {
            assert!(waiting.wait(waiter("presence-a", &metrics, now).expect("a place"), now).is_none());
        }
        assert!(waiting.wait(waiter("presence-a", &metrics, now).expect("a place"), now).is_some());
        metrics.waiting.set(MAX_ALL);
        assert!(waiter("presence-a", &metrics, now).is_none());
        assert_eq!(metrics.waiting.get(), MAX_ALL, "who was refused takes no place");
    }
}
