//! Turns manifests into the objects that should exist: validate, then render. Pure.
//!
//! In: manifests, the Secrets that they reference, and a source of generated secrets. Out: typed Kubernetes objects with
//! the variables of every server in their pod templates, or problems with path and remedy. After [`validate()`] no code
//! reads the raw manifest again.
//!
//! The operator applies the rendered objects, `realtime render` prints them, and a rehearsal runs them: servers are
//! configured in no other way. This room must not know clients.

mod environment;
pub mod manifest;
pub mod render;
mod validate;

pub use environment::{MissingReference, resolve_environment};
pub use manifest::{InputError, Manifests};
pub use render::{DesiredObjects, render_objects};
pub use validate::{
    ClusterInputs, ManifestProblem, ProbeApp, RefusedApp, SecretReference, StreamIdentity, ValidCluster,
    collect_secret_references, stream_name, validate,
};
