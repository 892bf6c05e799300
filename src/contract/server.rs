//! The kinds of server.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The kinds of server that a cluster runs, each a Deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Server {
    /// The edge that serves WebSocket.
    Websocket,
    /// The edge that serves the HTTP fallbacks.
    Sockjs,
    /// The reader of the stream and sender of webhooks.
    Dispatcher,
}

impl Server {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Websocket, Self::Sockjs, Self::Dispatcher];

    /// The name used in labels, variables and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Websocket => "websocket",
            Self::Sockjs => "sockjs",
            Self::Dispatcher => "dispatcher",
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|server| server.name() == text)
            .ok_or_else(|| format!("`{text}` is no server: write one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}
