//! The pipeline of one held shard, from its records to its checkpoint.
//!
//! In: pages of the reader and the outcomes of attempts. Out: attempts, checkpoints, counts. One task owns all the
//! state of a shard, so nothing is locked; the deciding parts are pure and have their own files.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::apps::RegistryReceiver;
use super::checkpoint_tracker::{CheckpointTracker, UNFINISHED_BYTES_MAX, UNFINISHED_EVENTS_MAX};
use super::debounce::{AbsenceDebouncer, DebounceVerdict};
use super::decode::{self, DecodedRecord, RecentEventIds};
use super::endpoint::pool::{EndpointPool, FinishedAt, ShardHold};
use super::endpoint::share::EventAmount;
use super::endpoint::{EndpointId, OutgoingEvent};
use super::events::TrackedEvent;
use super::leases::{AckedOutOfOrder, Checkpoint, CheckpointPosition, LeaseError, ShardLeases};
use super::metrics::{DispatcherMetrics, DropReason, PauseReason, ShardState, SkipReason};
use super::read_progress::ReadProgress;
use super::reader::{ShardRead, ShardReader};
use super::sequencer::{SequencedEvent, Sequencer};
use crate::kinesis::{KinesisClient, ReadPosition, ReadRecord, is_before};
use crate::process::clock::now_ms;
use crate::protocol::ShardId;
use crate::protocol::admin::ShardFlow;
use crate::protocol::registry::{AppRegistry, WebhookEndpoint};
use crate::protocol::webhook::WebhookEvent;

/// Interval at which waiting events are checked for release.
const TICK_INTERVAL: Duration = Duration::from_millis(50);
/// Least interval between two checkpoints of a shard.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5);
/// Bounds a write to the lease store.
const LEASE_WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for which a stopping worker goes on with attempts in flight.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an app that is not in the registry yet.
const UNKNOWN_APP_TIMEOUT_MS: u64 = 30_000;
/// Least interval between two evictions from endpoints that are behind.
const EVICTION_INTERVAL_MS: u64 = 100;
/// Least interval between two log lines on one drop reason.
const DROP_LOG_INTERVAL_MS: u64 = 5_000;

/// Resources that the shards of a process share.
pub struct WorkerResources {
    /// The client of the stream.
    pub client: KinesisClient,
    /// The store that checkpoints are written to.
    pub leases: Arc<dyn ShardLeases>,
    /// The endpoints that webhooks are sent to.
    pub pool: Arc<EndpointPool>,
    /// The registry of apps and endpoints.
    pub apps: RegistryReceiver,
    /// The metrics of the process.
    pub metrics: Arc<DispatcherMetrics>,
    /// The cluster whose records are delivered.
    pub cluster: String,
}

/// The worker of one held shard.
pub struct ShardWorker {
    resources: Arc<WorkerResources>,
    shard: ShardId,
    generation: u64,
    stream_created_ms: u64,
    started: Instant,
    flow: ShardFlow,
    /// Records of the current page that are not accepted yet.
    page: VecDeque<ReadRecord>,
    /// State to set once the current page is accepted: the time that is read past, and whether the shard ends.
    after_page: (u64, bool),
    read_past_ms: u64,
    ended: bool,
    progress: ReadProgress,
    /// Why a record at the front of the page cannot be read by this release.
    too_new: Option<String>,
    recent_ids: RecentEventIds,
    sequencer: Sequencer,
    debounce: AbsenceDebouncer,
    /// The registry that this turn of the pipeline uses.
    registry: Arc<AppRegistry>,
    /// Events of apps that the registry does not have yet, with the time until which they wait; the oldest first.
    unknown_app_events: VecDeque<(u64, TrackedEvent)>,
    hold: ShardHold,
    /// Earliest time of the next eviction from endpoints that are behind.
    next_eviction_ms: u64,
    tracker: CheckpointTracker,
    /// Records that the former holder finished beyond the position at which this worker began to read.
    predecessor_acked: Option<AckedOutOfOrder>,
    written_checkpoint: Option<Checkpoint>,
    /// Time of the last log line per drop reason.
    last_drop_log_ms: BTreeMap<DropReason, u64>,
}

impl ShardWorker {
    /// A worker for a lease that was acquired.
    #[must_use]
    pub fn new(resources: Arc<WorkerResources>, shard: ShardId, generation: u64, stream_created_ms: u64) -> Self {
        let hold = resources.pool.open_hold();
        let registry = Arc::clone(&resources.apps.borrow());
        Self {
            resources,
            shard,
            generation,
            stream_created_ms,
            started: Instant::now(),
            flow: ShardFlow::default(),
            page: VecDeque::new(),
            after_page: (0, false),
            read_past_ms: 0,
            ended: false,
            progress: ReadProgress::new(0),
            too_new: None,
            recent_ids: RecentEventIds::default(),
            sequencer: Sequencer::default(),
            debounce: AbsenceDebouncer::default(),
            registry,
            unknown_app_events: VecDeque::new(),
            hold,
            next_eviction_ms: 0,
            tracker: CheckpointTracker::default(),
            predecessor_acked: None,
            written_checkpoint: None,
            last_drop_log_ms: BTreeMap::new(),
        }
    }

    /// Holds the shard until it is stopped, reaches the shard's end, or loses the lease.
    pub async fn run(mut self, checkpoint: Option<Checkpoint>, stop: CancellationToken) {
        let resources = Arc::clone(&self.resources);
        let checkpoint = checkpoint.filter(|it| it.stream_created_ms == self.stream_created_ms);
        self.written_checkpoint.clone_from(&checkpoint);
        let position = match checkpoint {
            Some(Checkpoint { position: CheckpointPosition::Through(sequence), beyond, .. }) => {
                self.flow.checkpoint = Some(sequence.clone());
                self.tracker = CheckpointTracker::resume_from(Some(sequence.clone()));
                self.predecessor_acked = beyond;
                ReadPosition::After(sequence)
            }
            _ => ReadPosition::TrimHorizon,
        };
        tracing::info!(shard = %self.shard, ?position, "shard acquired");
        let (sender, pages) = mpsc::channel(1);
        let (client, metrics) = (resources.client.clone(), Arc::clone(&resources.metrics));
        let reader = ShardReader { client, shard: self.shard.clone(), metrics };
        // The reader ends when `pages` is dropped, at the end of this function.
        tokio::spawn(reader.run(position, sender));
        let outcome = self.run_pipeline(pages, &stop).await;
        if outcome.is_ok() {
            self.drain_attempts().await;
            self.release_lease().await;
        } else if let Err(error) = outcome {
            tracing::warn!(shard = %self.shard, %error, "shard worker ended");
        }
        resources.metrics.remove_shard(&self.shard);
    }

    async fn run_pipeline(
        &mut self,
        mut pages: mpsc::Receiver<ShardRead>,
        stop: &CancellationToken,
    ) -> Result<(), String> {
        let mut tick = interval(TICK_INTERVAL);
        let mut writing = interval(CHECKPOINT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        writing.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut writes = JoinSet::new();
        loop {
            self.advance_pipeline();
            self.update_metrics();
            if self.ended && self.tracker.unfinished_events() == 0 {
                return Ok(());
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                page = pages.recv(), if self.page.is_empty() && !self.ended => match page {
                    Some(page) => self.accept_page(page),
                    None => return Err("the shard's reader ended".to_owned()),
                },
                Some(finished) = self.hold.next_finished() => self.complete_deliveries(finished),
                Some(written) = writes.join_next() => self.on_checkpoint_written(written)?,
                _ = writing.tick(), if writes.is_empty() => self.write_checkpoint(&mut writes),
                _ = tick.tick() => {}
            }
        }
    }

    /// Waits for attempts in flight, so that a take-over repeats few of them.
    async fn drain_attempts(&mut self) {
        self.hold.drain(DRAIN_TIMEOUT).await;
        while let Some(finished) = self.hold.take_finished() {
            self.complete_deliveries(finished);
        }
    }

    fn mono_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn accept_page(&mut self, read: ShardRead) {
        if let Some(record) = read.records.last() {
            self.flow.read_to = Some(record.sequence.clone());
        }
        let arrived = read.records.last().map_or(0, |record| record.arrival_ms);
        self.progress.note_page(read.behind_ms, self.mono_ms());
        self.flow.read_at_ms = now_ms();
        let past = match (read.last, read.behind_ms) {
            // Nothing more can arrive in this shard; a return after a reshard arrives in a child and is delivered as an
            // arrival.
            (true, _) => u64::MAX,
            (false, 0) => read.asked_ms,
            _ => arrived,
        };
        self.after_page = (past, read.last);
        self.page = read.records.into();
        if self.page.is_empty() {
            self.finish_page();
        }
    }

    fn finish_page(&mut self) {
        self.read_past_ms = self.read_past_ms.max(self.after_page.0);
        self.ended = self.after_page.1;
    }

    /// Moves all events on that can move now.
    fn advance_pipeline(&mut self) {
        // Events that waited for their app precede newer ones.
        self.retry_unknown_apps();
        self.evict_excess();
        while self.pause_reason().is_none() {
            let Some(record) = self.page.pop_front() else { break };
            self.accept_record(record);
            if self.page.is_empty() {
                self.finish_page();
            }
        }
        let steps = self.sequencer.release_due(self.mono_ms());
        self.apply_sequenced(steps);
        self.resources.metrics.count_gaps(self.sequencer.take_gaps());
        // A full shard is not read, so waiting to read on would wait for itself: the clock alone then decides, and a
        // return that was not read yet is delivered after the absence.
        let read_past_ms = if self.tracker.is_full() { u64::MAX } else { self.read_past_ms };
        for event in self.debounce.release_due(now_ms(), read_past_ms) {
            self.fan_out(event);
        }
        self.hold.wake_endpoints();
    }

    fn accept_record(&mut self, record: ReadRecord) {
        let (sequence, bytes) = (record.sequence.clone(), record.data.len());
        let already_acked = self.predecessor_acked.as_ref().is_some_and(|acked| acked.is_done(&sequence));
        match decode::decode_record(&record.data, &self.resources.cluster) {
            DecodedRecord::Ours(ours) => {
                let read = ours.events.len();
                let events: Vec<_> =
                    ours.events.into_iter().filter(|event| self.recent_ids.insert(&event.id)).collect();
                self.resources.metrics.count_skipped(SkipReason::Duplicate, read - events.len());
                // Events that the former holder delivered go through the sequencer alone, which must know each
                // subject's last state.
                let number = self.tracker.begin_record(&sequence, if already_acked { 0 } else { events.len() }, bytes);
                for event in events {
                    let event =
                        TrackedEvent { record: number, app: ours.app.clone(), channel: ours.channel.clone(), event };
                    let steps = self.sequencer.push(event, self.mono_ms());
                    self.apply_sequenced(steps);
                }
            }
            DecodedRecord::Foreign(..) | DecodedRecord::Poison(_) if already_acked => {
                self.tracker.begin_record(&sequence, 0, 0);
            }
            DecodedRecord::Foreign(cluster, events) => {
                self.drop_events(DropReason::ForeignCluster, events, &cluster);
                self.tracker.begin_record(&sequence, 0, 0);
            }
            DecodedRecord::Poison(why) => {
                self.drop_events(DropReason::Poison, 1, &why);
                self.tracker.begin_record(&sequence, 0, 0);
            }
            DecodedRecord::TooNew(why) => {
                tracing::error!(shard = %self.shard, sequence, why, "shard waits at a record of a newer release");
                self.too_new = Some(why);
                self.page.push_front(record);
            }
        }
    }

    fn apply_sequenced(&mut self, steps: Vec<SequencedEvent>) {
        for step in steps {
            let (SequencedEvent::Superseded(event) | SequencedEvent::Release(event)) = &step;
            if !self.tracker.is_open(event.record) {
                continue;
            }
            match step {
                SequencedEvent::Superseded(event) => self.skip_events(SkipReason::Superseded, &[event]),
                SequencedEvent::Release(event) => match self.debounce.push(event, now_ms()) {
                    DebounceVerdict::Pass(event) => self.fan_out(event),
                    DebounceVerdict::Held => {}
                    DebounceVerdict::Cancels { mut held, by } => {
                        for half in &held {
                            self.tracker.join_records(half.record, by.record);
                        }
                        held.push(by);
                        self.skip_events(SkipReason::Cancelled, &held);
                    }
                },
            }
        }
    }

    fn skip_events(&mut self, why: SkipReason, events: &[TrackedEvent]) {
        self.resources.metrics.count_skipped(why, events.len());
        for event in events {
            self.tracker.finish_event(event.record);
        }
    }

    /// Queues an event whose turn has come to every endpoint that subscribes to it.
    fn fan_out(&mut self, event: TrackedEvent) {
        let Some(app) = self.registry.by_id(&event.app) else {
            self.unknown_app_events.push_back((self.mono_ms() + UNKNOWN_APP_TIMEOUT_MS, event));
            return;
        };
        let wants = app.webhooks.iter().filter(|it| it.wants_event(event.event.kind.name(), event.channel.as_str()));
        let targets: Vec<EndpointId> =
            wants.map(|it| EndpointId { app: event.app.clone(), endpoint: it.name.clone() }).collect();
        let off = |it: &&WebhookEndpoint| it.wants_event(event.event.kind.name(), event.channel.as_str());
        let disabled = app.disabled_webhooks.iter().filter(off).count();
        self.resources.metrics.count_skipped(SkipReason::EndpointDisabled, disabled);
        let webhook = WebhookEvent::new(&event.channel, &event.event);
        let outgoing = Arc::new(OutgoingEvent::new(webhook, event.event.time_ms));
        self.tracker.add_deliveries(event.record, targets.len());
        for target in targets {
            self.hold.push(&target, event.record, Arc::clone(&outgoing));
        }
        // The event itself is done: its deliveries count in its place.
        self.tracker.finish_event(event.record);
    }

    /// Takes the current registry. Retries events whose app is known now, and drops those that waited too long.
    fn retry_unknown_apps(&mut self) {
        let now = self.mono_ms();
        let registry = Arc::clone(&self.resources.apps.borrow());
        let is_same = Arc::ptr_eq(&registry, &self.registry);
        self.registry = registry;
        if is_same && self.unknown_app_events.front().is_none_or(|(until, _)| *until > now) {
            return;
        }
        for (until, event) in std::mem::take(&mut self.unknown_app_events) {
            if self.registry.by_id(&event.app).is_some() {
                self.fan_out(event);
            } else if until <= now {
                self.drop_events(DropReason::UnknownApp, 1, event.app.as_str());
                self.tracker.finish_event(event.record);
            } else {
                self.unknown_app_events.push_back((until, event));
            }
        }
    }

    /// Drops events of endpoints that are behind, once they hold more than half of a bound together: the other endpoints
    /// must not wait for them.
    fn evict_excess(&mut self) {
        let now = self.mono_ms();
        if !self.tracker.is_half_full() || now < self.next_eviction_ms {
            return;
        }
        self.next_eviction_ms = now + EVICTION_INTERVAL_MS;
        let most = EventAmount { events: UNFINISHED_EVENTS_MAX / 2, bytes: UNFINISHED_BYTES_MAX / 2 };
        for finished in self.hold.evict_excess(most) {
            self.complete_delivery(&finished);
        }
    }

    /// Completes a finished delivery, and all others that are known by now.
    fn complete_deliveries(&mut self, first: FinishedAt) {
        let mut next = Some(first);
        while let Some(finished) = next {
            self.complete_delivery(&finished);
            next = self.hold.take_finished();
        }
    }

    fn complete_delivery(&mut self, (endpoint, finished): &FinishedAt) {
        let delivery = &finished.delivery;
        if let Some(reason) = finished.dropped {
            self.resources.metrics.endpoints.count_dropped(&endpoint.app, &endpoint.endpoint);
            self.drop_events(reason, 1, &format!("{endpoint}: {}", delivery.outgoing.id));
        }
        self.tracker.finish_event(delivery.record);
    }

    /// The one place at which events are dropped: a dead-letter queue would be written here.
    fn drop_events(&mut self, reason: DropReason, events: usize, what: &str) {
        self.resources.metrics.count_dropped(reason, events);
        // Every event is counted; the log gets an example per interval.
        let now = self.mono_ms();
        if self.last_drop_log_ms.get(&reason).is_none_or(|at| at + DROP_LOG_INTERVAL_MS <= now) {
            self.last_drop_log_ms.insert(reason, now);
            tracing::warn!(shard = %self.shard, ?reason, events, what, "events dropped");
        }
    }

    /// Why no record is taken now.
    fn pause_reason(&self) -> Option<PauseReason> {
        if self.too_new.is_some() {
            Some(PauseReason::RecordTooNew)
        } else {
            self.tracker.is_full().then_some(PauseReason::Full)
        }
    }

    fn update_metrics(&mut self) {
        if let Some(checkpoint) = self.tracker.checkpoint() {
            self.flow.checkpoint = Some(checkpoint.to_owned());
        }
        // A shard that was read to its end cannot be behind.
        if self.ended {
            self.progress.note_page(0, self.mono_ms());
        }
        let (now, unfinished) = (self.mono_ms(), self.tracker.unfinished_events());
        if let Some(change) = self.progress.update(self.pause_reason(), now) {
            self.resources.metrics.report_pause(&self.shard, change, self.too_new.as_deref(), unfinished);
        }
        self.flow.behind_ms = self.progress.behind_ms(now);
        let paused = self.progress.reported_pause();
        self.resources.metrics.set_shard(&self.shard, ShardState { flow: self.flow.clone(), unfinished, paused });
    }

    fn build_checkpoint(&self) -> Option<Checkpoint> {
        let done = self.ended && self.tracker.unfinished_events() == 0;
        let through = || self.tracker.checkpoint().map(|sequence| CheckpointPosition::Through(sequence.to_owned()));
        let position = if done { Some(CheckpointPosition::ShardEnd) } else { through() }?;
        // Records that the former holder finished and this worker has not read again yet stay done.
        let beyond = self
            .tracker
            .acked_out_of_order()
            .filter(|own| !self.is_behind_predecessor(own))
            .or_else(|| self.predecessor_acked.clone());
        let beyond = beyond.filter(|_| position != CheckpointPosition::ShardEnd);
        Some(Checkpoint { stream_created_ms: self.stream_created_ms, position, beyond })
    }

    /// Whether this worker's last read record precedes the end of the former holder's finished ones.
    fn is_behind_predecessor(&self, own: &AckedOutOfOrder) -> bool {
        self.predecessor_acked.as_ref().is_some_and(|acked| is_before(&own.through, &acked.through))
    }

    fn write_checkpoint(&mut self, writes: &mut JoinSet<Result<(), LeaseError>>) {
        let Some(checkpoint) = self.build_checkpoint().filter(|it| self.written_checkpoint.as_ref() != Some(it)) else {
            return;
        };
        let (resources, shard, generation) = (Arc::clone(&self.resources), self.shard.clone(), self.generation);
        self.written_checkpoint = Some(checkpoint.clone());
        writes.spawn(async move {
            timeout(LEASE_WRITE_TIMEOUT, resources.leases.renew(&shard, generation, Some(checkpoint)))
                .await
                .unwrap_or_else(|_| Err(LeaseError::Unavailable("no answer in time".to_owned())))
        });
    }

    fn on_checkpoint_written(
        &mut self,
        written: Result<Result<(), LeaseError>, tokio::task::JoinError>,
    ) -> Result<(), String> {
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error @ LeaseError::Lost(_))) => Err(error.to_string()),
            Ok(Err(error)) => {
                self.written_checkpoint = None;
                tracing::warn!(shard = %self.shard, %error, "checkpoint write failed: trying again");
                Ok(())
            }
            Err(error) => Err(format!("a checkpoint's write broke: {error}")),
        }
    }

    async fn release_lease(&self) {
        let checkpoint = self.build_checkpoint();
        tracing::info!(shard = %self.shard, ?checkpoint, "releasing shard");
        let released =
            timeout(LEASE_WRITE_TIMEOUT, self.resources.leases.release_shard(&self.shard, self.generation, checkpoint))
                .await;
        if !matches!(released, Ok(Ok(()))) {
            tracing::warn!(shard = %self.shard, ?released, "shard release failed: its lease expires");
        }
    }
}
