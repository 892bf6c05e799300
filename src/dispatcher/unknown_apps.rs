//! Events whose app the registry does not have yet. The caller passes the time.
//!
//! They wait for the registry outside the shard's bound, under bounds of their own, so that a flood of a deleted app delays
//! no other app. Beyond a bound the oldest events are given up before their time.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::events::TrackedEvent;
use crate::protocol::AppId;

/// Longest wait for an app that is not in the registry yet.
pub const UNKNOWN_APP_TIMEOUT_MS: u64 = 30_000;
/// Bounds the events of all unknown apps of one shard, and their bytes: 30 s of a shard that takes its 1,000 records a
/// second, and a third more.
const WAITING_EVENTS_MAX: usize = 40_000;
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bounds the bytes of all shards of a process.
const PROCESS_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bounds the events of one app and their bytes, so that one app evicts the events of no other.
const APP_EVENTS_MAX: usize = WAITING_EVENTS_MAX * 3 / 4;
const APP_BYTES_MAX: usize = WAITING_BYTES_MAX * 3 / 4;

/// The waiting events of one shard, by app.
#[derive(Debug, Default)]
pub struct UnknownApps {
    apps: HashMap<AppId, AppEvents>,
    /// The app of each event, by age.
    ages: BTreeMap<u64, AppId>,
    serial: u64,
    bytes: usize,
    /// Bytes of all shards of the process.
    process_bytes: Arc<AtomicUsize>,
}

/// The waiting events of one app, the oldest first.
#[derive(Debug, Default)]
struct AppEvents {
    events: VecDeque<WaitingEvent>,
    bytes: usize,
}

#[derive(Debug)]
struct WaitingEvent {
    serial: u64,
    until_ms: u64,
    bytes: usize,
    event: TrackedEvent,
}

impl UnknownApps {
    /// No events; `process_bytes` is shared by all shards of the process.
    #[must_use]
    pub fn new(process_bytes: Arc<AtomicUsize>) -> Self {
        Self { apps: HashMap::new(), ages: BTreeMap::new(), serial: 0, bytes: 0, process_bytes }
    }

    /// Keeps an event until its app is known or its time is over. Returns the events that a bound evicts.
    pub fn push(&mut self, event: TrackedEvent, now_ms: u64) -> Vec<TrackedEvent> {
        self.serial += 1;
        let (app, bytes) = (event.app.clone(), event.memory_bytes());
        let waiting = WaitingEvent { serial: self.serial, until_ms: now_ms + UNKNOWN_APP_TIMEOUT_MS, bytes, event };
        self.ages.insert(self.serial, app.clone());
        self.bytes += bytes;
        self.process_bytes.fetch_add(bytes, Ordering::Relaxed);
        let events = self.apps.entry(app.clone()).or_default();
        events.bytes += bytes;
        events.events.push_back(waiting);
        let mut evicted = Vec::new();
        while self.apps.get(&app).is_some_and(|it| it.events.len() > APP_EVENTS_MAX || it.bytes > APP_BYTES_MAX) {
            evicted.extend(self.pop_of(&app));
        }
        while self.is_over_bound() {
            let Some(oldest) = self.ages.first_key_value().map(|(_, app)| app.clone()) else { break };
            evicted.extend(self.pop_of(&oldest));
        }
        evicted
    }

    /// Takes the events of all apps that are known now, each app's in their order. Looks each app up once.
    pub fn take_known(&mut self, is_known: impl Fn(&AppId) -> bool) -> Vec<TrackedEvent> {
        let known: Vec<AppId> = self.apps.keys().filter(|app| is_known(app)).cloned().collect();
        let mut taken = Vec::new();
        for app in known {
            taken.extend(std::iter::from_fn(|| self.pop_of(&app)));
        }
        taken
    }

    /// Takes the oldest event if its time is over.
    pub fn pop_expired(&mut self, now_ms: u64) -> Option<TrackedEvent> {
        let oldest = self.ages.first_key_value().map(|(_, app)| app)?;
        self.apps.get(oldest)?.events.front().filter(|waiting| waiting.until_ms <= now_ms)?;
        let oldest = oldest.clone();
        self.pop_of(&oldest)
    }

    fn is_over_bound(&self) -> bool {
        self.ages.len() > WAITING_EVENTS_MAX
            || self.bytes > WAITING_BYTES_MAX
            || self.process_bytes.load(Ordering::Relaxed) > PROCESS_BYTES_MAX
    }

    /// Takes the oldest event of an app.
    fn pop_of(&mut self, app: &AppId) -> Option<TrackedEvent> {
        let Entry::Occupied(mut events) = self.apps.entry(app.clone()) else { return None };
        let waiting = events.get_mut().events.pop_front()?;
        events.get_mut().bytes -= waiting.bytes;
        if events.get().events.is_empty() {
            events.remove();
        }
        self.ages.remove(&waiting.serial);
        self.bytes -= waiting.bytes;
        self.process_bytes.fetch_sub(waiting.bytes, Ordering::Relaxed);
        Some(waiting.event)
    }
}

impl Drop for UnknownApps {
    fn drop(&mut self) {
        self.process_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::ChannelName;
    use crate::protocol::record::{EventKind, RecordedEvent};

    fn event(app: &str, record: u64, data: usize) -> TrackedEvent {
        let kind = EventKind::ClientEvent {
            event: "client-a".into(),
            data: "x".repeat(data),
            socket_id: "1.2".into(),
            user_id: None,
        };
        let event = RecordedEvent { id: record.to_string(), time_ms: 0, order: None, n: None, cause: None, kind };
        TrackedEvent { slot: 1, record, app: app.into(), channel: ChannelName::parse("a").expect("a name"), event }
    }

    fn records(events: impl IntoIterator<Item = TrackedEvent>) -> Vec<u64> {
        events.into_iter().map(|event| event.record).collect()
    }

    #[test]
    fn events_wait_for_their_app_in_order_and_for_their_time() {
        let mut waiting = UnknownApps::default();
        for (at, app) in ["1", "2", "1", "2"].iter().enumerate() {
            assert!(waiting.push(event(app, at as u64, 0), at as u64).is_empty());
        }
        assert_eq!(records(waiting.take_known(|app| app.as_str() == "2")), [1, 3]);
        assert!(waiting.pop_expired(UNKNOWN_APP_TIMEOUT_MS - 1).is_none());
        let expired = |waiting: &mut UnknownApps, now| records(std::iter::from_fn(|| waiting.pop_expired(now)));
        assert_eq!(expired(&mut waiting, UNKNOWN_APP_TIMEOUT_MS + 1), [0], "the other one came later");
        assert_eq!(expired(&mut waiting, UNKNOWN_APP_TIMEOUT_MS + 2), [2]);
        assert!(waiting.apps.is_empty() && waiting.ages.is_empty() && waiting.bytes == 0);
    }

    #[test]
    fn a_flood_of_one_app_evicts_its_own_oldest_events_alone() {
        let mut waiting = UnknownApps::default();
        assert!(waiting.push(event("quiet", 0, 0), 0).is_empty());
        let flood = 1..=APP_EVENTS_MAX as u64 + 10;
        let evicted: Vec<u64> = flood.flat_map(|n| records(waiting.push(event("flood", n, 0), 0))).collect();
        assert_eq!(evicted, (1..=10).collect::<Vec<_>>());
        assert_eq!(records(waiting.push(event("flood", 0, APP_BYTES_MAX), 0)).len(), APP_EVENTS_MAX + 1);
        assert_eq!(records(waiting.take_known(|_| true)), [0]);
    }

    #[test]
    fn the_shards_of_a_process_share_a_bound() {
        let shared = Arc::new(AtomicUsize::new(0));
        let full = APP_BYTES_MAX - 1_000;
        let mut shards: Vec<UnknownApps> = (0..3).map(|_| UnknownApps::new(Arc::clone(&shared))).collect();
        let evicted: Vec<usize> = shards.iter_mut().map(|shard| shard.push(event("1", 0, full), 0).len()).collect();
        assert_eq!(evicted, [0, 0, 1]);
        drop(shards);
        assert_eq!(shared.load(Ordering::Relaxed), 0);
    }

    proptest! {
        /// Memory is bounded whatever the apps and sizes, and every event comes out once.
        #[test]
        fn every_event_ends_once_within_the_bounds(sizes in proptest::collection::vec((0_u8..4, 0_usize..4 << 20), 0..60)) {
            let mut waiting = UnknownApps::default();
            let mut ended = Vec::new();
            for (record, (app, size)) in sizes.iter().enumerate() {
                ended.extend(records(waiting.push(event(&app.to_string(), record as u64, *size), 0)));
                prop_assert!(waiting.bytes <= WAITING_BYTES_MAX);
            }
            ended.extend(records(waiting.take_known(|_| true)));
            ended.sort_unstable();
            prop_assert_eq!(ended, (0..sizes.len() as u64).collect::<Vec<_>>());
            prop_assert!(waiting.bytes == 0 && waiting.ages.is_empty());
        }
    }
}
