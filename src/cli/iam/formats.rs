//! The forms in which roles are printed. Pure.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::roles::{IamRole, RoleInputs};
use crate::api::cluster::IdentityType;

/// The EKS cluster of the roles.
pub struct EksPlace<'a> {
    /// Name of the EKS cluster; empty if no command needs it.
    pub cluster: &'a str,
    /// Region of the EKS cluster and of the stream.
    pub region: &'a str,
    /// Type of the identity.
    pub identity: IdentityType,
}

/// Formats the roles as one JSON document.
pub fn format_json(inputs: &RoleInputs<'_>, roles: &[IamRole]) -> String {
    let roles: Vec<Value> = roles
        .iter()
        .map(|role| {
            let policies: serde_json::Map<String, Value> =
                role.policies.iter().map(|(name, policy)| ((*name).to_owned(), policy.clone())).collect();
            json!({
                "server": role.server,
                "roleName": role.name,
                "rolePath": role.path,
                "serviceAccount": { "namespace": role.namespace, "name": role.service_account },
                "trustPolicy": role.trust,
                "policies": policies,
            })
        })
        .collect();
    pretty(&json!({ "cluster": format!("{}/{}", inputs.namespace, inputs.cluster), "roles": roles }))
}

/// Formats the roles as commands of the AWS CLI.
pub fn format_commands(place: &EksPlace<'_>, roles: &[IamRole]) -> String {
    let mut text = String::from("#!/bin/sh\nset -eu\n");
    for role in roles {
        let IamRole { server, name, path, policy_prefix, namespace, service_account, trust, policies } = role;
        let _ = writeln!(text, "\n# {server}: ServiceAccount {namespace}/{service_account}");
        // Writing to a String cannot fail.
        match place.identity {
            IdentityType::StaticKeys => {
                let _ =
                    writeln!(text, "# The keys of the Secret belong to a user, whose name stands in place of USER.");
            }
            IdentityType::NodeRole => {
                let _ = writeln!(text, "# The role of the nodes on which it runs stands in place of NODE_ROLE.");
            }
            _ => {
                let _ = writeln!(
                    text,
                    "aws iam get-role --role-name {name} >/dev/null 2>&1 ||\n  aws iam create-role --role-name {name} --path {path} --assume-role-policy-document '{}'",
                    compact(trust)
                );
            }
        }
        for (policy, document) in policies {
            let target = match place.identity {
                IdentityType::StaticKeys => "put-user-policy --user-name USER".to_owned(),
                IdentityType::NodeRole => "put-role-policy --role-name NODE_ROLE".to_owned(),
                _ => format!("put-role-policy --role-name {name}"),
            };
            let _ = writeln!(
                text,
                "aws iam {target} --policy-name {policy_prefix}-{policy} --policy-document '{}'",
                compact(document)
            );
        }
        if place.identity == IdentityType::PodIdentity {
            let _ = writeln!(
                text,
                "at=\"--region {} --cluster-name {} --namespace {namespace} --service-account {service_account}\"\n\
                 [ \"$(aws eks list-pod-identity-associations $at --query 'length(associations)')\" != 0 ] ||\n  \
                 aws eks create-pod-identity-association $at \\\n  \
                 --role-arn \"$(aws iam get-role --role-name {name} --query Role.Arn --output text)\"",
                place.region, place.cluster
            );
        }
    }
    text
}

/// Formats the roles as a configuration file of eksctl.
pub fn format_eksctl(place: &EksPlace<'_>, roles: &[IamRole]) -> String {
    let merge = |role: &IamRole| {
        let statements: Vec<Value> = role
            .policies
            .iter()
            .flat_map(|(_, policy)| policy["Statement"].as_array().cloned().unwrap_or_default())
            .enumerate()
            // A document's Sids are unique.
            .map(|(index, mut statement)| {
                statement["Sid"] = format!("Statement{index}").into();
                statement
            })
            .collect();
        json!({ "Version": "2012-10-17", "Statement": statements })
    };
    let is_pod_identity = place.identity == IdentityType::PodIdentity;
    let entries: Vec<Value> = roles
        .iter()
        .map(|role| {
            let IamRole { name, namespace, service_account, .. } = role;
            if is_pod_identity {
                json!({
                    "namespace": namespace,
                    "serviceAccountName": service_account,
                    "roleName": name,
                    "permissionPolicy": merge(role),
                })
            } else {
                // The operator creates the accounts of the servers, the chart that of the operator.
                json!({
                    "metadata": { "namespace": namespace, "name": service_account },
                    "roleName": name,
                    "roleOnly": true,
                    "attachPolicy": merge(role),
                })
            }
        })
        .collect();
    let iam = if is_pod_identity {
        json!({ "podIdentityAssociations": entries })
    } else {
        json!({ "withOIDC": true, "serviceAccounts": entries })
    };
    let document = json!({
        "apiVersion": "eksctl.io/v1alpha5",
        "kind": "ClusterConfig",
        "metadata": { "name": place.cluster, "region": place.region },
        "iam": iam,
    });
    let command = if is_pod_identity { "podidentityassociation" } else { "iamserviceaccount" };
    let yaml = serde_yaml::to_string(&document).unwrap_or_default();
    format!("# eksctl create {command} --config-file FILE\n{yaml}")
}

/// Formats the roles as resources of Terraform.
pub fn format_terraform(place: &EksPlace<'_>, roles: &[IamRole]) -> String {
    let mut text = String::new();
    for role in roles {
        let IamRole { server, name, path, policy_prefix, namespace, service_account, trust, policies } = role;
        let label = format!("realtime_{server}");
        // Writing to a String cannot fail.
        let role_reference = match place.identity {
            IdentityType::StaticKeys => None,
            IdentityType::NodeRole => Some("var.node_role_name".to_owned()),
            _ => {
                let _ = write!(
                    text,
                    "resource \"aws_iam_role\" \"{label}\" {{\n  name               = \"{name}\"\n  path               = \"{path}\"\n  assume_role_policy = <<-EOT\n{}  EOT\n}}\n\n",
                    indent(&pretty(trust))
                );
                Some(format!("aws_iam_role.{label}.name"))
            }
        };
        for (policy, document) in policies {
            let (kind, target) = role_reference.as_ref().map_or_else(
                || ("aws_iam_user_policy", "  user   = var.user_name".to_owned()),
                |role| ("aws_iam_role_policy", format!("  role   = {role}")),
            );
            let _ = write!(
                text,
                "resource \"{kind}\" \"{label}_{policy}\" {{\n  name   = \"{policy_prefix}-{policy}\"\n{target}\n  policy = <<-EOT\n{}  EOT\n}}\n\n",
                indent(&pretty(document))
            );
        }
        if place.identity == IdentityType::PodIdentity {
            let _ = write!(
                text,
                "resource \"aws_eks_pod_identity_association\" \"{label}\" {{\n  cluster_name    = \"{}\"\n  namespace       = \"{namespace}\"\n  service_account = \"{service_account}\"\n  role_arn        = aws_iam_role.{label}.arn\n}}\n\n",
                place.cluster
            );
        }
    }
    let variable = match place.identity {
        IdentityType::StaticKeys => "variable \"user_name\" {\n  type = string\n}\n",
        IdentityType::NodeRole => "variable \"node_role_name\" {\n  type = string\n}\n",
        _ => "",
    };
    format!("{}\n{}", text.trim_end(), variable)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn compact(value: &Value) -> String {
    value.to_string()
}

fn indent(text: &str) -> String {
    text.lines().fold(String::new(), |all, line| all + "  " + line + "\n")
}
