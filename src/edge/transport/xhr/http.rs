//! The requests of the fallbacks: what a receive's answer looks like, and what a send is answered.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use tokio::time::timeout;

use crate::edge::apps::client_address::Caller;
use crate::edge::metrics::EdgeMetrics;
use crate::edge::session::{FrameReceiver, OutgoingItem};
use crate::edge::transport::context::TransportContext;
use crate::edge::transport::inbox::RequestId;
use crate::edge::transport::session_ownership::{SessionId, SessionOwnership, session_gone};
use crate::edge::transport::xhr::session::{SessionError, XhrReceiver, XhrSessions, parse_request_number};
use crate::protocol::Transport;
use crate::protocol::fallback::{self, HEARTBEAT_FRAME, OPEN_FRAME, STREAM_LIMIT_UNITS, utf16_units};
use crate::protocol::frame;

/// Silence after which an open answer carries a heartbeat: less than what proxies cut.
const XHR_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(20);

/// How long writing pauses for a client that has its 256 KiB and should re-open.
const STREAM_REOPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Taken from the session for one frame.
const XHR_BATCH_BYTES: usize = 32 << 10;

/// The state that the handlers share.
#[derive(Clone)]
pub struct XhrContext {
    /// The services that transports share.
    pub shared: Arc<TransportContext>,
    /// The HTTP sessions of the process.
    pub fallback: Arc<XhrSessions>,
    /// The first line of a new session.
    pub open: Arc<str>,
}

type SessionPath = Path<(String, String, String)>;

/// The parts of a request for a session.
pub struct SessionRequest {
    /// Key of the app that the path names.
    key: String,
    /// Id of the session; `None` if the path has no valid one.
    id: Option<SessionId>,
    query: String,
    caller: Caller,
    /// The ownership of the session, as the relay found it.
    ownership: SessionOwnership,
}

impl<S: Send + Sync> FromRequestParts<S> for SessionRequest {
    type Rejection = PathRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, PathRejection> {
        let Path((key, srv, session)) = SessionPath::from_request_parts(parts, state).await?;
        let Ok(caller) = Caller::from_request_parts(parts, state).await;
        let ownership = parts.extensions.get().cloned().unwrap_or(SessionOwnership::Unowned(None));
        let query = parts.uri.query().unwrap_or_default().to_owned();
        Ok(Self { key, id: SessionId::parse(srv, session), query, caller, ownership })
    }
}

/// `POST …/xhr_streaming`: one answer for as long as the client holds it.
pub async fn receive_streaming(State(context): State<XhrContext>, asked: SessionRequest) -> Response {
    match open_receiver(&context, asked, Transport::XhrStreaming) {
        Ok(receive) => build_response(Body::from_stream(stream::unfold(
            ReceiveStream::new(receive, context.open, context.shared.hub.metrics.clone()),
            |mut stream| async {
                let line = stream.next().await?;
                Some((Ok::<_, Infallible>(Bytes::from(line)), stream))
            },
        ))),
        Err(unserved) => unserved.into_response(),
    }
}

/// `POST …/xhr`: one batch.
pub async fn receive_polling(State(context): State<XhrContext>, asked: SessionRequest) -> Response {
    match open_receiver(&context, asked, Transport::XhrPolling) {
        Ok(XhrReceiver { new: true, .. }) => build_response(Body::from(context.open.to_string())),
        Ok(XhrReceiver { frames: outlet, new: false }) => build_response(Body::from(poll_frames(&outlet).await)),
        Err(unserved) => unserved.into_response(),
    }
}

/// `POST …/xhr_send`: messages of the client.
pub async fn receive_messages(
    State(context): State<XhrContext>,
    asked: SessionRequest,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return rejection.into_response(),
    };
    let SessionRequest { key, id, query, caller, ownership } = asked;
    let Some(id) = id else { return SessionError::Unknown.into_response() };
    let messages = match fallback::parse_send(&body) {
        Ok(messages) => messages,
        // As SockJS answers.
        Err(told) => return (StatusCode::INTERNAL_SERVER_ERROR, told).into_response(),
    };
    if XhrSessions::check_origin(&context.shared, &key, &caller).is_err() {
        return SessionError::Forbidden.into_response();
    }
    let mark = RequestId { number: parse_request_number(&query), relay_number: ownership.relay_number() };
    match context.fallback.send(&id, &key, messages, mark).await {
        Ok(()) => (StatusCode::NO_CONTENT, [(header::CONTENT_TYPE, "text/plain; charset=UTF-8")]).into_response(),
        Err(unserved) => unserved.into_response(),
    }
}

/// `OPTIONS`: a browser asks before each request, because of its content type. Every header that it asks for is allowed:
/// pages with tracing add headers of their own to each request.
pub async fn answer_preflight(request: HeaderMap) -> Response {
    let requested = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS).filter(|requested| !requested.is_empty());
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, OPTIONS")),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, requested.cloned().unwrap_or(HeaderValue::from_static("content-type"))),
        (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400")),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// Lets the page that asks read the answer. Nothing depends on cookies, so there is nothing to protect by origin; a page
/// that its app does not allow may read that it is so, or it would come back for ever.
pub async fn set_cross_origin_headers(
    State(context): State<XhrContext>,
    Path((key, _, _)): SessionPath,
    request: Request,
    next: Next,
) -> Response {
    let allowed = matches!(*request.method(), Method::POST | Method::OPTIONS);
    let everyone = context.shared.opener.apps.current().by_key(&key).is_none_or(|app| app.allowed_origins.is_empty());
    let origin = request.headers().get(header::ORIGIN).filter(|_| !everyone).cloned();
    let mut response = next.run(request).await;
    if !everyone {
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Origin"));
    }
    if allowed {
        let origin = origin.unwrap_or(HeaderValue::from_static("*"));
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    response
}

impl IntoResponse for SessionError {
    fn into_response(self) -> Response {
        match self {
            // Any other status would make pusher-js give up the transport.
            Self::Refused(closing) => {
                let told = frame::error_frame(Some(closing.code), &closing.reason);
                let told = fallback::encode_messages([told.as_str()]);
                build_response(Body::from(format!(
                    "{OPEN_FRAME}{told}{}",
                    fallback::encode_close(closing.code, &closing.reason)
                )))
            }
            Self::Forbidden => (StatusCode::FORBIDDEN, "the app does not allow this origin\n").into_response(),
            Self::Gone => {
                let closing = session_gone();
                build_response(Body::from(fallback::encode_close(closing.code, &closing.reason)))
            }
            Self::Unknown => (StatusCode::NOT_FOUND, "there is no such session\n").into_response(),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "the server is full, come back later\n").into_response(),
        }
    }
}

/// Attaches the receiver that a request asks for.
fn open_receiver(
    context: &XhrContext,
    asked: SessionRequest,
    transport: Transport,
) -> Result<XhrReceiver, SessionError> {
    let SessionRequest { key, id, query, caller, ownership } = asked;
    let id = id.ok_or(SessionError::Unknown)?;
    context.fallback.attach_receiver(&context.shared, id, (&key, &query), &caller, transport, ownership)
}

fn build_response(body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/javascript; charset=UTF-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform")),
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, body).into_response()
}

fn encode_frames(frames: &[Bytes]) -> String {
    fallback::encode_messages(frames.iter().filter_map(|frame| std::str::from_utf8(frame).ok()))
}

/// One answer of a poll: messages, the end, or a heartbeat after a while.
async fn poll_frames(outlet: &FrameReceiver) -> String {
    match timeout(XHR_HEARTBEAT_INTERVAL, outlet.next(XHR_BATCH_BYTES)).await {
        Ok(OutgoingItem::Frames(frames)) => encode_frames(&frames),
        Ok(OutgoingItem::Close(closing)) => fallback::encode_close(closing.code, &closing.reason),
        // The client has given this request up; any answer goes nowhere.
        Ok(OutgoingItem::Replaced) => String::new(),
        Err(_) => HEARTBEAT_FRAME.to_owned(),
    }
}

/// One answer of a streaming receive.
struct ReceiveStream {
    outlet: FrameReceiver,
    /// The first line, if the session is new.
    open: Option<Arc<str>>,
    is_ended: bool,
    /// UTF-16 units written, which is what the client counts.
    units: usize,
    metrics: Arc<EdgeMetrics>,
}

impl ReceiveStream {
    fn new(XhrReceiver { frames: outlet, new }: XhrReceiver, open: Arc<str>, metrics: Arc<EdgeMetrics>) -> Self {
        Self { outlet, open: new.then_some(open), is_ended: false, units: 0, metrics }
    }

    /// The next line, or the end of the answer.
    async fn next(&mut self) -> Option<String> {
        let line = self.next_line().await;
        match &line {
            Some(line) => self.units += utf16_units(line),
            None => self.is_ended = true,
        }
        line
    }

    async fn next_line(&mut self) -> Option<String> {
        if self.is_ended {
            return None;
        }
        if let Some(open) = self.open.take() {
            return Some(open.to_string());
        }
        if self.units > STREAM_LIMIT_UNITS {
            // The client aborts here and re-opens. What would be written now could be lost with the abort. A client
            // that does not come is left to the grace.
            self.outlet.wait_replaced(STREAM_REOPEN_TIMEOUT).await;
            return None;
        }
        match timeout(XHR_HEARTBEAT_INTERVAL, self.outlet.next(XHR_BATCH_BYTES)).await {
            Ok(OutgoingItem::Frames(frames)) => Some(encode_frames(&frames)),
            Ok(OutgoingItem::Close(closing)) => {
                self.is_ended = true;
                Some(fallback::encode_close(closing.code, &closing.reason))
            }
            Ok(OutgoingItem::Replaced) => None,
            Err(_) => Some(HEARTBEAT_FRAME.to_owned()),
        }
    }
}

impl Drop for ReceiveStream {
    fn drop(&mut self) {
        if !self.is_ended && self.units <= STREAM_LIMIT_UNITS {
            self.metrics.receivers_cut.inc();
        }
    }
}
