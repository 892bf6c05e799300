//! Reads the live cluster that a manifest would change: its objects, and all that it is rendered from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};
use serde_json::Value;

use super::report::ObjectKey;
use crate::api::{RealtimeApp, RealtimeCluster};
use crate::cli::cluster_api::describe_error;
use crate::cli::files::InputManifests;
use crate::desired::render::{CHILD_TABLE, find_optional_kind, is_pruned, pod_labels};
use crate::desired::{self, ServerImage};
use crate::kubernetes::apply::{self, ApplyError, is_owned_by};
use crate::operator::{ClusterReferences, generated_secret_name};

/// The live cluster, and the cluster as it is after the apply of a manifest.
pub struct LiveCluster {
    /// The cluster as it is; `None` if it does not exist.
    pub live: Option<RealtimeCluster>,
    /// The cluster after the apply.
    pub wanted: RealtimeCluster,
    /// The apps of the manifest after the apply, each with the live one.
    pub apps: Vec<(RealtimeApp, Option<RealtimeApp>)>,
    /// The objects that the cluster is rendered from after the apply.
    pub references: ClusterReferences,
}

/// Reads the live cluster.
///
/// # Errors
/// The API server does not answer or refuses a read; the line says which.
pub async fn read_live_cluster(client: &Client, input: InputManifests) -> Result<LiveCluster, String> {
    let namespace = input.namespace().to_owned();
    let clusters: Api<RealtimeCluster> = Api::namespaced(client.clone(), &namespace);
    let name = input.cluster.name_any();
    let live =
        clusters.get_opt(&name).await.map_err(explain(&format!("reading RealtimeCluster {namespace}/{name}")))?;
    let mut wanted = input.cluster;
    wanted.metadata.namespace = Some(namespace.clone());
    if let Some(live) = &live {
        let metadata = std::mem::replace(&mut wanted.metadata, live.metadata.clone());
        overlay_metadata(&mut wanted, metadata);
        wanted.status.clone_from(&live.status);
    }
    let (apps, all) = read_apps(client, &namespace, input.apps).await?;
    let references = read_references(client, &namespace, &wanted, all, input.secrets).await?;
    Ok(LiveCluster { live, wanted, apps, references })
}

fn explain(call: &str) -> impl Fn(kube::Error) -> String {
    let call = call.to_owned();
    move |error| format!("{call}: {}", describe_error(&error))
}

/// Labels and annotations of a manifest are added to the live ones, as an apply does.
fn overlay_metadata<K: ResourceExt>(object: &mut K, of_manifest: kube::core::ObjectMeta) {
    object.labels_mut().extend(of_manifest.labels.unwrap_or_default());
    object.annotations_mut().extend(of_manifest.annotations.unwrap_or_default());
}

type AppPairs = Vec<(RealtimeApp, Option<RealtimeApp>)>;

/// The apps of the manifest with the live ones, and all apps of the namespace after the apply, the oldest first.
async fn read_apps(
    client: &Client,
    namespace: &str,
    of_manifest: Vec<RealtimeApp>,
) -> Result<(AppPairs, Vec<RealtimeApp>), String> {
    let api: Api<RealtimeApp> = Api::namespaced(client.clone(), namespace);
    let listed = api.list(&ListParams::default()).await;
    let mut all = listed.map_err(explain(&format!("listing RealtimeApps of {namespace}")))?.items;
    all.sort_by_cached_key(|app| (app.metadata.creation_timestamp.clone(), app.name_any()));
    let mut pairs = Vec::new();
    for mut app in of_manifest {
        app.metadata.namespace = Some(namespace.to_owned());
        let place = all.iter().position(|found| found.name_any() == app.name_any());
        let live = place.map(|place| all[place].clone());
        if let Some(live) = &live {
            let metadata = std::mem::replace(&mut app.metadata, live.metadata.clone());
            overlay_metadata(&mut app, metadata);
            app.status.clone_from(&live.status);
        }
        match place {
            Some(place) => all[place] = app.clone(),
            None => all.push(app.clone()),
        }
        pairs.push((app, live));
    }
    Ok((pairs, all))
}

/// Reads the Secrets that the operator would read. Those of the files count first.
async fn read_references(
    client: &Client,
    namespace: &str,
    cluster: &RealtimeCluster,
    apps: Vec<RealtimeApp>,
    of_files: desired::SecretTexts,
) -> Result<ClusterReferences, String> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut secrets: BTreeMap<String, Arc<Secret>> = BTreeMap::new();
    let referenced = desired::collect_secret_references(cluster, &apps).into_iter().map(|reference| reference.name);
    let with_headers = apps.iter().flat_map(desired::header_secret_names).map(str::to_owned);
    let names: BTreeSet<String> = referenced.chain(with_headers).collect();
    for name in names {
        if let Some(texts) = of_files.get(&name) {
            let data = texts.iter().map(|(key, text)| (key.clone(), ByteString(text.clone().into_bytes())));
            secrets.insert(name, Arc::new(Secret { data: Some(data.collect()), ..Secret::default() }));
        } else if let Some(secret) = read_secret(&api, &name).await? {
            secrets.insert(name, secret);
        }
    }
    let mut of_apps = BTreeMap::new();
    for app in apps.iter().filter(|app| app.spec.credentials.is_empty()) {
        let name = desired::app_credentials_name(app);
        if let Some(secret) = read_secret(&api, &name).await? {
            of_apps.insert(name, secret);
        }
    }
    let status = cluster.status.as_ref();
    let recorded = status.and_then(|status| ServerImage::of_record(status.image.as_ref()?, status.version.as_ref()?));
    Ok(ClusterReferences {
        apps: apps.into_iter().map(Arc::new).collect(),
        secrets,
        of_apps,
        generated: read_secret(&api, &generated_secret_name(cluster)).await?,
        recorded_image: recorded,
    })
}

async fn read_secret(api: &Api<Secret>, name: &str) -> Result<Option<Arc<Secret>>, String> {
    let found = api.get_opt(name).await.map_err(explain(&format!("reading Secret {name}")))?;
    Ok(found.map(Arc::new))
}

/// Reads the live object of each rendered one. Returns the rendered objects of the kinds that the API server serves, since the
/// operator cannot create others, and the live ones.
///
/// # Errors
/// The API server does not answer or refuses a read.
pub async fn read_live_objects(
    client: &Client,
    rendered: &[Value],
) -> Result<(Vec<Value>, BTreeMap<ObjectKey, Value>), String> {
    let (mut served, mut live, mut lacking) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
    for object in rendered {
        let found = match apply::fetch_object(client, object).await {
            Ok(found) => found,
            Err(ApplyError::Unserved { .. }) if is_optional(object) => {
                let version = version_of(object);
                if lacking.insert(version.clone()) {
                    eprintln!("realtime: note: the API server does not serve {version}: its objects are left out");
                }
                continue;
            }
            Err(error) => return Err(error.to_string()),
        };
        if let Some(found) = found {
            let mut value = serde_json::to_value(found).map_err(|error| error.to_string())?;
            // Without its kind the key would not be that of the rendered object.
            value["kind"] = object["kind"].clone();
            live.insert(ObjectKey::of(object), value);
        }
        served.push(object.clone());
    }
    Ok((served, live))
}

fn version_of(object: &Value) -> String {
    object["apiVersion"].as_str().unwrap_or_default().to_owned()
}

fn is_optional(object: &Value) -> bool {
    object["kind"].as_str().and_then(find_optional_kind).is_some()
}

/// Lists the live children that are not among the rendered ones.
///
/// # Errors
/// The API server does not answer or refuses to list.
pub async fn list_pruned(
    client: &Client,
    cluster: &RealtimeCluster,
    wanted: &[Value],
) -> Result<Vec<ObjectKey>, String> {
    let (namespace, uid) = (cluster.namespace().unwrap_or_default(), cluster.uid().unwrap_or_default());
    let rendered: BTreeSet<ObjectKey> = wanted.iter().map(ObjectKey::of).collect();
    let key = |kind: &str, name: &str| ObjectKey {
        kind: kind.to_owned(),
        namespace: namespace.clone(),
        name: name.to_owned(),
    };
    let mut pruned = Vec::new();
    for row in CHILD_TABLE.iter().filter(|row| is_pruned(row.kind)) {
        let (group, version) = row.api_version.split_once('/').unwrap_or(("", row.api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, row.kind));
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource);
        let listed = api.list(&ListParams::default().labels(&pod_labels(&cluster.name_any()))).await;
        let listed = listed.map_err(explain(&format!("listing {} of {namespace}", row.kind)))?;
        let owned = listed.items.iter().filter(|found| is_owned_by(*found, &uid));
        pruned.extend(owned.map(|found| key(row.kind, &found.name_any())));
    }
    let recorded = cluster.status.as_ref().map(|status| status.optional_children.as_slice()).unwrap_or_default();
    pruned.extend(recorded.iter().filter_map(|child| child.split_once(' ')).map(|(kind, name)| key(kind, name)));
    pruned.retain(|key| !rendered.contains(key));
    Ok(pruned)
}
