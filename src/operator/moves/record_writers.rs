//! External-dns of this Kubernetes, which writes the records of moves: read from its Deployments, as far as the operator's scope and the
//! label of its chart go. One that is not found has no settings that are known, and holds up nothing.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;
use tokio::time::timeout;

use crate::api::RealtimeMigration;
use crate::api::migration::MigrationTrack;
use crate::kubernetes::apply;
use crate::kubernetes::watch::build_api;
use crate::migration::{ExternalDns, OwnershipRecord, check_owners, endpoint_name};
use crate::operator::context::ControllerContext;
use crate::process::clock::whole_ms;
use crate::process::locks::lock_unpoisoned;

/// Label by which a Deployment of external-dns is found (its chart and its kustomization set it).
const WRITER_SELECTOR: &str = "app.kubernetes.io/name=external-dns";

/// Time for which the Deployments are kept.
const WRITERS_TTL: Duration = Duration::from_secs(15);

/// Longest wait for the Deployments, and for the objects that TXT records name.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Deployments and objects that are read at most.
const DEPLOYMENTS_MAX: u32 = 20;
const OBJECTS_MAX: usize = 8;

/// The Deployments of external-dns, as they were read last.
#[derive(Default)]
pub struct RecordWriters(Mutex<Option<(u64, Vec<ExternalDns>)>>);

impl RecordWriters {
    /// Finds those that make records of a host from the objects of a move; none where they cannot be read.
    pub async fn find(
        &self,
        context: &ControllerContext,
        migration: &RealtimeMigration,
        host: &str,
        now_ms: u64,
    ) -> Vec<ExternalDns> {
        let namespace = migration.namespace().unwrap_or_default();
        let known = lock_unpoisoned(&self.0).clone();
        let is_fresh = |(at_ms, _): &(u64, Vec<ExternalDns>)| now_ms.saturating_sub(*at_ms) < whole_ms(WRITERS_TTL);
        let mut writers = known.as_ref().map(|(_, writers)| writers.clone()).unwrap_or_default();
        if !known.as_ref().is_some_and(is_fresh) {
            // A call that fails says nothing about those that were read before.
            writers = list_writers(context).await.unwrap_or(writers);
            *lock_unpoisoned(&self.0) = Some((now_ms, writers.clone()));
        }
        writers.retain(|found| found.writes(&namespace, host));
        writers
    }
}

/// Lists the Deployments of the scope; `None` if a call failed.
async fn list_writers(context: &ControllerContext) -> Option<Vec<ExternalDns>> {
    let parameters = ListParams::default().labels(WRITER_SELECTOR).limit(DEPLOYMENTS_MAX);
    let mut found = Vec::new();
    for range in context.scope.ranges() {
        let api = build_api::<Deployment>(&context.client, &range);
        match timeout(READ_TIMEOUT, api.list(&parameters)).await {
            Ok(Ok(listed)) => found.extend(listed.items.iter().filter_map(ExternalDns::of_deployment)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "Deployments of external-dns not read");
                return None;
            }
            Err(_) => return None,
        }
    }
    Some(found)
}

/// Looks for an obstacle in the ownership of a host's records, before a record of the move exists.
pub async fn find_ownership_obstacle(
    context: &ControllerContext,
    (migration, track): (&RealtimeMigration, &MigrationTrack),
    writers: &[ExternalDns],
    found: &BTreeSet<OwnershipRecord>,
) -> Option<String> {
    let resource = format!("crd/{}/{}", migration.namespace().unwrap_or_default(), endpoint_name(migration, track));
    let named: BTreeSet<&str> = found.iter().map(|record| record.resource.as_str()).collect();
    let mut here = BTreeSet::new();
    for name in named.into_iter().filter(|name| *name != resource).take(OBJECTS_MAX) {
        if is_here(context, name).await {
            here.insert(name);
        }
    }
    check_owners(writers, found, &resource, |name| here.contains(name))
}

/// Whether this Kubernetes has the object of a record. One that cannot be read counts as present: it is no reason to hold a move.
async fn is_here(context: &ControllerContext, resource: &str) -> bool {
    let parts: Vec<&str> = resource.split('/').collect();
    let ["crd", namespace, name] = parts[..] else { return false };
    let object = json!({
        "apiVersion": "externaldns.k8s.io/v1alpha1",
        "kind": "DNSEndpoint",
        "metadata": { "name": name, "namespace": namespace },
    });
    let read = timeout(READ_TIMEOUT, apply::fetch_object(&context.client, &object)).await;
    !matches!(read, Ok(Ok(None)))
}
