//! The drain of an edge: its clients reconnect to other edges.
//!
//! In: a shutdown, or a request on the admin listener. Out: readiness off at once; then a hold, in which clients are still
//! served and admitted, because load balancers learn of it late; then every session is closed at a pace, because pusher-js
//! reconnects at once and without jitter. An edge that was drained on request stays drained until it ends.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::config::{ServerConfig, name};
use crate::edge::hub::connection_quota::release_quota_slot;
use crate::edge::hub::core::Hub;
use crate::edge::session::Session;
use crate::edge::session::opener::SessionOpener;
use crate::process::admin;
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

/// The error for a close code that is not offered.
const INVALID_CODE_MESSAGE: &str = "code is 4200, come back at once, or 4100, come back after a second";

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
    /// The close code that they receive.
    pub code: u16,
}

/// The drain of one edge.
pub struct EdgeDrain {
    shared: Arc<Hub>,
    opener: Arc<SessionOpener>,
    hold: Duration,
    window: Duration,
    stage: watch::Sender<DrainStage>,
}

impl EdgeDrain {
    /// A drain that has not begun.
    pub fn new(values: &ServerConfig, shared: Arc<Hub>, opener: Arc<SessionOpener>) -> Arc<Self> {
        let seconds = |variable| Duration::from_secs(values.number(variable));
        let (hold, window) = (seconds(name::DRAIN_HOLD_SECONDS), seconds(name::DRAIN_WINDOW_SECONDS));
        Arc::new(Self { shared, opener, hold, window, stage: watch::Sender::new(DrainStage::Serving) })
    }

    /// The stage of the drain.
    pub fn progress(&self) -> DrainProgress {
        let sessions = self.opener.sessions.open_count();
        DrainProgress { stage: *self.stage.borrow(), sessions, code: self.opener.draining.close_reason().code }
    }

    /// Whether clients should be sent here.
    pub fn is_serving(&self) -> bool {
        *self.stage.borrow() == DrainStage::Serving
    }

    /// Begins, unless it has begun. Clients receive `code`: 4200 to reconnect at once, or 4100 to reconnect after a second.
    pub fn begin(self: &Arc<Self>, code: u16) {
        let began = self.stage.send_if_modified(|stage| {
            let first = *stage == DrainStage::Serving;
            *stage = if first { DrainStage::Holding } else { *stage };
            first
        });
        if began {
            self.opener.draining.set_code(code);
            tokio::spawn(self.clone().run());
        }
    }

    /// Drains, or waits until it is done.
    pub async fn run_to_completion(self: &Arc<Self>) {
        self.begin(code::RECONNECT);
        // The sender lives as long as this.
        let _ = self.stage.subscribe().wait_for(|stage| *stage == DrainStage::Drained).await;
    }

    async fn run(self: Arc<Self>) {
        if !self.hold.is_zero() {
            tracing::info!(seconds = self.hold.as_secs(), "not ready any more, and serving on for a while");
            sleep(self.hold).await;
        }
        self.stage.send_replace(DrainStage::Closing);
        self.opener.draining.start();
        let deadline = Instant::now() + self.window + SESSION_LEAVE_TIMEOUT;
        self.close_sessions().await;
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

    /// Closes all sessions at a pace that fits the window.
    async fn close_sessions(&self) {
        let mut left = self.opener.sessions.open_sessions();
        let (total, closing) = (left.len(), self.opener.draining.close_reason());
        tracing::info!(sessions = total, code = closing.code, "sessions are being sent to other edges");
        let (began, mut logged) = (Instant::now(), Instant::now());
        while !left.is_empty() {
            let part =
                left.split_off(left.len() - close_batch_size(left.len(), self.window.saturating_sub(began.elapsed())));
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
    let begin = move |code: Option<&str>| {
        let code = match code {
            None | Some("4200") => code::RECONNECT,
            Some("4100") => code::OVER_CAPACITY,
            Some(_) => return Err(INVALID_CODE_MESSAGE.to_owned()),
        };
        asked.begin(code);
        Ok(())
    };
    let progress = move || serde_json::to_value(drain.progress()).unwrap_or_default();
    admin::DrainControl { begin: Box::new(begin), progress: Box::new(progress) }
}

/// The number of sessions to close in one step: one, unless so many are left that the window would not suffice.
fn close_batch_size(left: usize, time: Duration) -> usize {
    let goes = (time.as_millis() / (CLOSE_INTERVAL + CLOSE_TIMER_DELAY).as_millis()).max(1);
    left.div_ceil(usize::try_from(goes).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_ended_one_by_one_unless_the_window_is_too_short_for_them() {
        let window = Duration::from_mins(2);
        for (sessions, window, expected) in [
            (1, window, 1),
            (1, Duration::ZERO, 1),
            (1_200, window, 1),
            (10_000, window, 1),
            // Twenty in 100 ms.
            (20_000, window, 2),
            (100_000, window, 10),
            (1_000, Duration::from_secs(1), 13),
            (7, Duration::ZERO, 7),
        ] {
            assert_eq!(close_batch_size(sessions, window), expected, "{sessions} in {window:?}");
        }
    }
}
