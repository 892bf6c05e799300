//! The error that an open session receives, as its metric and the connection log name it.

use crate::edge::metrics::RefusalReason;
use crate::edge::session::Session;
use crate::process::metrics::LabelValue;
use crate::protocol::connection_log::{ConnectionEvent, ConnectionLogEntry};

/// An error that an open session received, for its metric and for the connection log.
pub struct SentError<'a> {
    /// The reason, as it is counted.
    pub reason: RefusalReason,
    /// The code on the wire, where it has one.
    pub code: Option<u16>,
    /// The sentence for the client.
    pub message: &'a str,
    /// The channel of a refused subscription.
    pub channel: Option<&'a str>,
}

impl SentError<'_> {
    /// The entry of the connection log.
    pub fn log_entry(&self, session: &Session) -> ConnectionLogEntry {
        session.log_entry(ConnectionEvent::Error {
            reason: self.reason.name().to_owned(),
            code: self.code,
            message: self.message.to_owned(),
            channel: self.channel.map(str::to_owned),
        })
    }
}
