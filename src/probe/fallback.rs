//! The client of pusher-js's HTTP fallbacks: one receiver, and every send over a connection of its own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt;
use rand::Rng;
use reqwest::{Client as Http, Method, RequestBuilder, StatusCode};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::ProbeApp;
use super::client::{Broken, Inbound, Outbound, QUEUE, STEP};
use super::websocket;
use crate::api::Reason;
use crate::gate::Hop;
use crate::protocol::Transport;
use crate::protocol::fallback::Frame;
use crate::runtime::clock;

/// A poll is answered by the server's heartbeat at the latest, which is every 25 s.
pub(super) const POLL_TIMEOUT: Duration = Duration::from_mins(1);

/// Most bytes of an unfinished frame.
const MAX_FRAME: usize = 1024 * 1024;

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
fn client() -> reqwest::Result<Http> {
    static CLIENT: OnceLock<Http> = OnceLock::new();
    if let Some(client) = CLIENT.get() {
        return Ok(client.clone());
    }
    let made = Http::builder().no_proxy().pool_max_idle_per_host(0).connect_timeout(STEP).build()?;
    Ok(CLIENT.get_or_init(|| made).clone())
}

impl HttpSession {
    /// A session of `SockJS`, whose requests are plain.
    pub fn sockjs(base: String) -> reqwest::Result<Self> {
        Ok(Self { http: client()?, base, counter: None })
    }

    /// Posts one message and waits for the answer.
    pub async fn send(&self, message: &str) -> Result<(), SendError> {
        self.post(&serde_json::json!([message]).to_string()).await
    }

    async fn post(&self, body: &str) -> Result<(), SendError> {
        let other = |error: reqwest::Error| SendError::Other(error.without_url().to_string());
        let request = self.request("xhr_send", false).body(body.to_owned()).timeout(STEP);
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
    pub fn request(&self, path: &str, protocol: bool) -> RequestBuilder {
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
) -> Result<(Outbound, mpsc::Receiver<Inbound>, JoinHandle<()>), Broken> {
    drop(websocket::connect(pod, address).await?);
    passed(Hop::Connect);
    let rejected = |detail| Broken::ambiguous(Hop::Handshake, Reason::HandshakeRejected, detail);
    let http = client().map_err(|error| rejected(format!("no HTTP client: {error}")))?;
    let base = format!("http://{address}/pusher/app/{}/{}/{}", app.key, server_part(), session_part());
    let session = HttpSession { http, base, counter: Some(Arc::new(AtomicU64::new(1))) };
    preflight(&session).await.map_err(|error| rejected(format!("{pod} refused the CORS preflight: {error}")))?;

    let path = if transport == Transport::XhrStreaming { "xhr_streaming" } else { "xhr" };
    let (arrived, inbound) = mpsc::channel(QUEUE);
    let (opened, first) = oneshot::channel();
    let reader = Reader { session: session.clone(), path, arrived, opened: Some(opened) };
    let task = tokio::spawn(reader.run());
    if let Err(error) = opened_in_time(first).await {
        task.abort();
        return Err(rejected(format!("{pod} {error}")));
    }
    passed(Hop::Handshake);
    Ok((Outbound::Http(session), inbound, task))
}

/// Waits for the open frame.
pub(super) async fn opened_in_time(first: oneshot::Receiver<Result<(), String>>) -> Result<(), String> {
    match tokio::time::timeout(STEP, first).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => Err(format!("did not open the session: {error}")),
        Ok(Err(_)) | Err(_) => {
            Err(format!("sent no open frame in {} s: is there a proxy that buffers?", STEP.as_secs()))
        }
    }
}

/// An integer below 1000, not padded, as pusher-js chooses it.
fn server_part() -> String {
    rand::rng().random_range(0..1000).to_string()
}

/// Eight letters of base 32.
pub(super) fn session_part() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz012345";
    let mut random = rand::rng();
    (0..8).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
}

/// What a browser asks before it posts JSON to another origin.
async fn preflight(session: &HttpSession) -> Result<(), String> {
    let answer = session
        .http
        .request(Method::OPTIONS, format!("{}/xhr_streaming", session.base))
        .header("origin", "https://probe.invalid")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type")
        .timeout(STEP)
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

/// The receiving half.
struct Reader {
    session: HttpSession,
    path: &'static str,
    arrived: mpsc::Sender<Inbound>,
    opened: Option<oneshot::Sender<Result<(), String>>>,
}

impl Reader {
    /// Receives until the session ends: one long answer, or one poll after another.
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

    /// One request; whether there is to be another.
    async fn receive(&mut self) -> Result<bool, String> {
        let request = self.session.request(self.path, true);
        let request = if self.path == "xhr" { request.timeout(POLL_TIMEOUT) } else { request };
        let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
        if !answer.status().is_success() {
            return Err(format!("status {}", answer.status()));
        }
        let mut lines = Lines::default();
        let mut body = answer.bytes_stream();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| error.without_url().to_string())?;
            for line in lines.push(&chunk)? {
                if !self.frame(&line).await? {
                    return Ok(false);
                }
            }
        }
        if self.path == "xhr" { Ok(true) } else { Err("the streaming answer ended".to_owned()) }
    }

    /// One frame; whether the session goes on.
    async fn frame(&mut self, line: &str) -> Result<bool, String> {
        match Frame::parse(line) {
            Some(Frame::Open) => match self.opened.take() {
                Some(opened) => {
                    // As above.
                    let _ = opened.send(Ok(()));
                    Ok(true)
                }
                None => Err("the server lost the session: it opened it again".to_owned()),
            },
            // A streaming client answers each heartbeat; a polling client ignores it.
            Some(Frame::Heartbeat) if self.path == "xhr" => Ok(true),
            Some(Frame::Heartbeat) => self.session.post("[]").await.map(|()| true).map_err(|error| match error {
                SendError::UnknownSession => "the session is unknown".to_owned(),
                SendError::Other(error) => error,
            }),
            Some(Frame::Messages(messages)) => {
                for message in messages {
                    if self.arrived.send(Inbound::Message(message)).await.is_err() {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Some(Frame::Close(code, reason)) => Err(format!("{code} {reason}")),
            None if line.bytes().all(|byte| byte == b'h') => Ok(true),
            None => Err(format!("sent `{}`, which is no frame", line.chars().take(80).collect::<String>())),
        }
    }
}

/// Puts lines together from chunks that end anywhere.
#[derive(Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    pub fn push(&mut self, chunk: &[u8]) -> Result<Vec<String>, String> {
        self.rest.extend_from_slice(chunk);
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let text = std::str::from_utf8(&line[..end]).map_err(|_| "sent a frame that is not UTF-8".to_owned())?;
            if !text.is_empty() {
                lines.push(text.to_owned());
            }
        }
        if self.rest.len() > MAX_FRAME {
            return Err(format!("sent a frame of more than {MAX_FRAME} bytes"));
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_wherever_chunks_end() {
        let text = "o\na[\"ü\"]\n\nh\n".as_bytes();
        for size in 1..=text.len() {
            let mut lines = Lines::default();
            let found: Vec<String> = text.chunks(size).flat_map(|chunk| lines.push(chunk).expect("lines")).collect();
            assert_eq!(found, ["o", "a[\"ü\"]", "h"], "chunks of {size}");
        }
        assert!(Lines::default().push(&vec![b'x'; MAX_FRAME + 1]).is_err());
    }

    #[test]
    fn a_session_is_named_as_pusher_js_names_it() {
        assert!(server_part().parse::<u16>().is_ok_and(|n| n < 1000));
        let session = session_part();
        assert!(session.len() == 8 && session.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
    }
}
