//! The load: signed subscriptions, and events that carry their number and the time when they were due.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep_until;

use super::http::{HttpConnection, find_bytes};
use super::socket::ClientSocket;
use super::target::{APP_ID, APP_KEY, APP_SECRET, ServerKind, Target};
use crate::process::clock;
use crate::protocol::{Secret, rest, signature};

/// Length of an event's data, in bytes.
const EVENT_PAYLOAD_BYTES: usize = 200;

/// Bounds the lateness that counts as the client's own: its timer is as coarse as this.
const TIMER_LATENESS_MAX: Duration = Duration::from_millis(2);

/// Bounds the sockets that are opened concurrently.
pub const CONCURRENT_OPENS_MAX: usize = 64;

/// Bounds the connections that publish to the crowd.
const PUBLISHERS_MAX: usize = 8;

/// A subscription of a socket.
#[derive(Clone, Debug)]
pub struct ChannelSubscription {
    /// Name of the channel.
    pub channel: String,
    /// User id on a presence channel.
    pub user: Option<String>,
}

impl ChannelSubscription {
    /// Subscribes to one of the crowd's private channels.
    pub fn in_private_channel(channel: usize) -> Self {
        Self { channel: private_channel(channel), user: None }
    }
}

/// Name of one of the crowd's private channels.
pub fn private_channel(channel: usize) -> String {
    format!("private-bench-{channel}")
}

/// Opens a socket and subscribes to a channel; returns once the server has acknowledged the subscription.
pub async fn open_subscribed_socket(target: Target, subscription: &ChannelSubscription) -> io::Result<ClientSocket> {
    if target.kind == ServerKind::Baseline {
        return ClientSocket::open(target.address, "/ws").await;
    }
    if target.kind == ServerKind::Nchan {
        return ClientSocket::open(target.address, &format!("/sub/{}", subscription.channel)).await;
    }
    let (mut socket, id) = connect_socket(target).await?;
    subscribe_channel(&mut socket, &id, subscription).await?;
    Ok(socket)
}

/// Opens a socket, and receives its socket id.
pub async fn connect_socket(target: Target) -> io::Result<(ClientSocket, String)> {
    let path = format!("/app/{APP_KEY}?protocol=7&client=bench&version=1.0.0");
    let mut socket = ClientSocket::open(target.address, &path).await?;
    let id = socket.wait_for(parse_socket_id).await?;
    Ok((socket, id))
}

/// Subscribes to one more channel; returns once the server has acknowledged the subscription.
pub async fn subscribe_channel(
    socket: &mut ClientSocket,
    id: &str,
    subscription: &ChannelSubscription,
) -> io::Result<()> {
    socket.send(&build_subscribe_frame(id, subscription)).await?;
    socket.wait_for(parse_subscribe_reply).await?.map_err(io::Error::other)
}

/// Unsubscribes from channels; returns once the server has processed all of it.
pub async fn unsubscribe_channels(socket: &mut ClientSocket, subscriptions: &[ChannelSubscription]) -> io::Result<()> {
    for subscription in subscriptions {
        let frame = serde_json::json!({ "event": "pusher:unsubscribe", "data": { "channel": subscription.channel } });
        socket.send(&frame.to_string()).await?;
    }
    // An unsubscribe has no answer, but a server processes a client's frames in order: the pong follows it.
    socket.send(r#"{"event":"pusher:ping","data":{}}"#).await?;
    socket.wait_for(|text| find_bytes(text, b"pusher:pong").map(drop)).await
}

/// Counts the app's occupied channels over the HTTP API.
pub async fn count_occupied_channels(target: Target) -> io::Result<usize> {
    let mut connection = HttpConnection::open(target.address).await?;
    let (status, body) = connection.fetch_response("GET", &sign_request_path("GET", "channels", ""), b"").await?;
    let answer: serde_json::Value = serde_json::from_slice(&body).map_err(io::Error::other)?;
    match answer["channels"].as_object() {
        Some(channels) if status == 200 => Ok(channels.len()),
        _ => Err(io::Error::other(format!("the list of channels failed with {status}: {answer}"))),
    }
}

/// Builds a subscription, signed as an app's backend signs it.
pub fn build_subscribe_frame(socket_id: &str, subscription: &ChannelSubscription) -> String {
    let data =
        subscription.user.as_ref().map(|user| serde_json::json!({ "user_id": user, "user_info": {} }).to_string());
    let message = signature::channel_message(socket_id, &subscription.channel, data.as_deref());
    let auth = format!("{APP_KEY}:{}", signature::sign_message(&Secret::new(APP_SECRET), message.as_bytes()));
    let mut frame = serde_json::json!({
        "event": "pusher:subscribe",
        "data": { "channel": subscription.channel, "auth": auth },
    });
    if let Some(data) = data {
        frame["data"]["channel_data"] = data.into();
    }
    frame.to_string()
}

/// Parses the socket id in a `connection_established`, however often that is escaped.
pub fn parse_socket_id(text: &[u8]) -> Option<String> {
    let name = b"socket_id";
    let rest = &text[find_bytes(text, name)? + name.len()..];
    let id = rest.iter().skip_while(|byte| !byte.is_ascii_digit());
    let id: Vec<u8> = id.take_while(|byte| byte.is_ascii_digit() || **byte == b'.').copied().collect();
    String::from_utf8(id).ok().filter(|id| !id.is_empty())
}

/// Parses the outcome of a subscription; `None` for other frames.
fn parse_subscribe_reply(text: &[u8]) -> Option<Result<(), String>> {
    if find_bytes(text, b"subscription_succeeded").is_some() {
        return Some(Ok(()));
    }
    let refused = find_bytes(text, b"pusher:error").or_else(|| find_bytes(text, b"subscription_error")).is_some();
    refused.then(|| Err(String::from_utf8_lossy(text).into_owned()))
}

/// Clock of one run, in microseconds since its start.
#[derive(Clone, Copy, Debug)]
pub struct RunClock(Instant);

impl RunClock {
    /// Starts the clock at zero.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Microseconds since the start.
    pub fn now_us(self) -> u64 {
        self.micros_at(Instant::now())
    }

    fn micros_at(self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.0).as_micros()).unwrap_or(u64::MAX)
    }

    /// Time since this reading of the clock.
    pub fn elapsed_since(self, us: u64) -> Duration {
        Duration::from_micros(self.micros_at(Instant::now()).saturating_sub(us))
    }
}

/// Builds an event's data, of so many bytes: its number and its time between marks that need no escape, then padding.
pub fn build_event_payload(number: u64, us: u64, bytes: usize) -> String {
    let mut data = format!("~{number}~{us}~");
    data.extend(std::iter::repeat_n('x', bytes.saturating_sub(data.len())));
    data
}

/// Parses the number and the time in a frame; `None` when it has no event of the load.
pub fn parse_event(frame: &[u8]) -> Option<(u64, u64)> {
    let mut parts = frame.splitn(4, |byte| *byte == b'~').skip(1);
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
    Some((number()?, number()?))
}

/// Schedule of publishes at a steady rate, each channel's events in the order of their numbers.
#[derive(Clone, Debug)]
pub struct PublishSchedule {
    /// Channels that are published to, in turn.
    pub channels: Vec<String>,
    /// Publishes per second over all channels.
    pub per_second: u32,
    /// Number of events over all channels.
    pub events: u64,
}

impl PublishSchedule {
    /// Schedules a rate for a duration, rounded to whole turns over the channels, so that all get as many events.
    pub fn new(channels: Vec<String>, per_second: u32, lasts: Duration) -> Self {
        let turns = lasts.as_secs() * u64::from(per_second) / channels.len().max(1) as u64;
        Self { events: turns.max(1) * channels.len() as u64, channels, per_second }
    }

    /// Number of each channel's events.
    pub fn events_per_channel(&self) -> u64 {
        self.events / self.channels.len().max(1) as u64
    }

    /// Publishes all events, each channel's at the targets in turn.
    pub async fn run(self, targets: &[Target], clock: RunClock) -> io::Result<()> {
        let publishing = Arc::new(self);
        let publishers = PUBLISHERS_MAX.min(publishing.channels.len());
        let start = Instant::now() + Duration::from_millis(20);
        let mut tasks = tokio::task::JoinSet::new();
        for publisher in 0..publishers {
            tasks.spawn(publishing.clone().run_publisher(targets.to_vec(), clock, start, (publisher, publishers)));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok(())
    }

    /// Publishes to the channels of one publisher. An event is due at its scheduled time even if the one before is late,
    /// so that a server that does not keep up shows in its latency.
    async fn run_publisher(
        self: Arc<Self>,
        targets: Vec<Target>,
        clock: RunClock,
        start: Instant,
        (publisher, publishers): (usize, usize),
    ) -> io::Result<()> {
        let mut connections = Vec::with_capacity(targets.len());
        for target in targets {
            connections.push((HttpConnection::open(target.address).await?, target.kind));
        }
        for (turn, number) in (0..self.events_per_channel()).enumerate() {
            for channel in (publisher..self.channels.len()).step_by(publishers) {
                let nth = turn * self.channels.len() + channel;
                let due = start + Duration::from_secs(1).mul_f64(due_seconds(nth, self.per_second));
                sleep_until(due.into()).await;
                let at = (turn + channel) % connections.len().max(1);
                let Some((connection, kind)) = connections.get_mut(at) else { return Ok(()) };
                let now = Instant::now();
                let from = if now - due > TIMER_LATENESS_MAX { due } else { now };
                post_event(connection, *kind, &self.channels[channel], number, clock.micros_at(from)).await?;
            }
        }
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss)]
fn due_seconds(nth: usize, per_second: u32) -> f64 {
    nth as f64 / f64::from(per_second.max(1))
}

/// Publishes one event, due now.
pub async fn post_event_now(
    connection: &mut HttpConnection,
    kind: ServerKind,
    channel: &str,
    number: u64,
    clock: RunClock,
) -> io::Result<()> {
    post_event(connection, kind, channel, number, clock.micros_at(Instant::now())).await
}

async fn post_event(
    connection: &mut HttpConnection,
    kind: ServerKind,
    channel: &str,
    number: u64,
    us: u64,
) -> io::Result<()> {
    let data = build_event_payload(number, us, EVENT_PAYLOAD_BYTES);
    // As large as the frame that the other servers send.
    let frame = || serde_json::json!({ "event": "bench", "channel": channel, "data": data }).to_string();
    let (target, body) = match kind {
        ServerKind::Baseline => ("/publish".to_owned(), frame()),
        ServerKind::Nchan => (format!("/pub/{channel}"), frame()),
        _ => {
            let body = serde_json::json!({ "name": "bench", "channel": channel, "data": data }).to_string();
            (sign_request_path("POST", "events", &body), body)
        }
    };
    let (status, body) = connection.fetch_response("POST", &target, body.as_bytes()).await?;
    // nchan answers 201 when it has subscribers, and 202 when it has none.
    if (200..=202).contains(&status) {
        return Ok(());
    }
    Err(io::Error::other(format!("a publish failed with {status}: {}", String::from_utf8_lossy(&body))))
}

fn sign_request_path(method: &str, resource: &str, body: &str) -> String {
    let path = format!("/apps/{APP_ID}/{resource}");
    let now = clock::now_ms() / 1000;
    rest::signed_path(APP_KEY, &Secret::new(APP_SECRET), (method, &path), body.as_bytes(), now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_found_in_a_frame_whatever_surrounds_it() {
        let data = build_event_payload(12, 3_456, EVENT_PAYLOAD_BYTES);
        assert_eq!(data.len(), EVENT_PAYLOAD_BYTES);
        for frame in [
            format!(r#"{{"event":"bench","channel":"private-bench-1","data":"{data}"}}"#),
            format!(r#"{{"channel":"c","data":"\"{data}\"","event":"bench"}}"#),
        ] {
            assert_eq!(parse_event(frame.as_bytes()), Some((12, 3_456)));
        }
        assert_eq!(parse_event(br#"{"event":"pusher:ping","data":"{}"}"#), None);
        assert_eq!(parse_event(b"~1"), None);
    }

    #[test]
    fn ids_and_answers_are_found_however_they_are_escaped() {
        for text in
            [r#"{"data":"{\"socket_id\":\"1.22\"}"}"#, r#"a["{\"data\":\"{\\\"socket_id\\\":\\\"1.22\\\"}\"}"]"#]
        {
            assert_eq!(parse_socket_id(text.as_bytes()).as_deref(), Some("1.22"), "{text}");
        }
        assert_eq!(parse_socket_id(b"{}"), None);
        assert_eq!(parse_subscribe_reply(br#"{"event":"pusher_internal:subscription_succeeded"}"#), Some(Ok(())));
        assert!(matches!(parse_subscribe_reply(br#"{"event":"pusher:error"}"#), Some(Err(_))));
        assert_eq!(parse_subscribe_reply(br#"{"event":"pusher_internal:member_added"}"#), None);
    }

    #[test]
    fn every_channel_gets_as_many_events() {
        let channels: Vec<String> = (0..30).map(private_channel).collect();
        let publishing = PublishSchedule::new(channels, 200, Duration::from_secs(1));
        assert_eq!((publishing.events, publishing.events_per_channel()), (180, 6));
        let short = PublishSchedule::new((0..300).map(private_channel).collect(), 200, Duration::from_secs(1));
        assert_eq!((short.events, short.events_per_channel()), (300, 1));
    }
}
