//! The CRDs that the API server serves, compared with those of this version: with older ones the API server drops the fields
//! that it does not know, of manifests and of the status, without an error.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::Client;
use kube::api::{GetParams, Request};
use serde_json::Value;
use tokio::time::sleep;

use super::name_list::list_names;
use crate::api::RealtimeCluster;
use crate::api::crd::all_crds;

/// Attempts to find every field, and the time between two: the API server publishes a changed schema some moments after the
/// CRD.
const READ_ATTEMPTS_MAX: u32 = 10;
const READ_INTERVAL: Duration = Duration::from_secs(1);

/// Missing fields that a message names.
const NAMED_FIELDS_MAX: usize = 3;

/// Checks that the API server knows every field and every word of this version's CRDs. `None` if it does, or if its schema
/// cannot be read, which is logged; otherwise the first missing ones, as a part of a message.
pub async fn find_missing_fields(client: &Client) -> Option<String> {
    let mut missing = vec![];
    for attempt in 0..READ_ATTEMPTS_MAX {
        if attempt > 0 {
            sleep(READ_INTERVAL).await;
        }
        let served = match read_schemas(client).await {
            Ok(served) => served,
            Err(error) => {
                tracing::warn!(%error, "schemas of the CRDs not readable: older CRDs are not noticed");
                return None;
            }
        };
        missing = list_missing_fields(&served);
        if missing.is_empty() {
            return None;
        }
    }
    Some(list_names(&missing, NAMED_FIELDS_MAX))
}

/// Reads the published schemas of our group and version.
async fn read_schemas(client: &Client) -> Result<Value, kube::Error> {
    let group = <RealtimeCluster as kube::Resource>::group(&());
    let version = <RealtimeCluster as kube::Resource>::version(&());
    let request = Request::new(format!("/openapi/v3/apis/{group}")).get(&version, &GetParams::default());
    client.request(request.map_err(kube::Error::BuildRequest)?).await
}

/// The fields and words of our CRDs that the published schemas lack, such as `RealtimeCluster.spec.gate.mode`.
fn list_missing_fields(served: &Value) -> Vec<String> {
    let schemas = served.pointer("/components/schemas").and_then(Value::as_object);
    let of_kind = |kind: &str| {
        let is_kind = |schema: &&Value| {
            let kinds = schema["x-kubernetes-group-version-kind"].as_array();
            kinds.is_some_and(|kinds| kinds.iter().any(|found| found["kind"] == kind))
        };
        schemas.into_iter().flat_map(|schemas| schemas.values()).find(is_kind)
    };
    let mut missing = vec![];
    for crd in all_crds().unwrap_or_default() {
        let own = &crd.object["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for part in ["spec", "status"] {
            let path = format!("{}.{part}", crd.kind);
            let known = of_kind(crd.kind).map(|schema| collect_fields(&schema["properties"][part], &path));
            let known = known.unwrap_or_default();
            let wanted = collect_fields(&own["properties"][part], &path);
            missing.extend(wanted.difference(&known).cloned());
        }
    }
    // The fields below a missing object are missing too, and not listed.
    let roots = missing.clone();
    missing.retain(|field| !roots.iter().any(|root| field.len() > root.len() && is_below(field, root)));
    missing
}

fn is_below(field: &str, root: &str) -> bool {
    field.strip_prefix(root).is_some_and(|rest| rest.starts_with(['.', '[', ':']))
}

/// The paths of all fields of a schema, and `PATH: word` for each word of an enumeration.
fn collect_fields(schema: &Value, path: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::from([path.to_owned()]);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        found.extend(collect_fields(property, &format!("{path}.{name}")));
    }
    for (key, mark) in [("items", "[]"), ("additionalProperties", "[*]")] {
        if schema[key].is_object() {
            found.extend(collect_fields(&schema[key], &format!("{path}{mark}")));
        }
    }
    let words = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
    found.extend(words.map(|word| format!("{path}: {word}")));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The schemas that an API server publishes for our CRDs.
    fn published() -> Value {
        let schemas = all_crds().expect("the CRDs").into_iter().map(|crd| {
            let mut schema = crd.object["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
            schema["x-kubernetes-group-version-kind"] = json!([{ "group": "realtime-operator.dev", "kind": crd.kind }]);
            (format!("dev.{}", crd.kind), schema)
        });
        json!({ "components": { "schemas": schemas.collect::<serde_json::Map<_, _>>() } })
    }

    fn cluster_spec(served: &mut Value) -> &mut Value {
        &mut served["components"]["schemas"]["dev.RealtimeCluster"]["properties"]["spec"]["properties"]
    }

    #[test]
    fn older_crds_are_found_by_the_fields_and_words_that_they_lack() {
        assert_eq!(list_missing_fields(&published()), Vec::<String>::new());
        let mut served = published();
        let spec = cluster_spec(&mut served).as_object_mut().expect("properties");
        spec.remove("gate");
        spec["webhooks"]["properties"]["mode"]["enum"] = json!(["Kinesis"]);
        let missing = list_missing_fields(&served);
        assert_eq!(missing, ["RealtimeCluster.spec.gate", "RealtimeCluster.spec.webhooks.mode: Off"]);
        assert_eq!(
            list_names(&missing, NAMED_FIELDS_MAX),
            "RealtimeCluster.spec.gate, RealtimeCluster.spec.webhooks.mode: Off"
        );
        let many: Vec<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        assert_eq!(list_names(&many, NAMED_FIELDS_MAX), "a, b, c and 2 more");
        let none = list_missing_fields(&json!({}));
        assert_eq!(none.len(), 6, "spec and status of three kinds: {none:?}");
    }

    #[test]
    fn newer_crds_are_no_older_ones() {
        let mut served = published();
        cluster_spec(&mut served)["future"] = json!({ "type": "string" });
        assert!(list_missing_fields(&served).is_empty());
    }
}
