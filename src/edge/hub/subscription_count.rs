//! The `subscription_count` of channels, for clients and webhooks of apps that enabled it.
//!
//! The bus decides when a count is published. A large channel's count is published every few seconds only; the last
//! count of a burst is published by the process that scheduled the next check.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::bus::{ChannelKey, CountUpdate};
use crate::edge::hub::Hub;
use crate::protocol::ChannelKind;
use crate::protocol::frame;
use crate::protocol::record::EventKind;

/// The channels whose next check this process has scheduled.
#[derive(Default)]
pub struct PendingCounts {
    pending: Mutex<HashSet<ChannelKey>>,
}

impl PendingCounts {
    /// Whether this schedules the channel's only check.
    fn mark_pending(&self, subject: &ChannelKey) -> bool {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(subject.clone())
    }

    fn clear_pending(&self, subject: &ChannelKey) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(subject);
    }
}

/// Publishes the count after a subscribe or unsubscribe.
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
            // Cleared before the count is read: a change after the answer schedules a new check.
            shared.pending_counts.clear_pending(&subject);
            match publish_count(&shared, &subject).await {
                Some(again) if shared.pending_counts.mark_pending(&subject) => wait = again,
                _ => return,
            }
        }
    });
}

/// Publishes the count, or returns the delay until the next check.
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
