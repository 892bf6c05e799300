//! The dispatcher's side of the ledger: at which hop each event and each delivery is.
//!
//! In: each step of an event in a shard's pipeline. Out: counters by hop, of which metrics and `/flow` are made. Waiting
//! events are measured in their queues instead, so that an event that vanishes is noticed.

use prometheus_client::metrics::counter::Counter;

use crate::process::metrics::{Labeled, label_values};
use crate::protocol::ledger::{DeliveryLedger, EventLedger};

label_values! {
    /// A hop of an event: `read` is the sum of the others and of the events that wait.
    pub enum EventHop as "hop" {
        /// The event was read from the stream.
        Read = "read",
        /// The event was read or delivered before.
        Duplicate = "duplicate",
        /// Another cluster wrote it.
        Foreign = "foreign",
        /// The bytes are not a record.
        Poison = "poison",
        /// The registry does not have its app.
        UnknownApp = "unknown_app",
        /// A newer event of its subject was released before.
        Superseded = "superseded",
        /// It was half of an absence that ended in time.
        Cancelled = "cancelled",
        /// No endpoint of its app receives it.
        Unwanted = "unwanted",
        /// It went to the endpoints that receive it.
        Released = "released",
        /// It waited when its shard was given up: the next holder reads it again.
        Relinquished = "relinquished",
    }
}

label_values! {
    /// A hop of a delivery: `created` is the sum of the others, without `attempted`, and of the deliveries that wait.
    pub enum DeliveryHop as "hop" {
        /// A released event made it, for one endpoint.
        Created = "created",
        /// It was in a webhook that was posted; a repeat counts again.
        Attempted = "attempted",
        /// The endpoint acknowledged it.
        Delivered = "delivered",
        /// It ended in the dead letter.
        DeadLettered = "dead_lettered",
        /// It was dropped, for a reason that `events_dropped` has.
        Dropped = "dropped",
        /// It waited when its shard was given up: the next holder makes it again.
        Relinquished = "relinquished",
    }
}

/// Counters of events by hop.
pub type EventCounters = Labeled<EventHop, Counter>;

/// Counters of deliveries by hop.
pub type DeliveryCounters = Labeled<DeliveryHop, Counter>;

/// Builds the ledger of events, of which this many wait now.
#[must_use]
pub fn build_event_ledger(counters: &EventCounters, waiting: u64) -> EventLedger {
    let count = |hop| counters.with_label(hop).get();
    EventLedger {
        read: count(EventHop::Read),
        duplicate: count(EventHop::Duplicate),
        foreign: count(EventHop::Foreign),
        poison: count(EventHop::Poison),
        unknown_app: count(EventHop::UnknownApp),
        superseded: count(EventHop::Superseded),
        cancelled: count(EventHop::Cancelled),
        unwanted: count(EventHop::Unwanted),
        released: count(EventHop::Released),
        relinquished: count(EventHop::Relinquished),
        waiting,
    }
}

/// Builds the ledger of deliveries, of which this many wait now.
#[must_use]
pub fn build_delivery_ledger(counters: &DeliveryCounters, waiting: u64) -> DeliveryLedger {
    let count = |hop| counters.with_label(hop).get();
    DeliveryLedger {
        created: count(DeliveryHop::Created),
        attempted: count(DeliveryHop::Attempted),
        delivered: count(DeliveryHop::Delivered),
        dead_lettered: count(DeliveryHop::DeadLettered),
        dropped: count(DeliveryHop::Dropped),
        relinquished: count(DeliveryHop::Relinquished),
        waiting,
    }
}
