//! The subscription to the frames of other processes.
//!
//! In: messages of Redis publish/subscribe. Out: frames for this process, and whether its subscription is confirmed. The
//! client acknowledges SUBSCRIBE before Redis does, so the process publishes a message to itself: once that message has
//! arrived, Redis has the subscription, and no later frame is missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::{Client, SubscriberClient};
use fred::interfaces::PubsubInterface;
use fred::types::Message;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::super::{BroadcastFrame, BusError};
use super::client::to_bus_error;
use super::keys::KeySpace;
use super::wire::{self, DecodedFrame};

/// Time between two attempts to confirm the subscription.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(200);

/// The subscription of one process.
pub(super) struct FrameSubscription {
    pub subscriber: SubscriberClient,
    pub publisher: Client,
    pub names: KeySpace,
    pub process: String,
    pub frames: mpsc::Sender<BroadcastFrame>,
    /// Number of frames that this process did not take.
    pub lost_frames: Arc<AtomicU64>,
    /// Set once Redis has the subscription.
    pub confirmed: watch::Sender<bool>,
}

impl FrameSubscription {
    /// Subscribes, then receives frames until shutdown. The subscription outlives a connection; frames that are published
    /// in between are lost to this process, as they are to a client whose own connection breaks.
    ///
    /// `messages` is taken from the subscriber before it connects, so that none is missed.
    pub async fn receive_frames(self, mut messages: Receiver<Message>, shutdown: CancellationToken) {
        let mut attempts = interval(CONFIRM_INTERVAL);
        attempts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reported_failure = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                message = messages.recv() => match message {
                    Ok(message) => self.apply_message(message),
                    Err(RecvError::Lagged(missed)) => {
                        self.lost_frames.fetch_add(missed, Ordering::Relaxed);
                    }
                    Err(RecvError::Closed) => return,
                },
                _ = attempts.tick(), if !*self.confirmed.borrow() => {
                    if let Err(error) = self.request_confirmation().await && !reported_failure {
                        tracing::warn!(%error, "bus subscription failed: retrying");
                        reported_failure = true;
                    }
                }
            }
        }
    }

    async fn request_confirmation(&self) -> Result<(), BusError> {
        let confirmation = self.names.confirmation_channel(&self.process);
        let channels = vec![self.names.frames_channel(), confirmation.clone()];
        self.subscriber.subscribe(channels).await.map_err(to_bus_error)?;
        self.publisher.publish::<(), _, _>(confirmation, "").await.map_err(to_bus_error)
    }

    fn apply_message(&self, message: Message) {
        if *message.channel == self.names.confirmation_channel(&self.process) {
            self.confirmed.send_replace(true);
            return;
        }
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
