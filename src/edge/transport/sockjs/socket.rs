//! `SockJS` over WebSocket, where a session is a socket: with its frames, or raw.

use std::sync::Arc;

use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::Instrument;

use crate::edge::apps::client_address::Caller;
use crate::edge::close_reason::CloseReason;
use crate::edge::metrics::RefusalReason;
use crate::edge::pusher::connection::Connection;
use crate::edge::session::liveness::ACTIVITY_TIMEOUT;
use crate::edge::session::registry::SessionGuard;
use crate::edge::session::{OutgoingItem, Session};
use crate::edge::transport::context::TransportContext;
use crate::edge::transport::sockjs::answer::SOCKJS_HEARTBEAT_INTERVAL;
use crate::edge::transport::sockjs::session::{
    INTRODUCTION_TIMEOUT, introduction_missing, open_refused_session, open_requested_session,
};
use crate::edge::transport::websocket::{
    CLOSE_HANDSHAKE_TIMEOUT, SOCKET_BATCH_BYTES, close, close_unreadable, complete_close, unreadable_close_reason,
    write,
};
use crate::protocol::Transport;
use crate::protocol::sockjs::{self, HEARTBEAT_FRAME, OPEN_FRAME};

/// The close frame for text that is not JSON, as the protocol's servers send it.
const BROKEN_FRAMING_CLOSE: (u16, &str) = (3000, "Broken framing.");

/// The WebSocket's own end, after the frame that said why.
const NORMAL_CLOSE: (u16, &str) = (1000, "Normal closure");

/// How messages stand on the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketFraming {
    /// In the protocol's frames.
    Frames,
    /// Each message is one text.
    Raw,
}

/// How a socket ended.
enum SockjsSocketEnd {
    /// The client closed the socket.
    Gone,
    /// The client sent what nobody can read.
    Broken,
    /// The client sent bytes that cannot be read on.
    Unreadable(CloseReason),
    /// The session was ended.
    Closed(CloseReason),
}

/// One `SockJS` WebSocket of a client.
pub struct SockjsSocket {
    /// The socket to the client.
    pub wire: WebSocket,
    /// How messages stand on it.
    pub framing: SocketFraming,
    /// The transport that its session counts as.
    pub transport: Transport,
    /// The client that opened it.
    pub caller: Caller,
    /// When a heartbeat is due.
    pub heartbeat: Instant,
}

impl SockjsSocket {
    /// Serves it to its end.
    pub async fn serve(mut self, shared: Arc<TransportContext>) {
        let unreadable_frames = shared.hub.metrics.refusals.with_label(RefusalReason::Unreadable);
        let end = match self.receive_introduction(&shared).await {
            Ok((place, messages)) => {
                let span = place.span.clone();
                self.run_session(shared, place, messages).instrument(span).await
            }
            Err(SockjsSocketEnd::Closed(closing)) => {
                let session = open_refused_session(&shared, self.transport, &closing);
                while let OutgoingItem::Frames(frames) = session.attach_receiver().next(SOCKET_BATCH_BYTES).await {
                    if self.write(&session, &frames).await.is_none() {
                        break;
                    }
                }
                SockjsSocketEnd::Closed(closing)
            }
            Err(end) => end,
        };
        if matches!(end, SockjsSocketEnd::Unreadable(_)) {
            unreadable_frames.inc();
        }
        self.complete_close(end).await;
    }

    /// Opens the session that the first message asks for, with the messages that came with it.
    async fn receive_introduction(
        &mut self,
        shared: &TransportContext,
    ) -> Result<(SessionGuard, Vec<String>), SockjsSocketEnd> {
        if self.framing == SocketFraming::Frames {
            self.send_text(OPEN_FRAME).await.ok_or(SockjsSocketEnd::Gone)?;
        }
        let late = Instant::now() + INTRODUCTION_TIMEOUT;
        loop {
            tokio::select! {
                messages = self.read() => {
                    let mut messages = messages?;
                    if !messages.is_empty() {
                        let first = messages.remove(0);
                        return Ok((open_requested_session(shared, &first, &self.caller, self.transport).map_err(SockjsSocketEnd::Closed)?, messages));
                    }
                }
                () = shared.opener.draining.wait_started() => return Err(SockjsSocketEnd::Closed(shared.opener.draining.close_reason())),
                () = sleep_until(late) => return Err(SockjsSocketEnd::Closed(introduction_missing())),
            }
        }
    }

    async fn run_session(
        &mut self,
        shared: Arc<TransportContext>,
        place: SessionGuard,
        first: Vec<String>,
    ) -> SockjsSocketEnd {
        let session = place.session.clone();
        let outlet = session.attach_receiver();
        let mut connection = Connection::open(shared.hub.clone(), session.clone()).await;
        for message in first {
            connection.apply_message(&message).await;
        }
        let mut look = Instant::now() + ACTIVITY_TIMEOUT;
        let end = loop {
            let heartbeat = self.heartbeat;
            tokio::select! {
                outgoing = outlet.next(SOCKET_BATCH_BYTES) => match outgoing {
                    OutgoingItem::Frames(frames) => {
                        if self.write(&session, &frames).await.is_none() {
                            break SockjsSocketEnd::Gone;
                        }
                    }
                    OutgoingItem::Close(closing) => break SockjsSocketEnd::Closed(closing),
                    OutgoingItem::Replaced => break SockjsSocketEnd::Gone,
                },
                messages = self.read() => match messages {
                    Ok(messages) => {
                        session.note_activity();
                        for message in messages {
                            connection.apply_message(&message).await;
                        }
                    }
                    Err(end) => break end,
                },
                () = sleep_until(heartbeat) => {
                    if self.framing == SocketFraming::Frames && self.send_text(HEARTBEAT_FRAME).await.is_none() {
                        break SockjsSocketEnd::Gone;
                    }
                    self.heartbeat = Instant::now() + SOCKJS_HEARTBEAT_INTERVAL;
                }
                () = connection.pending_due() => connection.retry_pending().await,
                () = sleep_until(look) => {
                    look = connection.check_liveness().map_or_else(|| Instant::now() + ACTIVITY_TIMEOUT, Into::into);
                }
            }
        };
        let end = match end {
            SockjsSocketEnd::Closed(closing) if closing.drain => {
                self.receive_last_messages(&closing, &mut connection).await;
                SockjsSocketEnd::Gone
            }
            end => end,
        };
        connection.tear_down().await;
        end
    }

    /// Sends the close frame, and applies the messages that the client sent before it arrived.
    async fn receive_last_messages(&mut self, closing: &CloseReason, connection: &mut Connection) {
        if self.send_close(closing).await.is_none() {
            return;
        }
        let heard = async {
            while let Ok(messages) = self.read().await {
                for message in messages {
                    connection.apply_message(&message).await;
                }
            }
        };
        let _ = timeout(CLOSE_HANDSHAKE_TIMEOUT, heard).await;
    }

    async fn send_close(&mut self, closing: &CloseReason) -> Option<()> {
        match self.framing {
            SocketFraming::Raw => close(&mut self.wire, closing).await,
            SocketFraming::Frames => {
                self.send_text(&sockjs::encode_close(closing.code, &closing.reason)).await?;
                close(&mut self.wire, &CloseReason::new(NORMAL_CLOSE.0, NORMAL_CLOSE.1)).await
            }
        }
    }

    /// The next messages of the client; an empty list is a sign of life.
    async fn read(&mut self) -> Result<Vec<String>, SockjsSocketEnd> {
        match self.wire.recv().await {
            Some(Ok(Message::Text(text))) => match self.framing {
                SocketFraming::Raw => Ok(vec![text.to_string()]),
                SocketFraming::Frames => sockjs::parse_socket(&text).map_err(|_| SockjsSocketEnd::Broken),
            },
            Some(Ok(Message::Binary(_))) => Err(SockjsSocketEnd::Broken),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(Vec::new()),
            Some(Ok(Message::Close(_))) | None => Err(SockjsSocketEnd::Gone),
            Some(Err(error)) => {
                Err(unreadable_close_reason(error).map_or(SockjsSocketEnd::Gone, SockjsSocketEnd::Unreadable))
            }
        }
    }

    /// Writes what a session gave out; `None` when the socket is gone.
    async fn write(&mut self, session: &Session, frames: &[Bytes]) -> Option<()> {
        let frames = match self.framing {
            SocketFraming::Raw => frames.to_vec(),
            SocketFraming::Frames => {
                let texts = frames.iter().filter_map(|frame| std::str::from_utf8(frame).ok());
                vec![sockjs::encode_messages(texts).into()]
            }
        };
        self.heartbeat = Instant::now() + SOCKJS_HEARTBEAT_INTERVAL;
        write(&mut self.wire, session, frames).await
    }

    async fn send_text(&mut self, text: &str) -> Option<()> {
        timeout(CLOSE_HANDSHAKE_TIMEOUT, self.wire.send(Message::text(text))).await.ok()?.ok()
    }

    async fn complete_close(mut self, end: SockjsSocketEnd) {
        match end {
            SockjsSocketEnd::Gone => complete_close(self.wire, None).await,
            SockjsSocketEnd::Unreadable(closing) => close_unreadable(self.wire, &closing).await,
            SockjsSocketEnd::Broken => {
                complete_close(self.wire, Some(&CloseReason::new(BROKEN_FRAMING_CLOSE.0, BROKEN_FRAMING_CLOSE.1)))
                    .await;
            }
            SockjsSocketEnd::Closed(closing) => {
                if self.send_close(&closing).await.is_some() {
                    complete_close(self.wire, None).await;
                }
            }
        }
    }
}
