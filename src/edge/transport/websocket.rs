//! The transport `websocket`: one socket, one session.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::SinkExt;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite;
use tracing::Instrument;

use crate::edge::apps::client_address::Caller;
use crate::edge::close_reason::CloseReason;
use crate::edge::metrics::RefusalReason;
use crate::edge::pusher::connection::Connection;
use crate::edge::session::liveness::ACTIVITY_TIMEOUT;
use crate::edge::session::registry::SessionGuard;
use crate::edge::session::{OutgoingItem, Session};
use crate::edge::transport::context::TransportContext;
use crate::protocol::Transport;
use crate::protocol::frame::{self, code};

/// Per socket and held while it is idle, so small: with the library's default an idle socket takes 136 KiB.
pub const READ_BUFFER_BYTES: usize = 4096;

/// Frames that wait together are written together up to this size, so that a server that falls behind needs fewer system
/// calls to catch up. Held by sockets that had so much waiting, so small too.
pub const WRITE_BUFFER_BYTES: usize = 2048;

/// Largest message of a client: a client event at its limit, escaped, with room for the envelope.
pub const MESSAGE_BYTES_MAX: usize = 128 << 10;

/// Bounds the bytes of one batch from the session.
pub const SOCKET_BATCH_BYTES: usize = 16 << 10;

/// Bounds the write of one batch.
const FRAMES_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bounds the closing handshake, in each direction.
pub const CLOSE_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bounds the time that a socket is kept after the close frame for unreadable bytes: dropped at once with unread bytes,
/// the socket would be reset, and on some systems the close frame would be lost.
const UNREADABLE_LINGER_DELAY: Duration = Duration::from_secs(1);

/// Bytes of the reason in a close frame (RFC 6455, 5.5).
const CLOSE_REASON_BYTES_MAX: usize = 123;

/// WebSocket's own code for what breaks its protocol.
const PROTOCOL_ERROR_CODE: u16 = 1002;

/// WebSocket's own code for text that is not UTF-8.
const INVALID_TEXT_CODE: u16 = 1007;

/// WebSocket's own code for a message that is too large.
const MESSAGE_TOO_LARGE_CODE: u16 = 1009;

/// How a socket ended.
enum WebSocketEnd {
    /// The client closed the socket.
    Gone,
    /// The session was ended.
    Closed(CloseReason),
    /// The client sent bytes that cannot be read on.
    Unreadable(CloseReason),
}

/// Upgrades a request to a session: `GET /app/{key}`.
pub async fn upgrade_websocket(
    State(shared): State<Arc<TransportContext>>,
    Path(key): Path<String>,
    RawQuery(query): RawQuery,
    caller: Caller,
    upgrade: WebSocketUpgrade,
) -> Response {
    let place = shared.opener.open(&key, query.as_deref().unwrap_or_default(), &caller, Transport::Websocket);
    accept_upgrade(shared, upgrade, place)
}

/// Refuses every path that no other route has: a socket with Pusher's code, since after a mere status the client would
/// reconnect; other requests with 404.
pub async fn refuse_unknown_path(
    State(shared): State<Arc<TransportContext>>,
    caller: Caller,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else { return StatusCode::NOT_FOUND.into_response() };
    let closing = CloseReason::new(code::PATH_UNKNOWN, "no app has this path: connect to /app/KEY");
    shared.opener.count_refusal(&closing, &caller);
    accept_upgrade(shared, upgrade, Err(closing))
}

fn accept_upgrade(
    shared: Arc<TransportContext>,
    upgrade: WebSocketUpgrade,
    place: Result<SessionGuard, CloseReason>,
) -> Response {
    let upgrade = upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX);
    let tasks = shared.opener.session_tasks.clone();
    upgrade.on_upgrade(move |socket| {
        // Tracked, so that the process waits for sessions that are about to leave.
        tasks.track_future(async move {
            match place {
                Ok(place) => {
                    let span = place.span.clone();
                    serve_socket(socket, shared, place).instrument(span).await;
                }
                Err(closing) => refuse_socket(socket, &closing).await,
            }
        })
    })
}

async fn refuse_socket(mut socket: WebSocket, closing: &CloseReason) {
    let told = frame::error_frame(Some(closing.code), &closing.reason);
    let _ = timeout(CLOSE_HANDSHAKE_TIMEOUT, socket.send(Message::Text(told.into()))).await;
    complete_close(socket, Some(closing)).await;
}

async fn serve_socket(mut socket: WebSocket, shared: Arc<TransportContext>, place: SessionGuard) {
    let session = place.session.clone();
    let unreadable_frames = shared.hub.metrics.refusals.with_label(RefusalReason::Unreadable);
    let outlet = session.attach_receiver();
    let mut connection = Connection::open(shared.hub.clone(), session.clone()).await;
    // One timer for the whole life, not one that enters and leaves the runtime's wheel with every event.
    let look = sleep_until(Instant::now() + ACTIVITY_TIMEOUT);
    tokio::pin!(look);
    let end = loop {
        tokio::select! {
            outgoing = outlet.next(SOCKET_BATCH_BYTES) => match outgoing {
                OutgoingItem::Frames(frames) => {
                    if write(&mut socket, &session, frames).await.is_none() {
                        break WebSocketEnd::Gone;
                    }
                }
                OutgoingItem::Close(closing) => break WebSocketEnd::Closed(closing),
                OutgoingItem::Replaced => break WebSocketEnd::Gone,
            },
            incoming = socket.recv() => {
                let message = match incoming {
                    Some(Ok(message)) => message,
                    Some(Err(error)) => break unreadable_close_reason(error).map_or(WebSocketEnd::Gone, WebSocketEnd::Unreadable),
                    None => break WebSocketEnd::Gone,
                };
                session.note_activity();
                match message {
                    Message::Text(text) => connection.apply_message(&text).await,
                    Message::Binary(_) => connection.refuse_binary(),
                    Message::Ping(_) | Message::Pong(_) => {}
                    Message::Close(_) => break WebSocketEnd::Gone,
                }
            }
            () = connection.pending_due() => connection.retry_pending().await,
            () = look.as_mut() => {
                let again = connection.check_liveness().map_or_else(|| Instant::now() + ACTIVITY_TIMEOUT, Into::into);
                look.as_mut().reset(again);
            }
        }
    };
    let end = match end {
        WebSocketEnd::Closed(closing) if closing.drain => {
            receive_last_messages(&mut socket, &closing, &mut connection).await;
            WebSocketEnd::Gone
        }
        end => end,
    };
    connection.tear_down().await;
    drop(place);
    match end {
        WebSocketEnd::Gone => complete_close(socket, None).await,
        WebSocketEnd::Closed(closing) => complete_close(socket, Some(&closing)).await,
        WebSocketEnd::Unreadable(closing) => {
            unreadable_frames.inc();
            close_unreadable(socket, &closing).await;
        }
    }
}

/// Sends the close frame, and applies the messages that the client sent before it arrived.
async fn receive_last_messages(socket: &mut WebSocket, closing: &CloseReason, connection: &mut Connection) {
    if close(socket, closing).await.is_none() {
        return;
    }
    let heard = async {
        while let Some(Ok(message)) = socket.recv().await {
            if let Message::Text(text) = message {
                connection.apply_message(&text).await;
            }
        }
    };
    let _ = timeout(CLOSE_HANDSHAKE_TIMEOUT, heard).await;
}

/// The close reason for a client whose bytes cannot be read on: one of WebSocket's own codes, after which clients of
/// Pusher reconnect. `None` when the socket itself is gone.
pub fn unreadable_close_reason(error: axum::Error) -> Option<CloseReason> {
    use tungstenite::error::{Error, ProtocolError};
    match *error.into_inner().downcast::<Error>().ok()? {
        Error::Capacity(_) => {
            Some(CloseReason::new(MESSAGE_TOO_LARGE_CODE, format!("a message has at most {MESSAGE_BYTES_MAX} bytes")))
        }
        Error::Utf8(_) => Some(CloseReason::new(INVALID_TEXT_CODE, "a text message must be UTF-8")),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        Error::Protocol(_) => Some(CloseReason::new(PROTOCOL_ERROR_CODE, "what came is no frame of WebSocket")),
        _ => None,
    }
}

/// Writes frames; `None` when the socket is gone. Once the session has ended, a write that stands still is left behind.
pub async fn write(socket: &mut WebSocket, session: &Session, frames: Vec<Bytes>) -> Option<()> {
    let written = async {
        for text in frames.into_iter().filter_map(|frame| Utf8Bytes::try_from(frame).ok()) {
            socket.feed(Message::Text(text)).await?;
        }
        socket.flush().await
    };
    tokio::select! {
        biased;
        written = written => written.ok(),
        () = session.close_requested() => Some(()),
        () = sleep(FRAMES_WRITE_TIMEOUT) => None,
    }
}

/// Sends the close frame, if it is the server that ends, and reads on until the client's: a socket that is dropped with
/// unread bytes is reset, and the close frame may be lost with it. A client's own close frame is answered by reading.
pub async fn complete_close(mut socket: WebSocket, closing: Option<&CloseReason>) {
    if let Some(closing) = closing
        && close(&mut socket, closing).await.is_none()
    {
        return;
    }
    let answered = async { while let Some(Ok(_)) = socket.recv().await {} };
    let _ = timeout(CLOSE_HANDSHAKE_TIMEOUT, answered).await;
}

/// Sends the close frame to a client of whom nothing can be read any more.
pub async fn close_unreadable(mut socket: WebSocket, closing: &CloseReason) {
    if close(&mut socket, closing).await.is_some() {
        sleep(UNREADABLE_LINGER_DELAY).await;
    }
}

/// Sends the close frame; `None` when the socket is gone.
pub async fn close(socket: &mut WebSocket, closing: &CloseReason) -> Option<()> {
    let reason = &closing.reason[..closing.reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    let frame = CloseFrame { code: closing.code, reason: reason.into() };
    timeout(CLOSE_HANDSHAKE_TIMEOUT, socket.send(Message::Close(Some(frame)))).await.ok()?.ok()
}
