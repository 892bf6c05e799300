//! How large and how long a run is.

use std::path::PathBuf;
use std::time::Duration;

/// A server to measure beside ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The program of sockudo.
    pub program: PathBuf,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whether it is the short one.
    pub quick: bool,
    /// Rounds; each runs every server once, in turn.
    pub rounds: usize,
    /// Sockets of the crowd.
    pub sockets: usize,
    /// Channels of the crowd.
    pub channels: usize,
    /// Members of presence channels, a hundred to a channel.
    pub members: usize,
    /// Idle sessions over `xhr_streaming`.
    pub sessions: usize,
    /// Subscribers of the one channel of the fan-out.
    pub subscribers: usize,
    /// Events a second of the fan-out.
    pub events_per_second: u32,
    /// Publishes a second to the crowd, over all channels.
    pub publishes_per_second: u32,
    /// How long each publishing lasts.
    pub publishing: Duration,
    /// How long idle polling is watched.
    pub polling: Duration,
    /// Whom to measure beside.
    pub peer: Option<Peer>,
}

impl Plan {
    /// As the targets are worded: about 12 minutes with a peer.
    #[must_use]
    pub fn full() -> Self {
        Self {
            quick: false,
            rounds: 5,
            sockets: 10_000,
            channels: 100,
            members: 5_000,
            sessions: 2_000,
            subscribers: 1_000,
            events_per_second: 50,
            publishes_per_second: 200,
            publishing: Duration::from_secs(8),
            polling: Duration::from_secs(65),
            peer: None,
        }
    }

    /// Smaller crowds and fewer rounds: under 3 minutes with a peer.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            quick: true,
            rounds: 2,
            sockets: 2_000,
            channels: 20,
            members: 1_000,
            sessions: 500,
            publishing: Duration::from_secs(3),
            polling: Duration::from_secs(45),
            ..Self::full()
        }
    }

    /// Another size of every crowd, for trials.
    #[must_use]
    pub fn sized(mut self, sockets: usize) -> Self {
        self.sockets = sockets;
        self.channels = self.channels.min(sockets.max(1));
        self.members = self.members.min(sockets);
        self.sessions = self.sessions.min(sockets);
        self.subscribers = self.subscribers.min(sockets);
        self
    }

    /// Files that the load client, or a server, has open at most: its sockets, and some for itself.
    #[must_use]
    pub fn files(&self) -> u64 {
        let most = self.sockets.max(self.members).max(self.sessions + self.sessions / 8).max(self.subscribers);
        most as u64 + 256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_bounds_every_crowd() {
        let plan = Plan::quick().sized(50);
        assert_eq!((plan.sockets, plan.members, plan.sessions, plan.subscribers), (50, 50, 50, 50));
        assert_eq!(plan.channels, 20);
        assert_eq!(Plan::full().sized(0).channels, 1);
        assert!(Plan::full().files() > 10_000);
    }
}
