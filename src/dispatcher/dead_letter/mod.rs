//! Lost events: every event or record that is given up becomes a dead letter, or is counted as dropped.
//!
//! In: events and records with the reason of their loss. Out: letters in a second Kinesis stream, and for each shard the
//! letters that Kinesis has acknowledged. A record stays open in its shard's tracker until then, so a letter that waits is
//! part of the shard's bound, and a dispatcher that ends before gives the event up again after its restart.
//!
//! [`queue`] decides which letters are put when, and is pure; [`writer`] runs the one task that puts them; [`losses`] is
//! the part of one shard.

pub(super) mod losses;
mod queue;
pub(super) mod writer;

use std::sync::Arc;

use bytes::Bytes;

use super::endpoint::pool::FinishedAt;
use super::endpoint::{EndpointId, OutgoingEvent};
use super::events::TrackedEvent;
use super::reasons::DropReason;
use crate::protocol::AppId;
use crate::protocol::dead_letter::{DEAD_LETTER_VERSION, DeadLetter, LetterSource, RAW_BYTES_MAX, RawContent};

/// A lost event or record.
#[derive(Debug)]
pub struct Loss {
    /// The reason for which it is lost.
    pub reason: DropReason,
    /// The reason in more words.
    pub detail: Option<String>,
    /// Number of lost events: a foreign record may have several.
    pub events: usize,
    /// The event or record that is lost.
    pub content: LostContent,
}

/// The content of a loss.
#[derive(Debug)]
pub enum LostContent {
    /// An event that one endpoint did not get.
    Delivery {
        /// The endpoint that did not acknowledge it.
        endpoint: Arc<EndpointId>,
        /// The event, shared with other endpoints.
        outgoing: Arc<OutgoingEvent>,
        /// Attempts to post it.
        attempts: u32,
        /// The outcome of the last attempt.
        last_answer: Option<Arc<str>>,
    },
    /// An event of an app without a known endpoint.
    Event {
        /// The app that the registry lacks.
        app: AppId,
        /// The event as a webhook would carry it.
        outgoing: Arc<OutgoingEvent>,
    },
    /// A record that holds no event of this cluster.
    Record {
        /// Its first bytes, at most [`RAW_BYTES_MAX`].
        bytes: Bytes,
        /// Number of its bytes.
        total: usize,
    },
}

impl Loss {
    /// The loss of a finished delivery; `None` if it was delivered.
    #[must_use]
    pub fn of_delivery((endpoint, finished): FinishedAt) -> Option<Self> {
        let reason = finished.dropped?;
        let outgoing = finished.delivery.outgoing;
        let (attempts, last_answer) = (finished.attempts, finished.last_answer);
        let content = LostContent::Delivery { endpoint, outgoing, attempts, last_answer };
        Some(Self { reason, detail: None, events: 1, content })
    }

    /// The loss of an event whose app stayed unknown.
    #[must_use]
    pub fn of_unknown_app(event: TrackedEvent) -> Self {
        let app = event.app.clone();
        let content = LostContent::Event { app, outgoing: Arc::new(OutgoingEvent::of_event(event)) };
        Self { reason: DropReason::UnknownApp, detail: None, events: 1, content }
    }

    /// The loss of a record with so many events.
    #[must_use]
    pub fn of_record(reason: DropReason, detail: String, events: usize, data: &Bytes) -> Self {
        // A part that refers to the whole would keep the whole in memory.
        let bytes = if data.len() > RAW_BYTES_MAX {
            Bytes::copy_from_slice(data.get(..RAW_BYTES_MAX).unwrap_or(data))
        } else {
            data.clone()
        };
        let content = LostContent::Record { bytes, total: data.len() };
        Self { reason, detail: Some(detail), events, content }
    }

    /// The name of the loss in a log line.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.content {
            LostContent::Delivery { endpoint, outgoing, .. } => format!("{endpoint}: {}", outgoing.id),
            LostContent::Event { app, outgoing } => format!("{app}: {}", outgoing.id),
            LostContent::Record { .. } => self.detail.clone().unwrap_or_default(),
        }
    }

    /// The letter of the loss.
    fn write_letter(&self, cluster: &str, source: LetterSource, now_ms: u64) -> DeadLetter {
        let letter = DeadLetter {
            v: DEAD_LETTER_VERSION,
            reason: format!("{:?}", self.reason),
            detail: self.detail.clone(),
            cluster: cluster.to_owned(),
            app: None,
            endpoint: None,
            attempts: 0,
            last_answer: None,
            source,
            written_ms: now_ms,
            time_ms: None,
            event: None,
            raw: None,
        };
        let with_event = |outgoing: &OutgoingEvent, letter: DeadLetter| DeadLetter {
            time_ms: Some(outgoing.time_ms),
            event: Some(outgoing.json.clone()),
            ..letter
        };
        match &self.content {
            LostContent::Delivery { endpoint, outgoing, attempts, last_answer } => DeadLetter {
                app: Some(endpoint.app.clone()),
                endpoint: Some(endpoint.endpoint.clone()),
                attempts: *attempts,
                last_answer: last_answer.as_deref().map(str::to_owned),
                ..with_event(outgoing, letter)
            },
            LostContent::Event { app, outgoing } => {
                DeadLetter { app: Some(app.clone()), ..with_event(outgoing, letter) }
            }
            LostContent::Record { bytes, total } => {
                DeadLetter { raw: Some(RawContent::encode(bytes, *total)), ..letter }
            }
        }
    }
}
