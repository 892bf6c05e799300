//! How far the reading of a shard is behind, and why it pauses. Pure: the caller passes the time.
//!
//! A shard that is not read must not look healthy: its distance grows with the clock, and a pause that lasts is reported
//! once, with its reason.

use super::reasons::{PauseChange, PauseReason};

/// Time without a page after which the distance grows: several times the interval between two reads.
const PAGE_GRACE_MS: u64 = 1_000;
/// Time without a page after which reading has failed: longer than the reader's longest back-off.
const PAGE_TIMEOUT_MS: u64 = 10_000;
/// Least duration of a pause that is reported; a shorter one is the ordinary pacing of a busy shard.
const PAUSE_REPORT_DELAY_MS: u64 = 1_000;

/// The progress of one shard's reader.
#[derive(Debug)]
pub struct ReadProgress {
    page_at_ms: u64,
    behind_at_page_ms: u64,
    /// The current pause, its begin, and whether it was reported.
    pause: Option<(PauseReason, u64, bool)>,
}

impl ReadProgress {
    /// The progress of a reader that starts.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self { page_at_ms: now_ms, behind_at_page_ms: 0, pause: None }
    }

    /// Notes a page that was taken, with its distance to the newest record.
    pub fn note_page(&mut self, behind_ms: u64, now_ms: u64) {
        (self.page_at_ms, self.behind_at_page_ms) = (now_ms, behind_ms);
    }

    /// Distance to the newest record, in ms: as of the last page, plus the time since then.
    #[must_use]
    pub fn behind_ms(&self, now_ms: u64) -> u64 {
        let silent = now_ms.saturating_sub(self.page_at_ms);
        self.behind_at_page_ms + if silent > PAGE_GRACE_MS { silent } else { 0 }
    }

    /// The pause that was reported.
    #[must_use]
    pub fn reported_pause(&self) -> Option<PauseReason> {
        self.pause.filter(|(_, _, reported)| *reported).map(|(reason, ..)| reason)
    }

    /// Notes whether the worker takes pages now, and if not why. Returns a change to report.
    pub fn update(&mut self, pause: Option<PauseReason>, now_ms: u64) -> Option<PauseChange> {
        let failed = now_ms.saturating_sub(self.page_at_ms) > PAGE_TIMEOUT_MS;
        let reason = pause.or_else(|| failed.then_some(PauseReason::ReadFailed));
        let Some(reason) = reason else {
            let (reason, since, reported) = self.pause.take()?;
            return reported.then(|| PauseChange::Resumed(reason, now_ms.saturating_sub(since)));
        };
        let (since, reported) = match self.pause {
            Some((before, since, reported)) => (since, reported && before == reason),
            // Nothing was read since the last page.
            None if reason == PauseReason::ReadFailed => (self.page_at_ms, false),
            None => (now_ms, false),
        };
        let report = !reported && now_ms.saturating_sub(since) >= PAUSE_REPORT_DELAY_MS;
        self.pause = Some((reason, since, reported || report));
        report.then_some(PauseChange::Paused(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_grows_with_the_clock_while_no_page_is_taken() {
        let mut progress = ReadProgress::new(0);
        progress.note_page(300, 5_000);
        for (now, behind) in [(5_000, 300), (6_000, 300), (6_001, 1_301), (65_000, 60_300)] {
            assert_eq!(progress.behind_ms(now), behind, "at {now}");
        }
        progress.note_page(0, 66_000);
        assert_eq!(progress.behind_ms(66_100), 0);
    }

    #[test]
    fn a_pause_that_lasts_is_reported_once_with_its_reason_and_its_end() {
        for reason in [PauseReason::RecordTooNew, PauseReason::Full] {
            let mut progress = ReadProgress::new(0);
            assert_eq!(progress.update(Some(reason), 100), None);
            assert_eq!(progress.update(None, 900), None, "a short pause is pacing");
            assert_eq!(progress.update(Some(reason), 1_000), None);
            assert_eq!((progress.update(Some(reason), 1_999), progress.reported_pause()), (None, None));
            assert_eq!(progress.update(Some(reason), 2_000), Some(PauseChange::Paused(reason)));
            assert_eq!((progress.update(Some(reason), 9_000), progress.reported_pause()), (None, Some(reason)));
            assert_eq!(progress.update(None, 9_500), Some(PauseChange::Resumed(reason, 8_500)));
            assert_eq!(progress.reported_pause(), None);
        }
    }

    #[test]
    fn reading_that_fails_is_a_pause_and_another_reason_is_reported_anew() {
        let mut progress = ReadProgress::new(0);
        progress.note_page(0, 1_000);
        assert_eq!(progress.update(None, 11_000), None);
        assert_eq!(progress.update(None, 11_001), Some(PauseChange::Paused(PauseReason::ReadFailed)));
        assert_eq!(progress.update(Some(PauseReason::Full), 11_002), Some(PauseChange::Paused(PauseReason::Full)));
        progress.note_page(0, 12_000);
        assert_eq!(progress.update(None, 12_000), Some(PauseChange::Resumed(PauseReason::Full, 11_000)));
    }
}
