//! Writes the status: each controller its own conditions and fields, and only when they say something new.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Map, Value, json};

use super::context::{ControllerContext, ReconcileError};
use crate::api::{API_GROUP, RealtimeCluster, Reason};

/// What a condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionUpdate {
    /// Its type.
    pub kind: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// In a word.
    pub reason: Reason,
    /// In a line.
    pub message: String,
}

impl ConditionUpdate {
    /// A condition.
    pub fn new(kind: &'static str, status: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Self { kind, status, reason, message: message.into() }
    }
}

/// A controller's part of the status.
pub struct StatusPatch {
    /// Its field manager.
    pub manager: &'static str,
    /// The types of conditions that it owns.
    pub owned_conditions: &'static [&'static str],
    /// Those that there are now.
    pub conditions: Vec<ConditionUpdate>,
    /// Its other fields, by name.
    pub fields: Map<String, Value>,
}

/// Longest message of a condition, as the schema of `Condition` allows.
const MESSAGE_LEN_MAX: usize = 32_768;

/// Writes a part, if it says something new.
///
/// # Errors
/// Another leads, the object changed meanwhile, or the API server does not answer.
pub async fn write(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    part: StatusPatch,
) -> Result<(), ReconcileError> {
    let Some(status) = merge_status(cluster, &part, Timestamp::now()) else { return Ok(()) };
    context.ensure_leader()?;
    let metadata = &cluster.metadata;
    let (name, namespace) = (metadata.name.clone().unwrap_or_default(), metadata.namespace.clone().unwrap_or_default());
    let body = json!({
        "apiVersion": format!("{API_GROUP}/v1alpha1"),
        "kind": "RealtimeCluster",
        // Of the version that was read: who decided on an older one decides again.
        "metadata": { "name": name, "namespace": namespace, "resourceVersion": metadata.resource_version },
        "status": status,
    });
    let api: Api<RealtimeCluster> = Api::namespaced(context.client.clone(), &namespace);
    let parameters = PatchParams::apply(part.manager).force();
    match api.patch_status(&name, &parameters, &Patch::Apply(body)).await {
        Ok(_) => Ok(()),
        // It went away: there is nothing to say about it any more.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(ReconcileError::from_call("writing the status", &error)),
    }
}

/// The part as it would be written; `None` when the object says it already.
fn merge_status(cluster: &RealtimeCluster, part: &StatusPatch, now: Timestamp) -> Option<Value> {
    let known = cluster.status.clone().unwrap_or_default();
    let generation = cluster.metadata.generation;
    let mut changed = false;
    let mut conditions = Vec::new();
    for said in &part.conditions {
        let before = known.conditions.iter().find(|condition| condition.type_ == said.kind);
        let message: String = said.message.chars().take(MESSAGE_LEN_MAX).collect();
        let mut condition = Condition {
            type_: said.kind.to_owned(),
            status: said.status.to_owned(),
            reason: said.reason.to_string(),
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
    let gone = |condition: &Condition| {
        part.owned_conditions.contains(&condition.type_.as_str())
            && !part.conditions.iter().any(|said| said.kind == condition.type_)
    };
    changed |= known.conditions.iter().any(gone);
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

    fn cluster(status: Option<RealtimeClusterStatus>) -> RealtimeCluster {
        let text = "
apiVersion: realtime-operator.dev/v1alpha1
kind: RealtimeCluster
metadata: { name: eu, namespace: channels, generation: 2 }
spec:
  aws: { region: eu-west-1, identity: { type: PodIdentity } }
  bus: { type: Redis, redis: { urlSecretRef: { name: eu-redis, key: url } } }
";
        let mut cluster: RealtimeCluster = serde_yaml::from_str(text).expect("a cluster");
        cluster.status = status;
        cluster
    }

    fn part(said: Vec<ConditionUpdate>) -> StatusPatch {
        StatusPatch { manager: "m", owned_conditions: &["Ready", "Stalled"], conditions: said, fields: Map::new() }
    }

    fn status(written: &Value) -> RealtimeClusterStatus {
        serde_json::from_value(written.clone()).expect("a status")
    }

    #[test]
    fn only_news_is_written_and_times_move_with_the_status_alone() {
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let said = |status, message: &str| ConditionUpdate::new("Ready", status, Reason::Proving, message);
        let first = merge_status(&cluster(None), &part(vec![said("Unknown", "a")]), at(1)).expect("news");
        let known = cluster(Some(status(&first)));
        assert_eq!(merge_status(&known, &part(vec![said("Unknown", "a")]), at(2)), None);
        let message = merge_status(&known, &part(vec![said("Unknown", "b")]), at(3)).expect("another message");
        assert_eq!(message["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:01Z");
        let turned = merge_status(&known, &part(vec![said("False", "b")]), at(4)).expect("another status");
        assert_eq!(turned["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:04Z");
        assert!(merge_status(&known, &part(vec![]), at(5)).is_some(), "a condition that goes is news");
        assert_eq!(turned["conditions"][0]["observedGeneration"], 2);
    }

    #[test]
    fn a_field_that_changed_is_news() {
        let mut fields = Map::new();
        fields.insert("observedGeneration".to_owned(), json!(2));
        let part = StatusPatch { manager: "m", owned_conditions: &[], conditions: vec![], fields };
        let written = merge_status(&cluster(None), &part, Timestamp::now()).expect("news");
        assert_eq!(merge_status(&cluster(Some(status(&written))), &part, Timestamp::now()), None);
    }
}
