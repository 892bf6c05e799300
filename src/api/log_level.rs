//! The detail of the servers' logs, as the manifest has it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Detail of the servers' logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LogLevel {
    /// Failures, and nothing else.
    Error,
    /// Failures, and conditions that may lead to one.
    Warn,
    /// Changes of state too.
    #[default]
    Info,
    /// Single clients, requests and attempts too: refusals, ends, failures that are tried again.
    Debug,
}

impl LogLevel {
    /// Whether it is the level of a manifest without one.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The filter of the servers' logs, in the syntax of `tracing`; `None` for the servers' default.
    #[must_use]
    pub fn filter(self) -> Option<&'static str> {
        match self {
            Self::Error => Some("error"),
            Self::Warn => Some("warn"),
            Self::Info => None,
            Self::Debug => Some("info,realtime_operator=debug"),
        }
    }
}
