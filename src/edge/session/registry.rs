//! All open sessions of the process, and their limit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::Span;

use crate::edge::apps::handshake::check_app_enabled;
use crate::edge::metrics::EdgeMetrics;
use crate::edge::session::{ByteBudget, Session};
use crate::protocol::registry::AppRegistry;
use crate::protocol::{AppId, SocketId, Transport};

/// Open sessions of a process, over all transports.
pub const OPEN_SESSIONS_MAX: usize = 100_000;

/// The registry of open sessions.
pub struct SessionRegistry {
    open: Mutex<HashMap<SocketId, Arc<Session>>>,
    budget: ByteBudget,
    metrics: Arc<EdgeMetrics>,
}

/// A session's entry in the registry, removed when dropped.
pub struct SessionGuard {
    /// The registered session.
    pub session: Arc<Session>,
    /// The span of the session's log lines.
    pub span: Span,
    sessions: Arc<SessionRegistry>,
}

impl SessionRegistry {
    /// Creates an empty registry.
    pub fn new(metrics: Arc<EdgeMetrics>) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), budget: ByteBudget::default(), metrics })
    }

    /// Opens a session; `None` when the limit is reached.
    pub fn open(self: &Arc<Self>, socket: SocketId, app: AppId, transport: Transport) -> Option<SessionGuard> {
        let session = Session::new(socket, app, transport, self.budget.clone(), self.metrics.clone());
        {
            let mut open = self.lock_open();
            if open.len() >= OPEN_SESSIONS_MAX {
                return None;
            }
            open.insert(session.socket.clone(), session.clone());
        }
        self.metrics.connections(transport).inc();
        self.metrics.opened(transport).inc();
        Some(SessionGuard { session, span: Span::none(), sessions: self.clone() })
    }

    /// Number of open sessions.
    pub fn open_count(&self) -> usize {
        self.lock_open().len()
    }

    /// Closes the sessions of removed or disabled apps.
    pub fn close_sessions_of_removed_apps(&self, registry: &AppRegistry) {
        for session in self.open_sessions() {
            if let Err(closing) = check_app_enabled(registry, &session.app) {
                session.close(closing);
            }
        }
    }

    /// Returns the sessions that are open now.
    pub fn open_sessions(&self) -> Vec<Arc<Session>> {
        self.lock_open().values().cloned().collect()
    }

    fn lock_open(&self) -> MutexGuard<'_, HashMap<SocketId, Arc<Session>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.sessions.lock_open().remove(&self.session.socket);
        self.sessions.metrics.connections(self.session.transport).dec();
    }
}
