//! Processes that die: their members are removed once, and their unrecorded transitions are kept.

use fred::interfaces::SortedSetsInterface;

use super::server::start_redis_cluster;
use super::*;

#[tokio::test]
async fn a_dead_process_is_swept_once_and_its_unrecorded_transitions_keep_their_ids() {
    let redis = Redis::start().await;
    a_process_dies(&redis.url()).await;
}

#[tokio::test]
async fn a_dead_process_is_swept_in_a_redis_cluster() {
    let (_nodes, url) = start_redis_cluster().await;
    a_process_dies(&url).await;
}

pub(super) async fn a_process_dies(url: &str) {
    let death = CancellationToken::new();
    let life = CancellationToken::new();
    let dying = start_bus(url, "p0", death.clone()).await;
    let (one, two) = (start_bus(url, "p1", life.clone()).await, start_bus(url, "p2", life.clone()).await);
    let mut others =
        [one.take_remote_transitions().expect("an outlet"), two.take_remote_transitions().expect("an outlet")];
    let (alone, shared) = (subject("presence-alone"), subject("presence-shared"));
    let socket = |n| SocketId::from_random(7, n);
    let first = dying.join_channel(&alone, &socket(1), Some(&member("a"))).await.expect("joined").transitions;
    let second = dying.join_channel(&shared, &socket(2), Some(&member("a"))).await.expect("joined").transitions;
    let _unrecorded = dying.join_channel(&shared, &socket(3), Some(&member("b"))).await.expect("joined");
    one.join_channel(&shared, &socket(4), Some(&member("a"))).await.expect("joined");
    // Of one channel all is safe in the stream, of the other nothing.
    second.acknowledge_all();
    let acknowledged = async {
        while dying.join_channel(&shared, &socket(2), None).await.is_err() {}
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    acknowledged.await;
    death.cancel();
    let (mut found, until) = (Vec::new(), tokio::time::Instant::now() + WAIT_TIMEOUT);
    while found.len() < 6 && tokio::time::Instant::now() < until {
        for outlet in &mut others {
            while let Ok(decided) = outlet.try_recv() {
                let transitions = decided.transitions.acknowledge_all();
                found.extend(transitions.into_iter().map(|transition| (decided.subject.clone(), transition)));
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Longer than another sweep would take.
    tokio::time::sleep(TIMING.sweep_grace).await;
    assert!(others.iter_mut().all(|outlet| outlet.try_recv().is_err()), "reported twice");
    let of = |subject: &ChannelKey| -> Vec<Transition> {
        found.iter().filter(|(found, _)| found == subject).map(|(_, transition)| transition.clone()).collect()
    };
    let of_alone = of(&alone);
    let unrecorded: Vec<&Transition> = first.iter().collect();
    assert_eq!(of_alone[..2].iter().collect::<Vec<_>>(), unrecorded, "not recorded when it died");
    assert_eq!(
        names_and_seqs(&of_alone),
        [("channel_occupied", 1), ("member_added", 2), ("member_removed", 3), ("channel_vacated", 4)]
    );
    assert_eq!(names_and_seqs(&of(&shared)), [("member_added", 3), ("member_removed", 4)], "`a` is still there");
    assert_eq!(
        one.inspect_channel(&shared).await.map(|seen| (seen.connections, seen.users)),
        Ok((1, vec!["a".into()]))
    );
    assert_eq!(one.inspect_channel(&alone).await.map(|seen| seen.connections), Ok(0));
    assert_eq!(two.list_channels(&"1".into(), "").await.map(|all| all.len()), Ok(1));
}

#[tokio::test]
async fn many_members_of_a_dead_process_are_removed_in_parts_and_reported_once_each() {
    let redis = Redis::start().await;
    let (death, life) = (CancellationToken::new(), CancellationToken::new());
    let dying = start_bus(&redis.url(), "p0", death.clone()).await;
    let one = start_bus(&redis.url(), "p1", life.clone()).await;
    let mut decided = one.take_remote_transitions().expect("an outlet");
    // Redis keeps a small table in one piece, which it reads at once, and a large one in many.
    let (members, crowd) = (subject("presence-members"), subject("crowd"));
    let socket = |n| SocketId::from_random(7, n);
    let mut unrecorded = Vec::new();
    for n in 0..99 {
        let member = member(&n.to_string());
        unrecorded.push(dying.join_channel(&members, &socket(n), Some(&member)).await.expect("joined"));
    }
    for n in 1_000..1_600 {
        unrecorded.push(dying.join_channel(&crowd, &socket(n), None).await.expect("joined"));
    }
    let stays = one.join_channel(&members, &socket(5_000), Some(&member("stays"))).await.expect("joined");
    stays.transitions.acknowledge_all();
    one.join_channel(&crowd, &socket(5_001), None).await.expect("joined");
    death.cancel();
    // Of both that they are occupied, of 99 that they came and went.
    let mut removed: Vec<(u64, String)> = collect_remote_transitions(&mut decided, 200)
        .await
        .into_iter()
        .filter_map(|(_, transition)| match transition.kind {
            EventKind::MemberRemoved { user_id } => Some((transition.order.seq, user_id)),
            _ => None,
        })
        .collect();
    removed.sort();
    let orders: Vec<u64> = removed.iter().map(|(seq, _)| *seq).collect();
    // Before them: the channel's occupation, and a hundred who came.
    assert_eq!(orders, (102..=200).collect::<Vec<_>>());
    let users: std::collections::BTreeSet<&str> = removed.iter().map(|(_, user)| user.as_str()).collect();
    assert_eq!((users.len(), users.contains("stays")), (99, false));
    eventually_ok("one connection in `crowd`", async || match one.inspect_channel(&crowd).await {
        Ok(seen) if seen.connections == 1 => Ok(()),
        seen => Err(seen),
    })
    .await;
    let left = one.inspect_channel(&members).await.map(|seen| (seen.connections, seen.users));
    assert_eq!(left, Ok((1, vec!["stays".into()])));
}

#[tokio::test]
async fn a_process_that_was_swept_re_registers_all_its_members() {
    let redis = Redis::start().await;
    let (one, two) = (redis.bus("p1").await, redis.bus("p2").await);
    let room = subject("presence-room");
    let (a, b) = (SocketId::from("1.1"), SocketId::from("2.2"));
    one.join_channel(&room, &a, Some(&member("a"))).await.expect("joined");
    two.join_channel(&room, &b, Some(&member("b"))).await.expect("joined");
    let raw = redis.client().await;
    // As if it had been silent for long.
    let ended: i64 = raw.zadd("rt:{uid-1}:leases", None, None, false, false, (1.0, "p1")).await.expect("written");
    assert_eq!(ended, 0, "the lease was there");
    let leases = async || -> Vec<String> {
        raw.zrange("rt:{uid-1}:leases", 0, -1, None, false, None, false).await.expect("read")
    };
    let is_renamed = |names: &Vec<String>| names.contains(&"p1.1".to_owned()) && !names.contains(&"p1".to_owned());
    let names = eventually("a lease of `p1.1` instead of `p1`", leases, is_renamed).await;
    assert_eq!(names.len(), 2);
    assert_eq!((one.lost_leases(), two.lost_leases()), (1, 0));
    let seen = two.inspect_channel(&room).await.expect("seen");
    assert_eq!((seen.connections, seen.users), (2, vec!["a".to_owned(), "b".to_owned()]));
    let left = one.leave_channel(&room, &a, Some(LeaveCause::Drain)).await.expect("left");
    assert_eq!(
        left.iter().map(|t| (t.kind.name(), t.cause)).collect::<Vec<_>>(),
        [("member_removed", Some(LeaveCause::Drain))]
    );
}
