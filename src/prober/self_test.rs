//! The gate's test of itself in the schedule: when it begins anew, its journeys, and what they say of the gate.

use tokio::time::Instant;
use tracing::Instrument;

use super::Entrance;
use super::control_journey::{EndedControl, SelfTestFinding};
use super::journey::{JourneyRoute, run_journey};
use super::scheduler::{JourneySchedule, ScheduleEvent};
use crate::gate::{GatePhase, JourneyOutcome};

impl JourneySchedule {
    /// Begins the test anew: another fingerprint, or a requested proof.
    pub(super) fn restart_self_test(&mut self) {
        let plan = &self.context.plan;
        self.self_test = self.self_test.restart(plan.webhooks && plan.stream.is_some());
        self.evidence.set_gate_fault(None);
    }

    /// Starts the control journey that is due, in a separate task. Through a broken cluster it would say nothing of the gate,
    /// so that it waits for an open gate, or one that it closed itself.
    pub(super) fn attempt_self_test(&mut self, now: Instant) {
        let may_attempt = self.verdicts.borrow().phase == GatePhase::Open || self.evidence.has_gate_fault();
        if !may_attempt || !self.self_test.is_due(now) {
            return;
        }
        let pairs = self.target_pairs();
        let admitted = pairs.iter().filter(|(_, edge)| edge.admitted).collect::<Vec<_>>();
        let Some((transport, edge)) = admitted.get(self.journey_count % admitted.len().max(1)) else { return };
        let Some(channels) = self.choose_channels() else { return };
        let Some(control) = self.self_test.take_due(now) else { return };
        let route =
            JourneyRoute { control: Some(control), ..self.build_route(*transport, Entrance::from(edge), channels) };
        let (context, results, test) = (self.context.clone(), self.results.clone(), self.self_test.test);
        let budget = self.process.budget.budget();
        let span = tracing::info_span!("control journey", control = ?control, entrance = route.entrance.name);
        tokio::spawn(async move {
            budget.wait_turn().await;
            let outcome = match run_journey(context, route, Box::new(|_, _| {})).instrument(span).await {
                Ok(_) => JourneyOutcome::Pass,
                Err(broken) => broken.outcome,
            };
            // The schedule may have ended.
            let _ = results.send(ScheduleEvent::ControlEnded(EndedControl { test, control, outcome })).await;
        });
    }

    pub(super) fn add_control_journey(&mut self, ended: &EndedControl) {
        self.process.metrics.count_control(ended.control, ended.control.judge(&ended.outcome));
        match self.self_test.add_journey(ended, Instant::now()) {
            None => {}
            Some(SelfTestFinding::Sound) => self.evidence.set_gate_fault(None),
            Some(SelfTestFinding::Broken(fault)) => {
                tracing::error!(fault, "self-test of the gate failed");
                self.evidence.set_gate_fault(Some(fault));
            }
        }
    }
}
