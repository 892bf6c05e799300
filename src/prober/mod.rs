//! Journeys: a client and a webhook receiver that know the servers by the wire alone.
//!
//! In: pods with what was rendered for them, an app's credentials, a stream to read back from. Out: verdicts of the
//! gate, and every hop as it is passed. Journeys run on their own schedule and overlap; when a webhook is missing, the
//! stream and the servers' own accounts are read to name the first broken hop.
//!
//! This room must not know the code of edge and dispatcher: it shares `protocol` with them and nothing else, so that it
//! judges as a customer would.

mod client_address;
mod clients;
mod control_journey;
mod coverage;
mod dead_letter;
mod diagnose;
mod expected_webhooks;
mod handle;
mod http_publish;
mod journey;
mod journey_budget;
mod launch;
mod letter_proof;
mod metrics;
mod nonce;
mod observe;
mod plan;
mod pod_tour;
mod progress;
mod public_api;
mod read_back;
mod receiver;
mod requested_round;
mod rounds;
mod scheduler;
mod self_test;
mod service_routes;
mod session_shedder;
mod track_proof;
mod visitor;

pub use crate::desired::ProbeApp;
pub use client_address::{ClientAddress, DialTarget, TlsTrust};
pub use control_journey::{ControlJourney, ControlResult};
pub use handle::{PodStanding, Prober};
pub use journey_budget::{BudgetShare, JOURNEYS_PER_SECOND, JourneyBudget};
pub use metrics::JourneyMetrics;
pub use observe::{EdgeSessions, EndpointReports, PodSessions};
pub use progress::{HopResult, HopTick};
pub use receiver::{RECEIVER_SILENCE_MAX, WebhookReceiver};
pub use requested_round::{RequestedProof, RequestedTransport};
pub use scheduler::{ProberReports, start};
pub use session_shedder::SessionShedder;
pub use track_proof::prove_track;
pub use visitor::Visitor;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use crate::api::cluster::ExternalGate;
use crate::gate::{ExternalTargets, GatePolicy, RegistryHistory};
use crate::kinesis;
use crate::protocol::{Secret, StreamName, Transport};

/// An edge pod that journeys run through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgePod {
    /// The name of the pod.
    pub pod: String,
    /// The address that clients connect to.
    pub public: SocketAddr,
    /// The address of the admin listener.
    pub admin: SocketAddr,
    /// The transports that the pod serves.
    pub transports: Vec<Transport>,
    /// The rendered variables, secrets as salted digests.
    pub wanted: BTreeMap<String, String>,
    /// Whether the pod is admitted to its Services.
    pub admitted: bool,
}

/// A path of clients to the pods: a Service, or a load balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRoute {
    /// The name that messages use.
    pub name: String,
    /// The address that clients connect to.
    pub public: ClientAddress,
    /// The address of the HTTP API, for a load balancer that leads to it alone.
    pub api: Option<ClientAddress>,
    /// The transports that the pods behind the Service serve.
    pub transports: Vec<Transport>,
    /// Whether an admitted pod is behind the Service. Until then no journey through it is expected to pass.
    pub serving: bool,
    /// Whether events are larger than 8 KB, the size up to which a web ACL of AWS inspects a body.
    pub has_large_events: bool,
}

/// The paths through load balancers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExternalPlan {
    /// Whether Ready waits for the paths; `None` if no load balancer of the manifest has a host.
    pub gate: Option<ExternalGate>,
    /// A path for each host and each published address.
    pub routes: Vec<ServiceRoute>,
    /// Load balancers without a published address, each with the cause.
    pub pending: Vec<String>,
    /// Address from which journeys begin, for a message.
    pub source: String,
}

impl ExternalPlan {
    /// The paths that the gate asks journeys for.
    fn targets(&self) -> ExternalTargets {
        let path = |route: &ServiceRoute| (route.name.clone(), route.transports.iter().copied().collect());
        ExternalTargets {
            gate: self.gate,
            paths: self.active_routes().map(path).collect(),
            pending: self.pending.clone(),
            source: self.source.clone(),
        }
    }

    /// The paths with journeys: none while the manifest switches them off.
    fn active_routes(&self) -> impl Iterator<Item = &ServiceRoute> {
        let is_active = self.gate.is_some_and(|gate| gate != ExternalGate::Disabled);
        self.routes.iter().filter(move |_| is_active)
    }
}

/// The entry point of a journey: a pod, a Service or a load balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entrance {
    /// The name that messages use.
    pub name: String,
    /// The address that clients connect to.
    pub public: ClientAddress,
    /// The address of the HTTP API, if the entry point is in front of it alone.
    pub api: Option<ClientAddress>,
    /// The admin listener of the one pod that it is; `None` for a path, behind which there may be any.
    pub admin: Option<SocketAddr>,
    /// Whether it is a load balancer.
    pub is_external: bool,
    /// Whether events are larger than 8 KB.
    pub has_large_events: bool,
}

impl Entrance {
    /// The entry point at a load balancer.
    fn of_external(path: &ServiceRoute) -> Self {
        Self { is_external: true, ..Self::from(path) }
    }
}

impl From<&EdgePod> for Entrance {
    fn from(edge: &EdgePod) -> Self {
        Self {
            name: edge.pod.clone(),
            public: ClientAddress::plain(edge.public),
            api: None,
            admin: Some(edge.admin),
            is_external: false,
            has_large_events: false,
        }
    }
}

impl From<&ServiceRoute> for Entrance {
    fn from(path: &ServiceRoute) -> Self {
        Self {
            name: path.name.clone(),
            public: path.public.clone(),
            api: path.api.clone(),
            admin: None,
            is_external: false,
            has_large_events: path.has_large_events,
        }
    }
}

/// A dispatcher pod, as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DispatcherPod {
    /// The name of the pod.
    pub pod: String,
    /// The address of the admin listener, at the address from which the pod posts webhooks.
    pub admin: SocketAddr,
    /// The rendered variables, secrets as salted digests.
    pub wanted: BTreeMap<String, String>,
    /// Whether the pod is admitted to its Services.
    pub admitted: bool,
    /// Whether the pod is being replaced: it may hold shards until its successor is admitted, and its configuration does
    /// not count.
    pub leaving: bool,
}

/// The proof that holds before the first journey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JourneyProof {
    /// It was never proven.
    Never,
    /// It was, and broke or grew old since its last complete round, whose start is given in ms since 1970.
    Lapsed {
        /// Start of the oldest pass of the last complete round.
        passed_ms: u64,
    },
    /// It was, and holds.
    Holds {
        /// Start of the oldest pass of the last complete round.
        passed_ms: u64,
    },
}

/// The versions of the app registry, recorded by the writer of the registry and read at each look at a pod: a pod may load
/// a version before the next plan reaches the prober.
pub type SharedRegistryHistory = Arc<RwLock<RegistryHistory>>;

/// The cluster that journeys have to prove.
#[derive(Clone, Debug)]
pub struct ProbePlan {
    /// Names what is proven: evidence of another name does not count for it.
    pub fingerprint: String,
    /// Whether this was proven already, as its former prover wrote down.
    pub proof: JourneyProof,
    /// Longest that a sender waits before it tries a receiver again that it could not reach.
    pub max_backoff: Duration,
    /// Transports that must be proven, whether or not a pod serves them.
    pub transports: BTreeSet<Transport>,
    /// Whether there are webhooks.
    pub webhooks: bool,
    /// Number of pods that the manifest asks for, by the transport that they carry.
    pub wanted_pods: BTreeMap<Transport, usize>,
    /// Every edge pod of the cluster.
    pub edges: Vec<EdgePod>,
    /// Every way that clients take to them.
    pub paths: Vec<ServiceRoute>,
    /// The paths through load balancers.
    pub external: ExternalPlan,
    /// Every dispatcher pod of the cluster.
    pub dispatchers: Vec<DispatcherPod>,
    /// The app that journeys use.
    pub app: ProbeApp,
    /// The versions of the app registry that pods may run.
    pub registry: SharedRegistryHistory,
    /// Opens the admin listeners.
    pub admin_token: Secret,
    /// Reads back; `None` when there are no webhooks.
    pub stream: Option<kinesis::KinesisClient>,
    /// The stream for dead letters, of which the letter of a test record must come out; `None` to prove nothing.
    pub dead_letter: Option<StreamName>,
    /// The thresholds of the gate.
    pub policy: GatePolicy,
    /// Token of a proof that is requested and not complete; each new one starts a round at once.
    pub requested: Option<String>,
}

impl ProbePlan {
    /// Number of edge pods that carry a transport.
    fn count_pods(&self, transport: Transport) -> usize {
        self.edges.iter().filter(|edge| edge.transports.contains(&transport)).count()
    }

    /// Whether another plan asks for the same journeys.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
            && self.transports == other.transports
            && self.webhooks == other.webhooks
            && self.dead_letter == other.dead_letter
            && self.edges == other.edges
            && self.paths == other.paths
            && self.external == other.external
            && self.dispatchers == other.dispatchers
            && self.wanted_pods == other.wanted_pods
            && self.policy == other.policy
            && self.requested == other.requested
            && Arc::ptr_eq(&self.registry, &other.registry)
            && self.admin_token.expose() == other.admin_token.expose()
            && self.app.key == other.app.key
    }
}
