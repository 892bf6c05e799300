//! The hops of a journey, in their order.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One step of the path from a client to its webhook, in the order of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hop {
    /// The TCP connection to the pod.
    Connect,
    /// The handshake of the transport.
    Handshake,
    /// `pusher:connection_established` for the app's key.
    Session,
    /// A private cache channel and a presence channel, signed.
    Subscribe,
    /// A client event is published.
    Publish,
    /// Another session on another pod receives the client event, a publish and the member.
    FanOut,
    /// The event is recorded in the stream.
    Record,
    /// A dispatcher holds the event's shard and has read past the event.
    Dispatch,
    /// The webhook reaches the receiver.
    Delivery,
    /// The webhook's key, signature and body are right.
    Authenticity,
    /// The client's leave reaches the other session and the receiver.
    Farewell,
}

impl Hop {
    /// All hops, in the order of the path.
    pub const ALL: [Self; 11] = [
        Self::Connect,
        Self::Handshake,
        Self::Session,
        Self::Subscribe,
        Self::Publish,
        Self::FanOut,
        Self::Record,
        Self::Dispatch,
        Self::Delivery,
        Self::Authenticity,
        Self::Farewell,
    ];

    /// The hop's name in status, metrics and output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Handshake => "handshake",
            Self::Session => "session",
            Self::Subscribe => "subscribe",
            Self::Publish => "publish",
            Self::FanOut => "fan-out",
            Self::Record => "record",
            Self::Dispatch => "dispatch",
            Self::Delivery => "delivery",
            Self::Authenticity => "authenticity",
            Self::Farewell => "farewell",
        }
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_the_same_in_text_and_in_json() {
        for (index, hop) in Hop::ALL.into_iter().enumerate() {
            assert_eq!(serde_json::to_value(hop).ok(), Some(hop.name().into()));
            assert_eq!(hop as usize, index, "the order is the order of the path");
        }
    }
}
