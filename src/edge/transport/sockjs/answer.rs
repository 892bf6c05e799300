//! The answer to one receive: a head, and then frames as its transport wraps them.

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use tokio::time::timeout;

use crate::edge::session::OutgoingItem;
use crate::edge::transport::session_ownership::session_gone;
use crate::edge::transport::socket::SOCKJS_HEARTBEAT_INTERVAL;
use crate::edge::transport::sockjs::session::{ReceiveOutcome, SockjsReceiver};
use crate::protocol::fallback::utf16_units;
use crate::protocol::sockjs::{self, FrameWrapping, HEARTBEAT_FRAME, OPEN_FRAME, RESPONSE_MAX_UNITS};

/// Bytes that are taken from the session for one frame.
const SOCKJS_BATCH_BYTES: usize = 32 << 10;

/// The close frame for a second receiver.
const SECOND_RECEIVER_CLOSE: (u16, &str) = (2010, "Another connection still open");

/// The answer to one receive.
pub struct ReceiveAnswer {
    /// The receiver; `None` once the response is over.
    receive: Option<ReceiveOutcome>,
    /// The head, written first and not counted.
    head: Option<String>,
    wrapping: FrameWrapping,
    /// Units that may still be written; the frame that reaches zero is the last one.
    left: usize,
}

impl ReceiveAnswer {
    /// Creates a response that begins with `head`; a poll has one frame.
    pub fn new(receive: ReceiveOutcome, head: Option<String>, wrapping: FrameWrapping, poll: bool) -> Self {
        let left = if poll { 1 } else { RESPONSE_MAX_UNITS };
        Self { receive: Some(receive), head, wrapping, left }
    }

    /// Returns the response as a body of unknown length.
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
            ReceiveOutcome::Busy => (sockjs::encode_close(SECOND_RECEIVER_CLOSE.0, SECOND_RECEIVER_CLOSE.1), true),
            ReceiveOutcome::Gone => {
                let closing = session_gone();
                (sockjs::encode_close(closing.code, &closing.reason), true)
            }
            ReceiveOutcome::Receiver(receiver) => next_frame(receiver).await,
        };
        let written = self.wrapping.wrap(&frame);
        self.left = self.left.saturating_sub(utf16_units(&written));
        if (last || self.left == 0)
            && let Some(ReceiveOutcome::Receiver(mut receiver)) = self.receive.take()
        {
            receiver.finish();
        }
        Some(written)
    }
}

/// Returns the next frame, and whether it is the last one.
async fn next_frame(receiver: &mut SockjsReceiver) -> (String, bool) {
    if std::mem::take(&mut receiver.new) {
        return (OPEN_FRAME.to_owned(), false);
    }
    match timeout(SOCKJS_HEARTBEAT_INTERVAL, receiver.next(SOCKJS_BATCH_BYTES)).await {
        Ok(OutgoingItem::Frames(frames)) => {
            (sockjs::encode_messages(frames.iter().filter_map(|frame| std::str::from_utf8(frame).ok())), false)
        }
        Ok(OutgoingItem::Close(closing)) => (sockjs::encode_close(closing.code, &closing.reason), true),
        // A session has one receiver, so no takeover happens here.
        Ok(OutgoingItem::Replaced) => (sockjs::encode_close(SECOND_RECEIVER_CLOSE.0, SECOND_RECEIVER_CLOSE.1), true),
        Err(_) => (HEARTBEAT_FRAME.to_owned(), false),
    }
}
