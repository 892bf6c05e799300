//! The verdict of the gate, for status conditions and on-call engineers.

use std::collections::BTreeMap;

use super::checks::{Finding, FindingSubject, first_finding};
use super::{ConfigDrift, DeadLetterProof, Evidence, ExternalVerdict, GatePhase, Hop, HopFailure};
use crate::api::Reason;
use crate::api::cluster::TransportState;
use crate::config::ServerKind;
use crate::protocol::Transport;

/// Bounds the drifts of one process that a message lists.
const LISTED_DRIFTS_MAX: usize = 4;

/// Verdict of the gate at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Fingerprint of what it was reached on: it says nothing of anything else.
    pub fingerprint: String,
    /// Start of the oldest pass of the latest complete round, in ms since 1970; `None` before the first one.
    pub passed_ms: Option<u64>,
    /// Whether the proof is a former leader's, until this one has completed a round of its own.
    pub inherited: bool,
    /// Phase of the gate.
    pub phase: GatePhase,
    /// Whether the cluster is operational.
    pub ready: bool,
    /// Reason for a condition, one word.
    pub reason: Reason,
    /// Reason in a line that an on-call engineer can act on.
    pub message: String,
    /// Verdict of each transport that the manifest asks for.
    pub transports: Vec<TransportVerdict>,
    /// Result of the journeys from outside; `None` if the manifest has no load balancer with hosts.
    pub external: Option<ExternalVerdict>,
}

/// Verdict of one transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportVerdict {
    /// Transport of the clients.
    pub transport: Transport,
    /// Kind of server that carries the transport.
    pub server: ServerKind,
    /// State of the transport in the status.
    pub state: TransportState,
    /// The first hop with a confirmed failure.
    pub hop: Option<Hop>,
    /// Hops that were not tried because they do not apply, such as the fan-out of the only pod.
    pub not_applicable: Vec<Hop>,
    /// Number of pods whose latest journey passed.
    pub pods_passing: usize,
    /// Number of pods that carry the transport, or that the manifest asks for.
    pub pods: usize,
    /// Median latency of each hop, in ms.
    pub latency_ms: BTreeMap<Hop, u64>,
}

impl Verdict {
    /// Whether another verdict says the same, apart from latencies and the time of the latest round: these change with
    /// every journey, and nobody acts on them.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        let Self { fingerprint, passed_ms: _, inherited, phase, ready, reason, message, transports, external } = self;
        let same_transports = transports.len() == other.transports.len()
            && transports.iter().zip(&other.transports).all(|(one, two)| one.is_same_as(two));
        *fingerprint == other.fingerprint
            && (*inherited, *phase, *ready, *reason) == (other.inherited, other.phase, other.ready, other.reason)
            && *message == other.message
            && *external == other.external
            && same_transports
    }
}

impl TransportVerdict {
    fn is_same_as(&self, other: &Self) -> bool {
        let Self { transport, server, state, hop, not_applicable, pods_passing, pods, latency_ms: _ } = self;
        (*transport, *server, *state, *hop) == (other.transport, other.server, other.state, other.hop)
            && *not_applicable == other.not_applicable
            && (*pods_passing, *pods) == (other.pods_passing, other.pods)
    }
}

impl Evidence {
    /// Returns the current phase without its reasons: a refusal is still `Proving`.
    #[must_use]
    pub fn phase(&self) -> GatePhase {
        match (self.open, self.ever_open) {
            (true, _) => GatePhase::Open,
            (false, true) => GatePhase::Closed,
            (false, false) => GatePhase::Proving,
        }
    }

    /// Returns the current verdict.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let transports = self.transport_verdicts();
        let tried = transports.iter().all(|transport| {
            transport.state != TransportState::Unknown || self.targets.count_pods(transport.transport) == 0
        });
        // A process that starts for the first time has nothing to report yet.
        let starting = |finding: &Finding<'_>| match finding.subject {
            FindingSubject::Unanswered { pod } => !self.ever_open && self.is_newcomer(pod),
            _ => false,
        };
        let finding = first_finding(self).filter(|finding| !starting(finding));
        let refuted = finding.as_ref().is_some_and(Finding::refutes);
        let phase = match self.phase() {
            GatePhase::Proving if refuted && tried => GatePhase::Refused,
            phase => phase,
        };
        let (reason, message) = match finding {
            _ if phase == GatePhase::Open => self.proven_summary(),
            Some(finding) => self.describe_finding(&finding, &transports),
            None => (Reason::Proving, self.progress_summary(&transports)),
        };
        Verdict {
            fingerprint: self.fingerprint.clone(),
            passed_ms: self.inherited_ms.or_else(|| self.coverage.passed_ms()),
            inherited: self.inherited_ms.is_some(),
            phase,
            ready: self.open,
            reason,
            message,
            transports,
            external: self.external_verdict(),
        }
    }

    fn transport_verdicts(&self) -> Vec<TransportVerdict> {
        self.targets.transports.iter().map(|transport| self.transport_verdict(*transport)).collect()
    }

    fn transport_verdict(&self, transport: Transport) -> TransportVerdict {
        let failure =
            self.counted_failures().filter(|(found, _, _)| *found == transport).map(|(_, _, failure)| failure);
        let hop = failure.map(|failure| failure.hop).min();
        let (pods_passing, pods) = self.count_passing_pods(transport);
        let state = match hop {
            Some(_) => TransportState::Failing,
            None if pods > 0 && pods_passing == pods => TransportState::Passing,
            // A single loss of a proven transport is not confirmed yet; an unproven transport is unknown.
            None if self.open => TransportState::Passing,
            None => TransportState::Unknown,
        };
        let server = transport.server_kind();
        TransportVerdict {
            transport,
            server,
            state,
            hop,
            not_applicable: self.not_applicable_hops(transport),
            pods_passing,
            pods,
            latency_ms: self.median_latencies(transport),
        }
    }

    /// Returns the reason and the message of the first finding.
    pub(super) fn describe_first_finding(&self) -> Option<(Reason, String)> {
        first_finding(self).map(|finding| self.describe_finding(&finding, &self.transport_verdicts()))
    }

    /// Returns the reason and the message of a finding.
    fn describe_finding(&self, finding: &Finding<'_>, transports: &[TransportVerdict]) -> (Reason, String) {
        let passing: Vec<&str> = transports
            .iter()
            .filter(|transport| transport.state == TransportState::Passing)
            .map(|transport| transport.transport.name())
            .collect();
        let aside = if passing.is_empty() { String::new() } else { format!(" ({}: Passing)", passing.join(", ")) };
        match &finding.subject {
            FindingSubject::Failure { pod, failure } => {
                let place = list_failing_transports(transports, failure);
                let drifts = self.explaining_drifts(pod, failure);
                let reason = drifts.and_then(|(_, drifts)| drifts.first()).map_or(failure.reason, ConfigDrift::reason);
                let blame = drifts.map_or_else(String::new, |(found, drifts)| {
                    if found == *pod {
                        format!("; {}", join_drifts(drifts))
                    } else {
                        format!("; on {found}, {}", join_drifts(drifts))
                    }
                });
                (reason, format!("{place}: {}{aside}{blame}", failure.detail))
            }
            FindingSubject::Stale(message) => (Reason::EvidenceStale, message.clone()),
            FindingSubject::EmptyDimension { reason, message } => (*reason, message.clone()),
            FindingSubject::Drift { pod, drifts } => {
                let reason = drifts.first().map_or(Reason::ConfigurationDrift, ConfigDrift::reason);
                (reason, format!("{pod}: {}{aside}", join_drifts(drifts)))
            }
            FindingSubject::Unanswered { pod } => {
                let message =
                    format!("{pod}: its admin listener does not answer, so its configuration is unknown{aside}");
                (Reason::EdgeUnreachable, message)
            }
            FindingSubject::Dispatcher { pod, failure } => {
                (failure.reason, format!("{pod}: {}{aside}", failure.detail))
            }
            FindingSubject::LossRate { transport, pod, failure } => {
                let message = format!(
                    "{}/{transport}: more than 5 % of the last 200 journeys were lost, the latest on {pod}: {}",
                    transport.server_kind(),
                    failure.detail
                );
                (failure.reason, message)
            }
            FindingSubject::BrokenGate(fault) => (Reason::GateBroken, (*fault).to_owned()),
            FindingSubject::BrokenDeadLetter(message) => (Reason::DeadLetterBroken, (*message).to_owned()),
            FindingSubject::AwaitedDeadLetter => {
                let progress = self.progress_summary(transports);
                (Reason::Proving, format!("the dead letter of a test record is awaited; {progress}"))
            }
            FindingSubject::DeniedListing(error) => {
                (Reason::AccessDenied, format!("the shards of the stream are unknown: {error}{aside}"))
            }
            FindingSubject::MissingPods(message) => {
                (Reason::RollingOut, format!("{message}; {}", self.progress_summary(transports)))
            }
            FindingSubject::External { reason, message } => (*reason, format!("{message}{aside}")),
            FindingSubject::Closing { reason, message } => (*reason, (*message).to_owned()),
        }
    }

    fn proven_summary(&self) -> (Reason, String) {
        let names: Vec<&str> = self.targets.transports.iter().map(|transport| transport.name()).collect();
        let names = names.join(", ");
        let pods = self.targets.pods.len();
        if self.targets.webhooks {
            let (shards, dispatchers) = (self.targets.shards.len(), self.targets.dispatchers.len());
            let message = format!(
                "{names}: clients' events arrived as signed webhooks through {}, {} and {}",
                format_count(pods, "edge pod"),
                format_count(shards, "shard"),
                format_count(dispatchers, "dispatcher")
            );
            let message = match &self.dead_letter {
                DeadLetterProof::Proven => format!("{message}; a test record became a dead letter"),
                DeadLetterProof::Unproven(error) => format!("{message}; dead letters are not proven: {error}"),
                DeadLetterProof::NotApplicable | DeadLetterProof::Pending | DeadLetterProof::Broken(_) => message,
            };
            (Reason::Proven, message)
        } else {
            let pods = format_count(pods, "edge pod");
            let message = format!("{names}: clients' events went through {pods}; webhooks are off, as written");
            (Reason::ReadyWithoutWebhooks, message)
        }
    }

    fn progress_summary(&self, transports: &[TransportVerdict]) -> String {
        let parts: Vec<String> = transports
            .iter()
            .map(|transport| format!("{} {}/{}", transport.transport, transport.pods_passing, transport.pods))
            .collect();
        let suspect = self.latest_failure().map_or_else(String::new, |(transport, _, failure)| {
            format!("; last loss: {}/{transport}: {}", transport.server_kind(), failure.detail)
        });
        let waited = self.first_unanswered().map_or_else(String::new, |pod| format!("; {pod} has not answered yet"));
        format!("pods that passed so far: {}{waited}{suspect}", parts.join(", "))
    }
}

/// Lists a process's drifts, up to [`LISTED_DRIFTS_MAX`].
fn join_drifts(drifts: &[ConfigDrift]) -> String {
    let mut texts: Vec<String> = drifts.iter().take(LISTED_DRIFTS_MAX).map(ToString::to_string).collect();
    if drifts.len() > LISTED_DRIFTS_MAX {
        texts.push(format!("and {} more", drifts.len() - LISTED_DRIFTS_MAX));
    }
    texts.join("; ")
}

fn format_count(number: usize, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}

/// Lists the transports that fail at this hop, such as `sockjs/xhr_streaming, sockjs/xhr_polling`.
fn list_failing_transports(transports: &[TransportVerdict], failure: &HopFailure) -> String {
    let failing = transports.iter().filter(|transport| transport.hop == Some(failure.hop));
    failing.map(|transport| format!("{}/{}", transport.server, transport.transport)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
