//! The public paths. What is not here does not exist: 404.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};

use super::client::Trusted;
use super::fallback::Fallback;
use super::fallback_http::{Context, cross_origin, enter, pass, polling, preflight, send, streaming};
use super::listener::{MAX_BODY, arrive, body_in_time};
use super::peer::{Door, Peers};
use super::shared::Shared;
use super::sockjs::SockJs;
use super::{http_api, sockjs, websocket};
use crate::protocol::Transport;
use crate::protocol::relay::{self, Refusal};

/// Largest body of a send: a client event at its limit, escaped twice.
pub const MAX_SEND_BODY: usize = 256 << 10;

/// What an edge serves its paths from.
pub struct Served {
    /// The edge.
    pub shared: Arc<Shared>,
    /// Sessions of pusher-js's own fallbacks.
    pub fallback: Arc<Fallback>,
    /// Sessions of `SockJS`.
    pub sockjs: Arc<SockJs>,
    /// What an operator chose for `SockJS`.
    pub settings: Arc<sockjs::Settings>,
    /// What opens a session of pusher-js's own fallbacks.
    pub open: Arc<str>,
    /// What is served.
    pub transports: Vec<Transport>,
}

/// What stands before the sessions of the HTTP fallbacks.
pub enum Guard {
    /// Nothing: this process is the only one.
    None,
    /// For clients: a request goes where its session is.
    Pass(Arc<Peers>),
    /// For other processes: a request is believed if one of them signed it.
    Enter(Arc<Door>),
}

/// The paths of an edge.
pub fn router(served: &Served, guard: &Guard, trusted: Trusted) -> Router {
    let shared = &served.shared;
    let api = Router::new()
        .route("/apps/{id}/events", post(http_api::events))
        .route("/apps/{id}/batch_events", post(http_api::batch_events))
        .route("/apps/{id}/channels", get(http_api::channels))
        .route("/apps/{id}/channels/{name}", get(http_api::channel))
        .route("/apps/{id}/channels/{name}/users", get(http_api::users))
        .route("/apps/{id}/users/{user}/terminate_connections", post(http_api::terminate))
        .route("/users/{user}/terminate_connections", post(http_api::terminate_by_key))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared.clone());
    let mut router = api;
    if served.transports.contains(&Transport::Websocket) {
        let sockets = Router::new().route("/app/{key}", get(websocket::upgrade)).fallback(websocket::elsewhere);
        router = router.merge(sockets.with_state(shared.clone()));
    }
    let router = router.merge(sessions(served, guard));
    router.layer(from_fn_with_state(trusted, arrive)).layer(from_fn_with_state(shared.clone(), disbelieve))
}

/// The paths on which other processes hand requests in: those of sessions, and no others.
pub fn peer_router(served: &Served, door: &Arc<Door>) -> Router {
    let refused = door.clone();
    sessions(served, &Guard::Enter(door.clone()))
        .fallback(move || std::future::ready(refused.refuse(Refusal::NotASession)))
        .layer(from_fn(body_in_time))
}

/// The paths of the HTTP fallbacks.
fn sessions(served: &Served, guard: &Guard) -> Router {
    let Served { shared, fallback, sockjs, settings, open, transports } = served;
    let offered = |transport| transports.contains(&transport);
    let mut router = Router::new();
    let (stream, poll) = (offered(Transport::XhrStreaming), offered(Transport::XhrPolling));
    if stream || poll {
        let base = "/pusher/app/{key}/{srv}/{session}";
        let mut requests = Router::new().route(&format!("{base}/xhr_send"), post(send).options(preflight));
        if stream {
            requests = requests.route(&format!("{base}/xhr_streaming"), post(streaming).options(preflight));
        }
        if poll {
            requests = requests.route(&format!("{base}/xhr"), post(polling).options(preflight));
        }
        let context = Context { shared: shared.clone(), fallback: fallback.clone(), open: open.clone() };
        let requests = requests.with_state(context.clone());
        let requests = match guard {
            Guard::None => requests,
            Guard::Pass(peers) => requests.layer(from_fn_with_state(peers.clone(), pass)),
            Guard::Enter(door) => requests.layer(from_fn_with_state(door.clone(), enter)),
        };
        router = router.merge(
            requests.layer(DefaultBodyLimit::max(MAX_SEND_BODY)).layer(from_fn_with_state(context, cross_origin)),
        );
    }
    if let Some(routes) = sockjs::routes(shared, sockjs, settings, transports, guard) {
        router = router.merge(routes.layer(DefaultBodyLimit::max(MAX_SEND_BODY)));
    }
    router
}

/// Counts who says to be a process of the cluster where clients come in; it is one client more.
async fn disbelieve(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    if request.headers().contains_key(relay::HANDED) || request.headers().contains_key(relay::SIGNATURE) {
        shared.metrics.relay_refused(Refusal::PublicPort.name()).inc();
    }
    next.run(request).await
}
