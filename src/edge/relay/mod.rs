//! Sessions of the HTTP fallbacks over many processes: each request may reach any of them, and one has the session.
//!
//! In: a request whose session is not here. Out: the answer of the process that has it, streamed through; or the right
//! to open it here; or the news that who had it is gone. [`directory`] knows who has what, [`dial`] hands requests on,
//! [`door`] takes them in on a listener of its own, [`through`] carries the answer. A request is handed on once, never
//! further.
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
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, RelayPeer};
use crate::config::{ServerConfig, name};
use crate::edge::StartError;
use crate::edge::metrics::EdgeMetrics;
pub use crate::edge::relay::client::CONCURRENT_RELAYS_MAX;
use crate::edge::relay::client::{ForwardError, ForwardRequest, RelayClient};
pub use crate::edge::relay::server::RelayServer;
use crate::edge::session::CloseReason;
use crate::edge::transport::sockjs::SockjsSessions;
use crate::edge::transport::xhr::session::{SessionId, XhrSessions};
use crate::protocol::Secret;
use crate::protocol::frame::code;
pub use directory::SessionRegistration;
use directory::{OwnerDirectory, SessionOwner};

/// Connections of other processes at a time: as many as two of them need that hand everything on that they may, and
/// what a process can serve beside its own clients.
pub const RELAY_CONNECTIONS_MAX: usize = 2 * CONCURRENT_RELAYS_MAX;

/// How long an owner may take to answer a send, each time that it is tried: longer than a send waits for room there.
const SEND_RELAY_TIMEOUT: Duration = Duration::from_secs(6);

/// How long it may take to begin the answer to a receive: a poll is answered after a heartbeat at the latest.
const RECEIVE_RELAY_TIMEOUT: Duration = Duration::from_secs(35);

/// Shortest and longest, in ms, from the end of a process until the clients of its sessions are told.
const RECONNECT_DELAY_MS: std::ops::RangeInclusive<u64> = 250..=750;

/// A session of the HTTP fallbacks, wherever it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SessionName {
    /// Of pusher-js's own fallbacks.
    Pusher(SessionId),
    /// Of `SockJS`.
    SockJs(String),
}

impl SessionName {
    /// The name on the bus. The parts of a name have no dots.
    pub fn bus_key(&self) -> String {
        match self {
            Self::Pusher(SessionId { srv, session }) => format!("p.{srv}.{session}"),
            Self::SockJs(session) => format!("s.{session}"),
        }
    }

    /// Reads a name from the bus.
    fn parse(key: &str) -> Option<Self> {
        match key.split_once('.')? {
            ("p", rest) => {
                let (srv, session) = rest.split_once('.')?;
                SessionId::parse(srv.to_owned(), session.to_owned()).map(Self::Pusher)
            }
            ("s", session) => Some(Self::SockJs(session.to_owned())),
            _ => None,
        }
    }
}

/// The host that clients are to send the rest of a session to, if they are told one.
pub fn session_host(values: &ServerConfig) -> Option<String> {
    let host = values.get(name::SESSION_HOST).filter(|host| !host.is_empty());
    host.map(|host| host.replace("{pod}", values.text(name::POD)))
}

/// The sessions of this process.
pub struct LocalSessions {
    /// Those of pusher-js's own fallbacks.
    pub fallback: Arc<XhrSessions>,
    /// Those of `SockJS`.
    pub sockjs: Arc<SockjsSessions>,
}

impl LocalSessions {
    fn has_session(&self, name: &SessionName) -> bool {
        match name {
            SessionName::Pusher(id) => self.fallback.has_session(id),
            SessionName::SockJs(id) => self.sockjs.has_session(id),
        }
    }

    fn close(&self, name: &SessionName, closing: CloseReason) {
        match name {
            SessionName::Pusher(id) => self.fallback.close(id, closing),
            SessionName::SockJs(id) => self.sockjs.close(id, closing),
        }
    }
}

/// What a request may do with a session that is not here.
#[derive(Clone)]
pub enum SessionOwnership {
    /// Open it: nobody has it. The registration says that this process does, for as long as it is held.
    Unowned(Option<Arc<SessionRegistration>>),
    /// Hear that the process that had it is gone.
    OwnerGone,
    /// Nothing: it was handed here because the session was, under this number.
    Relayed(u128),
}

impl SessionOwnership {
    /// The number of a request that was handed here.
    pub fn relay_number(&self) -> Option<u128> {
        match self {
            Self::Relayed(number) => Some(*number),
            Self::Unowned(_) | Self::OwnerGone => None,
        }
    }
}

/// What a client is told whose session was in a process that is gone.
pub fn session_gone() -> CloseReason {
    CloseReason::new(code::RECONNECT, "the server that had this session is gone, come back at once")
}

/// A moment before a client is told that the process is gone that had its session. It comes back at once, and the
/// kernel closes a dead process's connections before its listeners: whom the load balancer takes there meanwhile is cut
/// a second time, and pusher-js then waits for 15 s. It also spreads those who come back.
async fn delay_reconnect() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(RECONNECT_DELAY_MS))).await;
}

/// What a request asks for.
pub struct RelayTarget {
    /// Its session.
    pub name: SessionName,
    /// Whether it receives, and so may open the session.
    pub is_receive: bool,
    /// How the end of a session is written behind other frames, and what each of these ends with; `None` where an answer
    /// has one frame.
    pub close_frame: Option<(String, &'static str)>,
}

/// What makes the processes of a cluster find each other.
pub struct RelaySettings {
    /// The other processes.
    pub bus: Arc<dyn Bus>,
    /// This process.
    pub me: RelayPeer,
    /// The port on which all of them listen for each other.
    pub port: u16,
    /// The first signs; whoever knows one of them is believed.
    pub secrets: Vec<Secret>,
}

impl RelaySettings {
    /// As the variables say.
    ///
    /// # Errors
    /// This process has no address.
    pub fn from_values(values: &ServerConfig, process: &str, bus: Arc<dyn Bus>, port: u16) -> Result<Self, StartError> {
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
    local_sessions: Arc<LocalSessions>,
    metrics: Arc<EdgeMetrics>,
}

/// Where a request goes.
enum RelayRoute {
    /// Nowhere else.
    Local(SessionOwnership),
    /// To its owner, which was found a moment ago or just now.
    Remote(SessionOwner),
}

impl SessionRelay {
    /// Tells the others that this process is there, and keeps telling until the token ends it.
    pub async fn start(
        settings: RelaySettings,
        here: Arc<LocalSessions>,
        metrics: Arc<EdgeMetrics>,
        stop: CancellationToken,
    ) -> (Arc<Self>, impl Future<Output = ()>) {
        let RelaySettings { bus, me, port, secrets } = settings;
        let dialler = RelayClient::new(port, &secrets, metrics.clone());
        let (directory, over) = OwnerDirectory::new(bus, me, here.clone(), metrics.clone());
        // Before the first session: whoever finds it must be able to ask here.
        directory.send_heartbeat().await;
        let following = directory.clone().run_heartbeats(over, stop);
        (Arc::new(Self { directory, client: dialler, local_sessions: here, metrics }), following)
    }

    /// Serves a request here if its session is here or nowhere, and by its owner otherwise.
    pub async fn relay_or_serve(&self, asked: RelayTarget, request: Request, next: Next) -> Response {
        if request.method() == Method::OPTIONS || self.local_sessions.has_session(&asked.name) {
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

    /// The answer of whoever has the session, or how the request stands here.
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
        if !matches!(lost, ForwardError::Unknown | ForwardError::Dead) || !first.is_cached {
            return Err(lost.into_ownership(asked).await);
        }
        // What was remembered is no longer so.
        match self.resolve_owner(&session, asked.is_receive, parts).await {
            RelayRoute::Local(standing) => Err(standing),
            RelayRoute::Remote(owner) => match self.forward_to_owner(&session, &owner, asked, parts, body).await {
                Ok(response) => Ok(response),
                Err(lost) => {
                    self.directory.evict_owner(&session);
                    Err(lost.into_ownership(asked).await)
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
                Some(registration) => Some(registration),
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
            // It ended here, and its client was not told.
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

    /// Hands a request to the owner; a second time when no answer came, under the same number.
    async fn forward_to_owner(
        &self,
        session: &str,
        SessionOwner { peer, .. }: &SessionOwner,
        asked: &RelayTarget,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Response, ForwardError> {
        let call = ForwardRequest { peer, parts, body, number: rand::random() };
        let wait = if asked.is_receive { RECEIVE_RELAY_TIMEOUT } else { SEND_RELAY_TIMEOUT };
        let gone = || self.directory.wait_peer_gone(&peer.process);
        let mut answer = self.client.forward(&call, wait, gone()).await;
        if matches!(answer, Err(ForwardError::Silent)) {
            answer = self.client.forward(&call, wait, gone()).await;
        }
        match answer {
            Ok(answer) => {
                self.directory.cache_owner(session, &peer.process);
                self.metrics.relayed.inc();
                Ok(body::proxy_body(answer, asked.close_frame.clone(), gone(), self.metrics.clone()))
            }
            Err(lost) => {
                self.metrics.relay_failed(lost.name()).inc();
                tracing::debug!(process = peer.process, reason = lost.name(), "a request was not handed on");
                if lost == ForwardError::Silent && !asked.is_receive {
                    // pusher-js does not look at the answer to a send, so a lost one must end the session.
                    self.directory.report_lost_send(session, &peer.process).await;
                }
                Err(lost)
            }
        }
    }
}

impl ForwardError {
    /// How a request stands here that its session's process did not serve.
    async fn into_ownership(self, asked: &RelayTarget) -> SessionOwnership {
        if asked.is_receive && matches!(self, Self::Dead | Self::Silent) {
            delay_reconnect().await;
        }
        SessionOwnership::OwnerGone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back_as_it_was() {
        let id = |srv: &str, session: &str| SessionId { srv: srv.to_owned(), session: session.to_owned() };
        for name in [
            SessionName::Pusher(id("34", "abcdefgh")),
            SessionName::Pusher(id("{a}", "b:c/é")),
            SessionName::SockJs("i-j%20".to_owned()),
        ] {
            assert_eq!(SessionName::parse(&name.bus_key()), Some(name));
        }
        for bad in ["", "p", "p.", "p.a", "p.a.", "p..b", "p.a.b.c", "x.a"] {
            assert_eq!(SessionName::parse(bad), None, "{bad}");
        }
    }
}
