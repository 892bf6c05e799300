//! The tasks of one process's end: it keeps its lease, tells the store what it may not know, sweeps after processes that
//! died, and hears of what is safe.

use std::sync::Arc;
use std::time::Instant;

use fred::interfaces::{EventInterface, HashesInterface, KeysInterface, SetsInterface, SortedSetsInterface};
use fred::types::scan::Scanner;
use fred::types::scripts::Script;
use fred::types::{Expiration, SetOptions, Value};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use super::super::{BusError, ChannelKey};
use super::client::{
    self, PIPELINE_COMMANDS_MAX, StoreStatus, evaluate_script, fetch_store_status, malformed_answer, parse_number,
    to_bus_error,
};
use super::keys;
use super::members::{MembershipCore, MembershipState, SettlingWindow};
use crate::protocol::record::EventOrder;

/// Channels that the store is told of at once.
const CONCURRENT_CHANNELS_MAX: usize = 32;
/// Channels of a dead process that are looked at in one go.
const SWEEP_PAGE_LEN: u32 = 500;
/// What is safe and waits to be told so, in channels.
pub(super) const ACKNOWLEDGEMENT_QUEUE_LEN: usize = 65_536;

/// What the first contact found: not yet anything, that all is well, or why the store cannot be a bus.
pub(super) type FirstSyncSender = watch::Sender<Option<Result<(), String>>>;

/// What keeps a process on the bus.
pub(super) struct LeaseKeeper {
    core: Arc<MembershipCore>,
    script: Script,
    /// Why the store cannot be a bus, as last found.
    unusable_reason: Option<String>,
}

impl LeaseKeeper {
    pub fn new(core: Arc<MembershipCore>) -> Self {
        Self { core, script: Script::from_lua(include_str!("lease.lua")), unusable_reason: None }
    }

    /// Keeps the lease until the token ends it.
    pub async fn run_lease_renewal(mut self, first: FirstSyncSender, shutdown: CancellationToken) {
        let core = self.core.clone();
        let (mut reconnected, mut broken) = (core.client.reconnect_rx(), core.client.error_rx());
        loop {
            let wait = match self.renew_lease().await {
                Ok(()) => {
                    let found = self.unusable_reason.clone().map_or(Ok(()), Err);
                    first.send_if_modified(|first| first.is_none() && first.replace(found).is_none());
                    core.timing.renew_interval
                }
                Err(error) => {
                    if core.is_available() || core.state().available_since.is_some() {
                        tracing::warn!(%error, "the bus is away: chat goes on within each process, and who comes and goes is told later");
                    }
                    mark_unavailable(&core);
                    core.timing.renew_interval / 6
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = core.renew_now.notified() => {}
                _ = reconnected.recv() => core.state().available_since = None,
                _ = broken.recv() => mark_unavailable(&core),
                () = sleep(wait) => {}
            }
        }
    }

    /// Says that the process lives, and takes in what the store answers.
    pub async fn renew_lease(&mut self) -> Result<(), BusError> {
        let core = &self.core;
        let about = fetch_store_status(&core.client, core.names.clustered).await?;
        if about.unusable_reason != self.unusable_reason {
            if let Some(reason) = &about.unusable_reason {
                tracing::error!("{reason}");
            }
            self.unusable_reason.clone_from(&about.unusable_reason);
        }
        let mut lease = request_lease(core, &self.script, &about).await?;
        let renamed = lease.status != "kept";
        let had_one = core.state().available_since.is_some() || !core.state().incarnation.is_empty();
        if renamed && had_one {
            // Others may be sweeping after the old name, or have done so: nothing may be told under it any more.
            {
                let mut state = core.state();
                state.generation += 1;
                state.process = format!("{}.{}", state.process.split('.').next().unwrap_or_default(), state.generation);
                tracing::warn!(process = %state.process, "the lease on the bus has ended; everyone here is told to it anew");
            }
            lease = request_lease(core, &self.script, &about).await?;
        }
        let mut state = core.state();
        let now = Instant::now();
        let fresh = lease.incarnation != state.incarnation;
        if fresh {
            state.incarnation.clone_from(&lease.incarnation);
            let born = now.checked_sub(std::time::Duration::from_millis(lease.age_ms)).unwrap_or(now);
            state.store_memory_since = Some(born);
            let ends = born + core.timing.settling_period;
            state.settling = (ends > now)
                .then(|| SettlingWindow { all_reported_at: born + core.timing.settling_period / 2, ends_at: ends });
        }
        if fresh || renamed || state.available_since.is_none() {
            // A store that was away may come back with an older memory.
            state.local.mark_all_uncertain();
        }
        state.available_since.get_or_insert(now);
        state.dead_processes = lease.dead_processes;
        drop(state);
        core.set_available(true);
        core.wake.notify_one();
        Ok(())
    }

    /// Does what there is to do, until the token ends it.
    pub async fn run_maintenance(self, shutdown: CancellationToken) {
        let core = &self.core;
        loop {
            let settles =
                core.settling_time_left().unwrap_or(core.timing.renew_interval).min(core.timing.renew_interval);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = core.wake.notified() => {}
                () = sleep(settles) => {}
            }
            if !core.is_available() {
                continue;
            }
            if let Err(error) = self.reconcile_once().await {
                tracing::debug!(%error, "the bus was not told everything; it is told again");
                core.renew_now.notify_one();
            }
        }
    }

    /// Tells what is in doubt; what could not be told before; forgets; sweeps.
    pub async fn reconcile_once(&self) -> Result<(), BusError> {
        let core = &self.core;
        let dirty = core.state().local.uncertain_channels();
        apply_to_channels(core, dirty, ChannelAction::Report).await?;
        let settled = {
            let mut state = core.state();
            let over = state.settling.is_some_and(|settling| settling.ends_at <= Instant::now());
            if over {
                state.settling = None;
            }
            if state.settling.is_none() { state.local.take_unsettled() } else { Vec::new() }
        };
        apply_to_channels(core, settled, ChannelAction::Report).await?;
        let left = core.state().local.take_maybe_empty();
        apply_to_channels(core, left, ChannelAction::Forget).await?;
        let dead = sweepable_processes(&core.state(), core.timing.sweep_grace);
        for process in dead {
            sweep_process(core, &process).await?;
        }
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

async fn request_lease(core: &MembershipCore, script: &Script, about: &StoreStatus) -> Result<LeaseResponse, BusError> {
    let (process, known) = {
        let state = core.state();
        (state.process.clone(), !state.incarnation.is_empty())
    };
    // A store that runs for long and knows nothing of the cluster never did; unless we know better.
    let age_ms = if known { 0 } else { about.age_ms };
    let keys = vec![core.names.leases_key(), core.names.incarnation_key()];
    let arguments = vec![
        process,
        core.timing.lease_ttl.as_millis().to_string(),
        Ulid::new().to_string(),
        about.run_id.clone(),
        age_ms.to_string(),
    ];
    let answer = evaluate_script(&core.client, script, keys, arguments).await.map_err(to_bus_error)?;
    let [standing, incarnation, age_ms, dead @ ..] = &answer[..] else { return Err(malformed_answer()) };
    Ok(LeaseResponse {
        status: standing.clone(),
        incarnation: incarnation.clone(),
        age_ms: parse_number(age_ms)?,
        dead_processes: dead.to_vec(),
    })
}

/// What is done to a channel.
#[derive(Clone)]
enum ChannelAction {
    Report,
    Forget,
    Sweep(Arc<str>),
}

/// Does one thing to many channels, and returns how much there was to tell. What failed is in doubt again.
async fn apply_to_channels(
    core: &Arc<MembershipCore>,
    subjects: Vec<ChannelKey>,
    act: ChannelAction,
) -> Result<u64, BusError> {
    let results = stream::iter(subjects).map(|subject| {
        let (core, act) = (core.clone(), act.clone());
        async move {
            let done = match &act {
                _ if !core.is_available() => Err(client::unavailable_error()),
                ChannelAction::Report => core.report_channel(&subject).await.map(|()| 0),
                ChannelAction::Forget => core.forget_channel(&subject).await.map(|()| 0),
                ChannelAction::Sweep(dead) => core.sweep_channel(&subject, dead).await,
            };
            done.inspect_err(|_| core.state().local.mark_uncertain(&subject))
        }
    });
    let results: Vec<Result<u64, BusError>> = results.buffer_unordered(CONCURRENT_CHANNELS_MAX).collect().await;
    results.into_iter().sum()
}

/// The dead, for one whose contact with the store, and the store's memory, are old enough: everyone alive has said so.
fn sweepable_processes(state: &MembershipState, rest: std::time::Duration) -> Vec<String> {
    let old = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() >= rest);
    if old(state.available_since) && old(state.store_memory_since) && state.settling.is_none() {
        state.dead_processes.clone()
    } else {
        Vec::new()
    }
}

/// Removes a dead process from every channel in which it had someone.
async fn sweep_process(core: &Arc<MembershipCore>, dead: &str) -> Result<(), BusError> {
    let (claim, own) = (core.names.sweep_claim_key(dead), core.state().process.clone());
    let ttl = i64::try_from(core.timing.lease_ttl.as_millis()).unwrap_or(i64::MAX);
    let claimed: Option<String> = core
        .client
        .set(&claim, own.as_str(), Some(Expiration::PX(ttl)), Some(SetOptions::NX), false)
        .await
        .map_err(to_bus_error)?;
    let holder =
        if claimed.is_some() { Some(own.clone()) } else { core.client.get(&claim).await.map_err(to_bus_error)? };
    if holder.as_deref() != Some(own.as_str()) {
        return Ok(());
    }
    let (index, begun) = (core.names.channel_index_key(dead), Instant::now());
    let (mut channels, mut told) = (0, 0);
    loop {
        let page = core.client.sscan(&index, "*", Some(SWEEP_PAGE_LEN)).take(1).try_collect::<Vec<_>>().await;
        let page = page.map_err(to_bus_error)?;
        let results = page.into_iter().filter_map(|mut page| page.take_results()).flatten();
        let entries: Vec<String> = results.filter_map(Value::into_string).collect();
        if entries.is_empty() {
            break;
        }
        channels += entries.len();
        let subjects: Vec<ChannelKey> = entries.iter().filter_map(|entry| keys::parse_index_entry(entry)).collect();
        told += apply_to_channels(core, subjects, ChannelAction::Sweep(dead.into())).await?;
        core.client.srem::<(), _, _>(&index, entries).await.map_err(to_bus_error)?;
        core.client.pexpire::<(), _>(&claim, ttl, None).await.map_err(to_bus_error)?;
    }
    core.client.zrem::<(), _, _>(core.names.leases_key(), dead).await.map_err(to_bus_error)?;
    core.client.del::<(), _>(claim).await.map_err(to_bus_error)?;
    core.state().dead_processes.retain(|process| process != dead);
    let ms = begun.elapsed().as_millis();
    tracing::info!(process = dead, channels, told, ms, "swept after a process that died");
    Ok(())
}

/// Tells the store what is safe in the stream, so that nobody tells it again. What cannot be told is kept and tried
/// again; beyond the bound it stays in the outbox, and is told a second time should this process die.
pub(super) async fn run_acknowledgements(
    core: Arc<MembershipCore>,
    mut safe: mpsc::Receiver<(ChannelKey, Vec<EventOrder>)>,
    shutdown: CancellationToken,
) {
    let mut batch = Vec::new();
    loop {
        if batch.is_empty() && safe.recv_many(&mut batch, PIPELINE_COMMANDS_MAX).await == 0 {
            return;
        }
        if core.is_available() && acknowledge_batch(&core, &batch).await.is_ok() {
            let mut state = core.state();
            for (subject, orders) in batch.drain(..) {
                state.local.mark_recorded(&subject, &orders);
            }
            continue;
        }
        if timeout(core.timing.renew_interval / 3, shutdown.cancelled()).await.is_ok() {
            return;
        }
    }
}

async fn acknowledge_batch(core: &MembershipCore, batch: &[(ChannelKey, Vec<EventOrder>)]) -> Result<(), BusError> {
    let pipeline = core.client.pipeline();
    for (subject, orders) in batch {
        let fields: Vec<String> = orders.iter().map(|order| format!("{}:{}", order.epoch, order.seq)).collect();
        pipeline.hdel::<(), _, _>(core.names.redis_key(subject, "outbox"), fields).await.map_err(to_bus_error)?;
    }
    pipeline.all::<Vec<i64>>().await.map_err(to_bus_error).map(drop)
}

/// The process ends: if it has nobody anywhere and nothing to tell, nobody need sweep after it.
pub(super) async fn release_lease(core: &MembershipCore) {
    let (process, empty) = {
        let state = core.state();
        (state.process.clone(), state.local.is_empty())
    };
    if empty && core.is_available() {
        // If this does not arrive, the lease ends by itself and an empty index is swept.
        let _ = core.client.zrem::<(), _, _>(core.names.leases_key(), process.as_str()).await;
        let _ = core.client.del::<(), _>(core.names.channel_index_key(&process)).await;
    }
}
