//! Removes transitions from the outboxes in the store once their receipts are acknowledged.

use std::sync::Arc;

use fred::interfaces::HashesInterface;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::BusError;
use super::client::{PIPELINE_COMMANDS_MAX, to_bus_error};
use super::members::MembershipCore;
use super::outbox::ReceiptEnd;

/// Confirms acknowledgements with the store, so that no sweeper publishes their events again, and marks returned
/// transitions, which the next reconciliation emits again. A failed batch is retried.
pub(super) async fn run_acknowledgements(
    core: Arc<MembershipCore>,
    mut ends: mpsc::UnboundedReceiver<ReceiptEnd>,
    shutdown: CancellationToken,
) {
    let (mut batch, mut acknowledged) = (Vec::new(), Vec::new());
    loop {
        if acknowledged.is_empty() {
            if ends.recv_many(&mut batch, PIPELINE_COMMANDS_MAX).await == 0 {
                return;
            }
            acknowledged = keep_acknowledged(&core, batch.drain(..));
        }
        if core.is_available() && confirm_batch(&core, &acknowledged).await.is_ok() {
            acknowledged.clear();
            continue;
        }
        if timeout(core.timing.renew_interval / 3, shutdown.cancelled()).await.is_ok() {
            return;
        }
    }
}

/// Marks returned transitions, and keeps the acknowledged ones.
pub(super) fn keep_acknowledged(core: &MembershipCore, ends: impl IntoIterator<Item = ReceiptEnd>) -> Vec<ReceiptEnd> {
    let mut state = core.state();
    let (acknowledged, returned): (Vec<_>, Vec<_>) = ends.into_iter().partition(|end| end.is_acknowledged);
    for end in returned {
        state.local.mark_returned(&end.subject, end.order);
    }
    acknowledged
}

/// Removes acknowledged events from the store, then from the local state.
pub(super) async fn confirm_batch(core: &MembershipCore, acknowledged: &[ReceiptEnd]) -> Result<(), BusError> {
    if acknowledged.is_empty() {
        return Ok(());
    }
    let pipeline = core.client.pipeline();
    // The events of one record follow each other: one command for all of them.
    for run in acknowledged.chunk_by(|one, next| one.subject == next.subject) {
        let fields: Vec<String> = run.iter().map(|end| format!("{}:{}", end.order.epoch, end.order.seq)).collect();
        let key = core.names.redis_key(&run[0].subject, "outbox");
        pipeline.hdel::<(), _, _>(key, fields).await.map_err(to_bus_error)?;
    }
    pipeline.all::<Vec<i64>>().await.map_err(to_bus_error)?;
    let mut state = core.state();
    for end in acknowledged {
        state.local.mark_recorded(&end.subject, end.order);
    }
    drop(state);
    core.confirm_acknowledgements(acknowledged.len());
    Ok(())
}
