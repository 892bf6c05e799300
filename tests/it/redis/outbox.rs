//! The outboxes in Redis and in the process: empty once every receipt has ended, and the lease is released at once.

use super::*;

/// The bus's keys in Redis whose names end so.
fn keys_ending_with(redis: &Redis, end: &str) -> Vec<String> {
    redis.command(&["keys", &format!("*:{end}")]).lines().filter(|key| !key.is_empty()).map(str::to_owned).collect()
}

/// Leases that have not expired: on a busy machine a process may have had to take another one.
fn count_live_leases(redis: &Redis) -> String {
    let now = realtime_operator::process::clock::now_ms().to_string();
    redis.command(&["zcount", "rt:{uid-1}:leases", &now, "+inf"]).trim().to_owned()
}

/// Leaves the cluster, which must release the lease at once.
async fn leave_cluster(redis: &Redis, bus: &RedisBus) {
    let started = std::time::Instant::now();
    bus.leave_cluster().await;
    assert_eq!(count_live_leases(redis), "0", "the lease is still there");
    assert_eq!(keys_ending_with(redis, "channels"), [""; 0], "an index is left");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn users_that_signed_in_and_left_leave_nothing_in_redis_or_the_process() {
    let redis = Redis::start().await;
    let bus = redis.bus("p1").await;
    let home =
        |n: u64| ChannelKey { app: "1".into(), channel: ChannelName::signed_in(&n.to_string()).expect("a name") };
    let socket = |n| SocketId::from_random(7, n);
    for n in 0..500 {
        let joined = bus.join_channel(&home(n), &socket(n), None).await.expect("signed in");
        assert_eq!(joined.transitions.len(), 1, "its watchers are notified");
    }
    assert_eq!(bus.unacknowledged_count(), 0, "no stream records a sign-in");
    for n in 0..500 {
        assert_eq!(bus.leave_channel(&home(n), &socket(n), None).await.expect("signed out").len(), 1);
    }
    assert_eq!(keys_ending_with(&redis, "outbox"), [""; 0]);
    let index = async || redis.command(&["scard", "rt:{uid-1:p1}:channels"]).trim().to_owned();
    eventually("an empty index of the process", index, |count| count == "0").await;
    leave_cluster(&redis, &bus).await;
}

#[tokio::test]
async fn a_transition_whose_receipt_was_dropped_is_emitted_again_until_it_is_acknowledged() {
    let redis = Redis::start().await;
    let bus = redis.bus("p1").await;
    let mut emitted = bus.take_remote_transitions().expect("an outlet");
    let socket = SocketId::from("1.1");
    // More than Redis keeps of one channel. A report of the channel may decide a join before the join itself does.
    let (room, mut recorded) = (subject("room"), Vec::new());
    for n in 0..300 {
        let joined = bus.join_channel(&room, &socket, None).await.expect("joined").transitions;
        recorded.extend(joined.acknowledge_all());
        let left = bus.leave_channel(&room, &socket, None).await.expect("left");
        recorded.extend(if n % 2 == 0 { left.acknowledge_all() } else { Vec::new() });
    }
    let dropped = 600 - recorded.len();
    assert!(dropped >= 150 && bus.unacknowledged_count() >= dropped, "{dropped}");
    let emitted = collect_remote_transitions(&mut emitted, dropped).await;
    recorded.extend(emitted.into_iter().map(|(_, transition)| transition));
    recorded.sort_by_key(|transition| transition.order);
    let seqs: Vec<u64> = recorded.iter().map(|transition| transition.order.seq).collect();
    assert_eq!(seqs, (1..=600).collect::<Vec<_>>(), "each once");
    eventually("an empty outbox", async || bus.unacknowledged_count(), |count| *count == 0).await;
    assert_eq!(keys_ending_with(&redis, "outbox"), [""; 0]);
    leave_cluster(&redis, &bus).await;
}

#[tokio::test]
async fn a_process_with_unacknowledged_transitions_keeps_its_lease_for_the_sweeper() {
    let redis = Redis::start().await;
    let bus = redis.bus("p1").await;
    let socket = SocketId::from("1.1");
    let joined = bus.join_channel(&subject("room"), &socket, None).await.expect("joined");
    let left = bus.leave_channel(&subject("room"), &socket, None).await.expect("left");
    bus.leave_cluster().await;
    assert_eq!(count_live_leases(&redis), "1");
    joined.transitions.acknowledge_all();
    left.acknowledge_all();
    leave_cluster(&redis, &bus).await;
}
