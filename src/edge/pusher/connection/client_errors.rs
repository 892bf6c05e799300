//! Errors that an open session receives: counted, logged for readers of the connection log, and sent.

use crate::edge::metrics::RefusalReason;
use crate::edge::pusher::connection::Connection;
use crate::edge::session::Session;
use crate::process::metrics::LabelValue;
use crate::protocol::connection_log::{ConnectionEvent, ConnectionLogEntry};
use crate::protocol::frame;

/// An error that an open session received, for its metric and for the connection log.
pub(super) struct SentError<'a> {
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

impl Connection {
    /// Counts an error, logs it and sends it on the connection.
    pub(super) fn send_error(&self, error: &SentError<'_>) {
        self.shared.metrics.refusals.with_label(error.reason).inc();
        self.shared.log.write(|| error.log_entry(&self.session));
        self.session.push(frame::error_frame(error.code, error.message).into());
    }

    /// Writes an event of this session into the connection log, if somebody reads it.
    pub(super) fn log_event(&self, build: impl FnOnce() -> ConnectionEvent) {
        self.shared.log.write(|| self.session.log_entry(build()));
    }
}
