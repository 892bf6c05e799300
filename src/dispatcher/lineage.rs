//! The order of a lineage: shards that this process holds and that are connected by a split or a merge.
//!
//! In: records of several shards, read as their parents allow. Out: each event to the worker of its shard, in the order
//! of its channel, or a note that it needs no delivery. A child is read once its parents are *read* to their ends, not
//! done: an endpoint that fails in the parent delays no event of the children. Without I/O: the caller passes pages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use super::debounce::{AbsenceDebouncer, DebounceVerdict};
use super::decode::RecentEventIds;
use super::events::{FOREIGN_SLOT, HISTORY_RECORD, ShardSlot, TrackedEvent};
use super::reasons::SkipReason;
use super::sequencer::{SequencedEvent, Sequencer};
use super::shard_discovery::ShardListing;
use super::shard_worker::{ShardInput, ShardWorker};
use super::worker_resources::WorkerResources;
use crate::process::clock::now_ms;
use crate::protocol::ShardId;

/// Time after a shard's end within which its children must be read; beyond it the clock alone ends an absence.
const CHILDREN_TIMEOUT: Duration = Duration::from_secs(10);

/// The shards of a lineage, and the order of their events.
pub struct Lineage {
    resources: Arc<WorkerResources>,
    /// The held shards. Parents have lower slots than their children.
    pub shards: BTreeMap<ShardSlot, ShardWorker>,
    /// Shards that were read to their ends here: the order of their events is known.
    read_shards: BTreeSet<ShardId>,
    recent_ids: RecentEventIds,
    sequencer: Sequencer,
    debounce: AbsenceDebouncer,
}

impl Lineage {
    /// A lineage without shards.
    #[must_use]
    pub fn new(resources: Arc<WorkerResources>) -> Self {
        Self {
            resources,
            shards: BTreeMap::new(),
            read_shards: BTreeSet::new(),
            recent_ids: RecentEventIds::default(),
            sequencer: Sequencer::default(),
            debounce: AbsenceDebouncer::default(),
        }
    }

    /// Adds the shards of another lineage, with a shard of which one of this is to be merged.
    pub fn absorb(&mut self, other: Self) {
        let now = self.resources.clock.elapsed_ms();
        self.shards.extend(other.shards);
        self.read_shards.extend(other.read_shards);
        self.recent_ids.absorb(other.recent_ids, now);
        self.sequencer.absorb(other.sequencer, now);
        self.debounce.absorb(other.debounce);
    }

    /// Removes a shard that is no longer held. Its unfinished events stay open in its tracker. The order of a shard that
    /// is done is kept for its children.
    pub fn remove_shard(&mut self, slot: ShardSlot) -> Option<ShardWorker> {
        let shard = self.shards.remove(&slot)?;
        if !shard.is_done() {
            self.recent_ids.remove_slot(slot);
            self.sequencer.remove_slot(slot);
            self.debounce.remove_slot(slot);
            self.read_shards.remove(&shard.shard);
        }
        Some(shard)
    }

    /// The slot of a held shard.
    #[must_use]
    pub fn find_slot(&self, shard: &ShardId) -> Option<ShardSlot> {
        self.shards.values().find(|held| held.shard == *shard).map(|held| held.slot)
    }

    /// Polls the shards for a page or a finished event.
    pub fn poll_input(&mut self, context: &mut Context<'_>) -> Poll<(ShardSlot, ShardInput)> {
        for (slot, shard) in &mut self.shards {
            if let Poll::Ready(input) = shard.poll_input(context) {
                return Poll::Ready((*slot, input));
            }
        }
        Poll::Pending
    }

    /// Starts readers that are due, then accepts records until each shard's page is empty or the shard pauses.
    pub fn advance(&mut self) {
        self.start_readers();
        self.sequencer.share_histories(self.shards.len(), self.resources.held_shards.load(Ordering::Relaxed));
        let slots: Vec<ShardSlot> = self.shards.keys().copied().collect();
        for slot in &slots {
            self.advance_shard(*slot);
        }
        for shard in self.shards.values_mut() {
            shard.wake_endpoints();
        }
    }

    /// Releases the events whose time has come.
    pub fn release_due(&mut self) {
        let steps = self.sequencer.release_due(self.resources.clock.elapsed_ms());
        self.apply_sequenced(steps);
        self.resources.metrics.count_gaps(self.sequencer.take_gaps());
        let listing = Arc::clone(&self.resources.listings.borrow());
        let read_past: BTreeMap<ShardSlot, u64> =
            self.shards.keys().map(|slot| (*slot, self.read_past_ms(*slot, &listing))).collect();
        // A shard that another process finished is followed by any of those that are held.
        let slowest = read_past.values().min().copied();
        let read_past = |slot| {
            let own = if slot == FOREIGN_SLOT { slowest } else { read_past.get(&slot).copied() };
            own.unwrap_or(u64::MAX)
        };
        for event in self.debounce.release_due(now_ms(), read_past) {
            self.fan_out(event);
        }
    }

    /// Starts the readers of shards whose parents are read to their ends.
    fn start_readers(&mut self) {
        for shard in self.shards.values().filter(|shard| shard.has_ended()) {
            if !self.read_shards.contains(&shard.shard) {
                self.read_shards.insert(shard.shard.clone());
            }
        }
        for shard in self.shards.values_mut().filter(|shard| !shard.is_reading()) {
            if shard.open_parents.iter().all(|parent| self.read_shards.contains(parent)) {
                let unknown = shard.parents.iter().filter(|parent| !self.read_shards.contains(parent));
                shard.start_reading(unknown.cloned().collect());
            }
        }
    }

    fn advance_shard(&mut self, slot: ShardSlot) {
        let now = self.resources.clock.elapsed_ms();
        let Some(shard) = self.shards.get_mut(&slot) else { return };
        // Events that waited for their app precede newer ones.
        shard.advance();
        while let Some(shard) = self.shards.get_mut(&slot)
            && let Some(record) = shard.take_record()
        {
            let events = shard.accept_record(record, &mut self.recent_ids, now);
            shard.finish_page();
            for event in events {
                self.accept_event(event, now);
            }
        }
    }

    fn accept_event(&mut self, event: TrackedEvent, now: u64) {
        if event.event.order.is_none() {
            // Most events: no state, so that no other event is waited for.
            self.fan_out(event);
        } else if event.record == HISTORY_RECORD {
            self.sequencer.learn(&event, now);
            self.apply_debounced(event);
        } else {
            let steps = self.sequencer.push(event, now);
            self.apply_sequenced(steps);
        }
    }

    /// The time up to which a shard and its children were read.
    fn read_past_ms(&self, slot: ShardSlot, listing: &ShardListing) -> u64 {
        let Some(shard) = self.shards.get(&slot) else { return u64::MAX };
        let Some(ended_at) = shard.ended_at else {
            // A full shard is not read, so waiting to read on would wait for itself: the clock alone then decides, and a
            // return that was not read yet is delivered after the absence.
            return if shard.tracker.is_full() { u64::MAX } else { shard.read_past_ms };
        };
        if ended_at.elapsed() > CHILDREN_TIMEOUT {
            let children = self.shards.values().filter(|child| child.parents.contains(&shard.shard));
            return children.map(|child| self.read_past_ms(child.slot, listing)).min().unwrap_or(u64::MAX);
        }
        let children = listing.children_of(&shard.shard).map(|child| {
            let held = self.find_slot(&child.id);
            held.map_or(0, |child| self.read_past_ms(child, listing))
        });
        children.min().unwrap_or(0).max(shard.read_past_ms)
    }

    fn is_open(&self, event: &TrackedEvent) -> bool {
        self.shards.get(&event.slot).is_some_and(|shard| shard.tracker.is_open(event.record))
    }

    fn apply_sequenced(&mut self, steps: Vec<SequencedEvent>) {
        for step in steps {
            match step {
                SequencedEvent::Superseded(event) => self.skip_events(SkipReason::Superseded, vec![event]),
                SequencedEvent::Release(event) => self.apply_debounced(event),
            }
        }
    }

    fn apply_debounced(&mut self, event: TrackedEvent) {
        let replayed = !self.is_open(&event);
        match self.debounce.push(event, replayed, now_ms()) {
            DebounceVerdict::Pass(event) => self.fan_out(event),
            DebounceVerdict::Held => {}
            DebounceVerdict::Follows { absences, event } => {
                for absence in absences {
                    self.fan_out(absence);
                }
                self.fan_out(event);
            }
            DebounceVerdict::Cancels { mut held, by } => {
                if let Some(shard) = self.shards.get_mut(&by.slot) {
                    for half in held.iter().filter(|half| half.slot == by.slot) {
                        shard.tracker.join_records(half.record, by.record);
                    }
                }
                held.push(by);
                self.skip_events(SkipReason::Cancelled, held);
            }
        }
    }

    /// Marks events as finished without a delivery, except replayed ones, which a former holder finished.
    fn skip_events(&mut self, why: SkipReason, mut events: Vec<TrackedEvent>) {
        events.retain(|event| self.is_open(event));
        for event in events {
            if let Some(shard) = self.shards.get_mut(&event.slot) {
                shard.skip_events(why, &[event]);
            }
        }
    }

    fn fan_out(&mut self, event: TrackedEvent) {
        if self.is_open(&event)
            && let Some(shard) = self.shards.get_mut(&event.slot)
        {
            shard.fan_out(event);
        }
    }
}
