//! The position at which a shard without a checkpoint is read.

use super::*;

#[tokio::test]
async fn a_shard_without_a_checkpoint_is_read_from_the_start_and_one_with_a_checkpoint_goes_on() {
    let bed = Bed::new(1).await;
    bed.put(CLUSTER, "a", vec![message("before", 1)]).await;
    let arrived_ms = {
        let shard = bed.kinesis.list_shards().await.expect("shards")[0].id.clone();
        let at = bed.kinesis.request_iterator(&shard, &ReadPosition::TrimHorizon).await.expect("an iterator");
        bed.kinesis.read(&at, 10).await.expect("a page").records[0].arrival_ms
    };
    // Kinesis compares whole milliseconds, and an emulator may compare whole seconds.
    let start_ms = arrived_ms + 1_001;
    eventually("the start is over", async || now_ms(), |now| *now > start_ms + 1_000).await;
    bed.put(CLUSTER, "a", vec![message("after", 2)]).await;
    let start = start_ms.to_string();
    let (running, stop) = bed.dispatcher(&[LOOPBACK, ("REALTIME_STREAM_START_MS", &start)]).await;
    bed.receiver.receives("what came after the start", |ids| !ids.is_empty()).await;
    assert_eq!(bed.receiver.ids(), ["after"]);
    eventually("all is done", async || flow(&running).await, |flow| flow.unfinished == 0).await;
    stop.cancel();
    within(Duration::from_secs(15), "the end of the dispatcher", running.wait_until_stopped()).await;

    bed.put(CLUSTER, "a", vec![message("meanwhile", 3)]).await;
    let later = (now_ms() + 60_000).to_string();
    let (_running, _) = bed.dispatcher(&[LOOPBACK, ("REALTIME_STREAM_START_MS", &later)]).await;
    bed.receiver.receives("what came meanwhile", |ids| ids.iter().any(|id| id == "meanwhile")).await;
}

#[tokio::test]
async fn a_start_in_the_future_is_the_present() {
    let bed = Bed::new(1).await;
    let later = (now_ms() + 3_600_000).to_string();
    let (running, _) = bed.dispatcher(&[LOOPBACK, ("REALTIME_STREAM_START_MS", &later)]).await;
    let is_read = |flow: &DispatcherFlow| flow.shards.values().any(|shard| shard.read_at_ms > 0);
    eventually("a shard is read", async || flow(&running).await, is_read).await;
    bed.put(CLUSTER, "a", vec![message("now", 1)]).await;
    bed.receiver.receives("an event of now", |ids| ids == ["now"]).await;
}
