//! Writes the status of apps: the clusters that serve an app, and the pods that have loaded it.
//!
//! Several clusters of a namespace may serve one app. Each writes its own entry of `status.clusters` and keeps those of
//! the others; the conditions follow from all entries.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::reflector::Store;

use super::context::ControllerContext;
use super::reconcile_error::ReconcileError;
use super::status::apply_status;
use crate::api::app::{AppClusterStatus, AppEndpointStatus, RealtimeAppStatus};
use crate::api::conditions::condition;
use crate::api::{RealtimeApp, RealtimeCluster, Reason};
use crate::desired::{RefusalCause, RefusedApp};
use crate::gate::RegistryHistory;
use crate::prober::PodStanding;
use crate::protocol::AppId;

/// Field manager of the status of apps.
const FIELD_MANAGER: &str = "realtime-operator-apps";

/// Time between two looks for apps that no cluster selects.
const UNSELECTED_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Time in s in which a cluster that waits for its stream or its first objects is not reported to its apps.
const START_GRACE_SECONDS: i64 = 60;

/// Time between two statuses of apps that no cluster selects: 20 a second, as for pods.
const STATUS_WRITE_INTERVAL: Duration = Duration::from_millis(50);

/// The pods of a cluster that have loaded an app, as far as they were observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedPods {
    /// Pods that run the app as it is rendered.
    pub loaded: usize,
    /// Pods that run another version of it.
    pub lagging: usize,
    /// Pods that the cluster wants.
    pub wanted: usize,
}

impl LoadedPods {
    /// Counts the pods of a cluster by the registry that each of them reported.
    pub fn count(
        app: &AppId,
        standings: &BTreeMap<String, PodStanding>,
        history: &RegistryHistory,
        wanted: usize,
    ) -> Self {
        let known = standings.values().filter_map(|standing| standing.registry.as_ref());
        let known: Vec<bool> = known.filter_map(|reading| history.has_loaded(app, reading)).collect();
        let loaded = known.iter().filter(|loaded| **loaded).count();
        Self { loaded, lagging: known.len() - loaded, wanted }
    }
}

/// The refusal of an app by a cluster, or the failure for which the operator cannot judge the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppRefusal {
    pub reason: Reason,
    /// One line, with the remedy.
    pub message: String,
}

impl AppRefusal {
    /// The refusal of an app by its manifest and its Secrets.
    pub fn of_app(refused: &RefusedApp) -> Self {
        let reason = match refused.cause {
            RefusalCause::Invalid => Reason::AppInvalid,
            RefusalCause::KeyConflict => Reason::KeyConflict,
            RefusalCause::CredentialsNotOurs => Reason::CredentialsNotOurs,
            RefusalCause::EndpointNotAllowed => Reason::EndpointNotAllowed,
        };
        let messages: Vec<String> = refused.problems.iter().map(ToString::to_string).collect();
        Self { reason, message: messages.join("; ") }
    }
}

/// The view that one cluster has of an app.
pub struct ClusterView<'a> {
    pub cluster: &'a RealtimeCluster,
    /// The refusal of the app, if the cluster does not accept it.
    pub refused: Option<&'a AppRefusal>,
    pub pods: LoadedPods,
    /// The app's endpoints in this cluster; `None` leaves them as they are.
    pub endpoints: Option<Vec<AppEndpointStatus>>,
}

impl ClusterView<'_> {
    /// The entry of this cluster in the status of an app.
    fn entry(&self, app: &RealtimeApp) -> AppClusterStatus {
        let name = self.cluster.name_any();
        let Some(AppRefusal { reason, message }) = self.refused else {
            let LoadedPods { loaded, wanted, .. } = self.pods;
            let counted = format!("{}/{wanted}", loaded.min(wanted));
            let known = find_entry(app, &name);
            let kept = known.filter(|known| self.keeps_entry(app, known)).map(|known| known.loaded.clone());
            let reason = Reason::AppAccepted.to_string();
            return AppClusterStatus { name, loaded: kept.unwrap_or(counted), reason, message: String::new() };
        };
        AppClusterStatus { name, loaded: String::new(), reason: reason.to_string(), message: message.clone() }
    }

    /// Whether the status of an app would change by the number of pods alone, which have not all loaded it.
    pub fn is_progress(&self, app: &RealtimeApp) -> bool {
        let own = self.entry(app);
        find_entry(app, &own.name).is_some_and(|known| {
            known.reason == own.reason && known.loaded != own.loaded && !known.is_loaded() && !own.is_loaded()
        })
    }

    /// Whether a complete count stays although pods are missing or not observed: a pod that starts later is admitted with
    /// the whole registry only, so that a rollout need not write the status of every app.
    fn keeps_entry(&self, app: &RealtimeApp, known: &AppClusterStatus) -> bool {
        let Some(status) = &app.status else { return false };
        let created = self.cluster.metadata.creation_timestamp.as_ref();
        // The entry may be of a former cluster of this name.
        let is_of_this_cluster = status.conditions.iter().any(|found| {
            found.type_ == condition::READY
                && found.status == "True"
                && created.is_none_or(|created| found.last_transition_time.0 >= created.0)
        });
        is_of_this_cluster
            && known.is_loaded()
            && Some(status.observed_generation) == app.metadata.generation
            && self.pods.lagging == 0
    }
}

/// Writes the view of a cluster into the status of an app. Returns whether the app is settled there: refused, or loaded by
/// every pod.
///
/// # Errors
/// The API server refuses the status.
pub async fn update_app_status(
    context: &ControllerContext,
    app: &RealtimeApp,
    view: &ClusterView<'_>,
    clusters: &HashSet<String>,
) -> Result<bool, ReconcileError> {
    let own = view.entry(app);
    let settled = view.refused.is_some() || own.is_loaded();
    let mut entries: Vec<AppClusterStatus> = app.status.iter().flat_map(|status| status.clusters.clone()).collect();
    entries.retain(|entry| entry.name != own.name && clusters.contains(&entry.name));
    entries.push(own);
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    let endpoints = merge_cluster_endpoints(app, view, clusters);
    let written = write_status(context, app, build_status(app, entries, endpoints, Timestamp::now())).await?;
    Ok(settled && written)
}

/// The endpoints of an app in all clusters that exist, those of this view as it has them.
fn merge_cluster_endpoints(
    app: &RealtimeApp,
    view: &ClusterView<'_>,
    clusters: &HashSet<String>,
) -> Vec<AppEndpointStatus> {
    let name = view.cluster.name_any();
    let known = app.status.iter().flat_map(|status| status.endpoints.clone());
    let is_kept = |entry: &AppEndpointStatus| {
        clusters.contains(&entry.cluster) && (view.endpoints.is_none() || entry.cluster != name)
    };
    let mut endpoints: Vec<AppEndpointStatus> = known.filter(is_kept).collect();
    endpoints.extend(view.endpoints.clone().into_iter().flatten());
    endpoints.sort_by(|one, other| one.cluster.cmp(&other.cluster));
    endpoints
}

/// Writes the error for which a cluster is not rendered into the status of each app that the cluster never judged. Apps that
/// its pods serve already keep their status.
///
/// # Errors
/// The API server refuses a status.
pub async fn report_unrendered_cluster(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    error: &ReconcileError,
    clusters: &HashSet<String>,
) -> Result<(), ReconcileError> {
    let created = cluster.metadata.creation_timestamp.as_ref();
    let age = created.map_or(0, |created| Timestamp::now().as_second() - created.0.as_second());
    let is_starting = age < START_GRACE_SECONDS && matches!(error.reason, Reason::StreamCreating | Reason::RollingOut);
    if is_starting || error.is_conflict {
        return Ok(());
    }
    let name = cluster.name_any();
    let refusal =
        AppRefusal { reason: error.reason, message: format!("the cluster is not rendered: {}", error.message) };
    let pods = LoadedPods { loaded: 0, lagging: 0, wanted: 0 };
    let view = ClusterView { cluster, refused: Some(&refusal), pods, endpoints: None };
    for app in context.live.apps_of(cluster) {
        if find_entry(&app, &name).is_none_or(|known| !is_judgement(known)) {
            update_app_status(context, &app, &view, clusters).await?;
        }
    }
    Ok(())
}

/// The entry of a cluster in the status of an app.
fn find_entry<'a>(app: &'a RealtimeApp, cluster: &str) -> Option<&'a AppClusterStatus> {
    app.status.as_ref()?.clusters.iter().find(|known| known.name == cluster)
}

/// Whether an entry says that the cluster accepts or refuses the app, not that the cluster or the operator failed.
fn is_judgement(entry: &AppClusterStatus) -> bool {
    let reason = Reason::by_name(&entry.reason);
    reason.is_some_and(|reason| {
        matches!(
            reason,
            Reason::AppAccepted
                | Reason::AppInvalid
                | Reason::KeyConflict
                | Reason::CredentialsNotOurs
                | Reason::EndpointNotAllowed
        )
    })
}

/// Reports `NoCluster` on every app in whose namespace there is no cluster, until `work` is dropped.
pub async fn report_unselected_apps(context: &ControllerContext, clusters: &Store<RealtimeCluster>) {
    loop {
        tokio::time::sleep(UNSELECTED_CHECK_INTERVAL).await;
        let selecting: HashSet<String> = clusters.state().iter().filter_map(|cluster| cluster.namespace()).collect();
        let is_unselected = |app: &RealtimeApp| {
            let namespace = app.namespace().unwrap_or_default();
            !selecting.contains(&namespace)
                // A missing cluster says nothing before clusters are listed.
                && context.live.clusters.covers(&namespace)
                // A cluster that this version cannot read may serve the app.
                && context.unreadable.names_of::<RealtimeCluster>(&namespace).is_empty()
        };
        for app in context.live.apps.find_all(is_unselected) {
            let status = build_status(&app, vec![], vec![], Timestamp::now());
            if app.status.as_ref() == Some(&status) {
                continue;
            }
            if let Err(error) = write_status(context, &app, status).await {
                tracing::warn!(app = app.name_any(), %error, "status of an app without a cluster not written");
                break;
            }
            tokio::time::sleep(STATUS_WRITE_INTERVAL).await;
        }
    }
}

/// Builds the status of an app from the entries of its clusters and its endpoints.
fn build_status(
    app: &RealtimeApp,
    clusters: Vec<AppClusterStatus>,
    endpoints: Vec<AppEndpointStatus>,
    now: Timestamp,
) -> RealtimeAppStatus {
    let known = app.status.iter().flat_map(|status| &status.conditions);
    let build = |(kind, (status, reason, message)): (&str, (&str, String, String))| {
        let before = known.clone().find(|before| before.type_ == kind);
        let time = before.filter(|before| before.status == status).map(|before| before.last_transition_time.clone());
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason,
            message,
            observed_generation: app.metadata.generation,
            last_transition_time: time.unwrap_or(Time(now)),
        }
    };
    let accepted = assess_acceptance(&clusters);
    let ready = if accepted.0 == "True" { assess_loading(&clusters) } else { accepted.clone() };
    let conditions = [(condition::ACCEPTED, accepted), (condition::READY, ready)].map(build).into();
    RealtimeAppStatus { observed_generation: app.metadata.generation.unwrap_or(-1), conditions, clusters, endpoints }
}

/// Whether every cluster accepts the app, with reason and message.
fn assess_acceptance(clusters: &[AppClusterStatus]) -> (&'static str, String, String) {
    let served = || ("True", Reason::AppAccepted.to_string(), "the app is served".to_owned());
    if clusters.is_empty() {
        let message = "no RealtimeCluster in this namespace serves the app: create one, or delete the app";
        return ("False", Reason::NoCluster.to_string(), message.to_owned());
    }
    let refusing: Vec<&AppClusterStatus> = clusters.iter().filter(|entry| !entry.is_accepted()).collect();
    let Some(first) = refusing.iter().find(|entry| is_judgement(entry)).or(refusing.first()) else { return served() };
    let status = if is_judgement(first) { "False" } else { "Unknown" };
    let describe = |entry: &&AppClusterStatus| match clusters.len() {
        1 => entry.message.clone(),
        _ => format!("cluster {}: {}", entry.name, entry.message),
    };
    (status, first.reason.clone(), refusing.iter().map(describe).collect::<Vec<_>>().join("; "))
}

/// Whether every wanted pod of every cluster has loaded the app, with reason and message.
fn assess_loading(clusters: &[AppClusterStatus]) -> (&'static str, String, String) {
    let lagging: Vec<String> = clusters
        .iter()
        .filter(|entry| !entry.is_loaded())
        .map(|entry| format!("cluster {}: {} pods have loaded the app", entry.name, entry.loaded))
        .collect();
    if lagging.is_empty() {
        return ("True", Reason::AppAccepted.to_string(), "the app is served".to_owned());
    }
    ("False", Reason::AppsStale.to_string(), lagging.join("; "))
}

/// Writes a status if it changed. Returns whether the app has it now: an app that changed since it was read gets its
/// status from a later reconcile.
async fn write_status(
    context: &ControllerContext,
    app: &RealtimeApp,
    status: RealtimeAppStatus,
) -> Result<bool, ReconcileError> {
    if app.status.as_ref() == Some(&status) {
        return Ok(true);
    }
    context.ensure_leader()?;
    match apply_status(context, app, FIELD_MANAGER, &status).await {
        Ok(()) => Ok(true),
        // Another cluster may have written its own entry meanwhile.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(false),
        Err(error) => Err(ReconcileError::from_call("writing an app's status", &error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::fixture::applied_cluster;

    fn app(status: Option<RealtimeAppStatus>) -> RealtimeApp {
        let app = json!({
            "apiVersion": "realtime-operator.dev/v1alpha1", "kind": "RealtimeApp",
            "metadata": { "name": "shop", "namespace": "channels", "generation": 3 },
            "spec": { "appID": "1" },
        });
        RealtimeApp { status, ..serde_json::from_value(app).expect("an app") }
    }

    fn entry(name: &str, loaded: &str, reason: Reason, message: &str) -> AppClusterStatus {
        AppClusterStatus {
            name: name.to_owned(),
            loaded: loaded.to_owned(),
            reason: reason.to_string(),
            message: message.to_owned(),
        }
    }

    fn conditions(entries: &[AppClusterStatus]) -> Vec<String> {
        let status = build_status(&app(None), entries.to_vec(), vec![], Timestamp::UNIX_EPOCH);
        assert_eq!(status.observed_generation, 3);
        let line = |found: &Condition| format!("{}={} {}: {}", found.type_, found.status, found.reason, found.message);
        status.conditions.iter().map(line).collect()
    }

    #[test]
    fn conditions_follow_from_the_entries_of_all_clusters() {
        let served = |name| entry(name, "2/2", Reason::AppAccepted, "");
        let refused = entry("us", "2/2", Reason::EndpointNotAllowed, "spec.webhooks[0].url gets no webhook");
        let refused_too = refused.clone();
        let unrendered = entry("ap", "", Reason::SecretMissing, "no Secret");
        let none = "NoCluster: no RealtimeCluster in this namespace serves the app: create one, or delete the app";
        for (case, entries, accepted, ready) in [
            ("no cluster", vec![], format!("False {none}"), format!("False {none}")),
            (
                "two clusters",
                vec![served("eu"), served("us")],
                "True AppAccepted: the app is served".to_owned(),
                "True AppAccepted: the app is served".to_owned(),
            ),
            (
                "one cluster that loads",
                vec![served("eu"), entry("us", "1/2", Reason::AppAccepted, "")],
                "True AppAccepted: the app is served".to_owned(),
                "False AppsStale: cluster us: 1/2 pods have loaded the app".to_owned(),
            ),
            (
                "the only cluster refuses",
                vec![refused.clone()],
                "False EndpointNotAllowed: spec.webhooks[0].url gets no webhook".to_owned(),
                "False EndpointNotAllowed: spec.webhooks[0].url gets no webhook".to_owned(),
            ),
            (
                "one of two clusters refuses",
                vec![served("eu"), refused],
                "False EndpointNotAllowed: cluster us: spec.webhooks[0].url gets no webhook".to_owned(),
                "False EndpointNotAllowed: cluster us: spec.webhooks[0].url gets no webhook".to_owned(),
            ),
            (
                "the only cluster is not rendered",
                vec![unrendered.clone()],
                "Unknown SecretMissing: no Secret".to_owned(),
                "Unknown SecretMissing: no Secret".to_owned(),
            ),
            (
                "one cluster is not rendered, and another one refuses",
                vec![unrendered, refused_too],
                "False EndpointNotAllowed: cluster ap: no Secret; cluster us: spec.webhooks[0].url gets no webhook"
                    .to_owned(),
                "False EndpointNotAllowed: cluster ap: no Secret; cluster us: spec.webhooks[0].url gets no webhook"
                    .to_owned(),
            ),
        ] {
            let expected = [format!("Accepted={accepted}"), format!("Ready={ready}")];
            assert_eq!(conditions(&entries), expected, "{case}");
        }
    }

    #[test]
    fn a_complete_count_stays_until_a_pod_lags_or_the_app_changes() {
        let cluster = applied_cluster("");
        let name = cluster.name_any();
        let loaded =
            build_status(&app(None), vec![entry(&name, "2/2", Reason::AppAccepted, "")], vec![], Timestamp::now());
        let count = |app: &RealtimeApp, cluster: &RealtimeCluster, pods: [usize; 3]| {
            let [loaded, lagging, wanted] = pods;
            let pods = LoadedPods { loaded, lagging, wanted };
            ClusterView { cluster, refused: None, pods, endpoints: None }.entry(app).loaded
        };
        assert_eq!(count(&app(None), &cluster, [1, 0, 2]), "1/2", "the first count");
        assert_eq!(count(&app(None), &cluster, [3, 0, 2]), "2/2", "a pod more than wanted");
        let known = app(Some(loaded));
        assert_eq!(count(&known, &cluster, [1, 0, 3]), "2/2", "a pod that starts");
        assert_eq!(count(&known, &cluster, [1, 1, 2]), "1/2", "a pod that lags");
        let mut edited = known.clone();
        edited.metadata.generation = Some(4);
        assert_eq!(count(&edited, &cluster, [1, 0, 2]), "1/2", "an edited app");
        let mut recreated = cluster.clone();
        recreated.metadata.creation_timestamp = Some(Time(Timestamp::now() + Duration::from_mins(1)));
        assert_eq!(count(&known, &recreated, [0, 0, 2]), "0/2", "the entry is of a former cluster");
    }

    #[test]
    fn pods_are_counted_by_the_registry_that_they_report() {
        let digests = |digest: &str| BTreeMap::from([(AppId::from("1"), digest.to_owned())]);
        let mut history = RegistryHistory::default();
        history.record(digests("a"), 1);
        let standing = |history: &RegistryHistory, digest: &str| PodStanding {
            registry: Some(history.compare(&digests(digest))),
            ..PodStanding::default()
        };
        let before = standing(&history, "a");
        let count = |history: &RegistryHistory, standings: &[PodStanding]| {
            let named = standings.iter().enumerate().map(|(index, standing)| (index.to_string(), standing.clone()));
            LoadedPods::count(&AppId::from("1"), &named.collect(), history, 2)
        };
        let both = count(&history, &[before.clone(), before.clone()]);
        assert_eq!((both.loaded, both.lagging), (2, 0));
        history.record(digests("b"), 2);
        let unknown = count(&history, &[before.clone(), PodStanding::default()]);
        assert_eq!((unknown.loaded, unknown.lagging), (0, 0), "they were observed before the change");
        let one = count(&history, &[standing(&history, "a"), standing(&history, "b")]);
        assert_eq!((one.loaded, one.lagging), (1, 1));
    }
}
