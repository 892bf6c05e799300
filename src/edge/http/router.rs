//! The public paths. A path that is not here is answered with 404.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};

use crate::edge::http::health::{HealthChecks, build_health_routes};
use crate::edge::http::listener::{BODY_BYTES_MAX, RequestScreen, bound_relayed_body, screen_request};
use crate::edge::http::session_routes::{RelayGuard, RouteState, build_session_routes};
use crate::edge::http_api;
use crate::edge::hub::core::Hub;
use crate::edge::relay::RelayServer;
use crate::edge::transport::websocket;
use crate::protocol::Transport;
use crate::protocol::relay::{self, RelayRefusal};

/// The paths of an edge.
pub fn build_public_router(
    state: &RouteState,
    guard: &RelayGuard,
    screen: &RequestScreen,
    checks: &Arc<HealthChecks>,
) -> Router {
    let shared = &state.shared;
    let api = Router::new()
        .route("/apps/{id}/events", post(http_api::trigger_event))
        .route("/apps/{id}/batch_events", post(http_api::trigger_batch))
        .route("/apps/{id}/channels", get(http_api::list_channels))
        .route("/apps/{id}/channels/{name}", get(http_api::show_channel))
        .route("/apps/{id}/channels/{name}/users", get(http_api::list_users))
        .route("/apps/{id}/users/{user}/terminate_connections", post(http_api::terminate_user))
        .route("/users/{user}/terminate_connections", post(http_api::terminate_user_by_key))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared.hub.clone());
    let mut router = api;
    if state.transports.contains(&Transport::Websocket) {
        let sockets = Router::new()
            .route("/app/{key}", get(websocket::upgrade_websocket))
            .fallback(websocket::refuse_unknown_path);
        router = router.merge(sockets.with_state(shared.clone()));
    }
    let router = router.merge(build_session_routes(state, guard)).merge(build_health_routes(checks));
    router
        .layer(from_fn_with_state(screen.clone(), screen_request))
        .layer(from_fn_with_state(shared.hub.clone(), count_spoofed_relay_headers))
}

/// The paths on which other processes relay requests: the paths of sessions only.
pub fn build_relay_router(state: &RouteState, server: &Arc<RelayServer>, screen: &RequestScreen) -> Router {
    let refused = server.clone();
    build_session_routes(state, &RelayGuard::Inbound(server.clone()))
        .fallback(move || std::future::ready(refused.refuse_request(RelayRefusal::NotASession)))
        .layer(from_fn_with_state(screen.clone(), bound_relayed_body))
}

/// Counts requests on the public listener that carry the headers of a relay; each is served as one of a client.
async fn count_spoofed_relay_headers(State(shared): State<Arc<Hub>>, request: Request, next: Next) -> Response {
    if request.headers().contains_key(relay::RELAY_HEADER)
        || request.headers().contains_key(relay::RELAY_SIGNATURE_HEADER)
    {
        shared.metrics.relay_refusals.with_label(RelayRefusal::PublicPort).inc();
    }
    next.run(request).await
}
