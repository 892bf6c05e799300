//! Finds fields that other managers wrote into our objects. Pure.
//!
//! In: a rendered object and the live one. Out: every foreign field of a Deployment's container with its manager, and the
//! paths to remove. Server-side apply reverts values that we set, but leaves fields alone that others *added*; an added
//! variable can redirect webhooks just as a changed one can, and an annotation of a `ServiceAccount` selects another
//! identity.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::apply::FIELD_MANAGER;
use crate::config::IAM_ROLE_ANNOTATION;

/// A field that differs from the rendered object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignField {
    /// Name of the field: `env AWS_ENDPOINT_URL_KINESIS`, `envFrom`.
    pub field: String,
    /// Field manager that wrote it.
    pub manager: String,
}

/// Fields of a container that are lists of named entries, each with the key that names an entry.
const KEYED_LIST_FIELDS: [(&str, &str); 2] = [("env", "name"), ("volumeMounts", "mountPath")];

/// Fields of a container that must be as rendered, or absent.
const EXACT_FIELDS: [&str; 6] = ["envFrom", "command", "args", "image", "workingDir", "lifecycle"];

/// Annotations of a `ServiceAccount` by which EKS selects an identity: as rendered, or absent.
const IDENTITY_ANNOTATIONS: [&str; 1] = [IAM_ROLE_ANNOTATION];

/// Finds fields of the live object that other managers changed or added.
#[must_use]
pub fn find_foreign_fields(desired: &Value, live: &Value) -> Vec<ForeignField> {
    let mut found = Vec::new();
    for wanted in pod_containers(desired) {
        let name = wanted["name"].as_str().unwrap_or_default();
        let Some(container) = pod_containers(live).iter().find(|container| container["name"] == wanted["name"]) else {
            continue;
        };
        for (list, key) in KEYED_LIST_FIELDS {
            let entries = index_by_key(&wanted[list], key);
            for (entry, value) in index_by_key(&container[list], key) {
                if entries.get(entry).is_none_or(|wanted| !is_satisfied_by(wanted, value)) {
                    let manager = find_field_manager(live, name, list, Some((key, entry)));
                    found.push(ForeignField { field: format!("{list} {entry}"), manager });
                }
            }
        }
        for field in EXACT_FIELDS {
            let (wanted, value) = (&wanted[field], &container[field]);
            if !value.is_null() && wanted != value {
                found.push(ForeignField {
                    field: field.to_owned(),
                    manager: find_field_manager(live, name, field, None),
                });
            }
        }
    }
    // Our own manager's values are an older rendering, not foreign.
    found.retain(|foreign| foreign.manager != FIELD_MANAGER);
    if !live.pointer("/spec/template/spec/dnsConfig").unwrap_or(&Value::Null).is_null() {
        found.push(ForeignField { field: "dnsConfig".to_owned(), manager: "unknown".to_owned() });
    }
    found
}

/// JSON pointers of foreign fields that server-side apply leaves, in the object as it is after the apply.
#[must_use]
pub fn find_leftover_paths(desired: &Value, live: &Value) -> Vec<String> {
    let mut paths = find_leftover_annotations(desired, live);
    let base = "/spec/template/spec";
    for (index, container) in pod_containers(live).iter().enumerate() {
        let Some(wanted) = pod_containers(desired).iter().find(|wanted| wanted["name"] == container["name"]) else {
            continue;
        };
        for (list, key) in KEYED_LIST_FIELDS {
            let entries = index_by_key(&wanted[list], key);
            let items = container[list].as_array().map(Vec::as_slice).unwrap_or_default();
            // From the end, so that earlier removals do not shift later indices.
            for (at, item) in items.iter().enumerate().rev() {
                let entry = item[key].as_str().unwrap_or_default();
                if !entries.contains_key(entry) {
                    paths.push(format!("{base}/containers/{index}/{list}/{at}"));
                }
            }
        }
        for field in EXACT_FIELDS {
            if !container[field].is_null() && wanted[field].is_null() {
                paths.push(format!("{base}/containers/{index}/{field}"));
            }
        }
    }
    if !live.pointer("/spec/template/spec/dnsConfig").unwrap_or(&Value::Null).is_null() {
        paths.push(format!("{base}/dnsConfig"));
    }
    paths
}

/// Paths of the annotations with which a live `ServiceAccount` selects another identity than the rendered one.
fn find_leftover_annotations(desired: &Value, live: &Value) -> Vec<String> {
    if desired["kind"] != "ServiceAccount" {
        return vec![];
    }
    let has = |object: &Value, name: &str| !object["metadata"]["annotations"][name].is_null();
    let leftovers = IDENTITY_ANNOTATIONS.iter().filter(|name| has(live, name) && !has(desired, name));
    leftovers.map(|name| format!("/metadata/annotations/{}", name.replace('~', "~0").replace('/', "~1"))).collect()
}

fn pod_containers(object: &Value) -> &[Value] {
    object.pointer("/spec/template/spec/containers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn index_by_key<'a>(list: &'a Value, key: &str) -> BTreeMap<&'a str, &'a Value> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|item| Some((item[key].as_str()?, item))).collect()
}

/// Whether the live value has every rendered field with its rendered value: the API server adds defaults, removes
/// nothing, but leaves out empty texts.
fn is_satisfied_by(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => {
            let here = wanted.iter().all(|(name, value)| match live.get(name) {
                Some(found) => is_satisfied_by(value, found),
                None => value.as_str() == Some("") || value.is_null(),
            });
            // A source in place of a value is a change, not a default.
            let same_kind = wanted.contains_key("valueFrom") == live.contains_key("valueFrom");
            here && same_kind
        }
        _ => wanted == live,
    }
}

/// Finds the manager of a field in `managedFields`. Of several managers, one that is not ours is returned.
fn find_field_manager(live: &Value, container: &str, field: &str, entry: Option<(&str, &str)>) -> String {
    let entries = live.pointer("/metadata/managedFields").and_then(Value::as_array).map(Vec::as_slice);
    let container = format!("k:{{\"name\":\"{container}\"}}");
    let holders: BTreeSet<&str> = entries
        .unwrap_or_default()
        .iter()
        .filter(|managed| {
            let spec = &managed["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:containers"][&container];
            let held = &spec[format!("f:{field}")];
            match entry {
                Some((key, entry)) => !held[format!("k:{{\"{key}\":\"{entry}\"}}")].is_null(),
                None => !held.is_null(),
            }
        })
        .filter_map(|managed| managed["manager"].as_str())
        .collect();
    let other = holders.iter().find(|holder| **holder != FIELD_MANAGER);
    other.or_else(|| holders.first()).map_or_else(|| "unknown".to_owned(), |holder| (*holder).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(container: &Value, managed: &Value) -> Value {
        json!({
            "metadata": { "managedFields": managed },
            "spec": { "template": { "spec": { "containers": [container] } } }
        })
    }

    fn rendered() -> Value {
        json!({
            "name": "sockjs", "image": "realtime:1", "args": ["edge"],
            "env": [{ "name": "REALTIME_WEBHOOKS", "value": "kinesis" },
                    { "name": "REALTIME_POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }],
            "volumeMounts": [{ "name": "apps", "mountPath": "/apps", "readOnly": true }],
        })
    }

    fn held(manager: &str, fields: &Value) -> Value {
        let container = json!({ "k:{\"name\":\"sockjs\"}": fields });
        let fields = json!({ "f:spec": { "f:template": { "f:spec": { "f:containers": container } } } });
        json!({ "manager": manager, "operation": "Update", "fieldsV1": fields })
    }

    fn found_fields(container: &Value, managed: &Value) -> Vec<(String, String)> {
        let desired = deployment(&rendered(), &json!([]));
        let found = find_foreign_fields(&desired, &deployment(container, managed));
        found.into_iter().map(|foreign| (foreign.field, foreign.manager)).collect()
    }

    fn pair(field: &str, manager: &str) -> (String, String) {
        (field.to_owned(), manager.to_owned())
    }

    #[test]
    fn defaults_of_the_api_server_are_not_foreign() {
        let mut live = rendered();
        live["imagePullPolicy"] = json!("IfNotPresent");
        live["env"][1]["valueFrom"]["fieldRef"]["apiVersion"] = json!("v1");
        let desired = deployment(&rendered(), &json!([]));
        assert_eq!(find_foreign_fields(&desired, &deployment(&live, &json!([]))), []);
        assert_eq!(find_leftover_paths(&desired, &deployment(&live, &json!([]))), Vec::<String>::new());
    }

    #[test]
    fn a_changed_and_an_added_variable_are_reported_with_their_manager() {
        let mut live = rendered();
        live["env"][0]["value"] = json!("off");
        live["env"].as_array_mut().expect("a list").push(json!({ "name": "AWS_ENDPOINT_URL_KINESIS", "value": "x" }));
        let fields = json!({ "f:env": {
            "k:{\"name\":\"REALTIME_WEBHOOKS\"}": { "f:value": {} },
            "k:{\"name\":\"AWS_ENDPOINT_URL_KINESIS\"}": { ".": {}, "f:value": {} } } });
        let managed = json!([
            held(FIELD_MANAGER, &json!({ "f:env": { "k:{\"name\":\"REALTIME_WEBHOOKS\"}": {} } })),
            held("kubectl-set", &fields)
        ]);
        assert_eq!(
            found_fields(&live, &managed),
            [pair("env AWS_ENDPOINT_URL_KINESIS", "kubectl-set"), pair("env REALTIME_WEBHOOKS", "kubectl-set")]
        );
        let paths = find_leftover_paths(&deployment(&rendered(), &json!([])), &deployment(&live, &managed));
        assert_eq!(paths, ["/spec/template/spec/containers/0/env/2"], "the changed one is taken back by the apply");
    }

    #[test]
    fn an_added_source_command_and_mount_are_removed_from_the_end() {
        let mut live = rendered();
        live["envFrom"] = json!([{ "secretRef": { "name": "x" } }]);
        live["command"] = json!(["/bin/x"]);
        live["volumeMounts"] = json!([{ "name": "a", "mountPath": "/a" }, rendered()["volumeMounts"][0],
                                      { "name": "b", "mountPath": "/b" }]);
        let managed = json!([held("kubectl-edit", &json!({ "f:envFrom": {}, "f:command": {} }))]);
        let found = found_fields(&live, &managed);
        assert!(found.contains(&pair("envFrom", "kubectl-edit")), "{found:?}");
        assert!(found.contains(&pair("command", "kubectl-edit")), "{found:?}");
        let base = "/spec/template/spec/containers/0";
        assert_eq!(
            find_leftover_paths(&deployment(&rendered(), &json!([])), &deployment(&live, &json!([]))),
            [
                format!("{base}/volumeMounts/2"),
                format!("{base}/volumeMounts/0"),
                format!("{base}/envFrom"),
                format!("{base}/command")
            ]
        );
    }

    #[test]
    fn the_annotation_of_another_identity_is_removed_from_a_service_account() {
        let account =
            |annotations: &Value| json!({ "kind": "ServiceAccount", "metadata": { "annotations": annotations } });
        let (role, none) = (json!({ IAM_ROLE_ANNOTATION: "arn:aws:iam::1:role/x", "team": "a" }), json!({}));
        let paths = find_leftover_paths(&account(&none), &account(&role));
        assert_eq!(paths, ["/metadata/annotations/eks.amazonaws.com~1role-arn"]);
        assert_eq!(find_leftover_paths(&json!({ "kind": "ServiceAccount", "metadata": {} }), &account(&role)), paths);
        assert_eq!(find_leftover_paths(&account(&role), &account(&role)), [""; 0], "rendered for IRSA");
        assert_eq!(find_leftover_paths(&account(&none), &account(&none)), [""; 0]);
    }

    #[test]
    fn our_own_change_is_not_foreign() {
        let mut live = rendered();
        live["env"][0]["value"] = json!("off");
        let fields = json!({ "f:env": { "k:{\"name\":\"REALTIME_WEBHOOKS\"}": { "f:value": {} } } });
        assert_eq!(found_fields(&live, &json!([held(FIELD_MANAGER, &fields)])), []);
    }
}
