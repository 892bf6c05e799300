//! The targets to be proven, per dimension.

use std::collections::{BTreeMap, BTreeSet};

use super::ExternalTargets;
use crate::protocol::{ShardId, Transport};

/// The targets to be proven, per dimension. A dimension without a value is a failure, not a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoverageTargets {
    /// Transports that the manifest asks for.
    pub transports: BTreeSet<Transport>,
    /// Existing pods, with the transports that they carry.
    pub pods: BTreeMap<String, BTreeSet<Transport>>,
    /// Number of pods that the manifest asks for, by the transport that they carry.
    pub wanted_pods: BTreeMap<Transport, usize>,
    /// Number of rounds that visit every pod of a transport once; a transport that is absent needs one.
    pub tour_rounds: BTreeMap<Transport, usize>,
    /// Paths of clients to the pods, with the transports that use them.
    pub paths: BTreeMap<String, BTreeSet<Transport>>,
    /// Paths from outside the Kubernetes cluster.
    pub external: ExternalTargets,
    /// Processes that must report their configuration: edges and dispatchers.
    pub processes: BTreeSet<String>,
    /// Processes among them that are not admitted yet. Clients do not reach them, so they do not close an open gate.
    pub newcomers: BTreeSet<String>,
    /// Whether webhooks are on; without them shards and dispatchers prove nothing.
    pub webhooks: bool,
    /// Open shards of the stream.
    pub shards: BTreeSet<ShardId>,
    /// The error by which AWS refuses to list the shards, while none is known.
    pub denied_listing: Option<String>,
    /// Dispatchers that hold an open shard.
    pub dispatchers: BTreeSet<String>,
    /// The error that a dispatcher reports while none holds a shard.
    pub dispatcher_error: Option<String>,
}

impl CoverageTargets {
    /// Number of existing pods that carry a transport.
    pub(super) fn count_pods(&self, transport: Transport) -> usize {
        self.pods.values().filter(|carries| carries.contains(&transport)).count()
    }
}
