//! How many connections are in a channel, told to them and to webhooks where an app asked for it.
//!
//! The bus says what to tell and when. A large channel is counted aloud every few seconds only; the last count of a
//! flurry is told by whichever process planned to ask again.

use std::sync::Arc;

use crate::bus::{ChannelKey, CountUpdate};
use crate::edge::hub::core::Hub;
use crate::protocol::ChannelKind;
use crate::protocol::frame;
use crate::protocol::record::EventKind;

/// Someone came or went.
pub async fn update_subscription_count(shared: &Arc<Hub>, subject: &ChannelKey) {
    let asked = shared.apps.current().by_id(&subject.app).is_some_and(|app| app.subscription_count);
    if !asked || matches!(subject.channel.kind(), ChannelKind::Presence | ChannelKind::Internal) {
        return;
    }
    let Some(wait) = publish_count(shared, subject).await else { return };
    if !shared.pending_counts.mark_pending(subject) {
        return;
    }
    let (shared, subject, mut wait) = (shared.clone(), subject.clone(), wait);
    shared.session_tasks.clone().spawn(async move {
        loop {
            tokio::select! {
                () = shared.draining.wait_started() => return shared.pending_counts.clear_pending(&subject),
                () = tokio::time::sleep(wait) => {}
            }
            // Before asking: who comes after the answer plans anew.
            shared.pending_counts.clear_pending(&subject);
            match publish_count(&shared, &subject).await {
                Some(again) if shared.pending_counts.mark_pending(&subject) => wait = again,
                _ => return,
            }
        }
    });
}

/// Tells the count, or returns when to ask again.
async fn publish_count(shared: &Hub, subject: &ChannelKey) -> Option<std::time::Duration> {
    match shared.subscription_count(subject).await {
        Ok(CountUpdate::Publish(count)) => {
            shared.recorder.record_event(subject, EventKind::SubscriptionCount { subscription_count: count });
            shared.publish_frame(subject.clone(), frame::subscription_count(&subject.channel, count), None).await;
            None
        }
        Ok(CountUpdate::RetryAfter(wait)) => Some(wait),
        Ok(CountUpdate::Unchanged) => None,
        Err(error) => {
            tracing::debug!(%error, "a count was not told");
            None
        }
    }
}
