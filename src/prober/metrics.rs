//! The metrics of the journeys.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use super::control_journey::{ControlJourney, ControlResult};
use crate::gate::{Hop, Journey, JourneyOutcome};
use crate::process::metrics::{DurationHistogram, LabelValue, Labeled, label_values, metric_table};
use crate::protocol::Transport;

label_values! {
    /// The outcome of a journey.
    pub enum JourneyResult as "result" {
        /// Every hop held, the farewell too.
        Pass = "pass",
        /// A wrong result, which counts at once.
        Decisive = "decisive",
        /// A timeout or a reset, which needs confirmation.
        Ambiguous = "ambiguous",
        /// No evidence: a change of leader cut the journey.
        Void = "void",
    }
}

impl LabelValue for Hop {
    const LABEL: &'static str = "hop";
    const ALL: &'static [Self] = &Self::ALL;

    fn name(self) -> &'static str {
        match self {
            Self::FanOut => "fan_out",
            hop => hop.name(),
        }
    }
}

metric_table! {
    /// The metrics of the journeys of all clusters.
    pub struct JourneyMetrics of "operator" {
        /// Journeys that ended, by transport and outcome.
        journeys: Labeled<(Transport, JourneyResult), Counter> =>
            "If results other than `pass` grow, read the condition Ready of the clusters.",
        /// Journeys that failed, by transport and first broken hop.
        journey_failures: Labeled<(Transport, Hop), Counter> =>
            "Read the condition Ready of the clusters: it names hop, pod and remedy.",
        /// Journeys that the gate must refuse, by the reason for it and by result.
        control_journeys: Labeled<(ControlJourney, ControlResult), Counter> =>
            "If `passed` or `other_reason` grows, read the condition Ready of the clusters and restart the operator.",
        /// Time from the start to the end of a journey, its farewell included, in seconds.
        journey_duration_seconds: Labeled<Transport, DurationHistogram> =>
            "Compare the latency of each hop in the status of the clusters.",
    }
}

impl JourneyMetrics {
    /// Counts a control journey that ended.
    pub(super) fn count_control(&self, control: ControlJourney, result: ControlResult) {
        self.control_journeys.with_label((control, result)).inc();
    }

    /// Number of control journeys with this result so far.
    #[must_use]
    pub fn controls_of(&self, control: ControlJourney, result: ControlResult) -> u64 {
        self.control_journeys.with_label((control, result)).get()
    }

    /// Counts a journey that ended.
    pub(super) fn count_journey(&self, journey: &Journey) {
        let (result, failure) = match &journey.outcome {
            JourneyOutcome::Pass => (JourneyResult::Pass, None),
            JourneyOutcome::Decisive(failure) => (JourneyResult::Decisive, Some(failure)),
            JourneyOutcome::Ambiguous(failure) => (JourneyResult::Ambiguous, Some(failure)),
            JourneyOutcome::Void => (JourneyResult::Void, None),
        };
        self.journeys.with_label((journey.transport, result)).inc();
        if let Some(failure) = failure {
            self.journey_failures.with_label((journey.transport, failure.hop)).inc();
        }
        let duration = Duration::from_millis(journey.ended_ms.saturating_sub(journey.started_ms));
        self.journey_duration_seconds.with_label(journey.transport).observe(duration);
    }
}
