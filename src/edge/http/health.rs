//! The answers to health checks of load balancers, on the public port.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::process::admin::HealthCheckFn;

/// The state of the server, as load balancers ask for it.
pub struct HealthChecks {
    /// Whether existing connections are served: from admission to the end of the drain's hold.
    pub is_serving: HealthCheckFn,
    /// Whether new connections are welcome: from admission to the first moment of the drain.
    pub is_ready: HealthCheckFn,
}

/// The paths of health checks. `HEAD` is answered as `GET`.
pub fn build_health_routes(checks: &Arc<HealthChecks>) -> Router {
    let answer_serving = || {
        let checks = checks.clone();
        get(move || std::future::ready(answer_check((checks.is_serving)())))
    };
    let ready = checks.clone();
    Router::new()
        .route("/healthz", answer_serving())
        .route("/up", answer_serving())
        .route("/readyz", get(move || std::future::ready(answer_check((ready.is_ready)()))))
}

fn answer_check(health: Result<(), String>) -> Response {
    match health {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}
