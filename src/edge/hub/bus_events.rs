//! Applies transitions that the bus emits on its own: after another process dies, or after Redis loses its data. Each is
//! published and recorded like a local transition.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::bus::{BroadcastFrame, RemoteTransitions};
use crate::edge::hub::core::Hub;
use crate::edge::hub::subscription_count;
use crate::edge::hub::user_presence::notify_user_watchers;
use crate::protocol::ChannelKind;
use crate::protocol::frame;
use crate::protocol::record::EventKind;

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
    let RemoteTransitions { subject, transitions, members } = decided;
    shared.metrics.bus_remote_transitions.inc_by(u64::try_from(transitions.len()).unwrap_or(u64::MAX));
    if subject.channel.kind() == ChannelKind::Internal {
        let Some(user) = subject.channel.signed_in_user() else { return };
        for transition in &transitions {
            notify_user_watchers(shared, &subject.app, user, transition.kind == EventKind::ChannelOccupied).await;
        }
        return;
    }
    let removed = transitions.iter().filter_map(|transition| match &transition.kind {
        EventKind::MemberRemoved { user_id } => Some(frame::member_removed(&subject.channel, user_id)),
        _ => None,
    });
    let told = removed.chain(members.iter().map(|member| frame::member_added(&subject.channel, member)));
    let message =
        |frame: String| BroadcastFrame { subject: subject.clone(), frame: frame.into(), except: None, ends: false };
    let told: Vec<BroadcastFrame> = told.map(message).collect();
    shared.recorder.record_transitions(&subject, transitions);
    shared.publish_all(told).await;
    subscription_count::update_subscription_count(shared, &subject).await;
}
