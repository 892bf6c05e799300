//! A proof that the annotation `realtime-operator.dev/prove-now` requests: whether it is still to run, and its status.
//! Pure.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::api::cluster::{HopTime, ProofState, ProofTransport, RealtimeClusterStatus, RequestedProofStatus};
use crate::api::{PROVE_NOW_ANNOTATION, RealtimeCluster};
use crate::prober::{RequestedProof, RequestedTransport};
use crate::process::clock::format_time;

/// Longest token, in characters; a longer one is truncated.
const TOKEN_LEN_MAX: usize = 128;

/// The token of a requested proof that is not complete, according to the status.
pub fn find_open_request(cluster: &RealtimeCluster, known: &RealtimeClusterStatus) -> Option<String> {
    let token = read_token(cluster)?;
    let complete = find_known(known).is_some_and(|proof| proof.token == token && proof.state != ProofState::Running);
    (!complete).then_some(token)
}

/// Whether the status does not know the request yet.
pub fn is_new_request(token: &str, known: &RealtimeClusterStatus) -> bool {
    find_known(known).is_none_or(|proof| proof.token != token)
}

fn read_token(cluster: &RealtimeCluster) -> Option<String> {
    let token: String = cluster.annotations().get(PROVE_NOW_ANNOTATION)?.chars().take(TOKEN_LEN_MAX).collect();
    (!token.is_empty()).then_some(token)
}

fn find_known(known: &RealtimeClusterStatus) -> Option<&RequestedProofStatus> {
    known.gate.as_ref()?.requested_proof.as_ref()
}

/// The status of the latest requested proof. A report of the prober counts for its own token alone; without one the request
/// waits, and a complete proof stays.
pub fn decide_proof_status(
    cluster: &RealtimeCluster,
    known: &RealtimeClusterStatus,
    report: Option<&RequestedProof>,
    now: Timestamp,
) -> Option<RequestedProofStatus> {
    let stored = find_known(known);
    let Some(token) = find_open_request(cluster, known) else { return stored.cloned() };
    if let Some(report) = report.filter(|report| report.token == token) {
        return Some(describe_proof(report));
    }
    Some(stored.filter(|proof| proof.token == token).cloned().unwrap_or_else(|| RequestedProofStatus {
        token,
        state: ProofState::Running,
        started_at: now.to_string(),
        finished_at: None,
        message: "waiting until journeys can run".to_owned(),
        transports: vec![],
    }))
}

fn describe_proof(report: &RequestedProof) -> RequestedProofStatus {
    let passed: usize = report.transports.iter().map(|transport| transport.passed).sum();
    let wanted: usize = report.transports.iter().map(|transport| transport.wanted).sum();
    let state = match (&report.failure, report.finished_ms) {
        (_, None) => ProofState::Running,
        (None, Some(_)) => ProofState::Passed,
        (Some(_), Some(_)) => ProofState::Failed,
    };
    let count = format!("{passed} of {wanted} journeys passed");
    RequestedProofStatus {
        token: report.token.clone(),
        state,
        started_at: format_time(report.started_ms),
        finished_at: report.finished_ms.map(format_time),
        message: report.failure.as_ref().map_or_else(|| count.clone(), |failure| format!("{count}; {failure}")),
        transports: report.transports.iter().map(describe_transport).collect(),
    }
}

fn describe_transport(transport: &RequestedTransport) -> ProofTransport {
    let hops = transport.latency_ms.iter();
    ProofTransport {
        name: transport.transport.name().to_owned(),
        routes: format!("{}/{}", transport.passed, transport.wanted),
        hop: transport.hop.map(|hop| hop.name().to_owned()).unwrap_or_default(),
        hops: hops.map(|(hop, ms)| HopTime { name: hop.name().to_owned(), milliseconds: *ms }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::api::cluster::GateStatus;
    use crate::api::fixture::applied_cluster;
    use crate::gate::Hop;
    use crate::protocol::Transport;

    fn report(token: &str, finished_ms: Option<u64>, failure: Option<&str>) -> RequestedProof {
        RequestedProof {
            token: token.to_owned(),
            started_ms: 1_000,
            finished_ms,
            failure: failure.map(str::to_owned),
            transports: vec![RequestedTransport {
                transport: Transport::Websocket,
                passed: 1,
                wanted: 2,
                hop: None,
                latency_ms: BTreeMap::from([(Hop::Connect, 3)]),
            }],
        }
    }

    fn known(token: &str, state: ProofState) -> RequestedProofStatus {
        RequestedProofStatus {
            token: token.to_owned(),
            state,
            started_at: "2026-01-01T00:00:00Z".to_owned(),
            finished_at: None,
            message: "stored".to_owned(),
            transports: vec![],
        }
    }

    /// Annotation, stored proof, report of the prober, whether the plan requests it, and the resulting status.
    type ProofCase<'a> = (
        &'a str,
        Option<&'a str>,
        Option<RequestedProofStatus>,
        Option<RequestedProof>,
        bool,
        Option<(&'a str, ProofState, &'a str)>,
    );

    #[test]
    fn each_new_token_is_proven_once_and_its_result_stays() {
        use ProofState::{Failed, Passed, Running};
        let cases: [ProofCase<'_>; 9] = [
            ("no request", None, None, None, false, None),
            ("an empty one", Some(""), None, None, false, None),
            ("a new one waits", Some("a"), None, None, true, Some(("a", Running, "waiting until journeys can run"))),
            (
                "it runs",
                Some("a"),
                None,
                Some(report("a", None, None)),
                true,
                Some(("a", Running, "1 of 2 journeys passed")),
            ),
            (
                "it passed",
                Some("a"),
                Some(known("a", Running)),
                Some(report("a", Some(2_000), None)),
                true,
                Some(("a", Passed, "1 of 2 journeys passed")),
            ),
            (
                "it failed",
                Some("a"),
                None,
                Some(report("a", Some(2_000), Some("why"))),
                true,
                Some(("a", Failed, "1 of 2 journeys passed; why")),
            ),
            (
                "a complete one is not repeated",
                Some("a"),
                Some(known("a", Passed)),
                Some(report("a", None, None)),
                false,
                Some(("a", Passed, "stored")),
            ),
            (
                "the next one",
                Some("b"),
                Some(known("a", Passed)),
                Some(report("a", Some(2_000), None)),
                true,
                Some(("b", Running, "waiting until journeys can run")),
            ),
            (
                "a removed annotation leaves the result",
                None,
                Some(known("a", Failed)),
                None,
                false,
                Some(("a", Failed, "stored")),
            ),
        ];
        for (name, annotation, stored, report, open, expected) in cases {
            let mut cluster = applied_cluster("");
            if let Some(token) = annotation {
                cluster.annotations_mut().insert(PROVE_NOW_ANNOTATION.to_owned(), token.to_owned());
            }
            let gate = GateStatus { requested_proof: stored, ..GateStatus::default() };
            let status = RealtimeClusterStatus { gate: Some(gate), ..RealtimeClusterStatus::default() };
            assert_eq!(find_open_request(&cluster, &status).is_some(), open, "{name}");
            let found = decide_proof_status(&cluster, &status, report.as_ref(), Timestamp::UNIX_EPOCH);
            let found = found.as_ref().map(|proof| (proof.token.as_str(), proof.state, proof.message.as_str()));
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn a_report_is_shown_with_times_routes_and_hops() {
        let proof = describe_proof(&report("a", Some(2_000), None));
        assert_eq!(proof.started_at, "1970-01-01T00:00:01Z");
        assert_eq!(proof.finished_at.as_deref(), Some("1970-01-01T00:00:02Z"));
        assert_eq!(proof.transports[0].routes, "1/2");
        assert_eq!(proof.transports[0].hops, [HopTime { name: "connect".to_owned(), milliseconds: 3 }]);
    }
}
