//! The endpoints of a process, each with a task, and the holds of shards that fill their queues.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::sleep;

use super::queue::{BatchId, EndpointQueue, HeldShare};
use super::share::{EventAmount, plan_evictions};
use super::{AttemptOutcome, AttemptReport, EndpointId, FinishedDelivery, PendingDelivery};
use crate::dispatcher::events::ShardSlot;
use crate::dispatcher::retry::RetryPolicy;
use crate::dispatcher::sender::WebhookSender;
use crate::process::clock::MonotonicClock;
use crate::process::locks::lock_unpoisoned;

/// Least time between two checks of a queue that nothing has changed.
const QUEUE_LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Time after which the task of an endpoint without events ends.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// An event that is finished, with its endpoint.
pub type FinishedAt = (Arc<EndpointId>, FinishedDelivery);

/// The endpoints of a process.
pub struct EndpointPool {
    sender: WebhookSender,
    policy: RetryPolicy,
    clock: MonotonicClock,
    endpoints: Mutex<HashMap<Arc<EndpointId>, Arc<Endpoint>>>,
    /// The receivers of finished events. A queue holds at most the events that are unfinished in its hold.
    holds: Mutex<BTreeMap<ShardSlot, mpsc::UnboundedSender<FinishedAt>>>,
}

/// One endpoint with events.
struct Endpoint {
    id: Arc<EndpointId>,
    queue: Mutex<EndpointQueue>,
    /// Notified when events were queued.
    wake: Notify,
}

/// A shard's use of the pool, while this process holds the shard. Dropped, it removes the shard's events.
pub struct ShardHold {
    pool: Arc<EndpointPool>,
    id: ShardSlot,
    finished: mpsc::UnboundedReceiver<FinishedAt>,
    /// Endpoints that got events and were not notified yet.
    touched: HashMap<Arc<EndpointId>, Arc<Endpoint>>,
}

impl EndpointPool {
    /// A pool without endpoints.
    pub fn new(sender: WebhookSender, policy: RetryPolicy) -> Arc<Self> {
        Arc::new(Self {
            sender,
            policy,
            clock: MonotonicClock::start(),
            endpoints: Mutex::default(),
            holds: Mutex::default(),
        })
    }

    /// Opens a hold for the shard in this slot.
    pub fn open_hold(self: &Arc<Self>, id: ShardSlot) -> ShardHold {
        let (sender, finished) = mpsc::unbounded_channel();
        lock_unpoisoned(&self.holds).insert(id, sender);
        ShardHold { pool: Arc::clone(self), id, finished, touched: HashMap::new() }
    }

    /// Deliveries that are not finished.
    pub fn unfinished_deliveries(&self) -> usize {
        self.all_endpoints().iter().map(|endpoint| lock_unpoisoned(&endpoint.queue).unfinished_deliveries()).sum()
    }

    fn push(self: &Arc<Self>, target: &EndpointId, delivery: PendingDelivery) -> Arc<Endpoint> {
        let mut endpoints = lock_unpoisoned(&self.endpoints);
        let known = endpoints.get(target).cloned();
        let endpoint = known.unwrap_or_else(|| {
            let id = Arc::new(target.clone());
            let queue = Mutex::new(EndpointQueue::new(self.policy));
            let endpoint = Arc::new(Endpoint { id: Arc::clone(&id), queue, wake: Notify::new() });
            endpoints.insert(id, Arc::clone(&endpoint));
            tokio::spawn(Arc::clone(self).run_endpoint(Arc::clone(&endpoint)));
            endpoint
        });
        // Within the lock, so that the task of an idle endpoint cannot end meanwhile.
        lock_unpoisoned(&endpoint.queue).push(delivery);
        drop(endpoints);
        endpoint
    }

    fn all_endpoints(&self) -> Vec<Arc<Endpoint>> {
        lock_unpoisoned(&self.endpoints).values().cloned().collect()
    }

    /// Posts the events of one endpoint until it has none for a while.
    async fn run_endpoint(self: Arc<Self>, endpoint: Arc<Endpoint>) {
        let mut attempts: JoinSet<(BatchId, AttemptReport)> = JoinSet::new();
        let mut batches: HashMap<Id, BatchId> = HashMap::new();
        endpoint.wake.notified().await;
        loop {
            let now = self.clock.elapsed_ms();
            let batch_limit = self.sender.batch_limit(&endpoint.id);
            let (due, expired, next_due) = {
                let mut queue = lock_unpoisoned(&endpoint.queue);
                queue.set_batch_limit(batch_limit);
                let (due, expired) = queue.take_due(now);
                (due, expired, queue.next_due_ms())
            };
            self.report_finished(&endpoint.id, expired);
            for batch in due {
                let (id, pool, target) = (batch.id, Arc::clone(&self), Arc::clone(&endpoint.id));
                let attempt = async move { (id, pool.sender.send_batch(&target, &batch.deliveries).await) };
                batches.insert(attempts.spawn(attempt).id(), id);
            }
            let wait = next_due.map(|due| Duration::from_millis(due.saturating_sub(now)).max(QUEUE_LOOK_INTERVAL));
            tokio::select! {
                Some(attempt) = attempts.join_next_with_id() => self.complete_attempt(&endpoint, &mut batches, attempt),
                () = endpoint.wake.notified() => {}
                () = sleep(wait.unwrap_or(IDLE_TIMEOUT)) => {
                    if wait.is_none() && self.remove_if_empty(&endpoint) {
                        return;
                    }
                }
            }
        }
    }

    fn complete_attempt(
        &self,
        endpoint: &Endpoint,
        batches: &mut HashMap<Id, BatchId>,
        attempt: Result<(Id, (BatchId, AttemptReport)), JoinError>,
    ) {
        let task = attempt.as_ref().map_or_else(JoinError::id, |(task, _)| *task);
        let Some(batch) = batches.remove(&task) else { return };
        let AttemptReport { outcome, failure } = match attempt {
            Ok((_, (_, report))) => report,
            Err(error) => {
                tracing::error!(endpoint = %endpoint.id, %error, "webhook attempt broke: trying again");
                AttemptReport {
                    outcome: AttemptOutcome::Failed { answered: false, retry_after_ms: None },
                    failure: None,
                }
            }
        };
        let now = self.clock.elapsed_ms();
        let finished = {
            let mut queue = lock_unpoisoned(&endpoint.queue);
            if let Some(failure) = &failure {
                queue.note_failure(batch, failure);
            }
            queue.complete_attempt(batch, outcome, now, rand::random())
        };
        self.report_finished(&endpoint.id, finished);
    }

    fn report_finished(&self, endpoint: &Arc<EndpointId>, finished: Vec<FinishedDelivery>) {
        if finished.is_empty() {
            return;
        }
        let holds = lock_unpoisoned(&self.holds);
        for finished in finished {
            if let Some(hold) = holds.get(&finished.delivery.hold) {
                // Fails once the hold has ended; the next holder reads the event again.
                let _ = hold.send((Arc::clone(endpoint), finished));
            }
        }
    }

    fn remove_if_empty(&self, endpoint: &Endpoint) -> bool {
        let mut endpoints = lock_unpoisoned(&self.endpoints);
        let is_empty = lock_unpoisoned(&endpoint.queue).is_empty();
        if is_empty {
            endpoints.remove(&endpoint.id);
        }
        is_empty
    }
}

impl ShardHold {
    /// Queues an event for an endpoint, which is posted after [`Self::wake_endpoints`].
    pub fn push(&mut self, target: &EndpointId, record: u64, outgoing: Arc<super::OutgoingEvent>) {
        let since_ms = self.pool.clock.elapsed_ms();
        let endpoint = self.pool.push(target, PendingDelivery { hold: self.id, record, since_ms, outgoing });
        self.touched.insert(Arc::clone(&endpoint.id), endpoint);
    }

    /// Wakes the tasks of all endpoints that got events: once per page, because the events of a page share bodies.
    pub fn wake_endpoints(&mut self) {
        self.touched.drain().for_each(|(_, endpoint)| endpoint.wake.notify_one());
    }

    /// Polls for the next finished event.
    pub fn poll_finished(&mut self, context: &mut Context<'_>) -> Poll<Option<FinishedAt>> {
        self.finished.poll_recv(context)
    }

    /// Takes a finished event, if there is one.
    pub fn take_finished(&mut self) -> Option<FinishedAt> {
        self.finished.try_recv().ok()
    }

    /// Evicts events of endpoints that are behind, so that together they hold at most this amount of the shard.
    pub fn evict_excess(&self, most: EventAmount) -> Vec<FinishedAt> {
        let held = self.list_shares();
        let mut evicted = Vec::new();
        for (endpoint, amount) in plan_evictions(&held, most) {
            let finished = lock_unpoisoned(&endpoint.queue).evict(self.id, amount.events, amount.bytes);
            evicted.extend(finished.into_iter().map(|finished| (Arc::clone(&endpoint.id), finished)));
        }
        evicted
    }

    /// Counts the unfinished events of this hold at endpoints that keep up.
    pub fn count_keeping_up(&self) -> usize {
        self.list_shares().iter().filter(|(_, share)| share.keeps_up).map(|(_, share)| share.events).sum()
    }

    /// The endpoints that have events of this hold.
    fn list_shares(&self) -> Vec<(Arc<Endpoint>, HeldShare)> {
        let now = self.pool.clock.elapsed_ms();
        let endpoints = self.pool.all_endpoints().into_iter();
        let share = |endpoint: Arc<Endpoint>| {
            let share = lock_unpoisoned(&endpoint.queue).held_share(self.id, now);
            (endpoint, share)
        };
        endpoints.map(share).filter(|(_, share)| share.events > 0).collect()
    }

    /// Withdraws the events of this hold that wait, those of failed attempts too: they are not posted. Returns their
    /// number, and that of events in flight, whose outcomes are received with [`Self::take_finished`].
    pub fn withdraw_waiting(&self) -> (usize, usize) {
        let (mut withdrawn, mut in_flight) = (0, 0);
        for endpoint in self.pool.all_endpoints() {
            let mut queue = lock_unpoisoned(&endpoint.queue);
            withdrawn += queue.remove_waiting_of(self.id);
            in_flight += queue.in_flight_of(self.id);
        }
        (withdrawn, in_flight)
    }
}

impl Drop for ShardHold {
    fn drop(&mut self) {
        // The task of a new endpoint waits for it.
        self.wake_endpoints();
        lock_unpoisoned(&self.pool.holds).remove(&self.id);
        for endpoint in self.pool.all_endpoints() {
            lock_unpoisoned(&endpoint.queue).remove_hold(self.id);
        }
    }
}
