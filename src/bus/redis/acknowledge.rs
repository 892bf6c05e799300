//! Removes events from the outboxes in the store once they are recorded in the stream.

use std::sync::Arc;

use fred::interfaces::HashesInterface;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::{BusError, ChannelKey};
use super::client::{PIPELINE_COMMANDS_MAX, to_bus_error};
use super::members::MembershipCore;
use crate::protocol::record::EventOrder;

/// Bounds the acknowledgements that wait for the store, in channels.
pub(super) const ACKNOWLEDGEMENT_QUEUE_LEN: usize = 65_536;

/// Acknowledges recorded events to the store, so that no sweeper publishes them again. A failed batch is retried; beyond
/// the queue's bound an event stays in the outbox, and is published a second time if this process dies.
pub(super) async fn run_acknowledgements(
    core: Arc<MembershipCore>,
    mut recorded: mpsc::Receiver<(ChannelKey, Vec<EventOrder>)>,
    shutdown: CancellationToken,
) {
    let mut batch = Vec::new();
    loop {
        if batch.is_empty() && recorded.recv_many(&mut batch, PIPELINE_COMMANDS_MAX).await == 0 {
            return;
        }
        if core.is_available() && acknowledge_batch(&core, &batch).await.is_ok() {
            let mut state = core.state();
            for (subject, orders) in batch.drain(..) {
                state.local.mark_recorded(&subject, &orders);
            }
            continue;
        }
        if timeout(core.timing.renew_interval / 3, shutdown.cancelled()).await.is_ok() {
            return;
        }
    }
}

async fn acknowledge_batch(core: &MembershipCore, batch: &[(ChannelKey, Vec<EventOrder>)]) -> Result<(), BusError> {
    let pipeline = core.client.pipeline();
    for (subject, orders) in batch {
        let fields: Vec<String> = orders.iter().map(|order| format!("{}:{}", order.epoch, order.seq)).collect();
        pipeline.hdel::<(), _, _>(core.names.redis_key(subject, "outbox"), fields).await.map_err(to_bus_error)?;
    }
    pipeline.all::<Vec<i64>>().await.map_err(to_bus_error).map(drop)
}
