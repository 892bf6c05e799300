//! Builds the CRDs: the output of the derive macro, with corrections that Kubernetes needs.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::{RealtimeApp, RealtimeCluster, RealtimeMigration};

/// Fields whose types are those of core Kubernetes.
const CORE_FIELDS: [&str; 3] = ["affinity", "tolerations", "topologySpreadConstraints"];

/// One CRD and the name of its file in `crds/`.
#[derive(Clone, Debug)]
pub struct CrdFile {
    /// Name of the file in `crds/`.
    pub file: &'static str,
    /// Kind that the CRD defines.
    pub kind: &'static str,
    /// The CRD as a JSON value.
    pub object: Value,
}

/// Builds the CRDs that are installed.
///
/// # Errors
/// Never for these types; the signature of `serde_json` requires one.
pub fn all_crds() -> Result<Vec<CrdFile>, serde_json::Error> {
    Ok(vec![
        CrdFile { file: "realtimeapps.yaml", kind: "RealtimeApp", object: finish_schema(&RealtimeApp::crd())? },
        CrdFile {
            file: "realtimeclusters.yaml",
            kind: "RealtimeCluster",
            object: finish_schema(&RealtimeCluster::crd())?,
        },
        CrdFile {
            file: "realtimemigrations.yaml",
            kind: "RealtimeMigration",
            object: finish_schema(&RealtimeMigration::crd())?,
        },
    ])
}

/// The schemas by kind, generated once: that takes 10 ms, and a file may hold thousands of objects.
static SCHEMAS: LazyLock<BTreeMap<&'static str, Value>> = LazyLock::new(|| {
    let crds = all_crds().unwrap_or_default().into_iter();
    let schema = |object: &Value| object.pointer("/spec/versions/0/schema/openAPIV3Schema").cloned();
    crds.filter_map(|crd| Some((crd.kind, schema(&crd.object)?))).collect()
});

/// Returns the schema of a kind; `None` for a kind of another API group.
#[must_use]
pub fn object_schema(kind: &str) -> Option<&'static Value> {
    SCHEMAS.get(kind)
}

fn finish_schema(crd: &CustomResourceDefinition) -> Result<Value, serde_json::Error> {
    let mut object = serde_json::to_value(crd)?;
    if let Some(schema) = object.pointer_mut("/spec/versions/0/schema/openAPIV3Schema") {
        // An API server fills defaults only into an object that exists: without this default, an object that was not
        // reconciled yet would have no status, which deployment tools take for done.
        if let Some(status) = schema.pointer_mut("/properties/status") {
            status["default"] = json!({ "observedGeneration": -1 });
        }
        whole_numbers(schema);
        known_formats(schema);
        shorten_core_fields(schema);
    }
    Ok(object)
}

/// Turns bounds such as `1.0` into `1`: other generators print integers, and each regeneration would differ.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                if matches!(name.as_str(), "minimum" | "maximum")
                    && let Some(number) = field.as_f64()
                    && number.fract() == 0.0
                    && let Ok(whole) = format!("{number:.0}").parse::<i64>()
                {
                    *field = whole.into();
                } else {
                    whole_numbers(field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        _ => {}
    }
}

/// Removes formats of unsigned integers: Kubernetes knows only signed ones, and warns on every apply. The bounds stay.
fn known_formats(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let unsigned = fields.get("format").and_then(Value::as_str).is_some_and(|name| name.starts_with("uint"));
            if unsigned && fields.get("type").and_then(Value::as_str) == Some("integer") {
                fields.shift_remove("format");
            }
            fields.values_mut().for_each(known_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(known_formats),
        _ => {}
    }
}

/// Removes the descriptions within fields of core types: they are long, three servers have them, and a CRD must stay small.
fn shorten_core_fields(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                if CORE_FIELDS.contains(&name.as_str()) {
                    let description = field["description"].take();
                    remove_descriptions(field);
                    field["description"] = description;
                } else {
                    shorten_core_fields(field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(shorten_core_fields),
        _ => {}
    }
}

fn remove_descriptions(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            // A property may have this name too; its value is a schema, a description is a text.
            if fields.get("description").is_some_and(Value::is_string) {
                fields.shift_remove("description");
            }
            fields.values_mut().for_each(remove_descriptions);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_descriptions),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_was_not_reconciled_yet_has_a_status() {
        for crd in all_crds().expect("crds") {
            let status = crd.object.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/status");
            assert_eq!(
                status.map(|status| &status["default"]),
                Some(&json!({ "observedGeneration": -1 })),
                "{}",
                crd.kind
            );
            let default = status.and_then(|status| status.pointer("/properties/observedGeneration/default"));
            assert_eq!(default, Some(&json!(-1)), "{}", crd.kind);
        }
    }

    #[test]
    fn a_crd_stays_small_enough_for_kubectl_apply() {
        for crd in all_crds().expect("crds") {
            let size = crd.object.to_string().len();
            assert!(size < 200_000, "{}: {size} bytes", crd.kind);
        }
    }

    #[test]
    fn the_rules_are_in_the_schema() {
        let text = object_schema("RealtimeCluster").expect("a schema").to_string();
        for rule in ["region is immutable", "acknowledgeNoWebhooks", "keep one identity", "belongs to the operator"] {
            assert!(text.contains(rule), "{rule}");
        }
    }
}
