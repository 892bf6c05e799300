//! The lower bounds: the same client of the SDK, and the same bytes in batches of the same size, with nothing around them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinSet;

use super::super::error::BenchError;
use super::super::http::HttpConnection;
use super::super::machine::as_f64;
use super::stream_double::{StreamDouble, stream_error};
use crate::dispatcher::{BATCH_EVENTS_MAX, PAGE_RECORDS_MAX};
use crate::edge::{LANE_COUNT, QueueLimits};
use crate::kinesis::{KinesisClient, PutEntry, ReadPosition};
use crate::protocol::ShardId;

/// Puts all records as fast as the stream takes them, and returns how many a second.
pub async fn measure_puts(double: &StreamDouble, entries: Vec<PutEntry>) -> Result<f64, BenchError> {
    let (count, client) = (entries.len(), double.connect().await);
    let entries = Arc::new(entries);
    let began = Instant::now();
    let mut loops = JoinSet::new();
    for first in 0..LANE_COUNT {
        let (entries, client) = (entries.clone(), client.clone());
        loops.spawn(async move {
            for batch in entries.chunks(QueueLimits::DEFAULT.batch_records).skip(first).step_by(LANE_COUNT) {
                client.put_records(batch).await.map_err(|error| stream_error(&error))?;
            }
            Ok::<_, BenchError>(())
        });
    }
    join_all(loops).await?;
    Ok(as_f64(count as u64) / began.elapsed().as_secs_f64())
}

/// Reads all records of the stream, posts their bytes, and returns how many a second.
pub async fn measure_reads(double: &StreamDouble, receiver: SocketAddr) -> Result<f64, BenchError> {
    let client = double.connect().await;
    let shards = client.list_shards().await.map_err(|error| stream_error(&error))?;
    let began = Instant::now();
    let mut loops = JoinSet::new();
    for shard in shards {
        loops.spawn(read_and_post(client.clone(), shard.id, receiver));
    }
    let read: u64 = join_all(loops).await?.into_iter().sum();
    Ok(as_f64(read) / began.elapsed().as_secs_f64())
}

async fn read_and_post(client: KinesisClient, shard: ShardId, receiver: SocketAddr) -> Result<u64, BenchError> {
    let post_error = BenchError::from_io("a body of the bare loop cannot be posted");
    let mut connection = HttpConnection::open(receiver).await.map_err(post_error)?;
    let at = client.request_iterator(&shard, &ReadPosition::TrimHorizon).await.map_err(|error| stream_error(&error))?;
    let limit = i32::try_from(PAGE_RECORDS_MAX).unwrap_or(i32::MAX);
    let (mut next, mut read) = (Some(at), 0);
    while let Some(at) = next {
        let page = client.read(&at, limit).await.map_err(|error| stream_error(&error))?;
        if page.records.is_empty() {
            break;
        }
        for records in page.records.chunks(BATCH_EVENTS_MAX) {
            let body: Vec<u8> = records.iter().flat_map(|record| record.data.iter().copied()).collect();
            let post_error = BenchError::from_io("a body of the bare loop cannot be posted");
            connection.fetch_response("POST", "/bare", &body).await.map_err(post_error)?;
        }
        read += page.records.len() as u64;
        next = page.next;
    }
    Ok(read)
}

async fn join_all<T: 'static>(mut loops: JoinSet<Result<T, BenchError>>) -> Result<Vec<T>, BenchError> {
    let mut results = Vec::with_capacity(loops.len());
    while let Some(ended) = loops.join_next().await {
        let broken = |error: tokio::task::JoinError| BenchError::Server {
            server: "the bare loop",
            step: "its task",
            detail: error.to_string(),
        };
        results.push(ended.map_err(broken)??);
    }
    Ok(results)
}
