//! Marks of a pod and its template.

/// Condition type of the readiness gate in every pod.
pub const READINESS_GATE: &str = "realtime-operator.dev/webhooks-delivered";
/// Annotation of a pod template: a digest of the fields that decide what its servers run and reach.
pub const TEMPLATE_ANNOTATION: &str = "realtime-operator.dev/template";
/// Annotation of a pod template: a digest of the Secrets that servers read at their start, so that a change starts a
/// rollout.
pub const SECRETS_ANNOTATION: &str = "realtime-operator.dev/secrets";
/// Annotation of a pod: a digest of the current app registry. A change makes kubelet refresh the mounted Secrets at once.
pub const REGISTRY_ANNOTATION: &str = "realtime-operator.dev/registry";
