//! Decides by the beats of a process whether its subscription works. Pure: the caller passes the time.
//!
//! A subscription can be dead although its connection stays open, and a client cannot see it: nothing arrives, as on a
//! quiet cluster. So each process publishes a beat to itself.

use std::time::{Duration, Instant};

/// Time between two beats of a subscription that works.
pub(super) const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Beats in a row that are not received when a subscription counts as lost. Counted instead of timed: a process that
/// stood still has missed none.
const MISSED_BEATS_MAX: u32 = 4;

/// Least time between two reconnections of a subscription that stays silent.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(5);

/// The step that is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BeatStep {
    /// No step is due yet.
    Wait,
    /// Send the next beat.
    Beat,
    /// Subscribe, then send a beat: none was received yet, or the subscription is lost.
    Subscribe,
    /// Reconnect: the subscription is silent.
    Reconnect,
}

/// The beats of one subscription.
#[derive(Debug)]
pub(super) struct BeatWatch {
    /// Time of the beat that was received last.
    heard_at: Option<Instant>,
    /// Time of the beat that was sent last.
    sent_at: Option<Instant>,
    /// Beats that were sent since one was received.
    missed: u32,
    /// Whether beats are received.
    is_confirmed: bool,
    /// Start of the silence, or time of the last reconnection in it.
    silent_since: Instant,
    /// Whether frames may have been missed since the last beat.
    has_gap: bool,
}

impl BeatWatch {
    pub(super) fn new(now: Instant) -> Self {
        Self { heard_at: None, sent_at: None, missed: 0, is_confirmed: false, silent_since: now, has_gap: false }
    }

    /// Returns the step that is due.
    pub(super) fn next_step(&mut self, now: Instant) -> BeatStep {
        if !self.is_confirmed {
            if now.duration_since(self.silent_since) >= RECONNECT_INTERVAL {
                self.silent_since = now;
                return BeatStep::Reconnect;
            }
            return BeatStep::Subscribe;
        }
        if self.sent_at.is_some_and(|at| now.duration_since(at) < BEAT_INTERVAL) {
            return BeatStep::Wait;
        }
        if self.missed >= MISSED_BEATS_MAX {
            (self.is_confirmed, self.has_gap, self.silent_since) = (false, true, now);
            return BeatStep::Reconnect;
        }
        self.sent_at = Some(now);
        self.missed += 1;
        BeatStep::Beat
    }

    /// Notes a beat that was received. Returns the time since the one before it if frames may have been missed.
    pub(super) fn note_heard(&mut self, now: Instant) -> Option<Duration> {
        let gap = self.heard_at.filter(|_| self.has_gap).map(|at| now.duration_since(at));
        (self.heard_at, self.missed, self.is_confirmed, self.has_gap) = (Some(now), 0, true, false);
        gap
    }

    /// Notes that the client has reconnected, so that frames may have been missed.
    pub(super) fn note_reconnected(&mut self) {
        self.has_gap = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_is_lost_after_missed_beats_and_not_after_a_standstill() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut beats = BeatWatch::new(start);
        assert_eq!(beats.next_step(at(0)), BeatStep::Subscribe);
        assert_eq!((beats.note_heard(at(10)), beats.is_confirmed), (None, true));
        assert_eq!(beats.next_step(at(200)), BeatStep::Beat);
        assert_eq!(beats.next_step(at(400)), BeatStep::Wait);
        assert_eq!(beats.note_heard(at(401)), None);
        // The process stands still for a minute.
        assert_eq!(beats.next_step(at(60_000)), BeatStep::Beat);
        assert_eq!(beats.note_heard(at(60_001)), None);
        let steps: Vec<BeatStep> = (1..=5).map(|n| beats.next_step(at(60_000 + n * 1_000))).collect();
        assert_eq!(
            steps,
            [BeatStep::Beat, BeatStep::Beat, BeatStep::Beat, BeatStep::Beat, BeatStep::Reconnect],
            "noticed within 5 s"
        );
        assert!(!beats.is_confirmed);
        assert_eq!(beats.next_step(at(65_200)), BeatStep::Subscribe);
        assert_eq!(beats.next_step(at(70_000)), BeatStep::Reconnect, "again, while nothing is received");
        assert_eq!(beats.note_heard(at(70_500)), Some(Duration::from_millis(10_499)), "what may have been missed");
        assert_eq!(beats.note_heard(at(70_501)), None);
    }

    #[test]
    fn a_reconnection_is_a_gap_although_no_beat_is_missed() {
        let start = Instant::now();
        let mut beats = BeatWatch::new(start);
        beats.note_reconnected();
        assert_eq!(beats.note_heard(start), None, "nothing was received before");
        beats.note_reconnected();
        assert!(beats.is_confirmed);
        assert_eq!(beats.note_heard(start + BEAT_INTERVAL), Some(BEAT_INTERVAL));
    }
}
