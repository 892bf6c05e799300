//! Validates what was read of a cluster, and says as a reason of its status why it cannot be rendered. Pure.

use kube::ResourceExt;

use super::cluster_inputs::Dereferenced;
use super::reconcile_error::ReconcileError;
use crate::api::cluster::WebhooksMode;
use crate::api::{RealtimeCluster, Reason};
use crate::desired::{
    self, ClusterCredentials, ClusterInputs, ManifestProblem, PlatformPolicy, ServerImage, ValidCluster, ValidStream,
};

/// The operator's own parts that a cluster is rendered with.
#[derive(Clone, Copy)]
pub struct OwnIdentity<'a> {
    /// `HOST:PORT` of the webhook receiver.
    pub receiver: &'a str,
    /// Networks of the Kubernetes cluster itself whose addresses are public.
    pub networks: &'a [ipnet::IpNet],
    /// The operator's own image.
    pub image: &'a ServerImage,
}

/// Validates a cluster with the inputs that it references.
///
/// # Errors
/// A Secret is missing, the manifest contradicts itself or the policy, or the stream does not exist yet.
pub fn validate_cluster(
    cluster: &RealtimeCluster,
    policy: &PlatformPolicy,
    read: &Dereferenced,
    credentials: &ClusterCredentials,
    own: &OwnIdentity<'_>,
) -> Result<ValidCluster, ReconcileError> {
    // Also checked here: objects of an older schema were never checked by the API server.
    if let Err(errors) = cluster.validate_cel() {
        let messages: Vec<String> =
            errors.into_vec().into_iter().map(|error| format!("{} {}", error.field_path, error.message)).collect();
        return Err(ReconcileError::terminal(Reason::SpecInvalid, messages.join("; ")));
    }
    ensure_allowed(cluster, policy)?;
    ensure_secrets_exist(cluster, read)?;
    if cluster.spec.webhooks.mode == WebhooksMode::Kinesis && read.stream.is_none() {
        return Err(ReconcileError::transient(Reason::StreamCreating, "waiting for the stream"));
    }
    let inputs = ClusterInputs {
        cluster,
        apps: &read.apps,
        secrets: &read.secrets,
        credentials,
        receiver: own.receiver,
        own_networks: own.networks,
        own_image: own.image,
        recorded_image: read.recorded_image.as_ref(),
        stream: read.stream.as_ref(),
    };
    desired::validate(&inputs).map_err(|problems| spec_invalid(&problems))
}

/// Validates the stream that a cluster asks for, before any other part: its controller waits for none.
///
/// # Errors
/// An identity or a capacity is incomplete, or the policy does not allow the cluster.
pub fn validate_stream(cluster: &RealtimeCluster, policy: &PlatformPolicy) -> Result<ValidStream, ReconcileError> {
    ensure_allowed(cluster, policy)?;
    desired::validate_stream(cluster, &cluster.uid().unwrap_or_default()).map_err(|problems| spec_invalid(&problems))
}

fn ensure_allowed(cluster: &RealtimeCluster, policy: &PlatformPolicy) -> Result<(), ReconcileError> {
    let problems = policy.check_cluster(cluster);
    if problems.is_empty() {
        return Ok(());
    }
    Err(ReconcileError::terminal(Reason::NotAllowedByPolicy, join_problems(&problems)))
}

fn spec_invalid(problems: &[ManifestProblem]) -> ReconcileError {
    ReconcileError::terminal(Reason::SpecInvalid, join_problems(problems))
}

fn join_problems(problems: &[ManifestProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::api::fixture::applied_cluster;
    use crate::desired::StreamIdentity;
    use crate::protocol::StreamName;

    fn check(cluster: &RealtimeCluster, secret: &[(&str, &str)]) -> Result<ValidCluster, ReconcileError> {
        let texts = secret.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
        let read = Dereferenced {
            apps: vec![],
            secrets: BTreeMap::from([("eu-redis".to_owned(), texts)]),
            generated: BTreeMap::new(),
            app_credentials: BTreeMap::new(),
            stream: Some(StreamIdentity {
                name: StreamName("s".to_owned()),
                cluster_id: "u".to_owned(),
                adopted_at: None,
            }),
            recorded_image: None,
        };
        let credentials = desired::generate_all_credentials(cluster, &[], str::to_owned);
        let own = OwnIdentity { receiver: "receiver.svc:8090", networks: &[], image: &ServerImage::of_operator(None) };
        validate_cluster(cluster, &PlatformPolicy::default(), &read, &credentials, &own)
    }

    #[test]
    fn a_cluster_against_the_policy_is_neither_rendered_nor_sent_a_request() {
        let mut cluster = applied_cluster("");
        assert!(check(&cluster, &[("url", "redis://r")]).is_ok());
        cluster.spec.aws.endpoint_url = Some("https://169.254.169.254".to_owned());
        let rendering = check(&cluster, &[]).expect_err("the policy refuses before a missing Secret does");
        let stream = validate_stream(&cluster, &PlatformPolicy::default()).expect_err("refused");
        for error in [rendering, stream] {
            assert_eq!((error.reason, error.terminal), (Reason::NotAllowedByPolicy, true), "{error}");
            assert!(error.message.contains("spec.aws.endpointURL is `https://169.254.169.254`"), "{error}");
        }
    }

    #[test]
    fn a_missing_key_of_a_secret_is_reported_without_the_names_of_its_other_keys() {
        let error = check(&applied_cluster(""), &[("private-name", "x")]).expect_err("refused");
        assert_eq!(error.reason, Reason::SecretMissing);
        assert!(error.message.contains("has no key `url`"), "{error}");
        assert!(!error.message.contains("private-name"), "{error}");
    }
}
