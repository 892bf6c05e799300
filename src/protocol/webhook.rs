//! The webhook's body, headers and signature.
//!
//! Every field is text or a number, because some SDKs read nothing else; `Content-Type` is exactly `application/json`,
//! because the Node SDK compares it. `id`, `epoch` and `seq` accompany Pusher's fields for receivers that drop repeats.

use serde::{Deserialize, Serialize};

use super::record::{EventKind, EventOrder, RecordedEvent};
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

impl WebhookEvent {
    /// The customer's view of a recorded event.
    #[must_use]
    pub fn new(channel: &ChannelName, event: &RecordedEvent) -> Self {
        Self { kind: event.kind.clone(), channel: channel.clone(), id: event.id.clone(), order: event.order }
    }
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
        let body = WebhookBody { time_ms: 1, events: vec![WebhookEvent::new(&channel, &event)] };
        let value = serde_json::to_value(&body).expect("json");
        assert_eq!(
            value,
            json!({ "time_ms": 1, "events": [{
                "name": "client_event", "channel": "presence-a", "event": "client-a", "data": "{\"x\":1}",
                "socket_id": "1.2", "user_id": "7", "id": "01",
            }] })
        );
        assert_eq!(serde_json::from_value::<WebhookBody>(value).expect("a body"), body);
        let event = serde_json::value::to_raw_value(&body.events[0]).expect("json");
        let encoded = serde_json::to_string(&WebhookBody { time_ms: 1, events: vec![&*event] });
        assert_eq!(encoded.expect("json"), serde_json::to_string(&body).expect("json"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(serde_json::from_slice::<WebhookBody>(&bytes).is_err());
        }
    }
}
