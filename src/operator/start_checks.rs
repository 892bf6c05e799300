//! Calls to the API server before the operator competes for the lease: a condition that would make every reconcile fail ends
//! the start with its remedy.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use super::operator_error::OperatorError;
use super::served_crds;
use crate::api::RealtimeCluster;
use crate::kubernetes::scope::WatchScope;
use crate::kubernetes::watch::build_api;

/// Reads the UID that identifies this Kubernetes cluster in the tags of streams.
pub async fn read_kubernetes_uid(client: &Client) -> Result<String, OperatorError> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let operation = "reading the namespace kube-system, whose UID identifies this Kubernetes cluster";
    let found = namespaces.get("kube-system").await.map_err(OperatorError::from_call(operation))?;
    Ok(found.uid().unwrap_or_default())
}

/// Reads the operator's own image, as its pod names it; `None` if the pod is not readable.
pub async fn read_own_image(client: &Client, namespace: &str, pod: &str) -> Result<Option<String>, OperatorError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match pods.get(pod).await {
        Ok(found) => {
            let containers = found.spec.map(|spec| spec.containers).unwrap_or_default();
            let own = containers.iter().find(|container| container.name == "operator").or(containers.first());
            Ok(own.and_then(|container| container.image.clone()))
        }
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_forbidden() => {
            tracing::warn!(pod, %status, "operator's own pod not readable: clusters do not run its image by default, and it is allowed only if the platform policy names it");
            Ok(None)
        }
        Err(error) => Err(OperatorError::from_call("reading the operator's own pod")(error)),
    }
}

/// Fails early when the CRDs are missing or older than this version: watches of an unknown kind would fail for ever, with a
/// message that names no remedy, and unknown fields would be dropped.
pub async fn ensure_crds(client: &Client, scope: &WatchScope) -> Result<(), OperatorError> {
    let mut refusal = None;
    for range in scope.ranges() {
        let clusters: Api<RealtimeCluster> = build_api(client, &range);
        match clusters.list(&ListParams::default().limit(1)).await {
            Ok(_) => return check_served_fields(client).await,
            Err(kube::Error::Api(status)) if status.is_not_found() => return Err(OperatorError::NoCrds),
            Err(error) => refusal = Some(error),
        }
    }
    refusal.map_or(Ok(()), |error| Err(OperatorError::from_call("listing RealtimeClusters")(error)))
}

async fn check_served_fields(client: &Client) -> Result<(), OperatorError> {
    match served_crds::find_missing_fields(client).await {
        Some(missing) => Err(OperatorError::OutdatedCrds(missing)),
        None => Ok(()),
    }
}
