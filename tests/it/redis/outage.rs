//! A Redis that fails: its data are lost, another primary takes over, or it answers late.

use super::*;

#[tokio::test]
async fn the_bus_follows_a_sentinel_to_another_primary() {
    let files = || tempfile::tempdir().expect("a directory");
    let primary = Redis::start_with(files(), &["--appendonly", "no", "--repl-diskless-sync-delay", "0"]).await;
    let (host, port) = ("127.0.0.1", primary.port.to_string());
    let replica = Redis::start_with(files(), &["--appendonly", "no", "--replicaof", host, &port]).await;
    let folder = files();
    let config = format!(
        "sentinel monitor main {host} {port} 1\nsentinel down-after-milliseconds main 500\n\
         sentinel failover-timeout main 2000\nrequirepass of-sentinels\n"
    );
    let file = folder.path().join("sentinel.conf");
    std::fs::write(&file, config).expect("written");
    let sentinel = Redis::start_sentinel(folder).await;
    // A replica without the data is never chosen.
    replica.answers_with(&["info", "replication"], "master_link_status:up").await;
    let replicas = ["-a", "of-sentinels", "sentinel", "replicas", "main"];
    sentinel.answers_with(&replicas, &replica.port.to_string()).await;
    // Sentinels have a password of their own; the servers have none.
    let query = "sentinelServiceName=main&sentinelPassword=of-sentinels";
    let url = format!("redis-sentinel://127.0.0.1:{}?{query}", sentinel.port);
    let (one, room) = (start_bus(&url, "p1", CancellationToken::new()).await, subject("room"));
    let mut decided = one.take_remote_transitions().expect("an outlet");
    let _unrecorded = one.join_channel(&room, &"1.1".into(), None).await.expect("joined");
    drop(primary);
    assert!(one.join_channel(&subject("new"), &"1.1".into(), None).await.is_err(), "nobody answers yet");
    let found = collect_remote_transitions(&mut decided, 1).await;
    assert_eq!((found[0].0.channel.as_str(), found[0].1.kind.name()), ("new", "channel_occupied"));
    assert_eq!(one.inspect_channel(&room).await.map(|seen| seen.connections), Ok(1));
    tokio::time::sleep(TIMING.settling_period).await;
    assert!(decided.try_recv().is_err(), "an unchanged member is reported");
}

#[tokio::test]
async fn after_redis_loses_its_data_all_members_re_register_and_only_changes_are_reported() {
    let redis = Redis::start().await;
    let (one, two) = (redis.bus("p1").await, redis.bus("p2").await);
    let (mut first, mut second) =
        (one.take_remote_transitions().expect("an outlet"), two.take_remote_transitions().expect("an outlet"));
    let (same, changed, left) = (subject("presence-same"), subject("presence-changed"), subject("left"));
    let socket = |n| SocketId::from_random(7, n);
    let mut unrecorded = Vec::new();
    for (bus, room, n, user) in [
        (&one, &same, 1, Some("a")),
        (&two, &same, 2, Some("b")),
        (&one, &changed, 1, Some("a")),
        (&one, &left, 1, None),
    ] {
        let member = user.map(member);
        unrecorded.push(bus.join_channel(room, &socket(n), member.as_ref()).await.expect("joined"));
    }
    let known = two.join_channel(&changed, &socket(2), Some(&member("b"))).await.expect("joined").transitions;
    let redis = redis.kill();
    let refused = two.leave_channel(&changed, &socket(2), None).await.expect_err("Redis is unavailable");
    assert!(matches!(refused, BusError::Unavailable(_)), "{refused}");
    assert!(
        one.leave_channel(&left, &socket(1), None).await.is_err()
            && one.join_channel(&subject("new"), &socket(1), None).await.is_err()
    );
    let _empty = redis.replace().await;
    wait_until_available(&one).await;
    wait_until_available(&two).await;
    // Each transition is reported by one of the two.
    let (mut all, until) = (Vec::new(), tokio::time::Instant::now() + WAIT_TIMEOUT);
    while all.len() < 3 && tokio::time::Instant::now() < until {
        for outlet in [&mut first, &mut second] {
            while let Ok(decided) = outlet.try_recv() {
                let transitions = decided.transitions.acknowledge_all();
                all.extend(transitions.into_iter().map(|transition| (decided.subject.clone(), transition)));
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(TIMING.sweep_grace).await;
    assert!(first.try_recv().is_err() && second.try_recv().is_err(), "reported twice");
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    let kinds: Vec<_> = all.iter().map(|(subject, t)| (subject.channel.to_string(), t.kind.name())).collect();
    let wanted = [("left", "channel_vacated"), ("new", "channel_occupied"), ("presence-changed", "member_removed")];
    assert_eq!(kinds, wanted.map(|(channel, kind)| (channel.to_owned(), kind)));
    assert!(known.iter().all(|known| all[2].1.order > known.order), "a sequence never goes back");
    let seen = two.inspect_channel(&same).await.expect("seen");
    assert_eq!((seen.connections, seen.users), (2, vec!["a".to_owned(), "b".to_owned()]));
    let gone = one.leave_channel(&same, &socket(1), None).await.expect("left");
    assert_eq!(
        gone.iter().map(|t| t.kind.name()).collect::<Vec<_>>(),
        ["member_removed"],
        "it was reported as present"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_and_a_leave_whose_caller_stopped_waiting_are_decided_all_the_same() {
    const PAUSE_MS: &str = "400";
    let redis = Redis::start().await;
    let bus = redis.bus("p1").await;
    let mut decided = bus.take_remote_transitions().expect("an outlet");
    let (room, socket) = (subject("room"), SocketId::from_random(7, 1));
    // The scripts are loaded, so that one command decides.
    bus.join_channel(&subject("other"), &socket, None).await.expect("joined");
    let short = Duration::from_millis(50);
    redis.command(&["client", "pause", PAUSE_MS]);
    let joined = tokio::time::timeout(short, bus.join_channel(&room, &socket, None)).await;
    assert!(joined.is_err(), "a paused store has answered: {joined:?}");
    expect_remote_transition(&mut decided, &EventKind::ChannelOccupied).await;
    redis.command(&["client", "pause", PAUSE_MS]);
    let left = tokio::time::timeout(short, bus.leave_channel(&room, &socket, None)).await;
    assert!(left.is_err(), "a paused store has answered: {left:?}");
    expect_remote_transition(&mut decided, &EventKind::ChannelVacated).await;
}
