//! The client of `SockJS`: over WebSocket, by one long answer, by polls and by events.
//!
//! It differs from the client of pusher-js's own fallbacks in what the protocol differs in: the server is asked first what
//! it can, the first message names the app, a long answer may end, and no frame is answered.

use futures::StreamExt;
use rand::Rng;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::fallback::random_session_part;
use super::http_reader::{HttpDialect, POLL_TIMEOUT, describe_invalid_frame, receive_frames, skip_prelude};
use super::link::{BrokenHop, FrameSender, InboundFrame, STEP_TIMEOUT};
use super::link::{HttpSession, SendError};
use super::target::SessionTarget;
use super::websocket::{self, SocketFraming};
use crate::api::Reason;
use crate::gate::Hop;
use crate::prober::ProbeApp;
use crate::protocol::Transport;
use crate::protocol::fallback::FallbackFrame;

type OpenedSession = (FrameSender, mpsc::Receiver<InboundFrame>, JoinHandle<()>);

fn rejected_hop(detail: String) -> BrokenHop {
    BrokenHop::ambiguous(Hop::Handshake, Reason::HandshakeRejected, detail)
}

/// Builds the first message of a session, which names the app.
fn introduction_message(app: &ProbeApp) -> String {
    let version = env!("CARGO_PKG_VERSION");
    serde_json::json!({ "path": format!("/app/{}?protocol=7&client=probe&version={version}", app.key) }).to_string()
}

/// `SRV/SESSION`, as clients choose them: three digits, and a name.
fn session_path() -> String {
    format!("{:03}/{}", rand::rng().random_range(0..1000), random_session_part())
}

/// Opens a session over WebSocket.
pub(in crate::prober) async fn open_socket(
    target: &SessionTarget,
    app: &ProbeApp,
    passed: &mut impl FnMut(Hop),
) -> Result<OpenedSession, BrokenHop> {
    let pod = &target.name;
    let path = format!("pusher/{}/websocket", session_path());
    let mut socket = websocket::upgrade_request(target, &path, passed).await?;
    match timeout(STEP_TIMEOUT, socket.next()).await {
        Ok(Some(Ok(Message::Text(text)))) if text.as_str() == "o" => {}
        Ok(Some(Ok(other))) => return Err(rejected_hop(format!("{pod} sent `{other}` instead of an open frame"))),
        Ok(Some(Err(error))) => return Err(rejected_hop(format!("{pod} did not open the session: {error}"))),
        Ok(None) => return Err(rejected_hop(format!("{pod} closed the session before it was open"))),
        Err(_) => return Err(rejected_hop(format!("{pod} sent no open frame in {} s", STEP_TIMEOUT.as_secs()))),
    }
    passed(Hop::Handshake);
    let framing = SocketFraming {
        write: |message| serde_json::json!([message]).to_string(),
        read: |text| match FallbackFrame::parse(text) {
            Some(FallbackFrame::Messages(messages)) => messages.into_iter().map(InboundFrame::Message).collect(),
            Some(FallbackFrame::Heartbeat) => vec![],
            Some(FallbackFrame::Close(code, reason)) => vec![InboundFrame::Closed(format!("{code} {reason}"))],
            Some(FallbackFrame::Open) => vec![InboundFrame::Closed("the session was opened again".to_owned())],
            None => vec![InboundFrame::Closed(describe_invalid_frame(text))],
        },
    };
    let (outbound, inbound, task) = websocket::pump_frames(socket, framing);
    if let FrameSender::Websocket(sender) = &outbound {
        // A reader that has ended says why.
        let _ = sender.send(introduction_message(app)).await;
    }
    Ok((outbound, inbound, task))
}

/// Opens a session over HTTP.
pub(in crate::prober) async fn open(
    target: &SessionTarget,
    transport: Transport,
    app: &ProbeApp,
    passed: &mut impl FnMut(Hop),
) -> Result<OpenedSession, BrokenHop> {
    let pod = &target.name;
    drop(target.connect().await?);
    passed(Hop::Connect);
    let base = target.http_url("pusher");
    let http = target.http_client().map_err(|error| rejected_hop(format!("no HTTP client: {error}")))?;
    let server = HttpSession::of_sockjs(http.clone(), base.clone());
    fetch_info(&server).await.map_err(|error| rejected_hop(format!("{pod} does not say what it can: {error}")))?;
    let session = HttpSession::of_sockjs(http, format!("{base}/{}", session_path()));
    let received = receive_frames(session.clone(), http_dialect(transport)).await;
    let (inbound, task) = received.map_err(|error| rejected_hop(format!("{pod} {error}")))?;
    passed(Hop::Handshake);
    if let Err(error) = session.send(&introduction_message(app)).await {
        task.abort();
        return Err(match error {
            SendError::UnknownSession => {
                let detail = format!("a send did not find its session at {pod}");
                BrokenHop::decisive(Hop::Session, Reason::AffinityBroken, detail)
            }
            SendError::Refused(status) => {
                let detail = format!("{pod} refused the first message with status {status}");
                BrokenHop::decisive(Hop::Session, Reason::SessionRefused, detail)
            }
            SendError::Other(error) => {
                let detail = format!("{pod} was not told which app: {error}");
                BrokenHop::ambiguous(Hop::Session, Reason::SessionRefused, detail)
            }
        });
    }
    Ok((FrameSender::Http(session), inbound, task))
}

/// Fetches `/info` as a browser does from another origin.
async fn fetch_info(server: &HttpSession) -> Result<(), String> {
    let request = server.get("info").header("origin", "https://probe.invalid").timeout(STEP_TIMEOUT);
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

/// The answers of an HTTP transport. No frame is answered, and a long answer may end.
fn http_dialect(transport: Transport) -> HttpDialect {
    let polling = HttpDialect {
        request: |session| session.build_request("xhr", false).timeout(POLL_TIMEOUT),
        unwrap_line: skip_prelude,
        polls_again: true,
        echoes_heartbeats: false,
    };
    match transport {
        Transport::SockjsEventsource => {
            HttpDialect { request: |session| session.get("eventsource"), unwrap_line: extract_event_frame, ..polling }
        }
        Transport::SockjsXhrStreaming => {
            HttpDialect { request: |session| session.build_request("xhr_streaming", false), ..polling }
        }
        _ => polling,
    }
}

/// The frame in a line of events; `None` for what stands between them.
fn extract_event_frame(line: &str) -> Option<String> {
    let data = line.trim_end_matches('\r').strip_prefix("data: ")?;
    Some(data.replace("%25", "%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_events_holds_a_frame_or_nothing() {
        for (line, frame) in [
            ("\r", None),
            ("data: o\r", Some("o")),
            ("data: a[\"100 %25\"]\r", Some("a[\"100 %\"]")),
            (": a comment", None),
        ] {
            assert_eq!(extract_event_frame(line).as_deref(), frame, "{line}");
        }
    }

    #[test]
    fn a_session_is_named_as_sockjs_clients_name_it() {
        let name = session_path();
        let (server, session) = name.split_once('/').expect("two parts");
        assert!(server.len() == 3 && server.parse::<u16>().is_ok() && session.len() == 8, "{name}");
    }
}
