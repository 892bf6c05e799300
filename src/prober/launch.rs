//! The start of journeys: which routes are tried again, through which channels, beside which companions.

use tokio::time::Instant;
use tracing::Instrument;
use ulid::Ulid;

use super::journey::{JourneyRoute, run_journey};
use super::nonce::{JourneyChannels, choose_channels};
use super::progress::progress_callback;
use super::scheduler::{JourneySchedule, ScheduleEvent};
use super::{EdgePod, Entrance, ProbePlan};
use crate::gate::GatePolicy;
use crate::protocol::{ShardId, Transport};

impl JourneySchedule {
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

    fn find_entrance(&self, name: &str) -> Option<Entrance> {
        let ProbePlan { edges, paths, .. } = &*self.context.plan;
        let edge = edges.iter().find(|edge| edge.pod == name).map(Entrance::from);
        edge.or_else(|| paths.iter().find(|path| path.name == name).map(Entrance::from))
    }

    pub(super) fn begin_journey(&mut self, transport: Transport, entrance: Entrance) {
        let underway = self.underway.get(&(transport, entrance.name.clone())).copied().unwrap_or_default();
        if underway < GatePolicy::concurrent_journeys_max(self.verdicts.borrow().phase) {
            self.launch_journey(transport, entrance);
        }
    }

    fn launch_journey(&mut self, transport: Transport, entrance: Entrance) {
        let pair = (transport, entrance.name.clone());
        let Some(channels) = self.choose_channels() else { return };
        let route = JourneyRoute {
            transport,
            companions: self.companion_targets(transport, &entrance),
            entrance,
            channels,
            shards: self.shards.clone(),
            app: self.context.plan.app.id.clone(),
            fingerprint: self.context.plan.fingerprint.clone(),
        };
        self.journey_count += 1;
        *self.underway.entry(pair.clone()).or_default() += 1;
        let (context, results, running) = (self.context.clone(), self.results.clone(), self.journey_slots.clone());
        let span = tracing::info_span!("journey", transport = transport.name(), entrance = pair.1);
        let tell = progress_callback(self.ticks.clone(), &route);
        tokio::spawn(async move {
            // The semaphore is never closed.
            let place = running.acquire_owned().await;
            // A task of its own, so that not even a panic in it keeps the next round from starting.
            let travelled = tokio::spawn(run_journey(context, route, tell).instrument(span.clone())).await;
            drop(place);
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

    /// Channels for the next journey: its private one falls into the shard whose turn it is.
    fn choose_channels(&self) -> Option<JourneyChannels> {
        let next = || Ulid::new().to_string().to_lowercase();
        let shard: Option<&ShardId> =
            (!self.shards.is_empty()).then(|| &self.shards[self.journey_count % self.shards.len()].id);
        shard
            .and_then(|shard| choose_channels(&self.context.plan.app.id, shard, &self.shards, next))
            .or_else(|| JourneyChannels::new(&next()))
    }

    /// Other pods, those of the other kind of server first, and another one first each time. Which pod a path led to is
    /// not known: it may be its own companion.
    fn companion_targets(&self, transport: Transport, entrance: &Entrance) -> Vec<(Transport, EdgePod)> {
        // A pod that no client reaches must not fail the journeys of one that clients reach.
        let is_admitted = |name: &str| self.context.plan.edges.iter().any(|edge| edge.pod == name && edge.admitted);
        let admitted_only = entrance.admin.is_none() || is_admitted(&entrance.name);
        let may_accompany = |other: &EdgePod| other.pod != entrance.name && (other.admitted || !admitted_only);
        let mut others: Vec<_> = self.target_pairs().into_iter().filter(|(_, other)| may_accompany(other)).collect();
        if !others.is_empty() {
            let first = self.journey_count % others.len();
            others.rotate_left(first);
        }
        others.sort_by_key(|(other, _)| other.server_kind() == transport.server_kind());
        others
    }
}
