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

use super::client::Caller;
use super::connection::Connection;
use super::liveness::ACTIVITY_TIMEOUT;
use super::session::{Closing, Outgoing, Session};
use super::sessions::Place;
use super::shared::Shared;
use crate::protocol::Transport;
use crate::protocol::frame::{self, code};

/// Per socket and held while it is idle, so small: with the library's default an idle socket takes 136 KiB.
pub const READ_BUFFER: usize = 4096;

/// Frames that wait together are written together up to this size, so that a server that falls behind needs fewer system
/// calls to catch up. Held by sockets that had so much waiting, so small too.
pub const WRITE_BUFFER: usize = 2048;

/// Largest message of a client: a client event at its limit, escaped, with room for the envelope.
pub const MAX_MESSAGE: usize = 128 << 10;

/// Taken from the session in one go.
pub const BATCH: usize = 16 << 10;

/// How long what was taken in one go may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the goodbye may take, each way.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a socket is kept whose client was told that it cannot be read: dropped at once, with what came unread, it
/// would be reset, and what was told be lost on some systems.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Bytes of the reason in a close frame (RFC 6455, 5.5).
const MAX_REASON: usize = 123;

/// WebSocket's own code for what breaks its protocol.
const PROTOCOL: u16 = 1002;

/// WebSocket's own code for text that is not UTF-8.
const NOT_TEXT: u16 = 1007;

/// WebSocket's own code for a message that is too large.
const TOO_LARGE: u16 = 1009;

/// How a socket ended.
enum End {
    /// The client went.
    Gone,
    /// The session was ended.
    Closed(Closing),
    /// What the client sent cannot be read on.
    Unreadable(Closing),
}

/// `GET /app/{key}`
pub async fn upgrade(
    State(shared): State<Arc<Shared>>,
    Path(key): Path<String>,
    RawQuery(query): RawQuery,
    caller: Caller,
    upgrade: WebSocketUpgrade,
) -> Response {
    let place = shared.open(&key, query.as_deref().unwrap_or_default(), &caller, Transport::Websocket);
    accept(shared, upgrade, place)
}

/// Every path that no other route has: a socket is told so with Pusher's code, since a status would tell a client nothing
/// and make it come back; other requests are answered 404.
pub async fn elsewhere(
    State(shared): State<Arc<Shared>>,
    caller: Caller,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else { return StatusCode::NOT_FOUND.into_response() };
    let closing = Closing::new(code::PATH_UNKNOWN, "no app has this path: connect to /app/KEY");
    shared.refused(&closing, &caller);
    accept(shared, upgrade, Err(closing))
}

fn accept(shared: Arc<Shared>, upgrade: WebSocketUpgrade, place: Result<Place, Closing>) -> Response {
    let upgrade = upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE);
    let tasks = shared.tasks.clone();
    upgrade.on_upgrade(move |socket| {
        // Tracked, so that the process waits for sessions that are about to leave.
        tasks.track_future(async move {
            match place {
                Ok(place) => {
                    let span = place.span.clone();
                    serve(socket, shared, place).instrument(span).await;
                }
                Err(closing) => refuse(socket, &closing).await,
            }
        })
    })
}

async fn refuse(mut socket: WebSocket, closing: &Closing) {
    let told = frame::error(Some(closing.code), &closing.reason);
    let _ = timeout(CLOSE_TIMEOUT, socket.send(Message::Text(told.into()))).await;
    goodbye(socket, Some(closing)).await;
}

async fn serve(mut socket: WebSocket, shared: Arc<Shared>, place: Place) {
    let session = place.session.clone();
    let unreadable_frames = shared.metrics.refused("unreadable");
    let outlet = session.attach();
    let mut connection = Connection::open(shared, session.clone()).await;
    // One timer for the whole life, not one that enters and leaves the runtime's wheel with every event.
    let look = sleep_until(Instant::now() + ACTIVITY_TIMEOUT);
    tokio::pin!(look);
    let end = loop {
        tokio::select! {
            outgoing = outlet.next(BATCH) => match outgoing {
                Outgoing::Frames(frames) => {
                    if write(&mut socket, &session, frames).await.is_none() {
                        break End::Gone;
                    }
                }
                Outgoing::Close(closing) => break End::Closed(closing),
                Outgoing::Replaced => break End::Gone,
            },
            incoming = socket.recv() => {
                let message = match incoming {
                    Some(Ok(message)) => message,
                    Some(Err(error)) => break unreadable(error).map_or(End::Gone, End::Unreadable),
                    None => break End::Gone,
                };
                session.heard();
                match message {
                    Message::Text(text) => connection.handle(&text).await,
                    Message::Binary(_) => connection.refuse_binary(),
                    Message::Ping(_) | Message::Pong(_) => {}
                    Message::Close(_) => break End::Gone,
                }
            }
            () = connection.waits() => connection.look_again().await,
            () = look.as_mut() => {
                let again = connection.check().map_or_else(|| Instant::now() + ACTIVITY_TIMEOUT, Into::into);
                look.as_mut().reset(again);
            }
        }
    };
    let end = match end {
        End::Closed(closing) if closing.drain => {
            last_words(&mut socket, &closing, &mut connection).await;
            End::Gone
        }
        end => end,
    };
    connection.leave().await;
    drop(place);
    match end {
        End::Gone => goodbye(socket, None).await,
        End::Closed(closing) => goodbye(socket, Some(&closing)).await,
        End::Unreadable(closing) => {
            unreadable_frames.inc();
            turn_away(socket, &closing).await;
        }
    }
}

/// Tells a client of the end and hears what it had sent before it knew.
async fn last_words(socket: &mut WebSocket, closing: &Closing, connection: &mut Connection) {
    if close(socket, closing).await.is_none() {
        return;
    }
    let heard = async {
        while let Some(Ok(message)) = socket.recv().await {
            if let Message::Text(text) = message {
                connection.handle(&text).await;
            }
        }
    };
    let _ = timeout(CLOSE_TIMEOUT, heard).await;
}

/// What a client is told whose bytes cannot be read on: one of WebSocket's own codes, after which clients of Pusher come
/// back. `None` when the socket itself is gone.
pub fn unreadable(error: axum::Error) -> Option<Closing> {
    use tungstenite::error::{Error, ProtocolError};
    match *error.into_inner().downcast::<Error>().ok()? {
        Error::Capacity(_) => Some(Closing::new(TOO_LARGE, format!("a message has at most {MAX_MESSAGE} bytes"))),
        Error::Utf8(_) => Some(Closing::new(NOT_TEXT, "a text message must be UTF-8")),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        Error::Protocol(_) => Some(Closing::new(PROTOCOL, "what came is no frame of WebSocket")),
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
        () = session.closed() => Some(()),
        () = sleep(WRITE_TIMEOUT) => None,
    }
}

/// Sends the close frame, if it is the server that ends, and reads on until the client's: a socket that is dropped with
/// unread bytes is reset, and the close frame may be lost with it. A client's own close frame is answered by reading.
pub async fn goodbye(mut socket: WebSocket, closing: Option<&Closing>) {
    if let Some(closing) = closing
        && close(&mut socket, closing).await.is_none()
    {
        return;
    }
    let answered = async { while let Some(Ok(_)) = socket.recv().await {} };
    let _ = timeout(CLOSE_TIMEOUT, answered).await;
}

/// Sends the close frame to a client of whom nothing can be read any more.
pub async fn turn_away(mut socket: WebSocket, closing: &Closing) {
    if close(&mut socket, closing).await.is_some() {
        sleep(LAST_WORDS).await;
    }
}

/// Sends the close frame; `None` when the socket is gone.
pub async fn close(socket: &mut WebSocket, closing: &Closing) -> Option<()> {
    let reason = &closing.reason[..closing.reason.floor_char_boundary(MAX_REASON)];
    let frame = CloseFrame { code: closing.code, reason: reason.into() };
    timeout(CLOSE_TIMEOUT, socket.send(Message::Close(Some(frame)))).await.ok()?.ok()
}
