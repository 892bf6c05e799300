//! The checkpoint of a held shard, and its release.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::ShardWorker;
use crate::dispatcher::leases::{AckedOutOfOrder, Checkpoint, CheckpointPosition, LeaseError, call_within};
use crate::kinesis::is_before;

/// Interval at which a shard that is released checks for attempts in flight.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Bounds a write to the lease store.
const LEASE_WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for which a shard that is released goes on with attempts in flight.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for a shard that was read to its end: its children wait for its next holder.
const ENDED_DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

impl ShardWorker {
    pub(super) fn build_checkpoint(&self) -> Option<Checkpoint> {
        let progress = self.tracker.progress();
        let through = progress.through.map(CheckpointPosition::Through);
        let position = if self.is_done() { CheckpointPosition::ShardEnd } else { through? };
        // Records that the former holder finished and this worker has not read again yet stay done.
        let beyond =
            progress.beyond.filter(|own| !self.is_behind_predecessor(own)).or_else(|| self.predecessor_acked.clone());
        let beyond = beyond.filter(|_| position != CheckpointPosition::ShardEnd);
        Some(Checkpoint { stream_created_ms: self.stream_created_ms, position, beyond })
    }

    /// Whether this worker's last read record precedes the end of the former holder's finished ones.
    fn is_behind_predecessor(&self, own: &AckedOutOfOrder) -> bool {
        self.predecessor_acked.as_ref().is_some_and(|acked| is_before(&own.through, &acked.through))
    }

    /// Begins to write the checkpoint, if it has changed since the last write or the lease must be written anew.
    pub fn write_checkpoint(
        &mut self,
        is_forced: bool,
    ) -> Option<impl Future<Output = Result<(), LeaseError>> + Send + 'static> {
        let checkpoint = self.build_checkpoint().or_else(|| self.written_checkpoint.clone());
        if !is_forced && (checkpoint.is_none() || checkpoint == self.written_checkpoint) {
            return None;
        }
        let (resources, shard, generation) = (Arc::clone(&self.resources), self.shard.clone(), self.generation);
        self.written_checkpoint.clone_from(&checkpoint);
        Some(
            async move { call_within(LEASE_WRITE_TIMEOUT, resources.leases.renew(&shard, generation, checkpoint)).await },
        )
    }

    /// Notes that a checkpoint was not written, so that the next one is.
    pub fn forget_written(&mut self) {
        self.written_checkpoint = None;
    }

    /// Stops posting, and waits until no attempt is in flight.
    async fn drain_attempts(&mut self) {
        loop {
            let (withdrawn, in_flight) = self.hold.withdraw_waiting();
            self.withdrawn_deliveries += withdrawn;
            while let Some(finished) = self.hold.take_finished() {
                self.complete_deliveries(finished);
            }
            self.update_metrics();
            if in_flight == 0 {
                return;
            }
            sleep(DRAIN_CHECK_INTERVAL).await;
        }
    }

    /// Waits for attempts in flight, so that a take-over repeats few of them, then writes the checkpoint and releases the
    /// lease.
    pub async fn release(mut self) {
        let limit = if self.has_ended() { ENDED_DRAIN_TIMEOUT } else { DRAIN_TIMEOUT };
        let _ = timeout(limit, self.drain_attempts()).await;
        self.drain_letters().await;
        let checkpoint = self.build_checkpoint();
        let (position, unfinished) = (checkpoint.as_ref().map(|it| &it.position), self.tracker.unfinished_events());
        tracing::info!(shard = %self.shard, ?position, unfinished, "releasing shard");
        let release = self.resources.leases.release_shard(&self.shard, self.generation, checkpoint);
        if let Err(error) = call_within(LEASE_WRITE_TIMEOUT, release).await {
            tracing::warn!(shard = %self.shard, %error, "shard release failed: its lease expires");
        }
    }
}
