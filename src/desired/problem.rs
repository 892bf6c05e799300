//! Problems of manifests, each with object, path and remedy.

use crate::api::RealtimeApp;

/// A problem that keeps a cluster from being rendered, or an app from being served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {path} {message}")]
pub struct ManifestProblem {
    /// Kind and name of the object: `RealtimeApp shop`.
    pub object: String,
    /// Path of the field.
    pub path: String,
    /// The problem and its remedy.
    pub message: String,
}

/// An app that is not accepted, with its problems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedApp {
    /// Name of the `RealtimeApp` object.
    pub name: String,
    /// The cause of the refusal.
    pub cause: RefusalCause,
    /// The problems, each with path and remedy.
    pub problems: Vec<ManifestProblem>,
}

/// The cause for which an app is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalCause {
    /// A field or a Secret is missing or invalid: the app is not served.
    Invalid,
    /// An older app has its id or one of its keys: the app is not served.
    KeyConflict,
    /// A Secret of another owner has the name of the one for its generated credentials. A pair that a cluster generated before
    /// is served all the same.
    CredentialsNotOurs,
    /// The cluster sends no webhook to one of its endpoints, by its address or its headers. Its clients are served all the
    /// same: a network that a cluster allows no more, or a deleted Secret, must not disconnect them.
    EndpointNotAllowed,
}

/// Names an app in problems.
pub(super) fn describe_app(app: &RealtimeApp) -> String {
    format!("RealtimeApp {}", app.metadata.name.as_deref().unwrap_or_default())
}
