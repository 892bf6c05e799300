//! Resources that the shards of a process share, and a lease that the supervisor gives to a worker.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::sync::watch;

use super::apps::RegistryReceiver;
use super::byte_budget::ByteBudget;
use super::dead_letter::writer::LetterSender;
use super::endpoint::pool::EndpointPool;
use super::events::ShardSlot;
use super::leases::{Checkpoint, ShardLeases};
use super::metrics::DispatcherMetrics;
use super::own_checkpoints::OwnCheckpoints;
use super::shard_discovery::ShardListing;
use crate::kinesis::KinesisClient;
use crate::process::clock::MonotonicClock;
use crate::protocol::ShardId;

/// Resources that the shards of a process share.
pub struct WorkerResources {
    /// The client of the stream.
    pub client: KinesisClient,
    /// Time in ms since 1970 from which a shard without a checkpoint is read; `None` for its oldest record.
    pub start_ms: Option<u64>,
    /// The store that checkpoints are written to.
    pub leases: Arc<dyn ShardLeases>,
    /// The checkpoints of shards that this process gave up.
    pub own_checkpoints: OwnCheckpoints,
    /// The endpoints that webhooks are sent to.
    pub pool: Arc<EndpointPool>,
    /// The registry of apps and endpoints.
    pub apps: RegistryReceiver,
    /// The metrics of the process.
    pub metrics: Arc<DispatcherMetrics>,
    /// The cluster whose records are delivered.
    pub cluster: String,
    /// The writer of dead letters; `None` drops what is lost.
    pub dead_letters: Option<LetterSender>,
    /// Bytes of the events of unknown apps that wait in all shards.
    pub unknown_app_bytes: Arc<AtomicUsize>,
    /// The shards as last listed.
    pub listings: watch::Receiver<Arc<ShardListing>>,
    /// The bytes that all shards together may keep.
    pub budget: ByteBudget,
    /// Number of shards that the process holds.
    pub held_shards: AtomicUsize,
    /// The monotonic clock of the process.
    pub clock: MonotonicClock,
}

/// A lease that was acquired.
#[derive(Debug)]
pub struct AcquiredShard {
    /// Number of this hold.
    pub slot: ShardSlot,
    /// The id of the shard.
    pub shard: ShardId,
    /// Generation of the lease that was acquired.
    pub generation: u64,
    /// When the stream was created, in ms since 1970.
    pub stream_created_ms: u64,
    /// The checkpoint of the former holder.
    pub checkpoint: Option<Checkpoint>,
    /// Listed shards that this one came from.
    pub parents: Vec<ShardId>,
    /// Parents that are not done: this process reads them first.
    pub open_parents: Vec<ShardId>,
}
