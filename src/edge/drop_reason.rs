//! The reasons for which the recorder drops an event.

/// The reason for which an event never reached the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// The queue was full, and a later count or state supersedes this one.
    Compacted,
    /// The queue was full, and this was a client event.
    ClientEventOverflow,
    /// The queue was full of state events only, and this was one of them.
    StateOverflow,
    /// A client event waited longer than its TTL.
    Expired,
    /// The process ended while the event was queued.
    Shutdown,
}

impl DropReason {
    /// All reasons, in the order of their metrics.
    pub const ALL: [Self; 5] =
        [Self::Compacted, Self::ClientEventOverflow, Self::StateOverflow, Self::Expired, Self::Shutdown];

    /// The label in metrics and in `/flow`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compacted => "compacted",
            Self::ClientEventOverflow => "client_event_overflow",
            Self::StateOverflow => "state_overflow",
            Self::Expired => "expired",
            Self::Shutdown => "shutdown",
        }
    }
}
