//! A pause of reading is visible: the lag grows, and log, `/flow` and metrics name the reason.

use super::scripted_receiver::{Behaviour, ScriptedReceiver};
use super::*;
use crate::waiting::eventually_within;

/// Longest that thousands of events take to a receiver in an unoptimised build on a busy machine.
const DELIVERY_TIMEOUT: Duration = Duration::from_mins(1);

/// Waits until the shard of this dispatcher has been paused for this reason, and its distance grows.
async fn wait_for_pause(running: &RunningDispatcher, reason: &str) -> DispatcherFlow {
    let is_paused = |flow: &DispatcherFlow| {
        flow.shards.values().any(|shard| shard.paused.as_deref() == Some(reason) && shard.behind_ms > 1_500)
    };
    let found = eventually(&format!("a pause: {reason}"), async || flow(running).await, is_paused).await;
    let metrics = get(running, "/metrics").await;
    let line = format!("realtime_dispatcher_paused_shards{{reason=\"{reason}\"}} 1");
    assert!(metrics.contains(&line), "{line} in {metrics}");
    found
}

async fn wait_for_reading(running: &RunningDispatcher) {
    let reads = |flow: &DispatcherFlow| {
        flow.shards.values().all(|shard| shard.paused.is_none() && shard.behind_ms < 1_000) && flow.last_error.is_none()
    };
    eventually("reading without an error", async || flow(running).await, reads).await;
}

#[tokio::test]
async fn a_shard_full_of_events_for_a_slow_endpoint_says_so_until_they_are_delivered() {
    let bed = Bed::new(1).await;
    let receiver = ScriptedReceiver::default();
    // Well below the time of an attempt: one that is late on a busy machine would be retried after a back-off.
    receiver.set("hook", Behaviour::Slow(Duration::from_millis(2_500)));
    bed.write_apps(&format!("{}/hook", receiver.serve().await));
    let (running, _) = bed.dispatcher(&[LOOPBACK]).await;
    for n in 0..130 {
        let events = (0..100).map(|m| message(&format!("{n}-{m}"), n)).collect();
        bed.put(CLUSTER, &format!("c{n}"), events).await;
    }
    let paused = wait_for_pause(&running, "full").await;
    assert!(paused.unfinished >= 10_000, "{paused:?}");
    assert!(paused.last_error.is_some_and(|error| error.contains("not read (full)")));
    receiver.set("hook", Behaviour::Status(200));
    eventually_within(DELIVERY_TIMEOUT, "13,000 events", async || match receiver.received("hook").len() {
        13_000 => Ok(()),
        arrived => Err(arrived),
    })
    .await;
    wait_for_reading(&running).await;
}

#[tokio::test]
async fn a_record_of_a_newer_release_pauses_its_shard_and_says_so() {
    let bed = Bed::new(1).await;
    let (running, _) = bed.dispatcher(&[LOOPBACK]).await;
    let newer = PutEntry { partition_key: "1001/a".into(), data: Bytes::from_static(br#"{"v":2}"#) };
    bed.kinesis.put_records(&[newer]).await.expect("put");
    let paused = wait_for_pause(&running, "record_too_new").await;
    assert!(paused.last_error.is_some_and(|error| error.contains("RecordTooNew")));
}

#[tokio::test]
async fn a_stream_that_refuses_reads_pauses_the_shard_and_reading_goes_on_afterwards() {
    let (bed, faults) = Bed::with_faults(1).await;
    let (running, _) = bed.dispatcher(&[LOOPBACK]).await;
    bed.put(CLUSTER, "a", vec![message("before", 0)]).await;
    bed.receiver.receives("an event", |ids| ids == ["before"]).await;
    faults.set(Some(CallFault::ServiceFailure));
    let paused = wait_for_pause(&running, "read_failed").await;
    assert!(paused.last_error.is_some_and(|error| error.contains("InternalFailure")));
    faults.set(None);
    wait_for_reading(&running).await;
}
