//! What is sent: subscriptions that are signed, and events that carry their number and the time when they were due.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep_until;

use super::http::{Connection, find};
use super::server::{APP, KEY, Kind, SECRET};
use super::socket::Socket;
use crate::protocol::{Secret, rest, signature};
use crate::runtime::clock;

/// Data of an event, in bytes.
const DATA: usize = 200;

/// The client's timer is as coarse as this; what it is late by is not the server's.
const TIMER: Duration = Duration::from_millis(2);

/// Sockets that are being opened at one time.
pub const OPENING: usize = 64;

/// Connections that publish to the crowd.
const PUBLISHERS: usize = 8;

/// Where load goes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Which server it is.
    pub kind: Kind,
    /// Where it listens.
    pub address: SocketAddr,
}

/// What a socket enters.
#[derive(Clone, Debug)]
pub struct Place {
    /// The channel.
    pub channel: String,
    /// On a presence channel, as whom.
    pub user: Option<String>,
}

impl Place {
    /// A private channel of the crowd.
    pub fn private(channel: usize) -> Self {
        Self { channel: private(channel), user: None }
    }
}

/// The name of a private channel.
pub fn private(channel: usize) -> String {
    format!("private-bench-{channel}")
}

/// Opens a socket and enters a channel; returns once the server said yes.
pub async fn enter(target: Target, place: &Place) -> io::Result<Socket> {
    if target.kind == Kind::Bare {
        return Socket::open(target.address, "/ws").await;
    }
    let (mut socket, id) = connect(target).await?;
    go_in(&mut socket, &id, place).await?;
    Ok(socket)
}

/// Opens a socket, and hears its id.
pub async fn connect(target: Target) -> io::Result<(Socket, String)> {
    let path = format!("/app/{KEY}?protocol=7&client=bench&version=1.0.0");
    let mut socket = Socket::open(target.address, &path).await?;
    let id = socket.wait(socket_id).await?;
    Ok((socket, id))
}

/// Enters one more channel; returns once the server said yes.
pub async fn go_in(socket: &mut Socket, id: &str, place: &Place) -> io::Result<()> {
    socket.send(&subscribe(id, place)).await?;
    socket.wait(subscribed).await?.map_err(io::Error::other)
}

/// Leaves channels; returns once the server has done so.
pub async fn go_out(socket: &mut Socket, places: &[Place]) -> io::Result<()> {
    for place in places {
        let frame = serde_json::json!({ "event": "pusher:unsubscribe", "data": { "channel": place.channel } });
        socket.send(&frame.to_string()).await?;
    }
    // Nothing answers that, but what a client says is taken in its order.
    socket.send(r#"{"event":"pusher:ping","data":{}}"#).await?;
    socket.wait(|text| find(text, b"pusher:pong").map(drop)).await
}

/// How many channels of the app are occupied, as the HTTP API tells.
pub async fn occupied(target: Target) -> io::Result<usize> {
    let mut connection = Connection::open(target.address).await?;
    let (status, body) = connection.ask("GET", &signed("GET", "channels", ""), b"").await?;
    let answer: serde_json::Value = serde_json::from_slice(&body).map_err(io::Error::other)?;
    match answer["channels"].as_object() {
        Some(channels) if status == 200 => Ok(channels.len()),
        _ => Err(io::Error::other(format!("the list of channels was answered {status}: {answer}"))),
    }
}

/// The request to enter a channel, signed as an app's backend signs it.
pub fn subscribe(socket_id: &str, place: &Place) -> String {
    let data = place.user.as_ref().map(|user| serde_json::json!({ "user_id": user, "user_info": {} }).to_string());
    let message = signature::channel_message(socket_id, &place.channel, data.as_deref());
    let auth = format!("{KEY}:{}", signature::sign(&Secret::new(SECRET), message.as_bytes()));
    let mut frame = serde_json::json!({
        "event": "pusher:subscribe",
        "data": { "channel": place.channel, "auth": auth },
    });
    if let Some(data) = data {
        frame["data"]["channel_data"] = data.into();
    }
    frame.to_string()
}

/// The id in a `connection_established`, however often that is escaped.
pub fn socket_id(text: &[u8]) -> Option<String> {
    let name = b"socket_id";
    let rest = &text[find(text, name)? + name.len()..];
    let id = rest.iter().skip_while(|byte| !byte.is_ascii_digit());
    let id: Vec<u8> = id.take_while(|byte| byte.is_ascii_digit() || **byte == b'.').copied().collect();
    String::from_utf8(id).ok().filter(|id| !id.is_empty())
}

/// What a server said to a subscription, if this is its answer.
fn subscribed(text: &[u8]) -> Option<Result<(), String>> {
    if find(text, b"subscription_succeeded").is_some() {
        return Some(Ok(()));
    }
    let refused = find(text, b"pusher:error").or_else(|| find(text, b"subscription_error")).is_some();
    refused.then(|| Err(String::from_utf8_lossy(text).into_owned()))
}

/// The time of one run, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// From now on.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    fn us(self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.0).as_micros()).unwrap_or(u64::MAX)
    }

    /// How long ago that was.
    pub fn since(self, us: u64) -> Duration {
        Duration::from_micros(self.us(Instant::now()).saturating_sub(us))
    }
}

/// An event's data: its number and its time between marks that need no escape, then padding.
fn event_data(number: u64, us: u64) -> String {
    let mut data = format!("~{number}~{us}~");
    data.extend(std::iter::repeat_n('x', DATA.saturating_sub(data.len())));
    data
}

/// The number and the time in a frame, if it carries an event of ours.
pub fn event(frame: &[u8]) -> Option<(u64, u64)> {
    let mut parts = frame.splitn(4, |byte| *byte == b'~').skip(1);
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
    Some((number()?, number()?))
}

/// Publishing at a steady pace, each channel's events in the order of their numbers.
#[derive(Clone, Debug)]
pub struct Publishing {
    /// Where to, in turn.
    pub channels: Vec<String>,
    /// Over all of them.
    pub per_second: u32,
    /// How many events in all.
    pub events: u64,
}

impl Publishing {
    /// A pace for some time, to whole turns over the channels, so that all of them get as many.
    pub fn new(channels: Vec<String>, per_second: u32, lasts: Duration) -> Self {
        let turns = lasts.as_secs() * u64::from(per_second) / channels.len().max(1) as u64;
        Self { events: turns.max(1) * channels.len() as u64, channels, per_second }
    }

    /// Events of each channel.
    pub fn per_channel(&self) -> u64 {
        self.events / self.channels.len().max(1) as u64
    }

    /// Publishes all of them: each channel's events at the targets in turn.
    pub async fn run(self, targets: &[Target], clock: Clock) -> io::Result<()> {
        let publishing = Arc::new(self);
        let publishers = PUBLISHERS.min(publishing.channels.len());
        let start = Instant::now() + Duration::from_millis(20);
        let mut tasks = tokio::task::JoinSet::new();
        for publisher in 0..publishers {
            tasks.spawn(publishing.clone().part(targets.to_vec(), clock, start, (publisher, publishers)));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok(())
    }

    /// The channels of one publisher. An event is due when the pace says so, also when the one before is late: a server
    /// that does not keep up shows in its latency.
    async fn part(
        self: Arc<Self>,
        targets: Vec<Target>,
        clock: Clock,
        start: Instant,
        (publisher, publishers): (usize, usize),
    ) -> io::Result<()> {
        let mut connections = Vec::with_capacity(targets.len());
        for target in targets {
            connections.push((Connection::open(target.address).await?, target.kind));
        }
        for (turn, number) in (0..self.per_channel()).enumerate() {
            for channel in (publisher..self.channels.len()).step_by(publishers) {
                let nth = turn * self.channels.len() + channel;
                let due = start + Duration::from_secs(1).mul_f64(nth_second(nth, self.per_second));
                sleep_until(due.into()).await;
                let at = (turn + channel) % connections.len().max(1);
                let Some((connection, kind)) = connections.get_mut(at) else { return Ok(()) };
                let now = Instant::now();
                let from = if now - due > TIMER { due } else { now };
                publish(connection, *kind, &self.channels[channel], number, clock.us(from)).await?;
            }
        }
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss)]
fn nth_second(nth: usize, per_second: u32) -> f64 {
    nth as f64 / f64::from(per_second.max(1))
}

/// Publishes one event that is due now.
pub async fn publish_now(
    connection: &mut Connection,
    kind: Kind,
    channel: &str,
    number: u64,
    clock: Clock,
) -> io::Result<()> {
    publish(connection, kind, channel, number, clock.us(Instant::now())).await
}

async fn publish(connection: &mut Connection, kind: Kind, channel: &str, number: u64, us: u64) -> io::Result<()> {
    let data = event_data(number, us);
    let (target, body) = if kind == Kind::Bare {
        // As large as the frame that the others send.
        let frame = serde_json::json!({ "event": "bench", "channel": channel, "data": data });
        ("/publish".to_owned(), frame.to_string())
    } else {
        let body = serde_json::json!({ "name": "bench", "channel": channel, "data": data }).to_string();
        (signed("POST", "events", &body), body)
    };
    let (status, body) = connection.ask("POST", &target, body.as_bytes()).await?;
    if status == 200 {
        return Ok(());
    }
    Err(io::Error::other(format!("a publish was answered {status}: {}", String::from_utf8_lossy(&body))))
}

fn signed(method: &str, what: &str, body: &str) -> String {
    let path = format!("/apps/{APP}/{what}");
    let now = clock::now_ms() / 1000;
    let query = rest::signed_query(KEY, &Secret::new(SECRET), (method, &path), body.as_bytes(), now);
    // Every value is a number or hexadecimal, so nothing needs an escape.
    let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{path}?{}", query.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_found_in_a_frame_whatever_surrounds_it() {
        let data = event_data(12, 3_456);
        assert_eq!(data.len(), DATA);
        for frame in [
            format!(r#"{{"event":"bench","channel":"private-bench-1","data":"{data}"}}"#),
            format!(r#"{{"channel":"c","data":"\"{data}\"","event":"bench"}}"#),
        ] {
            assert_eq!(event(frame.as_bytes()), Some((12, 3_456)));
        }
        assert_eq!(event(br#"{"event":"pusher:ping","data":"{}"}"#), None);
        assert_eq!(event(b"~1"), None);
    }

    #[test]
    fn ids_and_answers_are_found_however_they_are_escaped() {
        for text in
            [r#"{"data":"{\"socket_id\":\"1.22\"}"}"#, r#"a["{\"data\":\"{\\\"socket_id\\\":\\\"1.22\\\"}\"}"]"#]
        {
            assert_eq!(socket_id(text.as_bytes()).as_deref(), Some("1.22"), "{text}");
        }
        assert_eq!(socket_id(b"{}"), None);
        assert_eq!(subscribed(br#"{"event":"pusher_internal:subscription_succeeded"}"#), Some(Ok(())));
        assert!(matches!(subscribed(br#"{"event":"pusher:error"}"#), Some(Err(_))));
        assert_eq!(subscribed(br#"{"event":"pusher_internal:member_added"}"#), None);
    }

    #[test]
    fn every_channel_gets_as_many_events() {
        let channels: Vec<String> = (0..30).map(private).collect();
        let publishing = Publishing::new(channels, 200, Duration::from_secs(1));
        assert_eq!((publishing.events, publishing.per_channel()), (180, 6));
        let short = Publishing::new((0..300).map(private).collect(), 200, Duration::from_secs(1));
        assert_eq!((short.events, short.per_channel()), (300, 1));
    }
}
