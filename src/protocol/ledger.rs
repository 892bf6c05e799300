//! The ledger of the webhook pipeline: each event is at one of a fixed number of hops, and so is each delivery of an event
//! to an endpoint. `ledger_balance` compares the hops.

use serde::{Deserialize, Serialize};

/// Events of a dispatcher since its start, by hop. An event that was read is at exactly one of the other hops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EventLedger {
    /// Events that were read; a record that cannot be parsed counts as one.
    pub read: u64,
    /// Events that were read or delivered before.
    pub duplicate: u64,
    /// Events of another cluster.
    pub foreign: u64,
    /// Records that cannot be parsed.
    pub poison: u64,
    /// Events of an app that the registry does not have.
    pub unknown_app: u64,
    /// Events that came after a newer one of their subject.
    pub superseded: u64,
    /// Events of absences that ended in time.
    pub cancelled: u64,
    /// Events that no endpoint of their app receives.
    pub unwanted: u64,
    /// Events that went to the endpoints.
    pub released: u64,
    /// Events that waited when their shard was given up: the next holder reads them again.
    pub relinquished: u64,
    /// Events that wait now: for their order, the end of an absence, or their app.
    pub waiting: u64,
}

/// Deliveries of a dispatcher since its start, by hop: a released event makes one for each endpoint that receives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeliveryLedger {
    /// Deliveries that released events made.
    pub created: u64,
    /// Deliveries in webhooks that were posted; a repeat counts again.
    pub attempted: u64,
    /// Deliveries that an endpoint acknowledged.
    pub delivered: u64,
    /// Deliveries that ended in the dead letter.
    pub dead_lettered: u64,
    /// Deliveries that were dropped; the reasons are in `dropped` of the flow.
    pub dropped: u64,
    /// Deliveries that waited when their shard was given up: the next holder makes them again.
    pub relinquished: u64,
    /// Deliveries that wait now: for their endpoint, for their letter, or for the release of their shard.
    pub waiting: u64,
}

impl EventLedger {
    /// The sum of all hops but the first.
    #[must_use]
    pub fn accounted(&self) -> u64 {
        let seen_before = self.duplicate + self.foreign + self.poison + self.unknown_app;
        let decided = self.superseded + self.cancelled + self.unwanted + self.released;
        seen_before + decided + self.relinquished + self.waiting
    }

    /// Events of this cluster that were read for the first time.
    #[must_use]
    pub fn read_once(&self) -> u64 {
        self.read.saturating_sub(self.duplicate + self.foreign + self.poison)
    }
}

impl DeliveryLedger {
    /// The sum of the hops at which a delivery is or ends.
    #[must_use]
    pub fn accounted(&self) -> u64 {
        self.delivered + self.dead_lettered + self.dropped + self.relinquished + self.waiting
    }
}
