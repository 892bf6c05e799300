//! The drain of the process, as sessions see it.
//!
//! In: the hold and the start of a drain, and its close code. Out: signals that sessions, transports and the listener wait
//! for, the close reason, and the time in which messages of a closed HTTP session are still accepted. It must not know who
//! drains, nor why.

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::edge::close_reason::CloseReason;
use crate::edge::session::Session;
use crate::protocol::frame::code;

/// Bounds the time that an HTTP session lives without a receive, in a drain too.
pub const RECEIVER_GRACE: Duration = Duration::from_secs(5);

/// Bounds the time that a session which is closed stays for a client that holds a receive and does not read it.
pub const CLOSE_LINGER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bounds the wait for messages that a client sent before its close frame arrived.
const IN_FLIGHT_MESSAGES_GRACE: Duration = Duration::from_secs(3);

/// The drain of the process, as sessions see it.
#[derive(Debug)]
pub struct DrainSignal {
    held: CancellationToken,
    started: CancellationToken,
    code: AtomicU16,
}

impl Default for DrainSignal {
    fn default() -> Self {
        let (held, started) = (CancellationToken::new(), CancellationToken::new());
        Self { held, started, code: AtomicU16::new(code::RECONNECT) }
    }
}

impl DrainSignal {
    /// Sets the close code of the drain.
    pub fn set_code(&self, code: u16) {
        self.code.store(code, Ordering::Relaxed);
    }

    /// Starts the hold: clients are served and admitted, and load balancers learn of the drain.
    pub fn start_hold(&self) {
        self.held.cancel();
    }

    /// A token that is cancelled once the hold has started.
    pub fn hold_token(&self) -> CancellationToken {
        self.held.clone()
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

    /// The close reason of clients that connect while the server drains. A load balancer still routes them here and would
    /// do so again at once, so they wait before they reconnect.
    pub fn newcomer_close_reason() -> CloseReason {
        let reason = "the server is going away, come back in a moment";
        CloseReason { drain: true, ..CloseReason::new(code::OVER_CAPACITY, reason) }
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

/// Waits until in-flight client messages have arrived after the close frame, or until the client has not received, or not
/// read, for too long.
pub async fn wait_in_flight_messages(session: &Session) {
    let is_delivered = tokio::select! {
        () = session.close_delivered() => true,
        () = session.detached_for(RECEIVER_GRACE) => false,
        () = sleep(CLOSE_LINGER_TIMEOUT) => false,
    };
    if is_delivered {
        sleep(IN_FLIGHT_MESSAGES_GRACE).await;
    }
}
