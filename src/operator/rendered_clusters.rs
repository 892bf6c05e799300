//! The rendering of each cluster, for all controllers, until one of its inputs changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use super::cluster_inputs::Dereferenced;
use crate::desired::{DesiredObjects, ValidCluster};

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
        let all = self.by_uid.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(uid).filter(|(of, _)| *of == inputs).map(|(_, rendered)| rendered.clone())
    }

    /// Keeps the rendering in place of the former one.
    pub fn store(&self, uid: String, inputs: u64, rendered: Arc<RenderedCluster>) {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, (inputs, rendered));
    }

    /// Drops the rendering of a deleted cluster.
    pub fn forget(&self, uid: &str) {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}
