//! What one receive is answered: a head, and then frames as its transport wraps them.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use tokio::time::timeout;

use super::super::peer::gone;
use super::super::session::Outgoing;
use super::session::{Receive, Receiver};
use crate::protocol::fallback::utf16_units;
use crate::protocol::sockjs::{self, HEARTBEAT, OPEN, RESPONSE_LIMIT_UNITS, Wrapping};

/// Silence after which an open answer carries a heartbeat, as the protocol has it.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(25);

/// Taken from the session for one frame.
const BATCH: usize = 32 << 10;

/// What a second receiver is told.
const ANOTHER: (u16, &str) = (2010, "Another connection still open");

/// One answer.
pub struct Answer {
    /// `None` once it is over.
    receive: Option<Receive>,
    /// Written first, and not counted.
    head: Option<String>,
    wrapping: Wrapping,
    /// Units that may be written; the frame that reaches this is the last one.
    left: usize,
}

impl Answer {
    /// An answer that begins with `head`; a poll has one frame.
    pub fn new(receive: Receive, head: Option<String>, wrapping: Wrapping, poll: bool) -> Self {
        let left = if poll { 1 } else { RESPONSE_LIMIT_UNITS };
        Self { receive: Some(receive), head, wrapping, left }
    }

    /// The answer as a body, whose length nobody knows yet.
    pub fn into_body(self) -> Body {
        Body::from_stream(stream::unfold(self, |mut answer| async {
            let written = answer.next().await?;
            Some((Ok::<_, Infallible>(Bytes::from(written)), answer))
        }))
    }

    async fn next(&mut self) -> Option<String> {
        if let Some(head) = self.head.take() {
            return Some(head);
        }
        let (frame, last) = match self.receive.as_mut()? {
            Receive::Busy => (sockjs::close(ANOTHER.0, ANOTHER.1), true),
            Receive::Gone => {
                let closing = gone();
                (sockjs::close(closing.code, &closing.reason), true)
            }
            Receive::Receiver(receiver) => frame(receiver).await,
        };
        let written = self.wrapping.wrap(&frame);
        self.left = self.left.saturating_sub(utf16_units(&written));
        if (last || self.left == 0)
            && let Some(Receive::Receiver(mut receiver)) = self.receive.take()
        {
            receiver.finish();
        }
        Some(written)
    }
}

/// The next frame, and whether nothing comes after it.
async fn frame(receiver: &mut Receiver) -> (String, bool) {
    if std::mem::take(&mut receiver.new) {
        return (OPEN.to_owned(), false);
    }
    match timeout(HEARTBEAT_EVERY, receiver.next(BATCH)).await {
        Ok(Outgoing::Frames(frames)) => {
            (sockjs::messages(frames.iter().filter_map(|frame| std::str::from_utf8(frame).ok())), false)
        }
        Ok(Outgoing::Close(closing)) => (sockjs::close(closing.code, &closing.reason), true),
        // A session has one receiver, so none takes over.
        Ok(Outgoing::Replaced) => (sockjs::close(ANOTHER.0, ANOTHER.1), true),
        Err(_) => (HEARTBEAT.to_owned(), false),
    }
}
