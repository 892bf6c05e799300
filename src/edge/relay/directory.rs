//! The owners of sessions, and the processes that are alive.
//!
//! In: what the bus says. Out: owners, remembered for a moment, and the processes as they were last known, so that
//! sessions are found while the bus is away. This process names its own sessions again and again: an entry that nobody
//! refreshes lives for a minute at least, in which a request learns that the owner is gone.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::bus::relay::SESSION_REFRESH_INTERVAL;
use crate::bus::{BusError, RelayPeer, SessionDirectory};
use crate::edge::close_reason::CloseReason;
use crate::edge::metrics::EdgeMetrics;
use crate::edge::transport::session_ownership::{HttpSessions, SessionClaim, SessionName};
use crate::process::locks::lock_unpoisoned;
use crate::protocol::frame::code;

/// The interval of the heartbeats by which other processes know that this one is alive.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);

/// Timeout of one heartbeat.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest that a request waits for the bus. An unavailable bus fails at once; a slow one is worth the wait, because
/// without its answer an existing session may be taken for a new one.
const BUS_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause after the bus did not answer.
const BUS_RETRY_BACKOFF: Duration = Duration::from_secs(1);

/// Time of doubt after the bus recovered: other processes may not have re-registered their sessions yet.
const STALE_DIRECTORY_GRACE: Duration = Duration::from_secs(10);

/// Time for which an owner is cached after it was last confirmed.
const OWNER_CACHE_TTL: Duration = Duration::from_secs(5);

/// Owners that the cache holds.
const CACHED_OWNERS_MAX: usize = 50_000;

/// Bounds the ended sessions whose release is queued. Beyond it, their entries expire.
const ENDED_SESSIONS_MAX: usize = 50_000;

/// The owner of a session.
pub(crate) struct SessionOwner {
    pub(crate) peer: RelayPeer,
    /// Whether the answer came from the cache.
    pub(crate) is_cached: bool,
}

/// The directory of session owners.
pub(crate) struct OwnerDirectory {
    bus: Arc<dyn SessionDirectory>,
    /// The process id and address of this process.
    pub(crate) me: RelayPeer,
    local_sessions: Arc<dyn HttpSessions>,
    metrics: Arc<EdgeMetrics>,
    /// The living processes, including this one.
    peers: watch::Sender<HashMap<String, IpAddr>>,
    state: Mutex<DirectoryState>,
    ended: mpsc::Sender<String>,
}

struct DirectoryState {
    owner_cache: HashMap<String, (String, Instant)>,
    /// Sessions of this process, with the time of their last refresh.
    registered: HashMap<String, Option<Instant>>,
    /// Ended sessions that still have an entry.
    ended: HashSet<String>,
    back_off_until: Option<Instant>,
    is_bus_unavailable: bool,
    stale_until: Instant,
}

impl DirectoryState {
    fn mark_refreshed(&mut self, session: &str) {
        if let Some(named) = self.registered.get_mut(session) {
            *named = Some(Instant::now());
        }
    }
}

/// The registration of a local session, held for as long as the session lives.
pub struct SessionRegistration {
    directory: Arc<OwnerDirectory>,
    session: String,
    /// Whether the entry stays after the drop.
    is_release_disarmed: AtomicBool,
}

impl SessionClaim for SessionRegistration {
    fn disarm_release(&self) {
        self.is_release_disarmed.store(true, Ordering::Relaxed);
    }
}

impl Drop for SessionRegistration {
    fn drop(&mut self) {
        let mut state = self.directory.lock_state();
        state.registered.remove(&self.session);
        if !self.is_release_disarmed.load(Ordering::Relaxed)
            && self.directory.ended.try_send(self.session.clone()).is_ok()
        {
            state.ended.insert(std::mem::take(&mut self.session));
        }
    }
}

impl OwnerDirectory {
    pub(crate) fn new(
        bus: Arc<dyn SessionDirectory>,
        me: RelayPeer,
        here: Arc<dyn HttpSessions>,
        metrics: Arc<EdgeMetrics>,
    ) -> (Arc<Self>, mpsc::Receiver<String>) {
        let (sender, over) = mpsc::channel(ENDED_SESSIONS_MAX);
        let known = watch::Sender::new(HashMap::from([(me.process.clone(), me.address)]));
        let state = DirectoryState {
            owner_cache: HashMap::new(),
            registered: HashMap::new(),
            ended: HashSet::new(),
            back_off_until: None,
            is_bus_unavailable: false,
            // Events before the start of this process are unknown to it.
            stale_until: Instant::now() + STALE_DIRECTORY_GRACE,
        };
        (
            Arc::new(Self {
                bus,
                me,
                local_sessions: here,
                metrics,
                peers: known,
                state: Mutex::new(state),
                ended: sender,
            }),
            over,
        )
    }

    /// Registers a local session before the bus is asked; `None` when it is registered already.
    pub(crate) fn register_session(self: &Arc<Self>, session: &str) -> Option<Arc<SessionRegistration>> {
        let mut state = self.lock_state();
        if state.registered.contains_key(session) {
            return None;
        }
        state.registered.insert(session.to_owned(), None);
        Some(Arc::new(SessionRegistration {
            directory: self.clone(),
            session: session.to_owned(),
            is_release_disarmed: AtomicBool::new(false),
        }))
    }

    /// Returns the cached owner, if it is fresh.
    pub(crate) fn cached_owner(&self, session: &str) -> Option<SessionOwner> {
        let process = {
            let state = self.lock_state();
            let (process, at) = state.owner_cache.get(session)?;
            (at.elapsed() < OWNER_CACHE_TTL).then(|| process.clone())?
        };
        let peer = self.known_peer(&process)?;
        Some(SessionOwner { peer, is_cached: true })
    }

    /// Caches an owner that was just confirmed.
    pub(crate) fn cache_owner(&self, session: &str, process: &str) {
        let mut state = self.lock_state();
        if state.owner_cache.len() >= CACHED_OWNERS_MAX && !state.owner_cache.contains_key(session) {
            state.owner_cache.retain(|_, (_, at)| at.elapsed() < OWNER_CACHE_TTL);
            if state.owner_cache.len() >= CACHED_OWNERS_MAX {
                return;
            }
        }
        state.owner_cache.insert(session.to_owned(), (process.to_owned(), Instant::now()));
    }

    /// Removes the cached owner of a session.
    pub(crate) fn evict_owner(&self, session: &str) {
        self.lock_state().owner_cache.remove(session);
    }

    /// Looks up the owner on the bus, and claims an unowned session if this request opens it. Needs the bus.
    pub(crate) async fn look_up_owner(&self, session: &str, opens: bool) -> Result<Option<String>, ()> {
        if self.is_backing_off() {
            return Err(());
        }
        let me = &self.me.process;
        let call = async {
            if opens { self.bus.claim_session(session, me).await } else { self.bus.session_owner(session).await }
        };
        let owner = self.call_bus(BUS_ANSWER_TIMEOUT, call).await.ok_or(())?;
        let mut state = self.lock_state();
        if opens && owner.as_ref() == Some(me) && state.ended.remove(session) {
            // A closed session of this process, whose entry may just be expiring: the next heartbeat refreshes it.
            return Ok(None);
        }
        if opens && owner.is_none() {
            state.mark_refreshed(session);
        }
        Ok(owner)
    }

    /// Whether the bus may lack entries that it had before.
    pub(crate) fn is_stale(&self) -> bool {
        Instant::now() < self.lock_state().stale_until
    }

    /// The address of a process; an unknown one is looked up on the bus. `None` when the process is gone.
    pub(crate) async fn resolve_peer(&self, process: &str) -> Option<RelayPeer> {
        if let Some(peer) = self.known_peer(process) {
            return Some(peer);
        }
        self.refresh_peers(BUS_ANSWER_TIMEOUT).await;
        self.known_peer(process)
    }

    /// Returns the other processes, as last known.
    pub(crate) fn other_peers(&self) -> Vec<RelayPeer> {
        let known = self.peers.borrow();
        let others = known.iter().filter(|(process, _)| **process != self.me.process);
        others.map(|(process, address)| RelayPeer { process: process.clone(), address: *address }).collect()
    }

    /// Resolves once a process is known to be gone.
    pub(crate) fn wait_peer_gone(&self, process: &str) -> impl Future<Output = ()> + Send + use<> {
        let (mut known, process) = (self.peers.subscribe(), process.to_owned());
        async move {
            if known.wait_for(|known| !known.contains_key(&process)).await.is_err() {
                // This process is shutting down, and the drain closes its sessions.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Reports to the owner of a session, over the bus, that a message did not reach it.
    pub(crate) async fn report_lost_send(&self, session: &str, owner: &str) {
        if self.call_bus(BUS_ANSWER_TIMEOUT, self.bus.report_lost_send(session, owner)).await.is_none() {
            tracing::warn!(owner, "lost send not reported: the bus does not answer, so its session stays open");
        }
    }

    /// Sends heartbeats and releases ended sessions, until the token is cancelled.
    pub(crate) async fn run_heartbeats(self: Arc<Self>, mut over: mpsc::Receiver<String>, stop: CancellationToken) {
        let mut beats = interval(HEARTBEAT_INTERVAL);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = beats.tick() => self.send_heartbeat().await,
                Some(session) = over.recv() => self.release_session(&session).await,
            }
        }
    }

    /// Sends a heartbeat, and refreshes the sessions that are due.
    pub(crate) async fn send_heartbeat(&self) {
        self.refresh_peers(HEARTBEAT_TIMEOUT).await;
        let mut due: Vec<String> = {
            let state = self.lock_state();
            let is_due = |named: &Option<Instant>| named.is_none_or(|at| at.elapsed() >= SESSION_REFRESH_INTERVAL);
            state.registered.iter().filter(|(_, named)| is_due(named)).map(|(session, _)| session.clone()).collect()
        };
        // A session that is only being opened is not local yet. Asked without the lock, which its end takes in turn.
        due.retain(|session| SessionName::parse(session).is_some_and(|name| self.local_sessions.has_session(&name)));
        if due.is_empty() || self.is_backing_off() {
            return;
        }
        if self.call_bus(HEARTBEAT_TIMEOUT, self.bus.refresh_sessions(&due, &self.me.process)).await.is_some() {
            let mut state = self.lock_state();
            for session in &due {
                state.mark_refreshed(session);
            }
        }
    }

    /// Sends a heartbeat, and reads the live processes and the lost sends that others reported.
    async fn refresh_peers(&self, within: Duration) {
        let was_away = self.lock_state().is_bus_unavailable;
        let Some(alive) = self.call_bus(within, self.bus.send_heartbeat(&self.me)).await else { return };
        let doubted = {
            let mut state = self.lock_state();
            if was_away || !alive.was_registered {
                // The store may have lost its data: every session is refreshed.
                state.is_bus_unavailable = false;
                state.stale_until = Instant::now() + STALE_DIRECTORY_GRACE;
                state.registered.values_mut().for_each(|named| *named = None);
            }
            Instant::now() < state.stale_until
        };
        self.peers.send_if_modified(|known| {
            let mut peers: HashMap<_, _> = alive.peers.into_iter().map(|peer| (peer.process, peer.address)).collect();
            if doubted {
                // Processes seen before are assumed to live still.
                peers.extend(known.iter().map(|(process, address)| (process.clone(), *address)));
            }
            let changed = *known != peers;
            *known = peers;
            changed
        });
        for name in alive.sessions_with_lost_sends.iter().filter_map(|session| SessionName::parse(session)) {
            self.local_sessions
                .close_session(&name, CloseReason::new(code::RECONNECT, "a message was lost, come back at once"));
        }
    }

    async fn release_session(&self, session: &str) {
        let due = {
            let state = self.lock_state();
            // While the bus is unavailable, the entry expires.
            state.ended.contains(session) && !state.is_bus_unavailable
        };
        if due {
            self.call_bus(BUS_ANSWER_TIMEOUT, self.bus.release_session(session, &self.me.process)).await;
        }
        self.lock_state().ended.remove(session);
    }

    fn known_peer(&self, process: &str) -> Option<RelayPeer> {
        let address = self.peers.borrow().get(process).copied();
        address.map(|address| RelayPeer { process: process.to_owned(), address })
    }

    fn is_backing_off(&self) -> bool {
        self.lock_state().back_off_until.is_some_and(|until| Instant::now() < until)
    }

    /// Returns the bus's answer, if it arrives in time.
    async fn call_bus<T>(&self, within: Duration, call: impl Future<Output = Result<T, BusError>>) -> Option<T> {
        let answer = if self.bus.is_available() { timeout(within, call).await.ok().and_then(Result::ok) } else { None };
        let mut state = self.lock_state();
        if answer.is_none() {
            self.metrics.bus_errors.inc();
            state.is_bus_unavailable = true;
            state.back_off_until = Some(Instant::now() + BUS_RETRY_BACKOFF);
        } else {
            state.back_off_until = None;
        }
        answer
    }

    fn lock_state(&self) -> MutexGuard<'_, DirectoryState> {
        lock_unpoisoned(&self.state)
    }
}
