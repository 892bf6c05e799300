//! The one task of a process that writes letters.
//!
//! In: letters of all shards. Out: their acknowledgements. The queue has no bound of its own: it holds at most the
//! unfinished events of the held shards, and their bounds pause the reading.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::queue::{LetterQueue, QueuedLetter};
use crate::dispatcher::metrics::{DispatcherMetrics, ErrorSource};
use crate::kinesis::{KinesisClient, PutRejection};
use crate::process::clock::{MonotonicClock, now_ms};

/// The queue of the task that writes letters.
pub type LetterSender = mpsc::UnboundedSender<QueuedLetter>;

/// Writes letters to the dead-letter stream.
struct LetterWriter {
    client: KinesisClient,
    cluster: String,
    metrics: Arc<DispatcherMetrics>,
    queue: LetterQueue,
    clock: MonotonicClock,
    /// Whether the last put failed as a whole.
    is_unavailable: bool,
}

/// Starts the task, which ends with the last sender.
#[must_use]
pub fn start_writer(client: KinesisClient, cluster: String, metrics: Arc<DispatcherMetrics>) -> LetterSender {
    metrics.open_dead_letters(client.stream());
    let (sender, letters) = mpsc::unbounded_channel();
    let queue = LetterQueue::default();
    let clock = MonotonicClock::start();
    let writer = LetterWriter { client, cluster, metrics, queue, clock, is_unavailable: false };
    tokio::spawn(writer.run(letters));
    sender
}

impl LetterWriter {
    async fn run(mut self, mut letters: mpsc::UnboundedReceiver<QueuedLetter>) {
        loop {
            let due_in_ms = self.queue.due_in_ms(self.clock.elapsed_ms());
            tokio::select! {
                letter = letters.recv() => match letter {
                    Some(letter) => self.queue.push(letter),
                    None => return,
                },
                () = sleep(Duration::from_millis(due_in_ms.unwrap_or_default())), if due_in_ms.is_some() => {}
            }
            while let Ok(letter) = letters.try_recv() {
                self.queue.push(letter);
            }
            if self.queue.due_in_ms(self.clock.elapsed_ms()) == Some(0) {
                self.put_batch().await;
            }
            self.metrics.set_dead_letters_waiting(self.queue.len());
        }
    }

    async fn put_batch(&mut self) {
        let (batch, entries) = self.queue.take_batch(&self.cluster, now_ms());
        if batch.is_empty() {
            return;
        }
        let (is_written, error) = match self.client.put_records(&entries).await {
            Ok(results) => {
                let refusal = results.iter().find_map(|result| result.as_ref().err()).map(describe_rejection);
                (results.iter().map(Result::is_ok).collect(), refusal)
            }
            Err(error) => (vec![], Some(error.to_string())),
        };
        let written = self.queue.complete_put(batch, &is_written, self.clock.elapsed_ms(), rand::random());
        match error {
            None => self.report_recovery(),
            Some(error) => {
                self.metrics.count_dead_letter_failure();
                if written == 0 {
                    self.report_failure(&error);
                } else {
                    self.report_recovery();
                }
            }
        }
    }

    fn report_failure(&mut self, error: &str) {
        let waiting = self.queue.len();
        let line = format!("DeadLetterUnavailable: {error}; {waiting} letters wait, and their records stay unfinished");
        self.metrics.set_error(ErrorSource::DeadLetter, line);
        if !std::mem::replace(&mut self.is_unavailable, true) {
            tracing::warn!(stream = %self.client.stream(), error, waiting, "dead-letter stream unavailable: letters wait");
        }
    }

    fn report_recovery(&mut self) {
        self.metrics.clear_error(&ErrorSource::DeadLetter);
        if std::mem::replace(&mut self.is_unavailable, false) {
            tracing::info!(stream = %self.client.stream(), waiting = self.queue.len(), "dead-letter stream available again");
        }
    }
}

fn describe_rejection(rejection: &PutRejection) -> String {
    format!("{}: {}", rejection.code, rejection.message)
}
