//! What kubelet does for a container: its variables from template, Secrets and fields, and its files.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::EnvVar;

use crate::desired::Desired;
use crate::protocol::registry::Registry;

/// The texts of Secrets by name.
pub type Secrets = BTreeMap<String, BTreeMap<String, String>>;

/// One pod of a Deployment.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its container's variables.
    pub environment: BTreeMap<String, String>,
}

/// Why a pod cannot be made of its template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pod}: variable {variable} names {reference}, which does not exist")]
pub struct MissingReference {
    /// The pod.
    pub pod: String,
    /// The variable.
    pub variable: String,
    /// What it names.
    pub reference: String,
}

/// The Secrets that were built, beside those that exist already.
#[must_use]
pub fn secrets(desired: &Desired, existing: &Secrets) -> Secrets {
    let mut all = existing.clone();
    for secret in &desired.secrets {
        let texts = secret.data.iter().flatten();
        let texts = texts.map(|(key, bytes)| (key.clone(), String::from_utf8_lossy(&bytes.0).into_owned()));
        all.insert(secret.metadata.name.clone().unwrap_or_default(), texts.collect());
    }
    all
}

/// The pods of a Deployment.
///
/// # Errors
/// A variable names a Secret or a field that is not there.
pub fn pods(deployment: &Deployment, secrets: &Secrets) -> Result<Vec<Pod>, MissingReference> {
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let container = deployment.spec.template.spec.as_ref().and_then(|pod| pod.containers.first());
    let variables = container.and_then(|container| container.env.as_deref()).unwrap_or_default();
    (0..deployment.spec.replicas.unwrap_or(1))
        .map(|index| {
            let pod = format!("{name}-{index}");
            let environment = variables
                .iter()
                .map(|variable| Ok((variable.name.clone(), value(variable, &pod, secrets)?)))
                .collect::<Result<_, MissingReference>>()?;
            Ok(Pod { name: pod, environment })
        })
        .collect()
}

fn value(variable: &EnvVar, pod: &str, secrets: &Secrets) -> Result<String, MissingReference> {
    let Some(from) = &variable.value_from else { return Ok(variable.value.clone().unwrap_or_default()) };
    let missing =
        |reference: String| MissingReference { pod: pod.to_owned(), variable: variable.name.clone(), reference };
    if let Some(reference) = &from.secret_key_ref {
        let text = secrets.get(&reference.name).and_then(|texts| texts.get(&reference.key));
        return text.cloned().ok_or_else(|| missing(format!("key {} of Secret {}", reference.key, reference.name)));
    }
    match &from.field_ref {
        Some(field) if field.field_path == "metadata.name" => Ok(pod.to_owned()),
        _ => Err(missing("a source that a rehearsal does not know".to_owned())),
    }
}

/// Where a path of a container stands on this machine.
#[must_use]
pub fn inside(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Mounts a registry below `root`.
///
/// # Errors
/// The files cannot be written.
pub fn mount_registry(root: &Path, path: &str, registry: &Registry) -> io::Result<()> {
    let directory = inside(root, path);
    std::fs::create_dir_all(&directory)?;
    for (name, text) in registry.files()? {
        std::fs::write(directory.join(name), text)?;
    }
    Ok(())
}
