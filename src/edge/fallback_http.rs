//! The requests of the fallbacks: what a receive's answer looks like, and what a send is answered.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use tokio::time::timeout;

use super::client::Caller;
use super::fallback::{Fallback, Receive, SessionId, Unserved, number};
use super::inbox::Mark;
use super::metrics::Metrics;
use super::peer::{Asked, Door, Name, Peers, Standing, gone};
use super::session::{Outgoing, Outlet};
use super::shared::Shared;
use crate::protocol::Transport;
use crate::protocol::fallback::{self, HEARTBEAT, OPEN, STREAM_LIMIT_UNITS, utf16_units};
use crate::protocol::frame;

/// Silence after which an open answer carries a heartbeat: less than what proxies cut.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(20);

/// How long writing pauses for a client that has its 256 KiB and should re-open.
const PAUSE: Duration = Duration::from_secs(30);

/// Taken from the session for one frame.
const BATCH: usize = 32 << 10;

/// What the handlers share.
#[derive(Clone)]
pub struct Context {
    /// The edge.
    pub shared: Arc<Shared>,
    /// Its HTTP sessions.
    pub fallback: Arc<Fallback>,
    /// What opens a session.
    pub open: Arc<str>,
}

type SessionPath = Path<(String, String, String)>;

/// What the processes know of a session before the request comes here.
type Known = Option<Extension<Standing>>;

/// Serves a request here, or where its session is.
pub async fn pass(
    State(peers): State<Arc<Peers>>,
    Path((_, srv, session)): SessionPath,
    request: Request,
    next: Next,
) -> Response {
    let Some(id) = SessionId::parse(srv, session) else { return next.run(request).await };
    let path = request.uri().path();
    let farewell = path.ends_with("/xhr_streaming").then(|| {
        let closing = gone();
        (fallback::close(closing.code, &closing.reason), "\n")
    });
    let receives = !path.ends_with("/xhr_send");
    peers.pass(Asked { name: Name::Pusher(id), receives, farewell }, request, next).await
}

/// Lets a request in that another process handed here.
pub async fn enter(
    State(door): State<Arc<Door>>,
    Path((_, srv, session)): SessionPath,
    request: Request,
    next: Next,
) -> Response {
    door.enter(SessionId::parse(srv, session).map(Name::Pusher), request, next).await
}

/// `POST …/xhr_streaming`: one answer for as long as the client holds it.
pub async fn streaming(
    State(context): State<Context>,
    Path((key, srv, session)): SessionPath,
    RawQuery(query): RawQuery,
    caller: Caller,
    known: Known,
) -> Response {
    match receive(&context, (key, srv, session), query, &caller, Transport::XhrStreaming, known) {
        Ok(receive) => answer(Body::from_stream(stream::unfold(
            Stream::new(receive, context.open, context.shared.metrics.clone()),
            |mut stream| async {
                let line = stream.next().await?;
                Some((Ok::<_, Infallible>(Bytes::from(line)), stream))
            },
        ))),
        Err(unserved) => unserved.into_response(),
    }
}

/// `POST …/xhr`: one batch.
pub async fn polling(
    State(context): State<Context>,
    Path((key, srv, session)): SessionPath,
    RawQuery(query): RawQuery,
    caller: Caller,
    known: Known,
) -> Response {
    match receive(&context, (key, srv, session), query, &caller, Transport::XhrPolling, known) {
        Ok(Receive { new: true, .. }) => answer(Body::from(context.open.to_string())),
        Ok(Receive { outlet, new: false }) => answer(Body::from(batch(&outlet).await)),
        Err(unserved) => unserved.into_response(),
    }
}

/// `POST …/xhr_send`: messages of the client.
pub async fn send(
    State(context): State<Context>,
    Path((key, srv, session)): SessionPath,
    RawQuery(query): RawQuery,
    caller: Caller,
    known: Known,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return rejection.into_response(),
    };
    let Some(id) = SessionId::parse(srv, session) else { return Unserved::Unknown.into_response() };
    let messages = match fallback::parse_send(&body) {
        Ok(messages) => messages,
        // As SockJS answers.
        Err(told) => return (StatusCode::INTERNAL_SERVER_ERROR, told).into_response(),
    };
    if Fallback::from_here(&context.shared, &key, &caller).is_err() {
        return Unserved::Forbidden.into_response();
    }
    let handed = known.and_then(|Extension(standing)| standing.number());
    let mark = Mark { number: number(&query.unwrap_or_default()), handed };
    match context.fallback.send(&id, &key, messages, mark).await {
        Ok(()) => (StatusCode::NO_CONTENT, [(header::CONTENT_TYPE, "text/plain; charset=UTF-8")]).into_response(),
        Err(unserved) => unserved.into_response(),
    }
}

/// `OPTIONS`: a browser asks before each request, because of its content type.
pub async fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, OPTIONS"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "content-type"),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// Lets the page that asks read the answer. Nothing depends on cookies, so there is nothing to protect by origin; a page
/// that its app does not allow may read that it is so, or it would come back for ever.
pub async fn cross_origin(
    State(context): State<Context>,
    Path((key, _, _)): SessionPath,
    request: Request,
    next: Next,
) -> Response {
    let allowed = matches!(*request.method(), Method::POST | Method::OPTIONS);
    let everyone = context.shared.apps.current().by_key(&key).is_none_or(|app| app.allowed_origins.is_empty());
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

impl IntoResponse for Unserved {
    fn into_response(self) -> Response {
        match self {
            // Any other status would make pusher-js give up the transport.
            Self::Refused(closing) => {
                let told = frame::error(Some(closing.code), &closing.reason);
                let told = fallback::messages([told.as_str()]);
                answer(Body::from(format!("{OPEN}{told}{}", fallback::close(closing.code, &closing.reason))))
            }
            Self::Forbidden => (StatusCode::FORBIDDEN, "the app does not allow this origin\n").into_response(),
            Self::Gone => {
                let closing = gone();
                answer(Body::from(fallback::close(closing.code, &closing.reason)))
            }
            Self::Unknown => (StatusCode::NOT_FOUND, "there is no such session\n").into_response(),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "the server is full, come back later\n").into_response(),
        }
    }
}

fn receive(
    context: &Context,
    (key, srv, session): (String, String, String),
    query: Option<String>,
    caller: &Caller,
    transport: Transport,
    known: Known,
) -> Result<Receive, Unserved> {
    let id = SessionId::parse(srv, session).ok_or(Unserved::Unknown)?;
    let standing = known.map_or(Standing::Open(None), |Extension(standing)| standing);
    let query = query.unwrap_or_default();
    context.fallback.receive(&context.shared, id, (&key, &query), caller, transport, standing)
}

fn answer(body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/javascript; charset=UTF-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform")),
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, body).into_response()
}

fn lines(frames: &[Bytes]) -> String {
    fallback::messages(frames.iter().filter_map(|frame| std::str::from_utf8(frame).ok()))
}

/// One answer of a poll: messages, the end, or a heartbeat after a while.
async fn batch(outlet: &Outlet) -> String {
    match timeout(HEARTBEAT_EVERY, outlet.next(BATCH)).await {
        Ok(Outgoing::Frames(frames)) => lines(&frames),
        Ok(Outgoing::Close(closing)) => fallback::close(closing.code, &closing.reason),
        // The client has given this request up; any answer goes nowhere.
        Ok(Outgoing::Replaced) => String::new(),
        Err(_) => HEARTBEAT.to_owned(),
    }
}

/// One answer of a streaming receive.
struct Stream {
    outlet: Outlet,
    /// What opens the session, if it is new.
    open: Option<Arc<str>>,
    over: bool,
    /// UTF-16 units written, which is what the client counts.
    units: usize,
    metrics: Arc<Metrics>,
}

impl Stream {
    fn new(Receive { outlet, new }: Receive, open: Arc<str>, metrics: Arc<Metrics>) -> Self {
        Self { outlet, open: new.then_some(open), over: false, units: 0, metrics }
    }

    /// The next line, or the end of the answer.
    async fn next(&mut self) -> Option<String> {
        let line = self.line().await;
        match &line {
            Some(line) => self.units += utf16_units(line),
            None => self.over = true,
        }
        line
    }

    async fn line(&mut self) -> Option<String> {
        if self.over {
            return None;
        }
        if let Some(open) = self.open.take() {
            return Some(open.to_string());
        }
        if self.units > STREAM_LIMIT_UNITS {
            // The client aborts here and re-opens. What would be written now could be lost with the abort. A client
            // that does not come is left to the grace.
            self.outlet.replaced(PAUSE).await;
            return None;
        }
        match timeout(HEARTBEAT_EVERY, self.outlet.next(BATCH)).await {
            Ok(Outgoing::Frames(frames)) => Some(lines(&frames)),
            Ok(Outgoing::Close(closing)) => {
                self.over = true;
                Some(fallback::close(closing.code, &closing.reason))
            }
            Ok(Outgoing::Replaced) => None,
            Err(_) => Some(HEARTBEAT.to_owned()),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.over && self.units <= STREAM_LIMIT_UNITS {
            self.metrics.receivers_cut.inc();
        }
    }
}
