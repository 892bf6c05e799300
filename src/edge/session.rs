//! One client's session, whatever carries it: a bounded queue of frames, and how it ends.
//!
//! In: frames for the client, signs of life, a reason to end. Out: through an [`Outlet`], what a transport is to write.
//! Only the newest outlet is served, so a request that replaced an aborted one takes over without losing a frame that
//! was not yet handed out. A client that reads too slowly is ended with 4100: a queue that grows for one client is
//! memory taken from all.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout};

use super::liveness::{Liveness, Step};
use super::metrics::Metrics;
use super::together::together;
use crate::protocol::frame::code;
use crate::protocol::{AppId, SocketId, Transport};

/// Frames that wait for one client.
pub const MAX_FRAMES: usize = 4_096;

/// Bytes that wait for one client.
pub const MAX_BYTES: usize = 4 << 20;

/// Bytes that wait for all clients; beyond it, a client with more than [`FAIR_BYTES`] waiting is ended.
pub const MAX_TOTAL_BYTES: usize = 256 << 20;

/// What a client may have waiting when the process is short of memory.
pub const FAIR_BYTES: usize = 64 << 10;

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closing {
    /// The code that the client is told.
    pub code: u16,
    /// The reason that the client is told.
    pub reason: String,
    /// Whether the server ended it because it goes away itself.
    pub drain: bool,
}

impl Closing {
    /// An end with this code.
    pub fn new(code: u16, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), drain: false }
    }
}

/// What an outlet is to write next.
#[derive(Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// Frames in order; none of them when the client only asked for a sign of life.
    Frames(Vec<Bytes>),
    /// The end.
    Close(Closing),
    /// Another outlet has taken over.
    Replaced,
}

/// Bytes that wait for all clients of the process.
pub type Budget = Arc<AtomicUsize>;

/// One client's session.
pub struct Session {
    /// Its public id.
    pub socket: SocketId,
    /// Its app; empty when it was refused.
    pub app: AppId,
    /// What carries it.
    pub transport: Transport,
    state: Mutex<State>,
    changed: Notify,
    budget: Budget,
    metrics: Arc<Metrics>,
}

struct State {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// The client asked for a sign of life on a transport that has no ping of its own.
    echo: bool,
    closing: Option<Closing>,
    told: bool,
    /// The newest outlet's number.
    outlet: u64,
    /// When the newest outlet went away; `None` while it is there.
    detached: Option<Instant>,
    liveness: Liveness,
}

impl Session {
    /// A session without an outlet yet.
    pub fn new(socket: SocketId, app: AppId, transport: Transport, budget: Budget, metrics: Arc<Metrics>) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            frames: VecDeque::new(),
            bytes: 0,
            echo: false,
            closing: None,
            told: false,
            outlet: 0,
            detached: Some(now),
            liveness: Liveness::new(now),
        };
        Arc::new(Self { socket, app, transport, state: Mutex::new(state), changed: Notify::new(), budget, metrics })
    }

    /// Queues a frame. After the end it goes nowhere.
    pub fn push(&self, frame: Bytes) {
        let slow = {
            let mut state = self.lock();
            if state.closing.is_some() {
                return;
            }
            let total = self.budget.fetch_add(frame.len(), Ordering::Relaxed) + frame.len();
            state.bytes += frame.len();
            state.frames.push_back(frame);
            state.frames.len() > MAX_FRAMES
                || state.bytes > MAX_BYTES
                || (total > MAX_TOTAL_BYTES && state.bytes > FAIR_BYTES)
        };
        self.metrics.frames.inc();
        if slow {
            self.overwhelmed();
        }
        self.changed.notify_waiters();
    }

    /// Ends a session for which more waits than may wait; what waits is dropped.
    pub fn overwhelmed(&self) {
        {
            let mut state = self.lock();
            if state.closing.is_some() {
                return;
            }
            self.forget(&mut state);
            state.closing = Some(Closing::new(code::OVER_CAPACITY, "the client reads too slowly"));
        }
        self.metrics.slow_consumers.inc();
        tracing::debug!(socket = %self.socket, transport = %self.transport, "a client reads too slowly and is ended");
        self.changed.notify_waiters();
    }

    /// Answers a client that asked for a sign of life, with whatever frame comes next or an empty one.
    pub fn echo(&self) {
        self.lock().echo = true;
        self.changed.notify_waiters();
    }

    /// Ends the session; what is queued is still delivered. The first reason stays.
    pub fn close(&self, closing: Closing) {
        self.lock().closing.get_or_insert(closing);
        self.changed.notify_waiters();
    }

    /// Why it ended, once it has.
    pub fn closing(&self) -> Option<Closing> {
        self.lock().closing.clone()
    }

    /// Resolves once it has ended.
    pub async fn closed(&self) {
        self.until(|state| state.closing.is_some().then_some(())).await;
    }

    /// Resolves once the client was told of the end.
    pub async fn told(&self) {
        self.until(|state| state.told.then_some(())).await;
    }

    /// Resolves once the client was told of the end, or does not listen now.
    pub async fn told_or_away(&self) {
        self.until(|state| (state.told || state.detached.is_some()).then_some(())).await;
    }

    /// Resolves once no outlet was there for so long.
    pub async fn abandoned(&self, grace: Duration) {
        loop {
            let since = self.until(|state| state.detached).await;
            sleep_until((since + grace).into()).await;
            if self.lock().detached == Some(since) {
                return;
            }
        }
    }

    /// The client gave a sign of life.
    pub fn heard(&self) {
        self.lock().liveness.heard(Instant::now());
    }

    /// What its silence asks for now.
    pub fn liveness(&self) -> Step {
        self.lock().liveness.step(Instant::now())
    }

    /// A new outlet, which replaces the one before.
    pub fn attach(self: &Arc<Self>) -> Outlet {
        let number = {
            let mut state = self.lock();
            state.outlet += 1;
            state.detached = None;
            state.liveness.heard(Instant::now());
            state.outlet
        };
        self.changed.notify_waiters();
        Outlet { session: self.clone(), number }
    }

    fn forget(&self, state: &mut State) {
        state.frames = VecDeque::new();
        self.budget.fetch_sub(std::mem::take(&mut state.bytes), Ordering::Relaxed);
    }

    /// Resolves with what `look` finds, looking again after every change.
    async fn until<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that a change in between is not missed.
            changed.as_mut().enable();
            let found = look(&mut self.lock());
            if let Some(found) = found {
                return found;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let waiting = self.lock().bytes;
        self.budget.fetch_sub(waiting, Ordering::Relaxed);
    }
}

/// Where a transport takes what it writes. Dropping it tells the session that the transport is gone.
pub struct Outlet {
    session: Arc<Session>,
    number: u64,
}

impl Outlet {
    /// What to write next: frames up to about `most` bytes. Nothing is taken unless it resolves.
    pub async fn next(&self, most: usize) -> Outgoing {
        together(self.session.until(|state| self.take(state, most))).await
    }

    /// Waits until another outlet takes over; `false` if none does in time.
    pub async fn replaced(&self, within: Duration) -> bool {
        let other = self.session.until(|state| (state.outlet != self.number).then_some(()));
        timeout(within, other).await.is_ok()
    }

    fn take(&self, state: &mut State, most: usize) -> Option<Outgoing> {
        if state.outlet != self.number {
            return Some(Outgoing::Replaced);
        }
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(frame) = state.frames.pop_front_if(|frame| taken.is_empty() || bytes + frame.len() <= most) {
            bytes += frame.len();
            taken.push(frame);
        }
        if !taken.is_empty() || (state.echo && state.closing.is_none()) {
            state.echo = false;
            state.bytes -= bytes;
            self.session.budget.fetch_sub(bytes, Ordering::Relaxed);
            if state.frames.is_empty() {
                // An idle session keeps no buffer.
                state.frames = VecDeque::new();
            }
            return Some(Outgoing::Frames(taken));
        }
        let closing = state.closing.clone()?;
        state.told = true;
        self.session.changed.notify_waiters();
        Some(Outgoing::Close(closing))
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        {
            let mut state = self.session.lock();
            if state.outlet != self.number {
                return;
            }
            state.detached = Some(Instant::now());
        }
        self.session.changed.notify_waiters();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use futures::FutureExt;

    pub fn session() -> Arc<Session> {
        Session::new("1.2".into(), "1".into(), Transport::XhrStreaming, Budget::default(), Arc::default())
    }

    fn now(outlet: &Outlet) -> Option<Outgoing> {
        outlet.next(1000).now_or_never()
    }

    #[tokio::test]
    async fn an_outlet_that_was_replaced_takes_nothing() {
        let session = session();
        let first = session.attach();
        session.push(Bytes::from_static(b"a"));
        let second = session.attach();
        assert_eq!(now(&first), Some(Outgoing::Replaced));
        assert_eq!(now(&second), Some(Outgoing::Frames(vec![Bytes::from_static(b"a")])));
        assert_eq!(now(&second), None);
        drop(first);
        assert!(session.abandoned(Duration::ZERO).now_or_never().is_none(), "the newest outlet is there");
    }

    #[tokio::test]
    async fn a_slow_client_is_ended_and_its_memory_given_back() {
        let session = session();
        let outlet = session.attach();
        for _ in 0..=MAX_FRAMES {
            session.push(Bytes::from_static(b"frame"));
        }
        assert!(matches!(now(&outlet), Some(Outgoing::Close(Closing { code: code::OVER_CAPACITY, .. }))));
        assert_eq!((session.metrics.slow_consumers.get(), session.budget.load(Ordering::Relaxed)), (1, 0));
    }

    #[tokio::test]
    async fn what_was_queued_before_the_end_is_delivered_and_the_first_reason_stays() {
        let session = session();
        let outlet = session.attach();
        session.push(Bytes::from_static(b"a"));
        session.close(Closing::new(4001, "x"));
        session.close(Closing::new(4200, "y"));
        session.push(Bytes::from_static(b"late"));
        assert_eq!(now(&outlet), Some(Outgoing::Frames(vec![Bytes::from_static(b"a")])));
        assert!(session.told().now_or_never().is_none());
        assert_eq!(now(&outlet), Some(Outgoing::Close(Closing::new(4001, "x"))));
        assert!(session.told().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_question_is_answered_with_an_empty_batch_or_with_what_waits() {
        let session = session();
        let outlet = session.attach();
        session.echo();
        assert_eq!(now(&outlet), Some(Outgoing::Frames(vec![])));
        session.echo();
        session.push(Bytes::from_static(b"a"));
        assert_eq!(now(&outlet), Some(Outgoing::Frames(vec![Bytes::from_static(b"a")])));
        assert_eq!(now(&outlet), None, "one answer is enough");
    }

    #[tokio::test]
    async fn a_session_is_abandoned_after_the_grace() {
        let session = session();
        drop(session.attach());
        assert!(session.abandoned(Duration::from_mins(1)).now_or_never().is_none());
        let soon = session.abandoned(Duration::from_millis(20));
        assert!(timeout(Duration::from_secs(5), soon).await.is_ok());
    }
}
