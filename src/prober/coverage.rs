//! The targets that need proof: the plan, combined with the latest shards and their holders. Pure.

use std::collections::BTreeSet;

use super::ProbePlan;
use super::observe::PodObservation;
use crate::gate::CoverageTargets;
use crate::kinesis::Shard;
use crate::protocol::{ShardId, Transport};

/// A transport, and the pod or path that it goes through.
pub(super) type TargetPair = (Transport, String);

/// Every process of a plan.
pub(super) fn process_names(plan: &ProbePlan) -> impl Iterator<Item = &str> {
    let edges = plan.edges.iter().map(|edge| edge.pod.as_str());
    edges.chain(plan.dispatchers.iter().map(|dispatcher| dispatcher.pod.as_str()))
}

fn new_processes(plan: &ProbePlan) -> BTreeSet<String> {
    let edges = plan.edges.iter().filter(|edge| !edge.admitted).map(|edge| edge.pod.clone());
    let dispatchers = plan.dispatchers.iter().filter(|pod| !pod.admitted).map(|pod| pod.pod.clone());
    edges.chain(dispatchers).collect()
}

/// Returns the targets that need proof, from the latest observation.
/// Without a shard, `denied_listing` is the error by which AWS refuses to list them.
pub(super) fn coverage_targets(
    plan: &ProbePlan,
    shards: &[Shard],
    denied_listing: Option<&str>,
    observation: &PodObservation,
) -> CoverageTargets {
    let pods = plan.edges.iter().map(|edge| (edge.pod.clone(), edge.transports.iter().copied().collect()));
    let shards: BTreeSet<ShardId> = shards.iter().map(|shard| shard.id.clone()).collect();
    let denied_listing = denied_listing.filter(|_| shards.is_empty());
    let is_open = |shard: &ShardId| denied_listing.is_some() || shards.contains(shard);
    let holders = observation.dispatchers.iter();
    let holders = holders.filter(|(_, flow)| flow.shards.keys().any(is_open));
    let dispatchers: BTreeSet<String> = holders.map(|(pod, _)| pod.clone()).collect();
    let paths = plan.paths.iter().map(|path| (path.name.clone(), path.transports.iter().copied().collect()));
    let tour = |transport: &Transport| (*transport, plan.policy.tour_rounds(plan.count_pods(*transport)));
    CoverageTargets {
        tour_rounds: plan.transports.iter().map(tour).collect(),
        paths: paths.collect(),
        external: plan.external.targets(),
        wanted_pods: plan.wanted_pods.clone(),
        transports: plan.transports.clone(),
        pods: pods.collect(),
        processes: process_names(plan).map(str::to_owned).collect(),
        newcomers: new_processes(plan),
        webhooks: plan.webhooks,
        dispatcher_error: dispatchers.is_empty().then(|| describe_dispatcher_error(observation)).flatten(),
        dispatchers,
        denied_listing: denied_listing.map(str::to_owned),
        shards,
    }
}

/// The first error of a dispatcher, with its pod.
fn describe_dispatcher_error(observation: &PodObservation) -> Option<String> {
    let mut dispatchers = observation.dispatchers.iter();
    dispatchers.find_map(|(pod, flow)| flow.last_error.as_ref().map(|error| format!("{pod} says: {error}")))
}
