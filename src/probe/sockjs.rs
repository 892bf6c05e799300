//! The client of `SockJS`: over WebSocket, by one long answer, by polls and by events.
//!
//! It differs from the client of pusher-js's own fallbacks in what the protocol differs in: the server is asked first what
//! it can, the first message names the app, a long answer may end, and no frame is answered.

use std::net::SocketAddr;

use futures::StreamExt;
use rand::Rng;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::ProbeApp;
use super::client::{Broken, Inbound, Outbound, QUEUE, STEP};
use super::fallback::{HttpSession, Lines, POLL_TIMEOUT, SendError, opened_in_time, session_part};
use super::websocket::{self, Framing};
use crate::api::Reason;
use crate::gate::Hop;
use crate::protocol::Transport;
use crate::protocol::fallback::Frame;

type Opened = (Outbound, mpsc::Receiver<Inbound>, JoinHandle<()>);

fn rejected(detail: String) -> Broken {
    Broken::ambiguous(Hop::Handshake, Reason::HandshakeRejected, detail)
}

/// What a session says first.
fn introduction(app: &ProbeApp) -> String {
    let version = env!("CARGO_PKG_VERSION");
    serde_json::json!({ "path": format!("/app/{}?protocol=7&client=probe&version={version}", app.key) }).to_string()
}

/// `SRV/SESSION`, as clients choose them: three digits, and a name.
fn session() -> String {
    format!("{:03}/{}", rand::rng().random_range(0..1000), session_part())
}

/// Opens a session over WebSocket.
pub(super) async fn open_socket(
    pod: &str,
    address: SocketAddr,
    app: &ProbeApp,
    passed: &mut impl FnMut(Hop),
) -> Result<Opened, Broken> {
    let mut socket = websocket::upgrade(pod, address, &format!("pusher/{}/websocket", session()), passed).await?;
    match timeout(STEP, socket.next()).await {
        Ok(Some(Ok(Message::Text(text)))) if text.as_str() == "o" => {}
        Ok(Some(Ok(other))) => return Err(rejected(format!("{pod} sent `{other}` instead of an open frame"))),
        Ok(Some(Err(error))) => return Err(rejected(format!("{pod} did not open the session: {error}"))),
        Ok(None) => return Err(rejected(format!("{pod} closed the session before it was open"))),
        Err(_) => return Err(rejected(format!("{pod} sent no open frame in {} s", STEP.as_secs()))),
    }
    passed(Hop::Handshake);
    let framing = Framing {
        write: |message| serde_json::json!([message]).to_string(),
        read: |text| match Frame::parse(text) {
            Some(Frame::Messages(messages)) => messages.into_iter().map(Inbound::Message).collect(),
            Some(Frame::Heartbeat) => vec![],
            Some(Frame::Close(code, reason)) => vec![Inbound::Closed(format!("{code} {reason}"))],
            Some(Frame::Open) => vec![Inbound::Closed("the session was opened again".to_owned())],
            None => vec![Inbound::Closed(no_frame(text))],
        },
    };
    let (outbound, inbound, task) = websocket::carry(socket, framing);
    if let Outbound::Websocket(sender) = &outbound {
        // A reader that has ended says why.
        let _ = sender.send(introduction(app)).await;
    }
    Ok((outbound, inbound, task))
}

/// Opens a session over HTTP.
pub(super) async fn open(
    pod: &str,
    address: SocketAddr,
    transport: Transport,
    app: &ProbeApp,
    passed: &mut impl FnMut(Hop),
) -> Result<Opened, Broken> {
    drop(websocket::connect(pod, address).await?);
    passed(Hop::Connect);
    let base = format!("http://{address}/pusher");
    let no_client = |error| rejected(format!("no HTTP client: {error}"));
    let server = HttpSession::sockjs(base.clone()).map_err(no_client)?;
    info(&server).await.map_err(|error| rejected(format!("{pod} does not say what it can: {error}")))?;
    let session = HttpSession::sockjs(format!("{base}/{}", session())).map_err(no_client)?;
    let (arrived, inbound) = mpsc::channel(QUEUE);
    let (opened, first) = oneshot::channel();
    let reader = Reader { session: session.clone(), transport, arrived, opened: Some(opened) };
    let task = tokio::spawn(reader.run());
    if let Err(error) = opened_in_time(first).await {
        task.abort();
        return Err(rejected(format!("{pod} {error}")));
    }
    passed(Hop::Handshake);
    if let Err(error) = session.send(&introduction(app)).await {
        task.abort();
        return Err(match error {
            SendError::UnknownSession => {
                let detail = format!("a send did not find its session at {pod}");
                Broken::decisive(Hop::Session, Reason::AffinityBroken, detail)
            }
            SendError::Other(error) => {
                let detail = format!("{pod} was not told which app: {error}");
                Broken::ambiguous(Hop::Session, Reason::SessionRefused, detail)
            }
        });
    }
    Ok((Outbound::Http(session), inbound, task))
}

/// What a browser asks first, from another origin.
async fn info(server: &HttpSession) -> Result<(), String> {
    let request = server.get("info").header("origin", "https://probe.invalid").timeout(STEP);
    let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
    if !answer.status().is_success() {
        return Err(format!("status {}", answer.status()));
    }
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (origin, cache) = (header("access-control-allow-origin"), header("cache-control"));
    if !["*", "https://probe.invalid"].contains(&origin) {
        return Err(format!("allowed origin is `{origin}`"));
    }
    if !cache.contains("no-store") {
        return Err(format!("it may be cached: `{cache}`"));
    }
    let text = answer.text().await.map_err(|error| error.without_url().to_string())?;
    let info: serde_json::Value = serde_json::from_str(&text).map_err(|error| format!("no JSON: {error}"))?;
    if info["entropy"].is_u64() { Ok(()) } else { Err("its info has no entropy".to_owned()) }
}

/// The receiving half.
struct Reader {
    session: HttpSession,
    transport: Transport,
    arrived: mpsc::Sender<Inbound>,
    opened: Option<oneshot::Sender<Result<(), String>>>,
}

impl Reader {
    /// Receives until the session ends, one answer after another.
    async fn run(mut self) {
        loop {
            match self.receive().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    match self.opened.take() {
                        // Nobody waits any more when the journey was cut.
                        Some(opened) => drop(opened.send(Err(error))),
                        None => drop(self.arrived.send(Inbound::Closed(error)).await),
                    }
                    return;
                }
            }
        }
    }

    /// One answer; whether there is to be another.
    async fn receive(&mut self) -> Result<bool, String> {
        let request = match self.transport {
            Transport::SockjsEventsource => self.session.get("eventsource"),
            Transport::SockjsXhrStreaming => self.session.request("xhr_streaming", false),
            _ => self.session.request("xhr", false).timeout(POLL_TIMEOUT),
        };
        let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
        if !answer.status().is_success() {
            return Err(format!("status {}", answer.status()));
        }
        let mut lines = Lines::default();
        let mut body = answer.bytes_stream();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| error.without_url().to_string())?;
            for line in lines.push(&chunk)? {
                if !self.line(&line).await? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// One line; whether the session goes on.
    async fn line(&mut self, line: &str) -> Result<bool, String> {
        let Some(text) = unwrapped(self.transport, line) else { return Ok(true) };
        match Frame::parse(&text) {
            Some(Frame::Open) => match self.opened.take() {
                Some(opened) => {
                    // As above.
                    let _ = opened.send(Ok(()));
                    Ok(true)
                }
                None => Err("the server lost the session: it opened it again".to_owned()),
            },
            Some(Frame::Heartbeat) => Ok(true),
            Some(Frame::Messages(messages)) => {
                for message in messages {
                    if self.arrived.send(Inbound::Message(message)).await.is_err() {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Some(Frame::Close(code, reason)) => Err(format!("{code} {reason}")),
            None => Err(no_frame(&text)),
        }
    }
}

/// The frame in a line; `None` for what stands between frames.
fn unwrapped(transport: Transport, line: &str) -> Option<String> {
    if transport == Transport::SockjsEventsource {
        let data = line.trim_end_matches('\r').strip_prefix("data: ")?;
        return Some(data.replace("%25", "%"));
    }
    // The prelude is one long heartbeat.
    (!line.starts_with("hh")).then(|| line.to_owned())
}

fn no_frame(text: &str) -> String {
    format!("sent `{}`, which is no frame", text.chars().take(80).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_a_frame_or_nothing() {
        let (events, lines) = (Transport::SockjsEventsource, Transport::SockjsXhr);
        for (transport, line, frame) in [
            (events, "\r", None),
            (events, "data: o\r", Some("o")),
            (events, "data: a[\"100 %25\"]\r", Some("a[\"100 %\"]")),
            (events, ": a comment", None),
            (lines, "o", Some("o")),
            (lines, "h", Some("h")),
            (lines, &"h".repeat(2048), None),
            (lines, "a[\"%25\"]", Some("a[\"%25\"]")),
        ] {
            assert_eq!(unwrapped(transport, line).as_deref(), frame, "{line}");
        }
    }

    #[test]
    fn a_session_is_named_as_sockjs_clients_name_it() {
        let name = session();
        let (server, session) = name.split_once('/').expect("two parts");
        assert!(server.len() == 3 && server.parse::<u16>().is_ok() && session.len() == 8, "{name}");
    }
}
