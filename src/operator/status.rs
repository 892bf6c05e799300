//! Writes the status: each controller its own conditions and fields, and only when one of them changed.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::context::ControllerContext;
use super::reconcile_error::ReconcileError;
use crate::api::{RealtimeCluster, Reason};

/// New content of one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionUpdate {
    pub kind: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    pub reason: Reason,
    pub message: String,
}

impl ConditionUpdate {
    pub fn new(kind: &'static str, status: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Self { kind, status, reason, message: message.into() }
    }

    /// A condition with the error that ended a reconcile.
    pub fn of_error(kind: &'static str, error: &ReconcileError) -> Self {
        Self::new(kind, error.reason.failure_status(), error.reason, &error.message)
    }
}

/// The status fields that one controller owns.
pub struct StatusPatch {
    pub manager: &'static str,
    /// Types of conditions that the controller owns; an owned condition that is not in `conditions` is removed.
    pub owned_conditions: &'static [&'static str],
    pub conditions: Vec<ConditionUpdate>,
    /// Fields beside the conditions, by name.
    pub fields: Map<String, Value>,
}

/// Longest message that the schema of `Condition` allows.
const MESSAGE_LEN_MAX: usize = 32_768;

/// Applies the patch if it changes the status.
///
/// # Errors
/// Leadership was lost, the object changed since it was read, or the API server does not answer.
pub async fn write(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    part: StatusPatch,
) -> Result<(), ReconcileError> {
    let Some(status) = merge_status(cluster, &part, Timestamp::now()) else { return Ok(()) };
    context.ensure_leader()?;
    match apply_status(context, cluster, part.manager, &status).await {
        Ok(()) => Ok(()),
        // The object was deleted: it has no status any more.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(ReconcileError::from_call("writing the status", &error)),
    }
}

/// Applies the status of an object in the version that was read: a decision on an older version must be repeated.
///
/// # Errors
/// The API server refuses the status, because the object changed or for another reason, or does not answer.
pub async fn apply_status<K>(
    context: &ControllerContext,
    object: &K,
    manager: &str,
    status: &impl Serialize,
) -> Result<(), kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
    let body = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": name, "namespace": namespace, "resourceVersion": object.resource_version() },
        "status": status,
    });
    let api: Api<K> = Api::namespaced(context.client.clone(), &namespace);
    api.patch_status(&name, &PatchParams::apply(manager).force(), &Patch::Apply(body)).await.map(drop)
}

/// Builds the status to write; `None` when the object already has it.
fn merge_status(cluster: &RealtimeCluster, part: &StatusPatch, now: Timestamp) -> Option<Value> {
    let known = cluster.status.clone().unwrap_or_default();
    let generation = cluster.metadata.generation;
    let mut changed = false;
    let mut conditions = Vec::new();
    for update in &part.conditions {
        let before = known.find_condition(update.kind);
        let message: String = update.message.chars().take(MESSAGE_LEN_MAX).collect();
        let mut condition = Condition {
            type_: update.kind.to_owned(),
            status: update.status.to_owned(),
            reason: update.reason.to_string(),
            message,
            observed_generation: generation,
            last_transition_time: Time(now),
        };
        if let Some(before) = before
            && before.status == condition.status
        {
            condition.last_transition_time = before.last_transition_time.clone();
        }
        changed |= before != Some(&condition);
        conditions.push(condition);
    }
    let is_removed = |condition: &Condition| {
        part.owned_conditions.contains(&condition.type_.as_str())
            && !part.conditions.iter().any(|update| update.kind == condition.type_)
    };
    changed |= known.conditions.iter().any(is_removed);
    let known = serde_json::to_value(&known).unwrap_or_default();
    changed |= part.fields.iter().any(|(name, value)| {
        let before = &known[name];
        before != value && !(before.is_null() && value.as_array().is_some_and(Vec::is_empty))
    });
    if !changed {
        return None;
    }
    let mut status = part.fields.clone();
    status.insert("conditions".to_owned(), serde_json::to_value(conditions).unwrap_or_default());
    Some(Value::Object(status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::cluster::RealtimeClusterStatus;
    use crate::api::fixture;

    fn cluster(status: Option<RealtimeClusterStatus>) -> RealtimeCluster {
        RealtimeCluster { status, ..fixture::applied_cluster("") }
    }

    fn part(update: Vec<ConditionUpdate>) -> StatusPatch {
        StatusPatch { manager: "m", owned_conditions: &["Ready", "Stalled"], conditions: update, fields: Map::new() }
    }

    fn status(written: &Value) -> RealtimeClusterStatus {
        serde_json::from_value(written.clone()).expect("a status")
    }

    #[test]
    fn a_status_is_written_only_when_it_changed_and_times_move_with_the_status_alone() {
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let update = |status, message: &str| ConditionUpdate::new("Ready", status, Reason::Proving, message);
        let first = merge_status(&cluster(None), &part(vec![update("Unknown", "a")]), at(1)).expect("a change");
        let known = cluster(Some(status(&first)));
        assert_eq!(merge_status(&known, &part(vec![update("Unknown", "a")]), at(2)), None);
        let message = merge_status(&known, &part(vec![update("Unknown", "b")]), at(3)).expect("another message");
        assert_eq!(message["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:01Z");
        let flipped = merge_status(&known, &part(vec![update("False", "b")]), at(4)).expect("another status");
        assert_eq!(flipped["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:04Z");
        assert!(merge_status(&known, &part(vec![]), at(5)).is_some(), "a removed condition is a change");
        assert_eq!(flipped["conditions"][0]["observedGeneration"], 2);
    }

    #[test]
    fn a_changed_field_is_written() {
        let mut fields = Map::new();
        fields.insert("observedGeneration".to_owned(), json!(2));
        let part = StatusPatch { manager: "m", owned_conditions: &[], conditions: vec![], fields };
        let written = merge_status(&cluster(None), &part, Timestamp::now()).expect("a change");
        assert_eq!(merge_status(&cluster(Some(status(&written))), &part, Timestamp::now()), None);
    }
}
