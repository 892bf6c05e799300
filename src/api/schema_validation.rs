//! Validates an object against the schema of its kind, as strictly as an API server with `fieldValidation=Strict`, and
//! reports path and remedy.

use std::collections::HashSet;

use serde_json::Value;

use super::pods::{AMOUNT_PATTERN, OBJECT_NAME_PATTERN, is_amount};
use crate::config::{is_host, is_path_prefix, is_script, suggest_name};

/// A violation of the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaFinding {
    /// Path of the field: `spec.aws.region`.
    pub path: String,
    /// The violation and its remedy.
    pub message: String,
}

/// Finds all violations of `schema` in `value`, in the order of the document.
#[must_use]
pub fn check_schema(value: &Value, schema: &Value) -> Vec<SchemaFinding> {
    let mut findings = Vec::new();
    visit_value(value, schema, "", &mut findings);
    findings
}

fn visit_value(value: &Value, schema: &Value, path: &str, findings: &mut Vec<SchemaFinding>) {
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    let mut report = |message: String| findings.push(SchemaFinding { path: path.to_owned(), message });
    let is_either = value.is_string() || value.is_i64() || value.is_u64();
    if schema["x-kubernetes-int-or-string"] == true && !is_either {
        report(format!("is {}, a whole number or a text is wanted", describe_value(value)));
        return;
    }
    let wanted = schema["type"].as_str().unwrap_or_default();
    if !has_type(value, wanted) {
        report(format!(
            "is {}, {} is wanted{}",
            describe_value(value),
            indefinite_article(wanted),
            check_choice(schema)
        ));
        return;
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        report(format!("is {}: write one of {}", describe_value(value), join_list(allowed)));
    }
    match value {
        Value::String(text) => {
            let length = text.chars().count() as u64;
            if schema["minLength"].as_u64().is_some_and(|least| length < least) {
                report("is empty: write a value".to_owned());
            }
            if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
                report(format!("has {length} characters, at most {most} are allowed: shorten it"));
            }
            if let Some(pattern) = schema["pattern"].as_str()
                && !matches_type(pattern, text)
            {
                report(format!("is {}: write a text that matches `{pattern}`", describe_value(value)));
            }
        }
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            let (least, most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
            if least.is_some_and(|least| number < least) || most.is_some_and(|most| number > most) {
                let bound = |bound: Option<f64>| bound.map_or_else(|| "any".to_owned(), |bound| bound.to_string());
                report(format!("is {number}: write a number from {} to {}", bound(least), bound(most)));
            }
        }
        Value::Array(items) => {
            if let Some(most) = schema["maxItems"].as_u64().filter(|most| items.len() as u64 > *most) {
                report(format!("has {} entries, at most {most} are allowed: remove some", items.len()));
            }
            for (index, name) in find_duplicates(items, schema) {
                findings.push(SchemaFinding {
                    path: format!("{path}[{index}]"),
                    message: format!("is a second entry named `{name}`: remove it, or give it another name"),
                });
            }
            for (index, item) in items.iter().enumerate() {
                visit_value(item, &schema["items"], &format!("{path}[{index}]"), findings);
            }
        }
        Value::Object(fields) => check_object(fields, schema, path, findings),
        Value::Null | Value::Bool(_) => {}
    }
}

/// The entries of a list-map whose key an earlier entry has, each with its index.
fn find_duplicates<'a>(items: &'a [Value], schema: &Value) -> Vec<(usize, &'a str)> {
    let keys = schema["x-kubernetes-list-map-keys"].as_array().map(Vec::as_slice).unwrap_or_default();
    // Every list-map of these schemas has one key, a name or a type.
    let Some(key) = keys.first().and_then(Value::as_str) else { return vec![] };
    let mut known = HashSet::new();
    let named = items.iter().enumerate().filter_map(|(index, item)| Some((index, item[key].as_str()?)));
    named.filter(|(_, name)| !known.insert(*name)).collect()
}

fn check_object(
    fields: &serde_json::Map<String, Value>,
    schema: &Value,
    path: &str,
    findings: &mut Vec<SchemaFinding>,
) {
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let Some(known) = schema["properties"].as_object() else {
        let every = &schema["additionalProperties"];
        if let Some(most) = schema["maxProperties"].as_u64().filter(|most| fields.len() as u64 > *most) {
            let message = format!("has {} entries, at most {most} are allowed: remove some", fields.len());
            findings.push(SchemaFinding { path: path.to_owned(), message });
        }
        fields.iter().for_each(|(name, value)| visit_value(value, every, &join(name), findings));
        return;
    };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if fields.get(name).is_none_or(Value::is_null) {
            let about = known.get(name).and_then(|field| field["description"].as_str()).unwrap_or_default();
            findings.push(SchemaFinding {
                path: join(name),
                message: format!("is missing: add it. {about}").trim().to_owned(),
            });
        }
    }
    for (name, value) in fields {
        match known.get(name) {
            Some(_) if value.is_null() => {}
            Some(field) => visit_value(value, field, &join(name), findings),
            // These belong to the API server's own schema.
            None if path.is_empty() && ["apiVersion", "kind", "metadata"].contains(&name.as_str()) => {}
            None => findings.push(SchemaFinding { path: join(name), message: unknown_field(name, known) }),
        }
    }
}

fn unknown_field(name: &str, known: &serde_json::Map<String, Value>) -> String {
    if let Some(meant) = suggest_name(name, known.keys().map(String::as_str)) {
        return format!("is no field: did you mean `{meant}`?");
    }
    let names: Vec<&str> = known.keys().map(String::as_str).collect();
    format!("is no field: remove it, or write one of {}", names.join(", "))
}

fn has_type(value: &Value, wanted: &str) -> bool {
    match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => true,
    }
}

fn indefinite_article(wanted: &str) -> &'static str {
    match wanted {
        "object" => "a mapping",
        "array" => "a list",
        "string" => "a text",
        "boolean" => "true or false",
        "integer" => "a whole number",
        _ => "a number",
    }
}

fn describe_value(value: &Value) -> String {
    match value {
        Value::Null => "empty".to_owned(),
        Value::Bool(_) | Value::Number(_) => format!("`{value}`"),
        Value::String(text) if text.is_empty() => "an empty text".to_owned(),
        Value::String(text) => format!("the text `{text}`"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}

fn check_choice(schema: &Value) -> String {
    schema["enum"].as_array().map_or_else(String::new, |allowed| format!(": write one of {}", join_list(allowed)))
}

fn join_list(allowed: &[Value]) -> String {
    allowed.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

/// Matches the few patterns of these schemas without a regular-expression engine; a test fails on an unknown pattern.
fn matches_type(pattern: &str, text: &str) -> bool {
    match pattern {
        "^https?://.+" => {
            ["http://", "https://"].iter().any(|p| text.strip_prefix(p).is_some_and(|rest| !rest.is_empty()))
        }
        "^https?://[A-Za-z0-9._~:/@%+=?-]+$" => is_script(text),
        r"^[A-Za-z0-9.:/*\[\]_+-]+$" => {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".:/*[]_+-".contains(&b))
        }
        r"^([A-Za-z0-9.-]|\{pod\})+$" => is_host(text),
        r"^(/[A-Za-z0-9._~-]+)+$" => is_path_prefix(text),
        "^arn:" => text.starts_with("arn:"),
        "^[0-9]{1,20}$" => (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()),
        "^[a-zA-Z0-9_.-]+$" => {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        }
        r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$" => is_version(text),
        OBJECT_NAME_PATTERN => {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            let (first, last) = (text.bytes().next(), text.bytes().last());
            first.is_some_and(inner) && last.is_some_and(inner) && text.bytes().all(|b| inner(b) || b"-.".contains(&b))
        }
        AMOUNT_PATTERN => is_amount(text),
        _ => false,
    }
}

/// Whether a text is a version such as `1.2.3` or `1.2.3-rc.1`.
fn is_version(text: &str) -> bool {
    let (core, addition) = text.split_once('-').map_or((text, None), |(core, addition)| (core, Some(addition)));
    let numbers: Vec<&str> = core.split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_plain =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b));
    numbers.len() == 3 && numbers.iter().all(is_number) && addition.is_none_or(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::crd;
    use crate::api::fixture::MINIMAL_CLUSTER;
    use serde_json::json;

    fn cluster(patch: &Value) -> Vec<SchemaFinding> {
        let mut value: Value = serde_yaml::from_str(MINIMAL_CLUSTER).expect("a manifest");
        merge(&mut value["spec"], patch);
        check_schema(&value, crd::object_schema("RealtimeCluster").expect("a schema"))
    }

    fn merge(value: &mut Value, patch: &Value) {
        match (value, patch) {
            (Value::Object(fields), Value::Object(changes)) => {
                for (name, change) in changes {
                    merge(fields.entry(name.clone()).or_insert(Value::Null), change);
                }
            }
            (value, patch) => *value = patch.clone(),
        }
    }

    #[test]
    fn each_violation_is_reported_with_its_path_and_remedy() {
        for (name, patch, path, says) in [
            ("a misspelt field", json!({ "websockets": {} }), "spec.websockets", "did you mean `websocket`?"),
            ("a field of nowhere", json!({ "aws": { "zone": 1 } }), "spec.aws.zone", "or write one of"),
            (
                "a wrong type",
                json!({ "websocket": { "replicas": "3" } }),
                "spec.websocket.replicas",
                "a whole number is wanted",
            ),
            ("a fraction", json!({ "websocket": { "replicas": 1.5 } }), "spec.websocket.replicas", "a whole number"),
            (
                "no replicas",
                json!({ "sockjs": { "replicas": 0 } }),
                "spec.sockjs.replicas",
                "write a number from 1 to 1000",
            ),
            ("an empty region", json!({ "aws": { "region": "" } }), "spec.aws.region", "is empty: write a value"),
            ("an absent region", json!({ "aws": { "region": null } }), "spec.aws.region", "is missing: add it"),
            (
                "a word of no meaning",
                json!({ "webhooks": { "mode": "On" } }),
                "spec.webhooks.mode",
                "write one of Kinesis, Off",
            ),
            (
                "a bare off, as YAML 1.1 reads it",
                json!({ "webhooks": { "mode": false } }),
                "spec.webhooks.mode",
                "write one of Kinesis, Off",
            ),
            ("a list for a mapping", json!({ "aws": { "identity": [] } }), "spec.aws.identity", "a mapping is wanted"),
            (
                "an item of a list",
                json!({ "sockjs": { "env": [{ "nam": "x" }] } }),
                "spec.sockjs.env[0].nam",
                "did you mean `name`?",
            ),
        ] {
            let findings = cluster(&patch);
            assert!(
                findings.iter().any(|finding| finding.path == path && finding.message.contains(says)),
                "{name}: {findings:?}"
            );
        }
        assert_eq!(cluster(&json!({})), []);
    }

    #[test]
    fn a_version_has_three_numbers() {
        for (text, expected) in [
            ("0.1.0", true),
            ("1.20.3-rc.1", true),
            ("v0.1.0", false),
            ("0.1", false),
            ("0.1.0.0", false),
            ("0.1.0-", false),
            ("0.1.0-a+b", false),
            ("0..0", false),
        ] {
            assert_eq!(is_version(text), expected, "{text}");
        }
    }

    #[test]
    fn every_pattern_of_the_schemas_is_known() {
        fn patterns(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("pattern").and_then(Value::as_str).map(str::to_owned));
                    fields.values().for_each(|field| patterns(field, found));
                }
                Value::Array(items) => items.iter().for_each(|item| patterns(item, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        for kind in ["RealtimeCluster", "RealtimeApp", "RealtimeMigration"] {
            patterns(crd::object_schema(kind).expect("a schema"), &mut found);
        }
        assert!(found.len() > 3);
        for pattern in found {
            let fits = ["https://x", "arn:aws:iam::1:role/x", "1001", "a-stream", "0.1.0", "/ws"]
                .iter()
                .any(|text| matches_type(&pattern, text));
            assert!(fits, "`{pattern}` is not known");
        }
    }
}
