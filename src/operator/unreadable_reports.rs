//! Reports an object that this version cannot read on the object itself: by its condition Ready and an Event.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::runtime::events::{Event, EventType};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::context::ControllerContext;
use super::reconcile_error::ReconcileError;
use super::unreadable_objects::{ObjectName, UnreadableReport};
use crate::api::conditions::condition;
use crate::api::{API_GROUP, Reason, check_schema, crd};

/// Bounds one report: it reads the object, writes its status and an Event.
const REPORT_TIMEOUT: Duration = Duration::from_secs(30);

/// Field manager of the condition, apart from that of the gate, so that nothing else of the status is given up.
const FIELD_MANAGER: &str = "realtime-operator-unreadable";

/// Reports the objects that cannot be read until `unreadable` and its clones are dropped.
pub async fn run_reports(context: &ControllerContext, mut reports: mpsc::Receiver<UnreadableReport>) {
    while let Some(report) = reports.recv().await {
        let ObjectName { kind, namespace, name } = &report.object;
        let error = match timeout(REPORT_TIMEOUT, report_object(context, &report)).await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the API server did not answer in time".to_owned(),
        };
        tracing::warn!(kind, namespace, name, error, "unreadable object not reported on itself");
    }
}

async fn report_object(context: &ControllerContext, report: &UnreadableReport) -> Result<(), ReconcileError> {
    let ObjectName { kind, namespace, name } = &report.object;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(API_GROUP, "v1alpha1", kind));
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, &resource);
    let live = api.get_opt(name).await.map_err(|error| ReconcileError::from_call("reading the object", &error))?;
    let Some(live) = live else { return Ok(()) };
    let value = serde_json::to_value(&live).unwrap_or_default();
    let message = describe_problem(kind, &value, &report.error);
    let ready = build_condition(&value, &message, Timestamp::now());
    let Some(ready) = ready else { return Ok(()) };
    context.ensure_leader()?;
    let body = json!({
        "apiVersion": format!("{API_GROUP}/v1alpha1"),
        "kind": kind,
        "metadata": { "name": name, "namespace": namespace },
        "status": { "conditions": [ready] },
    });
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let written = api.patch_status(name, &parameters, &Patch::Apply(body)).await;
    let event = Event {
        type_: EventType::Warning,
        reason: Reason::VersionUnsupported.name().to_owned(),
        note: Some(message.chars().take(1000).collect()),
        action: "Read".to_owned(),
        secondary: None,
    };
    let published = context.recorder.publish(&event, &live.object_ref(&resource)).await;
    written.map_err(|error| ReconcileError::from_call("writing the condition", &error))?;
    published.map_err(|error| ReconcileError::from_call("writing the Event", &error))
}

/// Describes why this version cannot read an object, with the field if the schema of this version finds it.
fn describe_problem(kind: &str, object: &Value, error: &str) -> String {
    let findings = crd::object_schema(kind).map(|schema| check_schema(object, schema)).unwrap_or_default();
    let finding =
        findings.into_iter().find(|finding| ["spec", "status"].iter().any(|part| finding.path.starts_with(part)));
    let problem =
        finding.map_or_else(|| format!("the object: {error}"), |found| format!("{}: it {}", found.path, found.message));
    format!(
        "version {} of the operator cannot read {problem}. The operator does not act on the object, and what runs goes on. \
         Upgrade the operator, or correct the field",
        env!("CARGO_PKG_VERSION")
    )
}

/// The condition Ready to write; `None` if the object has it already.
fn build_condition(object: &Value, message: &str, now: Timestamp) -> Option<Value> {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let before = conditions.and_then(|all| all.iter().find(|found| found["type"] == condition::READY));
    let mut ready = json!({
        "type": condition::READY,
        "status": "Unknown",
        "reason": Reason::VersionUnsupported.name(),
        "message": message,
        "observedGeneration": object["metadata"]["generation"],
        "lastTransitionTime": now.to_string(),
    });
    if let Some(before) = before.filter(|before| before["status"] == ready["status"]) {
        ready["lastTransitionTime"] = before["lastTransitionTime"].clone();
    }
    (before != Some(&ready)).then_some(ready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;

    #[test]
    fn the_condition_names_field_and_remedy_and_is_written_once() {
        let mut object = serde_json::to_value(applied_cluster("")).expect("JSON");
        object["spec"]["webhooks"]["mode"] = json!("Teleport");
        let message = describe_problem("RealtimeCluster", &object, "unknown variant");
        for part in ["spec.webhooks.mode", "Teleport", "Upgrade the operator"] {
            assert!(message.contains(part), "{part} in {message}");
        }
        let valid = serde_json::to_value(applied_cluster("")).expect("JSON");
        assert!(describe_problem("RealtimeCluster", &valid, "no such word").contains("no such word"));
        let at = |second| Timestamp::from_second(second).expect("a time");
        let first = build_condition(&object, &message, at(1)).expect("a condition");
        object["status"] = json!({ "conditions": [first.clone()] });
        assert_eq!(build_condition(&object, &message, at(2)), None);
        let second = build_condition(&object, "another", at(2)).expect("another message");
        assert_eq!(second["lastTransitionTime"], first["lastTransitionTime"]);
    }
}
