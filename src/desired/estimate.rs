//! The estimated time from an apply until Ready. Pure.
//!
//! It adds usual times. The timeout of a tool must be longer: twice the estimate covers a slow image registry.

use std::time::Duration;

use super::{ValidCluster, ValidServer};

/// Seconds in which Kinesis creates a stream; fewer in practice.
const STREAM_CREATION_SECONDS: u64 = 60;

/// Seconds in which a pod is scheduled, its image pulled, its server started, and its own journeys pass.
const POD_ADMISSION_SECONDS: u64 = 45;

/// Seconds of one round of journeys before the gate is open.
const ROUND_SECONDS: u64 = 2;

/// Estimates the time from an apply that changes every pod until the cluster is Ready: the servers roll side by side, the
/// pods of a server one after another, because each waits for the admission of the one before.
#[must_use]
pub fn estimate_rollout(cluster: &ValidCluster) -> Duration {
    let stream = cluster.dispatcher().map_or(0, |_| STREAM_CREATION_SECONDS);
    let min_ready = |server: &ValidServer| server.edge().map_or(0, |edge| u64::from(edge.min_ready_seconds));
    let pods = |server: &ValidServer| {
        (POD_ADMISSION_SECONDS + min_ready(server)) * u64::try_from(server.replicas).unwrap_or_default()
    };
    let rollout = cluster.servers.iter().map(pods).max().unwrap_or_default();
    let rounds = ROUND_SECONDS * u64::try_from(cluster.gate.open_after).unwrap_or_default();
    Duration::from_secs(stream + rollout + rounds) + cluster.gate.timeout
}
