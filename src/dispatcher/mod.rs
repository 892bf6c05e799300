//! The reader of the stream and the sender of webhooks.
//!
//! In: records of a Kinesis stream, the app registry, and the leases that say which shards are this process's. Out:
//! signed webhooks to the customers' endpoints, checkpoints, and a count of every event that was not told, by reason.
//!
//! The way of an event: shards → holder → reader → intake → sequencer → debounce → assembler → sender → tracker →
//! checkpoint. What decides is pure and stands in a file of its own; one task per shard owns the state of that shard.
//!
//! This room must not know edges, nor who stands behind an endpoint.

mod apps;
mod assignment;
mod batcher;
mod checkpoint_tracker;
mod debounce;
mod decode;
mod egress_policy;
mod events;
mod kubernetes_leases;
mod leases;
mod metrics;
mod reader;
mod retry;
mod sender;
mod sequencer;
mod server;
mod shard_supervisor;
mod shard_worker;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use url::Url;

pub use kubernetes_leases::KubernetesLeases;
pub use leases::{
    Checkpoint, CheckpointPosition, HEARTBEAT_INTERVAL, LeaseError, LeaseSnapshot, MEMBER_TTL, MemberStatus,
    MemoryLeases, ShardLease, ShardLeases,
};
pub use server::{RunningDispatcher, start};

use crate::kinesis::KinesisClient;

/// What a dispatcher is given besides its variables.
pub struct DispatcherDependencies {
    /// The admin listener.
    pub admin: TcpListener,
    /// Where the directory of `REALTIME_APPS_PATH` is found.
    pub apps_dir: PathBuf,
    /// The stream.
    pub kinesis: KinesisClient,
    /// Which shards are whose.
    pub leases: Arc<dyn ShardLeases>,
    /// How webhooks leave.
    pub egress: EgressOverrides,
    /// Ends the process.
    pub shutdown: CancellationToken,
}

/// Where an address is really found.
pub type RerouteFn = Arc<dyn Fn(&Url) -> Option<Url> + Send + Sync>;

/// How webhooks leave.
#[derive(Clone, Default)]
pub struct EgressOverrides {
    /// Stands for the resolver and the network of wherever the process runs; `None` is the real one.
    pub reroute: Option<RerouteFn>,
}

/// Why a dispatcher does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The registry cannot be read.
    #[error("the app registry in {directory} cannot be read: {message}: mount it, or correct the file")]
    Apps {
        /// Where.
        directory: String,
        /// Why not.
        message: String,
    },
    /// The identity may not read the stream.
    #[error("{0}: allow the identity to describe, list and read the stream, or correct its credentials")]
    Denied(crate::kinesis::KinesisError),
    /// TLS cannot be set up.
    #[error("the webhook client cannot be made: {0}: check the system's certificates")]
    Client(String),
    /// The admin listener is not usable.
    #[error("the admin listener has no address: {0}: listen again")]
    Admin(std::io::Error),
}
