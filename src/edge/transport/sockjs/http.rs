//! The answers to the requests, with the headers that the protocol asks for.

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde_json::json;

use crate::edge::apps::client_address::Caller;
use crate::edge::session::socket_output::SocketFraming;
use crate::edge::transport::inbox::RequestId;
use crate::edge::transport::session_ownership::SessionOwnership;
use crate::edge::transport::socket::{ClientSocket, UpgradedConnection, check_upgrade};
use crate::edge::transport::sockjs::answer::ReceiveAnswer;
use crate::edge::transport::sockjs::context::{BASE_PATH, SockjsContext};
use crate::edge::transport::sockjs::socket::serve_socket;
use crate::edge::transport::xhr::session::SessionError;
use crate::process::clock;
use crate::protocol::Transport;
use crate::protocol::sockjs::{self, FrameWrapping};
use crate::protocol::sockjs_route::{SessionAction, SockjsEndpoint, find_session_cookie};

/// A year, in seconds.
const CACHE_TTL_SECONDS: &str = "31536000";

/// The same in milliseconds.
const CACHE_TTL_MS: u64 = 31_536_000_000;

/// Longest name of a callback: what a page would call itself.
const HTMLFILE_CALLBACK_MAX_LEN: usize = 128;

/// Longest name of a callback, as other servers have it.
const JSONP_CALLBACK_MAX_LEN: usize = 32;

const X_FORWARDED_PROTO_HEADER: HeaderName = HeaderName::from_static("x-forwarded-proto");

const PLAIN_CONTENT_TYPE: &str = "text/plain; charset=UTF-8";
const SCRIPT_CONTENT_TYPE: &str = "application/javascript; charset=UTF-8";
const HTML_CONTENT_TYPE: &str = "text/html; charset=UTF-8";
const JSON_CONTENT_TYPE: &str = "application/json; charset=UTF-8";
const EVENT_STREAM_CONTENT_TYPE: &str = "text/event-stream";

/// The session of a request that is one of several; a WebSocket is a session of its own.
pub fn parse_session_request(request: &Request) -> Option<(String, SessionAction)> {
    match SockjsEndpoint::from_path(request.uri().path().strip_prefix(BASE_PATH)?)? {
        SockjsEndpoint::Session(_, SessionAction::Socket) => None,
        SockjsEndpoint::Session(id, action) => Some((id, action)),
        _ => None,
    }
}

type UpgradeResult = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// Everything below the base path.
pub async fn serve(
    State(context): State<SockjsContext>,
    (method, uri): (Method, Uri),
    headers: HeaderMap,
    caller: Caller,
    (connection, upgrade): (UpgradedConnection, UpgradeResult),
    known: Option<Extension<SessionOwnership>>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let standing = known.map_or(SessionOwnership::Unowned(None), |Extension(standing)| standing);
    let rest = uri.path().strip_prefix(BASE_PATH).unwrap_or_default();
    let Some(endpoint) = SockjsEndpoint::from_path(rest) else { return not_found(HeaderMap::new()) };
    let transport = match &endpoint {
        SockjsEndpoint::RawSocket => Some(Transport::SockjsWebsocket),
        SockjsEndpoint::Session(_, action) => action.transport(),
        SockjsEndpoint::Greeting | SockjsEndpoint::Iframe | SockjsEndpoint::Info => None,
    };
    if transport.is_some_and(|transport| !context.is_served(transport)) {
        return not_found(HeaderMap::new());
    }
    let allowed = endpoint.allowed_methods();
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
        (SockjsEndpoint::Greeting, _) => {
            build_response(StatusCode::OK, content_type_header(PLAIN_CONTENT_TYPE), "Welcome to SockJS!\n")
        }
        (SockjsEndpoint::Iframe, _) => answer_iframe(&context, query, &headers),
        (SockjsEndpoint::Info, Method::OPTIONS) => answer_preflight(&context, &headers, "OPTIONS, GET"),
        (SockjsEndpoint::Info, _) => answer_info(&context, &headers),
        (SockjsEndpoint::RawSocket, _) => {
            upgrade_socket(context, (connection, upgrade), &headers, caller, SocketFraming::SockjsRaw)
        }
        (SockjsEndpoint::Session(_, SessionAction::Socket), _) => {
            upgrade_socket(context, (connection, upgrade), &headers, caller, SocketFraming::SockjsFrames)
        }
        (SockjsEndpoint::Session(..), Method::OPTIONS) => answer_preflight(&context, &headers, "OPTIONS, POST"),
        (SockjsEndpoint::Session(id, action @ (SessionAction::Send | SessionAction::JsonpSend)), _) => {
            let mark = RequestId { number: None, relay_number: standing.relay_number() };
            let sent = SendRequest { headers: &headers, caller, mark, body: &body };
            answer_send(&context, &id, action, sent).await
        }
        (SockjsEndpoint::Session(id, _), _) if !may_open_session(&context, &id, &caller, &standing) => {
            let retry = HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static("5"))]);
            build_response(StatusCode::TOO_MANY_REQUESTS, retry, "too many sessions from one address\n")
        }
        (SockjsEndpoint::Session(id, action), _) => answer_receive(&context, &id, action, query, &headers, standing),
    }
}

/// Whether a receive may open its session: one that names no app is charged to the source address alone. The relay has
/// charged those that it looked up.
fn may_open_session(context: &SockjsContext, id: &str, caller: &Caller, standing: &SessionOwnership) -> bool {
    let is_new = matches!(standing, SessionOwnership::Unowned(None)) && !context.sessions.has_id(id);
    !is_new || context.shared.opener.charge_session_lookup(caller.source)
}

fn answer_receive(
    context: &SockjsContext,
    id: &str,
    action: SessionAction,
    query: &str,
    request: &HeaderMap,
    standing: SessionOwnership,
) -> Response {
    let mut headers = no_cache_headers();
    set_session_cookie(context, request, &mut headers);
    let mut wrapping = action.frame_wrapping();
    let mut head = None;
    let refuse = |headers, told| build_response(StatusCode::INTERNAL_SERVER_ERROR, headers, told);
    let kind = match action {
        SessionAction::HtmlFile => match sockjs::parse_callback(query, HTMLFILE_CALLBACK_MAX_LEN) {
            Ok(callback) => {
                head = Some(sockjs::htmlfile_head(&callback));
                HTML_CONTENT_TYPE
            }
            Err(told) => return refuse(headers, told),
        },
        SessionAction::Jsonp => match sockjs::parse_callback(query, JSONP_CALLBACK_MAX_LEN) {
            Ok(callback) => {
                wrapping = FrameWrapping::Call(callback);
                // A script that is taken for something else could be made to be something else.
                headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
                SCRIPT_CONTENT_TYPE
            }
            Err(told) => return refuse(headers, told),
        },
        SessionAction::EventSource => {
            head = Some(sockjs::EVENT_PRELUDE.to_owned());
            // A page without an origin of its own cannot read what names it, so it is let in as everyone.
            let origin = request.get(header::ORIGIN).filter(|origin| *origin != "null");
            set_cross_origin_headers(origin, request, &mut headers);
            EVENT_STREAM_CONTENT_TYPE
        }
        _ => {
            head = (action == SessionAction::Stream).then(sockjs::line_prelude);
            set_cross_origin_headers(request.get(header::ORIGIN), request, &mut headers);
            SCRIPT_CONTENT_TYPE
        }
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    let Some(transport) = action.transport() else { return not_found(headers) };
    match context.sessions.attach_receiver(&context.shared, id, transport, standing) {
        Ok(receive) => build_response(
            StatusCode::OK,
            headers,
            ReceiveAnswer::new(receive, head, wrapping, action.is_poll()).into_body(),
        ),
        Err(unserved) => unserved.into_response(),
    }
}

/// A request that carries messages of a client.
struct SendRequest<'a> {
    headers: &'a HeaderMap,
    caller: Caller,
    mark: RequestId,
    body: &'a [u8],
}

async fn answer_send(context: &SockjsContext, id: &str, action: SessionAction, sent: SendRequest<'_>) -> Response {
    let SendRequest { headers: request, caller, mark, body } = sent;
    let mut headers = no_cache_headers();
    set_session_cookie(context, request, &mut headers);
    let messages = if action == SessionAction::JsonpSend {
        let kind = request.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        sockjs::parse_form(kind, body)
    } else {
        set_cross_origin_headers(request.get(header::ORIGIN), request, &mut headers);
        sockjs::parse_send(body)
    };
    let messages = match messages {
        Ok(messages) => messages,
        Err(told) => return build_response(StatusCode::INTERNAL_SERVER_ERROR, headers, told),
    };
    match context.sessions.send(&context.shared, id, messages, (caller, mark)).await {
        Ok(()) => {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PLAIN_CONTENT_TYPE));
            match action {
                // Some browsers cannot do with no content here.
                SessionAction::JsonpSend => build_response(StatusCode::OK, headers, "ok"),
                _ => build_response(StatusCode::NO_CONTENT, headers, Body::empty()),
            }
        }
        Err(SessionError::Unknown) => not_found(headers),
        Err(unserved) => unserved.into_response(),
    }
}

fn upgrade_socket(
    context: SockjsContext,
    (connection, upgrade): (UpgradedConnection, UpgradeResult),
    headers: &HeaderMap,
    caller: Caller,
    framing: SocketFraming,
) -> Response {
    let upgrade = match check_upgrade(upgrade, headers) {
        Ok(upgrade) => upgrade,
        Err(refused) => {
            let version = refused.headers().get(header::SEC_WEBSOCKET_VERSION).cloned();
            let headers = version.map(|version| (header::SEC_WEBSOCKET_VERSION, version)).into_iter().collect();
            return build_response(StatusCode::BAD_REQUEST, headers, "Not a valid websocket request");
        }
    };
    let shared = context.shared;
    let tasks = shared.opener.session_tasks.clone();
    upgrade.on_upgrade(move |wire| {
        // Tracked, so that the process waits for sessions that are about to leave.
        tasks.track_future(serve_socket(ClientSocket::new(wire, framing, connection), shared, caller))
    })
}

fn answer_info(context: &SockjsContext, request: &HeaderMap) -> Response {
    let Ok(entropy) = OsRng.try_next_u32() else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    let mut info = json!({
        "websocket": context.is_served(Transport::SockjsWebsocket),
        "origins": ["*:*"],
        "cookie_needed": context.settings.cookie,
        "entropy": entropy,
    });
    if let Some(host) = &context.settings.host {
        info["hostname"] = host.as_str().into();
    }
    let mut headers = no_cache_headers();
    set_cross_origin_headers(request.get(header::ORIGIN), request, &mut headers);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON_CONTENT_TYPE));
    build_response(StatusCode::OK, headers, info.to_string())
}

fn answer_iframe(context: &SockjsContext, query: &str, request: &HeaderMap) -> Response {
    let Some(page) = context.settings.pages.find_by_query(query) else {
        let told = "this script is not listed for hidden frames: add it to REALTIME_SOCKJS_SCRIPTS\n";
        return build_response(StatusCode::NOT_FOUND, content_type_header(PLAIN_CONTENT_TYPE), told);
    };
    let mut headers = HeaderMap::new();
    set_cache_headers(&mut headers);
    insert_header(&mut headers, header::ETAG, &page.tag);
    if request.get(header::IF_NONE_MATCH).is_some_and(|tag| *tag == page.tag) {
        return build_response(StatusCode::NOT_MODIFIED, headers, Body::empty());
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(HTML_CONTENT_TYPE));
    insert_header(&mut headers, header::CONTENT_SECURITY_POLICY, &page.policy);
    build_response(StatusCode::OK, headers, page.body.clone())
}

fn answer_preflight(context: &SockjsContext, request: &HeaderMap, methods: &'static str) -> Response {
    let mut headers = HeaderMap::new();
    set_session_cookie(context, request, &mut headers);
    set_cross_origin_headers(request.get(header::ORIGIN), request, &mut headers);
    set_cache_headers(&mut headers);
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(CACHE_TTL_SECONDS));
    build_response(StatusCode::NO_CONTENT, headers, Body::empty())
}

fn not_found(mut headers: HeaderMap) -> Response {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PLAIN_CONTENT_TYPE));
    build_response(StatusCode::NOT_FOUND, headers, "404 Error: Page not found\n")
}

fn build_response(status: StatusCode, headers: HeaderMap, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn content_type_header(kind: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))])
}

fn no_cache_headers() -> HeaderMap {
    let never = HeaderValue::from_static("no-store, no-cache, no-transform, must-revalidate, max-age=0");
    // Proxies that hold an answer back until they have all of it would hold it back for ever.
    let at_once = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    HeaderMap::from_iter([(header::CACHE_CONTROL, never), at_once])
}

fn set_cache_headers(headers: &mut HeaderMap) {
    let ms = i64::try_from(clock::now_ms() + CACHE_TTL_MS).unwrap_or(i64::MAX);
    let expires =
        Timestamp::from_millisecond(ms).and_then(|at| DateTimePrinter::new().timestamp_to_rfc9110_string(&at));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000"));
    if let Ok(expires) = expires {
        insert_header(headers, header::EXPIRES, &expires);
    }
}

/// Lets the page that asks read the answer, whatever its origin. Nothing here depends on cookies, so there is nothing
/// to protect by origin.
fn set_cross_origin_headers(origin: Option<&HeaderValue>, request: &HeaderMap, headers: &mut HeaderMap) {
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
fn set_session_cookie(context: &SockjsContext, request: &HeaderMap, headers: &mut HeaderMap) {
    if !context.settings.cookie {
        return;
    }
    let own =
        request.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()).find_map(find_session_cookie);
    let attributes = if is_behind_tls(request) { "; SameSite=None; Secure" } else { "" };
    insert_header(headers, header::SET_COOKIE, &format!("JSESSIONID={}; path=/{attributes}", own.unwrap_or("dummy")));
}

/// Whether the client speaks TLS, to a proxy that says so or as a page that may speak nothing else. A client that claims it
/// changes its own cookie alone, so the header needs no trusted proxy.
fn is_behind_tls(request: &HeaderMap) -> bool {
    let read = |name: HeaderName| request.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_https = |scheme: &str| scheme.trim().eq_ignore_ascii_case("https");
    read(X_FORWARDED_PROTO_HEADER).split(',').next().is_some_and(is_https)
        || read(header::ORIGIN).split_once("://").is_some_and(|(scheme, _)| is_https(scheme))
}

/// A header of our own making; what cannot be one is left out.
fn insert_header(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_told_by_the_proxy_or_by_the_page() {
        for (name, value, is_tls) in [
            ("x-forwarded-proto", "https", true),
            ("x-forwarded-proto", "HTTPS, http", true),
            ("x-forwarded-proto", "http, https", false),
            ("origin", "https://shop.example.com", true),
            ("origin", "http://shop.example.com", false),
            ("origin", "null", false),
            ("host", "https", false),
        ] {
            let name: HeaderName = name.parse().expect("a name");
            let headers = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static(value))]);
            assert_eq!(is_behind_tls(&headers), is_tls, "{name}: {value}");
        }
    }
}
