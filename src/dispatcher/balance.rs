//! Which shards a member should hold.
//!
//! In: the stream's shards, everyone's leases, and what this member runs. Out: what to take and what to give back. By
//! count: nobody holds more than the even share, rounded up. Pure.

use super::leases::{Checkpoint, Done, View};
use crate::kinesis::Shard;
use crate::protocol::ShardId;

/// What to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Free shards to hold from now on.
    pub take: Vec<ShardId>,
    /// One too many. One at a time, so that the others keep up.
    pub give_back: Option<ShardId>,
}

/// The shards that may be read: not done, and their parents are. A parent that is not listed any more was trimmed.
#[must_use]
pub fn readable(shards: &[Shard], view: &View, stream_created_ms: u64) -> Vec<ShardId> {
    let end = Checkpoint { stream_created_ms, position: Done::ShardEnd };
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
pub fn plan(readable: &[ShardId], view: &View, member: &str, running: &[ShardId]) -> Plan {
    let share = readable.len().div_ceil(view.members.max(1));
    let free = |id: &&ShardId| {
        let holder = view.leases.get(id).and_then(|lease| lease.holder.as_deref());
        !running.contains(id) && holder.is_none_or(|holder| holder == member)
    };
    let take = readable.iter().filter(free).take(share.saturating_sub(running.len())).cloned().collect();
    let give_back = if running.len() > share { running.last().cloned() } else { None };
    Plan { take, give_back }
}

#[cfg(test)]
mod tests {
    use super::super::leases::Lease;
    use super::*;

    fn ids(text: &str) -> Vec<ShardId> {
        text.split_whitespace().map(ShardId::from).collect()
    }

    fn view(members: usize, held: &[(&str, &str)]) -> View {
        let lease = |holder: &str| Lease { holder: Some(holder.to_owned()), ..Lease::default() };
        View { members, leases: held.iter().map(|(id, holder)| (ShardId::from(*id), lease(holder))).collect() }
    }

    #[test]
    fn a_table_of_shares() {
        let two = view(2, &[("a", "me"), ("b", "me"), ("c", "me"), ("d", "me")]);
        for (name, shards, view, running, take, give_back) in [
            ("alone it takes all", "a b c", view(1, &[]), "", "a b c", None),
            ("of two it takes half, rounded up", "a b c", view(2, &[]), "", "a b", None),
            ("what others hold is theirs", "a b c", view(1, &[("a", "you")]), "", "b c", None),
            ("its own that does not run is taken anew", "a", view(1, &[("a", "me")]), "", "a", None),
            ("too much is given back, one at a time", "a b c d", two.clone(), "a b c d", "", Some("d")),
            ("an even share stays", "a b c d", two, "a b", "", None),
            ("nobody counted as alive is no division by zero", "a", view(0, &[]), "", "a", None),
        ] {
            let expected = Plan { take: ids(take), give_back: give_back.map(ShardId::from) };
            assert_eq!(plan(&ids(shards), &view, "me", &ids(running)), expected, "{name}");
        }
    }

    #[test]
    fn a_child_is_read_when_its_parents_are_done() {
        let shard = |id: &str, parents: &str| Shard {
            id: id.into(),
            start: 0,
            end: 0,
            parents: ids(parents),
            open: parents.is_empty(),
        };
        let shards = [shard("old", ""), shard("child", "old"), shard("orphan", "trimmed")];
        let mut view = View::default();
        assert_eq!(readable(&shards, &view, 1), ids("old orphan"));
        let end = Checkpoint { stream_created_ms: 1, position: Done::ShardEnd };
        view.leases.insert("old".into(), Lease { checkpoint: Some(end), ..Lease::default() });
        assert_eq!(readable(&shards, &view, 1), ids("child orphan"));
        assert_eq!(readable(&shards, &view, 2), ids("old orphan"), "the mark is of another stream");
    }
}
