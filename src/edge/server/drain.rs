//! The drain of an edge: its clients reconnect to other edges.
//!
//! In: a shutdown, or a request on the admin listener. Out: readiness off at once; then a hold, in which clients are still
//! served and admitted, because load balancers learn of it late; then every session is closed at a pace, because pusher-js
//! reconnects at once and without jitter. An edge that was drained on request stays drained until it ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::join_all;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use url::form_urlencoded;

use crate::config::{ServerConfig, ServerKind, name};
use crate::edge::close_reason::CloseReason;
use crate::edge::hub::connection_quota::release_quota_slot;
use crate::edge::hub::core::Hub;
use crate::edge::server::load::{LoadExchange, PeerLoads};
use crate::edge::session::Session;
use crate::edge::session::opener::SessionOpener;
use crate::process::admin;
use crate::protocol::Transport;
use crate::protocol::admin::SessionFlow;
use crate::protocol::frame::code;

/// The interval between two steps of closing: 10 ms, so that any 100 ms have at most ten steps.
const CLOSE_INTERVAL: Duration = Duration::from_millis(10);

/// The delay that a timer may add to [`CLOSE_INTERVAL`].
const CLOSE_TIMER_DELAY: Duration = Duration::from_millis(2);

/// Bounds the wait until attached clients have received their close frame.
const CLOSE_DELIVERY_TIMEOUT: Duration = Duration::from_millis(100);

/// Bounds the wait until the bus has released the quota slots of sessions that are about to be closed. A slow bus
/// releases them later; the drain goes on.
const QUOTA_RELEASE_TIMEOUT: Duration = Duration::from_millis(100);

/// Bounds the time that sessions take to leave after the window. A client between two requests receives its close frame
/// with the next one, and one that reads slowly its queue before.
const SESSION_LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The error for a query that asks for something else.
const INVALID_QUERY_MESSAGE: &str = "code is 4200, come back at once, or 4100, come back after a second; without it, 4100 \
     when the other servers are near their limit with these clients, else 4200; share is a whole \
     number from 1 to 100, the percentage of the clients to move while the server serves on; server, \
     beside a share, is websocket or sockjs, the server whose clients alone move";

/// Time between two lines of progress.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The stage of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DrainStage {
    /// The drain has not begun.
    Serving,
    /// Not ready any more, and still serving.
    Holding,
    /// Sessions are being ended.
    Closing,
    /// All sessions were closed.
    Drained,
}

/// The progress that the admin listener reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DrainProgress {
    /// The stage of the drain.
    pub stage: DrainStage,
    /// Sessions that are still open.
    pub sessions: usize,
    /// The close code that they receive; before the closing begins, the one that they would receive now.
    pub code: u16,
}

/// The parameters of a request to drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DrainRequest {
    /// The close code that clients receive; `None` to choose it by the load of the other edges.
    code: Option<u16>,
    /// The percentage of the clients to move while the server serves on; `None` to drain.
    share: Option<usize>,
    /// The server whose clients alone move; `None` for those of every transport.
    server: Option<ServerKind>,
}

impl DrainRequest {
    fn parse(query: &str) -> Result<Self, String> {
        let mut request = Self { code: None, share: None, server: None };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match (&*name, &*value) {
                ("code", "4200") => request.code = Some(code::RECONNECT),
                ("code", "4100") => request.code = Some(code::OVER_CAPACITY),
                ("share", share) => {
                    let share = share.parse().ok().filter(|share| (1..=100).contains(share));
                    request.share = Some(share.ok_or(INVALID_QUERY_MESSAGE)?);
                }
                ("server", "websocket") => request.server = Some(ServerKind::Websocket),
                ("server", "sockjs") => request.server = Some(ServerKind::Sockjs),
                _ => return Err(INVALID_QUERY_MESSAGE.to_owned()),
            }
        }
        // A drain ends every session.
        if request.server.is_some() && request.share.is_none() {
            return Err(INVALID_QUERY_MESSAGE.to_owned());
        }
        Ok(request)
    }
}

/// The drain of one edge.
pub struct EdgeDrain {
    shared: Arc<Hub>,
    opener: Arc<SessionOpener>,
    loads: Arc<PeerLoads>,
    /// The close code of the drain, once it is chosen.
    code: OnceLock<u16>,
    hold: Duration,
    window: Duration,
    /// The end of the window, once sessions are being closed.
    window_end: OnceLock<Instant>,
    stage: watch::Sender<DrainStage>,
    /// Whether a share of the clients is being moved.
    is_moving_share: AtomicBool,
}

impl EdgeDrain {
    /// A drain that has not begun.
    pub fn new(values: &ServerConfig, shared: Arc<Hub>, opener: Arc<SessionOpener>) -> Arc<Self> {
        let seconds = |variable| Duration::from_secs(values.number(variable));
        let (hold, window) = (seconds(name::DRAIN_HOLD_SECONDS), seconds(name::DRAIN_WINDOW_SECONDS));
        let (stage, is_moving_share) = (watch::Sender::new(DrainStage::Serving), AtomicBool::new(false));
        Arc::new(Self {
            shared,
            opener,
            loads: Arc::default(),
            code: OnceLock::new(),
            hold,
            window,
            window_end: OnceLock::new(),
            stage,
            is_moving_share,
        })
    }

    /// The exchange of this edge's load with the others, by which the close code is chosen.
    pub fn share_load(self: &Arc<Self>, values: &ServerConfig, process: &str, sessions_max: usize) -> LoadExchange {
        let drain = self.clone();
        LoadExchange {
            bus: self.shared.bus.clone(),
            process: process.to_owned(),
            server: values.server().name().to_owned(),
            opener: self.opener.clone(),
            sessions_max,
            is_serving: Box::new(move || drain.is_serving()),
            loads: self.loads.clone(),
        }
    }

    /// The stage of the drain.
    pub fn progress(&self) -> DrainProgress {
        let sessions = self.opener.sessions.open_count();
        let code = self.code.get().copied().unwrap_or_else(|| self.loads.close_code(sessions));
        DrainProgress { stage: *self.stage.borrow(), sessions, code }
    }

    /// Sessions of clients by the server whose transports carry them.
    pub fn session_flow(&self, transports: &[Transport]) -> BTreeMap<ServerKind, SessionFlow> {
        self.opener.sessions.session_flow(transports)
    }

    /// Sessions that this edge takes, open ones included; 0 from the drain's beginning on.
    pub fn sessions_max(&self) -> u64 {
        let sessions_max = if self.is_serving() { self.opener.sessions.sessions_max() } else { 0 };
        u64::try_from(sessions_max).unwrap_or(u64::MAX)
    }

    /// The end of the time in which clients are asked to reconnect; now, before the hold is over.
    pub fn window_end(&self) -> Instant {
        self.window_end.get().copied().unwrap_or_else(Instant::now)
    }

    /// Whether clients should be sent here.
    pub fn is_serving(&self) -> bool {
        *self.stage.borrow() == DrainStage::Serving
    }

    /// Whether the clients that are here stay: to the end of the hold.
    pub fn is_keeping_sessions(&self) -> bool {
        matches!(*self.stage.borrow(), DrainStage::Serving | DrainStage::Holding)
    }

    /// Begins, unless it has begun. Clients receive `code`: 4200 to reconnect at once, or 4100 to reconnect after a second.
    /// Without it the load of the other edges at the end of the hold decides.
    pub fn begin(self: &Arc<Self>, code: Option<u16>) {
        let began = self.stage.send_if_modified(|stage| {
            let first = *stage == DrainStage::Serving;
            *stage = if first { DrainStage::Holding } else { *stage };
            first
        });
        if began {
            if let Some(code) = code {
                self.code.get_or_init(|| code);
            }
            self.opener.draining.start_hold();
            tokio::spawn(self.clone().run());
        }
    }

    /// Begins to move a percentage of the clients to other edges, at the pace of a drain, and serves on: after a scale-up,
    /// connections that exist stay where they are. Clients receive `code`, as in a drain. Sessions of journeys stay.
    ///
    /// # Errors
    /// The edge drains, or moves a share already.
    fn move_share(self: &Arc<Self>, share: usize, server: Option<ServerKind>, code: Option<u16>) -> Result<(), String> {
        if !self.is_serving() {
            return Err("the server drains: all of its clients move".to_owned());
        }
        if self.is_moving_share.swap(true, Ordering::AcqRel) {
            return Err("a share of the clients is moving already: ask again when it has".to_owned());
        }
        let mut sessions = self.opener.sessions.client_sessions(server);
        sessions.truncate((sessions.len() * share).div_ceil(100));
        let code = code.unwrap_or_else(|| self.loads.close_code(sessions.len()));
        let reason = "the servers share their clients anew, come back";
        let closing = CloseReason { drain: true, ..CloseReason::new(code, reason) };
        let drain = self.clone();
        tokio::spawn(async move {
            drain.close_sessions(sessions, closing).await;
            drain.is_moving_share.store(false, Ordering::Release);
        });
        Ok(())
    }

    /// Drains, or waits until it is done.
    pub async fn run_to_completion(self: &Arc<Self>) {
        self.begin(None);
        // The sender lives as long as this.
        let _ = self.stage.subscribe().wait_for(|stage| *stage == DrainStage::Drained).await;
    }

    async fn run(self: Arc<Self>) {
        if !self.hold.is_zero() {
            tracing::info!(seconds = self.hold.as_secs(), "not ready any more, and serving on for a while");
            sleep(self.hold).await;
        }
        let code = self.code.get_or_init(|| self.loads.close_code(self.opener.sessions.open_count()));
        self.opener.draining.set_code(*code);
        self.stage.send_replace(DrainStage::Closing);
        self.opener.draining.start();
        let deadline = *self.window_end.get_or_init(|| Instant::now() + self.window) + SESSION_LEAVE_TIMEOUT;
        self.close_sessions(self.opener.sessions.open_sessions(), self.opener.draining.close_reason()).await;
        let left = async {
            while self.opener.sessions.open_count() > 0 {
                sleep(CLOSE_INTERVAL).await;
            }
        };
        if timeout_at(deadline, left).await.is_err() {
            tracing::warn!(sessions = self.opener.sessions.open_count(), "sessions did not leave in time");
        }
        self.stage.send_replace(DrainStage::Drained);
    }

    /// Closes sessions at a pace that fits the window.
    async fn close_sessions(&self, mut left: Vec<Arc<Session>>, closing: CloseReason) {
        let total = left.len();
        tracing::info!(sessions = total, code = closing.code, "sessions are being sent to other edges");
        let (began, mut logged, mut steps) = (Instant::now(), Instant::now(), 0);
        while !left.is_empty() {
            let elapsed = began.elapsed();
            // A slow bus makes every step longer.
            let step = elapsed.checked_div(steps).unwrap_or_default().max(CLOSE_INTERVAL + CLOSE_TIMER_DELAY);
            let batch = close_batch_size(left.len(), self.window.saturating_sub(elapsed), step);
            let part = left.split_off(left.len() - batch);
            steps += 1;
            self.release_quota_slots(&part).await;
            for session in &part {
                session.close(closing.clone());
            }
            // A process that is short of CPU would otherwise close many at once when it has some.
            let _ = timeout(
                CLOSE_DELIVERY_TIMEOUT,
                join_all(part.iter().map(|session| session.close_delivered_or_detached())),
            )
            .await;
            sleep(CLOSE_INTERVAL).await;
            if logged.elapsed() > PROGRESS_LOG_INTERVAL {
                logged = Instant::now();
                tracing::info!(left = left.len(), of = total, "sessions are being sent to other edges");
            }
        }
    }

    /// Releases the quota slots of sessions. A release that takes too long goes on while its session is closed.
    async fn release_quota_slots(&self, part: &[Arc<Session>]) {
        let releases = part.iter().cloned().map(|session| {
            let shared = self.shared.clone();
            self.opener.session_tasks.spawn(async move { release_quota_slot(&shared, &session).await })
        });
        let _ = timeout(QUOTA_RELEASE_TIMEOUT, join_all(releases)).await;
    }
}

/// The handlers for the admin listener.
pub fn build_drain_handlers(drain: Arc<EdgeDrain>) -> admin::DrainControl {
    let asked = drain.clone();
    let begin = move |query: &str| {
        let DrainRequest { code, share, server } = DrainRequest::parse(query)?;
        let Some(share) = share else {
            asked.begin(code);
            return Ok(());
        };
        asked.move_share(share, server, code)
    };
    let progress = move || serde_json::to_value(drain.progress()).unwrap_or_default();
    admin::DrainControl { begin: Box::new(begin), progress: Box::new(progress) }
}

/// The number of sessions to close in one step of this duration: one, unless so many are left that the time would not
/// suffice.
fn close_batch_size(left: usize, time: Duration, step: Duration) -> usize {
    let steps = (time.as_millis() / step.as_millis().max(1)).max(1);
    left.div_ceil(usize::try_from(steps).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_requests() {
        let request = |code, share| Ok(DrainRequest { code, share, server: None });
        let of_sockjs = DrainRequest { code: None, share: Some(20), server: Some(ServerKind::Sockjs) };
        for (query, expected) in [
            ("", request(None, None)),
            ("code=4200", request(Some(4200), None)),
            ("code=4100", request(Some(4100), None)),
            ("share=20", request(None, Some(20))),
            ("share=100&code=4100", request(Some(4100), Some(100))),
            ("share=20&server=sockjs", Ok(of_sockjs)),
            ("share=20&server=dispatcher", Err(())),
            ("server=sockjs", Err(())),
            ("code=1000", Err(())),
            ("share=0", Err(())),
            ("share=101", Err(())),
            ("share=20%25", Err(())),
            ("shares=20", Err(())),
            ("4100", Err(())),
        ] {
            assert_eq!(DrainRequest::parse(query).map_err(|_| ()), expected, "{query}");
        }
    }

    #[test]
    fn sessions_are_ended_one_by_one_unless_the_window_is_too_short_for_them() {
        let (window, step) = (Duration::from_mins(2), CLOSE_INTERVAL + CLOSE_TIMER_DELAY);
        for (sessions, window, step, expected) in [
            (1, window, step, 1),
            (1, Duration::ZERO, step, 1),
            (1_200, window, step, 1),
            (10_000, window, step, 1),
            // Twenty in 100 ms.
            (20_000, window, step, 2),
            (100_000, window, step, 10),
            (1_000, Duration::from_secs(1), step, 13),
            (7, Duration::ZERO, step, 7),
            // A bus that answers too late for each step: the pace stays even.
            (5_000, window, QUOTA_RELEASE_TIMEOUT + step, 5),
        ] {
            assert_eq!(close_batch_size(sessions, window, step), expected, "{sessions} in {window:?}, {step:?} each");
        }
    }
}
