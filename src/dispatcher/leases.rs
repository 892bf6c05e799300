//! Shard leases: the holder of each shard, and its checkpoint.
//!
//! A store with a compare-and-swap fits behind the trait: one object per member, renewed while it lives, and one per
//! shard with its holder, the checkpoint and a generation that every change of holder raises. A member that writes with
//! an older generation has lost the shard without knowing it, and its write fails.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use crate::kinesis::is_before;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::ShardId;

/// Interval of a member's heartbeats: three may be lost before it counts as dead.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);
/// A member without a heartbeat for this long is dead, by the observer's monotonic clock.
pub const MEMBER_TTL: Duration = Duration::from_secs(8);

/// The checkpoint of a shard. The creation time of its stream distinguishes it from one of a later stream of the same
/// name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// When the stream was created, in ms since 1970.
    pub stream_created_ms: u64,
    /// The contiguous done prefix of the shard.
    pub position: CheckpointPosition,
    /// Records done beyond that prefix, so that a take-over repeats only the records in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beyond: Option<AckedOutOfOrder>,
}

/// Records behind the contiguous done prefix of a shard, some of which are done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AckedOutOfOrder {
    /// The last sequence number that this covers: all records up to it are done,
    pub through: String,
    /// except these, which were still open.
    pub open: Vec<String>,
}

impl AckedOutOfOrder {
    /// Whether the record with this sequence number is done.
    #[must_use]
    pub fn is_done(&self, sequence: &str) -> bool {
        !is_before(&self.through, sequence) && !self.open.iter().any(|open| open == sequence)
    }
}

/// The done part of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CheckpointPosition {
    /// Done up to and including this sequence number.
    Through(String),
    /// The whole shard is done: it is closed, and its children may be read.
    ShardEnd,
}

/// A shard's lease as all members see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardLease {
    /// The member that holds the shard, if that member lives.
    pub holder: Option<String>,
    /// Generation, raised by every change of holder.
    pub generation: u64,
    /// The shard's last written checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// The text of a checkpoint that this release cannot read, such as one of a newer format. The shard must not be read.
    pub unreadable_checkpoint: Option<String>,
}

impl ShardLease {
    /// Whether all records of the shard are done, in the stream that was created at this time.
    #[must_use]
    pub fn is_done(&self, stream_created_ms: u64) -> bool {
        let done = Checkpoint { stream_created_ms, position: CheckpointPosition::ShardEnd, beyond: None };
        self.checkpoint.as_ref() == Some(&done)
    }
}

/// The status that a member publishes with its heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Admitted: an authentic webhook came through a shard that the member held.
    pub proven: bool,
    /// Backing off: the member could not deliver and released its shard for a while.
    pub backing_off: bool,
}

/// The members and leases at one moment.
#[derive(Clone, Debug, Default)]
pub struct LeaseSnapshot {
    /// Members that live, the caller included.
    pub members: BTreeMap<String, MemberStatus>,
    /// All leases of the stream.
    pub leases: BTreeMap<ShardId, ShardLease>,
}

/// The reason why the store refused a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Another member holds the shard.
    #[error("the lease of shard {0} is held by another dispatcher: stop reading it")]
    Lost(ShardId),
    /// The store does not answer.
    #[error("the lease store does not answer: {0}")]
    Unavailable(String),
}

/// Bounds a call to a store of leases.
///
/// # Errors
/// That of the call, or [`LeaseError::Unavailable`] after the time.
pub async fn call_within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, LeaseError>>,
) -> Result<T, LeaseError> {
    let late = || Err(LeaseError::Unavailable(format!("no answer in {} ms", limit.as_millis())));
    timeout(limit, call).await.unwrap_or_else(|_| late())
}

/// A store of the leases of one stream.
pub trait ShardLeases: Send + Sync {
    /// Renews the member's own object and returns a snapshot of all.
    fn send_heartbeat<'a>(
        &'a self,
        member: &'a str,
        standing: MemberStatus,
    ) -> BoxFuture<'a, Result<LeaseSnapshot, LeaseError>>;

    /// Acquires a shard that has no living holder, or the caller's own again.
    fn acquire_shard<'a>(
        &'a self,
        shard: &'a ShardId,
        member: &'a str,
    ) -> BoxFuture<'a, Result<ShardLease, LeaseError>>;

    /// Writes the shard's checkpoint, which also proves that the shard is still held.
    fn renew<'a>(
        &'a self,
        shard: &'a ShardId,
        generation: u64,
        checkpoint: Option<Checkpoint>,
    ) -> BoxFuture<'a, Result<(), LeaseError>>;

    /// Writes the shard's checkpoint and releases the shard.
    fn release_shard<'a>(
        &'a self,
        shard: &'a ShardId,
        generation: u64,
        checkpoint: Option<Checkpoint>,
    ) -> BoxFuture<'a, Result<(), LeaseError>>;

    /// Deletes the lease of a shard that is not held, if its generation is still this one.
    fn delete_lease<'a>(&'a self, shard: &'a ShardId, generation: u64) -> BoxFuture<'a, Result<(), LeaseError>>;

    /// Removes the member, which frees the shards that it still holds.
    fn remove_member<'a>(&'a self, member: &'a str) -> BoxFuture<'a, Result<(), LeaseError>>;
}

/// Leases within one process; clones share one table.
#[derive(Clone, Debug, Default)]
pub struct MemoryLeases(Arc<Mutex<LeaseTable>>);

#[derive(Debug, Default)]
struct LeaseTable {
    members: HashMap<String, (Instant, MemberStatus)>,
    leases: BTreeMap<ShardId, ShardLease>,
}

impl LeaseTable {
    fn is_alive(&self, member: &str) -> bool {
        self.members.get(member).is_some_and(|(seen, _)| seen.elapsed() < MEMBER_TTL)
    }

    fn visible_lease(&self, lease: &ShardLease) -> ShardLease {
        let holder = lease.holder.clone().filter(|holder| self.is_alive(holder));
        ShardLease { holder, ..lease.clone() }
    }

    fn write(
        &mut self,
        shard: &ShardId,
        generation: u64,
        checkpoint: Option<Checkpoint>,
    ) -> Result<&mut ShardLease, LeaseError> {
        let lost = || LeaseError::Lost(shard.clone());
        let lease = self.leases.get_mut(shard).filter(|lease| lease.generation == generation).ok_or_else(lost)?;
        if checkpoint.is_some() {
            lease.checkpoint = checkpoint;
        }
        Ok(lease)
    }
}

impl MemoryLeases {
    fn lock_table(&self) -> MutexGuard<'_, LeaseTable> {
        lock_unpoisoned(&self.0)
    }
}

impl ShardLeases for MemoryLeases {
    fn send_heartbeat<'a>(
        &'a self,
        member: &'a str,
        standing: MemberStatus,
    ) -> BoxFuture<'a, Result<LeaseSnapshot, LeaseError>> {
        Box::pin(async move {
            let mut memory = self.lock_table();
            memory.members.insert(member.to_owned(), (Instant::now(), standing));
            memory.members.retain(|_, (seen, _)| seen.elapsed() < MEMBER_TTL);
            let leases =
                memory.leases.iter().map(|(shard, lease)| (shard.clone(), memory.visible_lease(lease))).collect();
            let members = memory.members.iter().map(|(name, (_, standing))| (name.clone(), *standing)).collect();
            Ok(LeaseSnapshot { members, leases })
        })
    }

    fn acquire_shard<'a>(
        &'a self,
        shard: &'a ShardId,
        member: &'a str,
    ) -> BoxFuture<'a, Result<ShardLease, LeaseError>> {
        Box::pin(async move {
            let mut memory = self.lock_table();
            let mut lease = memory.leases.get(shard).map(|lease| memory.visible_lease(lease)).unwrap_or_default();
            if lease.holder.as_deref().is_some_and(|holder| holder != member) {
                return Err(LeaseError::Lost(shard.clone()));
            }
            lease.holder = Some(member.to_owned());
            lease.generation += 1;
            memory.leases.insert(shard.clone(), lease.clone());
            Ok(lease)
        })
    }

    fn renew<'a>(
        &'a self,
        shard: &'a ShardId,
        generation: u64,
        checkpoint: Option<Checkpoint>,
    ) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(async move { self.lock_table().write(shard, generation, checkpoint).map(|_| ()) })
    }

    fn release_shard<'a>(
        &'a self,
        shard: &'a ShardId,
        generation: u64,
        checkpoint: Option<Checkpoint>,
    ) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(async move { self.lock_table().write(shard, generation, checkpoint).map(|lease| lease.holder = None) })
    }

    fn delete_lease<'a>(&'a self, shard: &'a ShardId, generation: u64) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(async move {
            let mut memory = self.lock_table();
            let lease = memory.leases.get(shard).map(|lease| memory.visible_lease(lease));
            if lease.is_some_and(|lease| lease.generation != generation || lease.holder.is_some()) {
                return Err(LeaseError::Lost(shard.clone()));
            }
            memory.leases.remove(shard);
            Ok(())
        })
    }

    fn remove_member<'a>(&'a self, member: &'a str) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(async move {
            self.lock_table().members.remove(member);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROVEN_MEMBER: MemberStatus = MemberStatus { proven: true, backing_off: false };

    fn checkpoint_through(sequence: &str) -> Checkpoint {
        Checkpoint { stream_created_ms: 1, position: CheckpointPosition::Through(sequence.into()), beyond: None }
    }

    #[tokio::test]
    async fn a_stale_holder_cannot_write() {
        let (leases, shard) = (MemoryLeases::default(), ShardId::from("s"));
        leases.send_heartbeat("a", PROVEN_MEMBER).await.expect("alive");
        let old = leases.acquire_shard(&shard, "a").await.expect("free");
        leases.renew(&shard, old.generation, Some(checkpoint_through("5"))).await.expect("held");
        leases.send_heartbeat("b", PROVEN_MEMBER).await.expect("alive");
        assert!(leases.acquire_shard(&shard, "b").await.is_err(), "the holder lives");

        let long_ago = Instant::now().checked_sub(MEMBER_TTL).expect("a machine that is up for longer");
        leases.lock_table().members.insert("a".into(), (long_ago, PROVEN_MEMBER));
        assert_eq!(leases.send_heartbeat("b", PROVEN_MEMBER).await.expect("alive").members.len(), 1);
        let new = leases.acquire_shard(&shard, "b").await.expect("the holder is dead");
        assert_eq!(new.checkpoint, Some(checkpoint_through("5")));
        assert_eq!(
            leases.renew(&shard, old.generation, Some(checkpoint_through("9"))).await,
            Err(LeaseError::Lost(shard.clone()))
        );
        assert_eq!(leases.release_shard(&shard, old.generation, None).await, Err(LeaseError::Lost(shard.clone())));
        let seen = leases.send_heartbeat("b", PROVEN_MEMBER).await.expect("alive").leases[&shard].clone();
        assert_eq!((seen.checkpoint, seen.holder.as_deref()), (Some(checkpoint_through("5")), Some("b")));
    }

    #[tokio::test]
    async fn a_released_shard_and_one_of_a_member_that_left_are_free() {
        let (leases, one, two) = (MemoryLeases::default(), ShardId::from("1"), ShardId::from("2"));
        leases.send_heartbeat("a", PROVEN_MEMBER).await.expect("alive");
        let held = leases.acquire_shard(&one, "a").await.expect("free");
        leases.acquire_shard(&two, "a").await.expect("free");
        leases.release_shard(&one, held.generation, Some(checkpoint_through("7"))).await.expect("held");
        leases.remove_member("a").await.expect("gone");
        for (shard, checkpoint) in [(&one, Some(checkpoint_through("7"))), (&two, None)] {
            assert_eq!(leases.acquire_shard(shard, "b").await.expect("free").checkpoint, checkpoint);
        }
    }

    #[tokio::test]
    async fn only_a_lease_that_nobody_acquired_since_is_deleted() {
        let (leases, shard) = (MemoryLeases::default(), ShardId::from("s"));
        leases.send_heartbeat("a", PROVEN_MEMBER).await.expect("alive");
        let first = leases.acquire_shard(&shard, "a").await.expect("free");
        let lost = Err(LeaseError::Lost(shard.clone()));
        assert_eq!(leases.delete_lease(&shard, first.generation).await, lost, "it is held");
        leases.release_shard(&shard, first.generation, None).await.expect("held");
        let second = leases.acquire_shard(&shard, "a").await.expect("free");
        leases.release_shard(&shard, second.generation, None).await.expect("held");
        assert_eq!(leases.delete_lease(&shard, first.generation).await, lost, "it was held since");
        leases.delete_lease(&shard, second.generation).await.expect("free");
        assert!(leases.send_heartbeat("a", PROVEN_MEMBER).await.expect("alive").leases.is_empty());
    }
}
