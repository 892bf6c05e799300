//! Sessions of the HTTP fallbacks over many processes: each request may reach any of them, and one has the session.
//!
//! In: a request whose session is not here. Out: the answer of the process that has it, streamed through; or the right
//! to open it here; or that its owner is gone. [`directory`] caches owners, [`client`] forwards requests, [`server`]
//! accepts them on a listener of its own, [`body`] streams the answer. A request is relayed once, never further. This
//! room must not know which transports exist: it reaches their sessions through a trait.
//!
//! Clients of pusher-js keep no cookies, so a load balancer cannot do this.

pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod directory;
pub(crate) mod server;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bus::{RelayPeer, SessionDirectory};
use crate::config::{ServerConfig, name};
use crate::edge::error::StartError;
use crate::edge::metrics::{EdgeMetrics, RelayFailure};
pub use crate::edge::relay::client::CONCURRENT_RELAYS_MAX;
use crate::edge::relay::client::{ForwardRequest, RelayClient};
pub use crate::edge::relay::server::RelayServer;
use crate::edge::transport::session_ownership::{
    HttpSessions, RelayTarget, SessionClaim, SessionName, SessionOwnership,
};
use crate::process::metrics::LabelValue;
use crate::protocol::Secret;
use directory::{OwnerDirectory, SessionOwner};

/// Connections of other processes at a time: as many as two of them need that hand everything on that they may, and
/// what a process can serve beside its own clients.
pub const RELAY_CONNECTIONS_MAX: usize = 2 * CONCURRENT_RELAYS_MAX;

/// How long an owner may take to answer a send, each time that it is tried: longer than a send waits for room there.
const SEND_RELAY_TIMEOUT: Duration = Duration::from_secs(6);

/// How long it may take to begin the answer to a receive: a poll is answered after a heartbeat at the latest.
const RECEIVE_RELAY_TIMEOUT: Duration = Duration::from_secs(35);

/// The settings by which the processes of a cluster find each other.
pub struct RelaySettings {
    /// The bus that lists the other processes.
    pub bus: Arc<dyn SessionDirectory>,
    /// The id and address of this process.
    pub me: RelayPeer,
    /// The port on which all of them listen for each other.
    pub port: u16,
    /// The first one signs; a signature by any of them is accepted.
    pub secrets: Vec<Secret>,
}

impl RelaySettings {
    /// Reads the settings from the variables.
    ///
    /// # Errors
    /// This process has no address.
    pub fn from_values(
        values: &ServerConfig,
        process: &str,
        bus: Arc<dyn SessionDirectory>,
        port: u16,
    ) -> Result<Self, StartError> {
        let address = values.text(name::POD_IP);
        let address = address.parse().map_err(|_| StartError::NoAddress(address.to_owned()))?;
        let secrets = values.list_items(name::PEER_SECRET).map(Secret::new).collect();
        Ok(Self { bus, me: RelayPeer { process: process.to_owned(), address }, port, secrets })
    }
}

/// The other processes, as a request sees them.
pub struct SessionRelay {
    directory: Arc<OwnerDirectory>,
    client: RelayClient,
    local_sessions: Arc<dyn HttpSessions>,
    metrics: Arc<EdgeMetrics>,
    /// Receives whose answer has not begun: those of polls, mostly.
    awaited_receives: TaskTracker,
    /// The end of this process: relayed receives end with a close frame.
    ending: CancellationToken,
}

/// The route of a request.
enum RelayRoute {
    /// This process serves it.
    Local(SessionOwnership),
    /// The owner serves it; the owner was cached or has just been found.
    Remote(SessionOwner),
}

impl SessionRelay {
    /// Registers this process on the bus; the returned future sends heartbeats until the token is cancelled.
    pub async fn start(
        settings: RelaySettings,
        here: Arc<dyn HttpSessions>,
        metrics: Arc<EdgeMetrics>,
        stop: CancellationToken,
    ) -> (Arc<Self>, impl Future<Output = ()>) {
        let RelaySettings { bus, me, port, secrets } = settings;
        let dialler = RelayClient::new(port, &secrets, metrics.clone());
        let (directory, over) = OwnerDirectory::new(bus, me, here.clone(), metrics.clone());
        // Before the first session: whoever finds it must be able to ask here.
        directory.send_heartbeat().await;
        let following = directory.clone().run_heartbeats(over, stop);
        let (awaited_receives, ending) = (TaskTracker::new(), CancellationToken::new());
        (
            Arc::new(Self { directory, client: dialler, local_sessions: here, metrics, awaited_receives, ending }),
            following,
        )
    }

    /// Waits until every relayed poll has its answer, until the deadline at the latest; then the clients of all relayed
    /// receives are asked to reconnect.
    pub async fn end_receives(&self, deadline: Instant) {
        self.awaited_receives.close();
        if timeout_at(deadline, self.awaited_receives.wait()).await.is_err() {
            tracing::info!(
                polls = self.awaited_receives.len(),
                "polls of other servers' sessions end without an answer of these"
            );
        }
        self.ending.cancel();
    }

    /// Whether a request for the session needs no look-up on the bus: it is here, or its owner is cached.
    pub fn is_owner_known(&self, name: &SessionName) -> bool {
        self.local_sessions.has_session(name) || self.directory.cached_owner(&name.bus_key()).is_some()
    }

    /// Serves a request here if its session is here or nowhere, and by its owner otherwise.
    pub async fn relay_or_serve(&self, asked: RelayTarget, request: Request, next: Next) -> Response {
        if self.local_sessions.has_session(&asked.name) {
            return next.run(request).await;
        }
        let (parts, body) = request.into_parts();
        let whole = Request::from_parts(parts.clone(), body);
        let body = match Bytes::from_request(whole, &()).await {
            Ok(body) => body,
            Err(rejection) => return rejection.into_response(),
        };
        let standing = match self.try_relay(&asked, &parts, &body).await {
            Ok(response) => return response,
            Err(standing) => standing,
        };
        let mut request = Request::from_parts(parts, Body::from(body));
        request.extensions_mut().insert(standing);
        next.run(request).await
    }

    /// The answer of the owner, or what the request may do here.
    async fn try_relay(&self, asked: &RelayTarget, parts: &Parts, body: &Bytes) -> Result<Response, SessionOwnership> {
        let session = asked.name.bus_key();
        let first = match self.resolve_owner(&session, asked.is_receive, parts).await {
            RelayRoute::Local(standing) => return Err(standing),
            RelayRoute::Remote(owner) => owner,
        };
        let lost = match self.forward_to_owner(&session, &first, asked, parts, body).await {
            Ok(response) => return Ok(response),
            Err(lost) => lost,
        };
        self.directory.evict_owner(&session);
        if !matches!(lost, RelayFailure::Unknown | RelayFailure::Dead) || !first.is_cached {
            return lost.into_answer(asked).await;
        }
        // What was remembered is no longer so.
        match self.resolve_owner(&session, asked.is_receive, parts).await {
            RelayRoute::Local(standing) => Err(standing),
            RelayRoute::Remote(owner) => match self.forward_to_owner(&session, &owner, asked, parts, body).await {
                Ok(response) => Ok(response),
                Err(lost) => {
                    self.directory.evict_owner(&session);
                    lost.into_answer(asked).await
                }
            },
        }
    }

    async fn resolve_owner(&self, session: &str, opens: bool, parts: &Parts) -> RelayRoute {
        if let Some(owner) = self.directory.cached_owner(session) {
            return RelayRoute::Remote(owner);
        }
        let registration = if opens {
            match self.directory.register_session(session) {
                Some(registration) => Some(registration as Arc<dyn SessionClaim>),
                // Another request opens it here at this moment.
                None => return RelayRoute::Local(SessionOwnership::Unowned(None)),
            }
        } else {
            None
        };
        let found = self.directory.look_up_owner(session, opens).await;
        if let (Ok(Some(_)), Some(registration)) = (&found, &registration) {
            registration.disarm_release();
        }
        let owner = match found {
            // It ended here, and its client received no close frame.
            Ok(Some(process)) if process == self.directory.me.process => {
                return RelayRoute::Local(SessionOwnership::OwnerGone);
            }
            Ok(Some(process)) => match self.directory.resolve_peer(&process).await {
                Some(peer) => Some(peer),
                None => return RelayRoute::Local(SessionOwnership::OwnerGone),
            },
            Ok(None) if !self.directory.is_stale() => None,
            // The bus is away, or came back with less than it knew.
            Ok(None) | Err(()) => self.client.find_owner(self.directory.other_peers(), parts).await,
        };
        match owner {
            Some(peer) => {
                self.directory.cache_owner(session, &peer.process);
                RelayRoute::Remote(SessionOwner { peer, is_cached: false })
            }
            None => RelayRoute::Local(SessionOwnership::Unowned(registration)),
        }
    }

    /// Forwards a request to the owner; without an answer it is retried once, under the same number.
    async fn forward_to_owner(
        &self,
        session: &str,
        SessionOwner { peer, .. }: &SessionOwner,
        asked: &RelayTarget,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Response, RelayFailure> {
        let call = ForwardRequest { peer, parts, body, number: rand::random() };
        let wait = if asked.is_receive { RECEIVE_RELAY_TIMEOUT } else { SEND_RELAY_TIMEOUT };
        let given_up = || {
            let (gone, ending) = (self.directory.wait_peer_gone(&peer.process), self.ending.clone());
            let is_receive = asked.is_receive;
            async move {
                tokio::select! {
                    () = gone => RelayFailure::Dead,
                    () = ending.cancelled(), if is_receive => RelayFailure::Draining,
                }
            }
        };
        let awaited = asked.is_receive.then(|| self.awaited_receives.token());
        let mut answer = self.client.forward(&call, wait, given_up()).await;
        if matches!(answer, Err(RelayFailure::Silent)) {
            answer = self.client.forward(&call, wait, given_up()).await;
        }
        drop(awaited);
        match answer {
            Ok(answer) => {
                self.directory.cache_owner(session, &peer.process);
                self.metrics.requests_relayed.inc();
                Ok(body::proxy_body(answer, asked.close_frame.clone(), given_up(), self.metrics.clone()))
            }
            Err(lost) => {
                self.metrics.relay_failures.with_label(lost).inc();
                tracing::debug!(process = peer.process, reason = lost.name(), "relay failed");
                if !asked.is_receive && !matches!(lost, RelayFailure::Unknown | RelayFailure::Dead) {
                    // pusher-js does not look at the answer to a send, so a lost one must end the session.
                    self.directory.report_lost_send(session, &peer.process).await;
                }
                Err(lost)
            }
        }
    }
}

impl RelayFailure {
    /// The answer for a session whose process did not serve the request. A process that refuses or is full still has the
    /// session: the request fails, and the session is not gone.
    async fn into_answer(self, asked: &RelayTarget) -> Result<Response, SessionOwnership> {
        if matches!(self, Self::Refused | Self::Full) {
            let retry = [(header::RETRY_AFTER, HeaderValue::from_static("1"))];
            let told = "the server that has this session does not accept the request from this one, try again\n";
            return Ok((StatusCode::SERVICE_UNAVAILABLE, retry, told).into_response());
        }
        if asked.is_receive && matches!(self, Self::Dead | Self::Silent | Self::Draining) {
            body::delay_reconnect().await;
        }
        Err(SessionOwnership::OwnerGone)
    }
}
