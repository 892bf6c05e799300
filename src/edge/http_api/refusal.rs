//! The refusals of the HTTP API: a status, and a sentence that says why.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::edge::hub::core::Hub;
use crate::edge::metrics::RefusalReason;

/// Time after which a backend repeats a request that the bus did not take, or that exceeds the rate of its app.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// A status and the sentence that goes with it.
pub(super) type ApiRefusal = (StatusCode, String);

/// Refuses a request whose parameters or body are wrong.
pub(super) fn bad_request(message: impl Into<String>) -> ApiRefusal {
    (StatusCode::BAD_REQUEST, message.into())
}

/// The answer to a request, or its refusal, which is counted.
pub(super) fn respond_json(shared: &Hub, answer: Result<Value, ApiRefusal>) -> Response {
    match answer {
        Ok(answer) => axum::Json(answer).into_response(),
        Err((status, told)) => {
            shared.metrics.refusals.with_label(RefusalReason::HttpApi).inc();
            let mut response = (status, format!("{told}\n")).into_response();
            if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
                response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
            }
            response
        }
    }
}
