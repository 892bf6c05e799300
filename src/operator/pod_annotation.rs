//! Writes annotations of pods, by which kubelet is made to refresh the files of a pod at once.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::context::ControllerContext;
use super::reconcile_error::ReconcileError;

/// Writes an annotation, which also makes kubelet sync the pod. `false` when the pod does not exist any more.
///
/// # Errors
/// The API server refuses the call or does not answer, or this process may not write any more.
pub async fn annotate_pod(
    context: &ControllerContext,
    api: &Api<Pod>,
    pod: &str,
    key: &str,
    value: &str,
) -> Result<bool, ReconcileError> {
    context.ensure_leader()?;
    let annotation = json!({ "metadata": { "annotations": { key: value } } });
    match api.patch(pod, &patch_parameters(), &Patch::Merge(annotation)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
        Err(error) => Err(ReconcileError::from_call(&format!("annotating {pod}"), &error)),
    }
}

/// Parameters of a patch of a pod.
pub fn patch_parameters() -> PatchParams {
    PatchParams { field_manager: Some("realtime-operator".to_owned()), ..PatchParams::default() }
}
