//! The parts of an edge that its connections and its HTTP API share.
//!
//! In: frames to publish, joins and leaves. Out: frames in the queues of local subscribers and on the bus; the answer of
//! the bus, each within five seconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::bus::{
    BroadcastFrame, Bus, BusError, ChannelInfo, ChannelKey, CountUpdate, DecidedTransitions, JoinLimits, JoinOutcome,
    LastEvent, LastEventLookup,
};
use crate::edge::apps::RegistryWatcher;
use crate::edge::connection_log::ConnectionLog;
use crate::edge::hub::pending_counts::PendingCounts;
use crate::edge::hub::subscribers::{ChannelSubscribers, TERMINATED_MESSAGE};
use crate::edge::intake::app_rates::AppRates;
use crate::edge::metrics::EdgeMetrics;
use crate::edge::recorder::Recorder;
use crate::protocol::frame::{self, PresenceMember, code};
use crate::protocol::record::{EventOrder, LeaveCause};
use crate::protocol::{AppId, ChannelName, SocketId};

/// Bounds the wait for one answer of the bus: 5 s, so that no connection waits without end.
const BUS_CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds the wait for a report of the bus, which arrives with the answer to its call unless the subscription is broken.
const REPORT_TIMEOUT: Duration = Duration::from_millis(500);

/// The parts of an edge that connections and the HTTP API use.
pub struct Hub {
    /// The app registry, as it is now.
    pub apps: Arc<RegistryWatcher>,
    /// The subscribers of this process.
    pub subscribers: ChannelSubscribers,
    /// The channels whose count is published later.
    pub pending_counts: PendingCounts,
    /// The bus to the other edges.
    pub bus: Arc<dyn Bus>,
    /// The recorder that writes the stream.
    pub recorder: Recorder,
    /// The requests of the HTTP API of each app.
    pub api_rates: AppRates,
    /// The metrics of this edge.
    pub metrics: Arc<EdgeMetrics>,
    /// The log of connects, refusals and closes, for readers that follow it.
    pub log: Arc<ConnectionLog>,
    /// One task per closed connection that still counts as its user's.
    pub offline_grace_tasks: TaskTracker,
}

impl Hub {
    /// Sends a frame to everyone in a channel, here and elsewhere. While the bus is unavailable it reaches this process
    /// only: no sender repeats a client event.
    pub async fn publish_frame(&self, subject: ChannelKey, frame: String, except: Option<SocketId>) {
        let sent = self.send(BroadcastFrame { except, ..BroadcastFrame::new(subject, frame) }).await;
        if let Err(error) = sent {
            tracing::debug!(%error, "a frame reached this process only");
        }
    }

    /// Sends frames to everyone in their channels, here and elsewhere, in their order.
    ///
    /// # Errors
    /// The bus did not take them; they are delivered to the subscribers of this process.
    pub async fn publish_all(&self, messages: Vec<BroadcastFrame>) -> Result<(), BusError> {
        for message in &messages {
            self.subscribers.deliver(message);
        }
        self.with_timeout(self.bus.publish_frames(messages)).await
    }

    /// Closes the connections of all subscribers of a channel, here and elsewhere.
    ///
    /// # Errors
    /// The bus did not take the termination; connections of other processes are closed once it answers.
    pub async fn terminate_subscribers(&self, subject: ChannelKey) -> Result<(), BusError> {
        let frame = frame::error_frame(Some(code::UNAUTHORIZED), TERMINATED_MESSAGE);
        self.send(BroadcastFrame { ends: true, ..BroadcastFrame::new(subject, frame) }).await
    }

    async fn send(&self, message: BroadcastFrame) -> Result<(), BusError> {
        self.subscribers.deliver(&message);
        self.with_timeout(self.bus.publish_frame(message)).await
    }

    /// Joins a channel on the bus.
    pub async fn join_channel(
        &self,
        subject: &ChannelKey,
        socket: &SocketId,
        member: Option<&PresenceMember>,
        limits: JoinLimits,
    ) -> Result<JoinOutcome, BusError> {
        self.with_timeout(self.bus.join_bounded_channel(subject, socket, member, limits)).await
    }

    /// Waits until a membership change has been reported to the channel's subscribers of this process: frames that the
    /// new member publishes come after its `member_added`.
    pub async fn wait_reported(&self, subject: &ChannelKey, order: EventOrder) {
        if timeout(REPORT_TIMEOUT, self.subscribers.wait_reported(subject, order)).await.is_err() {
            tracing::debug!(channel = %subject.channel, "membership change not reported in time");
        }
    }

    /// Leaves a channel on the bus.
    pub async fn leave_channel(
        &self,
        subject: &ChannelKey,
        socket: &SocketId,
        cause: Option<LeaveCause>,
    ) -> Result<DecidedTransitions, BusError> {
        self.with_timeout(self.bus.leave_channel(subject, socket, cause)).await
    }

    /// Stores the last event of a cache channel.
    pub async fn store_last_event(
        &self,
        subject: &ChannelKey,
        last: &LastEvent,
        ttl: Duration,
    ) -> Result<(), BusError> {
        self.with_timeout(self.bus.store_last_event(subject, last, ttl)).await
    }

    /// Looks up the last event of a cache channel.
    pub async fn last_event(&self, subject: &ChannelKey) -> Result<LastEventLookup, BusError> {
        self.with_timeout(self.bus.look_up_last_event(subject)).await
    }

    /// Claims the next update of a channel's subscription count.
    pub async fn subscription_count(&self, subject: &ChannelKey) -> Result<CountUpdate, BusError> {
        self.with_timeout(self.bus.claim_count_update(subject)).await
    }

    /// The connections and users of a channel.
    pub async fn channel_info(&self, subject: &ChannelKey) -> Result<ChannelInfo, BusError> {
        self.with_timeout(self.bus.inspect_channel(subject)).await
    }

    /// Which of these channels have a connection in them.
    pub async fn are_occupied(&self, subjects: &[ChannelKey]) -> Result<Vec<bool>, BusError> {
        self.with_timeout(self.bus.are_occupied(subjects)).await
    }

    /// The app's channels with this prefix.
    pub async fn list_channels(&self, app: &AppId, prefix: &str) -> Result<Vec<(ChannelName, u64)>, BusError> {
        self.with_timeout(self.bus.list_channels(app, prefix)).await
    }

    /// Bounds a call to the bus, and counts it if the bus is unavailable.
    async fn with_timeout<T>(&self, call: impl Future<Output = Result<T, BusError>>) -> Result<T, BusError> {
        let began = Instant::now();
        let answer = timeout(BUS_CALL_TIMEOUT, call).await;
        self.metrics.bus_call_duration_seconds.observe(began.elapsed());
        let answer =
            answer.unwrap_or_else(|_| Err(BusError::Unavailable(format!("no answer in {BUS_CALL_TIMEOUT:?}"))));
        if matches!(answer, Err(BusError::Unavailable(_))) {
            self.metrics.bus_errors.inc();
        }
        answer
    }

    /// Updates the metrics that are sampled.
    pub fn sample_metrics(&self) {
        self.metrics.recorder_queued_events.set(i64::try_from(self.recorder.queued_count()).unwrap_or(i64::MAX));
        let unacknowledged = i64::try_from(self.bus.unacknowledged_count()).unwrap_or(i64::MAX);
        self.metrics.bus_unacknowledged_changes.set(unacknowledged);
        self.metrics.bus_up.set(i64::from(self.bus.is_available()));
        let raise = |counter: &Counter, total: u64| counter.inc_by(total.saturating_sub(counter.get()));
        raise(&self.metrics.bus_frames_lost, self.bus.lost_frames());
        raise(&self.metrics.bus_leases_lost, self.bus.lost_leases());
    }
}
