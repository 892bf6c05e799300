//! Why a benchmark could not be run.

use std::io;

/// What happened, to what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The system lets a process open too few files.
    #[error(
        "{needed} open files are needed and this process may have {allowed}: raise the limit (`ulimit -n {needed}`, as \
         root or in limits.conf), or run with --quick"
    )]
    FileLimit {
        /// For the largest crowd.
        needed: u64,
        /// The hard limit.
        allowed: u64,
    },
    /// `/proc` does not say what it says on Linux.
    #[error("{path} cannot be read: {error}; the benchmark needs Linux")]
    Proc {
        /// What was read.
        path: String,
        /// What went wrong.
        error: String,
    },
    /// A server did not start.
    #[error("{server} did not start: {detail}")]
    Start {
        /// Which.
        server: &'static str,
        /// What it said last.
        detail: String,
    },
    /// A server did not do what was asked of it.
    #[error("{server} failed at {step}: {detail}")]
    Server {
        /// Which.
        server: &'static str,
        /// What was asked.
        step: &'static str,
        /// What happened.
        detail: String,
    },
    /// A file or a socket of our own.
    #[error("{what}: {error}")]
    Io {
        /// What was to be done.
        what: String,
        /// What the system said.
        error: io::Error,
    },
}

impl BenchError {
    /// For `map_err`: what was to be done when the system refused.
    pub fn from_io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { what: what.into(), error }
    }
}
