//! Manifests from files, and the one cluster that they are about.

use std::io::Read;
use std::path::PathBuf;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::{RealtimeApp, RealtimeCluster};
use crate::desired::{Manifests, SecretTexts};

/// A cluster with what belongs to it.
pub struct InputManifests {
    /// The single RealtimeCluster of the files.
    pub cluster: RealtimeCluster,
    /// The apps of its namespace.
    pub apps: Vec<RealtimeApp>,
    /// The texts of the Secrets of its namespace.
    pub secrets: SecretTexts,
    /// Notes on objects in the files that are not used.
    pub notes: Vec<String>,
}

impl InputManifests {
    /// Namespace of the cluster; that of a manifest that names none is `default`.
    pub fn namespace(&self) -> &str {
        namespace_of(&self.cluster.metadata)
    }
}

fn namespace_of(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or("default")
}

/// Reads files; `-` is standard input.
///
/// # Errors
/// Every mistake in the files, a line each.
pub fn read(files: &[PathBuf]) -> Result<InputManifests, Vec<String>> {
    let mut manifests = Manifests::default();
    let mut errors = Vec::new();
    for file in files {
        let name = file.display().to_string();
        let text = if name == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            std::fs::read_to_string(file)
        };
        match text {
            Ok(text) => {
                let found = manifests.add_file(&name, &text);
                errors.extend(found.err().into_iter().flatten().map(|error| error.to_string()));
            }
            Err(error) => errors.push(format!("{name}: cannot be read: {error}")),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let names: Vec<&str> = manifests.clusters.iter().filter_map(|(_, c)| c.metadata.name.as_deref()).collect();
    if names.len() != 1 {
        let hint = "pass the files of exactly one RealtimeCluster";
        return Err(vec![match names.len() {
            0 => format!("the files hold no RealtimeCluster: {hint}"),
            _ => format!("the files hold {} clusters ({}): {hint}", names.len(), names.join(", ")),
        }]);
    }
    let (_, cluster) = manifests.clusters.swap_remove(0);
    let namespace = namespace_of(&cluster.metadata).to_owned();
    let mut notes: Vec<String> =
        manifests.others.iter().map(|other| format!("{other} is of another kind and left alone")).collect();
    let (apps, elsewhere): (Vec<_>, Vec<_>) =
        manifests.apps.into_iter().map(|(_, app)| app).partition(|app| namespace_of(&app.metadata) == namespace);
    notes.extend(elsewhere.iter().map(|app| {
        let name = app.metadata.name.as_deref().unwrap_or_default();
        format!("RealtimeApp {name} is in another namespace than the cluster ({namespace}) and left alone")
    }));
    let secrets = manifests.secrets.into_iter().filter(|((found, _), _)| *found == namespace);
    let secrets = secrets.map(|((_, name), texts)| (name, texts)).collect();
    Ok(InputManifests { cluster, apps, secrets, notes })
}
