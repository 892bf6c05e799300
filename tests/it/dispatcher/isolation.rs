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
