//! Deletes copies of Secrets that no pod can read any more.
//!
//! The operator may not list Secrets, so the status of a cluster names the copies that exist, from before their creation until
//! after their deletion.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, Preconditions};
use serde_json::Value;

use super::context::ControllerContext;
use super::reconcile_error::ReconcileError;
use super::secret_reader::SecretUser;
use crate::api::RealtimeCluster;
use crate::desired::{SecretCopy, ValidCluster};
use crate::kubernetes::apply;

/// The names of copies to write into the status before the rendered ones are created; `None` if it has them. A copy that only
/// a failed reconcile knew would stay until the cluster is deleted.
pub fn list_unrecorded_copies(known: &[String], rendered: &[SecretCopy]) -> Option<Vec<String>> {
    let mut names: BTreeSet<String> = known.iter().cloned().collect();
    let recorded = names.len();
    names.extend(rendered.iter().map(|copy| copy.name.clone()));
    (names.len() > recorded).then(|| names.into_iter().collect())
}

/// Deletes the copies that are neither rendered nor named by a `ReplicaSet` with pods; returns the names of those that
/// remain, for the status.
///
/// # Errors
/// The API server refuses a deletion or does not answer.
pub async fn prune_secret_copies(
    context: &ControllerContext,
    cluster: &RealtimeCluster,
    valid: &ValidCluster,
) -> Result<Vec<String>, ReconcileError> {
    let rendered = valid.secret_copies.iter().map(|copy| copy.name.clone());
    let mut remaining: BTreeSet<String> = rendered.collect();
    let replica_sets = context.live.children_of_kind(cluster, "ReplicaSet");
    let of_pods: BTreeSet<String> = replica_sets
        .iter()
        .filter(|object| has_pods(object))
        .flat_map(|object| list_secret_names(&object.data))
        .collect();
    let known = cluster.status.as_ref().map(|status| status.secret_copies.clone()).unwrap_or_default();
    let uid = cluster.uid().unwrap_or_default();
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &valid.namespace);
    for name in known {
        if remaining.contains(&name) || of_pods.contains(&name) {
            remaining.insert(name);
            continue;
        }
        // The status is no proof of ownership: whoever may write it could name any Secret.
        let live = context.secrets.read(&valid.namespace, &name, &SecretUser::of(cluster)).await?;
        let Some(live) = live.filter(|live| apply::is_owned_by(&**live, &uid)) else {
            continue;
        };
        context.ensure_leader()?;
        let preconditions = Preconditions { uid: live.uid(), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match secrets.delete(&name, &parameters).await {
            Ok(_) => tracing::info!(secret = name, "copy of a Secret deleted: no pod reads it any more"),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => return Err(ReconcileError::from_call(&format!("deleting Secret {name}"), &error)),
        }
        context.secrets.forget(&valid.namespace, &name);
    }
    Ok(remaining.into_iter().collect())
}

/// Whether a `ReplicaSet` has pods, or is to create some.
fn has_pods(replica_set: &DynamicObject) -> bool {
    let count = |pointer: &str| replica_set.data.pointer(pointer).and_then(Value::as_i64).unwrap_or_default();
    count("/spec/replicas") > 0 || count("/status/replicas") > 0
}

/// Names the Secrets that the variables of a pod template reference.
fn list_secret_names(workload: &Value) -> BTreeSet<String> {
    let containers = workload.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    let variables = containers.into_iter().flatten().filter_map(|container| container["env"].as_array()).flatten();
    let names = variables.filter_map(|variable| variable.pointer("/valueFrom/secretKeyRef/name")?.as_str());
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use serde_json::json;

    #[test]
    fn a_copy_is_recorded_before_it_is_created_and_with_those_that_still_exist() {
        let copy = |name: &str| SecretCopy { name: name.to_owned(), source: String::new(), values: BTreeMap::new() };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (case, known, rendered, expected) in [
            ("an install", vec![], vec!["a"], Some(vec!["a"])),
            ("a steady cluster", vec!["a"], vec!["a"], None),
            ("a rotation, whose reconcile may fail", vec!["a"], vec!["b"], Some(vec!["a", "b"])),
            ("after that, another rotation", vec!["a", "b"], vec!["c"], Some(vec!["a", "b", "c"])),
            ("a former value again", vec!["a", "b"], vec!["a"], None),
        ] {
            let rendered: Vec<SecretCopy> = rendered.into_iter().map(copy).collect();
            let found = list_unrecorded_copies(&names(&known), &rendered);
            assert_eq!(found, expected.map(|expected| names(&expected)), "{case}");
        }
    }

    #[test]
    fn a_replica_set_with_pods_keeps_the_secrets_that_its_template_names() {
        let replica_set = |wanted: i64, live: i64| -> DynamicObject {
            serde_json::from_value(json!({
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": { "name": "eu-websocket-1" },
                "spec": { "replicas": wanted, "template": { "spec": { "containers": [{ "env": [
                    { "name": "A", "value": "1" },
                    { "name": "REALTIME_REDIS_URL", "valueFrom": { "secretKeyRef": { "name": "eu-copy-1", "key": "url" } } },
                ] }] } } },
                "status": { "replicas": live },
            }))
            .expect("a ReplicaSet")
        };
        assert!(has_pods(&replica_set(1, 0)), "a pod that was evicted is created again");
        assert!(has_pods(&replica_set(0, 1)), "a pod that terminates still reads it");
        assert!(!has_pods(&replica_set(0, 0)));
        assert_eq!(list_secret_names(&replica_set(1, 1).data), BTreeSet::from(["eu-copy-1".to_owned()]));
    }
}
