//! Hands a request to another process, or asks others whether they have its session.
//!
//! Only processes that the bus named are dialled, and only on the one port on which all of them listen.

use std::net::SocketAddr;
use std::sync::Arc;
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

use super::super::client::address_of;
use super::super::metrics::Metrics;
use crate::bus::Peer;
use crate::protocol::Secret;
use crate::protocol::relay::{self, HANDED, Handed, REFUSED, Refusal, SIGNATURE};
use crate::runtime::clock;

/// Longest for a connection: the processes are in one cluster.
const CONNECT: Duration = Duration::from_secs(1);

/// How long all of the others may take to say whether they have a session.
const WHO_HAS: Duration = Duration::from_millis(500);

/// How long an idle connection is kept: shorter than the other side keeps it.
const IDLE: Duration = Duration::from_secs(30);

/// Requests that are handed on at a time, receives that are streamed through among them. Each takes two sockets.
pub const MAX_RELAYS: usize = 20_000;

/// The headers of a client's that its session is served by.
const CARRIED: [HeaderName; 4] =
    [header::ORIGIN, header::CONTENT_TYPE, header::COOKIE, header::ACCESS_CONTROL_REQUEST_HEADERS];

/// Why a request was not served by the process that it was handed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// Nobody listens there, or another process does.
    Dead,
    /// It does not have the session.
    Unknown,
    /// It did not answer.
    Silent,
    /// It does not believe this process.
    Refused,
    /// Too many requests are being handed on.
    Full,
}

impl Lost {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Unknown => "unknown",
            Self::Silent => "silent",
            Self::Refused => "refused",
            Self::Full => "full",
        }
    }
}

/// A request for another process.
pub(super) struct Call<'a> {
    pub(super) peer: &'a Peer,
    pub(super) parts: &'a Parts,
    pub(super) body: &'a Bytes,
    /// The same each time that it is tried.
    pub(super) number: u128,
}

/// An answer that comes from another process, and its place among those that do.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) place: OwnedSemaphorePermit,
}

/// What dials.
pub(super) struct Dialler {
    client: Client<HttpConnector, Body>,
    port: u16,
    secret: Option<Secret>,
    places: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Dialler {
    pub(super) fn new(port: u16, secrets: &[Secret], metrics: Arc<Metrics>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        Self { client, port, secret: secrets.first().cloned(), places: Arc::new(Semaphore::new(MAX_RELAYS)), metrics }
    }

    /// Hands a request on. The answer's head must come in time, and before the process is known to be gone.
    pub(super) async fn hand(
        &self,
        call: &Call<'_>,
        within: Duration,
        gone: impl Future<Output = ()>,
    ) -> Result<Answer, Lost> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| Lost::Full)?;
        let request = self.request(call, call.parts.method.clone()).ok_or(Lost::Refused)?;
        let answer = tokio::select! {
            answer = timeout(within, self.client.request(request)) => answer,
            () = gone => return Err(Lost::Dead),
        };
        let response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_connect() => return Err(Lost::Dead),
            Ok(Err(_)) | Err(_) => return Err(Lost::Silent),
        };
        match response.headers().get(REFUSED).map(HeaderValue::as_bytes) {
            None => Ok(Answer { response, place }),
            Some(word) if word == relay::UNKNOWN.as_bytes() => Err(Lost::Unknown),
            Some(word) if word == Refusal::WrongTarget.name().as_bytes() => Err(Lost::Dead),
            Some(word) => {
                let reason = String::from_utf8_lossy(word);
                tracing::warn!(process = call.peer.process, %reason, "another process does not believe this one: do they have the same REALTIME_PEER_SECRET, and the same time?");
                Err(Lost::Refused)
            }
        }
    }

    /// Asks all of them at once whether they have the session of a request; the first that does is the answer.
    pub(super) async fn who_has(&self, peers: Vec<Peer>, parts: &Parts) -> Option<Peer> {
        let Ok(_place) = self.places.try_acquire() else {
            self.metrics.relay_failed(Lost::Full.name()).inc();
            return None;
        };
        let ask = |peer: Peer| async move {
            let call = Call { peer: &peer, parts, body: &Bytes::new(), number: rand::random() };
            let answer = self.client.request(self.request(&call, Method::HEAD)?).await.ok()?;
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
        timeout(WHO_HAS, found).await.ok().flatten()
    }

    fn request(&self, call: &Call<'_>, method: Method) -> Option<Request<Body>> {
        let Call { peer, parts, body, number } = call;
        let handed = Handed {
            hops: 1,
            target: peer.process.clone(),
            time_ms: clock::now_ms(),
            nonce: rand::random(),
            number: *number,
            body: relay::digest(body),
            client: address_of(parts),
        };
        let handed = handed.text();
        let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
        let signed = relay::Request { method: method.as_str(), path, query };
        let signature = relay::sign(self.secret.as_ref()?, signed, &handed);
        let path = parts.uri.path_and_query()?.clone();
        let address = SocketAddr::new(peer.address, self.port);
        let uri = Uri::builder().scheme("http").authority(address.to_string()).path_and_query(path).build().ok()?;
        let mut request =
            Request::new(if method == Method::HEAD { Body::empty() } else { Body::from((*body).clone()) });
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        for name in CARRIED {
            for value in parts.headers.get_all(&name) {
                headers.append(&name, value.clone());
            }
        }
        headers.insert(HANDED, HeaderValue::from_str(&handed).ok()?);
        headers.insert(SIGNATURE, HeaderValue::from_str(&signature).ok()?);
        Some(request)
    }
}
