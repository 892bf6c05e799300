//! Snapshots of the clusters that an API server has, and its moves.

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use super::cluster_api::describe_error;
use crate::api::{RealtimeCluster, RealtimeMigration};
use crate::kubernetes::apply::is_owned_by;
use crate::migration::{ClusterSnapshot, EnvironmentTexts, read_server};
use crate::operator::read_owned_servers;

/// Selects the Deployments of all clusters.
pub const DEPLOYMENT_SELECTOR: &str = "app.kubernetes.io/name=realtime,app.kubernetes.io/managed-by=realtime-operator";

/// Objects in one answer of the API server.
const PAGE_SIZE: u32 = 200;

/// Reads the clusters of a namespace, or of all, without their secrets and their apps.
///
/// # Errors
/// The API server does not answer, refuses to list, or lacks the CRDs.
pub async fn read_snapshots(client: &Client, namespace: Option<&str>) -> Result<Vec<ClusterSnapshot>, String> {
    let clusters: Api<RealtimeCluster> = select_api(client, namespace);
    let clusters = list_all(&clusters, ListParams::default()).await.map_err(|error| describe_listing(&error))?;
    if clusters.is_empty() {
        return Ok(vec![]);
    }
    let deployments: Api<Deployment> = select_api(client, namespace);
    let ours = ListParams::default().labels(DEPLOYMENT_SELECTOR);
    let deployments = list_all(&deployments, ours).await.map_err(|error| describe_listing(&error))?;
    Ok(clusters
        .iter()
        .map(|cluster| {
            let texts = EnvironmentTexts::default();
            let uid = cluster.uid().unwrap_or_default();
            let owned = deployments.iter().filter(|found| is_owned_by(*found, &uid));
            let servers = read_owned_servers(owned, |deployment| read_server(deployment, None, &texts, None));
            ClusterSnapshot::of_cluster(cluster, servers)
        })
        .collect())
}

/// Reads the moves of a namespace, or of all: none from an API server that does not know the kind.
///
/// # Errors
/// The API server does not answer, or refuses to list.
pub async fn read_moves(client: &Client, namespace: Option<&str>) -> Result<Vec<RealtimeMigration>, String> {
    match list_all(&select_api(client, namespace), ListParams::default()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(vec![]),
        listed => listed.map_err(|error| describe_error(&error)),
    }
}

fn describe_listing(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.is_not_found() => {
            "the API server does not know RealtimeCluster: no operator is installed there".to_owned()
        }
        error => describe_error(error),
    }
}

fn select_api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    namespace.map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace))
}

async fn list_all<K>(api: &Api<K>, parameters: ListParams) -> Result<Vec<K>, kube::Error>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let mut parameters = parameters.limit(PAGE_SIZE);
    let mut objects = Vec::new();
    loop {
        let page = api.list(&parameters).await?;
        objects.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(objects),
        }
    }
}
