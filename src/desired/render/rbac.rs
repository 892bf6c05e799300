//! Renders the dispatcher's permissions on the API server: its leases, nothing else. Edges have none.

use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::super::ValidCluster;
use super::{child_metadata, child_name};

/// Renders the Role that lets dispatchers manage their leases.
pub(super) fn render_role(cluster: &ValidCluster) -> Role {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let rule = PolicyRule {
        api_groups: Some(words(&["coordination.k8s.io"])),
        resources: Some(words(&["leases"])),
        verbs: words(&["get", "list", "create", "update", "delete"]),
        ..PolicyRule::default()
    };
    Role { metadata: child_metadata(cluster, child_name(cluster, "dispatcher"), "dispatcher"), rules: Some(vec![rule]) }
}

/// Binds the Role to the dispatcher's service account.
pub(super) fn render_role_binding(cluster: &ValidCluster) -> RoleBinding {
    RoleBinding {
        metadata: child_metadata(cluster, child_name(cluster, "dispatcher"), "dispatcher"),
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".to_owned()),
            kind: "Role".to_owned(),
            name: child_name(cluster, "dispatcher"),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: cluster.dispatcher_account.name.clone(),
            namespace: Some(cluster.namespace.clone()),
            ..Subject::default()
        }]),
    }
}
