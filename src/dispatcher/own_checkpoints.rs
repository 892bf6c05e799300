//! The checkpoints at which this process gave shards up, also those that the lease store did not take.
//!
//! In: the checkpoint of each hold that ends. Out: the position at which to resume a shard that no other member held in
//! between. A process gives its shards up when the lease store stays unavailable beyond the grace period; from the last stored
//! checkpoint it would deliver every event of that time again.

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

    /// Takes the checkpoint of a shard that was acquired under this generation; `None` if another member held it in between, or
    /// if it is of a former stream.
    #[must_use]
    pub fn take(&self, shard: &ShardId, generation: u64, stream_created_ms: u64) -> Option<Checkpoint> {
        let (kept, checkpoint) = lock_unpoisoned(&self.0).remove(shard)?;
        // Every acquisition raises the generation by one.
        let acquisitions = generation.checked_sub(kept)?;
        (acquisitions <= 1 && checkpoint.stream_created_ms == stream_created_ms).then_some(checkpoint)
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
        for (name, generation, stream, taken) in [
            ("acquired next", 4, 7, Some("9")),
            ("held all the time", 3, 7, Some("9")),
            ("held by another in between", 5, 7, None),
            ("a lease that was made anew", 1, 7, None),
            ("another stream", 4, 8, None),
        ] {
            let own = OwnCheckpoints::default();
            own.keep(&shard, 3, checkpoint("9"));
            assert_eq!(own.take(&shard, generation, stream), taken.map(checkpoint), "{name}");
            assert_eq!(own.take(&shard, generation, stream), None, "{name}: once");
        }
    }

    #[test]
    fn the_kept_checkpoints_are_bounded() {
        let own = OwnCheckpoints::default();
        (0..5_000).for_each(|n| own.keep(&ShardId::from(format!("s{n}").as_str()), 1, checkpoint("1")));
        assert!(lock_unpoisoned(&own.0).len() <= KEPT_SHARDS_MAX);
        assert!(own.take(&ShardId::from("s4999"), 2, 7).is_some());
    }
}
