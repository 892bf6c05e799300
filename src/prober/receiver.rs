//! The webhook receiver: verifies for itself, and passes each event to the journey that waits for it.
//!
//! A webhook counts for a journey if the key and the secret of the journey's own cluster signed it. The address that
//! posted it names the dispatcher.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::ProbeApp;
use super::nonce::nonce_of;
use crate::process::heartbeat::Heartbeat;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::AppId;
use crate::protocol::webhook::{self, WebhookBody, WebhookEvent};

/// Largest body: a dispatcher sends 256 KiB.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Interval at which the receiver asks itself.
const SELF_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Bounds one request of the receiver to itself.
const SELF_CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time in which the receiver answers none of its own requests: several of them, and less than the time in which
/// webhooks that do not arrive close a gate.
pub const RECEIVER_SILENCE_MAX: Duration = Duration::from_secs(20);

/// Path by which the receiver asks itself.
const SELF_CHECK_PATH: &str = "/livez";

/// Events that wait for one journey, which causes twelve.
const WEBHOOK_QUEUE_LEN: usize = 64;

/// An event that arrived for a journey.
#[derive(Clone, Debug)]
pub(super) struct ReceivedWebhook {
    /// The event, as a customer reads it.
    pub event: WebhookEvent,
    /// Whether key, signature and form are right; the text says what is wrong.
    pub authentic: Result<(), String>,
    /// The address that posted the webhook.
    pub sender: IpAddr,
}

/// The receiver. Cheap to clone.
#[derive(Clone)]
pub struct WebhookReceiver {
    address: SocketAddr,
    state: Arc<ReceiverState>,
}

#[derive(Default)]
struct ReceiverState {
    /// The probe apps of the clusters under proof; without any, another replica leads.
    apps: Mutex<BTreeSet<AppId>>,
    /// Journeys by the nonce in their channels' names.
    claims: Mutex<HashMap<String, ClaimEntry>>,
    unclaimed: AtomicU64,
}

/// The journey that waits for the webhooks of a nonce.
#[derive(Clone)]
struct ClaimEntry {
    /// The probe app of the journey's cluster: no other app's signature counts.
    app: ProbeApp,
    sender: mpsc::Sender<ReceivedWebhook>,
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
        lock_unpoisoned(&self.state.claims).remove(&self.nonce);
    }
}

impl WebhookReceiver {
    /// Serves on `listener` until the token ends it, and reports through the heartbeat that requests are answered.
    ///
    /// # Errors
    /// The listener has no address, or no HTTP client can be made on this machine.
    pub fn start(listener: TcpListener, heartbeat: Heartbeat, shutdown: CancellationToken) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let desk = Arc::new(ReceiverState::default());
        let router = Router::new()
            .route("/webhooks", post(receive_webhook))
            .route(SELF_CHECK_PATH, get(|| std::future::ready(StatusCode::OK)))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(desk.clone());
        let http = reqwest::Client::builder().no_proxy().build().map_err(std::io::Error::other)?;
        tokio::spawn(async move {
            let serving = axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>())
                .with_graceful_shutdown(shutdown.cancelled_owned())
                .into_future();
            // Both in one task, which owns the heartbeat: a listener that ends, a task that is not run and a listener that
            // accepts nothing are all noticed.
            tokio::select! {
                served = serving => if let Err(error) = served {
                    tracing::error!(%error, "webhook receiver failed");
                },
                () = report_answers(&http, address, &heartbeat) => {}
            }
        });
        Ok(Self { address, state: desk })
    }

    /// The address of the listener.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds the probe app of a cluster. Before the first app, senders get 503 and retry.
    pub(super) fn accept_app(&self, id: AppId) {
        lock_unpoisoned(&self.state.apps).insert(id);
    }

    /// Forgets an app, of a cluster that is gone.
    pub fn forget_app(&self, id: &AppId) {
        lock_unpoisoned(&self.state.apps).remove(id);
    }

    /// Waits for the events of a nonce, signed by `app`. A nonce is claimed once.
    pub(super) fn claim_webhooks(&self, nonce: &str, app: &ProbeApp) -> WebhookClaim {
        let (sender, events) = mpsc::channel(WEBHOOK_QUEUE_LEN);
        lock_unpoisoned(&self.state.claims).insert(nonce.to_owned(), ClaimEntry { app: app.clone(), sender });
        WebhookClaim { nonce: nonce.to_owned(), state: self.state.clone(), events }
    }

    /// Number of events that belong to no running journey.
    pub(super) fn unclaimed_count(&self) -> u64 {
        self.state.unclaimed.load(Ordering::Relaxed)
    }
}

/// Reports progress each time the listener answers a request. Never ends.
async fn report_answers(http: &reqwest::Client, address: SocketAddr, heartbeat: &Heartbeat) {
    let url = format!("http://{}{SELF_CHECK_PATH}", loopback_of(address));
    loop {
        // A connection of its own each time: one that is kept open says nothing of the listener.
        let request = http.get(&url).header(header::CONNECTION, "close").timeout(SELF_CHECK_TIMEOUT);
        match request.send().await {
            Ok(answer) if answer.status().is_success() => heartbeat.beat(),
            Ok(answer) => tracing::warn!(status = %answer.status(), "webhook receiver refuses its own request"),
            Err(error) => tracing::warn!(%error, "webhook receiver does not answer its own request"),
        }
        sleep(SELF_CHECK_INTERVAL).await;
    }
}

/// The address under which this machine reaches a listener.
fn loopback_of(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

async fn receive_webhook(
    State(desk): State<Arc<ReceiverState>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    if lock_unpoisoned(&desk.apps).is_empty() {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let Ok(parsed) = serde_json::from_slice::<WebhookBody>(&body) else {
        desk.unclaimed.fetch_add(1, Ordering::Relaxed);
        return StatusCode::BAD_REQUEST;
    };
    let sender = peer.ip().to_canonical();
    // The events of one body are of one app, so that its signature is verified once, and once more for a control journey, which
    // has another secret.
    let mut verified: Option<(ProbeApp, Result<(), String>)> = None;
    for event in parsed.events {
        let Some(claim) = find_claim(&desk, &event) else {
            desk.unclaimed.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let authentic = match verified.take() {
            Some((app, result)) if is_same_app(&app, &claim.app) => result,
            _ => authenticate_webhook(&claim.app, &headers, &body),
        };
        verified = Some((claim.app.clone(), authentic.clone()));
        // A journey that is over, or was flooded, needs no more; at-least-once delivery may repeat.
        if claim.sender.try_send(ReceivedWebhook { event, authentic, sender }).is_err() {
            desk.unclaimed.fetch_add(1, Ordering::Relaxed);
        }
    }
    StatusCode::OK
}

fn is_same_app(one: &ProbeApp, other: &ProbeApp) -> bool {
    one.id == other.id && one.key == other.key && one.secret.expose() == other.secret.expose()
}

fn find_claim(desk: &ReceiverState, event: &WebhookEvent) -> Option<ClaimEntry> {
    lock_unpoisoned(&desk.claims).get(nonce_of(&event.channel)?).cloned()
}

fn authenticate_webhook(app: &ProbeApp, headers: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (key, kind) = (text(webhook::KEY_HEADER), text(header::CONTENT_TYPE.as_str()));
    if key != app.key.as_str() {
        return Err(format!("{} is `{key}`, which is not the key of this cluster's journeys", webhook::KEY_HEADER));
    }
    if !webhook::verify_webhook(&app.secret, body, text(webhook::SIGNATURE_HEADER)) {
        return Err(format!("{} does not verify", webhook::SIGNATURE_HEADER));
    }
    if kind != webhook::CONTENT_TYPE {
        return Err(format!("the content type is `{kind}`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::heartbeat::{Heartbeats, TaskFault};
    use crate::protocol::{Secret, signature};

    fn probe_app(id: &str, key: &str, secret: &str) -> ProbeApp {
        ProbeApp { id: id.into(), key: key.into(), secret: Secret::new(secret) }
    }

    async fn post(receiver: &WebhookReceiver, (key, secret): (&str, &str), body: &str) -> u16 {
        crate::process::install_tls();
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let signature = signature::sign_message(&Secret::new(secret), body.as_bytes());
        let request = client
            .post(format!("http://{}/webhooks", receiver.address()))
            .header("content-type", "application/json")
            .header(webhook::KEY_HEADER, key)
            .header(webhook::SIGNATURE_HEADER, signature)
            .body(body.to_owned());
        request.send().await.expect("an answer").status().as_u16()
    }

    async fn next_event(claim: &mut WebhookClaim) -> ReceivedWebhook {
        let next = tokio::time::timeout(Duration::from_secs(5), claim.events.recv());
        next.await.expect("in time").expect("an event")
    }

    async fn start_receiver(shutdown: &CancellationToken) -> WebhookReceiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let heartbeat = Heartbeats::default().register("receiver", None, shutdown);
        WebhookReceiver::start(listener, heartbeat, shutdown.clone()).expect("a receiver")
    }

    #[tokio::test]
    async fn events_reach_the_journey_that_claimed_them_with_a_word_on_the_signature() {
        let shutdown = CancellationToken::new();
        let receiver = start_receiver(&shutdown).await;
        let body = r#"{"time_ms":1,"events":[{"name":"channel_occupied","channel":"private-cache-probe-n1","id":"a"},
                       {"name":"channel_occupied","channel":"presence-probe-n2","id":"b"}]}"#;
        assert_eq!(post(&receiver, ("k", "s"), body).await, 503, "no cluster is under proof here yet");
        receiver.accept_app("1".into());
        let mut claim = receiver.claim_webhooks("n1", &probe_app("1", "k", "s"));
        assert_eq!(post(&receiver, ("k", "s"), body).await, 200);
        assert_eq!(post(&receiver, ("k", "wrong"), body).await, 200);
        assert_eq!(post(&receiver, ("k", "s"), "rubbish").await, 400);
        let good = next_event(&mut claim).await;
        assert_eq!((good.authentic, good.sender), (Ok(()), IpAddr::from([127, 0, 0, 1])));
        let forged = next_event(&mut claim).await;
        assert!(forged.authentic.is_err_and(|error| error.contains("does not verify")));
        assert_eq!(receiver.unclaimed_count(), 3, "two of another nonce and the rubbish");
        let mut first = receiver.claim_webhooks("n1", &probe_app("1", "k", "s"));
        let mut control = receiver.claim_webhooks("n2", &probe_app("1", "k", "another"));
        assert_eq!(post(&receiver, ("k", "s"), body).await, 200);
        assert_eq!(next_event(&mut first).await.authentic, Ok(()));
        assert!(next_event(&mut control).await.authentic.is_err(), "each event is verified by its own claim");
        shutdown.cancel();
    }

    #[tokio::test]
    async fn a_receiver_that_is_served_reports_progress_and_one_that_ends_has_ended() {
        crate::process::install_tls();
        let (heartbeats, shutdown) = (Heartbeats::default(), CancellationToken::new());
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
        // So short that nothing but its own requests keeps it alive.
        let heartbeat = heartbeats.register("receiver", Some(Duration::ZERO), &shutdown);
        let ended = CancellationToken::new();
        WebhookReceiver::start(listener, heartbeat, ended.clone()).expect("a receiver");
        let silence = || match heartbeats.check() {
            Err(TaskFault::Silent { silence, .. }) => silence,
            other => panic!("{other:?}"),
        };
        sleep(Duration::from_millis(300)).await;
        let before = silence();
        sleep(SELF_CHECK_INTERVAL).await;
        assert!(silence() < before + SELF_CHECK_INTERVAL / 2, "{:?} after {before:?}", silence());
        ended.cancel();
        sleep(Duration::from_millis(300)).await;
        assert!(matches!(heartbeats.check(), Err(TaskFault::Ended { .. })));
    }

    /// The time of this test is the runtime's, and passes at once: no other socket is used in it.
    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_accepts_connections_and_answers_nothing_fails_livez_and_then_the_process() {
        crate::process::install_tls();
        let (heartbeats, shutdown) = (Heartbeats::default(), CancellationToken::new());
        // The kernel accepts, and nobody reads.
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let heartbeat = heartbeats.register("webhook receiver", Some(RECEIVER_SILENCE_MAX), &shutdown);
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        tokio::spawn(async move { report_answers(&http, address, &heartbeat).await });
        sleep(RECEIVER_SILENCE_MAX).await;
        assert_eq!(heartbeats.check(), Ok(()), "as long as it may");
        sleep(Duration::from_secs(1)).await;
        let fault = heartbeats.check().expect_err("a silent receiver");
        assert!(matches!(&fault, TaskFault::Silent { task, .. } if task == "webhook receiver"), "{fault}");
        let ended = tokio::time::timeout(Duration::from_mins(1), heartbeats.wait_for_fault()).await;
        assert!(matches!(ended, Ok(TaskFault::Silent { .. })), "{ended:?}");
        drop(listener);
    }

    #[tokio::test]
    async fn a_webhook_that_another_cluster_signed_is_not_authentic() {
        let shutdown = CancellationToken::new();
        let receiver = start_receiver(&shutdown).await;
        let (ours, theirs) = (probe_app("1", "k1", "s1"), probe_app("2", "k2", "s2"));
        receiver.accept_app(ours.id.clone());
        receiver.accept_app(theirs.id.clone());
        let mut claim = receiver.claim_webhooks("n1", &ours);
        let mut other = receiver.claim_webhooks("n2", &theirs);
        let body = r#"{"time_ms":1,"events":[{"name":"channel_occupied","channel":"presence-probe-n1","id":"a"},
                       {"name":"channel_occupied","channel":"presence-probe-n2","id":"b"}]}"#;
        for (key, secret, error) in
            [("k2", "s2", "not the key of this cluster's journeys"), ("k1", "s2", "does not verify")]
        {
            assert_eq!(post(&receiver, (key, secret), body).await, 200);
            let forged = next_event(&mut claim).await;
            assert!(forged.authentic.clone().is_err_and(|told| told.contains(error)), "{key}: {forged:?}");
            let authentic = next_event(&mut other).await.authentic;
            assert_eq!(authentic.is_ok(), key == "k2", "each event is judged by its own journey's app");
        }
        shutdown.cancel();
    }
}
