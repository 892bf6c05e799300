//! The rates of one connection: its requests to the bus, the answers that it gets, and the pauses in which it is not read.

use std::time::Instant;

use crate::edge::apps::rate_limit::TokenBucket;
use crate::edge::intake::sources::{ClientSource, RequestPace};
use crate::edge::metrics::{EdgeMetrics, RefusalReason};

/// Bounds the subscriptions and sign-ins that one connection requests at once. A client that reconnects requests all its
/// channels at once.
pub const REQUEST_BURST_MAX: u32 = 4_096;

/// Bounds the subscriptions and sign-ins that one connection requests in a second, after [`REQUEST_BURST_MAX`]. A connection that
/// subscribes and unsubscribes without end would keep the bus busy for all.
pub const REQUESTS_PER_SECOND_MAX: u32 = 100;

/// Pings, unknown events, invalid messages and refused client events of one connection that are answered at once.
pub const ANSWER_BURST_MAX: u32 = 256;

/// The same in a second, once [`ANSWER_BURST_MAX`] were answered. More are dropped and counted: a client that pings sends
/// one in many seconds.
pub const ANSWERS_PER_SECOND_MAX: u32 = 32;

/// The rates of one connection, as far as they are used.
pub struct ConnectionPace {
    /// The requests to the bus.
    requests: TokenBucket,
    /// The answers to messages that cost nothing but their answer.
    answers: TokenBucket,
    /// Until then no message is read: the client's source address exceeds its rate.
    paused_until: Option<Instant>,
}

impl Default for ConnectionPace {
    fn default() -> Self {
        Self {
            requests: TokenBucket::new(REQUEST_BURST_MAX, REQUESTS_PER_SECOND_MAX),
            answers: TokenBucket::new(ANSWER_BURST_MAX, ANSWERS_PER_SECOND_MAX),
            paused_until: None,
        }
    }
}

impl ConnectionPace {
    /// Whether one more message that costs nothing but its answer is answered; otherwise it is counted.
    pub fn may_answer(&mut self, metrics: &EdgeMetrics) -> bool {
        let within = self.answers.try_take(Instant::now());
        if !within {
            metrics.refusals.with_label(RefusalReason::MessageRate).inc();
        }
        within
    }

    /// Until when no message is to be read; `None` while the connection is not paused.
    pub fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Ends the pause: messages are read again.
    pub fn end_pause(&mut self) {
        self.paused_until = None;
    }

    /// Charges a request to the bus to the connection and to its source address, which may pause the connection.
    ///
    /// # Errors
    /// The rate that the request exceeds.
    pub fn charge_request(
        &mut self,
        source: Option<&ClientSource>,
        metrics: &EdgeMetrics,
    ) -> Result<(), RefusalReason> {
        let now = Instant::now();
        if !self.requests.try_take(now) {
            return Err(RefusalReason::RequestRate);
        }
        match source.map(|source| source.charge_request(now)) {
            None | Some(RequestPace::Free) => Ok(()),
            Some(RequestPace::PauseUntil(until)) => {
                metrics.source_pauses.inc();
                self.paused_until = Some(until);
                Ok(())
            }
            Some(RequestPace::Refused) => Err(RefusalReason::SourceRequestRate),
        }
    }
}
