//! The paths of HTTP sessions, with the relay in front of them.
//!
//! In: requests of clients, or of other processes on their own listener. Out: the answer of the transport here, or of
//! the process that owns the session. Only this file knows both the transports and the relay.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;

use crate::edge::apps::client_address::source_of;
use crate::edge::relay::{RelayServer, SessionRelay};
use crate::edge::session::opener::SessionOpener;
use crate::edge::transport::context::TransportContext;
use crate::edge::transport::session_ownership::{RelayTarget, SessionId, SessionName, session_gone};
use crate::edge::transport::sockjs;
use crate::edge::transport::sockjs::SockjsSessions;
use crate::edge::transport::sockjs::http::parse_session_request;
use crate::edge::transport::xhr::http::{
    XhrContext, answer_preflight, receive_messages, receive_polling, receive_streaming, set_cross_origin_headers,
};
use crate::edge::transport::xhr::session::XhrSessions;
use crate::protocol::Transport;
use crate::protocol::fallback;
use crate::protocol::sockjs::encode_close as encode_sockjs_close;
use crate::protocol::sockjs_route::SessionAction;

/// Bounds the body of a send: a client event at its limit, escaped twice.
pub const SEND_BODY_BYTES_MAX: usize = 256 << 10;

/// The state that the paths of an edge share.
pub struct RouteState {
    /// The services that transports share.
    pub shared: Arc<TransportContext>,
    /// Sessions of pusher-js's own fallbacks.
    pub fallback: Arc<XhrSessions>,
    /// The sessions of `SockJS` over HTTP.
    pub sockjs: Arc<SockjsSessions>,
    /// The settings of `SockJS`.
    pub settings: Arc<sockjs::SockjsSettings>,
    /// The first line of a session of pusher-js's own fallbacks.
    pub open: Arc<str>,
    /// The transports that are offered.
    pub transports: Vec<Transport>,
}

/// The relay in front of the HTTP sessions.
pub enum RelayGuard {
    /// No relay: this process is the only one.
    None,
    /// For clients: a request is relayed to the owner of its session.
    Outbound(RelayFront),
    /// For other processes: a request is accepted if one of them signed it.
    Inbound(Arc<RelayServer>),
}

/// The relay for clients, with the opener that knows their apps and source addresses.
#[derive(Clone)]
pub struct RelayFront {
    /// Finds the owner of a session.
    pub relay: Arc<SessionRelay>,
    /// Counts the requests for sessions which are not here: each is looked up on the bus.
    pub opener: Arc<SessionOpener>,
}

impl RelayFront {
    /// Relays a request to the owner of its session, or serves it here. A source address that asks for unknown sessions
    /// too often is refused before the bus is asked.
    async fn serve_request(&self, target: RelayTarget, request: Request, next: Next) -> Response {
        if request.method() == Method::OPTIONS {
            return next.run(request).await;
        }
        let (parts, body) = request.into_parts();
        let is_known = self.relay.is_owner_known(&target.name);
        if !is_known && !self.opener.charge_session_lookup(source_of(&parts)) {
            let retry = [(header::RETRY_AFTER, LOOKUP_RETRY_AFTER_SECONDS)];
            return (StatusCode::TOO_MANY_REQUESTS, retry, "too many requests from one address\n").into_response();
        }
        self.relay.relay_or_serve(target, Request::from_parts(parts, body), next).await
    }
}

/// Time after which a client repeats a request that was refused for the rate of its source address.
const LOOKUP_RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("5");

/// The paths of the HTTP fallbacks.
pub fn build_session_routes(state: &RouteState, guard: &RelayGuard) -> Router {
    let RouteState { shared, fallback, sockjs, settings, open, transports } = state;
    let offered = |transport| transports.contains(&transport);
    let mut router = Router::new();
    let (stream, poll) = (offered(Transport::XhrStreaming), offered(Transport::XhrPolling));
    if stream || poll {
        let base = "/pusher/app/{key}/{srv}/{session}";
        let mut requests =
            Router::new().route(&format!("{base}/xhr_send"), post(receive_messages).options(answer_preflight));
        if stream {
            requests =
                requests.route(&format!("{base}/xhr_streaming"), post(receive_streaming).options(answer_preflight));
        }
        if poll {
            requests = requests.route(&format!("{base}/xhr"), post(receive_polling).options(answer_preflight));
        }
        let context = XhrContext { shared: shared.clone(), fallback: fallback.clone(), open: open.clone() };
        let stateful = requests.with_state(context.clone());
        let relayed = match guard {
            RelayGuard::None => stateful,
            RelayGuard::Outbound(front) => stateful.layer(from_fn_with_state(front.clone(), relay_xhr)),
            RelayGuard::Inbound(server) => stateful.layer(from_fn_with_state(server.clone(), accept_xhr)),
        };
        router = router.merge(
            relayed
                .layer(DefaultBodyLimit::max(SEND_BODY_BYTES_MAX))
                .layer(from_fn_with_state(context, set_cross_origin_headers)),
        );
    }
    if let Some(sockjs_routes) = sockjs::build_routes(shared, sockjs, settings, transports) {
        let relayed = match guard {
            RelayGuard::None => sockjs_routes,
            RelayGuard::Outbound(front) => sockjs_routes.layer(from_fn_with_state(front.clone(), relay_sockjs)),
            RelayGuard::Inbound(server) => sockjs_routes.layer(from_fn_with_state(server.clone(), accept_sockjs)),
        };
        router = router.merge(relayed.layer(DefaultBodyLimit::max(SEND_BODY_BYTES_MAX)));
    }
    router
}

/// Serves a request of pusher-js's fallbacks here, or relays it to the owner of its session.
async fn relay_xhr(
    State(front): State<RelayFront>,
    Path((key, srv, session)): Path<(String, String, String)>,
    request: Request,
    next: Next,
) -> Response {
    // Without an app there is no session to look for.
    let is_app_known = front.opener.apps.current().by_key(&key).is_some();
    let Some(id) = SessionId::parse(srv, session).filter(|_| is_app_known) else { return next.run(request).await };
    let path = request.uri().path();
    let close_frame = path.ends_with("/xhr_streaming").then(|| {
        let closing = session_gone();
        (fallback::encode_close(closing.code, &closing.reason), "\n")
    });
    let is_receive = !path.ends_with("/xhr_send");
    front.serve_request(RelayTarget { name: SessionName::Pusher(id), is_receive, close_frame }, request, next).await
}

/// Accepts a request of pusher-js's fallbacks that another process relayed.
async fn accept_xhr(
    State(server): State<Arc<RelayServer>>,
    Path((_, srv, session)): Path<(String, String, String)>,
    request: Request,
    next: Next,
) -> Response {
    server.accept_request(SessionId::parse(srv, session).map(SessionName::Pusher), request, next).await
}

/// Serves a request of `SockJS` here, or relays it to the owner of its session.
async fn relay_sockjs(State(front): State<RelayFront>, request: Request, next: Next) -> Response {
    let Some((id, action)) = parse_session_request(&request) else { return next.run(request).await };
    let close_frame = match action {
        SessionAction::Stream | SessionAction::EventSource | SessionAction::HtmlFile => {
            let (closing, wrapping) = (session_gone(), action.frame_wrapping());
            Some((wrapping.wrap(&encode_sockjs_close(closing.code, &closing.reason)), wrapping.frame_terminator()))
        }
        _ => None,
    };
    let is_receive = action.transport().is_some();
    front.serve_request(RelayTarget { name: SessionName::SockJs(id), is_receive, close_frame }, request, next).await
}

/// Accepts a request of `SockJS` that another process relayed.
async fn accept_sockjs(State(server): State<Arc<RelayServer>>, request: Request, next: Next) -> Response {
    let name = parse_session_request(&request).map(|(id, _)| SessionName::SockJs(id));
    server.accept_request(name, request, next).await
}
