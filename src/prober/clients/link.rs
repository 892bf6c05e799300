//! The types that the clients of all transports share: frames in and out, a broken hop, and a session over HTTP.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::{Client as Http, Method, RequestBuilder, StatusCode};
use tokio::sync::mpsc;

use crate::api::Reason;
use crate::gate::Hop;
use crate::process::clock;

/// Queue length of received frames; a journey receives about a dozen.
pub(in crate::prober) const FRAME_QUEUE_LEN: usize = 256;

/// Timeout of one hop while connecting.
pub(in crate::prober) const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// A hop that failed.
#[derive(Clone, Debug)]
pub(in crate::prober) struct BrokenHop {
    /// The hop that failed.
    pub hop: Hop,
    /// The reason for conditions and metrics.
    pub reason: Reason,
    /// The detail for the message.
    pub detail: String,
    /// Whether it was measured wrong, rather than missing.
    pub decisive: bool,
    /// The dispatcher that had read the event and did not deliver it.
    pub dispatcher: Option<String>,
}

impl BrokenHop {
    pub fn ambiguous(hop: Hop, reason: Reason, detail: String) -> Self {
        Self { hop, reason, detail, decisive: false, dispatcher: None }
    }

    pub fn decisive(hop: Hop, reason: Reason, detail: String) -> Self {
        Self { hop, reason, detail, decisive: true, dispatcher: None }
    }

    /// Whether this proves a fault. That a server does not know a session is no proof where the session's pod may have
    /// gone: that of a second session, or the one to which a path led.
    pub fn is_proof_of_fault(&self, may_have_gone: bool) -> bool {
        self.decisive && !(may_have_gone && self.reason == Reason::AffinityBroken)
    }
}

/// The sending half of a session.
pub(in crate::prober) enum FrameSender {
    /// Into the socket's writer.
    Websocket(mpsc::Sender<String>),
    /// Each in a request of its own.
    Http(HttpSession),
}

/// An item from the reader of a session.
pub(in crate::prober) enum InboundFrame {
    /// A frame of the server.
    Message(String),
    /// The session is over.
    Closed(String),
}

/// An error of a send over HTTP.
pub(in crate::prober) enum SendError {
    /// The server does not know the session: the send was routed to another pod than the receiving request.
    UnknownSession,
    /// The server, or a web ACL in front of it, refuses the message itself.
    Refused(StatusCode),
    /// Another error, as text.
    Other(String),
}

/// The sending half of a session.
#[derive(Clone)]
pub(in crate::prober) struct HttpSession {
    pub(super) http: Http,
    pub(super) base: String,
    /// Numbers the requests, as pusher-js does; `None` where requests have no number.
    counter: Option<Arc<AtomicU64>>,
}

/// The client of every session without a host. No idle connection is kept, so that every request is a fresh one, as a load balancer
/// sees it; making a client takes longer than a session does.
pub(super) fn shared_http_client() -> reqwest::Result<Http> {
    static SHARED_CLIENT: OnceLock<Http> = OnceLock::new();
    if let Some(client) = SHARED_CLIENT.get() {
        return Ok(client.clone());
    }
    let made = Http::builder().no_proxy().pool_max_idle_per_host(0).connect_timeout(STEP_TIMEOUT).build()?;
    Ok(SHARED_CLIENT.get_or_init(|| made).clone())
}

impl HttpSession {
    /// A session of pusher-js's fallbacks, whose requests are numbered.
    pub fn of_pusher(http: Http, base: String) -> Self {
        Self { http, base, counter: Some(Arc::new(AtomicU64::new(1))) }
    }

    /// A session of `SockJS`, whose requests are plain.
    pub fn of_sockjs(http: Http, base: String) -> Self {
        Self { http, base, counter: None }
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
            status @ (StatusCode::FORBIDDEN | StatusCode::PAYLOAD_TOO_LARGE) => Err(SendError::Refused(status)),
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
