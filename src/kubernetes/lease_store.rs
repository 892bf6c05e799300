//! Leases as small records with a compare-and-swap: a name, a holder, a generation, a few texts.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, ResourceExt};

/// One record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Its name.
    pub name: String,
    /// The version that was read; empty for a new one.
    pub version: String,
    /// Who holds it.
    pub holder: Option<String>,
    /// Raised by every change of holder.
    pub generation: u64,
    /// What else it says.
    pub texts: BTreeMap<String, String>,
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Another wrote it since it was read, or made it first.
    #[error("another was quicker")]
    Conflict,
    /// The API server does not let us, or does not answer.
    #[error("{0}")]
    Unavailable(Box<kube::Error>),
}

impl From<kube::Error> for RecordError {
    fn from(error: kube::Error) -> Self {
        match &error {
            // Who writes what is gone is as late as who writes what changed.
            kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() || status.is_not_found() => {
                Self::Conflict
            }
            _ => Self::Unavailable(Box::new(error)),
        }
    }
}

/// Records of one namespace that carry the same labels.
#[derive(Clone)]
pub struct LeaseStore {
    api: Api<Lease>,
    labels: BTreeMap<String, String>,
}

impl LeaseStore {
    /// Records of a namespace with these labels.
    #[must_use]
    pub fn new(client: Client, namespace: &str, labels: BTreeMap<String, String>) -> Self {
        Self { api: Api::namespaced(client, namespace), labels }
    }

    /// Every record.
    ///
    /// # Errors
    /// The API server does not let us, or does not answer.
    pub async fn list(&self) -> Result<Vec<LeaseRecord>, RecordError> {
        let labels: Vec<String> = self.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let listed = self.api.list(&ListParams::default().labels(&labels.join(","))).await?;
        Ok(listed.items.into_iter().map(record_from_lease).collect())
    }

    /// One record, if it is there.
    ///
    /// # Errors
    /// The API server does not let us, or does not answer.
    pub async fn get(&self, name: &str) -> Result<Option<LeaseRecord>, RecordError> {
        Ok(self.api.get_opt(name).await?.map(record_from_lease))
    }

    /// Writes a record: a new one if it has no version, else over exactly the version that was read. The answer has the
    /// new version.
    ///
    /// # Errors
    /// Another was quicker, or the API server does not answer.
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

    /// Deletes a record; one that is gone is no error.
    ///
    /// # Errors
    /// The API server does not let us, or does not answer.
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
