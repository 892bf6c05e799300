//! `SockJS` 0.3.3 under `/pusher`: what pusher-js calls `sockjs`, and every client of that protocol.
//!
//! In: requests of its transports. Out: the same session and connection that a WebSocket has, once the first message of
//! a session has named its app. It is strict where pusher-js's own fallbacks are not: an answer ends after 128 KiB, an
//! aborted one ends the session, and a session has one receiver. [`route`] says what a path means, [`http`] answers it,
//! [`answer`] writes what a receiver gets, [`session`] keeps sessions between requests, [`socket`] is the WebSocket.

pub(crate) mod answer;
pub(crate) mod http;
pub(crate) mod page;
pub(crate) mod route;
pub(crate) mod session;
pub(crate) mod socket;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::any;

use crate::config::{ServerConfig, name};
use crate::edge::http::router::RelayGuard;
use crate::edge::hub::Hub;
use crate::edge::relay::session_host;
use crate::protocol::Transport;
use page::IframePages;
pub use session::{INTRODUCTION_TIMEOUT, SOCKJS_RECEIVER_GRACE, SOCKJS_SESSIONS_MAX, SockjsSessions};

/// The base path.
const BASE_PATH: &str = "/pusher";

/// What an operator may choose.
pub struct SockjsSettings {
    pages: IframePages,
    cookie: bool,
    /// The host that clients are to send everything to.
    host: Option<String>,
}

impl SockjsSettings {
    /// As the variables say.
    pub fn from_values(values: &ServerConfig) -> Self {
        Self {
            pages: IframePages::new(values.list_items(name::SOCKJS_SCRIPTS)),
            cookie: values.text(name::SOCKJS_COOKIE) == "on",
            host: session_host(values),
        }
    }
}

/// What the requests share.
#[derive(Clone)]
pub(crate) struct SockjsContext {
    shared: Arc<Hub>,
    sessions: Arc<SockjsSessions>,
    settings: Arc<SockjsSettings>,
    transports: Arc<[Transport]>,
}

impl SockjsContext {
    fn is_served(&self, transport: Transport) -> bool {
        self.transports.contains(&transport)
    }
}

/// Everything below the base path that no other route has; `None` when there is nothing to serve there.
pub fn build_routes(
    shared: &Arc<Hub>,
    sessions: &Arc<SockjsSessions>,
    settings: &Arc<SockjsSettings>,
    transports: &[Transport],
    guard: &RelayGuard,
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
    let routes = routes.with_state(context);
    Some(match guard {
        RelayGuard::None => routes,
        RelayGuard::Outbound(peers) => routes.layer(from_fn_with_state(peers.clone(), http::relay_or_serve)),
        RelayGuard::Inbound(door) => routes.layer(from_fn_with_state(door.clone(), http::accept_relayed)),
    })
}
