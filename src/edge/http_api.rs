//! The HTTP API of Pusher Channels: `POST /apps/{id}/events`.
//!
//! In: a signed request of a customer's backend. Out: the event in every channel it names, or a status with a sentence.

use std::sync::Arc;

use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::Value;
use url::form_urlencoded;

use super::connection::MAX_EVENT_NAME;
use super::shared::Shared;
use crate::bus::Subject;
use crate::protocol::frame::{self, MAX_EVENT_BYTES};
use crate::protocol::rest::Request;
use crate::protocol::{AppId, ChannelKind, ChannelName, SocketId};
use crate::runtime::clock;

/// Channels that one request may name, as Pusher documents it.
const MAX_CHANNELS: usize = 100;

/// One event to publish.
#[derive(Debug, PartialEq)]
struct Publish {
    name: String,
    data: String,
    channels: Vec<ChannelName>,
    except: Option<SocketId>,
}

/// A status and the sentence that goes with it.
type Refusal = (StatusCode, String);

/// `POST /apps/{id}/events`
pub async fn events(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    uri: Uri,
    RawQuery(query): RawQuery,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return rejection.into_response(),
    };
    match publish(&shared, &AppId(id), uri.path(), &query.unwrap_or_default(), &body).await {
        Ok(()) => ([(header::CONTENT_TYPE, "application/json")], "{}").into_response(),
        Err((status, told)) => {
            shared.metrics.refused("http_api").inc();
            (status, format!("{told}\n")).into_response()
        }
    }
}

async fn publish(shared: &Shared, id: &AppId, path: &str, query: &str, body: &[u8]) -> Result<(), Refusal> {
    authenticate(shared, id, path, query, body)?;
    let event = parse(body)?;
    shared.metrics.published.inc();
    for channel in event.channels {
        let frame = frame::event(&event.name, &channel, &event.data, None);
        let subject = Subject { app: id.clone(), channel };
        shared.publish(subject, frame, event.except.clone()).await;
    }
    Ok(())
}

fn authenticate(shared: &Shared, id: &AppId, path: &str, query: &str, body: &[u8]) -> Result<(), Refusal> {
    let registry = shared.apps.current();
    let app = registry.app(id).ok_or_else(|| (StatusCode::NOT_FOUND, "there is no app with this id".to_owned()))?;
    let query: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let request = Request { method: "POST", path, query: &query, body };
    let unauthorized = |told: String| (StatusCode::UNAUTHORIZED, told);
    let key = request.parameter("auth_key").ok_or_else(|| unauthorized("the query lacks `auth_key`".into()))?;
    let secret = app.secret(key).ok_or_else(|| unauthorized("`auth_key` is not a key of this app".into()))?;
    request.verify(secret, clock::now_ms() / 1000).map_err(|error| unauthorized(error.to_string()))?;
    if app.enabled { Ok(()) } else { Err((StatusCode::FORBIDDEN, "the app is disabled".into())) }
}

fn parse(body: &[u8]) -> Result<Publish, Refusal> {
    let bad = |told: String| (StatusCode::BAD_REQUEST, told);
    let body: Value = serde_json::from_slice(body).map_err(|error| bad(format!("the body is not JSON: {error}")))?;
    let name = match body.get("name").and_then(Value::as_str) {
        Some(name) if name.is_empty() || name.chars().count() > MAX_EVENT_NAME => {
            return Err(bad(format!("`name` must have 1 to {MAX_EVENT_NAME} characters")));
        }
        Some(name) => name.to_owned(),
        None => return Err(bad("`name` must be a text".into())),
    };
    let Some(data) = body.get("data").and_then(Value::as_str) else {
        return Err(bad("`data` must be a text; encode an object as JSON first".into()));
    };
    if data.len() > MAX_EVENT_BYTES {
        let told = format!("`data` has {} bytes, at most {MAX_EVENT_BYTES} are allowed", data.len());
        return Err((StatusCode::PAYLOAD_TOO_LARGE, told));
    }
    let except = match body.get("socket_id") {
        None | Some(Value::Null) => None,
        Some(Value::String(socket)) if SocketId::is_valid(socket) => Some(SocketId::from(socket.as_str())),
        Some(_) => return Err(bad("`socket_id` must be two numbers joined by a dot".into())),
    };
    let channels = channels(&body).map_err(bad)?;
    Ok(Publish { name, data: data.to_owned(), channels, except })
}

fn channels(body: &Value) -> Result<Vec<ChannelName>, String> {
    let names: Vec<&Value> = match (body.get("channels"), body.get("channel")) {
        (Some(Value::Array(names)), _) => names.iter().collect(),
        (Some(_), _) => return Err("`channels` must be a list of texts".into()),
        (None, Some(name)) => vec![name],
        (None, None) => return Err("`channels` or `channel` is missing".into()),
    };
    if names.is_empty() || names.len() > MAX_CHANNELS {
        return Err(format!("an event goes to 1 to {MAX_CHANNELS} channels, not {}", names.len()));
    }
    let mut channels: Vec<ChannelName> = Vec::with_capacity(names.len());
    for name in names {
        let name = name.as_str().ok_or("a channel's name must be a text")?;
        let channel = ChannelName::parse(name).map_err(|error| error.to_string())?;
        // A channel that is named twice gets the event once.
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
    use serde_json::json;

    #[test]
    fn a_table_of_bodies() {
        let many: Vec<String> = (0..101).map(|n| format!("c{n}")).collect();
        for (name, body, expected) in [
            ("one channel", json!({"name": "e", "data": "{}", "channel": "a"}), Ok(1)),
            ("a list", json!({"name": "e", "data": "{}", "channels": ["a", "b", "a"]}), Ok(2)),
            ("without the sender", json!({"name": "e", "data": "", "channel": "a", "socket_id": "1.2"}), Ok(1)),
            ("no name", json!({"data": "{}", "channel": "a"}), Err((400, "`name`"))),
            ("long name", json!({"name": "e".repeat(201), "data": "", "channel": "a"}), Err((400, "`name`"))),
            ("data is an object", json!({"name": "e", "data": {}, "channel": "a"}), Err((400, "`data`"))),
            ("large", json!({"name": "e", "data": "x".repeat(10_241), "channel": "a"}), Err((413, "10241 bytes"))),
            ("no channel", json!({"name": "e", "data": ""}), Err((400, "is missing"))),
            ("empty list", json!({"name": "e", "data": "", "channels": []}), Err((400, "1 to 100"))),
            ("too many", json!({"name": "e", "data": "", "channels": many}), Err((400, "not 101"))),
            ("bad channel", json!({"name": "e", "data": "", "channel": "a b"}), Err((400, "` ` in it"))),
            ("bad socket", json!({"name": "e", "data": "", "channel": "a", "socket_id": "x"}), Err((400, "socket_id"))),
            (
                "encrypted and another",
                json!({"name": "e", "data": "", "channels": ["a", "private-encrypted-b"]}),
                Err((400, "alone")),
            ),
        ] {
            match (parse(body.to_string().as_bytes()), expected) {
                (Ok(event), Ok(count)) => assert_eq!(event.channels.len(), count, "{name}"),
                (Err((status, told)), Err((code, part))) => {
                    assert_eq!(status.as_u16(), code, "{name}");
                    assert!(told.contains(part), "{name}: {told}");
                }
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
        assert_eq!(parse(b"{").map_err(|(status, _)| status.as_u16()), Err(400));
    }
}
