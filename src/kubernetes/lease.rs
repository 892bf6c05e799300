//! Leader election over one Lease.
//!
//! A candidate takes the Lease when it has no holder, or when its holder has not changed it for the lease's duration *by
//! the candidate's own monotonic clock*: clocks of other machines are not compared. The holder counts its right to write
//! from the moment before its last successful renewal, so that a process that was suspended finds by itself, before any
//! answer of the API server, that another may lead.
//!
//! If the scopes of two operators overlap, the older Lease wins, and the holder of the younger one does not lead. A watch
//! caches the Leases of all operators. A candidate lists them once more after it wrote its own and before it leads: the
//! watch may be behind, and of two operators that start at once at least one sees the other's Lease. An operator of some
//! namespaces may lack the permission to list the Leases of others ([`may_list_all_leases`]): then it reads those of its
//! own namespace only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, PostParams};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::scope::{
    LeaseObservations, RivalLease, SCOPE_LABEL, ScopeClaim, WATCHED_ANNOTATION, WatchScope, judge_leases,
};
use super::watch::open_watch;
use crate::process::clock::whole_ms;
use crate::process::heartbeat::Heartbeat;

/// Time without a renewal after which a candidate takes the Lease.
const LEASE_TTL: Duration = Duration::from_secs(15);
/// Time after its last renewal in which a holder may write: 5 s less than the TTL, so that it stops before a candidate
/// starts.
const RENEW_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two attempts to take or renew the Lease: short against the renew deadline, so that single failures do not
/// cost the leadership.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Bounds one call to the API server, so that a second attempt fits into the renew deadline.
const LEASE_CALL_TIMEOUT: Duration = Duration::from_secs(4);

/// Longest time without an attempt to renew: several attempts and their timeouts.
pub const LEASE_SILENCE_MAX: Duration = Duration::from_secs(20);

/// The right to write, shared by all tasks of the process.
#[derive(Clone, Debug)]
pub struct Leadership {
    began: Instant,
    /// End of the right to write, in ms since `began`; 0 for never.
    until_ms: Arc<AtomicU64>,
}

impl Leadership {
    /// The state of a candidate: writes are not allowed.
    #[must_use]
    pub fn not_leading() -> Self {
        Self { began: Instant::now(), until_ms: Arc::default() }
    }

    /// Whether this process may write now.
    #[must_use]
    pub fn may_write(&self) -> bool {
        self.began.elapsed().as_millis() < u128::from(self.until_ms.load(Ordering::Acquire))
    }

    fn extend_from(&self, at: Instant) {
        let until = at.duration_since(self.began) + RENEW_TIMEOUT;
        self.until_ms.store(whole_ms(until), Ordering::Release);
    }

    fn end_now(&self) {
        self.until_ms.store(0, Ordering::Release);
    }
}

/// Asks the API server whether this account may list the Leases of all namespaces.
///
/// # Errors
/// The API server refuses the question or does not answer.
pub async fn may_list_all_leases(client: &Client) -> Result<bool, kube::Error> {
    let attributes = ResourceAttributes {
        group: Some("coordination.k8s.io".to_owned()),
        resource: Some("leases".to_owned()),
        verb: Some("list".to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let answered = Api::<SelfSubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answered.status.is_some_and(|status| status.allowed))
}

/// A candidate for one Lease.
pub struct LeaderElector {
    api: Api<Lease>,
    /// The Leases of the operators, its own among them: in all namespaces, or in its own.
    operators: Api<Lease>,
    /// The same Leases as their watch reports them.
    watched: Store<Lease>,
    /// The Lease as this candidate wrote it last; `None` when another may have written it since.
    written: Option<Lease>,
    /// Whether a write of the Lease failed since it was read: the watch may be behind too, and the Lease is read again.
    must_read: bool,
    namespace: String,
    name: String,
    identity: String,
    scope: WatchScope,
    leadership: Leadership,
    observations: LeaseObservations,
    /// The operator to which this one yields.
    rival: watch::Sender<Option<RivalLease>>,
    /// Version of the Lease that was read last, and when it was first read.
    last_observed: Option<(String, Instant)>,
}

/// Watches the Leases of operators: the store has them while the other part runs, which never ends.
pub fn watch_leases(operators: Api<Lease>) -> (Store<Lease>, impl Future<Output = ()> + Send) {
    let (store, writer) = reflector::store();
    let labelled = watcher::Config::default().labels(SCOPE_LABEL);
    let events = open_watch(operators, labelled).reflect(writer);
    let watching = events.for_each(|event| async move {
        if let Err(error) = event {
            tracing::warn!(kind = "Lease", %error, "watch failed: it is opened again after a back-off");
        }
    });
    (store, watching)
}

enum LeaseAttempt {
    /// This candidate holds the Lease and leads.
    Held,
    /// The Lease is its own, and a younger operator has to end first.
    Awaiting,
    NotHeld,
    /// An older operator watches the same objects.
    Yielded,
}

impl LeaderElector {
    /// Creates a candidate that does not hold the Lease. It searches rivals among the Leases of
    /// `operators`, and in the store of their watch.
    #[must_use]
    pub fn new(
        client: Client,
        (operators, watched): (Api<Lease>, Store<Lease>),
        (namespace, name): (&str, &str),
        identity: &str,
        scope: WatchScope,
    ) -> Self {
        Self {
            operators,
            watched,
            written: None,
            must_read: false,
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            scope,
            observations: LeaseObservations::default(),
            rival: watch::Sender::new(None),
            leadership: Leadership::not_leading(),
            last_observed: None,
        }
    }

    /// A handle to the right to write, updated with every renewal.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// The operator to which this one yields, if any.
    #[must_use]
    pub fn rival(&self) -> watch::Receiver<Option<RivalLease>> {
        self.rival.subscribe()
    }

    /// Waits until this candidate leads; `false` when `shutdown` is cancelled first.
    pub async fn wait_until_leading(&mut self, shutdown: &CancellationToken) -> bool {
        loop {
            match self.try_lease().await {
                LeaseAttempt::Held => return true,
                LeaseAttempt::Awaiting | LeaseAttempt::NotHeld | LeaseAttempt::Yielded => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = sleep(RETRY_INTERVAL) => {}
            }
        }
    }

    /// Renews the Lease until `shutdown` is cancelled, then releases it. A lost Lease is final.
    ///
    /// # Errors
    /// The Lease was lost.
    pub async fn hold_lease(mut self, heartbeat: Heartbeat, shutdown: CancellationToken) -> Result<(), LeaseLost> {
        loop {
            heartbeat.beat();
            tokio::select! {
                () = shutdown.cancelled() => {
                    self.release_lease().await;
                    return Ok(());
                }
                () = sleep(RETRY_INTERVAL) => {}
            }
            // No retry after the deadline: another process may have led and released the Lease since.
            if !self.leadership.may_write() {
                self.leadership.end_now();
                return Err(LeaseLost);
            }
            let attempt = self.try_lease().await;
            if matches!(attempt, LeaseAttempt::Yielded) || !self.leadership.may_write() {
                self.leadership.end_now();
                return Err(LeaseLost);
            }
        }
    }

    async fn try_lease(&mut self) -> LeaseAttempt {
        let began = Instant::now();
        match timeout(LEASE_CALL_TIMEOUT, self.claim_lease()).await {
            Ok(Ok(attempt)) => {
                if matches!(attempt, LeaseAttempt::Held) {
                    self.leadership.extend_from(began);
                }
                attempt
            }
            Ok(Err(error)) => {
                tracing::warn!(lease = self.name, %error, "lease not acquired or renewed");
                LeaseAttempt::NotHeld
            }
            Err(_) => {
                tracing::warn!(lease = self.name, "lease call timed out");
                LeaseAttempt::NotHeld
            }
        }
    }

    /// Acquires or renews the Lease unless an older operator watches the same objects.
    async fn claim_lease(&mut self) -> Result<LeaseAttempt, kube::Error> {
        let leads = self.leadership.may_write();
        let (own, others): (Vec<_>, Vec<_>) = self.watched.state().into_iter().partition(|lease| self.is_own(lease));
        // The watch may not have seen yet what this candidate wrote.
        let known = self.written.clone().or_else(|| own.first().map(|lease| (**lease).clone()));
        let leases = others.iter().map(|lease| (**lease).clone()).chain(known.clone());
        if let ScopeClaim::Yield(_) = self.judge(&leases.collect::<Vec<_>>()) {
            return Ok(self.yield_lease(known).await);
        }
        let known = known.filter(|_| !self.must_read);
        if !self.acquire_or_renew(known).await? {
            return Ok(LeaseAttempt::NotHeld);
        }
        if leads {
            return Ok(LeaseAttempt::Held);
        }
        let leases = self.operators.list(&ListParams::default().labels(SCOPE_LABEL)).await?.items;
        Ok(match self.judge(&leases) {
            ScopeClaim::Free => LeaseAttempt::Held,
            ScopeClaim::Await(_) => LeaseAttempt::Awaiting,
            ScopeClaim::Yield(_) => self.yield_lease(self.written.clone()).await,
        })
    }

    fn is_own(&self, lease: &Lease) -> bool {
        lease.namespace().as_ref() == Some(&self.namespace) && lease.name_any() == self.name
    }

    /// Judges the Leases of all operators, and reports an older rival.
    fn judge(&mut self, leases: &[Lease]) -> ScopeClaim {
        let own = (self.namespace.as_str(), self.name.as_str());
        let at = (Instant::now(), LEASE_TTL);
        let claim = judge_leases(leases, own, &self.scope, &mut self.observations, at);
        self.report_claim(&claim);
        claim
    }

    /// Releases the Lease if this candidate holds it.
    async fn yield_lease(&mut self, known: Option<Lease>) -> LeaseAttempt {
        let holder = known.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity);
        if self.leadership.may_write() || holder.as_ref() == Some(&self.identity) {
            self.release_lease().await;
        }
        self.written = None;
        LeaseAttempt::Yielded
    }

    fn report_claim(&self, claim: &ScopeClaim) {
        let rival = match claim {
            ScopeClaim::Yield(rival) => Some(rival.clone()),
            ScopeClaim::Free | ScopeClaim::Await(_) => None,
        };
        self.rival.send_if_modified(|known| {
            let changed = *known != rival;
            match &rival {
                Some(rival) if changed => tracing::error!(%rival, "this operator does not lead"),
                None if changed => tracing::info!("the other operator ended: this one may lead"),
                _ => {}
            }
            known.clone_from(&rival);
            changed
        });
    }

    /// Writes this candidate as the holder, unless another one holds the Lease. `known` is the Lease as it was last seen.
    async fn acquire_or_renew(&mut self, known: Option<Lease>) -> Result<bool, kube::Error> {
        let lease = match known {
            Some(lease) if !self.may_take(&lease) => return Ok(false),
            Some(lease) if self.is_held_by_another(&lease) => self.api.get_opt(&self.name).await?,
            Some(lease) => Some(lease),
            None => self.api.get_opt(&self.name).await?,
        };
        self.must_read = false;
        if lease.as_ref().is_some_and(|lease| !self.may_take(lease)) {
            return Ok(false);
        }
        // Until the API server answers: a call that timed out may have written the Lease.
        (self.written, self.must_read) = (None, true);
        let written = match lease {
            // Sent with the version that was read: of two concurrent candidates the API server refuses one.
            Some(lease) => {
                let lease = self.renewed_lease(lease);
                self.api.replace(&self.name, &PostParams::default(), &lease).await
            }
            None => self.api.create(&PostParams::default(), &self.new_lease()).await,
        };
        match written {
            Ok(lease) => {
                (self.written, self.must_read) = (Some(lease), false);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn is_held_by_another(&self, lease: &Lease) -> bool {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        !holder.is_empty() && holder != self.identity
    }

    /// Whether the Lease is free, this candidate's own, or was not changed for its TTL since it was first seen so.
    fn may_take(&mut self, lease: &Lease) -> bool {
        if !self.is_held_by_another(lease) {
            return true;
        }
        let version = lease.resource_version().unwrap_or_default();
        match &self.last_observed {
            Some((seen, since)) if *seen == version => since.elapsed() >= LEASE_TTL,
            _ => {
                self.last_observed = Some((version, Instant::now()));
                false
            }
        }
    }

    fn new_lease(&self) -> Lease {
        let metadata = ObjectMeta {
            name: Some(self.name.clone()),
            labels: Some(self.scope.labels()),
            annotations: Some(self.scope.annotations()),
            ..ObjectMeta::default()
        };
        Lease { metadata, spec: Some(self.lease_spec(0, None)) }
    }

    fn renewed_lease(&self, mut lease: Lease) -> Lease {
        let spec = lease.spec.take().unwrap_or_default();
        let is_same_holder = spec.holder_identity.as_ref() == Some(&self.identity);
        let transitions = spec.lease_transitions.unwrap_or(0) + i32::from(!is_same_holder);
        let acquired = spec.acquire_time.filter(|_| is_same_holder);
        lease.spec = Some(self.lease_spec(transitions, acquired));
        lease.metadata.managed_fields = None;
        lease.metadata.labels.get_or_insert_default().extend(self.scope.labels());
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.remove(WATCHED_ANNOTATION);
        annotations.extend(self.scope.annotations());
        lease
    }

    fn lease_spec(&self, transitions: i32, acquired: Option<MicroTime>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_TTL.as_secs()).ok(),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Releases the Lease, so that a successor need not wait for the TTL.
    async fn release_lease(&self) {
        self.leadership.end_now();
        let release = async {
            let mut lease = self.api.get(&self.name).await?;
            let ours = lease.spec.as_ref().is_some_and(|spec| spec.holder_identity.as_ref() == Some(&self.identity));
            if ours {
                lease.metadata.managed_fields = None;
                if let Some(spec) = &mut lease.spec {
                    spec.holder_identity = None;
                    spec.renew_time = None;
                }
                self.api.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match timeout(LEASE_CALL_TIMEOUT, release).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "lease not released: it expires after its TTL"),
            Err(_) => tracing::warn!("lease release timed out: it expires after its TTL"),
        }
    }
}

/// Another process leads, or may lead: a replica, or an older operator of the same scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lease was lost: another operator leads now. This process must restart as a candidate")]
pub struct LeaseLost;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use axum::Json;
    use axum::extract::Request;
    use axum::http::{Method, StatusCode};
    use axum::response::{IntoResponse, Response};
    use kube::runtime::watcher::Event;
    use serde_json::json;

    use crate::kubernetes::scope::WatchRange;
    use crate::kubernetes::watch::build_api;
    use crate::process::heartbeat::Heartbeats;

    /// The Leases of an API server by path, and the calls that it answered.
    #[derive(Default)]
    struct LeaseServer {
        leases: BTreeMap<String, Lease>,
        writes: u64,
        calls: Vec<String>,
    }

    impl LeaseServer {
        fn write(&mut self, path: &str, mut lease: Lease) -> Lease {
            self.writes += 1;
            lease.metadata.resource_version = Some(self.writes.to_string());
            lease.metadata.uid.get_or_insert_with(|| path.to_owned());
            self.leases.insert(path.to_owned(), lease.clone());
            lease
        }

        fn answer(&mut self, method: &Method, path: &str, body: &[u8]) -> Response {
            let sent: Option<Lease> = serde_json::from_slice(body).ok();
            let is_list = path.ends_with("/leases");
            self.calls.push(format!("{method} {}", if is_list { "leases" } else { "lease" }));
            let failure = |status: StatusCode, reason: &str| {
                let text = json!({ "kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": status.as_u16() });
                (status, Json(text)).into_response()
            };
            match (method.as_str(), sent, self.leases.get(path)) {
                ("GET", ..) if is_list => {
                    let items: Vec<&Lease> = self.leases.values().collect();
                    Json(json!({ "metadata": { "resourceVersion": "1" }, "items": items })).into_response()
                }
                ("GET", _, Some(lease)) => Json(lease).into_response(),
                ("PUT", Some(lease), Some(known)) if lease.resource_version() == known.resource_version() => {
                    Json(self.write(path, lease)).into_response()
                }
                ("PUT", Some(_), Some(_)) => failure(StatusCode::CONFLICT, "Conflict"),
                ("POST", Some(mut lease), _) => {
                    let path = format!("{path}/{}", lease.name_any());
                    lease.metadata.namespace = path.split('/').nth(5).map(str::to_owned);
                    (StatusCode::CREATED, Json(self.write(&path, lease))).into_response()
                }
                _ => failure(StatusCode::NOT_FOUND, "NotFound"),
            }
        }
    }

    fn candidate(
        server: &Arc<Mutex<LeaseServer>>,
        namespace: &str,
        identity: &str,
        watched: Store<Lease>,
    ) -> LeaderElector {
        let server = server.clone();
        let router = axum::Router::new().fallback(move |request: Request| async move {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 65_536).await.expect("a body");
            server.lock().expect("no panic").answer(&parts.method, parts.uri.path(), &body)
        });
        let client = Client::new(router, "default");
        let operators = (build_api(&client, &WatchRange::All), watched);
        LeaderElector::new(client, operators, (namespace, "realtime-operator"), identity, WatchScope::All)
    }

    fn calls(server: &Arc<Mutex<LeaseServer>>) -> Vec<String> {
        std::mem::take(&mut server.lock().expect("no panic").calls)
    }

    #[tokio::test(start_paused = true)]
    async fn leases_are_listed_once_before_leading_and_a_leader_only_writes_its_own() {
        let (server, shutdown) = (Arc::default(), CancellationToken::new());
        let (watched, _writer) = reflector::store();
        let mut elector = candidate(&server, "a", "a-1", watched);
        assert!(elector.wait_until_leading(&shutdown).await);
        assert_eq!(calls(&server), ["GET lease", "POST leases", "GET leases"]);
        let heartbeat = Heartbeats::default().register("lease keeper", None, &shutdown);
        let keeping = tokio::spawn(elector.hold_lease(heartbeat, shutdown.clone()));
        // `Instant` does not follow the paused clock, so that the right to write does not end here.
        sleep(RETRY_INTERVAL * 5 + RETRY_INTERVAL / 2).await;
        assert_eq!(calls(&server), ["PUT lease"; 5]);
        shutdown.cancel();
        assert_eq!(keeping.await.expect("no panic"), Ok(()));
        assert_eq!(calls(&server), ["GET lease", "PUT lease"], "the release");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_whose_write_is_refused_reads_the_lease_before_the_next_one() {
        let (server, shutdown) = (Arc::default(), CancellationToken::new());
        let (watched, _writer) = reflector::store();
        let mut elector = candidate(&server, "a", "a-1", watched);
        assert!(elector.wait_until_leading(&shutdown).await);
        let (path, lease) = {
            let server = server.lock().expect("no panic");
            let (path, lease) = server.leases.first_key_value().expect("a Lease");
            (path.clone(), lease.clone())
        };
        // As after an answer that was lost.
        server.lock().expect("no panic").write(&path, lease);
        calls(&server);
        let heartbeat = Heartbeats::default().register("lease keeper", None, &shutdown);
        let keeping = tokio::spawn(elector.hold_lease(heartbeat, shutdown.clone()));
        sleep(RETRY_INTERVAL * 3 + RETRY_INTERVAL / 2).await;
        assert_eq!(calls(&server), ["PUT lease", "GET lease", "PUT lease", "PUT lease"]);
        shutdown.cancel();
        assert_eq!(keeping.await.expect("no panic"), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_candidate_whose_watch_is_behind_finds_an_older_rival_before_it_leads() {
        let (server, shutdown) = (Arc::default(), CancellationToken::new());
        let (watched, _writer) = reflector::store();
        assert!(candidate(&server, "older", "o-1", watched.clone()).wait_until_leading(&shutdown).await);
        let mut younger = candidate(&server, "younger", "y-1", watched);
        let leads = timeout(Duration::from_secs(5), younger.wait_until_leading(&shutdown)).await;
        assert!(leads.is_err(), "it waits");
        assert!(!younger.leadership().may_write());
        let rival = younger.rival().borrow().clone().expect("a rival");
        assert_eq!((rival.namespace.as_str(), rival.holder.as_str()), ("older", "o-1"));
        let server = server.lock().expect("no panic");
        let own =
            server.leases.values().find(|lease| lease.namespace().as_deref() == Some("younger")).expect("a Lease");
        let holder = own.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
        assert_eq!(holder, None, "the Lease is released");
    }

    #[tokio::test(start_paused = true)]
    async fn a_candidate_that_waits_reads_the_watch_alone() {
        let (server, shutdown) = (Arc::default(), CancellationToken::new());
        let (watched, mut writer) = reflector::store();
        assert!(candidate(&server, "a", "a-1", watched.clone()).wait_until_leading(&shutdown).await);
        writer.apply_watcher_event(&Event::Init);
        writer.apply_watcher_event(&Event::InitDone);
        for lease in server.lock().expect("no panic").leases.values() {
            writer.apply_watcher_event(&Event::Apply(lease.clone()));
        }
        calls(&server);
        let mut waiting = candidate(&server, "a", "a-2", watched);
        let leads = timeout(Duration::from_secs(10), waiting.wait_until_leading(&shutdown)).await;
        assert!(leads.is_err(), "another replica holds the Lease");
        assert_eq!(calls(&server), Vec::<String>::new());
    }

    #[test]
    fn the_right_to_write_ends_by_itself() {
        let leadership = Leadership::not_leading();
        assert!(!leadership.may_write(), "before the first renewal");
        leadership.extend_from(Instant::now());
        assert!(leadership.may_write());
        let long_ago = Leadership {
            began: Instant::now().checked_sub(Duration::from_mins(1)).expect("up for longer"),
            ..leadership
        };
        long_ago.extend_from(long_ago.began);
        assert!(!long_ago.may_write(), "renewed a minute ago, as after a stop");
    }

    #[test]
    fn released_leadership_forbids_writes() {
        let leadership = Leadership::not_leading();
        leadership.extend_from(Instant::now());
        leadership.end_now();
        assert!(!leadership.may_write());
    }
}
