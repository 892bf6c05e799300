//! Every open session of the process, and how many there may be.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::Span;

use super::admission::stays;
use super::metrics::Metrics;
use super::session::{Budget, Session};
use crate::protocol::registry::Registry;
use crate::protocol::{AppId, SocketId, Transport};

/// Open sessions that a process takes, over all transports.
pub const MAX_SESSIONS: usize = 100_000;

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
        for session in self.all() {
            if let Err(closing) = stays(registry, &session.app) {
                session.close(closing);
            }
        }
    }

    /// Those that are open now.
    pub fn all(&self) -> Vec<Arc<Session>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketId, Arc<Session>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.session.socket);
        self.sessions.metrics.connections(self.session.transport).dec();
    }
}
