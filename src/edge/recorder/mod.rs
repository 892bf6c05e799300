//! The recorder: writes events to the stream without delaying chat messages.
//!
//! In: transitions of the bus, and accepted client events. Out: records that Kinesis acknowledged, or a count of drops
//! by reason. [`queue`] decides the order, [`writer`] sends.

pub(crate) mod queue;
pub(crate) mod writer;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ulid::Ulid;

use queue::{QueueLimits, RecordQueue};

use crate::bus::{ChannelKey, Membership, Transition};
use crate::edge::drop_reason::DropReason;
use crate::edge::metrics::EdgeMetrics;
use crate::kinesis;
use crate::process::clock;
use crate::process::metrics::LabelValue;
use crate::protocol::admin::{RecorderFlow, RecorderState};
use crate::protocol::record::{EventKind, RecordOrigin, RecordedEvent};

/// Lanes that are written independently; each has its share of the partition keys.
const LANE_COUNT: usize = 8;

/// Events queued for the stream at most.
pub const RECORDER_EVENTS_MAX: usize = QueueLimits::DEFAULT.events;

/// Bytes of events queued for the stream at most.
pub const RECORDER_BYTES_MAX: usize = QueueLimits::DEFAULT.bytes;

/// Age at which a queued client event is dropped.
pub const CLIENT_EVENT_TTL: Duration = Duration::from_millis(QueueLimits::DEFAULT.client_event_ms);

/// Interval of checks for expired client events.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(5);

/// Queues events and writes them to the stream.
pub struct Recorder {
    shared: Option<Arc<RecorderCore>>,
    bus: Arc<dyn Membership>,
    metrics: Arc<EdgeMetrics>,
    number: std::sync::atomic::AtomicU64,
}

/// The state that intake and lanes share.
pub(crate) struct RecorderCore {
    queue: Mutex<RecordQueue>,
    /// One per lane, notified when an event is due earlier than before.
    wake: Vec<Notify>,
    last_error: Mutex<Option<String>>,
    started: Instant,
    bus: Arc<dyn Membership>,
    metrics: Arc<EdgeMetrics>,
}

impl Recorder {
    /// Creates a recorder that writes to a stream, or discards without one. Its tasks end once `closing` is cancelled
    /// and the queue is empty.
    pub fn start(
        kinesis: Option<kinesis::KinesisClient>,
        bus: Arc<dyn Membership>,
        origin: &RecordOrigin,
        metrics: Arc<EdgeMetrics>,
        tasks: &TaskTracker,
        closing: &CancellationToken,
    ) -> Self {
        let number = std::sync::atomic::AtomicU64::new(0);
        let Some(client) = kinesis else { return Self { shared: None, bus, metrics, number } };
        let shared = Arc::new(RecorderCore {
            queue: Mutex::new(RecordQueue::new(QueueLimits::DEFAULT, LANE_COUNT)),
            wake: (0..LANE_COUNT).map(|_| Notify::new()).collect(),
            last_error: Mutex::new(None),
            started: Instant::now(),
            bus: bus.clone(),
            metrics: metrics.clone(),
        });
        for lane in 0..LANE_COUNT {
            let writer = writer::LaneWriter::new(lane, client.clone(), origin.clone(), shared.clone(), closing.clone());
            tasks.spawn(writer.run());
        }
        tasks.spawn(expire_events(shared.clone(), closing.clone()));
        Self { shared: Some(shared), bus, metrics, number }
    }

    /// Records transitions of the bus.
    pub fn record_transitions(&self, subject: &ChannelKey, transitions: Vec<Transition>) {
        for transition in transitions {
            self.enqueue_event(
                subject,
                RecordedEvent {
                    id: transition.id,
                    time_ms: transition.time_ms,
                    order: Some(transition.order),
                    n: None,
                    cause: transition.cause,
                    kind: transition.kind,
                },
            );
        }
    }

    /// Records an event without an order: an accepted client event, or a notice about a channel.
    pub fn record_event(&self, subject: &ChannelKey, kind: EventKind) {
        let n = self.number.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let (id, time_ms) = (Ulid::new().to_string(), clock::now_ms());
        self.enqueue_event(subject, RecordedEvent { id, time_ms, order: None, n: Some(n), cause: None, kind });
    }

    /// Queues an event. Never waits for the stream.
    fn enqueue_event(&self, subject: &ChannelKey, event: RecordedEvent) {
        self.metrics.recorder_events_accepted.inc();
        let Some(shared) = &self.shared else {
            // Without a stream no other process needs to record it again.
            return event.order.iter().for_each(|order| self.bus.acknowledge_recorded(subject, &[*order]));
        };
        let now = shared.elapsed_ms();
        let (lane, dropped) = {
            let mut queue = lock_unpoisoned(&shared.queue);
            (queue.lane_of(subject), queue.push(subject, event, now))
        };
        for reason in dropped {
            shared.metrics.recorder_events_dropped.with_label(reason).inc();
        }
        if let Some(wake) = shared.wake.get(lane) {
            wake.notify_one();
        }
    }

    /// The number of queued events.
    pub fn queued_count(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| lock_unpoisoned(&shared.queue).len())
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
            accepted: self.metrics.recorder_events_accepted.get(),
            acknowledged: self.metrics.recorder_events_acknowledged.get(),
            queued: u64::try_from(self.queued_count()).unwrap_or(u64::MAX),
            dropped,
            last_error: self.shared.as_ref().and_then(|shared| lock_unpoisoned(&shared.last_error).clone()),
        }
    }

    /// Counts the events that are left when the process ends, and returns their number.
    pub fn drop_queued(&self) -> usize {
        let left = self.queued_count();
        self.metrics
            .recorder_events_dropped
            .with_label(DropReason::Shutdown)
            .inc_by(u64::try_from(left).unwrap_or(u64::MAX));
        left
    }
}

impl RecorderCore {
    /// Milliseconds since the recorder started, unaffected by corrections of the wall clock.
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

async fn expire_events(shared: Arc<RecorderCore>, closing: CancellationToken) {
    loop {
        tokio::select! {
            () = closing.cancelled() => return,
            () = tokio::time::sleep(EXPIRY_INTERVAL) => {}
        }
        let count = lock_unpoisoned(&shared.queue).drop_expired(shared.elapsed_ms());
        if count > 0 {
            tracing::warn!(count, "client events waited too long for the stream and were dropped");
            shared
                .metrics
                .recorder_events_dropped
                .with_label(DropReason::Expired)
                .inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }
}

/// Locks a mutex, also after a panic of another holder: each change is complete in itself.
fn lock_unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
