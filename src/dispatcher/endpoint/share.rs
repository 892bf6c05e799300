//! The share of a shard's bounds that endpoints which are behind may hold together. Pure.
//!
//! In: the events that each endpoint holds of one shard. Out: the events to evict. Endpoints that keep up are not part of
//! it: they pause the reading at the shard's bound, and nothing of theirs is dropped.

use super::queue::HeldShare;

/// A number of events and of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventAmount {
    /// Number of unfinished events.
    pub events: usize,
    /// Bytes of these events.
    pub bytes: usize,
}

/// Returns the amounts to evict, so that the endpoints that are behind hold at most `most` together. The largest of them are
/// cut to one level; smaller ones keep everything.
#[must_use]
pub fn plan_evictions<E: Clone>(held: &[(E, HeldShare)], most: EventAmount) -> Vec<(E, EventAmount)> {
    let behind: Vec<&(E, HeldShare)> = held.iter().filter(|(_, share)| share.is_behind).collect();
    let events = excess_over_level(&behind.iter().map(|(_, share)| share.events).collect::<Vec<_>>(), most.events);
    let bytes = excess_over_level(&behind.iter().map(|(_, share)| share.bytes).collect::<Vec<_>>(), most.bytes);
    let amounts = events.into_iter().zip(bytes).map(|(events, bytes)| EventAmount { events, bytes });
    let planned = behind.iter().zip(amounts).map(|((endpoint, _), amount)| (endpoint.clone(), amount));
    planned.filter(|(_, amount)| *amount != EventAmount::default()).collect()
}

/// The excess of each amount over one level, which is such that the rests add up to at most `most`.
fn excess_over_level(amounts: &[usize], most: usize) -> Vec<usize> {
    if amounts.iter().sum::<usize>() <= most {
        return vec![0; amounts.len()];
    }
    let mut sorted = amounts.to_vec();
    sorted.sort_unstable();
    let (mut left, mut level) = (most, 0);
    for (place, amount) in sorted.iter().enumerate() {
        level = left / (sorted.len() - place);
        if *amount > level {
            break;
        }
        left -= amount;
    }
    amounts.iter().map(|amount| amount.saturating_sub(level)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn share(events: usize, is_behind: bool) -> HeldShare {
        HeldShare { events, bytes: events * 10, is_behind, keeps_up: false }
    }

    #[test]
    fn the_largest_endpoints_are_cut_to_one_level() {
        let most = EventAmount { events: 100, bytes: usize::MAX };
        let planned = |held: &[(&'static str, HeldShare)]| {
            plan_evictions(held, most).into_iter().map(|(name, amount)| (name, amount.events)).collect::<Vec<_>>()
        };
        let (dead, slow, small) = (("dead", share(90, true)), ("slow", share(60, true)), ("small", share(10, true)));
        assert_eq!(planned(&[("works", share(5_000, false)), small, ("other", share(90, true))]), []);
        assert_eq!(planned(&[dead, slow, small]), [("dead", 45), ("slow", 15)]);
        assert_eq!(planned(&[("dead", share(300, true))]), [("dead", 200)]);
        let most = EventAmount { events: usize::MAX, bytes: 500 };
        assert_eq!(plan_evictions(&[dead, small], most), [("dead", EventAmount { events: 0, bytes: 500 })]);
    }

    proptest! {
        /// The remaining amounts fit the bound, no eviction is larger than needed, and only the largest holders lose events.
        #[test]
        fn the_remaining_amounts_are_at_most_the_bound(
            amounts in proptest::collection::vec(0_usize..10_000, 0..20),
            most in 0_usize..20_000,
        ) {
            let excess = excess_over_level(&amounts, most);
            let left: Vec<usize> = amounts.iter().zip(&excess).map(|(amount, excess)| amount - excess).collect();
            let (total, kept) = (amounts.iter().sum::<usize>(), left.iter().sum::<usize>());
            prop_assert!(kept <= most.min(total));
            prop_assert!(kept + amounts.len() >= most.min(total), "{kept} of {}", most.min(total));
            let largest_left = left.iter().max().copied().unwrap_or(0);
            for (amount, excess) in amounts.iter().zip(&excess) {
                prop_assert!(*excess == 0 || amount - excess == largest_left);
            }
        }
    }
}
