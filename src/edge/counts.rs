//! How many connections are in a channel, told to them and to webhooks where an app asked for it.
//!
//! The bus says what to tell and when. A large channel is counted aloud every few seconds only; the last count of a
//! flurry is told by whichever process planned to ask again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::shared::Shared;
use crate::bus::{Count, Subject};
use crate::protocol::ChannelKind;
use crate::protocol::frame;
use crate::protocol::record::EventKind;

/// The channels whose count this process asks for again.
#[derive(Default)]
pub struct Counts {
    planned: Mutex<HashSet<Subject>>,
}

impl Counts {
    /// Whether this is the first plan for the channel.
    fn plan(&self, subject: &Subject) -> bool {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner).insert(subject.clone())
    }

    fn begin(&self, subject: &Subject) {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner).remove(subject);
    }
}

/// Someone came or went.
pub async fn changed(shared: &Arc<Shared>, subject: &Subject) {
    let asked = shared.apps.current().app(&subject.app).is_some_and(|app| app.subscription_count);
    if !asked || matches!(subject.channel.kind(), ChannelKind::Presence | ChannelKind::Internal) {
        return;
    }
    let Some(wait) = tell(shared, subject).await else { return };
    if !shared.counts.plan(subject) {
        return;
    }
    let (shared, subject, mut wait) = (shared.clone(), subject.clone(), wait);
    shared.tasks.clone().spawn(async move {
        loop {
            tokio::select! {
                () = shared.draining.cancelled() => return shared.counts.begin(&subject),
                () = tokio::time::sleep(wait) => {}
            }
            // Before asking: who comes after the answer plans anew.
            shared.counts.begin(&subject);
            match tell(&shared, &subject).await {
                Some(again) if shared.counts.plan(&subject) => wait = again,
                _ => return,
            }
        }
    });
}

/// Tells the count, or returns when to ask again.
async fn tell(shared: &Shared, subject: &Subject) -> Option<std::time::Duration> {
    match shared.count(subject).await {
        Ok(Count::Tell(count)) => {
            shared.recorder.noticed(subject, EventKind::SubscriptionCount { subscription_count: count });
            shared.publish(subject.clone(), frame::subscription_count(&subject.channel, count), None).await;
            None
        }
        Ok(Count::Later(wait)) => Some(wait),
        Ok(Count::Told) => None,
        Err(error) => {
            tracing::debug!(%error, "a count was not told");
            None
        }
    }
}
