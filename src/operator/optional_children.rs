//! Applies the children whose kinds the API server may lack, such as `HTTPRoute`. They are not watched: each reconcile reads
//! those that are rendered, and the status records those that were created, so that they can be pruned. A missing kind, a
//! missing permission and a refused object are findings about the entrance, never a failed reconcile.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::context::ControllerContext;
use super::live_difference::needs_apply;
use super::reconcile_error::ReconcileError;
use crate::api::RealtimeCluster;
use crate::desired::render::find_optional_kind;
use crate::kubernetes::apply::{self, ApplyError};

/// The optional children after an apply.
#[derive(Debug, Default)]
pub struct OptionalChildren {
    /// The objects that exist.
    pub live: Vec<DynamicObject>,
    /// The objects that could not be applied, each with the API server's words.
    pub refused: Vec<String>,
}

/// Whether the API server may lack the kind of a rendered object.
pub fn is_optional(object: &Value) -> bool {
    object["kind"].as_str().and_then(find_optional_kind).is_some()
}

/// Names an object: `HTTPRoute eu-websocket`.
pub fn describe_object(object: &Value) -> String {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    format!("{} {}", text("/kind"), text("/metadata/name"))
}

/// The record of optional children with those that are about to be created; `None` if it has them all.
pub fn extend_record(known: &[String], wanted: &[Value]) -> Option<Vec<String>> {
    let known: BTreeSet<String> = known.iter().cloned().collect();
    let mut all = known.clone();
    all.extend(wanted.iter().filter(|object| is_optional(object)).map(describe_object));
    (all != known).then(|| all.into_iter().collect())
}

/// Applies the optional ones of the rendered objects.
///
/// # Errors
/// An object belongs to another owner, the lease is lost, or the API server does not answer.
pub async fn apply_optional_children(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    wanted: &[Value],
) -> Result<OptionalChildren, ReconcileError> {
    let uid = cluster.uid().unwrap_or_default();
    let mut found = OptionalChildren::default();
    for object in wanted.iter().filter(|object| is_optional(object)) {
        match apply_optional_child(context, object, &uid).await? {
            Ok(live) => found.live.push(live),
            Err(error) => found.refused.push(describe_refusal(object, &error)),
        }
    }
    Ok(found)
}

/// Applies one object; the inner error is a finding.
async fn apply_optional_child(
    context: &ControllerContext,
    object: &Value,
    uid: &str,
) -> Result<Result<DynamicObject, ApplyError>, ReconcileError> {
    let live = match apply::fetch_owned(&context.client, object, uid).await {
        Err(error) if error.is_unavailable() => return Ok(Err(error)),
        live => live?,
    };
    if let Some(live) = live
        && !needs_apply(object, &serde_json::to_value(&live)?)
    {
        return Ok(Ok(live));
    }
    context.ensure_leader()?;
    match apply::apply_object(&context.client, object).await {
        Err(error) if error.is_unavailable() => Ok(Err(error)),
        applied => Ok(Ok(applied?)),
    }
}

fn describe_refusal(object: &Value, error: &ApplyError) -> String {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    format!("{} of {version}: {error}", describe_object(object))
}

/// Deletes the recorded objects that are not rendered any more, and returns the new record.
///
/// # Errors
/// The lease is lost, or the API server does not answer.
pub async fn prune_optional_children(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    known: &[String],
    wanted: &[Value],
) -> Result<Vec<String>, ReconcileError> {
    let uid = cluster.uid().unwrap_or_default();
    let rendered: BTreeSet<String> = wanted.iter().filter(|object| is_optional(object)).map(describe_object).collect();
    for recorded in known.iter().filter(|recorded| !rendered.contains(*recorded)) {
        let Some((kind, name)) = recorded.split_once(' ') else { continue };
        let Some(types) = find_optional_kind(kind) else { continue };
        let metadata = json!({ "name": name, "namespace": cluster.namespace() });
        let object = json!({ "apiVersion": types.0, "kind": types.1, "metadata": metadata });
        match apply::fetch_owned(&context.client, &object, &uid).await {
            Ok(Some(live)) => {
                context.ensure_leader()?;
                apply::prune_children(&context.client, &[(types, Arc::new(live))], &uid, wanted).await?;
            }
            Ok(None) | Err(ApplyError::NotOurs { .. }) => {}
            // A kind that is gone has no objects.
            Err(error) if error.is_unavailable() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(rendered.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, name: &str) -> Value {
        json!({ "kind": kind, "metadata": { "name": name } })
    }

    #[test]
    fn the_record_is_extended_by_optional_kinds_alone_before_they_are_created() {
        let wanted = [object("Service", "eu-websocket"), object("HTTPRoute", "eu-websocket")];
        let known = ["HTTPRoute eu-sockjs".to_owned()];
        let extended = extend_record(&known, &wanted).expect("one more");
        assert_eq!(extended, ["HTTPRoute eu-sockjs", "HTTPRoute eu-websocket"]);
        assert_eq!(extend_record(&extended, &wanted), None, "all are recorded");
        assert_eq!(extend_record(&[], &wanted[..1]), None, "a Service is found by its watch");
    }
}
