//! Subscriptions that wait until the bus can say who is in a presence channel.

use std::time::Instant;

use super::super::waiting::{Turn, Waiter};
use super::Connection;
use crate::bus::BusError;
use crate::protocol::ChannelName;
use crate::protocol::frame::{self, Member};

impl Connection {
    /// Resolves when it is time for [`Self::look_again`]: never while nothing waits.
    pub async fn waits(&self) {
        match self.waiting.due() {
            Some(due) => tokio::time::sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Lets one of the subscriptions in that waited for the bus, if it is back.
    pub async fn look_again(&mut self) {
        match self.waiting.next(self.shared.bus.knows(), Instant::now()) {
            Some((waiter, Turn::Enter)) => self.enter_late(waiter).await,
            Some((waiter, Turn::Refuse)) => self.refuse_waiter(&waiter),
            None => {}
        }
    }

    /// Nobody can say who is in a presence channel: it is entered once the bus is back.
    pub(super) fn wait(&mut self, channel: &ChannelName, member: Member) {
        // It has shown a signature.
        self.deadline = None;
        let now = Instant::now();
        let waiter = Waiter::new(channel.clone(), member, &self.shared.metrics, now);
        if waiter.is_none_or(|waiter| self.waiting.wait(waiter, now).is_some()) {
            return self.refuse_join(channel, &BusError::Unavailable("too many wait for it".to_owned()));
        }
        // One that only waits until all have said whom they have is back.
        if !self.shared.bus.up() || self.shared.bus.knows() {
            self.session.push(frame::error(None, frame::BUS_WAITS).into());
        }
    }

    async fn enter_late(&mut self, waiter: Waiter) {
        let subject = self.subject(&waiter.channel);
        match self.join(&subject, Some(&waiter.member)).await {
            Ok(joined) => {
                self.shared.metrics.waited("entered").inc();
                self.enter(subject, Some(waiter.member), joined).await;
            }
            Err(BusError::Unavailable(_)) => {
                // It went away again.
                self.exit(waiter.channel.clone(), Some(&waiter.member), None).await;
                if let Some(waiter) = self.waiting.wait(waiter, Instant::now()) {
                    self.refuse_waiter(&waiter);
                }
            }
            Err(error) => {
                self.shared.metrics.waited("refused").inc();
                self.turn_away(waiter.channel, Some(&waiter.member), &error).await;
            }
        }
    }

    fn refuse_waiter(&self, waiter: &Waiter) {
        self.shared.metrics.waited("refused").inc();
        self.refuse_join(&waiter.channel, &BusError::Unavailable("it did not come back in time".to_owned()));
    }
}
