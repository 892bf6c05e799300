//! Who comes to a presence channel while Redis is away: it waits for a while, and hears who is there once Redis is back.

use std::collections::BTreeSet;
use std::time::Instant;

use realtime_operator::bus::{ChannelKey, ChannelStore, Health, RedisBus};
use realtime_operator::protocol::ChannelName;

use super::*;
use crate::redis::server::Redis;

/// The time in which a store that came back is not believed yet, and a margin.
const BACK: Duration = Duration::from_secs(15);

/// An edge on this Redis, once it is registered.
async fn edge_on(server: &str, redis: &Redis, pod: &str) -> Edge {
    realtime_operator::process::install_tls();
    let bus = RedisBus::connect(&redis.url(), "uid-1", pod, CancellationToken::new()).await.expect("a bus");
    eventually("presence on the bus", async || bus.is_presence_ready(), |is_ready| *is_ready).await;
    start_on_bus(server, vec![app("1", true)], &[], Arc::new(bus), None).await
}

async fn waiting(edge: &Edge, count: u64) {
    let pending = async || edge.metric("realtime_edge_pending_subscriptions").await;
    eventually(&format!("{count} pending subscriptions"), pending, |pending| *pending == count).await;
}

/// Over both kinds of transport: one task each, which must not stand still.
#[tokio::test(flavor = "multi_thread")]
async fn presence_subscriptions_wait_while_redis_is_unavailable_and_receive_the_roster_after_it_returns() {
    let redis = Redis::start().await;
    let (one, two) = tokio::join!(edge_on("websocket", &redis, "p1"), edge_on("sockjs", &redis, "p2"));
    let mut there = one.websocket().await;
    there.subscribe("presence-room", Some("there")).await;
    let mut came = one.websocket().await;
    let mut over_http = Xhr::new(&two, "key1", "waits", "xhr_streaming");
    let socket = over_http.greeted().await;
    let mut leaves = one.websocket().await;
    let mut changes_its_mind = one.websocket().await;

    let (url, redis) = (redis.url(), redis.kill());
    // The first asks may find out themselves that nobody answers.
    came.send(&subscribe(&came.id, "presence-room", Some("came"))).await;
    over_http.send(&subscribe(&socket, "presence-room", Some("over-http"))).await;
    leaves.send(&subscribe(&leaves.id, "presence-room", Some("leaves"))).await;
    for channel in ["presence-room", "presence-other"] {
        changes_its_mind.send(&subscribe(&changes_its_mind.id, channel, Some("changes"))).await;
    }
    waiting(&one, 4).await;
    waiting(&two, 1).await;
    // Each receives an error with a code, since the trouble is the server's.
    for client in [&mut came, &mut leaves, &mut changes_its_mind] {
        assert_eq!(client.expect("pusher:error").await.data["code"], 4100);
    }
    changes_its_mind.expect("pusher:error").await;
    over_http.expect("pusher:error").await;
    // Meanwhile the same connections are served.
    for client in [&mut came, &mut leaves, &mut changes_its_mind] {
        client.still_serves().await;
    }
    over_http.send(&json!({ "event": "pusher:ping", "data": {} })).await;
    over_http.expect("pusher:pong").await;
    came.send(&json!({ "event": "pusher:subscribe", "data": { "channel": "public" } })).await;
    came.expect(SUBSCRIBED).await;
    came.send(&client_event("presence-room", &json!(1))).await;
    assert_eq!(came.expect("pusher:error").await.data["code"], 4301, "it is not there yet");
    // Who goes or changes its mind leaves nothing behind.
    leaves.socket.close(None).await.expect("closed");
    let unsubscribe = json!({ "event": "pusher:unsubscribe", "data": { "channel": "presence-room" } });
    changes_its_mind.send(&unsubscribe).await;
    waiting(&one, 2).await;
    assert_eq!(one.metric("realtime_edge_pending_subscription_outcomes_total{result=\"left\"}").await, 2);

    let _empty = redis.replace().await;
    let back = Instant::now();
    let first = came.expect(SUBSCRIBED).await.data;
    let second = over_http.expect(SUBSCRIBED).await.data;
    changes_its_mind.expect(SUBSCRIBED).await;
    assert!(back.elapsed() < BACK, "{:?}", back.elapsed());
    // Each knows of who was there before, and of each other by the answer or by what follows it.
    for roster in [&first, &second] {
        assert!(roster["presence"]["hash"]["there"].is_object(), "{roster}");
    }
    let bus = RedisBus::connect(&url, "uid-1", "test", CancellationToken::new()).await.expect("a bus");
    let subject = |channel| ChannelKey { app: "1".into(), channel: ChannelName::parse(channel).expect("a name") };
    eventually_ok("the three members", async || match bus.inspect_channel(&subject("presence-room")).await {
        Ok(seen) if seen.users == ["came", "over-http", "there"] && seen.connections == 3 => Ok(()),
        seen => Err(seen),
    })
    .await;
    assert_eq!(bus.inspect_channel(&subject("presence-other")).await.expect("seen").users, ["changes"]);
    waiting(&one, 0).await;
    waiting(&two, 0).await;
    assert_eq!(one.metric("realtime_edge_pending_subscription_outcomes_total{result=\"entered\"}").await, 2);
    // What is said there from now on is heard by them.
    let mut missing: BTreeSet<&str> = ["came", "over-http"].into();
    while !missing.is_empty() {
        let added = there.expect("pusher_internal:member_added").await.data;
        missing.remove(added["user_id"].as_str().expect("an id"));
    }
    there.send(&client_event("presence-room", &json!(2))).await;
    loop {
        let found = over_http.messages().await;
        if found.iter().any(|message| message.event == "client-said") {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_presence_subscription_that_times_out_is_refused_and_its_client_stays_connected() {
    let redis = Redis::start().await;
    let edge = edge_on("websocket", &redis, "p1").await;
    let mut client = edge.websocket().await;
    drop(redis);
    client.send(&subscribe(&client.id, "presence-room", Some("u"))).await;
    waiting(&edge, 1).await;
    let error = client.expect("pusher:error").await.data;
    assert!(error["message"].as_str().is_some_and(|text| text.contains("waits")), "{error}");
    let asked = Instant::now();
    // Longer than a test waits otherwise.
    let refused = within(Duration::from_secs(40), "a refusal", client.socket.next()).await;
    let refused = refused.expect("a message").expect("no error");
    let refused = ServerMessage::parse(refused.to_text().expect("text")).expect("a frame");
    assert_eq!((refused.event.as_str(), &refused.data["code"]), ("pusher:error", &json!(4100)));
    let error = client.expect("pusher:subscription_error").await;
    assert_eq!((error.channel.as_deref(), &error.data["status"]), (Some("presence-room"), &json!(503)));
    assert!(asked.elapsed() > Duration::from_secs(15), "{:?}", asked.elapsed());
    client.still_serves().await;
    waiting(&edge, 0).await;
    assert_eq!(edge.metric("realtime_edge_pending_subscription_outcomes_total{result=\"refused\"}").await, 1);
}
