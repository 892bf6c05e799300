//! Three edges as three processes over one Redis and one stream: the events when one of them, or Redis, dies.

// Helpers end a test where they stand; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

mod quota;
mod rosters;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures::{SinkExt, StreamExt, stream};
use realtime_operator::kinesis::{KinesisClient, ReadPosition};
use realtime_operator::process::clock;
use realtime_operator::protocol::record::{EventKind, EventOrder, RecordedEvent, StreamRecord};
use realtime_operator::protocol::registry::App;
use realtime_operator::protocol::{Secret, ShardId, signature};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::fixtures::{start_kinesis, write_registry};
use super::processes::{Server, build_registry_app, environment};
use super::redis::server::Redis;
use super::waiting::describe_last;

/// Longest that a test waits for one thing: thousands of clients join.
const CROWD_TIMEOUT: Duration = Duration::from_mins(1);

/// Clients that connect at once.
const AT_ONCE: usize = 64;

/// The edges of one cluster.
struct Pods {
    edges: Vec<Server>,
    stream: Reader,
    settings: Environment,
    _apps: tempfile::TempDir,
}

struct Environment {
    apps: String,
    kinesis: String,
    redis: String,
}

impl Pods {
    async fn start(redis: &Redis) -> Self {
        Self::start_with_app(redis, build_registry_app("http://127.0.0.1:9/unused")).await
    }

    async fn start_with_app(redis: &Redis, app: App) -> Self {
        let apps = tempfile::tempdir().expect("a directory");
        write_registry(apps.path(), [app]);
        let (kinesis, client) = start_kinesis("s", 2).await;
        let stream = Reader::new(client).await;
        let settings = Environment { apps: path(apps.path()), kinesis, redis: redis.url() };
        let mut pods = Self { edges: vec![], stream, settings, _apps: apps };
        for _ in 0..3 {
            pods.add().await;
        }
        pods
    }

    /// One more, as a container that starts again in its pod.
    async fn add(&mut self) {
        let own = [
            ("REALTIME_TRANSPORTS", "websocket".to_owned()),
            ("REALTIME_WEBHOOKS", "kinesis".to_owned()),
            ("REALTIME_BUS", "redis".to_owned()),
            ("REALTIME_REDIS_URL", self.settings.redis.clone()),
            ("REALTIME_PUBLIC_ADDRESS", "127.0.0.1:0".to_owned()),
            ("REALTIME_ADMIN_ADDRESS", "127.0.0.1:0".to_owned()),
        ];
        let shared = [
            ("REALTIME_APPS_PATH", self.settings.apps.as_str()),
            ("AWS_ENDPOINT_URL_KINESIS", self.settings.kinesis.as_str()),
        ];
        self.edges.push(Server::start("edge", &environment("websocket", &own, &shared)).await);
    }

    async fn client(&self, pod: usize) -> Ws {
        Ws::open(self.edges[pod].address("public")).await
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

/// Time in which a record may still become visible before records that were read. The double of Kinesis numbers a record
/// before it stores it, so on a busy machine a reader can pass a record that is on its way.
const OVERLAP_MS: u64 = 10_000;

/// A shard, read again and again from a record that is older than [`OVERLAP_MS`].
struct ShardReader {
    id: ShardId,
    position: ReadPosition,
    seen: BTreeSet<String>,
}

/// Reads the stream on and on.
struct Reader {
    client: KinesisClient,
    shards: Vec<ShardReader>,
    /// Every event, by channel.
    events: Vec<(String, RecordedEvent)>,
}

impl Reader {
    async fn new(client: KinesisClient) -> Self {
        let shards = client.list_shards().await.expect("shards").into_iter();
        let reader = |id| ShardReader { id, position: ReadPosition::TrimHorizon, seen: BTreeSet::new() };
        Self { shards: shards.map(|shard| reader(shard.id)).collect(), client, events: vec![] }
    }

    async fn read(&mut self) {
        let settled_ms = clock::now_ms() - OVERLAP_MS;
        for shard in &mut self.shards {
            let mut next = Some(self.client.request_iterator(&shard.id, &shard.position).await.expect("an iterator"));
            while let Some(iterator) = next {
                let page = self.client.read(&iterator, 1_000).await.expect("a page");
                next = page.next.filter(|_| !page.records.is_empty());
                for read in page.records {
                    if read.arrival_ms < settled_ms {
                        shard.position = ReadPosition::After(read.sequence.clone());
                    }
                    if shard.seen.insert(read.sequence) {
                        let record = StreamRecord::parse(&read.data).expect("a record");
                        let channel = record.channel.to_string();
                        self.events.extend(record.events.into_iter().map(|event| (channel.clone(), event)));
                    }
                }
            }
        }
    }

    /// Reads until something holds of all events, and returns when it did.
    async fn until(&mut self, awaited: &str, holds: impl Fn(&[(String, RecordedEvent)]) -> bool) -> Instant {
        let read = async {
            while !holds(&self.events) {
                sleep(Duration::from_millis(100)).await;
                self.read().await;
            }
            Instant::now()
        };
        let read = timeout(CROWD_TIMEOUT, read).await;
        read.unwrap_or_else(|_| {
            let (count, last) = (self.events.len(), describe_last(Some(&self.state())));
            panic!("not within {CROWD_TIMEOUT:?}: {awaited}; {count} events came; {last}")
        })
    }

    /// The state after all events in their order: per channel, its users, and `None` for occupied.
    fn state(&self) -> BTreeMap<String, BTreeSet<Option<String>>> {
        let mut events: BTreeMap<(&String, EventOrder), &RecordedEvent> = BTreeMap::new();
        for (channel, event) in &self.events {
            if let Some(order) = event.order {
                let twin = events.insert((channel, order), event);
                assert!(twin.is_none_or(|twin| twin.id == event.id), "two ids for one event: {twin:?} and {event:?}");
            }
        }
        let mut states: BTreeMap<String, BTreeSet<Option<String>>> = BTreeMap::new();
        for ((channel, _), event) in events {
            let state = states.entry(channel.clone()).or_default();
            match &event.kind {
                EventKind::ChannelOccupied => state.insert(None),
                EventKind::ChannelVacated => state.remove(&None),
                EventKind::MemberAdded { user_id } => state.insert(Some(user_id.clone())),
                EventKind::MemberRemoved { user_id } => state.remove(&Some(user_id.clone())),
                _ => continue,
            };
        }
        states.retain(|_, state| !state.is_empty());
        states
    }
}

/// A client.
struct Ws {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    id: String,
}

impl Ws {
    async fn open(address: SocketAddr) -> Self {
        let url = format!("ws://{address}/app/key?protocol=7");
        let (socket, _) = tokio_tungstenite::connect_async(url).await.expect("a socket");
        let mut client = Self { socket, id: String::new() };
        let data = client.wait("pusher:connection_established").await["data"].clone();
        let data: Value = serde_json::from_str(data.as_str().expect("text")).expect("json");
        data["socket_id"].as_str().expect("an id").clone_into(&mut client.id);
        client
    }

    async fn wait(&mut self, event: &str) -> Value {
        let mut last = Value::Null;
        let found = async {
            loop {
                let message = self.socket.next().await.expect("a message").expect("no error");
                let Ok(text) = message.into_text() else { continue };
                last = serde_json::from_str(&text).unwrap_or_default();
                if last["event"] == event {
                    return;
                }
                assert_ne!(last["event"], "pusher:error", "while waiting for {event}: {last}");
            }
        };
        let found = timeout(CROWD_TIMEOUT, found).await;
        assert!(found.is_ok(), "no {event} within {CROWD_TIMEOUT:?}; the last frame: {last}");
        last
    }

    async fn send(&mut self, frame: &Value) {
        self.socket.send(Message::text(frame.to_string())).await.expect("sent");
    }

    async fn join(&mut self, channel: &str, user: Option<&str>) {
        let frame = subscribe_frame(&self.id, channel, user);
        self.send(&frame).await;
        self.wait("pusher_internal:subscription_succeeded").await;
    }

    async fn leave(&mut self, channel: &str) {
        self.send(&unsubscribe_frame(channel)).await;
    }
}

fn subscribe_frame(socket: &str, channel: &str, user: Option<&str>) -> Value {
    let data = user.map(|user| json!({ "user_id": user }).to_string());
    let message = signature::channel_message(socket, channel, data.as_deref());
    let auth = format!("key:{}", signature::sign_message(&Secret::new("secret"), message.as_bytes()));
    let mut frame = json!({ "event": "pusher:subscribe", "data": { "channel": channel, "auth": auth } });
    if let Some(data) = data {
        frame["data"]["channel_data"] = data.into();
    }
    frame
}

fn unsubscribe_frame(channel: &str) -> Value {
    json!({ "event": "pusher:unsubscribe", "data": { "channel": channel } })
}

fn members(events: &[(String, RecordedEvent)], removed: bool) -> HashMap<(String, String), BTreeSet<String>> {
    let mut members: HashMap<_, BTreeSet<String>> = HashMap::new();
    for (channel, event) in events {
        let user = match &event.kind {
            EventKind::MemberAdded { user_id } if !removed => user_id,
            EventKind::MemberRemoved { user_id } if removed => user_id,
            _ => continue,
        };
        members.entry((channel.clone(), user.clone())).or_default().insert(event.id.clone());
    }
    members
}

#[tokio::test(flavor = "multi_thread")]
async fn each_member_of_a_killed_pod_is_removed_once() {
    const MEMBERS: usize = 3_000;
    let redis = Redis::start().await;
    let mut pods = Pods::start(&redis).await;
    let started = Instant::now();
    // Thirty channels; in each third one somebody stays, on another pod.
    let channel = |n: usize| format!("presence-{}", n % 30);
    let mut stays = Vec::new();
    for n in (0..30).step_by(3) {
        let mut client = pods.client(1).await;
        client.join(&channel(n), Some("stays")).await;
        stays.push(client);
    }
    let dying: Vec<Ws> = stream::iter(0..MEMBERS)
        .map(async |n| {
            let mut client = pods.client(0).await;
            // A channel holds a hundred; where somebody stays, one connection is that of another's user.
            let user = if n / 30 == 99 { "0".to_owned() } else { (n / 30).to_string() };
            client.join(&channel(n), Some(&user)).await;
            client
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let wanted = 30 * 99 + stays.len();
    pods.stream.until("everyone was added", |events| members(events, false).len() == wanted).await;
    // Nobody sweeps whose contact with the bus is young.
    tokio::time::sleep_until(started + Duration::from_secs(17)).await;
    drop(pods.edges.remove(0));
    let died = Instant::now();
    // Its container starts again, under the same name.
    pods.add().await;
    let gone = pods.stream.until("all were removed", |events| members(events, true).len() == 30 * 99).await;
    assert!(gone - died < Duration::from_secs(15), "removed after {:?}", gone - died);
    // As long as another sweep would take.
    sleep(Duration::from_secs(5)).await;
    pods.stream.read().await;
    assert!(members(&pods.stream.events, true).values().all(|ids| ids.len() == 1), "a member was removed twice");
    let state = pods.stream.state();
    let there: BTreeSet<Option<String>> = [None, Some("stays".to_owned())].into();
    let truth: BTreeMap<_, _> = (0..30).step_by(3).map(|n| (channel(n), there.clone())).collect();
    assert_eq!(state, truth);
    let vacated = pods.stream.events.iter().filter(|(_, event)| event.kind == EventKind::ChannelVacated).count();
    assert_eq!(vacated, 20);
    for client in &mut stays {
        client.wait("pusher_internal:member_removed").await;
    }
    drop(dying);
}

/// The ids of events: one whose write was acknowledged late is written again, under its id.
fn ids(events: &[(String, RecordedEvent)]) -> BTreeSet<String> {
    events.iter().map(|(_, event)| event.id.clone()).collect()
}

/// Redis dies under load for so long, and comes back.
async fn redis_dies(durable: bool) {
    let redis = if durable { Redis::start_durable().await } else { Redis::start().await };
    let mut pods = Pods::start(&redis).await;
    let mut clients = Vec::new();
    for n in 0..90 {
        let mut client = pods.client(n % 3).await;
        client.join(&format!("presence-{}", n % 9), Some(&n.to_string())).await;
        client.join(&format!("room-{n}"), None).await;
        client.join("everyone", None).await;
        clients.push(client);
    }
    let all = 90 + 9 + 90 + 1;
    pods.stream.until("everyone is reported", |events| ids(events).len() >= all).await;
    let before = ids(&pods.stream.events);
    assert_eq!(before.len(), all, "{:?}", pods.stream.events);
    let redis = redis.kill();
    let down = Instant::now();
    // Some go while it is away, some come, some do both; chat goes on within each pod.
    for n in (0..90).step_by(5) {
        drop(clients[n].socket.close(None).await);
    }
    for n in (1..90).step_by(5) {
        clients[n].leave(&format!("room-{n}")).await;
        clients[n].join(&format!("late-{n}"), None).await;
    }
    for n in (2..90).step_by(5) {
        clients[n].leave(&format!("room-{n}")).await;
        clients[n].join(&format!("room-{n}"), None).await;
    }
    let said = json!({ "event": "pusher:ping", "data": {} });
    clients[3].send(&said).await;
    clients[3].wait("pusher:pong").await;
    tokio::time::sleep_until(down + Duration::from_secs(30)).await;
    let _redis = if durable { redis.restart().await } else { redis.replace().await };
    let back = Instant::now();
    let mut truth: BTreeMap<String, BTreeSet<Option<String>>> = BTreeMap::new();
    for n in 0..90 {
        let gone = n % 5 == 0;
        if !gone {
            truth.entry("everyone".into()).or_default().insert(None);
            truth.entry(format!("presence-{}", n % 9)).or_default().extend([None, Some(n.to_string())]);
            let room = if n % 5 == 1 { format!("late-{n}") } else { format!("room-{n}") };
            truth.entry(room).or_default().insert(None);
        }
    }
    loop {
        pods.stream.read().await;
        if pods.stream.state() == truth {
            break;
        }
        assert!(back.elapsed() < Duration::from_secs(20), "reported {:?}\ntrue {truth:?}", pods.stream.state());
        sleep(Duration::from_millis(200)).await;
    }
    // Each change is reported once, and nothing else.
    sleep(Duration::from_secs(5)).await;
    pods.stream.read().await;
    assert_eq!(pods.stream.state(), truth);
    let fresh: Vec<_> = pods.stream.events.iter().filter(|(_, event)| !before.contains(&event.id)).collect();
    let ids: BTreeSet<_> = fresh.iter().map(|(_, event)| &event.id).collect();
    // 18 members and 36 rooms are gone, 18 rooms are new.
    assert_eq!(ids.len(), 18 + 36 + 18, "{fresh:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_redis_with_its_data_reports_nobody_as_gone() {
    redis_dies(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_redis_without_its_data_reports_nobody_as_gone() {
    redis_dies(false).await;
}
