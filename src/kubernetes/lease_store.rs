//! Leases as small records with a compare-and-swap: a name, a holder, a generation, a few texts.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};

/// One Lease, as a record with texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Name of the Lease.
    pub name: String,
    /// Resource version that was read; empty for a new record.
    pub version: String,
    /// Identity of the holder; `None` when it is free.
    pub holder: Option<String>,
    /// Increases with every change of holder.
    pub generation: u64,
    /// Further texts by name, stored as annotations.
    pub texts: BTreeMap<String, String>,
}

/// An error of reading or writing a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Another process wrote or created the record since it was read.
    #[error("another process wrote the record first: read it again")]
    Conflict,
    /// The API server refuses the call or does not answer.
    #[error("{0}")]
    Unavailable(Box<kube::Error>),
}

impl From<kube::Error> for RecordError {
    fn from(error: kube::Error) -> Self {
        match &error {
            // A record that was deleted since it was read is a conflict too.
            kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() || status.is_not_found() => {
                Self::Conflict
            }
            _ => Self::Unavailable(Box::new(error)),
        }
    }
}

/// Store of the records in one namespace that carry the same labels.
#[derive(Clone)]
pub struct LeaseStore {
    api: Api<Lease>,
    labels: BTreeMap<String, String>,
}

impl LeaseStore {
    /// Creates a store for the records of a namespace with these labels.
    #[must_use]
    pub fn new(client: Client, namespace: &str, labels: BTreeMap<String, String>) -> Self {
        Self { api: Api::namespaced(client, namespace), labels }
    }

    /// Lists all records of the store.
    ///
    /// # Errors
    /// The API server refuses the call or does not answer.
    pub async fn list(&self) -> Result<Vec<LeaseRecord>, RecordError> {
        let labels: Vec<String> = self.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let listed = self.api.list(&ListParams::default().labels(&labels.join(","))).await?;
        Ok(listed.items.into_iter().map(record_from_lease).collect())
    }

    /// Reads one record; `None` when it does not exist.
    ///
    /// # Errors
    /// The API server refuses the call or does not answer.
    pub async fn get(&self, name: &str) -> Result<Option<LeaseRecord>, RecordError> {
        Ok(self.api.get_opt(name).await?.map(record_from_lease))
    }

    /// Writes a record: creates it if it has no version, else replaces exactly the version that was read. Returns the
    /// record with its new version.
    ///
    /// # Errors
    /// Another process wrote the record first, or the API server does not answer.
    pub async fn write(&self, record: &LeaseRecord) -> Result<LeaseRecord, RecordError> {
        let spec = LeaseSpec {
            holder_identity: record.holder.clone(),
            lease_transitions: i32::try_from(record.generation).ok(),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        };
        let metadata = ObjectMeta {
            name: Some(record.name.clone()),
            labels: Some(self.labels.clone()),
            annotations: Some(record.texts.clone()),
            resource_version: (!record.version.is_empty()).then(|| record.version.clone()),
            ..ObjectMeta::default()
        };
        let lease = Lease { metadata, spec: Some(spec) };
        let parameters = PostParams::default();
        let written = if record.version.is_empty() {
            self.api.create(&parameters, &lease).await?
        } else {
            self.api.replace(&record.name, &parameters, &lease).await?
        };
        Ok(self::record_from_lease(written))
    }

    /// Deletes a record if it still has the version that was read.
    ///
    /// # Errors
    /// Another process wrote or deleted the record first, or the API server does not answer.
    pub async fn delete_version(&self, record: &LeaseRecord) -> Result<(), RecordError> {
        let preconditions = Preconditions { resource_version: Some(record.version.clone()), uid: None };
        self.api.delete(&record.name, &DeleteParams::default().preconditions(preconditions)).await?;
        Ok(())
    }

    /// Deletes a record; a missing record is no error.
    ///
    /// # Errors
    /// The API server refuses the call or does not answer.
    pub async fn delete(&self, name: &str) -> Result<(), RecordError> {
        match self.api.delete(name, &DeleteParams::default()).await.map_err(RecordError::from) {
            Ok(_) | Err(RecordError::Conflict) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn record_from_lease(lease: Lease) -> LeaseRecord {
    let spec = lease.spec.clone().unwrap_or_default();
    LeaseRecord {
        name: lease.name_any(),
        version: lease.resource_version().unwrap_or_default(),
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        generation: spec.lease_transitions.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        texts: lease.metadata.annotations.unwrap_or_default(),
    }
}
