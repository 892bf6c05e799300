//! The gate's test of itself: journeys that the gate must refuse, each for one reason.
//!
//! Once per fingerprint, as soon as the gate is open, and again for each requested proof. A gate that passes one of them, or
//! names another reason again and again, would not notice a fault of the cluster either.

use std::time::Duration;

use tokio::time::Instant;
use ulid::Ulid;

use super::ProbeApp;
use super::receiver::{WebhookClaim, WebhookReceiver};
use crate::api::Reason;
use crate::gate::{Hop, JourneyOutcome};
use crate::process::metrics::label_values;
use crate::protocol::Secret;

/// Delay after a journey that said nothing or was judged wrong.
const RETRY_DELAY: Duration = Duration::from_secs(15);

/// Consecutive refusals for another reason until the gate counts as broken: a webhook may be late or lost.
const OTHER_REASONS_MAX: usize = 3;

label_values! {
    /// A journey that the gate must refuse, by the reason for it.
    pub enum ControlJourney as "reason" {
        /// Its webhooks are verified with another secret than they are signed with.
        OtherSecret = "signature_invalid",
        /// Its webhooks reach the receiver and are handed to no journey.
        UnclaimedWebhooks = "webhook_missing",
    }
}

label_values! {
    /// The result of a control journey.
    pub enum ControlResult as "result" {
        /// The gate refused it for the right reason.
        Refused = "refused",
        /// It broke before its webhooks were due.
        Inconclusive = "inconclusive",
        /// The gate refused it for another reason.
        OtherReason = "other_reason",
        /// The gate passed it.
        Passed = "passed",
    }
}

impl ControlJourney {
    /// The reason for which the gate must refuse the journey.
    fn expected_reason(self) -> Reason {
        match self {
            Self::OtherSecret => Reason::SignatureInvalid,
            Self::UnclaimedWebhooks => Reason::WebhookMissing,
        }
    }

    /// Claims the webhooks of the journey so that none of them may count.
    pub(super) fn claim_webhooks(self, receiver: &WebhookReceiver, nonce: &str, app: &ProbeApp) -> WebhookClaim {
        match self {
            Self::OtherSecret => {
                let secret = Secret::new(Ulid::new().to_string());
                receiver.claim_webhooks(nonce, &ProbeApp { secret, ..app.clone() })
            }
            Self::UnclaimedWebhooks => receiver.claim_webhooks(&Ulid::new().to_string(), app),
        }
    }

    pub(super) fn judge(self, outcome: &JourneyOutcome) -> ControlResult {
        match outcome {
            JourneyOutcome::Pass => ControlResult::Passed,
            JourneyOutcome::Void => ControlResult::Inconclusive,
            JourneyOutcome::Decisive(failure) | JourneyOutcome::Ambiguous(failure) => {
                if failure.reason == self.expected_reason() {
                    ControlResult::Refused
                } else if failure.hop < Hop::Record {
                    ControlResult::Inconclusive
                } else {
                    ControlResult::OtherReason
                }
            }
        }
    }
}

/// A control journey that ended.
#[derive(Debug)]
pub(super) struct EndedControl {
    /// The test that the journey belongs to.
    pub test: u64,
    pub control: ControlJourney,
    pub outcome: JourneyOutcome,
}

/// A conclusion of the test.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SelfTestFinding {
    /// The gate refuses every control journey.
    Sound,
    /// The gate does not; the description.
    Broken(String),
}

/// The test under way.
#[derive(Default)]
pub(super) struct SelfTest {
    /// Counts tests: a journey counts for its own alone.
    pub test: u64,
    /// Control journeys that the gate is yet to refuse, the next one last.
    pending: Vec<ControlJourney>,
    /// Time of the next journey; `None` while one is under way, and when nothing is pending.
    next_attempt: Option<Instant>,
    /// Consecutive refusals for another reason.
    other_reasons: usize,
}

impl SelfTest {
    /// A test that begins now, if the cluster has webhooks.
    pub fn restart(&self, webhooks: bool) -> Self {
        let pending =
            if webhooks { vec![ControlJourney::UnclaimedWebhooks, ControlJourney::OtherSecret] } else { vec![] };
        Self { test: self.test + 1, pending, next_attempt: webhooks.then(Instant::now), other_reasons: 0 }
    }

    /// Whether a journey is due.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next_attempt.is_some_and(|at| now >= at)
    }

    /// The journey that is due.
    pub fn take_due(&mut self, now: Instant) -> Option<ControlJourney> {
        self.next_attempt.take_if(|at| now >= *at)?;
        self.pending.last().copied()
    }

    /// Adds a journey that ended, and plans the next one. Returns a conclusion, if there is one.
    pub fn add_journey(&mut self, ended: &EndedControl, now: Instant) -> Option<SelfTestFinding> {
        if ended.test != self.test {
            return None;
        }
        let result = ended.control.judge(&ended.outcome);
        self.other_reasons = if result == ControlResult::OtherReason { self.other_reasons + 1 } else { 0 };
        if result == ControlResult::Refused {
            self.pending.retain(|control| *control != ended.control);
            self.next_attempt = (!self.pending.is_empty()).then_some(now);
            return self.pending.is_empty().then_some(SelfTestFinding::Sound);
        }
        self.next_attempt = Some(now + RETRY_DELAY);
        let is_broken = result == ControlResult::Passed || self.other_reasons >= OTHER_REASONS_MAX;
        is_broken.then(|| SelfTestFinding::Broken(describe_fault(ended.control, &ended.outcome)))
    }
}

fn describe_fault(control: ControlJourney, outcome: &JourneyOutcome) -> String {
    let journey = match control {
        ControlJourney::OtherSecret => "a journey whose webhooks are verified with another secret",
        ControlJourney::UnclaimedWebhooks => "a journey whose webhooks are withheld from it",
    };
    let expected = control.expected_reason();
    let found = match outcome {
        JourneyOutcome::Decisive(failure) | JourneyOutcome::Ambiguous(failure) => {
            format!("was refused with {}: {}", failure.reason.name(), failure.detail)
        }
        JourneyOutcome::Pass | JourneyOutcome::Void => "passed".to_owned(),
    };
    format!(
        "the operator cannot tell a broken path from a good one: {journey} must be refused with {}, and {found}; restart the operator, and report it",
        expected.name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::HopFailure;

    fn failure(hop: Hop, reason: Reason) -> JourneyOutcome {
        JourneyOutcome::Ambiguous(HopFailure { hop, reason, detail: "as it was".to_owned() })
    }

    fn add(test: &mut SelfTest, outcome: JourneyOutcome) -> (ControlJourney, Option<SelfTestFinding>) {
        let now = Instant::now() + RETRY_DELAY;
        let control = test.take_due(now).expect("a journey that is due");
        assert_eq!(test.take_due(now), None, "one at a time");
        (control, test.add_journey(&EndedControl { test: test.test, control, outcome }, Instant::now()))
    }

    #[test]
    fn a_gate_is_sound_once_it_has_refused_each_control_journey_for_its_reason() {
        let mut test = SelfTest::default().restart(true);
        let refused = add(&mut test, failure(Hop::Authenticity, Reason::SignatureInvalid));
        assert_eq!(refused, (ControlJourney::OtherSecret, None));
        let early = add(&mut test, failure(Hop::Connect, Reason::EdgeUnreachable));
        assert_eq!(early, (ControlJourney::UnclaimedWebhooks, None), "says nothing");
        let refused = add(&mut test, failure(Hop::Delivery, Reason::WebhookMissing));
        assert_eq!(refused, (ControlJourney::UnclaimedWebhooks, Some(SelfTestFinding::Sound)));
        assert_eq!(test.take_due(Instant::now() + RETRY_DELAY), None, "once per fingerprint");
        assert_eq!(SelfTest::default().restart(false).take_due(Instant::now()), None, "without webhooks");
    }

    #[test]
    fn a_gate_is_broken_by_one_pass_or_three_other_reasons_until_it_refuses() {
        let mut test = SelfTest::default().restart(true);
        let (_, finding) = add(&mut test, JourneyOutcome::Pass);
        let Some(SelfTestFinding::Broken(fault)) = finding else { panic!("{finding:?}") };
        assert!(fault.contains("another secret must be refused with SignatureInvalid, and passed"), "{fault}");
        let other = || failure(Hop::Record, Reason::RecordMissing);
        assert_eq!(add(&mut test, other()).1, None);
        assert_eq!(add(&mut test, other()).1, None);
        let (_, finding) = add(&mut test, other());
        let Some(SelfTestFinding::Broken(fault)) = finding else { panic!("{finding:?}") };
        assert!(fault.contains("was refused with RecordMissing: as it was"), "{fault}");
        assert_eq!(add(&mut test, failure(Hop::Authenticity, Reason::SignatureInvalid)).1, None);
        let (_, finding) = add(&mut test, failure(Hop::Delivery, Reason::WebhookMissing));
        assert_eq!(finding, Some(SelfTestFinding::Sound));
    }

    #[test]
    fn a_journey_of_a_former_test_does_not_count() {
        let former = SelfTest::default().restart(true);
        let mut test = former.restart(true);
        let control = test.take_due(Instant::now()).expect("due");
        let ended = EndedControl { test: former.test, control, outcome: JourneyOutcome::Pass };
        assert_eq!(test.add_journey(&ended, Instant::now()), None);
    }
}
