//! The variables that kubelet hands to a container: texts, keys of Secrets and the pod's own fields.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{EnvVar, PodTemplateSpec};

/// Why a container cannot be started from its template.
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

/// The variables of the first container of a template, in a pod of this name and address.
///
/// # Errors
/// A variable names a Secret or a field that is not there.
pub fn resolve_environment(
    template: &PodTemplateSpec,
    (pod, address): (&str, Option<IpAddr>),
    secrets: &BTreeMap<String, BTreeMap<String, String>>,
) -> Result<BTreeMap<String, String>, MissingReference> {
    let container = template.spec.as_ref().and_then(|pod| pod.containers.first());
    let variables = container.and_then(|container| container.env.as_deref()).unwrap_or_default();
    variables
        .iter()
        .map(|variable| Ok((variable.name.clone(), resolve_variable(variable, (pod, address), secrets)?)))
        .collect()
}

fn resolve_variable(
    variable: &EnvVar,
    (pod, address): (&str, Option<IpAddr>),
    secrets: &BTreeMap<String, BTreeMap<String, String>>,
) -> Result<String, MissingReference> {
    let Some(from) = &variable.value_from else { return Ok(variable.value.clone().unwrap_or_default()) };
    let missing =
        |reference: String| MissingReference { pod: pod.to_owned(), variable: variable.name.clone(), reference };
    if let Some(reference) = &from.secret_key_ref {
        let text = secrets.get(&reference.name).and_then(|texts| texts.get(&reference.key));
        return text.cloned().ok_or_else(|| missing(format!("key {} of Secret {}", reference.key, reference.name)));
    }
    match (from.field_ref.as_ref().map(|field| field.field_path.as_str()), address) {
        (Some("metadata.name"), _) => Ok(pod.to_owned()),
        (Some("status.podIP"), Some(address)) => Ok(address.to_string()),
        (Some("status.podIP"), None) => Err(missing("the pod's address".to_owned())),
        _ => Err(missing("a source that is not rendered".to_owned())),
    }
}
