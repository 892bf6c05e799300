//! The number of connections in a channel, published to its subscribers and to webhooks where the app enables it.
//!
//! The bus decides which count is published and when, and publishes it. The count of a large channel is published every few seconds only;
//! the process that planned the next look publishes the last count of a burst.

use std::sync::Arc;

use crate::bus::{ChannelKey, CountUpdate};
use crate::edge::hub::core::Hub;
use crate::protocol::ChannelKind;
use crate::protocol::record::EventKind;

/// Publishes the count after a join or a leave, now or later.
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
    shared.pending_counts.tasks.clone().spawn(async move {
        loop {
            tokio::select! {
                () = shared.pending_counts.draining.wait_started() => return shared.pending_counts.clear_pending(&subject),
                () = tokio::time::sleep(wait) => {}
            }
            // Before the call: a join after the answer plans anew.
            shared.pending_counts.clear_pending(&subject);
            match publish_count(&shared, &subject).await {
                Some(again) if shared.pending_counts.mark_pending(&subject) => wait = again,
                _ => return,
            }
        }
    });
}

/// Publishes the count, or returns the time until the next look.
async fn publish_count(shared: &Hub, subject: &ChannelKey) -> Option<std::time::Duration> {
    match shared.subscription_count(subject).await {
        Ok(CountUpdate::Published(count)) => {
            shared.recorder.record_event(subject, EventKind::SubscriptionCount { subscription_count: count });
            None
        }
        Ok(CountUpdate::RetryAfter(wait)) => Some(wait),
        Ok(CountUpdate::Unchanged) => None,
        Err(error) => {
            tracing::debug!(%error, "subscription count not published");
            None
        }
    }
}
