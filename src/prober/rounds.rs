//! The rounds: which routes a round takes. Until the gate is open, a round takes every pod.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::scheduler::JourneySchedule;
use super::{EdgePod, Entrance};
use crate::gate::GatePhase;
use crate::protocol::Transport;

impl JourneySchedule {
    /// One journey by every transport through the pods whose turn it is, and by every path that leads somewhere.
    pub(super) fn start_round(&mut self) {
        self.failed_rounds = if self.round_failed { self.failed_rounds + 1 } else { 0 };
        self.round_failed = false;
        let mut pairs = self.target_pairs();
        if self.verdicts.borrow().phase == GatePhase::Open {
            pairs = self.tour.choose_pods(pairs, &self.context.plan.policy);
        }
        for (transport, edge) in pairs {
            self.attempted.extend(self.attempt_key(transport, &edge));
            self.begin_journey(transport, Entrance::from(&edge));
        }
        for (transport, entrance) in self.leading_paths() {
            self.begin_journey(transport, entrance);
        }
        for (transport, entrance) in self.leading_external_paths() {
            self.begin_journey(transport, entrance);
        }
    }

    /// Number of journeys of one round of an open gate.
    pub(super) fn round_size(&self) -> usize {
        let plan = &self.context.plan;
        let paths = plan.paths.iter().chain(plan.external.active_routes());
        let paths: usize = paths.map(|path| path.transports.len()).sum();
        let transports: BTreeSet<Transport> = plan.edges.iter().flat_map(|edge| edge.transports.clone()).collect();
        let pods = transports.iter().map(|transport| plan.count_pods(*transport));
        paths + pods.map(|pods| plan.policy.pods_per_round(pods)).sum::<usize>()
    }

    /// Every transport of every path that leads somewhere.
    pub(super) fn leading_paths(&self) -> Vec<(Transport, Entrance)> {
        let now = Instant::now();
        let leading = self.context.plan.paths.iter().filter(|path| self.paths.is_expected_to_work(path, now));
        leading.flat_map(|path| path.transports.iter().map(move |of| (*of, Entrance::from(path)))).collect()
    }

    /// Every transport of every load balancer with pods behind it.
    pub(super) fn leading_external_paths(&self) -> Vec<(Transport, Entrance)> {
        let now = Instant::now();
        let leading = self.context.plan.external.active_routes();
        let leading = leading.filter(|path| self.paths.is_expected_to_work(path, now));
        leading.flat_map(|path| path.transports.iter().map(move |of| (*of, Entrance::of_external(path)))).collect()
    }

    /// Starts journeys through pods that wait for admission as soon as they are up, since this paces a rollout.
    pub(super) fn prove_newcomers(&mut self) {
        let fresh = |(transport, edge): &(Transport, EdgePod)| {
            !edge.admitted
                && self.attempt_key(*transport, edge).is_some_and(|attempt| !self.attempted.contains(&attempt))
        };
        let waiting: Vec<(Transport, EdgePod)> = self.target_pairs().into_iter().filter(fresh).collect();
        for (transport, edge) in waiting {
            self.attempted.extend(self.attempt_key(transport, &edge));
            self.begin_journey(transport, Entrance::from(&edge));
        }
    }

    fn attempt_key(&self, transport: Transport, edge: &EdgePod) -> Option<(Transport, String, String)> {
        let seen = self.observation.pods.get(&edge.pod)?;
        Some((transport, edge.pod.clone(), seen.process.clone()))
    }

    /// Every transport of every pod that has reported its configuration; without a report a pod is not up yet.
    pub(super) fn target_pairs(&self) -> Vec<(Transport, EdgePod)> {
        let edges = self.context.plan.edges.iter().filter(|edge| self.observation.pods.contains_key(&edge.pod));
        edges.flat_map(|edge| edge.transports.iter().map(|transport| (*transport, edge.clone()))).collect()
    }
}
