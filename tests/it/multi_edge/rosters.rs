//! Rosters as clients keep them: at rest each equals the members in Redis, whatever happened to the edges.

use std::collections::HashMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::SplitSink;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::*;

/// Members of a channel, besides those who watch it: fewer than a channel may have.
const CHANNEL_MEMBERS: usize = 50;

/// Time for frames to arrive everywhere after the last change.
const REST_TIMEOUT: Duration = Duration::from_secs(30);

type Rosters = Arc<Mutex<HashMap<String, Subscription>>>;

/// A client's view of one channel.
#[derive(Default)]
struct Subscription {
    is_wanted: bool,
    /// Subscriptions without an answer yet: only the last one gives the roster.
    unanswered: usize,
    roster: Option<BTreeSet<String>>,
}

/// A client that keeps its rosters as pusher-js does.
struct RosterClient {
    id: String,
    sink: SplitSink<WebSocketStream<MaybeTlsStream<TcpStream>>, Message>,
    /// The members of each channel that it is subscribed to.
    rosters: Rosters,
    /// The `member_removed` frames that it received.
    removals: Arc<Notify>,
    /// Whether the server has closed it, so that its rosters stand still.
    is_closed: Arc<AtomicBool>,
    _reader: AbortOnDropHandle<()>,
}

impl RosterClient {
    async fn open(address: SocketAddr) -> Self {
        let Ws { socket, id } = Ws::open(address).await;
        let (sink, mut stream) = socket.split();
        let (rosters, removals) = (Rosters::default(), Arc::new(Notify::new()));
        let is_closed = Arc::new(AtomicBool::new(false));
        let (kept, heard, closed) = (rosters.clone(), removals.clone(), is_closed.clone());
        let reader = tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                let Ok(text) = message.into_text() else { continue };
                let frame: Value = serde_json::from_str(&text).expect("json");
                if frame["event"] == "pusher_internal:member_removed" {
                    heard.notify_one();
                }
                apply_frame(&mut kept.lock().unwrap_or_else(PoisonError::into_inner), &frame);
            }
            closed.store(true, Ordering::Relaxed);
        });
        Self { id, sink, rosters, removals, is_closed, _reader: AbortOnDropHandle::new(reader) }
    }

    fn change_subscription(&self, channel: &str, change: impl FnOnce(&mut Subscription)) {
        let mut rosters = self.rosters.lock().unwrap_or_else(PoisonError::into_inner);
        change(rosters.entry(channel.to_owned()).or_default());
    }

    async fn subscribe(&mut self, channel: &str, user: &str) {
        self.change_subscription(channel, |subscription| {
            subscription.is_wanted = true;
            subscription.unanswered += 1;
        });
        let frame = subscribe_frame(&self.id, channel, Some(user));
        self.sink.send(Message::text(frame.to_string())).await.expect("sent");
    }

    async fn unsubscribe(&mut self, channel: &str) {
        self.change_subscription(channel, |subscription| {
            (subscription.is_wanted, subscription.roster) = (false, None);
        });
        self.sink.send(Message::text(unsubscribe_frame(channel).to_string())).await.expect("sent");
    }

    /// Waits until each of its subscriptions is answered.
    async fn answered(&self) {
        let is_waiting = || {
            let rosters = self.rosters.lock().unwrap_or_else(PoisonError::into_inner);
            rosters.values().any(|subscription| subscription.unanswered > 0)
        };
        let deadline = Instant::now() + CROWD_TIMEOUT;
        while is_waiting() {
            assert!(Instant::now() < deadline && !self.is_closed.load(Ordering::Relaxed), "{} gets no answer", self.id);
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// The members that it shows; `None` where it is not subscribed. A subscription without its answer has no members.
    fn roster(&self, channel: &str) -> Option<BTreeSet<String>> {
        let rosters = self.rosters.lock().unwrap_or_else(PoisonError::into_inner);
        let subscription = rosters.get(channel).filter(|subscription| subscription.is_wanted)?;
        Some(subscription.roster.clone().unwrap_or_default())
    }
}

fn apply_frame(rosters: &mut HashMap<String, Subscription>, frame: &Value) {
    let (event, channel) = (frame["event"].as_str().unwrap_or_default(), frame["channel"].as_str());
    assert_ne!(event, "pusher:error", "{frame}");
    let Some(channel) = channel else { return };
    let data: Value = frame["data"].as_str().and_then(|data| serde_json::from_str(data).ok()).unwrap_or_default();
    let Some(subscription) = rosters.get_mut(channel) else { return };
    let user = || data["user_id"].as_str().expect("a user").to_owned();
    match (event, &mut subscription.roster) {
        ("pusher_internal:subscription_succeeded", roster) => {
            subscription.unanswered -= 1;
            if subscription.is_wanted && subscription.unanswered == 0 {
                let ids = data["presence"]["ids"].as_array().expect("ids").iter();
                *roster = Some(ids.map(|id| id.as_str().expect("text").to_owned()).collect());
            }
        }
        ("pusher_internal:member_added", Some(roster)) => drop(roster.insert(user())),
        ("pusher_internal:member_removed", Some(roster)) => drop(roster.remove(&user())),
        _ => {}
    }
}

fn members_in_redis(redis: &Redis, channel: &str) -> BTreeSet<String> {
    let users = redis.command(&["hkeys", &format!("rt:{{u:1:{channel}}}:users")]);
    users.lines().map(str::to_owned).collect()
}

/// Waits until the rosters of all clients equal the members in Redis, and these are as expected.
async fn expect_right_rosters(
    redis: &Redis,
    clients: &[RosterClient],
    channels: &[String],
    expected: impl Fn(&str) -> BTreeSet<String>,
) {
    let deadline = Instant::now() + REST_TIMEOUT;
    loop {
        let closed = clients.iter().filter(|client| client.is_closed.load(Ordering::Relaxed)).count();
        assert_eq!(closed, 0, "clients that the server has closed");
        let mut wrong = Vec::new();
        for channel in channels {
            let there = members_in_redis(redis, channel);
            if there != expected(channel) {
                wrong.push(format!("{channel} in Redis has {there:?}, not {:?}", expected(channel)));
            }
            let rosters = clients.iter().filter_map(|client| Some((&client.id, client.roster(channel)?)));
            let other = rosters.filter(|(_, roster)| *roster != there);
            wrong.extend(other.map(|(id, roster)| {
                let (missing, gone): (Vec<_>, Vec<_>) =
                    (there.difference(&roster).collect(), roster.difference(&there).collect());
                format!("{channel} of {id}: {missing:?} are missing, {gone:?} are gone")
            }));
        }
        if wrong.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{} wrong rosters: {:#?}", wrong.len(), &wrong[..wrong.len().min(10)]);
        sleep(Duration::from_millis(200)).await;
    }
}

/// A number of the environment, for a longer run of these tests than the usual one.
fn setting(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |value| value.parse().expect("a number"))
}

/// `ROSTER_MEMBERS=3000 ROSTER_SEEDS=20 cargo test --test it -- rosters` is the long run.
#[tokio::test(flavor = "multi_thread")]
async fn rosters_are_right_after_members_of_a_killed_edge_return_during_its_sweep() {
    let (count, seeds) = (setting("ROSTER_MEMBERS", 300), setting("ROSTER_SEEDS", 2));
    let redis = Redis::start().await;
    let mut pods = Pods::start(&redis).await;
    let started = Instant::now();
    let channels: Vec<String> = (0..count.div_ceil(CHANNEL_MEMBERS)).map(|n| format!("presence-{n}")).collect();
    let mut clients = Vec::new();
    // One for each channel: a sweep is a burst that one client of all channels could not read in time.
    for (pod, channel) in [1, 2].into_iter().flat_map(|pod| channels.iter().map(move |channel| (pod, channel))) {
        let mut watcher = RosterClient::open(pods.edges[pod].address("public")).await;
        watcher.subscribe(channel, &format!("watcher-{pod}")).await;
        clients.push(watcher);
    }
    let watchers = clients.len();
    // Nobody sweeps whose contact with the bus is young.
    tokio::time::sleep_until(started + Duration::from_secs(17)).await;
    for seed in 0..seeds {
        let mut random = StdRng::seed_from_u64(seed as u64);
        let join = async |address: SocketAddr, n: usize| {
            let mut client = RosterClient::open(address).await;
            client.subscribe(&format!("presence-{}", n / CHANNEL_MEMBERS), &format!("{seed}-{n}")).await;
            client
        };
        let expected = |channel: &str| {
            let watchers = ["watcher-1", "watcher-2"].map(str::to_owned);
            let members = (0..count).filter(|n| channel == format!("presence-{}", n / CHANNEL_MEMBERS));
            members.map(|n| format!("{seed}-{n}")).chain(watchers).collect()
        };
        let killed = pods.edges[0].address("public");
        let dying: Vec<_> = stream::iter(0..count).map(|n| join(killed, n)).buffer_unordered(AT_ONCE).collect().await;
        expect_right_rosters(&redis, &clients, &channels, expected).await;
        drop(pods.edges.remove(0));
        drop(dying);
        // The third edge is now the second one.
        let other = pods.edges[1].address("public");
        timeout(CROWD_TIMEOUT, clients[0].removals.notified()).await.expect("the sweep begins");
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(&mut random);
        let returned: Vec<_> = stream::iter(order).map(|n| join(other, n)).buffer_unordered(AT_ONCE).collect().await;
        clients.extend(returned);
        expect_right_rosters(&redis, &clients, &channels, expected).await;
        // The watchers stay for the next round.
        clients.truncate(watchers);
        pods.add().await;
        let newest = pods.edges.pop().expect("an edge");
        pods.edges.insert(0, newest);
        expect_right_rosters(&redis, &clients, &channels, |_| ["watcher-1", "watcher-2"].map(str::to_owned).into())
            .await;
    }
}

/// `ROSTER_MOVES=100000 cargo test --test it -- rosters` is the long run.
#[tokio::test(flavor = "multi_thread")]
async fn rosters_are_right_after_random_joins_and_leaves_of_the_same_users_over_two_edges() {
    const USERS: usize = 20;
    let moves = setting("ROSTER_MOVES", 3_000);
    let redis = Redis::start().await;
    redis.aged(6).await;
    let pods = Pods::start(&redis).await;
    let channels: Vec<String> = (0..4).map(|n| format!("presence-{n}")).collect();
    let mut clients = Vec::new();
    for n in 0..USERS {
        clients.push(RosterClient::open(pods.edges[n % 2].address("public")).await);
        clients.push(RosterClient::open(pods.edges[1 - n % 2].address("public")).await);
    }
    for pod in [0, 1, 2] {
        let mut watcher = RosterClient::open(pods.edges[pod].address("public")).await;
        for channel in &channels {
            watcher.subscribe(channel, &format!("watcher-{pod}")).await;
        }
        clients.push(watcher);
    }
    let mut random = StdRng::seed_from_u64(1);
    let mut joined: BTreeSet<(usize, usize)> = BTreeSet::new();
    for n in 0..moves {
        let (client, channel) = (random.random_range(0..2 * USERS), random.random_range(0..channels.len()));
        if joined.remove(&(client, channel)) {
            clients[client].unsubscribe(&channels[channel]).await;
        } else {
            joined.insert((client, channel));
            clients[client].subscribe(&channels[channel], &format!("user-{}", client / 2)).await;
        }
        // As fast as the slowest client reads.
        if n % 50 == 49 {
            for client in &clients {
                client.answered().await;
            }
        }
    }
    expect_right_rosters(&redis, &clients, &channels, |channel| {
        let there = joined.iter().filter(|(_, there)| channels[*there] == channel);
        let users = there.map(|(client, _)| format!("user-{}", client / 2));
        users.chain([0, 1, 2].map(|pod| format!("watcher-{pod}"))).collect()
    })
    .await;
}

/// Stops or continues every edge.
fn signal_edges(pods: &Pods, signal: &str) {
    for edge in &pods.edges {
        let sent = Command::new("kill").args([signal, &edge.id().to_string()]).status().expect("kill");
        assert!(sent.success(), "kill {signal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rosters_are_right_after_every_edge_stood_still_for_longer_than_its_lease() {
    let redis = Redis::start().await;
    let started = Instant::now();
    let pods = Pods::start(&redis).await;
    let channels = ["presence-0".to_owned()];
    let mut clients = Vec::new();
    for n in 0..30 {
        let mut client = RosterClient::open(pods.edges[n % 3].address("public")).await;
        client.subscribe(&channels[0], &n.to_string()).await;
        clients.push(client);
    }
    let members = |ids: std::ops::Range<usize>| move |_: &str| ids.clone().map(|n| n.to_string()).collect();
    expect_right_rosters(&redis, &clients, &channels, members(0..30)).await;
    tokio::time::sleep_until(started + Duration::from_secs(17)).await;
    signal_edges(&pods, "-STOP");
    sleep(Duration::from_secs(6)).await;
    // Those whose connections end meanwhile are gone afterwards, and the others are not.
    clients.drain(..6);
    sleep(Duration::from_secs(6)).await;
    signal_edges(&pods, "-CONT");
    expect_right_rosters(&redis, &clients, &channels, members(6..30)).await;
    sleep(Duration::from_secs(5)).await;
    expect_right_rosters(&redis, &clients, &channels, members(6..30)).await;
}
