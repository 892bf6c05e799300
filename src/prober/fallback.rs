//! The client of pusher-js's HTTP fallbacks: one receiver, and every send over a connection of its own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rand::Rng;
use reqwest::{Client as Http, Method, RequestBuilder, StatusCode};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::ProbeApp;
use super::client::{BrokenHop, InboundFrame, OutboundFrame, STEP_TIMEOUT};
use super::http_reader::{HttpDialect, POLL_TIMEOUT, frame_or_prelude, receive_frames};
use super::websocket;
use crate::api::Reason;
use crate::gate::Hop;
use crate::process::clock;
use crate::protocol::Transport;

/// Why a send did not arrive.
pub(super) enum SendError {
    /// The server does not know the session: it went elsewhere than the receiver.
    UnknownSession,
    /// Anything else.
    Other(String),
}

/// The sending half of a session.
#[derive(Clone)]
pub(super) struct HttpSession {
    http: Http,
    base: String,
    /// Numbers the requests, as pusher-js does; `None` where requests have no number.
    counter: Option<Arc<AtomicU64>>,
}

/// The client of every session. No idle connection is kept, so that every request is a fresh one, as a load balancer
/// sees it; making a client takes longer than a session does.
fn http_client() -> reqwest::Result<Http> {
    static CLIENT: OnceLock<Http> = OnceLock::new();
    if let Some(client) = CLIENT.get() {
        return Ok(client.clone());
    }
    let made = Http::builder().no_proxy().pool_max_idle_per_host(0).connect_timeout(STEP_TIMEOUT).build()?;
    Ok(CLIENT.get_or_init(|| made).clone())
}

impl HttpSession {
    /// A session of `SockJS`, whose requests are plain.
    pub fn open_sockjs(base: String) -> reqwest::Result<Self> {
        Ok(Self { http: http_client()?, base, counter: None })
    }

    /// Posts one message and waits for the answer.
    pub async fn send(&self, message: &str) -> Result<(), SendError> {
        self.post_message(&serde_json::json!([message]).to_string()).await
    }

    /// Posts a body as it is and waits for the answer.
    pub async fn post_message(&self, body: &str) -> Result<(), SendError> {
        let other = |error: reqwest::Error| SendError::Other(error.without_url().to_string());
        let request = self.build_request("xhr_send", false).body(body.to_owned()).timeout(STEP_TIMEOUT);
        let answer = request.send().await.map_err(other)?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            StatusCode::NOT_FOUND => Err(SendError::UnknownSession),
            status => Err(SendError::Other(format!("status {status}"))),
        }
    }

    /// A request that receives, by another method than sends have.
    pub fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("{}/{path}", self.base))
    }

    /// A request as pusher-js makes it: sends carry no protocol.
    pub fn build_request(&self, path: &str, protocol: bool) -> RequestBuilder {
        let Some(counter) = &self.counter else {
            // As browsers like it, which then need not ask before each one.
            return self.http.post(format!("{}/{path}", self.base)).header("content-type", "text/plain");
        };
        let n = counter.fetch_add(1, Ordering::Relaxed);
        let version = env!("CARGO_PKG_VERSION");
        let protocol = if protocol { format!("protocol=7&client=probe&version={version}&") } else { String::new() };
        let url = format!("{}/{path}?{protocol}t={}&n={n}", self.base, clock::now_ms());
        self.http.request(Method::POST, url).header("content-type", "application/json")
    }
}

pub(super) async fn open(
    pod: &str,
    address: SocketAddr,
    transport: Transport,
    app: &ProbeApp,
    passed: &mut impl FnMut(Hop),
) -> Result<(OutboundFrame, mpsc::Receiver<InboundFrame>, JoinHandle<()>), BrokenHop> {
    drop(websocket::connect_socket(pod, address).await?);
    passed(Hop::Connect);
    let rejected = |detail| BrokenHop::ambiguous(Hop::Handshake, Reason::HandshakeRejected, detail);
    let http = http_client().map_err(|error| rejected(format!("no HTTP client: {error}")))?;
    let base = format!("http://{address}/pusher/app/{}/{}/{}", app.key, server_part(), session_part());
    let session = HttpSession { http, base, counter: Some(Arc::new(AtomicU64::new(1))) };
    send_preflight(&session).await.map_err(|error| rejected(format!("{pod} refused the CORS preflight: {error}")))?;

    let dialect = if transport == Transport::XhrStreaming { STREAMING } else { POLLING };
    let (inbound, task) =
        receive_frames(session.clone(), dialect).await.map_err(|error| rejected(format!("{pod} {error}")))?;
    passed(Hop::Handshake);
    Ok((OutboundFrame::Http(session), inbound, task))
}

/// One long answer, whose end is the session's; the client answers each heartbeat.
const STREAMING: HttpDialect = HttpDialect {
    request: |session| session.build_request("xhr_streaming", true),
    unwrap: frame_or_prelude,
    again: false,
    echoes: true,
};

/// One answer per batch.
const POLLING: HttpDialect = HttpDialect {
    request: |session| session.build_request("xhr", true).timeout(POLL_TIMEOUT),
    unwrap: frame_or_prelude,
    again: true,
    echoes: false,
};

/// An integer below 1000, not padded, as pusher-js chooses it.
fn server_part() -> String {
    rand::rng().random_range(0..1000).to_string()
}

/// Eight letters of base 32.
pub(super) fn session_part() -> String {
    const RANDOM_ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz012345";
    let mut random = rand::rng();
    (0..8).map(|_| char::from(RANDOM_ALPHABET[random.random_range(0..RANDOM_ALPHABET.len())])).collect()
}

/// What a browser asks before it posts JSON to another origin.
async fn send_preflight(session: &HttpSession) -> Result<(), String> {
    let answer = session
        .http
        .request(Method::OPTIONS, format!("{}/xhr_streaming", session.base))
        .header("origin", "https://probe.invalid")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type")
        .timeout(STEP_TIMEOUT)
        .send()
        .await
        .map_err(|error| error.without_url().to_string())?;
    let header = |name: &str| {
        let value = answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        value.to_ascii_lowercase()
    };
    let origin = header("access-control-allow-origin");
    if !answer.status().is_success() {
        return Err(format!("status {}", answer.status()));
    }
    if !["*", "https://probe.invalid"].contains(&origin.as_str()) {
        return Err(format!("allowed origin is `{origin}`"));
    }
    if !header("access-control-allow-headers").contains("content-type") {
        return Err("content-type is not an allowed header".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_named_as_pusher_js_names_it() {
        assert!(server_part().parse::<u16>().is_ok_and(|n| n < 1000));
        let session = session_part();
        assert!(session.len() == 8 && session.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
    }
}
