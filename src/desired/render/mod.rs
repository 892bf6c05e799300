//! The objects that should exist for a cluster.

mod pods;
mod rbac;
mod secrets;
mod template;
mod variables;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Secret, Service, ServiceAccount, ServicePort, ServiceSpec};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::ValidCluster;
use crate::api::cluster::WebhooksMode;
use crate::config::ServerKind;

pub use secrets::{admin_secret_name, peer_secret_name, registry_secret_name, render_registry_secrets};
pub use template::{READINESS_GATE, REGISTRY_ANNOTATION, SECRETS_ANNOTATION, TEMPLATE_ANNOTATION, template_digest};

/// The port on which edges serve clients.
pub const PUBLIC_PORT: i32 = 8080;
/// The port on which edges listen for each other.
pub const PEER_PORT: i32 = 8081;
/// The port of the admin listener.
pub const ADMIN_PORT: i32 = 9090;
/// Where the app registry is mounted.
pub const APPS_PATH: &str = "/etc/realtime/apps";

/// Where the pod's annotations are mounted.
pub const POD_PATH: &str = "/etc/realtime/pod";

/// Everything that should exist.
#[derive(Clone, Debug, Default)]
pub struct DesiredObjects {
    /// Who the pods are.
    pub service_accounts: Vec<ServiceAccount>,
    /// What the dispatcher may do on the API server.
    pub roles: Vec<Role>,
    /// Who has these roles.
    pub role_bindings: Vec<RoleBinding>,
    /// The admin token, and the secret between edges.
    pub secrets: Vec<Secret>,
    /// The app registry, which changes with every app and rolls no pod.
    pub registry: Vec<Secret>,
    /// Where clients reach the edges.
    pub services: Vec<Service>,
    /// How many pods may go at once.
    pub disruption_budgets: Vec<PodDisruptionBudget>,
    /// The servers.
    pub deployments: Vec<(ServerKind, Deployment)>,
}

impl DesiredObjects {
    /// The objects as they are applied, in that order; the registry is applied apart from them.
    ///
    /// # Errors
    /// Never for these types; the library's signature has one.
    pub fn to_values(&self) -> Result<Vec<Value>, serde_json::Error> {
        // Without `..`, so that a new kind cannot be forgotten here.
        let Self {
            service_accounts,
            roles,
            role_bindings,
            secrets,
            registry: _,
            services,
            disruption_budgets,
            deployments,
        } = self;
        let mut objects = Vec::new();
        for account in service_accounts {
            objects.push(serde_json::to_value(account)?);
        }
        for role in roles {
            objects.push(serde_json::to_value(role)?);
        }
        for binding in role_bindings {
            objects.push(serde_json::to_value(binding)?);
        }
        for secret in secrets {
            objects.push(serde_json::to_value(secret)?);
        }
        for service in services {
            objects.push(serde_json::to_value(service)?);
        }
        for budget in disruption_budgets {
            objects.push(serde_json::to_value(budget)?);
        }
        for (_, deployment) in deployments {
            objects.push(serde_json::to_value(deployment)?);
        }
        Ok(objects)
    }
}

/// Builds everything.
///
/// # Errors
/// Never for these types; the library's signature has one.
pub fn render_objects(cluster: &ValidCluster) -> Result<DesiredObjects, serde_json::Error> {
    let edges = cluster.edge_servers();
    let servers: Vec<(ServerKind, i32)> = edges.iter().map(|(server, edge)| (*server, edge.replicas)).collect();
    // Named by what clients ask for, whichever server answers.
    let behind =
        |asked: ServerKind| servers.iter().find(|(server, _)| server.serves_as(asked)).map(|(server, _)| *server);
    let asked = [ServerKind::Websocket, ServerKind::Sockjs].into_iter();
    let services = asked.filter_map(|asked| Some(render_service(cluster, asked, behind(asked)?))).collect();
    let dispatcher = (ServerKind::Dispatcher, cluster.spec.webhooks.dispatcher.replicas);
    // Without webhooks there is nothing to dispatch.
    let dispatcher = (cluster.spec.webhooks.mode == WebhooksMode::Kinesis).then_some(dispatcher);
    let all: Vec<(ServerKind, i32)> = servers.into_iter().chain(dispatcher).collect();
    let leasing = dispatcher.is_some();
    Ok(DesiredObjects {
        roles: leasing.then(|| rbac::render_role(cluster)).into_iter().collect(),
        role_bindings: leasing.then(|| rbac::render_role_binding(cluster)).into_iter().collect(),
        disruption_budgets: all.iter().map(|(server, _)| pods::render_disruption_budget(cluster, *server)).collect(),
        service_accounts: pods::render_service_accounts(cluster),
        secrets: vec![secrets::render_admin_secret(cluster), secrets::render_peer_secret(cluster)],
        registry: render_registry_secrets(cluster)?,
        services,
        deployments: all
            .into_iter()
            .map(|(server, replicas)| (server, pods::render_deployment(cluster, server, replicas)))
            .collect(),
    })
}

/// Name, namespace and labels of a child.
fn child_metadata(cluster: &ValidCluster, name: String, component: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(child_labels(cluster, component)),
        owner_references: cluster.owner.clone().map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// The labels of a child.
#[must_use]
pub fn child_labels(cluster: &ValidCluster, component: &str) -> BTreeMap<String, String> {
    let mut labels = pod_selector(cluster, component);
    labels.insert("app.kubernetes.io/part-of".to_owned(), "realtime".to_owned());
    labels.insert("app.kubernetes.io/managed-by".to_owned(), "realtime-operator".to_owned());
    labels
}

/// The labels by which a Deployment and a Service find their pods: never changed once applied.
fn pod_selector(cluster: &ValidCluster, component: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "realtime"),
        ("app.kubernetes.io/instance", cluster.name.as_str()),
        ("app.kubernetes.io/component", component),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// Selects the pods of a cluster of this name.
#[must_use]
pub fn pod_labels(name: &str) -> String {
    format!(
        "app.kubernetes.io/name=realtime,app.kubernetes.io/managed-by=realtime-operator,app.kubernetes.io/instance={name}"
    )
}

fn child_name(cluster: &ValidCluster, suffix: &str) -> String {
    format!("{}-{suffix}", cluster.name)
}

/// Where clients reach what serves them.
fn render_service(cluster: &ValidCluster, asked: ServerKind, server: ServerKind) -> Service {
    Service {
        metadata: child_metadata(cluster, child_name(cluster, asked.name()), server.name()),
        spec: Some(ServiceSpec {
            selector: Some(pod_selector(cluster, server.name())),
            // Any pod takes any request of an HTTP session; one that comes to the pod that has it is not handed on.
            session_affinity: (asked == ServerKind::Sockjs).then(|| "ClientIP".to_owned()),
            ports: Some(vec![ServicePort {
                name: Some("public".to_owned()),
                port: 80,
                target_port: Some(IntOrString::String("public".to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

#[cfg(test)]
mod tests;
