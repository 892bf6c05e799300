//! Opens sessions, or refuses clients with a close reason.
//!
//! In: the key, the query and the address of a client. Out: a session in the registry, or the close reason, which is
//! counted and logged. It must not know channels, nor the bus.

use std::sync::Arc;

use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio_util::task::TaskTracker;

use crate::edge::apps::RegistryWatcher;
use crate::edge::apps::client_address::Caller;
use crate::edge::apps::handshake::{admit_handshake, check_app_enabled, refusal_reason};
use crate::edge::close_reason::CloseReason;
use crate::edge::metrics::EdgeMetrics;
use crate::edge::session::Session;
use crate::edge::session::drain_signal::DrainSignal;
use crate::edge::session::registry::{SessionGuard, SessionRegistry};
use crate::process::clock;
use crate::process::metrics::LabelValue;
use crate::protocol::connection_log::{ConnectionEvent, ConnectionLogEntry};
use crate::protocol::frame::code;
use crate::protocol::{AppId, SocketId, Transport};

/// Opens sessions while the process does not drain.
pub struct SessionOpener {
    /// The app registry, as it is now.
    pub apps: Arc<RegistryWatcher>,
    /// The open sessions of this process.
    pub sessions: Arc<SessionRegistry>,
    /// The drain: once it has started, no session is admitted.
    pub draining: Arc<DrainSignal>,
    /// One task per session.
    pub session_tasks: TaskTracker,
    /// The metrics of this edge.
    pub metrics: Arc<EdgeMetrics>,
}

impl SessionOpener {
    /// Opens a session for a client that may have one.
    ///
    /// # Errors
    /// The close reason: the client may have no session, or the server is full or drains.
    pub fn open(
        &self,
        key: &str,
        query: &str,
        caller: &Caller,
        transport: Transport,
    ) -> Result<SessionGuard, CloseReason> {
        let origin = caller.origin.as_deref();
        let opened = admit_handshake(&self.apps.current(), key, query, origin)
            .and_then(|app| self.admit_session(app, transport));
        match opened {
            Ok(mut place) => {
                let Session { socket, app, .. } = &*place.session;
                place.span = tracing::debug_span!("session", %socket, %app, %transport, client = %caller.address);
                tracing::debug!(parent: &place.span, "a session was opened");
                self.sessions.log.write(|| {
                    let origin = caller.origin.clone();
                    place.session.log_entry(ConnectionEvent::Opened { address: caller.address, origin })
                });
                Ok(place)
            }
            Err(closing) => {
                self.count_refusal(&closing, caller, (Some(key), Some(transport)));
                Err(closing)
            }
        }
    }

    /// Counts and logs a client that is refused at once, with its key and its transport where they are known.
    pub fn count_refusal(
        &self,
        closing: &CloseReason,
        caller: &Caller,
        (key, transport): (Option<&str>, Option<Transport>),
    ) {
        let (code, reason) = (closing.code, &closing.reason);
        tracing::debug!(client = %caller.address, origin = ?caller.origin, code, reason, "a client was refused");
        self.metrics.refusals.with_label(refusal_reason(closing)).inc();
        self.sessions.log.write(|| ConnectionLogEntry {
            time_ms: clock::now_ms(),
            app: key.and_then(|key| self.apps.current().by_key(key).map(|app| app.id.clone())),
            socket: None,
            transport,
            event: ConnectionEvent::Refused {
                reason: refusal_reason(closing).name().to_owned(),
                code: closing.code,
                message: closing.reason.clone(),
                address: caller.address,
                origin: caller.origin.clone(),
            },
        });
    }

    fn admit_session(&self, app: AppId, transport: Transport) -> Result<SessionGuard, CloseReason> {
        let full = || CloseReason::new(code::OVER_CAPACITY, "the server is full, come back later");
        let place = self.sessions.open(socket_id().ok_or_else(full)?, app, transport).ok_or_else(full)?;
        // Checked only now: a session that was opened before the drain began, or before its app changed, is closed with
        // the others.
        if self.draining.is_started() {
            return Err(DrainSignal::newcomer_close_reason());
        }
        check_app_enabled(&self.apps.current(), &place.session.app)?;
        Ok(place)
    }
}

/// A new public id. `None` when the operating system gives no random numbers: a guessable id would be worse than none.
fn socket_id() -> Option<SocketId> {
    let number = || OsRng.try_next_u64().ok();
    Some(SocketId::from_random(number()?, number()?))
}
