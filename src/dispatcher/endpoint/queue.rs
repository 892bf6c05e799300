//! The queue of one endpoint, which all shards of a process fill. Pure: the caller passes the time.
//!
//! In: events, in the order in which the endpoint must see them per channel, and the outcome of each attempt. Out: bodies
//! to post now, and finished events. A channel is in one body at a time, which is all that the order needs: a bad event
//! delays its own channel and no other.
//!
//! A body that failed is dissolved: its events return to the front of their channels, which back off. An eviction can
//! remove every event that is not in flight. Bodies become smaller while they fail and full again with the first success;
//! an event that goes on failing while others succeed is posted alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::index::{ChannelState, DeliveryIndex, QueuedDelivery};
use super::{AttemptOutcome, FinishedDelivery, PendingDelivery};
use crate::dispatcher::events::ShardSlot;
use crate::dispatcher::reasons::DropReason;
use crate::dispatcher::retry::{RetryPolicy, backoff_ms};
use crate::protocol::ChannelName;

/// Bounds the events of one body.
pub const BATCH_EVENTS_MAX: usize = 100;
/// Bounds the bytes of one body's events; a single larger event is posted alone.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;
/// Bounds the concurrent attempts to one endpoint.
pub const CONCURRENT_ATTEMPTS_MAX: usize = 16;
/// Concurrent attempts beyond which a body waits to be full: more and smaller bodies cost both sides time and memory.
const SMALL_BODY_ATTEMPTS_MAX: usize = 2;
/// Longest such wait since the last attempt began.
const FULL_BODY_WAIT_MS: u64 = 50;
/// Consecutive failures after which an endpoint gets one attempt at a time.
pub const BREAKER_FAILURE_COUNT: u32 = 5;
/// Longest back-off of an endpoint that gets one attempt at a time, so that its recovery is noticed soon.
const BREAKER_BACKOFF_MAX_MS: u64 = 5_000;
/// Answered failures of an event after which its body is made smaller, and after which it is posted alone.
const SPLIT_FAILURE_COUNT: u32 = 3;
/// Age of an endpoint's oldest unfinished event from which the endpoint is behind, whatever it answers; one that gets one
/// attempt at a time is behind too.
pub const BEHIND_AGE_MS: u64 = 30_000;
/// Age of an endpoint's oldest unfinished event up to which the endpoint keeps up.
const KEEPS_UP_AGE_MS: u64 = 500;

/// Identifies a body in flight.
pub type BatchId = u64;

/// Events that are posted together in one body.
#[derive(Debug)]
pub struct WebhookBatch {
    /// Names the body in [`EndpointQueue::complete_attempt`].
    pub id: BatchId,
    /// The events, each channel's oldest first.
    pub deliveries: Vec<PendingDelivery>,
}

/// The part of an endpoint's unfinished events that belongs to one hold of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldShare {
    /// Number of unfinished events.
    pub events: usize,
    /// Bytes of these events.
    pub bytes: usize,
    /// Whether the endpoint is behind.
    pub is_behind: bool,
    /// Whether the endpoint takes its events soon, and without failures.
    pub keeps_up: bool,
}

/// The queue of one endpoint.
#[derive(Debug)]
pub struct EndpointQueue {
    policy: RetryPolicy,
    index: DeliveryIndex,
    in_flight: HashMap<BatchId, Vec<QueuedDelivery>>,
    /// Unfinished events by age, those in flight too: serial and time of arrival.
    ages: BTreeMap<u64, u64>,
    serial: u64,
    /// Consecutive attempts that failed.
    failures: u32,
    /// Attempts that succeeded so far.
    successes: u64,
    /// Time of the last one.
    last_success_ms: Option<u64>,
    /// Events of the next bodies at most, by the failures so far.
    batch_events_max: usize,
    /// Events of a body that the endpoint takes.
    batch_events_limit: usize,
    /// Earliest time of the next attempt while the endpoint gets one at a time.
    next_trial_ms: u64,
    /// Time at which the last attempt began.
    last_attempt_ms: u64,
}

impl EndpointQueue {
    /// A queue without events.
    #[must_use]
    pub fn new(policy: RetryPolicy) -> Self {
        Self {
            policy,
            index: DeliveryIndex::default(),
            in_flight: HashMap::new(),
            ages: BTreeMap::new(),
            serial: 0,
            failures: 0,
            successes: 0,
            last_success_ms: None,
            batch_events_max: BATCH_EVENTS_MAX,
            batch_events_limit: BATCH_EVENTS_MAX,
            next_trial_ms: 0,
            last_attempt_ms: 0,
        }
    }

    /// Whether no event is unfinished.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ages.is_empty() && self.in_flight.is_empty()
    }

    /// Number of events that are not finished, those in flight too.
    #[must_use]
    pub fn unfinished_deliveries(&self) -> usize {
        self.ages.len()
    }

    /// Sets the number of events of a body that the endpoint takes.
    pub fn set_batch_limit(&mut self, events: usize) {
        self.batch_events_limit = events.max(1);
    }

    /// Queues an event behind the others.
    pub fn push(&mut self, delivery: PendingDelivery) {
        self.serial += 1;
        self.ages.insert(self.serial, delivery.since_ms);
        self.index.push(QueuedDelivery::new(self.serial, delivery));
    }

    /// Returns the bodies to post now, each of which ends with a call of [`Self::complete_attempt`], and the events whose
    /// retry window ended while they waited.
    pub fn take_due(&mut self, now_ms: u64) -> (Vec<WebhookBatch>, Vec<FinishedDelivery>) {
        let expired = self.drop_expired(now_ms);
        self.index.wake_channels(now_ms);
        let mut batches = Vec::new();
        while self.has_permit(now_ms)
            && let Some(taken) = self.assemble_batch()
        {
            self.serial += 1;
            let deliveries = taken.iter().map(|queued| queued.delivery.clone()).collect();
            self.in_flight.insert(self.serial, taken);
            self.last_attempt_ms = now_ms;
            batches.push(WebhookBatch { id: self.serial, deliveries });
        }
        (batches, expired)
    }

    /// Returns the time at which [`Self::take_due`] next has something to do without another event or outcome.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        let is_open = self.failures >= BREAKER_FAILURE_COUNT;
        let has_ready = self.index.ready_channels() > 0;
        let trial = (is_open && self.in_flight.is_empty() && has_ready).then_some(self.next_trial_ms);
        let is_filling = !is_open && self.waits_for_full_body() && has_ready;
        let filled = is_filling.then_some(self.last_attempt_ms + FULL_BODY_WAIT_MS);
        let expiry = self.ages.first_key_value().filter(|_| self.failures > 0);
        let expiry = expiry.map(|(_, since)| since + self.policy.window_ms);
        [self.index.next_wake_ms(), trial, filled, expiry].into_iter().flatten().min()
    }

    /// Notes the failure of an attempt with its events, before [`Self::complete_attempt`].
    pub fn note_failure(&mut self, id: BatchId, failure: &Arc<str>) {
        for queued in self.in_flight.get_mut(&id).into_iter().flatten() {
            queued.last_answer = Some(Arc::clone(failure));
        }
    }

    /// Records the outcome of an attempt; `random` spreads the next one.
    pub fn complete_attempt(
        &mut self,
        id: BatchId,
        outcome: AttemptOutcome,
        now_ms: u64,
        random: f64,
    ) -> Vec<FinishedDelivery> {
        let Some(taken) = self.in_flight.remove(&id) else { return Vec::new() };
        match outcome {
            AttemptOutcome::Delivered => {
                if self.failures >= BREAKER_FAILURE_COUNT {
                    // The endpoint works again: channels that backed off because of the outage need not wait longer.
                    self.index.wake_channels(u64::MAX);
                }
                (self.failures, self.batch_events_max) = (0, BATCH_EVENTS_MAX);
                self.successes += 1;
                self.last_success_ms = Some(now_ms);
                self.finish(taken, None)
            }
            AttemptOutcome::Removed => self.finish(taken, Some(DropReason::EndpointRemoved)),
            AttemptOutcome::Disabled => self.finish(taken, Some(DropReason::EndpointDisabled)),
            AttemptOutcome::Failed { answered, retry_after_ms } => {
                self.failures = self.failures.saturating_add(1);
                let open_failures = (self.failures + 1).saturating_sub(BREAKER_FAILURE_COUNT);
                if open_failures > 0 {
                    let most = self.policy.max_backoff_ms.min(BREAKER_BACKOFF_MAX_MS);
                    self.next_trial_ms = now_ms + backoff_ms(open_failures, most, random);
                }
                self.return_failed(taken, answered, retry_after_ms, now_ms, random)
            }
        }
    }

    /// The part of the unfinished events that belongs to a hold.
    #[must_use]
    pub fn held_share(&self, hold: ShardSlot, now_ms: u64) -> HeldShare {
        let oldest = self.ages.first_key_value().map_or(now_ms, |(_, since)| *since);
        let age_ms = now_ms.saturating_sub(oldest);
        let (events, bytes) = self.index.hold_size(hold);
        let is_behind = age_ms >= BEHIND_AGE_MS || self.failures >= BREAKER_FAILURE_COUNT;
        HeldShare { events, bytes, is_behind, keeps_up: age_ms <= KEEPS_UP_AGE_MS && self.failures == 0 }
    }

    /// Number of events of a hold in flight.
    #[must_use]
    pub fn in_flight_of(&self, hold: ShardSlot) -> usize {
        self.in_flight.values().flatten().filter(|queued| queued.delivery.hold == hold).count()
    }

    /// Drops events of a hold until so many events and bytes are free: client events first, the last state of a subject
    /// last, and of one rank the oldest first. Events in flight stay.
    pub fn evict(&mut self, hold: ShardSlot, events: usize, bytes: usize) -> Vec<FinishedDelivery> {
        let (mut evicted, mut freed) = (Vec::new(), 0);
        while evicted.len() < events || freed < bytes {
            let Some(queued) = self.index.pop_evictable(hold) else { break };
            freed += queued.delivery.outgoing.bytes();
            self.ages.remove(&queued.serial);
            evicted.push(queued.into_finished(Some(DropReason::EndpointBehind)));
        }
        evicted
    }

    /// Removes the waiting events of a hold that ends; returns their number.
    pub fn remove_waiting_of(&mut self, hold: ShardSlot) -> usize {
        let removed = self.index.remove_waiting_of(hold);
        for serial in &removed {
            self.ages.remove(serial);
        }
        removed.len()
    }

    /// Forgets the events of a hold that ended: the next holder of the shard reads them again.
    pub fn remove_hold(&mut self, hold: ShardSlot) {
        self.remove_waiting_of(hold);
        self.index.remove_hold(hold);
        for queued in self.in_flight.values().flatten().filter(|queued| queued.delivery.hold == hold) {
            self.ages.remove(&queued.serial);
        }
    }

    fn has_permit(&self, now_ms: u64) -> bool {
        if self.failures >= BREAKER_FAILURE_COUNT {
            self.in_flight.is_empty() && self.next_trial_ms <= now_ms
        } else {
            let has_full_body = self.index.ready_channels() >= self.batch_events_most();
            let is_waited_for = self.last_attempt_ms + FULL_BODY_WAIT_MS <= now_ms;
            self.in_flight.len() < CONCURRENT_ATTEMPTS_MAX
                && (!self.waits_for_full_body() || has_full_body || is_waited_for)
        }
    }

    /// Whether so many attempts are under way that the next body waits to be full.
    fn waits_for_full_body(&self) -> bool {
        (SMALL_BODY_ATTEMPTS_MAX..CONCURRENT_ATTEMPTS_MAX).contains(&self.in_flight.len())
    }

    /// Events of the next body at most.
    fn batch_events_most(&self) -> usize {
        self.batch_events_max.min(self.batch_events_limit)
    }

    /// Takes the events of the channels that have waited longest, as many as one body holds.
    fn assemble_batch(&mut self) -> Option<Vec<QueuedDelivery>> {
        let (mut taken, mut bytes, mut after) = (Vec::<QueuedDelivery>::new(), 0, 0);
        let most = self.batch_events_most();
        while taken.len() < most
            && let Some((head, channel)) = self.index.ready_after(after)
        {
            after = head;
            let is_alone = self.index.has_head(&channel, is_posted_alone);
            if is_alone && !taken.is_empty() {
                continue;
            }
            let room = if is_alone { 1 } else { most - taken.len() };
            let is_first = taken.is_empty();
            let fits = |queued: &QueuedDelivery, place: usize, bytes: usize| {
                let starts = is_first && place == 0;
                let joins = !is_posted_alone(queued) && bytes + queued.delivery.outgoing.bytes() <= BATCH_BYTES_MAX;
                place < room && (starts || joins)
            };
            let more = self.index.take_from_channel(&channel, bytes, fits);
            if more.is_empty() {
                break;
            }
            bytes += more.iter().map(|queued| queued.delivery.outgoing.bytes()).sum::<usize>();
            taken.extend(more);
            if is_alone {
                break;
            }
        }
        (!taken.is_empty()).then_some(taken)
    }

    fn finish(&mut self, taken: Vec<QueuedDelivery>, reason: Option<DropReason>) -> Vec<FinishedDelivery> {
        let mut finished = Vec::with_capacity(taken.len());
        let mut channels = Vec::<ChannelName>::new();
        for queued in taken {
            self.ages.remove(&queued.serial);
            // The events of a channel follow each other.
            if channels.last() != Some(queued.channel()) {
                channels.push(queued.channel().clone());
            }
            if self.index.finish_in_flight(&queued) {
                finished.push(queued.into_finished(reason));
            }
        }
        for channel in &channels {
            self.index.settle_channel(channel, ChannelState::Ready);
        }
        finished
    }

    /// Returns the events of a failed body to their channels, and drops those whose retry window is over.
    fn return_failed(
        &mut self,
        taken: Vec<QueuedDelivery>,
        answered: bool,
        retry_after_ms: Option<u64>,
        now_ms: u64,
        random: f64,
    ) -> Vec<FinishedDelivery> {
        let (mut finished, mut until) = (Vec::new(), HashMap::new());
        let count = taken.len();
        // From the newest, because each one goes to the front.
        for mut queued in taken.into_iter().rev() {
            queued.failures = queued.failures.saturating_add(1);
            if answered {
                queued.answered = queued.answered.saturating_add(1);
                if queued.successes_seen < self.successes {
                    queued.own_failures = queued.own_failures.saturating_add(1);
                }
            }
            queued.successes_seen = self.successes;
            // One that is posted alone makes no other body smaller.
            if queued.answered >= SPLIT_FAILURE_COUNT && count > 1 {
                self.batch_events_max = self.batch_events_max.min(count.div_ceil(2)).max(1);
            }
            // Never sooner than without the header: an endpoint that answers `Retry-After: 0` would be asked all the time.
            let wait = backoff_ms(queued.failures, self.policy.max_backoff_ms, random).max(retry_after_ms.unwrap_or(0));
            let at = until.entry(queued.channel().clone()).or_insert(0);
            *at = now_ms.saturating_add(wait).max(*at);
            if !self.index.has_hold(queued.delivery.hold) {
                self.ages.remove(&queued.serial);
            } else if queued.delivery.since_ms + self.policy.window_ms <= now_ms {
                self.ages.remove(&queued.serial);
                self.index.finish_in_flight(&queued);
                finished.push(queued.into_finished(Some(DropReason::RetryWindowOver)));
            } else {
                self.index.push_front(queued);
            }
        }
        for (channel, at) in until {
            self.index.settle_channel(&channel, ChannelState::Delayed(at));
        }
        finished.reverse();
        finished
    }

    /// Drops waiting events whose retry window is over while the endpoint fails: those behind a failing event would
    /// otherwise outlive the window. An event without an attempt is kept if the endpoint has taken others since the event
    /// came: it waits only because its channel has an event that the endpoint refuses, and both may have come at once,
    /// when the shard was taken over.
    fn drop_expired(&mut self, now_ms: u64) -> Vec<FinishedDelivery> {
        let mut expired = Vec::new();
        if self.failures == 0 {
            return expired;
        }
        let is_over = |(_, since): &(&u64, &u64)| **since + self.policy.window_ms <= now_ms;
        let is_blocked = |(serial, since): &(&u64, &u64)| {
            self.last_success_ms.is_some_and(|at| at >= **since) && !self.index.was_attempted(**serial)
        };
        let old = self.ages.iter().take_while(is_over).filter(|age| !is_blocked(age));
        let old: Vec<u64> = old.map(|(serial, _)| *serial).collect();
        for serial in old {
            if let Some(queued) = self.index.remove_waiting(serial) {
                self.ages.remove(&serial);
                expired.push(queued.into_finished(Some(DropReason::RetryWindowOver)));
            }
        }
        expired
    }
}

/// Whether an event goes on failing while the endpoint takes others.
fn is_posted_alone(queued: &QueuedDelivery) -> bool {
    queued.own_failures >= SPLIT_FAILURE_COUNT
}

#[cfg(test)]
impl EndpointQueue {
    /// Whether nothing is left in any table.
    pub fn is_clean(&self) -> bool {
        self.is_empty() && self.index.is_clean()
    }
}
