//! The smallest useful manifest, for the tests of every room. Tests append further fields of the spec to its text.

use super::RealtimeCluster;

/// Text of the manifest, as a user would write it.
pub const MINIMAL_CLUSTER: &str = include_str!("../../tests/fixtures/minimal-cluster.yaml");

/// The manifest as an API server returns it, with `extra` lines of the spec, or of the object, at its end.
///
/// # Panics
/// The lines do not fit the type.
#[must_use]
pub fn applied_cluster(extra: &str) -> RealtimeCluster {
    let mut cluster: RealtimeCluster = serde_yaml::from_str(&format!("{MINIMAL_CLUSTER}{extra}")).expect("a cluster");
    cluster.metadata.uid = Some("1a2b3c4d-0000".to_owned());
    cluster.metadata.generation = Some(2);
    cluster
}
