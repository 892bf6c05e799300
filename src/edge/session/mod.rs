//! One client's session, whatever carries it: a bounded queue of frames, and how it ends.
//!
//! In: frames for the client, signs of life, a reason to end. Out: through a [`FrameReceiver`], the frames that a transport writes.
//! Only the newest receiver is served, so a request that replaced an aborted one takes over without losing a frame that
//! was not yet handed out. On a socket, a frame is written at once while nothing waits before it. A client that reads too
//! slowly is ended with 4100: a queue that grows for one client is memory taken from all.

pub(crate) mod deferred_wake;
pub(crate) mod drain_signal;
pub(crate) mod liveness;
pub(crate) mod opener;
pub(crate) mod registry;
pub(crate) mod socket_output;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout};

use crate::edge::close_reason::CloseReason;
use crate::edge::intake::sources::ClientSource;
use crate::edge::metrics::{AppCounts, EdgeMetrics, RefusalReason};
use crate::edge::session::deferred_wake::defer_wakes;
use crate::edge::session::liveness::{LivenessStep, LivenessTracker};
use crate::edge::session::socket_output::{DirectWrite, SocketOutput};
use crate::process::clock;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::connection_log::{ConnectionEvent, ConnectionLogEntry};
use crate::protocol::frame::{BUS_UNAVAILABLE_MESSAGE, code};
use crate::protocol::{AppId, SocketId, Transport};

/// Frames that wait for one client.
pub const QUEUED_FRAMES_MAX: usize = 4_096;

/// Bytes that wait for one client.
pub const QUEUED_BYTES_MAX: usize = 4 << 20;

/// Bytes that wait for all clients; beyond it, a client with more than [`FAIR_SHARE_BYTES`] waiting is ended.
pub const TOTAL_QUEUED_BYTES_MAX: usize = 256 << 20;

/// Bounds the bytes that one client may have queued while [`TOTAL_QUEUED_BYTES_MAX`] is exceeded.
pub const FAIR_SHARE_BYTES: usize = 64 << 10;

/// The next item that a transport writes.
#[derive(Debug, PartialEq, Eq)]
pub enum OutgoingItem {
    /// Frames in order; none of them when the client only asked for a sign of life, or the rest of a frame waits in the
    /// output.
    Frames(Vec<Bytes>),
    /// The close, after all frames.
    Close(CloseReason),
    /// Another outlet has taken over.
    Replaced,
}

/// Bytes that wait for all clients of the process.
pub type ByteBudget = Arc<AtomicUsize>;

/// The client that a session is opened for.
pub struct SessionOrigin {
    /// The public id of the session.
    pub socket: SocketId,
    /// The app of the client.
    pub app: AppId,
    /// The transport that carries it.
    pub transport: Transport,
    /// The source address of the client, with its counts; `None` for a client that no bound counts by its address.
    pub source: Option<Arc<ClientSource>>,
}

/// The session of one client.
pub struct Session {
    /// The public id of the session.
    pub socket: SocketId,
    /// Its app; empty when it was refused.
    pub app: AppId,
    /// The transport that carries it.
    pub transport: Transport,
    /// Bounds the silence after which a side pings the other; clients receive it in whole seconds.
    pub activity_timeout: Duration,
    /// The source address of the client, with its counts; `None` for a client that no bound counts by its address.
    pub source: Option<Arc<ClientSource>>,
    /// When it was opened.
    pub opened_at: Instant,
    state: Mutex<SessionState>,
    changed: Notify,
    budget: ByteBudget,
    metrics: Arc<EdgeMetrics>,
    /// The series of its app in the metrics.
    pub app_counts: AppCounts,
}

struct SessionState {
    frames: VecDeque<Bytes>,
    /// Bytes of the waiting frames, with [`Self::unsent_bytes`].
    bytes: usize,
    /// The socket of the newest outlet, if it is one.
    output: Option<Arc<SocketOutput>>,
    /// Bytes of a frame that was written in part; they wait in the output.
    unsent_bytes: usize,
    /// Frames were handed out and may not be written yet: others must wait behind them.
    is_writing: bool,
    /// The client asked for a sign of life on a transport that has no ping of its own.
    echo: bool,
    close_reason: Option<CloseReason>,
    close_delivered: bool,
    /// The newest outlet's number.
    receiver_number: u64,
    /// When the newest outlet went away; `None` while it is there.
    detached_since: Option<Instant>,
    liveness: LivenessTracker,
}

impl Session {
    /// A session without an outlet yet.
    pub fn new(
        SessionOrigin { socket, app, transport, source }: SessionOrigin,
        activity_timeout: Duration,
        budget: ByteBudget,
        metrics: Arc<EdgeMetrics>,
    ) -> Arc<Self> {
        let now = Instant::now();
        let state = SessionState {
            frames: VecDeque::new(),
            bytes: 0,
            output: None,
            unsent_bytes: 0,
            is_writing: false,
            echo: false,
            close_reason: None,
            close_delivered: false,
            receiver_number: 0,
            detached_since: Some(now),
            liveness: LivenessTracker::new(now, activity_timeout),
        };
        let (state, changed) = (Mutex::new(state), Notify::new());
        let app_counts = metrics.app_counts(app.as_str());
        Arc::new(Self {
            socket,
            app,
            transport,
            activity_timeout,
            source,
            opened_at: now,
            state,
            changed,
            budget,
            app_counts,
            metrics,
        })
    }

    /// An entry of the connection log about this session.
    pub fn log_entry(&self, event: ConnectionEvent) -> ConnectionLogEntry {
        ConnectionLogEntry {
            time_ms: clock::now_ms(),
            app: Some(self.app.clone()),
            socket: Some(self.socket.clone()),
            transport: Some(self.transport),
            event,
        }
    }

    /// Writes a frame to the session's socket, or queues it. After the end it goes nowhere.
    pub fn push(&self, frame: Bytes) {
        let slow = {
            let mut state = self.lock_state();
            if state.close_reason.is_some() {
                return;
            }
            let waiting = match state.write_directly(&frame) {
                DirectWrite::Written => {
                    self.count_frame();
                    return;
                }
                DirectWrite::Partial(rest) => {
                    state.unsent_bytes += rest;
                    rest
                }
                DirectWrite::Refused => {
                    let length = frame.len();
                    state.frames.push_back(frame);
                    length
                }
            };
            let total = self.budget.fetch_add(waiting, Ordering::Relaxed) + waiting;
            state.bytes += waiting;
            state.frames.len() > QUEUED_FRAMES_MAX
                || state.bytes > QUEUED_BYTES_MAX
                || (total > TOTAL_QUEUED_BYTES_MAX && state.bytes > FAIR_SHARE_BYTES)
        };
        self.count_frame();
        if slow {
            self.close_slow_consumer();
        }
        self.changed.notify_waiters();
    }

    fn count_frame(&self) {
        self.metrics.frames.inc();
        self.app_counts.frames.inc();
    }

    /// Ends a session whose subscription waits so long for the bus that no more frames can be held back for it.
    pub fn close_for_slow_bus(&self) {
        self.metrics.refusals.with_label(RefusalReason::Bus).inc();
        self.close(CloseReason::new(code::OVER_CAPACITY, BUS_UNAVAILABLE_MESSAGE));
    }

    /// Ends a session for which more waits than may wait; what waits is dropped.
    pub fn close_slow_consumer(&self) {
        {
            let mut state = self.lock_state();
            if state.close_reason.is_some() {
                return;
            }
            self.drop_queued_frames(&mut state);
            state.close_reason = Some(CloseReason::new(code::OVER_CAPACITY, "the client reads too slowly"));
        }
        self.metrics.slow_consumers.inc();
        tracing::debug!(socket = %self.socket, transport = %self.transport, "a client reads too slowly and is ended");
        self.changed.notify_waiters();
    }

    /// Answers a client that asked for a sign of life, with whatever frame comes next or an empty one.
    pub fn answer_ping(&self) {
        self.lock_state().echo = true;
        self.changed.notify_waiters();
    }

    /// Ends the session; what is queued is still delivered. The first reason stays.
    pub fn close(&self, closing: CloseReason) {
        self.lock_state().close_reason.get_or_insert(closing);
        self.changed.notify_waiters();
    }

    /// Why it ended, once it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.lock_state().close_reason.clone()
    }

    /// Resolves once it has ended.
    pub async fn close_requested(&self) {
        self.wait_for_state(|state| state.close_reason.is_some().then_some(())).await;
    }

    /// Resolves once the close frame was delivered.
    pub async fn close_delivered(&self) {
        self.wait_for_state(|state| state.close_delivered.then_some(())).await;
    }

    /// Resolves once the close frame was delivered, or no receiver is attached.
    pub async fn close_delivered_or_detached(&self) {
        self.wait_for_state(|state| (state.close_delivered || state.detached_since.is_some()).then_some(())).await;
    }

    /// Resolves once no outlet was there for so long.
    pub async fn detached_for(&self, grace: Duration) {
        loop {
            let since = self.wait_for_state(|state| state.detached_since).await;
            sleep_until((since + grace).into()).await;
            if self.lock_state().detached_since == Some(since) {
                return;
            }
        }
    }

    /// The client gave a sign of life.
    pub fn note_activity(&self) {
        self.lock_state().liveness.note_activity(Instant::now());
    }

    /// The step that its silence asks for now.
    pub fn next_liveness_step(&self) -> LivenessStep {
        self.lock_state().liveness.next_step(Instant::now())
    }

    /// A new outlet, which replaces the one before.
    pub fn attach_receiver(self: &Arc<Self>) -> FrameReceiver {
        self.attach_socket(None)
    }

    /// A new outlet that is a socket: frames are written to it at once while nothing waits before them.
    pub fn attach_socket(self: &Arc<Self>, output: Option<Arc<SocketOutput>>) -> FrameReceiver {
        let number = {
            let mut state = self.lock_state();
            state.receiver_number += 1;
            state.detached_since = None;
            state.output = output;
            state.is_writing = false;
            state.liveness.note_activity(Instant::now());
            state.receiver_number
        };
        self.changed.notify_waiters();
        FrameReceiver { session: self.clone(), number }
    }

    fn drop_queued_frames(&self, state: &mut SessionState) {
        state.frames = VecDeque::new();
        state.unsent_bytes = 0;
        self.budget.fetch_sub(std::mem::take(&mut state.bytes), Ordering::Relaxed);
    }

    /// Resolves with what `look` finds, looking again after every change.
    async fn wait_for_state<T>(&self, mut look: impl FnMut(&mut SessionState) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that a change in between is not missed.
            changed.as_mut().enable();
            let found = look(&mut self.lock_state());
            if let Some(found) = found {
                return found;
            }
            changed.await;
        }
    }

    fn lock_state(&self) -> MutexGuard<'_, SessionState> {
        lock_unpoisoned(&self.state)
    }
}

impl SessionState {
    /// Writes a frame at once, unless another waits before it.
    fn write_directly(&self, frame: &[u8]) -> DirectWrite {
        match &self.output {
            Some(output) if self.frames.is_empty() && !self.is_writing => output.write_directly(frame),
            _ => DirectWrite::Refused,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let waiting = self.lock_state().bytes;
        self.budget.fetch_sub(waiting, Ordering::Relaxed);
    }
}

/// The receiver from which a transport takes frames. Dropping it marks the session as detached.
pub struct FrameReceiver {
    session: Arc<Session>,
    number: u64,
}

impl FrameReceiver {
    /// The next item: frames up to about `most` bytes. Nothing is taken unless it resolves.
    pub async fn next(&self, most: usize) -> OutgoingItem {
        defer_wakes(self.session.wait_for_state(|state| self.take_outgoing(state, most))).await
    }

    /// Waits until another outlet takes over; `false` if none does in time.
    pub async fn wait_replaced(&self, within: Duration) -> bool {
        let other = self.session.wait_for_state(|state| (state.receiver_number != self.number).then_some(()));
        timeout(within, other).await.is_ok()
    }

    fn take_outgoing(&self, state: &mut SessionState, most: usize) -> Option<OutgoingItem> {
        if state.receiver_number != self.number {
            return Some(OutgoingItem::Replaced);
        }
        // The transport asks again only once it has written what it took before.
        state.is_writing = false;
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(frame) = state.frames.pop_front_if(|frame| taken.is_empty() || bytes + frame.len() <= most) {
            bytes += frame.len();
            taken.push(frame);
        }
        let unsent_bytes = std::mem::take(&mut state.unsent_bytes);
        if !taken.is_empty() || unsent_bytes > 0 || (state.echo && state.close_reason.is_none()) {
            state.echo = false;
            state.is_writing = true;
            bytes += unsent_bytes;
            state.bytes -= bytes;
            self.session.budget.fetch_sub(bytes, Ordering::Relaxed);
            if state.frames.is_empty() {
                // An idle session keeps no buffer.
                state.frames = VecDeque::new();
            }
            return Some(OutgoingItem::Frames(taken));
        }
        let closing = state.close_reason.clone()?;
        state.close_delivered = true;
        self.session.changed.notify_waiters();
        Some(OutgoingItem::Close(closing))
    }
}

impl Drop for FrameReceiver {
    fn drop(&mut self) {
        {
            let mut state = self.session.lock_state();
            if state.receiver_number != self.number {
                return;
            }
            state.detached_since = Some(Instant::now());
            // The connection ends with its last handle.
            state.output = None;
        }
        self.session.changed.notify_waiters();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::edge::session::socket_output::SocketFraming;
    use crate::edge::session::socket_output::tests::connect;
    use futures::FutureExt;
    use tokio::io::AsyncReadExt;

    pub fn test_session() -> Arc<Session> {
        named_session("1.2")
    }

    pub fn named_session(socket: &str) -> Arc<Session> {
        let (socket, app, transport) = (socket.into(), "1".into(), Transport::XhrStreaming);
        let origin = SessionOrigin { socket, app, transport, source: None };
        Session::new(origin, Duration::from_secs(55), ByteBudget::default(), Arc::default())
    }

    fn outgoing_now(outlet: &FrameReceiver) -> Option<OutgoingItem> {
        outlet.next(1000).now_or_never()
    }

    #[tokio::test]
    async fn an_outlet_that_was_replaced_takes_nothing() {
        let session = test_session();
        let first = session.attach_receiver();
        session.push(Bytes::from_static(b"a"));
        let second = session.attach_receiver();
        assert_eq!(outgoing_now(&first), Some(OutgoingItem::Replaced));
        assert_eq!(outgoing_now(&second), Some(OutgoingItem::Frames(vec![Bytes::from_static(b"a")])));
        assert_eq!(outgoing_now(&second), None);
        drop(first);
        assert!(session.detached_for(Duration::ZERO).now_or_never().is_none(), "the newest outlet is there");
    }

    #[tokio::test]
    async fn a_slow_client_is_ended_and_its_memory_given_back() {
        let session = test_session();
        let outlet = session.attach_receiver();
        for _ in 0..=QUEUED_FRAMES_MAX {
            session.push(Bytes::from_static(b"frame"));
        }
        assert!(matches!(
            outgoing_now(&outlet),
            Some(OutgoingItem::Close(CloseReason { code: code::OVER_CAPACITY, .. }))
        ));
        assert_eq!((session.metrics.slow_consumers.get(), session.budget.load(Ordering::Relaxed)), (1, 0));
    }

    #[tokio::test]
    async fn what_was_queued_before_the_end_is_delivered_and_the_first_reason_stays() {
        let session = test_session();
        let outlet = session.attach_receiver();
        session.push(Bytes::from_static(b"a"));
        session.close(CloseReason::new(4001, "x"));
        session.close(CloseReason::new(4200, "y"));
        session.push(Bytes::from_static(b"late"));
        assert_eq!(outgoing_now(&outlet), Some(OutgoingItem::Frames(vec![Bytes::from_static(b"a")])));
        assert!(session.close_delivered().now_or_never().is_none());
        assert_eq!(outgoing_now(&outlet), Some(OutgoingItem::Close(CloseReason::new(4001, "x"))));
        assert!(session.close_delivered().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_question_is_answered_with_an_empty_batch_or_with_what_waits() {
        let session = test_session();
        let outlet = session.attach_receiver();
        session.answer_ping();
        assert_eq!(outgoing_now(&outlet), Some(OutgoingItem::Frames(vec![])));
        session.answer_ping();
        session.push(Bytes::from_static(b"a"));
        assert_eq!(outgoing_now(&outlet), Some(OutgoingItem::Frames(vec![Bytes::from_static(b"a")])));
        assert_eq!(outgoing_now(&outlet), None, "one answer is enough");
    }

    #[tokio::test]
    async fn a_frame_is_written_at_once_and_waits_behind_those_that_wait() {
        let (output, mut client) = connect(SocketFraming::Pusher).await;
        let session = test_session();
        session.push(Bytes::from_static(b"a"));
        let outlet = session.attach_socket(Some(Arc::new(output)));
        session.push(Bytes::from_static(b"b"));
        let first = ["a", "b"].map(|text| Bytes::from_static(text.as_bytes()));
        assert_eq!(outgoing_now(&outlet), Some(OutgoingItem::Frames(first.into())), "in their order");
        session.push(Bytes::from_static(b"c"));
        assert_eq!(outgoing_now(&outlet), Some(OutgoingItem::Frames(vec![Bytes::from_static(b"c")])), "being written");
        assert_eq!(outgoing_now(&outlet), None);
        session.push(Bytes::from_static(b"d"));
        assert_eq!(outgoing_now(&outlet), None, "written by the publisher");
        let mut bytes = [0; 3];
        timeout(Duration::from_secs(5), client.read_exact(&mut bytes)).await.expect("in time").expect("read");
        assert_eq!(bytes, [0x81, 1, b'd']);
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_ended_and_its_socket_released() {
        let (output, client) = connect(SocketFraming::Pusher).await;
        let (session, output) = (test_session(), Arc::new(output));
        let outlet = session.attach_socket(Some(output.clone()));
        let (mut written, frame) = (0, Bytes::from(vec![b'x'; 60_000]));
        while session.close_reason().is_none() {
            session.push(frame.clone());
            written += 60_000;
            assert!(written < 64 << 20, "bounded");
        }
        assert_eq!((session.metrics.slow_consumers.get(), session.budget.load(Ordering::Relaxed)), (1, 0));
        drop(outlet);
        assert_eq!(Arc::strong_count(&output), 1);
        drop(client);
    }

    #[tokio::test]
    async fn a_session_is_abandoned_after_the_grace() {
        let session = test_session();
        drop(session.attach_receiver());
        assert!(session.detached_for(Duration::from_mins(1)).now_or_never().is_none());
        let soon = session.detached_for(Duration::from_millis(20));
        assert!(timeout(Duration::from_secs(5), soon).await.is_ok());
    }
}
