//! Paces the calls that AWS limits per account, so that many clusters do not starve each other.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::process::locks::lock_unpoisoned;

/// Longest wait for a call's turn. A longer queue means that the budget does not suffice, and the call fails as throttled.
const TURN_WAIT_MAX: Duration = Duration::from_secs(10);

/// A number of calls per second, shared by all callers, each in its turn.
#[derive(Debug)]
pub(super) struct CallBudget {
    interval: Duration,
    next_turn: Mutex<Instant>,
}

impl CallBudget {
    pub fn per_second(calls: u32) -> Self {
        Self { interval: Duration::from_secs(1) / calls.max(1), next_turn: Mutex::new(Instant::now()) }
    }

    /// Reserves the next turn; `None` when the queue is longer than [`TURN_WAIT_MAX`].
    fn reserve(&self, now: Instant) -> Option<Duration> {
        let mut next = lock_unpoisoned(&self.next_turn);
        let turn = (*next).max(now);
        let wait = turn.duration_since(now);
        if wait > TURN_WAIT_MAX {
            return None;
        }
        *next = turn + self.interval;
        Some(wait)
    }

    /// Waits for the caller's turn. `false` when the queue is too long.
    pub async fn wait(&self) -> bool {
        let Some(wait) = self.reserve(Instant::now()) else { return false };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_spaced_and_a_queue_of_more_than_10_s_refuses() {
        let budget = CallBudget::per_second(5);
        let now = Instant::now() + Duration::from_secs(1);
        let turns: Vec<_> = (0..52).map(|_| budget.reserve(now)).collect();
        assert_eq!(turns[0], Some(Duration::ZERO));
        assert_eq!(turns[1], Some(Duration::from_millis(200)));
        assert_eq!(turns[50], Some(Duration::from_secs(10)));
        assert_eq!(turns[51], None);
        assert_eq!(
            budget.reserve(now + Duration::from_mins(1)),
            Some(Duration::ZERO),
            "an idle budget saves nothing up"
        );
    }
}
