//! A lane of the recorder: one `PutRecords` call at a time, so that nothing overtakes within a key.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::RecorderCore;
use super::lane::OutgoingRecord;
use super::limits::{QueueLimits, compute_backoff};
use crate::bus::{ChannelKey, Receipt};
use crate::kinesis::{KinesisClient, PutEntry};
use crate::process::locks::lock_unpoisoned;
use crate::protocol::record::{RecordOrigin, encode_record, partition_key};

/// Longest sleep of a lane without checking the queue.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_mins(1);

/// The writer of one lane.
pub struct LaneWriter {
    number: usize,
    client: KinesisClient,
    origin: RecordOrigin,
    shared: Arc<RecorderCore>,
    closing: CancellationToken,
    /// Consecutive calls that failed as a whole.
    failures: u32,
    /// Consecutive calls of which the stream refused records.
    refusals: u32,
}

impl LaneWriter {
    /// Creates a lane that has not started.
    pub fn new(
        number: usize,
        client: KinesisClient,
        origin: RecordOrigin,
        shared: Arc<RecorderCore>,
        closing: CancellationToken,
    ) -> Self {
        Self { number, client, origin, shared, closing, failures: 0, refusals: 0 }
    }

    /// Writes until `closing` is cancelled and the queue is empty.
    pub async fn run(mut self) {
        loop {
            let now = self.shared.clock.elapsed_ms();
            let queue = &self.shared.queue;
            let batch =
                if self.failures > 0 { queue.take_trial(self.number, now) } else { queue.take_batch(self.number, now) };
            if !batch.is_empty() {
                self.put_batch(batch).await;
                continue;
            }
            let due = self.shared.queue.next_due(self.number);
            if due.is_none() && self.closing.is_cancelled() {
                return;
            }
            let wait = due.map_or(IDLE_CHECK_INTERVAL, |due| Duration::from_millis(due.saturating_sub(now).max(1)));
            tokio::select! {
                () = self.shared.lanes[self.number].wake.notified() => {}
                () = self.closing.cancelled(), if due.is_none() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn put_batch(&mut self, batch: Vec<OutgoingRecord>) {
        let entries: Vec<PutEntry> = batch.iter().map(|taken| self.build_entry(taken)).collect();
        let began = Instant::now();
        let answer = self.client.put_records(&entries).await;
        self.shared.metrics.recorder_put_duration_seconds.observe(began.elapsed());
        let (mut refused, mut last_refusal) = (0, None);
        match answer {
            Ok(results) => {
                self.failures = 0;
                for (taken, result) in batch.iter().zip(results) {
                    self.complete_record(taken, result.is_ok());
                    if let Err(refusal) = result {
                        refused += 1;
                        last_refusal = Some(format!("{}: {}", refusal.code, refusal.message));
                    }
                }
                self.refusals = if refused > 0 { self.refusals.saturating_add(1) } else { 0 };
                if self.refusals.is_power_of_two()
                    && let Some(error) = &last_refusal
                {
                    let (lane, calls) = (self.number, self.refusals);
                    tracing::warn!(lane, calls, records = refused, %error, "stream refused records: retrying");
                }
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures.is_power_of_two() {
                    tracing::warn!(lane = self.number, failures = self.failures, %error, "stream unavailable: events stay queued");
                }
                refused = batch.len();
                last_refusal = Some(error.to_string());
                for taken in &batch {
                    self.complete_record(taken, false);
                }
            }
        }
        self.shared.metrics.recorder_records_refused.inc_by(u64::try_from(refused).unwrap_or(u64::MAX));
        *lock_unpoisoned(&self.shared.lanes[self.number].last_error) = last_refusal;
        self.back_off().await;
    }

    /// Applies the stream's answer to a record. Acknowledges what is recorded, so that no other process records it again.
    fn complete_record(&self, taken: &OutgoingRecord, is_recorded: bool) {
        let now = self.shared.clock.elapsed_ms();
        let completed =
            self.shared.queue.complete_record(self.number, &taken.subject, is_recorded, now, rand::random());
        let count = u64::try_from(completed.events).unwrap_or(u64::MAX);
        self.shared.metrics.recorder_events_acknowledged.inc_by(count);
        completed.receipts.into_iter().for_each(Receipt::acknowledge);
    }

    /// Backs off after a call that failed as a whole: the lane's other keys would fail in the same way.
    async fn back_off(&self) {
        if self.failures > 0 {
            let limits = QueueLimits::DEFAULT;
            let wait = compute_backoff(limits.backoff_ms, limits.max_backoff_ms, self.failures, rand::random());
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    fn build_entry(&self, taken: &OutgoingRecord) -> PutEntry {
        let ChannelKey { app, channel } = &*taken.subject;
        let data = encode_record(app, channel, &self.origin, &taken.events);
        // Values of this type always serialise; an empty record would be dead-lettered, not lost in silence.
        PutEntry { partition_key: partition_key(app, channel), data: Bytes::from(data.unwrap_or_default()) }
    }
}
