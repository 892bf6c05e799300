//! What the gate has to know of a pod. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;

use crate::api::cluster::IdentityType;
use crate::config::{ServerConfig, ServerKind};
use crate::desired::render::{ADMIN_PORT, PUBLIC_PORT, READINESS_GATE, TEMPLATE_ANNOTATION, template_digest};
use crate::desired::{DesiredObjects, ValidCluster, resolve_environment};
use crate::prober::{DispatcherPod, EdgePod};
use crate::process::readiness_annotation;
use crate::protocol::Transport;
use crate::protocol::signature::salted_digest;

/// Exit code of a server that refuses its configuration.
const CONFIG_REFUSED_EXIT_CODE: i32 = 78;

/// Variables that EKS puts into pods that use one of its identities: known, and not fought.
const EKS_INJECTED_VARIABLES: [&str; 7] = [
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_STS_REGIONAL_ENDPOINTS",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

/// A pod of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, in any combination")]
pub struct ServerPod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// What it serves.
    pub server: ServerKind,
    /// When it was created, in s since 1970.
    pub created: i64,
    /// Its address, while its container runs.
    pub address: Option<IpAddr>,
    /// Whether it was made from the template that is wanted now.
    pub current: bool,
    /// Whether its container is told something else than its template says.
    pub tampered: bool,
    /// The configuration that was let in.
    pub admitted: Option<String>,
    /// Whether its readiness gate is open.
    pub gate_open: bool,
    /// Whether Services send clients to it.
    pub serving: bool,
    /// The line with which it refused to start.
    pub refusal: Option<String>,
    /// Variables that EKS put in.
    injected: BTreeMap<String, String>,
}

impl ServerPod {
    /// A pod as the gate sees it; `None` for one that goes, or that is no server's.
    pub fn read(pod: &Pod, cluster: &ValidCluster, desired: &DesiredObjects) -> Option<Self> {
        let ended = matches!(pod.status.as_ref()?.phase.as_deref(), Some("Failed" | "Succeeded"));
        if pod.metadata.deletion_timestamp.is_some() || ended {
            return None;
        }
        let component = pod.labels().get("app.kubernetes.io/component")?;
        let server = ServerKind::ALL.into_iter().find(|server| server.name() == component)?;
        let container = pod.spec.as_ref()?.containers.iter().find(|container| container.name == server.name())?;
        let template = pod.annotations().get(TEMPLATE_ANNOTATION);
        let rendered = desired.deployments.iter().find(|(found, _)| *found == server);
        let wanted = rendered.and_then(|(_, deployment)| deployment.spec.template.metadata.as_ref());
        let same = |name: &str| {
            let wanted = wanted.and_then(|metadata| metadata.annotations.as_ref()).and_then(|all| all.get(name));
            wanted.is_some() && wanted == pod.annotations().get(name)
        };
        let eks = matches!(cluster.identity_type(), IdentityType::Irsa | IdentityType::PodIdentity);
        let (container, injected) = if eks { split_injected(container) } else { (container.clone(), BTreeMap::new()) };
        let status = pod.status.as_ref()?;
        let state = status.container_statuses.iter().flatten().find(|status| status.name == server.name());
        let running = state.and_then(|status| status.state.as_ref()).is_some_and(|state| state.running.is_some());
        let holds = |kind: &str| {
            let mut conditions = status.conditions.iter().flatten();
            conditions.any(|condition| condition.type_ == kind && condition.status == "True")
        };
        let refusal = state.and_then(|status| {
            let (now, before) = (status.state.as_ref(), status.last_state.as_ref());
            let ended = [now, before].into_iter().flatten().find_map(|state| state.terminated.as_ref())?;
            (!running && ended.exit_code == CONFIG_REFUSED_EXIT_CODE)
                .then(|| ended.message.clone().unwrap_or_default().trim().to_owned())
        });
        Some(Self {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            server,
            created: pod.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            address: status.pod_ip.as_ref().filter(|_| running).and_then(|ip| ip.parse().ok()),
            current: same(TEMPLATE_ANNOTATION) && same(crate::desired::render::SECRETS_ANNOTATION),
            tampered: template.is_none_or(|template| template_digest(&container) != *template),
            admitted: pod.annotations().get(readiness_annotation::ADMITTED_ANNOTATION).cloned(),
            gate_open: holds(READINESS_GATE),
            serving: holds("Ready"),
            refusal,
            injected,
        })
    }

    fn socket_address(&self, port: i32) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.address?, u16::try_from(port).ok()?))
    }

    /// What was rendered for it, secrets as salted digests.
    fn rendered_variables(&self, desired: &DesiredObjects, secrets: &SecretsByName) -> Option<ServerConfig> {
        let (_, deployment) = desired.deployments.iter().find(|(server, _)| *server == self.server)?;
        let mut all = secrets.clone();
        for secret in &desired.secrets {
            let texts = secret.data.iter().flatten();
            let texts = texts.map(|(key, bytes)| (key.clone(), String::from_utf8_lossy(&bytes.0).into_owned()));
            all.insert(secret.name_any(), texts.collect());
        }
        let mut variables = resolve_environment(&deployment.spec.template, (&self.name, self.address), &all).ok()?;
        for (name, value) in &self.injected {
            variables.entry(name.clone()).or_insert_with(|| value.clone());
        }
        ServerConfig::parse(variables).ok()
    }

    /// As an edge that journeys go through.
    pub fn to_edge(
        &self,
        cluster: &ValidCluster,
        desired: &DesiredObjects,
        secrets: &SecretsByName,
    ) -> Option<EdgePod> {
        let values = self.rendered_variables(desired, secrets)?;
        let transports = values.list_items(crate::config::name::TRANSPORTS).filter_map(|name| name.parse().ok());
        let transports: Vec<Transport> = transports.collect();
        Some(EdgePod {
            pod: self.name.clone(),
            public: self.socket_address(PUBLIC_PORT)?,
            admin: self.socket_address(ADMIN_PORT)?,
            transports,
            wanted: values.redacted_variables(|secret| salted_digest(cluster.admin_token.expose(), secret)),
            admitted: self.admitted.is_some(),
        })
    }

    /// As a dispatcher.
    pub fn to_dispatcher(
        &self,
        cluster: &ValidCluster,
        desired: &DesiredObjects,
        secrets: &SecretsByName,
    ) -> Option<DispatcherPod> {
        let values = self.rendered_variables(desired, secrets)?;
        Some(DispatcherPod {
            pod: self.name.clone(),
            admin: self.socket_address(ADMIN_PORT)?,
            wanted: values.redacted_variables(|secret| salted_digest(cluster.admin_token.expose(), secret)),
            admitted: self.admitted.is_some(),
            leaving: !self.current,
        })
    }
}

/// The texts of Secrets by name.
pub type SecretsByName = BTreeMap<String, BTreeMap<String, String>>;

/// The container as its template has it, and what EKS put in.
fn split_injected(container: &Container) -> (Container, BTreeMap<String, String>) {
    let (mut kept, mut injected) = (container.clone(), BTreeMap::new());
    // A name that was rendered stands first; EKS adds its own behind.
    let mut seen = Vec::new();
    kept.env = Some(
        container
            .env
            .iter()
            .flatten()
            .filter(|variable| {
                let known = EKS_INJECTED_VARIABLES.contains(&variable.name.as_str()) && variable.name != "AWS_REGION";
                if known {
                    injected.insert(variable.name.clone(), variable.value.clone().unwrap_or_default());
                }
                let again = seen.contains(&variable.name);
                seen.push(variable.name.clone());
                !known && !again
            })
            .cloned()
            .collect(),
    );
    (kept, injected)
}

#[cfg(test)]
impl ServerPod {
    /// A pod of the wanted template.
    pub fn for_test(name: &str, server: ServerKind, admitted: Option<&str>, tampered: bool, created: i64) -> Self {
        Self {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            server,
            created,
            address: None,
            current: true,
            tampered,
            admitted: admitted.map(str::to_owned),
            gate_open: admitted.is_some(),
            serving: admitted.is_some(),
            refusal: None,
            injected: BTreeMap::new(),
        }
    }
}
