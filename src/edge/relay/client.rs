//! The client of the relay: forwards a request to another process, or asks all others for its session.
//!
//! Only processes that the bus lists are dialled, and only on the one port that all of them use.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::bus::RelayPeer;
use crate::edge::apps::client_address::address_of;
use crate::edge::metrics::{EdgeMetrics, RelayFailure};
use crate::process::clock;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::Secret;
use crate::protocol::relay::{self, REFUSAL_HEADER, RELAY_HEADER, RELAY_SIGNATURE_HEADER, RelayHeader, RelayRefusal};

/// Timeout of a connection attempt: all processes are in one cluster.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Timeout for asking all other processes for a session.
const OWNER_SEARCH_TIMEOUT: Duration = Duration::from_millis(500);

/// Idle time of a pooled connection: shorter than the server's own, so that it is never reused while closing.
const IDLE_CONNECTION_TTL: Duration = Duration::from_secs(30);

/// Concurrent forwarded requests, including streaming receives. Each takes two sockets.
pub const CONCURRENT_RELAYS_MAX: usize = 20_000;

/// Bounds the processes whose rejections are remembered.
const LOGGED_REJECTIONS_MAX: usize = 1_000;

/// Client headers that are forwarded, since the session needs them.
const FORWARDED_HEADERS: [HeaderName; 4] =
    [header::ORIGIN, header::CONTENT_TYPE, header::COOKIE, header::ACCESS_CONTROL_REQUEST_HEADERS];

/// A request for another process.
pub(crate) struct ForwardRequest<'a> {
    pub(crate) peer: &'a RelayPeer,
    pub(crate) parts: &'a Parts,
    pub(crate) body: &'a Bytes,
    /// Number that stays the same when the request is repeated.
    pub(crate) number: u128,
}

/// A response of another process, with its slot among the concurrent ones.
pub(crate) struct ForwardResponse {
    pub(crate) response: Response<Incoming>,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// The processes that reject this one's requests, each with its reason: one log line per process and reason.
#[derive(Default)]
struct RejectionLog(Mutex<HashMap<String, String>>);

impl RejectionLog {
    /// Logs a rejection unless it was logged; `time_ms` is the time of the other process, in ms since 1970.
    fn report(&self, process: &str, reason: &str, time_ms: Option<u64>) {
        if !self.is_new(process, reason) {
            return;
        }
        if let Some(time_ms) = time_ms {
            let seconds = time_ms.abs_diff(clock::now_ms()) / 1_000;
            tracing::warn!(
                process,
                seconds,
                "relay request rejected: the clocks of the two processes differ, synchronise the nodes' clocks"
            );
        } else {
            tracing::warn!(
                process,
                reason,
                "relay request rejected: do both processes have the same REALTIME_PEER_SECRET?"
            );
        }
    }

    /// Notes a rejection. Returns whether it is the first one of the process for this reason.
    fn is_new(&self, process: &str, reason: &str) -> bool {
        let mut logged = lock_unpoisoned(&self.0);
        if logged.len() >= LOGGED_REJECTIONS_MAX {
            logged.clear();
        }
        logged.insert(process.to_owned(), reason.to_owned()).as_deref() != Some(reason)
    }

    /// Notes that a process serves again.
    fn note_success(&self, process: &str) {
        lock_unpoisoned(&self.0).remove(process);
    }
}

/// The client that forwards requests to other processes.
pub(crate) struct RelayClient {
    client: Client<HttpConnector, Body>,
    port: u16,
    secret: Option<Secret>,
    permits: Arc<Semaphore>,
    rejections: RejectionLog,
    metrics: Arc<EdgeMetrics>,
}

impl RelayClient {
    pub(crate) fn new(port: u16, secrets: &[Secret], metrics: Arc<EdgeMetrics>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION_TTL)
            .build(connector);
        Self {
            client,
            port,
            secret: secrets.first().cloned(),
            permits: Arc::new(Semaphore::new(CONCURRENT_RELAYS_MAX)),
            rejections: RejectionLog::default(),
            metrics,
        }
    }

    /// Forwards a request. The response head must arrive in time, and before `given_up` resolves with the reason.
    pub(crate) async fn forward(
        &self,
        call: &ForwardRequest<'_>,
        within: Duration,
        given_up: impl Future<Output = RelayFailure>,
    ) -> Result<ForwardResponse, RelayFailure> {
        let place = self.permits.clone().try_acquire_owned().map_err(|_| RelayFailure::Full)?;
        let request = self.build_request(call, call.parts.method.clone()).ok_or(RelayFailure::Refused)?;
        let answer = tokio::select! {
            answer = timeout(within, self.client.request(request)) => answer,
            reason = given_up => return Err(reason),
        };
        let response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_connect() => return Err(RelayFailure::Dead),
            Ok(Err(_)) | Err(_) => return Err(RelayFailure::Silent),
        };
        match response.headers().get(REFUSAL_HEADER).map(HeaderValue::as_bytes) {
            None => {
                self.rejections.note_success(&call.peer.process);
                Ok(ForwardResponse { response, permit: place })
            }
            Some(word) if word == relay::UNKNOWN_SESSION.as_bytes() => Err(RelayFailure::Unknown),
            Some(word) if word == RelayRefusal::WrongTarget.name().as_bytes() => Err(RelayFailure::Dead),
            Some(word) => {
                let reason = String::from_utf8_lossy(word);
                let clock =
                    response.headers().get(relay::CLOCK_HEADER).and_then(|time| time.to_str().ok()?.parse().ok());
                self.rejections.report(&call.peer.process, &reason, clock);
                Err(if word == RelayRefusal::Full.name().as_bytes() {
                    RelayFailure::Full
                } else {
                    RelayFailure::Refused
                })
            }
        }
    }

    /// Asks all processes at once for the session of a request; the first that has it answers.
    pub(crate) async fn find_owner(&self, peers: Vec<RelayPeer>, parts: &Parts) -> Option<RelayPeer> {
        let Ok(_place) = self.permits.try_acquire() else {
            self.metrics.relay_failures.with_label(RelayFailure::Full).inc();
            return None;
        };
        let ask = |peer: RelayPeer| async move {
            let call = ForwardRequest { peer: &peer, parts, body: &Bytes::new(), number: rand::random() };
            let answer = self.client.request(self.build_request(&call, Method::HEAD)?).await.ok()?;
            (answer.status() == StatusCode::NO_CONTENT).then_some(peer)
        };
        let mut asked: FuturesUnordered<_> = peers.into_iter().map(ask).collect();
        let found = async {
            while let Some(answer) = asked.next().await {
                if answer.is_some() {
                    return answer;
                }
            }
            None
        };
        timeout(OWNER_SEARCH_TIMEOUT, found).await.ok().flatten()
    }

    fn build_request(&self, call: &ForwardRequest<'_>, method: Method) -> Option<Request<Body>> {
        let ForwardRequest { peer, parts, body, number } = call;
        let handed = RelayHeader {
            hops: 1,
            target: peer.process.clone(),
            time_ms: clock::now_ms(),
            nonce: rand::random(),
            number: *number,
            body: relay::hash_body(body),
            client: address_of(parts),
        };
        let handed = handed.encode();
        let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
        let signed = relay::RelayedRequest { method: method.as_str(), path, query };
        let signature = relay::sign_request(self.secret.as_ref()?, signed, &handed);
        let path = parts.uri.path_and_query()?.clone();
        let address = SocketAddr::new(peer.address, self.port);
        let uri = Uri::builder().scheme("http").authority(address.to_string()).path_and_query(path).build().ok()?;
        let mut request =
            Request::new(if method == Method::HEAD { Body::empty() } else { Body::from((*body).clone()) });
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        for name in FORWARDED_HEADERS {
            for value in parts.headers.get_all(&name) {
                headers.append(&name, value.clone());
            }
        }
        headers.insert(RELAY_HEADER, HeaderValue::from_str(&handed).ok()?);
        headers.insert(RELAY_SIGNATURE_HEADER, HeaderValue::from_str(&signature).ok()?);
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_is_new_once_per_process_and_reason_until_the_process_serves_again() {
        let log = RejectionLog::default();
        assert!(log.is_new("p1", "expired") && !log.is_new("p1", "expired"));
        assert!(log.is_new("p2", "expired") && log.is_new("p1", "forged"));
        log.note_success("p1");
        assert!(log.is_new("p1", "forged") && !log.is_new("p2", "expired"));
    }
}
