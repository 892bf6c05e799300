//! The memory of an edge process through a failure of the stream and the loss of Redis: it is bounded by the recorder's
//! queue, and nothing is left of either.

use std::time::Instant;

use realtime_operator::protocol::registry::AppLimits;

use super::*;
use crate::fault_proxy::CallFault;
use crate::fixtures::{load_size, start_faulty_kinesis};
use crate::processes::{Server, edge_environment};
use crate::redis::server::Redis;

/// Memory that a failure may take, in KiB: the recorder's queue has 32 MiB of events at most.
const MEMORY_MAX_KIB: u64 = 64 << 10;

/// Bounds the time until the outboxes are empty, once the queue is.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds the time until a full queue is in the stream.
const FLUSH_TIMEOUT: Duration = Duration::from_mins(2);

/// Longest end of a process that has nothing to write and no client.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Clients that come and go, and clients that send.
const CLIENTS: usize = 32;

/// Bytes of a client event.
const EVENT_BYTES: usize = 9_000;

/// Time for which Redis is killed.
const REDIS_OUTAGE: Duration = Duration::from_secs(2);

/// A value of `/proc/PID/status`, in KiB.
fn process_memory_kib(process: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The admin listener of the process.
struct Admin {
    http: reqwest::Client,
    address: SocketAddr,
}

impl Admin {
    async fn get(&self, path: &str) -> String {
        let request = self.http.get(format!("http://{}{path}", self.address)).header("Authorization", "Bearer t");
        request.send().await.expect("an answer").text().await.expect("a text")
    }

    async fn recorder(&self) -> RecorderFlow {
        let report: FlowReport = serde_json::from_str(&self.get("/flow").await).expect("a flow");
        report.recorder.expect("the recorder's half")
    }

    /// Changes whose receipts are not acknowledged to Redis.
    async fn unacknowledged_changes(&self) -> f64 {
        let page = self.get("/metrics").await;
        let value = page.lines().find_map(|line| line.strip_prefix("realtime_edge_bus_unacknowledged_changes "));
        value.expect("the series").parse().expect("a number")
    }
}

/// A client that joins and leaves a room: four changes of state each time. Its pace is bounded by `changes_per_second` of all
/// of them.
async fn come_and_go(edge: SocketAddr, number: usize, changes_per_second: usize, end: Instant) -> usize {
    let mut client = Ws::open(edge, "/app/key1?protocol=7").await;
    client.greeted().await;
    let (room, began, mut changes) = (format!("presence-{number}"), Instant::now(), 0);
    while Instant::now() < end {
        client.send(&subscribe(&client.id, &room, Some("ann"))).await;
        // While Redis is away, an error says that the subscription waits for it.
        while client.message("subscription").await.event != SUBSCRIBED {}
        client.send(&json!({ "event": "pusher:unsubscribe", "data": { "channel": room } })).await;
        changes += 4;
        let due = Duration::from_millis((changes * CLIENTS * 1_000 / changes_per_second) as u64);
        tokio::time::sleep_until((began + due).into()).await;
    }
    client.socket.close(None).await.expect("closed");
    changes
}

/// A client that fills the queue with large events, and then adds so many that are dropped.
async fn send_events(edge: SocketAddr, number: usize, events: usize) {
    let mut client = Ws::open(edge, "/app/key1?protocol=7").await;
    client.greeted().await;
    let room = format!("private-{number}");
    client.subscribe(&room, None).await;
    for n in 0..events {
        client.send(&client_event(&room, &json!({ "n": n, "text": "x".repeat(EVENT_BYTES) }))).await;
        if n % 16 == 15 {
            client.still_serves().await;
        }
    }
    client.still_serves().await;
    client.socket.close(None).await.expect("closed");
}

async fn sign_in(edge: SocketAddr, number: usize) {
    let mut client = Ws::open(edge, "/app/key1?protocol=7").await;
    client.greeted().await;
    client.signed_in(&json!({ "id": format!("user-{number}") })).await;
    client.socket.close(None).await.expect("closed");
}

/// `OUTAGE_SECONDS=120 SIGN_INS=10000 CHANGES_PER_SECOND=1000 cargo test --test it memory_of_an_edge -- --nocapture` is the
/// long form. It prints what the process held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_of_an_edge_is_bounded_while_the_stream_and_redis_are_away_and_nothing_is_left_of_it() {
    let outage = Duration::from_secs(load_size("OUTAGE_SECONDS", 15) as u64);
    let (sign_ins, dropped_events) = (load_size("SIGN_INS", 500), load_size("DROPPED_EVENTS", 5_000));
    let changes_per_second = load_size("CHANGES_PER_SECOND", 1_000);
    let redis = Redis::start_durable().await;
    // A store that has just begun is not believed yet.
    redis.aged(6).await;
    let (stream, client, faults) = start_faulty_kinesis("s", 2).await;
    let apps = tempfile::tempdir().expect("a directory");
    let limits = AppLimits { client_events_per_second: 100_000, ..AppLimits::default() };
    write_registry(apps.path(), vec![App { limits, ..app("1", true) }]);
    let url = redis.url();
    let others = [
        ("REALTIME_BUS", "redis"),
        ("REALTIME_REDIS_URL", url.as_str()),
        ("REALTIME_WEBHOOKS", "kinesis"),
        ("AWS_ENDPOINT_URL_KINESIS", stream.as_str()),
    ];
    let process = Server::start("edge", &edge_environment(apps.path(), &others)).await;
    let (edge, id) = (process.address("public"), process.id());
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let admin = Admin { http, address: process.address("admin") };
    // The first load takes memory that every edge has.
    let warm = Instant::now() + Duration::from_secs(2);
    futures::future::join_all((0..CLIENTS).map(|n| come_and_go(edge, n, changes_per_second, warm))).await;
    eventually("a warm edge", async || admin.recorder().await, |flow| flow.queued == 0 && flow.acknowledged > 0).await;
    let before_kib = process_memory_kib(id, "VmRSS");

    faults.set(Some(CallFault::ServiceFailure));
    let end = Instant::now() + outage;
    let events = (32 << 20) / EVENT_BYTES + dropped_events;
    let changes = futures::future::join_all((0..CLIENTS).map(|n| come_and_go(edge, n, changes_per_second, end)));
    let sending = futures::future::join_all((0..CLIENTS).map(|n| send_events(edge, n, events.div_ceil(CLIENTS))));
    let signing = futures::stream::iter(0..sign_ins).for_each_concurrent(CLIENTS, |n| sign_in(edge, n));
    let losing = async {
        tokio::join!(sending, signing);
        let killed = redis.kill();
        sleep(REDIS_OUTAGE).await;
        killed.restart().await
    };
    let (changes, redis) = tokio::join!(changes, losing);
    let flow = admin.recorder().await;
    let dropped: u64 = flow.dropped.values().sum();
    assert!(dropped >= dropped_events as u64, "the queue was full: {flow:?}");
    let held_kib = process_memory_kib(id, "VmHWM").saturating_sub(before_kib);

    faults.set(None);
    let flush = async || {
        let flow = admin.recorder().await;
        if flow.queued == 0 { Ok(flow) } else { Err(flow) }
    };
    crate::waiting::eventually_within(FLUSH_TIMEOUT, "an empty queue", flush).await;
    let began = Instant::now();
    let outboxes =
        async || (admin.unacknowledged_changes().await, redis.command(&["keys", "*:outbox"]).trim().to_owned());
    let empty = eventually("empty outboxes", outboxes, |left| *left == (0.0, String::new()));
    within(CLEAN_TIMEOUT, "empty outboxes", empty).await;
    let (clean, after_kib) = (began.elapsed(), process_memory_kib(id, "VmRSS").saturating_sub(before_kib));
    let began = Instant::now();
    assert_eq!(within(END_TIMEOUT, "the end of the process", process.terminate()).await, Some(0));
    assert_eq!(redis.command(&["zcard", "rt:{u}:leases"]).trim(), "0", "the lease is still there");
    println!(
        "{} changes in {outage:?}, {sign_ins} sign-ins, {dropped} dropped: {before_kib} KiB before, {held_kib} KiB more at \
         most, {after_kib} KiB more afterwards; outboxes empty after {clean:?}; ended within {:?}",
        changes.iter().sum::<usize>(),
        began.elapsed()
    );
    assert!(held_kib < MEMORY_MAX_KIB, "{held_kib} KiB more");
    drop(client);
}
