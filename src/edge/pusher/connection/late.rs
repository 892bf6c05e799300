//! Subscriptions that wait until the bus knows the members of a presence channel.

use std::time::Instant;

use crate::bus::BusError;
use crate::edge::metrics::WaitResult;
use crate::edge::pusher::connection::Connection;
use crate::edge::pusher::pending_subscriptions::{PendingOutcome, PendingSubscription};
use crate::protocol::ChannelName;
use crate::protocol::frame::{self, PresenceMember, code};

impl Connection {
    /// Resolves when [`Self::retry_pending`] is due: never without pending subscriptions.
    pub async fn pending_due(&self) {
        match self.pending.next_due() {
            Some(due) => tokio::time::sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Retries one pending subscription, if the bus has recovered.
    pub async fn retry_pending(&mut self) {
        match self.pending.next(self.shared.bus.is_presence_ready(), Instant::now()) {
            Some((waiter, PendingOutcome::Join)) => self.join_pending(waiter).await,
            Some((waiter, PendingOutcome::Refuse)) => self.refuse_pending(&waiter),
            None => {}
        }
    }

    /// Queues a presence subscription: the members are unknown until the bus recovers.
    pub(crate) fn queue_subscription(&mut self, channel: &ChannelName, member: PresenceMember) {
        // A valid signature was shown.
        self.authorization_deadline = None;
        let now = Instant::now();
        let waiter = PendingSubscription::new(channel.clone(), member, &self.shared.metrics, now);
        if waiter.is_none_or(|waiter| self.pending.enqueue(waiter, now).is_some()) {
            return self.refuse_join(channel, &BusError::Unavailable("too many wait for it".to_owned()));
        }
        // A bus that only waits for all processes to re-register is up.
        if !self.shared.bus.is_available() || self.shared.bus.is_presence_ready() {
            self.session.push(frame::error_frame(Some(code::OVER_CAPACITY), frame::SUBSCRIPTION_QUEUED_MESSAGE).into());
        }
    }

    async fn join_pending(&mut self, waiter: PendingSubscription) {
        let subject = self.channel_key(&waiter.channel);
        match self.join_channel(&subject, Some(&waiter.member)).await {
            Ok(joined) => {
                self.shared.metrics.pending_subscription_outcomes.with_label(WaitResult::Entered).inc();
                self.complete_join(subject, Some(waiter.member), joined).await;
            }
            Err(BusError::Unavailable(_)) => {
                // The bus became unavailable again.
                self.leave_channel(waiter.channel.clone(), None).await;
                if let Some(waiter) = self.pending.enqueue(waiter, Instant::now()) {
                    self.refuse_pending(&waiter);
                }
            }
            Err(error) => {
                self.shared.metrics.pending_subscription_outcomes.with_label(WaitResult::Refused).inc();
                self.abort_join(waiter.channel, &error).await;
            }
        }
    }

    fn refuse_pending(&self, waiter: &PendingSubscription) {
        self.shared.metrics.pending_subscription_outcomes.with_label(WaitResult::Refused).inc();
        self.refuse_join(&waiter.channel, &BusError::Unavailable("it did not come back in time".to_owned()));
    }
}
