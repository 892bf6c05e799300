//! The dispatcher: reads the stream and sends webhooks.
//!
//! In: records of a Kinesis stream, the app registry, and the leases that assign shards to this process. Out: signed
//! webhooks to the customers' endpoints, checkpoints, and for every event that was not delivered a dead letter or a count,
//! by reason.
//!
//! Path of an event: `shard_supervisor` → `lineage` → `reader` → `decode` → `sequencer` → `debounce` → `shard_worker` →
//! `endpoint` → `sender` → `checkpoint_tracker` → checkpoint; a lost one goes through `dead_letter`. The deciding parts are
//! pure and have a file each. One task per lineage, the shards that a split or a merge connects, owns the state of these
//! shards; one task per endpoint sends the events of all shards.
//!
//! This room must not know edges, nor the service behind an endpoint.

mod aging_map;
mod allowed_endpoints;
mod apps;
mod assignment;
mod byte_budget;
mod checkpoint_tracker;
mod dead_letter;
mod debounce;
mod decode;
mod egress;
mod endpoint;
mod endpoint_monitor;
mod events;
mod kubernetes_leases;
mod leases;
pub(crate) mod ledger;
mod lineage;
mod lineage_worker;
pub(crate) mod metrics;
mod own_checkpoints;
mod probation;
mod read_progress;
mod reader;
mod reasons;
pub(crate) mod replay;
mod retry;
mod sender;
mod sequencer;
mod server;
mod shard_discovery;
mod shard_supervisor;
mod shard_worker;
mod trimmed_shards;
mod unheld_shards;
mod unknown_apps;
mod worker_resources;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use url::Url;

#[cfg(feature = "bench")]
pub(crate) use endpoint::queue::BATCH_EVENTS_MAX;
pub use kubernetes_leases::KubernetesLeases;
pub use leases::{
    Checkpoint, CheckpointPosition, HEARTBEAT_INTERVAL, LeaseError, LeaseSnapshot, MEMBER_TTL, MemberStatus,
    MemoryLeases, ShardLease, ShardLeases,
};
#[cfg(feature = "bench")]
pub(crate) use reader::{PAGE_RECORDS_MAX, READ_INTERVAL};
pub use server::{RunningDispatcher, start};

use crate::kinesis::KinesisClient;

/// Resources that a dispatcher needs besides its variables.
pub struct DispatcherDependencies {
    /// The listener for the admin server.
    pub admin: TcpListener,
    /// The directory of `REALTIME_APPS_PATH`.
    pub apps_dir: PathBuf,
    /// The client of the stream.
    pub kinesis: KinesisClient,
    /// The store of shard leases.
    pub leases: Arc<dyn ShardLeases>,
    /// Overrides of the network for webhooks.
    pub egress: EgressOverrides,
    /// Token whose cancellation ends the process.
    pub shutdown: CancellationToken,
}

/// Maps a webhook's URL to the one that is really called.
pub type RerouteFn = Arc<dyn Fn(&Url) -> Option<Url> + Send + Sync>;

/// Overrides of the network for webhooks.
#[derive(Clone, Default)]
pub struct EgressOverrides {
    /// Replaces the resolver and network of the machine on which the process runs; `None` uses the real ones.
    pub reroute: Option<RerouteFn>,
    /// The address of this machine from which webhooks are posted; `None` lets the system choose.
    pub source: Option<IpAddr>,
    /// The name server; `None` uses those of `/etc/resolv.conf`.
    pub name_server: Option<SocketAddr>,
}

/// The reason why a dispatcher does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The registry cannot be read.
    #[error("the app registry in {directory} cannot be read: {message}: mount it, or correct the file")]
    Apps {
        /// Directory of the registry's files.
        directory: String,
        /// The cause of the failure.
        message: String,
    },
    /// The identity may not read the stream.
    #[error("{0}: allow the identity to describe, list and read the stream, or correct its credentials")]
    Denied(crate::kinesis::KinesisError),
    /// TLS or the resolver cannot be set up.
    #[error("the webhook client cannot be made: {0}: check the system's certificates and /etc/resolv.conf")]
    Client(String),
    /// The admin listener is not usable.
    #[error("the admin listener has no address: {0}: listen again")]
    Admin(std::io::Error),
}
