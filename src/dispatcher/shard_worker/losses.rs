//! The losses of a shard's pipeline: events of unknown apps, and the letters of events that are given up.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::ShardWorker;
use crate::dispatcher::dead_letter::Loss;
use crate::dispatcher::events::TrackedEvent;
use crate::protocol::dead_letter::LetterSource;

/// Time for which a stopping worker then waits for letters that are being written.
const LETTER_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds the letters of unknown apps that wait to be written before more of their events are given up: the others go on
/// waiting outside the shard's bound.
const UNKNOWN_APP_LETTERS_MAX: usize = 1_000;

impl ShardWorker {
    /// Takes the current registry. Sends events whose app is known now, and gives those up that waited too long.
    pub(super) fn retry_unknown_apps(&mut self) {
        let registry = Arc::clone(&self.resources.apps.borrow());
        if !Arc::ptr_eq(&registry, &self.registry) {
            self.registry = Arc::clone(&registry);
            for event in self.unknown_apps.take_known(|app| registry.by_id(app).is_some()) {
                self.tracker.unpark_event(event.record);
                self.fan_out(event);
            }
        }
        let now = self.mono_ms();
        while self.losses.pending() < UNKNOWN_APP_LETTERS_MAX
            && let Some(event) = self.unknown_apps.pop_expired(now)
        {
            self.give_up_unknown_app(event);
        }
    }

    pub(super) fn give_up_unknown_app(&mut self, event: TrackedEvent) {
        self.tracker.unpark_event(event.record);
        self.give_up(event.record, Loss::of_unknown_app(event));
    }

    /// Gives an event of a record up; with a dead-letter stream it is finished once its letter is written.
    pub(super) fn give_up(&mut self, record: u64, loss: Loss) {
        let sequence = self.tracker.sequence(record).unwrap_or_default().to_owned();
        let stream = self.resources.client.stream().clone();
        let source = LetterSource { stream, shard: self.shard.clone(), sequence };
        if self.losses.give_up(record, source, loss, self.mono_ms()) {
            self.tracker.finish_event(record);
        }
    }

    /// Finishes an event whose letter is written, and all others that are known by now.
    pub fn complete_letters(&mut self, first: u64) {
        let mut next = Some(first);
        while let Some(record) = next {
            self.tracker.finish_event(record);
            next = self.losses.take_written();
        }
    }

    /// Waits for letters that are being written.
    pub(super) async fn drain_letters(&mut self) {
        let written = async {
            while self.losses.pending() > 0
                && let Some(record) = self.losses.next_written().await
            {
                self.tracker.finish_event(record);
                self.update_metrics();
            }
        };
        if timeout(LETTER_DRAIN_TIMEOUT, written).await.is_err() {
            tracing::info!(shard = %self.shard, "letters not written in time: the next holder writes them");
        }
    }
}
