//! An edge as its clients see it: real sockets, the bus in memory, and a real Kinesis API where records matter.

// Clients of a test end it where they stand; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

mod bus_outage;
mod clients;
mod cluster_group;
mod cluster_isolation;
mod connection_log;
mod connection_policy;
mod drain;
mod fallbacks;
mod hostile;
mod last_messages;
mod load_balancers;
mod messages;
mod outage_memory;
mod outbox;
mod presence_outage;
mod raw_client;
mod recording;
mod relay;
mod reload;
mod slow_bus;
mod strangers;
mod unresponsive_owner;
mod users;
mod wire_details;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use realtime_operator::bus::{Bus, MemoryBus};
use realtime_operator::config::ServerConfig;
use realtime_operator::edge::{self, EdgeDependencies, RunningEdge};
use realtime_operator::kinesis::{KinesisClient, ReadPosition};
use realtime_operator::protocol::admin::{FlowReport, RecorderFlow, RecorderState};
use realtime_operator::protocol::fallback::{FallbackFrame, STREAM_LIMIT_UNITS};
use realtime_operator::protocol::frame::ServerMessage;
use realtime_operator::protocol::record::{EventKind, LeaveCause, RecordedEvent, StreamRecord};
use realtime_operator::protocol::registry::{App, AppLimits, CredentialState};
use realtime_operator::protocol::{Secret, rest, signature};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

use crate::fixtures::{
    build_app, build_credential, build_webhook, connect_kinesis, replace_file, start_kinesis, write_registry,
};
use crate::waiting::{WAIT_TIMEOUT, describe_last, eventually, eventually_ok, within};
pub use clients::{ESTABLISHED, SUBSCRIBED, Wire, client_event, dial, received, subscribe};
use clients::{Ws, Xhr, auth};
use recording::{read_events, start_stream};

pub const TOKEN: &str = "admin-token";

fn app(id: &str, enabled: bool) -> App {
    let webhooks = vec![build_webhook("https://receiver.example/unused")];
    App { enabled, webhooks, ..build_app(id, &format!("key{id}"), &format!("secret{id}")) }
}

pub struct Edge {
    pub running: RunningEdge,
    pub shutdown: CancellationToken,
    apps: tempfile::TempDir,
    pub http: reqwest::Client,
}

/// The values of an edge; `more` replaces some of them.
fn values(server: &str, webhooks: &str, apps: &Path, more: &[(&str, &str)]) -> ServerConfig {
    let fallbacks = "xhr_streaming,xhr_polling,sockjs_websocket,sockjs_xhr_streaming,sockjs_xhr,sockjs_eventsource";
    let transports = match server {
        "websocket" => "websocket".to_owned(),
        "sockjs" => fallbacks.to_owned(),
        _ => format!("websocket,{fallbacks}"),
    };
    let variables = [
        ("REALTIME_CLUSTER", "ns/eu"),
        ("REALTIME_CLUSTER_UID", "uid-1"),
        ("REALTIME_SERVER", server),
        ("REALTIME_POD", "pod-1"),
        ("REALTIME_ADMIN_TOKEN", TOKEN),
        ("REALTIME_APPS_PATH", apps.to_str().expect("a path")),
        ("REALTIME_TRANSPORTS", &transports),
        ("REALTIME_WEBHOOKS", webhooks),
        ("REALTIME_STREAM_NAME", "events"),
        ("REALTIME_BUS", "memory"),
        ("REALTIME_ADMISSION", "none"),
        ("REALTIME_AWS_IDENTITY", "NodeRole"),
        ("AWS_REGION", "eu-west-1"),
    ];
    let all = variables.iter().chain(more);
    ServerConfig::parse(all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))).expect("values")
}

async fn dependencies(apps: &Path, bus: Arc<dyn Bus>, kinesis: Option<KinesisClient>) -> EdgeDependencies {
    EdgeDependencies {
        public: TcpListener::bind("127.0.0.1:0").await.expect("a listener"),
        admin: TcpListener::bind("127.0.0.1:0").await.expect("a listener"),
        peer: None,
        apps_dir: apps.to_owned(),
        kinesis,
        bus,
        shutdown: CancellationToken::new(),
    }
}

pub async fn start(server: &str, bus: MemoryBus, kinesis: Option<KinesisClient>) -> Edge {
    start_with(server, vec![app("1", true), app("2", false)], &[], bus, kinesis).await
}

/// An edge with these apps and some variables more.
async fn start_with(
    server: &str,
    known: Vec<App>,
    more: &[(&str, &str)],
    bus: MemoryBus,
    kinesis: Option<KinesisClient>,
) -> Edge {
    start_on_bus(server, known, more, Arc::new(bus), kinesis).await
}

async fn start_on_bus(
    server: &str,
    known: Vec<App>,
    more: &[(&str, &str)],
    bus: Arc<dyn Bus>,
    kinesis: Option<KinesisClient>,
) -> Edge {
    realtime_operator::process::install_tls();
    let apps = tempfile::tempdir().expect("a directory");
    write_registry(apps.path(), known);
    let values = values(server, if kinesis.is_some() { "kinesis" } else { "off" }, apps.path(), more);
    let deps = dependencies(apps.path(), bus, kinesis).await;
    let shutdown = deps.shutdown.clone();
    let running = edge::start(values, deps).await.expect("an edge");
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    Edge { running, shutdown, apps, http }
}

/// An edge without a stream that shares its bus with nobody.
pub async fn alone(server: &str) -> Edge {
    start(server, MemoryBus::new(), None).await
}

impl Edge {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.running.public)
    }

    pub async fn publish(&self, app: &str, body: &Value) -> reqwest::Response {
        let (path, body) = (format!("/apps/{app}/events"), body.to_string());
        let now = realtime_operator::process::clock::now_ms() / 1000;
        let secret = Secret::new(format!("secret{app}"));
        let query = rest::signed_query(&format!("key{app}"), &secret, ("POST", &path), body.as_bytes(), now);
        let url = url::Url::parse_with_params(&self.url(&path), query).expect("a url");
        self.http.post(url).body(body).send().await.expect("an answer")
    }

    /// A counter or gauge, 0 while it has no series.
    async fn metric(&self, series: &str) -> u64 {
        let page = self.admin("/metrics").await.text().await.expect("a text");
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().expect("a number"))
    }

    pub async fn admin(&self, path: &str) -> reqwest::Response {
        let url = format!("http://{}{path}", self.running.admin);
        self.http.get(url).bearer_auth(TOKEN).send().await.expect("an answer")
    }

    async fn flow(&self) -> RecorderFlow {
        let text = self.admin("/flow").await.text().await.expect("a text");
        serde_json::from_str::<FlowReport>(&text).expect("a flow").recorder.expect("a recorder")
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        within(WAIT_TIMEOUT, "the end of the edge", self.running.wait_stopped()).await.expect("a clean end");
    }

    pub async fn websocket(&self) -> Ws {
        let mut ws = Ws::open(self.running.public, "/app/key1?protocol=7&client=test&version=1").await;
        ws.greeted().await;
        ws
    }
}

#[tokio::test]
async fn an_edge_refuses_to_start_with_a_configuration_that_cannot_work() {
    let apps = tempfile::tempdir().expect("a directory");
    let refusal = async |webhooks: &str, deps: EdgeDependencies| {
        let started = edge::start(values("websocket", webhooks, apps.path(), &[]), deps).await;
        started.err().map(|error| error.to_string()).unwrap_or_default()
    };
    write_registry(apps.path(), []);
    let without = refusal("kinesis", dependencies(apps.path(), Arc::new(MemoryBus::new()), None).await).await;
    assert!(without.contains("REALTIME_WEBHOOKS is `kinesis`, but the edge was given no stream"), "{without}");
    let nowhere = refusal("off", dependencies(Path::new("/nowhere"), Arc::new(MemoryBus::new()), None).await).await;
    assert!(nowhere.contains("/nowhere cannot be read"), "{nowhere}");
    fs::write(apps.path().join("3.json"), "{").expect("written");
    let broken = refusal("off", dependencies(apps.path(), Arc::new(MemoryBus::new()), None).await).await;
    assert!(broken.contains("registry file `3.json`"), "{broken}");
}
