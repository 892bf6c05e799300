//! Reads one shard, page by page.
//!
//! In: the position to begin at. Out: pages, each read once the worker has taken all records of the one before, so that a
//! busy worker pauses the reading. Errors do not end the reader: it reports them and tries again.
//!
//! A shard that was read before is first read again from a minute before its checkpoint, and so are the parents that
//! precede it: these pages only teach the order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout};

use super::byte_budget::{BudgetShare, ByteBudget};
use super::events::ShardSlot;
use super::metrics::{DispatcherMetrics, ErrorSource};
use super::retry::backoff_ms;
use super::sequencer::REREAD_WINDOW_MS;
use crate::kinesis::{KinesisClient, KinesisError, KinesisErrorClass, ReadPosition, ReadRecord, is_before};
use crate::process::clock::now_ms;
use crate::protocol::ShardId;

/// Least interval between two reads: a shard allows five a second over all its readers.
pub const READ_INTERVAL: Duration = Duration::from_millis(250);
/// Bounds the records of one page. Of small ones, a shard gives more a second than it takes: 2 MiB, and 1,000 records
/// (Kinesis quotas).
pub const PAGE_RECORDS_MAX: usize = 1_500;
/// Bounds the records of one page that only teaches the order.
const HISTORY_PAGE_RECORDS_MAX: usize = 5_000;
/// Bounds the time for which records are read again: beyond it a take-over costs more than it saves.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of points within [`READ_INTERVAL`] at which shards are read.
const READ_PHASES: ShardSlot = 610;
/// Longest back-off after errors.
const READ_BACKOFF_MAX_MS: u64 = 5_000;

/// The kind of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Records whose events are to be delivered.
    New,
    /// Records of the shard before its checkpoint.
    History,
    /// Records of a parent, which another process finished.
    ParentHistory,
}

/// The result of one read.
#[derive(Debug)]
pub struct ShardRead {
    /// The kind of the page.
    pub kind: PageKind,
    /// The records, oldest first.
    pub records: Vec<ReadRecord>,
    /// Distance to the newest record of the shard, in ms.
    pub behind_ms: u64,
    /// Whether the page ends at the newest record. A full page does not, whatever the service says.
    pub is_tip: bool,
    /// Time at which the request was sent, in ms since 1970.
    pub asked_ms: u64,
    /// Whether the shard is closed and ends here.
    pub last: bool,
    /// The bytes of the records in the budget of the process.
    pub share: BudgetShare,
    /// The next page is read once this is dropped: two pages of every shard would take memory, and no event arrives sooner.
    pub turn: Option<OwnedSemaphorePermit>,
}

/// A reader of one shard.
pub struct ShardReader {
    /// The client of the stream.
    pub client: KinesisClient,
    /// The id of the shard.
    pub shard: ShardId,
    /// Number of the hold, which sets when within [`READ_INTERVAL`] the shard is read.
    pub slot: ShardSlot,
    /// The metrics in which errors are shown.
    pub metrics: Arc<DispatcherMetrics>,
    /// The bytes that the process may keep.
    pub budget: ByteBudget,
    /// Whether the reader waits for the budget.
    pub waits_for_budget: Arc<AtomicBool>,
    /// The checkpoint behind which the shard is read.
    pub checkpoint: Option<String>,
    /// Time in ms since 1970 from which a shard without a checkpoint is read; `None` begins at its oldest record.
    pub start_ms: Option<u64>,
    /// Parents whose last records precede the shard's.
    pub former_parents: Vec<ShardId>,
}

impl ShardReader {
    /// Reads until the shard ends or the receiver of `pages` is dropped.
    pub async fn run(self, pages: mpsc::Sender<ShardRead>) {
        let mut position = self.checkpoint.clone().map_or_else(|| self.start_position(), ReadPosition::After);
        if self.checkpoint.is_some() || !self.former_parents.is_empty() {
            let read = tokio::select! {
                () = pages.closed() => return,
                read = self.read_history(&pages) => read,
            };
            if let Err(error) = read {
                tracing::warn!(shard = %self.shard, %error, "records before the checkpoint not read");
            }
        }
        let source = ErrorSource::Shard(self.shard.clone());
        let (mut iterator, mut failures, mut last_bytes) = (None, 0, 0);
        let turns = Arc::new(Semaphore::new(1));
        tokio::select! {
            () = pages.closed() => return,
            () = sleep(read_phase(self.slot)) => {}
        }
        loop {
            let turn = tokio::select! {
                () = pages.closed() => return,
                turn = Arc::clone(&turns).acquire_owned() => turn.ok(),
            };
            let started = Instant::now();
            let read = tokio::select! {
                () = pages.closed() => return,
                read = self.read(&position, &mut iterator, last_bytes) => read,
            };
            let pause = match read {
                Ok(mut read) => {
                    failures = 0;
                    last_bytes = count_bytes(&read.records);
                    self.metrics.clear_error(&source);
                    if let Some(record) = read.records.last() {
                        position = ReadPosition::After(record.sequence.clone());
                    }
                    let last = read.last;
                    read.turn = turn;
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

    /// The position of a shard that was never read. Kinesis refuses a time in the future (API reference, `GetShardIterator`).
    fn start_position(&self) -> ReadPosition {
        self.start_ms.map_or(ReadPosition::TrimHorizon, |start_ms| ReadPosition::AtTime(start_ms.min(now_ms())))
    }

    async fn read(
        &self,
        position: &ReadPosition,
        iterator: &mut Option<String>,
        last_bytes: usize,
    ) -> Result<ShardRead, KinesisError> {
        let at = match iterator.take() {
            Some(at) => at,
            None => self.client.request_iterator(&self.shard, position).await?,
        };
        let (read, next) = self.read_page(&at, PAGE_RECORDS_MAX, PageKind::New, last_bytes).await?;
        *iterator = next;
        Ok(read)
    }

    async fn read_page(
        &self,
        iterator: &str,
        limit: usize,
        kind: PageKind,
        last_bytes: usize,
    ) -> Result<(ShardRead, Option<String>), KinesisError> {
        self.waits_for_budget.store(true, Ordering::Relaxed);
        let mut share = self.budget.reserve_page(last_bytes).await;
        self.waits_for_budget.store(false, Ordering::Relaxed);
        let asked_ms = now_ms();
        let page = self.client.read(iterator, i32::try_from(limit).unwrap_or(i32::MAX)).await?;
        let is_tip = page.behind_ms == 0 && page.records.len() < limit;
        share.resize(count_bytes(&page.records));
        let (records, behind_ms, last) = (page.records, page.behind_ms, page.next.is_none());
        Ok((ShardRead { kind, records, behind_ms, is_tip, asked_ms, last, share, turn: None }, page.next))
    }

    /// Reads the records of the window before the checkpoint, or before the first record of a shard that has none. Waits
    /// while Kinesis is unavailable: without the order of these records, half of an absence could be delivered.
    async fn read_history(&self, pages: &mpsc::Sender<ShardRead>) -> Result<(), KinesisError> {
        let position = self.checkpoint.clone().map_or_else(|| self.start_position(), ReadPosition::At);
        let iterator = self.retry_call(|| self.client.request_iterator(&self.shard, &position)).await?;
        let first = self.retry_call(|| self.client.read(&iterator, 1)).await?.records.into_iter().next();
        let begin_ms = first.map_or_else(now_ms, |record| record.arrival_ms).saturating_sub(REREAD_WINDOW_MS);
        let replayed = timeout(HISTORY_TIMEOUT, self.replay_all(pages, begin_ms)).await;
        replayed.unwrap_or_else(|_| {
            tracing::warn!(shard = %self.shard, "records before the checkpoint not read in time");
            Ok(())
        })
    }

    async fn replay_all(&self, pages: &mpsc::Sender<ShardRead>, begin_ms: u64) -> Result<(), KinesisError> {
        for parent in &self.former_parents {
            if let Err(error) = self.replay(pages, parent, begin_ms, PageKind::ParentHistory).await {
                // Its records may be trimmed by now.
                tracing::info!(shard = %self.shard, %parent, %error, "records of a parent not read again");
            }
        }
        if self.checkpoint.is_some() {
            sleep(READ_INTERVAL).await;
            self.replay(pages, &self.shard, begin_ms, PageKind::History).await?;
            sleep(READ_INTERVAL).await;
        }
        Ok(())
    }

    /// Repeats a call until Kinesis answers, or refuses it for a reason that another attempt does not change.
    async fn retry_call<T, F>(&self, call: impl Fn() -> F) -> Result<T, KinesisError>
    where
        F: Future<Output = Result<T, KinesisError>>,
    {
        let mut failures = 0;
        loop {
            let error = match call().await {
                Err(error) if is_passing(&error) => error,
                result => return result,
            };
            failures += 1;
            tracing::warn!(shard = %self.shard, %error, "shard read failed: trying again");
            self.metrics.set_error(ErrorSource::Shard(self.shard.clone()), error.to_string());
            let wait = backoff_ms(failures, READ_BACKOFF_MAX_MS, rand::random());
            sleep(READ_INTERVAL.max(Duration::from_millis(wait))).await;
        }
    }

    /// Reads a shard from a time: a parent to its end, the shard itself to its checkpoint.
    async fn replay(
        &self,
        pages: &mpsc::Sender<ShardRead>,
        shard: &ShardId,
        begin_ms: u64,
        kind: PageKind,
    ) -> Result<(), KinesisError> {
        let checkpoint = self.checkpoint.as_deref().filter(|_| kind == PageKind::History);
        let position = ReadPosition::AtTime(begin_ms);
        let mut next = Some(self.retry_call(|| self.client.request_iterator(shard, &position)).await?);
        let mut last_bytes = 0;
        while let Some(iterator) = next {
            let read = || self.read_page(&iterator, HISTORY_PAGE_RECORDS_MAX, kind, last_bytes);
            let (mut read, following) = self.retry_call(read).await?;
            last_bytes = count_bytes(&read.records);
            let newest = read.records.last().map(|record| record.sequence.clone());
            let is_reached = checkpoint.is_some_and(|end| newest.is_some_and(|newest| !is_before(&newest, end)));
            read.records.retain(|record| checkpoint.is_none_or(|end| !is_before(end, &record.sequence)));
            let is_end = read.last || read.is_tip || is_reached;
            // The end of the history is not that of the shard.
            read.last = false;
            if pages.send(read).await.is_err() || is_end {
                return Ok(());
            }
            next = following;
            sleep(READ_INTERVAL).await;
        }
        Ok(())
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
                self.metrics.count_trimmed();
                *position = ReadPosition::TrimHorizon;
            }
            _ => tracing::warn!(shard = %self.shard, %error, "shard read failed: trying again"),
        }
        self.metrics.set_error(source.clone(), error.to_string());
    }
}

/// Delay of a shard's first read, so that the shards of a process are not all read at once: their pages would take memory
/// and CPU in bursts. Multiples of the golden ratio spread any number of slots evenly.
fn read_phase(slot: ShardSlot) -> Duration {
    let steps = u32::try_from(slot % READ_PHASES).unwrap_or(0);
    READ_INTERVAL.mul_f64((f64::from(steps) * 0.618_034).fract())
}

fn is_passing(error: &KinesisError) -> bool {
    matches!(error.class, KinesisErrorClass::Throttled | KinesisErrorClass::Busy | KinesisErrorClass::Transient)
}

fn count_bytes(records: &[ReadRecord]) -> usize {
    records.iter().map(|record| record.data.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reads_of_any_number_of_shards_are_spread_over_the_interval() {
        for count in [2, 5, 16, 100] {
            for first in [1, 7, 600] {
                let mut phases: Vec<Duration> = (first..first + count).map(read_phase).collect();
                phases.sort_unstable();
                let around = (phases[0] + READ_INTERVAL).abs_diff(phases[phases.len() - 1]);
                let longest = phases.windows(2).map(|pair| pair[1].abs_diff(pair[0])).chain([around]).max();
                let even = READ_INTERVAL / u32::try_from(count).expect("a small number");
                assert!(longest < Some(even * 2), "{count} shards from slot {first}: {longest:?} without a read");
            }
        }
    }
}
