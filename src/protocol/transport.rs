//! The one list of transports.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::ServerKind;

/// The transport of a client's connection, named as in pusher-js; the variants of `SockJS` carry its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// RFC 6455 on `/app/{key}`.
    Websocket,
    /// pusher-js's first fallback: one long answer, with sends in requests beside it.
    XhrStreaming,
    /// pusher-js's second fallback: one answer per batch of messages.
    XhrPolling,
    /// `SockJS` over WebSocket, its raw variant included.
    SockjsWebsocket,
    /// `SockJS` with one long answer.
    SockjsXhrStreaming,
    /// `SockJS` with one answer per frame, `jsonp` included.
    SockjsXhr,
    /// `SockJS` with a stream of events, `htmlfile` included: the first choice of pusher-js's `sockjs`.
    SockjsEventsource,
}

impl Transport {
    /// Every transport, in the order in which they are shown.
    pub const ALL: [Self; 7] = [
        Self::Websocket,
        Self::XhrStreaming,
        Self::XhrPolling,
        Self::SockjsWebsocket,
        Self::SockjsXhrStreaming,
        Self::SockjsXhr,
        Self::SockjsEventsource,
    ];

    /// The name used in status, metrics, variables and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Websocket => "websocket",
            Self::XhrStreaming => "xhr_streaming",
            Self::XhrPolling => "xhr_polling",
            Self::SockjsWebsocket => "sockjs_websocket",
            Self::SockjsXhrStreaming => "sockjs_xhr_streaming",
            Self::SockjsXhr => "sockjs_xhr",
            Self::SockjsEventsource => "sockjs_eventsource",
        }
    }

    /// The server that carries this transport when the two kinds run apart.
    #[must_use]
    pub fn server_kind(self) -> ServerKind {
        match self {
            Self::Websocket => ServerKind::Websocket,
            _ => ServerKind::Sockjs,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|transport| transport.name() == text)
            .ok_or_else(|| format!("`{text}` is no transport: write one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_text_and_in_json() {
        for transport in Transport::ALL {
            assert_eq!(transport.name().parse(), Ok(transport));
            assert_eq!(serde_json::to_value(transport).ok(), Some(transport.name().into()));
        }
        for server in ServerKind::ALL {
            assert_eq!(server.name().parse(), Ok(server));
            assert_eq!(serde_json::to_value(server).ok(), Some(server.name().into()));
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = "ws".parse::<Transport>().err().unwrap_or_default();
        assert!(error.contains("websocket, xhr_streaming, xhr_polling"), "{error}");
    }
}
