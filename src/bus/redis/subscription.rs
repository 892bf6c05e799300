//! The subscription to the frames of all processes.
//!
//! In: messages of Redis publish/subscribe. Out: frames for this process, and whether its subscription works. The client
//! acknowledges SUBSCRIBE before Redis does, and does not notice a connection that went silent; so the process publishes
//! beats to itself: while they arrive, Redis has the subscription, and no frame is missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::clients::{Client, SubscriberClient};
use fred::interfaces::{EventInterface, PubsubInterface};
use fred::types::Message;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::super::{BroadcastFrame, BusError};
use super::beat_watch::{BeatStep, BeatWatch};
use super::client::{explain_missing_rights, reconnect, to_bus_error};
use super::keys::KeySpace;
use super::members::MembershipCore;
use super::terminations::Terminations;
use super::wire::{self, DecodedFrame};

/// Time between two looks at the beats, and between two beats until the first one arrives.
const TICK_INTERVAL: Duration = Duration::from_millis(200);
/// Time before a gap in the subscription from which terminations are read: those that were on their way.
const GAP_GRACE: Duration = Duration::from_secs(2);

/// State of the subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SubscriptionState {
    /// No beat of the process arrives.
    Pending,
    /// Beats of the process arrive.
    Confirmed,
    /// Redis does not allow it, for this reason.
    Refused(String),
}

/// The subscription of one process.
pub(super) struct FrameSubscription {
    pub subscriber: SubscriberClient,
    pub publisher: Client,
    pub names: KeySpace,
    pub process: String,
    pub frames: mpsc::Sender<BroadcastFrame>,
    /// Number of frames that this process did not take.
    pub lost_frames: Arc<AtomicU64>,
    pub state: watch::Sender<SubscriptionState>,
    pub core: Arc<MembershipCore>,
    pub terminations: Arc<Terminations>,
}

impl FrameSubscription {
    /// Subscribes, then receives frames until shutdown. The subscription outlives a connection; frames that are published
    /// in between are lost to this process, as they are to a client whose own connection breaks.
    ///
    /// `messages` is taken from the subscriber before it connects, so that none is missed.
    pub async fn receive_frames(self, mut messages: Receiver<Message>, shutdown: CancellationToken) {
        let mut ticks = interval(TICK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reconnections = self.subscriber.reconnect_rx();
        let (beat_ended, mut beat_ends) = mpsc::channel(1);
        let (mut beats, mut is_beat_underway) = (BeatWatch::new(Instant::now()), false);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                message = messages.recv() => match message {
                    Ok(message) if *message.channel == self.names.confirmation_channel(&self.process) => {
                        self.confirm(beats.note_heard(Instant::now()));
                    }
                    Ok(message) => self.apply_message(message),
                    Err(RecvError::Lagged(missed)) => {
                        self.lost_frames.fetch_add(missed, Ordering::Relaxed);
                    }
                    Err(RecvError::Closed) => return,
                },
                Ok(_) = reconnections.recv() => beats.note_reconnected(),
                Some(sent) = beat_ends.recv() => {
                    is_beat_underway = false;
                    if let Err(error) = sent {
                        self.note_failed_beat(&error);
                    }
                }
                _ = ticks.tick() => match beats.next_step(Instant::now()) {
                    BeatStep::Wait => {}
                    // One that is still underway counts as missed.
                    BeatStep::Beat | BeatStep::Subscribe if is_beat_underway => {}
                    step @ (BeatStep::Beat | BeatStep::Subscribe) => {
                        is_beat_underway = true;
                        self.spawn_beat(step == BeatStep::Subscribe, beat_ended.clone());
                    }
                    BeatStep::Reconnect => self.reconnect_silent(),
                }
            }
        }
    }

    fn spawn_beat(&self, is_renewed: bool, ended: mpsc::Sender<Result<(), fred::error::Error>>) {
        let confirmation = self.names.confirmation_channel(&self.process);
        let channels = vec![self.names.frames_channel(), confirmation.clone()];
        let (subscriber, publisher) = (self.subscriber.clone(), self.publisher.clone());
        tokio::spawn(async move {
            let beat = async {
                if is_renewed {
                    subscriber.subscribe(channels).await?;
                }
                publisher.publish::<(), _, _>(confirmation, "").await
            };
            // Fails on shutdown.
            let _ = ended.send(beat.await).await;
        });
    }

    /// A beat arrived; `gap` is the time in which frames may have been missed before it.
    fn confirm(&self, gap: Option<Duration>) {
        let former = self.state.send_replace(SubscriptionState::Confirmed);
        self.core.set_subscribed(true);
        if former == SubscriptionState::Confirmed && gap.is_none() {
            return;
        }
        // Changes that were deferred meanwhile.
        self.core.wake.notify_one();
        let Some(gap) = gap else { return };
        if former != SubscriptionState::Confirmed {
            tracing::info!(gap_ms = gap.as_millis(), "bus subscription works again");
        }
        let (terminations, frames, process) = (self.terminations.clone(), self.frames.clone(), self.process.clone());
        tokio::spawn(async move {
            match terminations.since(gap + GAP_GRACE).await {
                Ok(missed) => {
                    for (age, message) in missed {
                        if let DecodedFrame::Frame(frame) = wire::decode(&message, &process) {
                            let issued_at = Instant::now().checked_sub(age);
                            // Fails on shutdown.
                            let _ = frames.send(BroadcastFrame { issued_at, ..frame }).await;
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "terminations of a gap in the bus subscription not read"),
            }
        });
    }

    /// No beat arrives: neither connection is believed any more.
    fn reconnect_silent(&self) {
        self.core.set_subscribed(false);
        let former = self.state.send_if_modified(|state| {
            let was_confirmed = *state == SubscriptionState::Confirmed;
            if was_confirmed {
                *state = SubscriptionState::Pending;
            }
            was_confirmed
        });
        if former {
            tracing::warn!(
                "bus subscription silent: no beat of this process returned for 4 s, delivering locally and reconnecting"
            );
        }
        reconnect(&self.publisher, &self.subscriber);
    }

    fn note_failed_beat(&self, error: &fred::error::Error) {
        let Some(reason) = explain_missing_rights(&self.publisher, error) else { return };
        self.core.set_subscribed(false);
        let refused = SubscriptionState::Refused(reason);
        self.state.send_if_modified(|state| {
            let is_new = *state != refused;
            if is_new {
                tracing::error!(reason = %to_bus_error(error.clone()), "bus subscription refused");
                *state = refused;
            }
            is_new
        });
    }

    fn apply_message(&self, message: Message) {
        let Some(bytes): Option<Bytes> = message.value.into_bytes() else { return };
        match wire::decode(&bytes, &self.process) {
            DecodedFrame::FromSelf => {}
            DecodedFrame::Frame(message) => {
                if self.frames.try_send(message).is_err() {
                    self.lost_frames.fetch_add(1, Ordering::Relaxed);
                }
            }
            DecodedFrame::Malformed => {
                self.lost_frames.fetch_add(1, Ordering::Relaxed);
                tracing::warn!("malformed frame on the bus: is another release or program using it?");
            }
        }
    }
}

/// Publishes a message as a beat does, so that missing rights are found before anything starts.
pub(super) async fn check_publish_right(client: &Client, names: &KeySpace) -> Result<(), BusError> {
    let published = client.publish::<(), _, _>(names.confirmation_channel("check"), "").await;
    published.map_err(|error| match explain_missing_rights(client, &error) {
        Some(reason) => BusError::Unusable(reason),
        None => to_bus_error(error),
    })
}
