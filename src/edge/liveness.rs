//! Whether a client is still there.
//!
//! In: when it was last heard of. Out: wait, ask, or give up. Knows no clock: the caller passes the time.

use std::time::{Duration, Instant};

/// Silence after which a side asks the other, told to clients in whole seconds.
pub const ACTIVITY_TIMEOUT: Duration = Duration::from_mins(2);

/// How long an answer may take.
pub const PONG_TIMEOUT: Duration = Duration::from_secs(30);

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Look again at this time.
    Wait(Instant),
    /// Send a ping.
    Ask,
    /// The client did not answer.
    GiveUp,
}

/// One client's signs of life.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    heard: Instant,
    asked: Option<Instant>,
}

impl Liveness {
    /// A client that was heard of just now.
    pub fn new(now: Instant) -> Self {
        Self { heard: now, asked: None }
    }

    /// Any message is a sign of life.
    pub fn heard(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// What to do now. A question counts as asked once this has said so.
    pub fn step(&mut self, now: Instant) -> Step {
        match self.asked {
            Some(asked) if now >= asked + PONG_TIMEOUT => Step::GiveUp,
            Some(asked) => Step::Wait(asked + PONG_TIMEOUT),
            None if now >= self.heard + ACTIVITY_TIMEOUT => {
                self.asked = Some(now);
                Step::Ask
            }
            None => Step::Wait(self.heard + ACTIVITY_TIMEOUT),
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
        let mut client = Liveness::new(start);
        assert_eq!(client.step(at(0)), Step::Wait(at(120)));
        assert_eq!(client.step(at(120)), Step::Ask);
        assert_eq!(client.step(at(121)), Step::Wait(at(150)), "asked once");
        assert_eq!(client.step(at(150)), Step::GiveUp);
        client.heard(at(149));
        assert_eq!(client.step(at(150)), Step::Wait(at(269)), "an answer starts the time again");
    }
}
