//! Requests of an app's backend while the bus is out of reach, or its subscription is interrupted.

use super::relay::{Cluster, SECRET};
use super::*;
use crate::redis::server::Redis;

const TERMINATE: &str = "/users/7/terminate_connections";

async fn two_pods(redis: &Redis) -> Cluster {
    redis.aged(6).await;
    Cluster::with(&redis.url(), ("uid-1".into(), "edge"), &[SECRET; 2]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_the_bus_does_not_take_fail_and_a_termination_is_carried_out_once_it_returns() {
    let redis = Redis::start_durable().await;
    let pods = two_pods(&redis).await;
    let (asked, other) = (&pods.pods[0], &pods.pods[1]);
    let (mut near, mut far) = (asked.signed_in().await, other.signed_in().await);
    let mut listener = asked.websocket().await;
    listener.subscribe("room", None).await;
    let redis = redis.kill();
    for pod in [asked, other] {
        eventually("an edge without a bus", async || pod.metric("realtime_edge_bus_up").await, |up| *up == 0).await;
    }
    let event = json!({ "name": "e", "channel": "room", "data": "x" }).to_string();
    let batch = json!({ "batch": [{ "name": "b", "channel": "room", "data": "x" }] }).to_string();
    for (path, body) in [("/events", &event), ("/batch_events", &batch), (TERMINATE, &String::new())] {
        let answer = asked.request("POST", path, body).await;
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().expect("a value")));
    }
    // This process has them all the same.
    for event in ["e", "b"] {
        listener.expect(event).await;
    }
    near.expect("pusher:error").await;
    assert_eq!(near.closed().await, 4009);
    far.still_serves().await;
    let redis = redis.restart().await;
    let returned = tokio::time::Instant::now();
    far.expect("pusher:error").await;
    assert_eq!(far.closed().await, 4009);
    assert!(returned.elapsed() < Duration::from_secs(2), "terminated after {:?}", returned.elapsed());
    // A user who signs in later is not terminated by it. The subscription, which brought the termination, may be back before
    // the connection for calls is.
    eventually("an edge with its bus", async || other.metric("realtime_edge_bus_up").await, |up| *up == 1).await;
    let mut later = other.signed_in().await;
    redis.command(&["client", "kill", "type", "pubsub"]);
    sleep(Duration::from_secs(2)).await;
    later.still_serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_termination_during_a_gap_in_a_subscription_is_carried_out() {
    let redis = Redis::start().await;
    let pods = two_pods(&redis).await;
    let mut far = pods.pods[1].signed_in().await;
    redis.command(&["client", "kill", "type", "pubsub"]);
    // Published to nobody: both subscriptions have just ended.
    assert_eq!(pods.pods[0].request("POST", TERMINATE, "").await.status(), 200);
    far.expect("pusher:error").await;
    assert_eq!(far.closed().await, 4009);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_during_an_outage_cause_no_line_of_the_log_each() {
    let redis = Redis::start().await;
    let (servers, public, _apps) = super::relay::start_processes(&redis).await;
    let redis = redis.kill();
    let warnings = || servers[0].log().lines().filter(|line| line.contains("\"WARN\"")).count();
    eventually("a warning", async || warnings(), |count| *count > 0).await;
    let before = warnings();
    for n in 0..30 {
        let page = super::relay::Page::new("xhr_polling", public[0], &format!("client{n}"));
        let mut heard = page.listen(public[0]);
        let socket = heard.socket().await;
        page.send(&subscribe(&socket, "presence-room", Some("u"))).await;
    }
    let after = warnings();
    assert!(after <= before + 3, "{}", servers[0].log());
    drop(redis);
}
