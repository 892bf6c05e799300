//! A lane of the recorder: one `PutRecords` call at a time, so that nothing overtakes within a key.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::edge::recorder::queue::{OutgoingRecord, QueueLimits, compute_backoff};
use crate::edge::recorder::{RecorderCore, lock_unpoisoned};
use crate::kinesis::{KinesisClient, PutEntry};
use crate::protocol::record::{EventOrder, RECORD_VERSION, RecordOrigin, StreamRecord, partition_key};

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
        Self { number, client, origin, shared, closing, failures: 0 }
    }

    /// Writes until `closing` is cancelled and the queue is empty.
    pub async fn run(mut self) {
        loop {
            let now = self.shared.elapsed_ms();
            let (batch, due) = {
                let mut queue = lock_unpoisoned(&self.shared.queue);
                let batch = queue.take_batch(self.number, now);
                (batch, queue.next_due(self.number))
            };
            if !batch.is_empty() {
                self.put_batch(batch).await;
                continue;
            }
            if due.is_none() && self.closing.is_cancelled() {
                return;
            }
            let wait = due.map_or(IDLE_CHECK_INTERVAL, |due| Duration::from_millis(due.saturating_sub(now).max(1)));
            tokio::select! {
                () = self.shared.wake[self.number].notified() => {}
                () = self.closing.cancelled(), if due.is_none() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn put_batch(&mut self, batch: Vec<OutgoingRecord>) {
        let entries: Vec<PutEntry> = batch.iter().map(|taken| self.build_entry(taken)).collect();
        let answer = self.client.put_records(&entries).await;
        let now = self.shared.elapsed_ms();
        let mut acknowledged = 0;
        match answer {
            Ok(results) => {
                self.failures = 0;
                let mut refused: Option<(usize, String)> = None;
                {
                    let mut queue = lock_unpoisoned(&self.shared.queue);
                    for (taken, result) in batch.iter().zip(results) {
                        acknowledged += queue.complete_record(&taken.subject, result.is_ok(), now, rand::random());
                        if result.is_ok() {
                            self.acknowledge_transitions(taken);
                        }
                        if let Err(refusal) = result {
                            let count = refused.as_ref().map_or(0, |(count, _)| *count);
                            refused = Some((count + 1, format!("{}: {}", refusal.code, refusal.message)));
                        }
                    }
                }
                if let Some((count, error)) = &refused {
                    self.shared.metrics.recorder_records_refused.inc_by(u64::try_from(*count).unwrap_or(u64::MAX));
                    tracing::debug!(lane = self.number, count, %error, "stream refused records: retrying");
                }
                *lock_unpoisoned(&self.shared.last_error) = refused.map(|(_, error)| error);
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures.is_power_of_two() {
                    tracing::warn!(lane = self.number, failures = self.failures, %error, "stream unavailable: events stay queued");
                }
                self.shared.metrics.recorder_records_refused.inc_by(u64::try_from(batch.len()).unwrap_or(u64::MAX));
                *lock_unpoisoned(&self.shared.last_error) = Some(error.to_string());
                let mut queue = lock_unpoisoned(&self.shared.queue);
                for taken in &batch {
                    queue.complete_record(&taken.subject, false, now, rand::random());
                }
            }
        }
        self.shared.metrics.recorder_events_acknowledged.inc_by(u64::try_from(acknowledged).unwrap_or(u64::MAX));
        self.back_off().await;
    }

    /// Acknowledges recorded transitions, so that no other process records them again.
    fn acknowledge_transitions(&self, taken: &OutgoingRecord) {
        let orders: Vec<EventOrder> = taken.events.iter().filter_map(|event| event.order).collect();
        if !orders.is_empty() {
            self.shared.bus.acknowledge_recorded(&taken.subject, &orders);
        }
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
        let partition_key = partition_key(&taken.subject.app, &taken.subject.channel);
        let record = StreamRecord {
            v: RECORD_VERSION,
            app: taken.subject.app.clone(),
            channel: taken.subject.channel.clone(),
            edge: self.origin.clone(),
            events: taken.events.clone(),
        };
        // Values of this type always serialise; an empty record would be dead-lettered, not lost in silence.
        PutEntry { partition_key, data: Bytes::from(record.to_bytes().unwrap_or_default()) }
    }
}
