//! Delivers the frames of other processes to the subscribers of this one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::bus::BroadcastFrame;
use crate::edge::hub::core::Hub;

/// Delivers the frames, and samples the gauges every second, until the token is cancelled.
pub async fn deliver_bus_frames(
    shared: Arc<Hub>,
    mut messages: mpsc::Receiver<BroadcastFrame>,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(message) = messages.recv() => shared.subscribers.deliver(&message),
            _ = tick.tick() => shared.sample_metrics(),
        }
    }
}
