//! Shards that nobody holds. Pure: the caller passes the time.
//!
//! A shard is free for a moment at every change of its holder, and until a dead member is noticed. After a longer time
//! nobody reads the shard, and its records may be trimmed.

use std::collections::BTreeMap;

use super::assignment::ShardUnit;
use super::leases::LeaseSnapshot;
use crate::protocol::ShardId;

/// Time without a holder after which a shard is reported.
const NOT_HELD_TIMEOUT_MS: u64 = 15_000;

/// The shards without a holder, each with the time since when.
#[derive(Debug, Default)]
pub struct UnheldShards(BTreeMap<ShardId, u64>);

impl UnheldShards {
    /// Notes a view of the leases; returns the shards to report. A child whose parents are not done waits for their holder.
    pub fn update(&mut self, units: &[ShardUnit], view: &LeaseSnapshot, now_ms: u64) -> Vec<ShardId> {
        let is_held = |id: &ShardId| view.leases.get(id).is_some_and(|lease| lease.holder.is_some());
        let free = units.iter().flat_map(ShardUnit::roots).filter(|id| !is_held(id));
        self.0 = free.map(|id| (id.clone(), self.0.get(id).copied().unwrap_or(now_ms))).collect();
        let is_long = |since: &u64| now_ms.saturating_sub(*since) >= NOT_HELD_TIMEOUT_MS;
        self.0.iter().filter(|(_, since)| is_long(since)).map(|(id, _)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::assignment::group_shards;
    use super::super::leases::ShardLease;
    use super::*;
    use crate::kinesis::Shard;

    #[test]
    fn a_shard_is_reported_when_nobody_has_held_it_for_a_while() {
        let shard = |id: &str, parents: &[&str]| Shard {
            id: id.into(),
            start: 0,
            end: 0,
            parents: parents.iter().copied().map(ShardId::from).collect(),
            open: true,
        };
        let shards = [shard("held", &[]), shard("free", &[]), shard("child", &["free"])];
        let held = ShardLease { holder: Some("me".into()), ..ShardLease::default() };
        let view = LeaseSnapshot { leases: [("held".into(), held)].into(), ..LeaseSnapshot::default() };
        let (units, mut unheld) = (group_shards(&shards, &view, 1), UnheldShards::default());
        assert!(unheld.update(&units, &view, 1_000).is_empty());
        assert!(unheld.update(&units, &view, 1_000 + NOT_HELD_TIMEOUT_MS - 1).is_empty());
        assert_eq!(unheld.update(&units, &view, 1_000 + NOT_HELD_TIMEOUT_MS), [ShardId::from("free")]);
        assert!(unheld.update(&[], &view, 100_000).is_empty());
        assert!(unheld.update(&units, &view, 100_000).is_empty(), "held meanwhile");
    }
}
