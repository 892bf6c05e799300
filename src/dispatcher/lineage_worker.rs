//! The task of one lineage: reads its shards, and writes their checkpoints.
//!
//! In: commands of the supervisor, pages of the readers, outcomes of attempts. Out: checkpoints, and reports of shards
//! that end.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

use super::events::ShardSlot;
use super::leases::LeaseError;
use super::lineage::Lineage;
use super::shard_worker::{ShardInput, ShardWorker};
use super::worker_resources::{AcquiredShard, WorkerResources};
use crate::protocol::ShardId;

/// Interval at which waiting events are checked for release.
const TICK_INTERVAL: Duration = Duration::from_millis(50);
/// Least interval between two checkpoints of a shard.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5);

/// A command to the task of a lineage.
pub enum LineageCommand {
    /// Read this shard too.
    Hold(AcquiredShard),
    /// Stop reading a shard, finish what is in flight, write its checkpoint and release its lease.
    Release(ShardId),
    /// Stop at once: another member holds the shard.
    Drop(ShardId),
    /// Write the shard's lease, which was deleted.
    Rewrite(ShardId),
    /// Add the shards of another lineage to this one.
    Absorb(Box<LineageWorker>),
    /// End, and return the state to be absorbed.
    Yield,
    /// Release all shards, then end.
    Stop,
}

/// A report of the task of a lineage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardReport {
    /// The shard was read to its end, behind which are children.
    ReadToEnd(ShardId),
    /// The shard is no longer read here, under this slot.
    Ended(ShardId, ShardSlot),
}

/// The outcome of a written checkpoint.
type WrittenCheckpoint = (ShardSlot, Result<(), LeaseError>);

/// The task of one lineage.
pub struct LineageWorker {
    resources: Arc<WorkerResources>,
    lineage: Lineage,
    commands: mpsc::UnboundedReceiver<LineageCommand>,
    reports: mpsc::UnboundedSender<ShardReport>,
    writes: JoinSet<WrittenCheckpoint>,
    releases: JoinSet<()>,
    stopping: bool,
}

impl LineageWorker {
    /// A worker without shards. A command queue holds a few commands per shard, a report queue two reports.
    #[must_use]
    pub fn new(
        resources: Arc<WorkerResources>,
        commands: mpsc::UnboundedReceiver<LineageCommand>,
        reports: mpsc::UnboundedSender<ShardReport>,
    ) -> Self {
        Self {
            lineage: Lineage::new(Arc::clone(&resources)),
            resources,
            commands,
            reports,
            writes: JoinSet::new(),
            releases: JoinSet::new(),
            stopping: false,
        }
    }

    /// Runs until all shards are released after a stop, or until its state is to be absorbed: then returns it.
    pub async fn run(mut self) -> Option<Box<Self>> {
        let mut tick = interval(TICK_INTERVAL);
        let mut writing = interval(CHECKPOINT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        writing.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.lineage.advance();
            self.release_done_shards();
            if self.stopping && self.lineage.shards.is_empty() && self.releases.is_empty() {
                return None;
            }
            let lineage = &mut self.lineage;
            tokio::select! {
                command = self.commands.recv(), if !self.stopping => match command {
                    Some(LineageCommand::Yield) => return Some(Box::new(self)),
                    Some(command) => self.apply_command(command),
                    None => self.apply_command(LineageCommand::Stop),
                },
                (slot, input) = poll_fn(|context| lineage.poll_input(context)) => self.accept_input(slot, input),
                Some(written) = self.writes.join_next() => self.on_checkpoint_written(written),
                Some(_) = self.releases.join_next() => {}
                _ = writing.tick() => self.write_checkpoints(),
                _ = tick.tick() => {
                    self.lineage.release_due();
                    self.lineage.shards.values_mut().for_each(ShardWorker::update_metrics);
                }
            }
        }
    }

    fn apply_command(&mut self, command: LineageCommand) {
        match command {
            LineageCommand::Hold(acquired) => {
                let shard = ShardWorker::new(Arc::clone(&self.resources), acquired);
                self.lineage.shards.insert(shard.slot, shard);
            }
            LineageCommand::Release(shard) => {
                if let Some(slot) = self.lineage.find_slot(&shard) {
                    self.release_shard(slot);
                }
            }
            LineageCommand::Drop(shard) => {
                if let Some(slot) = self.lineage.find_slot(&shard) {
                    self.drop_shard(slot);
                }
            }
            LineageCommand::Rewrite(shard) => {
                if let Some(slot) = self.lineage.find_slot(&shard) {
                    self.write_checkpoint(slot, true);
                }
            }
            LineageCommand::Absorb(other) => {
                let Self { lineage, mut writes, mut releases, .. } = *other;
                self.lineage.absorb(lineage);
                self.writes.spawn(async move {
                    // The outcomes of the last writes of the other lineage: a lost lease is noticed by the next write.
                    while writes.join_next().await.is_some() {}
                    (0, Ok(()))
                });
                self.releases.spawn(async move { while releases.join_next().await.is_some() {} });
            }
            LineageCommand::Stop => {
                self.stopping = true;
                let slots: Vec<ShardSlot> = self.lineage.shards.keys().copied().collect();
                for slot in slots {
                    self.release_shard(slot);
                }
            }
            LineageCommand::Yield => {}
        }
    }

    fn accept_input(&mut self, slot: ShardSlot, input: ShardInput) {
        let Some(shard) = self.lineage.shards.get_mut(&slot) else { return };
        match input {
            ShardInput::Page(Some(page)) => shard.accept_page(page),
            ShardInput::Page(None) => {
                tracing::error!(shard = %shard.shard, "the shard's reader ended: dropping the shard");
                self.drop_shard(slot);
            }
            ShardInput::Finished(finished) => shard.complete_deliveries(finished),
            ShardInput::LetterWritten(record) => shard.complete_letters(record),
        }
    }

    /// Reports shards that were read to their ends, and releases those that are done.
    fn release_done_shards(&mut self) {
        let mut done = Vec::new();
        for shard in self.lineage.shards.values_mut().filter(|shard| shard.has_ended()) {
            if !std::mem::replace(&mut shard.is_end_reported, true) {
                let _ = self.reports.send(ShardReport::ReadToEnd(shard.shard.clone()));
            }
            if shard.is_done() {
                done.push(shard.slot);
            }
        }
        for slot in done {
            self.release_shard(slot);
        }
    }

    fn release_shard(&mut self, slot: ShardSlot) {
        let Some(shard) = self.lineage.remove_shard(slot) else { return };
        let (id, reports) = (shard.shard.clone(), self.reports.clone());
        self.releases.spawn(async move {
            shard.release().await;
            let _ = reports.send(ShardReport::Ended(id, slot));
        });
    }

    fn drop_shard(&mut self, slot: ShardSlot) {
        if let Some(shard) = self.lineage.remove_shard(slot) {
            let _ = self.reports.send(ShardReport::Ended(shard.shard.clone(), slot));
        }
    }

    fn write_checkpoints(&mut self) {
        // The next interval comes later than the timeout of a write.
        if self.writes.is_empty() {
            let slots: Vec<ShardSlot> = self.lineage.shards.keys().copied().collect();
            for slot in slots {
                self.write_checkpoint(slot, false);
            }
        }
    }

    fn write_checkpoint(&mut self, slot: ShardSlot, is_forced: bool) {
        let Some(shard) = self.lineage.shards.get_mut(&slot) else { return };
        if let Some(write) = shard.write_checkpoint(is_forced) {
            self.writes.spawn(async move { (slot, write.await) });
        }
    }

    fn on_checkpoint_written(&mut self, written: Result<WrittenCheckpoint, JoinError>) {
        let (slot, result) = match written {
            Ok(written) => written,
            Err(error) => {
                tracing::error!(%error, "checkpoint write panicked: trying again");
                self.lineage.shards.values_mut().for_each(ShardWorker::forget_written);
                return;
            }
        };
        let Some(shard) = self.lineage.shards.get_mut(&slot) else { return };
        match result {
            Ok(()) => {}
            Err(error @ LeaseError::Lost(_)) => {
                tracing::warn!(shard = %shard.shard, %error, "dropping the shard's events in flight");
                self.drop_shard(slot);
            }
            Err(error) => {
                tracing::warn!(shard = %shard.shard, %error, "checkpoint write failed: trying again");
                shard.forget_written();
            }
        }
    }
}
