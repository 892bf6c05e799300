//! Two clusters of one group on one store: they share channels and their order, and not the relay of sessions.

use realtime_operator::bus::BusScope;

use super::*;

async fn start_member(redis: &Redis, cluster: &str, process: &str, life: CancellationToken) -> RedisBus {
    let scope = BusScope { cluster, group: "fleet" };
    let bus = RedisBus::start(&redis.url(), scope, process, TIMING, life).expect("a bus");
    wait_until_available(&bus).await;
    tokio::time::sleep(TIMING.settling_period).await;
    bus
}

#[tokio::test]
async fn a_dead_process_is_swept_by_another_cluster_of_its_group() {
    let redis = Redis::start().await;
    let (death, life) = (CancellationToken::new(), CancellationToken::new());
    let dying = start_member(&redis, "uid-1", "p1", death.clone()).await;
    let living = start_member(&redis, "uid-2", "p2", life.clone()).await;
    let mut decided = living.take_remote_transitions().expect("an outlet");
    let room = subject("room");
    let joined = dying.join_channel(&room, &SocketId::from_random(7, 1), None).await.expect("joined").transitions;
    assert_eq!(names_and_seqs(joined.iter()), [("channel_occupied", 1)]);
    let unrecorded: Vec<Transition> = joined.iter().cloned().collect();
    death.cancel();
    let swept = collect_remote_transitions(&mut decided, 2).await;
    let transitions: Vec<Transition> = swept.into_iter().map(|(_, transition)| transition).collect();
    assert_eq!(names_and_seqs(&transitions), [("channel_occupied", 1), ("channel_vacated", 2)]);
    assert_eq!(transitions[..1], unrecorded, "under the id that it had in the other cluster");
}

#[tokio::test]
async fn a_session_of_another_cluster_is_known_and_its_process_is_no_peer() {
    let redis = Redis::start().await;
    let life = CancellationToken::new();
    let here = start_member(&redis, "uid-1", "p1", life.clone()).await;
    let there = start_member(&redis, "uid-2", "p2", life.clone()).await;
    let peer = |process: &str| RelayPeer { process: process.to_owned(), address: [127, 0, 0, 1].into() };
    for (bus, own) in [(&here, "p1"), (&there, "p2"), (&here, "p1")] {
        let answer = bus.send_heartbeat(&peer(own)).await.expect("an answer");
        assert_eq!(answer.peers, [peer(own)], "a process of the own cluster alone");
    }
    assert_eq!(here.claim_session("s", "p1").await, Ok(None));
    assert_eq!(there.claim_session("s", "p2").await, Ok(Some("p1".to_owned())));
    assert_eq!(there.session_owner("s").await, Ok(Some("p1".to_owned())));
}
