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
use axum::routing::any;

use super::shared::Shared;
use crate::contract::{Values, name};
use page::Pages;
use session::SockJs;

/// The base path.
const BASE: &str = "/pusher";

/// What an operator may choose.
pub struct Settings {
    pages: Pages,
    cookie: bool,
}

impl Settings {
    /// As the variables say.
    pub fn of(values: &Values) -> Self {
        Self { pages: Pages::new(values.list(name::SOCKJS_SCRIPTS)), cookie: values.text(name::SOCKJS_COOKIE) == "on" }
    }
}

/// What the requests share.
#[derive(Clone)]
struct Context {
    shared: Arc<Shared>,
    sessions: Arc<SockJs>,
    settings: Arc<Settings>,
}

/// Everything below the base path that no other route has.
pub fn routes(shared: &Arc<Shared>, settings: Arc<Settings>) -> Router {
    let context = Context { shared: shared.clone(), sessions: Arc::default(), settings };
    // What the protocol answers to a wrong method or path is its own.
    Router::new()
        .route(BASE, any(http::serve))
        .route("/pusher/", any(http::serve))
        .route("/pusher/{*rest}", any(http::serve))
        .with_state(context)
}
