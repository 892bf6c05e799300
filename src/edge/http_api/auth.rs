//! Authentication of HTTP API requests by the app's signature.

use axum::extract::FromRequest;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use url::form_urlencoded;

use crate::edge::http_api::refusal::ApiRefusal;
use crate::edge::hub::core::Hub;
use crate::process::clock;
use crate::protocol::AppId;
use crate::protocol::registry::{App, AppLimits};
use crate::protocol::rest::{self, RestAuthError, RestRequest};

/// The path of a request with the base path, which was removed before its route.
#[derive(Clone, Debug)]
pub struct PrefixedPath(pub String);

/// A request as it arrived.
pub struct ApiRequest {
    method: String,
    /// The paths that may have been signed: without the base path, with it, and each decoded.
    paths: Vec<String>,
    query: Vec<(String, String)>,
    /// The raw bytes of the body.
    pub body: Bytes,
}

impl<S: Send + Sync> FromRequest<S> for ApiRequest {
    type Rejection = Response;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Response> {
        let (method, uri) = (request.method().to_string(), request.uri().clone());
        let query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
        let prefixed = request.extensions().get().map(|PrefixedPath(path)| path.clone());
        let sent: Vec<String> = std::iter::once(uri.path().to_owned()).chain(prefixed).collect();
        let decoded: Vec<String> = sent.iter().filter_map(|path| rest::decode_path(path)).collect();
        let paths = [sent, decoded].concat();
        let body = Bytes::from_request(request, state).await.map_err(IntoResponse::into_response)?;
        Ok(Self { method, paths, query, body })
    }
}

impl ApiRequest {
    /// Returns the value of a query parameter.
    pub fn query_parameter(&self, name: &str) -> Option<&str> {
        self.signed_request().query_parameter(name)
    }

    /// Returns the app of this id with its limits, if its secret signed the request.
    pub fn authenticate(&self, shared: &Hub, id: String) -> Result<(AppId, AppLimits), ApiRefusal> {
        let registry = shared.apps.current();
        let app = registry
            .by_id(&AppId(id))
            .ok_or_else(|| (StatusCode::NOT_FOUND, "there is no app with this id".to_owned()))?;
        self.verify_signature(app)
    }

    /// Returns the app of the request's key with its limits, if its secret signed the request.
    pub fn authenticate_by_key(&self, shared: &Hub) -> Result<(AppId, AppLimits), ApiRefusal> {
        let registry = shared.apps.current();
        let key = self.auth_key()?;
        self.verify_signature(registry.by_key(key).ok_or_else(|| unauthorized("`auth_key` is not a key of any app"))?)
    }

    fn verify_signature(&self, app: &App) -> Result<(AppId, AppLimits), ApiRefusal> {
        let secret =
            app.secret_for(self.auth_key()?).ok_or_else(|| unauthorized("`auth_key` is not a key of this app"))?;
        let (request, now) = (self.signed_request(), clock::now_ms() / 1000);
        let mut verified = request.verify(secret, now);
        for path in self.paths.iter().skip(1) {
            // The error names the first path.
            if matches!(verified, Err(RestAuthError::Signature(_))) {
                verified = RestRequest { path, ..request }.verify(secret, now).or(verified);
            }
        }
        verified.map_err(|error| unauthorized(error.to_string()))?;
        if !app.enabled {
            return Err((StatusCode::FORBIDDEN, "the app is disabled".into()));
        }
        Ok((app.id.clone(), app.limits))
    }

    fn auth_key(&self) -> Result<&str, ApiRefusal> {
        self.query_parameter("auth_key").ok_or_else(|| unauthorized("the query lacks `auth_key`"))
    }

    fn signed_request(&self) -> RestRequest<'_> {
        let path = self.paths.first().map_or("", String::as_str);
        RestRequest { method: &self.method, path, query: &self.query, body: &self.body }
    }
}

fn unauthorized(told: impl Into<String>) -> ApiRefusal {
    (StatusCode::UNAUTHORIZED, told.into())
}
