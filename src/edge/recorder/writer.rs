//! One lane: one `PutRecords` at a time, so that nothing can overtake within a key.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::queue::{Limits, Taken, backoff};
use super::{Shared, lock};
use crate::kinesis::{Class, Client, Entry};
use crate::protocol::record::{Order, Origin, Record, VERSION, partition_key};

/// Longest that a lane sleeps without looking again.
const IDLE: Duration = Duration::from_mins(1);

/// What a lane needs.
pub struct Lane {
    number: usize,
    client: Client,
    origin: Origin,
    shared: Arc<Shared>,
    closing: CancellationToken,
    /// Calls in a row that failed as a whole.
    failures: u32,
}

impl Lane {
    /// A lane that has not begun.
    pub fn new(number: usize, client: Client, origin: Origin, shared: Arc<Shared>, closing: CancellationToken) -> Self {
        Self { number, client, origin, shared, closing, failures: 0 }
    }

    /// Writes until `closing` is cancelled and nothing is left.
    pub async fn run(mut self) {
        loop {
            let now = self.shared.now();
            let (batch, due) = {
                let mut queue = lock(&self.shared.queue);
                let batch = queue.take(self.number, now);
                (batch, queue.next_due(self.number))
            };
            if !batch.is_empty() {
                self.put(batch).await;
                continue;
            }
            if due.is_none() && self.closing.is_cancelled() {
                return;
            }
            let wait = due.map_or(IDLE, |due| Duration::from_millis(due.saturating_sub(now).max(1)));
            tokio::select! {
                () = self.shared.wake[self.number].notified() => {}
                () = self.closing.cancelled(), if due.is_none() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn put(&mut self, batch: Vec<Taken>) {
        let entries: Vec<Entry> = batch.iter().map(|taken| self.entry(taken)).collect();
        let answer = self.client.put(&entries).await;
        let now = self.shared.now();
        let mut acknowledged = 0;
        match answer {
            Ok(results) => {
                self.failures = 0;
                let mut refused: Option<(usize, String)> = None;
                {
                    let mut queue = lock(&self.shared.queue);
                    for (taken, result) in batch.iter().zip(results) {
                        acknowledged += queue.settle(&taken.subject, result.is_ok(), now, rand::random());
                        if result.is_ok() {
                            self.safe(taken);
                        }
                        if let Err(refusal) = result {
                            let count = refused.as_ref().map_or(0, |(count, _)| *count);
                            refused = Some((count + 1, format!("{}: {}", refusal.code, refusal.message)));
                        }
                    }
                }
                if let Some((count, error)) = &refused {
                    self.shared.metrics.records_refused.inc_by(u64::try_from(*count).unwrap_or(u64::MAX));
                    tracing::debug!(lane = self.number, count, %error, "the stream refused records; they are sent again");
                }
                *lock(&self.shared.last_error) = refused.map(|(_, error)| error);
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures.is_power_of_two() {
                    tracing::warn!(lane = self.number, failures = self.failures, %error, "the stream takes nothing; events wait");
                }
                self.shared.metrics.records_refused.inc_by(u64::try_from(batch.len()).unwrap_or(u64::MAX));
                *lock(&self.shared.last_error) = Some(told(error.class, &error.to_string()));
                let mut queue = lock(&self.shared.queue);
                for taken in &batch {
                    queue.settle(&taken.subject, false, now, rand::random());
                }
            }
        }
        self.shared.metrics.recorder_acknowledged.inc_by(u64::try_from(acknowledged).unwrap_or(u64::MAX));
        self.pause().await;
    }

    /// Tells the bus what need not be told by another any more.
    fn safe(&self, taken: &Taken) {
        let orders: Vec<Order> = taken.events.iter().filter_map(|event| event.order).collect();
        if !orders.is_empty() {
            self.shared.bus.recorded(&taken.subject, &orders);
        }
    }

    /// After a call that failed as a whole the lane rests, or its other keys would knock on the same closed door.
    async fn pause(&self) {
        if self.failures > 0 {
            let limits = Limits::DEFAULT;
            let wait = backoff(limits.backoff_ms, limits.max_backoff_ms, self.failures, rand::random());
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    fn entry(&self, taken: &Taken) -> Entry {
        let partition_key = partition_key(&taken.subject.app, &taken.subject.channel);
        let record = Record {
            v: VERSION,
            app: taken.subject.app.clone(),
            channel: taken.subject.channel.clone(),
            edge: self.origin.clone(),
            events: taken.events.clone(),
        };
        // Values of this type always serialise; an empty record would be dead-lettered, not lost in silence.
        Entry { partition_key, data: Bytes::from(record.to_bytes().unwrap_or_default()) }
    }
}

fn told(class: Class, error: &str) -> String {
    match class {
        Class::Denied => format!("{error} (denied: correct the identity's policy)"),
        Class::NotFound => format!("{error} (no such stream in this region and account)"),
        _ => error.to_owned(),
    }
}
