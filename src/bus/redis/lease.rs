//! The lease of one process: renews it, notices a store that lost its data, and releases the lease on shutdown.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::clients::SubscriberClient;
use fred::interfaces::{EventInterface, KeysInterface, SortedSetsInterface};
use fred::types::scripts::Script;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use super::super::BusError;
use super::client::{
    StoreStatus, evaluate_script, fetch_store_status, malformed_answer, parse_number, reconnect, to_bus_error,
};
use super::first_sync::{FirstSyncSender, report_first_sync};
use super::members::{MembershipCore, SettlingWindow};

/// Least time between two renewals: a channel that fails again and again must not make the process renew without pause.
const RENEWAL_DELAY: Duration = Duration::from_millis(100);
/// Least time between two reconnections because the store is a replica.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// Renews the lease of one process.
pub(super) struct LeaseKeeper {
    core: Arc<MembershipCore>,
    subscriber: SubscriberClient,
    /// Whether the log says that the bus is unavailable.
    is_reported: bool,
    /// Whether the store is a replica, as of the latest renewal.
    is_replica: bool,
    /// Time of the latest reconnection that a renewal asked for.
    reconnected_at: Option<Instant>,
    script: Script,
    /// Why the store cannot be a bus, as of the latest renewal.
    unusable_reason: Option<String>,
}

impl LeaseKeeper {
    pub fn new(core: Arc<MembershipCore>, subscriber: SubscriberClient) -> Self {
        let script = Script::from_lua(include_str!("renew_lease.lua"));
        Self {
            core,
            subscriber,
            is_reported: false,
            is_replica: false,
            reconnected_at: None,
            script,
            unusable_reason: None,
        }
    }

    /// Renews the lease until shutdown.
    pub async fn run_lease_renewal(mut self, first_sync: FirstSyncSender, shutdown: CancellationToken) {
        let core = self.core.clone();
        let (mut reconnected, mut broken) = (core.client.reconnect_rx(), core.client.error_rx());
        loop {
            let turn = core.lease_turn.lock().await;
            if turn.is_released {
                return;
            }
            let renewed = self.renew_lease().await;
            drop(turn);
            let wait = match renewed {
                Ok(()) => {
                    report_first_sync(&first_sync, self.unusable_reason.clone().map_or(Ok(()), Err));
                    if std::mem::take(&mut self.is_reported) {
                        tracing::info!("bus available again");
                    }
                    core.timing.renew_interval
                }
                Err(error) => {
                    self.note_failure(&error, &first_sync);
                    core.timing.renew_interval / 6
                }
            };
            sleep(RENEWAL_DELAY.min(wait)).await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = core.renew_now.notified() => {}
                _ = reconnected.recv() => core.state().available_since = None,
                _ = broken.recv() => mark_unavailable(&core),
                () = sleep(wait) => {}
            }
        }
    }

    fn note_failure(&mut self, error: &BusError, first_sync: &FirstSyncSender) {
        if !std::mem::replace(&mut self.is_reported, true) {
            tracing::warn!(%error, "bus unavailable: delivering locally; presence and occupancy changes are deferred");
        }
        mark_unavailable(&self.core);
        // No retry gives the user its rights.
        if let BusError::Unavailable(reason) = error
            && reason.contains("NOPERM")
        {
            report_first_sync(first_sync, Err(reason.clone()));
        }
        // After a failover the name in the address leads to another server, while connections to the former one stay open.
        if self.is_replica && self.reconnected_at.is_none_or(|at| at.elapsed() >= RECONNECT_INTERVAL) {
            self.reconnected_at = Some(Instant::now());
            reconnect(&self.core.client, &self.subscriber);
        }
    }

    /// Renews the lease once, and applies the store's answer to the state.
    pub async fn renew_lease(&mut self) -> Result<(), BusError> {
        let core = &self.core;
        let status = fetch_store_status(&core.client, core.names.clustered).await?;
        if status.unusable_reason != self.unusable_reason && !status.is_replica {
            if let Some(reason) = &status.unusable_reason {
                tracing::error!("{reason}");
            }
            self.unusable_reason.clone_from(&status.unusable_reason);
        }
        self.is_replica = status.is_replica;
        if status.is_replica {
            return Err(BusError::Unavailable(status.unusable_reason.unwrap_or_default()));
        }
        let mut lease = request_lease(core, &self.script, &status).await?;
        let is_new = lease.status != "kept";
        let had_one = core.state().available_since.is_some() || !core.state().incarnation.is_empty();
        if is_new && had_one {
            // Another process may sweep the old name, or has done so: nothing may be registered under it any more.
            {
                let mut state = core.state();
                state.generation += 1;
                state.process = format!("{}.{}", state.process.split('.').next().unwrap_or_default(), state.generation);
                tracing::warn!(process = %state.process, "bus lease expired: re-registering all connections");
            }
            lease = request_lease(core, &self.script, &status).await?;
        }
        let mut state = core.state();
        let now = Instant::now();
        let has_new_memory = lease.incarnation != state.incarnation;
        if has_new_memory {
            state.incarnation.clone_from(&lease.incarnation);
            let born = now.checked_sub(Duration::from_millis(lease.age_ms)).unwrap_or(now);
            state.store_memory_since = Some(born);
            let ends = born + core.timing.settling_period;
            state.settling = (ends > now)
                .then(|| SettlingWindow { all_reported_at: born + core.timing.settling_period / 2, ends_at: ends });
        }
        if has_new_memory || is_new || state.available_since.is_none() {
            // A store that was unavailable may be restored from an older snapshot.
            state.local.mark_all_uncertain();
            state.local.clear_all_failures();
        }
        state.available_since.get_or_insert(now);
        state.dead_processes = lease.dead_processes;
        drop(state);
        core.set_available(true);
        core.wake.notify_one();
        Ok(())
    }
}

fn mark_unavailable(core: &MembershipCore) {
    core.set_available(false);
    core.state().available_since = None;
}

struct LeaseResponse {
    status: String,
    incarnation: String,
    age_ms: u64,
    dead_processes: Vec<String>,
}

async fn request_lease(
    core: &MembershipCore,
    script: &Script,
    status: &StoreStatus,
) -> Result<LeaseResponse, BusError> {
    let (process, is_known) = {
        let state = core.state();
        (state.process.clone(), !state.incarnation.is_empty())
    };
    // A store without an incarnation that has run for long never had this cluster, so its data counts as that old;
    // unless this process knows an incarnation, which the store then has lost.
    let age_ms = if is_known { 0 } else { status.age_ms };
    let keys = vec![core.names.leases_key(), core.names.incarnation_key()];
    let arguments = vec![
        process,
        core.timing.lease_ttl.as_millis().to_string(),
        Ulid::new().to_string(),
        status.run_id.clone(),
        age_ms.to_string(),
    ];
    let answer = evaluate_script(&core.client, script, keys, arguments).await.map_err(to_bus_error)?;
    let [status, incarnation, age_ms, dead @ ..] = &answer[..] else { return Err(malformed_answer()) };
    Ok(LeaseResponse {
        status: status.clone(),
        incarnation: incarnation.clone(),
        age_ms: parse_number(age_ms)?,
        dead_processes: dead.to_vec(),
    })
}

/// Releases the lease on shutdown, so that no other process sweeps this one. A process that still has connections or
/// unacknowledged events keeps its lease.
pub(super) async fn release_lease(core: &MembershipCore) {
    core.wait_acknowledgements_confirmed().await;
    // A renewal on its way would take the lease again.
    let mut turn = core.lease_turn.lock().await;
    let (process, is_empty) = {
        let state = core.state();
        (state.process.clone(), state.local.is_empty())
    };
    if is_empty && core.is_available() {
        // If this fails, the lease expires and the sweeper finds an empty index.
        let _ = core.client.zrem::<(), _, _>(core.names.leases_key(), process.as_str()).await;
        let keys = vec![core.names.channel_index_key(&process), core.names.app_index_mark_key(&process)];
        let _ = core.client.del::<(), _>(keys).await;
        turn.is_released = true;
    }
}
