//! Who has which session of the HTTP fallbacks, and where its process is asked.

use std::net::IpAddr;
use std::time::Duration;

/// How long a process counts as alive after it was last heard of.
pub const PEER_LEASE_TTL: Duration = Duration::from_secs(10);

/// How long a session's entry is kept after its owner last named it.
pub const SESSION_ENTRY_TTL: Duration = Duration::from_mins(2);

/// How often an owner names its sessions again: an entry outlives its owner by a minute at least.
pub const SESSION_REFRESH_INTERVAL: Duration = Duration::from_mins(1);

/// Sessions of which one process is told at a time that a message of theirs was lost.
pub(super) const LOST_SENDS_MAX: usize = 1_000;

/// A process that other processes may ask.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RelayPeer {
    /// Its id, new at each start.
    pub process: String,
    /// Where it listens; the port is the same for all.
    pub address: IpAddr,
}

/// What a process finds when it tells that it is alive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatResponse {
    /// Everyone who is, itself too.
    pub peers: Vec<RelayPeer>,
    /// Whether it was known before: otherwise the store is new to it, or has lost its memory.
    pub was_registered: bool,
    /// Its sessions that lost a message on the way, as [`super::Bus::lose`] said.
    pub sessions_with_lost_sends: Vec<String>,
}
