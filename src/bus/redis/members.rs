//! Membership of channels as one process sees it: joins, leaves and reports, with the state that calls and tasks share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::types::scripts::Script;
use tokio::sync::{Notify, RwLock, mpsc};

use super::super::receipt::Outbox;
use super::super::{BusError, ChannelKey, DecidedTransitions, JoinLimits, JoinOutcome, RemoteTransitions, Transition};
use super::channel_index;
use super::client::{evaluate_script, unavailable_error};
use super::keys::KeySpace;
use super::local_state::LocalState;
use super::membership::{MembershipChange, MembershipError, MembershipOutcome, MembershipScript};
use super::outbox::{ReceiptEnd, RedisOutbox};
use super::timing::BusTiming;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::frame::PresenceMember;
use crate::protocol::record::{EventOrder, LeaveCause};
use crate::protocol::{ChannelKind, SocketId};

/// Number of locks that keep a channel's report apart from its single changes. Channels share them by hash; 64 keep
/// collisions rare without a lock per channel.
const CHANNEL_LOCK_COUNT: usize = 64;
/// Bounds the connections of one report call: the store serves no other client meanwhile.
const REPORT_CONNECTIONS_MAX: usize = 250;

/// State that the calls and the tasks of one process share.
pub(super) struct MembershipCore {
    pub client: Client,
    pub names: KeySpace,
    pub timing: BusTiming,
    script: MembershipScript,
    unswept_script: Script,
    state: Mutex<MembershipState>,
    channel_locks: Vec<RwLock<()>>,
    hasher: std::hash::RandomState,
    /// Wakes the reconciliation before its interval.
    pub wake: Notify,
    /// Wakes the lease renewal before its interval.
    pub renew_now: Notify,
    /// Held for each renewal and for the release of the lease.
    pub lease_turn: tokio::sync::Mutex<LeaseTurn>,
    available: AtomicBool,
    subscribed: AtomicBool,
    remote_transitions: mpsc::Sender<RemoteTransitions>,
    outbox: Arc<dyn Outbox>,
    /// Number of acknowledged receipts that the store has not confirmed.
    unconfirmed: Arc<AtomicUsize>,
    /// Notified when the store confirms acknowledgements.
    confirmed: Notify,
}

/// The right to renew or release the lease.
#[derive(Default)]
pub(super) struct LeaseTurn {
    /// Whether the lease was released, so that it is not renewed any more.
    pub is_released: bool,
}

pub(super) struct MembershipState {
    /// Name under which the process holds its lease: another after each expiry.
    pub process: String,
    /// Number of expired leases, and so of former names.
    pub generation: u64,
    /// Incarnation of the store's data, as of the latest renewal.
    pub incarnation: String,
    /// While set, transitions are deferred.
    pub settling: Option<SettlingWindow>,
    pub local: LocalState,
    /// Processes with an expired lease, as of the latest renewal.
    pub dead_processes: Vec<String>,
    /// Start of the current stretch in which the store has answered.
    pub available_since: Option<Instant>,
    /// Birth of the store's current data.
    pub store_memory_since: Option<Instant>,
}

/// The time after a loss of the store's data.
#[derive(Clone, Copy, Debug)]
pub(super) struct SettlingWindow {
    /// Time by which every process had the time to report its connections.
    pub all_reported_at: Instant,
    /// Time from which transitions are published again.
    pub ends_at: Instant,
}

/// State of the process at the start of one call.
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
    ) -> (Self, mpsc::UnboundedReceiver<ReceiptEnd>) {
        let unconfirmed = Arc::new(AtomicUsize::new(0));
        let (outbox, receipt_ends) = RedisOutbox::new(unconfirmed.clone());
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
        let core = Self {
            client,
            names,
            timing,
            script: MembershipScript::new(),
            unswept_script: Script::from_lua(include_str!("unswept_connections.lua")),
            state: Mutex::new(state),
            channel_locks: (0..CHANNEL_LOCK_COUNT).map(|_| RwLock::new(())).collect(),
            hasher: std::hash::RandomState::new(),
            wake: Notify::new(),
            renew_now: Notify::new(),
            lease_turn: tokio::sync::Mutex::default(),
            available: AtomicBool::new(false),
            subscribed: AtomicBool::new(true),
            remote_transitions: decided,
            outbox: Arc::new(outbox),
            unconfirmed,
            confirmed: Notify::new(),
        };
        (core, receipt_ends)
    }

    /// Notes that the store has confirmed this many acknowledgements.
    pub fn confirm_acknowledgements(&self, count: usize) {
        self.unconfirmed.fetch_sub(count, Ordering::AcqRel);
        self.confirmed.notify_waiters();
    }

    /// Waits until the store has confirmed every acknowledged receipt.
    pub async fn wait_acknowledgements_confirmed(&self) {
        loop {
            let confirmed = self.confirmed.notified();
            if self.unconfirmed.load(Ordering::Acquire) == 0 {
                return;
            }
            confirmed.await;
        }
    }

    /// Adds transitions to the outbox, and issues a receipt for each that has none.
    fn issue_receipts(&self, subject: &ChannelKey, transitions: &[Transition]) -> DecidedTransitions {
        let new = self.state().local.add_transitions(subject, transitions, Instant::now());
        if subject.channel.kind() == ChannelKind::Internal {
            return DecidedTransitions::without_outbox(new);
        }
        DecidedTransitions::kept_by(&self.outbox, subject, new)
    }

    pub fn state(&self) -> MutexGuard<'_, MembershipState> {
        lock_unpoisoned(&self.state)
    }

    /// Whether the store answers, and the subscription works.
    pub fn is_available(&self) -> bool {
        self.available.load(Ordering::Relaxed) && self.subscribed.load(Ordering::Relaxed)
    }

    pub fn set_subscribed(&self, subscribed: bool) {
        self.subscribed.store(subscribed, Ordering::Relaxed);
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

    /// Runs a change of a channel, and has the channel reported if the caller drops the change halfway: the store may have
    /// the change then, or not.
    async fn report_if_cut<T>(&self, subject: &ChannelKey, change: impl Future<Output = T>) -> T {
        let mut cut = CutChange { core: self, subject, completed: false };
        let outcome = change.await;
        cut.completed = true;
        outcome
    }

    /// Applies one change of a channel in the store, then in the local state.
    async fn apply_change(
        &self,
        subject: &ChannelKey,
        caller: &CallerIdentity,
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
                let joined = change.joining.iter().map(|(socket, _)| socket);
                // `settling` of the caller, not of the change: earlier pieces of a report are decided with its last one.
                state.local.confirm_connections(subject, joined, change.leaving.iter(), caller.settling);
                if state.generation != caller.generation {
                    // The change may have reached the store after the sweep of the former name.
                    state.local.mark_uncertain(subject);
                    self.wake.notify_one();
                }
                Ok(changed)
            }
            Err(MembershipError::Bus(full @ BusError::ChannelFull(_))) => Err(full),
            Err(MembershipError::ConnectionLimit) => Err(BusError::ConnectionLimit { is_temporary: false }),
            Err(refused) => {
                state.local.mark_uncertain(subject);
                drop(state);
                self.renew_now.notify_one();
                Err(match refused {
                    MembershipError::Bus(error) => error,
                    _ => BusError::Unavailable("it has lost its data: re-registering all connections".to_owned()),
                })
            }
        }
    }

    /// Adds the channel to the process's index, from which a sweeper finds it if the process dies.
    async fn add_to_index(&self, subject: &ChannelKey, caller: &CallerIdentity) -> Result<(), BusError> {
        if self.is_available() {
            channel_index::add_channel(&self.client, &self.names, &caller.process, subject).await?;
            self.state().local.mark_indexed(subject, caller.generation);
        }
        Ok(())
    }

    pub async fn join_channel(
        &self,
        subject: &ChannelKey,
        socket: &SocketId,
        member: Option<&PresenceMember>,
        limits: JoinLimits,
    ) -> Result<JoinOutcome, BusError> {
        if member.is_some() {
            self.wait_for_all_reports().await;
        }
        self.state().local.add_connection(subject, socket, member);
        self.report_if_cut(subject, self.register_join(subject, socket, member, limits)).await
    }

    async fn register_join(
        &self,
        subject: &ChannelKey,
        socket: &SocketId,
        member: Option<&PresenceMember>,
        limits: JoinLimits,
    ) -> Result<JoinOutcome, BusError> {
        let _turn = self.channel_lock(subject).read().await;
        let (caller, is_indexed) = {
            let state = self.state();
            (Self::caller_for(&state, subject), state.local.is_indexed(subject, state.generation))
        };
        if !is_indexed && let Err(error) = self.add_to_index(subject, &caller).await {
            self.state().local.mark_uncertain(subject);
            self.renew_now.notify_one();
            return Err(error);
        }
        let joining = [(socket.clone(), member.cloned())];
        let change = MembershipChange {
            with_roster: member.is_some(),
            joining: &joining,
            members_max: limits.members_max,
            connections_max: limits.connections_max,
            ..empty_change(&caller)
        };
        match self.apply_change(subject, &caller, &change).await {
            Ok(changed) => {
                let transitions = self.issue_receipts(subject, &changed.transitions);
                Ok(JoinOutcome { transitions, roster: changed.roster, order: Some(changed.order) })
            }
            Err(full @ BusError::ChannelFull(_)) => {
                self.state().local.remove_refused(subject, socket);
                Err(full)
            }
            Err(BusError::ConnectionLimit { .. }) => {
                self.state().local.remove_refused(subject, socket);
                Err(BusError::ConnectionLimit { is_temporary: self.may_count_dead_connections(caller.settling).await })
            }
            Err(error) => Err(error),
        }
    }

    /// Whether connections of a dead process may count: the store settles, or a process does not renew its lease or has
    /// no subscription. In a Redis cluster the lease alone shows it, after half of its TTL.
    async fn may_count_dead_connections(&self, settling: bool) -> bool {
        if settling {
            return true;
        }
        let least_left_ms = (self.timing.lease_ttl / 2).as_millis().to_string();
        let prefix = if self.names.clustered { String::new() } else { self.names.confirmation_channel("") };
        let (keys, arguments) = (vec![self.names.leases_key()], vec![least_left_ms, prefix]);
        let answer = evaluate_script(&self.client, &self.unswept_script, keys, arguments).await;
        // Without an answer the refusal is temporary: the next attempt is decided anew.
        answer.map_or(true, |answer| answer.first().is_none_or(|word| word != "0"))
    }

    pub async fn leave_channel(
        &self,
        subject: &ChannelKey,
        socket: &SocketId,
        cause: Option<LeaveCause>,
    ) -> Result<DecidedTransitions, BusError> {
        if !self.state().local.remove_connection(subject, socket) {
            return Ok(DecidedTransitions::default());
        }
        self.report_if_cut(subject, self.register_leave(subject, socket, cause)).await
    }

    async fn register_leave(
        &self,
        subject: &ChannelKey,
        socket: &SocketId,
        cause: Option<LeaveCause>,
    ) -> Result<DecidedTransitions, BusError> {
        let _turn = self.channel_lock(subject).read().await;
        let caller = Self::caller_for(&self.state(), subject);
        let leaving = [socket.clone()];
        let changed = self
            .apply_change(subject, &caller, &MembershipChange { cause, leaving: &leaving, ..empty_change(&caller) })
            .await?;
        Ok(self.issue_receipts(subject, &changed.transitions))
    }

    /// Whether every process had the time to report its connections.
    pub fn is_presence_ready(&self) -> bool {
        self.is_available() && self.state().settling.is_none_or(|settling| settling.all_reported_at <= Instant::now())
    }

    /// Delays a join of a presence channel until its member list can be complete.
    async fn wait_for_all_reports(&self) {
        let all_reported_at = self.state().settling.map(|settling| settling.all_reported_at);
        if let Some(all_reported_at) = all_reported_at {
            tokio::time::sleep_until(all_reported_at.into()).await;
        }
    }

    /// Reports a channel's local state to the store, and emits the transitions that follow.
    pub async fn report_channel(&self, subject: &ChannelKey) -> Result<(), BusError> {
        let _turn = self.channel_lock(subject).write().await;
        let (caller, report) = {
            let mut state = self.state();
            // The process may hold events of a channel that it has left.
            state.local.track_channel(subject);
            let report = state.local.channel_report(subject);
            (Self::caller_for(&state, subject), report)
        };
        if let Err(error) = self.add_to_index(subject, &caller).await {
            self.state().local.mark_uncertain(subject);
            return Err(error);
        }
        // In pieces. Only the last one decides transitions: before it, the channel may look empty.
        let mut pieces = report.connections.chunks(REPORT_CONNECTIONS_MAX).peekable();
        loop {
            let piece = pieces.next().unwrap_or_default();
            let last = pieces.peek().is_none();
            let change = MembershipChange {
                members_max: usize::MAX >> 12,
                full_check: last,
                settling: caller.settling || !last,
                announced_members: report.occupied_announced.then_some(&report.announced_members[..]),
                joining: piece,
                leaving: if last { &report.departed } else { &[] },
                outbox: if last { &report.outbox } else { &[] },
                ..empty_change(&caller)
            };
            let changed = self.apply_change(subject, &caller, &change).await?;
            self.emit_transitions(subject, changed).await;
            if last {
                return Ok(());
            }
        }
    }

    /// Removes a dead process's connections from a channel, and takes over its outbox. Returns the number of transitions.
    pub async fn sweep_channel(&self, subject: &ChannelKey, dead: &str) -> Result<u64, BusError> {
        let _turn = self.channel_lock(subject).read().await;
        let caller = {
            let mut state = self.state();
            state.local.track_channel(subject);
            Self::caller_for(&state, subject)
        };
        self.add_to_index(subject, &caller).await?;
        let (mut cursor, mut transitions) = ("0".to_owned(), 0);
        loop {
            let change =
                MembershipChange { full_check: true, dead_process: Some((dead, &cursor)), ..empty_change(&caller) };
            let changed = self.apply_change(subject, &caller, &change).await?;
            cursor.clone_from(&changed.cursor);
            transitions += self.emit_transitions(subject, changed).await;
            if cursor.is_empty() {
                return Ok(transitions);
            }
        }
    }

    /// Emits the transitions of a report or a sweep that are not known yet, and waits while their queue is full. Returns
    /// their number.
    async fn emit_transitions(&self, subject: &ChannelKey, changed: MembershipOutcome) -> u64 {
        let returned = self.state().local.returned_transitions(subject);
        let mut transitions = [changed.outbox, returned, changed.transitions].concat();
        transitions.sort_by_key(|transition| transition.order);
        transitions.dedup_by_key(|transition| transition.order);
        let transitions = self.issue_receipts(subject, &transitions);
        if transitions.is_empty() {
            return 0;
        }
        let count = u64::try_from(transitions.len()).unwrap_or(u64::MAX);
        let decided = RemoteTransitions { subject: subject.clone(), transitions };
        // Fails once the edge has shut down: the dropped receipts return their transitions.
        let _ = self.remote_transitions.send(decided).await;
        count
    }

    /// Forgets a channel in which the process has neither connections nor unacknowledged events.
    pub async fn forget_channel(&self, subject: &ChannelKey) -> Result<(), BusError> {
        let _turn = self.channel_lock(subject).write().await;
        let process = {
            let mut state = self.state();
            if !state.local.remove_if_empty(subject) {
                return Ok(());
            }
            state.process.clone()
        };
        let removed = (std::slice::from_ref(subject), vec![]);
        channel_index::remove_channels(&self.client, &self.names, &process, removed).await
    }

    /// Time until transitions are published again; `None` when they are.
    pub fn settling_time_left(&self) -> Option<Duration> {
        self.state().settling.map(|settling| settling.ends_at.saturating_duration_since(Instant::now()))
    }
}

/// A change that is being made; dropped before it is complete, it marks its channel for a report.
struct CutChange<'a> {
    core: &'a MembershipCore,
    subject: &'a ChannelKey,
    completed: bool,
}

impl Drop for CutChange<'_> {
    fn drop(&mut self) {
        if !self.completed {
            self.core.state().local.mark_uncertain(self.subject);
            self.core.wake.notify_one();
        }
    }
}

/// A change without joins, leaves or sweep, to fill in with `..`.
fn empty_change(caller: &CallerIdentity) -> MembershipChange<'_> {
    MembershipChange {
        process: &caller.process,
        incarnation: &caller.incarnation,
        settling: caller.settling,
        known_order: caller.known_order,
        cause: None,
        members_max: JoinLimits::default().members_max,
        full_check: false,
        with_roster: false,
        dead_process: None,
        announced_members: None,
        joining: &[],
        leaving: &[],
        outbox: &[],
        connections_max: None,
    }
}
