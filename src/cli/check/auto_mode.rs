//! Nodes of EKS Auto Mode: their metadata answers no pod, and the agent of EKS Pod Identity is a part of them.

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, ListParams};

use super::{CheckResult, CheckState};

/// Label of the nodes of EKS Auto Mode (EKS User Guide, "Control if a workload is deployed on EKS Auto Mode nodes").
const AUTO_MODE_LABEL: &str = "eks.amazonaws.com/compute-type=auto";

/// Whether the cluster has nodes of EKS Auto Mode; `None` if nodes cannot be listed.
pub async fn has_auto_mode_nodes(client: &Client) -> Option<bool> {
    let nodes: Api<Node> = Api::all(client.clone());
    let found = nodes.list_metadata(&ListParams::default().labels(AUTO_MODE_LABEL).limit(1)).await.ok()?;
    Some(!found.items.is_empty())
}

/// Judges the role of a node as the identity of pods.
pub fn judge_node_role(check: &'static str, has_auto_mode: Option<bool>) -> CheckResult {
    match has_auto_mode {
        Some(true) => CheckResult::new(
            check,
            CheckState::Missing,
            "NodeRole: nodes of EKS Auto Mode keep their metadata from pods (IMDSv2 with a hop limit of 1, which is fixed)",
            "write aws.identity.type: PodIdentity and associate a role with each ServiceAccount; `realtime iam FILE` prints both",
        ),
        Some(false) => CheckResult::skipped(check, "NodeRole: only a pod can see the role of its node"),
        None => CheckResult::skipped(
            check,
            "NodeRole: only a pod can see the role of its node, and nodes of EKS Auto Mode, which have none for pods, are not readable from here",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_of_a_node_is_refused_on_auto_mode_where_nodes_can_be_read() {
        let refused = judge_node_role("identity", Some(true));
        assert!(refused.state == CheckState::Missing && refused.remedy.contains("PodIdentity"));
        for has_auto_mode in [Some(false), None] {
            assert!(judge_node_role("identity", has_auto_mode).state != CheckState::Missing, "{has_auto_mode:?}");
        }
    }
}
