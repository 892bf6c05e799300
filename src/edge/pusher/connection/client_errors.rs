//! Counts, logs and sends the errors of an open session.

use crate::edge::pusher::connection::Connection;
use crate::edge::pusher::sent_error::SentError;
use crate::protocol::connection_log::ConnectionEvent;
use crate::protocol::frame;

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
