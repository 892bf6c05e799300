//! Puts objects where they should be, and takes away those that should not be there any more: only what is ours.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use kube::{Client, ResourceExt};
use serde_json::Value;

/// The field manager of everything that is applied.
pub const FIELD_MANAGER: &str = "realtime-operator";

/// Why an object is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Something of that name is there and belongs to someone else.
    #[error(
        "{kind} {namespace}/{name} already exists and is not ours ({owner}): it was not changed. Rename or delete it, or give the cluster another name"
    )]
    NotOurs {
        /// Its kind.
        kind: String,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Whose it is.
        owner: String,
    },
    /// What was to be applied is no object.
    #[error("{0} is no object that can be applied")]
    Malformed(String),
    /// The API server said no, or nothing.
    #[error("{what}: {error}")]
    Api {
        /// The call.
        what: String,
        /// Its answer.
        error: Box<kube::Error>,
    },
}

impl ApplyError {
    fn from_call(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |error| Self::Api { what, error: Box::new(error) }
    }

    /// Whether the API server refused what was asked, so that asking again changes nothing by itself.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        match self {
            Self::NotOurs { .. } | Self::Malformed(_) => true,
            Self::Api { error, .. } => {
                matches!(&**error, kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422))
            }
        }
    }
}

/// An object's place.
struct ObjectHandle {
    api: Api<DynamicObject>,
    kind: String,
    namespace: String,
    name: String,
}

impl ObjectHandle {
    fn from_json(client: &Client, object: &Value) -> Result<Self, ApplyError> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (text("/apiVersion"), text("/kind"));
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let types = TypeMeta { api_version: version, kind: kind.clone() };
        let gvk = GroupVersionKind::try_from(&types).map_err(|_| ApplyError::Malformed(format!("{kind} {name}")))?;
        if kind.is_empty() || namespace.is_empty() || name.is_empty() {
            return Err(ApplyError::Malformed(format!("{kind} {namespace}/{name}")));
        }
        let resource = ApiResource::from_gvk(&gvk);
        let api = Api::namespaced_with(client.clone(), &namespace, &resource);
        Ok(Self { api, kind, namespace, name })
    }
}

/// The object as it is, if it is there and ours.
///
/// # Errors
/// It is someone else's, or the API server does not answer.
pub async fn fetch_owned(client: &Client, object: &Value, owner: &str) -> Result<Option<DynamicObject>, ApplyError> {
    let place = ObjectHandle::from_json(client, object)?;
    let what = format!("reading {} {}/{}", place.kind, place.namespace, place.name);
    let found = place.api.get_opt(&place.name).await.map_err(ApplyError::from_call(what))?;
    match found {
        Some(found) if !is_owned_by(found.owner_references(), owner) => Err(ApplyError::NotOurs {
            owner: describe_owner(&found),
            kind: place.kind,
            namespace: place.namespace,
            name: place.name,
        }),
        found => Ok(found),
    }
}

/// Applies one object on the server's side. One that is there must be ours already: see [`live`].
///
/// # Errors
/// The API server refused it or does not answer.
pub async fn apply_object(client: &Client, object: &Value) -> Result<DynamicObject, ApplyError> {
    let place = ObjectHandle::from_json(client, object)?;
    let what = format!("applying {} {}/{}", place.kind, place.namespace, place.name);
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    place.api.patch(&place.name, &parameters, &Patch::Apply(object)).await.map_err(ApplyError::from_call(what))
}

/// Takes foreign fields out of an object by a patch that holds only for the version that was looked at.
///
/// # Errors
/// The object changed meanwhile, or the API server does not answer.
pub async fn remove_fields(client: &Client, object: &DynamicObject, paths: &[String]) -> Result<(), ApplyError> {
    let value = serde_json::to_value(object).map_err(|error| ApplyError::Malformed(error.to_string()))?;
    let place = ObjectHandle::from_json(client, &value)?;
    let version = object.resource_version().unwrap_or_default();
    let mut operations =
        vec![serde_json::json!({ "op": "test", "path": "/metadata/resourceVersion", "value": version })];
    operations.extend(paths.iter().map(|path| serde_json::json!({ "op": "remove", "path": path })));
    let operations: json_patch::Patch =
        serde_json::from_value(operations.into()).map_err(|error| ApplyError::Malformed(error.to_string()))?;
    let what = format!("repairing {} {}/{}", place.kind, place.namespace, place.name);
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patched = place.api.patch(&place.name, &parameters, &Patch::Json::<()>(operations)).await;
    patched.map(|_| ()).map_err(ApplyError::from_call(what))
}

/// Deletes children of `owner` with these labels that are not among the wanted objects.
///
/// # Errors
/// The API server does not answer.
pub async fn prune_children(
    client: &Client,
    (namespace, labels, owner): (&str, &str, &str),
    kinds: &[(&str, &str)],
    wanted: &[Value],
) -> Result<Vec<String>, ApplyError> {
    let mut gone = Vec::new();
    for (version, kind) in kinds {
        let types = TypeMeta { api_version: (*version).to_owned(), kind: (*kind).to_owned() };
        let gvk = GroupVersionKind::try_from(&types).map_err(|_| ApplyError::Malformed((*kind).to_owned()))?;
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &ApiResource::from_gvk(&gvk));
        let found = api.list_metadata(&ListParams::default().labels(labels)).await;
        for object in found.map_err(ApplyError::from_call(format!("listing {kind}s")))? {
            let name = object.name_any();
            let keep = wanted.iter().any(|wanted| {
                wanted["kind"] == *kind && wanted.pointer("/metadata/name").and_then(Value::as_str) == Some(&name)
            });
            if keep || !is_owned_by(object.owner_references(), owner) || object.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let preconditions = Preconditions { uid: object.uid(), resource_version: None };
            let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            match api.delete(&name, &parameters).await {
                Ok(_) => gone.push(format!("{kind} {name}")),
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
                Err(error) => return Err(ApplyError::from_call(format!("deleting {kind} {name}"))(error)),
            }
        }
    }
    Ok(gone)
}

fn is_owned_by(owners: &[OwnerReference], uid: &str) -> bool {
    owners.iter().any(|owner| owner.uid == uid)
}

fn describe_owner(object: &DynamicObject) -> String {
    match object.owner_references().iter().find(|owner| owner.controller == Some(true)) {
        Some(owner) => format!("it belongs to {} {}", owner.kind, owner.name),
        None => "nobody's".to_owned(),
    }
}
