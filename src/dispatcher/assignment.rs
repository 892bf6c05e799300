//! Decides which shards a member should hold.
//!
//! In: the stream's shards, all leases, and the shards that this member runs. Out: the shards to acquire and those to
//! release. Shards that are connected by a parent that is not done are one unit, which one member holds as a whole: it
//! alone knows the order across a split or a merge. Every member gets an even share of the units by count; a remainder
//! goes to the members that hold most already, so that as few units as possible move. While a proven member lives, an
//! unproven one gets exactly one unit to prove itself with: a release that cannot deliver then holds up one unit. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::leases::{LeaseSnapshot, MemberStatus};
use crate::kinesis::Shard;
use crate::protocol::ShardId;

/// Shards that one member holds as a whole, each with its parents in the unit; sorted by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardUnit(Vec<(ShardId, Vec<ShardId>)>);

impl ShardUnit {
    /// The shards of the unit.
    pub fn ids(&self) -> impl Iterator<Item = &ShardId> {
        self.0.iter().map(|(id, _)| id)
    }

    /// The shards of the unit whose parents are done.
    pub fn roots(&self) -> impl Iterator<Item = &ShardId> {
        self.0.iter().filter(|(_, parents)| parents.is_empty()).map(|(id, _)| id)
    }

    /// The parents of a shard that are not done; `None` if the unit lacks the shard.
    #[must_use]
    pub fn parents_of(&self, shard: &ShardId) -> Option<&[ShardId]> {
        self.0.iter().find(|(id, _)| id == shard).map(|(_, parents)| parents.as_slice())
    }

    /// The living member that holds most shards of the unit, and of several the one with the first shard.
    fn holder<'a>(&self, view: &'a LeaseSnapshot) -> Option<&'a str> {
        let mut counts: Vec<(usize, &str)> = Vec::new();
        for holder in self.ids().filter_map(|id| view.leases.get(id)?.holder.as_deref()) {
            match counts.iter_mut().find(|(_, name)| *name == holder) {
                Some((count, _)) => *count += 1,
                None => counts.push((1, holder)),
            }
        }
        // Of equals, the last in reverse is the first.
        counts.into_iter().rev().max_by_key(|(count, _)| *count).map(|(_, name)| name)
    }
}

/// The changes that a member should make to the shards it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardAssignment {
    /// Free shards to acquire now; a child only once its parents run here.
    pub acquire: Vec<ShardId>,
    /// Shards to release now: those that are not listed any more, those of units of another member, and one surplus unit.
    /// Releasing one unit at a time lets the other members keep up.
    pub release: Vec<ShardId>,
    /// Shards of this member's units that another member still has to release.
    pub awaited: Vec<ShardId>,
}

/// Groups the shards that are not done into units. A parent that is not listed any more was trimmed.
#[must_use]
pub fn group_shards(shards: &[Shard], view: &LeaseSnapshot, stream_created_ms: u64) -> Vec<ShardUnit> {
    let is_done = |id: &ShardId| view.leases.get(id).is_some_and(|lease| lease.is_done(stream_created_ms));
    let open: BTreeMap<&ShardId, &Shard> =
        shards.iter().filter(|shard| !is_done(&shard.id)).map(|shard| (&shard.id, shard)).collect();
    let parents_of = |shard: &Shard| -> Vec<ShardId> {
        shard.parents.iter().filter(|parent| open.contains_key(parent)).cloned().collect()
    };
    let mut units: Vec<BTreeMap<ShardId, Vec<ShardId>>> = Vec::new();
    for shard in open.values() {
        let parents = parents_of(shard);
        let is_connected = |unit: &BTreeMap<ShardId, Vec<ShardId>>| {
            parents.iter().any(|parent| unit.contains_key(parent))
                || unit.values().any(|parents| parents.contains(&shard.id))
        };
        let (connected, others) = units.into_iter().partition(is_connected);
        let connected: Vec<BTreeMap<_, _>> = connected;
        units = others;
        let mut unit: BTreeMap<_, _> = connected.into_iter().flatten().collect();
        unit.insert(shard.id.clone(), parents);
        units.push(unit);
    }
    let mut units: Vec<ShardUnit> = units.into_iter().map(|unit| ShardUnit(unit.into_iter().collect())).collect();
    units.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    units
}

/// The changes for a member that runs `running`.
#[must_use]
pub fn plan_assignment(
    units: &[ShardUnit],
    view: &LeaseSnapshot,
    member: &str,
    running: &[ShardId],
) -> ShardAssignment {
    let holders: Vec<Option<&str>> = units
        .iter()
        .map(|unit| {
            // A lease may be younger than the view.
            let runs = unit.ids().any(|id| running.contains(id));
            unit.holder(view).or(runs.then_some(member))
        })
        .collect();
    let share = fair_share(units.len(), &holders, view, member);
    let (mut own, mut free, mut plan) = (Vec::new(), Vec::new(), ShardAssignment::default());
    for (unit, holder) in units.iter().zip(&holders) {
        let runs = unit.ids().any(|id| running.contains(id));
        match holder {
            Some(holder) if *holder == member && runs => own.push(unit),
            // A lease of this member without a worker.
            Some(holder) if *holder == member => free.push(unit),
            Some(_) => plan.release.extend(unit.ids().filter(|id| running.contains(id)).cloned()),
            None => free.push(unit),
        }
    }
    let listed: BTreeSet<&ShardId> = units.iter().flat_map(ShardUnit::ids).collect();
    plan.release.extend(running.iter().filter(|id| !listed.contains(id)).cloned());
    if own.len() > share {
        // A unit of one shard moves at the least cost.
        if let Some((at, _)) = own.iter().enumerate().rev().min_by_key(|(_, unit)| unit.0.len()) {
            plan.release.extend(own.remove(at).ids().filter(|id| running.contains(id)).cloned());
        }
    }
    let taken = free.into_iter().take(share.saturating_sub(own.len()));
    for unit in own.into_iter().chain(taken) {
        for (id, parents) in unit.0.iter().filter(|(id, _)| !running.contains(id)) {
            let holder = view.leases.get(id).and_then(|lease| lease.holder.as_deref());
            if holder.is_some_and(|holder| holder != member) {
                plan.awaited.push(id.clone());
            } else if parents.iter().all(|parent| running.contains(parent)) {
                plan.acquire.push(id.clone());
            }
        }
    }
    plan
}

/// The number of units that a member should hold.
fn fair_share(units: usize, holders: &[Option<&str>], view: &LeaseSnapshot, member: &str) -> usize {
    let proven = |status: &MemberStatus| status.proven;
    let on_probation = |status: &MemberStatus| !status.proven && !status.backing_off;
    if !view.members.values().any(proven) {
        return even_share(units, holders, view, member, |_| true);
    }
    match view.members.get(member) {
        Some(own) if !own.proven => usize::from(on_probation(own)),
        _ => {
            let others = view.members.values().filter(|status| on_probation(status)).count();
            even_share(units.saturating_sub(others), holders, view, member, proven)
        }
    }
}

/// A member's part of `units`, split evenly among the members for which `counts` is true.
fn even_share(
    units: usize,
    holders: &[Option<&str>],
    view: &LeaseSnapshot,
    member: &str,
    counts: impl Fn(&MemberStatus) -> bool,
) -> usize {
    let held = |name: &str| holders.iter().filter(|holder| **holder == Some(name)).count();
    let counted = view.members.iter().filter(|(name, status)| counts(status) || *name == member);
    let mut names: Vec<(Reverse<usize>, &str)> =
        counted.map(|(name, _)| (Reverse(held(name)), name.as_str())).collect();
    names.sort_unstable();
    let Some(rank) = names.iter().position(|(_, name)| *name == member) else { return units };
    units / names.len() + usize::from(rank < units % names.len())
}

#[cfg(test)]
mod tests {
    use super::super::leases::{Checkpoint, CheckpointPosition, ShardLease};
    use super::*;

    fn shard_ids(text: &str) -> Vec<ShardId> {
        text.split_whitespace().map(ShardId::from).collect()
    }

    /// A unit per shard.
    fn units_of(ids: &str) -> Vec<ShardUnit> {
        shard_ids(ids).into_iter().map(|id| ShardUnit(vec![(id, vec![])])).collect()
    }

    fn shard(id: &str, parents: &str) -> Shard {
        Shard { id: id.into(), start: 0, end: 0, parents: shard_ids(parents), open: true }
    }

    /// The plan for this member in a stream with these shards and their parents.
    fn plan_of(shards: &[(&str, &str)], held: &[(&str, &str)], running: &str) -> [String; 3] {
        let shards: Vec<Shard> = shards.iter().map(|(id, parents)| shard(id, parents)).collect();
        let view = snapshot_of(2, held);
        let plan = plan_assignment(&group_shards(&shards, &view, 1), &view, "me", &shard_ids(running));
        let text = |ids: Vec<ShardId>| ids.iter().map(ShardId::as_str).collect::<Vec<_>>().join(" ");
        [text(plan.acquire), text(plan.release), text(plan.awaited)]
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
            let release = release.map(ShardId::from).into_iter().collect();
            let plan = plan_assignment(&units_of(shards), &view, "me", &shard_ids(running));
            assert_eq!((plan.acquire, plan.release), (shard_ids(take), release), "{name}");
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
                .map(|name| fair_share(shards, &[], &view, name))
                .collect();
            assert_eq!(shares, expected, "{name}");
            assert!(shares.iter().sum::<usize>() >= shards, "{name}: every shard has a holder");
        }
    }

    #[test]
    fn shards_that_are_connected_by_a_parent_that_is_not_done_are_one_unit() {
        let shards =
            [shard("a", ""), shard("b", ""), shard("c", "a"), shard("d", "a"), shard("e", "d b"), shard("o", "gone")];
        let unit = |text: &[(&str, &str)]| {
            ShardUnit(text.iter().map(|(id, parents)| (ShardId::from(*id), shard_ids(parents))).collect())
        };
        let mut view = LeaseSnapshot::default();
        let whole = unit(&[("a", ""), ("b", ""), ("c", "a"), ("d", "a"), ("e", "d b")]);
        assert_eq!(group_shards(&shards, &view, 1), [whole, unit(&[("o", "")])]);
        let end = Checkpoint { stream_created_ms: 1, position: CheckpointPosition::ShardEnd, beyond: None };
        let done = ShardLease { checkpoint: Some(end), ..ShardLease::default() };
        view.leases.insert("a".into(), done);
        let merged = unit(&[("b", ""), ("d", ""), ("e", "d b")]);
        assert_eq!(group_shards(&shards, &view, 1), [merged, unit(&[("c", "")]), unit(&[("o", "")])]);
        assert_eq!(group_shards(&shards, &view, 2).len(), 2, "the checkpoint belongs to another stream");
    }

    #[test]
    fn the_shards_of_a_split_and_of_a_merge_come_to_one_member() {
        let split = [("p", ""), ("x", "p"), ("y", "p")];
        let merge = [("p", ""), ("q", ""), ("x", "p q")];
        let (mine, yours) = ([("p", "me")], [("p", "you")]);
        for (name, shards, held, running, expected) in [
            ("a parent is acquired before its children", split, &[("z", "you")][..], "", ["p", "", ""]),
            ("children go to the holder of their parent", split, &mine, "p", ["x y", "", ""]),
            ("and to no other member", split, &yours, "", ["", "", ""]),
            (
                "a child alone is released to the holder of its parent",
                split,
                &[("p", "you"), ("x", "you"), ("y", "me")],
                "y",
                ["", "y", ""],
            ),
            (
                "the holder of the first parent awaits the other",
                merge,
                &[("p", "me"), ("q", "you")],
                "p",
                ["", "", "q"],
            ),
            ("the holder of the other parent releases it", merge, &[("p", "you"), ("q", "me")], "q", ["", "q", ""]),
            ("the other parent is acquired then", merge, &mine, "p", ["q", "", ""]),
            ("and the child last", merge, &mine, "p q", ["x", "", ""]),
        ] {
            assert_eq!(plan_of(&shards, held, running), expected.map(str::to_owned), "{name}");
        }
    }

    #[test]
    fn a_shard_that_is_not_listed_any_more_is_released_and_no_other_in_its_place() {
        let held = [("a", "me"), ("b", "you"), ("gone", "me")];
        assert_eq!(plan_of(&[("a", ""), ("b", "")], &held, "a gone"), ["", "gone", ""].map(str::to_owned));
    }

    #[test]
    fn a_surplus_unit_of_one_shard_is_released_before_a_larger_one() {
        let shards = [("a", ""), ("b", ""), ("c", ""), ("p", ""), ("x", "p"), ("y", "p")];
        let held = shards.map(|(id, _)| (id, "me"));
        assert_eq!(plan_of(&shards, &held, "a b c p x y"), ["", "c", ""].map(str::to_owned));
    }
}
