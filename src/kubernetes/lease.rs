//! Leader election over one Lease.
//!
//! A candidate takes the Lease when it has no holder, or when its holder has not changed it for the lease's duration *by
//! the candidate's own monotonic clock*: clocks of other machines are not compared. The holder counts its right to write
//! from the moment before its last successful renewal, so that a process that was suspended finds by itself, before any
//! answer of the API server, that another may lead.
//!
//! Before it leads and with each renewal a candidate reads the Leases of all operators: where two scopes overlap, the
//! older Lease wins, and the holder of the younger one does not lead. An operator of some namespaces may lack the permission
//! to list the Leases of others ([`may_list_all_leases`]): then it reads those of its own namespace only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::scope::{
    LeaseObservations, RivalLease, SCOPE_LABEL, ScopeClaim, WATCHED_ANNOTATION, WatchScope, judge_leases,
};
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
        self.until_ms.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Release);
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

enum LeaseAttempt {
    /// This candidate holds the Lease and leads.
    Held,
    /// The Lease is its own and was not among those that were read: they are read again before it leads.
    Registered,
    /// The Lease is its own, and a younger operator has to end first.
    Awaiting,
    NotHeld,
    /// An older operator watches the same objects.
    Yielded,
}

impl LeaderElector {
    /// Creates a candidate that does not hold the Lease.
    #[must_use]
    pub fn new(
        client: Client,
        (namespace, name): (&str, &str),
        identity: &str,
        scope: WatchScope,
        may_list_all: bool,
    ) -> Self {
        let own = || Api::namespaced(client.clone(), namespace);
        Self {
            operators: if may_list_all { Api::all(client.clone()) } else { own() },
            api: own(),
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
                LeaseAttempt::Registered => continue,
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
        let leases = match self.operators.list(&ListParams::default().labels(SCOPE_LABEL)).await {
            Ok(leases) => leases.items,
            // A leader goes on: the rival, if there is one, cannot have begun to lead before it read the Leases.
            Err(error) if leads => {
                tracing::warn!(%error, "leases of other operators not read");
                vec![]
            }
            Err(error) => return Err(error),
        };
        let own = (self.namespace.as_str(), self.name.as_str());
        let at = (Instant::now(), LEASE_TTL);
        let claim = judge_leases(&leases, own, &self.scope, &mut self.observations, at);
        self.report_claim(&claim);
        let is_own =
            |lease: &&Lease| lease.namespace().as_ref() == Some(&self.namespace) && lease.name_any() == self.name;
        let known = leases.iter().find(is_own).cloned();
        if let ScopeClaim::Yield(_) = claim {
            let holder = known.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity);
            if leads || holder.as_ref() == Some(&self.identity) {
                self.release_lease().await;
            }
            return Ok(LeaseAttempt::Yielded);
        }
        let is_registered = known.is_some();
        Ok(match self.acquire_or_renew(known).await? {
            false => LeaseAttempt::NotHeld,
            true if leads => LeaseAttempt::Held,
            true if !is_registered => LeaseAttempt::Registered,
            true if claim == ScopeClaim::Free => LeaseAttempt::Held,
            true => LeaseAttempt::Awaiting,
        })
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

    async fn acquire_or_renew(&mut self, known: Option<Lease>) -> Result<bool, kube::Error> {
        let lease = match known {
            Some(lease) => Some(lease),
            None => self.api.get_opt(&self.name).await?,
        };
        let Some(mut lease) = lease else {
            let metadata = ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(self.scope.labels()),
                annotations: Some(self.scope.annotations()),
                ..ObjectMeta::default()
            };
            let lease = Lease { metadata, spec: Some(self.lease_spec(0, None)) };
            return match self.api.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(true),
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(false),
                Err(error) => Err(error),
            };
        };
        let version = lease.resource_version().unwrap_or_default();
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder != self.identity && !holder.is_empty() {
            let since = match &self.last_observed {
                Some((seen, since)) if *seen == version => *since,
                _ => {
                    self.last_observed = Some((version, Instant::now()));
                    return Ok(false);
                }
            };
            if since.elapsed() < LEASE_TTL {
                return Ok(false);
            }
        }
        let transitions = spec.lease_transitions.unwrap_or(0) + i32::from(holder != self.identity);
        let acquired = spec.acquire_time.filter(|_| holder == self.identity);
        lease.spec = Some(self.lease_spec(transitions, acquired));
        lease.metadata.managed_fields = None;
        lease.metadata.labels.get_or_insert_default().extend(self.scope.labels());
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.remove(WATCHED_ANNOTATION);
        annotations.extend(self.scope.annotations());
        // Sent with the version that was read: of two concurrent candidates the API server refuses one.
        match self.api.replace(&self.name, &PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
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
