//! The snapshot of manifests, rendered without an API server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Secret;

use super::super::render::{is_stand_in, render_files};
use crate::config::ServerKind;
use crate::desired::{OPERATOR_NAMESPACE, RECEIVER_PORT, decode_secret, receiver_address};
use crate::migration::{
    ClusterSnapshot, EnvironmentTexts, SecretDigester, ServerSnapshot, SnapshotOrigin, StreamSnapshot, digest_apps,
    read_server,
};

/// Takes the snapshot of the cluster in some files. A secret that is not in the files is unknown.
///
/// # Errors
/// Every mistake in the files, a line each.
pub fn snapshot_manifest(files: &[PathBuf], digester: Option<&SecretDigester>) -> Result<ClusterSnapshot, Vec<String>> {
    let rendered = render_files(files, &receiver_address(OPERATOR_NAMESPACE, RECEIVER_PORT), None)?;
    let (cluster, objects) = (&rendered.cluster, &rendered.objects);
    let texts = EnvironmentTexts { secrets: list_known_texts(&objects.secrets), ..EnvironmentTexts::default() };
    let mut servers: BTreeMap<ServerKind, ServerSnapshot> = BTreeMap::new();
    for (kind, deployment) in &objects.deployments {
        servers.insert(*kind, read_server(deployment, None, &texts, digester).map_err(|error| vec![error])?);
    }
    let apps = |digester: &SecretDigester| {
        digest_apps(cluster.registry.apps(), &cluster.probe.id, digester, |text| !is_stand_in(text))
    };
    let name = format!("{}/{}", cluster.namespace, cluster.name);
    Ok(ClusterSnapshot {
        key_id: digester.map(SecretDigester::key_id),
        version: Some(cluster.image.release.to_string()),
        stream: Some(StreamSnapshot { name: cluster.stream.name.to_string(), ..StreamSnapshot::default() }),
        apps: digester.map(apps),
        ..ClusterSnapshot::new(SnapshotOrigin::Manifest, name, servers)
    })
}

/// Texts of rendered Secrets by name, without those of which a text is not known.
fn list_known_texts(secrets: &[Secret]) -> BTreeMap<String, BTreeMap<String, String>> {
    let texts = secrets.iter().map(|secret| (secret.metadata.name.clone().unwrap_or_default(), decode_secret(secret)));
    texts.filter(|(_, texts)| !texts.values().any(|text| is_stand_in(text))).collect()
}
