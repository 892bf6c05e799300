//! The refusals of the HTTP API: a status, and a sentence that says why.

use axum::http::StatusCode;

/// A status and the sentence that goes with it.
pub(super) type ApiRefusal = (StatusCode, String);

/// Refuses a request whose parameters or body are wrong.
pub(super) fn bad_request(message: impl Into<String>) -> ApiRefusal {
    (StatusCode::BAD_REQUEST, message.into())
}
