//! Owners of the HTTP fallbacks' sessions, and the addresses of their processes.

use std::net::IpAddr;
use std::time::Duration;

/// TTL of a process's registration: a process without a heartbeat for that long is dead.
pub const PEER_LEASE_TTL: Duration = Duration::from_secs(10);

/// TTL of a session's entry after its owner last renewed it.
pub const SESSION_ENTRY_TTL: Duration = Duration::from_mins(2);

/// Time between two renewals of an owner's sessions. It is half of [`SESSION_ENTRY_TTL`], so that an entry outlives its
/// owner by a minute at least.
pub const SESSION_REFRESH_INTERVAL: Duration = Duration::from_mins(1);

/// Bounds the sessions with lost messages that wait for one process's next heartbeat.
pub(super) const LOST_SENDS_MAX: usize = 1_000;

/// A process that relayed requests can go to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RelayPeer {
    /// Id of the process, new at each start.
    pub process: String,
    /// Address of its relay listener; the port is the same for all.
    pub address: IpAddr,
}

/// Response to a process's heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatResponse {
    /// Every process that is alive, the caller included.
    pub peers: Vec<RelayPeer>,
    /// Whether the caller was registered before. If not, it is new to the store, or the store has lost its data.
    pub was_registered: bool,
    /// The caller's sessions that lost a message, as [`super::Bus::report_lost_send`] reported.
    pub sessions_with_lost_sends: Vec<String>,
}
