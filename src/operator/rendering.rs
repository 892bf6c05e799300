//! Renders a cluster: dereference, generate, validate, render.

use std::sync::Arc;

use kube::ResourceExt;

use super::cluster_inputs::digest_inputs;
use super::context::ControllerContext;
use super::dereference;
use super::own_networks::find_own_networks;
use super::reconcile_error::ReconcileError;
use super::rendered_clusters::RenderedCluster;
use super::validation::{OwnIdentity, validate_cluster};
use crate::api::{RealtimeApp, RealtimeCluster, Reason};
use crate::desired;

/// Renders a cluster, or recalls the rendering if no input changed since.
///
/// # Errors
/// An input is missing, the manifest contradicts itself, or the API server does not answer.
pub async fn render_cluster(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
) -> Result<Arc<RenderedCluster>, ReconcileError> {
    ensure_apps_readable(context, cluster)?;
    let mut references = dereference::read(context, cluster).await?;
    let pods = context.live.pods_of(cluster);
    let networks = find_own_networks(pods.iter().map(|pod| &**pod));
    let (uid, inputs) = (cluster.uid().unwrap_or_default(), digest_inputs(cluster, &references, &networks));
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
    let own = OwnIdentity { receiver: &context.receiver_address, networks: &networks, image: &context.own_image };
    let valid = validate_cluster(cluster, &context.policy, &read, &credentials, &own)?;
    let desired = desired::render_objects(&valid)?;
    let rendered = Arc::new(RenderedCluster { read, valid, desired, fresh: credentials.fresh });
    if rendered.fresh.is_empty() {
        context.rendered.store(uid, digest_inputs(cluster, &references, &networks), rendered.clone());
    }
    Ok(rendered)
}

/// Refuses to render a cluster without an app that this version cannot read: servers would end its sessions.
fn ensure_apps_readable(context: &ControllerContext, cluster: &RealtimeCluster) -> Result<(), ReconcileError> {
    let namespace = cluster.namespace().unwrap_or_default();
    let names = context.unreadable.names_of::<RealtimeApp>(&namespace);
    let Some(name) = names.iter().find(|name| context.live.apps.get(&namespace, name).is_none()) else { return Ok(()) };
    let message = format!(
        "this version of the operator cannot read RealtimeApp {name}, whose clients would be disconnected without it: the \
         cluster stays as it is. Upgrade the operator, or correct the app as its condition says"
    );
    Err(ReconcileError::transient(Reason::VersionUnsupported, message))
}
