//! Hops as they happen, for a display.

use tokio::sync::broadcast;

use super::journey::{HopCallback, JourneyRoute};
use crate::gate::Hop;
use crate::protocol::Transport;

/// Ticks that a slow display may be behind.
pub(super) const PROGRESS_QUEUE_LEN: usize = 4096;

/// A hop as it was passed, or as it broke.
#[derive(Clone, Debug)]
pub struct HopTick {
    /// The transport of the journey.
    pub transport: Transport,
    /// The pod that the journey runs through.
    pub pod: String,
    /// The hop that has just passed.
    pub hop: Hop,
    /// Its latency in ms, `None` where a later hop proved it, or what broke.
    pub result: Result<Option<u64>, String>,
}

/// The callback that a journey calls at each passed hop.
pub(super) fn progress_callback(ticks: broadcast::Sender<HopTick>, route: &JourneyRoute) -> HopCallback {
    let (transport, pod) = (route.transport, route.entrance.name.clone());
    Box::new(move |hop, result| {
        // Without a display nobody listens.
        let _ = ticks.send(HopTick { transport, pod: pod.clone(), hop, result });
    })
}
