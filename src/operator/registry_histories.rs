//! The versions of each cluster's app registry, shared by their writer, the apps controller, and their reader, the prober.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use kube::ResourceExt;

use crate::api::RealtimeCluster;
use crate::desired::ValidCluster;
use crate::gate::RegistryHistory;
use crate::prober::SharedRegistryHistory;
use crate::process::clock;
use crate::process::locks::lock_unpoisoned;

/// The registry histories of all clusters, by UID.
#[derive(Debug, Default)]
pub struct RegistryHistories {
    by_uid: Mutex<HashMap<String, SharedRegistryHistory>>,
}

impl RegistryHistories {
    /// The history of a cluster; begins one for a cluster that has none.
    pub fn of_cluster(&self, cluster: &RealtimeCluster) -> SharedRegistryHistory {
        let mut all = lock_unpoisoned(&self.by_uid);
        let history = all.entry(cluster.uid().unwrap_or_default()).or_insert_with(|| {
            let proven = cluster.status.as_ref().and_then(|status| status.gate.as_ref()).is_some_and(|g| g.ever_passed);
            // Pods of a proven cluster may still load a version that an earlier leader wrote. A cluster without a proof
            // must not pass with a version that nobody rendered.
            let history = if proven { RegistryHistory::inherited(clock::now_ms()) } else { RegistryHistory::default() };
            Arc::new(RwLock::new(history))
        });
        history.clone()
    }

    /// Drops the history of a deleted cluster.
    pub fn forget(&self, uid: &str) {
        lock_unpoisoned(&self.by_uid).remove(uid);
    }
}

/// Records the rendered registry. Called before it is written, so that no pod can load a version that is not recorded.
pub fn record_registry(history: &SharedRegistryHistory, cluster: &ValidCluster) {
    let digests = cluster.registry.app_digests(cluster.admin_token.expose());
    history.write().unwrap_or_else(PoisonError::into_inner).record(digests, clock::now_ms());
}

/// Time until the registry may change again: changes in between are written together.
pub fn change_wait(history: &SharedRegistryHistory) -> Duration {
    let wait = history.read().unwrap_or_else(PoisonError::into_inner).change_wait_ms(clock::now_ms());
    Duration::from_millis(wait)
}

/// Begins a history that the apps controller has not recorded yet, after a change of leader, with the registry as this
/// process renders it.
pub fn begin_history(history: &SharedRegistryHistory, cluster: &ValidCluster) {
    if !history.read().unwrap_or_else(PoisonError::into_inner).is_recorded() {
        record_registry(history, cluster);
    }
}
