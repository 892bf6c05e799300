//! The bus in Redis, on a real `redis-server`.

// Helpers end a test where they stand; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

pub mod resources;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fred::interfaces::{ClientLike, ConfigInterface, KeysInterface, SortedSetsInterface};
use realtime_operator::bus::{
    Broadcast, BroadcastFrame, BusError, BusTiming, ChannelKey, ChannelStore, CountUpdate, Health, LastEvent,
    LastEventLookup, Membership, RedisAddress, RedisBus, RelayPeer, RemoteTransitions, SessionDirectory, Transition,
};
use realtime_operator::protocol::frame::PresenceMember;
use realtime_operator::protocol::record::{EventKind, LeaveCause};
use realtime_operator::protocol::{ChannelName, SocketId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use resources::{command_bound_to_test, reserve_port};

/// Short, so that a test sees a death in a second.
const TIMING: BusTiming = BusTiming {
    lease_ttl: Duration::from_millis(900),
    renew_interval: Duration::from_millis(200),
    settling_period: Duration::from_millis(800),
    sweep_grace: Duration::from_millis(1_200),
};

/// Longest that a test waits for anything.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// A server on a reserved port, gone with this value.
pub struct Redis {
    child: Child,
    /// Stays reserved: a server that starts again takes the same.
    pub port: u16,
    files: tempfile::TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Redis {
    pub fn start(port: Option<u16>) -> Self {
        Self::with(port, tempfile::tempdir().expect("a directory"), &["--appendonly", "no"])
    }

    /// A node of a cluster that is yet to be.
    fn node() -> Self {
        let port = reserve_port().to_string();
        let options = ["--appendonly", "no", "--cluster-enabled", "yes", "--cluster-port", &port];
        Self::with(None, tempfile::tempdir().expect("a directory"), &options)
    }

    /// One that keeps its data through its own death.
    pub fn durable() -> Self {
        Self::with(None, tempfile::tempdir().expect("a directory"), &DURABLE)
    }

    /// Kills it, and returns what starts it again with the data that it kept.
    pub fn kill(mut self) -> impl FnOnce() -> Self {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
        let (port, files) = (self.port, std::mem::replace(&mut self.files, tempfile::tempdir().expect("a directory")));
        move || Self::with(Some(port), files, &DURABLE)
    }

    fn with(port: Option<u16>, files: tempfile::TempDir, options: &[&str]) -> Self {
        let port = port.unwrap_or_else(reserve_port);
        let mut command = command_bound_to_test("redis-server");
        if options == ["SENTINEL"] {
            command.arg("sentinel.conf").arg("--sentinel");
        } else {
            command.args(["--save", ""]).args(options);
        }
        let child = command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .current_dir(files.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("setpriv is not installed: apt-get install util-linux redis-server");
        Self { child, port, files }
    }

    pub fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until it has run for so many seconds.
    pub async fn aged(&self, seconds: u64) {
        let mut uptime = None;
        let aged = async {
            while uptime.is_none_or(|uptime| uptime < seconds) {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let info = self.command(&["info", "server"]);
                let line = info.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:"));
                uptime = line.and_then(|uptime| uptime.trim().parse::<u64>().ok());
            }
        };
        let aged = tokio::time::timeout(Duration::from_mins(1), aged).await;
        assert!(aged.is_ok(), "redis-server has not run for {seconds} s: its uptime is {uptime:?}");
    }

    /// The output of `redis-cli`; empty while the server does not answer.
    pub fn command(&self, arguments: &[&str]) -> String {
        // Without a limit, a server that is stopped would hold up the test for ever.
        let mut command = Command::new("timeout");
        let output = command.args(["10", "redis-cli", "-p", &self.port.to_string()]).args(arguments).output();
        String::from_utf8_lossy(&output.expect("timeout of coreutils").stdout).into_owned()
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// An end of the bus that its token stops dead, as a kill does.
    async fn end(&self, process: &str, life: CancellationToken) -> RedisBus {
        end(&self.url(), process, life).await
    }

    async fn bus(&self, process: &str) -> RedisBus {
        self.end(process, CancellationToken::new()).await
    }
}

/// An end of the bus in the store at this address.
async fn end(url: &str, process: &str, life: CancellationToken) -> RedisBus {
    let bus = RedisBus::start(url, "uid-1", process, TIMING, life).expect("a bus");
    answers(&bus).await;
    // The memory of a store that has just begun tells nothing yet.
    tokio::time::sleep(TIMING.settling_period).await;
    bus
}

/// Waits until calls are answered.
async fn answers(bus: &RedisBus) {
    let mut last = None;
    let answered = async {
        loop {
            let answer = bus.inspect_channel(&subject("nowhere")).await;
            if bus.is_available() && answer.is_ok() {
                return;
            }
            last = Some(answer.map(|_| "an answer, but the bus is not up"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answered = tokio::time::timeout(WAIT_TIMEOUT, answered).await;
    assert!(answered.is_ok(), "no answer of Redis within {WAIT_TIMEOUT:?}; the last: {last:?}");
}

fn subject(channel: &str) -> ChannelKey {
    ChannelKey { app: "1".into(), channel: ChannelName::parse(channel).expect("a valid name") }
}

fn member(user: &str) -> PresenceMember {
    PresenceMember { user_id: user.into(), user_info: serde_json::json!({ "name": format!("\"{user}\" é") }) }
}

fn told(transitions: &[Transition]) -> Vec<(&'static str, u64)> {
    transitions.iter().map(|t| (t.kind.name(), t.order.seq)).collect()
}

#[tokio::test]
async fn occupancy_is_decided_once_across_processes() {
    let redis = Redis::start(None);
    let (one, two, room) = (redis.bus("p1").await, redis.bus("p2").await, subject("room"));
    let (a, b) = (SocketId::from("1.1"), SocketId::from("2.2"));
    let first = one.join_channel(&room, &a, None).await.expect("joined").transitions;
    assert_eq!(told(&first), [("channel_occupied", 1)]);
    assert!(first[0].order.epoch > 1_600_000_000_000_000, "the epoch is a time in µs");
    assert_eq!(told(&two.join_channel(&room, &b, None).await.expect("joined").transitions), []);
    assert_eq!(told(&one.join_channel(&room, &a, None).await.expect("joined").transitions), [], "entering twice");
    assert_eq!(told(&one.leave_channel(&room, &a, None).await.expect("left")), []);
    let last = two.leave_channel(&room, &b, None).await.expect("left");
    assert_eq!(told(&last), [("channel_vacated", 2)]);
    assert_eq!(last[0].order.epoch, first[0].order.epoch);
    assert_eq!(told(&two.leave_channel(&room, &b, None).await.expect("left")), [], "leaving twice");
    let again = one.join_channel(&room, &a, None).await.expect("joined").transitions;
    assert_eq!(told(&again), [("channel_occupied", 3)], "the counter goes on");
}

#[tokio::test]
async fn a_user_counts_once_and_the_roster_shows_everyone() {
    let redis = Redis::start(None);
    let (one, two, room) = (redis.bus("p1").await, redis.bus("p2").await, subject("presence-room"));
    let (a, b, user) = (SocketId::from("1.1"), SocketId::from("2.2"), member("u"));
    let first = one.join_channel(&room, &a, Some(&user)).await.expect("joined");
    assert_eq!(told(&first.transitions), [("channel_occupied", 1), ("member_added", 2)]);
    let second = two.join_channel(&room, &b, Some(&user)).await.expect("joined");
    assert_eq!((told(&second.transitions), second.roster), (vec![], vec![user]));
    assert_eq!(told(&one.leave_channel(&room, &a, None).await.expect("left")), []);
    let last = two.leave_channel(&room, &b, None).await.expect("left");
    assert_eq!(told(&last), [("member_removed", 3), ("channel_vacated", 4)]);
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
    let redis = Redis::start(None);
    let (one, two) = (redis.bus("p1").await, redis.bus("p2").await);
    let room = subject("room");
    let flap = async |bus: &RedisBus, socket: &str| {
        let (socket, mut all) = (SocketId::from(socket), Vec::new());
        for _ in 0..500 {
            all.extend(bus.join_channel(&room, &socket, None).await.expect("joined").transitions);
            all.extend(bus.leave_channel(&room, &socket, None).await.expect("left"));
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
    let foreign = RedisBus::start(&redis.url(), "uid-2", "p3", TIMING, CancellationToken::new()).expect("a bus");
    answers(&foreign).await;
    let mut own = one.take_incoming_frames().expect("an inbox");
    let mut other = two.take_incoming_frames().expect("an inbox");
    let mut elsewhere = foreign.take_incoming_frames().expect("an inbox");
    assert!(one.take_incoming_frames().is_none(), "taken once");
    let frame = bytes::Bytes::from_static(b"{\"a\":\n1}");
    let message =
        BroadcastFrame { subject: subject("room"), frame: frame.clone(), except: Some("1.2".into()), ends: false };
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
    let redis = Redis::start(None);
    let (one, two, room) = (redis.bus("p1").await, redis.bus("p2").await, subject("cache-room"));
    let last = LastEvent { event: "e".into(), data: "\"é\"\n".into() };
    assert_eq!(one.look_up_last_event(&room).await, Ok(LastEventLookup::Missing { report_miss: true }));
    assert_eq!(two.look_up_last_event(&room).await, Ok(LastEventLookup::Missing { report_miss: false }));
    one.store_last_event(&room, &last).await.expect("kept");
    assert_eq!(two.look_up_last_event(&room).await, Ok(LastEventLookup::Found(last.clone())));
    let seen = two.inspect_channel(&room).await.expect("seen");
    let (kept, remaining) = seen.last.expect("an event");
    assert!(kept == last && remaining > Duration::from_secs(1_790) && remaining <= Duration::from_mins(30));
    assert_eq!((seen.connections, seen.users.len()), (0, 0));
}

#[tokio::test]
async fn channels_are_counted_listed_and_described_across_processes() {
    let redis = Redis::start(None);
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
    assert_eq!(one.claim_count_update(&subject("left")).await, Ok(CountUpdate::Publish(1)));
    one.leave_channel(&subject("left"), &socket(0), None).await.expect("left");
    assert_eq!(
        one.claim_count_update(&subject("left")).await,
        Ok(CountUpdate::Publish(0)),
        "who watches the count hears of the last leave"
    );
    assert_eq!(two.claim_count_update(&subject("left")).await, Ok(CountUpdate::Unchanged));
    assert_eq!(one.claim_count_update(&room).await, Ok(CountUpdate::Publish(2)));
    assert_eq!(two.claim_count_update(&room).await, Ok(CountUpdate::Unchanged));
    for n in 2..=100 {
        one.join_channel(&room, &socket(n), None).await.expect("joined");
    }
    let later = two.claim_count_update(&room).await.expect("an answer");
    assert!(matches!(later, CountUpdate::RetryAfter(wait) if wait <= Duration::from_secs(5)), "{later:?}");
    one.leave_channel(&room, &socket(0), None).await.expect("left");
    assert_eq!(two.claim_count_update(&room).await, Ok(CountUpdate::Publish(100)));
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

/// What a bus decides unasked, until so many transitions have come; and that no more come soon.
async fn unasked(decided: &mut mpsc::Receiver<RemoteTransitions>, count: usize) -> Vec<(ChannelKey, Transition)> {
    let mut all = Vec::new();
    let wanted = async {
        while all.len() < count {
            let decided = decided.recv().await.expect("a bus");
            all.extend(decided.transitions.into_iter().map(|transition| (decided.subject.clone(), transition)));
        }
    };
    let wanted = tokio::time::timeout(WAIT_TIMEOUT, wanted).await;
    assert!(wanted.is_ok(), "{count} transitions wanted, {} came, the last {:?}", all.len(), all.last());
    all
}

#[tokio::test]
async fn a_dead_process_is_swept_once_and_its_unrecorded_transitions_keep_their_ids() {
    let redis = Redis::start(None);
    a_process_dies(&redis.url()).await;
}

#[tokio::test]
async fn many_members_of_a_dead_process_are_removed_in_parts_and_reported_once_each() {
    let redis = Redis::start(None);
    let (death, life) = (CancellationToken::new(), CancellationToken::new());
    let dying = end(&redis.url(), "p0", death.clone()).await;
    let one = end(&redis.url(), "p1", life.clone()).await;
    let mut decided = one.take_remote_transitions().expect("an outlet");
    // Redis keeps a small table in one piece, which it reads at once, and a large one in many.
    let (members, crowd) = (subject("presence-members"), subject("crowd"));
    let socket = |n| SocketId::from_random(7, n);
    for n in 0..99 {
        dying.join_channel(&members, &socket(n), Some(&member(&n.to_string()))).await.expect("joined");
    }
    for n in 1_000..1_600 {
        dying.join_channel(&crowd, &socket(n), None).await.expect("joined");
    }
    one.join_channel(&members, &socket(5_000), Some(&member("stays"))).await.expect("joined");
    one.join_channel(&crowd, &socket(5_001), None).await.expect("joined");
    death.cancel();
    // Of both that they are occupied, of 99 that they came and went.
    let mut removed: Vec<(u64, String)> = unasked(&mut decided, 200)
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
    let looked = async {
        while one.inspect_channel(&crowd).await.map(|seen| seen.connections) != Ok(1) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, looked).await.expect("one connection is left in `crowd`");
    let left = one.inspect_channel(&members).await.map(|seen| (seen.connections, seen.users));
    assert_eq!(left, Ok((1, vec!["stays".into()])));
}

/// Three nodes that are one store, and its address.
pub async fn cluster_of_stores() -> (Vec<Redis>, String) {
    // Nodes that a busy machine held up while they met know one another in part, and cannot be joined any more.
    let mut last = Vec::new();
    for _ in 0..3 {
        let nodes: Vec<Redis> = (0..3).map(|_| Redis::node()).collect();
        if tokio::time::timeout(Duration::from_mins(1), join(&nodes)).await.is_ok() {
            let url = format!("redis-cluster://127.0.0.1:{}?node=127.0.0.1:{}", nodes[0].port, nodes[1].port);
            return (nodes, url);
        }
        last = nodes.iter().map(|node| node.command(&["CLUSTER", "INFO"])).collect();
    }
    panic!("three times, three nodes of redis-server did not become a cluster within a minute; the last: {last:#?}");
}

/// Makes nodes one store, once they all answer.
async fn join(nodes: &[Redis]) {
    let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    loop {
        // It would wait for a node that cannot hear the others without an end.
        let mut create = Command::new("timeout");
        create.args(["30", "redis-cli", "--cluster", "create"]).args(&addresses).arg("--cluster-yes");
        let created = create.output().expect("timeout of coreutils");
        if created.status.success() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for node in nodes {
        // Each finds out by itself that all slots have a node, and refuses everything before.
        while !node.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn a_dead_process_is_swept_in_a_redis_cluster() {
    let (_nodes, url) = cluster_of_stores().await;
    a_process_dies(&url).await;
}

#[tokio::test]
async fn the_bus_follows_a_sentinel_to_another_primary() {
    let files = || tempfile::tempdir().expect("a directory");
    let primary = Redis::with(None, files(), &["--appendonly", "no", "--repl-diskless-sync-delay", "0"]);
    let (host, port) = ("127.0.0.1", primary.port.to_string());
    let replica = Redis::with(None, files(), &["--appendonly", "no", "--replicaof", host, &port]);
    let folder = files();
    let config = format!(
        "sentinel monitor main {host} {port} 1\nsentinel down-after-milliseconds main 500\n\
         sentinel failover-timeout main 2000\n"
    );
    let file = folder.path().join("sentinel.conf");
    std::fs::write(&file, config).expect("written");
    let sentinel = Redis::with(None, folder, &["SENTINEL"]);
    // One that has not the data yet is never chosen.
    eventually_says(&replica, &["info", "replication"], "master_link_status:up").await;
    eventually_says(&sentinel, &["sentinel", "replicas", "main"], &replica.port.to_string()).await;
    let url = format!("redis-sentinel://127.0.0.1:{}?sentinelServiceName=main", sentinel.port);
    let (one, room) = (end(&url, "p1", CancellationToken::new()).await, subject("room"));
    let mut decided = one.take_remote_transitions().expect("an outlet");
    one.join_channel(&room, &"1.1".into(), None).await.expect("joined");
    drop(primary);
    assert!(one.join_channel(&subject("new"), &"1.1".into(), None).await.is_err(), "nobody answers yet");
    let told = unasked(&mut decided, 1).await;
    assert_eq!((told[0].0.channel.as_str(), told[0].1.kind.name()), ("new", "channel_occupied"));
    assert_eq!(one.inspect_channel(&room).await.map(|seen| seen.connections), Ok(1));
    tokio::time::sleep(TIMING.settling_period).await;
    assert!(decided.try_recv().is_err(), "what did not change is not told");
}

/// An authority and what it signs, made by openssl in a directory of their own.
struct Authority {
    files: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let new = Self { files: tempfile::tempdir().expect("a directory") };
        new.openssl(&["-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt"]);
        new
    }

    fn openssl(&self, arguments: &[&str]) {
        let key = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        let made = Command::new("openssl").args(key).args(arguments).current_dir(self.files.path()).output();
        let made = made.expect("openssl is not installed: apt-get install openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.files.path().join("ca.crt")).expect("read")
    }

    /// A server that shows a certificate for these names, and its port with TLS.
    fn server(&self, names: &str) -> (Redis, u16) {
        let files = tempfile::tempdir().expect("a directory");
        let file = |name: &str| files.path().join(name).display().to_string();
        let (key, certificate, names) = (file("redis.key"), file("redis.crt"), format!("subjectAltName={names}"));
        let signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"];
        let own = ["-subj", "/CN=redis", "-addext", &names, "-keyout", &key, "-out", &certificate];
        self.openssl(&[&signed[..], &own].concat());
        let tls_port = reserve_port();
        let port = tls_port.to_string();
        let options = ["--tls-port", &port, "--tls-cert-file", &certificate, "--tls-key-file", &key];
        let more = ["--tls-auth-clients", "no", "--appendonly", "no"];
        (Redis::with(None, files, &[&options[..], &more].concat()), tls_port)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_reached_over_tls_if_a_trusted_authority_signed_its_certificate() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (_redis, port) = authority.server("DNS:localhost,IP:127.0.0.1");
    let (_elsewhere, other_port) = authority.server("DNS:redis.example");
    let (text, others) = (authority.text(), other.text());
    let url = format!("rediss://localhost:{port}");
    // As a bundle, of which only one is needed.
    let both = format!("{others}{text}");
    let address = RedisAddress { url: &url, authorities: Some(&both) };
    let start = |process: &str| RedisBus::start(address, "uid-1", process, TIMING, CancellationToken::new());
    let (one, two) = (start("p1").expect("a bus"), start("p2").expect("a bus"));
    answers(&one).await;
    answers(&two).await;
    let (room, mut heard) = (subject("room"), two.take_incoming_frames().expect("an outlet"));
    one.join_channel(&room, &"1.1".into(), None).await.expect("joined");
    assert_eq!(two.inspect_channel(&room).await.map(|seen| seen.connections), Ok(1));
    let message = BroadcastFrame { subject: room, frame: "hello".into(), except: None, ends: false };
    let arrives = async {
        // The other may not listen yet.
        loop {
            one.publish_frame(message.clone()).await.expect("published");
            if let Ok(Some(found)) = tokio::time::timeout(Duration::from_millis(200), heard.recv()).await {
                break found;
            }
        }
    };
    let found = tokio::time::timeout(WAIT_TIMEOUT, arrives).await.expect("a frame arrives over TLS in time");
    assert_eq!(found.frame, "hello");

    let elsewhere = format!("rediss://127.0.0.1:{other_port}");
    for (name, url, authorities, says) in [
        ("no authority of its own", &url, None, "caSecretRef"),
        ("another's", &url, Some(&others), "caSecretRef"),
        ("another name", &elsewhere, Some(&text), "it is for another name"),
    ] {
        let address = RedisAddress { url, authorities: authorities.map(String::as_str) };
        let refused = RedisBus::connect(address, "uid-1", "p3", CancellationToken::new()).await.err();
        let Some(BusError::Unusable(told)) = refused else { panic!("{name}: {refused:?}") };
        assert!(told.contains(says), "{name}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_user_with_the_documented_rights_suffices_and_a_denied_one_ends_the_start_with_the_reason() {
    let docs = include_str!("../../docs/bus.md");
    let line = docs.lines().find_map(|line| line.strip_prefix("ACL SETUSER ")).expect("the rights are documented");
    let mut user: Vec<&str> = vec!["--user"];
    user.extend(line.split(' ').map(|word| if word == ">PASSWORD" { ">right" } else { word }));
    let options = [&["--appendonly", "no", "--requirepass", "other"], &user[..]].concat();
    let redis = Redis::with(None, tempfile::tempdir().expect("a directory"), &options);
    let url = |who: &str| format!("redis://{who}127.0.0.1:{}", redis.port);
    a_process_dies(&url("edge:right@")).await;
    for (who, says) in [("edge:wrong@", "this password"), ("", "wants a password")] {
        let refused = RedisBus::connect(&url(who), "uid-1", "p3", CancellationToken::new()).await.err();
        let Some(BusError::Unusable(told)) = refused else { panic!("{who}: {refused:?}") };
        assert!(told.contains(says), "{who}: {told}");
    }
}

/// Waits until a server's answer to a command has this in it.
async fn eventually_says(server: &Redis, command: &[&str], part: &str) {
    let mut last = String::new();
    let said = async {
        loop {
            last = server.command(command);
            if last.contains(part) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let said = tokio::time::timeout(WAIT_TIMEOUT, said).await;
    assert!(said.is_ok(), "{command:?} does not answer `{part}`; the last answer: {last}");
}

async fn a_process_dies(url: &str) {
    let death = CancellationToken::new();
    let life = CancellationToken::new();
    let dying = end(url, "p0", death.clone()).await;
    let (one, two) = (end(url, "p1", life.clone()).await, end(url, "p2", life.clone()).await);
    let mut others =
        [one.take_remote_transitions().expect("an outlet"), two.take_remote_transitions().expect("an outlet")];
    let (alone, shared) = (subject("presence-alone"), subject("presence-shared"));
    let socket = |n| SocketId::from_random(7, n);
    let first = dying.join_channel(&alone, &socket(1), Some(&member("a"))).await.expect("joined").transitions;
    let second = dying.join_channel(&shared, &socket(2), Some(&member("a"))).await.expect("joined").transitions;
    dying.join_channel(&shared, &socket(3), Some(&member("b"))).await.expect("joined");
    one.join_channel(&shared, &socket(4), Some(&member("a"))).await.expect("joined");
    // Of one channel all is safe in the stream, of the other nothing.
    dying.acknowledge_recorded(&shared, &second.iter().map(|transition| transition.order).collect::<Vec<_>>());
    let acknowledged = async {
        while dying.join_channel(&shared, &socket(2), None).await.is_err() {}
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    acknowledged.await;
    death.cancel();
    let ids = |transitions: &[Transition]| transitions.iter().map(|t| t.id.clone()).collect::<Vec<_>>();
    let (mut found, until) = (Vec::new(), tokio::time::Instant::now() + WAIT_TIMEOUT);
    while found.len() < 6 && tokio::time::Instant::now() < until {
        for outlet in &mut others {
            while let Ok(decided) = outlet.try_recv() {
                found.extend(decided.transitions.into_iter().map(|transition| (decided.subject.clone(), transition)));
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Longer than another sweep would take.
    tokio::time::sleep(TIMING.sweep_grace).await;
    assert!(others.iter_mut().all(|outlet| outlet.try_recv().is_err()), "told twice");
    let of = |subject: &ChannelKey| -> Vec<Transition> {
        found.iter().filter(|(found, _)| found == subject).map(|(_, transition)| transition.clone()).collect()
    };
    let told_alone = of(&alone);
    assert_eq!(ids(&told_alone)[..2], ids(&first), "not recorded when it died");
    assert_eq!(
        told(&told_alone),
        [("channel_occupied", 1), ("member_added", 2), ("member_removed", 3), ("channel_vacated", 4)]
    );
    assert_eq!(told(&of(&shared)), [("member_added", 3), ("member_removed", 4)], "`a` is still there");
    assert_eq!(
        one.inspect_channel(&shared).await.map(|seen| (seen.connections, seen.users)),
        Ok((1, vec!["a".into()]))
    );
    assert_eq!(one.inspect_channel(&alone).await.map(|seen| seen.connections), Ok(0));
    assert_eq!(two.list_channels(&"1".into(), "").await.map(|all| all.len()), Ok(1));
}

#[tokio::test]
async fn after_redis_loses_its_data_all_members_re_register_and_only_changes_are_reported() {
    let redis = Redis::start(None);
    let (one, two) = (redis.bus("p1").await, redis.bus("p2").await);
    let (mut first, mut second) =
        (one.take_remote_transitions().expect("an outlet"), two.take_remote_transitions().expect("an outlet"));
    let (same, changed, left) = (subject("presence-same"), subject("presence-changed"), subject("left"));
    let socket = |n| SocketId::from_random(7, n);
    one.join_channel(&same, &socket(1), Some(&member("a"))).await.expect("joined");
    two.join_channel(&same, &socket(2), Some(&member("b"))).await.expect("joined");
    one.join_channel(&changed, &socket(1), Some(&member("a"))).await.expect("joined");
    let known = two.join_channel(&changed, &socket(2), Some(&member("b"))).await.expect("joined").transitions;
    one.join_channel(&left, &socket(1), None).await.expect("joined");
    let port = redis.port;
    drop(redis);
    let away = two.leave_channel(&changed, &socket(2), None).await.expect_err("away");
    assert!(matches!(away, BusError::Unavailable(_)), "{away}");
    assert!(
        one.leave_channel(&left, &socket(1), None).await.is_err()
            && one.join_channel(&subject("new"), &socket(1), None).await.is_err()
    );
    let _empty = Redis::start(Some(port));
    answers(&one).await;
    answers(&two).await;
    // What one tells the other does not, whoever comes first.
    let (mut all, until) = (Vec::new(), tokio::time::Instant::now() + WAIT_TIMEOUT);
    while all.len() < 3 && tokio::time::Instant::now() < until {
        for outlet in [&mut first, &mut second] {
            while let Ok(decided) = outlet.try_recv() {
                all.extend(decided.transitions.into_iter().map(|transition| (decided.subject.clone(), transition)));
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(TIMING.sweep_grace).await;
    assert!(first.try_recv().is_err() && second.try_recv().is_err(), "told twice");
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    let kinds: Vec<_> = all.iter().map(|(subject, t)| (subject.channel.to_string(), t.kind.name())).collect();
    let wanted = [("left", "channel_vacated"), ("new", "channel_occupied"), ("presence-changed", "member_removed")];
    assert_eq!(kinds, wanted.map(|(channel, kind)| (channel.to_owned(), kind)));
    assert!(all[2].1.order > known[0].order, "a sequence never goes back");
    let seen = two.inspect_channel(&same).await.expect("seen");
    assert_eq!((seen.connections, seen.users), (2, vec!["a".to_owned(), "b".to_owned()]));
    let gone = one.leave_channel(&same, &socket(1), None).await.expect("left");
    assert_eq!(gone.iter().map(|t| t.kind.name()).collect::<Vec<_>>(), ["member_removed"], "it was known as told");
}

#[tokio::test]
async fn a_process_that_was_swept_re_registers_all_its_members() {
    let redis = Redis::start(None);
    let (one, two) = (redis.bus("p1").await, redis.bus("p2").await);
    let room = subject("presence-room");
    let (a, b) = (SocketId::from("1.1"), SocketId::from("2.2"));
    one.join_channel(&room, &a, Some(&member("a"))).await.expect("joined");
    two.join_channel(&room, &b, Some(&member("b"))).await.expect("joined");
    let raw =
        fred::types::Builder::from_config(fred::types::config::Config::from_url(&redis.url()).expect("an address"));
    let raw = raw.build().expect("a client");
    raw.init().await.expect("a connection");
    // As if it had been silent for long.
    let ended: i64 = raw.zadd("rt:{uid-1}:leases", None, None, false, false, (1.0, "p1")).await.expect("written");
    assert_eq!(ended, 0, "the lease was there");
    let renamed = async {
        loop {
            let names: Vec<String> =
                raw.zrange("rt:{uid-1}:leases", 0, -1, None, false, None, false).await.expect("read");
            if names.contains(&"p1.1".to_owned()) && !names.contains(&"p1".to_owned()) {
                return names;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let names = tokio::time::timeout(WAIT_TIMEOUT, renamed).await.expect("`p1` is swept, and is there as `p1.1`");
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

#[tokio::test]
async fn a_redis_that_evicts_keys_is_refused_at_the_start() {
    let redis = Redis::start(None);
    let bus = redis.bus("p1").await;
    let raw =
        fred::types::Builder::from_config(fred::types::config::Config::from_url(&redis.url()).expect("an address"));
    let raw = raw.build().expect("a client");
    raw.init().await.expect("a connection");
    for (name, value) in [("maxmemory", "100mb"), ("maxmemory-policy", "allkeys-lru")] {
        raw.config_set(name, value).await.expect("set");
    }
    let error = RedisBus::connect(&redis.url(), "uid-1", "p2", CancellationToken::new()).await.err().expect("refused");
    assert!(matches!(&error, BusError::Unusable(told) if told.contains("noeviction")), "{error}");
    assert!(bus.is_available(), "who serves goes on");
}

#[tokio::test]
async fn a_key_of_another_type_and_a_full_redis_are_reported_and_lose_nothing() {
    let redis = Redis::start(None);
    let (bus, room, socket) = (redis.bus("p1").await, subject("room"), SocketId::from("1.1"));
    let raw =
        fred::types::Builder::from_config(fred::types::config::Config::from_url(&redis.url()).expect("an address"));
    let raw = raw.build().expect("a client");
    raw.init().await.expect("a connection");
    raw.set::<(), _, _>("rt:{uid-1:1:room}:sockets", "foreign", None, None, false).await.expect("set");
    let error = bus.join_channel(&room, &socket, None).await.expect_err("refused").to_string();
    assert!(error.contains("a Redis of its own"), "{error}");
    let mut decided = bus.take_remote_transitions().expect("an outlet");
    raw.del::<(), _>("rt:{uid-1:1:room}:sockets").await.expect("removed");
    let told = unasked(&mut decided, 1).await;
    assert_eq!((&told[0].0, told[0].1.kind.name()), (&room, "channel_occupied"), "once the key has gone");
    raw.config_set("maxmemory", "1mb").await.expect("set");
    let error = bus.join_channel(&subject("other"), &socket, None).await.expect_err("refused").to_string();
    assert!(error.contains("Redis is full"), "{error}");
    raw.config_set("maxmemory", "0").await.expect("set");
    let told = unasked(&mut decided, 1).await;
    assert_eq!((told[0].0.channel.as_str(), told[0].1.kind.name()), ("other", "channel_occupied"));
}

#[tokio::test]
async fn sessions_have_one_owner_and_processes_know_each_other() {
    let redis = Redis::start(None);
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

    one.report_lost_send("s.1", "02").await.expect("told");
    one.report_lost_send("s.2", "02").await.expect("told");
    assert_eq!(one.send_heartbeat(&a).await.expect("alive").sessions_with_lost_sends, [""; 0]);
    assert_eq!(two.send_heartbeat(&b).await.expect("alive").sessions_with_lost_sends, ["s.1", "s.2"]);
    assert_eq!(two.send_heartbeat(&b).await.expect("alive").sessions_with_lost_sends, [""; 0], "told once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_bus_has_its_subscription_in_redis() {
    let redis = Redis::start(None);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_join_and_a_leave_whose_caller_stopped_waiting_are_decided_all_the_same() {
    const PAUSE_MS: &str = "400";
    let redis = Redis::start(None);
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

/// Waits for a transition of the channel `room` that the bus emits on its own.
async fn expect_remote_transition(decided: &mut mpsc::Receiver<RemoteTransitions>, kind: &EventKind) {
    let mut seen = Vec::new();
    let expected = async {
        while let Some(remote) = decided.recv().await {
            seen.extend(remote.transitions.iter().map(|transition| transition.kind.clone()));
            if remote.subject == subject("room") && seen.last() == Some(kind) {
                return;
            }
        }
    };
    let found = tokio::time::timeout(WAIT_TIMEOUT, expected).await;
    assert!(found.is_ok(), "no {kind:?} within {WAIT_TIMEOUT:?}; seen: {seen:?}");
}
