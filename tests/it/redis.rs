//! The bus in Redis, on a real `redis-server`.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use realtime_operator::bus::{Bus, BusError, Count, Last, Message, Recalled, RedisBus, Subject, Transition};
use realtime_operator::protocol::frame::Member;
use realtime_operator::protocol::{ChannelName, SocketId};
use tokio_util::sync::CancellationToken;

/// A server on a free port, gone with this value.
struct Redis {
    child: Child,
    port: u16,
    _files: tempfile::TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    fn start(port: Option<u16>) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let port = port.unwrap_or_else(free);
        let files = tempfile::tempdir().expect("a directory");
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .current_dir(files.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is not installed: apt-get install redis-server");
        Self { child, port, _files: files }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn bus(&self, process: &str) -> RedisBus {
        let bus = RedisBus::connect(&self.url(), "uid-1", process, CancellationToken::new()).expect("a bus");
        answers(&bus).await;
        bus
    }
}

/// Waits until calls are answered.
async fn answers(bus: &RedisBus) {
    let (nowhere, nobody) = (subject("nowhere"), SocketId::from("0.0"));
    let answered = async {
        while bus.leave(&nowhere, &nobody).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), answered).await.expect("an answer of Redis");
}

fn subject(channel: &str) -> Subject {
    Subject { app: "1".into(), channel: ChannelName::parse(channel).expect("a valid name") }
}

fn member(user: &str) -> Member {
    Member { user_id: user.into(), user_info: serde_json::json!({ "name": format!("\"{user}\" é") }) }
}

fn told(transitions: &[Transition]) -> Vec<(&'static str, u64)> {
    transitions.iter().map(|t| (t.kind.name(), t.order.seq)).collect()
}

#[tokio::test]
async fn occupancy_is_decided_once_across_processes() {
    let redis = Redis::start(None);
    let (one, two, room) = (redis.bus("p1").await, redis.bus("p2").await, subject("room"));
    let (a, b) = (SocketId::from("1.1"), SocketId::from("2.2"));
    let first = one.join(&room, &a, None).await.expect("joined").transitions;
    assert_eq!(told(&first), [("channel_occupied", 1)]);
    assert!(first[0].order.epoch > 1_600_000_000_000_000, "the epoch is a time in µs");
    assert_eq!(told(&two.join(&room, &b, None).await.expect("joined").transitions), []);
    assert_eq!(told(&one.join(&room, &a, None).await.expect("joined").transitions), [], "entering twice");
    assert_eq!(told(&one.leave(&room, &a).await.expect("left")), []);
    let last = two.leave(&room, &b).await.expect("left");
    assert_eq!(told(&last), [("channel_vacated", 2)]);
    assert_eq!(last[0].order.epoch, first[0].order.epoch);
    assert_eq!(told(&two.leave(&room, &b).await.expect("left")), [], "leaving twice");
    let again = one.join(&room, &a, None).await.expect("joined").transitions;
    assert_eq!(told(&again), [("channel_occupied", 3)], "the counter goes on");
}

#[tokio::test]
async fn a_user_counts_once_and_the_roster_shows_everyone() {
    let redis = Redis::start(None);
    let (one, two, room) = (redis.bus("p1").await, redis.bus("p2").await, subject("presence-room"));
    let (a, b, user) = (SocketId::from("1.1"), SocketId::from("2.2"), member("u"));
    let first = one.join(&room, &a, Some(&user)).await.expect("joined");
    assert_eq!(told(&first.transitions), [("channel_occupied", 1), ("member_added", 2)]);
    let second = two.join(&room, &b, Some(&user)).await.expect("joined");
    assert_eq!((told(&second.transitions), second.roster), (vec![], vec![user]));
    assert_eq!(told(&one.leave(&room, &a).await.expect("left")), []);
    let last = two.leave(&room, &b).await.expect("left");
    assert_eq!(told(&last), [("member_removed", 3), ("channel_vacated", 4)]);
    for n in 0..100 {
        let socket = SocketId::from_random(1, n);
        one.join(&room, &socket, Some(&member(&n.to_string()))).await.expect("room for a hundred");
    }
    let late = SocketId::from("9.9");
    assert_eq!(two.join(&room, &late, Some(&member("late"))).await.err(), Some(BusError::Full(100)));
    let there = two.join(&room, &late, Some(&member("7"))).await.expect("another connection of one who is there");
    assert_eq!(there.roster.len(), 100);
}

#[tokio::test]
async fn what_two_processes_decide_at_once_has_one_order_without_gaps() {
    let redis = Redis::start(None);
    let (one, two) = (redis.bus("p1").await, redis.bus("p2").await);
    let room = subject("room");
    let flap = async |bus: &RedisBus, socket: &str| {
        let (socket, mut all) = (SocketId::from(socket), Vec::new());
        for _ in 0..500 {
            all.extend(bus.join(&room, &socket, None).await.expect("joined").transitions);
            all.extend(bus.leave(&room, &socket).await.expect("left"));
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
    let redis = Redis::start(None);
    let (one, two) = (redis.bus("p1").await, redis.bus("p2").await);
    let foreign = RedisBus::connect(&redis.url(), "uid-2", "p3", CancellationToken::new()).expect("a bus");
    answers(&foreign).await;
    let mut own = one.messages().expect("an inbox");
    let mut other = two.messages().expect("an inbox");
    let mut elsewhere = foreign.messages().expect("an inbox");
    assert!(one.messages().is_none(), "taken once");
    let frame = bytes::Bytes::from_static(b"{\"a\":\n1}");
    let message = Message { subject: subject("room"), frame: frame.clone(), except: Some("1.2".into()), ends: false };
    let arrived = async {
        loop {
            // Redis does not keep what nobody listens to yet.
            one.publish(message.clone()).await.expect("published");
            if let Ok(Some(found)) = tokio::time::timeout(Duration::from_millis(100), other.recv()).await {
                return found;
            }
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(10), arrived).await.expect("in time");
    assert_eq!((found.frame, found.except), (frame, Some("1.2".into())));
    assert!(own.try_recv().is_err() && elsewhere.try_recv().is_err());
}

#[tokio::test]
async fn the_last_event_is_kept_for_all_and_its_absence_told_by_one() {
    let redis = Redis::start(None);
    let (one, two, room) = (redis.bus("p1").await, redis.bus("p2").await, subject("cache-room"));
    let last = Last { event: "e".into(), data: "\"é\"\n".into() };
    assert_eq!(one.recall(&room).await, Ok(Recalled::Missing { first: true }));
    assert_eq!(two.recall(&room).await, Ok(Recalled::Missing { first: false }));
    one.keep(&room, &last).await.expect("kept");
    assert_eq!(two.recall(&room).await, Ok(Recalled::Kept(last.clone())));
    let seen = two.look(&room).await.expect("seen");
    let (kept, remaining) = seen.last.expect("an event");
    assert!(kept == last && remaining > Duration::from_secs(1_790) && remaining <= Duration::from_mins(30));
    assert_eq!((seen.connections, seen.users.len()), (0, 0));
}

#[tokio::test]
async fn channels_are_counted_listed_and_looked_at_across_processes() {
    let redis = Redis::start(None);
    let (one, two) = (redis.bus("p1").await, redis.bus("p2").await);
    let (room, presence) = (subject("room"), subject("presence-room"));
    let own = Subject { app: "1".into(), channel: ChannelName::signed_in("u}é").expect("a name") };
    let elsewhere = Subject { app: "11".into(), channel: room.channel.clone() };
    let socket = |n| SocketId::from_random(1, n);
    assert_eq!(one.count(&room).await, Ok(Count::Told), "nobody was ever there");
    for (n, bus) in [(0, &one), (1, &two)] {
        bus.join(&room, &socket(n), None).await.expect("joined");
        bus.join(&presence, &socket(n), Some(&member(&n.to_string()))).await.expect("joined");
    }
    for subject in [&own, &elsewhere, &subject("left")] {
        one.join(subject, &socket(0), None).await.expect("joined");
    }
    one.leave(&subject("left"), &socket(0)).await.expect("left");
    assert_eq!(one.count(&room).await, Ok(Count::Tell(2)));
    assert_eq!(two.count(&room).await, Ok(Count::Told));
    for n in 2..=100 {
        one.join(&room, &socket(n), None).await.expect("joined");
    }
    let later = two.count(&room).await.expect("an answer");
    assert!(matches!(later, Count::Later(wait) if wait <= Duration::from_secs(5)), "{later:?}");
    one.leave(&room, &socket(0)).await.expect("left");
    assert_eq!(two.count(&room).await, Ok(Count::Tell(100)));
    let seen = two.look(&presence).await.expect("seen");
    assert_eq!((seen.connections, seen.users), (2, vec!["0".to_owned(), "1".to_owned()]));
    let names = async |prefix| {
        let channels = two.list(&"1".into(), prefix).await.expect("channels");
        channels.into_iter().map(|(name, users)| (name.to_string(), users)).collect::<Vec<_>>()
    };
    assert_eq!(names("").await, [("presence-room".to_owned(), 2), ("room".to_owned(), 0)]);
    assert_eq!(names("ro").await, [("room".to_owned(), 0)]);
    assert_eq!(two.occupied(&[subject("left"), own, room]).await, Ok(vec![false, true, true]));
    assert_eq!(two.occupied(&[]).await, Ok(vec![]));
}

#[tokio::test]
async fn a_store_that_lost_its_memory_goes_on_where_the_cluster_was() {
    let redis = Redis::start(None);
    let (bus, room, socket) = (redis.bus("p1").await, subject("room"), SocketId::from("1.1"));
    let first = bus.join(&room, &socket, None).await.expect("joined").transitions;
    let left = bus.leave(&room, &socket).await.expect("left");
    let port = redis.port;
    drop(redis);
    let away = bus.join(&room, &socket, None).await.expect_err("away");
    assert!(matches!(away, BusError::Unavailable(_)), "{away}");
    let _empty = Redis::start(Some(port));
    answers(&bus).await;
    let again = bus.join(&room, &socket, None).await.expect("joined").transitions;
    assert_eq!(told(&again), [("channel_occupied", left[0].order.seq + 1)]);
    assert_eq!(again[0].order.epoch, first[0].order.epoch);
}

#[tokio::test]
async fn an_address_that_is_none_is_told_without_its_password() {
    let connect = RedisBus::connect("rediss//:hunter2@nowhere", "uid-1", "p1", CancellationToken::new());
    let error = connect.err().expect("refused").to_string();
    assert!(error.contains("redis://USER:PASSWORD@HOST:PORT") && !error.contains("hunter2"), "{error}");
}
