//! Sending by endpoint: one task per endpoint and process owns its queue, permits, back-off and breaker.
//!
//! In: events of all shards that this process holds. Out: attempts to post them, and for each shard the events that are
//! finished. A body has events of one endpoint and of any shards. Must not know how a shard is read.
//!
//! [`queue`] decides what is posted when, [`share`] what is evicted; both are pure. [`pool`] runs the tasks.

mod index;
pub(super) mod pool;
mod queue;
#[cfg(test)]
mod queue_tests;
pub(super) mod share;

use std::fmt;
use std::sync::Arc;

use super::metrics::DropReason;
use crate::protocol::AppId;
use crate::protocol::webhook::WebhookEvent;

/// Identifies one hold of a shard by this process; another hold of the same shard has another number.
pub type HoldId = u64;

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
    /// The hold of the shard that the event was read from.
    pub hold: HoldId,
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
}
