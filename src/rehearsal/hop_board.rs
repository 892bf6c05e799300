//! The latest result of each hop, by transport, for the page.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::gate::Hop;
use crate::prober::{HopResult, HopTick};
use crate::protocol::Transport;

/// The hops that journeys have reached since the board was cleared.
#[derive(Debug, Default)]
pub struct HopBoard {
    results: BTreeMap<Transport, BTreeMap<Hop, HopResult>>,
}

impl HopBoard {
    /// Notes a hop. A journey that begins says nothing of the hops after its first, so that their results stay.
    pub fn note_hop(&mut self, tick: &HopTick) {
        self.results.entry(tick.transport).or_default().insert(tick.hop, tick.result.clone());
    }

    /// Forgets everything: the cluster is another.
    pub fn clear(&mut self) {
        self.results.clear();
    }

    /// The board as the page reads it: transport, hop, result.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let hop = |(hop, result): (&Hop, &HopResult)| {
            let value = match result {
                HopResult::Passed(ms) => json!({ "state": "passed", "ms": ms }),
                HopResult::Proven => json!({ "state": "passed" }),
                HopResult::NotApplicable => json!({ "state": "not-applicable" }),
                HopResult::Broken(detail) => json!({ "state": "broken", "detail": detail }),
            };
            (hop.name().to_owned(), value)
        };
        let transports = self
            .results
            .iter()
            .map(|(transport, hops)| (transport.name().to_owned(), Value::Object(hops.iter().map(hop).collect())));
        Value::Object(transports.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_result_of_a_hop_is_shown() {
        let mut board = HopBoard::default();
        let (transport, pod) = (Transport::XhrPolling, "p".to_owned());
        for result in [HopResult::Broken("why".to_owned()), HopResult::Passed(7)] {
            board.note_hop(&HopTick { transport, pod: pod.clone(), hop: Hop::Record, result });
        }
        assert_eq!(board.to_json(), json!({ "xhr_polling": { "record": { "state": "passed", "ms": 7 } } }));
        board.clear();
        assert_eq!(board.to_json(), json!({}));
    }
}
