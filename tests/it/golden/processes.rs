//! Formats of processes that read a stream; its double runs in this process.

use std::sync::{Arc, Mutex};

use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use realtime_operator::config::ServerConfig;
use realtime_operator::dispatcher::{
    self, Checkpoint, CheckpointPosition, DispatcherDependencies, EgressOverrides, KubernetesLeases, MemberStatus,
    MemoryLeases, ShardLeases,
};
use realtime_operator::kinesis::KinesisClient;
use realtime_operator::kubernetes::client::KubernetesClients;
use realtime_operator::protocol::ShardId;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::fixtures::{serve_routes, start_kinesis};

/// The form of a time of a Lease. The API server wants six digits behind the point.
const STABLE_TIME: &str = "2026-01-01T00:00:00.000000Z";

/// The Leases of a namespace, by name.
type Leases = Arc<Mutex<BTreeMap<String, Value>>>;

async fn list_leases(State(leases): State<Leases>) -> Json<Value> {
    let items: Vec<Value> = leases.lock().expect("not poisoned").values().cloned().collect();
    Json(json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "LeaseList", "metadata": {}, "items": items,
    }))
}

fn name_of(lease: &Value) -> String {
    lease["metadata"]["name"].as_str().expect("a name").to_owned()
}

async fn write_lease(State(leases): State<Leases>, Json(mut lease): Json<Value>) -> Json<Value> {
    lease["metadata"]["resourceVersion"] = "1".into();
    leases.lock().expect("not poisoned").insert(name_of(&lease), lease.clone());
    Json(lease)
}

async fn read_lease(State(leases): State<Leases>, UrlPath(name): UrlPath<String>) -> (StatusCode, Json<Value>) {
    let found = leases.lock().expect("not poisoned").get(&name).cloned();
    let gone = || json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404 });
    let status = if found.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
    (status, Json(found.unwrap_or_else(gone)))
}

/// An API server that has these Leases, and a dispatcher's view of it.
async fn lease_store(leases: &Leases, kinesis: &KinesisClient) -> KubernetesLeases {
    let folder = "/apis/coordination.k8s.io/v1/namespaces/channels/leases";
    let router = Router::new()
        .route(folder, get(list_leases).post(write_lease))
        .route(&format!("{folder}/{{name}}"), get(read_lease).put(write_lease))
        .with_state(leases.clone());
    let url = serve_routes(router).await.parse().expect("a url");
    let client = kube::Client::try_from(kube::Config::new(url)).expect("a client");
    let clients = KubernetesClients { watch: client.clone(), call: client };
    KubernetesLeases::new(clients, "channels", kinesis.clone())
}

#[tokio::test]
async fn leases_and_checkpoints_of_a_dispatcher() {
    let checkpoint = |position| Checkpoint { stream_created_ms: 1_700_000_000_000, position, beyond: None };
    let through = checkpoint(CheckpointPosition::Through("49".into()));
    // The type of the part beyond has no name outside its room.
    let beyond = json!({
        "streamCreatedMs": 1_700_000_000_000_u64,
        "position": { "through": "49" },
        "beyond": { "through": "53", "open": ["50", "52"] },
    });
    let beyond: Checkpoint = serde_json::from_value(beyond).expect("a checkpoint");
    let end = checkpoint(CheckpointPosition::ShardEnd);
    golden_json("checkpoints.jsonl", &[through, beyond.clone(), end.clone()]);

    let kinesis = start_kinesis("events", 1).await.1;
    let leases = Leases::default();
    let store = lease_store(&leases, &kinesis).await;
    let status = |backing_off| MemberStatus { proven: true, backing_off };
    let (open, closed) = (ShardId::from("shardId-000000000000"), ShardId::from("shard_A.b"));
    store.send_heartbeat("01JMEMBER", status(false)).await.expect("registered");
    for (shard, checkpoint) in [(&open, beyond.clone()), (&closed, end.clone())] {
        let lease = store.acquire_shard(shard, "01JMEMBER").await.expect("acquired");
        store.renew(shard, lease.generation, Some(checkpoint)).await.expect("renewed");
    }
    let released = store.acquire_shard(&closed, "01JMEMBER").await.expect("acquired");
    store.release_shard(&closed, released.generation, None).await.expect("released");

    let mut text = String::new();
    for lease in leases.lock().expect("not poisoned").values_mut() {
        let time = lease["spec"]["renewTime"].as_str().expect("a time");
        assert_eq!(time.len(), STABLE_TIME.len(), "{time}");
        lease["spec"]["renewTime"] = STABLE_TIME.into();
        writeln!(text, "{lease}").expect("written");
    }
    golden("leases.jsonl", &text);

    let committed = read_golden("leases.jsonl");
    let committed = committed.lines().map(|line| serde_json::from_str::<Value>(line).expect("a Lease"));
    let committed: BTreeMap<String, Value> = committed.map(|lease| (name_of(&lease), lease)).collect();
    let reader = lease_store(&Arc::new(Mutex::new(committed)), &kinesis).await;
    let seen = reader.send_heartbeat("01JREADER", status(true)).await.expect("registered");
    assert_eq!(seen.members["01JMEMBER"], status(false));
    let lease = |shard: &ShardId| {
        let lease = seen.leases[shard].clone();
        (lease.holder, lease.generation, lease.checkpoint)
    };
    assert_eq!(lease(&open), (Some("01JMEMBER".into()), 1, Some(beyond)));
    assert_eq!(lease(&closed), (None, 2, Some(end)));
}

#[tokio::test]
async fn a_deleted_lease_is_written_again_by_its_holder_and_by_no_other() {
    let (leases, kinesis) = (Leases::default(), start_kinesis("events", 1).await.1);
    let (store, other) = (lease_store(&leases, &kinesis).await, lease_store(&leases, &kinesis).await);
    let status = MemberStatus { proven: true, backing_off: false };
    let shard = ShardId::from("shardId-000000000000");
    store.send_heartbeat("holder", status).await.expect("registered");
    other.send_heartbeat("other", status).await.expect("registered");
    let lease = store.acquire_shard(&shard, "holder").await.expect("acquired");
    let position = CheckpointPosition::Through("49".into());
    let checkpoint = Checkpoint { stream_created_ms: 1, position, beyond: None };
    store.renew(&shard, lease.generation, Some(checkpoint.clone())).await.expect("renewed");
    leases.lock().expect("not poisoned").retain(|name, _| name.contains("member"));
    let seen = store.send_heartbeat("holder", status).await.expect("registered");
    assert!(seen.leases.is_empty());
    store.renew(&shard, lease.generation, Some(checkpoint.clone())).await.expect("written again");
    let seen = other.send_heartbeat("other", status).await.expect("registered").leases[&shard].clone();
    assert_eq!((seen.holder.as_deref(), seen.generation), (Some("holder"), lease.generation));
    assert_eq!(seen.checkpoint, Some(checkpoint.clone()));
    other.renew(&shard, lease.generation + 1, Some(checkpoint)).await.expect_err("not its generation");
}

#[tokio::test]
async fn a_checkpoint_of_a_newer_format_is_no_missing_checkpoint() {
    let (leases, kinesis) = (Leases::default(), start_kinesis("events", 1).await.1);
    let store = lease_store(&leases, &kinesis).await;
    let status = MemberStatus { proven: true, backing_off: false };
    let shard = ShardId::from("shardId-000000000000");
    store.send_heartbeat("holder", status).await.expect("registered");
    store.acquire_shard(&shard, "holder").await.expect("acquired");
    for lease in leases.lock().expect("not poisoned").values_mut() {
        lease["metadata"]["annotations"]["realtime-operator.dev/checkpoint"] = r#"{"v":2}"#.into();
    }
    let seen = store.send_heartbeat("holder", status).await.expect("registered").leases[&shard].clone();
    assert_eq!((seen.checkpoint, seen.unreadable_checkpoint.as_deref()), (None, Some(r#"{"v":2}"#)));
}

#[tokio::test]
async fn metrics_of_an_edge() {
    let edge = crate::edge::alone("websocket").await;
    let mut socket = crate::edge::dial(edge.running.public, "/app/key1?protocol=7").await;
    crate::edge::received(&mut socket, "greeting").await;
    let page = edge.admin("/metrics").await.text().await.expect("a text");
    golden_metrics("edge", &page);
}

#[tokio::test]
async fn metrics_of_a_dispatcher() {
    let apps = tempfile::tempdir().expect("a directory");
    write_registry(apps.path(), [app("17")]);
    let variables = [
        ("REALTIME_CLUSTER", "channels/eu"),
        ("REALTIME_CLUSTER_UID", "uid-1"),
        ("REALTIME_SERVER", "dispatcher"),
        ("REALTIME_POD", "pod"),
        ("REALTIME_ADMIN_TOKEN", "token"),
        ("REALTIME_APPS_PATH", "/etc/realtime/apps"),
        ("REALTIME_STREAM_NAME", "events"),
        ("REALTIME_AWS_IDENTITY", "NodeRole"),
        ("AWS_REGION", "us-east-1"),
    ];
    let pairs = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let dependencies = DispatcherDependencies {
        admin: TcpListener::bind("127.0.0.1:0").await.expect("a port"),
        apps_dir: apps.path().to_owned(),
        kinesis: start_kinesis("events", 1).await.1,
        leases: Arc::new(MemoryLeases::default()),
        egress: EgressOverrides::default(),
        shutdown: CancellationToken::new(),
    };
    let config = ServerConfig::parse(pairs).expect("values");
    let running = dispatcher::start(config, dependencies).await.expect("started");
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let request = http.get(format!("http://{}/metrics", running.admin)).bearer_auth("token");
    let page = request.send().await.expect("an answer").text().await.expect("a text");
    golden_metrics("dispatcher", &page);
}
