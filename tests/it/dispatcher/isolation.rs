//! One endpoint never delays another: endpoints that hang and endpoints that are slow share a shard with others that work.

use std::time::Instant;

use super::scripted_receiver::{Behaviour, ScriptedReceiver};
use super::*;
use crate::fixtures::load_size;

/// Endpoints that never answer, and endpoints that answer 200 just before the time-out of an attempt.
const DEAD_COUNT: usize = 4;
const SLOW_COUNT: usize = 1;
const SLOW_DELAY: Duration = Duration::from_millis(3_900);
/// Events of one record.
const RECORD_EVENTS: usize = 10;
/// Longest time from the put of an event to its arrival at an endpoint that works.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);

fn app_id(n: usize) -> String {
    (1_000 + n).to_string()
}

/// An app per endpoint: dead ones first, then slow ones, then those that work.
async fn start_endpoints(bed: &Bed, count: usize) -> ScriptedReceiver {
    let receiver = ScriptedReceiver::default();
    let url = receiver.serve().await;
    let app = |n: usize| {
        let webhooks = vec![build_webhook(&format!("{url}/{}", app_id(n)))];
        App { webhooks, ..build_app(&app_id(n), &format!("key{n}"), "secret") }
    };
    write_registry(bed.apps.path(), (0..count).map(app));
    (0..DEAD_COUNT).for_each(|n| receiver.set(&app_id(n), Behaviour::Hang));
    (DEAD_COUNT..).take(SLOW_COUNT).for_each(|n| receiver.set(&app_id(n), Behaviour::Slow(SLOW_DELAY)));
    receiver
}

/// A record of client events for one app.
fn record_for(app: usize, first: usize) -> PutEntry {
    let app = app_id(app);
    let events = (first..first + RECORD_EVENTS).map(|n| message(&format!("{app}-{n}"), n as u64)).collect();
    build_record(&app, CLUSTER, &format!("c{}", first % 7), events)
}

/// `ENDPOINTS=50 EVENTS_PER_SECOND=1000 SECONDS=120 cargo test --test it one_endpoint_never -- --nocapture` measures the
/// load of a large shard; it prints the throughput of the endpoints that work, and the longest distance of the reader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_endpoint_never_delays_another_whether_it_hangs_or_is_slow() {
    let (count, rate, seconds) =
        (load_size("ENDPOINTS", 12), load_size("EVENTS_PER_SECOND", 3_000), load_size("SECONDS", 15));
    let bed = Bed::new(1).await;
    let receiver = start_endpoints(&bed, count).await;
    let (running, _) = bed.dispatcher(&[LOOPBACK]).await;
    let (started, records_per_second) = (Instant::now(), rate / RECORD_EVENTS);
    let (mut put, mut longest_behind_ms, mut paused) = (0, 0, BTreeSet::new());
    for second in 0..seconds {
        for _ in 0..records_per_second.div_ceil(100) {
            let records: Vec<PutEntry> =
                (put..put + 100).map(|n| record_for(n % count, n / count * RECORD_EVENTS)).collect();
            let results = bed.kinesis.put_records(&records).await.expect("put");
            assert!(results.iter().all(Result::is_ok));
            put += 100;
        }
        let flow = flow(&running).await;
        longest_behind_ms = longest_behind_ms.max(flow.shards.values().map(|shard| shard.behind_ms).max().unwrap_or(0));
        paused.extend(flow.shards.into_values().filter_map(|shard| shard.paused));
        let next = started + Duration::from_secs(second as u64 + 1);
        tokio::time::sleep_until(next.into()).await;
    }
    let ended = started.elapsed();
    let working = DEAD_COUNT + SLOW_COUNT..count;
    let expected: Vec<usize> = working.clone().map(|app| (app..put).step_by(count).count() * RECORD_EVENTS).collect();
    let count_arrived = || working.clone().map(|app| receiver.received(&app_id(app)).len()).collect::<Vec<_>>();
    let at_end: usize = count_arrived().iter().sum();
    println!(
        "{put} records; endpoints that work got {} of {} events/s; the reader was {longest_behind_ms} ms behind at most; \
         pauses {paused:?}; dropped {:?}",
        at_end as u64 / ended.as_secs().max(1),
        expected.iter().sum::<usize>() as u64 / ended.as_secs().max(1),
        flow(&running).await.dropped
    );
    let all = eventually("every event at the endpoints that work", async || count_arrived(), |got| *got == expected);
    within(ARRIVAL_TIMEOUT, "every event at the endpoints that work", all).await;
    assert!(paused.is_empty(), "reading stopped: {paused:?}");
    let dropped = flow(&running).await.dropped;
    assert!(dropped.keys().all(|reason| reason == "EndpointBehind"), "{dropped:?}");
}

/// The endpoints of the comparison: dead ones that hang, dead ones that answer 500, one slow, and those that work.
const COMPARED_ENDPOINTS: usize = 50;
const HANGING: std::ops::Range<usize> = 0..5;
const REFUSING: std::ops::Range<usize> = 5..10;
const SLOW: usize = 10;
/// Channels of each endpoint's app.
const APP_CHANNELS: usize = 5;
/// Pauses of the reading are looked for at this interval.
const PAUSE_LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Longest pause of the reading.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The load of the comparison: one event per record, for one endpoint after the other.
struct Load<'a> {
    bed: &'a Bed,
    records_per_second: usize,
    put: usize,
    /// Id of the last count of each channel, by app.
    last_counts: BTreeMap<usize, BTreeMap<usize, String>>,
    /// Time of each put, by id.
    put_ms: BTreeMap<String, u64>,
}

impl Load<'_> {
    /// Puts records for so long, and returns the ids of the events.
    async fn run(&mut self, duration: Duration) -> BTreeSet<String> {
        let started = Instant::now();
        let (mut ids, mut puts) = (BTreeSet::new(), 0);
        while started.elapsed() < duration {
            let elapsed_ms = usize::try_from(started.elapsed().as_millis()).expect("a short run");
            let due = elapsed_ms * self.records_per_second / 1_000;
            let count = due.saturating_sub(puts).min(500);
            if count > 0 {
                let records: Vec<PutEntry> = (0..count).map(|_| self.next_record(&mut ids)).collect();
                let results = self.bed.kinesis.put_records(&records).await.expect("put");
                assert!(results.iter().all(Result::is_ok));
                puts += count;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ids
    }

    /// Every third event is a state, a count; the others are client events.
    fn next_record(&mut self, ids: &mut BTreeSet<String>) -> PutEntry {
        let (number, app) = (self.put, self.put % COMPARED_ENDPOINTS);
        self.put += 1;
        let turn = number / COMPARED_ENDPOINTS;
        let (channel, id) = (turn % APP_CHANNELS, format!("{app}-{turn}"));
        let event = if turn.is_multiple_of(3) {
            self.last_counts.entry(app).or_default().insert(channel, id.clone());
            let kind = EventKind::SubscriptionCount { subscription_count: turn as u64 };
            RecordedEvent { kind, ..message(&id, turn as u64) }
        } else {
            message(&id, turn as u64)
        };
        self.put_ms.insert(id.clone(), event.time_ms);
        ids.insert(id);
        build_record(&app_id(app), CLUSTER, &format!("c{channel}"), vec![event])
    }

    /// The time from the put of an event to its arrival that 99 of 100 events do not exceed, over endpoints that work
    /// throughout, in ms.
    fn latency_p99(&self, receiver: &ScriptedReceiver, ids: &BTreeSet<String>) -> u64 {
        let arrived = (SLOW + 1..COMPARED_ENDPOINTS).flat_map(|app| receiver.received(&app_id(app)));
        let counted = arrived.filter(|(_, id)| ids.contains(id));
        let mut latencies: Vec<u64> =
            counted.map(|(at, id)| at.saturating_sub(self.put_ms.get(&id).copied().unwrap_or_default())).collect();
        latencies.sort_unstable();
        latencies[latencies.len() * 99 / 100]
    }
}

/// Watches the reading of a dispatcher; ends with the longest time for which a shard was paused.
async fn watch_pauses(admin: std::net::SocketAddr, end: CancellationToken) -> (Duration, BTreeSet<String>) {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let (mut since, mut longest, mut reasons) = (None, Duration::ZERO, BTreeSet::new());
    while !end.is_cancelled() {
        let request = client.get(format!("http://{admin}/flow")).header("Authorization", "Bearer token");
        let text = request.send().await.expect("an answer").text().await.expect("a text");
        let report: FlowReport = serde_json::from_str(&text).expect("a flow");
        let shards = report.dispatcher.expect("the dispatcher's half").shards;
        let paused: Vec<String> = shards.into_values().filter_map(|shard| shard.paused).collect();
        if paused.is_empty() {
            since = None;
        } else {
            longest = longest.max(since.get_or_insert_with(Instant::now).elapsed());
            reasons.extend(paused);
        }
        tokio::time::sleep(PAUSE_LOOK_INTERVAL).await;
    }
    (longest, reasons)
}

/// `RECORDS_PER_SECOND=1000 WINDOWS=5 WINDOW_SECONDS=20 cargo test --release --test it
/// endpoints_that_work -- --nocapture` measures the load of a large shard; it prints the latencies and
/// their ratio.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_work_have_their_latency_beside_dead_ones_whose_last_states_arrive_on_return() {
    let rate = load_size("RECORDS_PER_SECOND", 250);
    let (windows, window) = (load_size("WINDOWS", 1), Duration::from_secs(load_size("WINDOW_SECONDS", 12) as u64));
    let bed = Bed::new(1).await;
    let receiver = ScriptedReceiver::default();
    let url = receiver.serve().await;
    let app = |n: usize| {
        let webhooks = vec![build_webhook(&format!("{url}/{}", app_id(n)))];
        App { webhooks, ..build_app(&app_id(n), &format!("key{n}"), "secret") }
    };
    write_registry(bed.apps.path(), (0..COMPARED_ENDPOINTS).map(app));
    let (running, _) = bed.dispatcher(&[LOOPBACK, ("REALTIME_RETRY_WINDOW_SECONDS", "30")]).await;
    let end = CancellationToken::new();
    let pauses = tokio::spawn(watch_pauses(running.admin, end.clone()));
    let mut load =
        Load { bed: &bed, records_per_second: rate, put: 0, last_counts: BTreeMap::new(), put_ms: BTreeMap::new() };
    load.run(Duration::from_secs(2)).await;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..windows {
        let ids = load.run(window).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        without.push(load.latency_p99(&receiver, &ids));
        HANGING.for_each(|n| receiver.set(&app_id(n), Behaviour::Hang));
        REFUSING.for_each(|n| receiver.set(&app_id(n), Behaviour::Status(500)));
        receiver.set(&app_id(SLOW), Behaviour::Slow(SLOW_DELAY));
        let ids = load.run(window).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        with.push(load.latency_p99(&receiver, &ids));
        (0..=SLOW).for_each(|n| receiver.set(&app_id(n), Behaviour::Status(200)));
        // They return, and their last states arrive.
        let expected: BTreeMap<usize, BTreeSet<String>> =
            load.last_counts.iter().map(|(app, channels)| (*app, channels.values().cloned().collect())).collect();
        let missing = async || {
            let missing = |(app, last): (&usize, &BTreeSet<String>)| {
                let got: BTreeSet<String> = receiver.received(&app_id(*app)).into_iter().map(|(_, id)| id).collect();
                (*app, last.difference(&got).cloned().collect::<Vec<_>>())
            };
            expected.iter().map(missing).filter(|(_, missing)| !missing.is_empty()).collect::<Vec<_>>()
        };
        eventually("the last state of every channel", missing, Vec::is_empty).await;
    }
    end.cancel();
    let (longest, reasons) = pauses.await.expect("watched");
    without.sort_unstable();
    with.sort_unstable();
    let (without, with) = (without[windows / 2], with[windows / 2]);
    let percent = with * 100 / without.max(1);
    println!(
        "p99 of endpoints that work: {without} ms, and {with} ms beside 10 dead ones and a slow one: {percent} %; \
         longest pause of the reading {longest:?} {reasons:?}; dropped {:?}",
        flow(&running).await.dropped
    );
    assert!(longest <= PAUSE_MAX, "reading paused for {longest:?}: {reasons:?}");
    assert!(with <= without.max(500) * 3, "beside dead endpoints {with} ms, without {without} ms");
}
