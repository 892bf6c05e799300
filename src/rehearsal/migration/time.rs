//! The compression of a move's time: days become seconds, and their order stays.

use std::time::Duration;

use crate::api::RealtimeCluster;
use crate::migration::track::{MoveLimits, PlannedStep, TrackPlan};

/// Interval between two turns.
pub const LOOP_INTERVAL: Duration = Duration::from_millis(100);

/// TTL of the record.
const TTL_MS: u64 = 700;

/// Bake of every step: two TTLs and several rounds of journeys.
const BAKE_MS: u64 = 1500;

/// Bake of the step at which an edit is switched on: a fault must be found within it, as it would be within a day.
const WATCHED_BAKE_MS: u64 = 60_000;

/// Limits whose relation to the TTL is about that of a real move.
const LIMITS: MoveLimits = MoveLimits {
    unknown_ms: 15_000,
    evidence_ms: 30_000,
    sample_ms: 5_000,
    turn_ms: 5_000,
    apply_ms: 20_000,
    cool_down_ms: 600_000,
    drain_ms: 5_000,
};

/// A plan of seconds. The step of weight `watched`, or the first above it, bakes long enough for a fault to be found.
pub fn compress_plan(plan: &TrackPlan, watched: Option<u8>) -> TrackPlan {
    let place = watched.and_then(|weight| plan.steps.iter().position(|step| step.weight >= weight));
    let steps = plan.steps.iter().enumerate().map(|(index, step)| {
        let bake_ms = if Some(index) == place { WATCHED_BAKE_MS } else { BAKE_MS };
        PlannedStep { weight: step.weight, bake_ms }
    });
    TrackPlan { ttl_ms: TTL_MS, steps: steps.collect(), limits: LIMITS, ..plan.clone() }
}

/// A cluster of one pod each whose journeys run every second, so that two fit into this process.
pub fn compress_gate(cluster: &RealtimeCluster) -> RealtimeCluster {
    let mut cluster = cluster.clone();
    let gate = &mut cluster.spec.gate;
    (gate.interval_seconds, gate.open_after, gate.close_after) = (1, 1, 1);
    cluster.spec.websocket.replicas = 1;
    cluster.spec.sockjs.replicas = 1;
    cluster.spec.webhooks.dispatcher.replicas = 1;
    cluster
}
