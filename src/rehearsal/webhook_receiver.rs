//! The world outside: a receiver where every webhook ends whose endpoint is not on loopback.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::protocol::registry::AppRegistry;
use crate::protocol::webhook;

/// Queue length for a slow reader, which learns the number of webhooks that it missed.
const DELIVERY_QUEUE_LEN: usize = 4096;

/// A webhook that arrived, its signature verified.
#[derive(Clone, Debug, Serialize)]
pub struct DeliveredWebhook {
    /// The app of the endpoint.
    pub app: String,
    /// The endpoint's name within the app.
    pub endpoint: String,
    /// The signed body, as sent.
    pub body: Value,
}

#[derive(Deserialize)]
struct OutsideTarget {
    url: String,
}

struct CustomerEndpoints {
    registry: AppRegistry,
    delivered: broadcast::Sender<DeliveredWebhook>,
}

/// Serves the world outside until the token ends it.
pub fn serve(
    listener: TcpListener,
    registry: AppRegistry,
    shutdown: CancellationToken,
) -> (broadcast::Sender<DeliveredWebhook>, tokio::task::JoinHandle<()>) {
    let (sender, _) = broadcast::channel(DELIVERY_QUEUE_LEN);
    let outside = Arc::new(CustomerEndpoints { registry, delivered: sender.clone() });
    let router = Router::new().route("/", post(receive_webhook)).with_state(outside);
    let task = tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "webhook receiver failed");
        }
    });
    (sender, task)
}

async fn receive_webhook(
    State(outside): State<Arc<CustomerEndpoints>>,
    Query(to): Query<OutsideTarget>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (key, signature) = (text(webhook::KEY_HEADER), text(webhook::SIGNATURE_HEADER));
    let Some(app) = outside.registry.by_key(key) else { return StatusCode::FORBIDDEN };
    if !app.secret_for(key).is_some_and(|secret| webhook::verify_webhook(secret, &body, signature)) {
        return StatusCode::FORBIDDEN;
    }
    let Ok(body) = serde_json::from_slice(&body) else { return StatusCode::BAD_REQUEST };
    let endpoint = app.webhooks.iter().find(|endpoint| endpoint.url == to.url);
    let delivered = DeliveredWebhook {
        app: app.id.to_string(),
        endpoint: endpoint.map(|endpoint| endpoint.name.clone()).unwrap_or_default(),
        body,
    };
    // No reader is no error: a rehearsal that only asks for the verdict has none.
    let _ = outside.delivered.send(delivered);
    StatusCode::OK
}

/// Route to the operator's receiver.
#[derive(Clone, Copy, Debug)]
pub struct ReceiverRoute<'a> {
    /// `HOST:PORT` that dispatchers are configured with.
    pub host: &'a str,
    /// Address at which the receiver listens here.
    pub address: SocketAddr,
}

/// Routes `url` to the operator's receiver, to this receiver for outside hosts, or, on loopback, to itself.
#[must_use]
pub fn route_url(url: &Url, receiver: ReceiverRoute<'_>, outside: SocketAddr) -> Option<Url> {
    let host = url.host_str()?;
    let port = url.port_or_known_default()?;
    if format!("{host}:{port}") == receiver.host {
        return Url::parse(&format!("http://{}{}", receiver.address, url.path())).ok();
    }
    let loopback = match url.host()? {
        url::Host::Ipv4(address) => address.is_loopback(),
        url::Host::Ipv6(address) => address.is_loopback(),
        url::Host::Domain(name) => name == "localhost",
    };
    if loopback {
        return None;
    }
    let mut target = Url::parse(&format!("http://{outside}/")).ok()?;
    target.query_pairs_mut().append_pair("url", url.as_str());
    Some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_really_reached() {
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let go = |url: &str| {
            let url = Url::parse(url).expect("an address");
            route_url(&url, ReceiverRoute { host: "receiver.svc:8090", address: address(1) }, address(2))
                .map(String::from)
        };
        assert_eq!(go("http://receiver.svc:8090/webhooks").as_deref(), Some("http://127.0.0.1:1/webhooks"));
        assert_eq!(go("https://a.example/x").as_deref(), Some("http://127.0.0.1:2/?url=https%3A%2F%2Fa.example%2Fx"));
        assert_eq!(go("http://127.0.0.1:9/hook"), None);
        assert_eq!(go("http://localhost:9/hook"), None);
    }
}
