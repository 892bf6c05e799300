//! The one table of children: each kind with its builder, and how its live objects are found and pruned. A new kind
//! needs a row here, and a permission for the operator in the chart.

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::ValidCluster;
use super::{DesiredObjects, GATEWAY_API_VERSION, exposure, pods, rbac};

/// Annotation of a child with a digest of the rendered object: without it, a removed field would not be noticed.
pub const RENDERING_ANNOTATION: &str = "realtime-operator.dev/rendering";

/// One kind of child.
pub struct ChildKind {
    /// API version of the kind.
    pub api_version: &'static str,
    /// Name of the kind.
    pub kind: &'static str,
    /// How live objects of the kind are found, and whether they are pruned.
    pub tracking: ChildTracking,
    /// Builds the objects of a cluster, none where the cluster needs none.
    build: fn(&ValidCluster, &DesiredObjects) -> Result<Vec<Value>, serde_json::Error>,
}

/// How live objects of a kind are found, and whether those that are not rendered any more are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildTracking {
    /// By a watch; pruned.
    WatchedAndPruned,
    /// By a watch; the objects belong to other children, which prune them.
    Watched,
    /// By name, since a watch would need the right to list them; they are pruned by their own rules.
    ReadByName,
    /// By name, since the API server may lack the kind; created and pruned by the record of them in the status.
    Optional,
}

/// All kinds of children, in the order in which they are applied. The app registry is applied separately.
pub const CHILD_TABLE: [ChildKind; 13] = [
    ChildKind {
        api_version: "v1",
        kind: "ServiceAccount",
        tracking: ChildTracking::WatchedAndPruned,
        build: |cluster, _| to_values(pods::render_service_accounts(cluster)),
    },
    ChildKind {
        api_version: "rbac.authorization.k8s.io/v1",
        kind: "Role",
        tracking: ChildTracking::WatchedAndPruned,
        build: |cluster, _| to_values(cluster.dispatcher().map(|_| rbac::render_role(cluster))),
    },
    ChildKind {
        api_version: "rbac.authorization.k8s.io/v1",
        kind: "RoleBinding",
        tracking: ChildTracking::WatchedAndPruned,
        build: |cluster, _| to_values(cluster.dispatcher().map(|_| rbac::render_role_binding(cluster))),
    },
    ChildKind {
        api_version: "v1",
        kind: "Secret",
        tracking: ChildTracking::ReadByName,
        build: |_, desired| to_values(&desired.secrets),
    },
    ChildKind {
        api_version: "v1",
        kind: "Service",
        tracking: ChildTracking::WatchedAndPruned,
        build: |_, desired| to_values(&desired.services),
    },
    ChildKind {
        api_version: "networking.k8s.io/v1",
        kind: "Ingress",
        tracking: ChildTracking::WatchedAndPruned,
        build: |cluster, _| to_values(exposure::render_ingresses(cluster)),
    },
    ChildKind {
        api_version: GATEWAY_API_VERSION,
        kind: "HTTPRoute",
        tracking: ChildTracking::Optional,
        build: |cluster, _| Ok(exposure::render_routes(cluster)),
    },
    ChildKind {
        api_version: "gateway.envoyproxy.io/v1alpha1",
        kind: "BackendTrafficPolicy",
        tracking: ChildTracking::Optional,
        build: |cluster, _| Ok(exposure::render_envoy_policies(cluster)),
    },
    ChildKind {
        api_version: "gateway.nginx.org/v1alpha1",
        kind: "ProxySettingsPolicy",
        tracking: ChildTracking::Optional,
        build: |cluster, _| Ok(exposure::render_nginx_proxy_policies(cluster)),
    },
    ChildKind {
        api_version: "gateway.nginx.org/v1alpha1",
        kind: "ClientSettingsPolicy",
        tracking: ChildTracking::Optional,
        build: |cluster, _| Ok(exposure::render_nginx_client_policies(cluster)),
    },
    ChildKind {
        api_version: "policy/v1",
        kind: "PodDisruptionBudget",
        tracking: ChildTracking::WatchedAndPruned,
        build: |cluster, _| {
            to_values(cluster.servers.iter().map(|server| pods::render_disruption_budget(cluster, server)))
        },
    },
    ChildKind {
        api_version: "apps/v1",
        kind: "Deployment",
        tracking: ChildTracking::WatchedAndPruned,
        build: |_, desired| to_values(desired.deployments.iter().map(|(_, deployment)| deployment)),
    },
    ChildKind {
        api_version: "apps/v1",
        kind: "ReplicaSet",
        tracking: ChildTracking::Watched,
        build: |_, _| Ok(vec![]),
    },
];

const fn is_watched(row: &ChildKind) -> bool {
    matches!(row.tracking, ChildTracking::WatchedAndPruned | ChildTracking::Watched)
}

/// API version and name of a kind that the API server may lack; `None` for any other kind.
#[must_use]
pub fn find_optional_kind(kind: &str) -> Option<(&'static str, &'static str)> {
    let found = CHILD_TABLE.iter().find(|row| row.kind == kind && row.tracking == ChildTracking::Optional);
    found.map(|row| (row.api_version, row.kind))
}

/// Number of kinds that are watched.
const WATCHED_COUNT: usize = {
    let (mut index, mut count) = (0, 0);
    while index < CHILD_TABLE.len() {
        count += is_watched(&CHILD_TABLE[index]) as usize;
        index += 1;
    }
    count
};

/// Kinds that are watched, with their API version.
pub const WATCHED_KINDS: [(&str, &str); WATCHED_COUNT] = {
    let mut kinds = [("", ""); WATCHED_COUNT];
    let (mut index, mut count) = (0, 0);
    while index < CHILD_TABLE.len() {
        if is_watched(&CHILD_TABLE[index]) {
            kinds[count] = (CHILD_TABLE[index].api_version, CHILD_TABLE[index].kind);
            count += 1;
        }
        index += 1;
    }
    kinds
};

/// Whether objects of a kind are deleted when they are not rendered any more.
#[must_use]
pub fn is_pruned(kind: &str) -> bool {
    let found = CHILD_TABLE.iter().find(|row| row.kind == kind);
    found.is_some_and(|row| row.tracking == ChildTracking::WatchedAndPruned)
}

/// Builds all children in the order of their apply.
pub(super) fn build_children(
    cluster: &ValidCluster,
    desired: &DesiredObjects,
) -> Result<Vec<Value>, serde_json::Error> {
    let mut children = Vec::new();
    for row in &CHILD_TABLE {
        children.extend((row.build)(cluster, desired)?);
    }
    // A digest would compare the values of Secrets for anyone who may read their metadata.
    for child in children.iter_mut().filter(|child| child["kind"] != "Secret") {
        let digest = hex::encode(&Sha256::digest(child.to_string())[..8]);
        child["metadata"]["annotations"][RENDERING_ANNOTATION] = Value::String(digest);
    }
    Ok(children)
}

fn to_values<T: Serialize>(objects: impl IntoIterator<Item = T>) -> Result<Vec<Value>, serde_json::Error> {
    objects.into_iter().map(serde_json::to_value).collect()
}
