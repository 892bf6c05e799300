//! The share of each app in the queue's bounds. Pure.
//!
//! In: events that are queued and that leave. Out: the apps whose events go when the queue is full. An app that takes no
//! more than its fair share, the bound divided by the apps that have events, loses nothing to another one.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::protocol::AppId;

/// The queued events of all apps.
pub struct AppShares {
    events_max: usize,
    bytes_max: usize,
    events: usize,
    bytes: usize,
    apps: HashMap<Arc<AppId>, AppShare>,
    /// The apps by size, as [`AppShares::measure_share`] has it.
    by_size: BTreeSet<(u128, Arc<AppId>)>,
}

#[derive(Clone, Copy, Default)]
struct AppShare {
    events: usize,
    bytes: usize,
}

impl AppShares {
    /// Creates the shares of an empty queue with these bounds.
    pub fn new(events_max: usize, bytes_max: usize) -> Self {
        Self { events_max, bytes_max, events: 0, bytes: 0, apps: HashMap::new(), by_size: BTreeSet::new() }
    }

    /// Number of queued events.
    pub fn events(&self) -> usize {
        self.events
    }

    /// Bytes of queued events.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds an event of an app.
    pub fn add_event(&mut self, app: &AppId, bytes: usize) {
        (self.events, self.bytes) = (self.events + 1, self.bytes + bytes);
        let known = self.apps.get_key_value(app).map(|(app, share)| (app.clone(), *share));
        let (app, before) = known.unwrap_or_else(|| (Arc::new(app.clone()), AppShare::default()));
        let after = AppShare { events: before.events + 1, bytes: before.bytes + bytes };
        self.replace_share(app, before, after);
    }

    /// Removes events of an app: acknowledged or dropped.
    pub fn remove_events(&mut self, app: &AppId, events: usize, bytes: usize) {
        let Some((app, before)) = self.apps.get_key_value(app).map(|(app, share)| (app.clone(), *share)) else {
            return;
        };
        (self.events, self.bytes) = (self.events.saturating_sub(events), self.bytes.saturating_sub(bytes));
        let after =
            AppShare { events: before.events.saturating_sub(events), bytes: before.bytes.saturating_sub(bytes) };
        self.replace_share(app, before, after);
    }

    /// While the queue exceeds a bound: of the apps above their fair share the one at this place, the largest first.
    pub fn app_over_share(&self, place: usize) -> Option<Arc<AppId>> {
        if self.events <= self.events_max && self.bytes <= self.bytes_max {
            return None;
        }
        let fair = self.events_max as u128 * self.bytes_max as u128 / self.apps.len().max(1) as u128;
        let over = self.by_size.iter().rev().take_while(|(size, _)| *size > fair);
        over.map(|(_, app)| app.clone()).nth(place)
    }

    fn replace_share(&mut self, app: Arc<AppId>, before: AppShare, after: AppShare) {
        let old = (self.measure_share(before), app.clone());
        self.by_size.remove(&old);
        if after.events == 0 {
            self.apps.remove(&app);
        } else {
            self.by_size.insert((self.measure_share(after), app.clone()));
            self.apps.insert(app, after);
        }
    }

    /// The part of the bound that an app takes, by events or by bytes, whichever is more; the whole bound is the product of
    /// both.
    fn measure_share(&self, share: AppShare) -> u128 {
        let by_events = share.events as u128 * self.bytes_max as u128;
        by_events.max(share.bytes as u128 * self.events_max as u128)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_apps_above_their_fair_share_give_events_the_largest_first() {
        let mut shares = AppShares::new(10, 1_000);
        let (large, middle, small) = (AppId::from("1"), AppId::from("2"), AppId::from("3"));
        for (app, count) in [(&large, 5), (&middle, 4), (&small, 1)] {
            (0..count).for_each(|_| shares.add_event(app, 10));
        }
        assert_eq!(shares.app_over_share(0), None, "the queue is full and not above its bound");
        shares.add_event(&small, 10);
        let over = |shares: &AppShares| (0..).map_while(|place| shares.app_over_share(place)).collect::<Vec<_>>();
        assert_eq!(over(&shares).iter().map(|app| app.as_str()).collect::<Vec<_>>(), ["1", "2"]);
        shares.remove_events(&large, 5, 50);
        assert!(over(&shares).is_empty());
        shares.add_event(&small, 960);
        assert_eq!(over(&shares).iter().map(|app| app.as_str()).collect::<Vec<_>>(), ["3"], "by its bytes");
        shares.remove_events(&small, 3, 980);
        shares.remove_events(&middle, 4, 40);
        assert_eq!((shares.events(), shares.bytes(), shares.apps.len(), shares.by_size.len()), (0, 0, 0, 0));
    }
}
