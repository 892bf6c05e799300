//! A verdict as it is printed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::api::Reason;
use crate::api::cluster::TransportState;
use crate::gate::{GatePhase, Hop, Verdict};
use crate::process::clock::whole_ms;
use crate::protocol::Transport;
use crate::rehearsal::StartRefusal;

/// The verdict, in the form of the JSON output.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RehearsalReport {
    /// Whether the cluster is operational.
    pub ready: bool,
    /// The reason, as in the Ready condition.
    pub reason: String,
    /// The message, as in the Ready condition.
    pub message: String,
    /// Since the program's start.
    pub elapsed_ms: u64,
    /// One entry per transport.
    pub transports: Vec<TransportReport>,
}

/// The result of one transport.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TransportReport {
    /// The name of the transport.
    pub name: &'static str,
    /// The server that carries it.
    pub server: &'static str,
    /// The state of the transport.
    pub state: TransportState,
    /// The first hop that is broken; empty when none is.
    pub hop: &'static str,
    /// Hops that do not apply, because the cluster has one pod.
    pub not_applicable: Vec<&'static str>,
    /// Median of each hop in ms.
    pub latency_ms: BTreeMap<Hop, u64>,
}

impl RehearsalReport {
    /// Builds the report from a verdict of the gate.
    pub fn new(verdict: &Verdict, elapsed: Duration) -> Self {
        Self {
            ready: verdict.ready,
            reason: verdict.reason.to_string(),
            message: verdict.message.clone(),
            elapsed_ms: whole_ms(elapsed),
            transports: verdict
                .transports
                .iter()
                .map(|transport| TransportReport {
                    name: transport.transport.name(),
                    server: transport.server.name(),
                    state: transport.state,
                    hop: transport.hop.map_or("", Hop::name),
                    not_applicable: transport.not_applicable.iter().map(|hop| hop.name()).collect(),
                    latency_ms: transport.latency_ms.clone(),
                })
                .collect(),
        }
    }

    /// No decision within the time.
    pub fn timed_out(verdict: &Verdict, elapsed: Duration, timeout: Duration) -> Self {
        let mut report = Self::new(verdict, elapsed);
        report.ready = false;
        let open = if verdict.phase == GatePhase::Proving { "not proven" } else { "not decided" };
        report.message = format!("{open} after {} s: {}", timeout.as_secs(), verdict.message);
        report
    }

    /// A server that did not start.
    pub fn of_refusal(refusal: &StartRefusal, transports: &[Transport], elapsed: Duration) -> Self {
        let message = format!("{}: {} refuses to start: {}", refusal.server, refusal.pod, refusal.line);
        let mut report = Self::with_untried_transports(Reason::ConfigurationRefused, message, transports, elapsed);
        let ours = |transport: &&mut TransportReport| {
            transport.server.parse().is_ok_and(|server| refusal.server.serves_as(server))
        };
        for transport in report.transports.iter_mut().filter(ours) {
            transport.state = TransportState::Failing;
            transport.hop = Hop::Connect.name();
        }
        report
    }

    /// The journeys ended by themselves.
    pub fn without_verdict(transports: &[Transport], elapsed: Duration) -> Self {
        let message = "the journeys ended before a verdict: see the log with --log info".to_owned();
        Self::with_untried_transports(Reason::Proving, message, transports, elapsed)
    }

    fn with_untried_transports(reason: Reason, message: String, transports: &[Transport], elapsed: Duration) -> Self {
        let untried = |transport: &Transport| TransportReport {
            name: transport.name(),
            server: transport.server_kind().name(),
            state: TransportState::Unknown,
            hop: "",
            not_applicable: vec![],
            latency_ms: BTreeMap::new(),
        };
        let transports = transports.iter().map(untried).collect();
        Self { ready: false, reason: reason.to_string(), message, elapsed_ms: whole_ms(elapsed), transports }
    }

    /// Returns the report as one line of JSON.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}
