//! What there is to be proven: the plan, with what was last seen of stream and holders. Pure.

use std::collections::BTreeSet;

use super::Plan;
use super::observe::Observation;
use crate::gate::Dimensions;
use crate::kinesis::Shard;
use crate::protocol::ShardId;

/// Every process of a plan.
pub(super) fn processes(plan: &Plan) -> impl Iterator<Item = &str> {
    let edges = plan.edges.iter().map(|edge| edge.pod.as_str());
    edges.chain(plan.dispatchers.iter().map(|dispatcher| dispatcher.pod.as_str()))
}

fn newcomers(plan: &Plan) -> BTreeSet<String> {
    let edges = plan.edges.iter().filter(|edge| !edge.admitted).map(|edge| edge.pod.clone());
    let dispatchers = plan.dispatchers.iter().filter(|pod| !pod.admitted).map(|pod| pod.pod.clone());
    edges.chain(dispatchers).collect()
}

/// What there is to be proven, as last seen.
pub(super) fn dimensions(plan: &Plan, shards: &[Shard], observation: &Observation) -> Dimensions {
    let pods = plan.edges.iter().map(|edge| (edge.pod.clone(), edge.transports.iter().copied().collect()));
    let shards: BTreeSet<ShardId> = shards.iter().map(|shard| shard.id.clone()).collect();
    let holders = observation.dispatchers.iter();
    let holders = holders.filter(|(_, flow)| flow.shards.keys().any(|shard| shards.contains(shard)));
    let paths = plan.paths.iter().map(|path| (path.name.clone(), path.transports.iter().copied().collect()));
    Dimensions {
        paths: paths.collect(),
        transports: plan.transports.clone(),
        pods: pods.collect(),
        processes: processes(plan).map(str::to_owned).collect(),
        newcomers: newcomers(plan),
        webhooks: plan.webhooks,
        dispatchers: holders.map(|(pod, _)| pod.clone()).collect(),
        shards,
    }
}
