//! The context of an operator for tests of moves: the double of the API server, and the Deployments of a cluster in its watch.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::watcher;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::sessions::EdgeControl;
use super::test_api::TestApi;
use crate::api::RealtimeCluster;
use crate::config::{ServerKind, name};
use crate::desired::{KnownInjectors, PlatformPolicy, ServerImage};
use crate::kinesis::KinesisConnections;
use crate::kubernetes::scope::{WatchRange, WatchScope};
use crate::operator::context::{ControllerContext, SharedContext};
use crate::operator::live_objects::LiveObjects;
use crate::operator::metrics::OperatorMetrics;
use crate::operator::registry_histories::RegistryHistories;
use crate::operator::rendered_clusters::RenderedClusters;
use crate::operator::secret_reader::SecretReader;
use crate::operator::unreadable_objects::UnreadableObjects;
use crate::prober::{EdgeSessions, JourneyBudget, PodSessions, WebhookReceiver};
use crate::process::heartbeat::Heartbeats;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::admin::SessionFlow;

/// Host of the cluster's own.
pub const TARGET: &str = "sockjs.eks.example.com";

fn deployment(server: &str) -> Value {
    let variable = |name: &str, value: &str| json!({ "name": name, "value": value });
    let env =
        [variable(name::SESSION_HOST, TARGET), variable(name::BUS_GROUP, "fleet"), variable(name::WEBHOOKS, "kinesis")];
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {
            "name": format!("eu-{server}"), "namespace": "channels",
            "labels": { "app.kubernetes.io/instance": "eu", "app.kubernetes.io/component": server },
            "ownerReferences": [{ "apiVersion": "realtime-operator.dev/v1alpha1", "kind": "RealtimeCluster", "name": "eu", "uid": "1a2b3c4d-0000" }],
        },
        "spec": { "selector": {}, "template": { "spec": { "containers": [{ "name": "server", "image": "a/b:1", "env": env }] } } },
    })
}

/// A context over the double, with the Deployments of the cluster `eu`.
pub async fn build_context(api: &TestApi, metrics: Arc<OperatorMetrics>) -> SharedContext {
    let (heartbeats, stop) = (Heartbeats::default(), CancellationToken::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let receiving = heartbeats.register("receiver", None, &stop);
    let reporter = Reporter { controller: "test".to_owned(), instance: None };
    crate::process::install_tls();
    let context = ControllerContext {
        client: api.client(),
        recorder: Recorder::new(api.client(), reporter.clone()),
        reporter,
        may_write: Box::new(|| true),
        receiver: WebhookReceiver::start(listener, receiving, stop.clone()).expect("a receiver"),
        journeys: JourneyBudget::default(),
        inherited_evidence_max: Duration::from_mins(15),
        receiver_address: String::new(),
        own_address: [127, 0, 0, 1].into(),
        kubernetes_uid: String::new(),
        live: LiveObjects::default(),
        secrets: SecretReader::new(api.client()),
        rendered: RenderedClusters::default(),
        kinesis: KinesisConnections::new(metrics.kinesis_calls.clone()),
        registries: RegistryHistories::default(),
        own_image: ServerImage::of_operator(None),
        policy: PlatformPolicy::default(),
        known_injectors: KnownInjectors::shipped().expect("injectors"),
        scope: WatchScope::All,
        unreadable: UnreadableObjects::new().0,
        metrics,
        heartbeats,
        stop,
        failures: Mutex::new(HashMap::new()),
    };
    let deployments = context.live.children("Deployment").expect("an index");
    for server in ["sockjs", "dispatcher"] {
        let object = serde_json::from_value(deployment(server)).expect("a Deployment");
        deployments.apply_event(&WatchRange::All, watcher::Event::Apply(object));
    }
    Arc::new(context)
}

/// A double of the target's edges: sessions of clients, of which each share that is asked for leaves at once.
pub struct TestEdges {
    open: AtomicU64,
    opened: AtomicU64,
    sessions_max: AtomicU64,
    now_ms: Arc<AtomicU64>,
    asked: Mutex<Vec<(ServerKind, u8)>>,
}

impl TestEdges {
    /// Edges with 40 open sessions of 100, by this clock. They take 1000.
    pub fn new(now_ms: Arc<AtomicU64>) -> Self {
        let [open, opened, sessions_max] = [40, 100, 1_000].map(AtomicU64::new);
        Self { open, opened, sessions_max, now_ms, asked: Mutex::default() }
    }

    /// Has the edges take so many sessions from now on.
    pub fn limit_sessions(&self, sessions_max: u64) {
        self.sessions_max.store(sessions_max, Ordering::Relaxed);
    }

    /// Counts further sessions as opened.
    pub fn open_sessions(&self, count: u64) {
        self.opened.fetch_add(count, Ordering::Relaxed);
    }

    /// The shares that were asked for, with their servers.
    pub fn asked(&self) -> Vec<(ServerKind, u8)> {
        lock_unpoisoned(&self.asked).clone()
    }
}

impl EdgeControl for TestEdges {
    fn sessions(&self, _: &RealtimeCluster) -> Vec<Arc<EdgeSessions>> {
        let (open, opened) = (self.open.load(Ordering::Relaxed), self.opened.load(Ordering::Relaxed));
        let servers = [(ServerKind::Sockjs, SessionFlow { open, opened })].into();
        let sessions_max = Some(self.sessions_max.load(Ordering::Relaxed));
        let pods =
            [("eu-sockjs-1".to_owned(), PodSessions { process: "one".to_owned(), servers, sessions_max })].into();
        vec![Arc::new(EdgeSessions { at_ms: self.now_ms.load(Ordering::Relaxed), pods, unread: 0 })]
    }

    fn shed<'a>(&'a self, _: &RealtimeCluster, server: ServerKind, share: u8) -> BoxFuture<'a, ()> {
        lock_unpoisoned(&self.asked).push((server, share));
        let open = self.open.load(Ordering::Relaxed);
        self.open.store(open - (open * u64::from(share)).div_ceil(100), Ordering::Relaxed);
        Box::pin(async {})
    }
}
