//! Takes the snapshot of a cluster from the live objects, of a move's target or to be published, in the form in which `realtime
//! snapshot` prints it, so that a review has one hash wherever it is made.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::RealtimeCluster;
use crate::desired::decode_secret;
use crate::kubernetes::apply::is_owned_by;
use crate::migration::{
    AppDigest, ClusterSnapshot, DeliverySnapshot, EnvironmentTexts, MoveSnapshot, SecretDigester, read_server,
};
use crate::operator::cluster_snapshot::{
    digest_registry, list_environment_sources, list_registry_secrets, read_owned_servers,
};
use crate::operator::context::ControllerContext;
use crate::operator::secret_reader::SecretUser;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::AppId;

/// Time after which apps are digested again: a registry may hold many thousands.
const APPS_TTL: Duration = Duration::from_mins(1);

/// The apps of a target at a time.
struct DigestedApps {
    at: Instant,
    key_id: String,
    apps: BTreeMap<AppId, AppDigest>,
}

/// Takes snapshots, and keeps the apps of each cluster for a while.
pub struct SnapshotReader {
    apps: Mutex<HashMap<String, DigestedApps>>,
    apps_ttl: Duration,
}

impl Default for SnapshotReader {
    fn default() -> Self {
        Self::with_apps_ttl(APPS_TTL)
    }
}

impl SnapshotReader {
    /// A reader that digests apps again after this time.
    pub fn with_apps_ttl(apps_ttl: Duration) -> Self {
        Self { apps: Mutex::default(), apps_ttl }
    }

    /// Takes the snapshot of a cluster for an object of its namespace: a move, or the cluster itself. A Secret that cannot be read
    /// is unknown in it, as are the apps then.
    pub async fn take_snapshot<K: ResourceExt>(
        &self,
        context: &ControllerContext,
        user: &K,
        cluster: &RealtimeCluster,
        digester: &SecretDigester,
    ) -> ClusterSnapshot {
        let cluster_uid = cluster.uid().unwrap_or_default();
        let mut owned = context.live.deployments_of(cluster);
        owned.retain(|deployment| is_owned_by(deployment, &cluster_uid));
        let (secrets, _) = list_environment_sources(&owned);
        let mut texts = read_texts(context, user, secrets).await;
        let read = |deployment: &Deployment| read_server(deployment, None, &texts, Some(digester));
        let servers = read_owned_servers(owned.iter(), read);
        let uid = user.uid().unwrap_or_default();
        let apps = if let Some(apps) = self.known_apps(&uid, digester) {
            Some(apps)
        } else {
            let name = cluster.name_any();
            texts.secrets.extend(read_texts(context, user, list_registry_secrets(&name)).await.secrets);
            let apps = digest_registry(&name, servers.values(), &texts, digester);
            let apps = apps.inspect_err(|error| tracing::debug!(error, "apps of the cluster not read")).ok();
            if let Some(apps) = apps.clone() {
                self.keep_apps(uid, digester, apps);
            }
            apps
        };
        ClusterSnapshot { apps, key_id: Some(digester.key_id()), ..ClusterSnapshot::of_cluster(cluster, servers) }
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, uid: &str) {
        lock_unpoisoned(&self.apps).remove(uid);
    }

    fn known_apps(&self, uid: &str, digester: &SecretDigester) -> Option<BTreeMap<AppId, AppDigest>> {
        let all = lock_unpoisoned(&self.apps);
        let known = all.get(uid).filter(|known| known.key_id == digester.key_id())?;
        (known.at.elapsed() < self.apps_ttl).then(|| known.apps.clone())
    }

    fn keep_apps(&self, uid: String, digester: &SecretDigester, apps: BTreeMap<AppId, AppDigest>) {
        let kept = DigestedApps { at: Instant::now(), key_id: digester.key_id(), apps };
        lock_unpoisoned(&self.apps).insert(uid, kept);
    }
}

/// Deliveries of a cluster to the endpoints of its apps, as their status has them.
pub fn read_delivery(context: &ControllerContext, cluster: &RealtimeCluster) -> DeliverySnapshot {
    let apps = context.live.apps_of(cluster);
    DeliverySnapshot::of_apps(&cluster.name_any(), apps.iter().map(|app| &**app))
}

/// Tracks of the moves to a cluster; `None` before the moves of its namespace are listed.
pub fn list_moves(context: &ControllerContext, cluster: &RealtimeCluster) -> Option<Vec<MoveSnapshot>> {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let moves = &context.live.migrations;
    if !moves.covers(&namespace) {
        return None;
    }
    let moves = moves.find(&namespace, |found| found.spec.cluster_ref.name == name);
    Some(moves.iter().flat_map(|found| MoveSnapshot::of_migration(found)).collect())
}

async fn read_texts<K: ResourceExt>(
    context: &ControllerContext,
    user: &K,
    names: impl IntoIterator<Item = String>,
) -> EnvironmentTexts {
    let (namespace, user) = (user.namespace().unwrap_or_default(), SecretUser::of(user));
    let mut texts = EnvironmentTexts::default();
    for name in names {
        match context.secrets.read(&namespace, &name, &user).await {
            Ok(Some(secret)) => drop(texts.secrets.insert(name, decode_secret(&secret))),
            Ok(None) => {}
            Err(error) => tracing::debug!(name, %error, "Secret of the target not read"),
        }
    }
    texts
}
