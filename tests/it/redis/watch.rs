//! A bus that watches its connections: each fault is noticed within seconds, and mended without a restart.

use fred::interfaces::KeysInterface;
use realtime_operator::bus::check_store;

use super::switch_proxy::SwitchProxy;
use super::*;

/// Longest until a lost connection is noticed, and a second for a busy machine.
const NOTICED_TIMEOUT: Duration = Duration::from_secs(6);

async fn expect_available(bus: &RedisBus, available: bool, limit: Duration) {
    let changed = async {
        while bus.is_available() != available {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let changed = tokio::time::timeout(limit, changed).await;
    assert!(changed.is_ok(), "available: {}, not within {limit:?}", bus.is_available());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_is_frozen_is_noticed_and_made_anew() {
    let redis = Redis::start().await;
    let proxy = SwitchProxy::start(redis.port).await;
    let (one, two) = (start_bus(&proxy.url(), "p1", CancellationToken::new()).await, redis.bus("p2").await);
    let mut frames = one.take_incoming_frames().expect("an inbox");
    let message = |text: &'static str| BroadcastFrame::new(subject("room"), text);
    two.publish_frame(message("before")).await.expect("published");
    assert_eq!(
        tokio::time::timeout(WAIT_TIMEOUT, frames.recv()).await.expect("a frame").map(|m| m.frame),
        Some("before".into())
    );
    proxy.freeze_subscribers();
    expect_available(&one, false, NOTICED_TIMEOUT).await;
    assert!(two.is_available(), "its own connection works");
    expect_available(&one, true, NOTICED_TIMEOUT).await;
    two.publish_frame(message("after")).await.expect("published");
    assert_eq!(
        tokio::time::timeout(WAIT_TIMEOUT, frames.recv()).await.expect("a frame").map(|m| m.frame),
        Some("after".into())
    );
    one.join_channel(&subject("room"), &"1.1".into(), None).await.expect("joined");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_becomes_a_replica_is_left_for_the_one_to_which_the_name_leads() {
    let files = || tempfile::tempdir().expect("a directory");
    let former = Redis::start().await;
    let port = former.port.to_string();
    let options = ["--appendonly", "no", "--replicaof", "127.0.0.1", &port, "--repl-diskless-sync-delay", "0"];
    let next = Redis::start_with(files(), &options).await;
    next.answers_with(&["info", "replication"], "master_link_status:up").await;
    let proxy = SwitchProxy::start(former.port).await;
    let bus = start_bus(&proxy.url(), "p1", CancellationToken::new()).await;
    bus.join_channel(&subject("room"), &"1.1".into(), None).await.expect("joined").transitions.acknowledge_all();
    next.command(&["replicaof", "no", "one"]);
    proxy.lead_to(next.port);
    // Its connections stay open.
    former.command(&["replicaof", "127.0.0.1", &next.port.to_string()]);
    let demoted = std::time::Instant::now();
    let joined = async {
        while bus.join_channel(&subject("after"), &"1.1".into(), None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, joined).await.expect("a join on the next primary");
    assert!(demoted.elapsed() < NOTICED_TIMEOUT, "after {:?}", demoted.elapsed());
    assert_eq!(next.command(&["hlen", "rt:{uid-1:1:after}:sockets"]).trim(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_rights_of_the_bus_ends_the_start_with_the_command_that_gives_them() {
    for (rights, asks_for) in [
        // Since Redis 7 a new user may use no channel.
        (&["~*", "+@all", "resetchannels"][..], "publish"),
        (&["~rt:*", "&rt:*", "+@all", "-evalsha", "-eval"], "eval"),
    ] {
        let user = [&["--appendonly", "no", "--user", "edge", "on", ">right"][..], rights].concat();
        let redis = Redis::start_with(tempfile::tempdir().expect("a directory"), &user).await;
        let url = format!("redis://edge:right@127.0.0.1:{}", redis.port);
        let refused = RedisBus::connect(&url, "uid-1", "p1", CancellationToken::new()).await.err();
        let Some(BusError::Unusable(reason)) = refused else { panic!("{asks_for}: {refused:?}") };
        assert!(reason.contains("ACL SETUSER") && reason.contains("~rt:* &rt:* +@all"), "{reason}");
        if asks_for == "publish" {
            let refused = check_store(&url).await.err();
            assert!(matches!(&refused, Some(BusError::Unusable(reason)) if reason.contains("&rt:*")), "{refused:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_withdrawn_and_given_back_are_noticed() {
    let user = ["--appendonly", "no", "--user", "edge", "on", ">right", "~rt:*", "&rt:*", "+@all"];
    let redis = Redis::start_with(tempfile::tempdir().expect("a directory"), &user).await;
    let url = format!("redis://edge:right@127.0.0.1:{}", redis.port);
    let bus = start_bus(&url, "p1", CancellationToken::new()).await;
    redis.command(&["acl", "setuser", "edge", "resetchannels"]);
    expect_available(&bus, false, NOTICED_TIMEOUT).await;
    redis.command(&["acl", "setuser", "edge", "&rt:*"]);
    expect_available(&bus, true, NOTICED_TIMEOUT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_fails_backs_off_alone_and_stops_no_sweep() {
    let redis = Redis::start().await;
    let death = CancellationToken::new();
    let (dying, one) = (redis.bus_until("p0", death.clone()).await, redis.bus("p1").await);
    let mut decided = one.take_remote_transitions().expect("an outlet");
    for (name, socket) in [("room", "1.1"), ("poison", "1.2")] {
        dying.join_channel(&subject(name), &socket.into(), None).await.expect("joined").transitions.acknowledge_all();
    }
    let raw = redis.client().await;
    raw.del::<(), _>("rt:{uid-1:1:poison}:sockets").await.expect("removed");
    raw.set::<(), _, _>("rt:{uid-1:1:poison}:sockets", "foreign", None, None, false).await.expect("set");
    one.join_channel(&subject("poison"), &"1.3".into(), None).await.expect_err("another program's key");
    death.cancel();
    expect_remote_transition(&mut decided, &EventKind::ChannelVacated).await;
    assert!(one.is_available());
    let calls = || {
        let stats = redis.command(&["info", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_info:calls=").map(str::to_owned));
        line.and_then(|line| line.split(',').next()?.parse::<u64>().ok()).expect("a count")
    };
    let before = calls();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let made = calls() - before;
    // Ten renewals in that time, and one after each attempt.
    assert!(made < 40, "{made} renewals in 2 s");
    // Once the key has gone, the rest of the dead process is swept and the connection counts.
    raw.del::<(), _>("rt:{uid-1:1:poison}:sockets").await.expect("removed");
    let swept = async || redis.command(&["zscore", "rt:{uid-1}:leases", "p0"]);
    eventually("the end of the sweep", swept, |score| score.trim().is_empty()).await;
    let there = async || one.inspect_channel(&subject("poison")).await.map(|seen| seen.connections);
    let there = eventually("the connection that waited", there, |seen| *seen == Ok(1)).await;
    assert_eq!(there, Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_waits_for_a_reader_that_is_slow_and_loses_nothing() {
    const CHANNELS: usize = 17_000;
    let redis = Redis::start().await;
    let death = CancellationToken::new();
    let (dying, one) = (redis.bus_until("p0", death.clone()).await, redis.bus("p1").await);
    let mut decided = one.take_remote_transitions().expect("an outlet");
    let dying = std::sync::Arc::new(dying);
    let joins = (0..CHANNELS).map(|n| {
        let dying = dying.clone();
        async move {
            let joined = dying.join_channel(&subject(&format!("room-{n}")), &"1.1".into(), None).await;
            joined.expect("joined").transitions.acknowledge_all();
        }
    });
    use futures::StreamExt;
    futures::stream::iter(joins).buffer_unordered(64).collect::<Vec<()>>().await;
    death.cancel();
    // More channels than the queue takes: nothing is read until it is full.
    let left = async || redis.command(&["scard", "rt:{uid-1:p0}:channels"]).trim().parse::<usize>().unwrap_or(CHANNELS);
    eventually("a sweep that has filled the queue", left, |left| *left < CHANNELS - 16_000).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = collect_remote_transitions(&mut decided, CHANNELS).await;
    let channels: std::collections::BTreeSet<_> = found.iter().map(|(subject, _)| subject.channel.clone()).collect();
    assert_eq!(channels.len(), CHANNELS);
}
