//! The checkpoints at which this process gave shards up, also those that the lease store did not take.
//!
//! In: the checkpoint of each hold that ends. Out: where to resume a shard that no other member held in between. While the
//! lease store is away for longer than its grace, shards are given up, and all events since the last stored checkpoint would
//! arrive twice.

use std::collections::HashMap;
use std::sync::Mutex;

use super::leases::Checkpoint;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::ShardId;

/// Bounds the shards whose checkpoints are kept: far more than a process holds.
const KEPT_SHARDS_MAX: usize = 1_000;

/// Checkpoints of shards that this process held, with the generations of their leases.
#[derive(Debug, Default)]
pub struct OwnCheckpoints(Mutex<HashMap<ShardId, (u64, Checkpoint)>>);

impl OwnCheckpoints {
    /// Keeps the checkpoint of a hold that ends.
    pub fn keep(&self, shard: &ShardId, generation: u64, checkpoint: Checkpoint) {
        let mut kept = lock_unpoisoned(&self.0);
        if kept.len() >= KEPT_SHARDS_MAX {
            kept.clear();
        }
        kept.insert(shard.clone(), (generation, checkpoint));
    }

    /// The checkpoint at which to resume a shard that was acquired under this generation: the own one, unless another member
    /// held the shard in between, or it is of a former stream.
    #[must_use]
    pub fn resume(
        &self,
        shard: &ShardId,
        generation: u64,
        stream_created_ms: u64,
        stored: Option<Checkpoint>,
    ) -> Option<Checkpoint> {
        let own = lock_unpoisoned(&self.0).remove(shard);
        // Every acquisition raises the generation by one.
        let is_own = |(kept, checkpoint): &(u64, Checkpoint)| {
            generation.checked_sub(*kept).is_some_and(|acquisitions| acquisitions <= 1)
                && checkpoint.stream_created_ms == stream_created_ms
        };
        own.filter(is_own).map(|(_, checkpoint)| checkpoint).or(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::super::leases::CheckpointPosition;
    use super::*;

    fn checkpoint(through: &str) -> Checkpoint {
        Checkpoint { stream_created_ms: 7, position: CheckpointPosition::Through(through.into()), beyond: None }
    }

    #[test]
    fn a_shard_resumes_at_its_own_checkpoint_unless_another_member_held_it() {
        let shard = ShardId::from("a");
        for (name, generation, stream, resumed) in [
            ("acquired next", 4, 7, "9"),
            ("held all the time", 3, 7, "9"),
            ("held by another in between", 5, 7, "5"),
            ("a lease that was made anew", 1, 7, "5"),
            ("another stream", 4, 8, "5"),
        ] {
            let own = OwnCheckpoints::default();
            own.keep(&shard, 3, checkpoint("9"));
            let stored = Some(checkpoint("5"));
            assert_eq!(own.resume(&shard, generation, stream, stored.clone()), Some(checkpoint(resumed)), "{name}");
            assert_eq!(own.resume(&shard, generation, stream, stored.clone()), stored, "{name}: once");
        }
    }

    #[test]
    fn the_kept_checkpoints_are_bounded() {
        let own = OwnCheckpoints::default();
        (0..5_000).for_each(|n| own.keep(&ShardId::from(format!("s{n}").as_str()), 1, checkpoint("1")));
        assert!(lock_unpoisoned(&own.0).len() <= KEPT_SHARDS_MAX);
        assert!(own.resume(&ShardId::from("s4999"), 2, 7, None).is_some());
    }
}
