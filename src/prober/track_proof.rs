//! The verdict of a gate as the proof of one track of a move.

use crate::api::Reason;
use crate::api::cluster::TransportState;
use crate::config::ServerKind;
use crate::gate::{GatePhase, Verdict};
use crate::migration::track::TrackProof;

/// Reads the proof of the transports that a server carries. A gate that is closed for another server's transports alone does
/// not concern them, and stale evidence is no failure.
#[must_use]
pub fn prove_track(verdict: &Verdict, server: ServerKind) -> TrackProof {
    let is_ours = |found: ServerKind| found.serves_as(server);
    let ours = || verdict.transports.iter().filter(|transport| is_ours(transport.server));
    if let Some(failing) = ours().find(|transport| transport.state == TransportState::Failing) {
        return TrackProof::Failing(failing.hop.map(|hop| hop.name().to_owned()).unwrap_or_default());
    }
    if ours().next().is_none() || verdict.reason == Reason::EvidenceStale {
        return TrackProof::Unknown;
    }
    let all_pass = ours().all(|transport| transport.state == TransportState::Passing);
    let mut others = verdict.transports.iter().filter(|transport| !is_ours(transport.server));
    let others_fail = others.any(|transport| transport.state == TransportState::Failing);
    match verdict.phase {
        GatePhase::Open | GatePhase::Closed | GatePhase::Refused if all_pass && (verdict.ready || others_fail) => {
            TrackProof::Passing
        }
        GatePhase::Closed | GatePhase::Refused => TrackProof::Failing(String::new()),
        GatePhase::Open | GatePhase::Proving => TrackProof::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::gate::{Hop, TransportVerdict};
    use crate::protocol::Transport;

    fn transport(transport: Transport, state: TransportState) -> TransportVerdict {
        TransportVerdict {
            transport,
            server: transport.server_kind(),
            state,
            hop: (state == TransportState::Failing).then_some(Hop::Record),
            not_applicable: vec![],
            pods_passing: 1,
            pods: 1,
            latency_ms: BTreeMap::new(),
        }
    }

    #[test]
    fn a_track_is_proven_by_its_own_transports() {
        use TransportState::{Failing, Passing, Unknown};
        let failing = |hop: &str| TrackProof::Failing(hop.to_owned());
        for (case, [websocket, sockjs], phase, ready, reason, expected) in [
            ("all pass", [Passing, Passing], GatePhase::Open, true, Reason::Proven, TrackProof::Passing),
            ("ours fails", [Passing, Failing], GatePhase::Closed, false, Reason::RecordMissing, failing("record")),
            ("another fails", [Failing, Passing], GatePhase::Closed, false, Reason::RecordMissing, TrackProof::Passing),
            (
                "a variable differs",
                [Passing, Passing],
                GatePhase::Closed,
                false,
                Reason::ConfigurationDrift,
                failing(""),
            ),
            (
                "stale evidence",
                [Passing, Unknown],
                GatePhase::Closed,
                false,
                Reason::EvidenceStale,
                TrackProof::Unknown,
            ),
            ("under way", [Unknown, Unknown], GatePhase::Proving, false, Reason::Proving, TrackProof::Unknown),
        ] {
            let verdict = Verdict {
                fingerprint: String::new(),
                passed_ms: None,
                inherited: false,
                phase,
                ready,
                reason,
                message: String::new(),
                transports: vec![
                    transport(Transport::Websocket, websocket),
                    transport(Transport::XhrStreaming, sockjs),
                ],
                external: None,
            };
            assert_eq!(prove_track(&verdict, ServerKind::Sockjs), expected, "{case}");
            let none = Verdict { transports: vec![], ..verdict };
            assert_eq!(prove_track(&none, ServerKind::Sockjs), TrackProof::Unknown, "{case}: no transport");
        }
    }
}
