//! A finished journey.

use std::collections::BTreeMap;

use super::Hop;
use crate::api::Reason;
use crate::protocol::{ShardId, Transport};

/// How a journey ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JourneyOutcome {
    /// Every hop held, the farewell too.
    Pass,
    /// Measured wrong, e.g. a bad signature: counts at once.
    Decisive(HopFailure),
    /// A timeout or a reset, which the network alone can cause: needs confirmation.
    Ambiguous(HopFailure),
    /// Cut short by ourselves: says nothing.
    Void,
}

/// Where a journey broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopFailure {
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
    pub outcome: JourneyOutcome,
}

impl Journey {
    /// The same, but void if it began before the receiver was found again and its webhook was missed: a sender that
    /// could not reach the former receiver waits before it tries the new one.
    #[must_use]
    pub fn void_if_missed_before(self, found_ms: u64) -> Self {
        let missed = matches!(&self.outcome, JourneyOutcome::Ambiguous(failure) if failure.hop >= Hop::Delivery);
        let outcome = if missed && self.started_ms < found_ms { JourneyOutcome::Void } else { self.outcome };
        Self { outcome, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_that_may_have_gone_to_the_former_receiver_is_not_missed() {
        let failure = |hop| HopFailure { hop, reason: Reason::WebhookMissing, detail: String::new() };
        let (lost, wrong) =
            (|hop| JourneyOutcome::Ambiguous(failure(hop)), JourneyOutcome::Decisive(failure(Hop::Authenticity)));
        for (name, outcome, started_ms, expected) in [
            ("missed at first", lost(Hop::Delivery), 9, JourneyOutcome::Void),
            ("missed later", lost(Hop::Delivery), 10, lost(Hop::Delivery)),
            ("lost before the stream", lost(Hop::Record), 9, lost(Hop::Record)),
            ("measured wrong", wrong.clone(), 9, wrong),
            ("passed", JourneyOutcome::Pass, 9, JourneyOutcome::Pass),
        ] {
            let journey = Journey {
                transport: Transport::Websocket,
                entrance: "p".into(),
                shards: vec![],
                dispatcher: None,
                started_ms,
                ended_ms: 20,
                latency_ms: BTreeMap::new(),
                outcome,
            };
            assert_eq!(journey.void_if_missed_before(10).outcome, expected, "{name}");
        }
    }
}
