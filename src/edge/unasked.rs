//! What the bus decides without being asked: the connections of a process that died have left, or a store that lost its
//! memory has heard everyone again. It is told as if it had happened here.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::counts;
use super::shared::Shared;
use super::user::announce;
use crate::bus::{Decided, Message};
use crate::protocol::ChannelKind;
use crate::protocol::frame;
use crate::protocol::record::EventKind;

/// Tells what is decided, until the token ends it.
pub async fn follow(shared: Arc<Shared>, mut decided: mpsc::Receiver<Decided>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(decided) = decided.recv() => tell(&shared, decided).await,
            else => return,
        }
    }
}

async fn tell(shared: &Arc<Shared>, decided: Decided) {
    let Decided { subject, transitions, members } = decided;
    shared.metrics.unasked.inc_by(u64::try_from(transitions.len()).unwrap_or(u64::MAX));
    if subject.channel.kind() == ChannelKind::Internal {
        let Some(user) = subject.channel.home_of() else { return };
        for transition in &transitions {
            announce(shared, &subject.app, user, transition.kind == EventKind::ChannelOccupied).await;
        }
        return;
    }
    let removed = transitions.iter().filter_map(|transition| match &transition.kind {
        EventKind::MemberRemoved { user_id } => Some(frame::member_removed(&subject.channel, user_id)),
        _ => None,
    });
    let told = removed.chain(members.iter().map(|member| frame::member_added(&subject.channel, member)));
    let message = |frame: String| Message { subject: subject.clone(), frame: frame.into(), except: None, ends: false };
    let told: Vec<Message> = told.map(message).collect();
    shared.recorder.transitions(&subject, transitions);
    shared.publish_all(told).await;
    counts::changed(shared, &subject).await;
}
