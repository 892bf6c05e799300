//! What the servers say of themselves, read from their admin listeners.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use reqwest::Client as Http;
use serde::de::DeserializeOwned;

use super::Plan;
use crate::gate::{Drift, compare};
use crate::protocol::admin::{DispatcherFlow, Effective, Flow};
use crate::protocol::{Secret, ShardId};
use crate::runtime::clock;

/// Longest for one answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Answers that are waited for at once.
const CONCURRENCY: usize = 16;

/// Reads admin listeners.
#[derive(Clone)]
pub(super) struct Observer {
    http: Http,
    token: Secret,
}

/// A pod's name, and its two answers as far as they came.
type Look = (String, Option<Vec<Drift>>, Option<DispatcherFlow>);

/// What was seen in one look at every pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Observation {
    /// Differences of each pod that answered.
    pub drifts: BTreeMap<String, Vec<Drift>>,
    /// The flow of each dispatcher that answered.
    pub dispatchers: BTreeMap<String, DispatcherFlow>,
}

impl Observation {
    /// Who holds a shard.
    pub fn holder(&self, shard: &ShardId) -> Option<(&String, &DispatcherFlow)> {
        self.dispatchers.iter().find(|(_, flow)| flow.shards.contains_key(shard))
    }
}

impl Observer {
    pub fn new(token: Secret) -> Result<Self, reqwest::Error> {
        let http = Http::builder().no_proxy().timeout(TIMEOUT).connect_timeout(TIMEOUT).build()?;
        Ok(Self { http, token })
    }

    /// What a process runs. `None` when it does not answer.
    async fn effective(&self, admin: SocketAddr) -> Option<Effective> {
        self.get(admin, "effective").await
    }

    /// What flows through a process. `None` when it does not answer.
    pub async fn flow(&self, admin: SocketAddr) -> Option<Flow> {
        self.get(admin, "flow").await
    }

    async fn get<T: DeserializeOwned>(&self, admin: SocketAddr, path: &str) -> Option<T> {
        let request = self.http.get(format!("http://{admin}/{path}")).bearer_auth(self.token.expose());
        let answer = request.send().await.and_then(reqwest::Response::error_for_status);
        let body = match answer {
            Ok(answer) => answer.bytes().await,
            Err(error) => Err(error),
        };
        match body.map(|body| serde_json::from_slice(&body)) {
            Ok(Ok(value)) => Some(value),
            Ok(Err(error)) => {
                tracing::warn!(%admin, path, %error, "an admin listener's answer cannot be read");
                None
            }
            Err(error) => {
                tracing::debug!(%admin, path, %error, "an admin listener does not answer");
                None
            }
        }
    }

    /// Looks at every pod. A pod that does not answer is not in the observation: that is no difference.
    pub async fn look(&self, plan: &Plan) -> Observation {
        let edges = plan.edges.iter().map(|pod| (&pod.pod, pod.admin, &pod.wanted, false));
        let dispatchers = plan.dispatchers.iter().map(|pod| (&pod.pod, pod.admin, &pod.wanted, true));
        let mut looks: Vec<BoxFuture<'_, Look>> = Vec::new();
        for (pod, admin, wanted, dispatcher) in edges.chain(dispatchers) {
            looks.push(Box::pin(async move {
                let effective = self.effective(admin).await;
                let drifts = effective.map(|found| compare(wanted, &plan.app_digests, &found, clock::now_ms()));
                let flow = if dispatcher { self.flow(admin).await.and_then(|flow| flow.dispatcher) } else { None };
                (pod.clone(), drifts, flow)
            }));
        }
        let mut observation = Observation::default();
        let mut answers = stream::iter(looks).buffer_unordered(CONCURRENCY);
        while let Some((pod, drifts, flow)) = answers.next().await {
            if let Some(flow) = flow {
                observation.dispatchers.insert(pod.clone(), flow);
            }
            if let Some(drifts) = drifts {
                observation.drifts.insert(pod, drifts);
            }
        }
        observation
    }
}
