//! From what users wrote to what should exist: validate, then build. Pure.
//!
//! In: manifests, the Secrets they name, and a source of generated secrets. Out: typed Kubernetes objects with the
//! variables of every server in their pod templates, or findings that say where and what to write instead. After
//! [`validate()`] nobody looks at the raw manifest again.
//!
//! The operator applies what this room builds, `realtime render` prints it, and a rehearsal runs it: there is no second
//! way to configure a server. This room must not know clients.

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
