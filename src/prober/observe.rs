//! Reads the state of every process from its admin listener.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use reqwest::{Client as Http, StatusCode};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{EdgePod, ProbePlan};
use crate::config::{ServerKind, name};
use crate::gate::{ConfigDrift, ExpectedConfig, RegistryReading, find_drifts};
use crate::process::clock;
use crate::protocol::admin::{
    DispatcherFlow, EffectiveReport, EndpointReport, EndpointsReport, FlowReport, SessionFlow,
};
use crate::protocol::{Secret, ShardId};

/// Longest for one answer.
const OBSERVATION_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers that are waited for at once.
pub(super) const CONCURRENT_REQUESTS_MAX: usize = 16;

/// Time between two reads of the endpoints of all dispatchers.
const ENDPOINTS_READ_INTERVAL: Duration = Duration::from_mins(1);
/// Time between two reads of the endpoints until a dispatcher has reported one.
const FIRST_ENDPOINTS_READ_INTERVAL: Duration = Duration::from_secs(5);

/// The endpoints that each dispatcher reported, by pod.
pub type EndpointReports = BTreeMap<String, Vec<EndpointReport>>;

/// The HTTP client for admin listeners.
#[derive(Clone)]
pub(super) struct PodObserver {
    http: Http,
    endpoints: watch::Sender<Arc<EndpointReports>>,
    sessions: watch::Sender<Arc<EdgeSessions>>,
}

/// Sessions of clients at the edges of a plan, as they reported them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeSessions {
    /// Time of the reports, in ms since 1970; 0 before the first.
    pub at_ms: u64,
    /// The report of each edge, by the name of its pod.
    pub pods: BTreeMap<String, PodSessions>,
    /// Number of admitted edges without a report: they did not answer, or are of an older release.
    pub unread: usize,
}

/// Sessions of clients at one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSessions {
    /// Id of its process, which counts from its own start.
    pub process: String,
    /// Sessions by the server whose transports carry them.
    pub servers: BTreeMap<ServerKind, SessionFlow>,
    /// Sessions that the pod takes over all transports, open ones included; `None` from one of an older release.
    pub sessions_max: Option<u64>,
}

/// A pod's name, and its two answers as far as they came.
type PodAnswers = (String, Option<ObservedPod>, Option<FlowReport>);

/// The state that a process reported.
#[derive(Clone, Debug)]
pub(super) struct ObservedPod {
    /// Its id, new at each start.
    pub process: String,
    /// Names what it runs.
    pub configuration: String,
    /// Differences from the rendered configuration, and silent apps.
    pub drifts: Vec<ConfigDrift>,
    /// The registry that it runs; `None` if it did not report one.
    pub registry: Option<RegistryReading>,
}

/// One observation of every pod.
#[derive(Clone, Debug, Default)]
pub(super) struct PodObservation {
    /// Each pod that answered.
    pub pods: BTreeMap<String, ObservedPod>,
    /// The flow of each dispatcher that answered.
    pub dispatchers: BTreeMap<String, DispatcherFlow>,
}

impl PodObservation {
    /// Returns the dispatcher that holds a shard.
    pub fn shard_holder(&self, shard: &ShardId) -> Option<(&String, &DispatcherFlow)> {
        self.dispatchers.iter().find(|(_, flow)| flow.shards.contains_key(shard))
    }
}

/// A response of an admin listener.
enum AdminAnswer<T> {
    /// The response body, parsed.
    Parsed(T),
    /// The token is not the one that it runs with.
    Refused,
    /// Nothing that can be used.
    Unusable,
}

impl PodObserver {
    pub fn new() -> Result<Self, reqwest::Error> {
        let http =
            Http::builder().no_proxy().timeout(OBSERVATION_TIMEOUT).connect_timeout(OBSERVATION_TIMEOUT).build()?;
        Ok(Self { http, endpoints: watch::Sender::default(), sessions: watch::Sender::default() })
    }

    /// The endpoints of all dispatchers, as they were last read.
    pub fn endpoints(&self) -> watch::Receiver<Arc<EndpointReports>> {
        self.endpoints.subscribe()
    }

    /// Sessions of clients at the edges, as they were last read.
    pub fn sessions(&self) -> watch::Receiver<Arc<EdgeSessions>> {
        self.sessions.subscribe()
    }

    /// Asks a process to have a share of its clients reconnect, in percent. Returns whether it begins.
    pub async fn move_share(&self, token: &Secret, admin: SocketAddr, server: ServerKind, share: u8) -> bool {
        let url = format!("http://{admin}/drain?share={share}&server={server}");
        let answer = self.http.post(url).bearer_auth(token.expose()).send().await;
        match answer.and_then(reqwest::Response::error_for_status) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%admin, %error, "share of the clients not moved");
                false
            }
        }
    }

    /// Time in force between two reads of the endpoints.
    pub fn endpoints_interval(&self) -> Duration {
        let is_empty = self.endpoints.borrow().values().all(Vec::is_empty);
        if is_empty { FIRST_ENDPOINTS_READ_INTERVAL } else { ENDPOINTS_READ_INTERVAL }
    }

    /// Reads the endpoints of all dispatchers. One that does not answer keeps its former report.
    pub async fn read_endpoints(&self, plan: &ProbePlan) {
        let before = Arc::clone(&self.endpoints.borrow());
        let read = |pod: &str, admin| {
            let pod = pod.to_owned();
            async move {
                let answer = self.get::<EndpointsReport>(&plan.admin_token, admin, "endpoints").await;
                (pod, answer)
            }
        };
        let reads: Vec<_> = plan.dispatchers.iter().map(|pod| read(&pod.pod, pod.admin)).collect();
        let mut reports = EndpointReports::new();
        let mut answers = stream::iter(reads).buffer_unordered(CONCURRENT_REQUESTS_MAX);
        while let Some((pod, answer)) = answers.next().await {
            let report = match answer {
                AdminAnswer::Parsed(report) => Some(report.endpoints),
                AdminAnswer::Refused | AdminAnswer::Unusable => before.get(&pod).cloned(),
            };
            reports.extend(report.map(|report| (pod, report)));
        }
        self.endpoints.send_replace(Arc::new(reports));
    }

    /// Compares a process's configuration with the rendered one. `None` without a response.
    async fn observe_configuration(
        &self,
        plan: &ProbePlan,
        admin: SocketAddr,
        wanted: &BTreeMap<String, String>,
    ) -> Option<ObservedPod> {
        match self.get::<EffectiveReport>(&plan.admin_token, admin, "effective").await {
            AdminAnswer::Parsed(found) => Some(ObservedPod {
                drifts: find_pod_drifts(plan, wanted, &found),
                registry: Some(plan.registry.read().unwrap_or_else(PoisonError::into_inner).compare(&found.apps)),
                process: found.process,
                configuration: found.configuration,
            }),
            // Who refuses the token that was rendered runs with another.
            AdminAnswer::Refused => Some(ObservedPod {
                drifts: vec![ConfigDrift::Variable { name: name::ADMIN_TOKEN.to_owned(), wanted: None, found: None }],
                process: String::new(),
                configuration: String::new(),
                registry: None,
            }),
            AdminAnswer::Unusable => None,
        }
    }

    /// Reads the flow counters of a process. `None` without a response.
    pub async fn read_flow(&self, token: &Secret, admin: SocketAddr) -> Option<FlowReport> {
        match self.get(token, admin, "flow").await {
            AdminAnswer::Parsed(flow) => Some(flow),
            AdminAnswer::Refused | AdminAnswer::Unusable => None,
        }
    }

    async fn get<T: DeserializeOwned>(&self, token: &Secret, admin: SocketAddr, path: &str) -> AdminAnswer<T> {
        let request = self.http.get(format!("http://{admin}/{path}")).bearer_auth(token.expose());
        let answer = match request.send().await {
            Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED => return AdminAnswer::Refused,
            answer => answer.and_then(reqwest::Response::error_for_status),
        };
        let body = match answer {
            Ok(answer) => answer.bytes().await,
            Err(error) => Err(error),
        };
        match body.map(|body| serde_json::from_slice(&body)) {
            Ok(Ok(value)) => AdminAnswer::Parsed(value),
            Ok(Err(error)) => {
                tracing::warn!(%admin, path, %error, "admin response unreadable");
                AdminAnswer::Unusable
            }
            Err(error) => {
                tracing::debug!(%admin, path, %error, "admin listener unreachable");
                AdminAnswer::Unusable
            }
        }
    }

    /// Looks at every pod. A pod that does not answer is not in the observation: that is no difference.
    pub async fn observe_all(&self, plan: &ProbePlan) -> PodObservation {
        let edges = plan.edges.iter().map(|pod| (&pod.pod, pod.admin, &pod.wanted, false));
        let dispatchers = plan.dispatchers.iter().map(|pod| (&pod.pod, pod.admin, &pod.wanted, pod.leaving));
        let mut looks: Vec<BoxFuture<'_, PodAnswers>> = Vec::new();
        for (pod, admin, wanted, leaving) in edges.chain(dispatchers) {
            looks.push(Box::pin(async move {
                let mut seen = self.observe_configuration(plan, admin, wanted).await;
                if let Some(seen) = seen.as_mut().filter(|_| leaving) {
                    seen.drifts.clear();
                }
                let flow = self.read_flow(&plan.admin_token, admin).await;
                (pod.clone(), seen, flow)
            }));
        }
        let mut observation = PodObservation::default();
        let mut sessions = EdgeSessions { at_ms: clock::now_ms(), ..EdgeSessions::default() };
        let mut answers = stream::iter(looks).buffer_unordered(CONCURRENT_REQUESTS_MAX);
        while let Some((pod, seen, flow)) = answers.next().await {
            let FlowReport { recorder, dispatcher, process, sessions: servers, sessions_max, .. } =
                flow.unwrap_or_default();
            if !servers.is_empty() {
                sessions.pods.insert(pod.clone(), PodSessions { process, servers, sessions_max });
            }
            if let Some(flow) = dispatcher {
                observation.dispatchers.insert(pod.clone(), flow);
            }
            if let Some(mut seen) = seen {
                let silent = recorder.map(|flow| flow.silent_apps).unwrap_or_default();
                seen.drifts.extend(silent.into_iter().map(ConfigDrift::SilentApp));
                observation.pods.insert(pod, seen);
            }
        }
        let is_unread = |edge: &&EdgePod| edge.admitted && !sessions.pods.contains_key(&edge.pod);
        sessions.unread = plan.edges.iter().filter(is_unread).count();
        self.sessions.send_replace(Arc::new(sessions));
        observation
    }
}

/// Compares what a pod reports with the rendered variables and with the registry as it is now: the report may be older than
/// the registry, and never newer.
fn find_pod_drifts(plan: &ProbePlan, wanted: &BTreeMap<String, String>, found: &EffectiveReport) -> Vec<ConfigDrift> {
    let registry = plan.registry.read().unwrap_or_else(PoisonError::into_inner);
    find_drifts(&ExpectedConfig { variables: wanted, registry: &registry }, found, clock::now_ms())
}
