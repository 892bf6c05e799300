//! The order of events across splits, merges and take-overs of shards, with two dispatchers.

use std::time::Instant;

use futures::future::BoxFuture;
use realtime_operator::dispatcher::{Checkpoint, LeaseError, LeaseSnapshot, ShardLease};
use realtime_operator::protocol::ShardId;

use super::scripted_receiver::{Behaviour, ScriptedReceiver};
use super::*;

/// Channels whose keys lie in both halves of the hash keys.
const CHANNEL_COUNT: u64 = 10;
/// Longest time from the put of an event in a new shard to its arrival: 3 s, times three for a busy machine; far less than
/// the retry window of an endpoint that does not answer and than the interval of listings.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(9);
/// Longest absence that is not delivered, and the time to notice one that was.
const ABSENCE_TIME: Duration = Duration::from_secs(5);
/// Longest time until another member holds the shards of one that was killed: two heartbeats, the time after which a
/// member counts as dead, and a second.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(13);

/// Two apps: one with the bed's receiver, one whose endpoint never answers.
async fn write_two_apps(bed: &Bed) {
    let dead = ScriptedReceiver::default();
    dead.set("dead", Behaviour::Hang);
    let dead_url = format!("{}/dead", dead.serve().await);
    let working =
        App { webhooks: vec![build_webhook(&bed.receiver.serve().await)], ..build_app("1001", "key", "secret") };
    let hanging = App { webhooks: vec![build_webhook(&dead_url)], ..build_app("1002", "key2", "secret2") };
    write_registry(bed.apps.path(), [working, hanging]);
}

async fn put_to_all(bed: &Bed, app: &str, build: impl Fn(u64) -> RecordedEvent) {
    for n in 0..CHANNEL_COUNT {
        bed.put_for(app, CLUSTER, &format!("c{n}"), vec![build(n)]).await;
    }
}

/// Refreshes a page in every channel while the stream changes its shards, with an endpoint that never answers: the events
/// after the change arrive soon, and no absence is delivered.
async fn reshard_with_page_refreshes(bed: &Bed, reshard: impl AsyncFnOnce()) {
    let occupied = |n: u64| state(&format!("occupied-{n}"), now_ms(), 1, EventKind::ChannelOccupied);
    put_to_all(bed, "1001", occupied).await;
    put_to_all(bed, "1002", |n| message(&format!("dead-{n}"), n)).await;
    bed.receiver.receives("every channel is occupied", |ids| ids.len() as u64 == CHANNEL_COUNT).await;
    put_to_all(bed, "1001", |n| state(&format!("left-{n}"), now_ms(), 2, EventKind::ChannelVacated)).await;
    reshard().await;
    put_to_all(bed, "1001", |n| state(&format!("back-{n}"), now_ms(), 3, EventKind::ChannelOccupied)).await;
    put_to_all(bed, "1001", |n| message(&format!("after-{n}"), n)).await;
    let put = Instant::now();
    let count_after = |ids: &[String]| ids.iter().filter(|id| id.starts_with("after-")).count() as u64;
    let arrival = bed.receiver.receives("the events of the new shards", |ids| count_after(ids) == CHANNEL_COUNT);
    within(ARRIVAL_TIMEOUT, "the events of the new shards", arrival).await;
    println!("the events of the new shards arrived after {:?}", put.elapsed());
    tokio::time::sleep(ABSENCE_TIME).await;
    let stray: Vec<String> =
        bed.receiver.ids().into_iter().filter(|id| id.starts_with("left-") || id.starts_with("back-")).collect();
    assert_eq!(stray, Vec::<String>::new());
    let distinct: BTreeSet<String> = bed.receiver.ids().into_iter().collect();
    assert_eq!(distinct.len() as u64, 2 * CHANNEL_COUNT, "{distinct:?}");
}

async fn held(running: &RunningDispatcher) -> usize {
    flow(running).await.shards.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_delays_no_event_of_the_children_and_delivers_no_page_refresh() {
    let bed = Bed::new(1).await;
    write_two_apps(&bed).await;
    let (one, _) = bed.dispatcher(&[LOOPBACK]).await;
    eventually("the shard is held", async || held(&one).await, |shards| *shards == 1).await;
    let (two, _) = bed.dispatcher(&[LOOPBACK]).await;
    reshard_with_page_refreshes(&bed, async || bed.split("shardId-000000000000").await).await;
    // The parent has an event that is not done: the children stay with it.
    let shards = (held(&one).await, held(&two).await);
    assert!(shards == (3, 0) || shards == (0, 3), "{shards:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_of_shards_of_two_dispatchers_delays_no_event_and_delivers_no_page_refresh() {
    let bed = Bed::new(2).await;
    write_two_apps(&bed).await;
    let (one, _) = bed.dispatcher(&[LOOPBACK]).await;
    let (two, _) = bed.dispatcher(&[LOOPBACK]).await;
    let shards = async || (held(&one).await, held(&two).await);
    eventually("each holds one shard", shards, |shards| *shards == (1, 1)).await;
    let merge = async || bed.merge("shardId-000000000000", "shardId-000000000001").await;
    reshard_with_page_refreshes(&bed, merge).await;
    let shards = (held(&one).await, held(&two).await);
    assert!(shards == (3, 0) || shards == (0, 3), "{shards:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_children_of_a_shard_that_is_done_are_shared_again() {
    let bed = Bed::new(1).await;
    let (one, _) = bed.dispatcher(&[LOOPBACK]).await;
    let (two, _) = bed.dispatcher(&[LOOPBACK]).await;
    let shards = async || (held(&one).await, held(&two).await);
    eventually("the shard is held", shards, |shards| shards.0 + shards.1 == 1).await;
    put_to_all(&bed, "1001", |n| message(&format!("before-{n}"), n)).await;
    bed.split("shardId-000000000000").await;
    put_to_all(&bed, "1001", |n| message(&format!("after-{n}"), CHANNEL_COUNT + n)).await;
    let count = async || bed.receiver.ids().into_iter().collect::<BTreeSet<_>>().len() as u64;
    eventually("every event", count, |count| *count == 2 * CHANNEL_COUNT).await;
    eventually("each holds a child", shards, |shards| *shards == (1, 1)).await;
}

#[test]
fn the_shards_of_a_killed_dispatcher_are_taken_over_and_no_event_is_lost() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (alive, killed) = (runtime(), runtime());
    alive.block_on(async {
        let bed = Arc::new(Bed::new(2).await);
        let (other, _) = bed.dispatcher(&[LOOPBACK]).await;
        let started = Arc::clone(&bed);
        let (victim, shutdown) =
            killed.spawn(async move { started.dispatcher(&[LOOPBACK]).await }).await.expect("started");
        let shards = async || (held(&other).await, held(&victim).await);
        eventually("each holds one shard", shards, |shards| *shards == (1, 1)).await;
        put_to_all(&bed, "1001", |n| message(&format!("before-{n}"), n)).await;
        let distinct = async || bed.receiver.ids().into_iter().collect::<BTreeSet<_>>().len() as u64;
        eventually("the events before", distinct, |count| *count == CHANNEL_COUNT).await;
        // Its tasks end at once: it releases no lease.
        killed.shutdown_background();
        let ended = Instant::now();
        put_to_all(&bed, "1001", |n| message(&format!("after-{n}"), CHANNEL_COUNT + n)).await;
        let taken = eventually("the other holds both", async || held(&other).await, |shards| *shards == 2);
        within(TAKE_OVER_TIMEOUT, "the other holds both", taken).await;
        println!("taken over after {:?}", ended.elapsed());
        eventually("every event", distinct, |count| *count == 2 * CHANNEL_COUNT).await;
        drop((victim, shutdown));
    });
}

#[tokio::test]
async fn the_next_holder_knows_the_order_of_the_last_minute() {
    let bed = Bed::new(1).await;
    let (one, stop) = bed.dispatcher(&[LOOPBACK]).await;
    let put = async |id: &str, channel: &str, seq: u64, kind: EventKind| {
        bed.put(CLUSTER, channel, vec![state(id, now_ms(), seq, kind)]).await;
    };
    put("occupied", "a", 1, EventKind::ChannelOccupied).await;
    put("newest", "a", 4, EventKind::ChannelOccupied).await;
    put("other", "b", 1, EventKind::ChannelOccupied).await;
    bed.receiver.receives("the newest, after the time of a gap", |ids| ids.len() == 3).await;
    stop.cancel();
    within(Duration::from_secs(15), "the end of the dispatcher", one.wait_until_stopped()).await;
    let (two, _) = bed.dispatcher(&[LOOPBACK]).await;
    put("late", "a", 3, EventKind::ChannelOccupied).await;
    let skipped = "realtime_dispatcher_events_skipped_total{reason=\"superseded\"} 1";
    eventually("the late one is superseded", async || get(&two, "/metrics").await, |page| page.contains(skipped)).await;
    let began = Instant::now();
    put("next", "b", 2, EventKind::ChannelOccupied).await;
    bed.receiver.receives("the next of a known channel", |ids| ids.contains(&"next".to_owned())).await;
    assert!(began.elapsed() < Duration::from_millis(2_500), "it waited for no gap: {:?}", began.elapsed());
    assert_eq!(bed.receiver.ids().split_off(3), ["next"]);
}

#[tokio::test]
async fn the_next_holder_waits_for_the_order_when_the_stream_cannot_be_read_yet() {
    let (bed, faults) = Bed::with_faults(1).await;
    let (one, stop) = bed.dispatcher(&[LOOPBACK]).await;
    bed.put(CLUSTER, "a", vec![state("newest", now_ms(), 2, EventKind::ChannelOccupied)]).await;
    bed.receiver.receives("the newest, after the time of a gap", |ids| ids == ["newest"]).await;
    let is_done = |flow: &DispatcherFlow| flow.unfinished == 0;
    eventually("its end", async || flow(&one).await, is_done).await;
    stop.cancel();
    within(Duration::from_secs(15), "the end of the dispatcher", one.wait_until_stopped()).await;
    faults.set(Some(CallFault::UnreadableShards));
    let (two, _) = bed.dispatcher(&[LOOPBACK]).await;
    wait_for_error(&two, &["GetShardIterator"]).await;
    // More than one attempt.
    tokio::time::sleep(Duration::from_secs(1)).await;
    faults.set(None);
    bed.put(CLUSTER, "a", vec![state("late", now_ms(), 1, EventKind::ChannelOccupied)]).await;
    bed.put(CLUSTER, "a", vec![state("next", now_ms(), 3, EventKind::ChannelVacated)]).await;
    let skipped = "realtime_dispatcher_events_skipped_total{reason=\"superseded\"} 1";
    eventually("the late one is superseded", async || get(&two, "/metrics").await, |page| page.contains(skipped)).await;
    bed.receiver.receives("the next", |ids| ids == ["newest", "next"]).await;
}

/// Leases of which an acquisition takes this long, with the times of the heartbeats.
struct SlowLeases {
    inner: MemoryLeases,
    heartbeats: Mutex<Vec<Instant>>,
}

/// The time of one acquisition. Sixty of them, one after another, outlast a member's life.
const ACQUISITION_TIME: Duration = Duration::from_millis(500);
const MANY_SHARDS: u32 = 60;
/// Longest time between two heartbeats: half of that after which a member counts as dead.
const HEARTBEAT_GAP_MAX: Duration = Duration::from_secs(4);

impl ShardLeases for SlowLeases {
    fn send_heartbeat<'a>(
        &'a self,
        member: &'a str,
        status: MemberStatus,
    ) -> BoxFuture<'a, Result<LeaseSnapshot, LeaseError>> {
        self.heartbeats.lock().expect("not poisoned").push(Instant::now());
        self.inner.send_heartbeat(member, status)
    }

    fn acquire_shard<'a>(
        &'a self,
        shard: &'a ShardId,
        member: &'a str,
    ) -> BoxFuture<'a, Result<ShardLease, LeaseError>> {
        Box::pin(async move {
            tokio::time::sleep(ACQUISITION_TIME).await;
            self.inner.acquire_shard(shard, member).await
        })
    }

    fn renew<'a>(
        &'a self,
        shard: &'a ShardId,
        generation: u64,
        checkpoint: Option<Checkpoint>,
    ) -> BoxFuture<'a, Result<(), LeaseError>> {
        self.inner.renew(shard, generation, checkpoint)
    }

    fn release_shard<'a>(
        &'a self,
        shard: &'a ShardId,
        generation: u64,
        checkpoint: Option<Checkpoint>,
    ) -> BoxFuture<'a, Result<(), LeaseError>> {
        self.inner.release_shard(shard, generation, checkpoint)
    }

    fn delete_lease<'a>(&'a self, shard: &'a ShardId, generation: u64) -> BoxFuture<'a, Result<(), LeaseError>> {
        self.inner.delete_lease(shard, generation)
    }

    fn remove_member<'a>(&'a self, member: &'a str) -> BoxFuture<'a, Result<(), LeaseError>> {
        self.inner.remove_member(member)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_go_on_while_many_shards_are_acquired() {
    let bed = Bed::new(MANY_SHARDS).await;
    let leases = Arc::new(SlowLeases { inner: bed.leases.clone(), heartbeats: Mutex::default() });
    let (running, _) = bed.dispatcher_with(leases.clone(), "stream", &[LOOPBACK]).await;
    let shards = usize::try_from(MANY_SHARDS).expect("a number of shards");
    eventually("all are held", async || held(&running).await, |held| *held == shards).await;
    let mut heartbeats = leases.heartbeats.lock().expect("not poisoned").clone();
    heartbeats.push(Instant::now());
    let longest = heartbeats.windows(2).map(|pair| pair[1] - pair[0]).max();
    assert!(longest.is_some_and(|longest| longest < HEARTBEAT_GAP_MAX), "{longest:?}");
}
