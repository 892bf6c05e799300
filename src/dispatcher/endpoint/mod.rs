//! Sending by endpoint: one task per endpoint and process owns its queue, permits, back-off and breaker.
//!
//! In: events of all shards that this process holds. Out: attempts to post them, and for each shard the events that are
//! finished. A body has events of one endpoint and of any shards. Must not know how a shard is read.
//!
//! [`queue`] decides what is posted when, [`share`] what is evicted; both are pure. [`pool`] runs the tasks.

mod index;
pub(super) mod pool;
pub(super) mod queue;
#[cfg(test)]
mod queue_tests;
pub(super) mod share;

use std::fmt;
use std::sync::Arc;

use serde_json::value::{RawValue, to_raw_value};

use super::events::{ShardSlot, TrackedEvent};
use super::reasons::DropReason;
use crate::protocol::record::EventTopic;
use crate::protocol::webhook::WebhookEvent;
use crate::protocol::{AppId, ChannelName};

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

/// An event that was serialised once; the bodies of all attempts and endpoints share its text.
#[derive(Debug)]
pub struct OutgoingEvent {
    /// Id of the event, the same in every attempt.
    pub id: String,
    /// The channel that the event belongs to.
    pub channel: ChannelName,
    /// The state of which it is a version.
    pub topic: Option<EventTopic>,
    /// Time at which the bus decided the event, in ms since 1970.
    pub time_ms: u64,
    /// The webhook event as JSON.
    pub json: Box<RawValue>,
}

impl OutgoingEvent {
    /// Serialises an event, once.
    #[must_use]
    pub fn new(event: WebhookEvent, time_ms: u64) -> Self {
        // Values of this type always serialise.
        let json = to_raw_value(&event).unwrap_or_default();
        let topic = EventTopic::of_kind(&event.kind);
        Self { id: event.id, channel: event.channel, topic, time_ms, json }
    }

    /// Serialises an event of a shard, once.
    #[must_use]
    pub fn of_event(event: TrackedEvent) -> Self {
        let time_ms = event.event.time_ms;
        Self::new(WebhookEvent::new(event.channel, event.event), time_ms)
    }

    /// Bytes that the event adds to a body.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.json.get().len()
    }
}

/// An event to be delivered to one endpoint.
#[derive(Clone, Debug)]
pub struct PendingDelivery {
    /// The hold of the shard that the event was read from.
    pub hold: ShardSlot,
    /// Number that the checkpoint tracker gave the event's record.
    pub record: u64,
    /// Time at which the event was queued here; the retry window counts from it.
    pub since_ms: u64,
    /// The event, shared by all endpoints that subscribe to it.
    pub outgoing: Arc<OutgoingEvent>,
}

/// An event that needs no further attempt.
#[derive(Debug)]
pub struct FinishedDelivery {
    /// The event and its shard.
    pub delivery: PendingDelivery,
    /// The reason for which it was dropped; `None` if it was delivered.
    pub dropped: Option<DropReason>,
    /// Attempts to post it that failed.
    pub attempts: u32,
    /// The outcome of the last of these attempts.
    pub last_answer: Option<Arc<str>>,
}

/// The outcome of one attempt, with the failure in words.
#[derive(Clone, Debug)]
pub struct AttemptReport {
    /// The outcome of the attempt.
    pub outcome: AttemptOutcome,
    /// The failure, such as `answered 500`.
    pub failure: Option<Arc<str>>,
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
    /// The endpoint is no longer configured.
    Removed,
    /// The endpoint is switched off.
    Disabled,
}
