//! The servers as a pod runs them: processes that know nothing but their environment.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use ferrokinesis::store::StoreOptions;
use futures::{SinkExt, StreamExt};
use realtime_operator::kinesis::{Client, Credentials, Settings};
use realtime_operator::protocol::registry::{App, Credential, CredentialState, Endpoint, Limits, Registry};
use realtime_operator::protocol::webhook::Body;
use realtime_operator::protocol::{Secret, signature};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::openmetrics;

/// A process that is ended when the test is, however that ends.
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already, which is what the good path does.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    pub fn start(command: &str, environment: &BTreeMap<String, String>) -> Self {
        Self::logging(command, environment, Stdio::inherit())
    }

    fn logging(command: &str, environment: &BTreeMap<String, String>, log: Stdio) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_realtime"));
        process.arg(command).env_clear().envs(environment).stdout(Stdio::null()).stderr(log);
        Self(process.spawn().expect("the binary runs"))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to end as kubelet does, and answers with its exit code.
    pub async fn terminate(mut self) -> Option<i32> {
        let asked = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        assert!(asked.expect("kill runs").success());
        for _ in 0..400 {
            if let Some(status) = self.0.try_wait().expect("a status") {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }
}

/// A port that was free a moment ago.
pub async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address").port()
}

async fn kinesis() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let (app, _) = ferrokinesis::create_app(StoreOptions { create_stream_ms: 0, ..StoreOptions::default() });
    tokio::spawn(async move { axum::serve(listener, app).await });
    let settings = Settings {
        stream: "s".into(),
        region: "eu-west-1".to_owned(),
        endpoint: Some(endpoint.clone()),
        credentials: Credentials::Static { access_key_id: "a".to_owned(), secret_access_key: "b".to_owned() },
    };
    Client::connect(&settings).await.create(Some(2), &std::collections::BTreeMap::new()).await.expect("created");
    endpoint
}

/// A customer's endpoint that hands on what it gets.
async fn endpoint() -> (String, mpsc::Receiver<Body>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
    let (sender, bodies) = mpsc::channel(64);
    let receive = move |raw: Bytes| async move {
        sender.send(serde_json::from_slice(&raw).expect("a webhook")).await.expect("the test waits");
        StatusCode::OK
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/hook", post(receive))).await });
    (url, bodies)
}

pub fn write_registry(directory: &Path, url: &str) {
    let app = App {
        id: "1".into(),
        credentials: vec![Credential {
            key: "key".into(),
            secret: Secret::new("secret"),
            state: CredentialState::Active,
        }],
        enabled: true,
        client_events: true,
        subscription_count: false,
        authorization_seconds: None,
        allowed_origins: vec![],
        limits: Limits::default(),
        webhooks: vec![Endpoint {
            name: "hook".into(),
            url: url.into(),
            events: vec![],
            channel_prefix: String::new(),
            timeout_seconds: 4,
        }],
    };
    for (name, text) in Registry::new([app]).files().expect("files") {
        std::fs::write(directory.join(name), text).expect("written");
    }
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
        ("REALTIME_LOG", "warn"),
        ("REALTIME_AWS_IDENTITY", "StaticKeys"),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_REGION", "eu-west-1"),
    ];
    let texts = common.into_iter().chain(shared.iter().copied());
    let texts = texts.map(|(name, value)| (name.to_owned(), value.to_owned()));
    texts.chain(own.iter().map(|(name, value)| ((*name).to_owned(), value.clone()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_goes_through_two_processes_and_both_end_cleanly() {
    let apps = tempfile::tempdir().expect("a directory");
    let (stream, (url, mut bodies)) = (kinesis().await, endpoint().await);
    write_registry(apps.path(), &url);
    let path = apps.path().display().to_string();
    let shared = [("REALTIME_APPS_PATH", path.as_str()), ("AWS_ENDPOINT_URL_KINESIS", stream.as_str())];
    let (public, admins) = (free_port().await, [free_port().await, free_port().await]);
    let address = |port: u16| format!("127.0.0.1:{port}");
    let edge = Server::start(
        "edge",
        &environment(
            "websocket",
            &[
                ("REALTIME_TRANSPORTS", "websocket".to_owned()),
                ("REALTIME_WEBHOOKS", "kinesis".to_owned()),
                ("REALTIME_BUS", "memory".to_owned()),
                ("REALTIME_PUBLIC_ADDRESS", address(public)),
                ("REALTIME_ADMIN_ADDRESS", address(admins[0])),
            ],
            &shared,
        ),
    );
    let own = [
        ("REALTIME_ADMIN_ADDRESS", address(admins[1])),
        ("REALTIME_ALLOWED_NETWORKS", "127.0.0.0/8".to_owned()),
        ("REALTIME_LEASES", "memory".to_owned()),
    ];
    let dispatcher = Server::start("dispatcher", &environment("dispatcher", &own, &shared));

    let url = format!("ws://{}/app/key?protocol=7", address(public));
    let mut socket = None;
    for _ in 0..400 {
        if let Ok((connected, _)) = tokio_tungstenite::connect_async(&url).await {
            socket = Some(connected);
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut socket = socket.expect("the edge listens");
    let established = socket.next().await.expect("a frame").expect("a frame").into_text().expect("text");
    let established: Value = serde_json::from_str(&established).expect("json");
    let data: Value = serde_json::from_str(established["data"].as_str().expect("data")).expect("json");
    let id = data["socket_id"].as_str().expect("a socket id");
    let signed = signature::sign(&Secret::new("secret"), format!("{id}:private-a").as_bytes());
    for frame in [
        json!({ "event": "pusher:subscribe", "data": { "channel": "private-a", "auth": format!("key:{signed}") } }),
        json!({ "event": "client-hello", "channel": "private-a", "data": { "n": 1 } }),
    ] {
        socket.send(Message::text(frame.to_string())).await.expect("sent");
    }
    let mut told = Vec::new();
    while told.len() < 2 {
        let body = tokio::time::timeout(Duration::from_secs(20), bodies.recv()).await.expect("in time");
        told.extend(body.expect("a webhook").events.into_iter().map(|event| event.kind.name()));
    }
    assert_eq!(told, ["channel_occupied", "client_event"]);
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    for (port, family, series) in [
        (admins[0], "realtime_edge_connections", "realtime_edge_connections{transport=\"websocket\"}"),
        (admins[1], "realtime_dispatcher_delivered", "realtime_dispatcher_delivered_total"),
    ] {
        let answer = http.get(format!("http://{}/metrics", address(port))).send().await.expect("an answer");
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
async fn the_log_names_a_client_by_what_trusted_proxies_say() {
    let files = tempfile::tempdir().expect("a directory");
    write_registry(files.path(), "https://shop.example.com/hook");
    let path = files.path().display().to_string();
    let log = files.path().join("log");
    let public = format!("127.0.0.1:{}", free_port().await);
    let own = [
        ("REALTIME_TRANSPORTS", "websocket".to_owned()),
        ("REALTIME_WEBHOOKS", "off".to_owned()),
        ("REALTIME_BUS", "memory".to_owned()),
        ("REALTIME_PUBLIC_ADDRESS", public.clone()),
        ("REALTIME_ADMIN_ADDRESS", format!("127.0.0.1:{}", free_port().await)),
        ("REALTIME_TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8".to_owned()),
    ];
    let environment =
        environment("websocket", &own, &[("REALTIME_APPS_PATH", path.as_str()), ("REALTIME_LOG", "debug")]);
    let file = std::fs::File::create(&log).expect("a file");
    let edge = Server::logging("edge", &environment, file.into());
    let connect = async |forwarded: &[&str]| {
        for _ in 0..400 {
            let url = format!("ws://{public}/app/key?protocol=7");
            let mut request = url.into_client_request().expect("a request");
            for line in forwarded {
                request.headers_mut().append("x-forwarded-for", line.parse().expect("a value"));
            }
            if let Ok((mut socket, _)) = tokio_tungstenite::connect_async(request).await {
                socket.next().await.expect("a frame").expect("a greeting");
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    connect(&["203.0.113.9, 198.51.100.7", "10.0.0.9"]).await;
    connect(&[]).await;
    let text = std::fs::read_to_string(&log).expect("a log");
    let opened: Vec<&str> = text.lines().filter(|line| line.contains("a session was opened")).collect();
    assert_eq!(opened.len(), 2, "{text}");
    assert!(opened[0].contains("198.51.100.7") && !opened[0].contains("203.0.113.9"), "{}", opened[0]);
    assert!(opened[1].contains("127.0.0.1"), "{}", opened[1]);
    assert_eq!(edge.terminate().await, Some(0), "the edge ends cleanly");
}
