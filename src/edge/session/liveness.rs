//! Detects clients that went silent. Pure.
//!
//! In: the time of the last activity. Out: wait, ping, or close. Must not know clocks: the caller passes the time.

use std::time::{Duration, Instant};

/// Time that the client has for its pong.
pub const PONG_TIMEOUT: Duration = Duration::from_secs(30);

/// The step that a silence asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LivenessStep {
    /// Check again at this time.
    Wait(Instant),
    /// Send a ping to the client.
    SendPing,
    /// The pong is missing: close.
    GiveUp,
}

/// The activity of one client.
#[derive(Clone, Copy, Debug)]
pub struct LivenessTracker {
    /// Bounds the silence after which a side pings the other.
    activity_timeout: Duration,
    last_activity: Instant,
    pinged_at: Option<Instant>,
}

impl LivenessTracker {
    /// Starts with a client that was active just now.
    pub fn new(now: Instant, activity_timeout: Duration) -> Self {
        Self { activity_timeout, last_activity: now, pinged_at: None }
    }

    /// Records activity: any message counts.
    pub fn note_activity(&mut self, now: Instant) {
        *self = Self::new(now, self.activity_timeout);
    }

    /// The step to take now. A ping counts as sent once this has returned it.
    pub fn next_step(&mut self, now: Instant) -> LivenessStep {
        match self.pinged_at {
            Some(asked) if now >= asked + PONG_TIMEOUT => LivenessStep::GiveUp,
            Some(asked) => LivenessStep::Wait(asked + PONG_TIMEOUT),
            None if now >= self.last_activity + self.activity_timeout => {
                self.pinged_at = Some(now);
                LivenessStep::SendPing
            }
            None => LivenessStep::Wait(self.last_activity + self.activity_timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_client_is_asked_once_and_then_given_up() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut client = LivenessTracker::new(start, Duration::from_mins(2));
        assert_eq!(client.next_step(at(0)), LivenessStep::Wait(at(120)));
        assert_eq!(client.next_step(at(120)), LivenessStep::SendPing);
        assert_eq!(client.next_step(at(121)), LivenessStep::Wait(at(150)), "asked once");
        assert_eq!(client.next_step(at(150)), LivenessStep::GiveUp);
        client.note_activity(at(149));
        assert_eq!(client.next_step(at(150)), LivenessStep::Wait(at(269)), "an answer starts the time again");
    }
}
