//! Errors of a benchmark run.

use std::io;

/// Why a benchmark could not run.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The system's limit of open files is too low.
    #[error(
        "{needed} open files are needed and this process may have {allowed}: raise the limit (`ulimit -n {needed}`, as \
         root or in limits.conf), or run with --quick"
    )]
    FileLimit {
        /// Open files that the largest crowd needs.
        needed: u64,
        /// Hard limit of this process.
        allowed: u64,
    },
    /// A file in `/proc` is missing, or has another form than on Linux.
    #[error("{path} cannot be read: {error}; the benchmark needs Linux")]
    Proc {
        /// Path of the file.
        path: String,
        /// Why it cannot be read.
        error: String,
    },
    /// A server did not start.
    #[error("{server} did not start: {detail}")]
    Start {
        /// Name of the server.
        server: &'static str,
        /// Exit status or timeout, and the end of the server's output.
        detail: String,
    },
    /// A server failed a step of the measurement.
    #[error("{server} failed at {step}: {detail}")]
    Server {
        /// Name of the server.
        server: &'static str,
        /// Step of the measurement.
        step: &'static str,
        /// How the step failed.
        detail: String,
    },
    /// The benchmark's own file or socket failed.
    #[error("{what}: {error}")]
    Io {
        /// The operation of this program that failed.
        what: String,
        /// Error of the system.
        error: io::Error,
    },
}

impl BenchError {
    /// Returns a closure for `map_err` that names the operation that failed.
    pub fn from_io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { what: what.into(), error }
    }
}
