//! The webhook receiver: verifies for itself, and hands each event to the journey that waits for it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ProbeApp;
use crate::process::heartbeat::Heartbeat;
use crate::protocol::webhook::{self, WebhookBody, WebhookEvent};
use crate::protocol::{AppId, AppKey};

/// Largest body: a dispatcher sends 256 KiB.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Events that wait for one journey, which causes twelve.
const WEBHOOK_QUEUE_LEN: usize = 64;

/// An event that arrived for a journey.
#[derive(Clone, Debug)]
pub(super) struct ReceivedWebhook {
    /// The event, as a customer reads it.
    pub event: WebhookEvent,
    /// Whether key, signature and form are right; the text says what is wrong.
    pub authentic: Result<(), String>,
}

/// The receiver. Cheap to clone.
#[derive(Clone)]
pub struct WebhookReceiver {
    address: SocketAddr,
    state: Arc<ReceiverState>,
}

#[derive(Default)]
struct ReceiverState {
    /// Apps whose signatures are accepted, by key.
    apps: Mutex<HashMap<AppKey, ProbeApp>>,
    /// Journeys by the nonce in their channels' names.
    claims: Mutex<HashMap<String, mpsc::Sender<ReceivedWebhook>>>,
    unclaimed: AtomicU64,
}

/// A journey's registration for webhooks, removed when dropped.
pub(super) struct WebhookClaim {
    nonce: String,
    state: Arc<ReceiverState>,
    /// Webhook events for the journey, in order of arrival.
    pub events: mpsc::Receiver<ReceivedWebhook>,
}

impl Drop for WebhookClaim {
    fn drop(&mut self) {
        lock_state(&self.state.claims).remove(&self.nonce);
    }
}

impl WebhookReceiver {
    /// Serves on `listener` until the token ends it.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn start(listener: TcpListener, heartbeat: Heartbeat, shutdown: CancellationToken) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let desk = Arc::new(ReceiverState::default());
        let router = Router::new()
            .route("/webhooks", post(receive_webhook))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(desk.clone());
        tokio::spawn(async move {
            // Dropped with the task: a listener that ends is noticed.
            let _heartbeat = heartbeat;
            let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await;
            if let Err(error) = served {
                tracing::error!(%error, "webhook receiver failed");
            }
        });
        Ok(Self { address, state: desk })
    }

    /// The address of the listener.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds an app whose signature is accepted, one per cluster. Before the first app, senders get 503 and retry.
    pub(super) fn accept_app(&self, app: ProbeApp) {
        let mut apps = lock_state(&self.state.apps);
        apps.retain(|_, known| known.id != app.id);
        apps.insert(app.key.clone(), app);
    }

    /// Forgets an app, of a cluster that is gone.
    pub fn forget_app(&self, id: &AppId) {
        lock_state(&self.state.apps).retain(|_, known| known.id != *id);
    }

    /// Waits for the events of a nonce. A nonce is claimed once.
    pub(super) fn claim_webhooks(&self, nonce: &str) -> WebhookClaim {
        let (sender, events) = mpsc::channel(WEBHOOK_QUEUE_LEN);
        lock_state(&self.state.claims).insert(nonce.to_owned(), sender);
        WebhookClaim { nonce: nonce.to_owned(), state: self.state.clone(), events }
    }

    /// Number of events that belong to no running journey.
    pub(super) fn unclaimed_count(&self) -> u64 {
        self.state.unclaimed.load(Ordering::Relaxed)
    }
}

async fn receive_webhook(State(desk): State<Arc<ReceiverState>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let key = headers.get(webhook::KEY_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let app = {
        let apps = lock_state(&desk.apps);
        if apps.is_empty() {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        apps.get(&AppKey::from(key)).cloned()
    };
    let authentic = match &app {
        Some(app) => authenticate_webhook(app, &headers, &body),
        None => Err(format!("{} is `{key}`", webhook::KEY_HEADER)),
    };
    let Ok(parsed) = serde_json::from_slice::<WebhookBody>(&body) else {
        desk.unclaimed.fetch_add(1, Ordering::Relaxed);
        return StatusCode::BAD_REQUEST;
    };
    for event in parsed.events {
        let Some(waiting) = find_claim(&desk, &event) else {
            desk.unclaimed.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        // A journey that is over, or was flooded, needs no more; at-least-once delivery may repeat.
        if waiting.try_send(ReceivedWebhook { event, authentic: authentic.clone() }).is_err() {
            desk.unclaimed.fetch_add(1, Ordering::Relaxed);
        }
    }
    StatusCode::OK
}

fn find_claim(desk: &ReceiverState, event: &WebhookEvent) -> Option<mpsc::Sender<ReceivedWebhook>> {
    let (_, nonce) = event.channel.as_str().split_once("-probe-")?;
    lock_state(&desk.claims).get(nonce).cloned()
}

fn authenticate_webhook(app: &ProbeApp, headers: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = text(header::CONTENT_TYPE.as_str());
    if !webhook::verify_webhook(&app.secret, body, text(webhook::SIGNATURE_HEADER)) {
        return Err(format!("{} does not verify", webhook::SIGNATURE_HEADER));
    }
    if kind != webhook::CONTENT_TYPE {
        return Err(format!("the content type is `{kind}`"));
    }
    Ok(())
}

fn lock_state<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::process::heartbeat::Heartbeats;
    use crate::protocol::{Secret, signature};

    async fn post(receiver: &WebhookReceiver, secret: &str, body: &str) -> u16 {
        crate::process::install_tls();
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let signature = signature::sign_message(&Secret::new(secret), body.as_bytes());
        let request = client
            .post(format!("http://{}/webhooks", receiver.address()))
            .header("content-type", "application/json")
            .header(webhook::KEY_HEADER, "k")
            .header(webhook::SIGNATURE_HEADER, signature)
            .body(body.to_owned());
        request.send().await.expect("an answer").status().as_u16()
    }

    #[tokio::test]
    async fn events_reach_the_journey_that_claimed_them_with_a_word_on_the_signature() {
        let shutdown = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let heartbeat = Heartbeats::default().register("receiver", None, &shutdown);
        let receiver = WebhookReceiver::start(listener, heartbeat, shutdown.clone()).expect("a receiver");
        let body = r#"{"time_ms":1,"events":[{"name":"channel_occupied","channel":"private-cache-probe-n1","id":"a"},
                       {"name":"channel_occupied","channel":"presence-probe-n2","id":"b"}]}"#;
        assert_eq!(post(&receiver, "s", body).await, 503, "nobody knows yet whose webhooks these are");
        receiver.accept_app(ProbeApp { id: "1".into(), key: "k".into(), secret: Secret::new("s") });
        let mut claim = receiver.claim_webhooks("n1");
        assert_eq!(post(&receiver, "s", body).await, 200);
        assert_eq!(post(&receiver, "wrong", body).await, 200);
        assert_eq!(post(&receiver, "s", "rubbish").await, 400);
        let next = async || tokio::time::timeout(Duration::from_secs(5), claim.events.recv()).await;
        let mut next = next;
        assert_eq!(next().await.expect("in time").expect("an event").authentic, Ok(()));
        let forged = next().await.expect("in time").expect("an event");
        assert!(forged.authentic.is_err_and(|error| error.contains("does not verify")));
        assert_eq!(receiver.unclaimed_count(), 3, "two of another nonce and the rubbish");
        shutdown.cancel();
    }
}
