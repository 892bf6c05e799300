//! Finds the shards and keeps this process's share of them.
//!
//! In: listings of the stream and the leases. Out: one holder task per held shard. Two tasks, because a Kinesis that
//! does not answer must not keep a member from saying that it lives.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::balance::{plan, readable};
use super::holder::{Holder, Shared};
use super::leases::{LeaseError, RENEW, Standing, View};
use super::metrics::{Metrics, Source};
use crate::kinesis::{Class, Client, KinesisError, Shard, covers_all};
use crate::protocol::ShardId;

/// How often the shards are listed.
const LIST: Duration = Duration::from_secs(30);
/// How soon again after an error.
const LIST_AGAIN: Duration = Duration::from_secs(2);
/// How long a stream that was never there is waited for.
const MISSING: Duration = Duration::from_mins(2);
/// How long shards are held while the lease store does not answer.
const WITHOUT_LEASES: Duration = Duration::from_mins(1);
/// Attempts that may fail, without one that succeeds, before a member that is not proven gives its shard back.
const TRIES: u64 = 3;
/// How long it then leaves shards to others.
const REST: Duration = Duration::from_secs(30);
/// Longest that a call to the lease store may take; shorter than a member's life.
const CALL: Duration = Duration::from_secs(3);
/// Longest that holders may take to stop; beyond, they are abandoned and their leases run out.
const STOP: Duration = Duration::from_secs(12);

/// The stream as it was found.
#[derive(Debug, Default)]
pub struct Listing {
    /// When it was created, in ms since 1970.
    pub created_ms: u64,
    /// Its shards.
    pub shards: Vec<Shard>,
}

/// Lists the shards until the token ends it. A stream that stays missing ends it with a line that says so.
pub async fn discover(
    client: Client,
    metrics: Arc<Metrics>,
    listings: watch::Sender<Arc<Listing>>,
    again: Arc<Notify>,
    shutdown: CancellationToken,
) -> Option<String> {
    let started = Instant::now();
    let mut found = false;
    loop {
        let listing = tokio::select! {
            () = shutdown.cancelled() => return None,
            listing = list(&client) => listing,
        };
        let pause = match listing {
            Ok(listing) => {
                found = true;
                let whole = covers_all(&listing.shards);
                if whole {
                    metrics.recovered(&Source::Discovery);
                } else {
                    // Mid-reshard, a listing may be older than the change; what it names can be read all the same.
                    metrics
                        .failed(Source::Discovery, "the open shards do not cover all hash keys: listing again".into());
                }
                listings.send_replace(Arc::new(listing));
                if whole { LIST } else { LIST_AGAIN }
            }
            Err(error) => {
                tracing::warn!(%error, "the shards cannot be listed; trying again");
                metrics.failed(Source::Discovery, error.to_string());
                if error.class == Class::NotFound && !found && started.elapsed() > MISSING {
                    return Some(format!("{error}: create the stream, or correct its name, region and account"));
                }
                LIST_AGAIN
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = again.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn list(client: &Client) -> Result<Listing, KinesisError> {
    let created_ms = client.summary().await?.created_ms;
    Ok(Listing { created_ms, shards: client.shards().await? })
}

/// The shards that this process holds.
pub struct Shards {
    shared: Arc<Shared>,
    member: String,
    holders: HashMap<ShardId, Running>,
    created_ms: u64,
    again: Arc<Notify>,
    /// Told when a holder ends.
    ended: Arc<Notify>,
    /// Whether this process was let in.
    admitted: watch::Receiver<bool>,
    trial: Trial,
}

/// What a member that is not proven yet has shown.
#[derive(Debug, Default)]
struct Trial {
    /// Attempts that had failed when it last began to hold a shard.
    failed_before: u64,
    /// Until when it leaves shards to others.
    rests_until: Option<Instant>,
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
    generation: u64,
}

impl Shards {
    /// None held yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>, member: String, again: Arc<Notify>, admitted: watch::Receiver<bool>) -> Self {
        let (ended, trial) = (Arc::default(), Trial::default());
        Self { shared, member, holders: HashMap::new(), created_ms: 0, again, ended, admitted, trial }
    }

    /// Holds its share until the token ends it, then gives everything back.
    pub async fn run(mut self, mut listings: watch::Receiver<Arc<Listing>>, shutdown: CancellationToken) {
        let mut heard = Instant::now();
        let ended = Arc::clone(&self.ended);
        while !shutdown.is_cancelled() {
            let listing = Arc::clone(&listings.borrow_and_update());
            match self.step(&listing).await {
                Ok(()) => {
                    heard = Instant::now();
                    self.shared.metrics.recovered(&Source::Leases);
                }
                Err(error) => {
                    tracing::warn!(%error, "the leases are out of reach");
                    self.shared.metrics.failed(Source::Leases, error.to_string());
                    if heard.elapsed() > WITHOUT_LEASES {
                        self.abandon();
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(RENEW) => {}
                () = ended.notified() => {}
                changed = listings.changed() => if changed.is_err() { break },
            }
        }
        self.leave().await;
    }

    async fn step(&mut self, listing: &Listing) -> Result<(), LeaseError> {
        let leases = Arc::clone(&self.shared.leases);
        let standing = self.standing();
        let view = call(leases.heartbeat(&self.member, standing)).await?;
        if listing.created_ms != self.created_ms {
            // Another stream of the same name: nothing that is under way belongs to it.
            self.abandon();
            self.created_ms = listing.created_ms;
        }
        self.reap(&view);
        let readable = readable(&listing.shards, &view, listing.created_ms);
        let mut running: Vec<ShardId> = self.holders.keys().cloned().collect();
        running.sort();
        let plan = plan(&readable, &view, &self.member, &running);
        for shard in plan.take {
            match call(leases.acquire(&shard, &self.member)).await {
                Ok(lease) => self.hold(shard, lease),
                // Someone was quicker.
                Err(LeaseError::Lost(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let stopping = self.holders.values().any(|holder| holder.stop.is_cancelled());
        if let Some(holder) = plan.give_back.and_then(|shard| self.holders.get(&shard)).filter(|_| !stopping) {
            holder.stop.cancel();
        }
        Ok(())
    }

    /// What this member says of itself. One that is not proven and fails three times without a success gives its shard
    /// back and rests, if anyone else can take it.
    fn standing(&mut self) -> Standing {
        let proven = *self.admitted.borrow();
        let flow = self.shared.metrics.attempts();
        if proven || self.holders.is_empty() {
            self.trial.failed_before = flow.failed;
        } else if flow.delivered == 0 && flow.failed.saturating_sub(self.trial.failed_before) >= TRIES {
            self.trial = Trial { failed_before: flow.failed, rests_until: Some(Instant::now() + REST) };
        }
        let resting = !proven && self.trial.rests_until.is_some_and(|until| Instant::now() < until);
        Standing { proven, resting }
    }

    /// Forgets holders that ended, and ends those whose shard is someone else's now.
    fn reap(&mut self, view: &View) {
        let member = &self.member;
        let again = &self.again;
        self.holders.retain(|shard, running| {
            if running.task.is_finished() {
                // It may have reached the shard's end, behind which are children.
                again.notify_one();
                return false;
            }
            let lease = view.leases.get(shard);
            let ours = lease.is_some_and(|lease| {
                lease.generation == running.generation && lease.holder.as_ref().is_none_or(|holder| holder == member)
            });
            if !ours {
                tracing::warn!(%shard, "the shard is another dispatcher's now: dropping what is under way");
                running.task.abort();
                self.shared.metrics.shard_left(shard);
            }
            ours
        });
    }

    fn hold(&mut self, shard: ShardId, lease: super::leases::Lease) {
        let stop = CancellationToken::new();
        let holder = Holder::new(Arc::clone(&self.shared), shard.clone(), lease.generation, self.created_ms);
        let (ended, token) = (Arc::clone(&self.ended), stop.clone());
        let task = tokio::spawn(async move {
            holder.run(lease.checkpoint, token).await;
            ended.notify_one();
        });
        self.holders.insert(shard, Running { stop, task, generation: lease.generation });
    }

    fn abandon(&mut self) {
        for (shard, running) in self.holders.drain() {
            running.task.abort();
            self.shared.metrics.shard_left(&shard);
        }
    }

    async fn leave(&mut self) {
        self.holders.values().for_each(|running| running.stop.cancel());
        let tasks: Vec<JoinHandle<()>> = self.holders.drain().map(|(_, running)| running.task).collect();
        let aborts: Vec<_> = tasks.iter().map(JoinHandle::abort_handle).collect();
        if timeout(STOP, futures::future::join_all(tasks)).await.is_err() {
            tracing::warn!("some shards did not stop in time; their leases run out");
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
        let leases = Arc::clone(&self.shared.leases);
        if let Err(error) = call(leases.leave(&self.member)).await {
            tracing::warn!(%error, "the member could not be signed off; it runs out");
        }
    }
}

async fn call<T>(answer: impl Future<Output = Result<T, LeaseError>>) -> Result<T, LeaseError> {
    timeout(CALL, answer).await.unwrap_or_else(|_| Err(LeaseError::Unavailable("no answer in time".to_owned())))
}
