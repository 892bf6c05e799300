//! Reads a time range of a stream, shard by shard.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::dispatcher::reader::READ_INTERVAL;
use crate::dispatcher::retry::backoff_ms;
use crate::kinesis::{KinesisClient, KinesisError, KinesisErrorClass, ReadPosition, ReadRecord};
use crate::protocol::ShardId;

/// Records of one read.
const PAGE_RECORDS_MAX: i32 = 1_000;
/// Bounds the consecutive failed calls after which the scan ends with their error.
const FAILED_CALLS_MAX: u32 = 8;
/// Longest back-off after a failed call.
const CALL_BACKOFF_MAX_MS: u64 = 5_000;
/// Interval between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Passes each record that arrived in the time range, which ends at the newest record at the latest; `seen` returns whether
/// to go on.
///
/// # Errors
/// A call fails, after it was tried again if that can help.
pub async fn scan_stream(
    client: &KinesisClient,
    since_ms: u64,
    until_ms: u64,
    mut seen: impl FnMut(ReadRecord) -> bool,
    progress: &dyn Fn(&str),
) -> Result<(), KinesisError> {
    let shards = retry_call(async || client.list_shards().await).await?;
    let (mut records, mut reported) = (0_u64, Instant::now());
    for (at, shard) in shards.iter().enumerate() {
        let mut position = ReadPosition::AtTime(since_ms);
        let mut iterator = open_iterator(client, &shard.id, &position).await?;
        loop {
            let page = match retry_call(async || client.read(&iterator, PAGE_RECORDS_MAX).await).await {
                Err(error) if error.class == KinesisErrorClass::Expired => {
                    iterator = open_iterator(client, &shard.id, &position).await?;
                    continue;
                }
                page => page?,
            };
            let is_tip = page.records.is_empty() && page.behind_ms == 0;
            let mut is_past = false;
            for record in page.records {
                position = ReadPosition::After(record.sequence.clone());
                is_past = record.arrival_ms > until_ms;
                if is_past {
                    break;
                }
                records += 1;
                if !seen(record) {
                    return Ok(());
                }
            }
            if reported.elapsed() > PROGRESS_INTERVAL {
                reported = Instant::now();
                progress(&format!(
                    "read {records} records of {}, shard {} of {}",
                    client.stream(),
                    at + 1,
                    shards.len()
                ));
            }
            match page.next {
                Some(next) if !is_tip && !is_past => iterator = next,
                _ => break,
            }
            sleep(READ_INTERVAL).await;
        }
    }
    Ok(())
}

async fn open_iterator(
    client: &KinesisClient,
    shard: &ShardId,
    position: &ReadPosition,
) -> Result<String, KinesisError> {
    retry_call(async || client.request_iterator(shard, position).await).await
}

/// Repeats a call that another time may succeed.
async fn retry_call<T>(call: impl AsyncFn() -> Result<T, KinesisError>) -> Result<T, KinesisError> {
    let mut failures = 0;
    loop {
        match call().await {
            Err(error)
                if failures < FAILED_CALLS_MAX
                    && matches!(error.class, KinesisErrorClass::Throttled | KinesisErrorClass::Transient) =>
            {
                failures += 1;
                sleep(Duration::from_millis(backoff_ms(failures, CALL_BACKOFF_MAX_MS, rand::random()))).await;
            }
            result => return result,
        }
    }
}
