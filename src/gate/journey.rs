//! A finished journey of the prober: its path, its times and its outcome.

use std::collections::BTreeMap;

use super::Hop;
use crate::api::Reason;
use crate::protocol::{ShardId, Transport};

/// Outcome of a journey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JourneyOutcome {
    /// Every hop held, including the farewell.
    Pass,
    /// A wrong result, such as a bad signature: counts at once.
    Decisive(HopFailure),
    /// A timeout or a reset, which the network alone can cause: needs confirmation.
    Ambiguous(HopFailure),
    /// The prober itself ended the journey early: no evidence.
    Void,
}

/// The hop at which a journey broke, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopFailure {
    /// The first hop that did not hold.
    pub hop: Hop,
    /// Reason for a condition, one word.
    pub reason: Reason,
    /// Reason as a clause that names the pod.
    pub detail: String,
}

impl HopFailure {
    /// Whether another failure says the same. Names with digits may differ: shards and dispatchers take turns, and ids of
    /// requests are new each time.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.hop == other.hop
            && self.reason == other.reason
            && mask_numbers(&self.detail) == mask_numbers(&other.detail)
    }
}

/// The words of a text, with those that have digits masked.
fn mask_numbers(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| c.is_whitespace() || ":;,".contains(c)).filter(|word| !word.is_empty());
    words.map(|word| if word.contains(|c: char| c.is_ascii_digit()) { "#" } else { word }).collect()
}

/// One finished journey through an entrance of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journey {
    /// Fingerprint of the plan under which it began.
    pub fingerprint: String,
    /// Transport of the client.
    pub transport: Transport,
    /// Pod that the client connected to, or path to the pods.
    pub entrance: String,
    /// Shards that carried the events.
    pub shards: Vec<ShardId>,
    /// Dispatcher that delivered the event, or that read it and did not deliver it; `None` when it is unknown or there is
    /// none.
    pub dispatcher: Option<String>,
    /// Start of the journey, in ms since 1970.
    pub started_ms: u64,
    /// End of the journey, in ms since 1970.
    pub ended_ms: u64,
    /// Latency of each hop, in ms.
    pub latency_ms: BTreeMap<Hop, u64>,
    /// Whether the fan-out was tried. The journeys of the only pod have no other pod to try it with.
    pub fan_out_tried: bool,
    /// Outcome of the journey.
    pub outcome: JourneyOutcome,
}

impl Journey {
    /// Makes the journey void if its webhook was missed and it began before the receiver was found again: a dispatcher
    /// that could not reach the former receiver backs off before it tries the new one.
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
    fn failures_that_differ_in_numbered_names_alone_are_the_same() {
        let failure =
            |hop, detail: &str| HopFailure { hop, reason: Reason::DispatcherStuck, detail: detail.to_owned() };
        let first = failure(Hop::Dispatch, "the event is in shardId-000000000001, which eu-dispatcher-0 has not read");
        let other_shard =
            failure(Hop::Dispatch, "the event is in shardId-000000000002, which eu-dispatcher-1 has not read");
        let other_text = failure(Hop::Dispatch, "the event is in shardId-000000000001, which no dispatcher holds");
        let other_hop = failure(Hop::Delivery, &first.detail);
        assert!(first.is_same_as(&other_shard));
        assert!(!first.is_same_as(&other_text) && !first.is_same_as(&other_hop));
    }

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
                fingerprint: "f1".into(),
                transport: Transport::Websocket,
                entrance: "p".into(),
                shards: vec![],
                dispatcher: None,
                started_ms,
                ended_ms: 20,
                latency_ms: BTreeMap::new(),
                fan_out_tried: true,
                outcome,
            };
            assert_eq!(journey.void_if_missed_before(10).outcome, expected, "{name}");
        }
    }
}
