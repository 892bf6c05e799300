//! Idle sessions over the HTTP fallbacks: memory of a streaming session, and polling interval of a polling one.

use std::io;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{sleep, timeout_at};

use super::error::BenchError;
use super::http::{HttpConnection, find_bytes};
use super::load::{CONCURRENT_OPENS_MAX, ChannelSubscription, build_subscribe_frame, parse_socket_id};
use super::machine::{HostUsage, as_f64};
use super::server::ServerProcess;
use super::sockets::measure_servers;
use super::target::{APP_KEY, Target};

/// Sessions that are opened before the first measurement, so that code and tables are loaded.
const WARM_UP_SESSION_COUNT: usize = 20;

/// Sessions that subscribe to the same channel.
const SESSIONS_PER_CHANNEL_COUNT: usize = 100;

/// Sessions whose polling interval is measured.
const POLLER_COUNT: usize = 5;

/// Bounds the wait for the answer to a subscription: a poll that lasts longer without it was idle.
const SUBSCRIBE_REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Delay before memory is read, so that a server has finished the work of opening sessions.
const SERVER_IDLE_DELAY: Duration = Duration::from_secs(2);

const CLIENT_QUERY: &str = "protocol=7&client=js&version=8.6.0";

/// Measures the memory of one idle session over `xhr_streaming`, in KiB.
pub async fn measure_streaming(
    server: &ServerProcess,
    sessions: usize,
    watch: &mut HostUsage,
) -> Result<f64, BenchError> {
    let warm = open_sessions(server, 0, WARM_UP_SESSION_COUNT).await?;
    sleep(SERVER_IDLE_DELAY).await;
    // `warm` is kept: its sessions would expire during the measurement, and their memory be subtracted.
    let start = server.rss_kib()?;
    let (memory_kib, _) = measure_servers(std::slice::from_ref(server), watch, async {
        let sessions = open_sessions(server, WARM_UP_SESSION_COUNT, sessions).await?;
        sleep(SERVER_IDLE_DELAY).await;
        let memory_kib = server.rss_kib()?.saturating_sub(start);
        drop(sessions);
        Ok(memory_kib)
    })
    .await?;
    drop(warm);
    Ok(as_f64(memory_kib) / as_f64(sessions.max(1) as u64))
}

async fn open_sessions(server: &ServerProcess, first: usize, count: usize) -> Result<Vec<HttpConnection>, BenchError> {
    let target = server.target;
    let numbers = stream::iter(first..first + count);
    let opened =
        numbers.map(|number| open_streaming_session(target, number)).buffered(CONCURRENT_OPENS_MAX).try_collect();
    opened.await.map_err(|error| BenchError::Server {
        server: server.target.kind.name(),
        step: "opening sessions",
        detail: error.to_string(),
    })
}

fn session_path(number: usize) -> String {
    format!("/pusher/app/{APP_KEY}/{}/s{number:07}", number % 1000)
}

fn session_subscription(number: usize) -> ChannelSubscription {
    ChannelSubscription::in_private_channel(number / SESSIONS_PER_CHANNEL_COUNT)
}

/// Opens a session that has subscribed, as pusher-js does it, and whose request stays open.
async fn open_streaming_session(target: Target, number: usize) -> io::Result<HttpConnection> {
    let session = session_path(number);
    let mut receive = HttpConnection::open(target.address).await?;
    receive.send("POST", &format!("{session}/xhr_streaming?{CLIENT_QUERY}&t=1&n=1"), b"").await?;
    let id = loop {
        if let Some(id) = parse_socket_id(&receive.read_through(b"\n").await?) {
            break id;
        }
    };
    send(target, &session, &build_subscribe_frame(&id, &session_subscription(number))).await?;
    receive.read_through(b"subscription_succeeded").await?;
    Ok(receive)
}

/// Sends a client's frame, on a connection of its own that is closed after it.
async fn send(target: Target, session: &str, frame: &str) -> io::Result<()> {
    let mut connection = HttpConnection::open(target.address).await?;
    let body = serde_json::json!([frame]).to_string();
    let (status, _) =
        connection.fetch_response("POST", &format!("{session}/xhr_send?t=1&n=2"), body.as_bytes()).await?;
    if status == 204 { Ok(()) } else { Err(io::Error::other(format!("a send was answered {status}"))) }
}

/// Measures the shortest time between two requests of an idle polling session, in seconds. `None` when no session
/// polled twice.
pub async fn measure_polling(server: &ServerProcess, lasts: Duration) -> Result<Option<f64>, BenchError> {
    let target = server.target;
    let polls = (0..POLLER_COUNT).map(|number| poll_session(target, number, lasts));
    let shortest = futures::future::try_join_all(polls).await.map_err(|error| BenchError::Server {
        server: server.target.kind.name(),
        step: "polling",
        detail: error.to_string(),
    })?;
    let shortest = shortest.into_iter().flatten().min();
    Ok(shortest.map(|shortest| shortest.as_secs_f64()))
}

async fn poll_session(target: Target, number: usize, lasts: Duration) -> io::Result<Option<Duration>> {
    let session = session_path(number);
    let url = format!("{session}/xhr?{CLIENT_QUERY}&t=1&n=1");
    let mut connection = HttpConnection::open(target.address).await?;
    let id = loop {
        let (_, body) = connection.fetch_response("POST", &url, b"").await?;
        if let Some(id) = parse_socket_id(&body) {
            break id;
        }
    };
    send(target, &session, &build_subscribe_frame(&id, &session_subscription(number))).await?;
    let until = Instant::now() + lasts;
    let (mut subscribed, mut last_idle_poll, mut shortest) = (false, None::<Instant>, None::<Duration>);
    loop {
        let now = Instant::now();
        // Only requests that follow an idle poll.
        if let Some(before) = last_idle_poll {
            let since = now - before;
            shortest = Some(shortest.map_or(since, |shortest| shortest.min(since)));
        }
        let Ok(answer) = timeout_at(until.into(), connection.fetch_response("POST", &url, b"")).await else {
            return Ok(shortest);
        };
        let (status, body) = answer?;
        if status != 200 {
            return Err(io::Error::other(format!("a poll was answered {status}")));
        }
        let is_subscribe_reply = find_bytes(&body, b"subscription_succeeded").is_some();
        last_idle_poll = (subscribed && !is_subscribe_reply).then_some(now);
        if !subscribed && !is_subscribe_reply && now.elapsed() > SUBSCRIBE_REPLY_TIMEOUT {
            return Err(io::Error::other("no answer to a subscription"));
        }
        subscribed |= is_subscribe_reply;
    }
}
