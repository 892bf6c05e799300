//! Reads one shard, page by page.
//!
//! In: the position to begin at. Out: pages into a queue of one, so that a busy worker pauses the reading. Errors do
//! not end the reader: it reports them and tries again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::metrics::{DispatcherMetrics, ErrorSource};
use super::retry::backoff_ms;
use crate::kinesis::{KinesisClient, KinesisError, KinesisErrorClass, ReadPosition, ReadRecord};
use crate::process::clock::now_ms;
use crate::protocol::ShardId;

/// Least interval between two reads: a shard allows five a second over all its readers.
const READ_INTERVAL: Duration = Duration::from_millis(250);
/// Bounds the records of one page.
const PAGE_RECORDS_MAX: i32 = 1_000;
/// Longest back-off after errors.
const READ_BACKOFF_MAX_MS: u64 = 5_000;

/// The result of one read.
#[derive(Debug)]
pub struct ShardRead {
    /// The records, oldest first.
    pub records: Vec<ReadRecord>,
    /// Distance to the newest record of the shard, in ms.
    pub behind_ms: u64,
    /// Time at which the request was sent, in ms since 1970.
    pub asked_ms: u64,
    /// Whether the shard is closed and ends here.
    pub last: bool,
}

/// A reader of one shard.
pub struct ShardReader {
    /// The client of the stream.
    pub client: KinesisClient,
    /// The id of the shard.
    pub shard: ShardId,
    /// The metrics in which errors are shown.
    pub metrics: Arc<DispatcherMetrics>,
}

impl ShardReader {
    /// Reads from a position until the shard ends or the receiver of `pages` is dropped.
    pub async fn run(self, mut position: ReadPosition, pages: mpsc::Sender<ShardRead>) {
        let source = ErrorSource::Shard(self.shard.clone());
        let (mut iterator, mut failures) = (None, 0);
        loop {
            let started = Instant::now();
            let read = tokio::select! {
                () = pages.closed() => return,
                read = self.read(&position, &mut iterator) => read,
            };
            let pause = match read {
                Ok(read) => {
                    failures = 0;
                    self.metrics.clear_error(&source);
                    if let Some(record) = read.records.last() {
                        position = ReadPosition::After(record.sequence.clone());
                    }
                    let last = read.last;
                    if pages.send(read).await.is_err() || last {
                        return;
                    }
                    READ_INTERVAL
                }
                Err(error) => {
                    iterator = None;
                    failures += 1;
                    self.report_error(&error, &mut position, &source);
                    let wait = backoff_ms(failures, READ_BACKOFF_MAX_MS, rand::random());
                    READ_INTERVAL.max(Duration::from_millis(wait))
                }
            };
            tokio::select! {
                () = pages.closed() => return,
                () = tokio::time::sleep_until(started + pause) => {}
            }
        }
    }

    async fn read(&self, position: &ReadPosition, iterator: &mut Option<String>) -> Result<ShardRead, KinesisError> {
        let at = match iterator.take() {
            Some(at) => at,
            None => self.client.request_iterator(&self.shard, position).await?,
        };
        let asked_ms = now_ms();
        let page = self.client.read(&at, PAGE_RECORDS_MAX).await?;
        let last = page.next.is_none();
        *iterator = page.next;
        Ok(ShardRead { records: page.records, behind_ms: page.behind_ms, asked_ms, last })
    }

    fn report_error(&self, error: &KinesisError, position: &mut ReadPosition, source: &ErrorSource) {
        match error.class {
            // The reader paused for longer than an iterator lives; a new one begins at the same position.
            KinesisErrorClass::Expired => return,
            // The stream has trimmed that position: reading resumes at the oldest record that is left.
            KinesisErrorClass::Invalid
                if matches!(position, ReadPosition::After(_)) && error.operation == "GetShardIterator" =>
            {
                tracing::error!(shard = %self.shard, %error, "records may be lost: position trimmed from the stream");
                *position = ReadPosition::TrimHorizon;
            }
            _ => tracing::warn!(shard = %self.shard, %error, "shard read failed: trying again"),
        }
        self.metrics.set_error(source.clone(), error.to_string());
    }
}
