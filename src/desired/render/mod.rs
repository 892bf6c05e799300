//! Renders the Kubernetes objects of a valid cluster.

mod children;
mod exposure;
mod pods;
mod rbac;
mod secrets;
mod template;
mod variables;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Secret, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::ValidCluster;
use crate::config::ServerKind;

pub use children::{
    CHILD_TABLE, ChildKind, ChildTracking, RENDERING_ANNOTATION, WATCHED_KINDS, find_optional_kind, is_pruned,
};
pub use exposure::{balancer_name, entrance_name};
pub use secrets::{ADMIN_SECRET_KEY, admin_secret_name, registry_secret_name, render_registry_secrets};
pub use template::{READINESS_GATE, REGISTRY_ANNOTATION, TEMPLATE_ANNOTATION, is_rendered_template, template_mark};

/// API version of Gateways and of the routes to them.
pub const GATEWAY_API_VERSION: &str = "gateway.networking.k8s.io/v1";
/// Label of a child with the server or part of the cluster that it belongs to.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// Container port on which edges serve clients.
pub const PUBLIC_PORT: i32 = 8080;
/// Container port on which edges accept relayed requests of other edges.
pub const PEER_PORT: i32 = 8081;
/// Container port of the admin listener.
pub const ADMIN_PORT: i32 = 9090;
/// Mount path of the app registry.
pub const APPS_PATH: &str = "/etc/realtime/apps";

/// Mount path of the downward-API volume with the pod's annotations.
pub const POD_PATH: &str = "/etc/realtime/pod";

/// All objects that should exist for a cluster: its children, and those of them that are read as types.
#[derive(Clone, Debug, Default)]
pub struct DesiredObjects {
    /// Every child in the order of their apply, as [`CHILD_TABLE`] builds it.
    pub children: Vec<Value>,
    /// The admin token for people, and the copies of all that servers read from Secrets at their start.
    pub secrets: Vec<Secret>,
    /// The app registry: it changes with every app, without a rollout, and is applied separately.
    pub registry: Vec<Secret>,
    /// Services through which clients reach the edges, those of load balancers last.
    pub services: Vec<Service>,
    /// One Deployment per server.
    pub deployments: Vec<(ServerKind, Deployment)>,
}

/// Renders all objects of a cluster.
///
/// # Errors
/// Never for these types; the signature of `serde_json` requires one.
pub fn render_objects(cluster: &ValidCluster) -> Result<DesiredObjects, serde_json::Error> {
    // A Service is named by the server that clients ask for, whichever server answers.
    let services = [ServerKind::Websocket, ServerKind::Sockjs].into_iter().filter_map(|asked| {
        let behind = cluster.servers.iter().find(|server| server.kind.serves_as(asked))?;
        Some(render_service(cluster, asked, behind.kind))
    });
    let typed = DesiredObjects {
        children: vec![],
        secrets: std::iter::once(secrets::render_admin_secret(cluster))
            .chain(secrets::render_secret_copies(cluster))
            .collect(),
        registry: render_registry_secrets(cluster)?,
        services: services.chain(exposure::render_load_balancers(cluster)).collect(),
        deployments: cluster
            .servers
            .iter()
            .map(|server| (server.kind, pods::render_deployment(cluster, server)))
            .collect(),
    };
    Ok(DesiredObjects { children: children::build_children(cluster, &typed)?, ..typed })
}

/// Metadata of a child: name, namespace, labels and owner.
fn child_metadata(cluster: &ValidCluster, name: String, component: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(child_labels(cluster, component)),
        owner_references: cluster.owner.clone().map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// Labels of a child: its selector, and the labels by which the operator lists it.
#[must_use]
pub fn child_labels(cluster: &ValidCluster, component: &str) -> BTreeMap<String, String> {
    let mut labels = pod_selector(cluster, component);
    labels.insert("app.kubernetes.io/part-of".to_owned(), "realtime".to_owned());
    labels.insert("app.kubernetes.io/managed-by".to_owned(), "realtime-operator".to_owned());
    labels
}

/// Labels by which a Deployment and a Service select their pods. A Deployment's selector is immutable, so they never
/// change.
fn pod_selector(cluster: &ValidCluster, component: &str) -> BTreeMap<String, String> {
    let mut labels = cluster_selector(cluster);
    labels.insert(COMPONENT_LABEL.to_owned(), component.to_owned());
    labels
}

/// Labels that every pod of the cluster has, and no other pod.
pub(super) fn cluster_selector(cluster: &ValidCluster) -> BTreeMap<String, String> {
    [("app.kubernetes.io/name", "realtime"), ("app.kubernetes.io/instance", cluster.name.as_str())]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// Label selector for all pods and other children of the cluster of this name.
#[must_use]
pub fn pod_labels(name: &str) -> String {
    format!(
        "app.kubernetes.io/name=realtime,app.kubernetes.io/managed-by=realtime-operator,app.kubernetes.io/instance={name}"
    )
}

fn child_name(cluster: &ValidCluster, suffix: &str) -> String {
    format!("{}-{suffix}", cluster.name)
}

/// Renders the Service through which clients reach `server`, named by the server that they ask for.
fn render_service(cluster: &ValidCluster, asked: ServerKind, server: ServerKind) -> Service {
    Service {
        metadata: child_metadata(cluster, child_name(cluster, asked.name()), server.name()),
        spec: Some(ServiceSpec {
            selector: Some(pod_selector(cluster, server.name())),
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
