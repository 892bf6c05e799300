//! A socket on which one session lives: a WebSocket of pusher-js, or of a `SockJS` client.
//!
//! In: an upgraded WebSocket, the framing of its messages, and an open session or the reason to refuse one. Out: the
//! session's frames on the socket and the client's messages in the connection, to the end of either. It must not know
//! paths, nor how a session is opened.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::SinkExt;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite;
use tracing::Instrument;

use crate::edge::close_reason::CloseReason;
use crate::edge::intake::byte_budget::InputBudgetExceeded;
use crate::edge::intake::connection_input::ConnectionInput;
use crate::edge::metrics::{EdgeMetrics, RefusalReason};
use crate::edge::pusher::connection::Connection;
use crate::edge::session::registry::SessionGuard;
use crate::edge::session::socket_output::{SocketFraming, SocketOutput};
use crate::edge::session::{OutgoingItem, Session};
use crate::edge::transport::context::TransportContext;
use crate::edge::transport::session_timers::SessionTimers;
use crate::protocol::frame::{self, code};
use crate::protocol::sockjs::{self, HEARTBEAT_FRAME};

/// Silence after which a `SockJS` client is sent a heartbeat, as the protocol requires.
pub const SOCKJS_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(25);

/// Largest message of a client: a client event at its limit, escaped, with room for the envelope.
pub const MESSAGE_BYTES_MAX: usize = 128 << 10;

/// Per socket and held while it is idle, so small: with the library's default an idle socket takes 136 KiB. Most messages of
/// clients fit; for a larger one the library makes room, and reads it in parts of this size.
const READ_BUFFER_BYTES: usize = 1024;

/// Frames that wait together are written together up to this size, so that a server that falls behind needs fewer system
/// calls to catch up. Held by sockets that had so much waiting, so small too.
const WRITE_BUFFER_BYTES: usize = 2048;

/// Bounds the bytes of one batch from the session.
const SOCKET_BATCH_BYTES: usize = 16 << 10;

/// Bounds the write of one batch.
const FRAMES_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bounds the write of one batch once a drain has closed the session: a client that is some seconds behind still receives
/// its queue, and one that reads nothing does not hold the process.
const DRAIN_WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bounds the closing handshake, in each direction.
const CLOSE_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bounds the time that a socket is kept after the close frame for unreadable bytes: dropped at once with unread bytes,
/// the socket would be reset, and on some systems the close frame would be lost.
const UNREADABLE_LINGER_DELAY: Duration = Duration::from_secs(1);

/// Bytes of the reason in a close frame (RFC 6455, 5.5).
const CLOSE_REASON_BYTES_MAX: usize = 123;

/// The one version of the protocol (RFC 6455, 4.1).
const WEBSOCKET_VERSION: &str = "13";

/// Bytes of a handshake's key (RFC 6455, 4.1).
const WEBSOCKET_KEY_BYTES: usize = 16;

/// WebSocket's own code for what breaks its protocol.
const PROTOCOL_ERROR_CODE: u16 = 1002;

/// WebSocket's own code for text that is not UTF-8.
const INVALID_TEXT_CODE: u16 = 1007;

/// WebSocket's own code for a message that is too large.
const MESSAGE_TOO_LARGE_CODE: u16 = 1009;

/// The close frame for text that is not JSON, as servers of `SockJS` send it.
const BROKEN_FRAMING_CLOSE: (u16, &str) = (3000, "Broken framing.");

/// The WebSocket's own close after `SockJS`'s close frame, which carries the reason.
const NORMAL_CLOSE: (u16, &str) = (1000, "Normal closure");

/// One read of a socket.
#[derive(Debug)]
pub enum SocketInput {
    /// One message of the client.
    Message(Utf8Bytes),
    /// The messages of one frame; none of them is a sign of life.
    Messages(Vec<String>),
    /// A control frame between the parts of a message, which shows only that the client goes on.
    Unfinished,
    /// Bytes, for which Pusher's protocol has no meaning.
    Binary,
}

impl SocketInput {
    /// The messages of the client, in order.
    pub fn into_messages(self) -> impl Iterator<Item = Utf8Bytes> {
        let (one, many) = match self {
            Self::Message(message) => (Some(message), vec![]),
            Self::Messages(messages) => (None, messages),
            Self::Binary | Self::Unfinished => (None, vec![]),
        };
        one.into_iter().chain(many.into_iter().map(Utf8Bytes::from))
    }
}

/// The end of a socket.
#[derive(Debug, PartialEq, Eq)]
pub enum SocketEnd {
    /// The client closed the socket, or the network did.
    Gone,
    /// The client broke the framing.
    Broken,
    /// The client sent bytes that cannot be read on.
    Unreadable(CloseReason),
    /// The session was closed, or none was opened.
    Closed(CloseReason),
}

/// Checks the upgrade of a request by RFC 6455: the answer to another version names version 13, and a key has 16 bytes.
///
/// # Errors
/// The answer.
pub fn check_upgrade(
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    headers: &HeaderMap,
) -> Result<WebSocketUpgrade, Box<Response>> {
    let upgrade = upgrade.map_err(|rejection| {
        Box::new(match rejection {
            WebSocketUpgradeRejection::InvalidWebSocketVersionHeader(_) => (
                StatusCode::BAD_REQUEST,
                [(header::SEC_WEBSOCKET_VERSION, WEBSOCKET_VERSION)],
                "`Sec-WebSocket-Version` must be 13\n",
            )
                .into_response(),
            rejection => rejection.into_response(),
        })
    })?;
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| BASE64_STANDARD.decode(key.as_bytes()).ok());
    if key.is_none_or(|key| key.len() != WEBSOCKET_KEY_BYTES) {
        let answer = (StatusCode::BAD_REQUEST, "`Sec-WebSocket-Key` must be 16 bytes in Base64\n");
        return Err(Box::new(answer.into_response()));
    }
    Ok(limit_upgrade(upgrade))
}

/// Bounds the buffers and the messages of a socket before it is upgraded.
fn limit_upgrade(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
}

/// One socket of a client.
pub struct ClientSocket {
    wire: WebSocket,
    framing: SocketFraming,
    connection: UpgradedConnection,
}

/// The parts of a connection that are used beside its codec; `None` for those that its listener does not have.
pub struct UpgradedConnection {
    /// The count of the bytes of an unfinished message.
    input: Option<Arc<ConnectionInput>>,
    /// The write side of the connection.
    output: Option<Arc<SocketOutput>>,
}

impl<S: Sync> FromRequestParts<S> for UpgradedConnection {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self { input: parts.extensions.get().cloned(), output: parts.extensions.get().cloned() })
    }
}

impl UpgradedConnection {
    fn begin_messages(&self, framing: SocketFraming) {
        if let Some(input) = &self.input {
            input.begin_messages();
        }
        if let Some(output) = &self.output {
            output.begin_frames(framing);
        }
    }

    fn complete_message(&self) {
        if let Some(input) = &self.input {
            input.complete_message();
        }
    }

    /// Whether a control frame shows that the client lives.
    fn is_alive_by_control_frame(&self, payload: &[u8]) -> bool {
        self.input.as_ref().is_none_or(|input| input.is_alive_by_control_frame(payload.len()))
    }
}

impl ClientSocket {
    /// Wraps an upgraded WebSocket.
    pub fn new(wire: WebSocket, framing: SocketFraming, connection: UpgradedConnection) -> Self {
        connection.begin_messages(framing);
        Self { wire, framing, connection }
    }

    /// The form of its messages.
    pub fn framing(&self) -> SocketFraming {
        self.framing
    }

    /// Serves an open session to its end, beginning with messages that were read already.
    pub async fn serve_session(mut self, shared: Arc<TransportContext>, guard: SessionGuard, first: Vec<Utf8Bytes>) {
        let span = guard.span.clone();
        let served = async {
            let end = drive_socket(&mut self, &shared, guard, first).await;
            self.complete_close(end, &shared.hub.metrics).await;
        };
        served.instrument(span).await;
    }

    /// Sends the error that says why there is no session, and closes.
    pub async fn refuse(mut self, closing: CloseReason, metrics: &EdgeMetrics) {
        let error = frame::error_frame(Some(closing.code), &closing.reason);
        let _ = timeout(CLOSE_HANDSHAKE_TIMEOUT, self.send_frames(vec![error.into()])).await;
        self.complete_close(SocketEnd::Closed(closing), metrics).await;
    }

    /// Reads until the client's next messages or a sign of life.
    ///
    /// # Errors
    /// The end of the socket.
    pub async fn read(&mut self) -> Result<SocketInput, SocketEnd> {
        let received = self.wire.recv().await;
        if matches!(received, Some(Ok(Message::Text(_) | Message::Binary(_)))) {
            self.connection.complete_message();
        }
        match received {
            Some(Ok(Message::Text(text))) => match self.framing {
                SocketFraming::Pusher | SocketFraming::SockjsRaw => Ok(SocketInput::Message(text)),
                SocketFraming::SockjsFrames => {
                    sockjs::parse_socket(&text).map(SocketInput::Messages).map_err(|_| SocketEnd::Broken)
                }
            },
            Some(Ok(Message::Binary(_))) if self.framing == SocketFraming::Pusher => Ok(SocketInput::Binary),
            Some(Ok(Message::Binary(_))) => Err(SocketEnd::Broken),
            Some(Ok(Message::Ping(payload) | Message::Pong(payload))) => {
                let is_alive = self.connection.is_alive_by_control_frame(&payload);
                Ok(if is_alive { SocketInput::Messages(vec![]) } else { SocketInput::Unfinished })
            }
            Some(Ok(Message::Close(_))) | None => Err(SocketEnd::Gone),
            Some(Err(error)) => Err(unreadable_close_reason(error).map_or(SocketEnd::Gone, SocketEnd::Unreadable)),
        }
    }

    /// Sends a text that is no message of a session; `None` when the socket is gone.
    pub async fn send_text(&mut self, text: &str) -> Option<()> {
        timeout(CLOSE_HANDSHAKE_TIMEOUT, self.wire.send(Message::text(text))).await.ok()?.ok()
    }

    /// Closes the socket as its end requires.
    pub async fn complete_close(mut self, end: SocketEnd, metrics: &EdgeMetrics) {
        let sent = match &end {
            SocketEnd::Gone => Some(()),
            SocketEnd::Broken => {
                let (code, reason) = BROKEN_FRAMING_CLOSE;
                self.send_close_frame(code, reason, CLOSE_HANDSHAKE_TIMEOUT).await
            }
            SocketEnd::Unreadable(closing) => {
                let is_over_budget = closing.code == code::OVER_CAPACITY;
                let reason = if is_over_budget { RefusalReason::InputBytes } else { RefusalReason::Unreadable };
                metrics.refusals.with_label(reason).inc();
                if self.send_close_frame(closing.code, &closing.reason, CLOSE_HANDSHAKE_TIMEOUT).await.is_some() {
                    // The codec holds the unfinished message, which no budget counts any more. The write side keeps the
                    // socket open.
                    let wire = self.connection.output.is_none().then_some(self.wire);
                    sleep(UNREADABLE_LINGER_DELAY).await;
                    drop((wire, self.connection));
                }
                return;
            }
            SocketEnd::Closed(closing) => self.send_close(closing, CLOSE_HANDSHAKE_TIMEOUT).await,
        };
        if sent.is_some() {
            // A socket that is dropped with unread bytes is reset, and the close frame may be lost with it. The client's
            // own close frame is answered by reading.
            let answered = async { while let Some(Ok(_)) = self.wire.recv().await {} };
            let _ = timeout(CLOSE_HANDSHAKE_TIMEOUT, answered).await;
        }
    }

    /// Writes frames of the session; `None` when the socket is gone. Once the session is closed, a write that blocks is
    /// abandoned; in a drain only after [`DRAIN_WRITE_TIMEOUT`], since the client has done nothing wrong.
    async fn write_frames(&mut self, session: &Session, frames: Vec<Bytes>) -> Option<()> {
        tokio::select! {
            biased;
            sent = self.send_frames(frames) => sent.ok(),
            abandoned = wait_write_abandoned(session) => abandoned,
            () = sleep(FRAMES_WRITE_TIMEOUT) => None,
        }
    }

    async fn send_frames(&mut self, frames: Vec<Bytes>) -> Result<(), axum::Error> {
        let frames = match self.framing {
            SocketFraming::SockjsFrames if !frames.is_empty() => {
                let texts = frames.iter().filter_map(|frame| std::str::from_utf8(frame).ok());
                vec![sockjs::encode_messages(texts).into()]
            }
            _ => frames,
        };
        for text in frames.into_iter().filter_map(|frame| Utf8Bytes::try_from(frame).ok()) {
            self.wire.feed(Message::Text(text)).await?;
        }
        self.wire.flush().await
    }

    /// Sends the close of the session; `None` when the socket is gone.
    async fn send_close(&mut self, closing: &CloseReason, within: Duration) -> Option<()> {
        if self.framing != SocketFraming::SockjsFrames {
            return self.send_close_frame(closing.code, &closing.reason, within).await;
        }
        let close = Message::text(sockjs::encode_close(closing.code, &closing.reason));
        timeout(within, self.wire.send(close)).await.ok()?.ok()?;
        let (code, reason) = NORMAL_CLOSE;
        self.send_close_frame(code, reason, within).await
    }

    async fn send_close_frame(&mut self, code: u16, reason: &str, within: Duration) -> Option<()> {
        let reason = reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)].into();
        let sent = self.wire.send(Message::Close(Some(CloseFrame { code, reason })));
        timeout(within, sent).await.ok()?.ok()
    }

    /// Applies the messages that the client sent before it heard of the end, or before it went: they are read in order up
    /// to its close.
    async fn apply_last_messages(&mut self, connection: &mut Connection) {
        let last_messages = async {
            while let Ok(input) = self.read().await {
                for message in input.into_messages() {
                    connection.apply_message(&message).await;
                }
            }
        };
        let _ = timeout(CLOSE_HANDSHAKE_TIMEOUT, last_messages).await;
    }
}

/// Serves one session on a socket, until one of them ends.
async fn drive_socket(
    socket: &mut ClientSocket,
    shared: &TransportContext,
    guard: SessionGuard,
    first: Vec<Utf8Bytes>,
) -> SocketEnd {
    let session = guard.session.clone();
    let receiver = session.attach_socket(socket.connection.output.clone());
    let mut connection = Box::pin(Connection::open(shared.hub.clone(), session.clone())).await;
    for message in first {
        connection.apply_message(&message).await;
    }
    let mut timers = SessionTimers::start(session.activity_timeout);
    let has_heartbeat = socket.framing == SocketFraming::SockjsFrames;
    let mut heartbeat_at = Instant::now() + SOCKJS_HEARTBEAT_INTERVAL;
    let end = loop {
        tokio::select! {
            outgoing = receiver.next(SOCKET_BATCH_BYTES) => match outgoing {
                OutgoingItem::Frames(frames) => {
                    if socket.write_frames(&session, frames).await.is_none() {
                        socket.apply_last_messages(&mut connection).await;
                        break SocketEnd::Gone;
                    }
                }
                OutgoingItem::Close(closing) => break SocketEnd::Closed(closing),
                OutgoingItem::Replaced => break SocketEnd::Gone,
            },
            input = socket.read(), if connection.paused_until().is_none() => match input {
                Ok(input) => {
                    if !matches!(input, SocketInput::Unfinished) {
                        session.note_activity();
                    }
                    if matches!(input, SocketInput::Binary) {
                        connection.refuse_binary();
                    }
                    for message in input.into_messages() {
                        connection.apply_message(&message).await;
                    }
                }
                Err(end) => break end,
            },
            due = timers.next(&connection) => timers.apply(due, &mut connection).await,
            () = async { sleep_until(heartbeat_at).await }, if has_heartbeat => {
                if socket.send_text(HEARTBEAT_FRAME).await.is_none() {
                    socket.apply_last_messages(&mut connection).await;
                    break SocketEnd::Gone;
                }
                heartbeat_at = Instant::now() + SOCKJS_HEARTBEAT_INTERVAL;
            }
        }
    };
    let end = match end {
        SocketEnd::Closed(closing) if closing.drain => {
            if socket.send_close(&closing, DRAIN_WRITE_TIMEOUT).await.is_some() {
                socket.apply_last_messages(&mut connection).await;
            }
            SocketEnd::Gone
        }
        end => end,
    };
    Box::pin(connection.tear_down()).await;
    drop(guard);
    end
}

/// Resolves when a blocked write is to be abandoned because the session was closed: `None` when its client does not read.
async fn wait_write_abandoned(session: &Session) -> Option<()> {
    session.close_requested().await;
    if session.close_reason().is_some_and(|closing| closing.drain) {
        sleep(DRAIN_WRITE_TIMEOUT).await;
        return None;
    }
    Some(())
}

/// The close reason for a client whose bytes cannot be read on: one of WebSocket's own codes, after which clients of
/// Pusher reconnect. `None` when the socket itself is gone.
fn unreadable_close_reason(error: axum::Error) -> Option<CloseReason> {
    use tungstenite::error::{Error, ProtocolError};
    match *error.into_inner().downcast::<Error>().ok()? {
        Error::Capacity(_) => {
            Some(CloseReason::new(MESSAGE_TOO_LARGE_CODE, format!("a message has at most {MESSAGE_BYTES_MAX} bytes")))
        }
        Error::Utf8(_) => Some(CloseReason::new(INVALID_TEXT_CODE, "a text message must be UTF-8")),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        Error::Protocol(_) => Some(CloseReason::new(PROTOCOL_ERROR_CODE, "what came is no frame of WebSocket")),
        Error::Io(error) if error.kind() == io::ErrorKind::QuotaExceeded => {
            Some(CloseReason::new(code::OVER_CAPACITY, InputBudgetExceeded.to_string()))
        }
        _ => None,
    }
}
