//! The admin listener: `/livez`, `/readyz`, `/metrics`, and with the token `/effective`, `/flow`, on a dispatcher
//! `/endpoints`, and on an edge `/drain` and `/tail`.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt;
use futures::stream::BoxStream;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::Value;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::process::bounded_listener::{BoundedListener, ListenerBounds};

/// The content type of `OpenMetrics` 1.0.
const OPENMETRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The bounds of the listener: kubelet, Prometheus and an operator need a few connections each. Anybody in the cluster
/// reaches it, and its sockets are taken from those of clients.
const ADMIN_LISTENER_BOUNDS: ListenerBounds =
    ListenerBounds { connections: 128, address_connections: 32, idle_timeout: Duration::from_secs(75) };

/// Checks the health of a process.
pub type HealthCheckFn = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The process's answers to the listener's requests.
pub struct AdminEndpoints {
    /// The bearer token of the guarded paths.
    pub token: String,
    /// Whether the process makes progress; the text gives the reason when it must be restarted.
    pub live: HealthCheckFn,
    /// Whether the process is ready; the text gives the reason when it is not.
    pub ready: HealthCheckFn,
    /// The configuration that the process runs, the answer of `/effective`.
    pub effective: Box<dyn Fn() -> Value + Send + Sync>,
    /// The events that pass through the process, the answer of `/flow`.
    pub flow: Box<dyn Fn() -> Value + Send + Sync>,
    /// The state of each webhook endpoint, the answer of `/endpoints`, on a process that sends webhooks.
    pub endpoints: Option<Box<dyn Fn() -> Value + Send + Sync>>,
    /// Control of the drain, on a process with clients.
    pub drain: Option<DrainControl>,
    /// The connection log, the answer of `/tail`, on a process with clients.
    pub tail: Option<Box<FollowLogFn>>,
    /// The metrics of the process.
    pub metrics: Registry,
}

/// Starts a drain, or that of a share of the clients, as the query of a request to `/drain` says.
type BeginDrainFn = dyn Fn(&str) -> Result<(), String> + Send + Sync;

/// Follows the connection log as the query of a request says.
pub type FollowLogFn = dyn Fn(&str) -> Result<BoxStream<'static, String>, TailRefusal> + Send + Sync;

/// The reason for which the connection log cannot be followed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TailRefusal {
    /// The query is not one of this release.
    #[error("{0}: write /tail or /tail?app=ID")]
    Query(String),
    /// All places for readers are taken.
    #[error("{0} readers follow the log already: stop one of them")]
    Full(usize),
}

/// Starts a process's drain and reports its progress.
pub struct DrainControl {
    /// Begins the drain, or the move of a share of the clients; the text gives the reason of a refusal.
    pub begin: Box<BeginDrainFn>,
    /// The progress of the drain.
    pub progress: Box<dyn Fn() -> Value + Send + Sync>,
}

/// Serves until the token is cancelled.
///
/// # Errors
/// The listener fails while it serves.
pub fn serve(
    listener: TcpListener,
    admin: AdminEndpoints,
    shutdown: CancellationToken,
) -> impl Future<Output = std::io::Result<()>> + Send {
    let router = build_router(admin);
    let listener = BoundedListener::new(listener, ADMIN_LISTENER_BOUNDS);
    async move { axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await }
}

fn build_router(admin: AdminEndpoints) -> Router {
    let router = Router::new();
    let router = if admin.drain.is_some() {
        router.route("/drain", get(serve_drain_progress).post(begin_drain))
    } else {
        router
    };
    let router = if admin.tail.is_some() { router.route("/tail", get(serve_tail)) } else { router };
    let router = if admin.endpoints.is_some() { router.route("/endpoints", get(serve_endpoints)) } else { router };
    router
        .route("/livez", get(serve_liveness))
        .route("/readyz", get(serve_readiness))
        .route("/metrics", get(serve_metrics))
        .route("/effective", get(serve_effective))
        .route("/flow", get(serve_flow))
        .with_state(Arc::new(admin))
}

async fn serve_liveness(State(admin): State<Arc<AdminEndpoints>>) -> Response {
    health_response((admin.live)())
}

async fn serve_readiness(State(admin): State<Arc<AdminEndpoints>>) -> Response {
    health_response((admin.ready)())
}

fn health_response(health: Result<(), String>) -> Response {
    match health {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn serve_metrics(State(admin): State<Arc<AdminEndpoints>>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &admin.metrics) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS_CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn serve_effective(State(admin): State<Arc<AdminEndpoints>>, headers: HeaderMap) -> Response {
    require_token(&admin, &headers, || json_response(&(admin.effective)()))
}

async fn serve_flow(State(admin): State<Arc<AdminEndpoints>>, headers: HeaderMap) -> Response {
    require_token(&admin, &headers, || json_response(&(admin.flow)()))
}

async fn serve_endpoints(State(admin): State<Arc<AdminEndpoints>>, headers: HeaderMap) -> Response {
    require_token(&admin, &headers, || {
        json_response(&admin.endpoints.as_ref().map_or(Value::Null, |endpoints| endpoints()))
    })
}

async fn serve_drain_progress(State(admin): State<Arc<AdminEndpoints>>, headers: HeaderMap) -> Response {
    require_token(&admin, &headers, || {
        json_response(&admin.drain.as_ref().map_or(Value::Null, |drain| (drain.progress)()))
    })
}

async fn begin_drain(
    State(admin): State<Arc<AdminEndpoints>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    require_token(&admin, &headers, || {
        let Some(drain) = &admin.drain else { return StatusCode::NOT_FOUND.into_response() };
        match (drain.begin)(query.as_deref().unwrap_or_default()) {
            Ok(()) => (StatusCode::ACCEPTED, json_response(&(drain.progress)())).into_response(),
            Err(refusal) => (StatusCode::BAD_REQUEST, format!("{refusal}\n")).into_response(),
        }
    })
}

async fn serve_tail(
    State(admin): State<Arc<AdminEndpoints>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    require_token(&admin, &headers, || {
        let Some(tail) = &admin.tail else { return StatusCode::NOT_FOUND.into_response() };
        match tail(query.as_deref().unwrap_or_default()) {
            Ok(lines) => {
                let body = Body::from_stream(lines.map(Ok::<_, Infallible>));
                ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
            }
            Err(refusal @ TailRefusal::Query(_)) => (StatusCode::BAD_REQUEST, format!("{refusal}\n")).into_response(),
            Err(refusal @ TailRefusal::Full(_)) => {
                (StatusCode::TOO_MANY_REQUESTS, format!("{refusal}\n")).into_response()
            }
        }
    })
}

fn json_response(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn require_token(admin: &AdminEndpoints, headers: &HeaderMap, answer: impl FnOnce() -> Response) -> Response {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let expected = format!("Bearer {}", admin.token);
    if !admin.token.is_empty() && bool::from(given.as_bytes().ct_eq(expected.as_bytes())) {
        answer()
    } else {
        let hint = "this path needs `Authorization: Bearer TOKEN` with the cluster's admin token\n";
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], hint).into_response()
    }
}
