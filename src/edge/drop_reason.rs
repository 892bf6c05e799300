//! The reasons for which the recorder drops an event.

use crate::process::metrics::label_values;

label_values! {
    /// The reason for which an event never reached the stream, in metrics and in `/flow`.
    pub enum DropReason as "reason" {
        /// The queue was full, and a later count or state supersedes this one, or it ends the state that went with it.
        Compacted = "compacted",
        /// The queue was full, and this was a client event.
        ClientEventOverflow = "client_event_overflow",
        /// The queue was full of state events only, and this was one of them.
        StateOverflow = "state_overflow",
        /// A client event waited longer than its TTL.
        Expired = "expired",
        /// The process ended while the event was queued.
        Shutdown = "shutdown",
    }
}
