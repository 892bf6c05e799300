//! The bodies of publish requests: bytes in, events out. Pure.

use serde_json::Value;

use axum::http::StatusCode;

use crate::edge::http_api::channel_info::ChannelAttributes;
use crate::edge::http_api::refusal::{ApiRefusal, bad_request};
use crate::edge::pusher::connection::EVENT_NAME_MAX_LEN;
use crate::protocol::{ChannelKind, ChannelName, SocketId, client_json};

/// Channels that one request may name, as Pusher documents it.
pub const EVENT_CHANNELS_MAX: usize = 100;

/// Events of one batch, as Pusher documents it.
pub const BATCH_EVENTS_MAX: usize = 10;

/// Prefixes of the protocol's own events: a client would believe that they are the server's.
const RESERVED_EVENT_PREFIXES: [&str; 2] = ["pusher:", "pusher_internal:"];

/// One event to publish.
#[derive(Debug, PartialEq)]
pub struct ApiEvent {
    /// The name of the event.
    pub name: String,
    /// The data of the event.
    pub data: String,
    /// The channels that receive it.
    pub channels: Vec<ChannelName>,
    /// The socket that must not receive it.
    pub except: Option<SocketId>,
    /// The channel attributes that the answer contains.
    pub info: Option<ChannelAttributes>,
}

/// Parses the body of one event, whose data is bounded in bytes.
pub fn parse_event(body: &[u8], most: usize) -> Result<ApiEvent, ApiRefusal> {
    read_event(&parse_json(body)?, most)
}

/// Parses the body of a batch: each event goes to one channel.
pub fn parse_batch(body: &[u8], most: usize) -> Result<Vec<ApiEvent>, ApiRefusal> {
    let body = parse_json(body)?;
    let Some(Value::Array(events)) = read_field(&body, "batch") else {
        return Err(bad_request("`batch` must be a list of events"));
    };
    if events.is_empty() || events.len() > BATCH_EVENTS_MAX {
        return Err(bad_request(format!("a batch has 1 to {BATCH_EVENTS_MAX} events, not {}", events.len())));
    }
    let one = |event: &Value| {
        if read_field(event, "channel").is_none() || read_field(event, "channels").is_some() {
            return Err(bad_request("an event of a batch goes to one `channel`"));
        }
        read_event(event, most)
    };
    events.iter().map(one).collect()
}

fn parse_json(body: &[u8]) -> Result<Value, ApiRefusal> {
    client_json::parse_bytes(body).map_err(|error| bad_request(format!("the body is not JSON: {error}")))
}

/// A field of an object; `null` is absence, as serializers of many languages write it.
fn read_field<'a>(body: &'a Value, name: &str) -> Option<&'a Value> {
    body.get(name).filter(|value| !value.is_null())
}

fn read_event(body: &Value, most: usize) -> Result<ApiEvent, ApiRefusal> {
    let name = match read_field(body, "name").and_then(Value::as_str) {
        Some(name) if name.is_empty() || name.chars().count() > EVENT_NAME_MAX_LEN => {
            return Err(bad_request(format!("`name` must have 1 to {EVENT_NAME_MAX_LEN} characters")));
        }
        Some(name) if RESERVED_EVENT_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) => {
            return Err(bad_request(
                "events whose `name` begins with pusher: or pusher_internal: are the server's own",
            ));
        }
        Some(name) => name.to_owned(),
        None => return Err(bad_request("`name` must be a text")),
    };
    let Some(data) = body.get("data").and_then(Value::as_str) else {
        return Err(bad_request("`data` must be a text; encode an object as JSON first"));
    };
    if data.len() > most {
        let told = format!("`data` has {} bytes, at most {most} are allowed", data.len());
        return Err((StatusCode::PAYLOAD_TOO_LARGE, told));
    }
    let except = match read_field(body, "socket_id") {
        None => None,
        Some(Value::String(socket)) if SocketId::is_valid(socket) => Some(SocketId::from(socket.as_str())),
        Some(_) => return Err(bad_request("`socket_id` must be two numbers joined by a dot")),
    };
    let info = match read_field(body, "info") {
        None => None,
        Some(Value::String(info)) if info.is_empty() => None,
        Some(Value::String(info)) => Some(ChannelAttributes::parse(info)?),
        Some(_) => return Err(bad_request("`info` must be a text: names of attributes joined by commas")),
    };
    let channels = parse_channels(body).map_err(bad_request)?;
    Ok(ApiEvent { name, data: data.to_owned(), channels, except, info })
}

fn parse_channels(body: &Value) -> Result<Vec<ChannelName>, String> {
    let names: Vec<&Value> = match (read_field(body, "channels"), read_field(body, "channel")) {
        (Some(Value::Array(names)), _) => names.iter().collect(),
        (Some(_), _) => return Err("`channels` must be a list of texts".into()),
        (None, Some(name)) => vec![name],
        (None, None) => return Err("`channels` or `channel` is missing".into()),
    };
    if names.is_empty() || names.len() > EVENT_CHANNELS_MAX {
        return Err(format!("an event goes to 1 to {EVENT_CHANNELS_MAX} channels, not {}", names.len()));
    }
    let mut channels: Vec<ChannelName> = Vec::with_capacity(names.len());
    for name in names {
        let name = name.as_str().ok_or("a channel's name must be a text")?;
        let channel = ChannelName::parse_any(name).map_err(|error| error.to_string())?;
        if channel.kind() == ChannelKind::Internal && channel.addressed_user().is_none() {
            return Err("only the server names such a channel".into());
        }
        // A channel that is named twice receives the event once.
        if !channels.contains(&channel) {
            channels.push(channel);
        }
    }
    if channels.len() > 1 && channels.iter().any(|channel| channel.kind() == ChannelKind::Encrypted) {
        return Err("an event for an encrypted channel goes to this channel alone".into());
    }
    Ok(channels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::EVENT_BYTES_MAX;
    use serde_json::json;

    #[test]
    fn a_table_of_bodies() {
        let many: Vec<String> = (0..101).map(|n| format!("c{n}")).collect();
        for (name, body, expected) in [
            ("one channel", json!({"name": "e", "data": "{}", "channel": "a"}), Ok(1)),
            ("a list", json!({"name": "e", "data": "{}", "channels": ["a", "b", "a"]}), Ok(2)),
            ("without the sender", json!({"name": "e", "data": "", "channel": "a", "socket_id": "1.2"}), Ok(1)),
            (
                "null is absence",
                json!({"name": "e", "data": "1", "channel": "a", "channels": null, "socket_id": null, "info": null}),
                Ok(1),
            ),
            ("absent by null", json!({"name": "e", "data": "", "channel": null}), Err((400, "is missing"))),
            (
                "a member's removal",
                json!({"name": "pusher_internal:member_removed", "data": "", "channel": "a"}),
                Err((400, "server's own")),
            ),
            ("an error", json!({"name": "pusher:error", "data": "", "channel": "a"}), Err((400, "server's own"))),
            ("a name like it", json!({"name": "pusher-news", "data": "", "channel": "a"}), Ok(1)),
            ("no name", json!({"data": "{}", "channel": "a"}), Err((400, "`name`"))),
            ("long name", json!({"name": "e".repeat(201), "data": "", "channel": "a"}), Err((400, "`name`"))),
            ("data is an object", json!({"name": "e", "data": {}, "channel": "a"}), Err((400, "`data`"))),
            ("large", json!({"name": "e", "data": "x".repeat(10_241), "channel": "a"}), Err((413, "10241 bytes"))),
            ("no channel", json!({"name": "e", "data": ""}), Err((400, "is missing"))),
            ("empty list", json!({"name": "e", "data": "", "channels": []}), Err((400, "1 to 100"))),
            ("too many", json!({"name": "e", "data": "", "channels": many}), Err((400, "not 101"))),
            ("bad channel", json!({"name": "e", "data": "", "channel": "a b"}), Err((400, "` ` in it"))),
            ("bad socket", json!({"name": "e", "data": "", "channel": "a", "socket_id": "x"}), Err((400, "socket_id"))),
            ("a user", json!({"name": "e", "data": "", "channels": ["#server-to-user-7"]}), Ok(1)),
            ("another of the server's", json!({"name": "e", "data": "", "channel": "#watching-7"}), Err((400, "only"))),
            ("no user", json!({"name": "e", "data": "", "channel": "#server-to-user-"}), Err((400, "a user id"))),
            ("attributes", json!({"name": "e", "data": "", "channel": "a", "info": "user_count"}), Ok(1)),
            ("no attribute", json!({"name": "e", "data": "", "channel": "a", "info": "x"}), Err((400, "`info`"))),
            ("bad attributes", json!({"name": "e", "data": "", "channel": "a", "info": 1}), Err((400, "`info`"))),
            (
                "encrypted and another",
                json!({"name": "e", "data": "", "channels": ["a", "private-encrypted-b"]}),
                Err((400, "alone")),
            ),
        ] {
            match (parse_event(body.to_string().as_bytes(), EVENT_BYTES_MAX), expected) {
                (Ok(event), Ok(count)) => assert_eq!(event.channels.len(), count, "{name}"),
                (Err((status, told)), Err((code, part))) => {
                    assert_eq!(status.as_u16(), code, "{name}");
                    assert!(told.contains(part), "{name}: {told}");
                }
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
        let cut = parse_event(br#"{"name":"e","channel":"a","data":"cut \ud83d"}"#, EVENT_BYTES_MAX);
        assert_eq!(cut.map(|event| event.data).ok().as_deref(), Some("cut \u{fffd}"));
        assert_eq!(parse_event(b"{", EVENT_BYTES_MAX).map_err(|(status, _)| status.as_u16()), Err(400));
    }

    #[test]
    fn a_table_of_batches() {
        let one = |channel: &str| json!({ "name": "e", "data": "{}", "channel": channel });
        let lists = json!([{ "name": "e", "data": "{}", "channels": ["a"] }]);
        for (name, batch_of, expected) in [
            ("two", json!([one("a"), one("private-encrypted-b")]), Ok(2)),
            ("nulls", json!([{ "name": "e", "data": "1", "channel": "a", "channels": null }]), Ok(1)),
            ("ten", json!(vec![one("a"); 10]), Ok(10)),
            ("eleven", json!(vec![one("a"); 11]), Err("not 11")),
            ("none", json!([]), Err("not 0")),
            ("lists of channels", lists, Err("one `channel`")),
            ("a bad one", json!([one("a"), one("b c")]), Err("` ` in it")),
            ("an event of the server's", json!([{ "name": "pusher:error", "data": "", "channel": "a" }]), Err("own")),
            ("no list", json!("a"), Err("`batch`")),
        ] {
            match (parse_batch(json!({ "batch": batch_of }).to_string().as_bytes(), EVENT_BYTES_MAX), expected) {
                (Ok(events), Ok(count)) => assert_eq!(events.len(), count, "{name}"),
                (Err((_, told)), Err(part)) => assert!(told.contains(part), "{name}: {told}"),
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
    }
}
