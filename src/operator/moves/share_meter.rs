//! The share of new connections that a move's target gets: counts of the target's edges, read at each turn, beside those of two
//! snapshots of the source. What is not known is not guessed: an operator that was restarted waits for two snapshots.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use crate::config::ServerKind;
use crate::migration::SessionSnapshot;
use crate::process::locks::lock_unpoisoned;

/// Age from which counts are dropped, in ms: beyond it a share describes a former weight.
const COUNTS_AGE_MAX_MS: u64 = 600_000;

/// Largest distance between the times of a source's and a target's counts that are compared, in ms.
const COUNTS_DISTANCE_MAX_MS: u64 = 30_000;

/// Most readings of a target that are kept: one for each turn, 10 s apart.
const READINGS_MAX: usize = 120;

/// Meters of all tracks.
#[derive(Default)]
pub struct ShareMeter(Mutex<HashMap<String, TrackReadings>>);

#[derive(Default)]
struct TrackReadings {
    /// The two latest counts of the source, the older one first.
    source: VecDeque<SessionSnapshot>,
    target: VecDeque<SessionSnapshot>,
}

impl ShareMeter {
    /// Takes the latest counts, and returns the new connections of the target and of both between the two latest snapshots of
    /// the source. `None` while they are not known.
    pub fn measure(
        &self,
        key: &str,
        server: ServerKind,
        (source, target): (Option<&SessionSnapshot>, Option<SessionSnapshot>),
        now_ms: u64,
    ) -> Option<(u64, u64)> {
        let mut all = lock_unpoisoned(&self.0);
        let readings = all.entry(key.to_owned()).or_default();
        add_reading(&mut readings.source, source.cloned(), now_ms);
        add_reading(&mut readings.target, target, now_ms);
        while readings.source.len() > 2 {
            readings.source.pop_front();
        }
        while readings.target.len() > READINGS_MAX {
            readings.target.pop_front();
        }
        readings.compare(server)
    }

    /// Forgets a track that is gone.
    pub fn forget(&self, key: &str) {
        lock_unpoisoned(&self.0).remove(key);
    }
}

fn add_reading(known: &mut VecDeque<SessionSnapshot>, reading: Option<SessionSnapshot>, now_ms: u64) {
    if let Some(reading) = reading
        && known.back().is_none_or(|last| last.at_ms < reading.at_ms)
    {
        known.push_back(reading);
    }
    known.retain(|reading| now_ms.saturating_sub(reading.at_ms) <= COUNTS_AGE_MAX_MS);
}

impl TrackReadings {
    fn compare(&self, server: ServerKind) -> Option<(u64, u64)> {
        let (former, latest) = (self.source.front()?, self.source.get(1)?);
        let nearest = |at_ms: u64| {
            let found = self.target.iter().min_by_key(|reading| reading.at_ms.abs_diff(at_ms))?;
            (found.at_ms.abs_diff(at_ms) <= COUNTS_DISTANCE_MAX_MS).then_some(found)
        };
        let target = nearest(latest.at_ms)?.count_since(nearest(former.at_ms)?, server)?;
        latest.count_since(former, server)?.compare_with(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(at_s: u64, opened: u64) -> SessionSnapshot {
        let processes = [("one".to_owned(), [(ServerKind::Sockjs, opened)].into())].into();
        SessionSnapshot { at_ms: at_s * 1000, processes }
    }

    #[test]
    fn a_share_is_known_from_the_second_snapshot_on_and_as_long_as_both_sides_are() {
        let meter = ShareMeter::default();
        // Each 10 s the target opens one session, and the source three.
        let measure = |at_s: u64, snapshot: Option<u64>, target: bool| {
            let source = snapshot.map(|at_s| counts(at_s, 3 * at_s / 10));
            let target = target.then(|| counts(at_s, at_s / 10));
            meter.measure("a", ServerKind::Sockjs, (source.as_ref(), target), at_s * 1000)
        };
        assert_eq!(measure(1_000, None, true), None, "a source without counts");
        assert_eq!(measure(1_010, Some(1_000), true), None, "one snapshot");
        for at_s in [1_020, 1_030, 1_040, 1_050, 1_060] {
            assert_eq!(measure(at_s, Some(1_000), true), None, "the same snapshot");
        }
        assert_eq!(measure(1_070, Some(1_060), true), Some((6, 24)), "a quarter");
        assert_eq!(measure(1_080, Some(1_060), false), Some((6, 24)), "it stays until the next snapshot");
        assert_eq!(measure(1_200, Some(1_190), false), None, "no counts of the target at that time");
        assert_eq!(measure(1_900, Some(1_190), true), None, "the snapshots are too old");
        assert_eq!(meter.measure("b", ServerKind::Sockjs, (None, None), 0), None);
        meter.forget("a");
        assert_eq!(measure(1_910, Some(1_190), true), None);
    }
}
