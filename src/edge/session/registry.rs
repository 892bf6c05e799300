//! All open sessions of the process, and their limit.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::config::ServerKind;
use crate::edge::apps::handshake::check_app_enabled;
use crate::edge::connection_log::ConnectionLog;
use crate::edge::intake::sources::SourceSlot;
use crate::edge::metrics::EdgeMetrics;
use crate::edge::session::{ByteBudget, Session, SessionOrigin};
use crate::process::locks::lock_unpoisoned;
use crate::protocol::admin::SessionFlow;
use crate::protocol::connection_log::{ConnectionEvent, ConnectionLogEntry};
use crate::protocol::registry::AppRegistry;
use crate::protocol::{AppId, SocketId, Transport, derive_journey_app};

/// The open sessions of the process.
pub struct SessionRegistry {
    open: Mutex<HashMap<SocketId, Arc<Session>>>,
    sessions_max: usize,
    activity_timeout: Duration,
    budget: ByteBudget,
    metrics: Arc<EdgeMetrics>,
    /// The app of journeys. Its sessions do not count as sessions of clients.
    journey_app: AppId,
    /// Sessions of clients that were opened, by the server whose transports carry them.
    opened: Mutex<BTreeMap<ServerKind, u64>>,
    /// The log of connects, refusals and closes, for readers that follow it.
    pub log: Arc<ConnectionLog>,
}

/// An open session's entry in the registry, removed when the guard is dropped.
pub struct SessionGuard {
    /// The session that is open.
    pub session: Arc<Session>,
    /// The span of its log lines.
    pub span: Span,
    sessions: Arc<SessionRegistry>,
    _source_slot: Option<SourceSlot>,
}

impl SessionRegistry {
    /// A registry without any session, for `sessions_max` at most. Each is pinged after a silence of `activity_timeout`.
    /// Sessions of the journeys of `cluster`, a UID, do not count as sessions of clients.
    pub fn new(sessions_max: usize, activity_timeout: Duration, cluster: &str, metrics: Arc<EdgeMetrics>) -> Arc<Self> {
        let journey_app = derive_journey_app(cluster);
        let (open, opened, budget, log) = (Mutex::default(), Mutex::default(), ByteBudget::default(), Arc::default());
        Arc::new(Self { open, sessions_max, activity_timeout, budget, metrics, journey_app, opened, log })
    }

    /// Most sessions that are open at once.
    pub fn sessions_max(&self) -> usize {
        self.sessions_max
    }

    /// Opens a session; `None` at the limit.
    pub fn open(
        self: &Arc<Self>,
        socket: SocketId,
        app: AppId,
        transport: Transport,
        slot: Option<SourceSlot>,
    ) -> Option<SessionGuard> {
        let origin = SessionOrigin { socket, app, transport, source: slot.as_ref().map(SourceSlot::source) };
        let session = Session::new(origin, self.activity_timeout, self.budget.clone(), self.metrics.clone());
        {
            let mut open = self.lock_open();
            if open.len() >= self.sessions_max {
                return None;
            }
            open.insert(session.socket.clone(), session.clone());
        }
        self.metrics.connections.with_label(transport).inc();
        session.app_counts.connections.inc();
        self.metrics.connections_opened.with_label(transport).inc();
        if self.is_client(&session) {
            *lock_unpoisoned(&self.opened).entry(transport.server_kind()).or_default() += 1;
        }
        Some(SessionGuard { session, span: Span::none(), sessions: self.clone(), _source_slot: slot })
    }

    /// Follows the registry until the token is cancelled: closes the sessions of removed and disabled apps, and gives series
    /// of the metrics to `app_series_max` apps at most.
    pub fn follow_apps(
        self: Arc<Self>,
        mut apps: watch::Receiver<Arc<AppRegistry>>,
        app_series_max: u64,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> {
        // At once, so that a session which is opened first counts for its app.
        self.metrics.list_apps(&apps.borrow_and_update(), app_series_max);
        async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = apps.changed() => if changed.is_err() { return },
                }
                let registry = apps.borrow_and_update().clone();
                self.metrics.list_apps(&registry, app_series_max);
                self.close_sessions_of_removed_apps(&registry);
            }
        }
    }

    /// The number of open sessions.
    pub fn open_count(&self) -> usize {
        self.lock_open().len()
    }

    /// Closes the sessions of removed and disabled apps.
    fn close_sessions_of_removed_apps(&self, registry: &AppRegistry) {
        for session in self.open_sessions() {
            if let Err(closing) = check_app_enabled(registry, &session.app) {
                session.close(closing);
            }
        }
    }

    /// The sessions that are open now.
    pub fn open_sessions(&self) -> Vec<Arc<Session>> {
        self.lock_open().values().cloned().collect()
    }

    /// Whether a session is that of a client of an app: neither of a journey, nor one that was refused.
    fn is_client(&self, session: &Session) -> bool {
        !session.app.as_str().is_empty() && session.app != self.journey_app
    }

    /// The sessions of clients that are open now: all, or those of one server's transports.
    pub fn client_sessions(&self, server: Option<ServerKind>) -> Vec<Arc<Session>> {
        let is_wanted = |session: &&Arc<Session>| {
            self.is_client(session) && server.is_none_or(|server| session.transport.server_kind() == server)
        };
        self.lock_open().values().filter(is_wanted).cloned().collect()
    }

    /// Sessions of clients by the server whose transports carry them, for the servers of `transports`.
    pub fn session_flow(&self, transports: &[Transport]) -> BTreeMap<ServerKind, SessionFlow> {
        let opened = lock_unpoisoned(&self.opened).clone();
        let servers = transports.iter().map(|transport| transport.server_kind());
        let mut flow: BTreeMap<ServerKind, SessionFlow> = servers
            .map(|server| (server, SessionFlow { open: 0, opened: opened.get(&server).copied().unwrap_or_default() }))
            .collect();
        for session in self.lock_open().values().filter(|session| self.is_client(session)) {
            flow.entry(session.transport.server_kind()).or_default().open += 1;
        }
        flow
    }

    fn lock_open(&self) -> MutexGuard<'_, HashMap<SocketId, Arc<Session>>> {
        lock_unpoisoned(&self.open)
    }
}

fn closing_entry(session: &Session) -> ConnectionLogEntry {
    let closing = session.close_reason();
    let event = ConnectionEvent::Closed {
        code: closing.as_ref().map(|closing| closing.code),
        message: closing.map(|closing| closing.reason).unwrap_or_default(),
        seconds: session.opened_at.elapsed().as_secs(),
    };
    session.log_entry(event)
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.sessions.lock_open().remove(&self.session.socket);
        self.sessions.log.write(|| closing_entry(&self.session));
        self.sessions.metrics.connections.with_label(self.session.transport).dec();
        self.session.app_counts.connections.dec();
    }
}
