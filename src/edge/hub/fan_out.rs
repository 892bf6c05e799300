//! Delivers the frames of other processes to the subscribers of this one.
//!
//! Frames of one channel stay in order. Channels are spread over lanes, so that a large channel delays those of its lane
//! alone; a lane that falls behind drops its own frames, which are counted.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bus::BroadcastFrame;
use crate::edge::hub::core::Hub;

/// Lanes of one process. A pod has a few cores; more lanes share them.
const LANE_COUNT: usize = 8;

/// Frames that wait in one lane: as many as the bus itself holds for the process.
const LANE_FRAMES_MAX: usize = 16_384;

/// Delivers the frames, and samples the gauges every second, until the token is cancelled.
pub async fn deliver_bus_frames(
    shared: Arc<Hub>,
    mut messages: mpsc::Receiver<BroadcastFrame>,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    // Dropped with this task, it ends the lanes.
    let mut tasks = JoinSet::new();
    let lanes: Vec<mpsc::Sender<BroadcastFrame>> = (0..LANE_COUNT)
        .map(|_| {
            let (sender, frames) = mpsc::channel(LANE_FRAMES_MAX);
            tasks.spawn(deliver_lane(shared.clone(), frames));
            sender
        })
        .collect();
    let hasher = RandomState::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(message) = messages.recv() => {
                let index = usize::try_from(hasher.hash_one(&message.subject) % LANE_COUNT as u64).unwrap_or_default();
                if lanes[index].try_send(message).is_err() {
                    shared.metrics.fan_out_frames_dropped.inc();
                }
            }
            _ = tick.tick() => shared.sample_metrics(),
        }
    }
}

async fn deliver_lane(shared: Arc<Hub>, mut frames: mpsc::Receiver<BroadcastFrame>) {
    while let Some(message) = frames.recv().await {
        shared.subscribers.deliver(&message);
    }
}
