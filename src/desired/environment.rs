//! Resolves a container's variables as kubelet does: texts, keys of Secrets and the pod's own fields.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{EnvVar, PodTemplateSpec};

use super::secret_references::SecretTexts;

/// A variable whose source does not exist, so that kubelet would not start the container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pod}: variable {variable} references {reference}, which does not exist: create it")]
pub struct MissingReference {
    /// Name of the pod.
    pub pod: String,
    /// Name of the variable.
    pub variable: String,
    /// The source that is missing.
    pub reference: String,
}

/// Facts of a pod that its own fields contain.
#[derive(Clone, Copy, Debug)]
pub struct PodFacts<'a> {
    /// Name of the pod.
    pub name: &'a str,
    /// Address of the pod; `None` until it has one.
    pub address: Option<IpAddr>,
}

/// The variables of a template's first container.
#[must_use]
pub fn template_variables(template: &PodTemplateSpec) -> &[EnvVar] {
    let container = template.spec.as_ref().and_then(|pod| pod.containers.first());
    container.and_then(|container| container.env.as_deref()).unwrap_or_default()
}

/// Resolves the variables of a container, for one pod.
///
/// # Errors
/// A variable references a Secret or a field that does not exist.
pub fn resolve_variables(
    variables: &[EnvVar],
    pod: PodFacts<'_>,
    secrets: &SecretTexts,
) -> Result<BTreeMap<String, String>, MissingReference> {
    variables.iter().map(|variable| Ok((variable.name.clone(), resolve_variable(variable, pod, secrets)?))).collect()
}

fn resolve_variable(variable: &EnvVar, pod: PodFacts<'_>, secrets: &SecretTexts) -> Result<String, MissingReference> {
    let Some(from) = &variable.value_from else { return Ok(variable.value.clone().unwrap_or_default()) };
    let missing =
        |reference: String| MissingReference { pod: pod.name.to_owned(), variable: variable.name.clone(), reference };
    if let Some(reference) = &from.secret_key_ref {
        let text = secrets.get(&reference.name).and_then(|texts| texts.get(&reference.key));
        return text.cloned().ok_or_else(|| missing(format!("key {} of Secret {}", reference.key, reference.name)));
    }
    match (from.field_ref.as_ref().map(|field| field.field_path.as_str()), pod.address) {
        (Some("metadata.name"), _) => Ok(pod.name.to_owned()),
        (Some("status.podIP"), Some(address)) => Ok(address.to_string()),
        (Some("status.podIP"), None) => Err(missing("the pod's address".to_owned())),
        _ => Err(missing("a source that is not rendered".to_owned())),
    }
}
