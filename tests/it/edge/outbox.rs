//! After a failure of the stream nothing is left of it in Redis or in the process, and no lease.

use futures::stream;
use realtime_operator::bus::{Membership, RedisBus};
use realtime_operator::protocol::registry::WebhookEndpoint;

use super::*;
use crate::fault_proxy::CallFault;
use crate::fixtures::{load_size, start_faulty_kinesis};
use crate::redis::server::Redis;

/// Bounds the time until nothing is left of a failure.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(5);

/// Clients that act at one time.
const CONCURRENT_CLIENTS: usize = 32;

/// `SIGN_INS=10000 CYCLES=500 cargo test --test it outboxes_are_empty` is the load of a day in a minute: 10,000 sign-ins, and
/// 64,000 changes of occupancy, of which the queue drops 14,000.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failure_of_the_stream_the_outboxes_are_empty_and_the_lease_is_released_at_once() {
    let (sign_ins, cycles) = (load_size("SIGN_INS", 200), load_size("CYCLES", 10));
    let redis = Redis::start().await;
    // A store that has just begun is not believed yet.
    redis.aged(6).await;
    let (_, stream, faults) = start_faulty_kinesis("events", 1).await;
    let life = CancellationToken::new();
    let bus = RedisBus::connect(&redis.url(), "uid-1", "p1", life.clone()).await.expect("a bus");
    let bus = Arc::new(bus);
    let edge = start_on_bus("websocket", vec![app("1", true)], &[], bus.clone(), Some(stream.clone())).await;
    faults.set(Some(CallFault::ServiceFailure));
    let sign_in = async |n: usize| {
        let mut client = edge.websocket().await;
        client.signed_in(&json!({ "id": format!("user-{n}") })).await;
        client.socket.close(None).await.expect("closed");
    };
    let come_and_go = async |n: usize| {
        let mut client = edge.websocket().await;
        let room = format!("presence-{n}");
        for _ in 0..cycles {
            client.subscribe(&room, Some("ann")).await;
            client.send(&json!({ "event": "pusher:unsubscribe", "data": { "channel": room } })).await;
        }
        client.socket.close(None).await.expect("closed");
    };
    stream::iter(0..sign_ins).for_each_concurrent(CONCURRENT_CLIENTS, sign_in).await;
    stream::iter(0..CONCURRENT_CLIENTS).for_each_concurrent(CONCURRENT_CLIENTS, come_and_go).await;
    let changes = u64::try_from(CONCURRENT_CLIENTS * cycles * 4).expect("a count");
    let flow = eventually("every change accepted", async || edge.flow().await, |flow| flow.accepted >= changes).await;
    let dropped: u64 = flow.dropped.values().sum();
    assert_eq!(flow.acknowledged, 0, "the stream is unavailable");
    let kept = async || u64::try_from(bus.unacknowledged_count()).expect("a count");
    eventually("receipts of queued changes only", kept, |kept| *kept == changes - dropped).await;

    faults.set(None);
    let flow = eventually("an empty queue", async || edge.flow().await, |flow| flow.queued == 0).await;
    assert_eq!(flow.acknowledged + dropped, changes);
    let outboxes = async || (bus.unacknowledged_count(), redis.command(&["keys", "*:outbox"]).trim().to_owned());
    let empty = eventually("empty outboxes", outboxes, |left| *left == (0, String::new()));
    within(CLEAN_TIMEOUT, "empty outboxes", empty).await;
    let index = async || redis.command(&["scard", "rt:{uid-1:p1}:channels"]).trim().to_owned();
    eventually("no channel in the process's index", index, |count| count == "0").await;
    edge.stop().await;
    assert_eq!(redis.command(&["zcard", "rt:{uid-1}:leases"]).trim(), "0", "the lease is still there");
    println!("{sign_ins} sign-ins, {changes} changes, {dropped} dropped: outboxes empty, lease released");
    life.cancel();
}

#[tokio::test]
async fn refused_records_and_lost_replies_end_with_every_event_in_the_stream() {
    for fault in [CallFault::RefusedEntries, CallFault::LostReply] {
        let (_, stream, faults) = start_faulty_kinesis("events", 1).await;
        let edge = start("websocket", MemoryBus::new(), Some(stream.clone())).await;
        faults.set(Some(fault));
        let mut client = edge.websocket().await;
        for n in 0..40 {
            client.subscribe(&format!("room-{n}"), None).await;
        }
        let failed = |flow: &RecorderFlow| flow.last_error.is_some();
        let flow = eventually("an error of the stream", async || edge.flow().await, failed).await;
        let error = flow.last_error.unwrap_or_default();
        let expected = if fault == CallFault::RefusedEntries { "ThroughputExceeded" } else { "InternalFailure" };
        assert!(error.contains(expected), "{fault:?}: {error}");
        faults.set(None);
        let flow = eventually("an empty queue", async || edge.flow().await, |flow| flow.queued == 0).await;
        assert_eq!((flow.accepted, flow.acknowledged, flow.last_error), (40, 40, None), "{fault:?}");
        let events = read_events(&stream).await;
        let ids: std::collections::BTreeSet<&str> = events.iter().map(|event| event.id.as_str()).collect();
        assert_eq!(ids.len(), 40, "{fault:?}");
        edge.stop().await;
    }
}

#[tokio::test]
async fn only_events_that_an_endpoint_receives_are_recorded() {
    let stream = start_stream().await;
    let only = |events: &[&str]| {
        let events = events.iter().map(|event| (*event).to_owned()).collect();
        WebhookEndpoint { events, ..build_webhook("https://a.example") }
    };
    let known = vec![App { webhooks: vec![only(&["client_event"])], ..app("1", true) }];
    let edge = start_with("websocket", known, &[], MemoryBus::new(), Some(stream.clone())).await;
    let mut client = edge.websocket().await;
    client.subscribe("private-room", None).await;
    client.send(&client_event("private-room", &json!(1))).await;
    let flow = eventually("a recorded event", async || edge.flow().await, |flow| flow.acknowledged == 1).await;
    assert_eq!((flow.accepted, flow.unwanted), (1, 1), "the occupation has no endpoint");
    edge.stop().await;
    let kinds: Vec<&str> = read_events(&stream).await.iter().map(|event| event.kind.name()).collect();
    assert_eq!(kinds, ["client_event"]);
}
