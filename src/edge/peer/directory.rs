//! Who has which session, and which processes are there.
//!
//! In: what the bus says. Out: owners, remembered for a moment, and the processes as they were last known, so that
//! sessions are found while the bus is away. This process names its own sessions again and again: an entry that nobody
//! names lives for a minute at least, in which whoever asks is told that its owner is gone.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::super::metrics::Metrics;
use super::super::session::Closing;
use super::{Here, Name};
use crate::bus::peers::NAMED_EVERY;
use crate::bus::{Bus, BusError, Peer};
use crate::protocol::frame::code;

/// How often this process tells that it is there.
const BEAT: Duration = Duration::from_secs(3);

/// Longest for one beat.
const BEAT_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest that a request waits for the bus. A bus that is known to be away answers so at once; one that is only slow is
/// better waited for, since without it a session may be taken for a new one.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the bus is not asked after it did not answer.
const REST: Duration = Duration::from_secs(1);

/// How long the bus is doubted that came back: others may not have named their sessions again.
const DOUBT: Duration = Duration::from_secs(10);

/// How long an owner is remembered after it was last seen to be one.
const REMEMBERED: Duration = Duration::from_secs(5);

/// Owners that are remembered.
const MAX_REMEMBERED: usize = 50_000;

/// Sessions that are over and wait to be told of. Beyond, their entries expire.
const MAX_OVER: usize = 50_000;

/// Who has a session.
pub(super) struct Owner {
    pub(super) peer: Peer,
    /// Whether it was not asked for just now.
    pub(super) remembered: bool,
}

/// Who has which session.
pub(super) struct Directory {
    bus: Arc<dyn Bus>,
    /// This process.
    pub(super) me: Peer,
    here: Arc<Here>,
    metrics: Arc<Metrics>,
    /// The processes that are there, this one too.
    known: watch::Sender<HashMap<String, IpAddr>>,
    state: Mutex<State>,
    over: mpsc::Sender<String>,
}

struct State {
    owners: HashMap<String, (String, Instant)>,
    /// This process's own, and when each was last named.
    own: HashMap<String, Option<Instant>>,
    /// Those of them that are over and still have an entry.
    over: HashSet<String>,
    rests_until: Option<Instant>,
    away: bool,
    doubted_until: Instant,
}

impl State {
    fn named(&mut self, session: &str) {
        if let Some(named) = self.own.get_mut(session) {
            *named = Some(Instant::now());
        }
    }
}

/// This process has a session, for as long as this is held.
pub struct Registration {
    directory: Arc<Directory>,
    session: String,
    /// The entry stays.
    left: AtomicBool,
}

impl Registration {
    /// Lets the entry be: it is another's, or it is to say that the session is gone.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.directory.lock();
        state.own.remove(&self.session);
        if !self.left.load(Ordering::Relaxed) && self.directory.over.try_send(self.session.clone()).is_ok() {
            state.over.insert(std::mem::take(&mut self.session));
        }
    }
}

impl Directory {
    pub(super) fn new(
        bus: Arc<dyn Bus>,
        me: Peer,
        here: Arc<Here>,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, mpsc::Receiver<String>) {
        let (sender, over) = mpsc::channel(MAX_OVER);
        let known = watch::Sender::new(HashMap::from([(me.process.clone(), me.address)]));
        let state = State {
            owners: HashMap::new(),
            own: HashMap::new(),
            over: HashSet::new(),
            rests_until: None,
            away: false,
            // What happened before this process was there, it cannot know.
            doubted_until: Instant::now() + DOUBT,
        };
        (Arc::new(Self { bus, me, here, metrics, known, state: Mutex::new(state), over: sender }), over)
    }

    /// Says that a session is this process's, before the bus is asked; `None` when it is already.
    pub(super) fn register(self: &Arc<Self>, session: &str) -> Option<Arc<Registration>> {
        let mut state = self.lock();
        if state.own.contains_key(session) {
            return None;
        }
        state.own.insert(session.to_owned(), None);
        Some(Arc::new(Registration {
            directory: self.clone(),
            session: session.to_owned(),
            left: AtomicBool::new(false),
        }))
    }

    /// The owner that was seen a moment ago.
    pub(super) fn remembered(&self, session: &str) -> Option<Owner> {
        let process = {
            let state = self.lock();
            let (process, at) = state.owners.get(session)?;
            (at.elapsed() < REMEMBERED).then(|| process.clone())?
        };
        let peer = self.known(&process)?;
        Some(Owner { peer, remembered: true })
    }

    /// Remembers an owner that was just seen to be one.
    pub(super) fn remember(&self, session: &str, process: &str) {
        let mut state = self.lock();
        if state.owners.len() >= MAX_REMEMBERED && !state.owners.contains_key(session) {
            state.owners.retain(|_, (_, at)| at.elapsed() < REMEMBERED);
            if state.owners.len() >= MAX_REMEMBERED {
                return;
            }
        }
        state.owners.insert(session.to_owned(), (process.to_owned(), Instant::now()));
    }

    /// Remembers no owner of this session.
    pub(super) fn forget(&self, session: &str) {
        self.lock().owners.remove(session);
    }

    /// Asks the bus who has a session, and takes it if nobody does and this is to open it. An error when the bus is away.
    pub(super) async fn ask(&self, session: &str, opens: bool) -> Result<Option<String>, ()> {
        if self.rests() {
            return Err(());
        }
        let me = &self.me.process;
        let call = async { if opens { self.bus.own(session, me).await } else { self.bus.owner(session).await } };
        let owner = self.answer(PATIENCE, call).await.ok_or(())?;
        let mut state = self.lock();
        if opens && owner.as_ref() == Some(me) && state.over.remove(session) {
            // It was this process's, is over, and its entry may be going just now: it is named again with the next beat.
            return Ok(None);
        }
        if opens && owner.is_none() {
            state.named(session);
        }
        Ok(owner)
    }

    /// Whether the bus may know less than it did.
    pub(super) fn doubts(&self) -> bool {
        Instant::now() < self.lock().doubted_until
    }

    /// Where a process is asked; the bus is asked for it if it is news. `None` when it is gone.
    pub(super) async fn address(&self, process: &str) -> Option<Peer> {
        if let Some(peer) = self.known(process) {
            return Some(peer);
        }
        self.greet(PATIENCE).await;
        self.known(process)
    }

    /// The other processes, as last known.
    pub(super) fn others(&self) -> Vec<Peer> {
        let known = self.known.borrow();
        let others = known.iter().filter(|(process, _)| **process != self.me.process);
        others.map(|(process, address)| Peer { process: process.clone(), address: *address }).collect()
    }

    /// Resolves once a process is known to be gone.
    pub(super) fn gone(&self, process: &str) -> impl Future<Output = ()> + Send + use<> {
        let (mut known, process) = (self.known.subscribe(), process.to_owned());
        async move {
            if known.wait_for(|known| !known.contains_key(&process)).await.is_err() {
                // This process goes itself, and says so in its own way.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Has the owner of a session told that a message did not reach it.
    pub(super) async fn lose(&self, session: &str, owner: &str) {
        if self.answer(PATIENCE, self.bus.lose(session, owner)).await.is_none() {
            tracing::warn!(owner, "a message was lost, and its session cannot be ended: the bus does not answer");
        }
    }

    /// Keeps telling that this process is there and which sessions it has.
    pub(super) async fn follow(self: Arc<Self>, mut over: mpsc::Receiver<String>, stop: CancellationToken) {
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = beats.tick() => self.beat().await,
                Some(session) = over.recv() => self.disown(&session).await,
            }
        }
    }

    /// Tells that this process is there, and names the sessions whose time has come.
    pub(super) async fn beat(&self) {
        self.greet(BEAT_TIMEOUT).await;
        let mut due: Vec<String> = {
            let state = self.lock();
            let is_due = |named: &Option<Instant>| named.is_none_or(|at| at.elapsed() >= NAMED_EVERY);
            state.own.iter().filter(|(_, named)| is_due(named)).map(|(session, _)| session.clone()).collect()
        };
        // One that is only about to be opened is not here yet. Asked without the lock, which its end takes in turn.
        due.retain(|session| Name::parse(session).is_some_and(|name| self.here.has(&name)));
        if due.is_empty() || self.rests() {
            return;
        }
        if self.answer(BEAT_TIMEOUT, self.bus.name(&due, &self.me.process)).await.is_some() {
            let mut state = self.lock();
            for session in &due {
                state.named(session);
            }
        }
    }

    /// Tells that this process is there, and learns who else is and what the others have to say.
    async fn greet(&self, within: Duration) {
        let was_away = self.lock().away;
        let Some(alive) = self.answer(within, self.bus.alive(&self.me)).await else { return };
        let doubted = {
            let mut state = self.lock();
            if was_away || !alive.known {
                // It may have lost its memory: all of them are named again.
                state.away = false;
                state.doubted_until = Instant::now() + DOUBT;
                state.own.values_mut().for_each(|named| *named = None);
            }
            Instant::now() < state.doubted_until
        };
        self.known.send_if_modified(|known| {
            let mut peers: HashMap<_, _> = alive.peers.into_iter().map(|peer| (peer.process, peer.address)).collect();
            if doubted {
                // Whoever was there before is thought to be there still.
                peers.extend(known.iter().map(|(process, address)| (process.clone(), *address)));
            }
            let changed = *known != peers;
            *known = peers;
            changed
        });
        for name in alive.losers.iter().filter_map(|session| Name::parse(session)) {
            self.here.close(&name, Closing::new(code::RECONNECT, "a message was lost, come back at once"));
        }
    }

    async fn disown(&self, session: &str) {
        let due = {
            let state = self.lock();
            // While the bus is away, the entry expires.
            state.over.contains(session) && !state.away
        };
        if due {
            self.answer(PATIENCE, self.bus.disown(session, &self.me.process)).await;
        }
        self.lock().over.remove(session);
    }

    fn known(&self, process: &str) -> Option<Peer> {
        let address = self.known.borrow().get(process).copied();
        address.map(|address| Peer { process: process.to_owned(), address })
    }

    fn rests(&self) -> bool {
        self.lock().rests_until.is_some_and(|until| Instant::now() < until)
    }

    /// The bus's answer, if it comes in time.
    async fn answer<T>(&self, within: Duration, call: impl Future<Output = Result<T, BusError>>) -> Option<T> {
        let answer = if self.bus.up() { timeout(within, call).await.ok().and_then(Result::ok) } else { None };
        let mut state = self.lock();
        if answer.is_none() {
            self.metrics.bus_errors.inc();
            state.away = true;
            state.rests_until = Some(Instant::now() + REST);
        } else {
            state.rests_until = None;
        }
        answer
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
