//! The waiting events of one endpoint, by channel, by hold and rank, and by age. Pure.
//!
//! Every operation costs the events that it moves, not those that wait.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::{FinishedDelivery, PendingDelivery};
use crate::dispatcher::events::ShardSlot;
use crate::dispatcher::reasons::DropReason;
use crate::protocol::ChannelName;
use crate::protocol::record::EventTopic;

/// An event in the queue of an endpoint.
#[derive(Debug)]
pub struct QueuedDelivery {
    /// Its place among all events of the endpoint.
    pub serial: u64,
    /// The event and its shard.
    pub delivery: PendingDelivery,
    /// Attempts that failed, answered or not.
    pub failures: u32,
    /// Attempts that the endpoint answered with a failure.
    pub answered: u32,
    /// Answered failures although the endpoint took another body since the one before.
    pub own_failures: u32,
    /// The endpoint's successes at the last attempt.
    pub successes_seen: u64,
    /// The failure of the last attempt.
    pub last_answer: Option<Arc<str>>,
}

impl QueuedDelivery {
    /// An event without attempts.
    pub fn new(serial: u64, delivery: PendingDelivery) -> Self {
        Self {
            serial,
            delivery,
            failures: 0,
            answered: 0,
            own_failures: 0,
            successes_seen: u64::MAX,
            last_answer: None,
        }
    }

    /// The channel of the event.
    pub fn channel(&self) -> &ChannelName {
        &self.delivery.outgoing.channel
    }

    /// The end of the event's path.
    pub fn into_finished(self, dropped: Option<DropReason>) -> FinishedDelivery {
        FinishedDelivery { delivery: self.delivery, dropped, attempts: self.failures, last_answer: self.last_answer }
    }

    fn rank(&self) -> EvictionRank {
        if self.topic().is_some() { EvictionRank::LastState } else { EvictionRank::Client }
    }

    fn topic(&self) -> Option<&EventTopic> {
        self.delivery.outgoing.topic.as_ref()
    }
}

/// The order in which events are evicted; of one rank the oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EvictionRank {
    /// A client event, or a cache miss.
    Client,
    /// A state that a later one of its subject follows.
    SupersededState,
    /// The last state of a subject.
    LastState,
}

const RANK_COUNT: usize = 3;

/// The state of a channel that has events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// Its events may be posted.
    Ready,
    /// Some of its events are in a body.
    InFlight,
    /// Its events may be posted from this time on, in ms.
    Delayed(u64),
}

#[derive(Debug)]
struct ChannelQueue {
    items: VecDeque<QueuedDelivery>,
    state: ChannelState,
    /// Its key in `ready` or `delayed`.
    key: u64,
    /// The latest waiting state of each subject.
    latest: HashMap<EventTopic, u64>,
}

/// The events of one hold.
#[derive(Debug, Default)]
struct HoldEvents {
    /// Waiting events by rank.
    waiting: [BTreeSet<u64>; RANK_COUNT],
    /// Unfinished events, those in flight too, and their bytes.
    events: usize,
    bytes: usize,
}

/// The waiting events of an endpoint.
#[derive(Debug, Default)]
pub struct DeliveryIndex {
    channels: HashMap<ChannelName, ChannelQueue>,
    /// Channels that may be sent, by the serial of their oldest event.
    ready: BTreeMap<u64, ChannelName>,
    /// Channels that back off, by time and the serial of their oldest event.
    delayed: BTreeMap<(u64, u64), ChannelName>,
    holds: BTreeMap<ShardSlot, HoldEvents>,
    /// The channel of each waiting event.
    waiting: HashMap<u64, ChannelName>,
}

impl DeliveryIndex {
    /// Adds a new event.
    pub fn push(&mut self, queued: QueuedDelivery) {
        let hold = self.holds.entry(queued.delivery.hold).or_default();
        hold.events += 1;
        hold.bytes += queued.delivery.outgoing.bytes();
        let (channel, serial) = (queued.channel().clone(), queued.serial);
        let queue = self.channels.entry(channel.clone()).or_insert_with(|| {
            self.ready.insert(serial, channel.clone());
            ChannelQueue {
                items: VecDeque::with_capacity(1),
                state: ChannelState::Ready,
                key: serial,
                latest: HashMap::new(),
            }
        });
        if let Some(topic) = queued.topic()
            && let Some(before) = queue.latest.insert(topic.clone(), serial)
        {
            // The earlier one may belong to another hold, a former one of its shard.
            for hold in self.holds.values_mut() {
                if hold.waiting[EvictionRank::LastState as usize].remove(&before) {
                    hold.waiting[EvictionRank::SupersededState as usize].insert(before);
                }
            }
        }
        let rank = queued.rank();
        if let Some(hold) = self.holds.get_mut(&queued.delivery.hold) {
            hold.waiting[rank as usize].insert(serial);
        }
        self.waiting.insert(serial, channel);
        queue.items.push_back(queued);
    }

    /// Returns an event of a failed body to the front of its channel, which is in flight.
    pub fn push_front(&mut self, queued: QueuedDelivery) {
        let (channel, serial) = (queued.channel().clone(), queued.serial);
        let queue = self.channels.entry(channel.clone()).or_insert_with(|| ChannelQueue {
            items: VecDeque::new(),
            state: ChannelState::InFlight,
            key: serial,
            latest: HashMap::new(),
        });
        let mut rank = queued.rank();
        match queued.topic().map(|topic| queue.latest.entry(topic.clone())) {
            Some(Entry::Occupied(_)) => rank = EvictionRank::SupersededState,
            Some(Entry::Vacant(latest)) => drop(latest.insert(serial)),
            None => {}
        }
        if let Some(hold) = self.holds.get_mut(&queued.delivery.hold) {
            hold.waiting[rank as usize].insert(serial);
        }
        self.waiting.insert(serial, channel);
        queue.items.push_front(queued);
    }

    /// Number of channels whose events can be posted now.
    pub fn ready_channels(&self) -> usize {
        self.ready.len()
    }

    /// Whether this holds of a channel's oldest event.
    pub fn has_head(&self, channel: &ChannelName, holds: impl Fn(&QueuedDelivery) -> bool) -> bool {
        self.channels.get(channel).and_then(|queue| queue.items.front()).is_some_and(holds)
    }

    /// The ready channel whose oldest event follows this serial.
    pub fn ready_after(&self, serial: u64) -> Option<(u64, ChannelName)> {
        self.ready.range(serial + 1..).next().map(|(head, channel)| (*head, channel.clone()))
    }

    /// The time at which the first channel that backs off may be sent.
    pub fn next_wake_ms(&self) -> Option<u64> {
        self.delayed.first_key_value().map(|((at, _), _)| *at)
    }

    /// Makes channels ready whose back-off is over.
    pub fn wake_channels(&mut self, now_ms: u64) {
        while let Some(entry) = self.delayed.first_entry().filter(|entry| entry.key().0 <= now_ms) {
            let channel = entry.remove();
            self.settle_channel(&channel, ChannelState::Ready);
        }
    }

    /// Takes the events at the front of a ready channel that fit, which is then in flight. `fits` gets the event, its
    /// place in this channel, and the bytes of the body so far.
    pub fn take_from_channel(
        &mut self,
        channel: &ChannelName,
        mut bytes: usize,
        fits: impl Fn(&QueuedDelivery, usize, usize) -> bool,
    ) -> Vec<QueuedDelivery> {
        let mut taken = Vec::new();
        let Some(queue) = self.channels.get_mut(channel) else { return taken };
        while let Some(queued) = queue.items.pop_front_if(|queued| fits(queued, taken.len(), bytes)) {
            bytes += queued.delivery.outgoing.bytes();
            taken.push(queued);
        }
        if taken.is_empty() {
            return taken;
        }
        self.ready.remove(&queue.key);
        queue.state = ChannelState::InFlight;
        for queued in &taken {
            self.waiting.remove(&queued.serial);
            forget_rank(&mut self.holds, &mut queue.latest, queued);
        }
        taken
    }

    /// Sets the state of a channel that is not ready now; one without events is forgotten.
    pub fn settle_channel(&mut self, channel: &ChannelName, state: ChannelState) {
        let Some(queue) = self.channels.get_mut(channel) else { return };
        let Some(first) = queue.items.front() else {
            self.channels.remove(channel);
            return;
        };
        (queue.state, queue.key) = (state, first.serial);
        match state {
            ChannelState::Ready => {
                self.ready.insert(queue.key, channel.clone());
            }
            ChannelState::Delayed(at) => {
                self.delayed.insert((at, queue.key), channel.clone());
            }
            ChannelState::InFlight => {}
        }
    }

    /// Whether a hold has unfinished events.
    pub fn has_hold(&self, hold: ShardSlot) -> bool {
        self.holds.contains_key(&hold)
    }

    /// Unfinished events of a hold, and their bytes.
    pub fn hold_size(&self, hold: ShardSlot) -> (usize, usize) {
        self.holds.get(&hold).map_or((0, 0), |hold| (hold.events, hold.bytes))
    }

    /// Counts an event that was in flight as finished. Returns whether its hold is still there.
    pub fn finish_in_flight(&mut self, queued: &QueuedDelivery) -> bool {
        let id = queued.delivery.hold;
        let Some(hold) = self.holds.get_mut(&id) else { return false };
        hold.events -= 1;
        hold.bytes -= queued.delivery.outgoing.bytes();
        if hold.events == 0 {
            self.holds.remove(&id);
        }
        true
    }

    /// Whether a waiting event was in a body that failed.
    pub fn was_attempted(&self, serial: u64) -> bool {
        let queue = self.waiting.get(&serial).and_then(|channel| self.channels.get(channel));
        let place = |queue: &ChannelQueue| queue.items.binary_search_by_key(&serial, |queued| queued.serial).ok();
        let queued = queue.and_then(|queue| queue.items.get(place(queue)?));
        queued.is_some_and(|queued| queued.failures > 0)
    }

    /// Removes a waiting event.
    pub fn remove_waiting(&mut self, serial: u64) -> Option<QueuedDelivery> {
        let channel = self.waiting.remove(&serial)?;
        let queue = self.channels.get_mut(&channel)?;
        let place = queue.items.binary_search_by_key(&serial, |queued| queued.serial).ok()?;
        let queued = queue.items.remove(place)?;
        forget_rank(&mut self.holds, &mut queue.latest, &queued);
        let (state, key) = (queue.state, queue.key);
        match state {
            ChannelState::Ready if key == serial => {
                self.ready.remove(&key);
                self.settle_channel(&channel, state);
            }
            ChannelState::Delayed(at) if key == serial => {
                self.delayed.remove(&(at, key));
                self.settle_channel(&channel, state);
            }
            _ => {}
        }
        self.finish_in_flight(&queued);
        Some(queued)
    }

    /// Removes the waiting event of a hold that is evicted first.
    pub fn pop_evictable(&mut self, hold: ShardSlot) -> Option<QueuedDelivery> {
        let serial = self.holds.get(&hold)?.waiting.iter().find_map(|rank| rank.first().copied())?;
        self.remove_waiting(serial)
    }

    /// Removes all waiting events of a hold. Returns their serials.
    pub fn remove_waiting_of(&mut self, hold: ShardSlot) -> Vec<u64> {
        let waiting = self.holds.get(&hold).map(|hold| hold.waiting.iter().flatten().copied().collect::<Vec<_>>());
        let removed = waiting.unwrap_or_default();
        for serial in &removed {
            self.remove_waiting(*serial);
        }
        removed
    }

    /// Forgets a hold; outcomes of its events in flight are then ignored.
    pub fn remove_hold(&mut self, hold: ShardSlot) {
        self.holds.remove(&hold);
    }

    /// Whether nothing is left in any table.
    #[cfg(test)]
    pub fn is_clean(&self) -> bool {
        self.channels.is_empty()
            && self.ready.is_empty()
            && self.delayed.is_empty()
            && self.holds.is_empty()
            && self.waiting.is_empty()
    }
}

/// Removes an event that no longer waits from its hold's ranks and as the latest of its subject.
fn forget_rank(
    holds: &mut BTreeMap<ShardSlot, HoldEvents>,
    latest: &mut HashMap<EventTopic, u64>,
    queued: &QueuedDelivery,
) {
    if let Some(hold) = holds.get_mut(&queued.delivery.hold) {
        for rank in &mut hold.waiting {
            rank.remove(&queued.serial);
        }
    }
    if let Some(topic) = queued.topic()
        && latest.get(topic) == Some(&queued.serial)
    {
        latest.remove(topic);
    }
}
