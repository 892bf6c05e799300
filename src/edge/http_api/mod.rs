//! The HTTP API of Pusher Channels: the requests of a customer's backend.
//!
//! In: signed requests. Out: events in the channels that they name, what is known of channels, or a status with a
//! sentence. [`publish`] and [`channel_info`] parse requests, [`auth`] verifies their
//! signature. This room must not know transports, nor other processes: it reaches clients through the hub.

pub(crate) mod auth;
pub(crate) mod channel_info;
pub(crate) mod publish;
pub(crate) mod refusal;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures::future::join_all;
use serde_json::{Map, Value, json};

use crate::edge::http_api::auth::ApiRequest;
use crate::edge::http_api::channel_info::ChannelAttributes;
use crate::edge::http_api::refusal::{ApiRefusal, bad_request, respond_json};
use publish::ApiEvent;
pub use publish::{BATCH_EVENTS_MAX, EVENT_CHANNELS_MAX};

use crate::bus::{BroadcastFrame, BusError, ChannelInfo, ChannelKey, LastEvent};
use crate::edge::hub::core::Hub;
use crate::protocol::frame;
use crate::protocol::registry::AppLimits;
use crate::protocol::{AppId, ChannelKind, ChannelName};

/// Publishes one event: `POST /apps/{id}/events`.
pub async fn trigger_event(State(shared): State<Arc<Hub>>, call: ApiRequest) -> Response {
    let answer = async {
        let (app, limits) = (call.app, call.limits);
        let event = publish::parse_event(&call.body, limits.message_bytes)?;
        broadcast_event(&shared, (&app, limits), &event).await.map_err(|error| bus_unavailable(&error))?;
        let channels = collect_attributes(&shared, &app, &event).await?;
        Ok(channels.map_or_else(|| json!({}), |channels| json!({ "channels": channels })))
    };
    respond_json(&shared, answer.await)
}

/// Publishes a batch of events: `POST /apps/{id}/batch_events`.
pub async fn trigger_batch(State(shared): State<Arc<Hub>>, call: ApiRequest) -> Response {
    let answer = async {
        let (app, limits) = (call.app, call.limits);
        let events = publish::parse_batch(&call.body, limits.message_bytes)?;
        let (mut list, mut asked) = (Vec::with_capacity(events.len()), false);
        let mut published = Ok(());
        for event in &events {
            published = published.and(broadcast_event(&shared, (&app, limits), event).await);
        }
        published.map_err(|error| bus_unavailable(&error))?;
        for event in &events {
            let channels = collect_attributes(&shared, &app, event).await?;
            asked |= channels.is_some();
            // Each of them has one channel.
            let attributes = channels.and_then(|channels| channels.into_iter().next().map(|(_, value)| value));
            list.push(attributes.unwrap_or_else(|| json!({})));
        }
        Ok(if asked { json!({ "batch": list }) } else { json!({}) })
    };
    respond_json(&shared, answer.await)
}

/// Lists the occupied channels: `GET /apps/{id}/channels`.
pub async fn list_channels(State(shared): State<Arc<Hub>>, call: ApiRequest) -> Response {
    let answer = async {
        let (prefix, users) =
            channel_info::parse_list_query(call.query_parameter("filter_by_prefix"), call.query_parameter("info"))?;
        // A prefix that no name can have; some of its characters would mean something to the bus.
        let channels = if prefix.is_empty() || ChannelName::parse(prefix).is_ok() {
            shared.list_channels(&call.app, prefix).await.map_err(|error| bus_unavailable(&error))?
        } else {
            Vec::new()
        };
        let channels: Map<String, Value> = channels
            .into_iter()
            .map(|(name, count)| (name.to_string(), if users { json!({ "user_count": count }) } else { json!({}) }))
            .collect();
        Ok(json!({ "channels": channels }))
    };
    respond_json(&shared, answer.await)
}

/// Shows one channel and its attributes: `GET /apps/{id}/channels/{name}`.
pub async fn show_channel(
    State(shared): State<Arc<Hub>>,
    Path((_, name)): Path<(String, String)>,
    call: ApiRequest,
) -> Response {
    let answer = async {
        let channel = parse_channel(&name)?;
        let attributes = ChannelAttributes::parse(call.query_parameter("info").unwrap_or_default())?;
        attributes.check_channel_kind(&channel)?;
        let seen = read_channel(&shared, &call.app, &channel).await?;
        let mut answer = attributes.values_for(&channel, &seen);
        answer.insert("occupied".to_owned(), (seen.connections > 0).into());
        Ok(Value::Object(answer))
    };
    respond_json(&shared, answer.await)
}

/// Lists the users of a presence channel: `GET /apps/{id}/channels/{name}/users`.
pub async fn list_users(
    State(shared): State<Arc<Hub>>,
    Path((_, name)): Path<(String, String)>,
    call: ApiRequest,
) -> Response {
    let answer = async {
        let channel = parse_channel(&name)?;
        if channel.kind() != ChannelKind::Presence {
            return Err(bad_request("users are known of presence channels only"));
        }
        let seen = read_channel(&shared, &call.app, &channel).await?;
        let users: Vec<Value> = seen.users.into_iter().map(|id| json!({ "id": id })).collect();
        Ok(json!({ "users": users }))
    };
    respond_json(&shared, answer.await)
}

fn parse_channel(name: &str) -> Result<ChannelName, ApiRefusal> {
    ChannelName::parse(name).map_err(|error| bad_request(error.to_string()))
}

/// Closes all connections of a user: `POST /apps/{id}/users/{user}/terminate_connections`.
pub async fn terminate_user(
    State(shared): State<Arc<Hub>>,
    Path((_, user)): Path<(String, String)>,
    call: ApiRequest,
) -> Response {
    terminate_user_connections(&shared, call.app, &user).await
}

/// `POST /users/{user}/terminate_connections`, as Pusher's SDK for Python asks: its key says which app.
pub async fn terminate_user_by_key(
    State(shared): State<Arc<Hub>>,
    Path(user): Path<String>,
    call: ApiRequest,
) -> Response {
    terminate_user_connections(&shared, call.app, &user).await
}

async fn terminate_user_connections(shared: &Hub, app: AppId, user: &str) -> Response {
    let answer = async {
        let channel = ChannelName::signed_in(user).ok_or_else(|| bad_request("this cannot be a user's id"))?;
        let terminated = shared.terminate_subscribers(ChannelKey { app, channel }).await;
        terminated.map_err(|error| bus_unavailable(&error))?;
        Ok(json!({}))
    };
    respond_json(shared, answer.await)
}

/// Stores the event first, then publishes it: a subscriber that joins in between receives it at least once.
///
/// # Errors
/// The bus did not take the event, or not all of it: subscribers of other processes may lack it.
async fn broadcast_event(shared: &Hub, (app, limits): (&AppId, AppLimits), event: &ApiEvent) -> Result<(), BusError> {
    let mut unavailable = None;
    let last_event_ttl = Duration::from_secs(limits.cache_seconds.into());
    shared.metrics.events_published.inc();
    shared.metrics.app_events_published.of_app(app.as_str()).inc();
    let mut messages = Vec::with_capacity(event.channels.len());
    for channel in &event.channels {
        let subject = ChannelKey { app: app.clone(), channel: channel.clone() };
        if channel.is_cached() {
            let last = LastEvent { event: event.name.clone(), data: event.data.clone() };
            if let Err(error) = shared.store_last_event(&subject, &last, last_event_ttl).await {
                tracing::debug!(%error, %channel, "last event not stored");
                unavailable = Some(error);
            }
        }
        let frame = frame::event_frame(&event.name, channel, &event.data, None);
        messages.push(BroadcastFrame { except: event.except.clone(), ..BroadcastFrame::new(subject, frame) });
    }
    let published = shared.publish_all(messages).await;
    unavailable.map_or(published, Err)
}

/// The attributes of each channel that the publisher asked for; `None` when none.
async fn collect_attributes(
    shared: &Hub,
    app: &AppId,
    event: &ApiEvent,
) -> Result<Option<Map<String, Value>>, ApiRefusal> {
    let Some(attributes) = event.info else { return Ok(None) };
    let asked = event.channels.iter().filter(|channel| channel.kind() != ChannelKind::Internal);
    let seen = asked.map(async |channel| {
        let seen = read_channel(shared, app, channel).await?;
        Ok((channel.to_string(), Value::Object(attributes.values_for(channel, &seen))))
    });
    join_all(seen).await.into_iter().collect::<Result<_, _>>().map(Some)
}

async fn read_channel(shared: &Hub, app: &AppId, channel: &ChannelName) -> Result<ChannelInfo, ApiRefusal> {
    shared
        .channel_info(&ChannelKey { app: app.clone(), channel: channel.clone() })
        .await
        .map_err(|error| bus_unavailable(&error))
}

fn bus_unavailable(error: &BusError) -> ApiRefusal {
    tracing::debug!(%error, "HTTP API unavailable");
    (StatusCode::SERVICE_UNAVAILABLE, frame::BUS_UNAVAILABLE_MESSAGE.to_owned())
}
