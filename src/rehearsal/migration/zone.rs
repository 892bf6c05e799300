//! A double of a zone with weighted records, of the tool that writes one of them a little later, and of resolvers with a TTL.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use crate::migration::track::AnswerSample;

/// Delay from a written weight to the answers by it, as external-dns and the provider have one.
const SYNC_DELAY: Duration = Duration::from_millis(300);

/// The two clusters of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// The cluster that has the clients.
    Source,
    /// The cluster that gets them.
    Target,
}

/// The records of one host.
#[derive(Clone, Default)]
pub struct WeightedZone {
    records: Arc<Mutex<ZoneRecords>>,
}

#[derive(Default)]
struct ZoneRecords {
    source: Option<u8>,
    target: Option<u8>,
    /// A weight of the target that was written and is not answered yet.
    pending: Option<(Option<u8>, Instant)>,
}

impl ZoneRecords {
    fn apply_pending(&mut self) {
        if let Some((weight, _)) = self.pending.take_if(|(_, written)| written.elapsed() >= SYNC_DELAY) {
            self.target = weight;
        }
    }

    /// One answer by weight. Records that all have weight 0 are answered alike, as Route 53 does.
    fn answer(&self) -> Option<Side> {
        let (source, target) = (self.source.unwrap_or(0), self.target.unwrap_or(0));
        let sum = u32::from(source) + u32::from(target);
        if sum > 0 {
            let is_target = rand::rng().random_range(0..sum) < u32::from(target);
            return Some(if is_target { Side::Target } else { Side::Source });
        }
        match (self.source, self.target) {
            (Some(_), Some(_)) if rand::rng().random() => Some(Side::Target),
            (Some(_), _) => Some(Side::Source),
            (None, found) => found.map(|_| Side::Target),
        }
    }
}

impl WeightedZone {
    /// A zone in which the source alone has a record.
    pub fn with_source(weight: u8) -> Self {
        let records = ZoneRecords { source: Some(weight), ..ZoneRecords::default() };
        Self { records: Arc::new(Mutex::new(records)) }
    }

    /// Writes the weight of the target's record, or deletes it.
    pub fn write_target(&self, weight: Option<u8>) {
        let mut records = self.lock();
        records.apply_pending();
        records.pending = Some((weight, Instant::now()));
    }

    /// Sets the weight of the source's record at once.
    pub fn set_source(&self, weight: u8) {
        self.lock().source = Some(weight);
    }

    /// Weight of the target's record as it was written last.
    pub fn written(&self) -> Option<u8> {
        let records = self.lock();
        records.pending.map_or(records.target, |(weight, _)| weight)
    }

    /// Asks so many times at `now_ms`.
    pub fn sample(&self, queries: u32, now_ms: u64) -> AnswerSample {
        let mut records = self.lock();
        records.apply_pending();
        let mut sample = AnswerSample { queries, target: 0, source: 0, at_ms: now_ms };
        for _ in 0..queries {
            match records.answer() {
                Some(Side::Target) => sample.target += 1,
                Some(Side::Source) => sample.source += 1,
                None => {}
            }
        }
        sample
    }

    /// One lookup; `None` for no record.
    pub fn look_up(&self) -> Option<Side> {
        let mut records = self.lock();
        records.apply_pending();
        records.answer()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ZoneRecords> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's resolver, which keeps an answer for its TTL.
pub struct CachingResolver {
    zone: WeightedZone,
    ttl: Duration,
    kept: Option<(Side, Instant)>,
}

impl CachingResolver {
    /// A resolver with an empty cache.
    pub fn new(zone: WeightedZone, ttl: Duration) -> Self {
        Self { zone, ttl, kept: None }
    }

    /// The cached answer, or a new one; `true` with an answer that was looked up.
    pub fn resolve(&mut self) -> Option<(Side, bool)> {
        if let Some((side, at)) = self.kept
            && at.elapsed() < self.ttl
        {
            return Some((side, false));
        }
        let side = self.zone.look_up()?;
        self.kept = Some((side, Instant::now()));
        Some((side, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_weight_is_answered_after_its_delay_and_kept_for_the_ttl() {
        let zone = WeightedZone::with_source(20);
        assert_eq!((zone.look_up(), zone.written()), (Some(Side::Source), None));
        zone.write_target(Some(255));
        zone.set_source(0);
        assert_eq!((zone.look_up(), zone.written()), (Some(Side::Source), Some(255)));
        let mut resolver = CachingResolver::new(zone.clone(), Duration::from_secs(1));
        assert_eq!(resolver.resolve(), Some((Side::Source, true)));
        tokio::time::advance(SYNC_DELAY).await;
        assert_eq!(resolver.resolve(), Some((Side::Source, false)), "a resolver keeps its answer");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(resolver.resolve(), Some((Side::Target, true)));
        zone.set_source(20);
        zone.write_target(Some(20));
        tokio::time::advance(SYNC_DELAY).await;
        let sample = zone.sample(1000, 7);
        assert!(sample.fits(Some(20), 20) && sample.at_ms == 7, "{sample:?}");
        zone.set_source(0);
        zone.write_target(Some(0));
        tokio::time::advance(SYNC_DELAY).await;
        let sample = zone.sample(1000, 8);
        assert!(sample.target > 300 && sample.source > 300, "records of weight 0 alone are answered alike: {sample:?}");
    }
}
