//! The dispatcher against a Kinesis in process and a receiver on loopback.

mod bad_receivers;
pub mod dead_letters;
mod endpoint_settings;
mod isolation;
mod ledger;
mod lineage;
mod pauses;
mod receiver;
mod replay;
mod scripted_receiver;
mod start_position;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use realtime_operator::config::ServerConfig;
use realtime_operator::dispatcher::{
    self, DispatcherDependencies, EgressOverrides, MemberStatus, MemoryLeases, RunningDispatcher, ShardLeases,
};
use realtime_operator::kinesis::{KinesisClient, PutEntry, ReadPosition};
use realtime_operator::process::clock::now_ms;
use realtime_operator::protocol::admin::{DispatcherFlow, EndpointReport, EndpointsReport, FlowReport};
use realtime_operator::protocol::record::{
    EventKind, EventOrder, RECORD_VERSION, RecordOrigin, RecordedEvent, StreamRecord, partition_key,
};
use realtime_operator::protocol::registry::App;
use realtime_operator::protocol::webhook::{KEY_HEADER, SIGNATURE_HEADER, WebhookBody, WebhookEvent, verify_webhook};
use realtime_operator::protocol::{ChannelName, Secret};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::receiver::Receiver;
use super::fault_proxy::{CallFault, FaultSwitch};
use super::fixtures::{
    REGION, build_app, build_webhook, connect_kinesis, serve_routes, start_faulty_kinesis, start_kinesis,
    wait_until_active, write_registry,
};
use super::ledger::LedgerWatch;
use super::waiting::{eventually, within};

const CLUSTER: &str = "cluster-1";
const LOOPBACK: (&str, &str) = ("REALTIME_ALLOWED_NETWORKS", "127.0.0.0/8");

/// A Kinesis with one stream of so many shards, and an app whose webhooks go to the receiver.
struct Bed {
    kinesis: KinesisClient,
    endpoint: String,
    receiver: Receiver,
    apps: TempDir,
    leases: MemoryLeases,
    ledgers: LedgerWatch,
}

impl Bed {
    async fn new(shards: u32) -> Self {
        let (endpoint, kinesis) = start_kinesis("stream", shards).await;
        Self::on_stream(endpoint, kinesis).await
    }

    /// A bed whose Kinesis fails when the switch says so.
    async fn with_faults(shards: u32) -> (Self, FaultSwitch) {
        let (endpoint, kinesis, faults) = start_faulty_kinesis("stream", shards).await;
        (Self::on_stream(endpoint, kinesis).await, faults)
    }

    async fn on_stream(endpoint: String, kinesis: KinesisClient) -> Self {
        let receiver = Receiver::default();
        let apps = tempfile::tempdir().expect("a directory");
        let bed = Self {
            kinesis,
            endpoint,
            receiver,
            apps,
            leases: MemoryLeases::default(),
            ledgers: LedgerWatch::default(),
        };
        bed.write_apps(&bed.receiver.serve().await);
        bed
    }

    fn write_apps(&self, url: &str) {
        let app = App { webhooks: vec![build_webhook(url)], ..build_app("1001", "key", "secret") };
        write_registry(self.apps.path(), [app]);
    }

    async fn dispatcher(&self, more: &[(&str, &str)]) -> (RunningDispatcher, CancellationToken) {
        self.dispatcher_of("stream", more).await
    }

    async fn dispatcher_of(&self, stream: &str, more: &[(&str, &str)]) -> (RunningDispatcher, CancellationToken) {
        self.dispatcher_with(Arc::new(self.leases.clone()), stream, more).await
    }

    async fn dispatcher_with(
        &self,
        leases: Arc<dyn ShardLeases>,
        stream: &str,
        more: &[(&str, &str)],
    ) -> (RunningDispatcher, CancellationToken) {
        self.start_dispatcher(leases, EgressOverrides::default(), stream, more).await
    }

    async fn dispatcher_on_network(
        &self,
        egress: EgressOverrides,
        more: &[(&str, &str)],
    ) -> (RunningDispatcher, CancellationToken) {
        self.start_dispatcher(Arc::new(self.leases.clone()), egress, "stream", more).await
    }

    async fn start_dispatcher(
        &self,
        leases: Arc<dyn ShardLeases>,
        egress: EgressOverrides,
        stream: &str,
        more: &[(&str, &str)],
    ) -> (RunningDispatcher, CancellationToken) {
        let variables = [
            ("REALTIME_CLUSTER", "channels/eu"),
            ("REALTIME_CLUSTER_UID", CLUSTER),
            ("REALTIME_SERVER", "dispatcher"),
            ("REALTIME_POD", "pod"),
            ("REALTIME_ADMIN_TOKEN", "token"),
            ("REALTIME_APPS_PATH", "/etc/realtime/apps"),
            ("REALTIME_STREAM_NAME", stream),
            ("REALTIME_AWS_IDENTITY", "StaticKeys"),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
        ];
        let pairs = variables.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let shutdown = CancellationToken::new();
        let dependencies = DispatcherDependencies {
            admin: TcpListener::bind("127.0.0.1:0").await.expect("a port"),
            apps_dir: self.apps.path().to_owned(),
            kinesis: connect_kinesis(&self.endpoint, stream).await,
            leases,
            egress,
            shutdown: shutdown.clone(),
        };
        let running =
            dispatcher::start(ServerConfig::parse(pairs).expect("values"), dependencies).await.expect("started");
        self.ledgers.follow_process(running.admin, "token");
        (running, shutdown)
    }

    /// Splits a shard of all hash keys into halves.
    async fn split(&self, shard: &str) {
        let half = (u128::MAX / 2 + 1).to_string();
        let split = serde_json::json!({ "StreamName": "stream", "ShardToSplit": shard, "NewStartingHashKey": half });
        self.call_kinesis("SplitShard", &split).await;
    }

    async fn merge(&self, shard: &str, adjacent: &str) {
        let merge = serde_json::json!({
            "StreamName": "stream", "ShardToMerge": shard, "AdjacentShardToMerge": adjacent,
        });
        self.call_kinesis("MergeShards", &merge).await;
    }

    /// Calls an operation that changes the stream, and waits until it is done.
    async fn call_kinesis(&self, operation: &str, body: &serde_json::Value) {
        let authorization =
            "AWS4-HMAC-SHA256 Credential=a/20260101/eu-west-1/kinesis/aws4_request, SignedHeaders=host, Signature=b";
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let request = client
            .post(&self.endpoint)
            .header("Content-Type", "application/x-amz-json-1.1")
            .header("X-Amz-Target", format!("Kinesis_20131202.{operation}"))
            .header("X-Amz-Date", "20260101T000000Z")
            .header("Authorization", authorization);
        let answer = request.body(body.to_string()).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{:?}", answer.text().await);
        wait_until_active(&self.kinesis).await;
    }

    async fn put(&self, cluster: &str, channel: &str, events: Vec<RecordedEvent>) {
        self.put_for("1001", cluster, channel, events).await;
    }

    async fn put_for(&self, app: &str, cluster: &str, channel: &str, events: Vec<RecordedEvent>) {
        let results = self.kinesis.put_records(&[build_record(app, cluster, channel, events)]).await.expect("put");
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }
}

/// A record as an edge of the cluster puts it.
pub fn build_record(app: &str, cluster: &str, channel: &str, events: Vec<RecordedEvent>) -> PutEntry {
    let (app, channel) = (app.into(), ChannelName::parse(channel).expect("a valid name"));
    let partition_key = partition_key(&app, &channel);
    let edge = RecordOrigin { cluster: cluster.into(), server: "sockjs".into(), pod: "p".into(), process: "b".into() };
    let record = StreamRecord { v: RECORD_VERSION, app, channel, edge, events };
    PutEntry { partition_key, data: Bytes::from(record.to_bytes().expect("bytes")) }
}

pub fn state(id: &str, time_ms: u64, seq: u64, kind: EventKind) -> RecordedEvent {
    // The channels of a test are younger than the window that a new holder reads again: each test has its own thread.
    thread_local!(static EPOCH: u64 = now_ms() * 1_000);
    let order = Some(EventOrder { epoch: EPOCH.with(|epoch| *epoch), seq });
    RecordedEvent { id: id.into(), time_ms, order, n: None, cause: None, kind }
}

fn message(id: &str, n: u64) -> RecordedEvent {
    let kind =
        EventKind::ClientEvent { event: "client-a".into(), data: "{}".into(), socket_id: "1.2".into(), user_id: None };
    RecordedEvent { id: id.into(), time_ms: now_ms(), order: None, n: Some(n), cause: None, kind }
}

async fn flow(running: &RunningDispatcher) -> DispatcherFlow {
    let flow: FlowReport = serde_json::from_str(&get(running, "/flow").await).expect("a flow");
    assert_eq!(flow.process, running.process);
    flow.dispatcher.expect("the dispatcher's half")
}

/// Waits until the last error has these parts.
async fn wait_for_error(running: &RunningDispatcher, parts: &[&str]) {
    let has_parts = |flow: &DispatcherFlow| {
        flow.last_error.as_ref().is_some_and(|error| parts.iter().all(|part| error.contains(part)))
    };
    eventually(&format!("an error with {parts:?}"), async || flow(running).await, has_parts).await;
}

async fn endpoint_reports(running: &RunningDispatcher) -> BTreeMap<String, EndpointReport> {
    let text = get(running, "/endpoints").await;
    let report: EndpointsReport = serde_json::from_str(&text).expect(&text);
    report.endpoints.into_iter().map(|endpoint| (endpoint.name.clone(), endpoint)).collect()
}

async fn get(running: &RunningDispatcher, path: &str) -> String {
    realtime_operator::process::install_tls();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let request = client.get(format!("http://{}{path}", running.admin)).header("Authorization", "Bearer token");
    request.send().await.expect("an answer").text().await.expect("a text")
}

#[tokio::test]
async fn a_thousand_events_of_a_channel_arrive_signed_and_in_order() {
    let bed = Bed::new(1).await;
    let (running, _) = bed.dispatcher(&[LOOPBACK]).await;
    let is_read = |flow: &DispatcherFlow| flow.shards.values().any(|shard| shard.read_at_ms > 0);
    eventually("a shard is read", async || flow(&running).await, is_read).await;
    let started = now_ms();
    bed.put(CLUSTER, "a", vec![message("first", 0)]).await;
    bed.receiver.receives("the first arrives", |ids| ids == ["first"]).await;
    assert!(now_ms() - started < 2_000, "soon");
    let expected: Vec<String> = (1..=1_000).map(|n| n.to_string()).collect();
    for ids in expected.chunks(50) {
        bed.put(CLUSTER, "a", (1..).zip(ids).map(|(n, id)| message(id, n)).collect()).await;
    }
    bed.receiver.receives("all arrive", |ids| ids.len() >= 1_001).await;
    assert_eq!(bed.receiver.ids()[1..], expected);
    assert_eq!(*bed.receiver.problems.lock().expect("not poisoned"), Vec::<String>::new());
    eventually("all is done", async || flow(&running).await, |flow| flow.unfinished == 0).await;
    assert_eq!(flow(&running).await.delivered, 1_001);
    assert!(get(&running, "/effective").await.contains("REALTIME_STREAM_NAME"));
    assert!(get(&running, "/metrics").await.contains("realtime_dispatcher_events_delivered_total 1001"));
}

#[tokio::test]
async fn failures_are_retried_without_changing_the_order() {
    let bed = Bed::new(1).await;
    bed.receiver.answers.lock().expect("not poisoned").extend([500, 503, 302, 410, 500, 404]);
    let (running, _) = bed.dispatcher(&[LOOPBACK, ("REALTIME_MAX_BACKOFF_SECONDS", "1")]).await;
    let expected: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    for (n, id) in (0..).zip(&expected) {
        bed.put(CLUSTER, "a", vec![message(id, n)]).await;
    }
    bed.receiver.receives("all arrive", |ids| ids.len() >= 20).await;
    assert_eq!(bed.receiver.ids(), expected);
    let flow = flow(&running).await;
    assert_eq!((flow.failed_attempts, flow.dropped), (6, BTreeMap::new()));
}

#[tokio::test]
async fn state_is_sent_in_the_decided_order_and_a_short_absence_is_not_sent() {
    let bed = Bed::new(1).await;
    let (_running, _) = bed.dispatcher(&[LOOPBACK]).await;
    let now = now_ms();
    bed.put(CLUSTER, "a", vec![state("2", now, 2, EventKind::ChannelVacated)]).await;
    bed.put(CLUSTER, "a", vec![state("1", now, 1, EventKind::ChannelOccupied)]).await;
    bed.receiver.receives("occupied arrives", |ids| ids == ["1"]).await;
    bed.put(CLUSTER, "a", vec![state("3", now_ms(), 3, EventKind::ChannelOccupied)]).await;
    let left = now_ms();
    bed.put(CLUSTER, "a", vec![state("4", left, 4, EventKind::ChannelVacated)]).await;
    bed.put(CLUSTER, "b", vec![state("5", left, 1, EventKind::ChannelOccupied)]).await;
    bed.receiver.receives("vacated arrives", |ids| ids.len() >= 3).await;
    assert_eq!(bed.receiver.ids(), ["1", "5", "4"], "2 and 3 cancel, 4 holds back nobody");
    let (arrived, _) = bed.receiver.events()[2].clone();
    assert!((3_000..6_000).contains(&(arrived - left)), "{}", arrived - left);
}

#[tokio::test]
async fn two_dispatchers_share_the_shards_and_one_takes_over_without_loss() {
    let bed = Bed::new(4).await;
    let (one, stop_one) = bed.dispatcher(&[LOOPBACK]).await;
    let (two, _) = bed.dispatcher(&[LOOPBACK]).await;
    let shards = async || (flow(&one).await.shards.len(), flow(&two).await.shards.len());
    eventually("each holds half", shards, |shards| *shards == (2, 2)).await;
    let put = async |from: u64| {
        for n in from..from + 40 {
            bed.put(CLUSTER, &format!("c{}", n % 10), vec![message(&n.to_string(), n)]).await;
        }
    };
    put(0).await;
    bed.receiver.receives("all arrive", |ids| ids.len() >= 40).await;
    stop_one.cancel();
    put(40).await;
    within(Duration::from_secs(15), "the end of the dispatcher", one.wait_until_stopped()).await;
    eventually("the other holds all", async || flow(&two).await, |flow| flow.shards.len() == 4).await;
    put(80).await;
    let distinct = |ids: &[String]| ids.iter().collect::<BTreeSet<_>>().len();
    bed.receiver.receives("all 120 arrive", |ids| distinct(ids) >= 120).await;
    assert!(bed.receiver.ids().len() < 160, "the take-over went on from the checkpoint");
    let checkpoints = async || {
        let status = MemberStatus { proven: true, backing_off: false };
        let view = bed.leases.send_heartbeat("onlooker", status).await.expect("a view");
        view.leases.values().filter(|lease| lease.checkpoint.is_some()).count()
    };
    eventually("four checkpoints", checkpoints, |checkpoints| *checkpoints == 4).await;
}

#[tokio::test]
async fn a_shard_handover_repeats_no_event_sent_after_a_pending_absence() {
    let bed = Bed::new(1).await;
    let (one, stop) = bed.dispatcher(&[LOOPBACK]).await;
    bed.put(CLUSTER, "a", vec![state("occupied", now_ms(), 1, EventKind::ChannelOccupied)]).await;
    bed.put(CLUSTER, "a", vec![state("vacated", now_ms(), 2, EventKind::ChannelVacated)]).await;
    for (n, id) in (0..).zip(["0", "1", "2", "3", "4"]) {
        bed.put(CLUSTER, "b", vec![message(id, n)]).await;
    }
    bed.receiver.receives("what came behind it arrives", |ids| ids.len() == 6).await;
    assert!(!bed.receiver.ids().contains(&"vacated".to_owned()), "it still waits");
    stop.cancel();
    within(Duration::from_secs(15), "the end of the dispatcher", one.wait_until_stopped()).await;
    let (_two, _) = bed.dispatcher(&[LOOPBACK]).await;
    bed.receiver.receives("the absence arrives", |ids| ids.contains(&"vacated".to_owned())).await;
    bed.put(CLUSTER, "b", vec![message("after", 5)]).await;
    bed.receiver.receives("what comes after it arrives", |ids| ids.contains(&"after".to_owned())).await;
    let mut ids = bed.receiver.ids();
    assert_eq!(ids.split_off(6), ["vacated", "after"], "each once");
}

#[tokio::test]
async fn an_old_event_is_stamped_anew_and_carries_its_own_time() {
    let bed = Bed::new(1).await;
    let (_running, _) = bed.dispatcher(&[LOOPBACK]).await;
    let old = RecordedEvent { time_ms: now_ms() - 600_000, ..message("old", 0) };
    let time = old.time_ms.to_string();
    bed.put(CLUSTER, "a", vec![old]).await;
    bed.receiver.receives("it arrives", |ids| ids == ["old"]).await;
    let (arrived, body) = bed.receiver.bodies.lock().expect("not poisoned")[0].clone();
    assert!(arrived.abs_diff(body.time_ms) < 5_000, "an SDK takes it");
    assert_eq!(*bed.receiver.originals.lock().expect("not poisoned"), [time]);
}

#[tokio::test]
async fn a_departure_of_more_members_than_the_bound_holds_does_not_stop_the_shard() {
    let bed = Bed::new(1).await;
    let (_running, _) = bed.dispatcher(&[LOOPBACK]).await;
    let left = now_ms();
    for record in 0..11 {
        let removed = |seq: u64| {
            let user_id = seq.to_string();
            state(&user_id.clone(), left, seq, EventKind::MemberRemoved { user_id })
        };
        bed.put(CLUSTER, "presence-a", (record * 1_000 + 1..=record * 1_000 + 1_000).map(removed).collect()).await;
    }
    let bodies = async || bed.receiver.bodies.lock().expect("not poisoned").len();
    eventually("110 webhooks", bodies, |bodies| *bodies >= 110).await;
    let expected: Vec<String> = (1..=11_000).map(|n| n.to_string()).collect();
    assert!(bed.receiver.ids() == expected, "in order, once each");
}

#[tokio::test]
async fn a_split_shard_is_read_to_its_end_and_then_its_children() {
    let bed = Bed::new(1).await;
    let (running, _) = bed.dispatcher(&[LOOPBACK]).await;
    eventually("the shard is held", async || flow(&running).await, |flow| flow.shards.len() == 1).await;
    bed.put(CLUSTER, "a", vec![message("before", 0)]).await;
    bed.split("shardId-000000000000").await;
    for n in 0..10 {
        bed.put(CLUSTER, &format!("c{n}"), vec![message(&n.to_string(), n)]).await;
    }
    bed.receiver.receives("all arrive", |ids| ids.len() == 11).await;
    assert_eq!(bed.receiver.ids()[0], "before");
    eventually("the children are held", async || flow(&running).await, |flow| flow.shards.len() == 2).await;
}

#[tokio::test]
async fn foreign_records_are_counted_and_do_not_stop_the_shard() {
    let bed = Bed::new(1).await;
    let (running, _) = bed.dispatcher(&[LOOPBACK]).await;
    bed.put("cluster-2", "a", vec![message("foreign", 0)]).await;
    let rubbish = PutEntry { partition_key: "1001/a".into(), data: Bytes::from_static(b"\xf3\x89\x9a\xc2") };
    bed.kinesis.put_records(&[rubbish]).await.expect("put");
    bed.put(CLUSTER, "a", vec![message("ours", 1)]).await;
    bed.receiver.receives("ours arrives", |ids| !ids.is_empty()).await;
    assert_eq!(bed.receiver.ids(), ["ours"]);
    let expected = [("ForeignCluster".to_owned(), 1), ("Poison".to_owned(), 1)];
    assert_eq!(flow(&running).await.dropped, BTreeMap::from(expected));
}

#[tokio::test]
async fn a_record_of_a_newer_format_blocks_its_shard_and_is_reported() {
    let bed = Bed::new(1).await;
    let (running, _) = bed.dispatcher(&[LOOPBACK]).await;
    bed.put(CLUSTER, "a", vec![message("before", 0)]).await;
    let newer = PutEntry { partition_key: "1001/a".into(), data: Bytes::from_static(br#"{"v":2}"#) };
    bed.kinesis.put_records(&[newer]).await.expect("put");
    bed.put(CLUSTER, "a", vec![message("after", 1)]).await;
    wait_for_error(&running, &["RecordTooNew"]).await;
    bed.receiver.receives("what came before arrives", |ids| ids == ["before"]).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(bed.receiver.ids(), ["before"]);
}

#[tokio::test]
async fn loopback_is_refused_without_the_exception_and_the_window_ends() {
    let bed = Bed::new(1).await;
    let (running, _) =
        bed.dispatcher(&[("REALTIME_RETRY_WINDOW_SECONDS", "2"), ("REALTIME_MAX_BACKOFF_SECONDS", "1")]).await;
    bed.put(CLUSTER, "a", vec![message("1", 0)]).await;
    wait_for_error(&running, &["127.0.0.1 is not a public address"]).await;
    let dropped = async || flow(&running).await.dropped;
    eventually("a drop", dropped, |dropped| dropped.get("RetryWindowOver") == Some(&1)).await;
    eventually("it is done", async || flow(&running).await, |flow| flow.unfinished == 0).await;
    assert!(bed.receiver.ids().is_empty());
}

#[tokio::test]
async fn a_registry_that_comes_later_is_used() {
    let bed = Bed::new(1).await;
    let receiver = bed.receiver.clone();
    let url = receiver.serve().await;
    for entry in std::fs::read_dir(bed.apps.path()).expect("a directory") {
        std::fs::write(entry.expect("an entry").path(), "[]").expect("written");
    }
    let (running, _) = bed.dispatcher(&[LOOPBACK]).await;
    bed.put(CLUSTER, "a", vec![message("1", 0)]).await;
    eventually("it is read", async || flow(&running).await, |flow| flow.unfinished == 1).await;
    bed.write_apps(&url);
    bed.receiver.receives("it arrives", |ids| ids == ["1"]).await;
}

#[tokio::test]
async fn a_missing_stream_is_shown_and_nothing_breaks() {
    let bed = Bed::new(1).await;
    let started = std::time::Instant::now();
    let (running, shutdown) = bed.dispatcher_of("wrong", &[LOOPBACK]).await;
    assert!(started.elapsed() < Duration::from_secs(3));
    wait_for_error(&running, &["wrong", "ResourceNotFoundException"]).await;
    assert_eq!(*running.failure.borrow(), None);
    shutdown.cancel();
    within(Duration::from_secs(10), "the end of the dispatcher", running.wait_until_stopped()).await;
}
