//! The phases of an attempt: those before the request have a time limit of their own.

use std::cell::Cell;
use std::fmt;
use std::time::Duration;

/// Longest name resolution, connection and TLS handshake, each; the time limit of the whole attempt applies too.
pub const PHASE_TIMEOUT: Duration = Duration::from_secs(2);

/// A phase of an attempt, in chronological order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptPhase {
    /// The host's name is resolved.
    Resolve,
    /// A connection is opened.
    Connect,
    /// TLS is set up.
    Tls,
    /// The request is written, and the head of the answer is read.
    Head,
}

impl AttemptPhase {
    /// Records the phase for the attempt of this task. A task without an attempt, which opens a connection in advance, records
    /// none.
    pub fn enter(self) {
        // Fails outside an attempt.
        let _ = CURRENT_PHASE.try_with(|phase| phase.set(self));
    }

    /// The phase of the attempt of this task.
    pub fn current() -> Self {
        CURRENT_PHASE.try_with(Cell::get).unwrap_or(Self::Head)
    }

    /// Runs an attempt and records its phases.
    pub async fn track<T>(attempt: impl Future<Output = T>) -> T {
        CURRENT_PHASE.scope(Cell::new(Self::Head), attempt).await
    }
}

impl fmt::Display for AttemptPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "name resolution",
            Self::Connect => "connection",
            Self::Tls => "TLS",
            Self::Head => "response",
        })
    }
}

tokio::task_local! {
    static CURRENT_PHASE: Cell<AttemptPhase>;
}
