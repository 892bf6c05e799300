//! The admin listener: `/livez`, `/readyz`, `/metrics`, and with the token `/effective` and `/flow`.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::Value;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The content type of `OpenMetrics` 1.0.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the listener asks the process.
pub struct Admin {
    /// The bearer token of the guarded paths.
    pub token: String,
    /// Whether the process takes work; the text says why not.
    pub ready: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// What the process really runs.
    pub effective: Box<dyn Fn() -> Value + Send + Sync>,
    /// What flows through it.
    pub flow: Box<dyn Fn() -> Value + Send + Sync>,
    /// Its metrics.
    pub metrics: Registry,
}

/// Serves until the token ends it.
///
/// # Errors
/// The listener fails.
pub fn serve(
    listener: TcpListener,
    admin: Admin,
    shutdown: CancellationToken,
) -> impl Future<Output = std::io::Result<()>> + Send {
    let router = router(admin);
    async move { axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await }
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/effective", get(effective))
        .route("/flow", get(flow))
        .with_state(Arc::new(admin))
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    match (admin.ready)() {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &admin.metrics) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn effective(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    guarded(&admin, &headers, &admin.effective)
}

async fn flow(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    guarded(&admin, &headers, &admin.flow)
}

fn guarded(admin: &Admin, headers: &HeaderMap, answer: &(dyn Fn() -> Value + Send + Sync)) -> Response {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let expected = format!("Bearer {}", admin.token);
    if !admin.token.is_empty() && bool::from(given.as_bytes().ct_eq(expected.as_bytes())) {
        ([(header::CONTENT_TYPE, "application/json")], answer().to_string()).into_response()
    } else {
        let hint = "this path needs `Authorization: Bearer TOKEN` with the cluster's admin token\n";
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], hint).into_response()
    }
}
