//! One held shard: everything between its records and its checkpoint.
//!
//! In: pages of the reader and the ends of attempts. Out: attempts, checkpoints, counts. One task owns all the state of a
//! shard, so nothing is locked; the parts that decide are pure and stand in their own files.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::apps::Apps;
use super::assembler::{Assembler, Body, Finished, Item, Outcome, Outgoing, Target};
use super::debounce::{Debounce, Verdict};
use super::events::Tracked;
use super::intake::{self, Intake, Recent};
use super::leases::{Beyond, Checkpoint, Done, LeaseError, Leases};
use super::metrics::{Loss, Metrics, Settled, Source};
use super::reader::{Read, Reader};
use super::retry::Patience;
use super::sender::Sender;
use super::sequencer::{Sequencer, Step};
use super::tracker::Tracker;
use crate::kinesis::{Client, Position, ReadRecord, is_before};
use crate::protocol::ShardId;
use crate::protocol::admin::ShardFlow;
use crate::protocol::webhook::WebhookEvent;
use crate::runtime::clock::now_ms;

/// How often what waits is looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often a checkpoint is written at most.
const CHECKPOINT: Duration = Duration::from_secs(5);
/// Longest that a write to the leases may take.
const WRITE: Duration = Duration::from_secs(5);
/// How long a holder that stops goes on with what needs no waiting.
const DRAIN: Duration = Duration::from_secs(5);
/// How long an unknown app is waited for.
const UNKNOWN_APP_MS: u64 = 30_000;
/// Least time between two log lines on one kind of loss.
const COMPLAIN_MS: u64 = 5_000;

/// What the shards of a process share.
pub struct Shared {
    /// The stream.
    pub client: Client,
    /// Where checkpoints go.
    pub leases: Arc<dyn Leases>,
    /// Posts.
    pub sender: Sender,
    /// Who wants what.
    pub apps: Apps,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Whose records are delivered.
    pub cluster: String,
    /// How long is retried.
    pub patience: Patience,
}

/// A shard, held.
pub struct Holder {
    common: Arc<Shared>,
    shard: ShardId,
    generation: u64,
    stream_created_ms: u64,
    started: Instant,
    flow: ShardFlow,
    /// Records of the page at hand that are not taken in yet.
    page: VecDeque<ReadRecord>,
    /// What becomes true when the page at hand is taken in: the time that is read past, and whether the shard ends.
    after_page: (u64, bool),
    read_past_ms: u64,
    ended: bool,
    stuck: bool,
    recent: Recent,
    sequencer: Sequencer,
    debounce: Debounce,
    /// Events of apps that the registry does not have yet, with the time until which they wait.
    strangers: VecDeque<(u64, Tracked)>,
    assembler: Assembler,
    tracker: Tracker,
    /// What the former holder was done with beyond where this one began to read.
    settled: Option<Beyond>,
    written: Option<Checkpoint>,
    /// When each kind of loss was last logged.
    complained: BTreeMap<Loss, u64>,
}

impl Holder {
    /// A holder of a lease that was acquired.
    #[must_use]
    pub fn new(common: Arc<Shared>, shard: ShardId, generation: u64, stream_created_ms: u64) -> Self {
        let assembler = Assembler::new(common.patience);
        Self {
            common,
            shard,
            generation,
            stream_created_ms,
            started: Instant::now(),
            flow: ShardFlow::default(),
            page: VecDeque::new(),
            after_page: (0, false),
            read_past_ms: 0,
            ended: false,
            stuck: false,
            recent: Recent::default(),
            sequencer: Sequencer::default(),
            debounce: Debounce::default(),
            strangers: VecDeque::new(),
            assembler,
            tracker: Tracker::default(),
            settled: None,
            written: None,
            complained: BTreeMap::new(),
        }
    }

    /// Holds the shard until told to stop, until its end, or until the lease is lost.
    pub async fn run(mut self, checkpoint: Option<Checkpoint>, stop: CancellationToken) {
        let common = Arc::clone(&self.common);
        let checkpoint = checkpoint.filter(|it| it.stream_created_ms == self.stream_created_ms);
        self.written.clone_from(&checkpoint);
        let position = match checkpoint {
            Some(Checkpoint { position: Done::Through(sequence), beyond, .. }) => {
                self.flow.checkpoint = Some(sequence.clone());
                self.tracker = Tracker::resume(Some(sequence.clone()));
                self.settled = beyond;
                Position::After(sequence)
            }
            _ => Position::TrimHorizon,
        };
        tracing::info!(shard = %self.shard, ?position, "holding a shard");
        let (sender, pages) = mpsc::channel(1);
        let (client, metrics) = (common.client.clone(), Arc::clone(&common.metrics));
        let reader = Reader { client, shard: self.shard.clone(), metrics };
        // Ends when `pages` goes, which it does with this function.
        tokio::spawn(reader.run(position, sender));
        let mut attempts = JoinSet::new();
        let outcome = self.work(pages, &mut attempts, &stop).await;
        if outcome.is_ok() {
            self.drain(&mut attempts).await;
            self.release().await;
        } else if let Err(error) = outcome {
            tracing::warn!(shard = %self.shard, %error, "the shard is not held any more");
        }
        attempts.abort_all();
        common.metrics.shard_left(&self.shard);
    }

    async fn work(
        &mut self,
        mut pages: mpsc::Receiver<Read>,
        attempts: &mut JoinSet<(Body, Outcome)>,
        stop: &CancellationToken,
    ) -> Result<(), String> {
        let mut tick = interval(TICK);
        let mut writing = interval(CHECKPOINT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        writing.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut writes = JoinSet::new();
        loop {
            self.advance();
            self.post(attempts);
            self.show();
            if self.ended && self.tracker.unfinished() == 0 {
                return Ok(());
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                page = pages.recv(), if self.page.is_empty() && !self.ended => match page {
                    Some(page) => self.take(page),
                    None => return Err("its reader has ended".to_owned()),
                },
                Some(attempt) = attempts.join_next() => self.finish(attempt)?,
                Some(written) = writes.join_next() => self.wrote(written)?,
                _ = writing.tick(), if writes.is_empty() => self.write(&mut writes),
                _ = tick.tick() => {}
            }
        }
    }

    /// Goes on with what needs no waiting, so that a hand-over repeats little.
    async fn drain(&mut self, attempts: &mut JoinSet<(Body, Outcome)>) {
        let end = Instant::now() + DRAIN;
        while let Ok(Some(attempt)) = tokio::time::timeout_at(end, attempts.join_next()).await {
            if self.finish(attempt).is_err() {
                return;
            }
            self.post(attempts);
        }
    }

    fn mono_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn take(&mut self, read: Read) {
        if let Some(record) = read.records.last() {
            self.flow.read_to = Some(record.sequence.clone());
        }
        let arrived = read.records.last().map_or(0, |record| record.arrival_ms);
        self.flow.behind_ms = read.behind_ms;
        self.flow.read_at_ms = now_ms();
        let past = match (read.last, read.behind_ms) {
            // Nothing more can come here; a return after a reshard comes in a child and is told as such.
            (true, _) => u64::MAX,
            (false, 0) => read.asked_ms,
            _ => arrived,
        };
        self.after_page = (past, read.last);
        self.page = read.records.into();
        if self.page.is_empty() {
            self.page_done();
        }
    }

    fn page_done(&mut self) {
        self.read_past_ms = self.read_past_ms.max(self.after_page.0);
        self.ended = self.after_page.1;
    }

    /// Moves everything on that can move now.
    fn advance(&mut self) {
        // Those who waited for their app go before what comes now.
        self.meet();
        while !self.stuck && !self.tracker.full() && !self.assembler.crowded() {
            let Some(record) = self.page.pop_front() else { break };
            self.record(record);
            if self.page.is_empty() {
                self.page_done();
            }
        }
        let steps = self.sequencer.due(self.mono_ms());
        self.steps(steps);
        self.common.metrics.gaps(self.sequencer.take_gaps());
        // A full shard is not read, so waiting to read on would wait for itself: then the clock alone decides, and a
        // return that was not read yet is told after the absence.
        let read_past_ms = if self.tracker.full() { u64::MAX } else { self.read_past_ms };
        for event in self.debounce.due(now_ms(), read_past_ms) {
            self.tell(event);
        }
        self.meet();
    }

    fn record(&mut self, record: ReadRecord) {
        let (sequence, bytes) = (record.sequence.clone(), record.data.len());
        let settled = self.settled.as_ref().is_some_and(|settled| settled.is_done(&sequence));
        match intake::read(&record.data, &self.common.cluster) {
            Intake::Ours(ours) => {
                let read = ours.events.len();
                let events: Vec<_> = ours.events.into_iter().filter(|event| self.recent.is_new(&event.id)).collect();
                self.common.metrics.settled(Settled::Duplicate, read - events.len());
                // What the former holder told goes through the sequencer alone, which must know how far each subject is.
                let number = self.tracker.begin(&sequence, if settled { 0 } else { events.len() }, bytes);
                for event in events {
                    let event = Tracked { record: number, app: ours.app.clone(), channel: ours.channel.clone(), event };
                    let steps = self.sequencer.push(event, self.mono_ms());
                    self.steps(steps);
                }
            }
            Intake::Foreign(..) | Intake::Poison(_) if settled => {
                self.tracker.begin(&sequence, 0, 0);
            }
            Intake::Foreign(cluster, events) => {
                self.lose(Loss::ForeignCluster, events, &cluster);
                self.tracker.begin(&sequence, 0, 0);
            }
            Intake::Poison(why) => {
                self.lose(Loss::Poison, 1, &why);
                self.tracker.begin(&sequence, 0, 0);
            }
            Intake::TooNew(why) => {
                tracing::error!(shard = %self.shard, sequence, why, "the shard waits");
                self.common.metrics.failed(Source::Record(self.shard.clone()), why);
                self.stuck = true;
                self.page.push_front(record);
            }
        }
    }

    fn steps(&mut self, steps: Vec<Step>) {
        for step in steps {
            let (Step::Superseded(event) | Step::Release(event)) = &step;
            if !self.tracker.is_open(event.record) {
                continue;
            }
            match step {
                Step::Superseded(event) => self.settle(Settled::Superseded, &[event]),
                Step::Release(event) => match self.debounce.push(event, now_ms()) {
                    Verdict::Pass(event) => self.tell(event),
                    Verdict::Held => {}
                    Verdict::Cancels { mut held, by } => {
                        for half in &held {
                            self.tracker.join(half.record, by.record);
                        }
                        held.push(by);
                        self.settle(Settled::Cancelled, &held);
                    }
                },
            }
        }
    }

    fn settle(&mut self, why: Settled, events: &[Tracked]) {
        self.common.metrics.settled(why, events.len());
        for event in events {
            self.tracker.done(event.record);
        }
    }

    /// Its turn has come: to every endpoint that wants it.
    fn tell(&mut self, event: Tracked) {
        let registry = Arc::clone(&self.common.apps.borrow());
        let Some(app) = registry.app(&event.app) else {
            self.strangers.push_back((self.mono_ms() + UNKNOWN_APP_MS, event));
            return;
        };
        let wants = app.webhooks.iter().filter(|it| it.wants(event.event.kind.name(), event.channel.as_str()));
        let targets: Vec<Target> =
            wants.map(|it| Target { app: event.app.clone(), endpoint: it.name.clone() }).collect();
        let told = WebhookEvent::new(&event.channel, &event.event);
        let bytes = serde_json::to_string(&told).map_or(0, |text| text.len());
        let outgoing = Arc::new(Outgoing { event: told, time_ms: event.event.time_ms, bytes });
        self.tracker.add(event.record, targets.len());
        let since_ms = self.mono_ms();
        for target in targets {
            let item = Item { record: event.record, since_ms, outgoing: Arc::clone(&outgoing) };
            let finished = self.assembler.push(&target, item);
            self.settled(&target, finished);
        }
        // The event itself is done: its deliveries have taken its place.
        self.tracker.done(event.record);
    }

    /// Events whose app has come, and those that waited for it too long.
    fn meet(&mut self) {
        let now = self.mono_ms();
        let registry = Arc::clone(&self.common.apps.borrow());
        let known = |event: &Tracked| registry.app(&event.app).is_some();
        if !self.strangers.iter().any(|(until, event)| *until <= now || known(event)) {
            return;
        }
        for (until, event) in std::mem::take(&mut self.strangers) {
            if known(&event) {
                self.tell(event);
            } else if until <= now {
                self.lose(Loss::UnknownApp, 1, event.app.as_str());
                self.tracker.done(event.record);
            } else {
                self.strangers.push_back((until, event));
            }
        }
    }

    fn post(&mut self, attempts: &mut JoinSet<(Body, Outcome)>) {
        for body in self.assembler.ready(self.mono_ms()) {
            let common = Arc::clone(&self.common);
            attempts.spawn(async move {
                let outcome = common.sender.attempt(&body).await;
                (body, outcome)
            });
        }
    }

    fn finish(&mut self, attempt: Result<(Body, Outcome), tokio::task::JoinError>) -> Result<(), String> {
        // The body went with the task; whoever holds the shard next reads it again.
        let (body, outcome) = attempt.map_err(|error| format!("an attempt broke: {error}"))?;
        let target = body.target.clone();
        let finished = self.assembler.ended(body, outcome, self.mono_ms(), rand::random());
        self.settled(&target, finished);
        Ok(())
    }

    fn settled(&mut self, target: &Target, finished: Finished) {
        for (reason, item) in &finished.lost {
            self.lose(*reason, 1, &format!("{target}: {}", item.outgoing.event.id));
        }
        let lost = finished.lost.into_iter().map(|(_, item)| item.record);
        finished.taken.into_iter().chain(lost).for_each(|record| self.tracker.done(record));
    }

    /// Where events are given up, all of them: a dead letter would be written here.
    fn lose(&mut self, reason: Loss, events: usize, what: &str) {
        self.common.metrics.lost(reason, events);
        // Every event is counted; the log gets an example now and then.
        let now = self.mono_ms();
        if self.complained.get(&reason).is_none_or(|at| at + COMPLAIN_MS <= now) {
            self.complained.insert(reason, now);
            tracing::warn!(shard = %self.shard, ?reason, events, what, "events are lost");
        }
    }

    fn show(&mut self) {
        if let Some(checkpoint) = self.tracker.checkpoint() {
            self.flow.checkpoint = Some(checkpoint.to_owned());
        }
        self.common.metrics.shard(&self.shard, self.flow.clone(), self.tracker.unfinished());
    }

    fn checkpoint(&self) -> Option<Checkpoint> {
        let done = self.ended && self.tracker.unfinished() == 0;
        let through = || self.tracker.checkpoint().map(|sequence| Done::Through(sequence.to_owned()));
        let position = if done { Some(Done::ShardEnd) } else { through() }?;
        // What the former holder was done with and this one has not read again yet stays done.
        let beyond = self.tracker.beyond().filter(|own| !self.behind(own)).or_else(|| self.settled.clone());
        let beyond = beyond.filter(|_| position != Done::ShardEnd);
        Some(Checkpoint { stream_created_ms: self.stream_created_ms, position, beyond })
    }

    /// Whether what this holder has read ends before what its predecessor was done with.
    fn behind(&self, own: &Beyond) -> bool {
        self.settled.as_ref().is_some_and(|settled| is_before(&own.through, &settled.through))
    }

    fn write(&mut self, writes: &mut JoinSet<Result<(), LeaseError>>) {
        let Some(checkpoint) = self.checkpoint().filter(|it| self.written.as_ref() != Some(it)) else { return };
        let (common, shard, generation) = (Arc::clone(&self.common), self.shard.clone(), self.generation);
        self.written = Some(checkpoint.clone());
        writes.spawn(async move {
            timeout(WRITE, common.leases.renew(&shard, generation, Some(checkpoint)))
                .await
                .unwrap_or_else(|_| Err(LeaseError::Unavailable("no answer in time".to_owned())))
        });
    }

    fn wrote(&mut self, written: Result<Result<(), LeaseError>, tokio::task::JoinError>) -> Result<(), String> {
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error @ LeaseError::Lost(_))) => Err(error.to_string()),
            Ok(Err(error)) => {
                self.written = None;
                tracing::warn!(shard = %self.shard, %error, "the checkpoint is not written; trying again");
                Ok(())
            }
            Err(error) => Err(format!("a checkpoint's write broke: {error}")),
        }
    }

    async fn release(&self) {
        let checkpoint = self.checkpoint();
        tracing::info!(shard = %self.shard, ?checkpoint, "giving a shard back");
        let released = timeout(WRITE, self.common.leases.release(&self.shard, self.generation, checkpoint)).await;
        if !matches!(released, Ok(Ok(()))) {
            tracing::warn!(shard = %self.shard, ?released, "the shard could not be given back; its lease runs out");
        }
    }
}
