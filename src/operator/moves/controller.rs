//! The loop of the moves' turns: each move has one at a time, when its time has come or its manifest changed.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kube::ResourceExt;
use kube::runtime::reflector::Store;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::Instrument;

use super::record_writers::RecordWriters;
use super::share_meter::ShareMeter;
use super::snapshot_reader::SnapshotReader;
use super::turn::MoveDriver;
use super::zone_reader::ZoneReader;
use super::zone_sampler::ZoneSampler;
use crate::api::{RealtimeCluster, RealtimeMigration};
use crate::operator::cluster_probers::ClusterProbers;
use crate::operator::context::{SharedContext, object_key};
use crate::operator::controller_loop::{CONFLICT_RETRY_DELAY, run_bounded};
use crate::operator::controller_progress::CONTROLLER_SILENCE_MAX;
use crate::operator::metrics::ControllerName;
use crate::process::clock::now_ms;
use crate::process::metrics::LabelValue;

/// Time between two looks for moves whose turn has come.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Moves that take their turns at once.
const CONCURRENT_TURNS_MAX: usize = 8;

/// A move between two turns.
struct KnownMove {
    migration: Arc<RealtimeMigration>,
    /// Digest of the parts whose change begins a turn at once.
    inputs: u64,
    /// Time of the next turn; `None` while one runs, or waits for a change.
    due: Option<Instant>,
    is_running: bool,
}

/// The end of a turn: the key of the move, and the time until the next turn.
type EndedTurn = (String, Option<Duration>);

/// Runs the moves until the operator stops.
pub async fn run_moves(
    context: SharedContext,
    clusters: Store<RealtimeCluster>,
    probers: Arc<ClusterProbers>,
    reader: ZoneReader,
) {
    let name = format!("{} controller", ControllerName::Migration.name());
    let heartbeat = context.heartbeats.register(name, Some(CONTROLLER_SILENCE_MAX), &context.stop);
    let sampler = ZoneSampler::new(reader, context.stop.clone());
    let stop = context.stop.clone();
    let edges = probers.clone();
    let driver = MoveDriver {
        context,
        clusters,
        verdicts: Box::new(move |cluster: &RealtimeCluster| probers.latest_verdict(cluster)),
        edges,
        clock: Box::new(now_ms),
        sampler,
        writers: RecordWriters::default(),
        targets: SnapshotReader::default(),
        shares: ShareMeter::default(),
    };
    let mut known: HashMap<String, KnownMove> = HashMap::new();
    let mut running: FuturesUnordered<BoxFuture<'_, EndedTurn>> = FuturesUnordered::new();
    let mut look = interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some((key, wait)) = running.next(), if !running.is_empty() => {
                if let Some(ended) = known.get_mut(&key) {
                    ended.is_running = false;
                    ended.due = wait.map(|wait| Instant::now() + wait);
                }
            }
            _ = look.tick() => {
                heartbeat.beat();
                update_known(&driver, &mut known);
                for (key, found) in &mut known {
                    let is_due = found.due.is_some_and(|due| due <= Instant::now());
                    if found.is_running || !is_due || running.len() >= CONCURRENT_TURNS_MAX {
                        continue;
                    }
                    (found.is_running, found.due) = (true, None);
                    running.push(Box::pin(take_turn(&driver, key.clone(), found.migration.clone())));
                }
            }
        }
    }
    // A turn that has stored its decision carries it out.
    while running.next().await.is_some() {}
}

/// Takes over the moves as their watch has them. A changed one has its turn at once.
fn update_known(driver: &MoveDriver, known: &mut HashMap<String, KnownMove>) {
    let live = driver.context.live.migrations.find_all(|_| true);
    let keys: HashMap<String, Arc<RealtimeMigration>> =
        live.into_iter().map(|migration| (object_key(&*migration), migration)).collect();
    known.retain(|key, found| {
        let stays = keys.get(key).is_some_and(|migration| migration.uid() == found.migration.uid());
        if !stays && !found.is_running {
            driver.context.reset_failures(ControllerName::Migration.name(), &*found.migration);
            driver.forget(&found.migration);
        }
        stays || found.is_running
    });
    for (key, migration) in keys {
        // Before its namespace is listed, a cluster that is not known is not missing: a record must not be closed for that.
        if !driver.context.live.clusters.covers(&migration.namespace().unwrap_or_default()) {
            continue;
        }
        let inputs = digest_inputs(&migration);
        let found = known.entry(key).or_insert_with(|| KnownMove {
            migration: migration.clone(),
            inputs,
            due: Some(Instant::now()),
            is_running: false,
        });
        if found.inputs != inputs {
            (found.inputs, found.due) = (inputs, Some(Instant::now()));
        }
        found.migration = migration;
    }
}

fn digest_inputs(migration: &RealtimeMigration) -> u64 {
    let mut hasher = DefaultHasher::new();
    let metadata = &migration.metadata;
    (&metadata.uid, metadata.generation, metadata.deletion_timestamp.is_some()).hash(&mut hasher);
    (&metadata.finalizers, &metadata.annotations).hash(&mut hasher);
    hasher.finish()
}

/// Takes a turn, and classifies its end.
async fn take_turn(driver: &MoveDriver, key: String, migration: Arc<RealtimeMigration>) -> EndedTurn {
    let (context, name) = (&driver.context, ControllerName::Migration);
    let span = tracing::info_span!("turn", migration = key);
    let turn = Box::pin(driver.take_turn(&migration));
    let result = run_bounded(name, context, &*migration, turn).instrument(span).await;
    let wait = match result {
        Ok(wait) => {
            context.reset_failures(name.name(), &*migration);
            wait
        }
        Err(error) if error.is_conflict => Some(CONFLICT_RETRY_DELAY),
        Err(error) => {
            tracing::warn!(migration = key, %error, "turn of a move failed");
            Some(context.count_failure(name.name(), &*migration, &error))
        }
    };
    (key, wait)
}
