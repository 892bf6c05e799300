//! The phases of an attempt, each with a time limit of its own.

use std::cell::Cell;
use std::fmt;
use std::time::Duration;

/// A phase of an attempt, in the order of their course.
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
    /// Longest time of the phase; the time limit of the whole attempt holds too.
    pub fn limit(self) -> Option<Duration> {
        match self {
            Self::Resolve | Self::Connect | Self::Tls => Some(Duration::from_secs(2)),
            Self::Head => None,
        }
    }

    /// Notes that the attempt of this task is in the phase. A connection that is opened for a later attempt has none.
    pub fn enter(self) {
        // Fails outside an attempt.
        let _ = CURRENT_PHASE.try_with(|phase| phase.set(self));
    }

    /// The phase of the attempt of this task.
    pub fn current() -> Self {
        CURRENT_PHASE.try_with(Cell::get).unwrap_or(Self::Head)
    }

    /// Runs an attempt whose phases are noted.
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
