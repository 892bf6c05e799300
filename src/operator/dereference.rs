//! Reads the inputs of a cluster: its apps, the Secrets that it references, its generated secrets, its stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use rand::distr::{Alphanumeric, SampleString};

use super::cluster_inputs::{ClusterReferences, Dereferenced, decode_secrets};
use super::context::ControllerContext;
use super::reconcile_error::ReconcileError;
use super::secret_reader::{FOUND_TTL, SecretUser};
use super::stream_settings::build_stream_settings;
use crate::api::{RealtimeCluster, Reason};
use crate::config::Release;
use crate::desired::render::is_rendered_template;
use crate::desired::{self, ClusterCredentials, SecretTexts, ServerImage, ValidStream};
use crate::kinesis::KinesisClient;
use crate::kubernetes::apply;

/// Letters and digits of a generated value. Lower-cased, 24 of them carry about 122 bits.
const GENERATED_VALUE_LEN: usize = 24;

/// Secrets that are read at once for one cluster.
const CONCURRENT_READS_MAX: usize = 16;

/// Name of the Secret that stores the generated secrets of a cluster.
#[must_use]
pub fn generated_secret_name(cluster: &RealtimeCluster) -> String {
    format!("{}-generated", cluster.name_any())
}

/// Reads all inputs; a missing Secret is left out, and validating reports it.
///
/// # Errors
/// The API server does not answer, or another owner has the Secret of generated values.
pub async fn read(context: &ControllerContext, cluster: &RealtimeCluster) -> Result<ClusterReferences, ReconcileError> {
    let namespace = cluster.namespace().unwrap_or_default();
    let apps = context.live.apps_of(cluster);
    let of_cluster = SecretUser::of(cluster);
    let (mut referenced_by_apps, mut generated_for_apps) = (Vec::new(), Vec::new());
    for app in &apps {
        // An edit of an app names no other generated pair, so that its Secret is read on behalf of the cluster.
        if app.spec.credentials.is_empty() {
            generated_for_apps.push((desired::app_credentials_name(app), of_cluster.clone()));
        }
        let user = SecretUser::of(&**app);
        let names = desired::app_secret_names(app).chain(desired::header_secret_names(app));
        referenced_by_apps.extend(names.map(|name| (name.to_owned(), user.clone())));
    }
    let app_ttl = context.secrets.app_ttl();
    let mut secrets = read_secrets(context, &namespace, referenced_by_apps, app_ttl).await?;
    secrets.extend(read_secrets(context, &namespace, list_cluster_references(cluster), FOUND_TTL).await?);
    let of_apps = read_secrets(context, &namespace, generated_for_apps, app_ttl).await?;
    let name = generated_secret_name(cluster);
    let generated = context.secrets.read(&namespace, &name, &of_cluster).await?;
    let uid = cluster.uid().unwrap_or_default();
    if let Some(secret) = &generated
        && !apply::is_owned_by(&**secret, &uid)
    {
        let message = format!(
            "Secret {namespace}/{name} already exists and is not ours: it was not changed. Delete it, or rename the cluster"
        );
        return Err(ReconcileError::terminal(Reason::ChildNotOurs, message));
    }
    let recorded_image = find_recorded_image(cluster, || context.live.deployments_of(cluster));
    Ok(ClusterReferences { apps, secrets, of_apps, generated, recorded_image })
}

/// Finds the image that a cluster runs. A cluster of release 0.1.0 has no record of it, and its Deployments have, as far as
/// their templates are rendered ones.
fn find_recorded_image(cluster: &RealtimeCluster, list_live: impl FnOnce() -> Vec<Deployment>) -> Option<ServerImage> {
    let status = cluster.status.as_ref()?;
    if let (Some(image), Some(version)) = (&status.image, &status.version) {
        return ServerImage::of_record(image, version);
    }
    let templates = list_live().into_iter().map(|deployment| deployment.spec.template);
    templates.filter(is_rendered_template).find_map(|template| {
        let image = template.spec?.containers.into_iter().next()?.image?;
        Some(ServerImage { release: Release::FIRST, ..ServerImage::of_reference(&image) })
    })
}

/// Reads the Secrets that the cluster itself references.
///
/// # Errors
/// The API server does not answer.
pub async fn read_cluster_secrets(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
) -> Result<SecretTexts, ReconcileError> {
    let namespace = cluster.namespace().unwrap_or_default();
    Ok(decode_secrets(&read_secrets(context, &namespace, list_cluster_references(cluster), FOUND_TTL).await?))
}

fn list_cluster_references(cluster: &RealtimeCluster) -> Vec<(String, SecretUser)> {
    let user = SecretUser::of(cluster);
    let references = desired::collect_secret_references(cluster, &[]);
    references.into_iter().map(|reference| (reference.name, user.clone())).collect()
}

async fn read_secrets(
    context: &ControllerContext,
    namespace: &str,
    references: Vec<(String, SecretUser)>,
    found_ttl: Duration,
) -> Result<BTreeMap<String, Arc<Secret>>, ReconcileError> {
    let read = |(name, user): (String, SecretUser)| async move {
        let found = context.secrets.read_within(namespace, &name, &user, found_ttl).await?;
        Ok::<_, ReconcileError>(found.map(|secret| (name, secret)))
    };
    let found: Vec<_> = stream::iter(references).map(read).buffer_unordered(CONCURRENT_READS_MAX).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Recalls the credentials of a cluster, and generates those of its own that are missing: random, but without I/O. The caller
/// stores [`ClusterCredentials::fresh`] once the cluster is valid.
#[must_use]
pub fn generate_credentials(cluster: &RealtimeCluster, read: &Dereferenced) -> ClusterCredentials {
    desired::generate_credentials(cluster, &read.generated, read.app_credentials.clone(), |_| generate_value())
}

/// Generates a key or a secret.
#[must_use]
pub fn generate_value() -> String {
    Alphanumeric.sample_string(&mut rand::rng(), GENERATED_VALUE_LEN).to_lowercase()
}

/// Connects to the cluster's stream with the operator's own identity, or with the cluster's static keys.
///
/// # Errors
/// The Secret with the cluster's static keys is missing or incomplete.
pub async fn connect_stream(
    context: &ControllerContext,
    stream: &ValidStream,
    secrets: &SecretTexts,
) -> Result<KinesisClient, ReconcileError> {
    let settings = build_stream_settings(stream, secrets).map_err(|name| {
        let message = format!("Secret {name} has no accessKeyID and secretAccessKey: create it with both");
        ReconcileError::transient(Reason::SecretMissing, message)
    })?;
    Ok(context.kinesis.client(&settings).await)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::cluster::{ImageSpec, RealtimeClusterStatus};
    use crate::api::fixture::applied_cluster;
    use crate::desired::render::TEMPLATE_ANNOTATION;

    #[test]
    fn the_recorded_image_is_that_of_the_status_or_of_a_rendered_deployment_of_the_first_release() {
        let pod = |image: &str| serde_json::json!({ "containers": [{ "name": "sockjs", "image": image }] });
        let deployment = |image: &str, marked: &str| -> Deployment {
            let marked = serde_json::from_value(pod(marked)).expect("a pod");
            let annotations = serde_json::json!({ TEMPLATE_ANNOTATION: desired::template_digest(&marked) });
            let template = serde_json::json!({ "metadata": { "annotations": annotations }, "spec": pod(image) });
            let spec = serde_json::json!({ "selector": {}, "template": template });
            serde_json::from_value(serde_json::json!({ "metadata": {}, "spec": spec })).expect("a Deployment")
        };
        let found = |status: Option<RealtimeClusterStatus>, live: &[Deployment]| {
            let cluster = RealtimeCluster { status, ..applied_cluster("") };
            find_recorded_image(&cluster, || live.to_vec()).map(|image| format!("{image} {}", image.release))
        };
        let image = ImageSpec { repository: Some("a".to_owned()), tag: Some("2".to_owned()), ..ImageSpec::default() };
        let recorded = RealtimeClusterStatus {
            image: Some(image),
            version: Some("0.2.0".to_owned()),
            ..RealtimeClusterStatus::default()
        };
        let older = RealtimeClusterStatus::default();
        let live = [deployment("b:dev", "b:dev")];
        assert_eq!(found(None, &live), None, "nobody has looked at it yet");
        assert_eq!(found(Some(older.clone()), &[]), None);
        assert_eq!(found(Some(older.clone()), &live).as_deref(), Some("b:dev 0.1.0"));
        assert_eq!(found(Some(older), &[deployment("edited:1", "b:dev")]), None, "a template that nobody rendered");
        assert_eq!(found(Some(recorded), &live).as_deref(), Some("a:2 0.2.0"));
    }
}
