//! Renders the Secrets: the admin token, copies of all that servers read at their start, and the app registry.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::super::{SecretCopy, ValidCluster};
use super::child_metadata;
use crate::protocol::registry::{BUCKET_COUNT, DENIED_PREFIX, ENDPOINTS_FILE, file_name};

/// Key of the admin token in its Secret.
pub const ADMIN_SECRET_KEY: &str = "token";

/// Name of the Secret from which people read the admin token of the cluster of this name.
#[must_use]
pub fn admin_secret_name(cluster: &str) -> String {
    format!("{cluster}-admin")
}

/// Name of the Secret with one bucket of the app registry of the cluster of this name.
#[must_use]
pub fn registry_secret_name(cluster: &str, bucket: u8) -> String {
    format!("{cluster}-apps-{bucket:x}")
}

/// Renders the Secret from which people read the admin token, under [`ADMIN_SECRET_KEY`]: servers read a copy.
pub(super) fn render_admin_secret(cluster: &ValidCluster) -> Secret {
    render_secret(cluster, admin_secret_name(&cluster.name), ADMIN_SECRET_KEY, cluster.admin_token.expose())
}

/// Renders the copies. Immutable: a changed value is another copy.
pub(super) fn render_secret_copies(cluster: &ValidCluster) -> Vec<Secret> {
    let render = |copy: &SecretCopy| Secret {
        metadata: child_metadata(cluster, copy.name.clone(), "configuration"),
        data: Some(
            copy.values
                .iter()
                .map(|(key, value)| (key.clone(), ByteString(value.expose().as_bytes().to_vec())))
                .collect(),
        ),
        immutable: Some(true),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    cluster.secret_copies.iter().map(render).collect()
}

/// Renders the Secrets of the app registry, one per bucket. The first one carries the endpoint of the receiver and the
/// denied networks too: they are no part of a pod's template, so that an operator that moves to another namespace, and a new
/// subnet of nodes, restart no pod.
///
/// # Errors
/// Never for these types; the signature of `serde_json` requires one.
pub fn render_registry_secrets(cluster: &ValidCluster) -> Result<Vec<Secret>, serde_json::Error> {
    let mut files = cluster.registry.to_files()?;
    let buckets = (0..BUCKET_COUNT).map(|bucket| {
        let file = file_name(bucket);
        let text = files.remove(&file).unwrap_or_else(|| "[]".to_owned());
        render_secret(cluster, registry_secret_name(&cluster.name, bucket), &file, &text)
    });
    let mut secrets: Vec<Secret> = buckets.collect();
    if let Some(data) = secrets.first_mut().and_then(|secret| secret.data.as_mut()) {
        let denied = cluster.denied_networks.iter().map(|network| format!("{DENIED_PREFIX}{network}\n"));
        let lines = std::iter::once(format!("{}\n", cluster.receiver)).chain(denied).collect::<String>();
        data.insert(ENDPOINTS_FILE.to_owned(), ByteString(lines.into_bytes()));
    }
    Ok(secrets)
}

fn render_secret(cluster: &ValidCluster, name: String, key: &str, text: &str) -> Secret {
    Secret {
        metadata: child_metadata(cluster, name, "configuration"),
        data: Some(BTreeMap::from([(key.to_owned(), ByteString(text.as_bytes().to_vec()))])),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}
