//! Problems of manifests, each with object, path and remedy.

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

/// An app that is not served, with its problems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedApp {
    /// Name of the `RealtimeApp` object.
    pub name: String,
    /// The problems, each with path and remedy.
    pub problems: Vec<ManifestProblem>,
}
