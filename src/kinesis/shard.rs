//! Shards and their ranges of hash keys.

use crate::protocol::ShardId;

/// One shard of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The id of the shard.
    pub id: ShardId,
    /// The first hash key in its range.
    pub start: u128,
    /// The last hash key in its range.
    pub end: u128,
    /// The shards from which it came by a split or a merge.
    pub parents: Vec<ShardId>,
    /// Whether it accepts new records.
    pub open: bool,
}

impl Shard {
    /// Whether records of this hash key are put here.
    #[must_use]
    pub fn has_hash_key(&self, hash_key: u128) -> bool {
        self.open && (self.start..=self.end).contains(&hash_key)
    }
}

/// Whether the open shards hold every hash key exactly once: a hole means that the listing is old or incomplete.
#[must_use]
pub fn covers_all(shards: &[Shard]) -> bool {
    let mut ranges: Vec<(u128, u128)> = shards.iter().filter(|s| s.open).map(|s| (s.start, s.end)).collect();
    ranges.sort_unstable();
    let mut next = Some(0);
    for (start, end) in ranges {
        if next != Some(start) {
            return false;
        }
        next = end.checked_add(1);
    }
    next.is_none()
}

/// Whether one sequence number of a shard is before another: both are decimal numbers of any length.
#[must_use]
pub fn is_before(one: &str, other: &str) -> bool {
    let (one, other) = (one.trim_start_matches('0'), other.trim_start_matches('0'));
    (one.len(), one) < (other.len(), other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_are_compared_as_numbers() {
        assert!(is_before("9", "10"));
        assert!(is_before("00000000000000000000000000000009", "10"));
        assert!(!is_before("10", "10"));
        assert!(!is_before("11", "10"));
        assert!(is_before(
            "49590338271490256608559692538361571095921575989136588897",
            "49590338271490256608559692538361571095921575989136588898"
        ));
    }

    fn shard(start: u128, end: u128, open: bool) -> Shard {
        Shard { id: "s".into(), start, end, parents: vec![], open }
    }

    #[test]
    fn coverage_is_complete_or_not() {
        let half = u128::MAX / 2;
        assert!(covers_all(&[shard(half + 1, u128::MAX, true), shard(0, half, true)]));
        assert!(covers_all(&[shard(0, u128::MAX, true), shard(0, half, false)]), "closed shards do not count");
        assert!(!covers_all(&[shard(0, half, true)]), "a hole at the end");
        assert!(!covers_all(&[shard(1, u128::MAX, true)]), "a hole at the start");
        assert!(!covers_all(&[shard(0, half, true), shard(half, u128::MAX, true)]), "an overlap");
        assert!(!covers_all(&[]));
    }

    #[test]
    fn a_closed_shard_accepts_no_hash_key() {
        assert!(shard(0, 9, true).has_hash_key(9));
        assert!(!shard(0, 9, true).has_hash_key(10));
        assert!(!shard(0, 9, false).has_hash_key(9));
    }
}
