//! Occupancy, frames, counts and sessions that several processes share.

use super::*;

#[tokio::test]
async fn occupancy_is_decided_once_across_processes() {
    let redis = Redis::start().await;
    let (one, two, room) = (redis.bus("p1").await, redis.bus("p2").await, subject("room"));
    let (a, b) = (SocketId::from("1.1"), SocketId::from("2.2"));
    let first = one.join_channel(&room, &a, None).await.expect("joined").transitions;
    assert_eq!(names_and_seqs(&first), [("channel_occupied", 1)]);
    let epoch = |transitions: &DecidedTransitions| transitions.iter().map(|t| t.order.epoch).next();
    assert!(epoch(&first) > Some(1_600_000_000_000_000), "the epoch is a time in µs");
    assert_eq!(names_and_seqs(&two.join_channel(&room, &b, None).await.expect("joined").transitions), []);
    assert_eq!(
        names_and_seqs(&one.join_channel(&room, &a, None).await.expect("joined").transitions),
        [],
        "entering twice"
    );
    assert_eq!(names_and_seqs(&one.leave_channel(&room, &a, None).await.expect("left")), []);
    let last = two.leave_channel(&room, &b, None).await.expect("left");
    assert_eq!(names_and_seqs(&last), [("channel_vacated", 2)]);
    assert_eq!(epoch(&last), epoch(&first));
    assert_eq!(names_and_seqs(&two.leave_channel(&room, &b, None).await.expect("left")), [], "leaving twice");
    let again = one.join_channel(&room, &a, None).await.expect("joined").transitions;
    assert_eq!(names_and_seqs(&again), [("channel_occupied", 3)], "the counter goes on");
}

#[tokio::test]
async fn a_user_counts_once_and_the_roster_shows_everyone() {
    let redis = Redis::start().await;
    let (one, two, room) = (redis.bus("p1").await, redis.bus("p2").await, subject("presence-room"));
    let (a, b, user) = (SocketId::from("1.1"), SocketId::from("2.2"), member("u"));
    let first = one.join_channel(&room, &a, Some(&user)).await.expect("joined");
    assert_eq!(names_and_seqs(&first.transitions), [("channel_occupied", 1), ("member_added", 2)]);
    let second = two.join_channel(&room, &b, Some(&user)).await.expect("joined");
    assert_eq!((names_and_seqs(&second.transitions), second.roster), (vec![], vec![user]));
    assert_eq!(names_and_seqs(&one.leave_channel(&room, &a, None).await.expect("left")), []);
    let last = two.leave_channel(&room, &b, None).await.expect("left");
    assert_eq!(names_and_seqs(&last), [("member_removed", 3), ("channel_vacated", 4)]);
    for n in 0..100 {
        let socket = SocketId::from_random(1, n);
        one.join_channel(&room, &socket, Some(&member(&n.to_string()))).await.expect("room for a hundred");
    }
    let late = SocketId::from("9.9");
    assert_eq!(two.join_channel(&room, &late, Some(&member("late"))).await.err(), Some(BusError::ChannelFull(100)));
    let there =
        two.join_channel(&room, &late, Some(&member("7"))).await.expect("another connection of one who is there");
    assert_eq!(there.roster.len(), 100);
}

#[tokio::test]
async fn concurrent_transitions_of_two_processes_have_one_order_without_gaps() {
    let redis = Redis::start().await;
    let (one, two) = (redis.bus("p1").await, redis.bus("p2").await);
    let room = subject("room");
    let flap = async |bus: &RedisBus, socket: &str| {
        let (socket, mut all) = (SocketId::from(socket), Vec::new());
        for _ in 0..500 {
            let joined = bus.join_channel(&room, &socket, None).await.expect("joined");
            all.extend(joined.transitions.acknowledge_all());
            all.extend(bus.leave_channel(&room, &socket, None).await.expect("left").acknowledge_all());
        }
        all
    };
    let (mut all, other) = tokio::join!(flap(&one, "1.1"), flap(&two, "2.2"));
    all.extend(other);
    all.sort_by_key(|transition| transition.order.seq);
    for (index, transition) in all.iter().enumerate() {
        assert_eq!(transition.order.seq, index as u64 + 1);
        let expected = if index % 2 == 0 { "channel_occupied" } else { "channel_vacated" };
        assert_eq!(transition.kind.name(), expected, "at {index}");
    }
    assert!(all.len() > 100, "{} transitions", all.len());
}

#[tokio::test]
async fn frames_reach_the_other_processes_only_and_other_clusters_not_at_all() {
    let redis = Redis::start().await;
    let (one, two) = (redis.bus("p1").await, redis.bus("p2").await);
    let foreign = RedisBus::start(&redis.url(), "uid-2", "p3", TIMING, CancellationToken::new()).expect("a bus");
    wait_until_available(&foreign).await;
    let mut own = one.take_incoming_frames().expect("an inbox");
    let mut other = two.take_incoming_frames().expect("an inbox");
    let mut elsewhere = foreign.take_incoming_frames().expect("an inbox");
    assert!(one.take_incoming_frames().is_none(), "taken once");
    let frame = bytes::Bytes::from_static(b"{\"a\":\n1}");
    let message = BroadcastFrame { except: Some("1.2".into()), ..BroadcastFrame::new(subject("room"), frame.clone()) };
    let arrived = async {
        loop {
            // Redis does not keep what nobody listens to yet.
            one.publish_frame(message.clone()).await.expect("published");
            if let Ok(Some(found)) = tokio::time::timeout(Duration::from_millis(100), other.recv()).await {
                return found;
            }
        }
    };
    let found = tokio::time::timeout(WAIT_TIMEOUT, arrived).await.expect("a frame of the other process in time");
    assert_eq!((found.frame, found.except), (frame, Some("1.2".into())));
    while other.try_recv().is_ok() {}
    // More than are sent in one go.
    let many = (0..1_200).map(|n: u32| BroadcastFrame { frame: n.to_string().into(), ..message.clone() }).collect();
    one.publish_frames(many).await.expect("published");
    one.publish_frames(Vec::new()).await.expect("nothing to publish");
    for n in 0..1_200 {
        let found = tokio::time::timeout(WAIT_TIMEOUT, other.recv()).await;
        let found = found.unwrap_or_else(|_| panic!("frame {n} of 1200 did not come within {WAIT_TIMEOUT:?}"));
        assert_eq!(found.expect("a frame").frame, n.to_string(), "in their order");
    }
    assert!(own.try_recv().is_err() && elsewhere.try_recv().is_err());
}

#[tokio::test]
async fn the_last_event_is_cached_for_all_processes_and_a_miss_is_reported_once() {
    let redis = Redis::start().await;
    let (one, two, room) = (redis.bus("p1").await, redis.bus("p2").await, subject("cache-room"));
    let last = LastEvent { event: "e".into(), data: "\"é\"\n".into() };
    assert_eq!(one.look_up_last_event(&room).await, Ok(LastEventLookup::Missing { report_miss: true }));
    assert_eq!(two.look_up_last_event(&room).await, Ok(LastEventLookup::Missing { report_miss: false }));
    one.store_last_event(&room, &last, Duration::from_mins(30)).await.expect("kept");
    assert_eq!(two.look_up_last_event(&room).await, Ok(LastEventLookup::Found(last.clone())));
    let seen = two.inspect_channel(&room).await.expect("seen");
    let (kept, remaining) = seen.last.expect("an event");
    assert!(kept == last && remaining > Duration::from_secs(1_790) && remaining <= Duration::from_mins(30));
    assert_eq!((seen.connections, seen.users.len()), (0, 0));
}

#[tokio::test]
async fn channels_are_counted_listed_and_described_across_processes() {
    let redis = Redis::start().await;
    let (one, two) = (redis.bus("p1").await, redis.bus("p2").await);
    let (room, presence) = (subject("room"), subject("presence-room"));
    let own = ChannelKey { app: "1".into(), channel: ChannelName::signed_in("u}é").expect("a name") };
    let elsewhere = ChannelKey { app: "11".into(), channel: room.channel.clone() };
    let socket = |n| SocketId::from_random(1, n);
    assert_eq!(one.claim_count_update(&room).await, Ok(CountUpdate::Unchanged), "nobody was ever there");
    for (n, bus) in [(0, &one), (1, &two)] {
        bus.join_channel(&room, &socket(n), None).await.expect("joined");
        bus.join_channel(&presence, &socket(n), Some(&member(&n.to_string()))).await.expect("joined");
    }
    for subject in [&own, &elsewhere, &subject("left")] {
        one.join_channel(subject, &socket(0), None).await.expect("joined");
    }
    assert_eq!(one.claim_count_update(&subject("left")).await, Ok(CountUpdate::Published(1)));
    one.leave_channel(&subject("left"), &socket(0), None).await.expect("left").acknowledge_all();
    assert_eq!(
        one.claim_count_update(&subject("left")).await,
        Ok(CountUpdate::Published(0)),
        "who watches the count hears of the last leave"
    );
    assert_eq!(two.claim_count_update(&subject("left")).await, Ok(CountUpdate::Unchanged));
    assert_eq!(one.claim_count_update(&room).await, Ok(CountUpdate::Published(2)));
    assert_eq!(two.claim_count_update(&room).await, Ok(CountUpdate::Unchanged));
    for n in 2..=100 {
        one.join_channel(&room, &socket(n), None).await.expect("joined");
    }
    let later = two.claim_count_update(&room).await.expect("an answer");
    assert!(matches!(later, CountUpdate::RetryAfter(wait) if wait <= Duration::from_secs(5)), "{later:?}");
    one.leave_channel(&room, &socket(0), None).await.expect("left").acknowledge_all();
    assert_eq!(two.claim_count_update(&room).await, Ok(CountUpdate::Published(100)));
    let seen = two.inspect_channel(&presence).await.expect("seen");
    assert_eq!((seen.connections, seen.users), (2, vec!["0".to_owned(), "1".to_owned()]));
    let names = async |prefix| {
        let channels = two.list_channels(&"1".into(), prefix).await.expect("channels");
        channels.into_iter().map(|(name, users)| (name.to_string(), users)).collect::<Vec<_>>()
    };
    assert_eq!(names("").await, [("presence-room".to_owned(), 2), ("room".to_owned(), 0)]);
    assert_eq!(names("ro").await, [("room".to_owned(), 0)]);
    assert_eq!(two.are_occupied(&[subject("left"), own, room]).await, Ok(vec![false, true, true]));
    assert_eq!(two.are_occupied(&[]).await, Ok(vec![]));
}

#[tokio::test]
async fn sessions_have_one_owner_and_processes_know_each_other() {
    let redis = Redis::start().await;
    let (one, two) = (redis.bus("p1").await, redis.bus("p2").await);
    let peer = |n: u8| RelayPeer { process: format!("0{n}"), address: [127, 0, 0, n].into() };
    let (a, b) = (peer(1), peer(2));
    let first = one.send_heartbeat(&a).await.expect("alive");
    assert_eq!((first.peers, first.was_registered), (vec![a.clone()], false));
    let mut second = two.send_heartbeat(&b).await.expect("alive");
    second.peers.sort_by(|one, other| one.process.cmp(&other.process));
    assert_eq!((second.peers, second.was_registered), (vec![a.clone(), b.clone()], false));
    assert!(one.send_heartbeat(&a).await.expect("alive").was_registered);

    assert_eq!(one.claim_session("s.1", "01").await, Ok(None));
    assert_eq!(two.claim_session("s.1", "02").await, Ok(Some("01".to_owned())));
    assert_eq!(one.claim_session("s.1", "01").await, Ok(Some("01".to_owned())), "asked twice");
    two.release_session("s.1", "02").await.expect("an answer");
    assert_eq!(two.session_owner("s.1").await, Ok(Some("01".to_owned())), "only its owner may disown it");
    one.release_session("s.1", "01").await.expect("an answer");
    assert_eq!(two.session_owner("s.1").await, Ok(None));
    let many: Vec<String> = (0..1_200).map(|n| format!("p.{n}.{{a}}")).collect();
    two.refresh_sessions(&many, "02").await.expect("named");
    assert_eq!(one.session_owner(&many[1_199]).await, Ok(Some("02".to_owned())));

    one.report_lost_send("s.1", "02").await.expect("reported");
    one.report_lost_send("s.2", "02").await.expect("reported");
    assert_eq!(one.send_heartbeat(&a).await.expect("alive").sessions_with_lost_sends, [""; 0]);
    assert_eq!(two.send_heartbeat(&b).await.expect("alive").sessions_with_lost_sends, ["s.1", "s.2"]);
    assert_eq!(two.send_heartbeat(&b).await.expect("alive").sessions_with_lost_sends, [""; 0], "reported once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_bus_has_its_subscription_in_redis() {
    let redis = Redis::start().await;
    for round in 1..=20 {
        let life = CancellationToken::new();
        let bus = RedisBus::connect(&redis.url(), "uid-1", "p1", life.clone()).await.expect("a bus");
        let mut frames = bus.take_incoming_frames().expect("an outlet");
        // Another program publishes, so nothing but the subscription can delay the frame.
        let frame = "{\"from\":\"p2\",\"app\":\"1\",\"channel\":\"room\"}\nhello";
        assert_ne!(redis.command(&["publish", "rt:uid-1:frames", frame]).trim(), "0", "round {round}: no subscriber");
        let received = tokio::time::timeout(WAIT_TIMEOUT, frames.recv()).await.expect("a frame in time");
        assert_eq!(received.expect("a frame").frame, "hello");
        life.cancel();
        bus.leave_cluster().await;
    }
}
