//! Validates what was read of a cluster, and says as a reason of its status why it cannot be rendered. Pure.

use kube::ResourceExt;

use super::cluster_inputs::Dereferenced;
use super::reconcile_error::ReconcileError;
use crate::api::cluster::WebhooksMode;
use crate::api::{RealtimeCluster, Reason};
use crate::desired::{self, ClusterCredentials, ClusterInputs, ManifestProblem, ValidCluster, ValidStream};

/// Validates a cluster with the inputs that it references.
///
/// # Errors
/// A Secret is missing, the manifest contradicts itself, or the stream does not exist yet.
pub fn validate_cluster(
    cluster: &RealtimeCluster,
    read: &Dereferenced,
    credentials: &ClusterCredentials,
    receiver: &str,
) -> Result<ValidCluster, ReconcileError> {
    // Also checked here: objects of an older schema were never checked by the API server.
    if let Err(errors) = cluster.validate_cel() {
        let messages: Vec<String> =
            errors.into_vec().into_iter().map(|error| format!("{} {}", error.field_path, error.message)).collect();
        return Err(ReconcileError::terminal(Reason::SpecInvalid, messages.join("; ")));
    }
    ensure_secrets_exist(cluster, read)?;
    if cluster.spec.webhooks.mode == WebhooksMode::Kinesis && read.stream.is_none() {
        return Err(ReconcileError::transient(Reason::StreamCreating, "waiting for the stream"));
    }
    let inputs = ClusterInputs {
        cluster,
        apps: &read.apps,
        secrets: &read.secrets,
        credentials,
        receiver,
        version: env!("CARGO_PKG_VERSION"),
        stream: read.stream.as_ref(),
    };
    desired::validate(&inputs).map_err(|problems| spec_invalid(&problems))
}

/// Validates the stream that a cluster asks for, before any other part: its controller waits for none.
///
/// # Errors
/// An identity or a capacity is incomplete.
pub fn validate_stream(cluster: &RealtimeCluster) -> Result<ValidStream, ReconcileError> {
    desired::validate_stream(cluster, &cluster.uid().unwrap_or_default()).map_err(|problems| spec_invalid(&problems))
}

fn spec_invalid(problems: &[ManifestProblem]) -> ReconcileError {
    let messages: Vec<String> = problems.iter().map(ToString::to_string).collect();
    ReconcileError::terminal(Reason::SpecInvalid, messages.join("; "))
}

fn ensure_secrets_exist(cluster: &RealtimeCluster, read: &Dereferenced) -> Result<(), ReconcileError> {
    let namespace = cluster.namespace().unwrap_or_default();
    for reference in desired::collect_secret_references(cluster, &[]) {
        let (name, key) = (&reference.name, &reference.key);
        let why = match read.secrets.get(name) {
            None => "does not exist".to_owned(),
            Some(texts) => match texts.get(key) {
                Some(text) if !text.is_empty() => continue,
                // Its other keys are not named: whoever may write a cluster need not be allowed to read its Secrets.
                _ => format!("has no key `{key}`"),
            },
        };
        let message = format!("Secret {namespace}/{name} {why}: create it with {}, key `{key}`", reference.purpose);
        return Err(ReconcileError::transient(Reason::SecretMissing, message));
    }
    Ok(())
}
