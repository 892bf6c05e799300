//! The start of observations and of journeys: which routes are tried again or on request, through which channels, beside
//! which companions.

use tokio::time::Instant;
use tracing::Instrument;
use ulid::Ulid;

use super::coverage::TargetPair;
use super::journey::{Companions, JourneyRoute, run_journey};
use super::nonce::{JourneyChannels, choose_channels};
use super::progress::progress_callback;
use super::requested_round::{RequestedRound, RouteStep};
use super::scheduler::{JourneySchedule, ScheduleEvent, send_if_changed};
use super::{EdgePod, Entrance, ProbePlan};
use crate::gate::{GatePolicy, Journey};
use crate::process::clock;
use crate::protocol::{ShardId, Transport};

/// Size of an event that a web ACL of AWS with `SizeRestrictions_BODY` refuses: it inspects 8 KB.
const LARGE_EVENT_BYTES: usize = 9 * 1024;

impl JourneySchedule {
    /// Observes every pod, in a separate task.
    pub(super) fn observe_pods(&self) {
        let (context, results) = (self.context.clone(), self.results.clone());
        tokio::spawn(async move {
            let observation = context.observer.observe_all(&context.plan).await;
            // The schedule may have ended.
            let _ = results.send(ScheduleEvent::PodsObserved(observation)).await;
        });
    }

    /// Reads the endpoints of all dispatchers, in a separate task.
    pub(super) fn read_endpoints(&self) {
        let context = self.context.clone();
        tokio::spawn(async move { context.observer.read_endpoints(&context.plan).await });
    }

    /// Lists the shards of the stream, in a separate task.
    pub(super) fn list_shards(&self) {
        let Some(stream) = self.context.plan.stream.clone() else { return };
        let results = self.results.clone();
        tokio::spawn(async move {
            let listed = stream.list_shards().await;
            if let Err(error) = &listed {
                tracing::warn!(%error, "shard listing failed: keeping the previous one");
            }
            // The schedule may have ended.
            let _ = results.send(ScheduleEvent::ShardsListed(listed)).await;
        });
    }

    /// Tries suspects again, each after a while.
    pub(super) fn retry_suspects(&mut self, now: Instant) {
        let suspects = self.evidence.suspect_routes();
        self.confirmations.retain(|pair, _| suspects.contains(pair));
        let policy = self.context.plan.policy;
        for pair in suspects {
            let (at, count) = self.confirmations.entry(pair.clone()).or_insert((now + policy.confirm_every, 0));
            if now < *at {
                continue;
            }
            *count += 1;
            *at = now + policy.confirmation_delay(*count);
            if let Some(entrance) = self.find_entrance(&pair.1) {
                // Beside one that hangs: it says nothing until its timeout.
                self.launch_journey(pair.0, entrance);
            }
        }
    }

    /// Starts the round that the plan requests, beside the journeys that are under way.
    pub(super) fn start_requested_round(&mut self) {
        let Some(token) = self.request.take() else { return };
        let pods: Vec<(Transport, Entrance)> =
            self.target_pairs().iter().map(|(transport, edge)| (*transport, Entrance::from(edge))).collect();
        let paths = self.leading_paths();
        let names = |routes: &[(Transport, Entrance)]| -> Vec<TargetPair> {
            routes.iter().map(|(transport, entrance)| (*transport, entrance.name.clone())).collect()
        };
        let wanted = self.context.plan.wanted_pods.clone();
        let round = RequestedRound::new(token, clock::now_ms(), wanted, &names(&pods), &names(&paths));
        for (transport, entrance) in pods.into_iter().chain(paths) {
            self.launch_journey(transport, entrance);
        }
        send_if_changed(&self.requested_reports, Some(round.report()));
        self.requested_round = Some(round);
    }

    pub(super) fn add_to_requested_round(&mut self, journey: &Journey) {
        let Some(round) = &mut self.requested_round else { return };
        let step = round.add_journey(journey);
        send_if_changed(&self.requested_reports, Some(round.report()));
        if step == RouteStep::Retry
            && let Some(entrance) = self.find_entrance(&journey.entrance)
        {
            self.launch_journey(journey.transport, entrance);
        }
    }

    pub(super) fn drop_removed_routes(&mut self) {
        let plan = self.context.plan.clone();
        let Some(round) = &mut self.requested_round else { return };
        let exists = |(transport, name): &TargetPair| {
            let edge = plan.edges.iter().any(|edge| edge.pod == *name && edge.transports.contains(transport));
            edge || plan.paths.iter().any(|path| path.name == *name && path.transports.contains(transport))
        };
        round.retain_routes(exists, clock::now_ms());
        send_if_changed(&self.requested_reports, Some(round.report()));
    }

    pub(super) fn find_entrance(&self, name: &str) -> Option<Entrance> {
        let ProbePlan { edges, paths, external, .. } = &*self.context.plan;
        let edge = edges.iter().find(|edge| edge.pod == name).map(Entrance::from);
        let path = || paths.iter().find(|path| path.name == name).map(Entrance::from);
        let external = || external.active_routes().find(|path| path.name == name).map(Entrance::of_external);
        edge.or_else(path).or_else(external)
    }

    pub(super) fn begin_journey(&mut self, transport: Transport, entrance: Entrance) {
        let underway = self.underway.get(&(transport, entrance.name.clone())).copied().unwrap_or_default();
        if underway < GatePolicy::concurrent_journeys_max(self.verdicts.borrow().phase) {
            self.launch_journey(transport, entrance);
        }
    }

    pub(super) fn launch_journey(&mut self, transport: Transport, entrance: Entrance) {
        let pair = (transport, entrance.name.clone());
        let Some(mut channels) = self.choose_channels() else { return };
        if entrance.has_large_events {
            channels.padding_bytes = LARGE_EVENT_BYTES;
        }
        let companions = self.find_companions(transport, &entrance);
        let route = JourneyRoute { companions, ..self.build_route(transport, entrance, channels) };
        self.journey_count += 1;
        *self.underway.entry(pair.clone()).or_default() += 1;
        let (context, results, running) = (self.context.clone(), self.results.clone(), self.journey_slots.clone());
        let (budget, pace) = (self.process.budget.budget(), self.round_state().pace());
        let span = tracing::info_span!("journey", transport = transport.name(), entrance = pair.1);
        let tell = progress_callback(self.ticks.clone(), transport, route.entrance.name.clone());
        tokio::spawn(async move {
            // The semaphore is never closed.
            let admitted = (running.acquire_owned().await, budget.wait_place(pace).await);
            budget.wait_turn().await;
            // A task of its own, so that not even a panic in it keeps the next round from starting.
            let travelled = tokio::spawn(run_journey(context, route, tell).instrument(span.clone())).await;
            drop(admitted);
            // The schedule may have ended: then nobody waits for the journey.
            let _ = results.send(ScheduleEvent::HopsEnded(pair)).await;
            let journey = match travelled {
                Ok(Ok(underway)) => underway.tear_down().instrument(span).await,
                Ok(Err(broken)) => broken,
                Err(error) => {
                    tracing::error!(%error, "journey task failed: no evidence recorded");
                    return;
                }
            };
            let _ = results.send(ScheduleEvent::JourneyEnded(journey)).await;
        });
    }

    /// The route of the next journey, without companions.
    pub(super) fn build_route(
        &self,
        transport: Transport,
        entrance: Entrance,
        channels: JourneyChannels,
    ) -> JourneyRoute {
        JourneyRoute {
            transport,
            companions: Companions::NotApplicable,
            entrance,
            channels,
            turn: self.journey_count,
            shards: self.shards.clone(),
            app: self.context.plan.app.id.clone(),
            fingerprint: self.context.plan.fingerprint.clone(),
            control: None,
        }
    }

    /// Channels for the next journey: its private one falls into the shard whose turn it is.
    pub(super) fn choose_channels(&self) -> Option<JourneyChannels> {
        let next = || Ulid::new().to_string().to_lowercase();
        let shard: Option<&ShardId> =
            (!self.shards.is_empty()).then(|| &self.shards[self.journey_count % self.shards.len()].id);
        shard
            .and_then(|shard| choose_channels(&self.context.plan.app.id, shard, &self.shards, next))
            .or_else(|| JourneyChannels::new(&next()))
    }

    fn find_companions(&self, transport: Transport, entrance: &Entrance) -> Companions {
        let found =
            choose_companions(&self.context.plan.edges, self.target_pairs(), (transport, entrance), self.journey_count);
        tracing::debug!(entrance = entrance.name, %transport, ?found, "companions chosen");
        found
    }
}

/// Chooses the pods for the second session of a journey from those that are up: admitted pods first, then those of the
/// other kind of server, and another one first each time. An admitted pod's journeys use admitted ones only: a pod that
/// no client reaches must not fail them. Which pod a path led to is not known: it may be its own companion.
fn choose_companions(
    edges: &[EdgePod],
    up: Vec<(Transport, EdgePod)>,
    (transport, entrance): (Transport, &Entrance),
    turn: usize,
) -> Companions {
    let is_other = |edge: &EdgePod| edge.pod != entrance.name;
    let path = entrance.admin.is_none();
    if edges.iter().filter(|edge| is_other(edge)).count() <= usize::from(path) {
        return Companions::NotApplicable;
    }
    let admitted_only = path || edges.iter().any(|edge| !is_other(edge) && edge.admitted);
    let may_accompany = |other: &EdgePod| is_other(other) && (other.admitted || !admitted_only);
    let mut others: Vec<_> = up.into_iter().filter(|(_, other)| may_accompany(other)).collect();
    // Pods that are not admitted and not up yet are no pods for clients.
    if others.is_empty() && !edges.iter().any(|edge| is_other(edge) && edge.admitted) {
        return Companions::NotApplicable;
    }
    if !others.is_empty() {
        let first = turn % others.len();
        others.rotate_left(first);
    }
    others.sort_by_key(|(carried, other)| (!other.admitted, carried.server_kind() == transport.server_kind()));
    Companions::Pods(others)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::prober::{ClientAddress, ServiceRoute};

    /// Name, pods of the plan, pods that are up, entrance, and the companions.
    type CompanionCase<'a> = (&'a str, &'a [&'a EdgePod], &'a [&'a EdgePod], &'a Entrance, Option<&'a [&'a str]>);

    fn edge(pod: &str, transport: Transport, admitted: bool) -> EdgePod {
        let address = ([127, 0, 0, 1], 1).into();
        let (transports, wanted) = (vec![transport], BTreeMap::new());
        EdgePod { pod: pod.to_owned(), public: address, admin: address, transports, wanted, admitted }
    }

    fn names(companions: &Companions) -> Option<Vec<&str>> {
        match companions {
            Companions::NotApplicable => None,
            Companions::Pods(pods) => Some(pods.iter().map(|(_, pod)| pod.pod.as_str()).collect()),
        }
    }

    #[test]
    fn a_companion_is_another_pod_that_clients_reach_and_one_pod_has_none() {
        let (ws, sockjs) = (Transport::Websocket, Transport::XhrPolling);
        let (a, b) = (edge("a", ws, true), edge("b", sockjs, true));
        let (new, newer) = (edge("new", ws, false), edge("newer", sockjs, false));
        let path = ServiceRoute {
            name: "path".into(),
            public: ClientAddress::plain(a.public),
            api: None,
            transports: vec![ws],
            serving: true,
            has_large_events: false,
        };
        let (of_a, of_new, of_path) = (Entrance::from(&a), Entrance::from(&new), Entrance::from(&path));
        let cases: [CompanionCase<'_>; 9] = [
            ("the only pod has none", &[&a], &[&a], &of_a, None),
            ("nor has a path to the only pod", &[&a], &[&a], &of_path, None),
            ("the other pod", &[&a, &b], &[&a, &b], &of_a, Some(&["b"])),
            ("a path takes either", &[&a, &b], &[&a, &b], &of_path, Some(&["b", "a"])),
            ("an admitted pod that is not up is missed", &[&a, &b], &[&a], &of_a, Some(&[])),
            ("a pod that is not admitted fails no other", &[&a, &new], &[&a, &new], &of_a, None),
            (
                "a newcomer has admitted ones first",
                &[&a, &new, &newer],
                &[&a, &new, &newer],
                &of_new,
                Some(&["a", "newer"]),
            ),
            ("newcomers have each other", &[&new, &newer], &[&new, &newer], &of_new, Some(&["newer"])),
            ("but none that is not up", &[&new, &newer], &[&new], &of_new, None),
        ];
        for (name, edges, up, entrance, expected) in cases {
            let edges: Vec<EdgePod> = edges.iter().copied().cloned().collect();
            let up = up.iter().map(|edge| (edge.transports[0], (*edge).clone())).collect();
            let found = choose_companions(&edges, up, (ws, entrance), 0);
            assert_eq!(names(&found).as_deref(), expected, "{name}");
        }
    }
}
