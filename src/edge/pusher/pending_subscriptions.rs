//! Presence subscriptions that wait while the bus is unavailable.
//!
//! A presence subscription is answered with the roster, which no process knows while the bus is unavailable. A refused
//! client does not retry by itself, so its subscription is queued: most stores have recovered by its timeout. Pure but for
//! the clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;

use crate::edge::metrics::EdgeMetrics;
use crate::protocol::ChannelName;
use crate::protocol::frame::PresenceMember;

/// Bounds the time that a subscription waits for the bus.
pub const PENDING_TIMEOUT: Duration = Duration::from_secs(25);

/// Pending subscriptions of one connection.
pub const CONNECTION_PENDING_MAX: usize = 100;

/// Pending subscriptions of all connections of the process.
pub const PROCESS_PENDING_MAX: i64 = 50_000;

/// The interval at which the queue checks whether the bus is available.
const PENDING_RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// One subscription that waits for the bus.
pub struct PendingSubscription {
    /// The channel to subscribe to.
    pub channel: ChannelName,
    /// The member to subscribe as.
    pub member: PresenceMember,
    deadline: Instant,
    _slot: PendingSlot,
}

/// A slot in the process's bound, released when dropped.
struct PendingSlot(Gauge);

impl PendingSlot {
    fn acquire(all: Gauge) -> Option<Self> {
        let taken = all.inc();
        let place = Self(all);
        (taken < PROCESS_PENDING_MAX).then_some(place)
    }
}

impl Drop for PendingSlot {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl PendingSubscription {
    /// A subscription that waits from now on; `None` at the bound.
    pub fn new(channel: ChannelName, member: PresenceMember, metrics: &EdgeMetrics, now: Instant) -> Option<Self> {
        let place = PendingSlot::acquire(metrics.pending_subscriptions.clone())?;
        Some(Self { channel, member, deadline: now + PENDING_TIMEOUT, _slot: place })
    }
}

/// The pending subscriptions of one connection, in order of arrival.
#[derive(Default)]
pub struct PendingQueue {
    queue: VecDeque<PendingSubscription>,
    next_retry: Option<Instant>,
}

impl PendingQueue {
    /// Queues a subscription, or keeps it queued; returns it when the bound is reached.
    pub fn enqueue(&mut self, waiter: PendingSubscription, now: Instant) -> Option<PendingSubscription> {
        if self.queue.len() >= CONNECTION_PENDING_MAX {
            return Some(waiter);
        }
        // A subscription that is pending again keeps its deadline.
        let place = self.queue.partition_point(|other| other.deadline <= waiter.deadline);
        self.queue.insert(place, waiter);
        self.next_retry = Some(now + PENDING_RETRY_INTERVAL);
        None
    }

    /// Removes a channel that the client no longer wants.
    pub fn remove(&mut self, channel: &ChannelName) -> Option<PendingSubscription> {
        let index = self.queue.iter().position(|waiter| waiter.channel == *channel)?;
        self.queue.remove(index)
    }

    /// The number of pending subscriptions.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// The time of the next check.
    pub fn next_due(&self) -> Option<Instant> {
        if self.queue.is_empty() { None } else { self.next_retry }
    }

    /// The next subscription that is due: to proceed if the bus is available, or else to be refused. One at a time, so that
    /// messages of the client are applied in between.
    pub fn next(&mut self, back: bool, now: Instant) -> Option<(PendingSubscription, PendingOutcome)> {
        let late = self.queue.front().is_some_and(|waiter| waiter.deadline <= now);
        self.next_retry = Some(if back || late { now } else { now + PENDING_RETRY_INTERVAL });
        if back {
            self.queue.pop_front().map(|waiter| (waiter, PendingOutcome::Join))
        } else if late {
            self.queue.pop_front().map(|waiter| (waiter, PendingOutcome::Refuse))
        } else {
            None
        }
    }
}

/// The outcome of a pending subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingOutcome {
    /// The subscription may proceed.
    Join,
    /// The subscription has timed out.
    Refuse,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending_on(channel: &str, metrics: &EdgeMetrics, now: Instant) -> Option<PendingSubscription> {
        let member = PresenceMember { user_id: "u".into(), user_info: serde_json::Value::Null };
        PendingSubscription::new(ChannelName::parse(channel).expect("a name"), member, metrics, now)
    }

    #[test]
    fn they_enter_in_their_order_once_the_bus_is_back_and_are_refused_in_time() {
        let (metrics, start) = (EdgeMetrics::default(), Instant::now());
        let mut waiting = PendingQueue::default();
        assert_eq!(waiting.next_due(), None);
        let later = start + PENDING_TIMEOUT / 2;
        for (channel, at) in [("presence-a", start), ("presence-b", start), ("presence-c", later)] {
            assert!(waiting.enqueue(pending_on(channel, &metrics, at).expect("a place"), start).is_none());
        }
        assert_eq!(
            (waiting.next_due(), metrics.pending_subscriptions.get()),
            (Some(start + PENDING_RETRY_INTERVAL), 3)
        );
        assert!(waiting.next(false, start + PENDING_RETRY_INTERVAL).is_none(), "neither back nor late");
        assert_eq!(waiting.next_due(), Some(start + 2 * PENDING_RETRY_INTERVAL));
        let mut next = |back, now| waiting.next(back, now).map(|(waiter, turn)| (waiter.channel.to_string(), turn));
        assert_eq!(next(true, later), Some(("presence-a".into(), PendingOutcome::Join)));
        assert_eq!(next(false, start + PENDING_TIMEOUT), Some(("presence-b".into(), PendingOutcome::Refuse)));
        assert_eq!(next(false, start + PENDING_TIMEOUT), None, "the last came later");
        let last = ChannelName::parse("presence-c").expect("a name");
        assert!(waiting.remove(&last).is_some() && waiting.remove(&last).is_none());
        assert_eq!(
            (waiting.next_due(), waiting.len(), metrics.pending_subscriptions.get()),
            (None, 0, 0),
            "its place is given back"
        );
    }

    #[test]
    fn there_are_so_many_places_only() {
        let (metrics, now) = (EdgeMetrics::default(), Instant::now());
        let mut waiting = PendingQueue::default();
        for _ in 0..CONNECTION_PENDING_MAX {
            assert!(waiting.enqueue(pending_on("presence-a", &metrics, now).expect("a place"), now).is_none());
        }
        assert!(waiting.enqueue(pending_on("presence-a", &metrics, now).expect("a place"), now).is_some());
        metrics.pending_subscriptions.set(PROCESS_PENDING_MAX);
        assert!(pending_on("presence-a", &metrics, now).is_none());
        assert_eq!(metrics.pending_subscriptions.get(), PROCESS_PENDING_MAX, "who was refused takes no place");
    }
}
