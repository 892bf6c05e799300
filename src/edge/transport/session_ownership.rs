//! The names of HTTP sessions, and the process that owns each of them.
//!
//! In: the parts of a request's path. Out: a name that is the same on every process, and what a request may do with a
//! session that this process does not have. The relay decides it; transports only read it, so nothing here may know how
//! processes find each other.

use std::sync::Arc;

use crate::config::{ServerConfig, name};
use crate::edge::close_reason::CloseReason;
use crate::protocol::frame::code;

/// Bounds each part of a session's id, in bytes. pusher-js uses up to three digits and eight letters.
pub const SESSION_ID_PART_MAX_LEN: usize = 64;

/// The id of a session of pusher-js's fallbacks, as the client chose it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionId {
    /// The first part of the id.
    pub srv: String,
    /// The second part of the id.
    pub session: String,
}

impl SessionId {
    /// Checks both parts: not empty, no dots, not long.
    pub fn parse(srv: String, session: String) -> Option<Self> {
        let valid = |part: &str| !part.is_empty() && part.len() <= SESSION_ID_PART_MAX_LEN && !part.contains('.');
        (valid(&srv) && valid(&session)).then_some(Self { srv, session })
    }
}

/// The name of an HTTP session, the same on every process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SessionName {
    /// A session of pusher-js's own fallbacks.
    Pusher(SessionId),
    /// A session of `SockJS`.
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

    /// Parses a name of the bus.
    pub fn parse(key: &str) -> Option<Self> {
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

/// The claim of this process on a session, held for as long as the process has the session.
pub trait SessionClaim: Send + Sync {
    /// Keeps the entry on the bus when the claim is dropped: the entry is another process's, or it is to say that the
    /// session is gone.
    fn disarm_release(&self);
}

/// The options of a request for a session that this process does not have.
#[derive(Clone)]
pub enum SessionOwnership {
    /// No process has the session: the request may open it. The claim, if any, is held with the session.
    Unowned(Option<Arc<dyn SessionClaim>>),
    /// The process that had the session is gone: the client is asked to reconnect.
    OwnerGone,
    /// Another process relayed the request, under this number, because the session was here.
    Relayed(u128),
}

impl SessionOwnership {
    /// The number of a relayed request.
    pub fn relay_number(&self) -> Option<u128> {
        match self {
            Self::Relayed(number) => Some(*number),
            Self::Unowned(_) | Self::OwnerGone => None,
        }
    }
}

/// The session that a request is for, and what the relay must know of the request.
pub struct RelayTarget {
    /// The name of the session.
    pub name: SessionName,
    /// Whether the request receives, and so may open the session.
    pub is_receive: bool,
    /// The close frame in the format of the answer, and the terminator of each frame; `None` where an answer has one
    /// frame.
    pub close_frame: Option<(String, &'static str)>,
}

/// A table of HTTP sessions that this process has.
pub trait HttpSessions: Send + Sync {
    /// Whether the session is in this table.
    fn has_session(&self, name: &SessionName) -> bool;

    /// Closes the session, if it is in this table.
    fn close_session(&self, name: &SessionName, reason: CloseReason);
}

/// All HTTP sessions of this process.
pub struct LocalSessions(Vec<Arc<dyn HttpSessions>>);

impl LocalSessions {
    /// Joins the tables of several transports.
    pub fn new(tables: Vec<Arc<dyn HttpSessions>>) -> Self {
        Self(tables)
    }
}

impl HttpSessions for LocalSessions {
    fn has_session(&self, name: &SessionName) -> bool {
        self.0.iter().any(|table| table.has_session(name))
    }

    fn close_session(&self, name: &SessionName, reason: CloseReason) {
        for table in &self.0 {
            table.close_session(name, reason.clone());
        }
    }
}

/// The close reason of a session whose process is gone.
pub fn session_gone() -> CloseReason {
    CloseReason::new(code::RECONNECT, "the server that had this session is gone, come back at once")
}

/// The host to which clients send the rest of a session, if one is configured.
pub fn session_host(values: &ServerConfig) -> Option<String> {
    let host = values.get(name::SESSION_HOST).filter(|host| !host.is_empty());
    host.map(|host| host.replace("{pod}", values.text(name::POD)))
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
