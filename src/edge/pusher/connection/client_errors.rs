//! Counts, logs and sends the errors of an open session.

use crate::edge::metrics::RefusalReason;
use crate::edge::pusher::connection::Connection;
use crate::edge::pusher::sent_error::SentError;
use crate::protocol::connection_log::ConnectionEvent;
use crate::protocol::frame;

impl Connection {
    /// Refuses a subscription to a text that can be no channel's name. The text is repeated, so that the client's channel of
    /// this name learns of it, unless that would make a long answer.
    pub(super) fn refuse_channel_name(&self, name: &str, told: &str) {
        let is_short = name.len() <= frame::EXPLANATION_MAX_LEN;
        let (reason, channel) = (RefusalReason::ChannelName, is_short.then_some(name));
        self.send_error(&SentError { reason, code: None, message: told, channel });
        if is_short {
            self.session.push(frame::subscription_error(name, "InvalidChannel", 400, told).into());
        }
    }

    /// Counts a refusal and sends it as an error on the connection.
    pub(super) fn send_refusal(&self, reason: RefusalReason, code: Option<u16>, told: &str) {
        self.send_error(&SentError { reason, code, message: told, channel: None });
    }

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
