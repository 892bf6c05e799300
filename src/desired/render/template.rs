//! Marks of a pod and its template.

use k8s_openapi::api::core::v1::PodTemplateSpec;

use super::super::template_digest;

/// Condition type of the readiness gate in every pod.
pub const READINESS_GATE: &str = "realtime-operator.dev/webhooks-delivered";
/// Annotation of a pod template: a digest of the fields that decide what its servers run and reach.
pub const TEMPLATE_ANNOTATION: &str = "realtime-operator.dev/template";
/// Annotation of a pod: a digest of the current app registry. A change makes kubelet refresh the mounted Secrets at once.
pub const REGISTRY_ANNOTATION: &str = "realtime-operator.dev/registry";

/// Whether a pod template is as the operator rendered it: its mark is the digest of its fields.
#[must_use]
pub fn is_rendered_template(template: &PodTemplateSpec) -> bool {
    let digest = template.spec.as_ref().map(template_digest);
    digest.is_some() && digest.as_deref() == template_mark(template, TEMPLATE_ANNOTATION)
}

/// The value of an annotation of a pod template.
#[must_use]
pub fn template_mark<'a>(template: &'a PodTemplateSpec, name: &str) -> Option<&'a str> {
    template.metadata.as_ref()?.annotations.as_ref()?.get(name).map(String::as_str)
}
