//! The handle to a running prober: its verdicts, its view of every process, and its plan.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use super::ProbePlan;
use super::observe::EndpointReports;
use super::progress::HopTick;
use super::requested_round::RequestedProof;
use super::session_shedder::SessionShedder;
use crate::gate::{ProcessProof, RegistryReading, Verdict};

/// The state of one process, from its journeys and from its own `/effective`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodStanding {
    /// Hash of the running configuration; empty until the process has reported it.
    pub configuration: String,
    /// The proof that journeys through the process gave.
    pub proof: ProcessProof,
    /// The difference from the rendered configuration, in one line; empty without one.
    pub drift: String,
    /// The registry that the process runs; `None` until the process has reported it.
    pub registry: Option<RegistryReading>,
}

/// A handle to the running journeys.
pub struct Prober {
    /// The latest verdict of the gate.
    pub verdicts: watch::Receiver<Verdict>,
    /// Every process of the plan.
    pub pods: watch::Receiver<BTreeMap<String, PodStanding>>,
    /// The endpoints that each dispatcher reported, at most a minute ago.
    pub endpoints: watch::Receiver<Arc<EndpointReports>>,
    /// Counts the sessions of clients at the edges, and has clients reconnect.
    pub shedder: SessionShedder,
    /// Time in force between two rounds of journeys.
    pub round_interval: watch::Receiver<Duration>,
    /// Time in force between two rounds once the gate is open: that of the manifest, or longer while clusters share a pace.
    pub effective_interval: watch::Receiver<Duration>,
    /// The plan that the next journeys follow.
    pub plan: watch::Sender<Arc<ProbePlan>>,
    /// The latest requested proof; `None` before the first one.
    pub requested: watch::Receiver<Option<RequestedProof>>,
    /// Every passed hop, for a display; a slow receiver misses some.
    pub hops: broadcast::Receiver<HopTick>,
    pub(super) task: JoinHandle<()>,
}

impl Prober {
    /// Waits until the journeys have ended, after the token was cancelled.
    pub async fn wait_until_stopped(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "prober task failed");
        }
    }
}
