//! The recorder: writes events to the stream without delaying chat messages.
//!
//! In: transitions of the bus, and accepted client events. Out: records that Kinesis acknowledged, or a count of drops
//! by reason. [`queue`] decides the order, [`writer`] sends. Only events that an endpoint of their app receives are
//! recorded. Every transition's receipt is acknowledged in the end: recorded, dropped, or not wanted.

pub(crate) mod app_shares;
pub(crate) mod event;
pub(crate) mod lane;
pub(crate) mod limits;
pub(crate) mod queue;
pub(crate) mod writer;

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ulid::Ulid;

use event::{DroppedEvent, RecordableEvent};
use limits::QueueLimits;
use queue::RecordQueue;

use crate::bus::{ChannelKey, DecidedTransition, DecidedTransitions, Receipt};
use crate::edge::apps::RegistryWatcher;
use crate::edge::drop_reason::DropReason;
use crate::edge::error::StopError;
use crate::edge::metrics::EdgeMetrics;
use crate::kinesis;
use crate::process::clock::{self, MonotonicClock};
use crate::process::locks::lock_unpoisoned;
use crate::process::metrics::LabelValue;
use crate::protocol::AppId;
use crate::protocol::admin::{RecorderFlow, RecorderState};
use crate::protocol::record::{EventKind, RecordOrigin, RecordedEvent};
use crate::protocol::registry::App;

/// Lanes that are written independently; each has its share of the partition keys.
pub const LANE_COUNT: usize = 8;

/// Events queued for the stream at most.
pub const RECORDER_EVENTS_MAX: usize = QueueLimits::DEFAULT.events;

/// Bytes of events queued for the stream at most.
pub const RECORDER_BYTES_MAX: usize = QueueLimits::DEFAULT.bytes;

/// Age at which a queued client event is dropped.
pub const CLIENT_EVENT_TTL: Duration = Duration::from_millis(QueueLimits::DEFAULT.client_event_ms);

/// Time for which events of an app wait, and none is acknowledged, before the app counts as silent.
const SILENCE_GRACE: Duration = Duration::from_mins(1);

/// Silent apps that a report names at most.
const REPORTED_SILENT_APPS_MAX: usize = 10;

/// Interval of checks for expired client events.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(5);

/// Queues events and writes them to the stream.
pub struct Recorder {
    shared: Option<Arc<RecorderCore>>,
    apps: Arc<RegistryWatcher>,
    metrics: Arc<EdgeMetrics>,
    number: std::sync::atomic::AtomicU64,
}

/// The state that intake and lanes share.
pub(crate) struct RecorderCore {
    queue: RecordQueue,
    lanes: Vec<LaneState>,
    clock: MonotonicClock,
    metrics: Arc<EdgeMetrics>,
}

/// The part of a lane's state beside its queue.
#[derive(Default)]
struct LaneState {
    /// Notified when an event is due earlier than before.
    wake: Notify,
    /// The refusal of the lane's last call; `None` after a success.
    last_error: Mutex<Option<String>>,
}

/// The tasks of a recorder, as the process supervises them.
#[derive(Clone)]
pub struct RecorderTasks {
    /// Tracks them, so that the shutdown can wait for the last event.
    pub tracker: TaskTracker,
    /// Ends them once the queue is empty.
    pub closing: CancellationToken,
    /// Receives the panic of a task, which ends the process.
    pub failures: mpsc::Sender<StopError>,
}

impl RecorderTasks {
    /// Spawns a task. Its panic is reported: without a lane, its share of the channels would never be recorded again, and
    /// no other sign would show it.
    fn spawn(&self, task: String, work: impl Future<Output = ()> + Send + 'static) {
        let failures = self.failures.clone();
        self.tracker.spawn(async move {
            // The state that the task shared is not used for longer than the shutdown takes.
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                // A full queue has another failure, by which the process ends as well.
                let _ = failures.try_send(StopError::RecorderPanic { task });
            }
        });
    }
}

impl Recorder {
    /// Creates a recorder that writes to a stream, or discards without one.
    pub fn start(
        kinesis: Option<kinesis::KinesisClient>,
        apps: Arc<RegistryWatcher>,
        origin: &RecordOrigin,
        metrics: Arc<EdgeMetrics>,
        limits: QueueLimits,
        tasks: &RecorderTasks,
    ) -> Self {
        let number = std::sync::atomic::AtomicU64::new(0);
        let Some(client) = kinesis else { return Self { shared: None, apps, metrics, number } };
        let shared = Arc::new(RecorderCore {
            queue: RecordQueue::new(limits, LANE_COUNT),
            lanes: (0..LANE_COUNT).map(|_| LaneState::default()).collect(),
            clock: MonotonicClock::start(),
            metrics: metrics.clone(),
        });
        for lane in 0..LANE_COUNT {
            let closing = tasks.closing.clone();
            let writer = writer::LaneWriter::new(lane, client.clone(), origin.clone(), shared.clone(), closing);
            tasks.spawn(format!("lane {lane}"), writer.run());
        }
        tasks.spawn("expiry".to_owned(), expire_events(shared.clone(), tasks.closing.clone()));
        Self { shared: Some(shared), apps, metrics, number }
    }

    /// Records transitions of the bus.
    pub fn record_transitions(&self, subject: &ChannelKey, transitions: DecidedTransitions) {
        for DecidedTransition { transition, receipt } in transitions {
            let event = RecordedEvent {
                id: transition.id,
                time_ms: transition.time_ms,
                order: Some(transition.order),
                n: None,
                cause: transition.cause,
                kind: transition.kind,
            };
            self.enqueue_event(subject, &event, Some(receipt));
        }
    }

    /// Records an event without an order: an accepted client event, or a notice about a channel.
    pub fn record_event(&self, subject: &ChannelKey, kind: EventKind) {
        let n = self.number.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let (id, time_ms) = (Ulid::new().to_string(), clock::now_ms());
        self.enqueue_event(subject, &RecordedEvent { id, time_ms, order: None, n: Some(n), cause: None, kind }, None);
    }

    /// Queues an event that an endpoint receives. Never waits for the stream.
    fn enqueue_event(&self, subject: &ChannelKey, event: &RecordedEvent, receipt: Option<Receipt>) {
        self.metrics.recorder_events_decided.inc();
        if !self.is_wanted(subject, &event.kind) {
            self.metrics.recorder_events_unwanted.inc();
            return receipt.into_iter().for_each(Receipt::acknowledge);
        }
        self.metrics.recorder_events_accepted.inc();
        let Some(shared) = &self.shared else {
            // Without a stream no other process needs to record it again.
            return receipt.into_iter().for_each(Receipt::acknowledge);
        };
        let event = RecordableEvent::new(event, receipt);
        let outcome = shared.queue.push(subject, event, shared.clock.elapsed_ms());
        shared.count_drops(outcome.dropped);
        if let Some(lane) = outcome.earlier_lane {
            shared.lanes[lane].wake.notify_one();
        }
    }

    /// Whether an endpoint of the app receives the event. An app that this process does not know yet may have one.
    fn is_wanted(&self, subject: &ChannelKey, kind: &EventKind) -> bool {
        let wants = |app: &App| app.records_event(kind.name(), subject.channel.as_str());
        self.apps.current().by_id(&subject.app).is_none_or(wants)
    }

    /// The number of queued events.
    pub fn queued_count(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| shared.queue.len())
    }

    /// The counts for `/flow`.
    pub fn flow_report(&self) -> RecorderFlow {
        let dropped = DropReason::ALL
            .iter()
            .map(|reason| (reason.name().to_owned(), self.metrics.recorder_events_dropped.with_label(*reason).get()))
            .filter(|(_, count)| *count > 0)
            .collect();
        RecorderFlow {
            state: if self.shared.is_some() { RecorderState::Kinesis } else { RecorderState::Off },
            decided: self.metrics.recorder_events_decided.get(),
            accepted: self.metrics.recorder_events_accepted.get(),
            acknowledged: self.metrics.recorder_events_acknowledged.get(),
            queued: u64::try_from(self.queued_count()).unwrap_or(u64::MAX),
            unwanted: self.metrics.recorder_events_unwanted.get(),
            dropped,
            last_error: self.shared.as_ref().and_then(|shared| shared.describe_errors()),
            silent_apps: self.shared.as_ref().map_or_else(BTreeSet::new, |shared| shared.list_silent_apps()),
        }
    }

    /// Counts the events that are left when the process ends, and returns how many the bus keeps for the process that
    /// sweeps this one, and how many are lost.
    pub fn drop_queued(&self) -> (usize, usize) {
        let (kept, lost) = self.shared.as_ref().map_or((0, 0), |shared| shared.queue.count_by_receipt());
        self.metrics
            .recorder_events_dropped
            .with_label(DropReason::Shutdown)
            .inc_by(u64::try_from(lost).unwrap_or(u64::MAX));
        (kept, lost)
    }
}

impl RecorderCore {
    /// Counts drops and acknowledges their receipts: nobody will record them.
    fn count_drops(&self, dropped: Vec<DroppedEvent>) {
        for DroppedEvent { reason, receipt } in dropped {
            self.metrics.recorder_events_dropped.with_label(reason).inc();
            receipt.into_iter().for_each(Receipt::acknowledge);
        }
    }

    /// The first apps of which events are due and none is acknowledged.
    fn list_silent_apps(&self) -> BTreeSet<AppId> {
        let grace_ms = clock::whole_ms(SILENCE_GRACE);
        let silent = self.queue.silent_apps(self.clock.elapsed_ms(), grace_ms);
        silent.into_iter().take(REPORTED_SILENT_APPS_MAX).collect()
    }

    /// The refusal of the first lane that fails, and how many lanes do. A lane that succeeds hides no other.
    fn describe_errors(&self) -> Option<String> {
        let errors: Vec<String> =
            self.lanes.iter().filter_map(|lane| lock_unpoisoned(&lane.last_error).clone()).collect();
        let first = errors.first()?;
        Some(if errors.len() == self.lanes.len() {
            first.clone()
        } else {
            format!("{first} ({} of {} lanes)", errors.len(), self.lanes.len())
        })
    }
}

async fn expire_events(shared: Arc<RecorderCore>, closing: CancellationToken) {
    loop {
        tokio::select! {
            () = closing.cancelled() => return,
            () = tokio::time::sleep(EXPIRY_INTERVAL) => {}
        }
        let expired = shared.queue.drop_expired(shared.clock.elapsed_ms());
        if !expired.is_empty() {
            tracing::warn!(count = expired.len(), "client events waited too long for the stream and were dropped");
            shared.count_drops(expired);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_panic_of_a_task_ends_the_process_with_a_clear_line_and_its_end_does_not() {
        let (failures, mut failed) = mpsc::channel(1);
        let tasks = RecorderTasks { tracker: TaskTracker::new(), closing: CancellationToken::new(), failures };
        tasks.spawn("lane 0".to_owned(), async {});
        tasks.spawn("lane 3".to_owned(), async { assert!(std::hint::black_box(false), "a defect") });
        tasks.spawn("lane 4".to_owned(), async { assert!(std::hint::black_box(false), "another one") });
        tasks.tracker.close();
        tasks.tracker.wait().await;
        let line = failed.try_recv().expect("the first panic").to_string();
        assert!(line.contains("lane 3") && line.contains("must start again"), "{line}");
        assert!(failed.try_recv().is_err(), "one reason is enough");
    }
}
