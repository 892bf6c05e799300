//! The drain of the process, as sessions see it.
//!
//! In: the start of a drain and its close code. Out: a signal that sessions and transports wait for, the close reason,
//! and the time in which messages of a closed HTTP session are still accepted. It must not know who drains, nor why.

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::edge::close_reason::CloseReason;
use crate::protocol::frame::code;

/// Bounds the time that an HTTP session of pusher-js lives without a receive, and the wait for its close frame in a drain.
pub const RECEIVER_GRACE: Duration = Duration::from_secs(5);

/// Bounds the wait for messages that a client sent before its close frame arrived.
const IN_FLIGHT_MESSAGES_GRACE: Duration = Duration::from_secs(3);

/// The drain of the process, as sessions see it.
#[derive(Debug)]
pub struct DrainSignal {
    started: CancellationToken,
    code: AtomicU16,
}

impl Default for DrainSignal {
    fn default() -> Self {
        Self { started: CancellationToken::new(), code: AtomicU16::new(code::RECONNECT) }
    }
}

impl DrainSignal {
    /// Sets the close code of the drain.
    pub fn set_code(&self, code: u16) {
        self.code.store(code, Ordering::Relaxed);
    }

    /// Starts the drain: from now on no new session is admitted.
    pub fn start(&self) {
        self.started.cancel();
    }

    /// Resolves once the drain has started and no new session is admitted.
    pub async fn wait_started(&self) {
        self.started.cancelled().await;
    }

    /// Whether the drain has started and no new session is admitted.
    pub fn is_started(&self) -> bool {
        self.started.is_cancelled()
    }

    /// The close reason that clients receive from a draining server.
    pub fn close_reason(&self) -> CloseReason {
        let code = self.code.load(Ordering::Relaxed);
        let reason = match code {
            code::OVER_CAPACITY => "the server is going away, come back in a moment",
            _ => "the server is going away, come back at once",
        };
        CloseReason { drain: true, ..CloseReason::new(code, reason) }
    }
}

/// Waits until in-flight client messages have arrived after the close frame, or until the client has not received for
/// the grace period.
pub async fn wait_in_flight_messages(close_delivered: impl Future<Output = ()>) {
    if timeout(RECEIVER_GRACE, close_delivered).await.is_ok() {
        sleep(IN_FLIGHT_MESSAGES_GRACE).await;
    }
}
