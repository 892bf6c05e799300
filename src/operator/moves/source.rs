//! Reads the snapshot of a move's source, and the key of both snapshots, from the namespace of the move.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::Api;

use crate::api::migration::SnapshotIdentity;
use crate::api::{RealtimeMigration, SecretKeyRef};
use crate::desired::decode_secret;
use crate::migration::{ClusterSnapshot, PeerExpectations, SecretDigester};
use crate::operator::context::ControllerContext;
use crate::operator::secret_reader::SecretUser;

/// Reads the key under which both snapshots are taken.
///
/// # Errors
/// The Secret is missing, lacks the key, or holds one that is too short: the reason with its remedy.
pub async fn read_digester(
    context: &ControllerContext,
    migration: &RealtimeMigration,
) -> Result<SecretDigester, String> {
    read_digest_key(context, migration, &migration.spec.source.key_secret_ref).await
}

/// Reads the key of snapshots for an object that references it.
///
/// # Errors
/// The Secret is missing, lacks the key, or holds one that is too short: the reason with its remedy.
pub async fn read_digest_key<K: ResourceExt>(
    context: &ControllerContext,
    user: &K,
    wanted: &SecretKeyRef,
) -> Result<SecretDigester, String> {
    let remedy = "print one with `realtime migrate init`, and apply it on both sides";
    let key = read_secret_key(context, user, wanted).await.map_err(|error| format!("{error}: {remedy}"))?;
    SecretDigester::new(&key).map_err(|error| format!("Secret {}: {error}", wanted.name))
}

/// Reads the snapshot of the source, and checks that it counts.
///
/// # Errors
/// It is missing or does not count: the reason with its remedy.
pub async fn read_source(
    context: &ControllerContext,
    migration: &RealtimeMigration,
    digester: &SecretDigester,
    target_uid: &str,
    now_ms: u64,
) -> Result<(ClusterSnapshot, SnapshotIdentity), String> {
    let text = read_text(context, migration).await?;
    let status = migration.status.as_ref();
    let has_record = status.is_some_and(|status| status.tracks.iter().any(|track| track.progress.desired.is_some()));
    let known = status.and_then(|status| status.source.as_ref()).filter(|_| has_record);
    let expected = PeerExpectations { kind: migration.spec.source.kind, target_uid, known };
    ClusterSnapshot::parse_peer(&text, digester, expected, now_ms)
}

async fn read_text(context: &ControllerContext, migration: &RealtimeMigration) -> Result<String, String> {
    let place = &migration.spec.source.snapshot;
    let remedy = "publish one with `realtime snapshot` at the source";
    if let Some(wanted) = &place.secret_ref {
        return read_secret_key(context, migration, wanted).await.map_err(|error| format!("{error}: {remedy}"));
    }
    // The schema demands one of both.
    let Some(wanted) = &place.config_map_ref else { return Err(format!("source.snapshot has no place: {remedy}")) };
    let found = read_config_map_key(context, migration, &wanted.name, &wanted.key).await;
    found.map_err(|error| format!("{error}: {remedy}"))
}

/// Reads one key of a `ConfigMap` in the namespace of an object.
///
/// # Errors
/// It does not exist, lacks the key, or cannot be read: the reason.
pub async fn read_config_map_key<K: ResourceExt>(
    context: &ControllerContext,
    user: &K,
    name: &str,
    key: &str,
) -> Result<String, String> {
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &user.namespace().unwrap_or_default());
    let found = api.get_opt(name).await.map_err(|error| format!("ConfigMap {name}: {error}"))?;
    let found = found.ok_or_else(|| format!("ConfigMap {name} does not exist"))?;
    found.data.unwrap_or_default().remove(key).ok_or_else(|| format!("ConfigMap {name} has no key {key}"))
}

async fn read_secret_key<K: ResourceExt>(
    context: &ControllerContext,
    user: &K,
    wanted: &SecretKeyRef,
) -> Result<String, String> {
    let SecretKeyRef { name, key } = wanted;
    let namespace = user.namespace().unwrap_or_default();
    let found = context.secrets.read(&namespace, name, &SecretUser::of(user)).await;
    let secret = found.map_err(|error| error.to_string())?.ok_or_else(|| format!("Secret {name} does not exist"))?;
    decode_secret(&secret).remove(key).ok_or_else(|| format!("Secret {name} has no key {key}"))
}
