//! Renders each cluster once for all controllers, and again only when one of its inputs changed.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use kube::ResourceExt;

use super::context::{ControllerContext, ReconcileError};
use super::dereference::{self, ClusterReferences, Dereferenced};
use super::validation::validate_cluster;
use crate::api::{RealtimeCluster, Reason};
use crate::desired::{self, DesiredObjects, ValidCluster};

/// Beginning of the purposes of generated values that belong to an app and not to the cluster.
const APP_PURPOSE_PREFIX: &str = "app-";

/// A valid cluster with its rendered objects and the inputs they were rendered from.
pub struct RenderedCluster {
    pub read: Dereferenced,
    pub valid: ValidCluster,
    pub desired: DesiredObjects,
    /// Generated values that are not stored yet, by purpose.
    pub fresh: BTreeMap<String, String>,
}

impl RenderedCluster {
    /// The fresh values of the cluster itself, which the workload controller stores.
    pub fn fresh_of_cluster(&self) -> BTreeMap<String, String> {
        self.select_fresh(|purpose| !purpose.starts_with(APP_PURPOSE_PREFIX))
    }

    /// The fresh values of apps, which the apps controller stores.
    pub fn fresh_of_apps(&self) -> BTreeMap<String, String> {
        self.select_fresh(|purpose| purpose.starts_with(APP_PURPOSE_PREFIX))
    }

    fn select_fresh(&self, fulfils: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
        let fresh = self.fresh.iter().filter(|(purpose, _)| fulfils(purpose));
        fresh.map(|(purpose, value)| (purpose.clone(), value.clone())).collect()
    }
}

/// The rendered clusters, by UID, each with a digest of its inputs.
#[derive(Default)]
pub struct RenderedClusters {
    by_uid: Mutex<HashMap<String, (u64, Arc<RenderedCluster>)>>,
}

impl RenderedClusters {
    fn find(&self, uid: &str, inputs: u64) -> Option<Arc<RenderedCluster>> {
        let all = self.by_uid.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(uid).filter(|(of, _)| *of == inputs).map(|(_, rendered)| rendered.clone())
    }

    fn store(&self, uid: String, inputs: u64, rendered: Arc<RenderedCluster>) {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, (inputs, rendered));
    }

    /// Drops the rendering of a deleted cluster.
    pub fn forget(&self, uid: &str) {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// Renders a cluster, or recalls the rendering if no input changed since.
///
/// # Errors
/// An input is missing, the manifest contradicts itself, or the API server does not answer.
pub async fn render_cluster(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
) -> Result<Arc<RenderedCluster>, ReconcileError> {
    let mut references = dereference::read(context, cluster).await?;
    let (uid, inputs) = (cluster.uid().unwrap_or_default(), digest_inputs(cluster, &references));
    if let Some(rendered) = context.rendered.find(&uid, inputs) {
        return Ok(rendered);
    }
    let mut read = references.resolve(cluster);
    let mut credentials = dereference::generate_credentials(cluster, &read);
    if !credentials.fresh.is_empty() {
        // A value must never be generated twice, so the stored ones are read again first.
        let namespace = cluster.namespace().unwrap_or_default();
        context.secrets.forget(&namespace, &dereference::generated_secret_name(cluster));
        references = dereference::read(context, cluster).await?;
        read = references.resolve(cluster);
        credentials = dereference::generate_credentials(cluster, &read);
    }
    let valid = validate_cluster(cluster, &read, &credentials, &context.receiver_address)?;
    let desired = desired::render_objects(&valid)
        .map_err(|error| ReconcileError::terminal(Reason::SpecInvalid, error.to_string()))?;
    let rendered = Arc::new(RenderedCluster { read, valid, desired, fresh: credentials.fresh });
    if rendered.fresh.is_empty() {
        context.rendered.store(uid, digest_inputs(cluster, &references), rendered.clone());
    }
    Ok(rendered)
}

/// Digest of the versions of all inputs.
fn digest_inputs(cluster: &RealtimeCluster, references: &ClusterReferences) -> u64 {
    let mut hasher = DefaultHasher::new();
    (cluster.uid(), cluster.metadata.generation).hash(&mut hasher);
    if let Some(stream) = cluster.status.as_ref().and_then(|status| status.stream.as_ref()) {
        (&stream.name, &stream.arn, &stream.cluster_id).hash(&mut hasher);
    }
    for app in &references.apps {
        (app.uid(), app.metadata.generation).hash(&mut hasher);
    }
    for (name, secret) in &references.secrets {
        (name, secret.uid(), secret.resource_version()).hash(&mut hasher);
    }
    references.generated.as_ref().map(|secret| (secret.uid(), secret.resource_version())).hash(&mut hasher);
    hasher.finish()
}
