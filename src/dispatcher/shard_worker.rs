//! One held shard: the page that is being accepted, the records that are open, and the checkpoint.
//!
//! In: pages of the reader, and the outcomes of attempts. Out: events for the order of the lineage, attempts, counts. All
//! shards of a lineage are owned by one task, so nothing is locked; the deciding parts are pure and have their own files.

mod checkpoint;
mod deliveries;
mod losses;
mod report;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use super::byte_budget::BudgetShare;
use super::checkpoint_tracker::CheckpointTracker;
use super::dead_letter::Loss;
use super::dead_letter::losses::ShardLosses;
use super::decode::{self, DecodedRecord, RecentEventIds};
use super::endpoint::pool::{FinishedAt, ShardHold};
use super::events::{FOREIGN_SLOT, HISTORY_RECORD, ShardSlot, TrackedEvent};
use super::leases::{AckedOutOfOrder, Checkpoint, CheckpointPosition};
use super::ledger::EventHop;
use super::read_progress::ReadProgress;
use super::reader::{PageKind, ShardRead, ShardReader};
use super::reasons::{DropReason, SkipReason};
use super::unknown_apps::UnknownApps;
use super::worker_resources::{AcquiredShard, WorkerResources};
use crate::kinesis::ReadRecord;
use crate::process::clock::now_ms;
use crate::protocol::ShardId;
use crate::protocol::admin::ShardFlow;
use crate::protocol::record::{RecordedEvent, StreamRecord};
use crate::protocol::registry::AppRegistry;

/// An input of a shard.
pub enum ShardInput {
    /// A page was read; `None` when the reader has ended.
    Page(Option<ShardRead>),
    /// An event is finished at an endpoint.
    Finished(FinishedAt),
    /// The letter of an event of this record is written.
    LetterWritten(u64),
}

/// The state of one held shard.
pub struct ShardWorker {
    resources: Arc<WorkerResources>,
    /// Number of this hold.
    pub slot: ShardSlot,
    /// The id of the shard.
    pub shard: ShardId,
    /// Listed shards that this one came from.
    pub parents: Vec<ShardId>,
    /// Parents that were not done when the shard was acquired.
    pub open_parents: Vec<ShardId>,
    generation: u64,
    stream_created_ms: u64,
    flow: ShardFlow,
    /// The reader's pages; `None` while the parents are not read to their ends.
    pages: Option<mpsc::Receiver<ShardRead>>,
    /// Records of the current page that are not accepted yet.
    page: VecDeque<ReadRecord>,
    page_kind: PageKind,
    /// The bytes of the page in the budget of the process.
    page_share: Option<BudgetShare>,
    /// Keeps the reader from reading the next page.
    page_turn: Option<OwnedSemaphorePermit>,
    waits_for_budget: Arc<AtomicBool>,
    /// State to set once the current page is accepted: the time that is read past, and whether the shard ends.
    after_page: (u64, bool),
    /// Time up to which the shard was read.
    pub read_past_ms: u64,
    /// When the shard was read to its end.
    pub ended_at: Option<Instant>,
    /// Whether the supervisor was notified of the end.
    pub is_end_reported: bool,
    progress: ReadProgress,
    /// Why a record at the front of the page cannot be read by this release.
    too_new: Option<String>,
    /// The registry that this turn of the pipeline uses.
    registry: Arc<AppRegistry>,
    /// Events of apps that the registry does not have yet, parked in the tracker.
    unknown_apps: UnknownApps,
    hold: ShardHold,
    /// Deliveries that were given to the hold and are not finished.
    held_deliveries: usize,
    /// The held events that their endpoints gave back before the release.
    withdrawn_deliveries: usize,
    /// Events that may be queued before endpoints that keep up have taken others.
    room: usize,
    /// Earliest time at which these endpoints are asked again.
    next_room_ms: u64,
    /// Earliest time of the next eviction from endpoints that are behind.
    next_eviction_ms: u64,
    /// The records that are not done.
    pub tracker: CheckpointTracker,
    /// Records that the former holder finished beyond the position at which this worker began to read.
    predecessor_acked: Option<AckedOutOfOrder>,
    written_checkpoint: Option<Checkpoint>,
    losses: ShardLosses,
}

impl ShardWorker {
    /// A worker for a lease that was acquired. It reads nothing yet.
    #[must_use]
    pub fn new(resources: Arc<WorkerResources>, acquired: AcquiredShard) -> Self {
        let AcquiredShard { slot, shard, generation, stream_created_ms, checkpoint, parents, open_parents } = acquired;
        let (hold, now) = (resources.pool.open_hold(slot), resources.clock.elapsed_ms());
        let registry = Arc::clone(&resources.apps.borrow());
        let stored = checkpoint.filter(|it| it.stream_created_ms == stream_created_ms);
        let own = resources.own_checkpoints.take(&shard, generation, stream_created_ms);
        resources.held_shards.fetch_add(1, Ordering::Relaxed);
        let losses = ShardLosses::new(resources.dead_letters.clone(), Arc::clone(&resources.metrics));
        let unknown_apps = UnknownApps::new(Arc::clone(&resources.unknown_app_bytes));
        let (through, predecessor_acked) = match own.or_else(|| stored.clone()) {
            Some(Checkpoint { position: CheckpointPosition::Through(sequence), beyond, .. }) => {
                (Some(sequence), beyond)
            }
            _ => (None, None),
        };
        Self {
            resources,
            slot,
            shard,
            parents,
            open_parents,
            generation,
            stream_created_ms,
            tracker: CheckpointTracker::resume_from(through.as_deref()),
            flow: ShardFlow { checkpoint: through, ..ShardFlow::default() },
            pages: None,
            page: VecDeque::new(),
            page_kind: PageKind::New,
            page_share: None,
            page_turn: None,
            waits_for_budget: Arc::default(),
            after_page: (0, false),
            read_past_ms: 0,
            ended_at: None,
            is_end_reported: false,
            progress: ReadProgress::new(now),
            too_new: None,
            registry,
            unknown_apps,
            hold,
            held_deliveries: 0,
            withdrawn_deliveries: 0,
            room: 0,
            next_room_ms: 0,
            next_eviction_ms: 0,
            predecessor_acked,
            written_checkpoint: stored,
            losses,
        }
    }

    /// Whether the shard is being read or was read.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        self.pages.is_some()
    }

    /// Starts to read. `former_parents` are those whose order this process does not know.
    pub fn start_reading(&mut self, former_parents: Vec<ShardId>) {
        let checkpoint = self.flow.checkpoint.clone();
        tracing::info!(shard = %self.shard, ?checkpoint, "shard acquired");
        let (sender, pages) = mpsc::channel(1);
        let reader = ShardReader {
            client: self.resources.client.clone(),
            shard: self.shard.clone(),
            slot: self.slot,
            metrics: Arc::clone(&self.resources.metrics),
            budget: self.resources.budget.clone(),
            waits_for_budget: Arc::clone(&self.waits_for_budget),
            checkpoint,
            start_ms: self.resources.start_ms,
            former_parents,
        };
        // The reader ends when `pages` is dropped.
        tokio::spawn(reader.run(sender));
        self.pages = Some(pages);
        // The time for which the parents were read is no failure of the reader.
        self.progress.note_page(0, self.mono_ms());
    }

    /// Whether the shard was read to its end.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended_at.is_some()
    }

    /// Whether all records of the shard are done, and no more can come.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.has_ended() && self.tracker.unfinished_events() == 0
    }

    /// Polls for a page, if one can be accepted, and for finished events.
    pub fn poll_input(&mut self, context: &mut Context<'_>) -> Poll<ShardInput> {
        if let Poll::Ready(Some(finished)) = self.hold.poll_finished(context) {
            return Poll::Ready(ShardInput::Finished(finished));
        }
        if let Poll::Ready(Some(record)) = self.losses.poll_written(context) {
            return Poll::Ready(ShardInput::LetterWritten(record));
        }
        if self.page.is_empty()
            && !self.has_ended()
            && let Some(pages) = &mut self.pages
        {
            return pages.poll_recv(context).map(ShardInput::Page);
        }
        Poll::Pending
    }

    fn mono_ms(&self) -> u64 {
        self.resources.clock.elapsed_ms()
    }

    /// Accepts a page, whose records are taken with [`Self::take_record`].
    pub fn accept_page(&mut self, read: ShardRead) {
        self.progress.note_page(read.behind_ms, self.mono_ms());
        self.flow.read_at_ms = now_ms();
        if read.kind == PageKind::New {
            if let Some(record) = read.records.last() {
                self.flow.read_to = Some(record.sequence.clone());
            }
            let arrived = read.records.last().map_or(0, |record| record.arrival_ms);
            self.after_page = (if read.is_tip { read.asked_ms } else { arrived }, read.last);
        }
        self.page_kind = read.kind;
        self.page_share = Some(read.share);
        self.page_turn = read.turn;
        self.page = read.records.into();
        self.finish_page();
    }

    /// Takes the next record of the page, unless the shard pauses.
    pub fn take_record(&mut self) -> Option<ReadRecord> {
        if self.too_new.is_some() || self.tracker.is_full() || self.room == 0 {
            return None;
        }
        self.page.pop_front()
    }

    /// Applies the progress and the end that the page reports, once all its records are accepted.
    pub fn finish_page(&mut self) {
        if self.page.is_empty() {
            (self.page_share, self.page_turn) = (None, None);
            self.read_past_ms = self.read_past_ms.max(self.after_page.0);
            if self.after_page.1 && !self.has_ended() {
                self.ended_at = Some(Instant::now());
                tracing::info!(shard = %self.shard, "shard read to its end");
            }
        }
    }

    /// Begins a record, and returns its events without those that were read before; `now` is the monotonic clock in ms.
    pub fn accept_record(
        &mut self,
        record: ReadRecord,
        recent_ids: &mut RecentEventIds,
        now: u64,
    ) -> Vec<TrackedEvent> {
        let decoded = decode::decode_record(&record.data, &self.resources.cluster);
        if self.page_kind != PageKind::New {
            return match decoded {
                DecodedRecord::Ours(ours) => self.list_history(ours, recent_ids, now),
                _ => Vec::new(),
            };
        }
        let (sequence, bytes) = (record.sequence.clone(), record.data.len());
        let already_acked = self.predecessor_acked.as_ref().is_some_and(|acked| acked.is_done(&sequence));
        match decoded {
            DecodedRecord::Ours(ours) => {
                let read = ours.events.len();
                let events: Vec<_> =
                    ours.events.into_iter().filter(|event| recent_ids.insert(&event.id, self.slot, now)).collect();
                let open = if already_acked { 0 } else { events.len() };
                self.resources.metrics.count_read(read, read - open);
                // Events that the former holder delivered go through the order alone, which must know each subject's
                // last state.
                let number = self.tracker.begin_record(&sequence, open, bytes);
                if let Some(share) = &mut self.page_share {
                    self.tracker.keep_share(number, share.split(bytes));
                }
                let (slot, app, channel) = (self.slot, ours.app, ours.channel);
                let event =
                    |event| TrackedEvent { slot, record: number, app: app.clone(), channel: channel.clone(), event };
                return events.into_iter().map(event).collect();
            }
            DecodedRecord::Foreign(_, events) if already_acked => {
                self.resources.metrics.count_read(events, events);
                self.tracker.begin_record(&sequence, 0, 0);
            }
            DecodedRecord::Poison(_) if already_acked => {
                self.resources.metrics.count_read(1, 1);
                self.tracker.begin_record(&sequence, 0, 0);
            }
            DecodedRecord::Foreign(cluster, events) => {
                self.resources.metrics.count_refused(EventHop::Foreign, events);
                let number = self.tracker.begin_record(&sequence, 1, bytes);
                let detail = format!("a record of the cluster {cluster}");
                self.give_up(number, Loss::of_record(DropReason::ForeignCluster, detail, events, &record.data));
            }
            DecodedRecord::Poison(why) => {
                self.resources.metrics.count_refused(EventHop::Poison, 1);
                let number = self.tracker.begin_record(&sequence, 1, bytes);
                self.give_up(number, Loss::of_record(DropReason::Poison, why, 1, &record.data));
            }
            DecodedRecord::TooNew(why) => {
                tracing::error!(shard = %self.shard, sequence, why, "shard waits at a record of a newer release");
                self.too_new = Some(why);
                // No further page is kept: the bytes belong to the other shards.
                self.page = [record].into();
                self.page_share = None;
                self.pages = Some(mpsc::channel(1).1);
            }
        }
        Vec::new()
    }

    /// The events of a record that a former holder finished.
    fn list_history(&self, ours: StreamRecord, recent_ids: &mut RecentEventIds, now: u64) -> Vec<TrackedEvent> {
        let slot = if self.page_kind == PageKind::History { self.slot } else { FOREIGN_SLOT };
        let StreamRecord { app, channel, events, .. } = ours;
        let event = |event: RecordedEvent| {
            recent_ids.insert(&event.id, slot, now);
            TrackedEvent { slot, record: HISTORY_RECORD, app: app.clone(), channel: channel.clone(), event }
        };
        events.into_iter().map(event).collect()
    }

    /// Sends the events whose app is known by now, and makes room for the next records.
    pub fn advance(&mut self) {
        self.retry_unknown_apps();
        self.evict_excess();
        self.update_room();
    }

    /// Wakes the endpoints that got events.
    pub fn wake_endpoints(&mut self) {
        self.hold.wake_endpoints();
    }

    /// Marks events as finished without a delivery.
    pub fn skip_events(&mut self, why: SkipReason, events: &[TrackedEvent]) {
        self.resources.metrics.count_skipped(why, events.len());
        for event in events {
            self.tracker.finish_event(event.record);
        }
    }
}
