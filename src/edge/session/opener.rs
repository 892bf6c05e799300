//! Opens sessions, or refuses clients with a close reason.
//!
//! In: the key, the query and the address of a client. Out: a session in the registry, or the close reason, which is
//! counted and logged. It must not know channels, nor the bus.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio_util::task::TaskTracker;

use crate::edge::apps::RegistryWatcher;
use crate::edge::apps::client_address::Caller;
use crate::edge::apps::handshake::{admit_handshake, check_app_enabled, refusal_reason};
use crate::edge::close_reason::CloseReason;
use crate::edge::intake::app_rates::AppRates;
use crate::edge::intake::sources::{ClientSources, RequestPace, SourceRefusal, SourceSlot};
use crate::edge::metrics::{EdgeMetrics, RefusalReason};
use crate::edge::session::Session;
use crate::edge::session::drain_signal::DrainSignal;
use crate::edge::session::registry::{SessionGuard, SessionRegistry};
use crate::process::clock;
use crate::process::metrics::LabelValue;
use crate::protocol::connection_log::{ConnectionEvent, ConnectionLogEntry};
use crate::protocol::frame::code;
use crate::protocol::registry::{AppRegistry, CONNECTIONS_PER_SOURCE_UNBOUNDED};
use crate::protocol::{AppId, SocketId, Transport};

/// Opens sessions while the process does not drain.
pub struct SessionOpener {
    /// The app registry, as it is now.
    pub apps: Arc<RegistryWatcher>,
    /// The open sessions of this process.
    pub sessions: Arc<SessionRegistry>,
    /// The drain: once it has started, no session is admitted.
    pub draining: Arc<DrainSignal>,
    /// The source addresses of clients.
    pub sources: ClientSources,
    /// The handshakes of each app.
    pub handshake_rates: AppRates,
    /// One task per session.
    pub session_tasks: TaskTracker,
    /// The metrics of this edge.
    pub metrics: Arc<EdgeMetrics>,
}

impl SessionOpener {
    /// An opener that has admitted nobody yet.
    pub fn new(apps: Arc<RegistryWatcher>, sessions: Arc<SessionRegistry>, metrics: Arc<EdgeMetrics>) -> Self {
        Self {
            apps,
            sessions,
            draining: Arc::default(),
            sources: ClientSources::default(),
            handshake_rates: AppRates::default(),
            session_tasks: TaskTracker::new(),
            metrics,
        }
    }

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
        let registry = self.apps.current();
        let admitted = admit_handshake(&registry, key, query, caller.origin.as_deref()).map_err(ClientRefusal::from);
        let opened = admitted.and_then(|app| {
            let slot = self.take_source_slot(&registry, &app, caller.source)?;
            Ok(self.admit_session(app, transport, slot)?)
        });
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
            Err(ClientRefusal { closing, reason }) => {
                self.report_refusal(&closing, reason, caller, (Some(key), Some(transport)));
                Err(closing)
            }
        }
    }

    /// Counts and logs a client that is refused at once, with its key and its transport where they are known.
    pub fn count_refusal(&self, closing: &CloseReason, caller: &Caller, client: (Option<&str>, Option<Transport>)) {
        self.report_refusal(closing, refusal_reason(closing), caller, client);
    }

    fn report_refusal(
        &self,
        closing: &CloseReason,
        counted: RefusalReason,
        caller: &Caller,
        (key, transport): (Option<&str>, Option<Transport>),
    ) {
        let (code, reason) = (closing.code, &closing.reason);
        tracing::debug!(client = %caller.address, origin = ?caller.origin, code, reason, "a client was refused");
        self.metrics.refusals.with_label(counted).inc();
        self.sessions.log.write(|| ConnectionLogEntry {
            time_ms: clock::now_ms(),
            app: key.and_then(|key| self.apps.current().by_key(key).map(|app| app.id.clone())),
            socket: None,
            transport,
            event: ConnectionEvent::Refused {
                reason: counted.name().to_owned(),
                code: closing.code,
                message: closing.reason.clone(),
                address: caller.address,
                origin: caller.origin.clone(),
            },
        });
    }

    /// Charges a request that the relay looks up on the bus for a session which is not here. Returns whether it may.
    pub fn charge_session_lookup(&self, source: Option<IpAddr>) -> bool {
        let Some(source) = source else { return true };
        let charged = self.sources.charge_request(&AppId::from(""), source, Instant::now());
        if charged == RequestPace::Refused {
            self.metrics.refusals.with_label(RefusalReason::SourceRequestRate).inc();
        }
        charged != RequestPace::Refused
    }

    /// Takes the place of a connection among those of its source, within the rates of source and app.
    fn take_source_slot(
        &self,
        registry: &AppRegistry,
        app: &AppId,
        source: Option<IpAddr>,
    ) -> Result<Option<SourceSlot>, ClientRefusal> {
        let limits = registry.by_id(app).map(|app| app.limits).unwrap_or_default();
        let now = Instant::now();
        let source = source.filter(|_| limits.connections_per_source < CONNECTIONS_PER_SOURCE_UNBOUNDED);
        let take = |source| self.sources.take_slot(app, source, limits.connections_per_source, now);
        let slot = source.map(take).transpose().map_err(|refusal| {
            if self.sources.take_warning(now) {
                tracing::warn!(
                    ?source, %app, ?refusal,
                    "clients of one address are refused: if it is a proxy, add its network to trustedProxies"
                );
            }
            match refusal {
                SourceRefusal::Connections => ClientRefusal::new(
                    RefusalReason::SourceConnections,
                    format!("the app allows {} connections from one address", limits.connections_per_source),
                ),
                SourceRefusal::HandshakeRate => ClientRefusal::new(
                    RefusalReason::SourceHandshakeRate,
                    "too many connections from one address, try again",
                ),
            }
        })?;
        if self.handshake_rates.try_take(registry, app, limits.handshakes_per_second, now) {
            return Ok(slot);
        }
        Err(ClientRefusal::new(RefusalReason::HandshakeRate, "the app has too many new connections, try again"))
    }

    fn admit_session(
        &self,
        app: AppId,
        transport: Transport,
        slot: Option<SourceSlot>,
    ) -> Result<SessionGuard, CloseReason> {
        let full = || CloseReason::new(code::OVER_CAPACITY, "the server is full, come back later");
        let place = self.sessions.open(socket_id().ok_or_else(full)?, app, transport, slot).ok_or_else(full)?;
        // Checked only now: a session that was opened before the drain began, or before its app changed, is closed with
        // the others.
        if self.draining.is_started() {
            return Err(DrainSignal::newcomer_close_reason());
        }
        check_app_enabled(&self.apps.current(), &place.session.app)?;
        Ok(place)
    }
}

/// The refusal of a client, with the reason in the metrics.
struct ClientRefusal {
    closing: CloseReason,
    reason: RefusalReason,
}

impl ClientRefusal {
    /// A refusal that passes: the client is asked to come back later.
    fn new(reason: RefusalReason, message: impl Into<String>) -> Self {
        Self { closing: CloseReason::new(code::OVER_CAPACITY, message), reason }
    }
}

impl From<CloseReason> for ClientRefusal {
    fn from(closing: CloseReason) -> Self {
        let reason = refusal_reason(&closing);
        Self { closing, reason }
    }
}

/// A new public id. `None` when the operating system gives no random numbers: a guessable id would be worse than none.
fn socket_id() -> Option<SocketId> {
    let number = || OsRng.try_next_u64().ok();
    Some(SocketId::from_random(number()?, number()?))
}
