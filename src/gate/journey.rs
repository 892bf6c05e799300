//! A finished journey.

use std::collections::BTreeMap;

use super::Hop;
use crate::api::Reason;
use crate::protocol::{ShardId, Transport};

/// How a journey ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every hop held, the farewell too.
    Pass,
    /// Measured wrong, e.g. a bad signature: counts at once.
    Decisive(Failure),
    /// A timeout or a reset, which the network alone can cause: needs confirmation.
    Ambiguous(Failure),
    /// Cut short by ourselves: says nothing.
    Void,
}

/// Where a journey broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The first hop that did not hold.
    pub hop: Hop,
    /// Why, in a word.
    pub reason: Reason,
    /// Why, in a clause that names the pod.
    pub detail: String,
}

/// One finished journey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journey {
    /// By which transport.
    pub transport: Transport,
    /// Into which pod, or through which path.
    pub entrance: String,
    /// Through which shards.
    pub shards: Vec<ShardId>,
    /// Through which dispatcher, or the one that had read the event and did not deliver it; `None` when it is not known
    /// or there is none.
    pub dispatcher: Option<String>,
    /// When it began, in ms since 1970.
    pub started_ms: u64,
    /// When it ended.
    pub ended_ms: u64,
    /// How long each hop took, in ms.
    pub latency_ms: BTreeMap<Hop, u64>,
    /// How it ended.
    pub outcome: Outcome,
}
