//! The Secrets that manifests reference.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;

use crate::api::cluster::RedisSpec;
use crate::api::{RealtimeApp, RealtimeCluster, SecretKeyRef};

/// Prefix of the keys of a Secret that are headers. Without it, a user who may write a `RealtimeApp`, but not read Secrets, could
/// have any Secret of the namespace posted to an endpoint.
pub const HEADER_KEY_PREFIX: &str = "header.";

/// Texts of the Secrets of a namespace, by name and key.
pub type SecretTexts = BTreeMap<String, BTreeMap<String, String>>;

/// Decodes the texts of a Secret by key.
#[must_use]
pub fn decode_secret(secret: &Secret) -> BTreeMap<String, String> {
    let data = secret.data.iter().flatten();
    data.map(|(key, bytes)| (key.clone(), String::from_utf8_lossy(&bytes.0).into_owned())).collect()
}

/// Trims the texts of a Secret that a person wrote: `echo … | base64` adds a newline, which no credential has.
#[must_use]
pub fn trim_texts(texts: BTreeMap<String, String>) -> BTreeMap<String, String> {
    texts.into_iter().map(|(key, text)| (key, text.trim().to_owned())).collect()
}

/// A key of a Secret that the manifests reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretReference {
    /// Name of the Secret.
    pub name: String,
    /// Key within the Secret.
    pub key: String,
    /// Purpose of the value, for messages.
    pub purpose: &'static str,
    /// The processes that read the value.
    pub readers: SecretReaders,
}

/// The processes that read a value from a Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SecretReaders {
    /// Pods of edges, at their start.
    Edges,
    /// Pods of all servers, at their start.
    Servers,
    /// The operator, which puts the value into the app registry.
    Operator,
}

impl SecretReference {
    fn new(name: &str, key: &str, purpose: &'static str, readers: SecretReaders) -> Self {
        Self { name: name.to_owned(), key: key.to_owned(), purpose, readers }
    }
}

/// Sources of what edges need to connect to Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisReferences {
    /// Source of the address, with its credentials.
    pub url: SecretReference,
    /// Source of the CA certificates; `None` for the public CAs.
    pub ca: Option<SecretReference>,
}

impl RedisReferences {
    /// Reads them from the manifest.
    pub(super) fn of_spec(redis: &RedisSpec) -> Self {
        let reference =
            |key: &SecretKeyRef, purpose| SecretReference::new(&key.name, &key.key, purpose, SecretReaders::Edges);
        Self {
            url: reference(&redis.url_secret_ref, "the address of Redis"),
            ca: redis.ca_secret_ref.as_ref().map(|key| reference(key, "the CA of Redis")),
        }
    }
}

/// Lists the keys of Secrets that a cluster and its apps reference.
#[must_use]
pub fn collect_secret_references(cluster: &RealtimeCluster, apps: &[RealtimeApp]) -> Vec<SecretReference> {
    let redis = RedisReferences::of_spec(&cluster.spec.bus.redis);
    let mut found: Vec<SecretReference> = std::iter::once(redis.url).chain(redis.ca).collect();
    if let Some(keys) = &cluster.spec.aws.identity.secret_ref {
        found.push(SecretReference::new(&keys.name, "accessKeyID", "the AWS access key", SecretReaders::Servers));
        found.push(SecretReference::new(&keys.name, "secretAccessKey", "the AWS secret key", SecretReaders::Servers));
    }
    for name in apps.iter().flat_map(app_secret_names) {
        found.push(SecretReference::new(name, "key", "an app's key", SecretReaders::Operator));
        found.push(SecretReference::new(name, "secret", "an app's secret", SecretReaders::Operator));
    }
    found
}

/// Names the Secrets with the credentials of an app.
pub fn app_secret_names(app: &RealtimeApp) -> impl Iterator<Item = &str> {
    app.spec.credentials.iter().map(|credential| credential.secret_ref.name.as_str())
}

/// Names the Secrets with the headers of an app's webhooks.
pub fn header_secret_names(app: &RealtimeApp) -> impl Iterator<Item = &str> {
    app.spec.webhooks.iter().filter_map(|webhook| Some(webhook.headers_secret_ref.as_ref()?.name.as_str()))
}

/// Adds a stand-in for each value that manifests reference and `secrets` lacks, for commands without a cluster.
pub fn add_stand_ins(
    cluster: &RealtimeCluster,
    apps: &[RealtimeApp],
    secrets: &mut SecretTexts,
    mut stand_in: impl FnMut(&SecretReference) -> String,
) {
    for reference in collect_secret_references(cluster, apps) {
        let texts = secrets.entry(reference.name.clone()).or_default();
        texts.entry(reference.key.clone()).or_insert_with(|| stand_in(&reference));
    }
    for name in apps.iter().flat_map(header_secret_names) {
        if !secrets.contains_key(name) {
            let key = format!("{HEADER_KEY_PREFIX}Authorization");
            let reference = SecretReference::new(name, &key, "headers of webhooks", SecretReaders::Operator);
            let text = stand_in(&reference);
            secrets.insert(name.to_owned(), BTreeMap::from([(key, text)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_around_a_credential_is_removed() {
        let texts =
            BTreeMap::from([("url".to_owned(), " redis://a\r\n".to_owned()), ("ca".to_owned(), "a\nb\n".to_owned())]);
        let trimmed = trim_texts(texts);
        assert_eq!((trimmed["url"].as_str(), trimmed["ca"].as_str()), ("redis://a", "a\nb"));
    }
}
