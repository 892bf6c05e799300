//! `SockJS` 0.3.3 under `/pusher`: what pusher-js calls `sockjs`, and every client of that protocol.
//!
//! In: requests of its transports. Out: the same session and connection that a WebSocket has, once the first message of
//! a session has named its app. It is strict where pusher-js's own fallbacks are not: an answer ends after 128 KiB, an
//! aborted one ends the session, and a session has one receiver. [`route`] says what a path means, [`http`] answers it,
//! [`answer`] writes what a receiver gets, [`session`] keeps sessions between requests, [`socket`] is the WebSocket.

pub(crate) mod answer;
pub(crate) mod context;
pub(crate) mod http;
pub(crate) mod page;
pub(crate) mod session;
pub(crate) mod socket;

use std::sync::Arc;

use axum::Router;
use axum::routing::any;

use crate::edge::transport::context::TransportContext;
use crate::edge::transport::sockjs::context::{BASE_PATH, SockjsContext};
use crate::protocol::Transport;
pub use context::SockjsSettings;
pub use session::{INTRODUCTION_TIMEOUT, SOCKJS_RECEIVER_GRACE, SOCKJS_SESSIONS_MAX, SockjsSessions};

/// Everything below the base path that no other route has; `None` when there is nothing to serve there.
pub fn build_routes(
    shared: &Arc<TransportContext>,
    sessions: &Arc<SockjsSessions>,
    settings: &Arc<SockjsSettings>,
    transports: &[Transport],
) -> Option<Router> {
    let ours =
        [Transport::SockjsWebsocket, Transport::SockjsXhrStreaming, Transport::SockjsXhr, Transport::SockjsEventsource];
    let transports: Arc<[Transport]> = ours.into_iter().filter(|ours| transports.contains(ours)).collect();
    if transports.is_empty() {
        return None;
    }
    let (shared, sessions, settings) = (shared.clone(), sessions.clone(), settings.clone());
    let context = SockjsContext { shared, sessions, settings, transports };
    // What the protocol answers to a wrong method or path is its own.
    let routes = Router::new()
        .route(BASE_PATH, any(http::serve))
        .route("/pusher/", any(http::serve))
        .route("/pusher/{*rest}", any(http::serve));
    Some(routes.with_state(context))
}
