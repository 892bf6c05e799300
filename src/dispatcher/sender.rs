//! One attempt: sign, post, judge the answer.
//!
//! In: a body. Out: how the attempt ended. When to try again is not decided here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect;
use tokio::sync::{Semaphore, SemaphorePermit};
use url::Url;

use super::apps::Apps;
use super::assembler::{Body, Outcome, Target};
use super::metrics::{Metrics, Source, Tried};
use super::network::{Policy, Refusal, Way};
use super::retry::retry_after_ms;
use super::{Network, Reroute};
use crate::protocol::registry::{App, Endpoint};
use crate::protocol::signature;
use crate::protocol::webhook::{self, CONTENT_TYPE, KEY_HEADER, ORIGINAL_TIME_HEADER, SIGNATURE_HEADER};
use crate::runtime::clock::now_ms;

/// Age from which a body carries the attempt's time, because an SDK refuses bodies of 300 s.
const STAMP_ANEW_MS: u64 = 240_000;
/// Seconds for an attempt where the endpoint does not say.
const TIMEOUT_SECONDS: u32 = 4;
/// Most of an answer that is read, to keep its connection.
const MAX_ANSWER: usize = 64 * 1024;
/// Longest that the rest of an answer is waited for.
const REST: Duration = Duration::from_millis(250);
/// Attempts that one endpoint gets at a time.
const ATTEMPTS: usize = 16;
/// Failures in a row after which it gets one at a time.
const OPEN_AFTER: u32 = 5;
/// Endpoints whose failures are remembered.
const MAX_BREAKERS: usize = 10_000;

/// Posts bodies. Shared by the shards of a process.
pub struct Sender {
    clients: HashMap<Way, reqwest::Client>,
    policy: Arc<Policy>,
    reroute: Option<Reroute>,
    apps: Apps,
    breakers: Mutex<HashMap<Target, Arc<Breaker>>>,
    metrics: Arc<Metrics>,
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("answered {status}")]
    Answered { status: u16, retry_after_ms: Option<u64> },
    #[error("no answer: {0}")]
    Unanswered(String),
    #[error("the app has no active key to sign with: activate one")]
    NoKey,
}

impl Sender {
    /// Makes the clients: one per way, since each resolves names by its own rule.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(policy: Policy, network: Network, apps: Apps, metrics: Arc<Metrics>) -> reqwest::Result<Self> {
        let policy = Arc::new(policy);
        let clients = [Way::Public, Way::Private, Way::Exempt].map(|way| {
            let resolver = Arc::new(Resolver { policy: Arc::clone(&policy), way });
            let client = reqwest::Client::builder()
                .no_proxy()
                .redirect(redirect::Policy::none())
                .dns_resolver(resolver)
                .pool_idle_timeout(Duration::from_mins(1))
                .user_agent(concat!("realtime/", env!("CARGO_PKG_VERSION")))
                .build()?;
            Ok((way, client))
        });
        let clients = clients.into_iter().collect::<reqwest::Result<_>>()?;
        Ok(Self { clients, policy, reroute: network.reroute, apps, breakers: Mutex::default(), metrics })
    }

    /// Tries once.
    pub async fn attempt(&self, body: &Body) -> Outcome {
        let registry = Arc::clone(&self.apps.borrow());
        let app = registry.app(&body.target.app);
        let Some((app, endpoint)) =
            app.and_then(|app| Some((app, app.webhooks.iter().find(|e| e.name == body.target.endpoint)?)))
        else {
            self.metrics.recovered(&Source::Endpoint(body.target.to_string()));
            return Outcome::Removed;
        };
        let breaker = self.breaker(&body.target);
        let Some(_turn) = breaker.turn() else {
            return Outcome::Busy;
        };
        let seconds = if endpoint.timeout_seconds == 0 { TIMEOUT_SECONDS } else { endpoint.timeout_seconds };
        let limit = Duration::from_secs(seconds.into());
        let result = tokio::time::timeout(limit, self.post(app, endpoint, body))
            .await
            .unwrap_or_else(|_| Err(Failure::Unanswered(format!("not within {seconds} s"))));
        breaker.note(result.is_ok());
        self.tell(&body.target, body.items.len(), result)
    }

    fn tell(&self, target: &Target, events: usize, result: Result<(), Failure>) -> Outcome {
        let name = target.to_string();
        let Err(failure) = result else {
            self.metrics.tried(Tried::Success);
            self.metrics.delivered(events);
            self.metrics.recovered(&Source::Endpoint(name));
            return Outcome::Taken;
        };
        self.metrics.tried(match failure {
            Failure::Answered { .. } => Tried::Answered,
            Failure::Refused(_) => Tried::Refused,
            Failure::Unanswered(_) | Failure::NoKey => Tried::Unanswered,
        });
        tracing::debug!(endpoint = name, events, error = %failure, "an attempt failed");
        self.metrics.failed(Source::Endpoint(name.clone()), format!("endpoint {name}: {failure}"));
        match failure {
            Failure::Answered { retry_after_ms, .. } => Outcome::Failed { answered: true, retry_after_ms },
            _ => Outcome::Failed { answered: false, retry_after_ms: None },
        }
    }

    async fn post(&self, app: &App, endpoint: &Endpoint, body: &Body) -> Result<(), Failure> {
        let (url, way) = self.route(&endpoint.url)?;
        let Some(client) = self.clients.get(&way) else {
            return Err(Failure::Unanswered("no client".to_owned()));
        };
        let credential = app.signing().ok_or(Failure::NoKey)?;
        let now = now_ms();
        let original = body.items.iter().map(|item| item.outgoing.time_ms).min().unwrap_or(now);
        let old = now.saturating_sub(original) >= STAMP_ANEW_MS;
        let events = body.items.iter().map(|item| item.outgoing.event.clone()).collect();
        let text = serde_json::to_vec(&webhook::Body { time_ms: if old { now } else { original }, events })
            .map_err(|error| Failure::Unanswered(error.to_string()))?;
        let mut request = client
            .post(url)
            .header("Content-Type", CONTENT_TYPE)
            .header(KEY_HEADER, credential.key.as_str())
            .header(SIGNATURE_HEADER, signature::sign(&credential.secret, &text));
        if old {
            request = request.header(ORIGINAL_TIME_HEADER, original);
        }
        let mut answer = request.body(text).send().await.map_err(|error| because(&error))?;
        let status = answer.status();
        let asked = answer.headers().get("Retry-After").and_then(|value| value.to_str().ok());
        let retry_after_ms = asked.and_then(|value| retry_after_ms(value, now));
        // The status has decided; the rest is read only so that the connection can be used again.
        let rest = async {
            let mut read = 0;
            while read < MAX_ANSWER
                && let Ok(Some(chunk)) = answer.chunk().await
            {
                read += chunk.len();
            }
        };
        let _ = tokio::time::timeout(REST, rest).await;
        if status.is_success() { Ok(()) } else { Err(Failure::Answered { status: status.as_u16(), retry_after_ms }) }
    }

    /// Where a request really goes. A rerouted one is judged as written, and by the literal address that it goes to
    /// where only a network is excepted.
    fn route(&self, text: &str) -> Result<(Url, Way), Refusal> {
        let url: Url = text.parse().map_err(|_| Refusal::Malformed(text.to_owned()))?;
        let way = self.policy.way(&url)?;
        match self.reroute.as_ref().and_then(|reroute| reroute(&url)) {
            None => Ok((url, way)),
            Some(other) if way == Way::Private => self.policy.way(&other).map(|way| (other, way)),
            Some(other) => Ok((other, Way::Exempt)),
        }
    }

    fn breaker(&self, target: &Target) -> Arc<Breaker> {
        let mut breakers = self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        if breakers.len() >= MAX_BREAKERS && !breakers.contains_key(target) {
            breakers.clear();
        }
        Arc::clone(breakers.entry(target.clone()).or_default())
    }
}

/// The reason of an error that stands deepest: a refusal of ours, or what the network said.
fn because(error: &reqwest::Error) -> Failure {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    match deepest.downcast_ref::<Refusal>() {
        Some(refusal) => Failure::Refused(refusal.clone()),
        None => Failure::Unanswered(deepest.to_string()),
    }
}

/// Keeps an endpoint that fails from being asked by everyone at once. Never closes it: one attempt always goes on.
#[derive(Debug)]
struct Breaker {
    failures: AtomicU32,
    open: Semaphore,
    all: Semaphore,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: AtomicU32::new(0), open: Semaphore::new(1), all: Semaphore::new(ATTEMPTS) }
    }
}

impl Breaker {
    fn turn(&self) -> Option<SemaphorePermit<'_>> {
        let open = self.failures.load(Ordering::Relaxed) >= OPEN_AFTER;
        if open { &self.open } else { &self.all }.try_acquire().ok()
    }

    fn note(&self, success: bool) {
        if success {
            self.failures.store(0, Ordering::Relaxed);
        } else {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Resolves names to the addresses that a way allows. A literal address never comes here: it was judged before.
struct Resolver {
    policy: Arc<Policy>,
    way: Way,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, way) = (Arc::clone(&self.policy), self.way);
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<_> = found.iter().copied().filter(|address| policy.allows(way, address.ip())).collect();
            if allowed.is_empty() {
                let found = found.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ");
                return Err(Refusal::Address(format!("{} ({found})", name.as_str())).into());
            }
            let addresses: Addrs = Box::new(allowed.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_breaker_lets_one_through_and_a_success_closes_it() {
        let breaker = Breaker::default();
        (0..OPEN_AFTER).for_each(|_| breaker.note(false));
        let turn = breaker.turn().expect("one at a time");
        assert!(breaker.turn().is_none());
        drop(turn);
        breaker.note(true);
        let turns: Vec<_> = std::iter::from_fn(|| breaker.turn()).collect();
        assert_eq!(turns.len(), ATTEMPTS);
    }

    #[tokio::test]
    async fn a_rerouted_endpoint_is_judged_as_written() {
        crate::runtime::install_tls();
        let policy = Policy::new(["127.0.0.0/8"].into_iter(), ["receiver.test:80"].into_iter());
        let reroute: Reroute = Arc::new(|url: &Url| {
            let address = if url.path() == "/far" { "10.0.0.1" } else { "127.0.0.1" };
            url.domain().and_then(|_| format!("http://{address}:1/").parse().ok())
        });
        let (_, apps) = tokio::sync::watch::channel(Arc::default());
        let network = Network { reroute: Some(reroute) };
        let sender = Sender::new(policy, network, apps, Arc::default()).expect("a sender");
        for (name, url, way) in [
            ("what stands for the internet is trusted to be there", "https://a.test/", Some(Way::Exempt)),
            ("an exact endpoint goes anywhere", "http://receiver.test/far", Some(Way::Exempt)),
            ("a network's exception needs the network", "http://a.test/", Some(Way::Private)),
            ("and not another", "http://a.test/far", None),
            ("a scheme that is never sent to", "ftp://a.test/", None),
            ("what is not rerouted is judged as ever", "https://10.0.0.1/", None),
        ] {
            assert_eq!(sender.route(url).ok().map(|(_, way)| way), way, "{name}");
        }
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_this_machine_is_refused() {
        crate::runtime::install_tls();
        let resolver = Resolver { policy: Arc::default(), way: Way::Public };
        let client = reqwest::Client::builder().no_proxy().dns_resolver(Arc::new(resolver)).build().expect("a client");
        let error = client.post("https://localhost:443/").send().await.expect_err("refused");
        assert!(matches!(because(&error), Failure::Refused(Refusal::Address(_))), "{error:?}");
    }
}
