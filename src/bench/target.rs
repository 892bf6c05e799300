//! The server that load goes to, and the app that every server under test has.

use std::net::SocketAddr;

/// Id of the app that every server under test has.
pub const APP_ID: &str = "1";

/// Key of that app.
pub const APP_KEY: &str = "bench-key";

/// Secret of that app. It needs no secrecy: servers live for one measurement, on loopback only.
pub const APP_SECRET: &str = "bench-secret";

/// Kind of a server under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerKind {
    /// Our edge over WebSocket.
    Edge,
    /// Our edge over the HTTP fallbacks of pusher-js.
    Fallbacks,
    /// A sockudo server in one process.
    Sockudo,
    /// An nginx with nchan in one process, over WebSocket.
    Nchan,
    /// An edge of another build, over WebSocket.
    FormerEdge,
    /// An edge of another build, over the HTTP fallbacks.
    FormerFallbacks,
    /// A broadcast over axum's WebSocket with nothing around it.
    Baseline,
    /// Our dispatcher; its address is that of the admin listener.
    Dispatcher,
}

impl ServerKind {
    /// The name in progress lines and errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Fallbacks => "edge with the fallbacks",
            Self::Sockudo => "sockudo",
            Self::Nchan => "nchan",
            Self::FormerEdge => "former edge",
            Self::FormerFallbacks => "former edge with the fallbacks",
            Self::Baseline => "bare axum",
            Self::Dispatcher => "dispatcher",
        }
    }
}

/// A server that load goes to.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Kind of the server.
    pub kind: ServerKind,
    /// Address of its public listener.
    pub address: SocketAddr,
}
