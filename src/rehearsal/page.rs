//! The page to try the cluster with: pusher-js in a browser, on each transport, with the webhooks beside it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
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

use super::fault_control::FaultControl;
use super::faults::Fault;
use super::hop_board::HopBoard;
use super::pods::EdgeAddresses;
use super::webhook_receiver::DeliveredWebhook;
use crate::desired::ValidCluster;
use crate::gate::Hop;
use crate::prober::HopTick;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::{AppId, AppKey, Secret, SocketId, Transport, signature};

const INDEX_HTML: &str = include_str!("page/index.html");
const SCRIPT_JS: &str = include_str!("page/page.js");
const SOCKJS_JS: &str = include_str!("page/sockjs.js");
const STYLE_CSS: &str = include_str!("page/page.css");
const PUSHER_JS: &str = include_str!("../../third_party/pusher-js/pusher.min.js");

/// Interval of states: hops of many journeys pass at once.
const STATE_INTERVAL: Duration = Duration::from_millis(100);

/// Webhooks that are shown to a page that is opened later.
const RECENT_WEBHOOKS_MAX: usize = 50;

/// The app that the page connects to.
#[derive(Clone, Debug)]
pub struct DemoSettings {
    /// The id of the app.
    pub id: AppId,
    /// The public key of the app.
    pub key: AppKey,
    /// Its secret, with which the page's server signs subscriptions.
    pub secret: Secret,
    /// The endpoints that get its webhooks: name and address.
    pub endpoints: Vec<(String, String)>,
    /// The transports of the cluster.
    pub transports: Vec<Transport>,
}

impl DemoSettings {
    /// The page connects to the first app that lets clients send; failing that, to the first.
    pub fn of_cluster(cluster: &ValidCluster) -> Self {
        let mut apps: Vec<_> = cluster.registry.apps().filter(|app| app.id != cluster.probe.id).collect();
        apps.sort_by_key(|app| !app.client_events);
        let app = apps.first();
        let credential = app.and_then(|app| app.signing_credential());
        let endpoints = app.map_or_else(Vec::new, |app| {
            app.webhooks.iter().map(|endpoint| (endpoint.name.clone(), endpoint.url.clone())).collect()
        });
        Self {
            id: app.map_or_else(|| cluster.probe.id.clone(), |app| app.id.clone()),
            key: credential.map_or_else(|| cluster.probe.key.clone(), |credential| credential.key.clone()),
            secret: credential.map_or_else(|| cluster.probe.secret.clone(), |credential| credential.secret.clone()),
            endpoints,
            transports: Transport::ALL.into_iter().filter(|found| cluster.serves_transport(*found)).collect(),
        }
    }
}

/// The sources of all that the page shows.
pub struct PageSources {
    /// The app that the page connects to.
    pub demo: DemoSettings,
    /// The edges' addresses, which may change when pods restart.
    pub addresses: watch::Receiver<EdgeAddresses>,
    /// The verdict, once there is one.
    pub verdict: watch::Receiver<Option<Value>>,
    /// The hops of the journeys, if any run.
    pub hops: Option<broadcast::Receiver<HopTick>>,
    /// The webhooks to customers' endpoints.
    pub delivered: broadcast::Sender<DeliveredWebhook>,
    /// The switches of the faults.
    pub faults: FaultControl,
}

struct DemoPage {
    demo: DemoSettings,
    addresses: watch::Receiver<EdgeAddresses>,
    verdict: watch::Receiver<Option<Value>>,
    board: watch::Sender<HopBoard>,
    faults: FaultControl,
    delivered: broadcast::Sender<DeliveredWebhook>,
    recent: Mutex<VecDeque<DeliveredWebhook>>,
    shutdown: CancellationToken,
}

/// Serves the page until the token ends it.
pub fn serve(listener: TcpListener, sources: PageSources, shutdown: CancellationToken) -> tokio::task::JoinHandle<()> {
    let PageSources { demo, addresses, verdict, hops, delivered, faults } = sources;
    let incoming = delivered.subscribe();
    let page = Arc::new(DemoPage {
        demo,
        addresses,
        verdict,
        board: watch::Sender::new(HopBoard::default()),
        faults,
        delivered,
        recent: Mutex::default(),
        shutdown: shutdown.clone(),
    });
    let asset =
        |kind: &'static str, text: &'static str| get(move || async move { ([(header::CONTENT_TYPE, kind)], text) });
    let router = Router::new()
        .route("/", asset("text/html; charset=utf-8", INDEX_HTML))
        .route("/page.js", asset("text/javascript; charset=utf-8", SCRIPT_JS))
        .route("/sockjs.js", asset("text/javascript; charset=utf-8", SOCKJS_JS))
        .route("/page.css", asset("text/css; charset=utf-8", STYLE_CSS))
        .route("/pusher.js", asset("text/javascript; charset=utf-8", PUSHER_JS))
        .route("/config.json", get(serve_config))
        .route("/state", get(stream_state))
        .route("/auth", post(authorize_channel))
        .route("/webhooks", get(stream_webhooks))
        .route("/faults", get(list_faults))
        .route("/faults/{name}", post(switch_fault))
        .layer(axum::middleware::from_fn(refuse_foreign_pages))
        .with_state(page.clone());
    tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
        tokio::select! {
            () = page.keep_webhooks(incoming) => {}
            () = page.keep_hops(hops) => {}
            result = served => if let Err(error) = result { tracing::error!(%error, "page server failed"); },
        }
    })
}

/// Refuses requests that another site made this browser send: a fault changes the cluster, and the page signs
/// subscriptions.
async fn refuse_foreign_pages(request: Request, next: Next) -> Response {
    if is_own_page(request.headers()) {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "this page answers its own address on this machine only").into_response()
    }
}

fn is_own_page(headers: &HeaderMap) -> bool {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let own_origin = text(header::ORIGIN).is_none_or(|origin| origin == format!("http://{host}"));
    ["127.0.0.1", "localhost"].contains(&name) && own_origin
}

impl DemoPage {
    async fn keep_webhooks(&self, mut incoming: broadcast::Receiver<DeliveredWebhook>) {
        loop {
            match incoming.recv().await {
                Ok(webhook) => self.add_recent(webhook),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    /// Keeps the latest results of hops; those of before a switched fault are forgotten.
    async fn keep_hops(&self, hops: Option<broadcast::Receiver<HopTick>>) {
        let Some(mut hops) = hops else { return std::future::pending().await };
        let mut faults = self.faults.subscribe();
        loop {
            tokio::select! {
                Ok(()) = faults.changed() => self.board.send_modify(HopBoard::clear),
                tick = hops.recv() => match tick {
                    Ok(tick) => self.board.send_modify(|board| board.note_hop(&tick)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                },
            }
        }
    }

    fn describe_faults(&self) -> Value {
        let active = self.faults.active();
        let row = |fault: Fault| json!({ "name": fault.name(), "help": fault.help(), "on": active.contains(&fault) });
        Fault::ALL.map(row).into_iter().collect()
    }

    fn describe_state(&self) -> Value {
        let addresses = *self.addresses.borrow();
        let endpoint = |(name, url): &(String, String)| json!({ "name": name, "url": url });
        json!({
            "app": self.demo.id,
            "key": self.demo.key,
            "endpoints": self.demo.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
            "transports": self.demo.transports.iter().map(|transport| transport.name()).collect::<Vec<_>>(),
            "hopNames": Hop::ALL.map(Hop::name),
            "websocket": addresses.websocket.map(host_port),
            "sockjs": addresses.sockjs.map(host_port),
            "verdict": self.verdict.borrow().clone(),
            "hops": self.board.borrow().to_json(),
            "faults": self.describe_faults(),
        })
    }

    fn add_recent(&self, webhook: DeliveredWebhook) {
        let mut kept = lock_unpoisoned(&self.recent);
        if kept.len() == RECENT_WEBHOOKS_MAX {
            kept.pop_front();
        }
        kept.push_back(webhook);
    }
}

async fn serve_config(State(page): State<Arc<DemoPage>>) -> Json<Value> {
    Json(page.describe_state())
}

/// Streams the state whenever a part of it changes.
async fn stream_state(State(page): State<Arc<DemoPage>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (addresses, verdict) = (page.addresses.clone(), page.verdict.clone());
    let (board, faults, shutdown) = (page.board.subscribe(), page.faults.subscribe(), page.shutdown.clone());
    let first = (page, addresses, verdict, board, faults, true);
    let states = stream::unfold(first, |(page, mut addresses, mut verdict, mut board, mut faults, first)| async move {
        if !first {
            let changed = tokio::select! {
                changed = addresses.changed() => changed,
                changed = verdict.changed() => changed,
                changed = board.changed() => changed,
                changed = faults.changed() => changed,
            };
            changed.ok()?;
            tokio::time::sleep(STATE_INTERVAL).await;
        }
        for seen in [&mut addresses as &mut dyn MarkSeen, &mut verdict, &mut board, &mut faults] {
            seen.mark_seen();
        }
        let event = Event::default().data(page.describe_state().to_string());
        Some((Ok(event), (page, addresses, verdict, board, faults, false)))
    });
    Sse::new(states.take_until(shutdown.cancelled_owned())).keep_alive(KeepAlive::default())
}

/// A followed value whose changes so far are about to be shown.
trait MarkSeen: Send {
    fn mark_seen(&mut self);
}

impl<T: Send + Sync> MarkSeen for watch::Receiver<T> {
    fn mark_seen(&mut self) {
        self.mark_unchanged();
    }
}

async fn list_faults(State(page): State<Arc<DemoPage>>) -> Json<Value> {
    Json(page.describe_faults())
}

/// Switches a fault; the body is `on` or `off`.
async fn switch_fault(State(page): State<Arc<DemoPage>>, Path(name): Path<String>, body: String) -> Response {
    let fault: Fault = match name.parse() {
        Ok(fault) => fault,
        Err(error) => return (StatusCode::NOT_FOUND, error).into_response(),
    };
    let on = match body.trim() {
        "on" => true,
        "off" => false,
        other => return (StatusCode::BAD_REQUEST, format!("`{other}` is no state: write on or off")).into_response(),
    };
    match page.faults.switch(fault, on).await {
        Ok(()) => Json(page.describe_faults()).into_response(),
        Err(error) => (StatusCode::CONFLICT, error.to_string()).into_response(),
    }
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
    let kept: Vec<DeliveredWebhook> = lock_unpoisoned(&page.recent).iter().cloned().collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_itself_is_answered() {
        for (host, origin, answered) in [
            ("127.0.0.1:8420", None, true),
            ("localhost:8420", Some("http://localhost:8420"), true),
            ("127.0.0.1:8420", Some("https://elsewhere.example"), false),
            ("127.0.0.1:8420", Some("null"), false),
            ("rebound.example:8420", None, false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().expect("a value"));
            headers.extend(origin.map(|origin| (header::ORIGIN, origin.parse().expect("a value"))));
            assert_eq!(is_own_page(&headers), answered, "{host} {origin:?}");
        }
    }
}
