//! Marks of a pod and its template.

use k8s_openapi::api::core::v1::PodTemplateSpec;

/// Condition type of the readiness gate in every pod.
pub const READINESS_GATE: &str = "realtime-operator.dev/webhooks-delivered";
/// Annotation of a pod template: a digest of the fields that decide what its servers run and reach.
pub const TEMPLATE_ANNOTATION: &str = "realtime-operator.dev/template";
/// Annotation of a pod: a digest of the current app registry. A change makes kubelet refresh the mounted Secrets at once.
pub const REGISTRY_ANNOTATION: &str = "realtime-operator.dev/registry";

/// The value of an annotation of a pod template.
#[must_use]
pub fn template_mark<'a>(template: &'a PodTemplateSpec, name: &str) -> Option<&'a str> {
    template.metadata.as_ref()?.annotations.as_ref()?.get(name).map(String::as_str)
}
