//! Sessions of the HTTP fallbacks over many processes: each request may reach any of them, and one has the session.
//!
//! In: a request whose session is not here. Out: the answer of the process that has it, streamed through; or the right
//! to open it here; or the news that who had it is gone. [`directory`] knows who has what, [`dial`] hands requests on,
//! [`door`] takes them in on a listener of its own, [`through`] carries the answer. A request is handed on once, never
//! further.
//!
//! Clients of pusher-js keep no cookies, so a load balancer cannot do this.

mod dial;
mod directory;
mod door;
mod through;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio_util::sync::CancellationToken;

use super::StartError;
use super::fallback::{Fallback, SessionId};
use super::metrics::Metrics;
use super::session::Closing;
use super::sockjs::SockJs;
use crate::bus::{Bus, Peer};
use crate::contract::{Values, name};
use crate::protocol::Secret;
use crate::protocol::frame::code;
pub use dial::MAX_RELAYS;
use dial::{Call, Dialler, Lost};
pub use directory::Registration;
use directory::{Directory, Owner};
pub use door::Door;

/// Connections of other processes at a time: as many as two of them need that hand everything on that they may, and
/// what a process can serve beside its own clients.
pub const MAX_CONNECTIONS: usize = 2 * MAX_RELAYS;

/// How long an owner may take to answer a send, each time that it is tried: longer than a send waits for room there.
const SEND: Duration = Duration::from_secs(6);

/// How long it may take to begin the answer to a receive: a poll is answered after a heartbeat at the latest.
const RECEIVE: Duration = Duration::from_secs(35);

/// Shortest and longest, in ms, from the end of a process until the clients of its sessions are told.
const BREATH_MS: std::ops::RangeInclusive<u64> = 250..=750;

/// A session of the HTTP fallbacks, wherever it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// Of pusher-js's own fallbacks.
    Pusher(SessionId),
    /// Of `SockJS`.
    SockJs(String),
}

impl Name {
    /// The name on the bus. The parts of a name have no dots.
    pub fn key(&self) -> String {
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
pub fn session_host(values: &Values) -> Option<String> {
    let host = values.get(name::SESSION_HOST).filter(|host| !host.is_empty());
    host.map(|host| host.replace("{pod}", values.text(name::POD)))
}

/// The sessions of this process.
pub struct Here {
    /// Those of pusher-js's own fallbacks.
    pub fallback: Arc<Fallback>,
    /// Those of `SockJS`.
    pub sockjs: Arc<SockJs>,
}

impl Here {
    fn has(&self, name: &Name) -> bool {
        match name {
            Name::Pusher(id) => self.fallback.has(id),
            Name::SockJs(id) => self.sockjs.has(id),
        }
    }

    fn close(&self, name: &Name, closing: Closing) {
        match name {
            Name::Pusher(id) => self.fallback.close(id, closing),
            Name::SockJs(id) => self.sockjs.close(id, closing),
        }
    }
}

/// What a request may do with a session that is not here.
#[derive(Clone)]
pub enum Standing {
    /// Open it: nobody has it. The registration says that this process does, for as long as it is held.
    Open(Option<Arc<Registration>>),
    /// Hear that the process that had it is gone.
    Gone,
    /// Nothing: it was handed here because the session was, under this number.
    Handed(u128),
}

impl Standing {
    /// The number of a request that was handed here.
    pub fn number(&self) -> Option<u128> {
        match self {
            Self::Handed(number) => Some(*number),
            Self::Open(_) | Self::Gone => None,
        }
    }
}

/// What a client is told whose session was in a process that is gone.
pub fn gone() -> Closing {
    Closing::new(code::RECONNECT, "the server that had this session is gone, come back at once")
}

/// A moment before a client is told that the process is gone that had its session. It comes back at once, and the
/// kernel closes a dead process's connections before its listeners: whom the load balancer takes there meanwhile is cut
/// a second time, and pusher-js then waits for 15 s. It also spreads those who come back.
async fn breathe() {
    tokio::time::sleep(Duration::from_millis(rand::random_range(BREATH_MS))).await;
}

/// What a request asks for.
pub struct Asked {
    /// Its session.
    pub name: Name,
    /// Whether it receives, and so may open the session.
    pub receives: bool,
    /// How the end of a session is written behind other frames, and what each of these ends with; `None` where an answer
    /// has one frame.
    pub farewell: Option<(String, &'static str)>,
}

/// What makes the processes of a cluster find each other.
pub struct Settings {
    /// The other processes.
    pub bus: Arc<dyn Bus>,
    /// This process.
    pub me: Peer,
    /// The port on which all of them listen for each other.
    pub port: u16,
    /// The first signs; whoever knows one of them is believed.
    pub secrets: Vec<Secret>,
}

impl Settings {
    /// As the variables say.
    ///
    /// # Errors
    /// This process has no address.
    pub fn of(values: &Values, process: &str, bus: Arc<dyn Bus>, port: u16) -> Result<Self, StartError> {
        let address = values.text(name::POD_IP);
        let address = address.parse().map_err(|_| StartError::NoAddress(address.to_owned()))?;
        let secrets = values.list(name::PEER_SECRET).map(Secret::new).collect();
        Ok(Self { bus, me: Peer { process: process.to_owned(), address }, port, secrets })
    }
}

/// The other processes, as a request sees them.
pub struct Peers {
    directory: Arc<Directory>,
    dialler: Dialler,
    here: Arc<Here>,
    metrics: Arc<Metrics>,
}

/// Where a request goes.
enum Way {
    /// Nowhere else.
    Here(Standing),
    /// To its owner, which was found a moment ago or just now.
    To(Owner),
}

impl Peers {
    /// Tells the others that this process is there, and keeps telling until the token ends it.
    pub async fn start(
        settings: Settings,
        here: Arc<Here>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> (Arc<Self>, impl Future<Output = ()>) {
        let Settings { bus, me, port, secrets } = settings;
        let dialler = Dialler::new(port, &secrets, metrics.clone());
        let (directory, over) = Directory::new(bus, me, here.clone(), metrics.clone());
        // Before the first session: whoever finds it must be able to ask here.
        directory.beat().await;
        let following = directory.clone().follow(over, stop);
        (Arc::new(Self { directory, dialler, here, metrics }), following)
    }

    /// Serves a request here if its session is here or nowhere, and by its owner otherwise.
    pub async fn pass(&self, asked: Asked, request: Request, next: Next) -> Response {
        if request.method() == Method::OPTIONS || self.here.has(&asked.name) {
            return next.run(request).await;
        }
        let (parts, body) = request.into_parts();
        let whole = Request::from_parts(parts.clone(), body);
        let body = match Bytes::from_request(whole, &()).await {
            Ok(body) => body,
            Err(rejection) => return rejection.into_response(),
        };
        let standing = match self.elsewhere(&asked, &parts, &body).await {
            Ok(response) => return response,
            Err(standing) => standing,
        };
        let mut request = Request::from_parts(parts, Body::from(body));
        request.extensions_mut().insert(standing);
        next.run(request).await
    }

    /// The answer of whoever has the session, or how the request stands here.
    async fn elsewhere(&self, asked: &Asked, parts: &Parts, body: &Bytes) -> Result<Response, Standing> {
        let session = asked.name.key();
        let first = match self.way(&session, asked.receives, parts).await {
            Way::Here(standing) => return Err(standing),
            Way::To(owner) => owner,
        };
        let lost = match self.hand(&session, &first, asked, parts, body).await {
            Ok(response) => return Ok(response),
            Err(lost) => lost,
        };
        self.directory.forget(&session);
        if !matches!(lost, Lost::Unknown | Lost::Dead) || !first.remembered {
            return Err(lost.told(asked).await);
        }
        // What was remembered is no longer so.
        match self.way(&session, asked.receives, parts).await {
            Way::Here(standing) => Err(standing),
            Way::To(owner) => match self.hand(&session, &owner, asked, parts, body).await {
                Ok(response) => Ok(response),
                Err(lost) => {
                    self.directory.forget(&session);
                    Err(lost.told(asked).await)
                }
            },
        }
    }

    async fn way(&self, session: &str, opens: bool, parts: &Parts) -> Way {
        if let Some(owner) = self.directory.remembered(session) {
            return Way::To(owner);
        }
        let registration = if opens {
            match self.directory.register(session) {
                Some(registration) => Some(registration),
                // Another request opens it here at this moment.
                None => return Way::Here(Standing::Open(None)),
            }
        } else {
            None
        };
        let found = self.directory.ask(session, opens).await;
        if let (Ok(Some(_)), Some(registration)) = (&found, &registration) {
            registration.leave();
        }
        let owner = match found {
            // It ended here, and its client was not told.
            Ok(Some(process)) if process == self.directory.me.process => return Way::Here(Standing::Gone),
            Ok(Some(process)) => match self.directory.address(&process).await {
                Some(peer) => Some(peer),
                None => return Way::Here(Standing::Gone),
            },
            Ok(None) if !self.directory.doubts() => None,
            // The bus is away, or came back with less than it knew.
            Ok(None) | Err(()) => self.dialler.who_has(self.directory.others(), parts).await,
        };
        match owner {
            Some(peer) => {
                self.directory.remember(session, &peer.process);
                Way::To(Owner { peer, remembered: false })
            }
            None => Way::Here(Standing::Open(registration)),
        }
    }

    /// Hands a request to the owner; a second time when no answer came, under the same number.
    async fn hand(
        &self,
        session: &str,
        Owner { peer, .. }: &Owner,
        asked: &Asked,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Response, Lost> {
        let call = Call { peer, parts, body, number: rand::random() };
        let wait = if asked.receives { RECEIVE } else { SEND };
        let gone = || self.directory.gone(&peer.process);
        let mut answer = self.dialler.hand(&call, wait, gone()).await;
        if matches!(answer, Err(Lost::Silent)) {
            answer = self.dialler.hand(&call, wait, gone()).await;
        }
        match answer {
            Ok(answer) => {
                self.directory.remember(session, &peer.process);
                self.metrics.relayed.inc();
                Ok(through::carry(answer, asked.farewell.clone(), gone(), self.metrics.clone()))
            }
            Err(lost) => {
                self.metrics.relay_failed(lost.name()).inc();
                tracing::debug!(process = peer.process, reason = lost.name(), "a request was not handed on");
                if lost == Lost::Silent && !asked.receives {
                    // pusher-js does not look at the answer to a send, so a lost one must end the session.
                    self.directory.lose(session, &peer.process).await;
                }
                Err(lost)
            }
        }
    }
}

impl Lost {
    /// How a request stands here that its session's process did not serve.
    async fn told(self, asked: &Asked) -> Standing {
        if asked.receives && matches!(self, Self::Dead | Self::Silent) {
            breathe().await;
        }
        Standing::Gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back_as_it_was() {
        let id = |srv: &str, session: &str| SessionId { srv: srv.to_owned(), session: session.to_owned() };
        for name in
            [Name::Pusher(id("34", "abcdefgh")), Name::Pusher(id("{a}", "b:c/é")), Name::SockJs("i-j%20".to_owned())]
        {
            assert_eq!(Name::parse(&name.key()), Some(name));
        }
        for bad in ["", "p", "p.", "p.a", "p.a.", "p..b", "p.a.b.c", "x.a"] {
            assert_eq!(Name::parse(bad), None, "{bad}");
        }
    }
}
