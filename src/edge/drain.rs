//! How an edge sends its clients to others.
//!
//! In: that it is to end, or that somebody asked for it over the admin listener. Out: readiness off at once; then a hold,
//! in which clients are still served and taken in, because load balancers learn of it late; then every session is ended
//! at a pace, because pusher-js comes back at once and without jitter. An edge that was asked stays drained until it is
//! ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures::future::join_all;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::fallback::GRACE;
use super::quota::make_room;
use super::session::Closing;
use super::shared::Shared;
use crate::contract::{Values, name};
use crate::protocol::frame::code;
use crate::runtime::admin;

/// Time between two goes. Short, so that whoever watches any 100 ms sees no more than ten goes.
const PACE: Duration = Duration::from_millis(10);

/// What a timer may add to [`PACE`].
const SLACK: Duration = Duration::from_millis(2);

/// Longest that is waited for clients to be told that listen.
const PROMPT: Duration = Duration::from_millis(100);

/// How long after a client was told what it had sent before may still arrive.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How long sessions may take to leave once they were told. A client between two requests hears of it with the next.
const LEAVE: Duration = Duration::from_secs(10);

/// What is said of a code that clients cannot be told.
const CODES: &str = "code is 4200, come back at once, or 4100, come back after a second";

/// Time between two lines of progress.
const TELL: Duration = Duration::from_secs(10);

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Not begun.
    Serving,
    /// Not ready any more, and still serving.
    Holding,
    /// Sessions are being ended.
    Closing,
    /// Everyone was told.
    Drained,
}

/// What the admin listener answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// How far it has come.
    pub stage: Stage,
    /// Sessions that are still open.
    pub sessions: usize,
    /// What they are told.
    pub code: u16,
}

/// Whether the process goes away, as sessions see it.
#[derive(Debug)]
pub struct Draining {
    begun: CancellationToken,
    code: AtomicU16,
}

impl Default for Draining {
    fn default() -> Self {
        Self { begun: CancellationToken::new(), code: AtomicU16::new(code::RECONNECT) }
    }
}

impl Draining {
    /// Resolves once nobody new is taken in.
    pub async fn cancelled(&self) {
        self.begun.cancelled().await;
    }

    /// Whether nobody new is taken in.
    pub fn is_cancelled(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// What a client is told when the server goes away.
    pub fn closing(&self) -> Closing {
        let code = self.code.load(Ordering::Relaxed);
        let reason = match code {
            code::OVER_CAPACITY => "the server is going away, come back in a moment",
            _ => "the server is going away, come back at once",
        };
        Closing { drain: true, ..Closing::new(code, reason) }
    }
}

/// The drain of one edge.
pub struct Drain {
    shared: Arc<Shared>,
    hold: Duration,
    window: Duration,
    stage: watch::Sender<Stage>,
}

impl Drain {
    /// Not begun yet.
    pub fn new(values: &Values, shared: Arc<Shared>) -> Arc<Self> {
        let seconds = |variable| Duration::from_secs(values.number(variable));
        let (hold, window) = (seconds(name::DRAIN_HOLD_SECONDS), seconds(name::DRAIN_WINDOW_SECONDS));
        Arc::new(Self { shared, hold, window, stage: watch::Sender::new(Stage::Serving) })
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        let sessions = self.shared.sessions.count();
        Progress { stage: *self.stage.borrow(), sessions, code: self.shared.draining.closing().code }
    }

    /// Whether clients should be sent here.
    pub fn serves(&self) -> bool {
        *self.stage.borrow() == Stage::Serving
    }

    /// Begins, unless it has begun: `code` is what clients are told, 4200 to come back at once or 4100 to come back after
    /// a second.
    pub fn begin(self: &Arc<Self>, code: u16) {
        let began = self.stage.send_if_modified(|stage| {
            let first = *stage == Stage::Serving;
            *stage = if first { Stage::Holding } else { *stage };
            first
        });
        if began {
            self.shared.draining.code.store(code, Ordering::Relaxed);
            tokio::spawn(self.clone().run());
        }
    }

    /// Drains, or waits until it is done.
    pub async fn done(self: &Arc<Self>) {
        self.begin(code::RECONNECT);
        // The sender lives as long as this.
        let _ = self.stage.subscribe().wait_for(|stage| *stage == Stage::Drained).await;
    }

    async fn run(self: Arc<Self>) {
        if !self.hold.is_zero() {
            tracing::info!(seconds = self.hold.as_secs(), "not ready any more, and serving on for a while");
            sleep(self.hold).await;
        }
        self.stage.send_replace(Stage::Closing);
        self.shared.draining.begun.cancel();
        self.tell().await;
        let left = async {
            while self.shared.sessions.count() > 0 {
                sleep(PACE).await;
            }
        };
        if timeout(LEAVE, left).await.is_err() {
            tracing::warn!(sessions = self.shared.sessions.count(), "sessions did not leave in time");
        }
        self.stage.send_replace(Stage::Drained);
    }

    /// Tells everyone.
    async fn tell(&self) {
        let mut left = self.shared.sessions.all();
        let (total, closing) = (left.len(), self.shared.draining.closing());
        tracing::info!(sessions = total, code = closing.code, "sessions are being sent to other edges");
        let (began, mut told) = (Instant::now(), Instant::now());
        while !left.is_empty() {
            let part = left.split_off(left.len() - slice(left.len(), self.window.saturating_sub(began.elapsed())));
            for session in &part {
                make_room(&self.shared, session).await;
                session.close(closing.clone());
            }
            // A process that is short of time would otherwise tell many at once when it has some.
            let _ = timeout(PROMPT, join_all(part.iter().map(|session| session.told_or_away()))).await;
            sleep(PACE).await;
            if told.elapsed() > TELL {
                told = Instant::now();
                tracing::info!(left = left.len(), of = total, "sessions are being sent to other edges");
            }
        }
    }
}

/// What the admin listener asks it.
pub fn answers(drain: Arc<Drain>) -> admin::Drain {
    let asked = drain.clone();
    let begin = move |code: Option<&str>| {
        let code = match code {
            None | Some("4200") => code::RECONNECT,
            Some("4100") => code::OVER_CAPACITY,
            Some(_) => return Err(CODES.to_owned()),
        };
        asked.begin(code);
        Ok(())
    };
    let progress = move || serde_json::to_value(drain.progress()).unwrap_or_default();
    admin::Drain { begin: Box::new(begin), progress: Box::new(progress) }
}

/// How many of those that are left are ended in one go: one, unless they are so many that they would not be told in time.
fn slice(left: usize, time: Duration) -> usize {
    let goes = (time.as_millis() / (PACE + SLACK).as_millis()).max(1);
    left.div_ceil(usize::try_from(goes).unwrap_or(usize::MAX))
}

/// Resolves once a client that was told has had time to say what it had sent before it knew; or never asked.
pub async fn heard_out(told: impl Future<Output = ()>) {
    if timeout(GRACE, told).await.is_ok() {
        sleep(LAST_WORDS).await;
    }
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
            assert_eq!(slice(sessions, window), expected, "{sessions} in {window:?}");
        }
    }
}
