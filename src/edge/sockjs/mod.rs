//! `SockJS` 0.3.3 under `/pusher`: what pusher-js calls `sockjs`, and every client of that protocol.
//!
//! In: requests of its transports. Out: the same session and connection that a WebSocket has, once the first message of
//! a session has named its app. It is strict where pusher-js's own fallbacks are not: an answer ends after 128 KiB, an
//! aborted one ends the session, and a session has one receiver. [`route`] says what a path means, [`http`] answers it,
//! [`answer`] writes what a receiver gets, [`session`] keeps sessions between requests, [`socket`] is the WebSocket.

mod answer;
mod http;
mod page;
mod route;
mod session;
mod socket;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::any;

use super::peer::session_host;
use super::router::Guard;
use super::shared::Shared;
use crate::contract::{Values, name};
use crate::protocol::Transport;
use page::Pages;
pub use session::{GRACE, INTRODUCTION, MAX_SESSIONS, SockJs};

/// The base path.
const BASE: &str = "/pusher";

/// What an operator may choose.
pub struct Settings {
    pages: Pages,
    cookie: bool,
    /// The host that clients are to send everything to.
    host: Option<String>,
}

impl Settings {
    /// As the variables say.
    pub fn of(values: &Values) -> Self {
        Self {
            pages: Pages::new(values.list(name::SOCKJS_SCRIPTS)),
            cookie: values.text(name::SOCKJS_COOKIE) == "on",
            host: session_host(values),
        }
    }
}

/// What the requests share.
#[derive(Clone)]
struct Context {
    shared: Arc<Shared>,
    sessions: Arc<SockJs>,
    settings: Arc<Settings>,
    transports: Arc<[Transport]>,
}

impl Context {
    fn serves(&self, transport: Transport) -> bool {
        self.transports.contains(&transport)
    }
}

/// Everything below the base path that no other route has; `None` when there is nothing to serve there.
pub fn routes(
    shared: &Arc<Shared>,
    sessions: &Arc<SockJs>,
    settings: &Arc<Settings>,
    transports: &[Transport],
    guard: &Guard,
) -> Option<Router> {
    let ours =
        [Transport::SockjsWebsocket, Transport::SockjsXhrStreaming, Transport::SockjsXhr, Transport::SockjsEventsource];
    let transports: Arc<[Transport]> = ours.into_iter().filter(|ours| transports.contains(ours)).collect();
    if transports.is_empty() {
        return None;
    }
    let (shared, sessions, settings) = (shared.clone(), sessions.clone(), settings.clone());
    let context = Context { shared, sessions, settings, transports };
    // What the protocol answers to a wrong method or path is its own.
    let routes = Router::new()
        .route(BASE, any(http::serve))
        .route("/pusher/", any(http::serve))
        .route("/pusher/{*rest}", any(http::serve));
    let routes = routes.with_state(context);
    Some(match guard {
        Guard::None => routes,
        Guard::Pass(peers) => routes.layer(from_fn_with_state(peers.clone(), http::pass)),
        Guard::Enter(door) => routes.layer(from_fn_with_state(door.clone(), http::enter)),
    })
}
