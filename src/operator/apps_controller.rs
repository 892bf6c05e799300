//! Reconciles the app registry: writes the apps of a cluster into its 16 Secrets, pushes them to the pods, and reports in
//! each app's status whether it is served and loaded; owns `AppsSynced`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::reflector::Store;
use serde_json::Map;
use sha2::{Digest, Sha256};

use super::app_credentials::{StoredCredentials, settle_app_credentials, store_app_credentials};
use super::app_status::{AppRefusal, ClusterView, LoadedPods, report_unrendered_cluster, update_app_status};
use super::cluster_probers::ClusterProbers;
use super::context::{ControllerContext, SharedContext};
use super::endpoint_status::{ReportIndex, merge_endpoints};
use super::pod_annotation::annotate_pod;
use super::reconcile_error::ReconcileError;
use super::registry_histories::{change_wait, record_registry};
use super::rendered_clusters::RenderedCluster;
use super::secret_reader::SecretUser;
use super::status::{self, ConditionUpdate, StatusPatch};
use crate::api::app::AppEndpointStatus;
use crate::api::conditions::condition;
use crate::api::{RealtimeApp, RealtimeCluster, Reason};
use crate::desired::render::REGISTRY_ANNOTATION;
use crate::desired::{self, ValidCluster};
use crate::kubernetes::apply;
use crate::prober::{EndpointReports, PodStanding};
use crate::process::clock;
use crate::protocol::AppId;
use crate::protocol::registry::BUCKET_COUNT;

/// Time between two reconciles of a registry that is in sync; changes of apps and pods trigger earlier ones.
const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
/// Time between two reconciles while waiting for another controller.
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Time between two reconciles while pods load a change, for each thousand apps that are compared: until then an app is not
/// Ready.
const LOADING_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Annotation of a pod that is changed to make kubelet refresh its registry again.
const REGISTRY_REMINDED_ANNOTATION: &str = "realtime-operator.dev/registry-reminded";

/// Bounds the statuses that one reconcile writes because of endpoints.
const ENDPOINT_WRITES_MAX: usize = 100;

/// Bounds the statuses that one reconcile writes because more pods, and not all, have loaded an app: of thousands of apps that
/// come at once, each is written when it is accepted and when it is loaded.
const PROGRESS_WRITES_MAX: usize = 100;

/// Statuses that are written at once.
const CONCURRENT_WRITES_MAX: usize = 16;

/// Time between two pushes to pods: 20 a second, so that a large cluster does not burst against the API server.
const PUSH_INTERVAL: Duration = Duration::from_millis(50);

/// Reconciles the registry of one cluster, and returns the time until the next reconcile without a change.
///
/// # Errors
/// The registry cannot be rendered or written; the status has the same reason.
pub async fn reconcile(
    context: &SharedContext,
    probers: &ClusterProbers,
    clusters: &Store<RealtimeCluster>,
    cluster: &RealtimeCluster,
) -> Result<Option<Duration>, ReconcileError> {
    if cluster.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let wait = change_wait(&context.registries.of_cluster(cluster));
    if !wait.is_zero() {
        return Ok(Some(wait));
    }
    let result = reconcile_registry(context, cluster).await;
    let update = match &result {
        Ok(RegistryOutcome::Written(written)) => {
            ConditionUpdate::new(condition::APPS_SYNCED, "True", Reason::Applied, &written.message)
        }
        Ok(RegistryOutcome::NoCredentials) => {
            let message = "waiting for the generated secrets";
            ConditionUpdate::new(condition::APPS_SYNCED, "False", Reason::AppsStale, message)
        }
        Ok(RegistryOutcome::Suspended { secrets }) => {
            let message = format!("suspended: changes wait of {secrets} of {BUCKET_COUNT} Secrets of the registry");
            ConditionUpdate::new(condition::APPS_SYNCED, "False", Reason::Suspended, message)
        }
        Err(error) => ConditionUpdate::of_error(condition::APPS_SYNCED, error),
    };
    let is_settled = update.status == "True" || update.reason == Reason::Suspended;
    let mut wait = if is_settled { RESYNC_INTERVAL } else { RECHECK_INTERVAL };
    let manager = "realtime-operator-apps";
    let part = StatusPatch {
        manager,
        owned_conditions: &[condition::APPS_SYNCED],
        conditions: vec![update],
        fields: Map::new(),
    };
    status::write(context, cluster, part).await?;
    let others = clusters.state_filter(|other| other.namespace() == cluster.namespace());
    let names = others.iter().map(|other| other.name_any()).chain([cluster.name_any()]).collect();
    if let Err(error) = &result {
        report_unrendered_cluster(context, cluster, error, &names).await?;
    }
    let RegistryOutcome::Written(WrittenRegistry { rendered, failures, .. }) = result? else { return Ok(Some(wait)) };
    let standings = probers.standings(cluster);
    remind_pods(context, cluster, &standings).await?;
    let refused = list_refusals(&rendered.valid, &failures);
    let endpoints = probers.endpoint_reports(cluster);
    let found = ClusterFindings { refused: &refused, standings: &standings, endpoints: &endpoints };
    let all_settled = update_app_statuses(context, cluster, &rendered, &found, &names).await?;
    if !all_settled || rendered.read.awaits_credentials() {
        let thousands = u32::try_from(rendered.read.apps.len() / 1_000).unwrap_or(u32::MAX);
        wait = LOADING_CHECK_INTERVAL.saturating_mul(thousands.saturating_add(1)).min(RESYNC_INTERVAL);
    }
    if !cluster.spec.suspend {
        settle_app_credentials(context, cluster, &rendered).await?;
    }
    // The status of each app has its failure; returned, the first one counts for the back-off.
    failures.into_values().next().map_or(Ok(Some(wait)), Err)
}

/// The refusals of apps by name: by the manifest, and by calls of the operator that failed.
fn list_refusals(valid: &ValidCluster, failures: &BTreeMap<String, ReconcileError>) -> HashMap<String, AppRefusal> {
    let by_manifest = valid.refused.iter().map(|refused| (refused.name.clone(), AppRefusal::of_app(refused)));
    let by_failure = failures.iter().map(|(name, error)| {
        let ReconcileError { reason, message, .. } = error.clone();
        (name.clone(), AppRefusal { reason, message })
    });
    by_manifest.chain(by_failure).collect()
}

/// Result of a reconcile.
enum RegistryOutcome {
    Written(WrittenRegistry),
    /// The Secret of generated values does not exist, which the workload controller creates.
    NoCredentials,
    /// The cluster is suspended, and so many Secrets differ from the rendered ones.
    Suspended {
        secrets: usize,
    },
}

/// The registry of a cluster after it was written and pushed.
struct WrittenRegistry {
    rendered: Arc<RenderedCluster>,
    /// The apps whose credentials could not be stored, by name.
    failures: BTreeMap<String, ReconcileError>,
    /// The message of `AppsSynced`.
    message: String,
}

/// Writes and pushes the registry.
async fn reconcile_registry(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
) -> Result<RegistryOutcome, ReconcileError> {
    let StoredCredentials { rendered, failures } = store_app_credentials(context, cluster).await?;
    // Secrets of the cluster itself are generated by the workload controller alone, so that there is one value of each.
    if !rendered.fresh.is_empty() {
        return Ok(RegistryOutcome::NoCredentials);
    }
    let valid = &rendered.valid;
    let outdated = list_outdated_secrets(context, cluster, valid).await?;
    if cluster.spec.suspend && !outdated.changed.is_empty() {
        return Ok(RegistryOutcome::Suspended { secrets: outdated.changed.len() });
    }
    record_registry(&context.registries.of_cluster(cluster), valid);
    write_registry_secrets(context, cluster, &outdated.changed).await?;
    let pods = push_registry_digest(context, cluster, &outdated.digest).await?;
    let served = valid.registry.apps().count().saturating_sub(1);
    let refused = valid.refused.len();
    let aside = if refused == 0 { String::new() } else { format!(", {refused} refused: see their conditions") };
    let message = format!("{served} apps in {pods} pods{aside}");
    Ok(RegistryOutcome::Written(WrittenRegistry { rendered, failures, message }))
}

/// Whether the endpoints of an app in a cluster differ from its status.
fn has_news(app: &RealtimeApp, cluster: &str, endpoints: &[AppEndpointStatus]) -> bool {
    let known = app.status.iter().flat_map(|status| &status.endpoints);
    !known.filter(|entry| entry.cluster == cluster).eq(endpoints)
}

/// Facts about the apps of a cluster, from its rendering and from its pods.
struct ClusterFindings<'a> {
    refused: &'a HashMap<String, AppRefusal>,
    standings: &'a BTreeMap<String, PodStanding>,
    endpoints: &'a EndpointReports,
}

/// Writes the view of this cluster into the status of each app. Returns whether every app is refused or loaded by every
/// pod.
async fn update_app_statuses(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    rendered: &RenderedCluster,
    found: &ClusterFindings<'_>,
    clusters: &HashSet<String>,
) -> Result<bool, ReconcileError> {
    let RenderedCluster { read, valid, .. } = rendered;
    let history = context.registries.of_cluster(cluster);
    let wanted = valid.servers.iter().map(|server| usize::try_from(server.replicas).unwrap_or_default()).sum();
    // The rendering is shared and may be older than the status of its apps; an app edited since is rendered again first.
    let version = |app: &RealtimeApp| (app.uid(), app.metadata.generation);
    let rendered_versions: HashSet<_> = read.apps.iter().map(version).collect();
    let (name, reports) = (cluster.name_any(), ReportIndex::new(found.endpoints));
    let (mut endpoint_writes, mut progress_writes) = (0, 0);
    let mut due = Vec::new();
    for app in context.live.apps_of(cluster).into_iter().filter(|app| rendered_versions.contains(&version(app))) {
        let id = AppId(app.spec.app_id.clone());
        let pods = {
            let history = history.read().unwrap_or_else(PoisonError::into_inner);
            LoadedPods::count(&id, found.standings, &history, wanted)
        };
        // The rest is written by the next reconciles, so that the registry does not wait for it.
        let endpoints = (endpoint_writes < ENDPOINT_WRITES_MAX)
            .then(|| merge_endpoints(&app, &name, &reports))
            .filter(|endpoints| has_news(&app, &name, endpoints));
        endpoint_writes += usize::from(endpoints.is_some());
        let view = ClusterView { cluster, refused: found.refused.get(&app.name_any()), pods, endpoints };
        let is_progress = view.is_progress(&app);
        progress_writes += usize::from(is_progress);
        if !is_progress || progress_writes <= PROGRESS_WRITES_MAX {
            due.push((app, view));
        }
    }
    // Collected: a stream over a closure that borrows would not be `Send`.
    let mut writes = Vec::with_capacity(due.len());
    for (app, view) in due {
        writes.push(async move { update_app_status(context, &app, &view, clusters).await });
    }
    let settled = stream::iter(writes).buffer_unordered(CONCURRENT_WRITES_MAX);
    let all_due = progress_writes <= PROGRESS_WRITES_MAX;
    settled.try_fold(all_due, |all, settled| std::future::ready(Ok(all && settled))).await
}

/// The rendered registry, compared with the Secrets that exist.
struct OutdatedSecrets {
    /// Digest of the whole registry.
    digest: String,
    /// The Secrets whose content differs, as rendered.
    changed: Vec<Secret>,
}

async fn list_outdated_secrets(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    valid: &ValidCluster,
) -> Result<OutdatedSecrets, ReconcileError> {
    let (uid, user) = (cluster.uid().unwrap_or_default(), SecretUser::of(cluster));
    let mut hasher = Sha256::new();
    let mut changed = Vec::new();
    for secret in desired::render::render_registry_secrets(valid)? {
        for ByteString(bytes) in secret.data.iter().flatten().map(|(_, bytes)| bytes) {
            hasher.update(bytes);
        }
        let name = secret.name_any();
        let live = context.secrets.read(&valid.namespace, &name, &user).await?;
        if live.is_some_and(|live| apply::is_owned_by(&*live, &uid) && live.data == secret.data) {
            continue;
        }
        changed.push(secret);
    }
    Ok(OutdatedSecrets { digest: hex::encode(&hasher.finalize()[..8]), changed })
}

async fn write_registry_secrets(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    changed: &[Secret],
) -> Result<(), ReconcileError> {
    let (uid, namespace) = (cluster.uid().unwrap_or_default(), cluster.namespace().unwrap_or_default());
    for secret in changed {
        let object = serde_json::to_value(secret)?;
        // A Secret of another owner must not be taken over.
        apply::fetch_owned(&context.client, &object, &uid).await?;
        context.ensure_leader()?;
        apply::apply_object(&context.client, &object).await?;
        context.secrets.forget(&namespace, &secret.name_any());
    }
    Ok(())
}

/// Reminds the pods that still run a former registry some time after its change.
async fn remind_pods(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    standings: &BTreeMap<String, PodStanding>,
) -> Result<(), ReconcileError> {
    let history = context.registries.of_cluster(cluster);
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    for pod in context.live.pods_of(cluster) {
        let reading = standings.get(&pod.name_any()).and_then(|standing| standing.registry.as_ref());
        let remark = reading.and_then(|reading| {
            let history = history.read().unwrap_or_else(PoisonError::into_inner);
            history.loading_reminder(reading, clock::now_ms())
        });
        let Some(remark) = remark.filter(|new| pod.annotations().get(REGISTRY_REMINDED_ANNOTATION) != Some(new)) else {
            continue;
        };
        tracing::info!(pod = pod.name_any(), "pod reminded to load the registry");
        annotate_pod(context, &pods, &pod.name_any(), REGISTRY_REMINDED_ANNOTATION, &remark).await?;
        tokio::time::sleep(PUSH_INTERVAL).await;
    }
    Ok(())
}

/// Annotates every pod with the registry's digest: a changed annotation makes kubelet refresh the mounted Secrets at once
/// instead of within a minute or two.
async fn push_registry_digest(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    digest: &str,
) -> Result<usize, ReconcileError> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let live = context.live.pods_of(cluster);
    let stale = |pod: &Pod| pod.annotations().get(REGISTRY_ANNOTATION).is_none_or(|known| known != digest);
    for pod in live.iter().filter(|pod| stale(pod)) {
        annotate_pod(context, &pods, &pod.name_any(), REGISTRY_ANNOTATION, digest).await?;
        tokio::time::sleep(PUSH_INTERVAL).await;
    }
    Ok(live.len())
}
