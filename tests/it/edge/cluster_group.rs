//! Two clusters of one group on one Redis, each with its own stream: their clients meet in the same channels.

use realtime_operator::bus::{BusScope, RedisBus};
use realtime_operator::protocol::record::EventOrder;

use super::relay::{Cluster, Page, SECRET, fast};
use super::*;
use crate::redis::server::Redis;

const GROUP: &str = "fleet";

/// Longest until a session of another cluster is answered: no process of it is dialled.
const GONE_ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// An edge of a cluster of the group, with the cluster's own stream.
async fn start_member(redis: &Redis, cluster: &str, app: App, stream: &KinesisClient) -> Edge {
    let scope = BusScope { cluster, group: GROUP };
    let process = format!("process-{cluster}");
    let bus = RedisBus::connect(&redis.url(), scope, &process, CancellationToken::new()).await.expect("a bus");
    let own = [("REALTIME_CLUSTER_UID", cluster), ("REALTIME_BUS_GROUP", GROUP)];
    start_on_bus("edge", vec![app], &own, Arc::new(bus), Some(stream.clone())).await
}

/// The changes of occupancy in a stream: of which channel, which change, in which order.
async fn read_changes(stream: &KinesisClient, cluster: &str) -> Vec<(String, &'static str, EventOrder)> {
    let mut changes = Vec::new();
    for shard in stream.list_shards().await.expect("shards") {
        let iterator = stream.request_iterator(&shard.id, &ReadPosition::TrimHorizon).await.expect("an iterator");
        for read in stream.read(&iterator, 1000).await.expect("a page").records {
            let record = StreamRecord::parse(&read.data).expect("a record");
            assert_eq!(record.edge.cluster, cluster, "a dispatcher delivers the records of its own cluster");
            let ordered = record.events.iter().filter_map(|event| Some((event.kind.name(), event.order?)));
            changes.extend(ordered.map(|(kind, order)| (record.channel.to_string(), kind, order)));
        }
    }
    changes
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_two_clusters_of_a_group_meet_and_each_change_is_recorded_once() {
    let redis = Redis::start().await;
    redis.aged(6).await;
    let (our_stream, their_stream) = tokio::join!(start_stream(), start_stream());
    let ours = start_member(&redis, "uid-1", fast(), &our_stream).await;
    let theirs = start_member(&redis, "uid-2", fast(), &their_stream).await;
    let (mut ann, mut bob) = (ours.websocket().await, theirs.websocket().await);

    // Presence: one roster.
    ann.subscribe("presence-room", Some("ann")).await;
    let roster = bob.subscribe("presence-room", Some("bob")).await;
    let mut ids: Vec<&str> =
        roster["presence"]["ids"].as_array().expect("ids").iter().filter_map(Value::as_str).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["ann", "bob"]);
    assert_eq!(ann.expect("pusher_internal:member_added").await.data["user_id"], "bob");
    let users = theirs.backend("GET", "/channels/presence-room/users", "").await;
    assert_eq!(users["users"].as_array().map(Vec::len), Some(2));

    // Frames, of a backend and of a client, both ways.
    for (from, to) in [(&ours, &mut bob), (&theirs, &mut ann)] {
        let event = json!({ "name": "e", "channel": "presence-room", "data": "x" });
        assert_eq!(from.publish("1", &event).await.status(), 200);
        while to.next().await.event != "e" {}
    }
    ann.send(&client_event("presence-room", &json!({ "n": 1 }))).await;
    while bob.next().await.event != "client-said" {}

    // The last one leaves by the other cluster than the first one came.
    ann.socket.close(None).await.expect("closed");
    bob.expect("pusher_internal:member_removed").await;
    bob.socket.close(None).await.expect("closed");
    let vacated = async || theirs.backend("GET", "/channels", "").await["channels"].clone();
    eventually("an empty channel", vacated, |channels| channels == &json!({})).await;
    ours.stop().await;
    theirs.stop().await;

    let (of_ours, of_theirs) = (read_changes(&our_stream, "uid-1").await, read_changes(&their_stream, "uid-2").await);
    let names = |changes: &[(String, &'static str, EventOrder)]| {
        changes.iter().map(|(_, kind, order)| (*kind, order.seq)).collect::<Vec<_>>()
    };
    assert_eq!(names(&of_ours), [("channel_occupied", 1), ("member_added", 2), ("member_removed", 4)]);
    assert_eq!(names(&of_theirs), [("member_added", 3), ("member_removed", 5), ("channel_vacated", 6)]);
    let epochs = of_ours.iter().chain(&of_theirs).map(|(_, _, order)| order.epoch);
    assert_eq!(epochs.collect::<std::collections::BTreeSet<_>>().len(), 1, "one order over both");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_connections_counts_those_of_every_cluster_of_the_group() {
    let redis = Redis::start().await;
    redis.aged(6).await;
    let mut app = fast();
    app.limits.connections = Some(2);
    let (our_stream, their_stream) = tokio::join!(start_stream(), start_stream());
    let ours = start_member(&redis, "uid-1", app.clone(), &our_stream).await;
    let theirs = start_member(&redis, "uid-2", app, &their_stream).await;
    let (_ann, mut bob) = (ours.websocket().await, theirs.websocket().await);
    for edge in [&ours, &theirs] {
        let mut third = Ws::open(edge.running.public, "/app/key1?protocol=7&client=test&version=1").await;
        assert_eq!(third.next().await.event, "pusher:error");
        assert_eq!(third.closed().await, 4004);
    }
    bob.socket.close(None).await.expect("closed");
    let opened = async || {
        let mut ws = Ws::open(ours.running.public, "/app/key1?protocol=7&client=test&version=1").await;
        ws.next().await.event
    };
    eventually("a free place", opened, |event| event == ESTABLISHED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_another_cluster_of_the_group_is_gone_at_once_and_nobody_is_dialled() {
    let redis = Redis::start().await;
    redis.aged(6).await;
    let url = redis.url();
    let scope = |cluster| BusScope { cluster, group: GROUP };
    let (ours, theirs) = tokio::join!(
        Cluster::with(&url, (scope("uid-1"), "edge"), &[SECRET; 2]),
        Cluster::with(&url, (scope("uid-2"), "edge"), &[SECRET; 1]),
    );
    let stranger = theirs.pods[0].running.public;
    let page = Page::new("xhr_polling", ours.pods[0].running.public, "session");
    let mut heard = page.listen(ours.pods[1].running.public);
    heard.socket().await;

    // Its lookup was answered with the other cluster.
    let moved = page.at(stranger);
    let sent = within(GONE_ANSWER_TIMEOUT, "an answer to a send", moved.send(&json!({ "event": "pusher:ping" }))).await;
    assert_eq!(sent, 404);
    let mut receiving = moved.listen(stranger);
    let frame = within(GONE_ANSWER_TIMEOUT, "an answer to a receive", receiving.frame()).await;
    assert!(matches!(frame, realtime_operator::protocol::fallback::FallbackFrame::Close(4200, _)), "{frame:?}");
    for metric in ["realtime_edge_requests_relayed_total", "realtime_edge_relay_failures_total"] {
        assert_eq!(theirs.sum(metric).await, 0, "{metric}");
    }

    // The session itself goes on where it is.
    assert_eq!(page.send(&json!({ "event": "pusher:ping", "data": {} })).await, 204);
    assert_eq!(heard.message().await["event"], "pusher:pong");
}
