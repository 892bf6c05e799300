//! The share of each app in the queue's bounds. Pure.
//!
//! In: events that are queued and that leave. Out: the apps whose events go when the queue is full, and the apps of which the
//! stream acknowledges nothing. An app that takes no
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
    /// Since when the app has events and none was acknowledged, in ms of the caller's clock.
    waiting_since_ms: u64,
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
    pub fn add_event(&mut self, app: &AppId, bytes: usize, now: u64) {
        (self.events, self.bytes) = (self.events + 1, self.bytes + bytes);
        let known = self.apps.get_key_value(app).map(|(app, share)| (app.clone(), *share));
        let create = || (Arc::new(app.clone()), AppShare { waiting_since_ms: now, ..AppShare::default() });
        let (app, before) = known.unwrap_or_else(create);
        let after = AppShare { events: before.events + 1, bytes: before.bytes + bytes, ..before };
        self.replace_share(app, before, after);
    }

    /// Removes events of an app that were dropped.
    pub fn drop_events(&mut self, app: &AppId, events: usize, bytes: usize) {
        self.remove_events(app, events, bytes, None);
    }

    /// Removes events of an app that the stream acknowledged.
    pub fn acknowledge_events(&mut self, app: &AppId, events: usize, bytes: usize, now: u64) {
        self.remove_events(app, events, bytes, Some(now));
    }

    fn remove_events(&mut self, app: &AppId, events: usize, bytes: usize, acknowledged_ms: Option<u64>) {
        let Some((app, before)) = self.apps.get_key_value(app).map(|(app, share)| (app.clone(), *share)) else {
            return;
        };
        (self.events, self.bytes) = (self.events.saturating_sub(events), self.bytes.saturating_sub(bytes));
        let after = AppShare {
            events: before.events.saturating_sub(events),
            bytes: before.bytes.saturating_sub(bytes),
            waiting_since_ms: acknowledged_ms.unwrap_or(before.waiting_since_ms),
        };
        self.replace_share(app, before, after);
    }

    /// The apps that have had events for longer than `wait_ms` while none was acknowledged, in the order of their ids.
    pub fn silent_apps(&self, now: u64, wait_ms: u64) -> BTreeSet<AppId> {
        let silent = self.apps.iter().filter(|(_, share)| now.saturating_sub(share.waiting_since_ms) > wait_ms);
        silent.map(|(app, _)| AppId::clone(app)).collect()
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
            (0..count).for_each(|_| shares.add_event(app, 10, 0));
        }
        assert_eq!(shares.app_over_share(0), None, "the queue is full and not above its bound");
        shares.add_event(&small, 10, 0);
        let over = |shares: &AppShares| (0..).map_while(|place| shares.app_over_share(place)).collect::<Vec<_>>();
        assert_eq!(over(&shares).iter().map(|app| app.as_str()).collect::<Vec<_>>(), ["1", "2"]);
        shares.drop_events(&large, 5, 50);
        assert!(over(&shares).is_empty());
        shares.add_event(&small, 960, 0);
        assert_eq!(over(&shares).iter().map(|app| app.as_str()).collect::<Vec<_>>(), ["3"], "by its bytes");
        shares.acknowledge_events(&small, 3, 980, 0);
        shares.drop_events(&middle, 4, 40);
        assert_eq!((shares.events(), shares.bytes(), shares.apps.len(), shares.by_size.len()), (0, 0, 0, 0));
    }

    #[test]
    fn an_app_is_silent_while_it_has_events_and_the_stream_acknowledges_none() {
        let mut shares = AppShares::new(10, 1_000);
        let (silent, served) = (AppId::from("1"), AppId::from("2"));
        shares.add_event(&silent, 10, 1_000);
        shares.add_event(&silent, 10, 50_000);
        (0..3).for_each(|_| shares.add_event(&served, 10, 1_000));
        assert!(shares.silent_apps(61_000, 60_000).is_empty());
        shares.acknowledge_events(&served, 1, 10, 60_000);
        let found = |shares: &AppShares, now| -> Vec<String> {
            shares.silent_apps(now, 60_000).iter().map(ToString::to_string).collect()
        };
        assert_eq!(found(&shares, 61_001), ["1"], "the younger event changes nothing");
        shares.drop_events(&silent, 1, 10);
        assert_eq!(found(&shares, 61_001), ["1"], "a drop is no acknowledgement");
        assert_eq!(found(&shares, 120_001), ["1", "2"], "also an app that was served before");
        shares.drop_events(&silent, 1, 10);
        shares.add_event(&silent, 10, 120_000);
        assert_eq!(found(&shares, 120_001), ["2"], "without events, nothing is due");
    }
}
