//! Applies, reads, repairs and prunes objects, and touches only objects of the given owner.

use std::sync::Arc;

use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use kube::{Client, ResourceExt};
use serde_json::Value;

/// Field manager of all applied fields.
pub const FIELD_MANAGER: &str = "realtime-operator";

/// The text of the API server for a path that it does not know.
const UNKNOWN_PATH_MESSAGE: &str = "404 page not found";

/// An error of reading, applying or deleting an object.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// An object of that name belongs to another owner.
    #[error(
        "{kind} {namespace}/{name} already exists and is not ours ({owner}): it was not changed. Rename or delete it, or give the cluster another name"
    )]
    NotOurs {
        /// Kind of the object.
        kind: String,
        /// Namespace of the object.
        namespace: String,
        /// Name of the object.
        name: String,
        /// The owner, as a clause for the message.
        owner: String,
    },
    /// The value has no kind, namespace or name, or an invalid API version.
    #[error("{0} is no object that can be applied")]
    Malformed(String),
    /// The API server does not serve the kind.
    #[error("{operation}: the API server does not serve this kind; install its custom resource definitions")]
    Unserved {
        /// The call, e.g. `reading HTTPRoute n/eu-sockjs`.
        operation: String,
    },
    /// The API server refused the call or did not answer.
    #[error("{operation}: {error}")]
    Api {
        /// The call, e.g. `applying Service n/eu-sockjs`.
        operation: String,
        /// Error of the client or the API server.
        error: Box<kube::Error>,
    },
}

impl ApplyError {
    fn from_call(operation: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let operation = operation.into();
        move |error| {
            if is_unserved(&error) {
                Self::Unserved { operation }
            } else {
                Self::Api { operation, error: Box::new(error) }
            }
        }
    }

    /// Whether the API server refused the call, so that a retry alone cannot succeed.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        match self {
            Self::NotOurs { .. } | Self::Malformed(_) => true,
            // Its definitions may be installed later.
            Self::Unserved { .. } => false,
            Self::Api { error, .. } => {
                matches!(&**error, kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422))
            }
        }
    }
}

impl ApplyError {
    /// Whether the API server lacks the kind, refuses the object, or denies the call.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Unserved { .. } => true,
            Self::Api { error, .. } => {
                matches!(&**error, kube::Error::Api(status) if matches!(status.code, 400 | 403 | 404 | 422))
            }
            Self::NotOurs { .. } | Self::Malformed(_) => false,
        }
    }
}

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

/// Whether a path is unknown to the API server, which answers with a text then and not with a status of its own.
fn is_unserved(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 && status.message.trim() == UNKNOWN_PATH_MESSAGE)
}

/// Reads the live object; `None` when it does not exist.
///
/// # Errors
/// The object belongs to another owner, or the API server does not answer.
pub async fn fetch_owned(client: &Client, object: &Value, owner: &str) -> Result<Option<DynamicObject>, ApplyError> {
    let handle = ObjectHandle::from_json(client, object)?;
    let operation = format!("reading {} {}/{}", handle.kind, handle.namespace, handle.name);
    let found = handle.api.get_opt(&handle.name).await.map_err(ApplyError::from_call(operation))?;
    if let Some(found) = &found {
        ensure_owned(found, owner)?;
    }
    Ok(found)
}

/// Reads an object, whoever owns it; `None` when it does not exist.
///
/// # Errors
/// The API server lacks the kind, refuses the call, or does not answer.
pub async fn fetch_object(client: &Client, object: &Value) -> Result<Option<DynamicObject>, ApplyError> {
    let handle = ObjectHandle::from_json(client, object)?;
    let operation = format!("reading {} {}/{}", handle.kind, handle.namespace, handle.name);
    handle.api.get_opt(&handle.name).await.map_err(ApplyError::from_call(operation))
}

/// Checks that a live object belongs to this owner.
///
/// # Errors
/// It belongs to another owner.
pub fn ensure_owned(live: &DynamicObject, owner: &str) -> Result<(), ApplyError> {
    if is_owned_by(live, owner) {
        return Ok(());
    }
    Err(ApplyError::NotOurs {
        owner: describe_owner(live),
        kind: live.types.as_ref().map_or_else(|| "object".to_owned(), |types| types.kind.clone()),
        namespace: live.namespace().unwrap_or_default(),
        name: live.name_any(),
    })
}

/// Applies one object by server-side apply. An existing object must have been checked by [`fetch_owned`] first, since the
/// apply takes over every conflicting field.
///
/// # Errors
/// The API server refuses the object or does not answer.
pub async fn apply_object(client: &Client, object: &Value) -> Result<DynamicObject, ApplyError> {
    let handle = ObjectHandle::from_json(client, object)?;
    let operation = format!("applying {} {}/{}", handle.kind, handle.namespace, handle.name);
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    handle.api.patch(&handle.name, &parameters, &Patch::Apply(object)).await.map_err(ApplyError::from_call(operation))
}

/// Repairs an object by the operations of a JSON patch, which holds only for the version that was read.
///
/// # Errors
/// The object changed since it was read, or the API server does not answer.
pub async fn repair_object(client: &Client, object: &DynamicObject, repairs: &[Value]) -> Result<(), ApplyError> {
    let value = serde_json::to_value(object).map_err(|error| ApplyError::Malformed(error.to_string()))?;
    let handle = ObjectHandle::from_json(client, &value)?;
    let version = object.resource_version().unwrap_or_default();
    let mut operations =
        vec![serde_json::json!({ "op": "test", "path": "/metadata/resourceVersion", "value": version })];
    operations.extend_from_slice(repairs);
    let operations: json_patch::Patch =
        serde_json::from_value(operations.into()).map_err(|error| ApplyError::Malformed(error.to_string()))?;
    let operation = format!("repairing {} {}/{}", handle.kind, handle.namespace, handle.name);
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let patched = handle.api.patch(&handle.name, &parameters, &Patch::Json::<()>(operations)).await;
    patched.map(|_| ()).map_err(ApplyError::from_call(operation))
}

/// A live child, with its API version and kind.
pub type LiveChild = ((&'static str, &'static str), Arc<DynamicObject>);

/// Finds the live children that belong to `owner` and are not among the wanted objects.
pub fn find_superfluous<'a>(
    children: &'a [LiveChild],
    owner: &'a str,
    wanted: &'a [Value],
) -> impl Iterator<Item = &'a LiveChild> {
    children.iter().filter(move |((_, kind), object)| {
        let name = object.name_any();
        let keep = wanted.iter().any(|wanted| {
            wanted["kind"] == *kind && wanted.pointer("/metadata/name").and_then(Value::as_str) == Some(&name)
        });
        !keep && is_owned_by(&**object, owner) && object.metadata.deletion_timestamp.is_none()
    })
}

/// Deletes the superfluous ones of the live children; returns their names.
///
/// # Errors
/// The API server does not answer.
pub async fn prune_children(
    client: &Client,
    children: &[LiveChild],
    owner: &str,
    wanted: &[Value],
) -> Result<Vec<String>, ApplyError> {
    let mut pruned = Vec::new();
    for ((version, kind), object) in find_superfluous(children, owner, wanted) {
        let name = object.name_any();
        let types = TypeMeta { api_version: (*version).to_owned(), kind: (*kind).to_owned() };
        let gvk = GroupVersionKind::try_from(&types).map_err(|_| ApplyError::Malformed((*kind).to_owned()))?;
        let namespace = object.namespace().unwrap_or_default();
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &ApiResource::from_gvk(&gvk));
        let preconditions = Preconditions { uid: object.uid(), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(&name, &parameters).await {
            Ok(_) => pruned.push(format!("{kind} {name}")),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => return Err(ApplyError::from_call(format!("deleting {kind} {name}"))(error)),
        }
    }
    Ok(pruned)
}

/// Whether the owner with this UID is among the owners of a live object.
pub fn is_owned_by<K: ResourceExt>(live: &K, uid: &str) -> bool {
    live.owner_references().iter().any(|owner| owner.uid == uid)
}

fn describe_owner(object: &DynamicObject) -> String {
    match object.owner_references().iter().find(|owner| owner.controller == Some(true)) {
        Some(owner) => format!("it belongs to {} {}", owner.kind, owner.name),
        None => "it has no owner".to_owned(),
    }
}
