//! The API of clusters, and the errors of the API server, as commands use them.

use kube::{Api, Client};

use crate::api::RealtimeCluster;

/// Builds the API of the clusters in a namespace; without one, in that of the kubeconfig.
pub fn build_cluster_api(client: &Client, namespace: Option<&str>) -> Api<RealtimeCluster> {
    build_namespaced_api(client, namespace)
}

/// Builds the API of a kind in a namespace; without one, in that of the kubeconfig.
pub fn build_namespaced_api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::default_namespaced(client.clone()),
    }
}

/// The error in one line: of an answer of the API server, its message alone; of a failed connection, with its causes.
pub fn describe_error(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => describe_causes(error),
    }
}

/// Joins an error and its causes, each of which adds to the text so far.
fn describe_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("client error (Connect)")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("Connection refused")]
    struct Inner;

    #[test]
    fn a_failed_connection_names_its_cause() {
        assert_eq!(describe_causes(&Outer(Inner)), "client error (Connect): Connection refused");
        assert_eq!(describe_causes(&Inner), "Connection refused");
    }
}
