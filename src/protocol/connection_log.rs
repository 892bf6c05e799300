//! The connection log of an edge: the answer of `/tail` on its admin listener, one JSON object per line.
//!
//! An empty line is a sign of life. A reader ignores fields that it does not know.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{AppId, SocketId, Transport};

/// One line of the connection log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionLogEntry {
    /// When it happened, in ms since 1970.
    pub time_ms: u64,
    /// The app; absent where no app has the client's key.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub app: Option<AppId>,
    /// The socket id of the session; absent for a client that never had one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub socket: Option<SocketId>,
    /// The transport of the client.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub transport: Option<Transport>,
    /// The event, with its fields.
    #[serde(flatten)]
    pub event: ConnectionEvent,
}

/// An event in the life of a client's connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum ConnectionEvent {
    /// A client received a session.
    Opened {
        /// The address of the client, behind trusted proxies.
        address: IpAddr,
        /// The origin of the page, in browsers.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        origin: Option<String>,
    },
    /// A client received no session.
    Refused {
        /// The reason, named as in the metric of refusals.
        reason: String,
        /// The close code that the client receives.
        code: u16,
        /// The sentence that the client receives.
        message: String,
        /// The address of the client, behind trusted proxies.
        address: IpAddr,
        /// The origin of the page, in browsers.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        origin: Option<String>,
    },
    /// An open session received an error; it goes on unless `closed` follows.
    Error {
        /// The reason, named as in the metric of refusals.
        reason: String,
        /// The code of the error, where it has one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        code: Option<u16>,
        /// The sentence that the client receives.
        message: String,
        /// The channel of a refused subscription.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        channel: Option<String>,
    },
    /// The client was subscribed to a channel.
    Subscribed {
        /// The name of the channel.
        channel: String,
    },
    /// The client unsubscribed from a channel.
    Unsubscribed {
        /// The name of the channel.
        channel: String,
    },
    /// The client signed in as a user.
    SignedIn {
        /// The id of the user.
        user: String,
    },
    /// A session ended, for whatever reason.
    Closed {
        /// The close code from the edge; absent where the client left by itself.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        code: Option<u16>,
        /// The sentence for the client; empty where it left by itself.
        #[serde(skip_serializing_if = "String::is_empty", default)]
        message: String,
        /// How long the session was open, in seconds.
        seconds: u64,
    },
    /// The reader was too slow for some entries.
    Missed {
        /// The number of entries that were dropped here.
        entries: u64,
    },
}

/// Renders an entry as one line for people, without its time.
#[must_use]
pub fn describe_entry(entry: &ConnectionLogEntry) -> String {
    let mut words: Vec<String> = Vec::new();
    words.extend(entry.app.as_ref().map(|app| format!("app {app}")));
    words.extend(entry.transport.map(|transport| transport.to_string()));
    words.extend(entry.socket.as_ref().map(ToString::to_string));
    let from = |address: &IpAddr, origin: &Option<String>| {
        let page = origin.as_ref().map(|origin| format!(", page {origin}"));
        format!("from {address}{}", page.unwrap_or_default())
    };
    let code_text = |code: Option<u16>| code.map(|code| format!("{code} ")).unwrap_or_default();
    words.push(match &entry.event {
        ConnectionEvent::Opened { address, origin } => format!("opened {}", from(address, origin)),
        ConnectionEvent::Refused { reason, code, message, address, origin } => {
            format!("REFUSED {reason}: {code} {message} ({})", from(address, origin))
        }
        ConnectionEvent::Error { reason, code, message, channel } => {
            let channel = channel.as_ref().map(|channel| format!(" on {channel}")).unwrap_or_default();
            format!("ERROR {reason}{channel}: {}{message}", code_text(*code))
        }
        ConnectionEvent::Subscribed { channel } => format!("subscribed to {channel}"),
        ConnectionEvent::Unsubscribed { channel } => format!("unsubscribed from {channel}"),
        ConnectionEvent::SignedIn { user } => format!("signed in as {user}"),
        ConnectionEvent::Closed { code: None, seconds, .. } => format!("left after {seconds} s"),
        ConnectionEvent::Closed { code, message, seconds } => {
            format!("closed after {seconds} s: {}{message}", code_text(*code))
        }
        ConnectionEvent::Missed { entries } => format!("{entries} entries are missing here: they came too fast"),
    });
    // A client chooses names and origins; a control character must not reach a terminal.
    words.join(" ").chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(event: ConnectionEvent) -> ConnectionLogEntry {
        ConnectionLogEntry { time_ms: 1, app: Some("1001".into()), socket: None, transport: None, event }
    }

    #[test]
    fn an_entry_is_one_line_of_json_that_reads_back() {
        let address = IpAddr::from([198, 51, 100, 7]);
        let (reason, message) = ("origin".to_owned(), "not allowed".to_owned());
        for event in [
            ConnectionEvent::Opened { address, origin: Some("https://shop.example".to_owned()) },
            ConnectionEvent::Refused {
                reason: reason.clone(),
                code: 4009,
                message: message.clone(),
                address,
                origin: None,
            },
            ConnectionEvent::Error { reason, code: None, message, channel: Some("private-a\n".to_owned()) },
            ConnectionEvent::Subscribed { channel: "a".to_owned() },
            ConnectionEvent::SignedIn { user: "u".to_owned() },
            ConnectionEvent::Closed { code: Some(4200), message: "reconnect".to_owned(), seconds: 3 },
            ConnectionEvent::Missed { entries: 2 },
        ] {
            let entry = entry(event);
            let line = serde_json::to_string(&entry).expect("json");
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<ConnectionLogEntry>(&line).expect("an entry"), entry);
            assert!(!describe_entry(&entry).contains('\n'));
        }
    }

    #[test]
    fn a_line_for_people_names_the_reason_and_the_code() {
        let address = IpAddr::from([198, 51, 100, 7]);
        let (reason, message) = ("origin".to_owned(), "not allowed".to_owned());
        let refused = entry(ConnectionEvent::Refused { reason, code: 4009, message, address, origin: None });
        assert_eq!(describe_entry(&refused), "app 1001 REFUSED origin: 4009 not allowed (from 198.51.100.7)");
        let left = entry(ConnectionEvent::Closed { code: None, message: String::new(), seconds: 3 });
        assert_eq!(describe_entry(&left), "app 1001 left after 3 s");
    }
}
