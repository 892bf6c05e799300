//! Authentication of HTTP API requests by the app's signature.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::timeout;
use url::form_urlencoded;

use crate::edge::http_api::refusal::{ApiRefusal, respond_json};
use crate::edge::hub::core::Hub;
use crate::edge::intake::byte_budget::InputCharge;
use crate::edge::metrics::RefusalReason;
use crate::process::clock;
use crate::protocol::AppId;
use crate::protocol::registry::{App, AppLimits};
use crate::protocol::rest::{self, RestAuthError, RestRequest};

/// Longest time in which the body of a refused request is read and thrown away.
const REFUSED_BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// The path of a request with the base path, which was removed before its route.
#[derive(Clone, Debug)]
pub struct PrefixedPath(pub String);

/// A request that its app signed, with its body.
pub struct ApiRequest {
    /// The app that signed the request.
    pub app: AppId,
    /// The limits of the app.
    pub limits: AppLimits,
    query: Vec<(String, String)>,
    /// The raw bytes of the body.
    pub body: Bytes,
}

impl FromRequest<Arc<Hub>> for ApiRequest {
    type Rejection = Response;

    /// Verifies the signature of the query before it reads the body: a stranger's body takes no memory.
    async fn from_request(request: Request, shared: &Arc<Hub>) -> Result<Self, Response> {
        let refuse = |refusal: ApiRefusal| respond_json(shared, Err(refusal));
        let (mut parts, body) = request.into_parts();
        let head = RequestHead::from_parts(&parts);
        let Path(names) = Path::<HashMap<String, String>>::from_request_parts(&mut parts, shared)
            .await
            .map_err(IntoResponse::into_response)?;
        let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        // A body of unknown length may be empty; one that is not is refused once it is read.
        let has_body = length.is_some_and(|length| length != "0");
        let authenticated = match names.get("id") {
            Some(id) => head.authenticate(shared, id, has_body),
            None => head.authenticate_by_key(shared, has_body),
        };
        let charge = parts.extensions.get::<Arc<InputCharge>>().cloned();
        let (app, limits) = match authenticated {
            Ok(authenticated) => authenticated,
            Err(refusal) => {
                discard_body(body, charge.as_deref()).await;
                return Err(refuse(refusal));
            }
        };
        let registry = shared.apps.current();
        if !shared.api_rates.try_take(&registry, &app, limits.api_requests_per_second, Instant::now()) {
            shared.metrics.refusals.with_label(RefusalReason::ApiRequestRate).inc();
            let most = limits.api_requests_per_second.unwrap_or_default();
            let told = format!("the app has made {most} requests in this second, which is its limit");
            discard_body(body, charge.as_deref()).await;
            return Err(refuse((StatusCode::TOO_MANY_REQUESTS, told)));
        }
        if let Some(charge) = charge {
            charge.mark_signed();
        }
        let body = Bytes::from_request(Request::from_parts(parts, body), shared);
        let body = body.await.map_err(IntoResponse::into_response)?;
        head.signed_request(&body).verify_body().map_err(|error| refuse(unauthorized(error.to_string())))?;
        Ok(Self { app, limits, query: head.query, body })
    }
}

impl ApiRequest {
    /// Returns the value of a query parameter.
    pub fn query_parameter(&self, name: &str) -> Option<&str> {
        rest::query_parameter(&self.query, name)
    }
}

/// Reads what is left of a refused body, and keeps none of it: a connection that is closed with unread bytes is reset, and
/// the client may lose its answer. A client that sends slowly is not waited for.
async fn discard_body(body: Body, charge: Option<&InputCharge>) {
    let mut parts = body.into_data_stream();
    let discarded = async {
        while let Some(Ok(_)) = parts.next().await {
            if let Some(charge) = charge {
                charge.release();
            }
        }
    };
    let _ = timeout(REFUSED_BODY_TIMEOUT, discarded).await;
}

/// The parts of a request that a signature covers, without its body.
struct RequestHead {
    method: String,
    /// The paths that may have been signed: without the base path, with it, and each decoded.
    paths: Vec<String>,
    query: Vec<(String, String)>,
}

impl RequestHead {
    fn from_parts(parts: &Parts) -> Self {
        let query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
        let prefixed = parts.extensions.get().map(|PrefixedPath(path)| path.clone());
        let sent: Vec<String> = std::iter::once(parts.uri.path().to_owned()).chain(prefixed).collect();
        let decoded: Vec<String> = sent.iter().filter_map(|path| rest::decode_path(path)).collect();
        Self { method: parts.method.to_string(), paths: [sent, decoded].concat(), query }
    }

    /// Returns the app of this id with its limits, if its secret signed the request.
    fn authenticate(&self, shared: &Hub, id: &str, has_body: bool) -> Result<(AppId, AppLimits), ApiRefusal> {
        let registry = shared.apps.current();
        let app = registry
            .by_id(&AppId::from(id))
            .ok_or_else(|| (StatusCode::NOT_FOUND, rest::UNKNOWN_APP_ANSWER.to_owned()))?;
        self.verify_signature(app, has_body)
    }

    /// Returns the app of the request's key with its limits, if its secret signed the request.
    fn authenticate_by_key(&self, shared: &Hub, has_body: bool) -> Result<(AppId, AppLimits), ApiRefusal> {
        let registry = shared.apps.current();
        let app = registry.by_key(self.auth_key()?);
        self.verify_signature(app.ok_or_else(|| unauthorized("`auth_key` is not a key of any app"))?, has_body)
    }

    fn verify_signature(&self, app: &App, has_body: bool) -> Result<(AppId, AppLimits), ApiRefusal> {
        let secret =
            app.secret_for(self.auth_key()?).ok_or_else(|| unauthorized("`auth_key` is not a key of this app"))?;
        let (request, now) = (self.signed_request(&[]), clock::now_ms() / 1000);
        let mut verified = request.verify_query(secret, now, has_body);
        for path in self.paths.iter().skip(1) {
            // The error names the first path.
            if matches!(verified, Err(RestAuthError::Signature(_))) {
                verified = RestRequest { path, ..request }.verify_query(secret, now, has_body).or(verified);
            }
        }
        verified.map_err(|error| unauthorized(error.to_string()))?;
        if !app.enabled {
            return Err((StatusCode::FORBIDDEN, "the app is disabled".into()));
        }
        Ok((app.id.clone(), app.limits))
    }

    fn auth_key(&self) -> Result<&str, ApiRefusal> {
        rest::query_parameter(&self.query, "auth_key").ok_or_else(|| unauthorized("the query lacks `auth_key`"))
    }

    fn signed_request<'a>(&'a self, body: &'a [u8]) -> RestRequest<'a> {
        let path = self.paths.first().map_or("", String::as_str);
        RestRequest { method: &self.method, path, query: &self.query, body }
    }
}

fn unauthorized(told: impl Into<String>) -> ApiRefusal {
    (StatusCode::UNAUTHORIZED, told.into())
}
