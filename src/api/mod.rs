//! The public API: the custom resources with their spec and status.
//!
//! In: nothing. Out: the kinds with their schema and rules, the condition types and reasons, and the CRDs printed from
//! them. The rules are part of the schema and are evaluated in this process too, so that `realtime render` and an API
//! server judge a file alike.
//!
//! This room must not know clients nor how objects are reconciled.

pub mod app;
pub mod cluster;
pub mod conditions;
pub mod crd;
mod documented_words;
pub mod expose;
#[cfg(test)]
pub mod fixture;
mod image;
pub mod load_balancer;
mod log_level;
pub mod migration;
pub mod pods;
mod schema_validation;
pub mod status;
pub mod stream;
mod webhook_pipeline;
pub mod yaml;

pub use app::{RealtimeApp, RealtimeAppSpec};
pub use cluster::{RealtimeCluster, RealtimeClusterSpec};
pub use conditions::Reason;
pub use migration::{RealtimeMigration, RealtimeMigrationSpec};
pub use schema_validation::{SchemaFinding, check_schema};

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// API group of all kinds.
pub const API_GROUP: &str = "realtime-operator.dev";

/// Annotation of a cluster that requests a proof: each new value starts one round of journeys at once, whose result is
/// `status.gate.requestedProof`.
pub const PROVE_NOW_ANNOTATION: &str = "realtime-operator.dev/prove-now";

/// Annotation of a cluster that has its sealed snapshot published as the `ConfigMap` `<cluster>-snapshot`; its value is the name of
/// the Secret with the key of the snapshots, as `realtime migrate init` prints it.
pub const PUBLISH_SNAPSHOT_ANNOTATION: &str = "realtime-operator.dev/publish-snapshot";

/// Annotation of a move's source that has its operator watch the target; its value is the name of a `ConfigMap` beside the cluster
/// with the copy of the target's snapshot under `snapshot.yaml`. The key is that of [`PUBLISH_SNAPSHOT_ANNOTATION`].
pub const TARGET_SNAPSHOT_ANNOTATION: &str = "realtime-operator.dev/target-snapshot";

/// Whether a part is enabled. An enum instead of a boolean, so that a third value can be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EnabledState {
    /// The part is enabled.
    #[default]
    Enabled,
    /// The part is disabled.
    Disabled,
}

/// Reference to a Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')").message("this is no name of a Secret: write lower-case letters, digits, dashes and dots"))]
    pub name: String,
}

/// Reference to one key of a Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')").message("this is no name of a Secret: write lower-case letters, digits, dashes and dots"))]
    pub name: String,
    /// Key within the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')").message("this is no key of a Secret: write letters, digits, dashes, dots and underscores"))]
    pub key: String,
}
