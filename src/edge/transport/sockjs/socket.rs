//! `SockJS` over WebSocket, with its frames or raw: a socket is a session, once its first message has named the app.

use std::sync::Arc;

use axum::extract::ws::Utf8Bytes;
use tokio::time::{Instant, sleep_until};

use crate::edge::apps::client_address::Caller;
use crate::edge::session::drain_signal::DrainSignal;
use crate::edge::session::registry::SessionGuard;
use crate::edge::session::socket_output::SocketFraming;
use crate::edge::transport::context::TransportContext;
use crate::edge::transport::socket::{ClientSocket, SocketEnd};
use crate::edge::transport::sockjs::session::{INTRODUCTION_TIMEOUT, introduction_missing, open_requested_session};
use crate::protocol::Transport;
use crate::protocol::sockjs::OPEN_FRAME;

/// Serves a socket to its end.
pub async fn serve_socket(mut socket: ClientSocket, shared: Arc<TransportContext>, caller: Caller) {
    match receive_introduction(&mut socket, &shared, &caller).await {
        Ok((guard, messages)) => socket.serve_session(shared, guard, messages).await,
        Err(SocketEnd::Closed(closing)) => socket.refuse(closing, &shared.hub.metrics).await,
        Err(end) => socket.complete_close(end, &shared.hub.metrics).await,
    }
}

/// Opens the session that the first message asks for, with the messages that came with it.
async fn receive_introduction(
    socket: &mut ClientSocket,
    shared: &TransportContext,
    caller: &Caller,
) -> Result<(SessionGuard, Vec<Utf8Bytes>), SocketEnd> {
    if socket.framing() == SocketFraming::SockjsFrames {
        socket.send_text(OPEN_FRAME).await.ok_or(SocketEnd::Gone)?;
    }
    let deadline = Instant::now() + INTRODUCTION_TIMEOUT;
    loop {
        tokio::select! {
            input = socket.read() => {
                let mut messages = input?.into_messages();
                if let Some(first) = messages.next() {
                    let opened = open_requested_session(shared, &first, caller, Transport::SockjsWebsocket);
                    return Ok((opened.map_err(SocketEnd::Closed)?, messages.collect()));
                }
            }
            () = shared.opener.draining.wait_started() => {
                return Err(SocketEnd::Closed(DrainSignal::newcomer_close_reason()));
            }
            () = sleep_until(deadline) => return Err(SocketEnd::Closed(introduction_missing())),
        }
    }
}
