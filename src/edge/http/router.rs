//! The public paths. What is not here does not exist: 404.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};

use crate::edge::apps::client_address::TrustedProxies;
use crate::edge::http::listener::{BODY_BYTES_MAX, limit_body_time, screen_request};
use crate::edge::http_api;
use crate::edge::hub::Hub;
use crate::edge::relay::{RelayServer, SessionRelay};
use crate::edge::transport::sockjs::SockjsSessions;
use crate::edge::transport::xhr::http::{
    XhrContext, accept_relayed, answer_preflight, receive_messages, receive_polling, receive_streaming, relay_or_serve,
    set_cross_origin_headers,
};
use crate::edge::transport::xhr::session::XhrSessions;
use crate::edge::transport::{sockjs, websocket};
use crate::protocol::Transport;
use crate::protocol::relay::{self, RelayRefusal};

/// Largest body of a send: a client event at its limit, escaped twice.
pub const SEND_BODY_BYTES_MAX: usize = 256 << 10;

/// What an edge serves its paths from.
pub struct RouteState {
    /// The edge.
    pub shared: Arc<Hub>,
    /// Sessions of pusher-js's own fallbacks.
    pub fallback: Arc<XhrSessions>,
    /// Sessions of `SockJS`.
    pub sockjs: Arc<SockjsSessions>,
    /// What an operator chose for `SockJS`.
    pub settings: Arc<sockjs::SockjsSettings>,
    /// What opens a session of pusher-js's own fallbacks.
    pub open: Arc<str>,
    /// What is served.
    pub transports: Vec<Transport>,
}

/// What stands before the sessions of the HTTP fallbacks.
pub enum RelayGuard {
    /// Nothing: this process is the only one.
    None,
    /// For clients: a request goes where its session is.
    Outbound(Arc<SessionRelay>),
    /// For other processes: a request is believed if one of them signed it.
    Inbound(Arc<RelayServer>),
}

/// The paths of an edge.
pub fn build_public_router(served: &RouteState, guard: &RelayGuard, trusted: TrustedProxies) -> Router {
    let shared = &served.shared;
    let api = Router::new()
        .route("/apps/{id}/events", post(http_api::trigger_event))
        .route("/apps/{id}/batch_events", post(http_api::trigger_batch))
        .route("/apps/{id}/channels", get(http_api::list_channels))
        .route("/apps/{id}/channels/{name}", get(http_api::show_channel))
        .route("/apps/{id}/channels/{name}/users", get(http_api::list_users))
        .route("/apps/{id}/users/{user}/terminate_connections", post(http_api::terminate_user))
        .route("/users/{user}/terminate_connections", post(http_api::terminate_user_by_key))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared.clone());
    let mut router = api;
    if served.transports.contains(&Transport::Websocket) {
        let sockets = Router::new()
            .route("/app/{key}", get(websocket::upgrade_websocket))
            .fallback(websocket::refuse_unknown_path);
        router = router.merge(sockets.with_state(shared.clone()));
    }
    let router = router.merge(build_session_routes(served, guard));
    router
        .layer(from_fn_with_state(trusted, screen_request))
        .layer(from_fn_with_state(shared.clone(), count_spoofed_relay_headers))
}

/// The paths on which other processes hand requests in: those of sessions, and no others.
pub fn build_relay_router(served: &RouteState, door: &Arc<RelayServer>) -> Router {
    let refused = door.clone();
    build_session_routes(served, &RelayGuard::Inbound(door.clone()))
        .fallback(move || std::future::ready(refused.refuse_request(RelayRefusal::NotASession)))
        .layer(from_fn(limit_body_time))
}

/// The paths of the HTTP fallbacks.
fn build_session_routes(served: &RouteState, guard: &RelayGuard) -> Router {
    let RouteState { shared, fallback, sockjs, settings, open, transports } = served;
    let offered = |transport| transports.contains(&transport);
    let mut router = Router::new();
    let (stream, poll) = (offered(Transport::XhrStreaming), offered(Transport::XhrPolling));
    if stream || poll {
        let base = "/pusher/app/{key}/{srv}/{session}";
        let mut requests =
            Router::new().route(&format!("{base}/xhr_send"), post(receive_messages).options(answer_preflight));
        if stream {
            requests =
                requests.route(&format!("{base}/xhr_streaming"), post(receive_streaming).options(answer_preflight));
        }
        if poll {
            requests = requests.route(&format!("{base}/xhr"), post(receive_polling).options(answer_preflight));
        }
        let context = XhrContext { shared: shared.clone(), fallback: fallback.clone(), open: open.clone() };
        let requests = requests.with_state(context.clone());
        let requests = match guard {
            RelayGuard::None => requests,
            RelayGuard::Outbound(peers) => requests.layer(from_fn_with_state(peers.clone(), relay_or_serve)),
            RelayGuard::Inbound(door) => requests.layer(from_fn_with_state(door.clone(), accept_relayed)),
        };
        router = router.merge(
            requests
                .layer(DefaultBodyLimit::max(SEND_BODY_BYTES_MAX))
                .layer(from_fn_with_state(context, set_cross_origin_headers)),
        );
    }
    if let Some(routes) = sockjs::build_routes(shared, sockjs, settings, transports, guard) {
        router = router.merge(routes.layer(DefaultBodyLimit::max(SEND_BODY_BYTES_MAX)));
    }
    router
}

/// Counts who says to be a process of the cluster where clients come in; it is one client more.
async fn count_spoofed_relay_headers(State(shared): State<Arc<Hub>>, request: Request, next: Next) -> Response {
    if request.headers().contains_key(relay::RELAY_HEADER)
        || request.headers().contains_key(relay::RELAY_SIGNATURE_HEADER)
    {
        shared.metrics.relay_refused(RelayRefusal::PublicPort.name()).inc();
    }
    next.run(request).await
}
