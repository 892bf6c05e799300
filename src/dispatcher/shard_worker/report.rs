//! The counts of a held shard, in `/flow` and in the metrics.

use std::sync::atomic::Ordering;

use super::ShardWorker;
use crate::dispatcher::leases::CheckpointPosition;
use crate::dispatcher::metrics::ShardState;
use crate::dispatcher::reasons::{LossScope, PauseReason};

impl ShardWorker {
    /// Why no record is taken now.
    fn pause_reason(&self) -> Option<PauseReason> {
        if self.too_new.is_some() {
            Some(PauseReason::RecordTooNew)
        } else if self.tracker.is_full() {
            Some(PauseReason::Full)
        } else {
            self.waits_for_budget.load(Ordering::Relaxed).then_some(PauseReason::Budget)
        }
    }

    /// Unfinished events of the shard, without their deliveries and without records that are counted as refused, and
    /// unfinished deliveries.
    fn count_unfinished(&self) -> (usize, usize) {
        let deliveries = self.held_deliveries + self.losses.pending_of(LossScope::Delivery);
        let others = deliveries + self.losses.pending_of(LossScope::Record);
        (self.tracker.unfinished_events().saturating_sub(others), deliveries)
    }

    /// Updates the figures of the shard at `/flow` and in the metrics.
    pub fn update_metrics(&mut self) {
        if let Some(checkpoint) = self.tracker.done_through() {
            self.flow.checkpoint = Some(checkpoint.to_owned());
        }
        // A shard that was read to its end cannot be behind, and one whose parents are being read is not read yet.
        if self.has_ended() || !self.is_reading() {
            self.progress.note_page(0, self.mono_ms());
        }
        let (now, unfinished) = (self.mono_ms(), self.tracker.unfinished_events());
        if let Some(change) = self.progress.update(self.pause_reason(), now) {
            self.resources.metrics.report_pause(&self.shard, change, self.too_new.as_deref(), unfinished);
        }
        self.flow.behind_ms = self.progress.behind_ms(now);
        let state = ShardState {
            flow: self.flow.clone(),
            unfinished,
            waiting_events: self.count_unfinished().0,
            waiting_deliveries: self.losses.pending_of(LossScope::Delivery) + self.withdrawn_deliveries,
            paused: self.progress.reported_pause(),
        };
        self.resources.metrics.set_shard(&self.shard, state);
    }
}

impl Drop for ShardWorker {
    fn drop(&mut self) {
        // The end of a shard is no position to resume at.
        let checkpoint = self.build_checkpoint().filter(|it| it.position != CheckpointPosition::ShardEnd);
        if let Some(checkpoint) = checkpoint {
            self.resources.own_checkpoints.keep(&self.shard, self.generation, checkpoint);
        }
        self.resources.held_shards.fetch_sub(1, Ordering::Relaxed);
        let (events, deliveries) = self.count_unfinished();
        self.resources.metrics.count_relinquished(events, deliveries);
        self.resources.metrics.remove_shard(&self.shard);
    }
}
