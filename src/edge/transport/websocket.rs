//! The transport `websocket`: one socket, one session.

use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::edge::apps::client_address::Caller;
use crate::edge::close_reason::CloseReason;
use crate::edge::session::registry::SessionGuard;
use crate::edge::session::socket_output::SocketFraming;
use crate::edge::transport::context::TransportContext;
use crate::edge::transport::socket::{ClientSocket, UpgradedConnection, check_upgrade};
use crate::protocol::Transport;
use crate::protocol::frame::code;

/// Upgrades a request to a session: `GET /app/{key}`.
pub async fn upgrade_websocket(
    State(shared): State<Arc<TransportContext>>,
    Path(key): Path<String>,
    RawQuery(query): RawQuery,
    caller: Caller,
    headers: HeaderMap,
    connection: UpgradedConnection,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match check_upgrade(upgrade, &headers) {
        Ok(upgrade) => upgrade,
        Err(answer) => return *answer,
    };
    let opened = shared.opener.open(&key, query.as_deref().unwrap_or_default(), &caller, Transport::Websocket);
    accept_upgrade(shared, upgrade, connection, opened)
}

/// Refuses every path that no other route has: a socket with Pusher's code, since after a mere status the client would
/// reconnect; other requests with 404.
pub async fn refuse_unknown_path(
    State(shared): State<Arc<TransportContext>>,
    caller: Caller,
    headers: HeaderMap,
    connection: UpgradedConnection,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = check_upgrade(upgrade, &headers) else { return StatusCode::NOT_FOUND.into_response() };
    let closing = CloseReason::new(code::PATH_UNKNOWN, "no app has this path: connect to /app/KEY");
    shared.opener.count_refusal(&closing, &caller, (None, Some(Transport::Websocket)));
    accept_upgrade(shared, upgrade, connection, Err(closing))
}

fn accept_upgrade(
    shared: Arc<TransportContext>,
    upgrade: WebSocketUpgrade,
    connection: UpgradedConnection,
    opened: Result<SessionGuard, CloseReason>,
) -> Response {
    let tasks = shared.opener.session_tasks.clone();
    upgrade.on_upgrade(move |wire| {
        // Tracked, so that the process waits for sessions that are about to leave.
        tasks.track_future(async move {
            let socket = ClientSocket::new(wire, SocketFraming::Pusher, connection);
            match opened {
                Ok(guard) => socket.serve_session(shared, guard, vec![]).await,
                Err(closing) => socket.refuse(closing, &shared.hub.metrics).await,
            }
        })
    })
}
