//! Generates the credentials that no manifest contains: a step of its own, so that validating is pure.

use std::collections::BTreeMap;

use super::app_credentials::{AppCredentials, GeneratedPair, generate_app_credentials};
use crate::api::{RealtimeApp, RealtimeCluster};
use crate::protocol::{AppKey, Secret};

/// Generated credentials of a cluster, and of those of its apps that reference none.
#[derive(Clone, Debug)]
pub struct ClusterCredentials {
    /// UID of the cluster; a generated one for a manifest that was never applied.
    pub uid: String,
    /// Credentials of the probe app.
    pub probe: GeneratedPair,
    /// Token of the admin listeners.
    pub admin_token: Secret,
    /// Secret with which edges sign relayed requests.
    pub peer_secret: Secret,
    /// Generated credentials of apps, by name of the app.
    pub apps: BTreeMap<String, AppCredentials>,
    /// Values by purpose that were unknown before, and so have to be stored.
    pub fresh: BTreeMap<String, String>,
}

/// Recalls the credentials of a cluster from `known`, by purpose such as `admin-token`, and generates those that are
/// missing there. Those of its apps are recalled or generated before.
pub fn generate_credentials(
    cluster: &RealtimeCluster,
    known: &BTreeMap<String, String>,
    apps: BTreeMap<String, AppCredentials>,
    mut generate: impl FnMut(&str) -> String,
) -> ClusterCredentials {
    let mut fresh = BTreeMap::new();
    let mut value = |purpose: &str| match known.get(purpose) {
        Some(known) => known.clone(),
        None => fresh.entry(purpose.to_owned()).or_insert_with(|| generate(purpose)).clone(),
    };
    let uid = cluster.metadata.uid.clone().unwrap_or_else(|| value("uid"));
    let probe = GeneratedPair { key: AppKey(value("probe-key")), secret: Secret::new(value("probe-secret")) };
    let (admin_token, peer_secret) = (Secret::new(value("admin-token")), Secret::new(value("peer-secret")));
    ClusterCredentials { uid, probe, admin_token, peer_secret, apps, fresh }
}

/// Generates all credentials of a cluster and of its apps: for manifests that were never applied.
pub fn generate_all_credentials(
    cluster: &RealtimeCluster,
    apps: &[RealtimeApp],
    mut generate: impl FnMut(&str) -> String,
) -> ClusterCredentials {
    let apps = generate_app_credentials(apps, &mut generate);
    generate_credentials(cluster, &BTreeMap::new(), apps, generate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;

    #[test]
    fn known_credentials_are_recalled_and_missing_ones_are_generated() {
        let known = BTreeMap::from([("admin-token".to_owned(), "stored".to_owned())]);
        let mut calls = Vec::new();
        let made = generate_credentials(&applied_cluster(""), &known, BTreeMap::new(), |purpose| {
            calls.push(purpose.to_owned());
            format!("new-{purpose}")
        });
        assert_eq!(made.admin_token.expose(), "stored");
        assert_eq!(made.uid, "1a2b3c4d-0000", "an applied manifest has one");
        assert_eq!(calls, ["probe-key", "probe-secret", "peer-secret"]);
        assert_eq!(made.fresh.len(), calls.len());
    }
}
