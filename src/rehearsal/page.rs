//! The page to try the cluster with: pusher-js in a browser, on each transport, with the webhooks beside it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use futures::stream::{self, Stream, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::webhook_receiver::DeliveredWebhook;
use crate::desired::ValidCluster;
use crate::protocol::{AppKey, Secret, SocketId, signature};

const INDEX_HTML: &str = include_str!("page/index.html");
const SCRIPT_JS: &str = include_str!("page/page.js");
const STYLE_CSS: &str = include_str!("page/page.css");
const PUSHER_JS: &str = include_str!("../../third_party/pusher-js/pusher.min.js");

/// Webhooks that are shown to a page that is opened later.
const RECENT_WEBHOOKS_MAX: usize = 50;

/// Addresses of the first edges; `None` for a transport that the cluster has not.
#[derive(Clone, Copy, Debug)]
pub struct EdgeAddresses {
    /// An edge that serves WebSocket.
    pub websocket: Option<SocketAddr>,
    /// An edge that serves the HTTP fallbacks.
    pub sockjs: Option<SocketAddr>,
}

/// The app that the page connects to, and where.
#[derive(Clone, Debug)]
pub struct DemoSettings {
    /// The public key of the app.
    pub key: AppKey,
    /// Its secret, with which the page's server signs subscriptions.
    pub secret: Secret,
    /// The address of the WebSocket transport, if the cluster has one.
    pub websocket: Option<SocketAddr>,
    /// The address of the HTTP fallbacks, if the cluster has them.
    pub sockjs: Option<SocketAddr>,
}

impl DemoSettings {
    /// The page connects to the first app that lets clients send; failing that, to the first.
    pub fn of_cluster(cluster: &ValidCluster, edges: EdgeAddresses) -> Self {
        let mut apps: Vec<_> = cluster.registry.apps().filter(|app| app.id != cluster.probe.id).collect();
        apps.sort_by_key(|app| !app.client_events);
        let credential = apps.first().and_then(|app| app.signing_credential());
        Self {
            key: credential.map_or_else(|| cluster.probe.key.clone(), |credential| credential.key.clone()),
            secret: credential.map_or_else(|| cluster.probe.secret.clone(), |credential| credential.secret.clone()),
            websocket: edges.websocket,
            sockjs: edges.sockjs,
        }
    }
}

struct DemoPage {
    demo: DemoSettings,
    verdict: watch::Receiver<Option<Value>>,
    delivered: broadcast::Sender<DeliveredWebhook>,
    recent: Mutex<VecDeque<DeliveredWebhook>>,
    shutdown: CancellationToken,
}

/// Serves the page until the token ends it.
pub fn serve(
    listener: TcpListener,
    demo: DemoSettings,
    verdict: watch::Receiver<Option<Value>>,
    delivered: broadcast::Sender<DeliveredWebhook>,
    shutdown: CancellationToken,
) -> tokio::task::JoinHandle<()> {
    let mut incoming = delivered.subscribe();
    let page = Arc::new(DemoPage { demo, verdict, delivered, recent: Mutex::default(), shutdown: shutdown.clone() });
    let router = Router::new()
        .route("/", get(|| async { ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], INDEX_HTML) }))
        .route("/page.js", get(|| async { ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT_JS) }))
        .route("/page.css", get(|| async { ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE_CSS) }))
        .route("/pusher.js", get(|| async { ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], PUSHER_JS) }))
        .route("/config.json", get(serve_config))
        .route("/auth", post(authorize_channel))
        .route("/webhooks", get(stream_webhooks))
        .with_state(page.clone());
    tokio::spawn(async move {
        let keep = async {
            loop {
                match incoming.recv().await {
                    Ok(webhook) => page.add_recent(webhook),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
        tokio::select! {
            () = keep => {}
            result = served => if let Err(error) = result { tracing::error!(%error, "page server failed"); },
        }
    })
}

impl DemoPage {
    fn add_recent(&self, webhook: DeliveredWebhook) {
        let mut kept = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == RECENT_WEBHOOKS_MAX {
            kept.pop_front();
        }
        kept.push_back(webhook);
    }
}

async fn serve_config(State(page): State<Arc<DemoPage>>) -> Json<Value> {
    Json(json!({
        "key": page.demo.key,
        "websocket": page.demo.websocket.map(host_port),
        "sockjs": page.demo.sockjs.map(host_port),
        "verdict": page.verdict.borrow().clone(),
    }))
}

/// An address as the JSON output and the page show it.
#[must_use]
pub fn host_port(address: SocketAddr) -> Value {
    json!({ "host": address.ip().to_string(), "port": address.port() })
}

#[derive(Deserialize)]
struct AuthRequest {
    socket_id: String,
    channel_name: String,
}

/// Signs a subscription, as a customer's backend would for a user who is logged in.
async fn authorize_channel(State(page): State<Arc<DemoPage>>, Form(wanted): Form<AuthRequest>) -> Response {
    if !SocketId::is_valid(&wanted.socket_id) {
        return (StatusCode::BAD_REQUEST, "socket_id is not of the form 123.456").into_response();
    }
    let channel_data = wanted.channel_name.starts_with("presence-").then(|| {
        let user: String = wanted.socket_id.chars().take(4).collect();
        json!({ "user_id": format!("visitor-{user}"), "user_info": { "name": "A visitor of the page" } }).to_string()
    });
    let message = signature::channel_message(&wanted.socket_id, &wanted.channel_name, channel_data.as_deref());
    let signed = signature::sign_message(&page.demo.secret, message.as_bytes());
    let mut answer = json!({ "auth": format!("{}:{signed}", page.demo.key) });
    if let Some(data) = channel_data {
        answer["channel_data"] = data.into();
    }
    Json(answer).into_response()
}

async fn stream_webhooks(State(page): State<Arc<DemoPage>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let later = page.delivered.subscribe();
    let kept: Vec<DeliveredWebhook> =
        page.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
    let later = stream::unfold(later, |mut later| async {
        loop {
            match later.recv().await {
                Ok(webhook) => return Some((webhook, later)),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    let all = stream::iter(kept).chain(later).take_until(page.shutdown.clone().cancelled_owned());
    let events = all.map(|webhook| Ok(Event::default().data(serde_json::to_string(&webhook).unwrap_or_default())));
    Sse::new(events).keep_alive(KeepAlive::default())
}
