//! Which shards a member should hold.
//!
//! In: the stream's shards, everyone's leases, and what this member runs. Out: what to take and what to give back. By
//! count: everyone has an even share, and what is left over belongs to those who hold most already, so that shards move
//! no more than they must. A member that nobody has proven yet gets one shard to prove itself by, and no more, while a
//! proven one lives: a release that cannot deliver holds up one shard. Pure.

use std::cmp::Reverse;

use super::leases::{Checkpoint, CheckpointPosition, LeaseSnapshot, MemberStatus};
use crate::kinesis::Shard;
use crate::protocol::ShardId;

/// What to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardAssignment {
    /// Free shards to hold from now on.
    pub acquire: Vec<ShardId>,
    /// One too many. One at a time, so that the others keep up.
    pub release: Option<ShardId>,
}

/// The shards that may be read: not done, and their parents are. A parent that is not listed any more was trimmed.
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

/// What a member that runs `running` should change.
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
    let give_back = if running.len() > share { running.last().cloned() } else { None };
    ShardAssignment { acquire: take, release: give_back }
}

/// How many shards a member should hold.
fn fair_share(shards: usize, view: &LeaseSnapshot, member: &str) -> usize {
    let proven = |standing: &MemberStatus| standing.proven;
    let trying = |standing: &MemberStatus| !standing.proven && !standing.backing_off;
    if !view.members.values().any(proven) {
        return even_share(shards, view, member, |_| true);
    }
    match view.members.get(member) {
        Some(own) if !own.proven => usize::from(trying(own)),
        _ => {
            let others = view.members.values().filter(|standing| trying(standing)).count();
            even_share(shards.saturating_sub(others), view, member, proven)
        }
    }
}

/// A member's part of so many shards, which those who count share evenly.
fn even_share(shards: usize, view: &LeaseSnapshot, member: &str, counts: impl Fn(&MemberStatus) -> bool) -> usize {
    let held = |name: &str| view.leases.values().filter(|lease| lease.holder.as_deref() == Some(name)).count();
    let counted = view.members.iter().filter(|(name, standing)| counts(standing) || *name == member);
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
        let well = MemberStatus { proven: true, backing_off: false };
        let names = ["me", "you", "they"].into_iter().take(members);
        let members = names.map(|name| (name.to_owned(), well)).collect();
        LeaseSnapshot { members, leases: held.iter().map(|(id, holder)| (ShardId::from(*id), lease(holder))).collect() }
    }

    #[test]
    fn a_table_of_shares() {
        let two = snapshot_of(2, &[("a", "me"), ("b", "me"), ("c", "me"), ("d", "me")]);
        for (name, shards, view, running, take, give_back) in [
            ("alone it takes all", "a b c", snapshot_of(1, &[]), "", "a b c", None),
            (
                "of two it takes half, and what is left over if its name is first",
                "a b c",
                snapshot_of(2, &[]),
                "",
                "a b",
                None,
            ),
            (
                "what is left over stays with who has it",
                "a b c",
                snapshot_of(2, &[("a", "you"), ("b", "you")]),
                "",
                "c",
                None,
            ),
            ("what others hold is theirs", "a b c", snapshot_of(1, &[("a", "you")]), "", "b c", None),
            ("its own that does not run is taken anew", "a", snapshot_of(1, &[("a", "me")]), "", "a", None),
            ("too much is given back, one at a time", "a b c d", two.clone(), "a b c d", "", Some("d")),
            ("an even share stays", "a b c d", two, "a b", "", None),
            ("nobody counted as alive is no division by zero", "a", snapshot_of(0, &[]), "", "a", None),
        ] {
            let expected = ShardAssignment { acquire: shard_ids(take), release: give_back.map(ShardId::from) };
            assert_eq!(plan_assignment(&shard_ids(shards), &view, "me", &shard_ids(running)), expected, "{name}");
        }
    }

    #[test]
    fn who_is_not_proven_gets_one_shard_and_leaves_none_unheld() {
        let standing = |text: &str| MemberStatus { proven: text == "proven", backing_off: text == "resting" };
        for (name, shards, members, expected) in [
            ("nobody is proven yet", 4, vec!["new", "new"], vec![2, 2]),
            ("one is", 4, vec!["proven", "new"], vec![3, 1]),
            ("both are", 4, vec!["proven", "proven"], vec![2, 2]),
            ("the only shard is the new one's to try", 1, vec!["proven", "new"], vec![0, 1]),
            ("which failed and rests", 1, vec!["proven", "resting"], vec![1, 0]),
            ("a new one among three", 5, vec!["proven", "proven", "new"], vec![2, 2, 1]),
            ("as many proven as shards", 2, vec!["proven", "proven", "new"], vec![1, 0, 1]),
            ("fewer shards than new ones", 2, vec!["new", "new", "new"], vec![1, 0, 1]),
            ("more proven than shards", 2, vec!["proven", "proven", "proven"], vec![1, 0, 1]),
            ("more new ones than shards", 1, vec!["proven", "new", "new"], vec![0, 1, 1]),
        ] {
            let names = ["me", "you", "they"];
            let members = names.iter().zip(&members).map(|(name, text)| ((*name).to_owned(), standing(text))).collect();
            let view = LeaseSnapshot { members, ..LeaseSnapshot::default() };
            let shares: Vec<usize> = names
                .iter()
                .filter(|name| view.members.contains_key(**name))
                .map(|name| fair_share(shards, &view, name))
                .collect();
            assert_eq!(shares, expected, "{name}");
            assert!(shares.iter().sum::<usize>() >= shards, "{name}: every shard is someone's");
        }
    }

    #[test]
    fn a_child_is_read_when_its_parents_are_done() {
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
        assert_eq!(list_readable_shards(&shards, &view, 2), shard_ids("old orphan"), "the mark is of another stream");
    }
}
