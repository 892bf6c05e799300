//! Leases of shards that Kinesis has trimmed. Pure: the caller passes the time.
//!
//! A closed shard vanishes from the listing once its last record is older than the retention. Its lease has no use from
//! then on, and every reshard would leave some behind.

use std::collections::BTreeMap;

use super::leases::{CheckpointPosition, LeaseSnapshot, ShardLease};
use super::shard_discovery::ShardListing;
use crate::kinesis::covers_all;
use crate::protocol::ShardId;

/// Time without a holder and without an entry in the listing after which a lease is deleted: a listing can be older than a
/// reshard, by seconds.
const LEASE_TTL_MS: u64 = 10 * 60_000;

/// The leases of shards that are not listed, each with the time since when.
#[derive(Debug, Default)]
pub struct TrimmedShards(BTreeMap<ShardId, u64>);

/// The lease of a trimmed shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrimmedShard {
    /// Id of the shard.
    pub shard: ShardId,
    /// Generation of its lease.
    pub generation: u64,
    /// Whether it was trimmed before it was read to its end.
    pub is_unread: bool,
}

impl TrimmedShards {
    /// Notes a listing and a view of the leases; returns the leases to delete. One that stays is returned again after the
    /// same time.
    pub fn update(&mut self, listing: &ShardListing, view: &LeaseSnapshot, now_ms: u64) -> Vec<TrimmedShard> {
        if !covers_all(&listing.shards) {
            self.0.clear();
            return Vec::new();
        }
        let absent = view.leases.iter().filter(|(id, lease)| lease.holder.is_none() && listing.find(id).is_none());
        let (mut since, mut expired) = (BTreeMap::new(), Vec::new());
        for (id, lease) in absent {
            let first = self.0.get(id).copied().unwrap_or(now_ms);
            if now_ms.saturating_sub(first) < LEASE_TTL_MS {
                since.insert(id.clone(), first);
            } else {
                let is_unread = is_partly_read(lease, listing.created_ms);
                expired.push(TrimmedShard { shard: id.clone(), generation: lease.generation, is_unread });
            }
        }
        self.0 = since;
        expired
    }
}

/// Whether a shard of this stream was read, but not to its end.
fn is_partly_read(lease: &ShardLease, stream_created_ms: u64) -> bool {
    lease.checkpoint.as_ref().is_some_and(|checkpoint| {
        checkpoint.stream_created_ms == stream_created_ms
            && matches!(checkpoint.position, CheckpointPosition::Through(_))
    })
}

#[cfg(test)]
mod tests {
    use super::super::leases::Checkpoint;
    use super::*;
    use crate::kinesis::Shard;

    fn listing(end: u128) -> ShardListing {
        let shard = Shard { id: "open".into(), start: 0, end, parents: vec![], open: true };
        ShardListing { created_ms: 7, shards: vec![shard] }
    }

    fn lease(holder: Option<&str>, position: CheckpointPosition) -> ShardLease {
        ShardLease {
            holder: holder.map(str::to_owned),
            generation: 3,
            checkpoint: Some(Checkpoint { stream_created_ms: 7, position, beyond: None }),
            unreadable_checkpoint: None,
        }
    }

    #[test]
    fn the_lease_of_a_shard_that_is_not_listed_for_a_while_is_deleted() {
        let whole = listing(u128::MAX);
        let view = LeaseSnapshot {
            leases: [
                ("open".into(), lease(None, CheckpointPosition::ShardEnd)),
                ("held".into(), lease(Some("me"), CheckpointPosition::ShardEnd)),
                ("done".into(), lease(None, CheckpointPosition::ShardEnd)),
                ("partly".into(), lease(None, CheckpointPosition::Through("5".into()))),
            ]
            .into(),
            ..LeaseSnapshot::default()
        };
        let trimmed = |shard: &str, is_unread| TrimmedShard { shard: shard.into(), generation: 3, is_unread };
        let both = vec![trimmed("done", false), trimmed("partly", true)];
        let mut shards = TrimmedShards::default();
        for (name, at_ms, listing, expected) in [
            ("first seen", 1_000, &whole, vec![]),
            ("just before the time", 1_000 + LEASE_TTL_MS - 1, &whole, vec![]),
            ("after the time", 1_000 + LEASE_TTL_MS, &whole, both.clone()),
            ("not deleted: it counts anew", 1_001 + LEASE_TTL_MS, &whole, vec![]),
            ("after the time again", 1_001 + 2 * LEASE_TTL_MS, &whole, both),
            ("first seen again", 2 + 3 * LEASE_TTL_MS, &whole, vec![]),
            ("a listing during a reshard", 3 + 3 * LEASE_TTL_MS, &listing(5), vec![]),
            ("listed whole again", 4 + 4 * LEASE_TTL_MS, &whole, vec![]),
        ] {
            assert_eq!(shards.update(listing, &view, at_ms), expected, "{name}");
        }
    }
}
