//! Does kubelet's part for a container: variables from template, Secrets and fields, and files.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::Deployment;

use crate::desired::{
    DesiredObjects, MissingReference, PodFacts, SecretTexts, decode_secret, resolve_variables, template_variables,
};
use crate::protocol::registry::{AppRegistry, ENDPOINTS_FILE};

/// One pod of a Deployment.
#[derive(Clone, Debug)]
pub struct RenderedPod {
    /// The name of the pod.
    pub name: String,
    /// The loopback address of the pod.
    pub address: IpAddr,
    /// The variables of its container.
    pub environment: BTreeMap<String, String>,
}

/// The Secrets that were built, beside those that exist already.
#[must_use]
pub fn collect_secret_texts(desired: &DesiredObjects, existing: &SecretTexts) -> SecretTexts {
    let mut all = existing.clone();
    for secret in desired.secrets.iter().chain(&desired.registry) {
        all.insert(secret.metadata.name.clone().unwrap_or_default(), decode_secret(secret));
    }
    all
}

/// The pods of a Deployment, each at an address of its own on this machine.
///
/// # Errors
/// A variable names a Secret or a field that is not there.
pub fn rendered_pods(deployment: &Deployment, secrets: &SecretTexts) -> Result<Vec<RenderedPod>, MissingReference> {
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    (0..deployment.spec.replicas.unwrap_or(1))
        .map(|index| {
            let pod = format!("{name}-{index}");
            // 127.0.0.1 is the first.
            let address = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + u32::try_from(index).unwrap_or(0)).into();
            let facts = PodFacts { name: &pod, address: Some(address) };
            let environment = resolve_variables(template_variables(&deployment.spec.template), facts, secrets)?;
            Ok(RenderedPod { name: pod, address, environment })
        })
        .collect()
}

/// Maps a path of a container to a path of this machine.
#[must_use]
pub fn map_container_path(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Mounts a registry, and the endpoint beside it, below `root`.
///
/// # Errors
/// The files cannot be written.
pub fn mount_registry(root: &Path, path: &str, registry: &AppRegistry, endpoint: &str) -> io::Result<()> {
    let directory = map_container_path(root, path);
    std::fs::create_dir_all(&directory)?;
    for (name, text) in registry.to_files()? {
        std::fs::write(directory.join(name), text)?;
    }
    std::fs::write(directory.join(ENDPOINTS_FILE), format!("{endpoint}\n"))?;
    Ok(())
}
