//! Generates the credentials that no manifest contains: a step of its own, so that validating is pure.

use std::collections::BTreeMap;

use crate::api::{RealtimeApp, RealtimeCluster};
use crate::protocol::{AppKey, Secret};

/// Generated credentials of a cluster and of those of its apps that reference none.
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
    /// Credentials of apps, by app id.
    pub apps: BTreeMap<String, GeneratedPair>,
    /// Values by purpose that were unknown before, and so have to be stored.
    pub fresh: BTreeMap<String, String>,
}

/// A generated app key with its secret.
#[derive(Clone, Debug)]
pub struct GeneratedPair {
    /// Generated key of the app.
    pub key: AppKey,
    /// Generated secret of the app key.
    pub secret: Secret,
}

/// Recalls the credentials of a cluster from `known`, by purpose such as `admin-token`, and generates those that are
/// missing there. A purpose is generated once, even if two apps have the same id.
pub fn generate_credentials(
    cluster: &RealtimeCluster,
    apps: &[RealtimeApp],
    known: &BTreeMap<String, String>,
    mut generate: impl FnMut(&str) -> String,
) -> ClusterCredentials {
    let mut fresh = BTreeMap::new();
    let mut value = |purpose: &str| match known.get(purpose) {
        Some(known) => known.clone(),
        None => fresh.entry(purpose.to_owned()).or_insert_with(|| generate(purpose)).clone(),
    };
    let uid = cluster.metadata.uid.clone().unwrap_or_else(|| value("uid"));
    let mut pair = |name: &str| GeneratedPair {
        key: AppKey(value(&format!("{name}-key"))),
        secret: Secret::new(value(&format!("{name}-secret"))),
    };
    let probe = pair("probe");
    let without = apps.iter().filter(|app| app.spec.credentials.is_empty());
    let apps = without.map(|app| (app.spec.app_id.clone(), pair(&format!("app-{}", app.spec.app_id)))).collect();
    let (admin_token, peer_secret) = (Secret::new(value("admin-token")), Secret::new(value("peer-secret")));
    ClusterCredentials { uid, probe, admin_token, peer_secret, apps, fresh }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;

    #[test]
    fn known_credentials_are_recalled_and_missing_ones_are_generated_once() {
        let app = "apiVersion: realtime-operator.dev/v1alpha1\nkind: RealtimeApp\nmetadata: { name: a }\n\
                   spec: { appID: '1' }\n";
        let app: RealtimeApp = serde_yaml::from_str(app).expect("an app");
        let known = BTreeMap::from([("admin-token".to_owned(), "stored".to_owned())]);
        let mut calls = Vec::new();
        let made = generate_credentials(&applied_cluster(""), &[app.clone(), app], &known, |purpose| {
            calls.push(purpose.to_owned());
            format!("new-{purpose}")
        });
        assert_eq!(made.admin_token.expose(), "stored");
        assert_eq!(made.uid, "1a2b3c4d-0000", "an applied manifest has one");
        assert_eq!(made.apps["1"].key.as_str(), "new-app-1-key");
        assert_eq!(calls, ["probe-key", "probe-secret", "app-1-key", "app-1-secret", "peer-secret"]);
        assert_eq!(made.fresh.len(), calls.len());
    }
}
