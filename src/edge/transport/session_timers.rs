//! The timers of one session, whatever transport carries it.
//!
//! In: a connection. Out: the timer that is due, then its effect on the connection. It must not know sockets, nor
//! requests.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::edge::pusher::connection::Connection;

/// The timer that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DueTimer {
    /// The client may have been silent for too long.
    Liveness,
    /// A subscription waits for the bus.
    PendingSubscription,
    /// The pause of the connection is over: its messages are read again.
    PauseEnd,
}

/// The timers of one session.
pub struct SessionTimers {
    /// One timer for the whole session, not one that enters and leaves the runtime's wheel with every event.
    liveness: Pin<Box<Sleep>>,
    activity_timeout: Duration,
}

impl SessionTimers {
    /// Starts the timers of a client that was active just now.
    pub fn start(activity_timeout: Duration) -> Self {
        Self { liveness: Box::pin(sleep_until(Instant::now() + activity_timeout)), activity_timeout }
    }

    /// Resolves with the timer that is due. Nothing is lost when it is dropped before.
    pub async fn next(&mut self, connection: &Connection) -> DueTimer {
        tokio::select! {
            biased;
            () = self.liveness.as_mut() => DueTimer::Liveness,
            () = connection.pending_due() => DueTimer::PendingSubscription,
            () = wait_pause_end(connection) => DueTimer::PauseEnd,
        }
    }

    /// Applies a timer that was due, and sets it again.
    pub async fn apply(&mut self, due: DueTimer, connection: &mut Connection) {
        match due {
            DueTimer::Liveness => {
                let next_check =
                    connection.check_liveness().map_or_else(|| Instant::now() + self.activity_timeout, Into::into);
                self.liveness.as_mut().reset(next_check);
            }
            DueTimer::PendingSubscription => Box::pin(connection.retry_pending()).await,
            DueTimer::PauseEnd => connection.end_pause(),
        }
    }
}

/// Resolves at the end of the connection's pause; never while it is not paused.
async fn wait_pause_end(connection: &Connection) {
    match connection.paused_until() {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}
