//! Differences between a rendered object and the live one: whether an apply would change it, and which fields. Pure.

use serde_json::{Map, Value};

use super::foreign_fields::has_foreign_fields;
use crate::desired::render::RENDERING_ANNOTATION;
use crate::kubernetes::apply::FIELD_MANAGER;

/// Whether an apply or a repair would change the live object.
pub fn needs_apply(wanted: &Value, live: &Value) -> bool {
    !is_up_to_date(wanted, live) || has_foreign_fields(wanted, live)
}

/// Whether the live object has every rendered field with its rendered value.
pub fn is_up_to_date(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => wanted.iter().all(|(name, value)| match live.get(name) {
            Some(found) => is_up_to_date(value, found),
            None => value.is_null(),
        }),
        (Value::Array(wanted), Value::Array(live)) => {
            wanted.len() == live.len() && wanted.iter().zip(live).all(|(wanted, live)| is_up_to_date(wanted, live))
        }
        _ => wanted == live,
    }
}

/// A field that an apply changes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FieldChange {
    /// Path of the field: `spec.template.spec.containers[edge].env[A].value`.
    pub field: String,
    /// Live value; `null` for an added field.
    pub live: Value,
    /// Value after the apply; `null` for a removed field.
    pub wanted: Value,
}

/// Lists the fields that an apply of the rendered object adds, changes or removes. Defaults of the API server are no
/// difference; fields that the operator's manager wrote and that are not rendered any more are removed. The digest of
/// the rendered object is not listed.
#[must_use]
pub fn list_field_changes(wanted: &Value, live: &Value) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    let (wanted, live) = (&without_digest(wanted), &without_digest(live));
    compare_values(String::new(), wanted, live, &mut changes);
    let entries = live.pointer("/metadata/managedFields").and_then(Value::as_array).into_iter().flatten();
    let owned = entries.filter(|entry| entry["manager"] == FIELD_MANAGER && entry["operation"] == "Apply");
    for fields in owned.filter_map(|entry| entry["fieldsV1"].as_object()) {
        compare_owned_fields("", fields, wanted, live, &mut changes);
    }
    changes
}

/// The object without the digest of its rendering: the fields themselves are compared.
fn without_digest(object: &Value) -> Value {
    let mut object = object.clone();
    let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else {
        return object;
    };
    annotations.remove(RENDERING_ANNOTATION);
    if annotations.is_empty()
        && let Some(metadata) = object["metadata"].as_object_mut()
    {
        metadata.remove("annotations");
    }
    object
}

fn compare_values(path: String, wanted: &Value, live: &Value, changes: &mut Vec<FieldChange>) {
    if is_up_to_date(wanted, live) {
        return;
    }
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => {
            for (name, value) in wanted {
                compare_values(join_path(&path, name), value, live.get(name).unwrap_or(&Value::Null), changes);
            }
        }
        (Value::Array(wanted), Value::Array(live)) if has_names(wanted) && has_names(live) => {
            for entry in wanted {
                let found = find_named(live, &entry["name"]).unwrap_or(&Value::Null);
                compare_values(entry_path(&path, &entry["name"]), entry, found, changes);
            }
            for entry in live.iter().filter(|entry| find_named(wanted, &entry["name"]).is_none()) {
                let field = entry_path(&path, &entry["name"]);
                changes.push(FieldChange { field, live: entry.clone(), wanted: Value::Null });
            }
        }
        (Value::Array(wanted), Value::Array(live)) if wanted.len() == live.len() => {
            for (index, (wanted, live)) in wanted.iter().zip(live).enumerate() {
                compare_values(format!("{path}[{index}]"), wanted, live, changes);
            }
        }
        _ => changes.push(FieldChange { field: path, live: live.clone(), wanted: wanted.clone() }),
    }
}

fn has_names(entries: &[Value]) -> bool {
    entries.iter().all(|entry| entry["name"].is_string())
}

fn find_named<'a>(entries: &'a [Value], name: &Value) -> Option<&'a Value> {
    entries.iter().find(|entry| entry["name"] == *name)
}

/// Appends a field to a path; a name with dots or slashes is put in brackets.
fn join_path(path: &str, name: &str) -> String {
    match (path.is_empty(), name.contains(['.', '/'])) {
        (true, _) => name.to_owned(),
        (false, true) => format!("{path}[{name}]"),
        (false, false) => format!("{path}.{name}"),
    }
}

fn entry_path(path: &str, name: &Value) -> String {
    format!("{path}[{}]", name.as_str().unwrap_or_default())
}

/// Adds the fields of the operator's manager that the live object has and the rendered one has not.
fn compare_owned_fields(
    path: &str,
    owned: &Map<String, Value>,
    wanted: &Value,
    live: &Value,
    changes: &mut Vec<FieldChange>,
) {
    for (key, inner) in owned {
        // Entries of lists are compared as values; their fields can be owned too.
        let (field, wanted, live) = if let Some(name) = key.strip_prefix("f:") {
            (join_path(path, name), &wanted[name], &live[name])
        } else if let Some(keys) = key.strip_prefix("k:").and_then(|keys| serde_json::from_str::<Value>(keys).ok()) {
            let (Some(wanted), Some(live)) = (find_keyed(wanted, &keys), find_keyed(live, &keys)) else { continue };
            (keyed_path(path, &keys), wanted, live)
        } else {
            continue;
        };
        match (wanted, live, inner.as_object()) {
            (Value::Null, live, _) if !live.is_null() => {
                changes.push(FieldChange { field, live: live.clone(), wanted: Value::Null });
            }
            (_, _, Some(inner)) => compare_owned_fields(&field, inner, wanted, live, changes),
            _ => {}
        }
    }
}

/// The path of an entry by its name, or by its other keys.
fn keyed_path(path: &str, keys: &Value) -> String {
    match (keys["name"].as_str(), keys.as_object()) {
        (None, Some(keys)) => {
            let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("{path}[{}]", keys.join(","))
        }
        _ => entry_path(path, &keys["name"]),
    }
}

/// The entry of a list that has all these keys.
fn find_keyed<'a>(list: &'a Value, keys: &Value) -> Option<&'a Value> {
    let keys = keys.as_object()?;
    list.as_array()?.iter().find(|entry| keys.iter().all(|(key, value)| entry[key] == *value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_of_the_api_server_are_no_difference() {
        let wanted = json!({ "spec": { "ports": [{ "port": 80 }], "selector": { "a": "b" } } });
        let mut live = json!({ "spec": { "ports": [{ "port": 80, "protocol": "TCP" }], "selector": { "a": "b" }, "clusterIP": "x" } });
        assert!(is_up_to_date(&wanted, &live));
        assert_eq!(list_field_changes(&wanted, &live), []);
        live["spec"]["selector"]["a"] = json!("c");
        assert!(!is_up_to_date(&wanted, &live));
    }

    /// One line for each change.
    fn lines(wanted: &Value, live: &Value) -> Vec<String> {
        list_field_changes(wanted, live)
            .iter()
            .map(|change| format!("{}: {} -> {}", change.field, change.live, change.wanted))
            .collect()
    }

    #[test]
    fn each_changed_field_has_its_path_and_both_values() {
        let container = |env: Value| json!({ "spec": { "containers": [{ "name": "edge", "env": env }] } });
        let variable = |name: &str, value: &str| json!({ "name": name, "value": value });
        for (name, wanted, live, expected) in [
            ("nothing", json!({ "a": 1 }), json!({ "a": 1, "b": 2 }), vec![]),
            ("a value", json!({ "spec": { "a": 1 } }), json!({ "spec": { "a": 2 } }), vec!["spec.a: 2 -> 1"]),
            ("an added field", json!({ "a": { "b": 1 } }), json!({}), vec![r#"a: null -> {"b":1}"#]),
            (
                "a variable, an added and a removed one",
                container(json!([variable("A", "1"), variable("C", "3")])),
                container(json!([variable("A", "2"), variable("B", "2")])),
                vec![
                    r#"spec.containers[edge].env[A].value: "2" -> "1""#,
                    r#"spec.containers[edge].env[C]: null -> {"name":"C","value":"3"}"#,
                    r#"spec.containers[edge].env[B]: {"name":"B","value":"2"} -> null"#,
                ],
            ),
            (
                "an entry of a list without names",
                json!({ "ports": [{ "port": 80 }] }),
                json!({ "ports": [{ "port": 81 }] }),
                vec!["ports[0].port: 81 -> 80"],
            ),
            ("a list of another length", json!({ "a": [1] }), json!({ "a": [1, 2] }), vec!["a: [1,2] -> [1]"]),
            (
                "an annotation",
                json!({ "metadata": { "annotations": { "a.test/b": "1" } } }),
                json!({ "metadata": { "annotations": { "a.test/b": "2" } } }),
                vec![r#"metadata.annotations[a.test/b]: "2" -> "1""#],
            ),
        ] {
            assert_eq!(lines(&wanted, &live), expected, "{name}");
        }
    }

    #[test]
    fn a_field_that_is_not_rendered_any_more_is_removed_if_the_operator_wrote_it() {
        let live = |manager: &str, operation: &str| {
            json!({
                "metadata": { "managedFields": [{ "manager": manager, "operation": operation, "fieldsV1": {
                    "f:metadata": { "f:annotations": { "f:a": {}, "f:b": {} } },
                    "f:spec": { "f:ports": { "k:{\"port\":80}": { ".": {}, "f:port": {}, "f:name": {} } } },
                } }], "annotations": { "a": "1", "b": "2" } },
                "spec": { "ports": [{ "port": 80, "name": "http" }] },
            })
        };
        let wanted = json!({ "metadata": { "annotations": { "a": "1" } }, "spec": { "ports": [{ "port": 80 }] } });
        let removed = [r#"metadata.annotations.b: "2" -> null"#, r#"spec.ports[port=80].name: "http" -> null"#];
        assert_eq!(lines(&wanted, &live(FIELD_MANAGER, "Apply")), removed);
        assert_eq!(lines(&wanted, &live(FIELD_MANAGER, "Update")), [""; 0]);
        assert_eq!(lines(&wanted, &live("kubectl-edit", "Apply")), [""; 0]);
    }
}
