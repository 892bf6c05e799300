//! Accepts requests that other processes relay: each must be signed, and its session must be here.

use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::edge::apps::client_address;
use crate::edge::metrics::EdgeMetrics;
use crate::edge::transport::session_ownership::{HttpSessions, SessionName, SessionOwnership};
use crate::process::clock;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::Secret;
use crate::protocol::relay::{
    self, NonceCache, REFUSAL_HEADER, RELAY_HEADER, RELAY_SIGNATURE_HEADER, RelayHeader, RelayRefusal,
};

/// The server side of the relay.
pub struct RelayServer {
    process: String,
    secrets: Vec<Secret>,
    local_sessions: Arc<dyn HttpSessions>,
    nonces: Mutex<NonceCache>,
    metrics: Arc<EdgeMetrics>,
}

impl RelayServer {
    /// The relay server of this process.
    pub fn new(
        process: String,
        secrets: Vec<Secret>,
        here: Arc<dyn HttpSessions>,
        metrics: Arc<EdgeMetrics>,
    ) -> Arc<Self> {
        Arc::new(Self { process, secrets, local_sessions: here, nonces: Mutex::default(), metrics })
    }

    /// Serves a relayed request of a session, or refuses it with a reason.
    pub async fn accept_request(&self, name: Option<SessionName>, request: Request, next: Next) -> Response {
        let handed = match self.verify_request(&request) {
            Ok(handed) => handed,
            Err(refusal) => return self.refuse_request(refusal),
        };
        let Some(name) = name else { return self.refuse_request(RelayRefusal::NotASession) };
        if !self.local_sessions.has_session(&name) {
            return (StatusCode::NOT_FOUND, [(REFUSAL_HEADER, relay::UNKNOWN_SESSION)]).into_response();
        }
        if request.method() == Method::HEAD {
            return StatusCode::NO_CONTENT.into_response();
        }
        // Read only now: an unsigned request is never read to its end.
        let (mut parts, body) = request.into_parts();
        let body = match Bytes::from_request(Request::from_parts(parts.clone(), body), &()).await {
            Ok(body) => body,
            Err(rejection) => return rejection.into_response(),
        };
        if relay::hash_body(&body) != handed.body {
            return self.refuse_request(RelayRefusal::Forged);
        }
        client_address::set_client_address(&mut parts, handed.client);
        parts.extensions.insert(SessionOwnership::Relayed(handed.number));
        next.run(Request::from_parts(parts, Body::from(body))).await
    }

    /// Refuses a relayed request, with the reason in a header and in a metric.
    pub fn refuse_request(&self, refusal: RelayRefusal) -> Response {
        self.metrics.relay_refusals.with_label(refusal).inc();
        tracing::debug!(reason = refusal.name(), "relayed request refused");
        let status = match refusal {
            RelayRefusal::NotASession => StatusCode::NOT_FOUND,
            RelayRefusal::WrongTarget => StatusCode::MISDIRECTED_REQUEST,
            RelayRefusal::Full => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::FORBIDDEN,
        };
        let mut response = (status, [(REFUSAL_HEADER, refusal.name())]).into_response();
        if refusal == RelayRefusal::Expired {
            // The other process names the difference of the clocks by it.
            response.headers_mut().insert(relay::CLOCK_HEADER, HeaderValue::from(clock::now_ms()));
        }
        response
    }

    fn verify_request(&self, request: &Request) -> Result<RelayHeader, RelayRefusal> {
        let (handed, signed) =
            (header_texts(request.headers(), RELAY_HEADER), header_texts(request.headers(), RELAY_SIGNATURE_HEADER));
        let (method, uri) = (request.method().as_str(), request.uri());
        let signed_request = relay::RelayedRequest { method, path: uri.path(), query: uri.query().unwrap_or_default() };
        let mut nonces = lock_unpoisoned(&self.nonces);
        relay::verify_request(
            &self.secrets,
            signed_request,
            (&handed, &signed),
            &self.process,
            &mut nonces,
            clock::now_ms(),
        )
    }
}

fn header_texts<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let text = |value: &'a HeaderValue| value.to_str().unwrap_or_default();
    headers.get_all(name).iter().map(text).collect()
}
