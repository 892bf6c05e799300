//! Reads zones beside the turns of moves, so that a slow DNS server delays no decision: a turn takes the latest reading, and
//! has the next one begun.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::answers::{ZoneFault, ZoneReading};
use super::zone_reader::{ZoneQuery, ZoneReader};
use crate::process::clock::whole_ms;
use crate::process::locks::lock_unpoisoned;

/// Readings of all moves that are under way at once.
const CONCURRENT_READINGS_MAX: usize = 4;

/// The result of a finished reading.
pub type ZoneResult = Result<ZoneReading, ZoneFault>;

/// The latest readings, by a key of the track.
pub struct ZoneSampler {
    reader: Arc<ZoneReader>,
    tracks: Arc<Mutex<HashMap<String, TrackSampling>>>,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
}

struct TrackSampling {
    query: ZoneQuery,
    /// Start of the latest reading, in ms since 1970.
    began_ms: u64,
    is_running: bool,
    latest: Option<Arc<ZoneResult>>,
}

impl ZoneSampler {
    /// Readings end with `stop`.
    pub fn new(reader: ZoneReader, stop: CancellationToken) -> Self {
        let permits = Arc::new(Semaphore::new(CONCURRENT_READINGS_MAX));
        Self { reader: Arc::new(reader), tracks: Arc::default(), permits, stop }
    }

    /// The latest reading of these hosts; the next begins at the latest `interval` after the former one, and at once for
    /// another number of lookups.
    pub fn latest(&self, key: &str, query: &ZoneQuery, interval: Duration, now_ms: u64) -> Option<Arc<ZoneResult>> {
        let mut tracks = lock_unpoisoned(&self.tracks);
        if let Some(known) = tracks.get_mut(key) {
            let is_same_host = known.query.host == query.host && known.query.target == query.target;
            // A reading without a name that is asked for now says nothing about its owner.
            let has_owners = query.ownership.is_subset(&known.query.ownership);
            let latest = known.latest.clone().filter(|_| is_same_host && has_owners);
            let is_due = known.query != *query || now_ms.saturating_sub(known.began_ms) >= whole_ms(interval);
            if known.is_running || !is_due {
                return latest;
            }
            *known = TrackSampling { query: query.clone(), began_ms: now_ms, is_running: true, latest: latest.clone() };
            self.begin(key, query, now_ms);
            return latest;
        }
        let sampling = TrackSampling { query: query.clone(), began_ms: now_ms, is_running: true, latest: None };
        tracks.insert(key.to_owned(), sampling);
        self.begin(key, query, now_ms);
        None
    }

    /// Forgets a track that is gone.
    pub fn forget(&self, key: &str) {
        lock_unpoisoned(&self.tracks).remove(key);
    }

    /// Whether a reading is under way.
    #[cfg(test)]
    pub fn is_reading(&self) -> bool {
        lock_unpoisoned(&self.tracks).values().any(|track| track.is_running)
    }

    fn begin(&self, key: &str, query: &ZoneQuery, now_ms: u64) {
        let (reader, tracks, permits) = (self.reader.clone(), self.tracks.clone(), self.permits.clone());
        let (key, query) = (key.to_owned(), query.clone());
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(async move {
            let _permit = permits.acquire().await;
            // What its own turn decides is carried out after the first lookup, and must not count as answered by it.
            let result = reader.read(&query, now_ms.saturating_sub(1)).await;
            if let Err(fault) = &result {
                tracing::warn!(host = query.host, %fault, "zone not read");
            }
            let mut tracks = lock_unpoisoned(&tracks);
            if let Some(known) = tracks.get_mut(&key) {
                known.is_running = false;
                // The hosts may have been edited meanwhile.
                if known.query.host == query.host && known.query.target == query.target {
                    known.latest = Some(Arc::new(result));
                }
            }
        }));
    }
}
