//! What every connection of the process shares.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::admission::{admit, stays, word};
use super::apps::Apps;
use super::channels::{Channels, TERMINATED};
use super::client::Caller;
use super::counts::Counts;
use super::drain::Draining;
use super::metrics::Metrics;
use super::recorder::Recorder;
use super::session::{Closing, Session};
use super::sessions::{Place, Sessions};
use crate::bus::{Bus, BusError, Count, Joined, Last, Message, Recalled, Seen, Subject, Transition};
use crate::protocol::frame::{self, Member, code};
use crate::protocol::record::Cause;
use crate::protocol::{AppId, ChannelName, SocketId, Transport};

/// Longest that the bus may take for one answer.
const BUS_TIMEOUT: Duration = Duration::from_secs(5);

/// The parts of an edge that connections and the HTTP API use.
pub struct Shared {
    /// The registry.
    pub apps: Arc<Apps>,
    /// Local subscribers.
    pub channels: Channels,
    /// Which channels' counts are told later.
    pub counts: Counts,
    /// Open sessions.
    pub sessions: Arc<Sessions>,
    /// The other edges.
    pub bus: Arc<dyn Bus>,
    /// The way into the stream.
    pub recorder: Recorder,
    /// What Prometheus may ask.
    pub metrics: Arc<Metrics>,
    /// Set when the process goes away: nobody new is taken in.
    pub draining: Draining,
    /// One task per session.
    pub tasks: TaskTracker,
    /// One task per connection that went and still counts as its user's.
    pub stays: TaskTracker,
}

impl Shared {
    /// Opens a session for whoever asks.
    ///
    /// # Errors
    /// What the client is told: it may have none, or the server is full, or goes away.
    pub fn open(&self, key: &str, query: &str, caller: &Caller, transport: Transport) -> Result<Place, Closing> {
        let origin = caller.origin.as_deref();
        let opened = admit(&self.apps.current(), key, query, origin).and_then(|app| self.admit(app, transport));
        match opened {
            Ok(mut place) => {
                let Session { socket, app, .. } = &*place.session;
                place.span = tracing::debug_span!("session", %socket, %app, %transport, client = %caller.address);
                tracing::debug!(parent: &place.span, "a session was opened");
                Ok(place)
            }
            Err(closing) => {
                self.refused(&closing, caller);
                Err(closing)
            }
        }
    }

    /// Counts a client that is told at once that it may not stay.
    pub fn refused(&self, closing: &Closing, caller: &Caller) {
        let (code, reason) = (closing.code, &closing.reason);
        tracing::debug!(client = %caller.address, origin = ?caller.origin, code, reason, "a client was refused");
        self.metrics.refused(word(closing)).inc();
    }

    fn admit(&self, app: AppId, transport: Transport) -> Result<Place, Closing> {
        let full = || Closing::new(code::OVER_CAPACITY, "the server is full, come back later");
        let place = self.sessions.open(socket_id().ok_or_else(full)?, app, transport).ok_or_else(full)?;
        // Asked only now: a session that was opened before the drain began, or before its app was changed, is among
        // those that are ended.
        if self.draining.is_cancelled() {
            return Err(self.draining.closing());
        }
        stays(&self.apps.current(), &place.session.app)?;
        Ok(place)
    }

    /// Sends a frame to everyone in a channel, here and elsewhere.
    pub async fn publish(&self, subject: Subject, frame: String, except: Option<SocketId>) {
        self.send(Message { subject, frame: Bytes::from(frame), except, ends: false }).await;
    }

    /// Sends frames to everyone in their channels, here and elsewhere, in their order.
    pub async fn publish_all(&self, messages: Vec<Message>) {
        for message in &messages {
            self.channels.deliver(message);
        }
        if let Err(error) = self.ask(self.bus.publish_all(messages)).await {
            tracing::debug!(%error, "frames reached this process only");
        }
    }

    /// Ends everyone in a channel, here and elsewhere.
    pub async fn terminate(&self, subject: Subject) {
        let frame = Bytes::from(frame::error(Some(code::UNAUTHORIZED), TERMINATED));
        self.send(Message { subject, frame, except: None, ends: true }).await;
    }

    async fn send(&self, message: Message) {
        self.channels.deliver(&message);
        if let Err(error) = self.ask(self.bus.publish(message)).await {
            tracing::debug!(%error, "a frame reached this process only");
        }
    }

    /// Enters a channel on the bus.
    pub async fn join(
        &self,
        subject: &Subject,
        socket: &SocketId,
        member: Option<&Member>,
    ) -> Result<Joined, BusError> {
        self.ask(self.bus.join(subject, socket, member)).await
    }

    /// Leaves a channel on the bus.
    pub async fn leave(
        &self,
        subject: &Subject,
        socket: &SocketId,
        cause: Option<Cause>,
    ) -> Result<Vec<Transition>, BusError> {
        self.ask(self.bus.leave(subject, socket, cause)).await
    }

    /// Keeps a channel's last event.
    pub async fn keep(&self, subject: &Subject, last: &Last) -> Result<(), BusError> {
        self.ask(self.bus.keep(subject, last)).await
    }

    /// A channel's last event.
    pub async fn recall(&self, subject: &Subject) -> Result<Recalled, BusError> {
        self.ask(self.bus.recall(subject)).await
    }

    /// Whether to tell how many connections are in a channel.
    pub async fn count(&self, subject: &Subject) -> Result<Count, BusError> {
        self.ask(self.bus.count(subject)).await
    }

    /// What is known of a channel.
    pub async fn look(&self, subject: &Subject) -> Result<Seen, BusError> {
        self.ask(self.bus.look(subject)).await
    }

    /// Which of these channels have a connection in them.
    pub async fn occupied(&self, subjects: &[Subject]) -> Result<Vec<bool>, BusError> {
        self.ask(self.bus.occupied(subjects)).await
    }

    /// The app's channels with this prefix.
    pub async fn list(&self, app: &AppId, prefix: &str) -> Result<Vec<(ChannelName, u64)>, BusError> {
        self.ask(self.bus.list(app, prefix)).await
    }

    /// No connection waits for the bus without end.
    async fn ask<T>(&self, call: impl Future<Output = Result<T, BusError>>) -> Result<T, BusError> {
        let answer = timeout(BUS_TIMEOUT, call).await;
        let answer = answer.unwrap_or_else(|_| Err(BusError::Unavailable(format!("no answer in {BUS_TIMEOUT:?}"))));
        if matches!(answer, Err(BusError::Unavailable(_))) {
            self.metrics.bus_errors.inc();
        }
        answer
    }

    /// Takes down what can only be asked for.
    pub fn observe(&self) {
        self.metrics.recorder_queued.set(i64::try_from(self.recorder.queued()).unwrap_or(i64::MAX));
        self.metrics.bus_up.set(i64::from(self.bus.up()));
        let lost = &self.metrics.bus_lost;
        lost.inc_by(self.bus.lost().saturating_sub(lost.get()));
    }
}

/// A new public id. `None` when the operating system gives no random numbers: a guessable id would be worse than none.
fn socket_id() -> Option<SocketId> {
    let number = || OsRng.try_next_u64().ok();
    Some(SocketId::from_random(number()?, number()?))
}
