//! The API of clusters, and the errors of the API server, as commands use them.

use kube::{Api, Client};

use crate::api::RealtimeCluster;

/// Builds the API of the clusters in a namespace; without one, in that of the kubeconfig.
pub fn build_cluster_api(client: &Client, namespace: Option<&str>) -> Api<RealtimeCluster> {
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::default_namespaced(client.clone()),
    }
}

/// The error in one line: of an answer of the API server, its message alone.
pub fn describe_error(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}
