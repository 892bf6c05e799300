//! The HTTP API of Pusher Channels: what a customer's backend asks of an app.
//!
//! In: signed requests. Out: events in the channels that they name, what is known of channels, or a status with a
//! sentence. [`publish`] and [`query`] read requests, [`request`] knows who asks.

mod publish;
mod query;
mod request;

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::future::join_all;
use serde_json::{Map, Value, json};

use publish::Publish;
pub use publish::{MAX_BATCH, MAX_CHANNELS};
use query::Attributes;
use request::Call;

use super::shared::Shared;
use crate::bus::{BusError, Last, Message, Seen, Subject};
use crate::protocol::frame;
use crate::protocol::registry::Limits;
use crate::protocol::{AppId, ChannelKind, ChannelName};

/// A status and the sentence that goes with it.
type Refusal = (StatusCode, String);

fn bad(told: impl Into<String>) -> Refusal {
    (StatusCode::BAD_REQUEST, told.into())
}

/// `POST /apps/{id}/events`
pub async fn events(State(shared): State<Arc<Shared>>, Path(id): Path<String>, call: Call) -> Response {
    let answer = async {
        let (app, limits) = call.authenticate(&shared, id)?;
        let event = publish::event(&call.body, limits.message_bytes)?;
        publish(&shared, &app, &event).await;
        let channels = attributes(&shared, &app, &event).await?;
        Ok(channels.map_or_else(|| json!({}), |channels| json!({ "channels": channels })))
    };
    respond(&shared, answer.await)
}

/// `POST /apps/{id}/batch_events`
pub async fn batch_events(State(shared): State<Arc<Shared>>, Path(id): Path<String>, call: Call) -> Response {
    let answer = async {
        let (app, limits) = call.authenticate(&shared, id)?;
        let events = publish::batch(&call.body, limits.message_bytes)?;
        let (mut list, mut asked) = (Vec::with_capacity(events.len()), false);
        for event in &events {
            publish(&shared, &app, event).await;
            let channels = attributes(&shared, &app, event).await?;
            asked |= channels.is_some();
            // Each of them has one channel.
            let attributes = channels.and_then(|channels| channels.into_iter().next().map(|(_, value)| value));
            list.push(attributes.unwrap_or_else(|| json!({})));
        }
        Ok(if asked { json!({ "batch": list }) } else { json!({}) })
    };
    respond(&shared, answer.await)
}

/// `GET /apps/{id}/channels`
pub async fn channels(State(shared): State<Arc<Shared>>, Path(id): Path<String>, call: Call) -> Response {
    let answer = async {
        let (app, _) = call.authenticate(&shared, id)?;
        let (prefix, users) = query::list(call.parameter("filter_by_prefix"), call.parameter("info"))?;
        // A prefix that no name can have; some of its characters would mean something to the bus.
        let channels = if prefix.is_empty() || ChannelName::parse(prefix).is_ok() {
            shared.list(&app, prefix).await.map_err(|error| unavailable(&error))?
        } else {
            Vec::new()
        };
        let channels: Map<String, Value> = channels
            .into_iter()
            .map(|(name, count)| (name.to_string(), if users { json!({ "user_count": count }) } else { json!({}) }))
            .collect();
        Ok(json!({ "channels": channels }))
    };
    respond(&shared, answer.await)
}

/// `GET /apps/{id}/channels/{name}`
pub async fn channel(
    State(shared): State<Arc<Shared>>,
    Path((id, name)): Path<(String, String)>,
    call: Call,
) -> Response {
    let answer = async {
        let (app, channel) = named(&shared, &call, id, &name)?;
        let attributes = Attributes::parse(call.parameter("info").unwrap_or_default())?;
        attributes.fit(&channel)?;
        let seen = look(&shared, &app, &channel).await?;
        let mut answer = attributes.of(&channel, &seen);
        answer.insert("occupied".to_owned(), (seen.connections > 0).into());
        Ok(Value::Object(answer))
    };
    respond(&shared, answer.await)
}

/// `GET /apps/{id}/channels/{name}/users`
pub async fn users(
    State(shared): State<Arc<Shared>>,
    Path((id, name)): Path<(String, String)>,
    call: Call,
) -> Response {
    let answer = async {
        let (app, channel) = named(&shared, &call, id, &name)?;
        if channel.kind() != ChannelKind::Presence {
            return Err(bad("users are known of presence channels only"));
        }
        let seen = look(&shared, &app, &channel).await?;
        let users: Vec<Value> = seen.users.into_iter().map(|id| json!({ "id": id })).collect();
        Ok(json!({ "users": users }))
    };
    respond(&shared, answer.await)
}

/// Who asks, and the channel that the path names.
fn named(shared: &Shared, call: &Call, id: String, name: &str) -> Result<(AppId, ChannelName), Refusal> {
    let (app, _) = call.authenticate(shared, id)?;
    let channel = ChannelName::parse(name).map_err(|error| bad(error.to_string()))?;
    Ok((app, channel))
}

/// `POST /apps/{id}/users/{user}/terminate_connections`
pub async fn terminate(
    State(shared): State<Arc<Shared>>,
    Path((id, user)): Path<(String, String)>,
    call: Call,
) -> Response {
    end_user(&shared, call.authenticate(&shared, id), &user).await
}

/// `POST /users/{user}/terminate_connections`, as Pusher's SDK for Python asks: its key says which app.
pub async fn terminate_by_key(State(shared): State<Arc<Shared>>, Path(user): Path<String>, call: Call) -> Response {
    end_user(&shared, call.authenticate_by_key(&shared), &user).await
}

async fn end_user(shared: &Shared, caller: Result<(AppId, Limits), Refusal>, user: &str) -> Response {
    let answer = async {
        let (app, _) = caller?;
        let channel = ChannelName::signed_in(user).ok_or_else(|| bad("this cannot be a user's id"))?;
        shared.terminate(Subject { app, channel }).await;
        Ok(json!({}))
    };
    respond(shared, answer.await)
}

/// Kept first, then told: who comes in between is told at least once.
async fn publish(shared: &Shared, app: &AppId, event: &Publish) {
    shared.metrics.published.inc();
    let mut messages = Vec::with_capacity(event.channels.len());
    for channel in &event.channels {
        let subject = Subject { app: app.clone(), channel: channel.clone() };
        if channel.caches() {
            let last = Last { event: event.name.clone(), data: event.data.clone() };
            if let Err(error) = shared.keep(&subject, &last).await {
                tracing::warn!(%error, %channel, "an event is not kept for those who come later");
            }
        }
        let frame = frame::event(&event.name, channel, &event.data, None).into();
        messages.push(Message { subject, frame, except: event.except.clone(), ends: false });
    }
    shared.publish_all(messages).await;
}

/// What a publisher asked to know of each channel; `None` when nothing.
async fn attributes(shared: &Shared, app: &AppId, event: &Publish) -> Result<Option<Map<String, Value>>, Refusal> {
    let Some(attributes) = event.info else { return Ok(None) };
    let asked = event.channels.iter().filter(|channel| channel.kind() != ChannelKind::Internal);
    let seen = asked.map(async |channel| {
        let seen = look(shared, app, channel).await?;
        Ok((channel.to_string(), Value::Object(attributes.of(channel, &seen))))
    });
    join_all(seen).await.into_iter().collect::<Result<_, _>>().map(Some)
}

async fn look(shared: &Shared, app: &AppId, channel: &ChannelName) -> Result<Seen, Refusal> {
    shared.look(&Subject { app: app.clone(), channel: channel.clone() }).await.map_err(|error| unavailable(&error))
}

fn unavailable(error: &BusError) -> Refusal {
    tracing::warn!(%error, "the HTTP API cannot answer");
    (StatusCode::SERVICE_UNAVAILABLE, frame::BUS_AWAY.to_owned())
}

fn respond(shared: &Shared, answer: Result<Value, Refusal>) -> Response {
    match answer {
        Ok(answer) => axum::Json(answer).into_response(),
        Err((status, told)) => {
            shared.metrics.refused("http_api").inc();
            (status, format!("{told}\n")).into_response()
        }
    }
}
