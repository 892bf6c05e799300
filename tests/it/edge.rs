//! An edge as its clients see it: real sockets, the bus in memory, and a real Kinesis API where records matter.

// Clients of a test end it where they stand; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

mod cluster_isolation;
mod connection_policy;
mod drain;
mod hostile;
mod presence_outage;
mod relay;
mod reload;
mod unresponsive_owner;
mod users;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use realtime_operator::bus::MemoryBus;
use realtime_operator::config::ServerConfig;
use realtime_operator::edge::{self, EdgeDependencies, RunningEdge};
use realtime_operator::kinesis::{AwsCredentials, KinesisClient, ReadPosition, StreamSettings};
use realtime_operator::protocol::admin::{FlowReport, RecorderFlow, RecorderState};
use realtime_operator::protocol::fallback::{FallbackFrame, STREAM_LIMIT_UNITS};
use realtime_operator::protocol::frame::ServerMessage;
use realtime_operator::protocol::record::{EventKind, LeaveCause, RecordedEvent, StreamRecord};
use realtime_operator::protocol::registry::{App, AppLimits, AppRegistry, Credential, CredentialState};
use realtime_operator::protocol::{Secret, rest, signature};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

/// Longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

const TOKEN: &str = "admin-token";

fn app(id: &str, enabled: bool) -> App {
    let credential = Credential {
        key: format!("key{id}").into(),
        secret: Secret::new(format!("secret{id}")),
        state: CredentialState::Active,
    };
    App {
        id: id.into(),
        credentials: vec![credential],
        enabled,
        client_events: true,
        subscription_count: false,
        authorization_seconds: None,
        allowed_origins: vec![],
        limits: AppLimits::default(),
        webhooks: vec![],
    }
}

fn write_apps(directory: &Path, apps: Vec<App>) {
    for (name, text) in AppRegistry::new(apps).to_files().expect("files") {
        replace(directory, &name, &text);
    }
}

/// Changes a file at once, as a mount does.
fn replace(directory: &Path, name: &str, text: &str) {
    let aside = directory.join("aside");
    fs::write(&aside, text).expect("written");
    fs::rename(&aside, directory.join(name)).expect("moved");
}

pub struct Edge {
    pub running: RunningEdge,
    pub shutdown: CancellationToken,
    apps: tempfile::TempDir,
    pub http: reqwest::Client,
}

fn values(server: &str, webhooks: &str, apps: &Path, more: &[(&str, &str)]) -> ServerConfig {
    let transports = match server {
        "websocket" => "websocket",
        _ => "xhr_streaming,xhr_polling,sockjs_websocket,sockjs_xhr_streaming,sockjs_xhr,sockjs_eventsource",
    };
    let variables = [
        ("REALTIME_CLUSTER", "ns/eu"),
        ("REALTIME_CLUSTER_UID", "uid-1"),
        ("REALTIME_SERVER", server),
        ("REALTIME_POD", "pod-1"),
        ("REALTIME_ADMIN_TOKEN", TOKEN),
        ("REALTIME_APPS_PATH", apps.to_str().expect("a path")),
        ("REALTIME_TRANSPORTS", transports),
        ("REALTIME_WEBHOOKS", webhooks),
        ("REALTIME_STREAM_NAME", "events"),
        ("REALTIME_BUS", "memory"),
        ("REALTIME_ADMISSION", "none"),
        ("REALTIME_AWS_IDENTITY", "PodIdentity"),
        ("AWS_REGION", "eu-west-1"),
    ];
    let all = variables.iter().chain(more);
    ServerConfig::parse(all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))).expect("values")
}

async fn dependencies(apps: &Path, bus: MemoryBus, kinesis: Option<KinesisClient>) -> EdgeDependencies {
    EdgeDependencies {
        public: TcpListener::bind("127.0.0.1:0").await.expect("a listener"),
        admin: TcpListener::bind("127.0.0.1:0").await.expect("a listener"),
        peer: None,
        apps_dir: apps.to_owned(),
        kinesis,
        bus: Arc::new(bus),
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
    realtime_operator::process::install_tls();
    let apps = tempfile::tempdir().expect("a directory");
    write_apps(apps.path(), known);
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

/// A WebSocket of a client.
pub type Wire = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub async fn dial(edge: SocketAddr, path: &str) -> Wire {
    tokio_tungstenite::connect_async(format!("ws://{edge}{path}")).await.expect("a socket").0
}

pub async fn received(wire: &mut Wire) -> Message {
    timeout(PATIENCE, wire.next()).await.expect("in time").expect("a message").expect("no error")
}

async fn kinesis(endpoint: String) -> KinesisClient {
    let credentials = AwsCredentials::Static { access_key_id: "a".into(), secret_access_key: "b".into() };
    let settings =
        StreamSettings { stream: "events".into(), region: "eu-west-1".into(), endpoint: Some(endpoint), credentials };
    KinesisClient::connect(&settings).await
}

/// A Kinesis API in this process, with a stream of one shard.
async fn stream() -> KinesisClient {
    let (router, _store) = ferrokinesis::create_app(ferrokinesis::store::StoreOptions::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let client = kinesis(format!("http://{}", listener.local_addr().expect("an address"))).await;
    tokio::spawn(async move { axum::serve(listener, router).await });
    client.create_stream(Some(1), &std::collections::BTreeMap::new()).await.expect("created");
    eventually("the stream is active", async || {
        client.describe_stream().await.is_ok_and(|summary| summary.status == "ACTIVE").then_some(())
    })
    .await;
    client
}

/// Everything in the stream.
async fn events(client: &KinesisClient) -> Vec<RecordedEvent> {
    let mut events = Vec::new();
    for shard in client.list_shards().await.expect("shards") {
        let iterator = client.request_iterator(&shard.id, &ReadPosition::TrimHorizon).await.expect("an iterator");
        for read in client.read(&iterator, 1000).await.expect("a page").records {
            let record = StreamRecord::parse(&read.data).expect("a record");
            assert_eq!((record.edge.cluster.as_str(), record.edge.pod.as_str()), ("uid-1", "pod-1"));
            assert_eq!(read.partition_key, format!("1/{}", record.channel));
            events.extend(record.events);
        }
    }
    events
}

pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}

fn auth(socket: &str, channel: &str, channel_data: Option<&str>) -> String {
    let message = signature::channel_message(socket, channel, channel_data);
    format!("key1:{}", signature::sign_message(&Secret::new("secret1"), message.as_bytes()))
}

pub fn subscribe(socket: &str, channel: &str, user: Option<&str>) -> Value {
    let data = user.map(|user| json!({ "user_id": user, "user_info": { "name": user } }).to_string());
    let auth = auth(socket, channel, data.as_deref());
    let mut message = json!({ "event": "pusher:subscribe", "data": { "channel": channel, "auth": auth } });
    if let Some(data) = data {
        message["data"]["channel_data"] = data.into();
    }
    message
}

fn client_event(channel: &str, data: &Value) -> Value {
    json!({ "event": "client-said", "channel": channel, "data": data })
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
        timeout(PATIENCE, self.running.wait_stopped()).await.expect("in time").expect("a clean end");
    }

    async fn websocket(&self) -> Ws {
        let mut ws = Ws::open(self.running.public, "/app/key1?protocol=7&client=test&version=1").await;
        ws.greeted().await;
        ws
    }
}

/// A client over WebSocket.
struct Ws {
    socket: Wire,
    id: String,
}

impl Ws {
    async fn open(address: SocketAddr, path: &str) -> Self {
        Self { socket: dial(address, path).await, id: String::new() }
    }

    async fn greeted(&mut self) {
        let greeting = self.next().await;
        assert_eq!((greeting.event.as_str(), &greeting.data["activity_timeout"]), (ESTABLISHED, &json!(120)));
        greeting.data["socket_id"].as_str().expect("an id").clone_into(&mut self.id);
    }

    async fn send(&mut self, message: &Value) {
        self.text(&message.to_string()).await;
    }

    async fn text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.expect("sent");
    }

    async fn message(&mut self) -> Message {
        received(&mut self.socket).await
    }

    async fn next(&mut self) -> ServerMessage {
        let message = self.message().await;
        ServerMessage::parse(message.to_text().expect("text")).expect("a frame")
    }

    async fn expect(&mut self, event: &str) -> ServerMessage {
        let found = self.next().await;
        assert_eq!(found.event, event, "{found:?}");
        found
    }

    async fn subscribe(&mut self, channel: &str, user: Option<&str>) -> Value {
        self.send(&subscribe(&self.id, channel, user)).await;
        self.expect(SUBSCRIBED).await.data
    }

    /// Nothing else is on its way, and the connection still serves.
    async fn still_serves(&mut self) {
        self.send(&json!({ "event": "pusher:ping", "data": {} })).await;
        self.expect("pusher:pong").await;
    }

    async fn closed(&mut self) -> u16 {
        match self.message().await {
            Message::Close(Some(frame)) => frame.code.into(),
            other => panic!("not a close frame: {other:?}"),
        }
    }
}

pub const ESTABLISHED: &str = "pusher:connection_established";
pub const SUBSCRIBED: &str = "pusher_internal:subscription_succeeded";

/// A client over one of the fallbacks, as pusher-js does it.
struct Xhr {
    http: reqwest::Client,
    base: String,
    path: &'static str,
    answer: Option<reqwest::Response>,
    unread: String,
    units: usize,
}

impl Xhr {
    fn new(edge: &Edge, key: &str, session: &str, path: &'static str) -> Self {
        let base = edge.url(&format!("/pusher/app/{key}/7/{session}"));
        Self { http: edge.http.clone(), base, path, answer: None, unread: String::new(), units: 0 }
    }

    async fn receive(&mut self) {
        let url = format!("{}/{}?protocol=7&client=js&version=8.6.0&t=1&n=1", self.base, self.path);
        let answer = timeout(PATIENCE, self.http.post(url).send()).await.expect("in time").expect("an answer");
        assert_eq!(answer.status(), 200);
        let header = |name: &str| answer.headers()[name].to_str().expect("text").to_owned();
        assert_eq!(header("content-type"), "application/javascript; charset=UTF-8");
        assert_eq!(header("cache-control"), "no-store, no-transform");
        assert_eq!(header("x-accel-buffering"), "no");
        assert_eq!(header("access-control-allow-origin"), "*");
        (self.answer, self.units) = (Some(answer), 0);
        self.unread.clear();
    }

    /// Gives the answer up, as pusher-js does with a long one.
    fn abort(&mut self) {
        self.answer = None;
        self.unread.clear();
    }

    async fn frame(&mut self) -> FallbackFrame {
        loop {
            if let Some(end) = self.unread.find('\n') {
                let line: String = self.unread.drain(..=end).collect();
                return FallbackFrame::parse(line.trim_end()).expect("a frame");
            }
            let Some(answer) = &mut self.answer else {
                self.receive().await;
                continue;
            };
            match timeout(PATIENCE, answer.chunk()).await.expect("in time").expect("no error") {
                Some(chunk) => {
                    let text = std::str::from_utf8(&chunk).expect("text");
                    self.units += text.encode_utf16().count();
                    self.unread.push_str(text);
                }
                None if self.path == "xhr" => self.answer = None,
                None => panic!("the server ended a streaming answer"),
            }
        }
    }

    /// The next messages, heartbeats left out.
    async fn messages(&mut self) -> Vec<ServerMessage> {
        match self.frame().await {
            FallbackFrame::Messages(texts) => {
                texts.iter().map(|text| ServerMessage::parse(text).expect("a frame")).collect()
            }
            other => panic!("not messages: {other:?}"),
        }
    }

    async fn expect(&mut self, event: &str) -> ServerMessage {
        let mut messages = self.messages().await;
        assert_eq!(messages.len(), 1, "{messages:?}");
        let found = messages.remove(0);
        assert_eq!(found.event, event, "{found:?}");
        found
    }

    async fn greeted(&mut self) -> String {
        assert_eq!(self.frame().await, FallbackFrame::Open);
        self.expect(ESTABLISHED).await.data["socket_id"].as_str().expect("an id").to_owned()
    }

    async fn send_raw(&self, body: &str) -> reqwest::StatusCode {
        let request = self.http.post(format!("{}/xhr_send?t=1&n=2", self.base));
        let answer = request.header("content-type", "application/json").body(body.to_owned()).send().await;
        answer.expect("an answer").status()
    }

    async fn send(&self, message: &Value) {
        assert_eq!(self.send_raw(&json!([message.to_string()]).to_string()).await, 204);
    }
}

#[tokio::test]
async fn client_events_reach_the_other_subscribers_and_not_their_sender() {
    let edge = alone("websocket").await;
    let (mut one, mut two) = (edge.websocket().await, edge.websocket().await);
    assert_eq!(one.subscribe("private-room", None).await, json!({}));
    two.subscribe("private-room", None).await;
    one.send(&client_event("private-room", &json!({ "x": 1 }))).await;
    let heard = two.expect("client-said").await;
    assert_eq!((heard.data, heard.channel.as_deref(), heard.user_id), (json!({ "x": 1 }), Some("private-room"), None));
    one.still_serves().await;
    two.send(&json!({ "event": "pusher:unsubscribe", "data": { "channel": "private-room" } })).await;
    two.still_serves().await;
    one.send(&client_event("private-room", &json!("again"))).await;
    one.still_serves().await;
    two.still_serves().await;
    let flow = edge.flow().await;
    assert_eq!((flow.state, flow.queued), (RecorderState::Off, 0));
    assert_eq!(flow.accepted, 3, "occupied and two client events");
    edge.stop().await;
}

#[tokio::test]
async fn a_client_learns_the_host_of_its_session() {
    for (told, open, host) in [
        (
            &[("REALTIME_SESSION_HOST", "{pod}.rt.example")][..],
            "o{\"hostname\":\"pod-1.rt.example\"}\n",
            "pod-1.rt.example",
        ),
        (&[("REALTIME_SESSION_HOST", "rt.example")], "o{\"hostname\":\"rt.example\"}\n", "rt.example"),
        (&[], "o\n", ""),
    ] {
        let edge = start_with("sockjs", vec![app("1", true)], told, MemoryBus::new(), None).await;
        let polls = Xhr::new(&edge, "key1", "polls", "xhr");
        let opened = edge.http.post(format!("{}/xhr?protocol=7", polls.base)).send().await.expect("an answer");
        assert_eq!(opened.text().await.expect("a text"), open);
        let streams = Xhr::new(&edge, "key1", "streams", "xhr_streaming");
        let opened = edge.http.post(format!("{}/xhr_streaming?protocol=7", streams.base)).send().await;
        let first = opened.expect("an answer").chunk().await.expect("a part").expect("more");
        assert!(first.starts_with(open.as_bytes()), "{first:?}");
        let info =
            edge.http.get(edge.url("/pusher/info")).send().await.expect("an answer").text().await.expect("a text");
        let info: Value = serde_json::from_str(&info).expect("json");
        assert_eq!(info["hostname"].as_str().unwrap_or_default(), host);
        edge.stop().await;
    }
}

#[tokio::test]
async fn members_receive_each_others_joins_and_leaves() {
    let edge = alone("websocket").await;
    let (mut ann, mut bob) = (edge.websocket().await, edge.websocket().await);
    assert_eq!(ann.subscribe("presence-room", Some("ann")).await["presence"]["ids"], json!(["ann"]));
    assert_eq!(bob.subscribe("presence-room", Some("bob")).await["presence"]["count"], json!(2));
    let added = ann.expect("pusher_internal:member_added").await.data;
    assert_eq!(added, json!({ "user_id": "bob", "user_info": { "name": "bob" } }));
    bob.send(&client_event("presence-room", &json!("hi"))).await;
    assert_eq!(ann.expect("client-said").await.user_id.as_deref(), Some("bob"));
    bob.socket.close(None).await.expect("closed");
    assert_eq!(ann.expect("pusher_internal:member_removed").await.data, json!({ "user_id": "bob" }));
    edge.stop().await;
}

#[tokio::test]
async fn a_refused_message_leaves_the_connection_as_it_was() {
    let edge = alone("websocket").await;
    let mut ws = edge.websocket().await;
    ws.subscribe("private-room", None).await;
    let forged = json!({ "event": "pusher:subscribe", "data": { "channel": "private-x", "auth": "key1:00" } });
    ws.send(&forged).await;
    assert_eq!(ws.expect("pusher:error").await.data["code"], 4009);
    let told = ws.expect("pusher:subscription_error").await;
    assert_eq!((told.channel.as_deref(), &told.data["status"]), (Some("private-x"), &json!(401)));
    for (message, part) in [
        ("not json".to_owned(), "not a JSON object"),
        (client_event("private-room", &json!("x".repeat(11 * 1024))).to_string(), "at most 10240"),
        (client_event("private-other", &json!("x")).to_string(), "subscribe to"),
        (client_event("room", &json!("x")).to_string(), "private or presence"),
        (json!({ "event": "pusher:subscribe", "data": { "channel": "a b" } }).to_string(), "` ` in it"),
        (json!({ "event": "else" }).to_string(), "no answer"),
    ] {
        ws.text(&message).await;
        let error = ws.expect("pusher:error").await.data;
        assert!(error["message"].as_str().is_some_and(|told| told.contains(part)), "{error}");
        ws.still_serves().await;
    }
    for _ in 0..40 {
        ws.send(&client_event("private-room", &json!("x"))).await;
    }
    ws.send(&json!({ "event": "pusher:ping", "data": {} })).await;
    let mut refused = 0;
    while let error = ws.next().await
        && error.event != "pusher:pong"
    {
        assert_eq!(error.data["code"], 4301);
        refused += 1;
    }
    assert!((1..=30).contains(&refused), "ten pass in each second: {refused}");
    edge.stop().await;
}

#[tokio::test]
async fn a_refused_client_receives_the_reason_on_every_transport() {
    let bus = MemoryBus::new();
    let (sockets, fallbacks) =
        (start("websocket", bus.for_another_process(), None).await, start("sockjs", bus, None).await);
    for (path, code) in [
        ("/app/nobody?protocol=7", 4001),
        ("/app/key2?protocol=7", 4003),
        ("/app/key1", 4008),
        ("/app/key1?protocol=x", 4006),
        ("/app/key1?protocol=3", 4007),
    ] {
        let mut ws = Ws::open(sockets.running.public, path).await;
        assert_eq!(ws.expect("pusher:error").await.data["code"], code, "{path}");
        assert_eq!(ws.closed().await, code, "{path}");
    }
    for path in ["xhr_streaming", "xhr"] {
        let mut xhr = Xhr::new(&fallbacks, "nobody", &format!("bad-{path}"), path);
        assert_eq!(xhr.frame().await, FallbackFrame::Open);
        assert_eq!(xhr.expect("pusher:error").await.data["code"], 4001);
        assert!(matches!(xhr.frame().await, FallbackFrame::Close(4001, _)));
    }
    for (edge, path) in [(&sockets, "/pusher/app/key1/7/abc/xhr"), (&fallbacks, "/elsewhere")] {
        let answer = edge.http.post(edge.url(path)).send().await.expect("an answer");
        assert_eq!(answer.status(), 404, "{path}");
    }
    sockets.stop().await;
    fallbacks.stop().await;
}

#[tokio::test]
async fn the_fallbacks_carry_messages_both_ways_and_between_processes() {
    let bus = MemoryBus::new();
    let (sockets, fallbacks) =
        (start("websocket", bus.for_another_process(), None).await, start("sockjs", bus, None).await);
    let mut ws = sockets.websocket().await;
    ws.subscribe("private-room", None).await;
    for path in ["xhr_streaming", "xhr"] {
        let mut xhr = Xhr::new(&fallbacks, "key1", &format!("s-{path}"), path);
        let id = xhr.greeted().await;
        xhr.send(&subscribe(&id, "private-room", None)).await;
        xhr.expect(SUBSCRIBED).await;
        assert_eq!(xhr.send_raw("[]").await, 204);
        assert_eq!(xhr.messages().await, [], "a ping is answered with `a[]`");
        xhr.send(&client_event("private-room", &json!(path))).await;
        assert_eq!(ws.expect("client-said").await.data, json!(path));
        ws.send(&client_event("private-room", &json!({ "to": path }))).await;
        assert_eq!(xhr.expect("client-said").await.data, json!({ "to": path }));
        let body = json!({ "name": "news", "data": "{\"n\":1}", "channel": "private-room", "socket_id": ws.id });
        assert_eq!(sockets.publish("1", &body).await.text().await.expect("a text"), "{}");
        assert_eq!(xhr.expect("news").await.data, json!({ "n": 1 }));
        xhr.send(&json!({ "event": "pusher:unsubscribe", "data": { "channel": "private-room" } })).await;
        ws.still_serves().await;
    }
    sockets.stop().await;
    fallbacks.stop().await;
}

#[tokio::test]
async fn requests_of_no_session_are_refused_and_browsers_may_ask_first() {
    let edge = alone("sockjs").await;
    let mut xhr = Xhr::new(&edge, "key1", "mine", "xhr");
    assert_eq!(xhr.send_raw("[]").await, 404, "no session yet");
    xhr.greeted().await;
    assert_eq!(xhr.send_raw("x").await, 500);
    let stranger = Xhr::new(&edge, "key2", "mine", "xhr");
    assert_eq!(stranger.send_raw("[]").await, 404);
    let url = format!("{}/xhr?protocol=7", stranger.base);
    assert_eq!(edge.http.post(url).send().await.expect("an answer").status(), 404);
    let request = edge.http.request(reqwest::Method::OPTIONS, format!("{}/xhr_send?t=1&n=1", xhr.base));
    let answer = request.header("origin", "https://a.example").send().await.expect("an answer");
    assert_eq!(answer.status(), 204);
    assert_eq!(answer.headers()["access-control-allow-origin"], "*");
    assert_eq!(answer.headers()["access-control-allow-headers"], "content-type");
    assert!(answer.headers().get("access-control-allow-credentials").is_none());
    edge.stop().await;
}

#[tokio::test]
async fn a_long_stream_is_resumed_without_loss_and_without_a_second_open() {
    const COUNT: u64 = 300;
    let edge = alone("sockjs").await;
    let mut xhr = Xhr::new(&edge, "key1", "long", "xhr_streaming");
    let id = xhr.greeted().await;
    xhr.send(&subscribe(&id, "private-room", None)).await;
    xhr.expect(SUBSCRIBED).await;
    let publish = async {
        for n in 0..COUNT {
            let data = json!({ "n": n, "fill": "ü".repeat(2000) }).to_string();
            let body = json!({ "name": "news", "data": data, "channel": "private-room" });
            assert_eq!(edge.publish("1", &body).await.status(), 200);
        }
    };
    let receive = async {
        let (mut numbers, mut resumed) = (Vec::new(), 0);
        while numbers.len() < usize::try_from(COUNT).expect("a size") {
            numbers.extend(xhr.messages().await.iter().filter_map(|message| message.data["n"].as_u64()));
            if xhr.unread.is_empty() && xhr.units > STREAM_LIMIT_UNITS {
                xhr.abort();
                resumed += 1;
            }
        }
        (numbers, resumed)
    };
    let ((), (numbers, resumed)) = tokio::join!(publish, receive);
    assert_eq!(numbers, (0..COUNT).collect::<Vec<_>>());
    assert!(resumed >= 2, "{resumed}");
    edge.stop().await;
}

#[tokio::test]
async fn a_session_without_a_receiver_ends_after_the_grace_period() {
    let bus = MemoryBus::new();
    let (sockets, fallbacks) =
        (start("websocket", bus.for_another_process(), None).await, start("sockjs", bus, None).await);
    let mut ann = sockets.websocket().await;
    ann.subscribe("presence-room", Some("ann")).await;
    let mut bob = Xhr::new(&fallbacks, "key1", "bob", "xhr_streaming");
    let id = bob.greeted().await;
    bob.send(&subscribe(&id, "presence-room", Some("bob"))).await;
    bob.expect(SUBSCRIBED).await;
    ann.expect("pusher_internal:member_added").await;
    bob.abort();
    bob.receive().await;
    bob.send(&client_event("presence-room", &json!("back"))).await;
    ann.expect("client-said").await;
    bob.abort();
    let since = std::time::Instant::now();
    ann.expect("pusher_internal:member_removed").await;
    assert!(since.elapsed() > Duration::from_secs(4), "{:?}", since.elapsed());
    sockets.stop().await;
    fallbacks.stop().await;
}

#[tokio::test]
async fn the_http_api_names_the_mistake_in_a_request() {
    let edge = alone("sockjs").await;
    let body = json!({ "name": "a", "data": "{}", "channel": "room" });
    let large = json!({ "name": "a", "data": "x".repeat(11 * 1024), "channel": "room" });
    let huge = json!({ "name": "a", "data": "x".repeat(2 << 20), "channel": "room" });
    for (app, body, status) in [
        ("1", &body, 200),
        ("9", &body, 404),
        ("2", &body, 403),
        ("1", &json!({ "name": "a", "data": "{}" }), 400),
        ("1", &large, 413),
        ("1", &huge, 413),
    ] {
        assert_eq!(edge.publish(app, body).await.status(), status, "{app}");
    }
    let url = edge.url("/apps/1/events?auth_key=key1&auth_timestamp=1&auth_version=1.0&auth_signature=00");
    let answer = edge.http.post(url).body(body.to_string()).send().await.expect("an answer");
    assert_eq!(answer.status(), 401);
    assert!(answer.text().await.expect("a text").contains("auth_timestamp"));
    edge.stop().await;
}

#[tokio::test]
async fn the_events_of_webhooks_are_in_the_stream_in_order() {
    let stream = stream().await;
    let edge = start("websocket", MemoryBus::new(), Some(stream.clone())).await;
    let (mut ann, mut bob) = (edge.websocket().await, edge.websocket().await);
    ann.subscribe("presence-room", Some("ann")).await;
    bob.subscribe("presence-room", Some("bob")).await;
    for n in 0..5 {
        ann.send(&client_event("presence-room", &json!({ "n": n }))).await;
    }
    for _ in 0..5 {
        bob.expect("client-said").await;
    }
    bob.socket.close(None).await.expect("closed");
    ann.expect("pusher_internal:member_added").await;
    ann.expect("pusher_internal:member_removed").await;
    edge.shutdown.cancel();
    assert_eq!(ann.closed().await, 4200);
    edge.stop().await;

    let events = events(&stream).await;
    let (state, clients): (Vec<_>, Vec<_>) = events.into_iter().partition(|event| event.order.is_some());
    let told: Vec<_> = state.iter().map(|event| (event.kind.name(), event.order.map(|order| order.seq))).collect();
    let expected =
        ["channel_occupied", "member_added", "member_added", "member_removed", "member_removed", "channel_vacated"];
    assert_eq!(told, expected.into_iter().zip((1..).map(Some)).collect::<Vec<_>>());
    assert_eq!(state.iter().filter(|event| event.cause == Some(LeaveCause::Drain)).count(), 2, "ann's leave only");
    for (n, event) in (1..).zip(&clients) {
        let EventKind::ClientEvent { data, user_id, .. } = &event.kind else { panic!("{event:?}") };
        assert_eq!((event.n, data.as_str()), (Some(n), &*json!({ "n": n - 1 }).to_string()));
        assert_eq!(user_id.as_deref(), Some("ann"));
    }
    assert_eq!(clients.len(), 5);
}

#[tokio::test]
async fn without_kinesis_chat_continues_and_events_are_queued() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a listener").local_addr().expect("an address");
    let client = kinesis(format!("http://{closed}")).await;
    let edge = start("websocket", MemoryBus::new(), Some(client)).await;
    let (mut one, mut two) = (edge.websocket().await, edge.websocket().await);
    one.subscribe("private-room", None).await;
    two.subscribe("private-room", None).await;
    one.send(&client_event("private-room", &json!(1))).await;
    two.expect("client-said").await;
    let flow = eventually("an error is told", async || {
        let flow = edge.flow().await;
        flow.last_error.is_some().then_some(flow)
    })
    .await;
    assert_eq!((flow.state, flow.accepted, flow.acknowledged), (RecorderState::Kinesis, 2, 0));
    assert_eq!(flow.queued, 2);
    assert_eq!(edge.admin("/readyz").await.status(), 200, "clients are served");
    let metrics = edge.admin("/metrics").await.text().await.expect("a text");
    assert!(metrics.contains(r#"realtime_edge_connections{transport="websocket"} 2"#), "{metrics}");
}

#[tokio::test]
async fn the_registry_is_followed_and_a_broken_one_is_not() {
    let edge = alone("websocket").await;
    let mut ws = edge.websocket().await;
    write_apps(edge.apps.path(), vec![app("1", true), app("3", true)]);
    let known = async || {
        let text = edge.admin("/effective").await.text().await.expect("a text");
        let effective: Value = serde_json::from_str(&text).expect("json");
        effective["apps"].as_object().expect("apps").keys().cloned().collect::<Vec<_>>()
    };
    eventually("the new app", async || (known().await == ["1", "3"]).then_some(())).await;
    ws.still_serves().await;
    fs::write(edge.apps.path().join("0.json"), "{").expect("written");
    fs::write(edge.apps.path().join("z.json"), "[]").expect("written");
    sleep(Duration::from_millis(1200)).await;
    assert_eq!(known().await, ["1", "3"], "a broken registry changes nothing");
    write_apps(edge.apps.path(), vec![app("1", false)]);
    assert_eq!(ws.closed().await, 4003);
    edge.stop().await;
}

#[tokio::test]
async fn an_edge_refuses_to_start_with_a_configuration_that_cannot_work() {
    let apps = tempfile::tempdir().expect("a directory");
    let told = async |webhooks: &str, deps: EdgeDependencies| {
        let started = edge::start(values("websocket", webhooks, apps.path(), &[]), deps).await;
        started.err().map(|error| error.to_string()).unwrap_or_default()
    };
    write_apps(apps.path(), vec![]);
    let without = told("kinesis", dependencies(apps.path(), MemoryBus::new(), None).await).await;
    assert!(without.contains("REALTIME_WEBHOOKS is `kinesis`, but the edge was given no stream"), "{without}");
    let nowhere = told("off", dependencies(Path::new("/nowhere"), MemoryBus::new(), None).await).await;
    assert!(nowhere.contains("/nowhere cannot be read"), "{nowhere}");
    fs::write(apps.path().join("3.json"), "{").expect("written");
    let broken = told("off", dependencies(apps.path(), MemoryBus::new(), None).await).await;
    assert!(broken.contains("registry file `3.json`"), "{broken}");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_ended_and_others_are_not() {
    let edge = alone("websocket").await;
    let (mut slow, mut quick) = (edge.websocket().await, edge.websocket().await);
    let rooms: Vec<String> = (0..50).map(|n| format!("private-{n}")).collect();
    for room in &rooms {
        slow.subscribe(room, None).await;
    }
    quick.subscribe(&rooms[0], None).await;
    let body = json!({ "name": "news", "data": "x".repeat(10_240), "channels": rooms });
    let ended = async {
        loop {
            for _ in 0..5 {
                assert_eq!(edge.publish("1", &body).await.status(), 200);
                quick.expect("news").await;
            }
            let metrics = edge.admin("/metrics").await.text().await.expect("a text");
            if metrics.contains("realtime_edge_slow_consumers_total 1") {
                return;
            }
        }
    };
    timeout(3 * PATIENCE, ended).await.expect("in time");
    quick.still_serves().await;
    drop(slow);
    edge.stop().await;
}

#[tokio::test]
async fn an_http_client_receives_the_close_code_of_a_stopping_edge() {
    let edge = alone("sockjs").await;
    let (mut streaming, mut polling) =
        (Xhr::new(&edge, "key1", "a", "xhr_streaming"), Xhr::new(&edge, "key1", "b", "xhr"));
    streaming.greeted().await;
    polling.greeted().await;
    edge.shutdown.cancel();
    assert!(matches!(streaming.frame().await, FallbackFrame::Close(4200, _)));
    assert!(matches!(polling.frame().await, FallbackFrame::Close(4200, _)));
    edge.stop().await;
}
