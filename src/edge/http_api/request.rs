//! A request of the HTTP API, and whether it comes from the app's backend.

use axum::extract::FromRequest;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use url::form_urlencoded;

use super::super::shared::Shared;
use super::Refusal;
use crate::protocol::AppId;
use crate::protocol::registry::{App, Limits};
use crate::protocol::rest::Request;
use crate::runtime::clock;

/// A request as it arrived.
pub struct Call {
    method: String,
    path: String,
    query: Vec<(String, String)>,
    /// Raw.
    pub body: Bytes,
}

impl<S: Send + Sync> FromRequest<S> for Call {
    type Rejection = Response;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Response> {
        let (method, uri) = (request.method().to_string(), request.uri().clone());
        let query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
        let body = Bytes::from_request(request, state).await.map_err(IntoResponse::into_response)?;
        Ok(Self { method, path: uri.path().to_owned(), query, body })
    }
}

impl Call {
    /// The value of a query parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.request().parameter(name)
    }

    /// The app of this id and its limits, if its secret signed the request.
    pub fn authenticate(&self, shared: &Shared, id: String) -> Result<(AppId, Limits), Refusal> {
        let registry = shared.apps.current();
        let app = registry
            .app(&AppId(id))
            .ok_or_else(|| (StatusCode::NOT_FOUND, "there is no app with this id".to_owned()))?;
        self.verify(app)
    }

    /// The app whose key the request names and its limits, if its secret signed the request.
    pub fn authenticate_by_key(&self, shared: &Shared) -> Result<(AppId, Limits), Refusal> {
        let registry = shared.apps.current();
        let key = self.key()?;
        self.verify(registry.by_key(key).ok_or_else(|| unauthorized("`auth_key` is not a key of any app"))?)
    }

    fn verify(&self, app: &App) -> Result<(AppId, Limits), Refusal> {
        let secret = app.secret(self.key()?).ok_or_else(|| unauthorized("`auth_key` is not a key of this app"))?;
        self.request().verify(secret, clock::now_ms() / 1000).map_err(|error| unauthorized(error.to_string()))?;
        if !app.enabled {
            return Err((StatusCode::FORBIDDEN, "the app is disabled".into()));
        }
        Ok((app.id.clone(), app.limits))
    }

    fn key(&self) -> Result<&str, Refusal> {
        self.parameter("auth_key").ok_or_else(|| unauthorized("the query lacks `auth_key`"))
    }

    fn request(&self) -> Request<'_> {
        Request { method: &self.method, path: &self.path, query: &self.query, body: &self.body }
    }
}

fn unauthorized(told: impl Into<String>) -> Refusal {
    (StatusCode::UNAUTHORIZED, told.into())
}
