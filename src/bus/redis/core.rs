//! What the tasks and the calls of one process's end share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::interfaces::SetsInterface;
use tokio::sync::{Notify, RwLock, mpsc};

use super::super::{BusError, Decided, Joined, MAX_MEMBERS, Subject, Transition};
use super::Timing;
use super::change::{Change, Changed, Changes, Refused};
use super::held::Held;
use super::names::{self, Names};
use super::store::{away, unavailable};
use crate::protocol::SocketId;
use crate::protocol::frame::Member;
use crate::protocol::record::{Cause, Order};

/// Locks that keep a channel's account and its single changes apart.
const STRIPES: usize = 64;
/// Connections told of in one call, so that it does not hold up the store.
const PIECE: usize = 250;

/// The shared part.
pub(super) struct Core {
    pub client: Client,
    pub names: Names,
    pub timing: Timing,
    changes: Changes,
    state: Mutex<State>,
    stripes: Vec<RwLock<()>>,
    hasher: std::hash::RandomState,
    /// There is something for the worker to do.
    pub wake: Notify,
    /// The lease is to be renewed now.
    pub hurry: Notify,
    up: AtomicBool,
    decided: mpsc::Sender<Decided>,
    /// What was decided and nobody took; it stays in the outbox.
    pub untaken: AtomicU64,
}

pub(super) struct State {
    /// The process's name on the bus, another after each loss of its lease.
    pub process: String,
    /// How many names it has had.
    pub name: u64,
    /// The store's memory, as last seen.
    pub incarnation: String,
    /// Until when nothing is told; and since when everyone can have told whom it has.
    pub settling: Option<Settling>,
    pub held: Held,
    /// Processes that have died, as last heard.
    pub dead: Vec<String>,
    /// Since when the store has answered without a break.
    pub steady: Option<Instant>,
    /// Since when its memory is what it is.
    pub memory: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Settling {
    pub told: Instant,
    pub ends: Instant,
}

/// As whom one call is made.
struct Caller {
    process: String,
    name: u64,
    incarnation: String,
    settling: bool,
    known: Order,
}

impl Core {
    pub fn new(client: Client, names: Names, process: String, timing: Timing, decided: mpsc::Sender<Decided>) -> Self {
        let state = State {
            process,
            name: 0,
            incarnation: String::new(),
            settling: None,
            held: Held::default(),
            dead: Vec::new(),
            steady: None,
            memory: None,
        };
        Self {
            client,
            names,
            timing,
            changes: Changes::new(),
            state: Mutex::new(state),
            stripes: (0..STRIPES).map(|_| RwLock::new(())).collect(),
            hasher: std::hash::RandomState::new(),
            wake: Notify::new(),
            hurry: Notify::new(),
            up: AtomicBool::new(false),
            decided,
            untaken: AtomicU64::new(0),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }

    fn stripe(&self, subject: &Subject) -> &RwLock<()> {
        use std::hash::BuildHasher;
        let index = usize::try_from(self.hasher.hash_one(subject) % STRIPES as u64).unwrap_or_default();
        &self.stripes[index]
    }

    fn caller(state: &State, subject: &Subject) -> Caller {
        Caller {
            process: state.process.clone(),
            name: state.name,
            incarnation: state.incarnation.clone(),
            settling: state.settling.is_some_and(|settling| Instant::now() < settling.ends),
            known: state.held.order(subject),
        }
    }

    /// One change of a channel, and what follows for what this process knows.
    async fn change(&self, subject: &Subject, whom: &Caller, change: &Change<'_>) -> Result<Changed, BusError> {
        if !self.up() {
            self.state().held.doubt(subject);
            return Err(away());
        }
        let answer = self.changes.run(&self.client, &self.names, subject, change).await;
        let mut state = self.state();
        match answer {
            Ok(changed) => {
                let come = change.come.iter().map(|(socket, _)| socket);
                // A piece of an account settles with its last one.
                state.held.confirmed(subject, come, change.go.iter(), whom.settling);
                if state.name != whom.name {
                    // It may have come after the sweep of the name under which it went.
                    state.held.doubt(subject);
                    self.wake.notify_one();
                }
                Ok(changed)
            }
            Err(Refused::Bus(full @ BusError::Full(_))) => Err(full),
            Err(refused) => {
                state.held.doubt(subject);
                drop(state);
                self.hurry.notify_one();
                Err(match refused {
                    Refused::Bus(error) => error,
                    Refused::Stale => BusError::Unavailable("it has lost its memory, and is told anew".to_owned()),
                })
            }
        }
    }

    /// Tells that the process has someone in a channel, so that others can find it should the process die.
    async fn index(&self, subject: &Subject, whom: &Caller) -> Result<(), BusError> {
        if self.up() {
            let key = self.names.index(&whom.process);
            self.client.sadd::<(), _, _>(key, names::entry(subject)).await.map_err(unavailable)?;
            self.state().held.indexed(subject, whom.name);
        }
        Ok(())
    }

    pub async fn enter(
        &self,
        subject: &Subject,
        socket: &SocketId,
        member: Option<&Member>,
    ) -> Result<Joined, BusError> {
        if member.is_some() {
            self.heard_everyone().await;
        }
        let _turn = self.stripe(subject).read().await;
        let (whom, untold) = {
            let mut state = self.state();
            let name = state.name;
            let untold = state.held.enter(subject, socket, member, name);
            (Self::caller(&state, subject), untold)
        };
        if untold && let Err(error) = self.index(subject, &whom).await {
            self.state().held.doubt(subject);
            self.hurry.notify_one();
            return Err(error);
        }
        let come = [(socket.clone(), member.cloned())];
        let change = Change { roster: member.is_some(), come: &come, ..plain(&whom) };
        match self.change(subject, &whom, &change).await {
            Ok(changed) => {
                let transitions = self.state().held.decided(subject, &changed.transitions, Instant::now());
                Ok(Joined { transitions, roster: changed.roster })
            }
            Err(error) => {
                if matches!(error, BusError::Full(_)) {
                    self.state().held.refused(subject, socket);
                }
                Err(error)
            }
        }
    }

    pub async fn leave(
        &self,
        subject: &Subject,
        socket: &SocketId,
        cause: Option<Cause>,
    ) -> Result<Vec<Transition>, BusError> {
        let _turn = self.stripe(subject).read().await;
        let whom = {
            let mut state = self.state();
            if !state.held.leave(subject, socket) {
                return Ok(Vec::new());
            }
            Self::caller(&state, subject)
        };
        let go = [socket.clone()];
        let changed = self.change(subject, &whom, &Change { cause, go: &go, ..plain(&whom) }).await?;
        Ok(self.state().held.decided(subject, &changed.transitions, Instant::now()))
    }

    /// Whether everyone could say whom it has.
    pub fn knows(&self) -> bool {
        self.up() && self.state().settling.is_none_or(|settling| settling.told <= Instant::now())
    }

    /// Who comes to a presence channel is told who is there: not before everyone could say so.
    async fn heard_everyone(&self) {
        let told = self.state().settling.map(|settling| settling.told);
        if let Some(told) = told {
            tokio::time::sleep_until(told.into()).await;
        }
    }

    /// Tells the store everything about a channel, and hears what follows.
    pub async fn tell(&self, subject: &Subject) -> Result<(), BusError> {
        let _turn = self.stripe(subject).write().await;
        let (whom, account) = {
            let mut state = self.state();
            // It may have something to tell of a channel that it has left.
            state.held.touch(subject);
            let account = state.held.account(subject);
            (Self::caller(&state, subject), account)
        };
        if let Err(error) = self.index(subject, &whom).await {
            self.state().held.doubt(subject);
            return Err(error);
        }
        // In pieces, of which only the last has everything told: before it, the channel may look empty.
        let mut come = account.come.chunks(PIECE).peekable();
        loop {
            let part = come.next().unwrap_or_default();
            let last = come.peek().is_none();
            let change = Change {
                members: usize::MAX >> 12,
                all: last,
                settling: whom.settling || !last,
                told: account.told.then_some(&account.present[..]),
                come: part,
                go: if last { &account.go } else { &[] },
                outbox: if last { &account.outbox } else { &[] },
                ..plain(&whom)
            };
            let changed = self.change(subject, &whom, &change).await?;
            self.pass_on(subject, changed);
            if last {
                return Ok(());
            }
        }
    }

    /// Removes the connections of a process that died from a channel, and takes over what it had to tell.
    pub async fn sweep(&self, subject: &Subject, dead: &str) -> Result<u64, BusError> {
        let _turn = self.stripe(subject).read().await;
        let whom = {
            let mut state = self.state();
            state.held.touch(subject);
            Self::caller(&state, subject)
        };
        self.index(subject, &whom).await?;
        let (mut cursor, mut told) = ("0".to_owned(), 0);
        loop {
            let change = Change { all: true, dead: Some((dead, &cursor)), ..plain(&whom) };
            let changed = self.change(subject, &whom, &change).await?;
            cursor.clone_from(&changed.cursor);
            told += self.pass_on(subject, changed);
            if cursor.is_empty() {
                return Ok(told);
            }
        }
    }

    /// Hands on what was decided. Returns how much.
    fn pass_on(&self, subject: &Subject, changed: Changed) -> u64 {
        let transitions = {
            let mut state = self.state();
            let mut transitions = state.held.decided(subject, &changed.outbox, Instant::now());
            transitions.extend(state.held.decided(subject, &changed.transitions, Instant::now()));
            transitions
        };
        if transitions.is_empty() {
            return 0;
        }
        let count = u64::try_from(transitions.len()).unwrap_or(u64::MAX);
        let decided = Decided { subject: subject.clone(), transitions, members: changed.added };
        if self.decided.try_send(decided).is_err() {
            self.untaken.fetch_add(count, Ordering::Relaxed);
        }
        count
    }

    /// Forgets a channel in which the process has nobody and of which it has nothing to tell.
    pub async fn forget(&self, subject: &Subject) -> Result<(), BusError> {
        let _turn = self.stripe(subject).write().await;
        let process = {
            let mut state = self.state();
            if !state.held.forget(subject) {
                return Ok(());
            }
            state.process.clone()
        };
        let key = self.names.index(&process);
        self.client.srem::<(), _, _>(key, names::entry(subject)).await.map_err(unavailable)
    }

    /// How long until what was not told may be.
    pub fn settles_in(&self) -> Option<Duration> {
        self.state().settling.map(|settling| settling.ends.saturating_duration_since(Instant::now()))
    }
}

/// A change that changes nothing yet.
fn plain(whom: &Caller) -> Change<'_> {
    Change {
        process: &whom.process,
        incarnation: &whom.incarnation,
        settling: whom.settling,
        known: whom.known,
        cause: None,
        members: MAX_MEMBERS,
        all: false,
        roster: false,
        dead: None,
        told: None,
        come: &[],
        go: &[],
        outbox: &[],
    }
}
