//! The errors of a rehearsal's start, each with the step that failed.

use super::overrides::OverrideError;
use crate::config::ServerKind;
use crate::desired::{ManifestProblem, MissingReference};
use crate::kinesis::KinesisError;

/// A server that did not start, as its container's last line would say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartRefusal {
    /// The server that did not start.
    pub server: ServerKind,
    /// The pod of the server.
    pub pod: String,
    /// The last line of its output.
    pub line: String,
}

/// Errors that prevent a rehearsal from starting.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// The manifests cannot be built.
    #[error("{}", join_list(.0))]
    Invalid(Vec<ManifestProblem>),
    /// An edit cannot be made.
    #[error(transparent)]
    Edit(#[from] OverrideError),
    /// A pod template refers to a missing `ConfigMap` or Secret.
    #[error(transparent)]
    Missing(#[from] MissingReference),
    /// The page's port is taken.
    #[error("port {port} is taken: choose another with --port, or --port 0 for a free one ({error})")]
    Port {
        /// The port that was asked for.
        port: u16,
        /// The operating system's error.
        error: std::io::Error,
    },
    /// The stream cannot be created.
    #[error("the in-process stream cannot be created: {0}")]
    Stream(#[from] KinesisError),
    /// Files or sockets of this machine.
    #[error("a file or socket of this machine cannot be used: {0}")]
    Io(#[from] std::io::Error),
    /// The journeys have no HTTP client.
    #[error("no HTTP client can be made: {0}")]
    Http(String),
    /// The objects cannot be built.
    #[error("the objects cannot be built: {0}")]
    Json(#[from] serde_json::Error),
}

fn join_list(problems: &[ManifestProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
