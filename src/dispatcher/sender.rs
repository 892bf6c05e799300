//! One attempt: sign, post, judge the answer.
//!
//! In: a body. Out: the outcome of the attempt. The time of the next attempt is decided by the endpoint's queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect;
use url::Url;

use super::apps::RegistryReceiver;
use super::endpoint::queue::BATCH_EVENTS_MAX;
use super::endpoint::{AttemptOutcome, EndpointId, PendingDelivery};
use super::metrics::{DispatcherMetrics, ErrorSource, ResponseClass};
use super::retry::retry_after_ms;
use super::{EgressOverrides, RerouteFn};
use crate::process::clock::now_ms;
use crate::protocol::egress_policy::{EgressClass, EgressPolicy, EgressRefusal};
use crate::protocol::registry::{App, BatchMode, WebhookEndpoint};
use crate::protocol::signature;
use crate::protocol::webhook::{self, CONTENT_TYPE, KEY_HEADER, ORIGINAL_TIME_HEADER, SIGNATURE_HEADER};

/// Age from which a body carries the attempt's time, because an SDK refuses bodies of 300 s.
const RESTAMP_AGE_MS: u64 = 240_000;
/// Seconds for an attempt if the endpoint configures none.
const DEFAULT_ATTEMPT_TIMEOUT_SECONDS: u32 = 4;
/// Bounds the part of an answer that is read to keep its connection; a longer one closes it.
const RESPONSE_READ_MAX_BYTES: usize = 64 * 1024;
/// Longest wait for the rest of an answer.
const RESPONSE_DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

/// Posts bodies; shared by the shards of a process.
pub struct WebhookSender {
    clients: HashMap<EgressClass, reqwest::Client>,
    policy: Arc<EgressPolicy>,
    reroute: Option<RerouteFn>,
    apps: RegistryReceiver,
    metrics: Arc<DispatcherMetrics>,
}

/// The reason why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum AttemptFailure {
    #[error(transparent)]
    Refused(#[from] EgressRefusal),
    #[error("answered {status}")]
    Answered { status: u16, retry_after_ms: Option<u64> },
    #[error("no answer: {0}")]
    Unanswered(String),
    #[error("the app has no active key to sign with: activate one")]
    NoKey,
    #[error("no request can be made: {0}")]
    Unsendable(String),
}

impl WebhookSender {
    /// Builds the HTTP clients: one per egress class, since each resolves names by its own rule.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(
        policy: Arc<EgressPolicy>,
        network: EgressOverrides,
        apps: RegistryReceiver,
        metrics: Arc<DispatcherMetrics>,
    ) -> reqwest::Result<Self> {
        let clients = [EgressClass::Public, EgressClass::Private, EgressClass::Exempt].map(|class| {
            let resolver = Arc::new(EgressResolver { policy: Arc::clone(&policy), class });
            let client = reqwest::Client::builder()
                .no_proxy()
                .local_address(network.source)
                .redirect(redirect::Policy::none())
                .dns_resolver(resolver)
                .pool_idle_timeout(Duration::from_mins(1))
                .user_agent(concat!("realtime/", env!("CARGO_PKG_VERSION")))
                .build()?;
            Ok((class, client))
        });
        let clients = clients.into_iter().collect::<reqwest::Result<_>>()?;
        Ok(Self { clients, policy, reroute: network.reroute, apps, metrics })
    }

    /// Number of events of a body that an endpoint takes.
    pub fn batch_limit(&self, target: &EndpointId) -> usize {
        let registry = self.apps.borrow();
        let endpoint =
            registry.by_id(&target.app).and_then(|app| app.webhooks.iter().find(|e| e.name == target.endpoint));
        match endpoint.map(|endpoint| endpoint.batch) {
            Some(BatchMode::One) => 1,
            Some(BatchMode::Many) | None => BATCH_EVENTS_MAX,
        }
    }

    /// Makes one attempt to post a body.
    pub async fn send_batch(&self, target: &EndpointId, batch: &[PendingDelivery]) -> AttemptOutcome {
        let registry = Arc::clone(&self.apps.borrow());
        let app = registry.by_id(&target.app);
        let Some((app, endpoint)) =
            app.and_then(|app| Some((app, app.webhooks.iter().find(|e| e.name == target.endpoint)?)))
        else {
            self.metrics.clear_error(&ErrorSource::Endpoint(target.to_string()));
            let is_disabled = app.is_some_and(|app| app.disabled_webhooks.iter().any(|e| e.name == target.endpoint));
            return if is_disabled { AttemptOutcome::Disabled } else { AttemptOutcome::Removed };
        };
        let seconds =
            if endpoint.timeout_seconds == 0 { DEFAULT_ATTEMPT_TIMEOUT_SECONDS } else { endpoint.timeout_seconds };
        let limit = Duration::from_secs(seconds.into());
        let result = tokio::time::timeout(limit, self.post_webhook(app, endpoint, batch))
            .await
            .unwrap_or_else(|_| Err(AttemptFailure::Unanswered(format!("not within {seconds} s"))));
        self.report_attempt(target, batch.len(), result)
    }

    fn report_attempt(&self, target: &EndpointId, events: usize, result: Result<(), AttemptFailure>) -> AttemptOutcome {
        let name = target.to_string();
        let Err(failure) = result else {
            self.metrics.count_attempt(ResponseClass::Success);
            self.metrics.count_delivered(events);
            self.metrics.clear_error(&ErrorSource::Endpoint(name));
            return AttemptOutcome::Delivered;
        };
        self.metrics.count_attempt(match failure {
            AttemptFailure::Answered { .. } => ResponseClass::Answered,
            AttemptFailure::Refused(_) => ResponseClass::Refused,
            AttemptFailure::Unanswered(_) | AttemptFailure::NoKey | AttemptFailure::Unsendable(_) => {
                ResponseClass::Unanswered
            }
        });
        tracing::debug!(endpoint = name, events, error = %failure, "webhook attempt failed");
        self.metrics.set_error(ErrorSource::Endpoint(name.clone()), format!("endpoint {name}: {failure}"));
        match failure {
            AttemptFailure::Answered { retry_after_ms, .. } => {
                AttemptOutcome::Failed { answered: true, retry_after_ms }
            }
            _ => AttemptOutcome::Failed { answered: false, retry_after_ms: None },
        }
    }

    async fn post_webhook(
        &self,
        app: &App,
        endpoint: &WebhookEndpoint,
        batch: &[PendingDelivery],
    ) -> Result<(), AttemptFailure> {
        if let Some(reason) = &endpoint.unsendable {
            return Err(AttemptFailure::Unsendable(reason.clone()));
        }
        let (url, class) = self.resolve_route(&endpoint.url)?;
        let Some(client) = self.clients.get(&class) else {
            return Err(AttemptFailure::Unanswered("no client".to_owned()));
        };
        let credential = app.signing_credential().ok_or(AttemptFailure::NoKey)?;
        let now = now_ms();
        let original = batch.iter().map(|item| item.outgoing.time_ms).min().unwrap_or(now);
        let old = now.saturating_sub(original) >= RESTAMP_AGE_MS;
        let events = batch.iter().map(|item| &*item.outgoing.json).collect();
        let text = serde_json::to_vec(&webhook::WebhookBody { time_ms: if old { now } else { original }, events })
            .map_err(|error| AttemptFailure::Unanswered(error.to_string()))?;
        let mut request = client
            .post(url)
            .headers(build_extra_headers(endpoint)?)
            .header("Content-Type", CONTENT_TYPE)
            .header(KEY_HEADER, credential.key.as_str())
            .header(SIGNATURE_HEADER, signature::sign_message(&credential.secret, &text));
        if old {
            request = request.header(ORIGINAL_TIME_HEADER, original);
        }
        let mut answer = request.body(text).send().await.map_err(|error| find_root_cause(&error))?;
        let status = answer.status();
        let header = answer.headers().get("Retry-After").and_then(|value| value.to_str().ok());
        let retry_after_ms = header.and_then(|value| retry_after_ms(value, now));
        // The status has decided; the rest is read only so that the connection can be used again.
        let rest = async {
            let mut read = 0;
            while read < RESPONSE_READ_MAX_BYTES
                && let Ok(Some(chunk)) = answer.chunk().await
            {
                read += chunk.len();
            }
        };
        let _ = tokio::time::timeout(RESPONSE_DRAIN_TIMEOUT, rest).await;
        if status.is_success() {
            Ok(())
        } else {
            Err(AttemptFailure::Answered { status: status.as_u16(), retry_after_ms })
        }
    }

    /// The URL that is really called. A rerouted URL is judged as written, and also by its literal address where only a
    /// network is excepted.
    fn resolve_route(&self, text: &str) -> Result<(Url, EgressClass), EgressRefusal> {
        let url: Url = text.parse().map_err(|_| EgressRefusal::Malformed(text.to_owned()))?;
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

/// The configured headers of an endpoint. The operator checked them; a registry that was written otherwise must not replace
/// headers that the signature depends on.
fn build_extra_headers(endpoint: &WebhookEndpoint) -> Result<HeaderMap, AttemptFailure> {
    let mut headers = HeaderMap::new();
    for (name, value) in &endpoint.headers {
        let refused =
            |problem: &dyn std::fmt::Display| AttemptFailure::Unsendable(format!("header `{name}` {problem}"));
        webhook::check_extra_header(name, value.expose()).map_err(|problem| refused(&problem))?;
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|problem| refused(&problem))?;
        let mut value = HeaderValue::from_str(value.expose()).map_err(|_| refused(&"has an invalid value"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

/// The innermost cause of an error: a refusal of our policy, or the network's error.
fn find_root_cause(error: &reqwest::Error) -> AttemptFailure {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    match deepest.downcast_ref::<EgressRefusal>() {
        Some(refusal) => AttemptFailure::Refused(refusal.clone()),
        None => AttemptFailure::Unanswered(deepest.to_string()),
    }
}

/// Resolves names to the addresses that an egress class allows. Literal addresses never get here: they are judged
/// before.
struct EgressResolver {
    policy: Arc<EgressPolicy>,
    class: EgressClass,
}

impl Resolve for EgressResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, class) = (Arc::clone(&self.policy), self.class);
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<_> =
                found.iter().copied().filter(|address| policy.is_allowed(class, address.ip())).collect();
            if allowed.is_empty() {
                let found = found.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ");
                return Err(EgressRefusal::Address(format!("{} ({found})", name.as_str())).into());
            }
            let addresses: Addrs = Box::new(allowed.into_iter());
            Ok(addresses)
        })
    }
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
        let network = EgressOverrides { reroute: Some(reroute), source: None };
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
        let resolver = EgressResolver { policy: Arc::default(), class: EgressClass::Public };
        let client = reqwest::Client::builder().no_proxy().dns_resolver(Arc::new(resolver)).build().expect("a client");
        let error = client.post("https://localhost:443/").send().await.expect_err("refused");
        assert!(matches!(find_root_cause(&error), AttemptFailure::Refused(EgressRefusal::Address(_))), "{error:?}");
    }
}
