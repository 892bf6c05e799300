//! Hops as they happen, for a display.

use tokio::sync::broadcast;

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
    /// The hop that the result is about.
    pub hop: Hop,
    /// The result of the hop.
    pub result: HopResult,
}

/// The result of one hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HopResult {
    /// It passed, after so many ms.
    Passed(u64),
    /// A later hop proved it.
    Proven,
    /// It cannot be tried, because the cluster has one pod.
    NotApplicable,
    /// It broke, for this cause.
    Broken(String),
}

/// Called at every hop with its result.
pub(super) type HopCallback = Box<dyn FnMut(Hop, HopResult) + Send>;

/// The callback that a journey of `transport` through `pod` calls at each hop.
pub(super) fn progress_callback(ticks: broadcast::Sender<HopTick>, transport: Transport, pod: String) -> HopCallback {
    Box::new(move |hop, result| {
        // Without a display nobody listens.
        let _ = ticks.send(HopTick { transport, pod: pod.clone(), hop, result });
    })
}
