//! Snapshots of what an API server has: a RealtimeCluster with its servers and apps, or Deployments of other servers.

use std::collections::BTreeMap;

use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use super::super::admin_connection::{list_targets, read_admin_token};
use super::super::cluster_api::{build_cluster_api, build_namespaced_api, describe_error};
use super::super::ledger::read_flow;
use super::super::live_snapshots::DEPLOYMENT_SELECTOR;
use super::ForeignDeployment;
use crate::api::RealtimeApp;
use crate::config::ServerKind;
use crate::desired::decode_secret;
use crate::kubernetes::apply::is_owned_by;
use crate::migration::{
    ClusterSnapshot, DeliverySnapshot, EdgeLoad, EnvironmentTexts, SecretDigester, SessionSnapshot, SnapshotOrigin,
    read_server, sum_edge_loads,
};
use crate::operator::{digest_registry, list_environment_sources, list_registry_secrets, read_owned_servers};
use crate::process::clock::{format_time, now_ms};
use crate::protocol::admin::FlowReport;

/// Reads one namespace of an API server.
pub struct LiveReader {
    client: Client,
    namespace: String,
    digester: SecretDigester,
}

impl LiveReader {
    /// Without a namespace, that of the kubeconfig.
    pub fn new(client: Client, namespace: Option<&str>, digester: SecretDigester) -> Self {
        let namespace = namespace.unwrap_or_else(|| client.default_namespace()).to_owned();
        Self { client, namespace, digester }
    }

    /// Takes the snapshot of a RealtimeCluster.
    ///
    /// # Errors
    /// The cluster or its Deployments cannot be read. A Secret that cannot be read is unknown in the snapshot.
    pub async fn snapshot_cluster(&self, name: &str) -> Result<ClusterSnapshot, String> {
        let cluster = build_cluster_api(&self.client, Some(&self.namespace)).get(name).await;
        let cluster = cluster.map_err(|error| describe_error(&error))?;
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let listed = deployments.list(&ListParams::default().labels(DEPLOYMENT_SELECTOR)).await;
        let deployments = listed.map_err(|error| describe_error(&error))?.items;
        let uid = cluster.uid().unwrap_or_default();
        let owned: Vec<Deployment> = deployments.into_iter().filter(|found| is_owned_by(found, &uid)).collect();
        let texts = self.read_texts(&owned, list_registry_secrets(name)).await;
        let read = |deployment: &Deployment| read_server(deployment, None, &texts, Some(&self.digester));
        let servers = read_owned_servers(owned.iter(), read);
        let apps = digest_registry(name, servers.values(), &texts, &self.digester);
        let apps = apps.inspect_err(|error| eprintln!("realtime: note: apps were not read: {error}")).ok();
        let sessions = self.count_sessions(name).await;
        let sessions =
            sessions.inspect_err(|error| eprintln!("realtime: note: sessions were not counted: {error}")).ok();
        let (sessions, loads) = sessions.unzip();
        let delivery = self.read_delivery(name).await;
        let delivery = delivery
            .inspect_err(|error| eprintln!("realtime: note: states of webhook endpoints were not read: {error}"))
            .ok();
        let cluster_part = ClusterSnapshot::of_cluster(&cluster, servers);
        let snapshot = ClusterSnapshot { sessions, loads: loads.unwrap_or_default(), delivery, apps, ..cluster_part };
        Ok(self.seal_now(snapshot, cluster.metadata.uid.as_deref()))
    }

    /// Reads the deliveries of a cluster from the status of the apps beside it.
    async fn read_delivery(&self, name: &str) -> Result<DeliverySnapshot, String> {
        let apps: Api<RealtimeApp> = Api::namespaced(self.client.clone(), &self.namespace);
        let apps = apps.list(&ListParams::default()).await.map_err(|error| describe_error(&error))?;
        Ok(DeliverySnapshot::of_apps(name, &apps.items))
    }

    /// Counts the sessions at the edges of a cluster, from each of their pods: those that they opened, and their load.
    async fn count_sessions(&self, name: &str) -> Result<(SessionSnapshot, BTreeMap<ServerKind, EdgeLoad>), String> {
        let at_ms = now_ms();
        let token = read_admin_token(&self.client, Some(&self.namespace), name).await?;
        let pods = build_namespaced_api(&self.client, Some(&self.namespace));
        let targets = list_targets(&pods, name, &ServerKind::EDGES).await?;
        let flows = targets.iter().map(async |target| {
            let flow = read_flow(target, &token).await.map_err(|error| format!("{}: {error}", target.name()))?;
            if flow.sessions.is_empty() {
                return Err(format!("{}: its release counts no sessions", target.name()));
            }
            Ok(flow)
        });
        let flows = try_join_all(flows).await?;
        let loads = sum_edge_loads(flows.iter().map(|flow| (&flow.sessions, flow.sessions_max)));
        let opened = |flow: FlowReport| {
            let opened = flow.sessions.iter().map(|(server, flow)| (*server, flow.opened)).collect();
            (flow.process, opened)
        };
        Ok((SessionSnapshot { at_ms, processes: flows.into_iter().map(opened).collect() }, loads))
    }

    /// Takes the snapshot of Deployments that no operator of ours knows.
    ///
    /// # Errors
    /// A Deployment cannot be read, lacks its container, or two of them do the work of one server.
    pub async fn snapshot_foreign(&self, wanted: &[ForeignDeployment]) -> Result<ClusterSnapshot, String> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut servers = BTreeMap::new();
        let mut uid = None;
        for ForeignDeployment { server, name, container } in wanted {
            let deployment = api.get(name).await.map_err(|error| describe_error(&error))?;
            let texts = self.read_texts(std::slice::from_ref(&deployment), std::iter::empty()).await;
            uid = uid.or_else(|| deployment.metadata.uid.clone());
            let found = read_server(&deployment, container.as_deref(), &texts, Some(&self.digester))?;
            if servers.insert(*server, found).is_some() {
                return Err(format!("two Deployments are given as {server}: take a snapshot of each"));
            }
        }
        let first = wanted.first().map(|deployment| deployment.name.as_str()).unwrap_or_default();
        let name = format!("{}/{first}", self.namespace);
        Ok(self.seal_now(ClusterSnapshot::new(SnapshotOrigin::Foreign, name, servers), uid.as_deref()))
    }

    /// Dates and seals a snapshot of live objects.
    fn seal_now(&self, snapshot: ClusterSnapshot, uid: Option<&str>) -> ClusterSnapshot {
        let now_ms = now_ms();
        let taken_at = Some(format_time(now_ms));
        ClusterSnapshot { taken_at, ..snapshot }.seal(&self.digester, uid.unwrap_or_default(), now_ms)
    }

    /// Reads what the variables of the Deployments reference, and more Secrets. An object that cannot be read is left out,
    /// with a note.
    async fn read_texts(&self, deployments: &[Deployment], more: impl Iterator<Item = String>) -> EnvironmentTexts {
        let (mut secrets, config_maps) = list_environment_sources(deployments);
        secrets.extend(more);
        let mut texts = EnvironmentTexts::default();
        for name in secrets {
            match self.read_secret(&name).await {
                Ok(secret) => drop(texts.secrets.insert(name, decode_secret(&secret))),
                Err(error) => eprintln!("realtime: note: Secret {name} was not read: {error}"),
            }
        }
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        for name in config_maps {
            match api.get(&name).await {
                Ok(found) => drop(texts.config_maps.insert(name, found.data.unwrap_or_default())),
                Err(error) => eprintln!("realtime: note: ConfigMap {name} was not read: {}", describe_error(&error)),
            }
        }
        texts
    }

    async fn read_secret(&self, name: &str) -> Result<Secret, String> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        api.get(name).await.map_err(|error| describe_error(&error))
    }
}
