//! One attempt: sign, post, judge the answer.
//!
//! In: a body. Out: the outcome of the attempt. The time of the next attempt is decided by the endpoint's queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use futures::StreamExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::Url;

use super::apps::RegistryReceiver;
use super::egress::connector::{ConnectFailure, ConnectorParts, EgressConnector};
use super::egress::phase::AttemptPhase;
use super::egress::resolver::NameResolver;
use super::endpoint::queue::{BATCH_EVENTS_MAX, CONCURRENT_ATTEMPTS_MAX};
use super::endpoint::{AttemptOutcome, AttemptReport, EndpointId, PendingDelivery};
use super::ledger::DeliveryHop;
use super::metrics::{DispatcherMetrics, ErrorSource, ResponseClass};
use super::retry::retry_after_ms;
use super::{EgressOverrides, RerouteFn};
use crate::process::clock::now_ms;
use crate::protocol::egress_policy::{EgressClass, EgressPolicy, EgressRefusal};
use crate::protocol::registry::{App, BatchMode, WebhookEndpoint};
use crate::protocol::signature;
use crate::protocol::webhook::{self, KEY_HEADER, ORIGINAL_TIME_HEADER, REPLAY_HEADER, SIGNATURE_HEADER};

/// Room for what a body has beside its events, and more.
const BODY_FRAME_BYTES: usize = 64;
/// Age from which a body carries the attempt's time, because an SDK refuses bodies of 300 s.
const RESTAMP_AGE_MS: u64 = 240_000;
/// Seconds for an attempt if the endpoint configures none.
const DEFAULT_ATTEMPT_TIMEOUT_SECONDS: u32 = 4;
/// Bounds the head of an answer.
const RESPONSE_HEAD_MAX_BYTES: usize = 64 * 1024;
/// Bounds the part of an answer that is read to keep its connection; a longer one closes it.
const RESPONSE_READ_MAX_BYTES: usize = 64 * 1024;
/// Bounds the `Retry-After` that is read; a date has 29 characters.
const RETRY_AFTER_LENGTH_MAX: usize = 40;
/// Longest wait for the rest of an answer.
const RESPONSE_DRAIN_TIMEOUT: Duration = Duration::from_millis(250);
/// Unused connections to one host that stay open. Endpoints of several apps may have one host, and each makes up to
/// [`CONCURRENT_ATTEMPTS_MAX`] attempts at a time: with fewer, bodies would wait for a handshake of TCP and TLS each.
const IDLE_CONNECTIONS_PER_HOST_MAX: usize = 8 * CONCURRENT_ATTEMPTS_MAX;
/// Time for which an unused connection stays open.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_mins(1);

/// Posts bodies; shared by the shards of a process.
pub struct WebhookSender {
    clients: HashMap<EgressClass, Client<EgressConnector, Body>>,
    policy: Arc<EgressPolicy>,
    reroute: Option<RerouteFn>,
    apps: RegistryReceiver,
    metrics: Arc<DispatcherMetrics>,
    is_replay: bool,
}

/// The reason why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum AttemptFailure {
    #[error(transparent)]
    Refused(#[from] EgressRefusal),
    #[error("answered {}", status.as_u16())]
    Answered {
        status: StatusCode,
        /// The header of that name.
        retry_after: Option<String>,
    },
    #[error("no answer: {0}")]
    Unanswered(String),
    #[error("the app has no active key to sign with: activate one")]
    NoKey,
    #[error("no request can be made: {0}")]
    Unsendable(String),
}

impl AttemptFailure {
    /// The failure as the owner of the endpoint reads it.
    fn describe(&self) -> String {
        match self {
            Self::Answered { status, .. } if status.is_redirection() => {
                format!("{}: write the final address, redirects are not followed", status.as_u16())
            }
            Self::Answered { status, retry_after: Some(after) } => format!("{}, Retry-After {after}", status.as_u16()),
            Self::Answered { status, retry_after: None } => status.as_u16().to_string(),
            Self::Unanswered(why) => why.clone(),
            other => other.to_string(),
        }
    }
}

impl WebhookSender {
    /// Builds the HTTP clients: one per egress class, since each resolves names by its own rule.
    ///
    /// # Errors
    /// TLS or the resolver cannot be set up.
    pub fn new(
        policy: Arc<EgressPolicy>,
        network: EgressOverrides,
        apps: RegistryReceiver,
        metrics: Arc<DispatcherMetrics>,
    ) -> Result<Self, String> {
        let tls = ClientConfig::builder().with_platform_verifier().map_err(|error| error.to_string())?;
        let parts = ConnectorParts {
            policy: Arc::clone(&policy),
            resolver: Arc::new(NameResolver::new(network.name_server)?),
            tls: TlsConnector::from(Arc::new(tls.with_no_client_auth())),
            source: network.source,
        };
        let clients = [EgressClass::Public, EgressClass::Private, EgressClass::Exempt].map(|class| {
            let client = Client::builder(TokioExecutor::new())
                .pool_idle_timeout(IDLE_CONNECTION_TIMEOUT)
                .pool_timer(TokioTimer::new())
                .pool_max_idle_per_host(IDLE_CONNECTIONS_PER_HOST_MAX)
                .http1_max_buf_size(RESPONSE_HEAD_MAX_BYTES)
                .build(EgressConnector { class, parts: parts.clone() });
            (class, client)
        });
        Ok(Self { clients: clients.into(), policy, reroute: network.reroute, apps, metrics, is_replay: false })
    }

    /// Marks every body as sent by a replay.
    #[must_use]
    pub fn mark_replays(self) -> Self {
        Self { is_replay: true, ..self }
    }

    /// Number of events of a body that an endpoint takes.
    pub fn batch_limit(&self, target: &EndpointId) -> usize {
        let registry = self.apps.borrow();
        let endpoint = registry.by_id(&target.app).and_then(|app| app.find_webhook(&target.endpoint));
        match endpoint.map(|endpoint| endpoint.batch) {
            Some(BatchMode::One) => 1,
            Some(BatchMode::Many) | None => BATCH_EVENTS_MAX,
        }
    }

    /// Makes one attempt to post a body.
    pub async fn send_batch(&self, target: &EndpointId, batch: &[PendingDelivery]) -> AttemptReport {
        let registry = Arc::clone(&self.apps.borrow());
        let app = registry.by_id(&target.app);
        let Some((app, endpoint)) = app.and_then(|app| Some((app, app.find_webhook(&target.endpoint)?))) else {
            self.metrics.clear_error(&ErrorSource::Endpoint(target.to_string()));
            let is_disabled = app.is_some_and(|app| app.disabled_webhooks.iter().any(|e| e.name == target.endpoint));
            let outcome = if is_disabled { AttemptOutcome::Disabled } else { AttemptOutcome::Removed };
            return AttemptReport { outcome, failure: None };
        };
        let seconds =
            if endpoint.timeout_seconds == 0 { DEFAULT_ATTEMPT_TIMEOUT_SECONDS } else { endpoint.timeout_seconds };
        let limit = Duration::from_secs(seconds.into());
        let result = AttemptPhase::track(async {
            let posted = timeout(limit, self.post_webhook(app, endpoint, batch)).await;
            posted.unwrap_or_else(|_| {
                Err(AttemptFailure::Unanswered(format!("{}: not within {seconds} s", AttemptPhase::current())))
            })
        });
        let result = match result.await {
            Ok(answer) => judge_answer(answer).await,
            Err(failure) => Err(failure),
        };
        self.report_attempt(target, batch.len(), result)
    }

    fn report_attempt(
        &self,
        target: &EndpointId,
        events: usize,
        result: Result<StatusCode, AttemptFailure>,
    ) -> AttemptReport {
        let (name, now) = (target.to_string(), now_ms());
        self.metrics.count_deliveries(DeliveryHop::Attempted, events);
        let failure = match result {
            Ok(status) => {
                self.metrics.count_attempt(ResponseClass::Success);
                self.metrics.count_delivered(events);
                self.metrics.clear_error(&ErrorSource::Endpoint(name));
                self.metrics.endpoints.note_success(&target.app, &target.endpoint, status.as_u16(), now);
                return AttemptReport { outcome: AttemptOutcome::Delivered, failure: None };
            }
            Err(failure) => failure,
        };
        self.metrics.count_attempt(match failure {
            AttemptFailure::Answered { .. } => ResponseClass::Answered,
            AttemptFailure::Refused(_) => ResponseClass::Refused,
            AttemptFailure::Unanswered(_) | AttemptFailure::NoKey | AttemptFailure::Unsendable(_) => {
                ResponseClass::Unanswered
            }
        });
        tracing::debug!(endpoint = name, events, error = %failure, "webhook attempt failed");
        self.metrics.endpoints.note_failure(&target.app, &target.endpoint, &failure.describe(), now);
        self.metrics.set_error(ErrorSource::Endpoint(name.clone()), format!("endpoint {name}: {failure}"));
        let text = failure.to_string();
        let outcome = match failure {
            AttemptFailure::Answered { retry_after, .. } => AttemptOutcome::Failed {
                answered: true,
                retry_after_ms: retry_after.and_then(|header| retry_after_ms(&header, now)),
            },
            _ => AttemptOutcome::Failed { answered: false, retry_after_ms: None },
        };
        AttemptReport { outcome, failure: Some(text.into()) }
    }

    /// Posts a body, and waits for the head of the answer.
    async fn post_webhook(
        &self,
        app: &App,
        endpoint: &WebhookEndpoint,
        batch: &[PendingDelivery],
    ) -> Result<Response<Incoming>, AttemptFailure> {
        if let Some(reason) = &endpoint.unsendable {
            return Err(AttemptFailure::Unsendable(reason.clone()));
        }
        let (url, class) = self.resolve_route(&endpoint.url)?;
        let Some(client) = self.clients.get(&class) else {
            return Err(AttemptFailure::Unanswered("no client".to_owned()));
        };
        let request = build_request(app, endpoint, &url, batch, self.is_replay)?;
        client.request(request).await.map_err(|error| find_root_cause(&error))
    }

    /// The URL that is really called. A rerouted URL is judged as written, and also by its literal address where only a
    /// network is excepted.
    fn resolve_route(&self, text: &str) -> Result<(Url, EgressClass), EgressRefusal> {
        let url: Url = text.parse().map_err(|_| EgressRefusal::Malformed)?;
        let class = self.policy.classify_url(&url)?;
        match self.reroute.as_ref().and_then(|reroute| reroute(&url)) {
            None => Ok((url, class)),
            Some(other) if class == EgressClass::Private => {
                self.policy.classify_url(&other).map(|class| (other, class))
            }
            Some(other) => Ok((other, EgressClass::Exempt)),
        }
    }
}

/// Adds the configured headers of an endpoint. The operator checked them; a registry of another writer must not replace
/// headers that the signature depends on.
fn add_extra_headers(headers: &mut HeaderMap, endpoint: &WebhookEndpoint) -> Result<(), AttemptFailure> {
    for (name, value) in &endpoint.headers {
        let refused =
            |problem: &dyn std::fmt::Display| AttemptFailure::Unsendable(format!("header `{name}` {problem}"));
        webhook::check_extra_header(name, value.expose()).map_err(|problem| refused(&problem))?;
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|problem| refused(&problem))?;
        let mut value = HeaderValue::from_str(value.expose()).map_err(|_| refused(&"has an invalid value"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(())
}

/// The signed request of one attempt.
fn build_request(
    app: &App,
    endpoint: &WebhookEndpoint,
    url: &Url,
    batch: &[PendingDelivery],
    is_replay: bool,
) -> Result<Request<Body>, AttemptFailure> {
    let credential = app.signing_credential().ok_or(AttemptFailure::NoKey)?;
    let unsendable = |error: &dyn std::fmt::Display| AttemptFailure::Unsendable(error.to_string());
    let now = now_ms();
    let original = batch.iter().map(|item| item.outgoing.time_ms).min().unwrap_or(now);
    let old = now.saturating_sub(original) >= RESTAMP_AGE_MS;
    let events = batch.iter().map(|item| &*item.outgoing.json).collect();
    let body = webhook::WebhookBody { time_ms: if old { now } else { original }, events };
    // A vector that grows by doubling would copy the events once more.
    let room = BODY_FRAME_BYTES + batch.iter().map(|item| item.outgoing.bytes() + 1).sum::<usize>();
    let mut text = Vec::with_capacity(room);
    serde_json::to_writer(&mut text, &body).map_err(|error| unsendable(&error))?;
    let mut request = Request::post(url.as_str())
        .header(ACCEPT, "*/*")
        .header(USER_AGENT, concat!("realtime/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, webhook::CONTENT_TYPE)
        .header(KEY_HEADER, credential.key.as_str())
        .header(SIGNATURE_HEADER, signature::sign_message(&credential.secret, &text));
    if old {
        request = request.header(ORIGINAL_TIME_HEADER, original);
    }
    if is_replay {
        request = request.header(REPLAY_HEADER, "true");
    }
    let mut request = request.body(Body::from(text)).map_err(|error| unsendable(&error))?;
    add_extra_headers(request.headers_mut(), endpoint)?;
    Ok(request)
}

/// Decides the outcome by the head of an answer. The body is read only to reuse the connection, and may arrive after the time
/// limit of the attempt.
async fn judge_answer(answer: Response<Incoming>) -> Result<StatusCode, AttemptFailure> {
    let status = answer.status();
    let header = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = header.map(|value| value.chars().take(RETRY_AFTER_LENGTH_MAX).collect());
    let mut body = Body::new(answer.into_body()).into_data_stream();
    let rest = async {
        let mut read = 0;
        while read < RESPONSE_READ_MAX_BYTES
            && let Some(Ok(chunk)) = body.next().await
        {
            read += chunk.len();
        }
    };
    let _ = timeout(RESPONSE_DRAIN_TIMEOUT, rest).await;
    if status.is_success() { Ok(status) } else { Err(AttemptFailure::Answered { status, retry_after }) }
}

/// The cause of a failed request: a refusal of our policy, the phase that failed, or the network's error.
fn find_root_cause(error: &(dyn std::error::Error + 'static)) -> AttemptFailure {
    let mut deepest = error;
    loop {
        match deepest.downcast_ref::<ConnectFailure>() {
            Some(ConnectFailure::Refused(refusal)) => return AttemptFailure::Refused(refusal.clone()),
            Some(failure) => return AttemptFailure::Unanswered(failure.to_string()),
            None => {}
        }
        let Some(source) = deepest.source() else { break };
        deepest = source;
    }
    AttemptFailure::Unanswered(format!("{}: {deepest}", AttemptPhase::Head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rerouted_endpoint_is_judged_as_written() {
        crate::process::install_tls();
        let policy = EgressPolicy::new(["127.0.0.0/8"].into_iter(), ["receiver.test:80"].into_iter());
        let reroute: RerouteFn = Arc::new(|url: &Url| {
            let address = if url.path() == "/far" { "10.0.0.1" } else { "127.0.0.1" };
            url.domain().and_then(|_| format!("http://{address}:1/").parse().ok())
        });
        let (_, apps) = tokio::sync::watch::channel(Arc::default());
        let network = EgressOverrides { reroute: Some(reroute), ..EgressOverrides::default() };
        let sender = WebhookSender::new(Arc::new(policy), network, apps, Arc::default()).expect("a sender");
        for (name, url, class) in [
            ("a double of a public endpoint is trusted", "https://a.test/", Some(EgressClass::Exempt)),
            ("an exact endpoint goes anywhere", "http://receiver.test/far", Some(EgressClass::Exempt)),
            ("a network's exception needs the network", "http://a.test/", Some(EgressClass::Private)),
            ("another network is refused", "http://a.test/far", None),
            ("a scheme other than http and https", "ftp://a.test/", None),
            ("a URL that is not rerouted is judged as usual", "https://10.0.0.1/", None),
        ] {
            assert_eq!(sender.resolve_route(url).ok().map(|(_, class)| class), class, "{name}");
        }
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_this_machine_is_refused() {
        crate::process::install_tls();
        let (_, apps) = tokio::sync::watch::channel(Arc::default());
        let network = EgressOverrides::default();
        let sender = WebhookSender::new(Arc::default(), network, apps, Arc::default()).expect("a sender");
        for url in ["https://localhost:443/", "https://127.0.0.1/", "https://[::1]/", "https://[::ffff:7f00:1]/"] {
            let request = Request::post(url).body(Body::empty()).expect("a request");
            let error = sender.clients[&EgressClass::Public].request(request).await.expect_err("refused");
            let cause = find_root_cause(&error);
            assert!(matches!(cause, AttemptFailure::Refused(EgressRefusal::Address(_))), "{url}: {cause:?}");
        }
    }
}
