//! Leader election over one Lease.
//!
//! A candidate takes the Lease when it has no holder, or when its holder has not changed it for the lease's duration *by
//! the candidate's own monotonic clock*: clocks of other machines are not compared. The holder counts its right to write
//! from the moment before its last successful renewal, so that a process that was suspended finds by itself, before any
//! answer of the API server, that another may lead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

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

/// A candidate for one Lease.
pub struct LeaderElector {
    api: Api<Lease>,
    name: String,
    identity: String,
    leadership: Leadership,
    /// Version of the Lease that was read last, and when it was first read.
    last_observed: Option<(String, Instant)>,
}

enum LeaseAttempt {
    Held,
    NotHeld,
}

impl LeaderElector {
    /// Creates a candidate that does not hold the Lease.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            leadership: Leadership::not_leading(),
            last_observed: None,
        }
    }

    /// A handle to the right to write, updated with every renewal.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Waits until this candidate leads; `false` when `shutdown` is cancelled first.
    pub async fn wait_until_leading(&mut self, shutdown: &CancellationToken) -> bool {
        loop {
            if matches!(self.try_lease().await, LeaseAttempt::Held) {
                return true;
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
    pub async fn hold_lease(mut self, shutdown: CancellationToken) -> Result<(), LeaseLost> {
        loop {
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
            if matches!(self.try_lease().await, LeaseAttempt::NotHeld) && !self.leadership.may_write() {
                self.leadership.end_now();
                return Err(LeaseLost);
            }
        }
    }

    async fn try_lease(&mut self) -> LeaseAttempt {
        let began = Instant::now();
        match timeout(LEASE_CALL_TIMEOUT, self.acquire_or_renew()).await {
            Ok(Ok(true)) => {
                self.leadership.extend_from(began);
                LeaseAttempt::Held
            }
            Ok(Ok(false)) => LeaseAttempt::NotHeld,
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

    async fn acquire_or_renew(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
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

/// Another process leads, or may lead.
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
