//! Frames of Pusher's protocol, both ways.

use serde_json::{Value, json};

use super::protocol::ChannelName;
use super::protocol::frame::{self, ClientMessage, EXPLANATION_MAX_LEN, FrameError, PresenceMember, ServerMessage};

/// Bytes of an error frame, at most: an explanation of which every character is escaped at its longest, and what stands
/// around it.
const MAX_ERROR_BYTES: usize = 12 * EXPLANATION_MAX_LEN + 1024;

/// One text frame of a client, or what a server sends, or a member's data.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match ClientMessage::parse(text) {
        Ok(message) => understood(&message, text),
        Err(error) => refused(&error),
    }
    if let Ok(message) = ServerMessage::parse(text) {
        assert!(message.event.len() <= text.len());
    }
    member(text);
}

fn understood(message: &ClientMessage, text: &str) {
    let written = written(message).to_string();
    assert_eq!(ClientMessage::parse(&written).as_ref(), Ok(message), "written and read again: {written}");
    if let ClientMessage::ClientEvent { event, channel, data } = message {
        assert!(data.len() <= text.len().max("null".len()), "what is passed on is no larger than what came");
        let Ok(channel) = ChannelName::parse(channel) else { return };
        let told = ServerMessage::parse(&frame::event_frame(event, &channel, data, None)).expect("a frame of ours");
        assert_eq!((&told.event, told.channel.as_deref()), (event, Some(channel.as_str())));
        match serde_json::from_str::<Value>(data) {
            Ok(value) => assert_eq!(told.data, value),
            Err(_) => assert_eq!(told.data, Value::from(data.as_str()), "an opaque text arrives as it was sent"),
        }
    }
}

fn written(message: &ClientMessage) -> Value {
    match message {
        ClientMessage::Ping => json!({ "event": "pusher:ping" }),
        ClientMessage::Pong => json!({ "event": "pusher:pong" }),
        ClientMessage::Subscribe { channel, auth, channel_data } => json!({
            "event": "pusher:subscribe",
            "data": { "channel": channel, "auth": auth, "channel_data": channel_data },
        }),
        ClientMessage::Unsubscribe { channel } => {
            json!({ "event": "pusher:unsubscribe", "data": { "channel": channel } })
        }
        ClientMessage::SignIn { auth, user_data } => {
            json!({ "event": "pusher:signin", "data": { "auth": auth, "user_data": user_data } })
        }
        ClientMessage::ClientEvent { event, channel, data } => {
            json!({ "event": event, "channel": channel, "data": data })
        }
        ClientMessage::Other { event } => json!({ "event": event }),
    }
}

fn refused(error: &FrameError) {
    let explained = error.to_string();
    for told in [frame::error_frame(None, &explained), frame::subscription_error("room", "AuthError", 401, &explained)]
    {
        assert!(told.len() <= MAX_ERROR_BYTES, "an answer of {} bytes", told.len());
        assert!(ServerMessage::parse(&told).is_ok(), "{told}");
    }
}

fn member(text: &str) {
    let Some(member) = PresenceMember::parse(text) else { return };
    assert!(!member.user_id.is_empty());
    if has_fraction(&member.user_info) {
        return;
    }
    let room = ChannelName::parse("presence-room").expect("a name");
    let roster = frame::subscription_succeeded(&room, Some(std::slice::from_ref(&member)));
    let roster = ServerMessage::parse(&roster).expect("a frame of ours").data;
    assert_eq!(roster["presence"]["ids"], json!([member.user_id]));
    assert_eq!(roster["presence"]["hash"][&member.user_id], member.user_info);
}

/// Such numbers may change in their last digit when they are read.
fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(list) => list.iter().any(has_fraction),
        Value::Object(fields) => fields.values().any(has_fraction),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}
