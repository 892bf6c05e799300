//! Groups events into webhook bodies and schedules retries of bodies that failed.
//!
//! In: events for an endpoint, in the order in which the endpoint must see them per channel, and the outcome of each
//! attempt. Out: bodies to post now, and finished events. A channel is in one unfinished body at a time, which is all
//! that the order needs: a bad event delays its own channel and no other. Pure: the caller passes the time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use super::checkpoint_tracker;
use super::metrics::DropReason;
use super::retry::{RetryPolicy, backoff_ms};
use crate::protocol::webhook::WebhookEvent;
use crate::protocol::{AppId, ChannelName};

/// Bounds the events of one body.
const BATCH_EVENTS_MAX: usize = 100;
/// Bounds the bytes of one body's events; a single larger event is posted alone.
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// Bounds the bodies in flight to one endpoint, the parts of a split one not counted.
const IN_FLIGHT_BATCHES_MAX: usize = 4;
/// Bounds the part of a shard's unfinished events that one endpoint may hold: at a quarter a failing endpoint loses its
/// oldest events, and cannot fill the shard alone.
const ENDPOINT_EVENTS_MAX: usize = checkpoint_tracker::UNFINISHED_EVENTS_MAX / 4;
const ENDPOINT_BYTES_MAX: usize = checkpoint_tracker::UNFINISHED_BYTES_MAX / 4;
/// Answered failures after which a body is split, so that one bad event does not hold up the others.
const SPLIT_FAILURE_COUNT: u32 = 3;
/// Delay before a body is tried again that found no free attempt slot at its endpoint.
const BUSY_RETRY_DELAY_MS: u64 = 200;

/// Identifies one webhook endpoint of one app.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId {
    /// The app that configures the endpoint.
    pub app: AppId,
    /// The endpoint's name within the app.
    pub endpoint: String,
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.endpoint)
    }
}

/// An event in the form in which it is sent.
#[derive(Debug)]
pub struct OutgoingEvent {
    /// The webhook event that the customer receives.
    pub event: WebhookEvent,
    /// Time at which the bus decided the event, in ms since 1970.
    pub time_ms: u64,
    /// Approximate length of the event's JSON text.
    pub bytes: usize,
}

/// An event to be delivered to one endpoint.
#[derive(Clone, Debug)]
pub struct PendingDelivery {
    /// Number that the checkpoint tracker gave the event's record.
    pub record: u64,
    /// Time at which the event was queued here; the retry window counts from it.
    pub since_ms: u64,
    /// The event, shared by all endpoints that subscribe to it.
    pub outgoing: Arc<OutgoingEvent>,
}

/// Events that are posted together in one body.
#[derive(Debug)]
pub struct WebhookBatch {
    /// The endpoint to post to.
    pub target: EndpointId,
    /// The events, oldest first.
    pub items: Vec<PendingDelivery>,
    failures: u32,
    answered: u32,
    part: bool,
}

/// The outcome of one attempt to post a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The endpoint acknowledged the body.
    Delivered,
    /// The endpoint did not acknowledge, perhaps with a `Retry-After`.
    Failed {
        /// Whether the endpoint answered at all.
        answered: bool,
        /// The delay that the endpoint asked for.
        retry_after_ms: Option<u64>,
    },
    /// No attempt slot was free; this does not count as an attempt.
    Busy,
    /// The endpoint is no longer configured.
    Removed,
}

/// Events that need no further attempt.
#[derive(Debug, Default)]
pub struct FinishedDeliveries {
    /// The tracker's numbers of the records whose events were acknowledged.
    pub delivered: Vec<u64>,
    /// Lost events, each with the reason.
    pub dropped: Vec<(DropReason, PendingDelivery)>,
}

/// The queues of one shard, one per endpoint.
#[derive(Debug)]
pub struct WebhookBatcher {
    retry_policy: RetryPolicy,
    queues: HashMap<EndpointId, EndpointQueue>,
}

#[derive(Debug, Default)]
struct EndpointQueue {
    waiting: VecDeque<PendingDelivery>,
    busy: HashSet<ChannelName>,
    scheduled: Vec<(u64, WebhookBatch)>,
    bodies: usize,
    events: usize,
    bytes: usize,
    failing: bool,
}

impl WebhookBatcher {
    /// A batcher with empty queues.
    #[must_use]
    pub fn new(retry_policy: RetryPolicy) -> Self {
        Self { retry_policy, queues: HashMap::new() }
    }

    /// Queues an event for an endpoint. A failing endpoint that is over its limit loses its oldest events.
    pub fn push(&mut self, target: &EndpointId, item: PendingDelivery) -> FinishedDeliveries {
        let queue = self.queues.entry(target.clone()).or_default();
        queue.events += 1;
        queue.bytes += item.outgoing.bytes;
        queue.waiting.push_back(item);
        let mut finished = FinishedDeliveries::default();
        while queue.failing && queue.is_over_limit() {
            let Some(oldest) = queue.waiting.pop_front() else { break };
            queue.subtract_delivery(&oldest);
            finished.dropped.push((DropReason::EndpointBehind, oldest));
        }
        finished
    }

    /// Whether a working endpoint is over its limit. The shard then reads no further: dropping would lose events that
    /// only wait for their turn.
    #[must_use]
    pub fn has_full_endpoint(&self) -> bool {
        self.queues.values().any(|queue| !queue.failing && queue.is_over_limit())
    }

    /// Returns the bodies to post now. Each one ends with a call of [`Self::complete_attempt`].
    pub fn take_due_batches(&mut self, now_ms: u64) -> Vec<WebhookBatch> {
        let mut bodies = Vec::new();
        for (target, queue) in &mut self.queues {
            bodies.extend(queue.scheduled.extract_if(.., |(at, _)| *at <= now_ms).map(|(_, body)| body));
            while queue.bodies < IN_FLIGHT_BATCHES_MAX
                && let Some(items) = queue.assemble_batch()
            {
                queue.bodies += 1;
                queue.busy.extend(items.iter().map(|item| item.outgoing.event.channel.clone()));
                bodies.push(WebhookBatch { target: target.clone(), items, failures: 0, answered: 0, part: false });
            }
        }
        bodies
    }

    /// Records the outcome of an attempt; `random` spreads the next one.
    pub fn complete_attempt(
        &mut self,
        mut body: WebhookBatch,
        outcome: AttemptOutcome,
        now_ms: u64,
        random: f64,
    ) -> FinishedDeliveries {
        let retry_policy = self.retry_policy;
        let queue = self.queues.entry(body.target.clone()).or_default();
        let mut finished = FinishedDeliveries::default();
        match outcome {
            AttemptOutcome::Delivered => {
                queue.failing = false;
                finished.delivered.extend(body.items.iter().map(|item| item.record));
                queue.finish_batch(&body);
            }
            AttemptOutcome::Removed => {
                queue.finish_batch(&body);
                finished.dropped.extend(body.items.drain(..).map(|item| (DropReason::EndpointRemoved, item)));
            }
            AttemptOutcome::Busy => queue.scheduled.push((now_ms + BUSY_RETRY_DELAY_MS, body)),
            AttemptOutcome::Failed { answered, retry_after_ms } => {
                queue.failing = true;
                body.failures += 1;
                body.answered += u32::from(answered);
                let over = |item: &mut PendingDelivery| item.since_ms + retry_policy.window_ms <= now_ms;
                let lost: Vec<PendingDelivery> = body.items.extract_if(.., over).collect();
                queue.drop_expired(&body, &lost);
                finished.dropped.extend(lost.into_iter().map(|item| (DropReason::RetryWindowOver, item)));
                // Never sooner than without the header: an endpoint that answers `Retry-After: 0` would be asked all
                // the time.
                let wait =
                    backoff_ms(body.failures, retry_policy.max_backoff_ms, random).max(retry_after_ms.unwrap_or(0));
                queue.schedule_retry(body, now_ms + wait);
            }
        }
        self.queues.retain(|_, queue| queue.events > 0);
        finished
    }
}

impl EndpointQueue {
    fn is_over_limit(&self) -> bool {
        self.events > ENDPOINT_EVENTS_MAX || self.bytes > ENDPOINT_BYTES_MAX
    }

    /// The oldest events of channels that are not busy, as many as one body holds.
    fn assemble_batch(&mut self) -> Option<Vec<PendingDelivery>> {
        let (mut items, mut left, mut bytes) = (Vec::new(), VecDeque::with_capacity(self.waiting.len()), 0);
        while let Some(item) = self.waiting.pop_front() {
            let fits = items.is_empty() || bytes + item.outgoing.bytes <= BATCH_BYTES_MAX;
            if items.len() == BATCH_EVENTS_MAX || !fits {
                left.push_back(item);
                break;
            }
            if self.busy.contains(&item.outgoing.event.channel) {
                left.push_back(item);
                continue;
            }
            bytes += item.outgoing.bytes;
            items.push(item);
        }
        left.append(&mut self.waiting);
        self.waiting = left;
        (!items.is_empty()).then_some(items)
    }

    fn subtract_delivery(&mut self, item: &PendingDelivery) {
        self.events -= 1;
        self.bytes -= item.outgoing.bytes;
    }

    fn finish_batch(&mut self, body: &WebhookBatch) {
        for item in &body.items {
            self.subtract_delivery(item);
            self.busy.remove(&item.outgoing.event.channel);
        }
        self.bodies -= usize::from(!body.part);
    }

    /// Removes lost events from a body and frees the channels that have none left in it.
    fn drop_expired(&mut self, body: &WebhookBatch, lost: &[PendingDelivery]) {
        for item in lost {
            self.subtract_delivery(item);
            let channel = &item.outgoing.event.channel;
            if !body.items.iter().any(|other| other.outgoing.event.channel == *channel) {
                self.busy.remove(channel);
            }
        }
    }

    /// Schedules the retry of a failed body, split into its channels or a single channel into halves.
    fn schedule_retry(&mut self, mut body: WebhookBatch, at_ms: u64) {
        if body.items.is_empty() {
            self.bodies -= usize::from(!body.part);
            return;
        }
        if body.answered < SPLIT_FAILURE_COUNT || body.items.len() == 1 {
            self.scheduled.push((at_ms, body));
            return;
        }
        self.bodies -= usize::from(!body.part);
        let mut parts: Vec<Vec<PendingDelivery>> = Vec::new();
        for item in body.items {
            let same = |part: &&mut Vec<PendingDelivery>| part[0].outgoing.event.channel == item.outgoing.event.channel;
            match parts.iter_mut().find(same) {
                Some(part) => part.push(item),
                None => parts.push(vec![item]),
            }
        }
        if let [part] = &mut parts[..] {
            // The channel stays busy, so the later half waits at the front for the earlier one.
            let half = part.split_off(part.len().div_ceil(2));
            half.into_iter().rev().for_each(|item| self.waiting.push_front(item));
        }
        body.items = Vec::new();
        self.scheduled.extend(parts.into_iter().map(|items| {
            let target = body.target.clone();
            (at_ms, WebhookBatch { target, items, failures: body.failures, answered: 0, part: true })
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::record::EventKind;

    const FAILED: AttemptOutcome = AttemptOutcome::Failed { answered: true, retry_after_ms: None };

    fn test_endpoint() -> EndpointId {
        EndpointId { app: "1".into(), endpoint: "a".into() }
    }

    fn test_batcher() -> WebhookBatcher {
        WebhookBatcher::new(RetryPolicy { window_ms: 300_000, max_backoff_ms: 30_000 })
    }

    fn test_delivery(record: u64, channel: &str, bytes: usize) -> PendingDelivery {
        let channel = ChannelName::parse(channel).expect("a valid name");
        let event = WebhookEvent { kind: EventKind::ChannelOccupied, channel, id: record.to_string(), order: None };
        PendingDelivery { record, since_ms: 0, outgoing: Arc::new(OutgoingEvent { event, time_ms: 0, bytes }) }
    }

    fn record_numbers(body: &WebhookBatch) -> Vec<u64> {
        body.items.iter().map(|item| item.record).collect()
    }

    #[test]
    fn a_body_has_at_most_a_hundred_events_and_its_channel_stays_busy() {
        let mut batcher = test_batcher();
        for n in 0..150 {
            batcher.push(&test_endpoint(), test_delivery(n, "a", 10));
        }
        let mut first = batcher.take_due_batches(0);
        assert_eq!(first.iter().map(|body| body.items.len()).collect::<Vec<_>>(), [100]);
        assert!(batcher.take_due_batches(0).is_empty(), "the channel is busy");
        let finished = batcher.complete_attempt(first.remove(0), AttemptOutcome::Delivered, 0, 0.0);
        assert_eq!(finished.delivered.len(), 100);
        assert_eq!(record_numbers(&batcher.take_due_batches(0)[0]), (100..150).collect::<Vec<_>>());
    }

    #[test]
    fn a_body_is_bounded_in_bytes() {
        let mut batcher = test_batcher();
        for n in 0..3 {
            batcher.push(&test_endpoint(), test_delivery(n, &format!("c{n}"), BATCH_BYTES_MAX / 2));
        }
        assert_eq!(batcher.take_due_batches(0).iter().map(record_numbers).collect::<Vec<_>>(), [vec![0, 1], vec![2]]);
    }

    #[test]
    fn a_failed_body_backs_off_and_other_channels_are_delivered() {
        let mut batcher = test_batcher();
        batcher.push(&test_endpoint(), test_delivery(1, "a", 1));
        let body = batcher.take_due_batches(0).remove(0);
        batcher.complete_attempt(body, FAILED, 0, 1.0);
        batcher.push(&test_endpoint(), test_delivery(2, "a", 1));
        batcher.push(&test_endpoint(), test_delivery(3, "b", 1));
        assert_eq!(batcher.take_due_batches(499).iter().map(record_numbers).collect::<Vec<_>>(), [[3]]);
        assert_eq!(
            batcher.take_due_batches(500).iter().map(record_numbers).collect::<Vec<_>>(),
            [[1]],
            "2 waits for 1"
        );
    }

    #[test]
    fn after_three_answered_failures_a_body_is_split_by_channel_and_then_by_halves() {
        let mut batcher = test_batcher();
        for (n, channel) in [(1, "a"), (2, "b"), (3, "a"), (4, "a")] {
            batcher.push(&test_endpoint(), test_delivery(n, channel, 1));
        }
        let mut bodies = batcher.take_due_batches(0);
        for _ in 0..3 {
            batcher.complete_attempt(bodies.remove(0), FAILED, 0, 0.0);
            bodies = batcher.take_due_batches(0);
        }
        assert_eq!(bodies.iter().map(record_numbers).collect::<Vec<_>>(), [vec![1, 3, 4], vec![2]]);
        let other = bodies.pop().expect("two parts");
        assert_eq!(batcher.complete_attempt(other, AttemptOutcome::Delivered, 0, 0.0).delivered, [2]);
        for _ in 0..3 {
            batcher.complete_attempt(bodies.remove(0), FAILED, 0, 0.0);
            bodies = batcher.take_due_batches(0);
        }
        assert_eq!(bodies.iter().map(record_numbers).collect::<Vec<_>>(), [[1, 3]]);
        batcher.complete_attempt(bodies.remove(0), AttemptOutcome::Delivered, 0, 0.0);
        assert_eq!(record_numbers(&batcher.take_due_batches(0)[0]), [4]);
    }

    #[test]
    fn attempt_outcomes_drop_or_keep_events() {
        for (name, outcome, now, taken, lost) in [
            ("taken", AttemptOutcome::Delivered, 0, 1, None),
            ("removed", AttemptOutcome::Removed, 0, 0, Some(DropReason::EndpointRemoved)),
            ("failed within the window", FAILED, 299_999, 0, None),
            ("failed at the window's end", FAILED, 300_000, 0, Some(DropReason::RetryWindowOver)),
            ("a busy endpoint is no failure", AttemptOutcome::Busy, 300_000, 0, None),
        ] {
            let mut batcher = test_batcher();
            batcher.push(&test_endpoint(), test_delivery(1, "a", 1));
            let body = batcher.take_due_batches(0).remove(0);
            let finished = batcher.complete_attempt(body, outcome, now, 0.0);
            assert_eq!(finished.delivered.len(), taken, "{name}");
            assert_eq!(finished.dropped.first().map(|(reason, _)| *reason), lost, "{name}");
            let left = taken == 0 && lost.is_none();
            assert_eq!(batcher.take_due_batches(u64::MAX).len(), usize::from(left), "{name}");
        }
    }

    #[test]
    fn only_a_failing_endpoint_loses_events_over_its_limit() {
        let mut batcher = test_batcher();
        for n in 0..=ENDPOINT_EVENTS_MAX as u64 {
            assert!(batcher.push(&test_endpoint(), test_delivery(n, "a", 1)).dropped.is_empty());
        }
        assert!(batcher.has_full_endpoint(), "a working endpoint makes the reader wait");
        let body = batcher.take_due_batches(0).remove(0);
        batcher.complete_attempt(body, FAILED, 0, 0.0);
        assert!(!batcher.has_full_endpoint());
        let lost = batcher.push(&test_endpoint(), test_delivery(9_999, "a", 1)).dropped;
        assert_eq!(
            lost.iter().map(|(_, item)| item.record).collect::<Vec<_>>(),
            [100, 101],
            "the oldest waiting events are dropped"
        );
    }
}
