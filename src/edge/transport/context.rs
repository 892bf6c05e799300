//! The services that every transport takes its sessions from.

use std::sync::Arc;

use crate::edge::hub::core::Hub;
use crate::edge::session::opener::SessionOpener;

/// The services that the transports of a process share.
pub struct TransportContext {
    /// Opens sessions, or refuses clients.
    pub opener: Arc<SessionOpener>,
    /// The channels that sessions join.
    pub hub: Arc<Hub>,
}
