//! A map whose entries age out: bounded in number, and a key that is not written for a while is removed.
//!
//! Entries are in two generations. A write goes to the young one; the old one is dropped as a whole when the young one is
//! full or has been young for long enough, and the young one becomes old. So removal costs nothing per entry. Pure: the
//! caller passes the time.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::LazyLock;

/// Values by a short key, such as a hash.
#[derive(Debug)]
pub struct AgingMap<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    /// Half of the bound on all entries.
    generation_max: usize,
    generation_ttl_ms: u64,
    /// Time at which the young generation began.
    began_ms: u64,
}

impl<K: Copy + Eq + Hash, V> AgingMap<K, V> {
    /// An empty map of at most `entries_max` entries, each of which is kept for at least `ttl_ms` after it was written
    /// and for twice that at most, unless the map is full.
    #[must_use]
    pub fn new(entries_max: usize, ttl_ms: u64) -> Self {
        let (young, old) = (HashMap::new(), HashMap::new());
        Self { young, old, generation_max: entries_max / 2, generation_ttl_ms: ttl_ms, began_ms: 0 }
    }

    /// Changes the bound on all entries; fewer are kept from the next write on.
    pub fn set_entries_max(&mut self, entries_max: usize) {
        self.generation_max = entries_max / 2;
    }

    /// The value that was written last.
    #[must_use]
    pub fn get(&self, key: K) -> Option<&V> {
        self.young.get(&key).or_else(|| self.old.get(&key))
    }

    /// Writes a value; returns whether the key is new.
    pub fn insert(&mut self, key: K, value: V, now_ms: u64) -> bool {
        let age_ms = now_ms.saturating_sub(self.began_ms);
        let is_full = self.young.len() >= self.generation_max && !self.young.contains_key(&key);
        if is_full || age_ms >= self.generation_ttl_ms {
            self.old = std::mem::take(&mut self.young);
            self.began_ms = now_ms;
        }
        if age_ms >= self.generation_ttl_ms.saturating_mul(2) {
            self.old.clear();
        }
        self.young.insert(key, value).is_none() & self.old.remove(&key).is_none()
    }

    /// Adds the entries of another map, as if they were written now.
    pub fn absorb(&mut self, other: Self, now_ms: u64) {
        for (key, value) in other.old.into_iter().chain(other.young) {
            self.insert(key, value, now_ms);
        }
    }

    /// Removes the entries whose values `keeps` rejects.
    pub fn retain(&mut self, keeps: impl Fn(&V) -> bool) {
        self.young.retain(|_, value| keeps(value));
        self.old.retain(|_, value| keeps(value));
    }

    /// Number of entries.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// A short key for a long one, such as a name. The hasher is random, and the same for all maps of the process, which may be
/// merged. With 64 bits, a new key has the hash of one of 57,344 others less than once in 10^14 keys.
pub fn hash_key(key: &(impl Hash + ?Sized)) -> u64 {
    static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    HASHER.hash_one(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_ages_out_unless_it_is_written_again() {
        let mut map = AgingMap::new(100, 1_000);
        assert!(map.insert(1, "a", 0) && map.insert(2, "b", 0));
        assert!(!map.insert(1, "c", 1_000), "known in the old generation");
        assert_eq!((map.get(1), map.get(2), map.len()), (Some(&"c"), Some(&"b"), 2));
        assert!(map.insert(3, "d", 2_000));
        assert_eq!((map.get(1), map.get(2)), (Some(&"c"), None));
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        let mut map = AgingMap::new(100, u64::MAX);
        (0..10_000).for_each(|key| assert!(map.insert(key, key, 0)));
        assert!((50..=100).contains(&map.len()), "{}", map.len());
        assert_eq!(map.get(9_999), Some(&9_999));
        assert_eq!(map.get(9_000), None);
    }

    #[test]
    fn the_entries_of_an_absorbed_map_are_known() {
        let (mut map, mut other) = (AgingMap::new(100, 1_000), AgingMap::new(100, 1_000));
        map.insert(1, "a", 0);
        other.insert(2, "b", 0);
        map.absorb(other, 10);
        assert_eq!((map.get(1), map.get(2)), (Some(&"a"), Some(&"b")));
    }
}
