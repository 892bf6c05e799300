//! Keeps this process's share of the shards.
//!
//! In: listings of the stream and the leases. Out: one task per lineage, which reads the shards of it that this process
//! holds. A heartbeat never waits for an acquisition: others would take this member for dead.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::assignment::{ShardUnit, group_shards, plan_assignment};
use super::events::{FOREIGN_SLOT, ShardSlot};
use super::leases::{HEARTBEAT_INTERVAL, LeaseError, LeaseSnapshot, ShardLease, ShardLeases, call_within};
use super::lineage_worker::{LineageCommand, LineageWorker, ShardReport};
use super::metrics::ErrorSource;
use super::probation::MemberProbation;
use super::shard_discovery::ShardListing;
use super::trimmed_shards::{TrimmedShard, TrimmedShards};
use super::unheld_shards::UnheldShards;
use super::worker_resources::{AcquiredShard, WorkerResources};
use crate::protocol::ShardId;

/// Interval between two reads of the leases while another member has to release a shard to this one.
const HANDOVER_INTERVAL: Duration = Duration::from_millis(500);
/// Time for which shards are held while the lease store does not answer.
const LEASE_OUTAGE_GRACE: Duration = Duration::from_mins(1);
/// Bounds a call to the lease store; shorter than a member's TTL.
const LEASE_CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Bounds the acquisitions under way.
const ACQUISITIONS_MAX: usize = 16;
/// Time for which the holder of a deleted lease may write it again before another member acquires the shard.
const REWRITE_GRACE: Duration = Duration::from_secs(6);
/// Bounds the transfer of a lineage's state to another task of this process.
const YIELD_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds the stop of the workers; after it they are aborted and their leases expire.
const WORKERS_STOP_TIMEOUT: Duration = Duration::from_secs(12);

/// Holds the shards of this process.
pub struct ShardSupervisor {
    resources: Arc<WorkerResources>,
    member: String,
    /// The shards that this process holds.
    shards: BTreeMap<ShardId, HeldShard>,
    lineages: BTreeMap<LineageId, RunningLineage>,
    last_number: u64,
    acquiring: BTreeSet<ShardId>,
    acquisitions: JoinSet<(ShardId, Result<ShardLease, LeaseError>)>,
    acquisition_permits: Arc<Semaphore>,
    /// Shards that could not be acquired since the last view.
    refused: BTreeSet<ShardId>,
    /// Held shards that were read to their ends, and whose children are not listed yet.
    childless: BTreeSet<ShardId>,
    reports: (mpsc::UnboundedSender<ShardReport>, mpsc::UnboundedReceiver<ShardReport>),
    /// Leases as last seen, and those that have vanished since, with the time.
    known_leases: BTreeMap<ShardId, Option<String>>,
    vanished: BTreeMap<ShardId, Instant>,
    unheld: UnheldShards,
    trimmed: TrimmedShards,
    created_ms: u64,
    relist: Arc<Notify>,
    /// Notified when the task of a lineage ends.
    lineage_ended: Arc<Notify>,
    /// Whether this process was admitted.
    admitted: watch::Receiver<bool>,
    probation: MemberProbation,
}

type LineageId = u64;

struct HeldShard {
    slot: ShardSlot,
    lineage: LineageId,
    generation: u64,
    is_releasing: bool,
}

struct RunningLineage {
    commands: mpsc::UnboundedSender<LineageCommand>,
    task: JoinHandle<Option<Box<LineageWorker>>>,
}

/// Notifies when it is dropped, also by a panic.
struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl ShardSupervisor {
    /// A supervisor that holds no shard yet.
    #[must_use]
    pub fn new(
        resources: Arc<WorkerResources>,
        member: String,
        relist: Arc<Notify>,
        admitted: watch::Receiver<bool>,
    ) -> Self {
        Self {
            resources,
            member,
            shards: BTreeMap::new(),
            lineages: BTreeMap::new(),
            last_number: FOREIGN_SLOT,
            acquiring: BTreeSet::new(),
            acquisitions: JoinSet::new(),
            acquisition_permits: Arc::new(Semaphore::new(ACQUISITIONS_MAX)),
            refused: BTreeSet::new(),
            childless: BTreeSet::new(),
            reports: mpsc::unbounded_channel(),
            known_leases: BTreeMap::new(),
            vanished: BTreeMap::new(),
            unheld: UnheldShards::default(),
            trimmed: TrimmedShards::default(),
            created_ms: 0,
            relist,
            lineage_ended: Arc::default(),
            admitted,
            probation: MemberProbation::default(),
        }
    }

    /// Holds its share of the shards until the token is cancelled, then releases all.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut listings = self.resources.listings.clone();
        let ended = Arc::clone(&self.lineage_ended);
        let (mut view, mut last_answer_at) = (None, Instant::now());
        let mut next_heartbeat = Instant::now();
        while !shutdown.is_cancelled() {
            let listing = Arc::clone(&listings.borrow_and_update());
            if next_heartbeat <= Instant::now() {
                let counts = self.resources.metrics.attempt_counts();
                let status = self.probation.assess(*self.admitted.borrow(), !self.shards.is_empty(), counts);
                match call_within(LEASE_CALL_TIMEOUT, self.resources.leases.send_heartbeat(&self.member, status)).await
                {
                    Ok(seen) => {
                        last_answer_at = Instant::now();
                        self.resources.metrics.clear_error(&ErrorSource::Leases);
                        self.note_leases(&seen);
                        view = Some(seen);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "lease store unavailable: keeping the held shards");
                        self.resources.metrics.set_error(ErrorSource::Leases, error.to_string());
                        view = None;
                        if last_answer_at.elapsed() > LEASE_OUTAGE_GRACE {
                            self.abort_lineages();
                        }
                    }
                }
                next_heartbeat = Instant::now() + HEARTBEAT_INTERVAL;
            }
            if let Some(view) = &view
                && self.rebalance_shards(&listing, view)
            {
                next_heartbeat = next_heartbeat.min(Instant::now() + HANDOVER_INTERVAL);
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep_until(next_heartbeat) => {}
                // The leases have changed with it.
                () = ended.notified() => next_heartbeat = Instant::now(),
                Some(report) = self.reports.1.recv() => {
                    self.apply_report(report);
                    while let Ok(report) = self.reports.1.try_recv() {
                        self.apply_report(report);
                    }
                    next_heartbeat = Instant::now();
                }
                Some(acquired) = self.acquisitions.join_next() => {
                    // The view is older than this: children can follow their parents.
                    if let Ok((shard, acquired)) = acquired {
                        self.finish_acquisition(shard, acquired, &listing, view.as_mut()).await;
                    }
                }
                changed = listings.changed() => if changed.is_err() { break },
            }
        }
        self.stop_lineages().await;
    }

    /// Acquires and releases shards. Returns whether another member has to release a shard to this one.
    fn rebalance_shards(&mut self, listing: &ShardListing, view: &LeaseSnapshot) -> bool {
        if listing.created_ms != self.created_ms {
            // Another stream of the same name: nothing in flight belongs to it.
            self.abort_lineages();
            self.created_ms = listing.created_ms;
        }
        self.reap_lineages();
        self.drop_lost_shards(view);
        let held = &self.shards;
        self.childless.retain(|shard| held.contains_key(shard) && listing.children_of(shard).next().is_none());
        if is_listing_old(listing, view) || !self.childless.is_empty() {
            self.relist.notify_one();
        }
        let units = group_shards(&listing.shards, view, listing.created_ms);
        let now_ms = self.resources.clock.elapsed_ms();
        let not_held = self.unheld.update(&units, view, now_ms);
        self.resources.metrics.set_not_held(&not_held);
        for trimmed in self.trimmed.update(listing, view, now_ms) {
            let (leases, permits) = (Arc::clone(&self.resources.leases), Arc::clone(&self.acquisition_permits));
            tokio::spawn(delete_lease(leases, permits, trimmed));
        }
        let running: Vec<ShardId> = self.shards.keys().cloned().collect();
        let plan = plan_assignment(&units, view, &self.member, &running);
        for shard in plan.acquire {
            if !self.is_acquirable(&shard, view) || !self.acquiring.insert(shard.clone()) {
                continue;
            }
            let (leases, member) = (Arc::clone(&self.resources.leases), self.member.clone());
            let permits = Arc::clone(&self.acquisition_permits);
            self.acquisitions.spawn(async move {
                let _permit = permits.acquire_owned().await;
                let acquired = call_within(LEASE_CALL_TIMEOUT, leases.acquire_shard(&shard, &member)).await;
                (shard, acquired)
            });
        }
        let is_releasing = self.shards.values().any(|held| held.is_releasing);
        if !is_releasing {
            plan.release.iter().for_each(|shard| self.release_shard(shard));
        }
        !plan.awaited.is_empty() || !self.childless.is_empty()
    }

    /// Whether the shard may be acquired now.
    fn is_acquirable(&self, shard: &ShardId, view: &LeaseSnapshot) -> bool {
        let is_vanished = self.vanished.get(shard).is_some_and(|since| since.elapsed() < REWRITE_GRACE);
        !is_vanished
            && !self.refused.contains(shard)
            && view.leases.get(shard).is_none_or(|lease| lease.unreadable_checkpoint.is_none())
    }

    /// Notes leases that have vanished although their holder lives: it writes them again.
    fn note_leases(&mut self, view: &LeaseSnapshot) {
        let now = Instant::now();
        self.refused.clear();
        for (shard, holder) in &self.known_leases {
            let is_held_by_other = holder.as_ref().is_some_and(|holder| view.members.contains_key(holder));
            if is_held_by_other && !view.leases.contains_key(shard) {
                self.vanished.entry(shard.clone()).or_insert(now);
            }
        }
        self.vanished.retain(|shard, since| !view.leases.contains_key(shard) && since.elapsed() < REWRITE_GRACE);
        self.known_leases = view.leases.iter().map(|(shard, lease)| (shard.clone(), lease.holder.clone())).collect();
        for (shard, lease) in &view.leases {
            let source = ErrorSource::Checkpoint(shard.clone());
            match &lease.unreadable_checkpoint {
                Some(text) => {
                    let error = format!(
                        "the checkpoint of shard {shard} cannot be read by this release, so the shard is not: upgrade the dispatchers, or correct the annotation of its Lease: {text}"
                    );
                    self.resources.metrics.set_error(source, error);
                }
                None => self.resources.metrics.clear_error(&source),
            }
        }
    }

    async fn finish_acquisition(
        &mut self,
        shard: ShardId,
        acquired: Result<ShardLease, LeaseError>,
        listing: &ShardListing,
        view: Option<&mut LeaseSnapshot>,
    ) {
        self.acquiring.remove(&shard);
        let Some(view) = view else { return };
        match acquired {
            Ok(lease) if lease.unreadable_checkpoint.is_some() => drop(self.refused.insert(shard)),
            Ok(lease) => {
                let units = group_shards(&listing.shards, view, listing.created_ms);
                view.leases.insert(shard.clone(), lease.clone());
                self.known_leases.insert(shard.clone(), lease.holder.clone());
                let unit = units.iter().find_map(|unit| Some((unit, unit.parents_of(&shard)?)));
                if let Some((unit, open_parents)) = unit {
                    let lineage = self.join_lineages(unit).await;
                    self.hold_shard(shard, lease, listing, lineage, open_parents.to_vec());
                }
            }
            Err(error) => {
                // Another member may have acquired it first: the next view shows it.
                if !matches!(error, LeaseError::Lost(_)) {
                    tracing::warn!(%shard, %error, "shard not acquired: trying again");
                }
                self.refused.insert(shard);
            }
        }
    }

    /// Reads a shard in the task of its lineage.
    fn hold_shard(
        &mut self,
        shard: ShardId,
        lease: ShardLease,
        listing: &ShardListing,
        lineage: LineageId,
        open_parents: Vec<ShardId>,
    ) {
        self.last_number += 1;
        let (slot, generation) = (self.last_number, lease.generation);
        let listed = listing.find(&shard).map(|shard| shard.parents.clone()).unwrap_or_default();
        let acquired = AcquiredShard {
            slot,
            shard: shard.clone(),
            generation,
            stream_created_ms: listing.created_ms,
            checkpoint: lease.checkpoint,
            parents: listed.into_iter().filter(|parent| listing.find(parent).is_some()).collect(),
            open_parents,
        };
        if self.send_command(lineage, LineageCommand::Hold(acquired)) {
            self.shards.insert(shard, HeldShard { slot, lineage, generation, is_releasing: false });
        }
    }

    /// Joins the lineages of a unit's held shards into the first of them; starts a lineage if none of them is held.
    async fn join_lineages(&mut self, unit: &ShardUnit) -> LineageId {
        let held = unit.ids().filter_map(|id| self.shards.get(id));
        let lineages: BTreeSet<LineageId> = held.map(|held| held.lineage).collect();
        let Some(first) = lineages.first().copied() else { return self.start_lineage() };
        for other in lineages.iter().skip(1) {
            self.send_command(*other, LineageCommand::Yield);
            let Some(running) = self.lineages.remove(other) else { continue };
            let abort = running.task.abort_handle();
            match timeout(YIELD_TIMEOUT, running.task).await {
                Ok(Ok(Some(state))) => {
                    self.send_command(first, LineageCommand::Absorb(state));
                    self.shards
                        .values_mut()
                        .filter(|held| held.lineage == *other)
                        .for_each(|held| held.lineage = first);
                }
                ended => {
                    tracing::error!(
                        ?other,
                        is_ended = ended.is_ok(),
                        "a lineage was not joined: its shards are read anew"
                    );
                    abort.abort();
                    self.shards.retain(|_, held| held.lineage != *other);
                }
            }
        }
        first
    }

    fn start_lineage(&mut self) -> LineageId {
        self.last_number += 1;
        let id = self.last_number;
        let (commands, received) = mpsc::unbounded_channel();
        let worker = LineageWorker::new(Arc::clone(&self.resources), received, self.reports.0.clone());
        let ended = NotifyOnDrop(Arc::clone(&self.lineage_ended));
        let task = tokio::spawn(
            async move {
                let _ended = ended;
                worker.run().await
            }
            .instrument(tracing::info_span!("lineage", id)),
        );
        self.lineages.insert(id, RunningLineage { commands, task });
        id
    }

    fn send_command(&self, lineage: LineageId, command: LineageCommand) -> bool {
        self.lineages.get(&lineage).is_some_and(|running| running.commands.send(command).is_ok())
    }

    fn release_shard(&mut self, shard: &ShardId) {
        if let Some(held) = self.shards.get_mut(shard) {
            held.is_releasing = true;
            let lineage = held.lineage;
            self.send_command(lineage, LineageCommand::Release(shard.clone()));
        }
    }

    fn apply_report(&mut self, report: ShardReport) {
        match report {
            ShardReport::ReadToEnd(shard) => {
                self.childless.insert(shard);
                self.relist.notify_one();
            }
            ShardReport::Ended(shard, slot) => {
                if self.shards.get(&shard).is_some_and(|held| held.slot == slot) {
                    self.shards.remove(&shard);
                }
                self.relist.notify_one();
            }
        }
    }

    /// Removes lineages whose task has ended. One that panicked is counted, and its shards are read anew.
    fn reap_lineages(&mut self) {
        let used: BTreeSet<LineageId> = self.shards.values().map(|held| held.lineage).collect();
        let ended: Vec<LineageId> = self
            .lineages
            .iter()
            .filter(|(id, running)| running.task.is_finished() || !used.contains(id))
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            let Some(running) = self.lineages.remove(&id) else { continue };
            if !running.task.is_finished() {
                // Without shards: it ends after the writes under way.
                let _ = running.commands.send(LineageCommand::Stop);
                continue;
            }
            let is_panic = futures::FutureExt::now_or_never(running.task)
                .and_then(Result::err)
                .is_some_and(|error| error.is_panic());
            if is_panic {
                self.resources.metrics.count_worker_panic();
                tracing::error!("the task of a lineage panicked: its shards are read anew");
            }
            self.shards.retain(|_, held| held.lineage != id);
        }
    }

    /// Drops the shards that another member holds now, and has deleted leases written again.
    fn drop_lost_shards(&mut self, view: &LeaseSnapshot) {
        let mut lost = Vec::new();
        for (shard, held) in self.shards.iter().filter(|(_, held)| !held.is_releasing) {
            match view.leases.get(shard) {
                None => {
                    tracing::warn!(%shard, "lease of a held shard deleted: writing it again");
                    self.send_command(held.lineage, LineageCommand::Rewrite(shard.clone()));
                }
                Some(lease) => {
                    let is_own = lease.holder.as_ref().is_none_or(|holder| *holder == self.member);
                    if lease.generation != held.generation || !is_own {
                        lost.push(shard.clone());
                    }
                }
            }
        }
        for shard in lost {
            tracing::warn!(%shard, "shard lost to another dispatcher: dropping its events in flight");
            if let Some(held) = self.shards.remove(&shard) {
                self.send_command(held.lineage, LineageCommand::Drop(shard));
            }
        }
    }

    fn abort_lineages(&mut self) {
        for running in std::mem::take(&mut self.lineages).into_values() {
            running.task.abort();
        }
        self.shards.clear();
    }

    async fn stop_lineages(&mut self) {
        let lineages = std::mem::take(&mut self.lineages);
        for running in lineages.values() {
            let _ = running.commands.send(LineageCommand::Stop);
        }
        let aborts: Vec<_> = lineages.values().map(|running| running.task.abort_handle()).collect();
        let tasks = lineages.into_values().map(|running| running.task);
        if timeout(WORKERS_STOP_TIMEOUT, futures::future::join_all(tasks)).await.is_err() {
            tracing::warn!("shard workers not stopped in time: their leases expire");
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
        let leases = Arc::clone(&self.resources.leases);
        if let Err(error) = call_within(LEASE_CALL_TIMEOUT, leases.remove_member(&self.member)).await {
            tracing::warn!(%error, "member not removed from the lease store: it expires");
        }
    }
}

/// Deletes the lease of a trimmed shard, after the acquisitions under way.
async fn delete_lease(leases: Arc<dyn ShardLeases>, permits: Arc<Semaphore>, trimmed: TrimmedShard) {
    let _permit = permits.acquire_owned().await;
    let TrimmedShard { shard, generation, is_unread } = trimmed;
    match call_within(LEASE_CALL_TIMEOUT, leases.delete_lease(&shard, generation)).await {
        Ok(()) if is_unread => tracing::error!(%shard, "records lost: shard trimmed before it was read to its end"),
        Ok(()) => tracing::info!(%shard, "lease of a trimmed shard deleted"),
        Err(error) => tracing::debug!(%shard, %error, "lease of a trimmed shard not deleted"),
    }
}

/// Whether the leases show that a shard was split or merged after the listing: an open shard is done, or a member holds a
/// shard that is not listed.
fn is_listing_old(listing: &ShardListing, view: &LeaseSnapshot) -> bool {
    view.leases.iter().any(|(shard, lease)| match listing.find(shard) {
        Some(listed) => lease.is_done(listing.created_ms) && listed.open,
        None => lease.holder.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::leases::{Checkpoint, CheckpointPosition};
    use super::*;
    use crate::kinesis::Shard;

    #[test]
    fn a_listing_is_old_when_a_lease_shows_a_later_reshard() {
        let shard = |open| Shard { id: "a".into(), start: 0, end: 9, parents: vec![], open };
        let end = Checkpoint { stream_created_ms: 1, position: CheckpointPosition::ShardEnd, beyond: None };
        let done = ShardLease { checkpoint: Some(end), ..ShardLease::default() };
        let held = ShardLease { holder: Some("you".into()), ..ShardLease::default() };
        for (name, open, id, lease, expected) in [
            ("an open shard is held", true, "a", &held, false),
            ("an open shard is done", true, "a", &done, true),
            ("a closed shard is done", false, "a", &done, false),
            ("a shard that is not listed is held", true, "b", &held, true),
            ("the lease of a trimmed shard", true, "b", &done, false),
        ] {
            let listing = ShardListing { created_ms: 1, shards: vec![shard(open)] };
            let leases = [(ShardId::from(id), lease.clone())].into();
            assert_eq!(
                is_listing_old(&listing, &LeaseSnapshot { leases, ..LeaseSnapshot::default() }),
                expected,
                "{name}"
            );
        }
    }
}
