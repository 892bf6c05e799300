//! The rendering of each cluster, for all controllers, until one of its inputs changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use super::cluster_inputs::Dereferenced;
use crate::desired::{DesiredObjects, ValidCluster};
use crate::process::locks::lock_unpoisoned;

/// A valid cluster with its rendered objects and the inputs they were rendered from.
#[derive(Clone)]
pub struct RenderedCluster {
    pub read: Dereferenced,
    pub valid: ValidCluster,
    pub desired: DesiredObjects,
    /// Generated values of the cluster itself that are not stored yet, by purpose: the workload controller stores them.
    pub fresh: BTreeMap<String, String>,
}

/// The rendered clusters, by UID, each with a digest of its inputs.
#[derive(Default)]
pub struct RenderedClusters {
    by_uid: Mutex<HashMap<String, (u64, Arc<RenderedCluster>)>>,
}

impl RenderedClusters {
    /// The rendering of a cluster, if it was rendered from the same inputs.
    pub fn find(&self, uid: &str, inputs: u64) -> Option<Arc<RenderedCluster>> {
        let all = lock_unpoisoned(&self.by_uid);
        all.get(uid).filter(|(of, _)| *of == inputs).map(|(_, rendered)| rendered.clone())
    }

    /// Keeps the rendering in place of the former one.
    pub fn store(&self, uid: String, inputs: u64, rendered: Arc<RenderedCluster>) {
        lock_unpoisoned(&self.by_uid).insert(uid, (inputs, rendered));
    }

    /// Drops the rendering of a deleted cluster.
    pub fn forget(&self, uid: &str) {
        lock_unpoisoned(&self.by_uid).remove(uid);
    }
}
