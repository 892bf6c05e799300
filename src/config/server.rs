//! The kinds of server that a cluster runs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The kinds of server that a cluster runs, each a Deployment: either the two separate edges, or the combined one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerKind {
    /// The edge that serves WebSocket.
    Websocket,
    /// The edge that serves the HTTP fallbacks.
    Sockjs,
    /// The edge that serves both in one process.
    Edge,
    /// The reader of the stream and sender of webhooks.
    Dispatcher,
}

impl ServerKind {
    /// Every kind of server, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Websocket, Self::Sockjs, Self::Edge, Self::Dispatcher];

    /// The kinds that have sessions of clients, in the same order.
    pub const EDGES: [Self; 3] = [Self::Websocket, Self::Sockjs, Self::Edge];

    /// The name used in labels, variables and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Websocket => "websocket",
            Self::Sockjs => "sockjs",
            Self::Edge => "edge",
            Self::Dispatcher => "dispatcher",
        }
    }
}

impl ServerKind {
    /// Whether it does the work of the other: the combined edge does that of both separate ones.
    #[must_use]
    pub fn serves_as(self, other: Self) -> bool {
        self == other || (self == Self::Edge && other != Self::Dispatcher)
    }
}

impl fmt::Display for ServerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ServerKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|server| server.name() == text)
            .ok_or_else(|| format!("`{text}` is no server: write one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_combined_edge_serves_as_both_others_and_neither_as_it() {
        use ServerKind::{Dispatcher, Edge, Sockjs, Websocket};
        assert!(ServerKind::ALL.into_iter().all(|server| server.serves_as(server)));
        assert!(Edge.serves_as(Websocket) && Edge.serves_as(Sockjs) && !Edge.serves_as(Dispatcher));
        for (server, other) in [(Websocket, Edge), (Sockjs, Edge), (Websocket, Sockjs), (Dispatcher, Edge)] {
            assert!(!server.serves_as(other), "{server} as {other}");
        }
    }
}
