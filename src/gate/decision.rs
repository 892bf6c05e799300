//! Opens and closes the gate by the findings of the chain.

use super::checks::{FindingClass, describe_stale_evidence, first_finding};
use super::{CoverageTargets, Evidence};
use crate::api::Reason;

impl Evidence {
    /// Closes the gate on the first finding against it, and opens it when no finding is left and enough journeys passed.
    pub(super) fn update_gate(&mut self) {
        if self.awaits_observation() {
            return;
        }
        match first_finding(self).map(|finding| finding.class) {
            Some(FindingClass::Refutes | FindingClass::RefutesRounds) if self.open => {
                if let Some(reason) = self.describe_first_finding() {
                    self.close(reason);
                }
            }
            Some(FindingClass::RefutesRounds) => self.coverage.restart_proof(self.now_ms),
            Some(FindingClass::Refutes | FindingClass::Delays) => {}
            None | Some(FindingClass::Explains) => self.open_if_proven(),
        }
    }

    /// Whether a proof that a former leader recorded has not met an observation yet: without targets, every check would find
    /// that the cluster has nothing to serve with.
    fn awaits_observation(&self) -> bool {
        self.inherited_ms.is_some() && self.targets == CoverageTargets::default()
    }

    fn close(&mut self, closing: (Reason, String)) {
        self.open = false;
        self.closing = Some(closing);
        // Journeys before the closing prove nothing of the time after it, and do not speak against it.
        self.losses.restart();
        self.coverage.excuse_newcomers(&self.targets, false);
        self.coverage.restart_proof(self.now_ms);
    }

    /// Whether few enough journeys were lost, the newest ones passed, and every value has passed often enough.
    pub(super) fn has_enough_passes(&self) -> bool {
        self.losses.allows_opening(self.policy.open_after * self.coverage.index().routes().len())
            && self.newest_journeys_passed()
            && self.coverage.has_passed_each(self.policy.open_after)
    }

    fn open_if_proven(&mut self) {
        let proven = !self.open && self.has_enough_passes() && describe_stale_evidence(self).is_none();
        if proven {
            (self.open, self.ever_open, self.closing) = (true, true, None);
            self.coverage.excuse_newcomers(&self.targets, true);
        }
    }
}
