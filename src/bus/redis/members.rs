//! What the tasks and the calls of one process's end share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::interfaces::SetsInterface;
use tokio::sync::{Notify, RwLock, mpsc};

use super::super::{BusError, ChannelKey, JoinOutcome, PRESENCE_MEMBERS_MAX, RemoteTransitions, Transition};
use super::client::{to_bus_error, unavailable_error};
use super::keys::{self, KeySpace};
use super::local_state::LocalState;
use super::membership::{MembershipChange, MembershipError, MembershipOutcome, MembershipScript};
use super::timing::BusTiming;
use crate::protocol::SocketId;
use crate::protocol::frame::PresenceMember;
use crate::protocol::record::{EventOrder, LeaveCause};

/// Locks that keep a channel's account and its single changes apart.
const CHANNEL_LOCK_COUNT: usize = 64;
/// Connections told of in one call, so that it does not hold up the store.
const REPORT_CONNECTIONS_MAX: usize = 250;

/// The shared part.
pub(super) struct MembershipCore {
    pub client: Client,
    pub names: KeySpace,
    pub timing: BusTiming,
    script: MembershipScript,
    state: Mutex<MembershipState>,
    channel_locks: Vec<RwLock<()>>,
    hasher: std::hash::RandomState,
    /// There is something for the worker to do.
    pub wake: Notify,
    /// The lease is to be renewed now.
    pub renew_now: Notify,
    available: AtomicBool,
    remote_transitions: mpsc::Sender<RemoteTransitions>,
    /// What was decided and nobody took; it stays in the outbox.
    pub dropped_transitions: AtomicU64,
}

pub(super) struct MembershipState {
    /// The process's name on the bus, another after each loss of its lease.
    pub process: String,
    /// How many names it has had.
    pub generation: u64,
    /// The store's memory, as last seen.
    pub incarnation: String,
    /// Until when nothing is told; and since when everyone can have told whom it has.
    pub settling: Option<SettlingWindow>,
    pub local: LocalState,
    /// Processes that have died, as last heard.
    pub dead_processes: Vec<String>,
    /// Since when the store has answered without a break.
    pub available_since: Option<Instant>,
    /// Since when its memory is what it is.
    pub store_memory_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct SettlingWindow {
    pub all_reported_at: Instant,
    pub ends_at: Instant,
}

/// As whom one call is made.
struct CallerIdentity {
    process: String,
    generation: u64,
    incarnation: String,
    settling: bool,
    known_order: EventOrder,
}

impl MembershipCore {
    pub fn new(
        client: Client,
        names: KeySpace,
        process: String,
        timing: BusTiming,
        decided: mpsc::Sender<RemoteTransitions>,
    ) -> Self {
        let state = MembershipState {
            process,
            generation: 0,
            incarnation: String::new(),
            settling: None,
            local: LocalState::default(),
            dead_processes: Vec::new(),
            available_since: None,
            store_memory_since: None,
        };
        Self {
            client,
            names,
            timing,
            script: MembershipScript::new(),
            state: Mutex::new(state),
            channel_locks: (0..CHANNEL_LOCK_COUNT).map(|_| RwLock::new(())).collect(),
            hasher: std::hash::RandomState::new(),
            wake: Notify::new(),
            renew_now: Notify::new(),
            available: AtomicBool::new(false),
            remote_transitions: decided,
            dropped_transitions: AtomicU64::new(0),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, MembershipState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_available(&self) -> bool {
        self.available.load(Ordering::Relaxed)
    }

    pub fn set_available(&self, up: bool) {
        self.available.store(up, Ordering::Relaxed);
    }

    fn channel_lock(&self, subject: &ChannelKey) -> &RwLock<()> {
        use std::hash::BuildHasher;
        let index = usize::try_from(self.hasher.hash_one(subject) % CHANNEL_LOCK_COUNT as u64).unwrap_or_default();
        &self.channel_locks[index]
    }

    fn caller_for(state: &MembershipState, subject: &ChannelKey) -> CallerIdentity {
        CallerIdentity {
            process: state.process.clone(),
            generation: state.generation,
            incarnation: state.incarnation.clone(),
            settling: state.settling.is_some_and(|settling| Instant::now() < settling.ends_at),
            known_order: state.local.known_order(subject),
        }
    }

    /// One change of a channel, and what follows for what this process knows.
    async fn apply_change(
        &self,
        subject: &ChannelKey,
        whom: &CallerIdentity,
        change: &MembershipChange<'_>,
    ) -> Result<MembershipOutcome, BusError> {
        if !self.is_available() {
            self.state().local.mark_uncertain(subject);
            return Err(unavailable_error());
        }
        let answer = self.script.run(&self.client, &self.names, subject, change).await;
        let mut state = self.state();
        match answer {
            Ok(changed) => {
                let come = change.joining.iter().map(|(socket, _)| socket);
                // A piece of an account settles with its last one.
                state.local.confirm_connections(subject, come, change.leaving.iter(), whom.settling);
                if state.generation != whom.generation {
                    // It may have come after the sweep of the name under which it went.
                    state.local.mark_uncertain(subject);
                    self.wake.notify_one();
                }
                Ok(changed)
            }
            Err(MembershipError::Bus(full @ BusError::ChannelFull(_))) => Err(full),
            Err(refused) => {
                state.local.mark_uncertain(subject);
                drop(state);
                self.renew_now.notify_one();
                Err(match refused {
                    MembershipError::Bus(error) => error,
                    MembershipError::StaleIncarnation => {
                        BusError::Unavailable("it has lost its memory, and is told anew".to_owned())
                    }
                })
            }
        }
    }

    /// Tells that the process has someone in a channel, so that others can find it should the process die.
    async fn add_to_index(&self, subject: &ChannelKey, whom: &CallerIdentity) -> Result<(), BusError> {
        if self.is_available() {
            let key = self.names.channel_index_key(&whom.process);
            self.client.sadd::<(), _, _>(key, keys::index_entry(subject)).await.map_err(to_bus_error)?;
            self.state().local.mark_indexed(subject, whom.generation);
        }
        Ok(())
    }

    pub async fn join_channel(
        &self,
        subject: &ChannelKey,
        socket: &SocketId,
        member: Option<&PresenceMember>,
    ) -> Result<JoinOutcome, BusError> {
        if member.is_some() {
            self.wait_for_all_reports().await;
        }
        let _turn = self.channel_lock(subject).read().await;
        let (whom, untold) = {
            let mut state = self.state();
            let name = state.generation;
            let untold = state.local.add_connection(subject, socket, member, name);
            (Self::caller_for(&state, subject), untold)
        };
        if untold && let Err(error) = self.add_to_index(subject, &whom).await {
            self.state().local.mark_uncertain(subject);
            self.renew_now.notify_one();
            return Err(error);
        }
        let come = [(socket.clone(), member.cloned())];
        let change = MembershipChange { with_roster: member.is_some(), joining: &come, ..empty_change(&whom) };
        match self.apply_change(subject, &whom, &change).await {
            Ok(changed) => {
                let transitions = self.state().local.add_transitions(subject, &changed.transitions, Instant::now());
                Ok(JoinOutcome { transitions, roster: changed.roster })
            }
            Err(error) => {
                if matches!(error, BusError::ChannelFull(_)) {
                    self.state().local.remove_refused(subject, socket);
                }
                Err(error)
            }
        }
    }

    pub async fn leave_channel(
        &self,
        subject: &ChannelKey,
        socket: &SocketId,
        cause: Option<LeaveCause>,
    ) -> Result<Vec<Transition>, BusError> {
        let _turn = self.channel_lock(subject).read().await;
        let whom = {
            let mut state = self.state();
            if !state.local.remove_connection(subject, socket) {
                return Ok(Vec::new());
            }
            Self::caller_for(&state, subject)
        };
        let go = [socket.clone()];
        let changed =
            self.apply_change(subject, &whom, &MembershipChange { cause, leaving: &go, ..empty_change(&whom) }).await?;
        Ok(self.state().local.add_transitions(subject, &changed.transitions, Instant::now()))
    }

    /// Whether everyone could say whom it has.
    pub fn is_presence_ready(&self) -> bool {
        self.is_available() && self.state().settling.is_none_or(|settling| settling.all_reported_at <= Instant::now())
    }

    /// Who comes to a presence channel is told who is there: not before everyone could say so.
    async fn wait_for_all_reports(&self) {
        let told = self.state().settling.map(|settling| settling.all_reported_at);
        if let Some(told) = told {
            tokio::time::sleep_until(told.into()).await;
        }
    }

    /// Tells the store everything about a channel, and hears what follows.
    pub async fn report_channel(&self, subject: &ChannelKey) -> Result<(), BusError> {
        let _turn = self.channel_lock(subject).write().await;
        let (whom, account) = {
            let mut state = self.state();
            // It may have something to tell of a channel that it has left.
            state.local.track_channel(subject);
            let account = state.local.channel_report(subject);
            (Self::caller_for(&state, subject), account)
        };
        if let Err(error) = self.add_to_index(subject, &whom).await {
            self.state().local.mark_uncertain(subject);
            return Err(error);
        }
        // In pieces, of which only the last has everything told: before it, the channel may look empty.
        let mut come = account.connections.chunks(REPORT_CONNECTIONS_MAX).peekable();
        loop {
            let part = come.next().unwrap_or_default();
            let last = come.peek().is_none();
            let change = MembershipChange {
                members_max: usize::MAX >> 12,
                full_check: last,
                settling: whom.settling || !last,
                announced_members: account.occupied_announced.then_some(&account.announced_members[..]),
                joining: part,
                leaving: if last { &account.departed } else { &[] },
                outbox: if last { &account.outbox } else { &[] },
                ..empty_change(&whom)
            };
            let changed = self.apply_change(subject, &whom, &change).await?;
            self.emit_transitions(subject, changed);
            if last {
                return Ok(());
            }
        }
    }

    /// Removes the connections of a process that died from a channel, and takes over what it had to tell.
    pub async fn sweep_channel(&self, subject: &ChannelKey, dead: &str) -> Result<u64, BusError> {
        let _turn = self.channel_lock(subject).read().await;
        let whom = {
            let mut state = self.state();
            state.local.track_channel(subject);
            Self::caller_for(&state, subject)
        };
        self.add_to_index(subject, &whom).await?;
        let (mut cursor, mut told) = ("0".to_owned(), 0);
        loop {
            let change =
                MembershipChange { full_check: true, dead_process: Some((dead, &cursor)), ..empty_change(&whom) };
            let changed = self.apply_change(subject, &whom, &change).await?;
            cursor.clone_from(&changed.cursor);
            told += self.emit_transitions(subject, changed);
            if cursor.is_empty() {
                return Ok(told);
            }
        }
    }

    /// Hands on what was decided. Returns how much.
    fn emit_transitions(&self, subject: &ChannelKey, changed: MembershipOutcome) -> u64 {
        let transitions = {
            let mut state = self.state();
            let mut transitions = state.local.add_transitions(subject, &changed.outbox, Instant::now());
            transitions.extend(state.local.add_transitions(subject, &changed.transitions, Instant::now()));
            transitions
        };
        if transitions.is_empty() {
            return 0;
        }
        let count = u64::try_from(transitions.len()).unwrap_or(u64::MAX);
        let decided = RemoteTransitions { subject: subject.clone(), transitions, members: changed.added_members };
        if self.remote_transitions.try_send(decided).is_err() {
            self.dropped_transitions.fetch_add(count, Ordering::Relaxed);
        }
        count
    }

    /// Forgets a channel in which the process has nobody and of which it has nothing to tell.
    pub async fn forget_channel(&self, subject: &ChannelKey) -> Result<(), BusError> {
        let _turn = self.channel_lock(subject).write().await;
        let process = {
            let mut state = self.state();
            if !state.local.remove_if_empty(subject) {
                return Ok(());
            }
            state.process.clone()
        };
        let key = self.names.channel_index_key(&process);
        self.client.srem::<(), _, _>(key, keys::index_entry(subject)).await.map_err(to_bus_error)
    }

    /// How long until what was not told may be.
    pub fn settling_time_left(&self) -> Option<Duration> {
        self.state().settling.map(|settling| settling.ends_at.saturating_duration_since(Instant::now()))
    }
}

/// A change that changes nothing yet.
fn empty_change(whom: &CallerIdentity) -> MembershipChange<'_> {
    MembershipChange {
        process: &whom.process,
        incarnation: &whom.incarnation,
        settling: whom.settling,
        known_order: whom.known_order,
        cause: None,
        members_max: PRESENCE_MEMBERS_MAX,
        full_check: false,
        with_roster: false,
        dead_process: None,
        announced_members: None,
        joining: &[],
        leaving: &[],
        outbox: &[],
    }
}
