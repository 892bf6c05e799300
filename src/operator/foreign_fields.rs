//! Finds fields that other managers wrote into our objects. Pure.
//!
//! In: a rendered object and the live one. Out: every foreign field of a Deployment's pod template with its manager, and the
//! repairs that an apply leaves undone. Server-side apply reverts values that we set, but leaves fields alone that others
//! *added*; an added variable can redirect webhooks just as a changed one can, and an annotation of a `ServiceAccount` selects
//! another identity.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Map, Value, json};

use crate::config::IAM_ROLE_ANNOTATION;
use crate::desired::{JsonField, PodField, list_pod_fields};
use crate::kubernetes::apply::FIELD_MANAGER;

/// JSON pointer of the pod spec in a Deployment.
const POD_SPEC: &str = "/spec/template/spec";

/// Annotations of a `ServiceAccount` by which EKS selects an identity: as rendered, or absent.
const IDENTITY_ANNOTATIONS: [&str; 1] = [IAM_ROLE_ANNOTATION];

/// A field that differs from the rendered object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignField {
    /// The field: `container sockjs: env AWS_ENDPOINT_URL_KINESIS`.
    pub field: String,
    /// Field manager that wrote it.
    pub manager: String,
}

/// Whether a field of the live object differs from the rendered one, or selects another identity: it is reported, repaired,
/// or both.
#[must_use]
pub fn has_foreign_fields(desired: &Value, live: &Value) -> bool {
    !find_differing_fields(desired, live).is_empty() || !find_leftover_annotations(desired, live).is_empty()
}

/// Finds fields of the live object that other managers changed or added.
#[must_use]
pub fn find_foreign_fields(desired: &Value, live: &Value) -> Vec<ForeignField> {
    let describe = |field: PodField| {
        let manager = find_place(live, &field).map_or_else(|| "unknown".to_owned(), |place| place.find_manager(live));
        ForeignField { field: field.to_string(), manager }
    };
    let found = find_differing_fields(desired, live).into_iter().map(describe);
    // Our own manager's values are an older rendering, not foreign.
    found.filter(|foreign| foreign.manager != FIELD_MANAGER).collect()
}

/// Operations of a JSON patch that make the live object, as it is after an apply, equal to the rendered one.
#[must_use]
pub fn find_repairs(desired: &Value, live: &Value) -> Vec<Value> {
    let mut removed: Vec<String> = find_leftover_annotations(desired, live);
    let mut repairs = Vec::new();
    for field in find_differing_fields(desired, live) {
        let Some(place) = find_place(live, &field) else { continue };
        match find_place(desired, &field).and_then(|wanted| desired.pointer(&wanted.pointer)) {
            Some(wanted) => repairs.push(json!({ "op": "replace", "path": place.pointer, "value": wanted })),
            None => removed.push(place.pointer),
        }
    }
    // The innermost first and from the end, so that no removal shifts the index of a later one.
    removed.sort_by_key(|path| {
        let index = path.rsplit('/').next().and_then(|last| last.parse::<usize>().ok());
        Reverse((path.matches('/').count(), index))
    });
    repairs.extend(removed.into_iter().map(|path| json!({ "op": "remove", "path": path })));
    repairs
}

/// The fields of the live pod template that differ from the rendered ones, or are not rendered. Of an added container, the
/// container alone.
fn find_differing_fields(desired: &Value, live: &Value) -> Vec<PodField> {
    let read = |object: &Value| serde_json::from_value::<PodSpec>(object.pointer(POD_SPEC)?.clone()).ok();
    let (Some(wanted), Some(found)) = (read(desired), read(live)) else { return vec![] };
    let (wanted, found) = (list_pod_fields(&wanted), list_pod_fields(&found));
    let containers: BTreeSet<&String> = wanted.keys().filter_map(|field| field.container.as_ref()).collect();
    let is_of_added = |field: &PodField| field.container.as_ref().is_some_and(|name| !containers.contains(name));
    let differing = found.iter().filter(|(field, value)| wanted.get(field) != Some(value) && !is_of_added(field));
    differing.map(|(field, _)| field.clone()).collect()
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

/// The place of a field in a Deployment.
struct FieldPlace {
    /// JSON pointer of the field.
    pointer: String,
    /// Path of the field in `managedFields`.
    managed: Vec<String>,
}

impl FieldPlace {
    fn enter_field(&mut self, name: &str) {
        self.extend_pointer(name);
        self.managed.push(format!("f:{name}"));
    }

    fn extend_pointer(&mut self, segment: &str) {
        self.pointer.push('/');
        self.pointer.push_str(segment);
    }

    /// Enters the entry of a list that has this key. Of two, the later one is in force.
    fn enter_entry<'a>(&mut self, parent: &'a Value, list: &str, key: &str, name: &str) -> Option<&'a Value> {
        let entries = parent[list].as_array()?;
        let index = entries.iter().rposition(|entry| entry[key] == name)?;
        self.enter_field(list);
        self.extend_pointer(&index.to_string());
        self.managed.push(format!("k:{}", json!({ key: name })));
        entries.get(index)
    }

    /// Finds the manager of the field. Of several managers, one that is not ours is returned.
    fn find_manager(&self, live: &Value) -> String {
        let entries = live.pointer("/metadata/managedFields").and_then(Value::as_array).into_iter().flatten();
        let holders: BTreeSet<&str> = entries
            .filter(|entry| self.is_held_by(&entry["fieldsV1"]))
            .filter_map(|entry| entry["manager"].as_str())
            .collect();
        let other = holders.iter().find(|holder| **holder != FIELD_MANAGER);
        other.or_else(|| holders.first()).map_or_else(|| "unknown".to_owned(), |holder| (*holder).to_owned())
    }

    fn is_held_by(&self, fields: &Value) -> bool {
        let mut held = fields;
        for segment in &self.managed {
            held = match &held[segment] {
                // The entries of a list without a key have one manager.
                Value::Null => {
                    return segment.starts_with("k:") && held.as_object().is_some_and(Map::is_empty);
                }
                inner => inner,
            };
        }
        true
    }
}

fn find_place(object: &Value, field: &PodField) -> Option<FieldPlace> {
    let spec = object.pointer(POD_SPEC)?;
    let managed = ["f:spec", "f:template", "f:spec"].map(str::to_owned).into();
    let mut place = FieldPlace { pointer: POD_SPEC.to_owned(), managed };
    let parent = match &field.container {
        None => spec,
        Some(name) => {
            let lists = ["containers", "initContainers"].into_iter();
            lists.into_iter().find_map(|list| place.enter_entry(spec, list, "name", name))?
        }
    };
    match field.kind.json_field() {
        JsonField::Single(name) => {
            parent.get(name)?;
            place.enter_field(name);
        }
        JsonField::Keyed { list, key } => {
            place.enter_entry(parent, list, key, &field.name)?;
        }
        JsonField::Indexed(list) => {
            parent[list].get(field.name.parse::<usize>().ok()?)?;
            place.enter_field(list);
            place.extend_pointer(&field.name);
        }
    }
    Some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let live = deployment(container, managed);
        let found = find_foreign_fields(&desired, &live);
        assert_eq!(has_foreign_fields(&desired, &live), !found.is_empty() || !find_repairs(&desired, &live).is_empty());
        found.into_iter().map(|foreign| (foreign.field, foreign.manager)).collect()
    }

    fn pair(field: &str, manager: &str) -> (String, String) {
        (format!("container sockjs: {field}"), manager.to_owned())
    }

    /// The paths that are removed or replaced, with the letter of the operation.
    fn repaired_paths(desired: &Value, live: &Value) -> Vec<String> {
        let describe = |repair: &Value| {
            let text = |name: &str| repair[name].as_str().unwrap_or_default().to_owned();
            format!("{} {}", text("op"), text("path"))
        };
        find_repairs(desired, live).iter().map(describe).collect()
    }

    /// The Deployment after its repairs.
    fn repair(desired: &Value, live: &Value) -> Value {
        let mut repaired = live.clone();
        let operations: json_patch::Patch =
            serde_json::from_value(find_repairs(desired, live).into()).expect("a JSON patch");
        json_patch::patch(&mut repaired, &operations).expect("operations that apply");
        repaired
    }

    #[test]
    fn defaults_of_the_api_server_are_not_foreign() {
        let mut live = rendered();
        live["imagePullPolicy"] = json!("IfNotPresent");
        live["env"][1]["valueFrom"]["fieldRef"]["apiVersion"] = json!("v1");
        let desired = deployment(&rendered(), &json!([]));
        assert!(!has_foreign_fields(&desired, &deployment(&live, &json!([]))));
        assert_eq!(find_foreign_fields(&desired, &deployment(&live, &json!([]))), []);
        assert_eq!(repaired_paths(&desired, &deployment(&live, &json!([]))), [""; 0]);
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
        live["env"][0]["value"] = json!("kinesis");
        let paths = repaired_paths(&deployment(&rendered(), &json!([])), &deployment(&live, &managed));
        assert_eq!(paths, ["remove /spec/template/spec/containers/0/env/2"], "the apply has reverted the changed one");
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
        assert!(found.contains(&pair("envFrom 0", "kubectl-edit")), "{found:?}");
        assert!(found.contains(&pair("command", "kubectl-edit")), "{found:?}");
        let base = "/spec/template/spec/containers/0";
        assert_eq!(
            repaired_paths(&deployment(&rendered(), &json!([])), &deployment(&live, &json!([]))),
            [
                format!("remove {base}/volumeMounts/2"),
                format!("remove {base}/envFrom/0"),
                format!("remove {base}/volumeMounts/0"),
                format!("remove {base}/command"),
            ]
        );
    }

    #[test]
    fn containers_volumes_and_hosts_are_removed_and_a_changed_mount_is_replaced() {
        let desired = deployment(&rendered(), &json!([]));
        let mut live = desired.clone();
        let spec = live.pointer_mut(POD_SPEC).expect("a pod spec");
        spec["containers"][0]["volumeMounts"][0]["subPath"] = json!("elsewhere");
        let sidecar = json!({ "name": "stranger", "image": "x", "env": [{ "name": "A", "value": "1" }] });
        spec["containers"].as_array_mut().expect("a list").insert(0, sidecar.clone());
        spec["initContainers"] = json!([sidecar]);
        spec["volumes"] = json!([{ "name": "a", "emptyDir": {} }, { "name": "b", "emptyDir": {} }]);
        spec["hostAliases"] = json!([{ "ip": "10.0.0.1", "hostnames": ["kinesis"] }]);
        spec["hostNetwork"] = json!(true);
        spec["dnsConfig"] = json!({ "nameservers": ["10.0.0.1"] });
        spec["readinessGates"] = json!([{ "conditionType": "x" }]);
        let fields = json!({ "f:spec": { "f:template": { "f:spec": {
            "f:containers": { "k:{\"name\":\"stranger\"}": { ".": {} } }, "f:readinessGates": {}, "f:dnsConfig": {},
        } } } });
        live["metadata"]["managedFields"] = json!([{ "manager": "kubectl-edit", "fieldsV1": fields }]);
        let found = find_foreign_fields(&desired, &live);
        for field in ["container stranger", "readinessGate x", "dnsConfig"] {
            let expected = ForeignField { field: field.to_owned(), manager: "kubectl-edit".to_owned() };
            assert!(found.contains(&expected), "{field}: {found:?}");
        }
        assert_eq!(found.len(), 9, "an added container is one field: {found:?}");
        let repaired = repair(&desired, &live);
        assert_eq!(find_differing_fields(&desired, &repaired), []);
        assert_eq!(repaired.pointer(POD_SPEC).map(|spec| &spec["containers"]), Some(&json!([rendered()])));
    }

    #[test]
    fn the_annotation_of_another_identity_is_removed_from_a_service_account() {
        let account =
            |annotations: &Value| json!({ "kind": "ServiceAccount", "metadata": { "annotations": annotations } });
        let (role, none) = (json!({ IAM_ROLE_ANNOTATION: "arn:aws:iam::1:role/x", "team": "a" }), json!({}));
        let paths = repaired_paths(&account(&none), &account(&role));
        assert_eq!(paths, ["remove /metadata/annotations/eks.amazonaws.com~1role-arn"]);
        assert_eq!(repaired_paths(&json!({ "kind": "ServiceAccount", "metadata": {} }), &account(&role)), paths);
        assert_eq!(repaired_paths(&account(&role), &account(&role)), [""; 0], "rendered for IRSA");
        assert_eq!(repaired_paths(&account(&none), &account(&none)), [""; 0]);
    }

    #[test]
    fn our_own_change_is_not_foreign() {
        let mut live = rendered();
        live["env"][0]["value"] = json!("off");
        let fields = json!({ "f:env": { "k:{\"name\":\"REALTIME_WEBHOOKS\"}": { "f:value": {} } } });
        assert_eq!(found_fields(&live, &json!([held(FIELD_MANAGER, &fields)])), []);
    }
}
