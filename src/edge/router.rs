//! The public paths. What is not here does not exist: 404.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use super::client::Trusted;
use super::fallback::Fallback;
use super::fallback_http::{Context, cross_origin, polling, preflight, send, streaming};
use super::listener::{MAX_BODY, arrive};
use super::shared::Shared;
use super::{http_api, sockjs, websocket};
use crate::protocol::Transport;

/// Largest body of a send: a client event at its limit, escaped twice.
pub const MAX_SEND_BODY: usize = 256 << 10;

/// The paths of an edge that serves these transports.
pub fn router(
    shared: &Arc<Shared>,
    fallback: &Arc<Fallback>,
    transports: &[Transport],
    sockjs: sockjs::Settings,
    trusted: Trusted,
) -> Router {
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
    let serves = |transport| transports.contains(&transport);
    let mut router = api;
    if serves(Transport::Websocket) {
        let sockets = Router::new().route("/app/{key}", get(websocket::upgrade)).fallback(websocket::elsewhere);
        router = router.merge(sockets.with_state(shared.clone()));
    }
    let (stream, poll) = (serves(Transport::XhrStreaming), serves(Transport::XhrPolling));
    if stream || poll {
        let base = "/pusher/app/{key}/{srv}/{session}";
        let mut requests = Router::new().route(&format!("{base}/xhr_send"), post(send).options(preflight));
        if stream {
            requests = requests.route(&format!("{base}/xhr_streaming"), post(streaming).options(preflight));
        }
        if poll {
            requests = requests.route(&format!("{base}/xhr"), post(polling).options(preflight));
        }
        let context = Context { shared: shared.clone(), fallback: fallback.clone() };
        let requests = requests
            .layer(DefaultBodyLimit::max(MAX_SEND_BODY))
            .layer(from_fn_with_state(context.clone(), cross_origin));
        router = router.merge(requests.with_state(context));
    }
    if let Some(routes) = sockjs::routes(shared, sockjs, transports) {
        router = router.merge(routes.layer(DefaultBodyLimit::max(MAX_SEND_BODY)));
    }
    router.layer(from_fn_with_state(trusted, arrive))
}
