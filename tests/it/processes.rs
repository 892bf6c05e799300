//! The servers as a pod runs them: processes that know nothing but their environment.

// Helpers end a test where they stand; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use futures::{SinkExt, StreamExt};
use realtime_operator::protocol::registry::App;
use realtime_operator::protocol::webhook::WebhookBody;
use realtime_operator::protocol::{Secret, signature};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::fixtures::{build_app, build_webhook, serve_routes, start_kinesis, write_registry};
use super::openmetrics;
use super::resources::{LoggedProgram, command_bound_to_test};
use super::waiting::WAIT_TIMEOUT;

/// A `realtime` process that is ended when the test is, however that ends. It listens on ports that the kernel chose.
pub struct Server {
    program: LoggedProgram,
    /// The fields of the line that it logs once it serves.
    started: Value,
}

impl Server {
    /// Starts a server, and waits until it serves.
    pub async fn start(command: &str, environment: &BTreeMap<String, String>) -> Self {
        Self::try_start(command, environment).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same.
    ///
    /// # Errors
    /// It does not serve: its log.
    pub async fn try_start(command: &str, environment: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut program = command_bound_to_test(env!("CARGO_BIN_EXE_realtime"));
        program.arg(command).env_clear().envs(environment);
        let mut program = LoggedProgram::spawn(&format!("`realtime {command}`"), &mut program);
        let started = program.wait_until_ready(started).await?;
        Ok(Self { program, started })
    }

    /// The log lines so far.
    pub fn log(&self) -> String {
        self.program.log()
    }

    /// An address that it listens on, by its field in the line that it logs once it serves: an edge has `public` and
    /// `admin`, a dispatcher `address`.
    pub fn address(&self, field: &str) -> SocketAddr {
        let address = self.started[field].as_str().unwrap_or_else(|| panic!("no `{field}` in {}", self.started));
        address.parse().expect("an address")
    }

    pub fn id(&self) -> u32 {
        self.program.id()
    }

    /// Asks it to end as kubelet does, and answers with its exit code.
    pub async fn terminate(mut self) -> Option<i32> {
        self.program.terminate().await.code()
    }
}

/// The fields of the line in which a server says where it serves. Its text is for people and may change.
fn started(log: &str) -> Option<Value> {
    let fields = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?.get("fields").cloned());
    let is_address = |field: &Value| field.as_str().is_some_and(|text| text.parse::<SocketAddr>().is_ok());
    fields.into_iter().find(|fields| {
        fields["process"].is_string()
            && (is_address(&fields["public"]) && is_address(&fields["admin"]) || is_address(&fields["address"]))
    })
}

#[test]
fn the_addresses_of_a_server_are_read_from_fields() {
    let other = r#"{"level":"WARN","fields":{"message":"m","address":"redis"}}"#;
    let half = r#"{"level":"INFO","fields":{"message":"m","public":"127.0"#;
    let edge = r#"{"fields":{"message":"m","public":"127.0.0.1:5","admin":"127.0.0.1:6","process":"p"}}"#;
    let dispatcher = r#"{"fields":{"message":"m","address":"127.0.0.1:7","process":"p"}}"#;
    assert_eq!(started(&format!("{other}\nno json\n{half}")), None);
    assert_eq!(
        started(&format!("{other}\n{edge}\n")).map(|fields| fields["admin"].clone()),
        Some("127.0.0.1:6".into())
    );
    let found = started(&format!("{other}\n{dispatcher}\n"));
    assert_eq!(found.map(|fields| fields["address"].clone()), Some("127.0.0.1:7".into()));
}

/// A customer's endpoint, and the webhooks that it receives.
async fn endpoint() -> (String, mpsc::Receiver<WebhookBody>) {
    let (sender, bodies) = mpsc::channel(64);
    let receive = move |raw: Bytes| async move {
        sender.send(serde_json::from_slice(&raw).expect("a webhook")).await.expect("the test waits");
        StatusCode::OK
    };
    let url = serve_routes(Router::new().route("/hook", post(receive))).await;
    (format!("{url}/hook"), bodies)
}

/// The app of these processes, whose webhooks go to this URL.
pub fn build_registry_app(url: &str) -> App {
    App { webhooks: vec![build_webhook(url)], ..build_app("1", "key", "secret") }
}

pub fn environment(server: &str, own: &[(&str, String)], shared: &[(&str, &str)]) -> BTreeMap<String, String> {
    let common = [
        ("REALTIME_CLUSTER", "channels/eu"),
        ("REALTIME_CLUSTER_UID", "u"),
        ("REALTIME_SERVER", server),
        ("REALTIME_POD", server),
        ("REALTIME_ADMIN_TOKEN", "t"),
        ("REALTIME_STREAM_NAME", "s"),
        ("REALTIME_ADMISSION", "none"),
        ("REALTIME_LOG", "info"),
        ("REALTIME_AWS_IDENTITY", "StaticKeys"),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_REGION", "eu-west-1"),
    ];
    let texts = common.into_iter().chain(shared.iter().copied());
    let texts = texts.map(|(name, value)| (name.to_owned(), value.to_owned()));
    texts.chain(own.iter().map(|(name, value)| ((*name).to_owned(), value.clone()))).collect()
}

/// The variables of a WebSocket edge that has the apps of a directory, no stream and no Redis, with others beside them.
pub fn edge_environment(apps: &Path, others: &[(&str, &str)]) -> BTreeMap<String, String> {
    let path = apps.display().to_string();
    let own = [
        ("REALTIME_APPS_PATH", path.as_str()),
        ("REALTIME_TRANSPORTS", "websocket"),
        ("REALTIME_WEBHOOKS", "off"),
        ("REALTIME_BUS", "memory"),
        ("REALTIME_PUBLIC_ADDRESS", "127.0.0.1:0"),
        ("REALTIME_ADMIN_ADDRESS", "127.0.0.1:0"),
    ];
    environment("websocket", &[], &[&own, others].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_goes_through_two_processes_and_both_end_cleanly() {
    let apps = tempfile::tempdir().expect("a directory");
    let ((stream, _), (url, mut bodies)) = (start_kinesis("s", 2).await, endpoint().await);
    write_registry(apps.path(), [build_registry_app(&url)]);
    let path = apps.path().display().to_string();
    let shared = [("REALTIME_APPS_PATH", path.as_str()), ("AWS_ENDPOINT_URL_KINESIS", stream.as_str())];
    let webhooks = [("REALTIME_WEBHOOKS", "kinesis"), ("AWS_ENDPOINT_URL_KINESIS", stream.as_str())];
    let edge = Server::start("edge", &edge_environment(apps.path(), &webhooks)).await;
    let own = [
        ("REALTIME_ADMIN_ADDRESS", "127.0.0.1:0".to_owned()),
        ("REALTIME_ALLOWED_NETWORKS", "127.0.0.0/8".to_owned()),
        ("REALTIME_LEASES", "memory".to_owned()),
    ];
    let dispatcher = Server::start("dispatcher", &environment("dispatcher", &own, &shared)).await;

    let url = format!("ws://{}/app/key?protocol=7", edge.address("public"));
    let (mut socket, _) = tokio_tungstenite::connect_async(&url).await.expect("the edge listens");
    let established = socket.next().await.expect("a frame").expect("a frame").into_text().expect("text");
    let established: Value = serde_json::from_str(&established).expect("json");
    let data: Value = serde_json::from_str(established["data"].as_str().expect("data")).expect("json");
    let id = data["socket_id"].as_str().expect("a socket id");
    let signed = signature::sign_message(&Secret::new("secret"), format!("{id}:private-a").as_bytes());
    for frame in [
        json!({ "event": "pusher:subscribe", "data": { "channel": "private-a", "auth": format!("key:{signed}") } }),
        json!({ "event": "client-hello", "channel": "private-a", "data": { "n": 1 } }),
    ] {
        socket.send(Message::text(frame.to_string())).await.expect("sent");
    }
    let mut received = Vec::new();
    while received.len() < 2 {
        let body = tokio::time::timeout(WAIT_TIMEOUT, bodies.recv()).await;
        let body = body.unwrap_or_else(|_| panic!("no two webhook events within {WAIT_TIMEOUT:?}, but {received:?}"));
        received.extend(body.expect("a webhook").events.into_iter().map(|event| event.kind.name()));
    }
    assert_eq!(received, ["channel_occupied", "client_event"]);
    realtime_operator::process::install_tls();
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    for (admin, family, series) in [
        (edge.address("admin"), "realtime_edge_connections", "realtime_edge_connections{transport=\"websocket\"}"),
        (
            dispatcher.address("address"),
            "realtime_dispatcher_events_delivered",
            "realtime_dispatcher_events_delivered_total",
        ),
    ] {
        let answer = http.get(format!("http://{admin}/metrics")).send().await.expect("an answer");
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert_eq!(answer.headers()["content-type"], kind);
        let families = openmetrics::read(&answer.text().await.expect("a text")).expect("OpenMetrics");
        assert!(families[family].series[series] >= 1.0, "{families:?}");
    }
    drop(socket);
    assert_eq!(edge.terminate().await, Some(0), "the edge ends cleanly");
    assert_eq!(dispatcher.terminate().await, Some(0), "the dispatcher ends cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_a_client_by_the_address_from_trusted_proxies() {
    let files = tempfile::tempdir().expect("a directory");
    write_registry(files.path(), [build_registry_app("https://shop.example.com/hook")]);
    let own = [
        ("REALTIME_TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8"),
        ("REALTIME_LOG", "debug"),
        ("REALTIME_PROXY_PROTOCOL", "accepted"),
    ];
    let edge = Server::start("edge", &edge_environment(files.path(), &own)).await;
    let connect = async |forwarded: &[&str]| {
        let url = format!("ws://{}/app/key?protocol=7", edge.address("public"));
        let mut request = url.into_client_request().expect("a request");
        for line in forwarded {
            request.headers_mut().append("x-forwarded-for", line.parse().expect("a value"));
        }
        let (mut socket, _) = tokio_tungstenite::connect_async(request).await.expect("a socket");
        socket.next().await.expect("a frame").expect("a greeting");
    };
    connect(&["203.0.113.9, 198.51.100.7", "10.0.0.9"]).await;
    connect(&[]).await;
    let mut stream = tokio::net::TcpStream::connect(edge.address("public")).await.expect("connected");
    stream.write_all(b"PROXY TCP4 203.0.113.50 10.0.0.1 49152 443\r\n").await.expect("written");
    let (mut socket, _) = tokio_tungstenite::client_async("ws://x/app/key?protocol=7", stream).await.expect("a socket");
    socket.next().await.expect("a frame").expect("a greeting");
    // What is logged of a session carries its socket and its client.
    let text = edge.log();
    let mut clients: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        let (Some(socket), Some(client)) = (line["span"]["socket"].as_str(), line["span"]["client"].as_str()) else {
            continue;
        };
        if clients.iter().all(|(known, _)| known != socket) {
            clients.push((socket.to_owned(), client.to_owned()));
        }
    }
    let clients: Vec<&str> = clients.iter().map(|(_, client)| client.as_str()).collect();
    assert_eq!(clients, ["198.51.100.7", "127.0.0.1", "203.0.113.50"], "{text}");
    assert_eq!(edge.terminate().await, Some(0), "the edge ends cleanly");
}
