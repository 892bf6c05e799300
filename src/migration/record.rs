//! The weighted record of one cluster, in the forms in which others write it.

use serde_json::{Value, json};

use crate::api::RealtimeMigration;
use crate::api::migration::MigrationTrack;

/// The weighted record of one cluster for a host: always a CNAME, since external-dns turns a record that it makes of an
/// annotation into an alias, whose type another cluster's record may not share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedRecord {
    /// Host that clients look up.
    pub host: String,
    /// Host of the cluster alone, to which the record points; also the identifier of the record among those of the host.
    pub target: String,
    /// TTL of the record in seconds.
    pub ttl_seconds: u32,
}

impl WeightedRecord {
    /// The record of a track's target.
    #[must_use]
    pub fn of_track(track: &MigrationTrack) -> Self {
        Self { host: track.host.clone(), target: track.target_host.clone(), ttl_seconds: track.ttl_seconds }
    }

    /// The object from which external-dns writes the record.
    #[must_use]
    pub fn to_endpoint(&self, name: &str, namespace: &str, weight: u8) -> Value {
        json!({
            "apiVersion": "externaldns.k8s.io/v1alpha1",
            "kind": "DNSEndpoint",
            "metadata": { "name": name, "namespace": namespace },
            "spec": { "endpoints": [{
                "dnsName": self.host,
                "recordType": "CNAME",
                "recordTTL": self.ttl_seconds,
                "targets": [self.target],
                "setIdentifier": self.target,
                "providerSpecific": [
                    { "name": "aws/weight", "value": weight.to_string() },
                    // Without it, a CNAME to a load balancer of AWS becomes an alias.
                    { "name": "alias", "value": "false" },
                ],
            }] },
        })
    }

    /// The change batch of Route 53 that gives the record a weight by hand.
    #[must_use]
    pub fn to_change_batch(&self, weight: u8) -> Value {
        json!({
            "Comment": format!("{}: weight {weight} for {}", self.host, self.target),
            "Changes": [{
                "Action": "UPSERT",
                "ResourceRecordSet": {
                    "Name": self.host,
                    "Type": "CNAME",
                    "SetIdentifier": self.target,
                    "Weight": weight,
                    "TTL": self.ttl_seconds,
                    "ResourceRecords": [{ "Value": self.target }],
                },
            }],
        })
    }
}

/// Name of the DNSEndpoint of a track's target.
#[must_use]
pub fn endpoint_name(migration: &RealtimeMigration, track: &MigrationTrack) -> String {
    let transport = serde_json::to_value(track.transport).unwrap_or_default();
    let name = migration.metadata.name.as_deref().unwrap_or_default();
    format!("{name}-{}", transport.as_str().unwrap_or_default())
}
