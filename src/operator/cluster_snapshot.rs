//! Composes the snapshot of a cluster from the objects that an API server has; the caller reads and seals.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;

use crate::config::{ServerKind, name};
use crate::desired::render::{COMPONENT_LABEL, registry_secret_name};
use crate::migration::{
    AppDigest, EnvironmentTexts, SecretDigester, ServerSnapshot, VariableValue, collect_environment_sources,
    digest_apps, template_of,
};
use crate::protocol::registry::{AppRegistry, BUCKET_COUNT, file_name};
use crate::protocol::{AppId, derive_journey_app};

/// The servers of a cluster: the Deployments that it owns by their label, each read by `read`. One without a container is
/// left out: it serves nobody.
pub fn read_owned_servers<'a>(
    owned: impl Iterator<Item = &'a Deployment>,
    read: impl Fn(&Deployment) -> Result<ServerSnapshot, String>,
) -> BTreeMap<ServerKind, ServerSnapshot> {
    let server = |found: &Deployment| {
        let kind = ServerKind::from_str(found.labels().get(COMPONENT_LABEL)?).ok()?;
        Some((kind, read(found).ok()?))
    };
    owned.filter_map(server).collect()
}

/// Names of the Secrets and of the `ConfigMap`s that the variables of Deployments reference.
#[must_use]
pub fn list_environment_sources(deployments: &[Deployment]) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut secrets, mut config_maps) = (BTreeSet::new(), BTreeSet::new());
    for container in deployments.iter().filter_map(template_of).flat_map(|pod| &pod.containers) {
        let (more_secrets, more_config_maps) = collect_environment_sources(container);
        secrets.extend(more_secrets);
        config_maps.extend(more_config_maps);
    }
    (secrets, config_maps)
}

/// Names of the Secrets with the app registry of a cluster.
pub fn list_registry_secrets(cluster: &str) -> impl Iterator<Item = String> {
    (0..BUCKET_COUNT).map(move |bucket| registry_secret_name(cluster, bucket))
}

/// Digests the apps of a cluster, as its servers mount them, from the texts of [`list_registry_secrets`].
///
/// # Errors
/// No server is deployed, or a part of the registry was not read.
pub fn digest_registry<'a>(
    cluster: &str,
    servers: impl IntoIterator<Item = &'a ServerSnapshot>,
    texts: &EnvironmentTexts,
    digester: &SecretDigester,
) -> Result<BTreeMap<AppId, AppDigest>, String> {
    let mut uids = servers.into_iter().filter_map(|server| server.variables.get(name::CLUSTER_UID));
    let Some(VariableValue::Text(uid)) = uids.next() else {
        return Err("no server of the cluster is deployed".to_owned());
    };
    let mut files = Vec::new();
    for bucket in 0..BUCKET_COUNT {
        let (file, secret) = (file_name(bucket), registry_secret_name(cluster, bucket));
        let found = texts.secrets.get(&secret).ok_or_else(|| format!("Secret {secret} was not read"))?;
        let text = found.get(&file).ok_or_else(|| format!("Secret {secret} has no key {file}"))?;
        files.push((file, text.clone()));
    }
    let registry = AppRegistry::parse(files).map_err(|error| error.to_string())?;
    Ok(digest_apps(registry.apps(), &derive_journey_app(uid), digester, |_| true))
}
