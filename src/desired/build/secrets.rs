//! The Secrets that the operator writes: the admin token, the secret between edges, and the app registry.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::super::Cluster;
use super::{child, metadata};
use crate::protocol::registry::{BUCKETS, file_name};

/// The Secret with the admin token, under `token`.
#[must_use]
pub fn admin_secret_name(cluster: &Cluster) -> String {
    child(cluster, "admin")
}

/// The Secret with what edges sign with that hand requests to each other, under `secret`.
#[must_use]
pub fn peer_secret_name(cluster: &Cluster) -> String {
    child(cluster, "peer")
}

/// The Secret of one bucket of the registry.
#[must_use]
pub fn registry_secret_name(cluster: &Cluster, bucket: u8) -> String {
    child(cluster, &format!("apps-{bucket:x}"))
}

pub(super) fn admin_secret(cluster: &Cluster) -> Secret {
    secret(cluster, admin_secret_name(cluster), "token", cluster.admin_token.expose())
}

pub(super) fn peer_secret(cluster: &Cluster) -> Secret {
    secret(cluster, peer_secret_name(cluster), "secret", cluster.peer_secret.expose())
}

/// The Secrets of the app registry, one per bucket.
///
/// # Errors
/// Never for these types; the library's signature has one.
pub fn registry_secrets(cluster: &Cluster) -> Result<Vec<Secret>, serde_json::Error> {
    let mut files = cluster.registry.files()?;
    let buckets = (0..BUCKETS).map(|bucket| {
        let file = file_name(bucket);
        let text = files.remove(&file).unwrap_or_else(|| "[]".to_owned());
        secret(cluster, registry_secret_name(cluster, bucket), &file, &text)
    });
    Ok(buckets.collect())
}

fn secret(cluster: &Cluster, name: String, key: &str, text: &str) -> Secret {
    Secret {
        metadata: metadata(cluster, name, "configuration"),
        data: Some(BTreeMap::from([(key.to_owned(), ByteString(text.as_bytes().to_vec()))])),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}
