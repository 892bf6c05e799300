//! What users write, and what they read back.
//!
//! In: nothing. Out: the kinds with their schema and rules, the condition types and reasons, and the CRDs printed from
//! them. The rules stand in the schema and are run in this process too, so that a file is judged the same by
//! `realtime render` and by an API server.
//!
//! This room must not know clients nor how anything is reconciled.

pub mod app;
pub mod cluster;
pub mod conditions;
pub mod crd;
mod schema_validation;
pub mod status;
pub mod yaml;

pub use app::{RealtimeApp, RealtimeAppSpec};
pub use cluster::{RealtimeCluster, RealtimeClusterSpec};
pub use conditions::Reason;
pub use schema_validation::{SchemaFinding, check_schema};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The API group of every kind.
pub const API_GROUP: &str = "realtime-operator.dev";

/// Whether a part is there at all. Not a boolean: a third value may come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EnabledState {
    /// It is.
    #[default]
    Enabled,
    /// It is not.
    Disabled,
}

/// A Secret of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretRef {
    /// The Secret's name.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// One key of a Secret of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The key in it.
    #[schemars(length(min = 1))]
    pub key: String,
}
