//! Brings the store and this process's state together: reports uncertain channels, forgets empty ones, and sweeps
//! processes that died.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::interfaces::{KeysInterface, SortedSetsInterface};
use fred::types::scan::Scanner;
use fred::types::{Expiration, SetOptions, Value};
use futures::{StreamExt, stream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::super::{BusError, ChannelKey};
use super::channel_index;
use super::client::{to_bus_error, unavailable_error};
use super::keys;
use super::members::{MembershipCore, MembershipState};

/// Bounds the channels that are reported, forgotten or swept concurrently.
const CONCURRENT_CHANNELS_MAX: usize = 32;
/// Channels of a dead process that one scan of its index returns.
const SWEEP_PAGE_LEN: u32 = 500;

/// Reconciles on each wake-up, when settling ends, and once per renewal interval, until shutdown.
pub(super) async fn run_reconciliation(core: Arc<MembershipCore>, shutdown: CancellationToken) {
    let mut refreshed = None;
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
        let reconciled = reconcile_once(&core).await;
        if let Err(error) = reconciled.and(refresh_app_indexes(&core, &mut refreshed).await) {
            tracing::debug!(%error, "bus reconciliation failed: retrying");
        }
    }
}

/// Refreshes the process's indexes of apps if it is time to. `refreshed` is the last time, with the generation of the name
/// that the process had.
async fn refresh_app_indexes(core: &MembershipCore, refreshed: &mut Option<(u64, Instant)>) -> Result<(), BusError> {
    let (process, generation) = {
        let state = core.state();
        (state.process.clone(), state.generation)
    };
    if refreshed.is_some_and(|(of, at)| of == generation && at.elapsed() < channel_index::APP_INDEX_REFRESH_INTERVAL) {
        return Ok(());
    }
    let apps = core.state().local.listed_apps();
    channel_index::refresh_app_indexes(&core.client, &core.names, &process, &apps).await?;
    *refreshed = Some((generation, Instant::now()));
    Ok(())
}

/// Reports uncertain channels, then channels whose transitions settling deferred; forgets empty channels; sweeps. A channel
/// that fails stops no other one, and waits for its back-off.
///
/// # Errors
/// The first failure of each kind of work, after all of it was tried.
pub(super) async fn reconcile_once(core: &Arc<MembershipCore>) -> Result<(), BusError> {
    let uncertain = core.state().local.uncertain_channels(Instant::now());
    let reported = apply_to_channels(core, uncertain, ChannelAction::Report).await;
    let settled = {
        let mut state = core.state();
        let over = state.settling.is_some_and(|settling| settling.ends_at <= Instant::now());
        if over {
            state.settling = None;
        }
        if state.settling.is_none() { state.local.take_unsettled() } else { Vec::new() }
    };
    let decided = apply_to_channels(core, settled, ChannelAction::Report).await;
    let maybe_empty = core.state().local.take_maybe_empty();
    let forgotten = apply_to_channels(core, maybe_empty, ChannelAction::Forget).await;
    let dead = sweepable_processes(&core.state(), core.timing.sweep_grace);
    let mut swept = Ok(());
    for process in dead {
        swept = swept.and(sweep_process(core, &process).await);
    }
    reported.error.or(decided.error).or(forgotten.error).map_or(swept, Err)
}

#[derive(Clone)]
enum ChannelAction {
    Report,
    Forget,
    Sweep(Arc<str>),
}

/// Outcome of one action on many channels.
#[derive(Default)]
struct ActionOutcome {
    /// Number of transitions that sweeping published.
    transitions: u64,
    /// Channels on which the action succeeded.
    done: Vec<ChannelKey>,
    /// Failure of the first channel that failed.
    error: Option<BusError>,
}

/// Applies one action to many channels. A channel whose action failed is reported again after a back-off of its own.
async fn apply_to_channels(
    core: &Arc<MembershipCore>,
    subjects: Vec<ChannelKey>,
    action: ChannelAction,
) -> ActionOutcome {
    let results = stream::iter(subjects).map(|subject| {
        let (core, action) = (core.clone(), action.clone());
        async move {
            let result = match &action {
                _ if !core.is_available() => Err(unavailable_error()),
                ChannelAction::Report => core.report_channel(&subject).await.map(|()| 0),
                ChannelAction::Forget => core.forget_channel(&subject).await.map(|()| 0),
                ChannelAction::Sweep(dead) => core.sweep_channel(&subject, dead).await,
            };
            let mut state = core.state();
            match &result {
                Ok(_) => state.local.clear_failures(&subject),
                Err(_) => state.local.mark_failed(&subject, Instant::now()),
            }
            drop(state);
            (subject, result)
        }
    });
    let mut results = results.buffer_unordered(CONCURRENT_CHANNELS_MAX);
    let mut outcome = ActionOutcome::default();
    while let Some((subject, result)) = results.next().await {
        match result {
            Ok(transitions) => {
                outcome.transitions += transitions;
                outcome.done.push(subject);
            }
            Err(error) => outcome.error = outcome.error.or(Some(error)),
        }
    }
    outcome
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
    let (mut channels, mut transitions, mut failure) = (0, 0, None);
    let pages = core.client.sscan(&index, "*", Some(SWEEP_PAGE_LEN));
    let mut pages = std::pin::pin!(pages);
    while let Some(page) = pages.next().await {
        let mut page = page.map_err(to_bus_error)?;
        let entries: Vec<String> =
            page.take_results().unwrap_or_default().into_iter().filter_map(Value::into_string).collect();
        channels += entries.len();
        let foreign = entries.iter().filter(|entry| keys::parse_index_entry(entry).is_none()).cloned();
        let foreign: Vec<String> = foreign.collect();
        let subjects: Vec<ChannelKey> = entries.iter().filter_map(|entry| keys::parse_index_entry(entry)).collect();
        let outcome = apply_to_channels(core, subjects, ChannelAction::Sweep(dead.into())).await;
        transitions += outcome.transitions;
        failure = failure.or(outcome.error);
        channel_index::remove_channels(&core.client, &core.names, dead, (&outcome.done, foreign)).await?;
        core.client.pexpire::<(), _>(&claim, ttl, None).await.map_err(to_bus_error)?;
        page.next();
    }
    let ms = started.elapsed().as_millis();
    if let Some(error) = failure {
        // The rest of the index is swept with the next reconciliation.
        tracing::debug!(process = dead, channels, transitions, ms, %error, "dead process swept in part");
        return Err(error);
    }
    core.client.zrem::<(), _, _>(core.names.leases_key(), dead).await.map_err(to_bus_error)?;
    let keys = vec![claim, core.names.app_index_mark_key(dead)];
    core.client.del::<(), _>(keys).await.map_err(to_bus_error)?;
    core.state().dead_processes.retain(|process| process != dead);
    tracing::info!(process = dead, channels, transitions, ms, "dead process swept");
    Ok(())
}
