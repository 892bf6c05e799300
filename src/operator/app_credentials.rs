//! Stores the generated credentials of apps: creates one Secret per app, and moves the pairs that the Secret of a cluster
//! still holds. Every pair is stored before it is served, and deleted from one Secret only after another one holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Map, Value, json};

use super::context::ControllerContext;
use super::dereference::{generate_value, generated_secret_name};
use super::reconcile_error::ReconcileError;
use super::rendered_clusters::RenderedCluster;
use super::rendering::render_cluster;
use super::secret_reader::SecretUser;
use crate::api::{RealtimeApp, RealtimeCluster, Reason};
use crate::desired::{self, AppCredentials, CredentialsStep, GeneratedPair};
use crate::kubernetes::apply;
use crate::protocol::{AppKey, Secret as SecretText};

/// Renderings of one reconcile: each after the first one follows a creation of Secrets, which another writer may delete
/// again.
const RENDERINGS_MAX: usize = 4;

/// Secrets that are written or read at once.
const CONCURRENT_CALLS_MAX: usize = 16;

/// A rendered cluster whose apps have stored credentials, except for those that failed.
pub struct StoredCredentials {
    pub rendered: Arc<RenderedCluster>,
    /// The failed creations, by name of the app: such an app is not in the registry.
    pub failures: BTreeMap<String, ReconcileError>,
}

/// Creates the missing Secrets of apps, and renders the cluster with what is stored then. Of two clusters that serve one app,
/// and of two processes, the first one creates the Secret, and the other one reads it.
///
/// # Errors
/// The cluster cannot be rendered, or another writer deletes the Secrets as often as they are created.
pub async fn store_app_credentials(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
) -> Result<StoredCredentials, ReconcileError> {
    let mut failures = BTreeMap::new();
    for _ in 0..RENDERINGS_MAX {
        let rendered = render_cluster(context, cluster).await?;
        let due = list_missing(&rendered, &failures);
        // The values of the cluster itself are stored first.
        if due.is_empty() || !rendered.fresh.is_empty() || cluster.spec.suspend {
            return Ok(StoredCredentials { rendered, failures });
        }
        let create = |(app, pair): (RealtimeApp, Option<GeneratedPair>)| async move {
            let created = create_secret(context, &app, pair).await;
            (app.name_any(), created)
        };
        let created: Vec<_> = stream::iter(due).map(create).buffer_unordered(CONCURRENT_CALLS_MAX).collect().await;
        failures.extend(created.into_iter().filter_map(|(name, created)| Some((name, created.err()?))));
    }
    Err(ReconcileError::transient(
        Reason::ApplyFailed,
        "Secrets with generated credentials of apps are deleted as often as they are created: stop the other writer",
    ))
}

fn list_missing(
    rendered: &RenderedCluster,
    failures: &BTreeMap<String, ReconcileError>,
) -> Vec<(RealtimeApp, Option<GeneratedPair>)> {
    let read = &rendered.read;
    // Kubernetes would delete the Secret of an app that is being deleted.
    let apps = read.apps.iter().filter(|app| app.metadata.deletion_timestamp.is_none());
    let missing = apps.filter_map(|app| {
        let name = app.name_any();
        match read.app_credentials.get(&name)?.step.as_ref()? {
            CredentialsStep::Create(pair) if !failures.contains_key(&name) => Some((app.clone(), pair.clone())),
            _ => None,
        }
    });
    missing.collect()
}

/// Creates the Secret of an app; one that exists already is left alone, and read by the next rendering.
async fn create_secret(
    context: &ControllerContext,
    app: &RealtimeApp,
    pair: Option<GeneratedPair>,
) -> Result<(), ReconcileError> {
    let (namespace, name) = (app.namespace().unwrap_or_default(), desired::app_credentials_name(app));
    let moved = pair.is_some();
    let pair = pair
        .unwrap_or_else(|| GeneratedPair { key: AppKey(generate_value()), secret: SecretText::new(generate_value()) });
    context.ensure_leader()?;
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    let parameters = PostParams { field_manager: Some(apply::FIELD_MANAGER.to_owned()), ..PostParams::default() };
    let created = secrets.create(&parameters, &desired::render_app_credentials(app, &pair)).await;
    context.secrets.forget(&namespace, &name);
    match created {
        Ok(_) => {
            tracing::info!(namespace, secret = name, moved, "credentials of an app stored");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(ReconcileError::from_call(&format!("creating Secret {namespace}/{name}"), &error)),
    }
}

/// Completes the move of credentials after the creation of Secrets: adopts those without an owner, and deletes the moved pairs
/// from the Secret of the cluster.
///
/// # Errors
/// The API server refuses a call or does not answer.
pub async fn settle_app_credentials(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    rendered: &RenderedCluster,
) -> Result<(), ReconcileError> {
    let mut stored_twice = Vec::new();
    for app in &rendered.read.apps {
        let Some(AppCredentials { step, refusal, .. }) = rendered.read.app_credentials.get(&app.name_any()) else {
            continue;
        };
        match step {
            Some(CredentialsStep::Adopt) => adopt_secret(context, app).await?,
            Some(CredentialsStep::RemoveFromCluster) => stored_twice.push(app),
            // Read again at the next reconcile: somebody is about to delete or to correct the Secret.
            Some(CredentialsStep::AwaitDeletion) => forget_secret(context, app),
            None if refusal.is_some() => forget_secret(context, app),
            Some(CredentialsStep::Create(_)) | None => {}
        }
    }
    if stored_twice.is_empty() {
        return Ok(());
    }
    remove_from_cluster(context, cluster, &rendered.read.apps).await
}

fn forget_secret(context: &ControllerContext, app: &RealtimeApp) {
    context.secrets.forget(&app.namespace().unwrap_or_default(), &desired::app_credentials_name(app));
}

/// Reads the Secret of an app from the API server itself.
async fn reread_secret(context: &ControllerContext, app: &RealtimeApp) -> Result<Option<Arc<Secret>>, ReconcileError> {
    forget_secret(context, app);
    let namespace = app.namespace().unwrap_or_default();
    context.secrets.read(&namespace, &desired::app_credentials_name(app), &SecretUser::of(app)).await
}

/// Makes an app the owner of its Secret, in the version that was read.
async fn adopt_secret(context: &ControllerContext, app: &RealtimeApp) -> Result<(), ReconcileError> {
    let Some(secret) = reread_secret(context, app).await? else { return Ok(()) };
    if desired::recall_pairs(app, Some(&secret), None).step != Some(CredentialsStep::Adopt) {
        return Ok(());
    }
    let patch = json!({ "metadata": {
        "resourceVersion": secret.resource_version(),
        "ownerReferences": [desired::app_owner_reference(app)],
    } });
    patch_secret(context, &app.namespace().unwrap_or_default(), &secret.name_any(), patch).await?;
    tracing::info!(secret = secret.name_any(), app = app.name_any(), "Secret without an owner adopted");
    Ok(())
}

/// Deletes from the Secret of a cluster the pairs that Secrets of apps hold too, by what the API server answers now.
async fn remove_from_cluster(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    apps: &[RealtimeApp],
) -> Result<(), ReconcileError> {
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), generated_secret_name(cluster));
    context.secrets.forget(&namespace, &name);
    let Some(live) = context.secrets.read(&namespace, &name, &SecretUser::of(cluster)).await? else { return Ok(()) };
    if !apply::is_owned_by(&*live, &cluster.uid().unwrap_or_default()) {
        return Ok(());
    }
    let known = desired::decode_secret(&live);
    let is_held =
        |app: &&RealtimeApp| desired::cluster_pair_purposes(app).iter().any(|purpose| known.contains_key(purpose));
    let held: Vec<RealtimeApp> =
        apps.iter().filter(|app| app.spec.credentials.is_empty()).filter(is_held).cloned().collect();
    let read = |app: RealtimeApp| async move {
        Ok::<_, ReconcileError>((desired::app_credentials_name(&app), reread_secret(context, &app).await?))
    };
    let secrets: BTreeMap<String, Option<Arc<Secret>>> =
        stream::iter(held.clone()).map(read).buffer_unordered(CONCURRENT_CALLS_MAX).try_collect().await?;
    let find = |name: &str| secrets.get(name)?.as_deref();
    let removable = find_removable_purposes(&held, find, &known);
    if removable.is_empty() {
        return Ok(());
    }
    let data: Map<String, Value> = removable.iter().map(|purpose| (purpose.clone(), Value::Null)).collect();
    let patch = json!({ "metadata": { "resourceVersion": live.resource_version() }, "data": data });
    patch_secret(context, &namespace, &name, patch).await?;
    tracing::info!(namespace, secret = name, values = removable.len(), "credentials of apps deleted: they were moved");
    Ok(())
}

/// Names the generated values of a cluster that Secrets of apps hold too. Apps of one id share a pair, which stays until each
/// of them has a Secret.
fn find_removable_purposes<'a>(
    apps: &[RealtimeApp],
    find: impl Fn(&str) -> Option<&'a Secret>,
    known: &BTreeMap<String, String>,
) -> BTreeSet<String> {
    let (mut removable, mut needed) = (BTreeSet::new(), BTreeSet::new());
    for app in apps {
        let of_cluster = desired::find_cluster_pair(app, known);
        let recalled = desired::recall_pairs(app, find(&desired::app_credentials_name(app)), of_cluster);
        let purposes = desired::cluster_pair_purposes(app);
        match recalled.step {
            Some(CredentialsStep::RemoveFromCluster) => removable.extend(purposes),
            Some(CredentialsStep::Create(_) | CredentialsStep::AwaitDeletion) => needed.extend(purposes),
            _ if recalled.refusal.is_some() => needed.extend(purposes),
            Some(CredentialsStep::Adopt) | None => {}
        }
    }
    &removable - &needed
}

/// Patches a Secret in the version that the patch names.
async fn patch_secret(
    context: &ControllerContext,
    namespace: &str,
    name: &str,
    patch: Value,
) -> Result<(), ReconcileError> {
    context.ensure_leader()?;
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let parameters = PatchParams { field_manager: Some(apply::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patched = secrets.patch(name, &parameters, &Patch::Merge(patch)).await;
    context.secrets.forget(namespace, name);
    patched
        .map(|_| ())
        .map_err(|error| ReconcileError::from_call(&format!("patching Secret {namespace}/{name}"), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str, id: &str) -> RealtimeApp {
        let app = json!({
            "apiVersion": "realtime-operator.dev/v1alpha1", "kind": "RealtimeApp",
            "metadata": { "name": name, "namespace": "channels", "uid": name }, "spec": { "appID": id },
        });
        serde_json::from_value(app).expect("an app")
    }

    #[test]
    fn a_pair_stays_in_the_secret_of_the_cluster_until_each_app_of_its_id_has_an_equal_one() {
        let known: BTreeMap<String, String> = [("app-1-key", "k"), ("app-1-secret", "s"), ("admin-token", "t")]
            .map(|(purpose, text)| (purpose.to_owned(), text.to_owned()))
            .into();
        let pair = |key: &str| GeneratedPair { key: AppKey(key.to_owned()), secret: SecretText::new("s") };
        let (one, twin) = (app("one", "1"), app("twin", "1"));
        let stored = |app: &RealtimeApp, key: &str| desired::render_app_credentials(app, &pair(key));
        let mut foreign = stored(&twin, "k");
        (foreign.metadata.owner_references, foreign.metadata.labels) = (None, None);
        for (case, secrets, removed) in [
            ("none is stored", vec![], 0),
            ("one is stored", vec![stored(&one, "k")], 0),
            ("both are stored", vec![stored(&one, "k"), stored(&twin, "k")], 2),
            ("another one is stored", vec![stored(&one, "x"), stored(&twin, "x")], 0),
            ("the younger one has its own", vec![stored(&one, "k"), stored(&twin, "x")], 2),
            ("a foreign Secret is in the way", vec![stored(&one, "k"), foreign], 0),
        ] {
            let find = |name: &str| secrets.iter().find(|secret| secret.metadata.name.as_deref() == Some(name));
            let found = find_removable_purposes(&[one.clone(), twin.clone()], find, &known);
            assert_eq!(found.len(), removed, "{case}: {found:?}");
            assert!(!found.contains("admin-token"), "{case}");
        }
    }
}
