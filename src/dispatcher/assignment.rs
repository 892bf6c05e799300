//! Decides which shards a member should hold.
//!
//! In: the stream's shards, all leases, and the shards that this member runs. Out: the shards to acquire and the one to
//! release. Every member gets an even share by count; a remainder goes to the members that hold most already, so that
//! as few shards as possible move. While a proven member lives, an unproven one gets exactly one shard to prove itself
//! with: a release that cannot deliver then holds up one shard. Pure.

use std::cmp::Reverse;

use super::leases::{Checkpoint, CheckpointPosition, LeaseSnapshot, MemberStatus};
use crate::kinesis::Shard;
use crate::protocol::ShardId;

/// The changes that a member should make to the shards it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardAssignment {
    /// Free shards to acquire now.
    pub acquire: Vec<ShardId>,
    /// A surplus shard to release. Releasing one at a time lets the other members keep up.
    pub release: Option<ShardId>,
}

/// The shards that may be read: neither they nor any parent is unfinished. A parent that is not listed any more was
/// trimmed.
#[must_use]
pub fn list_readable_shards(shards: &[Shard], view: &LeaseSnapshot, stream_created_ms: u64) -> Vec<ShardId> {
    let end = Checkpoint { stream_created_ms, position: CheckpointPosition::ShardEnd, beyond: None };
    let done = |id: &ShardId| view.leases.get(id).is_some_and(|lease| lease.checkpoint.as_ref() == Some(&end));
    let listed = |id: &ShardId| shards.iter().any(|shard| shard.id == *id);
    shards
        .iter()
        .filter(|shard| !done(&shard.id) && shard.parents.iter().all(|parent| done(parent) || !listed(parent)))
        .map(|shard| shard.id.clone())
        .collect()
}

/// The changes for a member that runs `running`.
#[must_use]
pub fn plan_assignment(
    readable: &[ShardId],
    view: &LeaseSnapshot,
    member: &str,
    running: &[ShardId],
) -> ShardAssignment {
    let share = fair_share(readable.len(), view, member);
    let free = |id: &&ShardId| {
        let holder = view.leases.get(id).and_then(|lease| lease.holder.as_deref());
        !running.contains(id) && holder.is_none_or(|holder| holder == member)
    };
    let take = readable.iter().filter(free).take(share.saturating_sub(running.len())).cloned().collect();
    let release = if running.len() > share { running.last().cloned() } else { None };
    ShardAssignment { acquire: take, release }
}

/// The number of shards that a member should hold.
fn fair_share(shards: usize, view: &LeaseSnapshot, member: &str) -> usize {
    let proven = |status: &MemberStatus| status.proven;
    let on_probation = |status: &MemberStatus| !status.proven && !status.backing_off;
    if !view.members.values().any(proven) {
        return even_share(shards, view, member, |_| true);
    }
    match view.members.get(member) {
        Some(own) if !own.proven => usize::from(on_probation(own)),
        _ => {
            let others = view.members.values().filter(|status| on_probation(status)).count();
            even_share(shards.saturating_sub(others), view, member, proven)
        }
    }
}

/// A member's part of `shards`, split evenly among the members for which `counts` is true.
fn even_share(shards: usize, view: &LeaseSnapshot, member: &str, counts: impl Fn(&MemberStatus) -> bool) -> usize {
    let held = |name: &str| view.leases.values().filter(|lease| lease.holder.as_deref() == Some(name)).count();
    let counted = view.members.iter().filter(|(name, status)| counts(status) || *name == member);
    let mut names: Vec<(Reverse<usize>, &str)> =
        counted.map(|(name, _)| (Reverse(held(name)), name.as_str())).collect();
    names.sort_unstable();
    let Some(rank) = names.iter().position(|(_, name)| *name == member) else { return shards };
    shards / names.len() + usize::from(rank < shards % names.len())
}

#[cfg(test)]
mod tests {
    use super::super::leases::ShardLease;
    use super::*;

    fn shard_ids(text: &str) -> Vec<ShardId> {
        text.split_whitespace().map(ShardId::from).collect()
    }

    fn snapshot_of(members: usize, held: &[(&str, &str)]) -> LeaseSnapshot {
        let lease = |holder: &str| ShardLease { holder: Some(holder.to_owned()), ..ShardLease::default() };
        let proven_member = MemberStatus { proven: true, backing_off: false };
        let names = ["me", "you", "they"].into_iter().take(members);
        let members = names.map(|name| (name.to_owned(), proven_member)).collect();
        LeaseSnapshot { members, leases: held.iter().map(|(id, holder)| (ShardId::from(*id), lease(holder))).collect() }
    }

    #[test]
    fn shards_are_shared_evenly() {
        let two = snapshot_of(2, &[("a", "me"), ("b", "me"), ("c", "me"), ("d", "me")]);
        for (name, shards, view, running, take, release) in [
            ("a lone member takes all shards", "a b c", snapshot_of(1, &[]), "", "a b c", None),
            (
                "one of two takes half, and the remainder if its name sorts first",
                "a b c",
                snapshot_of(2, &[]),
                "",
                "a b",
                None,
            ),
            (
                "the remainder stays with its holder",
                "a b c",
                snapshot_of(2, &[("a", "you"), ("b", "you")]),
                "",
                "c",
                None,
            ),
            ("shards held by others are not taken", "a b c", snapshot_of(1, &[("a", "you")]), "", "b c", None),
            ("an own lease without a worker is acquired again", "a", snapshot_of(1, &[("a", "me")]), "", "a", None),
            ("a surplus is released one shard at a time", "a b c d", two.clone(), "a b c d", "", Some("d")),
            ("an even share stays", "a b c d", two, "a b", "", None),
            ("no living member is no division by zero", "a", snapshot_of(0, &[]), "", "a", None),
        ] {
            let expected = ShardAssignment { acquire: shard_ids(take), release: release.map(ShardId::from) };
            assert_eq!(plan_assignment(&shard_ids(shards), &view, "me", &shard_ids(running)), expected, "{name}");
        }
    }

    #[test]
    fn an_unproven_member_gets_one_shard_and_no_shard_stays_unheld() {
        let status = |text: &str| MemberStatus { proven: text == "proven", backing_off: text == "resting" };
        for (name, shards, members, expected) in [
            ("no member is proven", 4, vec!["new", "new"], vec![2, 2]),
            ("one member is proven", 4, vec!["proven", "new"], vec![3, 1]),
            ("both members are proven", 4, vec!["proven", "proven"], vec![2, 2]),
            ("the only shard goes to the new member", 1, vec!["proven", "new"], vec![0, 1]),
            ("the new member failed and backs off", 1, vec!["proven", "resting"], vec![1, 0]),
            ("one new member among three", 5, vec!["proven", "proven", "new"], vec![2, 2, 1]),
            ("as many proven as shards", 2, vec!["proven", "proven", "new"], vec![1, 0, 1]),
            ("fewer shards than new ones", 2, vec!["new", "new", "new"], vec![1, 0, 1]),
            ("more proven than shards", 2, vec!["proven", "proven", "proven"], vec![1, 0, 1]),
            ("more new ones than shards", 1, vec!["proven", "new", "new"], vec![0, 1, 1]),
        ] {
            let names = ["me", "you", "they"];
            let members = names.iter().zip(&members).map(|(name, text)| ((*name).to_owned(), status(text))).collect();
            let view = LeaseSnapshot { members, ..LeaseSnapshot::default() };
            let shares: Vec<usize> = names
                .iter()
                .filter(|name| view.members.contains_key(**name))
                .map(|name| fair_share(shards, &view, name))
                .collect();
            assert_eq!(shares, expected, "{name}");
            assert!(shares.iter().sum::<usize>() >= shards, "{name}: every shard has a holder");
        }
    }

    #[test]
    fn a_child_shard_is_readable_once_its_parents_are_done() {
        let shard = |id: &str, parents: &str| Shard {
            id: id.into(),
            start: 0,
            end: 0,
            parents: shard_ids(parents),
            open: parents.is_empty(),
        };
        let shards = [shard("old", ""), shard("child", "old"), shard("orphan", "trimmed")];
        let mut view = LeaseSnapshot::default();
        assert_eq!(list_readable_shards(&shards, &view, 1), shard_ids("old orphan"));
        let end = Checkpoint { stream_created_ms: 1, position: CheckpointPosition::ShardEnd, beyond: None };
        view.leases.insert("old".into(), ShardLease { checkpoint: Some(end), ..ShardLease::default() });
        assert_eq!(list_readable_shards(&shards, &view, 1), shard_ids("child orphan"));
        assert_eq!(
            list_readable_shards(&shards, &view, 2),
            shard_ids("old orphan"),
            "the checkpoint belongs to another stream"
        );
    }
}
