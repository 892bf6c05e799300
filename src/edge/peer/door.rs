//! Where other processes hand requests in: believed if they signed them, and served if the session is here.

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::super::client;
use super::super::metrics::Metrics;
use super::{Here, Name, Standing};
use crate::protocol::Secret;
use crate::protocol::relay::{self, HANDED, Handed, Nonces, REFUSED, Refusal, SIGNATURE};
use crate::runtime::clock;

/// What lets requests in.
pub struct Door {
    process: String,
    secrets: Vec<Secret>,
    here: Arc<Here>,
    nonces: Mutex<Nonces>,
    metrics: Arc<Metrics>,
}

impl Door {
    /// The door of this process.
    pub fn new(process: String, secrets: Vec<Secret>, here: Arc<Here>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { process, secrets, here, nonces: Mutex::default(), metrics })
    }

    /// Lets a request of a session in, or says why not.
    pub async fn enter(&self, name: Option<Name>, request: Request, next: Next) -> Response {
        let handed = match self.check(&request) {
            Ok(handed) => handed,
            Err(refusal) => return self.refuse(refusal),
        };
        let Some(name) = name else { return self.refuse(Refusal::NotASession) };
        if !self.here.has(&name) {
            return (StatusCode::NOT_FOUND, [(REFUSED, relay::UNKNOWN)]).into_response();
        }
        if request.method() == Method::HEAD {
            return StatusCode::NO_CONTENT.into_response();
        }
        // Read only now: nobody who did not sign is read to the end.
        let (mut parts, body) = request.into_parts();
        let body = match Bytes::from_request(Request::from_parts(parts.clone(), body), &()).await {
            Ok(body) => body,
            Err(rejection) => return rejection.into_response(),
        };
        if relay::digest(&body) != handed.body {
            return self.refuse(Refusal::Forged);
        }
        client::note(&mut parts, handed.client);
        parts.extensions.insert(Standing::Handed(handed.number));
        next.run(Request::from_parts(parts, Body::from(body))).await
    }

    /// What is no request of a session is not served here.
    pub fn refuse(&self, refusal: Refusal) -> Response {
        self.metrics.relay_refused(refusal.name()).inc();
        tracing::debug!(reason = refusal.name(), "what another process handed in was refused");
        let status = match refusal {
            Refusal::NotASession => StatusCode::NOT_FOUND,
            Refusal::WrongTarget => StatusCode::MISDIRECTED_REQUEST,
            Refusal::Full => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::FORBIDDEN,
        };
        (status, [(REFUSED, refusal.name())]).into_response()
    }

    fn check(&self, request: &Request) -> Result<Handed, Refusal> {
        let (handed, signed) = (texts(request.headers(), HANDED), texts(request.headers(), SIGNATURE));
        let (method, uri) = (request.method().as_str(), request.uri());
        let signed_request = relay::Request { method, path: uri.path(), query: uri.query().unwrap_or_default() };
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        relay::check(&self.secrets, signed_request, (&handed, &signed), &self.process, &mut nonces, clock::now_ms())
    }
}

fn texts<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let text = |value: &'a HeaderValue| value.to_str().unwrap_or_default();
    headers.get_all(name).iter().map(text).collect()
}
