//! The inputs that a cluster is rendered from, as objects and as values. Pure.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;

use crate::api::{RealtimeApp, RealtimeCluster};
use crate::config::RESTARTED_AT_ANNOTATION;
use crate::desired::{self, AppCredentials, SecretTexts, ServerImage, StreamIdentity};
use crate::protocol::StreamName;

/// The objects that a cluster is rendered from.
pub struct ClusterReferences {
    /// Apps, the oldest first.
    pub apps: Vec<Arc<RealtimeApp>>,
    /// The Secrets that cluster and apps reference, as far as they exist, by name.
    pub secrets: BTreeMap<String, Arc<Secret>>,
    /// The Secrets that have the names of the generated credentials of apps, as far as they exist, by name.
    pub of_apps: BTreeMap<String, Arc<Secret>>,
    /// The Secret of generated values.
    pub generated: Option<Arc<Secret>>,
    /// The image that the cluster runs; `None` for a new cluster.
    pub recorded_image: Option<ServerImage>,
}

/// The inputs of a cluster as values.
#[derive(Clone)]
pub struct Dereferenced {
    /// Apps, the oldest first: of two with the same id the older keeps it.
    pub apps: Vec<RealtimeApp>,
    /// The Secrets that cluster and apps reference.
    pub secrets: SecretTexts,
    /// Generated secrets of this cluster, by purpose.
    pub generated: BTreeMap<String, String>,
    /// Generated credentials of the apps, by name of the app.
    pub app_credentials: BTreeMap<String, AppCredentials>,
    /// The stream; `None` until the stream controller has created or adopted it.
    pub stream: Option<StreamIdentity>,
    /// The image that the cluster runs; `None` for a new cluster.
    pub recorded_image: Option<ServerImage>,
}

impl ClusterReferences {
    /// Decodes Secrets and status into the values that validating takes.
    #[must_use]
    pub fn resolve(&self, cluster: &RealtimeCluster) -> Dereferenced {
        let stream = cluster.status.as_ref().and_then(|status| status.stream.as_ref());
        let stream = stream.filter(|stream| !stream.arn.is_empty()).map(|stream| StreamIdentity {
            name: StreamName(stream.name.clone()),
            cluster_id: stream.cluster_id.clone(),
            adopted_at: stream.adopted_at.clone(),
        });
        let apps: Vec<RealtimeApp> = self.apps.iter().map(|app| (**app).clone()).collect();
        let generated = self.generated.as_deref().map(desired::decode_secret).unwrap_or_default();
        let find = |name: &str| self.of_apps.get(name).map(|secret| &**secret);
        Dereferenced {
            app_credentials: desired::recall_app_credentials(&apps, find, &generated),
            apps,
            secrets: decode_secrets(&self.secrets),
            generated,
            stream,
            recorded_image: self.recorded_image.clone(),
        }
    }
}

impl Dereferenced {
    /// Whether the pair of an app is not generated yet.
    pub fn awaits_credentials(&self) -> bool {
        self.app_credentials.values().any(|app| app.pairs.is_empty() && app.refusal.is_none())
    }
}

/// The texts of Secrets that people wrote.
pub fn decode_secrets(secrets: &BTreeMap<String, Arc<Secret>>) -> SecretTexts {
    secrets.iter().map(|(name, secret)| (name.clone(), desired::trim_texts(desired::decode_secret(secret)))).collect()
}

/// Digest of the versions of all inputs.
pub fn digest_inputs(cluster: &RealtimeCluster, references: &ClusterReferences, networks: &[IpNet]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (cluster.uid(), cluster.metadata.generation).hash(&mut hasher);
    cluster.annotations().get(RESTARTED_AT_ANNOTATION).hash(&mut hasher);
    cluster.status.as_ref().and_then(|status| status.restarted_at.as_ref()).hash(&mut hasher);
    cluster.status.as_ref().map(|status| &status.published_hosts).hash(&mut hasher);
    if let Some(stream) = cluster.status.as_ref().and_then(|status| status.stream.as_ref()) {
        (&stream.name, &stream.arn, &stream.cluster_id, &stream.adopted_at).hash(&mut hasher);
    }
    references.recorded_image.hash(&mut hasher);
    networks.hash(&mut hasher);
    for app in &references.apps {
        (app.uid(), app.metadata.generation).hash(&mut hasher);
    }
    for (name, secret) in references.secrets.iter().chain(&references.of_apps) {
        (name, secret.uid(), secret.resource_version()).hash(&mut hasher);
    }
    references.generated.as_ref().map(|secret| (secret.uid(), secret.resource_version())).hash(&mut hasher);
    hasher.finish()
}
