//! The answers to the requests, with the headers that the protocol asks for.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde_json::json;
use tokio::time::Instant;

use super::super::client::Caller;
use super::super::fallback::Unserved;
use super::super::inbox::Mark;
use super::super::peer::{Asked, Door, Name, Peers, Standing, gone};
use super::super::websocket::{MAX_MESSAGE, READ_BUFFER, WRITE_BUFFER};
use super::answer::{Answer, HEARTBEAT_EVERY};
use super::route::{Action, Endpoint};
use super::socket::{Framing, Socket};
use super::{BASE, Context};
use crate::protocol::Transport;
use crate::protocol::sockjs::{self, Wrapping};
use crate::runtime::clock;

/// A year, in seconds.
const YEAR: &str = "31536000";

/// The same in milliseconds.
const YEAR_MS: u64 = 31_536_000_000;

/// Longest name of a callback: what a page would call itself.
const MAX_HTMLFILE_CALLBACK: usize = 128;

/// Longest name of a callback, as other servers have it.
const MAX_JSONP_CALLBACK: usize = 32;

const PLAIN: &str = "text/plain; charset=UTF-8";
const SCRIPT: &str = "application/javascript; charset=UTF-8";
const PAGE: &str = "text/html; charset=UTF-8";
const JSON: &str = "application/json; charset=UTF-8";
const EVENTS: &str = "text/event-stream";

/// Serves a request here, or where its session is.
pub async fn pass(State(peers): State<Arc<Peers>>, request: Request, next: Next) -> Response {
    let Some((id, action)) = session(&request) else { return next.run(request).await };
    let farewell = match action {
        Action::Stream | Action::EventSource | Action::HtmlFile => {
            let (closing, wrapping) = (gone(), action.wrapping());
            Some((wrapping.wrap(&sockjs::close(closing.code, &closing.reason)), wrapping.end()))
        }
        _ => None,
    };
    let receives = action.transport().is_some();
    peers.pass(Asked { name: Name::SockJs(id), receives, farewell }, request, next).await
}

/// Lets a request in that another process handed here.
pub async fn enter(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let name = session(&request).map(|(id, _)| Name::SockJs(id));
    door.enter(name, request, next).await
}

/// The session of a request that is one of several; a WebSocket is a session of its own.
fn session(request: &Request) -> Option<(String, Action)> {
    match Endpoint::of(request.uri().path().strip_prefix(BASE)?)? {
        Endpoint::Session(_, Action::Socket) => None,
        Endpoint::Session(id, action) => Some((id, action)),
        _ => None,
    }
}

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// Everything below the base path.
pub async fn serve(
    State(context): State<Context>,
    (method, uri): (Method, Uri),
    headers: HeaderMap,
    caller: Caller,
    upgrade: Upgrade,
    known: Option<Extension<Standing>>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let standing = known.map_or(Standing::Open(None), |Extension(standing)| standing);
    let rest = uri.path().strip_prefix(BASE).unwrap_or_default();
    let Some(endpoint) = Endpoint::of(rest) else { return not_found(HeaderMap::new()) };
    let transport = match &endpoint {
        Endpoint::RawSocket => Some(Transport::SockjsWebsocket),
        Endpoint::Session(_, action) => action.transport(),
        Endpoint::Greeting | Endpoint::Iframe | Endpoint::Info => None,
    };
    if transport.is_some_and(|transport| !context.serves(transport)) {
        return not_found(HeaderMap::new());
    }
    let allowed = endpoint.methods();
    if !allowed.contains(&method.as_str()) {
        let allow = [(header::ALLOW, allowed.join(", "))];
        return (StatusCode::METHOD_NOT_ALLOWED, allow).into_response();
    }
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return rejection.into_response(),
    };
    let query = uri.query().unwrap_or_default();
    match (endpoint, method) {
        (Endpoint::Greeting, _) => respond(StatusCode::OK, typed(PLAIN), "Welcome to SockJS!\n"),
        (Endpoint::Iframe, _) => iframe(&context, query, &headers),
        (Endpoint::Info, Method::OPTIONS) => preflight(&context, &headers, "OPTIONS, GET"),
        (Endpoint::Info, _) => info(&context, &headers),
        (Endpoint::RawSocket, _) => socket(context, upgrade, caller, Framing::Raw),
        (Endpoint::Session(_, Action::Socket), _) => socket(context, upgrade, caller, Framing::Frames),
        (Endpoint::Session(..), Method::OPTIONS) => preflight(&context, &headers, "OPTIONS, POST"),
        (Endpoint::Session(id, action @ (Action::Send | Action::JsonpSend)), _) => {
            let mark = Mark { number: None, handed: standing.number() };
            send(&context, &id, action, (&headers, caller, mark), &body).await
        }
        (Endpoint::Session(id, action), _) => receive(&context, &id, action, query, &headers, standing),
    }
}

fn receive(
    context: &Context,
    id: &str,
    action: Action,
    query: &str,
    request: &HeaderMap,
    standing: Standing,
) -> Response {
    let mut headers = uncached();
    cookie(context, request, &mut headers);
    let mut wrapping = action.wrapping();
    let mut head = None;
    let refuse = |headers, told| respond(StatusCode::INTERNAL_SERVER_ERROR, headers, told);
    let kind = match action {
        Action::HtmlFile => match sockjs::callback(query, MAX_HTMLFILE_CALLBACK) {
            Ok(callback) => {
                head = Some(sockjs::htmlfile_head(&callback));
                PAGE
            }
            Err(told) => return refuse(headers, told),
        },
        Action::Jsonp => match sockjs::callback(query, MAX_JSONP_CALLBACK) {
            Ok(callback) => {
                wrapping = Wrapping::Call(callback);
                // A script that is taken for something else could be made to be something else.
                headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
                SCRIPT
            }
            Err(told) => return refuse(headers, told),
        },
        Action::EventSource => {
            head = Some(sockjs::EVENT_PRELUDE.to_owned());
            // A page without an origin of its own cannot read what names it, so it is let in as everyone.
            let origin = request.get(header::ORIGIN).filter(|origin| *origin != "null");
            cross_origin(origin, request, &mut headers);
            EVENTS
        }
        _ => {
            head = (action == Action::Stream).then(sockjs::line_prelude);
            cross_origin(request.get(header::ORIGIN), request, &mut headers);
            SCRIPT
        }
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    let Some(transport) = action.transport() else { return not_found(headers) };
    match context.sessions.receive(&context.shared, id, transport, standing) {
        Ok(receive) => {
            respond(StatusCode::OK, headers, Answer::new(receive, head, wrapping, action.is_poll()).into_body())
        }
        Err(unserved) => unserved.into_response(),
    }
}

async fn send(
    context: &Context,
    id: &str,
    action: Action,
    (request, caller, mark): (&HeaderMap, Caller, Mark),
    body: &[u8],
) -> Response {
    let mut headers = uncached();
    cookie(context, request, &mut headers);
    let messages = if action == Action::JsonpSend {
        let kind = request.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        sockjs::parse_form(kind, body)
    } else {
        cross_origin(request.get(header::ORIGIN), request, &mut headers);
        sockjs::parse_send(body)
    };
    let messages = match messages {
        Ok(messages) => messages,
        Err(told) => return respond(StatusCode::INTERNAL_SERVER_ERROR, headers, told),
    };
    match context.sessions.send(&context.shared, id, messages, (caller, mark)).await {
        Ok(()) => {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PLAIN));
            match action {
                // Some browsers cannot do with no content here.
                Action::JsonpSend => respond(StatusCode::OK, headers, "ok"),
                _ => respond(StatusCode::NO_CONTENT, headers, Body::empty()),
            }
        }
        Err(Unserved::Unknown) => not_found(headers),
        Err(unserved) => unserved.into_response(),
    }
}

fn socket(context: Context, upgrade: Upgrade, caller: Caller, framing: Framing) -> Response {
    let Ok(upgrade) = upgrade else {
        return respond(StatusCode::BAD_REQUEST, HeaderMap::new(), "Not a valid websocket request");
    };
    let upgrade = upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE);
    let (shared, transport) = (context.shared, Transport::SockjsWebsocket);
    let tasks = shared.tasks.clone();
    upgrade.on_upgrade(move |wire| {
        let heartbeat = Instant::now() + HEARTBEAT_EVERY;
        // Tracked, so that the process waits for sessions that are about to leave.
        tasks.track_future(Socket { wire, framing, transport, caller, heartbeat }.serve(shared))
    })
}

fn info(context: &Context, request: &HeaderMap) -> Response {
    let Ok(entropy) = OsRng.try_next_u32() else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let mut info = json!({
        "websocket": context.serves(Transport::SockjsWebsocket),
        "origins": ["*:*"],
        "cookie_needed": context.settings.cookie,
        "entropy": entropy,
    });
    if let Some(host) = &context.settings.host {
        info["hostname"] = host.as_str().into();
    }
    let mut headers = uncached();
    cross_origin(request.get(header::ORIGIN), request, &mut headers);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    respond(StatusCode::OK, headers, info.to_string())
}

fn iframe(context: &Context, query: &str, request: &HeaderMap) -> Response {
    let Some(page) = context.settings.pages.choose(query) else {
        let told = "this script is not listed for hidden frames: add it to REALTIME_SOCKJS_SCRIPTS\n";
        return respond(StatusCode::NOT_FOUND, typed(PLAIN), told);
    };
    let mut headers = HeaderMap::new();
    cached(&mut headers);
    insert(&mut headers, header::ETAG, &page.tag);
    if request.get(header::IF_NONE_MATCH).is_some_and(|tag| *tag == page.tag) {
        return respond(StatusCode::NOT_MODIFIED, headers, Body::empty());
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PAGE));
    insert(&mut headers, header::CONTENT_SECURITY_POLICY, &page.policy);
    respond(StatusCode::OK, headers, page.body.clone())
}

fn preflight(context: &Context, request: &HeaderMap, methods: &'static str) -> Response {
    let mut headers = HeaderMap::new();
    cookie(context, request, &mut headers);
    cross_origin(request.get(header::ORIGIN), request, &mut headers);
    cached(&mut headers);
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(YEAR));
    respond(StatusCode::NO_CONTENT, headers, Body::empty())
}

fn not_found(mut headers: HeaderMap) -> Response {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PLAIN));
    respond(StatusCode::NOT_FOUND, headers, "404 Error: Page not found\n")
}

fn respond(status: StatusCode, headers: HeaderMap, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn typed(kind: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))])
}

fn uncached() -> HeaderMap {
    let never = HeaderValue::from_static("no-store, no-cache, no-transform, must-revalidate, max-age=0");
    // Proxies that hold an answer back until they have all of it would hold it back for ever.
    let at_once = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    HeaderMap::from_iter([(header::CACHE_CONTROL, never), at_once])
}

fn cached(headers: &mut HeaderMap) {
    let ms = i64::try_from(clock::now_ms() + YEAR_MS).unwrap_or(i64::MAX);
    let expires =
        Timestamp::from_millisecond(ms).and_then(|at| DateTimePrinter::new().timestamp_to_rfc9110_string(&at));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000"));
    if let Ok(expires) = expires {
        insert(headers, header::EXPIRES, &expires);
    }
}

/// Lets the page that asks read the answer, whatever its origin. Nothing here depends on cookies, so there is nothing
/// to protect by origin.
fn cross_origin(origin: Option<&HeaderValue>, request: &HeaderMap, headers: &mut HeaderMap) {
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    } else {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    }
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    if let Some(wanted) = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS).filter(|wanted| !wanted.is_empty()) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
}

/// Sets the load balancer's cookie, to the client's own value if it has one.
fn cookie(context: &Context, request: &HeaderMap, headers: &mut HeaderMap) {
    if !context.settings.cookie {
        return;
    }
    let own = request.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()).find_map(own_cookie);
    insert(headers, header::SET_COOKIE, &format!("JSESSIONID={}; path=/", own.unwrap_or("dummy")));
}

fn own_cookie(cookies: &str) -> Option<&str> {
    let mut pairs = cookies.split(';').filter_map(|pair| pair.split_once('='));
    pairs.find_map(|(name, value)| (name.trim() == "JSESSIONID" && !value.trim().is_empty()).then(|| value.trim()))
}

/// A header of our own making; what cannot be one is left out.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_own_cookie_is_found_among_others() {
        for (cookies, found) in [
            ("JSESSIONID=abcdef", Some("abcdef")),
            ("a=b; JSESSIONID=x ; c=d", Some("x")),
            ("JSESSIONIDS=x", None),
            ("JSESSIONID=", None),
            ("", None),
        ] {
            assert_eq!(own_cookie(cookies), found, "{cookies}");
        }
    }
}
