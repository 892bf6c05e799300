//! `SockJS` over WebSocket, where a session is a socket: with its frames, or raw.

use std::sync::Arc;

use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::Instrument;

use super::super::client::Caller;
use super::super::connection::Connection;
use super::super::liveness::ACTIVITY_TIMEOUT;
use super::super::session::{Closing, Outgoing, Session};
use super::super::sessions::Place;
use super::super::shared::Shared;
use super::super::websocket::{BATCH, CLOSE_TIMEOUT, close, goodbye, turn_away, unreadable, write};
use super::answer::HEARTBEAT_EVERY;
use super::session::{INTRODUCTION, admitted, not_introduced, refused};
use crate::protocol::Transport;
use crate::protocol::sockjs::{self, HEARTBEAT, OPEN};

/// What is said of text that is not JSON, as the protocol's servers say it.
const BROKEN: (u16, &str) = (3000, "Broken framing.");

/// The WebSocket's own end, after the frame that said why.
const NORMAL: (u16, &str) = (1000, "Normal closure");

/// How messages stand on the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// In the protocol's frames.
    Frames,
    /// One to one.
    Raw,
}

/// How a socket ended.
enum End {
    /// The client went.
    Gone,
    /// The client sent what nobody can read.
    Broken,
    /// What the client sent cannot be read on.
    Unreadable(Closing),
    /// The session was ended.
    Closed(Closing),
}

/// One socket.
pub struct Socket {
    /// The socket itself.
    pub wire: WebSocket,
    /// How messages stand on it.
    pub framing: Framing,
    /// What its session counts as.
    pub transport: Transport,
    /// Who opened it.
    pub caller: Caller,
    /// When a heartbeat is due.
    pub heartbeat: Instant,
}

impl Socket {
    /// Serves it to its end.
    pub async fn serve(mut self, shared: Arc<Shared>) {
        let unreadable_frames = shared.metrics.refused("unreadable");
        let end = match self.introduced(&shared).await {
            Ok((place, messages)) => {
                let span = place.span.clone();
                self.session(shared, place, messages).instrument(span).await
            }
            Err(End::Closed(closing)) => {
                let session = refused(&shared, self.transport, &closing);
                while let Outgoing::Frames(frames) = session.attach().next(BATCH).await {
                    if self.write(&session, &frames).await.is_none() {
                        break;
                    }
                }
                End::Closed(closing)
            }
            Err(end) => end,
        };
        if matches!(end, End::Unreadable(_)) {
            unreadable_frames.inc();
        }
        self.goodbye(end).await;
    }

    /// Opens the session that the first message asks for, with the messages that came with it.
    async fn introduced(&mut self, shared: &Shared) -> Result<(Place, Vec<String>), End> {
        if self.framing == Framing::Frames {
            self.text(OPEN).await.ok_or(End::Gone)?;
        }
        let late = Instant::now() + INTRODUCTION;
        loop {
            tokio::select! {
                messages = self.read() => {
                    let mut messages = messages?;
                    if !messages.is_empty() {
                        let first = messages.remove(0);
                        return Ok((admitted(shared, &first, &self.caller, self.transport).map_err(End::Closed)?, messages));
                    }
                }
                () = shared.draining.cancelled() => return Err(End::Closed(shared.draining.closing())),
                () = sleep_until(late) => return Err(End::Closed(not_introduced())),
            }
        }
    }

    async fn session(&mut self, shared: Arc<Shared>, place: Place, first: Vec<String>) -> End {
        let session = place.session.clone();
        let outlet = session.attach();
        let mut connection = Connection::open(shared, session.clone()).await;
        for message in first {
            connection.handle(&message).await;
        }
        let mut look = Instant::now() + ACTIVITY_TIMEOUT;
        let end = loop {
            let heartbeat = self.heartbeat;
            tokio::select! {
                outgoing = outlet.next(BATCH) => match outgoing {
                    Outgoing::Frames(frames) => {
                        if self.write(&session, &frames).await.is_none() {
                            break End::Gone;
                        }
                    }
                    Outgoing::Close(closing) => break End::Closed(closing),
                    Outgoing::Replaced => break End::Gone,
                },
                messages = self.read() => match messages {
                    Ok(messages) => {
                        session.heard();
                        for message in messages {
                            connection.handle(&message).await;
                        }
                    }
                    Err(end) => break end,
                },
                () = sleep_until(heartbeat) => {
                    if self.framing == Framing::Frames && self.text(HEARTBEAT).await.is_none() {
                        break End::Gone;
                    }
                    self.heartbeat = Instant::now() + HEARTBEAT_EVERY;
                }
                () = connection.waits() => connection.look_again().await,
                () = sleep_until(look) => {
                    look = connection.check().map_or_else(|| Instant::now() + ACTIVITY_TIMEOUT, Into::into);
                }
            }
        };
        let end = match end {
            End::Closed(closing) if closing.drain => {
                self.last_words(&closing, &mut connection).await;
                End::Gone
            }
            end => end,
        };
        connection.leave().await;
        end
    }

    /// Tells a client of the end and hears what it had sent before it knew.
    async fn last_words(&mut self, closing: &Closing, connection: &mut Connection) {
        if self.say_closed(closing).await.is_none() {
            return;
        }
        let heard = async {
            while let Ok(messages) = self.read().await {
                for message in messages {
                    connection.handle(&message).await;
                }
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, heard).await;
    }

    async fn say_closed(&mut self, closing: &Closing) -> Option<()> {
        match self.framing {
            Framing::Raw => close(&mut self.wire, closing).await,
            Framing::Frames => {
                self.text(&sockjs::close(closing.code, &closing.reason)).await?;
                close(&mut self.wire, &Closing::new(NORMAL.0, NORMAL.1)).await
            }
        }
    }

    /// What the client says next; nothing at all is a sign of life.
    async fn read(&mut self) -> Result<Vec<String>, End> {
        match self.wire.recv().await {
            Some(Ok(Message::Text(text))) => match self.framing {
                Framing::Raw => Ok(vec![text.to_string()]),
                Framing::Frames => sockjs::parse_socket(&text).map_err(|_| End::Broken),
            },
            Some(Ok(Message::Binary(_))) => Err(End::Broken),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(Vec::new()),
            Some(Ok(Message::Close(_))) | None => Err(End::Gone),
            Some(Err(error)) => Err(unreadable(error).map_or(End::Gone, End::Unreadable)),
        }
    }

    /// Writes what a session gave out; `None` when the socket is gone.
    async fn write(&mut self, session: &Session, frames: &[Bytes]) -> Option<()> {
        let frames = match self.framing {
            Framing::Raw => frames.to_vec(),
            Framing::Frames => {
                let texts = frames.iter().filter_map(|frame| std::str::from_utf8(frame).ok());
                vec![sockjs::messages(texts).into()]
            }
        };
        self.heartbeat = Instant::now() + HEARTBEAT_EVERY;
        write(&mut self.wire, session, frames).await
    }

    async fn text(&mut self, text: &str) -> Option<()> {
        timeout(CLOSE_TIMEOUT, self.wire.send(Message::text(text))).await.ok()?.ok()
    }

    async fn goodbye(mut self, end: End) {
        match end {
            End::Gone => goodbye(self.wire, None).await,
            End::Unreadable(closing) => turn_away(self.wire, &closing).await,
            End::Broken => goodbye(self.wire, Some(&Closing::new(BROKEN.0, BROKEN.1))).await,
            End::Closed(closing) => {
                if self.say_closed(&closing).await.is_some() {
                    goodbye(self.wire, None).await;
                }
            }
        }
    }
}
