//! The target's record as the object of external-dns: read, written and deleted by name. It has no owner, since the garbage
//! collector would take the last answer of a host with its owner.

use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, Preconditions};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use crate::api::RealtimeMigration;
use crate::api::migration::{MigrationTrack, RECORD_WEIGHT_MAX};
use crate::kubernetes::apply::{self, ApplyError};
use crate::migration::{WeightedRecord, endpoint_name};
use crate::operator::context::ControllerContext;
use crate::operator::live_difference::is_up_to_date;
use crate::operator::reconcile_error::ReconcileError;

/// Label of a record with the UID of its move.
pub const MOVE_LABEL: &str = "realtime-operator.dev/migration";

/// Label and its value by which the operator's account is allowed to write an object.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "realtime-operator");

/// The live object of a track's record.
#[derive(Clone, Debug)]
pub struct LiveRecord {
    /// Weight of the record. One that cannot be read counts as the largest, since lookups may lead here by it.
    pub weight: u8,
    /// Whether this move wrote the object.
    pub is_ours: bool,
    object: DynamicObject,
}

/// Renders the object of a track's record.
pub fn render_record(migration: &RealtimeMigration, track: &MigrationTrack, weight: u8) -> Value {
    let namespace = migration.namespace().unwrap_or_default();
    let mut object = WeightedRecord::of_track(track).to_endpoint(&endpoint_name(migration, track), &namespace, weight);
    object["metadata"]["labels"] =
        json!({ MANAGED_BY.0: MANAGED_BY.1, MOVE_LABEL: migration.uid().unwrap_or_default() });
    object
}

/// Reads the object of a track's record; `None` if it does not exist.
///
/// # Errors
/// The API server lacks the kind, refuses the call, or does not answer.
pub async fn read_record(
    context: &ControllerContext,
    migration: &RealtimeMigration,
    track: &MigrationTrack,
) -> Result<Option<LiveRecord>, ApplyError> {
    let found = apply::fetch_object(&context.client, &render_record(migration, track, 0)).await?;
    Ok(found.map(|object| {
        let is_ours = object.labels().get(MOVE_LABEL) == migration.uid().as_ref();
        LiveRecord { weight: read_weight(&object.data), is_ours, object }
    }))
}

fn read_weight(object: &Value) -> u8 {
    let properties = object.pointer("/spec/endpoints/0/providerSpecific").and_then(Value::as_array);
    let weight = properties.and_then(|all| all.iter().find(|found| found["name"] == "aws/weight"));
    weight.and_then(|found| found["value"].as_str()?.parse().ok()).unwrap_or(RECORD_WEIGHT_MAX)
}

impl LiveRecord {
    /// Whether external-dns has read the object as it is: its source `crd` writes the generation into the status
    /// (external-dns 0.21, `source/crd.go`).
    pub fn is_read(&self) -> bool {
        let read = self.object.data.pointer("/status/observedGeneration").and_then(Value::as_i64);
        read.is_some_and(|read| self.object.metadata.generation.is_none_or(|generation| read >= generation))
    }

    /// Whether the object is as it is rendered for its weight.
    pub fn is_intact(&self, migration: &RealtimeMigration, track: &MigrationTrack) -> bool {
        let live = serde_json::to_value(&self.object).unwrap_or_default();
        is_up_to_date(&render_record(migration, track, self.weight), &live)
    }
}

/// Writes the record with a weight.
///
/// # Errors
/// Another object has its name, the lease is lost, or the API server refuses the object or does not answer.
pub async fn write_record(
    context: &ControllerContext,
    (migration, track): (&RealtimeMigration, &MigrationTrack),
    live: Option<&LiveRecord>,
    weight: u8,
) -> Result<(), ReconcileError> {
    ensure_ours(live)?;
    context.ensure_leader()?;
    let mut object = render_record(migration, track, weight);
    if let Some(live) = live {
        // Holds only for the version that was read.
        object["metadata"]["resourceVersion"] = json!(live.object.resource_version());
    }
    apply::apply_object(&context.client, &object).await?;
    tracing::info!(host = track.host, weight, "weight of the record written");
    Ok(())
}

/// Deletes the record, in the version that was read.
///
/// # Errors
/// Another object has its name, the lease is lost, or the API server does not answer.
pub async fn delete_record(context: &ControllerContext, live: &LiveRecord) -> Result<(), ReconcileError> {
    ensure_ours(Some(live))?;
    context.ensure_leader()?;
    let (name, namespace) = (live.object.name_any(), live.object.namespace().unwrap_or_default());
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("externaldns.k8s.io", "v1alpha1", "DNSEndpoint"));
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &namespace, &resource);
    let preconditions = Preconditions { uid: live.object.uid(), resource_version: live.object.resource_version() };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(&name, &parameters).await {
        Ok(_) => {
            tracing::info!(namespace, name, "record deleted");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(ReconcileError::from_call(&format!("deleting DNSEndpoint {name}"), &error)),
    }
}

fn ensure_ours(live: Option<&LiveRecord>) -> Result<(), ReconcileError> {
    match live {
        Some(live) if !live.is_ours => Err(ApplyError::NotOurs {
            kind: "DNSEndpoint".to_owned(),
            namespace: live.object.namespace().unwrap_or_default(),
            name: live.object.name_any(),
            owner: "another move or a person made it".to_owned(),
        }
        .into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_its_move_has_no_owner_and_its_weight_is_read_back() {
        let text = include_str!("../../../tests/fixtures/migration/move.yaml");
        let mut migration: RealtimeMigration = serde_yaml::from_str(text).expect("a migration");
        migration.metadata.uid = Some("u-1".to_owned());
        let object = render_record(&migration, &migration.spec.tracks[0], 20);
        assert_eq!(object["metadata"]["labels"][MOVE_LABEL], "u-1");
        assert_eq!(object["metadata"].get("ownerReferences"), None);
        assert_eq!(read_weight(&object), 20);
        let mut edited = object.clone();
        edited["spec"]["endpoints"][0]["providerSpecific"] = json!([]);
        assert_eq!(read_weight(&edited), RECORD_WEIGHT_MAX, "a weight that was removed by hand");
        let live = |object: &Value| {
            let object: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
            LiveRecord { weight: read_weight(&object.data), is_ours: true, object }
        };
        assert!(live(&object).is_intact(&migration, &migration.spec.tracks[0]));
        edited["spec"]["endpoints"][0] = object["spec"]["endpoints"][0].clone();
        edited["spec"]["endpoints"][0]["targets"] = json!(["elsewhere.example.com"]);
        assert!(!live(&edited).is_intact(&migration, &migration.spec.tracks[0]));
    }
}
