//! The customers' endpoints: a receiver for every one outside, and the way to one on loopback, which really gets its
//! webhooks. Both are shown with the answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::RehearsalError;
use crate::protocol::registry::{App, AppRegistry};
use crate::protocol::webhook;

/// Longest for an endpoint's answer; the dispatcher gives up sooner.
const FORWARD_TIMEOUT: Duration = Duration::from_mins(1);

/// Queue length for a slow reader, which learns the number of webhooks that it missed.
const DELIVERY_QUEUE_LEN: usize = 4096;

/// Path at which a webhook is acknowledged and dropped.
const DROP_PATH: &str = "/dropped";

/// A webhook that was posted to an app's endpoint.
#[derive(Clone, Debug, Serialize)]
pub struct DeliveredWebhook {
    /// The app of the endpoint.
    pub app: String,
    /// The endpoint's name within the app.
    pub endpoint: String,
    /// The address of the endpoint.
    pub url: String,
    /// The answer's status; `None` without an answer.
    pub status: Option<u16>,
    /// The cause of a refusal or of a missing answer; empty otherwise.
    pub error: String,
    /// The signed body, as sent.
    pub body: Value,
}

#[derive(Deserialize)]
struct OutsideTarget {
    url: String,
}

struct CustomerEndpoints {
    registry: AppRegistry,
    http: reqwest::Client,
    delivered: broadcast::Sender<DeliveredWebhook>,
}

/// The webhooks as they arrive, and the task that receives them.
type ReceiverParts = (broadcast::Sender<DeliveredWebhook>, tokio::task::JoinHandle<()>);

/// Serves the customers' endpoints until the token ends it.
///
/// # Errors
/// No HTTP client can be made.
pub fn serve(
    listener: TcpListener,
    registry: AppRegistry,
    shutdown: CancellationToken,
) -> Result<ReceiverParts, RehearsalError> {
    let (sender, _) = broadcast::channel(DELIVERY_QUEUE_LEN);
    let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    let http = http.timeout(FORWARD_TIMEOUT).build().map_err(|error| RehearsalError::Http(error.to_string()))?;
    let outside = Arc::new(CustomerEndpoints { registry, http, delivered: sender.clone() });
    let router = Router::new().route("/", post(receive_webhook)).route(DROP_PATH, post(StatusCode::OK));
    let router = router.with_state(outside);
    let task = tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "webhook receiver failed");
        }
    });
    Ok((sender, task))
}

async fn receive_webhook(
    State(outside): State<Arc<CustomerEndpoints>>,
    Query(to): Query<OutsideTarget>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (key, signature) = (text(webhook::KEY_HEADER), text(webhook::SIGNATURE_HEADER));
    let Some(app) = outside.registry.by_key(key) else { return StatusCode::FORBIDDEN.into_response() };
    let Ok(parsed) = serde_json::from_slice(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    let (response, status, error) = if to.url.parse().is_ok_and(|url: Url| is_loopback(&url)) {
        forward_webhook(&outside.http, &to.url, &headers, body).await
    } else {
        judge_webhook(app, (key, signature), &body)
    };
    let endpoint = app.webhooks.iter().find(|endpoint| endpoint.url == to.url);
    let delivered = DeliveredWebhook {
        app: app.id.to_string(),
        endpoint: endpoint.map(|endpoint| endpoint.name.clone()).unwrap_or_default(),
        url: to.url,
        status,
        error,
        body: parsed,
    };
    // No reader is no error: a rehearsal that only asks for the verdict has none.
    let _ = outside.delivered.send(delivered);
    response
}

/// The answer of an endpoint outside: it accepts an authentic webhook.
fn judge_webhook(app: &App, (key, signature): (&str, &str), body: &[u8]) -> (Response, Option<u16>, String) {
    let authentic = app.secret_for(key).is_some_and(|secret| webhook::verify_webhook(secret, body, signature));
    let (status, error) =
        if authentic { (StatusCode::OK, "") } else { (StatusCode::FORBIDDEN, "the signature does not verify") };
    (status.into_response(), Some(status.as_u16()), error.to_owned())
}

/// Posts a webhook to an endpoint on loopback, and returns its answer.
async fn forward_webhook(
    http: &reqwest::Client,
    url: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> (Response, Option<u16>, String) {
    let hop_by_hop = [header::HOST, header::CONTENT_LENGTH, header::CONNECTION, header::TRANSFER_ENCODING];
    let mut request = http.post(url).body(body);
    for (name, value) in headers.iter().filter(|(name, _)| !hop_by_hop.contains(name)) {
        request = request.header(name, value);
    }
    match request.send().await {
        Ok(answer) => {
            let (status, retry) = (answer.status(), answer.headers().get(header::RETRY_AFTER).cloned());
            let mut response = status.into_response();
            response.headers_mut().extend(retry.map(|value| (header::RETRY_AFTER, value)));
            (response, Some(status.as_u16()), String::new())
        }
        Err(error) => {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(source) = cause.source() {
                cause = source;
            }
            (StatusCode::BAD_GATEWAY.into_response(), None, cause.to_string())
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// The address at which a webhook is acknowledged and dropped.
#[must_use]
pub fn dropped_url(outside: SocketAddr) -> Option<Url> {
    Url::parse(&format!("http://{outside}{DROP_PATH}")).ok()
}

/// Route to the operator's receiver.
#[derive(Clone, Copy, Debug)]
pub struct ReceiverRoute<'a> {
    /// `HOST:PORT` that dispatchers are configured with.
    pub host: &'a str,
    /// `HOST:PORT` at which the receiver listens here.
    pub address: &'a str,
}

/// Routes `url` to the operator's receiver or to the customers' endpoints.
#[must_use]
pub fn route_url(url: &Url, receiver: ReceiverRoute<'_>, outside: SocketAddr) -> Option<Url> {
    let host = url.host_str()?;
    let port = url.port_or_known_default()?;
    if format!("{host}:{port}") == receiver.host {
        return Url::parse(&format!("http://{}{}", receiver.address, url.path())).ok();
    }
    let mut target = Url::parse(&format!("http://{outside}/")).ok()?;
    target.query_pairs_mut().append_pair("url", url.as_str());
    Some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_reached_by_its_own_address_on_loopback_alone() {
        let outside = SocketAddr::from(([127, 0, 0, 1], 2));
        let go = |url: &str| {
            let url = Url::parse(url).expect("an address");
            let receiver = ReceiverRoute { host: "receiver.svc:8090", address: "127.0.0.1:1" };
            (route_url(&url, receiver, outside).map(String::from), is_loopback(&url))
        };
        let through = |url: &str| Some(format!("http://127.0.0.1:2/?url={url}"));
        for (url, expected, loopback) in [
            ("http://receiver.svc:8090/webhooks", Some("http://127.0.0.1:1/webhooks".to_owned()), false),
            ("https://a.example/x", through("https%3A%2F%2Fa.example%2Fx"), false),
            ("http://127.0.0.1:9/hook", through("http%3A%2F%2F127.0.0.1%3A9%2Fhook"), true),
            ("http://localhost:9/hook", through("http%3A%2F%2Flocalhost%3A9%2Fhook"), true),
        ] {
            assert_eq!(go(url), (expected, loopback), "{url}");
        }
    }
}
