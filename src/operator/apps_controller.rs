//! The controller of the registry: writes the apps of a cluster into its 16 Secrets, pushes them to the pods, and tells
//! each app whether it is served; owns `AppsSynced`.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::controller::Action;
use serde_json::{Map, json};
use sha2::{Digest, Sha256};

use super::context::{ControllerContext, ReconcileError, SharedContext};
use super::dereference;
use super::status::{self, ConditionUpdate, StatusPatch};
use crate::api::conditions::condition;
use crate::api::{API_GROUP, RealtimeApp, RealtimeCluster, Reason};
use crate::desired::render::REGISTRY_ANNOTATION;
use crate::desired::{self, RefusedApp, ValidCluster};
use crate::kubernetes::apply;

/// Between two looks at what nobody has changed.
const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
/// Between two looks while something is waited for.
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Between two pushes to pods: 20 a second.
const PUSH_INTERVAL: Duration = Duration::from_millis(50);

/// One turn.
///
/// # Errors
/// What keeps the registry from being written; it stands in the status too.
pub async fn reconcile(context: &SharedContext, cluster: &RealtimeCluster) -> Result<Action, ReconcileError> {
    if cluster.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let result = reconcile_registry(context, cluster).await;
    let said = match &result {
        Ok(Some(message)) => ConditionUpdate::new(condition::APPS_SYNCED, "True", Reason::Applied, message),
        Ok(None) => {
            ConditionUpdate::new(condition::APPS_SYNCED, "False", Reason::AppsStale, "waiting for what apps need")
        }
        Err(stop) => ConditionUpdate::new(condition::APPS_SYNCED, "False", stop.reason, &stop.message),
    };
    let wait = if said.status == "True" { RESYNC_INTERVAL } else { RECHECK_INTERVAL };
    let manager = "realtime-operator-apps";
    let part = StatusPatch {
        manager,
        owned_conditions: &[condition::APPS_SYNCED],
        conditions: vec![said],
        fields: Map::new(),
    };
    status::write(context, cluster, part).await?;
    result.map(|_| Action::requeue(wait))
}

/// `None` while the Secret of generated values does not exist: another controller makes it.
async fn reconcile_registry(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
) -> Result<Option<String>, ReconcileError> {
    let read = dereference::read(context, cluster, true).await?;
    if read.generated.is_empty() {
        return Ok(None);
    }
    let (valid, made) = dereference::validate(context, cluster, &read)?;
    // What every cluster needs is made by another controller; made here too, there would be two of it.
    if made.keys().any(|purpose| !purpose.starts_with("app-")) {
        return Ok(None);
    }
    if !made.is_empty() {
        context.ensure_leader()?;
        store_generated_credentials(context, cluster, &made).await?;
    }
    let digest = write_registry_secrets(context, cluster, &valid).await?;
    let pods = push_registry_digest(context, cluster, &digest).await?;
    for app in &read.apps {
        update_app_status(context, app, valid.refused.iter().find(|refused| refused.name == app.name_any())).await?;
    }
    let served = valid.registry.apps().count().saturating_sub(1);
    let refused = valid.refused.len();
    let aside = if refused == 0 { String::new() } else { format!(", {refused} refused: see their conditions") };
    Ok(Some(format!("{served} apps in {pods} pods{aside}")))
}

/// Adds generated credentials of apps to what is kept.
async fn store_generated_credentials(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    made: &BTreeMap<String, String>,
) -> Result<(), ReconcileError> {
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let name = dereference::generated_secret_name(cluster);
    let patch = Patch::Merge(json!({ "stringData": made }));
    let patched = secrets.patch(&name, &PatchParams::default(), &patch).await;
    patched.map(|_| ()).map_err(|error| ReconcileError::from_call("keeping generated credentials", &error))
}

/// Writes the Secrets whose content changed; the answer names the whole.
async fn write_registry_secrets(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    valid: &ValidCluster,
) -> Result<String, ReconcileError> {
    let malformed = |error: serde_json::Error| ReconcileError::terminal(Reason::SpecInvalid, error.to_string());
    let uid = cluster.uid().unwrap_or_default();
    let mut hasher = Sha256::new();
    for secret in desired::render::render_registry_secrets(valid).map_err(malformed)? {
        for ByteString(bytes) in secret.data.iter().flatten().map(|(_, bytes)| bytes) {
            hasher.update(bytes);
        }
        let object = serde_json::to_value(&secret).map_err(malformed)?;
        let live = apply::fetch_owned(&context.client, &object, &uid).await?;
        if live.is_some_and(|live| live.data["data"] == object["data"]) {
            continue;
        }
        context.ensure_leader()?;
        apply::apply_object(&context.client, &object).await?;
    }
    Ok(hex::encode(&hasher.finalize()[..8]))
}

/// Names the registry on every pod: a changed annotation makes kubelet look at once, instead of within a minute or two.
async fn push_registry_digest(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    digest: &str,
) -> Result<usize, ReconcileError> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let labels = desired::render::pod_labels(&cluster.name_any());
    let listed = pods.list(&ListParams::default().labels(&labels)).await;
    let listed = listed.map_err(|error| ReconcileError::from_call("listing pods", &error))?;
    let count = listed.items.len();
    let stale = |pod: &Pod| pod.annotations().get(REGISTRY_ANNOTATION).is_none_or(|known| known != digest);
    for pod in listed.items.iter().filter(|pod| stale(pod)) {
        context.ensure_leader()?;
        let patch = Patch::Merge(json!({ "metadata": { "annotations": { REGISTRY_ANNOTATION: digest } } }));
        match pods.patch(&pod.name_any(), &PatchParams::default(), &patch).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(ReconcileError::from_call("pushing the registry", &error)),
        }
        tokio::time::sleep(PUSH_INTERVAL).await;
    }
    Ok(count)
}

/// Tells an app whether it is served.
async fn update_app_status(
    context: &ControllerContext,
    app: &RealtimeApp,
    refused: Option<&RefusedApp>,
) -> Result<(), ReconcileError> {
    let (status, reason, message) = match refused {
        None => ("True", Reason::AppAccepted, "the app is served".to_owned()),
        Some(refused) => {
            let told: Vec<String> = refused.problems.iter().map(ToString::to_string).collect();
            let conflict = refused.problems.iter().any(|problem| problem.path == "spec.appID");
            ("False", if conflict { Reason::KeyConflict } else { Reason::AppInvalid }, told.join("; "))
        }
    };
    let known = app.status.clone();
    let mut conditions = Vec::new();
    for kind in [condition::ACCEPTED, condition::READY] {
        let before = known.iter().flat_map(|known| &known.conditions).find(|before| before.type_ == kind);
        let time = before.filter(|before| before.status == status).map(|before| before.last_transition_time.clone());
        conditions.push(Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_string(),
            message: message.clone(),
            observed_generation: app.metadata.generation,
            last_transition_time: time.unwrap_or_else(|| Time(Timestamp::now())),
        });
    }
    let generation = app.metadata.generation.unwrap_or(-1);
    if known.is_some_and(|known| known.conditions == conditions && known.observed_generation == generation) {
        return Ok(());
    }
    context.ensure_leader()?;
    let (name, namespace) = (app.name_any(), app.namespace().unwrap_or_default());
    let body = json!({
        "apiVersion": format!("{API_GROUP}/v1alpha1"),
        "kind": "RealtimeApp",
        "metadata": { "name": name, "namespace": namespace },
        "status": { "observedGeneration": generation, "conditions": conditions },
    });
    let api: Api<RealtimeApp> = Api::namespaced(context.client.clone(), &namespace);
    let parameters = PatchParams::apply("realtime-operator-apps").force();
    match api.patch_status(&name, &parameters, &Patch::Apply(body)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(ReconcileError::from_call("writing an app's status", &error)),
    }
}
