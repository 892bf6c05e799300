//! The command that makes EKS inject an identity into the pods of a server. Pure.

use kube::ResourceExt;

use crate::api::RealtimeCluster;
use crate::api::cluster::IdentityType;
use crate::api::pods::AccountCreation;
use crate::config::{IAM_ROLE_ANNOTATION, ServerKind};
use crate::desired::ServerAccount;

/// States the command for a server whose pods lack the identity of the manifest.
#[must_use]
pub fn explain_missing_identity(cluster: &RealtimeCluster, server: ServerKind) -> String {
    let (spec, identity) = (&cluster.spec, &cluster.spec.aws.identity);
    let (namespace, name) = (cluster.namespace().unwrap_or_default(), cluster.name_any());
    let (component, account, role) = if server == ServerKind::Dispatcher {
        ("dispatcher", &spec.service_accounts.dispatcher, &identity.dispatcher)
    } else {
        ("edge", &spec.service_accounts.edge, &identity.edge)
    };
    let is_created = account.create == AccountCreation::Always;
    let account = ServerAccount::resolve(account, format!("{name}-{component}")).name;
    let role = role.as_ref().map_or("ROLE_ARN", |role| role.role_arn.as_str());
    match identity.kind {
        IdentityType::PodIdentity => format!(
            "Associate a role, where EKS_CLUSTER is this cluster: aws eks create-pod-identity-association --region {} --cluster-name EKS_CLUSTER --namespace {namespace} --service-account {account} --role-arn {role}. If the association exists, install the agent: aws eks create-addon --cluster-name EKS_CLUSTER --addon-name eks-pod-identity-agent",
            spec.aws.region
        ),
        IdentityType::Irsa if is_created => format!(
            "ServiceAccount {namespace}/{account} has the annotation {IAM_ROLE_ANNOTATION}, so that the webhook did not act: kubectl get mutatingwebhookconfiguration pod-identity-webhook"
        ),
        IdentityType::Irsa => format!(
            "Annotate the ServiceAccount: kubectl annotate serviceaccount {account} -n {namespace} --overwrite {IAM_ROLE_ANNOTATION}={role}"
        ),
        IdentityType::WebIdentity | IdentityType::StaticKeys | IdentityType::NodeRole => {
            "The pod was created from a template of another identity: delete it".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::MINIMAL_CLUSTER;

    #[test]
    fn the_command_names_namespace_account_and_role() {
        let explain = |identity: &str, extra: &str, server| {
            let text = MINIMAL_CLUSTER.replace("{ type: PodIdentity }", identity);
            let cluster: RealtimeCluster = serde_yaml::from_str(&format!("{text}{extra}")).expect("a cluster");
            explain_missing_identity(&cluster, server)
        };
        let roles = "edge: { roleARN: 'arn:e' }, dispatcher: { roleARN: 'arn:d' }";
        let existing = "  serviceAccounts: { dispatcher: { name: hooks, create: Never } }\n";
        for (identity, extra, server, says) in [
            (
                "{ type: PodIdentity }".to_owned(),
                "",
                ServerKind::Websocket,
                "--namespace channels --service-account eu-edge --role-arn ROLE_ARN",
            ),
            (
                format!("{{ type: PodIdentity, {roles} }}"),
                existing,
                ServerKind::Dispatcher,
                "--service-account hooks --role-arn arn:d",
            ),
            (format!("{{ type: IRSA, {roles} }}"), "", ServerKind::Sockjs, "kubectl get mutatingwebhookconfiguration"),
            (
                format!("{{ type: IRSA, {roles} }}"),
                existing,
                ServerKind::Dispatcher,
                "kubectl annotate serviceaccount hooks -n channels --overwrite eks.amazonaws.com/role-arn=arn:d",
            ),
        ] {
            let found = explain(&identity, extra, server);
            assert!(found.contains(says), "{identity}: {found}");
        }
    }
}
