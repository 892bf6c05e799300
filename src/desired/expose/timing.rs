//! The times that a load balancer needs, from those of the servers behind it.

use std::time::Duration;

/// Time in which a client answers a ping, after which the server closes its connection.
const PONG_TIMEOUT: Duration = Duration::from_secs(30);

/// Time by which a load balancer waits longer than the longest silence of a healthy connection.
const IDLE_GRACE: Duration = Duration::from_secs(30);

/// Time that an edge has after its drain: the last clients disconnect, and queued records are written to the stream.
const AFTER_DRAIN_GRACE: Duration = Duration::from_secs(30);

/// How long a terminating edge serves, then moves its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainPhases {
    /// Time in which a pod still serves although it is not ready any more.
    pub hold: Duration,
    /// Time after the hold in which clients are asked to reconnect.
    pub window: Duration,
}

impl DrainPhases {
    /// Time from the signal to a terminating edge until its end: both phases, and the time after them.
    #[must_use]
    pub fn termination_grace(&self) -> Duration {
        self.hold + self.window + AFTER_DRAIN_GRACE
    }
}

/// Times of the servers behind an entrance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExposureTiming {
    /// Silence after which client and server ping each other.
    pub activity: Duration,
    /// Phases of the drain.
    pub drain: DrainPhases,
}

impl ExposureTiming {
    /// Silence that the load balancer must allow: an open socket carries nothing for the activity timeout, then a ping, whose
    /// answer takes up to 30 s.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        self.activity + PONG_TIMEOUT + IDLE_GRACE
    }

    /// Time for which a load balancer leaves the connections of a deregistered pod open: the life of a terminating pod, which
    /// closes them at its own pace.
    #[must_use]
    pub fn deregistration_delay(&self) -> Duration {
        self.drain.termination_grace()
    }

    /// The longer times of two servers that share an entrance.
    #[must_use]
    pub fn extend_to(self, other: Self) -> Self {
        Self {
            activity: self.activity.max(other.activity),
            drain: if self.drain.termination_grace() < other.drain.termination_grace() {
                other.drain
            } else {
                self.drain
            },
        }
    }
}
