//! Plans the journeys of a validated cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use super::{ExternalPlan, JourneyProof, ProbePlan};
use crate::desired::{GateSettings, ValidCluster};
use crate::gate::{GatePolicy, RegistryHistory};
use crate::protocol::Transport;

impl ProbePlan {
    /// Plans the journeys of a cluster of which no pod, Service, stream or proof is known yet.
    #[must_use]
    pub fn of_cluster(cluster: &ValidCluster) -> Self {
        let GateSettings { interval, timeout, open_after, close_after } = cluster.gate;
        let dispatcher = cluster.dispatcher();
        // Nothing is written to a stream that is only observed, so nothing is claimed of its dead letters.
        let may_put = cluster.stream.goal.is_managed();
        Self {
            fingerprint: String::new(),
            proof: JourneyProof::Never,
            max_backoff: dispatcher.map_or(Duration::ZERO, |dispatcher| dispatcher.max_backoff),
            transports: Transport::ALL.into_iter().filter(|transport| cluster.serves_transport(*transport)).collect(),
            webhooks: dispatcher.is_some(),
            wanted_pods: BTreeMap::new(),
            edges: vec![],
            paths: vec![],
            external: ExternalPlan::default(),
            dispatchers: vec![],
            app: cluster.probe.clone(),
            registry: Arc::new(RwLock::new(RegistryHistory::of_registry(
                cluster.registry.app_digests(cluster.admin_token.expose()),
            ))),
            admin_token: cluster.admin_token.clone(),
            stream: None,
            dead_letter: dispatcher.and_then(|_| cluster.stream.dead_letter_name()).filter(|_| may_put),
            policy: GatePolicy { interval, timeout, open_after, close_after, ..GatePolicy::default() },
            requested: None,
        }
    }
}
