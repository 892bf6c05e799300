//! Brings the store and this process's state together: reports uncertain channels, forgets empty ones, and sweeps
//! processes that died.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::interfaces::{KeysInterface, SetsInterface, SortedSetsInterface};
use fred::types::scan::Scanner;
use fred::types::{Expiration, SetOptions, Value};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::super::{BusError, ChannelKey};
use super::client::{to_bus_error, unavailable_error};
use super::keys;
use super::members::{MembershipCore, MembershipState};

/// Bounds the channels that are reported, forgotten or swept concurrently.
const CONCURRENT_CHANNELS_MAX: usize = 32;
/// Channels of a dead process that one scan of its index returns.
const SWEEP_PAGE_LEN: u32 = 500;

/// Reconciles on each wake-up, when settling ends, and once per renewal interval, until shutdown.
pub(super) async fn run_reconciliation(core: Arc<MembershipCore>, shutdown: CancellationToken) {
    loop {
        let wait = core.settling_time_left().unwrap_or(core.timing.renew_interval).min(core.timing.renew_interval);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = core.wake.notified() => {}
            () = sleep(wait) => {}
        }
        if !core.is_available() {
            continue;
        }
        if let Err(error) = reconcile_once(&core).await {
            tracing::debug!(%error, "bus reconciliation failed: retrying");
            core.renew_now.notify_one();
        }
    }
}

/// Reports uncertain channels, then channels whose transitions settling deferred; forgets empty channels; sweeps.
pub(super) async fn reconcile_once(core: &Arc<MembershipCore>) -> Result<(), BusError> {
    let uncertain = core.state().local.uncertain_channels();
    apply_to_channels(core, uncertain, ChannelAction::Report).await?;
    let settled = {
        let mut state = core.state();
        let over = state.settling.is_some_and(|settling| settling.ends_at <= Instant::now());
        if over {
            state.settling = None;
        }
        if state.settling.is_none() { state.local.take_unsettled() } else { Vec::new() }
    };
    apply_to_channels(core, settled, ChannelAction::Report).await?;
    let maybe_empty = core.state().local.take_maybe_empty();
    apply_to_channels(core, maybe_empty, ChannelAction::Forget).await?;
    let dead = sweepable_processes(&core.state(), core.timing.sweep_grace);
    for process in dead {
        sweep_process(core, &process).await?;
    }
    Ok(())
}

#[derive(Clone)]
enum ChannelAction {
    Report,
    Forget,
    Sweep(Arc<str>),
}

/// Applies one action to many channels, and returns the number of transitions that sweeping published. A channel whose
/// action failed is marked uncertain.
async fn apply_to_channels(
    core: &Arc<MembershipCore>,
    subjects: Vec<ChannelKey>,
    action: ChannelAction,
) -> Result<u64, BusError> {
    let results = stream::iter(subjects).map(|subject| {
        let (core, action) = (core.clone(), action.clone());
        async move {
            let result = match &action {
                _ if !core.is_available() => Err(unavailable_error()),
                ChannelAction::Report => core.report_channel(&subject).await.map(|()| 0),
                ChannelAction::Forget => core.forget_channel(&subject).await.map(|()| 0),
                ChannelAction::Sweep(dead) => core.sweep_channel(&subject, dead).await,
            };
            result.inspect_err(|_| core.state().local.mark_uncertain(&subject))
        }
    });
    let results: Vec<Result<u64, BusError>> = results.buffer_unordered(CONCURRENT_CHANNELS_MAX).collect().await;
    results.into_iter().sum()
}

/// Dead processes that this process may sweep. The grace period on its connection and on the store's data gives every
/// live process the time to renew its lease first.
fn sweepable_processes(state: &MembershipState, grace: Duration) -> Vec<String> {
    let is_old = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() >= grace);
    if is_old(state.available_since) && is_old(state.store_memory_since) && state.settling.is_none() {
        state.dead_processes.clone()
    } else {
        Vec::new()
    }
}

/// Removes a dead process's connections from every channel in its index.
async fn sweep_process(core: &Arc<MembershipCore>, dead: &str) -> Result<(), BusError> {
    let (claim, own) = (core.names.sweep_claim_key(dead), core.state().process.clone());
    let ttl = i64::try_from(core.timing.lease_ttl.as_millis()).unwrap_or(i64::MAX);
    let claimed: Option<String> = core
        .client
        .set(&claim, own.as_str(), Some(Expiration::PX(ttl)), Some(SetOptions::NX), false)
        .await
        .map_err(to_bus_error)?;
    let sweeper =
        if claimed.is_some() { Some(own.clone()) } else { core.client.get(&claim).await.map_err(to_bus_error)? };
    if sweeper.as_deref() != Some(own.as_str()) {
        return Ok(());
    }
    let (index, started) = (core.names.channel_index_key(dead), Instant::now());
    let (mut channels, mut transitions) = (0, 0);
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
        transitions += apply_to_channels(core, subjects, ChannelAction::Sweep(dead.into())).await?;
        core.client.srem::<(), _, _>(&index, entries).await.map_err(to_bus_error)?;
        core.client.pexpire::<(), _>(&claim, ttl, None).await.map_err(to_bus_error)?;
    }
    core.client.zrem::<(), _, _>(core.names.leases_key(), dead).await.map_err(to_bus_error)?;
    core.client.del::<(), _>(claim).await.map_err(to_bus_error)?;
    core.state().dead_processes.retain(|process| process != dead);
    let ms = started.elapsed().as_millis();
    tracing::info!(process = dead, channels, transitions, ms, "dead process swept");
    Ok(())
}
