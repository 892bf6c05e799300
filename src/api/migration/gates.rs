//! Gates of a track: conditions beyond the target's proof under which a bake counts and the next weight is written.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::EnabledState;

/// Conditions under which a track goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MigrationGates {
    /// Seconds for which the target's proof may be unknown before its weight becomes 0.
    #[schemars(range(min = 10, max = 600))]
    pub unknown_seconds: u32,
    /// Webhook endpoints that fail at the target alone. While more do, the bake does not count and no weight rises.
    pub delivery: DeliveryGate,
    /// Room for the clients that the next weight moves, and for their way back. While it is missing, the bake does not count
    /// and no weight rises.
    pub headroom: HeadroomGate,
}

impl Default for MigrationGates {
    fn default() -> Self {
        Self { unknown_seconds: 120, delivery: DeliveryGate::default(), headroom: HeadroomGate::default() }
    }
}

/// Limit of webhook endpoints that fail at the target alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeliveryGate {
    /// Whether the gate can hold the track.
    pub state: EnabledState,
    /// Largest share of endpoints that fail at the target and not at the source, in percent of those to which the target has
    /// sent webhooks.
    #[schemars(range(min = 0, max = 100))]
    pub max_delta: u8,
}

impl Default for DeliveryGate {
    fn default() -> Self {
        Self { state: EnabledState::Enabled, max_delta: 1 }
    }
}

/// Room for clients at the target and at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HeadroomGate {
    /// Whether the gate can hold the track.
    pub state: EnabledState,
    /// Share of the target's limit of connections that stays free, in percent.
    #[schemars(range(min = 0, max = 90))]
    pub reserve: u8,
}

impl Default for HeadroomGate {
    fn default() -> Self {
        Self { state: EnabledState::Enabled, reserve: 30 }
    }
}

/// Names of the gates, as the manifest has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum GateName {
    /// Webhook endpoints that fail at the target alone.
    Delivery,
    /// Room for the clients, there and back.
    Headroom,
}

impl fmt::Display for GateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delivery => "delivery",
            Self::Headroom => "headroom",
        })
    }
}

/// States of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GateState {
    /// The condition of the gate holds.
    Passing,
    /// The condition of the gate does not hold: no bake counts, and no weight rises.
    Failing,
    /// The condition cannot be measured. It holds the track only if it failed before.
    Unavailable,
}

/// State of one gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrackGateStatus {
    /// Name of the gate.
    pub name: GateName,
    /// State of the gate.
    pub state: GateState,
    /// The numbers of both clusters, or the reason for which they are not known.
    pub message: String,
}
