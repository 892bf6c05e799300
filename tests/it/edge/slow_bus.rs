//! A drain while Redis answers late.

use std::collections::BTreeSet;
use std::time::Instant;

use realtime_operator::bus::{Health, RedisBus};

use super::last_messages::{connect_narrow, publish_to_all, subscribe_to_many};
use super::*;
use crate::redis::server::Redis;
use crate::redis::switch_proxy::SwitchProxy;

/// Time by which each command of the bus is late; a call fails after 4 s.
const COMMAND_DELAY: Duration = Duration::from_secs(2);

/// Members of a presence channel on the edge that drains.
const MEMBERS: usize = 40;

/// Events of a client that does not read.
const PUBLISHES: usize = 13;

/// The window of the drain. One session after the other, each with a call of the bus, would take 80 s and more.
const WINDOW: &str = "5";

/// Bounds the time until every client is closed, on a busy machine.
const CLOSES_TIMEOUT: Duration = Duration::from_secs(20);

async fn edge_at(url: &str, process: &str) -> Edge {
    realtime_operator::process::install_tls();
    let bus = RedisBus::connect(url, "uid-1", process, CancellationToken::new()).await.expect("a bus");
    eventually("presence on the bus", async || bus.is_presence_ready(), |is_ready| *is_ready).await;
    let mut limited = app("1", true);
    limited.limits.connections = Some(1_000);
    let window = [("REALTIME_DRAIN_WINDOW_SECONDS", WINDOW)];
    start_on_bus("websocket", vec![limited], &window, Arc::new(bus), None).await
}

/// Reads the news of the channel up to the close.
async fn wait_closed(member: &mut Ws) -> u16 {
    loop {
        if let Message::Close(Some(frame)) = received(&mut member.socket, "close frame").await {
            return frame.code.into();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_with_a_slow_bus_ends_in_its_window_and_loses_nothing_that_was_queued() {
    let redis = Redis::start().await;
    redis.aged(6).await;
    let proxy = SwitchProxy::start(redis.port).await;
    let (edge, other) = (edge_at(&proxy.url(), "p1").await, edge_at(&redis.url(), "p2").await);
    let mut watcher = other.websocket().await;
    watcher.subscribe("presence-room", Some("watcher")).await;
    let mut members = Vec::new();
    for n in 0..MEMBERS {
        let mut member = edge.websocket().await;
        member.subscribe("presence-room", Some(&format!("user-{n}"))).await;
        watcher.expect("pusher_internal:member_added").await;
        members.push(member);
    }
    let mut slow = connect_narrow(&edge).await;
    let channels = subscribe_to_many(&mut slow).await;
    for _ in 0..PUBLISHES {
        publish_to_all(&edge, &channels, 5_500).await;
    }

    proxy.delay_commands(COMMAND_DELAY);
    edge.shutdown.cancel();
    let began = Instant::now();
    let reading = async {
        sleep(Duration::from_secs(2)).await;
        for n in 0..PUBLISHES * channels.len() {
            assert_eq!(slow.message(&format!("event {n}")).await.event, "news", "{n}");
        }
        assert_eq!(slow.closed().await, 4200);
    };
    let closing = futures::future::join_all(members.iter_mut().map(wait_closed));
    let all = async { tokio::join!(closing, reading) };
    let (closes, ()) = within(CLOSES_TIMEOUT, "the close of every client", all).await;
    assert_eq!(closes, [4200; MEMBERS]);
    println!("{MEMBERS} members and a slow reader were closed in {:?}", began.elapsed());
    edge.stop().await;

    // The leaves reach Redis late, or the other edge finds them once the lease has expired: each once.
    let mut left = BTreeSet::new();
    for _ in 0..MEMBERS {
        let removed = watcher.expect("pusher_internal:member_removed").await.data;
        assert!(left.insert(removed["user_id"].as_str().expect("an id").to_owned()), "twice: {removed}");
    }
    watcher.still_serves().await;
    other.stop().await;
}
