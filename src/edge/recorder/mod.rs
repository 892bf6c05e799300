//! The way of events into the stream, beside the chat and never in its way.
//!
//! In: what the bus decided and which client events were accepted. Out: records, acknowledged by Kinesis, or a count by
//! reason. [`queue`] decides what goes when, [`writer`] carries it.

mod queue;
mod writer;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ulid::Ulid;

pub use queue::Dropped;
use queue::{Limits, Queue};

use super::metrics::Metrics;
use crate::bus::{Bus, Subject, Transition};
use crate::kinesis;
use crate::protocol::admin::{RecorderFlow, RecorderState};
use crate::protocol::record::{Event, EventKind, Origin};
use crate::runtime::clock;

/// Parts of the stream's keys that are written independently of each other.
const LANES: usize = 8;

/// Events that may wait for the stream.
pub const MAX_EVENTS: usize = Limits::DEFAULT.events;

/// Bytes of events that may wait for the stream.
pub const MAX_BYTES: usize = Limits::DEFAULT.bytes;

/// How long a client event may wait for the stream.
pub const CLIENT_EVENT: Duration = Duration::from_millis(Limits::DEFAULT.client_event_ms);

/// How often client events are looked through for those that are too old.
const EXPIRY: Duration = Duration::from_secs(5);

/// Takes events in and has them written.
pub struct Recorder {
    shared: Option<Arc<Shared>>,
    bus: Arc<dyn Bus>,
    metrics: Arc<Metrics>,
    number: std::sync::atomic::AtomicU64,
}

/// What intake and lanes share.
struct Shared {
    queue: Mutex<Queue>,
    /// One per lane: something is due earlier than it was.
    wake: Vec<Notify>,
    last_error: Mutex<Option<String>>,
    started: Instant,
    bus: Arc<dyn Bus>,
    metrics: Arc<Metrics>,
}

impl Recorder {
    /// A recorder that writes to a stream, or nowhere without one. Its tasks end once `closing` is cancelled and the
    /// queue is empty.
    pub fn start(
        kinesis: Option<kinesis::Client>,
        bus: Arc<dyn Bus>,
        origin: &Origin,
        metrics: Arc<Metrics>,
        tasks: &TaskTracker,
        closing: &CancellationToken,
    ) -> Self {
        let number = std::sync::atomic::AtomicU64::new(0);
        let Some(client) = kinesis else { return Self { shared: None, bus, metrics, number } };
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::new(Limits::DEFAULT, LANES)),
            wake: (0..LANES).map(|_| Notify::new()).collect(),
            last_error: Mutex::new(None),
            started: Instant::now(),
            bus: bus.clone(),
            metrics: metrics.clone(),
        });
        for lane in 0..LANES {
            let writer = writer::Lane::new(lane, client.clone(), origin.clone(), shared.clone(), closing.clone());
            tasks.spawn(writer.run());
        }
        tasks.spawn(expire(shared.clone(), closing.clone()));
        Self { shared: Some(shared), bus, metrics, number }
    }

    /// Records what the bus decided.
    pub fn transitions(&self, subject: &Subject, transitions: Vec<Transition>) {
        for transition in transitions {
            self.record(
                subject,
                Event {
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

    /// Records what the bus did not decide: a client event that was accepted, or what was noticed of a channel.
    pub fn noticed(&self, subject: &Subject, kind: EventKind) {
        let n = self.number.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let (id, time_ms) = (Ulid::new().to_string(), clock::now_ms());
        self.record(subject, Event { id, time_ms, order: None, n: Some(n), cause: None, kind });
    }

    /// Takes an event in. Never waits for the stream.
    fn record(&self, subject: &Subject, event: Event) {
        self.metrics.recorder_accepted.inc();
        let Some(shared) = &self.shared else {
            // Nowhere to be safe: nobody need tell it again.
            return event.order.iter().for_each(|order| self.bus.recorded(subject, &[*order]));
        };
        let now = shared.now();
        let (lane, dropped) = {
            let mut queue = lock(&shared.queue);
            (queue.lane(subject), queue.push(subject, event, now))
        };
        for reason in dropped {
            shared.metrics.recorder_dropped(reason).inc();
        }
        if let Some(wake) = shared.wake.get(lane) {
            wake.notify_one();
        }
    }

    /// Events that wait.
    pub fn queued(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| lock(&shared.queue).len())
    }

    /// What went through, for `/flow`.
    pub fn flow(&self) -> RecorderFlow {
        let dropped = Dropped::ALL
            .into_iter()
            .map(|reason| (reason.name().to_owned(), self.metrics.recorder_dropped(reason).get()))
            .filter(|(_, count)| *count > 0)
            .collect();
        RecorderFlow {
            state: if self.shared.is_some() { RecorderState::Kinesis } else { RecorderState::Off },
            accepted: self.metrics.recorder_accepted.get(),
            acknowledged: self.metrics.recorder_acknowledged.get(),
            queued: u64::try_from(self.queued()).unwrap_or(u64::MAX),
            dropped,
            last_error: self.shared.as_ref().and_then(|shared| lock(&shared.last_error).clone()),
        }
    }

    /// Counts what is left when the process ends, and returns it.
    pub fn give_up(&self) -> usize {
        let left = self.queued();
        self.metrics.recorder_dropped(Dropped::Shutdown).inc_by(u64::try_from(left).unwrap_or(u64::MAX));
        left
    }
}

impl Shared {
    /// Milliseconds since the recorder started, which no correction of the wall clock can turn back.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

async fn expire(shared: Arc<Shared>, closing: CancellationToken) {
    loop {
        tokio::select! {
            () = closing.cancelled() => return,
            () = tokio::time::sleep(EXPIRY) => {}
        }
        let count = lock(&shared.queue).expire(shared.now());
        if count > 0 {
            tracing::warn!(count, "client events waited too long for the stream and were dropped");
            shared.metrics.recorder_dropped(Dropped::Expired).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }
}

/// What is behind a lock, also after a panic of another holder: each change is complete in itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
