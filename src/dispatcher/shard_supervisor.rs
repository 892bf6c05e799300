//! Discovers the shards and keeps this process's share of them.
//!
//! In: listings of the stream and the leases. Out: one worker task per held shard. Discovery and leases are two tasks,
//! because a Kinesis that does not answer must not delay a member's heartbeat.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::assignment::{list_readable_shards, plan_assignment};
use super::leases::{HEARTBEAT_INTERVAL, LeaseError, LeaseSnapshot, MemberStatus};
use super::metrics::{DispatcherMetrics, ErrorSource};
use super::shard_worker::{ShardWorker, WorkerResources};
use crate::kinesis::{KinesisClient, KinesisError, KinesisErrorClass, Shard, covers_all};
use crate::protocol::ShardId;

/// Interval between two listings of the shards, after which a reshard is noticed at the latest.
const LIST_INTERVAL: Duration = Duration::from_secs(30);
/// Interval between two descriptions of the stream, whose creation time distinguishes it from a later one of the same name.
/// AWS allows 20 a second for the whole account, and every dispatcher of every cluster makes them. A read error brings the
/// next one forward: a position in a replaced stream is invalid in its successor.
const DESCRIBE_INTERVAL: Duration = Duration::from_mins(5);
/// Delay before the shards are listed again after an error.
const LIST_RETRY_DELAY: Duration = Duration::from_secs(2);
/// Longest wait for a stream that has never existed.
const MISSING_STREAM_TIMEOUT: Duration = Duration::from_mins(2);
/// Time for which shards are held while the lease store does not answer.
const LEASE_OUTAGE_GRACE: Duration = Duration::from_mins(1);
/// Bounds the failed attempts without a success before an unproven member releases its shard.
const PROBATION_FAILURES_MAX: u64 = 3;
/// Time for which that member then leaves shards to others.
const PROBATION_BACKOFF: Duration = Duration::from_secs(30);
/// Bounds a call to the lease store; shorter than a member's TTL.
const LEASE_CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Bounds the stop of the workers; after it they are aborted and their leases expire.
const WORKERS_STOP_TIMEOUT: Duration = Duration::from_secs(12);

/// The stream's shards as last listed.
#[derive(Debug, Default)]
pub struct ShardListing {
    /// When the stream was created, in ms since 1970.
    pub created_ms: u64,
    /// The shards, open and closed.
    pub shards: Vec<Shard>,
}

/// Lists the shards until the token is cancelled. For a stream that stays missing, it returns with a line that says so.
pub async fn discover_shards(
    client: KinesisClient,
    metrics: Arc<DispatcherMetrics>,
    listings: watch::Sender<Arc<ShardListing>>,
    relist: Arc<Notify>,
    shutdown: CancellationToken,
) -> Option<String> {
    let started = Instant::now();
    let mut found = false;
    let mut described: Option<(Instant, u64)> = None;
    loop {
        let since = described.map(|(at, _)| at.elapsed());
        let known = described.filter(|_| !is_description_due(since, metrics.has_read_error()));
        let listing = tokio::select! {
            () = shutdown.cancelled() => return None,
            listing = list_shards(&client, known.map(|(_, created_ms)| created_ms)) => listing,
        };
        described = listing.as_ref().ok().map(|found| known.unwrap_or((Instant::now(), found.created_ms)));
        let pause = match listing {
            Ok(listing) => {
                found = true;
                let whole = covers_all(&listing.shards);
                if whole {
                    metrics.clear_error(&ErrorSource::Discovery);
                } else {
                    // During a reshard a listing may be older than the change; the shards in it can be read all the
                    // same.
                    metrics.set_error(
                        ErrorSource::Discovery,
                        "the open shards do not cover all hash keys: listing again".into(),
                    );
                }
                listings.send_replace(Arc::new(listing));
                if whole { LIST_INTERVAL } else { LIST_RETRY_DELAY }
            }
            Err(error) => {
                tracing::warn!(%error, "shard listing failed: trying again");
                metrics.set_error(ErrorSource::Discovery, error.to_string());
                if error.class == KinesisErrorClass::NotFound && !found && started.elapsed() > MISSING_STREAM_TIMEOUT {
                    return Some(format!("{error}: create the stream, or correct its name, region and account"));
                }
                LIST_RETRY_DELAY
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = relist.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether the stream must be described with the next listing; `since` is the time since the last description that a
/// listing followed.
fn is_description_due(since: Option<Duration>, has_read_error: bool) -> bool {
    has_read_error || since.is_none_or(|since| since >= DESCRIBE_INTERVAL)
}

/// Lists the shards, and describes the stream unless its creation time is known.
async fn list_shards(client: &KinesisClient, known_ms: Option<u64>) -> Result<ShardListing, KinesisError> {
    let created_ms = match known_ms {
        Some(known) => known,
        None => client.describe_stream().await?.created_ms,
    };
    Ok(ShardListing { created_ms, shards: client.list_shards().await? })
}

/// Holds the shards of this process.
pub struct ShardSupervisor {
    resources: Arc<WorkerResources>,
    member: String,
    workers: HashMap<ShardId, RunningWorker>,
    created_ms: u64,
    relist: Arc<Notify>,
    /// Notified when a worker ends.
    worker_ended: Arc<Notify>,
    /// Whether this process was admitted.
    admitted: watch::Receiver<bool>,
    probation: MemberProbation,
}

/// The record of a member that is not proven yet.
#[derive(Debug, Default)]
struct MemberProbation {
    /// Number of failed attempts when the member last acquired a shard.
    failed_before: u64,
    /// Time until which the member leaves shards to others.
    backs_off_until: Option<Instant>,
}

struct RunningWorker {
    stop: CancellationToken,
    task: JoinHandle<()>,
    generation: u64,
}

impl ShardSupervisor {
    /// A supervisor that holds no shard yet.
    #[must_use]
    pub fn new(
        shared: Arc<WorkerResources>,
        member: String,
        relist: Arc<Notify>,
        admitted: watch::Receiver<bool>,
    ) -> Self {
        let (ended, trial) = (Arc::default(), MemberProbation::default());
        Self {
            resources: shared,
            member,
            workers: HashMap::new(),
            created_ms: 0,
            relist,
            worker_ended: ended,
            admitted,
            probation: trial,
        }
    }

    /// Holds its share of the shards until the token is cancelled, then releases all.
    pub async fn run(mut self, mut listings: watch::Receiver<Arc<ShardListing>>, shutdown: CancellationToken) {
        let mut last_answer_at = Instant::now();
        let ended = Arc::clone(&self.worker_ended);
        while !shutdown.is_cancelled() {
            let listing = Arc::clone(&listings.borrow_and_update());
            match self.rebalance_shards(&listing).await {
                Ok(()) => {
                    last_answer_at = Instant::now();
                    self.resources.metrics.clear_error(&ErrorSource::Leases);
                }
                Err(error) => {
                    tracing::warn!(%error, "lease store unavailable: keeping the held shards");
                    self.resources.metrics.set_error(ErrorSource::Leases, error.to_string());
                    if last_answer_at.elapsed() > LEASE_OUTAGE_GRACE {
                        self.abort_workers();
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(HEARTBEAT_INTERVAL) => {}
                () = ended.notified() => {}
                changed = listings.changed() => if changed.is_err() { break },
            }
        }
        self.stop_workers().await;
    }

    async fn rebalance_shards(&mut self, listing: &ShardListing) -> Result<(), LeaseError> {
        let leases = Arc::clone(&self.resources.leases);
        let status = self.assess_member();
        let view = call_with_timeout(leases.send_heartbeat(&self.member, status)).await?;
        if listing.created_ms != self.created_ms {
            // Another stream of the same name: nothing in flight belongs to it.
            self.abort_workers();
            self.created_ms = listing.created_ms;
        }
        self.reap_workers(&view);
        let readable = list_readable_shards(&listing.shards, &view, listing.created_ms);
        let mut running: Vec<ShardId> = self.workers.keys().cloned().collect();
        running.sort();
        let plan = plan_assignment(&readable, &view, &self.member, &running);
        for shard in plan.acquire {
            match call_with_timeout(leases.acquire_shard(&shard, &self.member)).await {
                Ok(lease) => self.start_worker(shard, lease),
                // Another member acquired it first.
                Err(LeaseError::Lost(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let stopping = self.workers.values().any(|worker| worker.stop.is_cancelled());
        if let Some(worker) = plan.release.and_then(|shard| self.workers.get(&shard)).filter(|_| !stopping) {
            worker.stop.cancel();
        }
        Ok(())
    }

    /// The status of this member. An unproven member that fails three times without a success releases its shard and
    /// backs off, if another member can take it.
    fn assess_member(&mut self) -> MemberStatus {
        let proven = *self.admitted.borrow();
        let flow = self.resources.metrics.attempt_counts();
        if proven || self.workers.is_empty() {
            self.probation.failed_before = flow.failed;
        } else if flow.delivered == 0
            && flow.failed.saturating_sub(self.probation.failed_before) >= PROBATION_FAILURES_MAX
        {
            self.probation = MemberProbation {
                failed_before: flow.failed,
                backs_off_until: Some(Instant::now() + PROBATION_BACKOFF),
            };
        }
        let backing_off = !proven && self.probation.backs_off_until.is_some_and(|until| Instant::now() < until);
        MemberStatus { proven, backing_off }
    }

    /// Removes workers that ended, and aborts those whose shard another member holds now.
    fn reap_workers(&mut self, view: &LeaseSnapshot) {
        let member = &self.member;
        let relist = &self.relist;
        self.workers.retain(|shard, running| {
            if running.task.is_finished() {
                // The worker may have reached the shard's end, behind which are children.
                relist.notify_one();
                return false;
            }
            let lease = view.leases.get(shard);
            let ours = lease.is_some_and(|lease| {
                lease.generation == running.generation && lease.holder.as_ref().is_none_or(|holder| holder == member)
            });
            if !ours {
                tracing::warn!(%shard, "shard lost to another dispatcher: dropping its events in flight");
                running.task.abort();
                self.resources.metrics.remove_shard(shard);
            }
            ours
        });
    }

    fn start_worker(&mut self, shard: ShardId, lease: super::leases::ShardLease) {
        let stop = CancellationToken::new();
        let worker = ShardWorker::new(Arc::clone(&self.resources), shard.clone(), lease.generation, self.created_ms);
        let (ended, token) = (Arc::clone(&self.worker_ended), stop.clone());
        let span = tracing::info_span!("shard", shard = %shard, generation = lease.generation);
        let task = tokio::spawn(async move {
            worker.run(lease.checkpoint, token).instrument(span).await;
            ended.notify_one();
        });
        self.workers.insert(shard, RunningWorker { stop, task, generation: lease.generation });
    }

    fn abort_workers(&mut self) {
        for (shard, running) in self.workers.drain() {
            running.task.abort();
            self.resources.metrics.remove_shard(&shard);
        }
    }

    async fn stop_workers(&mut self) {
        self.workers.values().for_each(|running| running.stop.cancel());
        let tasks: Vec<JoinHandle<()>> = self.workers.drain().map(|(_, running)| running.task).collect();
        let aborts: Vec<_> = tasks.iter().map(JoinHandle::abort_handle).collect();
        if timeout(WORKERS_STOP_TIMEOUT, futures::future::join_all(tasks)).await.is_err() {
            tracing::warn!("shard workers not stopped in time: their leases expire");
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
        let leases = Arc::clone(&self.resources.leases);
        if let Err(error) = call_with_timeout(leases.remove_member(&self.member)).await {
            tracing::warn!(%error, "member not removed from the lease store: it expires");
        }
    }
}

async fn call_with_timeout<T>(answer: impl Future<Output = Result<T, LeaseError>>) -> Result<T, LeaseError> {
    timeout(LEASE_CALL_TIMEOUT, answer)
        .await
        .unwrap_or_else(|_| Err(LeaseError::Unavailable("no answer in time".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_described_every_five_minutes_and_when_it_cannot_be_read() {
        for (name, since, has_read_error, expected) in [
            ("at the start, and after a failed listing", None, false, true),
            ("a listing later", Some(LIST_INTERVAL), false, false),
            ("after the interval", Some(DESCRIBE_INTERVAL), false, true),
            ("a shard cannot be read", Some(LIST_INTERVAL), true, true),
        ] {
            assert_eq!(is_description_due(since, has_read_error), expected, "{name}");
        }
    }
}
