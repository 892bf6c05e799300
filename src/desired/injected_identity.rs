//! The variables that EKS injects into a pod for its identity. Pure.
//!
//! Sources: amazon-eks-pod-identity-webhook, `pkg/handler/handler.go`; EKS User Guide, "How EKS Pod Identity works".

use std::collections::BTreeMap;

use super::AwsIdentity;
use crate::config::{ServerKind, name};

/// Token of a `ServiceAccount` for IRSA.
const IRSA_TOKEN_FILE: &str = "/var/run/secrets/eks.amazonaws.com/serviceaccount/token";
/// Address of the agent of EKS Pod Identity on each node.
const POD_IDENTITY_URI: &str = "http://169.254.170.23/v1/credentials";
/// Token of a `ServiceAccount` for EKS Pod Identity.
const POD_IDENTITY_TOKEN_FILE: &str = "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount/eks-pod-identity-token";

/// Lists the variables that EKS injects into the pods of a server; none for an identity that the manifest renders.
#[must_use]
pub fn list_injected_variables(identity: &AwsIdentity, server: ServerKind) -> BTreeMap<String, String> {
    let variables = match identity {
        AwsIdentity::Irsa(roles) => {
            [(name::AWS_ROLE_ARN, roles.of_server(server)), (name::AWS_WEB_IDENTITY_TOKEN_FILE, IRSA_TOKEN_FILE)]
        }
        AwsIdentity::PodIdentity => [
            (name::AWS_CONTAINER_CREDENTIALS_FULL_URI, POD_IDENTITY_URI),
            (name::AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE, POD_IDENTITY_TOKEN_FILE),
        ],
        AwsIdentity::WebIdentity(_) | AwsIdentity::StaticKeys(_) | AwsIdentity::NodeRole => return BTreeMap::new(),
    };
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}
