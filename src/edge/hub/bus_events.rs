//! Applies transitions that the bus emits on its own: after another process dies, or after Redis loses its data. Each is
//! recorded like a local transition; the bus itself reports it to the subscribers.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::bus::RemoteTransitions;
use crate::edge::hub::core::Hub;
use crate::edge::hub::subscription_count;
use crate::protocol::ChannelKind;

/// Applies each transition until the token is cancelled.
pub async fn apply_remote_transitions(
    shared: Arc<Hub>,
    mut decided: mpsc::Receiver<RemoteTransitions>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(decided) = decided.recv() => apply_transitions(&shared, decided).await,
            else => return,
        }
    }
}

async fn apply_transitions(shared: &Arc<Hub>, decided: RemoteTransitions) {
    let RemoteTransitions { subject, transitions } = decided;
    shared.metrics.bus_remote_transitions.inc_by(u64::try_from(transitions.len()).unwrap_or(u64::MAX));
    if subject.channel.kind() == ChannelKind::Internal {
        transitions.acknowledge_all();
        return;
    }
    shared.recorder.record_transitions(&subject, transitions);
    subscription_count::update_subscription_count(shared, &subject).await;
}
