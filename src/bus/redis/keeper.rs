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

use super::super::{BusError, Subject};
use super::core::{Core, Settling, State};
use super::names;
use super::store::{self, About, PIPELINE, about, evaluate, garbled, number, unavailable};
use crate::protocol::record::Order;

/// Channels that the store is told of at once.
const AT_ONCE: usize = 32;
/// Channels of a dead process that are looked at in one go.
const PAGE: u32 = 500;
/// What is safe and waits to be told so, in channels.
pub(super) const SAFE: usize = 65_536;

/// What the first contact found: not yet anything, that all is well, or why the store cannot be a bus.
pub(super) type First = watch::Sender<Option<Result<(), String>>>;

/// What keeps a process on the bus.
pub(super) struct Keeper {
    core: Arc<Core>,
    script: Script,
    /// Why the store cannot be a bus, as last found.
    unfit: Option<String>,
}

impl Keeper {
    pub fn new(core: Arc<Core>) -> Self {
        Self { core, script: Script::from_lua(include_str!("lease.lua")), unfit: None }
    }

    /// Keeps the lease until the token ends it.
    pub async fn keep_lease(mut self, first: First, shutdown: CancellationToken) {
        let core = self.core.clone();
        let (mut reconnected, mut broken) = (core.client.reconnect_rx(), core.client.error_rx());
        loop {
            let wait = match self.renew().await {
                Ok(()) => {
                    let found = self.unfit.clone().map_or(Ok(()), Err);
                    first.send_if_modified(|first| first.is_none() && first.replace(found).is_none());
                    core.timing.renew
                }
                Err(error) => {
                    if core.up() || core.state().steady.is_some() {
                        tracing::warn!(%error, "the bus is away: chat goes on within each process, and who comes and goes is told later");
                    }
                    away(&core);
                    core.timing.renew / 6
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = core.hurry.notified() => {}
                _ = reconnected.recv() => core.state().steady = None,
                _ = broken.recv() => away(&core),
                () = sleep(wait) => {}
            }
        }
    }

    /// Says that the process lives, and takes in what the store answers.
    pub async fn renew(&mut self) -> Result<(), BusError> {
        let core = &self.core;
        let about = about(&core.client, core.names.clustered).await?;
        if about.unfit != self.unfit {
            if let Some(reason) = &about.unfit {
                tracing::error!("{reason}");
            }
            self.unfit.clone_from(&about.unfit);
        }
        let mut lease = take(core, &self.script, &about).await?;
        let renamed = lease.standing != "kept";
        let had_one = core.state().steady.is_some() || !core.state().incarnation.is_empty();
        if renamed && had_one {
            // Others may be sweeping after the old name, or have done so: nothing may be told under it any more.
            {
                let mut state = core.state();
                state.name += 1;
                state.process = format!("{}.{}", state.process.split('.').next().unwrap_or_default(), state.name);
                tracing::warn!(process = %state.process, "the lease on the bus has ended; everyone here is told to it anew");
            }
            lease = take(core, &self.script, &about).await?;
        }
        let mut state = core.state();
        let now = Instant::now();
        let fresh = lease.incarnation != state.incarnation;
        if fresh {
            state.incarnation.clone_from(&lease.incarnation);
            let born = now.checked_sub(std::time::Duration::from_millis(lease.age_ms)).unwrap_or(now);
            state.memory = Some(born);
            let ends = born + core.timing.settle;
            state.settling = (ends > now).then(|| Settling { told: born + core.timing.settle / 2, ends });
        }
        if fresh || renamed || state.steady.is_none() {
            // A store that was away may come back with an older memory.
            state.held.doubt_all();
        }
        state.steady.get_or_insert(now);
        state.dead = lease.dead;
        drop(state);
        core.set_up(true);
        core.wake.notify_one();
        Ok(())
    }

    /// Does what there is to do, until the token ends it.
    pub async fn work(self, shutdown: CancellationToken) {
        let core = &self.core;
        loop {
            let settles = core.settles_in().unwrap_or(core.timing.renew).min(core.timing.renew);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = core.wake.notified() => {}
                () = sleep(settles) => {}
            }
            if !core.up() {
                continue;
            }
            if let Err(error) = self.once().await {
                tracing::debug!(%error, "the bus was not told everything; it is told again");
                core.hurry.notify_one();
            }
        }
    }

    /// Tells what is in doubt; what could not be told before; forgets; sweeps.
    pub async fn once(&self) -> Result<(), BusError> {
        let core = &self.core;
        let dirty = core.state().held.in_doubt();
        each(core, dirty, Act::Tell).await?;
        let settled = {
            let mut state = core.state();
            let over = state.settling.is_some_and(|settling| settling.ends <= Instant::now());
            if over {
                state.settling = None;
            }
            if state.settling.is_none() { state.held.take_unsettled() } else { Vec::new() }
        };
        each(core, settled, Act::Tell).await?;
        let left = core.state().held.take_left();
        each(core, left, Act::Forget).await?;
        let dead = rested(&core.state(), core.timing.rest);
        for process in dead {
            sweep_after(core, &process).await?;
        }
        Ok(())
    }
}

fn away(core: &Core) {
    core.set_up(false);
    core.state().steady = None;
}

struct Lease {
    standing: String,
    incarnation: String,
    age_ms: u64,
    dead: Vec<String>,
}

async fn take(core: &Core, script: &Script, about: &About) -> Result<Lease, BusError> {
    let (process, known) = {
        let state = core.state();
        (state.process.clone(), !state.incarnation.is_empty())
    };
    // A store that runs for long and knows nothing of the cluster never did; unless we know better.
    let age_ms = if known { 0 } else { about.age_ms };
    let keys = vec![core.names.leases(), core.names.incarnation()];
    let arguments = vec![
        process,
        core.timing.lease.as_millis().to_string(),
        Ulid::new().to_string(),
        about.run.clone(),
        age_ms.to_string(),
    ];
    let answer = evaluate(&core.client, script, keys, arguments).await.map_err(unavailable)?;
    let [standing, incarnation, age_ms, dead @ ..] = &answer[..] else { return Err(garbled()) };
    Ok(Lease {
        standing: standing.clone(),
        incarnation: incarnation.clone(),
        age_ms: number(age_ms)?,
        dead: dead.to_vec(),
    })
}

/// What is done to a channel.
#[derive(Clone)]
enum Act {
    Tell,
    Forget,
    Sweep(Arc<str>),
}

/// Does one thing to many channels, and returns how much there was to tell. What failed is in doubt again.
async fn each(core: &Arc<Core>, subjects: Vec<Subject>, act: Act) -> Result<u64, BusError> {
    let results = stream::iter(subjects).map(|subject| {
        let (core, act) = (core.clone(), act.clone());
        async move {
            let done = match &act {
                _ if !core.up() => Err(store::away()),
                Act::Tell => core.tell(&subject).await.map(|()| 0),
                Act::Forget => core.forget(&subject).await.map(|()| 0),
                Act::Sweep(dead) => core.sweep(&subject, dead).await,
            };
            done.inspect_err(|_| core.state().held.doubt(&subject))
        }
    });
    let results: Vec<Result<u64, BusError>> = results.buffer_unordered(AT_ONCE).collect().await;
    results.into_iter().sum()
}

/// The dead, for one whose contact with the store, and the store's memory, are old enough: everyone alive has said so.
fn rested(state: &State, rest: std::time::Duration) -> Vec<String> {
    let old = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() >= rest);
    if old(state.steady) && old(state.memory) && state.settling.is_none() { state.dead.clone() } else { Vec::new() }
}

/// Removes a dead process from every channel in which it had someone.
async fn sweep_after(core: &Arc<Core>, dead: &str) -> Result<(), BusError> {
    let (claim, own) = (core.names.claim(dead), core.state().process.clone());
    let ttl = i64::try_from(core.timing.lease.as_millis()).unwrap_or(i64::MAX);
    let claimed: Option<String> = core
        .client
        .set(&claim, own.as_str(), Some(Expiration::PX(ttl)), Some(SetOptions::NX), false)
        .await
        .map_err(unavailable)?;
    let holder =
        if claimed.is_some() { Some(own.clone()) } else { core.client.get(&claim).await.map_err(unavailable)? };
    if holder.as_deref() != Some(own.as_str()) {
        return Ok(());
    }
    let (index, begun) = (core.names.index(dead), Instant::now());
    let (mut channels, mut told) = (0, 0);
    loop {
        let page = core.client.sscan(&index, "*", Some(PAGE)).take(1).try_collect::<Vec<_>>().await;
        let page = page.map_err(unavailable)?;
        let results = page.into_iter().filter_map(|mut page| page.take_results()).flatten();
        let entries: Vec<String> = results.filter_map(Value::into_string).collect();
        if entries.is_empty() {
            break;
        }
        channels += entries.len();
        let subjects: Vec<Subject> = entries.iter().filter_map(|entry| names::subject(entry)).collect();
        told += each(core, subjects, Act::Sweep(dead.into())).await?;
        core.client.srem::<(), _, _>(&index, entries).await.map_err(unavailable)?;
        core.client.pexpire::<(), _>(&claim, ttl, None).await.map_err(unavailable)?;
    }
    core.client.zrem::<(), _, _>(core.names.leases(), dead).await.map_err(unavailable)?;
    core.client.del::<(), _>(claim).await.map_err(unavailable)?;
    core.state().dead.retain(|process| process != dead);
    let ms = begun.elapsed().as_millis();
    tracing::info!(process = dead, channels, told, ms, "swept after a process that died");
    Ok(())
}

/// Tells the store what is safe in the stream, so that nobody tells it again. What cannot be told is kept and tried
/// again; beyond the bound it stays in the outbox, and is told a second time should this process die.
pub(super) async fn acknowledge(
    core: Arc<Core>,
    mut safe: mpsc::Receiver<(Subject, Vec<Order>)>,
    shutdown: CancellationToken,
) {
    let mut batch = Vec::new();
    loop {
        if batch.is_empty() && safe.recv_many(&mut batch, PIPELINE).await == 0 {
            return;
        }
        if core.up() && acknowledge_batch(&core, &batch).await.is_ok() {
            let mut state = core.state();
            for (subject, orders) in batch.drain(..) {
                state.held.recorded(&subject, &orders);
            }
            continue;
        }
        if timeout(core.timing.renew / 3, shutdown.cancelled()).await.is_ok() {
            return;
        }
    }
}

async fn acknowledge_batch(core: &Core, batch: &[(Subject, Vec<Order>)]) -> Result<(), BusError> {
    let pipeline = core.client.pipeline();
    for (subject, orders) in batch {
        let fields: Vec<String> = orders.iter().map(|order| format!("{}:{}", order.epoch, order.seq)).collect();
        pipeline.hdel::<(), _, _>(core.names.key(subject, "outbox"), fields).await.map_err(unavailable)?;
    }
    pipeline.all::<Vec<i64>>().await.map_err(unavailable).map(drop)
}

/// The process ends: if it has nobody anywhere and nothing to tell, nobody need sweep after it.
pub(super) async fn resign(core: &Core) {
    let (process, empty) = {
        let state = core.state();
        (state.process.clone(), state.held.is_empty())
    };
    if empty && core.up() {
        // If this does not arrive, the lease ends by itself and an empty index is swept.
        let _ = core.client.zrem::<(), _, _>(core.names.leases(), process.as_str()).await;
        let _ = core.client.del::<(), _>(core.names.index(&process)).await;
    }
}
