//! The report of a difference: objects, fields, and the effect on pods and gate. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::operator::{FieldChange, list_field_changes};

/// Longest value of a field in a line of text.
const SHOWN_VALUE_LEN_MAX: usize = 100;

/// Kind, namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    /// The key of an object.
    pub fn of(object: &Value) -> Self {
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self { kind: text("/kind"), namespace: text("/metadata/namespace"), name: text("/metadata/name") }
    }

    fn describe(&self) -> String {
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// The effect on an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ObjectEffect {
    Created,
    Changed,
    Pruned,
}

impl ObjectEffect {
    fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Pruned => "pruned",
        }
    }
}

/// An object that an apply creates, changes or deletes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectDifference {
    pub object: String,
    pub effect: ObjectEffect,
    /// The changed fields; empty for other effects.
    pub fields: Vec<FieldChange>,
}

/// The difference that an apply of a manifest makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DifferenceReport {
    pub objects: Vec<ObjectDifference>,
    /// Deployments whose pods are replaced, since their template changes.
    pub replaces_pods_of: Vec<String>,
    /// Whether the gate proves the cluster anew: templates, Secrets or the stream differ from those that were proven.
    pub proves_anew: bool,
    /// Whether the manifest is suspended, so that children wait.
    pub suspended: bool,
}

/// Names of the live Deployments whose pods are replaced: a field of their template changes.
pub fn list_replaced(objects: &[ObjectDifference]) -> Vec<String> {
    let is_of_template = |change: &FieldChange| change.field.starts_with("spec.template.");
    let replaced = objects.iter().filter(|object| object.fields.iter().any(is_of_template));
    let names = replaced.filter_map(|object| object.object.strip_prefix("Deployment ")?.split_once('/'));
    names.map(|(_, name)| name.to_owned()).collect()
}

/// Hides the values of Secrets behind salted digests: equal values have equal digests within one report.
pub struct SecretMask {
    salt: [u8; 16],
}

impl SecretMask {
    /// A mask whose digests cannot be compared with those of another one.
    pub fn random() -> Self {
        Self { salt: rand::random() }
    }

    /// The object with its values as digests, if it is a Secret.
    fn apply(&self, object: &Value) -> Value {
        let mut masked = object.clone();
        if object["kind"] == "Secret" {
            for values in ["data", "stringData"] {
                let entries = masked.get_mut(values).and_then(Value::as_object_mut);
                for value in entries.into_iter().flat_map(|entries| entries.values_mut()) {
                    let text = value.as_str().unwrap_or_default();
                    let bytes = if values == "data" { STANDARD.decode(text).ok() } else { None };
                    *value = json!(self.digest(&bytes.unwrap_or_else(|| text.as_bytes().to_vec())));
                }
            }
        }
        masked
    }

    fn digest(&self, value: &[u8]) -> String {
        let digest = Sha256::new().chain_update(self.salt).chain_update(value).finalize();
        format!("sha256:{}", hex::encode(&digest[..6]))
    }
}

/// Compares the objects after an apply with the live ones. `pruned` are live objects that are not rendered any more.
pub fn compare_objects(
    wanted: &[Value],
    live: &BTreeMap<ObjectKey, Value>,
    pruned: impl IntoIterator<Item = ObjectKey>,
    mask: &SecretMask,
) -> Vec<ObjectDifference> {
    let compared = wanted.iter().filter_map(|object| {
        let key = ObjectKey::of(object);
        let Some(found) = live.get(&key) else {
            return Some(ObjectDifference { object: key.describe(), effect: ObjectEffect::Created, fields: vec![] });
        };
        let fields = list_field_changes(&mask.apply(object), &mask.apply(found));
        let changed = ObjectDifference { object: key.describe(), effect: ObjectEffect::Changed, fields };
        (!changed.fields.is_empty()).then_some(changed)
    });
    let mut found: Vec<ObjectDifference> = compared.collect();
    found.extend(pruned.into_iter().map(|key| ObjectDifference {
        object: key.describe(),
        effect: ObjectEffect::Pruned,
        fields: vec![],
    }));
    found
}

/// Adds `null` to a specification for each field that only the live one has.
pub fn add_removed_fields(wanted: &mut Value, live: &Value) {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => {
            for (name, value) in live {
                add_removed_fields(wanted.entry(name).or_insert(Value::Null), value);
            }
        }
        (Value::Array(wanted), Value::Array(live)) => {
            for (number, entry) in wanted.iter_mut().enumerate() {
                let named = live.iter().find(|found| !found["name"].is_null() && found["name"] == entry["name"]);
                if let Some(found) = named.or_else(|| live.get(number).filter(|found| found["name"].is_null())) {
                    add_removed_fields(entry, found);
                }
            }
        }
        _ => {}
    }
}

impl DifferenceReport {
    /// Whether an apply changes nothing.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The report as text.
    pub fn to_text(&self) -> String {
        if self.is_empty() {
            return "no difference\n".to_owned();
        }
        let mut text = String::new();
        for object in &self.objects {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "{}: {}", object.object, object.effect.name());
            for change in &object.fields {
                let (live, wanted) = (shorten_value(&change.live), shorten_value(&change.wanted));
                let _ = writeln!(text, "  {}: {live} -> {wanted}", change.field);
            }
        }
        text.push('\n');
        if self.suspended {
            text.push_str("The manifest is suspended: its children stay as they are.\n");
        }
        let _ = match self.replaces_pods_of.as_slice() {
            [] => writeln!(text, "No pod is replaced."),
            names => writeln!(text, "Pods are replaced, since their template changes: {}.", names.join(", ")),
        };
        let gate = if self.proves_anew {
            "The gate proves the cluster anew: Ready is Unknown until then."
        } else {
            "The gate stays as it is: nothing that it has proven changes."
        };
        let _ = writeln!(text, "{gate}");
        text
    }
}

fn shorten_value(value: &Value) -> String {
    let text = match value {
        Value::Null => "(none)".to_owned(),
        value => value.to_string(),
    };
    if text.chars().count() <= SHOWN_VALUE_LEN_MAX {
        return text;
    }
    format!("{}…", text.chars().take(SHOWN_VALUE_LEN_MAX).collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn object(kind: &str, name: &str, more: &Value) -> Value {
        let mut object = json!({ "kind": kind, "metadata": { "name": name, "namespace": "n" } });
        object.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
        object
    }

    fn compare(wanted: &[Value], live: &[Value], pruned: &[ObjectKey]) -> Vec<ObjectDifference> {
        let live = live.iter().map(|object| (ObjectKey::of(object), object.clone())).collect();
        compare_objects(wanted, &live, pruned.to_vec(), &SecretMask { salt: [7; 16] })
    }

    #[test]
    fn pods_are_replaced_when_a_field_of_their_template_changes() {
        let deployment = |name: &str, priority: &str, replicas: u32| {
            let spec = json!({ "replicas": replicas, "template": { "spec": { "priorityClassName": priority } } });
            object("Deployment", name, &json!({ "spec": spec }))
        };
        let live = [deployment("eu-websocket", "low", 2), deployment("eu-sockjs", "low", 2)];
        let found = compare(&[deployment("eu-websocket", "high", 2), deployment("eu-sockjs", "low", 3)], &live, &[]);
        assert_eq!(found.len(), 2);
        assert_eq!(list_replaced(&found), ["eu-websocket"]);
    }

    #[test]
    fn objects_are_created_changed_or_pruned_and_equal_ones_are_left_out() {
        let service = |port: u16| object("Service", "a", &json!({ "spec": { "ports": [{ "port": port }] } }));
        let other = object("Deployment", "a", &json!({}));
        let pruned = ObjectKey::of(&object("Ingress", "old", &json!({})));
        let found = compare(&[service(80), other.clone()], &[service(81)], &[pruned]);
        let lines: Vec<(&str, ObjectEffect, usize)> =
            found.iter().map(|found| (found.object.as_str(), found.effect, found.fields.len())).collect();
        let expected = [
            ("Service n/a", ObjectEffect::Changed, 1),
            ("Deployment n/a", ObjectEffect::Created, 0),
            ("Ingress n/old", ObjectEffect::Pruned, 0),
        ];
        assert_eq!(lines, expected);
        assert_eq!(compare(&[service(80), other.clone()], &[service(80), other], &[]), []);
    }

    #[test]
    fn a_field_that_the_manifest_has_no_more_is_removed() {
        let live = json!({ "a": 1, "b": { "c": 2 }, "hooks": [{ "name": "x", "timeout": 3 }], "hosts": ["h"] });
        let mut wanted = json!({ "a": 1, "hooks": [{ "name": "y" }, { "name": "x" }], "hosts": ["h"] });
        add_removed_fields(&mut wanted, &live);
        let expected = json!({
            "a": 1, "b": null, "hooks": [{ "name": "y" }, { "name": "x", "timeout": null }], "hosts": ["h"],
        });
        assert_eq!(wanted, expected);
        let object = |spec: &Value| object("RealtimeApp", "shop", &json!({ "spec": spec }));
        let found = compare(&[object(&wanted)], &[object(&live)], &[]);
        let fields: BTreeSet<&str> = found[0].fields.iter().map(|change| change.field.as_str()).collect();
        assert_eq!(fields, BTreeSet::from(["spec.b", "spec.hooks[y]", "spec.hooks[x].timeout"]));
    }

    #[test]
    fn no_value_of_a_secret_is_shown() {
        let secret = |value: &str| {
            object("Secret", "s", &json!({ "data": { "url": STANDARD.encode(value), "same": STANDARD.encode("b") } }))
        };
        let found = compare(&[secret("redis://new-password")], &[secret("redis://old-password")], &[]);
        let shown = serde_json::to_string(&found).expect("JSON");
        assert_eq!((found.len(), found[0].fields.len()), (1, 1), "{shown}");
        assert_eq!(found[0].fields[0].field, "data.url");
        for text in ["password", &STANDARD.encode("redis://new-password"), &STANDARD.encode("redis://old-password")] {
            assert!(!shown.contains(text), "{shown}");
        }
        let other = SecretMask::random();
        assert_ne!(other.digest(b"a"), SecretMask { salt: [7; 16] }.digest(b"a"), "a digest cannot be looked up");
        assert_eq!(other.digest(b"a"), other.digest(b"a"));
    }

    #[test]
    fn the_text_names_fields_pods_and_the_gate() {
        let change = |field: &str| FieldChange { field: field.to_owned(), live: json!(3), wanted: Value::Null };
        let report = |objects: Vec<ObjectDifference>, pods: &[&str], proves_anew| DifferenceReport {
            objects,
            replaces_pods_of: pods.iter().map(|name| (*name).to_owned()).collect(),
            proves_anew,
            suspended: false,
        };
        let changed = || ObjectDifference {
            object: "Deployment n/eu-websocket".to_owned(),
            effect: ObjectEffect::Changed,
            fields: vec![change("spec.replicas")],
        };
        for (report, expected) in [
            (report(vec![], &[], false), "no difference\n"),
            (
                report(vec![changed()], &[], false),
                "Deployment n/eu-websocket: changed\n  spec.replicas: 3 -> (none)\n\nNo pod is replaced.\nThe gate stays as it is: nothing that it has proven changes.\n",
            ),
            (
                report(vec![changed()], &["eu-websocket"], true),
                "Deployment n/eu-websocket: changed\n  spec.replicas: 3 -> (none)\n\nPods are replaced, since their template changes: eu-websocket.\nThe gate proves the cluster anew: Ready is Unknown until then.\n",
            ),
        ] {
            assert_eq!(report.to_text(), expected);
        }
    }
}
