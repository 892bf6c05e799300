//! The share of journeys that failed.

use std::collections::VecDeque;

/// Number of latest journeys over which the share is computed.
const WINDOW_LEN: usize = 200;

/// Bounds the failed share of the journeys, in percent.
const LOSS_MAX_PERCENT: usize = 5;

/// Number of latest journeys of which the share must be small before the gate opens.
const OPENING_WINDOW_LEN: usize = 60;

/// Journeys that fail one after another in an outage. Once they are over, the window begins anew: the cluster must not
/// wait until as many passes have outweighed them. At 40 % of losses so many in a row are one in 10⁸.
const OUTAGE_LEN: usize = 20;

/// Outcomes of the latest journeys since the gate closed.
#[derive(Clone, Debug, Default)]
pub(super) struct LossWindow {
    /// Whether each journey failed, newest last.
    failures: VecDeque<bool>,
    failed_count: usize,
    /// Number of failures since the latest pass.
    run_len: usize,
}

impl LossWindow {
    /// Adds the outcome of a journey.
    pub fn add(&mut self, failed: bool) {
        if !failed && self.run_len >= OUTAGE_LEN {
            self.restart();
        }
        self.run_len = if failed { self.run_len + 1 } else { 0 };
        if self.failures.len() == WINDOW_LEN && self.failures.pop_front() == Some(true) {
            self.failed_count -= 1;
        }
        self.failures.push_back(failed);
        self.failed_count += usize::from(failed);
    }

    /// Forgets all outcomes so far.
    pub fn restart(&mut self) {
        *self = Self::default();
    }

    /// Whether more journeys failed than 5 % of a full window.
    pub fn is_exceeded(&self) -> bool {
        self.failed_count * 100 > LOSS_MAX_PERCENT * WINDOW_LEN
    }

    /// Whether few enough of the latest journeys failed to open the gate, of at least so many journeys or 60.
    pub fn allows_opening(&self, journeys_min: usize) -> bool {
        let latest = self.failures.iter().rev().take(OPENING_WINDOW_LEN);
        let (count, failed) =
            latest.fold((0, 0), |(count, failed), failure| (count + 1, failed + usize::from(*failure)));
        count >= OPENING_WINDOW_LEN.min(journeys_min) && failed * 100 <= LOSS_MAX_PERCENT * count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(outcomes: impl IntoIterator<Item = bool>) -> LossWindow {
        let mut window = LossWindow::default();
        outcomes.into_iter().for_each(|failed| window.add(failed));
        window
    }

    #[test]
    fn the_gate_opens_on_few_losses_and_closes_on_more() {
        let every = |nth: usize, count: usize| (0..count).map(move |number| number % nth == nth - 1);
        for (name, outcomes, opens, exceeded) in [
            ("too few journeys", every(1_000, 29).collect::<Vec<_>>(), false, false),
            ("three rounds of ten", every(1_000, 30).collect(), true, false),
            ("one of thirty", every(30, 30).collect(), true, false),
            ("two of thirty", every(15, 30).collect(), false, false),
            ("one of twenty", every(20, 200).collect(), true, false),
            ("one of ten", every(10, 200).collect(), false, true),
            ("a short outage counts", [vec![true; 5], vec![false; 30]].concat(), false, false),
            ("and so does a longer one", [vec![true; 11], vec![false; 30]].concat(), false, true),
            ("a long one does not, once it is over", [vec![true; 100], vec![false; 30]].concat(), true, false),
            ("during it", vec![true; 100], false, true),
        ] {
            let window = window(outcomes);
            assert_eq!((window.allows_opening(30), window.is_exceeded()), (opens, exceeded), "{name}");
        }
    }

    #[test]
    fn old_outcomes_leave_the_window() {
        let window = window((0..11).map(|_| true).chain((0..WINDOW_LEN).map(|_| false)));
        assert!(!window.is_exceeded() && window.failed_count == 0);
    }
}
