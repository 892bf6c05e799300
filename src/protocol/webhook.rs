//! The webhook's body, headers and signature.
//!
//! Every field is text or a number, because some SDKs read nothing else; `Content-Type` is exactly `application/json`,
//! because the Node SDK compares it. `id`, `epoch` and `seq` accompany Pusher's fields for receivers that drop repeats.

use serde::{Deserialize, Serialize};

use super::event::{EventFields, EventKind, EventOrder, MissingField};
use super::record::RecordedEvent;
use super::{ChannelName, Secret, signature};

/// Header with the key whose secret signed the body.
pub const KEY_HEADER: &str = "X-Pusher-Key";
/// Header with the HMAC-SHA256 of the raw body.
pub const SIGNATURE_HEADER: &str = "X-Pusher-Signature";
/// Header with the time of the oldest event, if the body had to be stamped anew.
pub const ORIGINAL_TIME_HEADER: &str = "X-Realtime-Original-Time";
/// Header of a body that `realtime replay` sends, with the value `true`.
pub const REPLAY_HEADER: &str = "X-Realtime-Replay";
/// The only content type that the Node SDK accepts.
pub const CONTENT_TYPE: &str = "application/json";

/// The body of one webhook; a sender fills it with events that are JSON already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WebhookBody<E = WebhookEvent> {
    /// Time at which the events were made, in ms since 1970; SDKs refuse events older than five minutes.
    pub time_ms: u64,
    /// The events, oldest first.
    pub events: Vec<E>,
}

/// One event as a customer receives it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "EventFields")]
pub struct WebhookEvent {
    /// The kind of event, with its fields.
    #[serde(flatten)]
    pub kind: EventKind,
    /// The channel that the event belongs to.
    pub channel: ChannelName,
    /// The event's id, the same through every repeat.
    pub id: String,
    /// Position among the channel's state events.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub order: Option<EventOrder>,
}

impl TryFrom<EventFields> for WebhookEvent {
    type Error = MissingField;

    fn try_from(mut fields: EventFields) -> Result<Self, MissingField> {
        let (kind, order) = (fields.take_kind()?, fields.order());
        let channel = fields.channel.ok_or(MissingField("channel"))?;
        Ok(Self { kind, channel, id: fields.id, order })
    }
}

impl WebhookEvent {
    /// The customer's view of a recorded event.
    #[must_use]
    pub fn new(channel: ChannelName, event: RecordedEvent) -> Self {
        Self { kind: event.kind, channel, id: event.id, order: event.order }
    }
}

/// Headers of the connection, which no configuration may set.
const CONNECTION_HEADERS: [&str; 8] =
    ["host", "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect"];
/// Prefixes of headers that dispatchers or proxies set.
const RESERVED_HEADER_PREFIXES: [&str; 4] = ["content-", "proxy-", "x-pusher-", "x-realtime-"];

/// The reason why a configured header cannot be sent. Contains no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtraHeaderProblem {
    /// The name has other characters than a header's name, or none.
    #[error("is no name of a header: write letters, digits, dashes and underscores")]
    Name,
    /// A header that the signature or the connection depends on.
    #[error("is a header that dispatchers set themselves: choose another")]
    Reserved,
    /// The value is empty.
    #[error("is empty: write a value, or remove the key")]
    Empty,
    /// The value has a line end or another character that is not visible ASCII.
    #[error("has a character that no header can carry, such as a line end: write visible ASCII characters")]
    Value,
}

/// Checks a header that a customer configured beside those of the dispatcher.
///
/// # Errors
/// The header must not or cannot be sent.
pub fn check_extra_header(name: &str, value: &str) -> Result<(), ExtraHeaderProblem> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(ExtraHeaderProblem::Name);
    }
    let lower = name.to_ascii_lowercase();
    if CONNECTION_HEADERS.contains(&lower.as_str()) || RESERVED_HEADER_PREFIXES.iter().any(|it| lower.starts_with(it)) {
        return Err(ExtraHeaderProblem::Reserved);
    }
    if value.is_empty() {
        return Err(ExtraHeaderProblem::Empty);
    }
    let is_visible = |byte: u8| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t');
    if value.bytes().all(is_visible) { Ok(()) } else { Err(ExtraHeaderProblem::Value) }
}

/// Whether the signature is that of the raw body under the secret.
#[must_use]
pub fn verify_webhook(secret: &Secret, raw_body: &[u8], signature: &str) -> bool {
    signature::verify_signature(secret, raw_body, signature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn an_event_has_the_fields_that_the_sdks_read() {
        let event = RecordedEvent {
            id: "01".into(),
            time_ms: 1,
            order: None,
            n: Some(1),
            cause: None,
            kind: EventKind::ClientEvent {
                event: "client-a".into(),
                data: r#"{"x":1}"#.into(),
                socket_id: "1.2".into(),
                user_id: Some("7".into()),
            },
        };
        let channel = ChannelName::parse("presence-a").expect("a valid name");
        let body = WebhookBody { time_ms: 1, events: vec![WebhookEvent::new(channel, event)] };
        let value = serde_json::to_value(&body).expect("json");
        assert_eq!(
            value,
            json!({ "time_ms": 1, "events": [{
                "name": "client_event", "channel": "presence-a", "event": "client-a", "data": "{\"x\":1}",
                "socket_id": "1.2", "user_id": "7", "id": "01",
            }] })
        );
        assert_eq!(serde_json::from_value::<WebhookBody>(value).expect("a body"), body);
        let without_channel = serde_json::from_str::<WebhookEvent>(r#"{"id":"1","name":"cache_miss"}"#);
        assert!(without_channel.expect_err("no channel").to_string().contains("missing field `channel`"));
        let event = serde_json::value::to_raw_value(&body.events[0]).expect("json");
        let encoded = serde_json::to_string(&WebhookBody { time_ms: 1, events: vec![&*event] });
        assert_eq!(encoded.expect("json"), serde_json::to_string(&body).expect("json"));
    }

    #[test]
    fn configured_headers_cannot_replace_ours_nor_split_a_request() {
        use ExtraHeaderProblem::{Empty, Name, Reserved, Value};
        for (name, value, expected) in [
            ("Authorization", "Bearer a.b-c", None),
            ("X-Tenant_1", "a b\tc", None),
            ("", "v", Some(Name)),
            ("X A", "v", Some(Name)),
            ("X-A:", "v", Some(Name)),
            ("X-A\r\nX-B", "v", Some(Name)),
            ("HOST", "v", Some(Reserved)),
            ("connection", "v", Some(Reserved)),
            ("Keep-Alive", "v", Some(Reserved)),
            ("Transfer-Encoding", "v", Some(Reserved)),
            ("Content-Length", "v", Some(Reserved)),
            ("Proxy-Authorization", "v", Some(Reserved)),
            ("x-PUSHER-signature", "v", Some(Reserved)),
            ("X-Realtime-Replay", "v", Some(Reserved)),
            ("X-A", "", Some(Empty)),
            ("X-A", "a\nX-B: 1", Some(Value)),
            ("X-A", "a\0", Some(Value)),
            ("X-A", "ä", Some(Value)),
        ] {
            assert_eq!(check_extra_header(name, value).err(), expected, "{name}: {value:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(serde_json::from_slice::<WebhookBody>(&bytes).is_err());
        }
    }
}
