//! Every open session of the process: how many there may be, and how all of them are ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::Span;

use super::admission::stays;
use super::metrics::Metrics;
use super::session::{Budget, Closing, Session};
use crate::protocol::frame::code;
use crate::protocol::registry::Registry;
use crate::protocol::{AppId, SocketId, Transport};

/// Open sessions that a process takes, over all transports.
pub const MAX_SESSIONS: usize = 100_000;

/// Sessions ended in one go, at least: pusher-js comes back at once, so the server paces.
const SLICE: usize = 20;

/// Time between two goes.
const PACE: Duration = Duration::from_millis(100);

/// Goes in which everyone must have been told.
const SLICES: usize = 80;

/// The open sessions.
pub struct Sessions {
    open: Mutex<HashMap<SocketId, Arc<Session>>>,
    budget: Budget,
    metrics: Arc<Metrics>,
}

/// A session's place among the open ones, given back when it goes.
pub struct Place {
    /// The session.
    pub session: Arc<Session>,
    /// What its log lines stand in.
    pub span: Span,
    sessions: Arc<Sessions>,
}

impl Sessions {
    /// None yet.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), budget: Budget::default(), metrics })
    }

    /// Opens a session; `None` when there are as many as may be.
    pub fn open(self: &Arc<Self>, socket: SocketId, app: AppId, transport: Transport) -> Option<Place> {
        let session = Session::new(socket, app, transport, self.budget.clone(), self.metrics.clone());
        {
            let mut open = self.lock();
            if open.len() >= MAX_SESSIONS {
                return None;
            }
            open.insert(session.socket.clone(), session.clone());
        }
        self.metrics.connections(transport).inc();
        self.metrics.opened(transport).inc();
        Some(Place { session, span: Span::none(), sessions: self.clone() })
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Ends the sessions of apps that are gone or disabled.
    pub fn keep(&self, registry: &Registry) {
        let sessions: Vec<_> = self.lock().values().cloned().collect();
        for session in sessions {
            if let Err(closing) = stays(registry, &session.app) {
                session.close(closing);
            }
        }
    }

    /// Tells every client to come back to another process, a few at a time.
    pub async fn drain(&self) {
        let sessions: Vec<_> = self.lock().values().cloned().collect();
        let slice = sessions.len().div_ceil(SLICES).max(SLICE);
        for (n, part) in sessions.chunks(slice).enumerate() {
            if n > 0 {
                tokio::time::sleep(PACE).await;
            }
            for session in part {
                session.close(going_away());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketId, Arc<Session>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a client is told when the server goes away.
pub fn going_away() -> Closing {
    Closing { drain: true, ..Closing::new(code::RECONNECT, "the server is going away, come back at once") }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.session.socket);
        self.sessions.metrics.connections(self.session.transport).dec();
    }
}
