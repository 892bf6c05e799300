//! Frames of Pusher protocol 7, in both directions, and the close codes.
//!
//! Every message is a JSON object with `event`, and perhaps `channel`, `data` and `user_id`. A server sends its `data`
//! as a *string* that holds JSON, except in `pusher:error`; a client may send either. Source:
//! `pusher-websockets-protocol` in Pusher's documentation, and pusher-js 8.6 `src/core/connection/protocol`.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::ChannelName;
use super::client_json::{self, RawFields};

/// The largest client event or published payload, in bytes, as Pusher documents it (10 KB).
pub const EVENT_BYTES_MAX: usize = 10 * 1024;

/// Longest explanation of an error, in characters. Explanations repeat the client's text: without a bound, a large
/// message would be answered with a larger one.
pub const EXPLANATION_MAX_LEN: usize = 2_048;

/// Error message for a subscription that fails because the servers cannot reach each other.
pub const BUS_UNAVAILABLE_MESSAGE: &str = "the bus between the servers does not answer, try again";

/// Error message, sent with 4100, for a subscription that waits until the servers reach each other again.
pub const SUBSCRIPTION_QUEUED_MESSAGE: &str =
    "the bus between the servers does not answer, the subscription waits for it";

/// Name of the event of [`member_added`].
pub const MEMBER_ADDED_EVENT: &str = "pusher_internal:member_added";

/// Name of the event of [`member_removed`].
pub const MEMBER_REMOVED_EVENT: &str = "pusher_internal:member_removed";

/// Close codes and error codes. 4000–4099: do not reconnect unchanged. 4100–4199: reconnect after a back-off.
/// 4200–4299: reconnect immediately. 43xx are sent in `pusher:error` and leave the connection open.
pub mod code {
    /// No app has this key.
    pub const APP_UNKNOWN: u16 = 4001;
    /// The app is disabled.
    pub const APP_DISABLED: u16 = 4003;
    /// The app has reached its limit of connections.
    pub const OVER_QUOTA: u16 = 4004;
    /// The path names no app.
    pub const PATH_UNKNOWN: u16 = 4005;
    /// The `protocol` in the query is not a number.
    pub const VERSION_INVALID: u16 = 4006;
    /// The `protocol` in the query is a version that this server does not speak.
    pub const PROTOCOL_UNSUPPORTED: u16 = 4007;
    /// The query has no `protocol`.
    pub const PROTOCOL_MISSING: u16 = 4008;
    /// A signature does not verify or did not arrive in time, the app does not allow the page's origin, or its backend
    /// ended the connection.
    pub const UNAUTHORIZED: u16 = 4009;
    /// The server is full, or the client reads too slowly.
    pub const OVER_CAPACITY: u16 = 4100;
    /// Reconnect immediately; also sent by a server that drains.
    pub const RECONNECT: u16 = 4200;
    /// The client did not answer a ping.
    pub const PONG_MISSING: u16 = 4201;
    /// The session was idle for too long.
    pub const INACTIVE: u16 = 4202;
    /// A client event was refused.
    pub const CLIENT_EVENT_REFUSED: u16 = 4301;
    /// The watchlist was longer than allowed; its beginning is in force.
    pub const WATCHLIST_CUT: u16 = 4302;
}

/// A parsed message of a client.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientMessage {
    /// `pusher:ping`, which asks for a pong.
    Ping,
    /// `pusher:pong`, the answer to a ping.
    Pong,
    /// `pusher:subscribe`, a request to join a channel.
    Subscribe {
        /// The name as sent; not yet checked.
        channel: String,
        /// `KEY:HEX`; pusher-js sends an empty one on public channels.
        auth: Option<String>,
        /// The exact text that was signed.
        channel_data: Option<String>,
    },
    /// `pusher:unsubscribe`, a request to leave a channel.
    Unsubscribe {
        /// The name as sent; not yet checked.
        channel: String,
    },
    /// `pusher:signin`, a request to sign in as a user.
    SignIn {
        /// `KEY:HEX`, the signature of the sign-in.
        auth: String,
        /// The exact text that was signed.
        user_data: String,
    },
    /// `client-…`, an event for the other subscribers of a channel.
    ClientEvent {
        /// The event's name, with its prefix.
        event: String,
        /// The name as sent; not yet checked.
        channel: String,
        /// The payload in the form in which it is forwarded: text that is JSON, or an opaque string.
        data: String,
    },
    /// An event of another name, to which the server has no answer.
    Other {
        /// The name of the event.
        event: String,
    },
}

/// The reason why a client's frame cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame is not JSON, or not an object with a text `event`.
    #[error("the message is not a JSON object with an `event`: {0}")]
    NotAMessage(String),
    /// A known event lacks a required field.
    #[error("`{event}` needs `{field}`")]
    Missing {
        /// The name of the event.
        event: &'static str,
        /// The field that is missing or of a wrong type.
        field: &'static str,
    },
}

#[derive(Deserialize)]
struct MessageEnvelope<'a> {
    event: String,
    #[serde(default)]
    channel: Option<String>,
    #[serde(default, borrow)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    user_id: Option<String>,
}

impl ClientMessage {
    /// Parses one text frame of a client.
    ///
    /// # Errors
    /// The frame is no JSON object with an `event`, or a known event lacks a field.
    pub fn parse(text: &str) -> Result<Self, FrameError> {
        match serde_json::from_str(text) {
            Ok(envelope) => Self::from_envelope(envelope),
            // Only an envelope whose own texts have a lone surrogate comes to this.
            Err(error) => {
                let refused = || FrameError::NotAMessage(error.to_string());
                let repaired = client_json::replace_lone_surrogates(text).ok_or_else(refused)?;
                Self::from_envelope(serde_json::from_str(&repaired).map_err(|_| refused())?)
            }
        }
    }

    fn from_envelope(envelope: MessageEnvelope<'_>) -> Result<Self, FrameError> {
        match envelope.event.as_str() {
            "pusher:ping" => Ok(Self::Ping),
            "pusher:pong" => Ok(Self::Pong),
            "pusher:subscribe" => {
                let data = parse_object(envelope.data);
                Ok(Self::Subscribe {
                    channel: text_field(&data, "channel")
                        .ok_or(FrameError::Missing { event: "pusher:subscribe", field: "channel" })?,
                    auth: text_field(&data, "auth").filter(|auth| !auth.is_empty()),
                    channel_data: text_field(&data, "channel_data"),
                })
            }
            "pusher:unsubscribe" => {
                let data = parse_object(envelope.data);
                let channel = text_field(&data, "channel")
                    .ok_or(FrameError::Missing { event: "pusher:unsubscribe", field: "channel" })?;
                Ok(Self::Unsubscribe { channel })
            }
            "pusher:signin" => {
                let data = parse_object(envelope.data);
                let need =
                    |name| text_field(&data, name).ok_or(FrameError::Missing { event: "pusher:signin", field: name });
                Ok(Self::SignIn { auth: need("auth")?, user_data: need("user_data")? })
            }
            event if event.starts_with("client-") => Ok(Self::ClientEvent {
                channel: envelope.channel.ok_or(FrameError::Missing { event: "client-…", field: "channel" })?,
                data: as_text(envelope.data),
                event: envelope.event,
            }),
            _ => Ok(Self::Other { event: envelope.event }),
        }
    }
}

/// A payload in the form in which it is forwarded: a string stays unchanged, any other value stays the JSON text that
/// it came as, with the order of its keys and every digit.
fn as_text(data: Option<&RawValue>) -> String {
    let raw = data.map_or("null", RawValue::get);
    if raw.starts_with('"') { client_json::parse_message(raw) } else { raw.to_owned() }
}

/// A payload that is an object, or a string that holds one.
fn parse_object(data: Option<&RawValue>) -> Value {
    client_json::parse(&as_text(data)).unwrap_or_default()
}

fn text_field(data: &Value, name: &str) -> Option<String> {
    data.get(name).and_then(Value::as_str).map(str::to_owned)
}

/// A member of a presence channel, as `channel_data` describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PresenceMember {
    /// The user's id; a number in `channel_data` is read as the text that it was written with.
    pub user_id: String,
    /// The value that the app's backend signed for this user.
    pub user_info: Value,
}

impl PresenceMember {
    /// Parses `channel_data`. `None` when it is no JSON object with a `user_id` that is a text or a number.
    #[must_use]
    pub fn parse(channel_data: &str) -> Option<Self> {
        let data: RawFields = client_json::parse(channel_data).ok()?;
        let user_id = client_json::parse_id(data.get("user_id")?)?;
        Some(Self { user_id, user_info: Self::parse_user_info(&data)? })
    }

    /// Parses the field `user_info`; `null` without it.
    #[must_use]
    pub fn parse_user_info(data: &RawFields) -> Option<Value> {
        data.get("user_info").map_or(Some(Value::Null), |info| client_json::parse(info.get()).ok())
    }
}

/// `pusher:signin_success`; `user_data` is the text that was signed.
#[must_use]
pub fn signin_success(user_data: &str) -> String {
    json!({ "event": "pusher:signin_success", "data": json!({ "user_data": user_data }).to_string() }).to_string()
}

/// `pusher_internal:watchlist_events`: the watched users that went online or offline.
#[must_use]
pub fn watchlist_events(online: &[&str], offline: &[&str]) -> String {
    let events: Vec<Value> = [("online", online), ("offline", offline)]
        .into_iter()
        .filter(|(_, users)| !users.is_empty())
        .map(|(name, users)| json!({ "name": name, "user_ids": users }))
        .collect();
    let data = json!({ "events": events }).to_string();
    json!({ "event": "pusher_internal:watchlist_events", "data": data }).to_string()
}

/// `pusher:connection_established`; `activity_timeout` is in seconds and must not be 0, or pusher-js gives up.
#[must_use]
pub fn connection_established(socket_id: &str, activity_timeout: u32) -> String {
    let data = json!({ "socket_id": socket_id, "activity_timeout": activity_timeout }).to_string();
    json!({ "event": "pusher:connection_established", "data": data }).to_string()
}

/// `pusher:error`, the one frame whose data is an object. A long message is cut at [`EXPLANATION_MAX_LEN`].
#[must_use]
pub fn error_frame(code: Option<u16>, message: &str) -> String {
    let message = truncate_explanation(message);
    json!({ "event": "pusher:error", "data": { "code": code, "message": message } }).to_string()
}

/// The answer to a refused subscription, distinguished from other errors by its event and channel. A long message is
/// cut at [`EXPLANATION_MAX_LEN`].
#[must_use]
pub fn subscription_error(channel: &str, kind: &str, status: u16, message: &str) -> String {
    let message = truncate_explanation(message);
    let data = json!({ "type": kind, "error": message, "status": status }).to_string();
    json!({ "event": "pusher:subscription_error", "channel": channel, "data": data }).to_string()
}

fn truncate_explanation(message: &str) -> &str {
    message.char_indices().nth(EXPLANATION_MAX_LEN).map_or(message, |(end, _)| &message[..end])
}

/// `pusher:ping`, which asks the client for a pong.
#[must_use]
pub fn ping_frame() -> String {
    r#"{"event":"pusher:ping","data":"{}"}"#.to_owned()
}

/// `pusher:pong`, the answer to a client's ping.
#[must_use]
pub fn pong_frame() -> String {
    r#"{"event":"pusher:pong","data":"{}"}"#.to_owned()
}

/// `pusher_internal:subscription_succeeded`, with the roster on a presence channel.
#[must_use]
pub fn subscription_succeeded(channel: &ChannelName, roster: Option<&[PresenceMember]>) -> String {
    let data = match roster {
        None => json!({}),
        Some(members) => {
            let ids: Vec<&str> = members.iter().map(|member| member.user_id.as_str()).collect();
            let hash: serde_json::Map<String, Value> =
                members.iter().map(|member| (member.user_id.clone(), member.user_info.clone())).collect();
            json!({ "presence": { "count": ids.len(), "ids": ids, "hash": hash } })
        }
    };
    event_frame("pusher_internal:subscription_succeeded", channel, &data.to_string(), None)
}

/// `pusher_internal:member_added`: a user joined a presence channel.
#[must_use]
pub fn member_added(channel: &ChannelName, member: &PresenceMember) -> String {
    let data = json!({ "user_id": member.user_id, "user_info": member.user_info }).to_string();
    event_frame(MEMBER_ADDED_EVENT, channel, &data, None)
}

/// `pusher_internal:member_removed`: a user left a presence channel.
#[must_use]
pub fn member_removed(channel: &ChannelName, user_id: &str) -> String {
    event_frame(MEMBER_REMOVED_EVENT, channel, &json!({ "user_id": user_id }).to_string(), None)
}

/// `pusher_internal:subscription_count`: the number of connections in a channel changed.
#[must_use]
pub fn subscription_count(channel: &ChannelName, count: u64) -> String {
    event_frame(
        "pusher_internal:subscription_count",
        channel,
        &json!({ "subscription_count": count }).to_string(),
        None,
    )
}

/// `pusher:cache_miss`: a cache channel has no last event.
#[must_use]
pub fn cache_miss(channel: &ChannelName) -> String {
    json!({ "event": "pusher:cache_miss", "channel": channel.as_str(), "data": "{}" }).to_string()
}

/// An event on a channel; `user_id` is set on presence channels.
#[must_use]
pub fn event_frame(name: &str, channel: &ChannelName, data: &str, user_id: Option<&str>) -> String {
    let mut frame = json!({ "event": name, "channel": channel.as_str(), "data": data });
    if let Some(user_id) = user_id {
        frame["user_id"] = user_id.into();
    }
    frame.to_string()
}

/// A server's message, as a client parses it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerMessage {
    /// Name of the event, with its prefix.
    pub event: String,
    /// The channel, if the event belongs to one.
    pub channel: Option<String>,
    /// The payload; a string that holds JSON is decoded, another string stays one.
    pub data: Value,
    /// The sender of a client event on a presence channel.
    pub user_id: Option<String>,
}

impl ServerMessage {
    /// Parses one frame of a server.
    ///
    /// # Errors
    /// The text is no JSON object with an `event`.
    pub fn parse(text: &str) -> Result<Self, FrameError> {
        let envelope: MessageEnvelope =
            serde_json::from_str(text).map_err(|error| FrameError::NotAMessage(error.to_string()))?;
        let text = as_text(envelope.data);
        let data = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Self { event: envelope.event, channel: envelope.channel, data, user_id: envelope.user_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn channel(name: &str) -> ChannelName {
        ChannelName::parse(name).expect("a valid name")
    }

    #[test]
    fn client_frames_are_parsed_or_refused() {
        let subscribe = |auth: Option<&str>, channel_data: Option<&str>| ClientMessage::Subscribe {
            channel: "room".into(),
            auth: auth.map(Into::into),
            channel_data: channel_data.map(Into::into),
        };
        for (name, text, expected) in [
            ("a ping", r#"{"event":"pusher:ping","data":{}}"#, Ok(ClientMessage::Ping)),
            (
                "pusher-js sends an empty auth on public channels",
                r#"{"event":"pusher:subscribe","data":{"auth":"","channel":"room"}}"#,
                Ok(subscribe(None, None)),
            ),
            (
                "data may be a string that holds JSON",
                r#"{"event":"pusher:subscribe","data":"{\"channel\":\"room\",\"auth\":\"k:s\",\"channel_data\":\"{}\"}"}"#,
                Ok(subscribe(Some("k:s"), Some("{}"))),
            ),
            (
                "a subscription without channel",
                r#"{"event":"pusher:subscribe","data":{}}"#,
                Err(FrameError::Missing { event: "pusher:subscribe", field: "channel" }),
            ),
            (
                "an object is forwarded as its text",
                r#"{"event":"client-a","channel":"room","data":{"x":1}}"#,
                Ok(ClientMessage::ClientEvent {
                    event: "client-a".into(),
                    channel: "room".into(),
                    data: r#"{"x":1}"#.into(),
                }),
            ),
            (
                "an object is forwarded unchanged: order of keys, digits and spaces",
                r#"{"event":"client-a","channel":"room","data":{ "z":1.0, "a":12345678901234567890123 }}"#,
                Ok(ClientMessage::ClientEvent {
                    event: "client-a".into(),
                    channel: "room".into(),
                    data: r#"{ "z":1.0, "a":12345678901234567890123 }"#.into(),
                }),
            ),
            (
                "an opaque string is forwarded unchanged",
                r#"{"event":"client-a","channel":"room","data":"plain"}"#,
                Ok(ClientMessage::ClientEvent {
                    event: "client-a".into(),
                    channel: "room".into(),
                    data: "plain".into(),
                }),
            ),
            (
                "a sign-in",
                r#"{"event":"pusher:signin","data":{"auth":"k:s","user_data":"{}"}}"#,
                Ok(ClientMessage::SignIn { auth: "k:s".into(), user_data: "{}".into() }),
            ),
            (
                "a sign-in without a user",
                r#"{"event":"pusher:signin","data":{"auth":"k:s"}}"#,
                Err(FrameError::Missing { event: "pusher:signin", field: "user_data" }),
            ),
            (
                "half of an emoji in a text",
                r#"{"event":"client-a","channel":"room","data":"cut \ud83d"}"#,
                Ok(ClientMessage::ClientEvent {
                    event: "client-a".into(),
                    channel: "room".into(),
                    data: "cut \u{fffd}".into(),
                }),
            ),
            (
                "half of an emoji in the name of an event",
                r#"{"event":"client-\udc00","channel":"room","data":1}"#,
                Ok(ClientMessage::ClientEvent {
                    event: "client-\u{fffd}".into(),
                    channel: "room".into(),
                    data: "1".into(),
                }),
            ),
            (
                "half of an emoji in what was signed is left to whoever reads it",
                r#"{"event":"pusher:subscribe","data":{"channel":"presence-a","auth":"k:s","channel_data":"{\"user_id\":\"\\ud83d\"}"}}"#,
                Ok(ClientMessage::Subscribe {
                    channel: "presence-a".into(),
                    auth: Some("k:s".into()),
                    channel_data: Some(r#"{"user_id":"\ud83d"}"#.into()),
                }),
            ),
            ("another event", r#"{"event":"pusher:x"}"#, Ok(ClientMessage::Other { event: "pusher:x".into() })),
        ] {
            assert_eq!(ClientMessage::parse(text), expected, "{name}");
        }
        for bad in ["", "x", "[]", "{}", r#"{"event":7}"#, "null"] {
            assert!(matches!(ClientMessage::parse(bad), Err(FrameError::NotAMessage(_))), "{bad}");
        }
    }

    #[test]
    fn server_frames_have_the_documented_form() {
        let read = |text: String| {
            let message = ServerMessage::parse(&text).expect("a frame");
            (message.event, message.channel, message.data)
        };
        let room = channel("cache-a");
        for (text, event, channel, data) in [
            (signin_success(r#"{"id":"7"}"#), "pusher:signin_success", None, json!({ "user_data": "{\"id\":\"7\"}" })),
            (
                watchlist_events(&["a"], &["b", "c"]),
                "pusher_internal:watchlist_events",
                None,
                json!({ "events": [
                    { "name": "online", "user_ids": ["a"] }, { "name": "offline", "user_ids": ["b", "c"] },
                ] }),
            ),
            (
                watchlist_events(&[], &["b"]),
                "pusher_internal:watchlist_events",
                None,
                json!({ "events": [{ "name": "offline", "user_ids": ["b"] }] }),
            ),
            (
                subscription_count(&room, 3),
                "pusher_internal:subscription_count",
                Some("cache-a"),
                json!({ "subscription_count": 3 }),
            ),
            (cache_miss(&room), "pusher:cache_miss", Some("cache-a"), json!({})),
        ] {
            assert_eq!(read(text), (event.to_owned(), channel.map(str::to_owned), data));
        }
    }

    #[test]
    fn server_frames_are_parsed_by_the_client() {
        let established = ServerMessage::parse(&connection_established("1.2", 120)).expect("a frame");
        assert_eq!(established.data, json!({ "socket_id": "1.2", "activity_timeout": 120 }));
        let members = [PresenceMember { user_id: "7".into(), user_info: json!({ "name": "x" }) }];
        let roster = subscription_succeeded(&channel("presence-a"), Some(&members));
        let roster = ServerMessage::parse(&roster).expect("a frame");
        assert_eq!(roster.data, json!({ "presence": { "count": 1, "ids": ["7"], "hash": { "7": { "name": "x" } } } }));
        let relayed = ServerMessage::parse(&event_frame("client-a", &channel("presence-a"), "plain", Some("7")));
        let relayed = relayed.expect("a frame");
        assert_eq!((relayed.data, relayed.user_id), (json!("plain"), Some("7".into())));
    }

    #[test]
    fn a_user_id_may_arrive_as_a_number() {
        let member = PresenceMember::parse(r#"{"user_id":10,"user_info":{"name":"x"}}"#).expect("a member");
        assert_eq!((member.user_id.as_str(), &member.user_info), ("10", &json!({ "name": "x" })));
        let large = PresenceMember::parse(r#"{"user_id":100000000000000000000000000000}"#).expect("a member");
        assert_eq!((&*large.user_id, large.user_info), ("100000000000000000000000000000", Value::Null));
        let cut = PresenceMember::parse(r#"{"user_id":"9","user_info":{"name":"Ann \ud83d"}}"#).expect("a member");
        assert_eq!(cut.user_info, json!({ "name": "Ann \u{fffd}" }));
        for bad in ["", "{}", r#"{"user_id":""}"#, r#"{"user_id":null}"#, r#"{"user_id":[1]}"#] {
            assert_eq!(PresenceMember::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_client_event_is_forwarded_as_it_was_sent(name in any::<String>(), text in any::<String>(), n in any::<i64>()) {
            let room = channel("private-room");
            for data in [json!(text), json!({ &*text: [n] }), json!(n)] {
                let sent = json!({ "event": format!("client-{name}"), "channel": "private-room", "data": data });
                let Ok(ClientMessage::ClientEvent { event, channel, data: passed }) = ClientMessage::parse(&sent.to_string())
                else {
                    return Err(TestCaseError::fail(sent.to_string()));
                };
                prop_assert_eq!((&*event, &*channel), (&*format!("client-{name}"), "private-room"));
                let received = ServerMessage::parse(&super::event_frame(&event, &room, &passed, None)).expect("a frame");
                // A text that holds JSON is decoded, as every client of Pusher does.
                let opened = data.as_str().and_then(|text| serde_json::from_str(text).ok());
                prop_assert_eq!(received.data, opened.unwrap_or(data));
            }
        }

        #[test]
        fn no_text_makes_the_parsers_panic_and_explanations_are_bounded(text in any::<String>(), times in 1_usize..4096) {
            let _ = (ServerMessage::parse(&text), PresenceMember::parse(&text));
            let long = text.repeat(times);
            let error = match ClientMessage::parse(&long) {
                Ok(message) => format!("{message:?}"),
                Err(error) => error.to_string(),
            };
            let received = ServerMessage::parse(&super::error_frame(None, &error)).expect("a frame").data;
            let shown = received["message"].as_str().expect("a text");
            prop_assert!(error.starts_with(shown) && shown.chars().count() <= EXPLANATION_MAX_LEN);
        }
    }
}
