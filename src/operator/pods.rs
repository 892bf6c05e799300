//! Reads a pod into the facts that the gate decides on. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};
use kube::ResourceExt;

use crate::config::{ServerConfig, ServerKind};
use crate::desired::render::{
    ADMIN_PORT, PUBLIC_PORT, READINESS_GATE, SECRETS_ANNOTATION, TEMPLATE_ANNOTATION, template_digest,
};
use crate::desired::{
    DesiredObjects, PodFacts, SecretTexts, ValidCluster, decode_secret, resolve_variables, template_variables,
};
use crate::prober::{DispatcherPod, EdgePod};
use crate::process::readiness_annotation;
use crate::protocol::Transport;
use crate::protocol::signature::salted_digest;

/// Exit code with which a server refuses its configuration: `EX_CONFIG` of sysexits.
const CONFIG_REFUSED_EXIT_CODE: i32 = 78;

/// Variables that EKS injects into pods that use one of its identities: they are no drift, and are not reverted.
const EKS_INJECTED_VARIABLES: [&str; 7] = [
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_STS_REGIONAL_ENDPOINTS",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

/// A live pod of one server of a cluster.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, in any combination")]
pub struct ServerPod {
    pub name: String,
    pub uid: String,
    pub server: ServerKind,
    /// Time of creation, in s since 1970.
    pub created: i64,
    /// IP address of the pod, while its container runs.
    pub address: Option<IpAddr>,
    /// Whether it was created from the template that is rendered now.
    pub current: bool,
    /// Whether its container's command, image or variables differ from its template's digest.
    pub tampered: bool,
    /// Digest of the configuration with which the pod was admitted.
    pub admitted: Option<String>,
    /// Whether the readiness gate's condition is True.
    pub gate_open: bool,
    /// Whether the pod is Ready, so that Services route clients to it.
    pub serving: bool,
    /// Termination message of a server that refused its configuration.
    pub refusal: Option<String>,
    /// Variables that EKS injected, by name.
    injected: BTreeMap<String, String>,
    /// The template of a pod that was created from a former one and runs it unchanged.
    pub former: Option<FormerTemplate>,
}

/// The template of a pod as far as it is rendered: the pod's own container, whose digest its template carries.
#[derive(Clone, Debug, PartialEq)]
pub struct FormerTemplate {
    variables: Vec<EnvVar>,
}

impl ServerPod {
    /// Reads a pod; `None` for one that terminates, has ended, or belongs to no server.
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
        let eks = cluster.stream.identity.is_injected_by_eks();
        let (container, injected) = if eks { split_injected(container) } else { (container.clone(), BTreeMap::new()) };
        let status = pod.status.as_ref()?;
        let tampered = template.is_none_or(|template| template_digest(&container) != *template);
        let current = same(TEMPLATE_ANNOTATION) && same(SECRETS_ANNOTATION);
        let former = (!current && !tampered && server != ServerKind::Dispatcher)
            .then(|| FormerTemplate { variables: container.env.clone().unwrap_or_default() });
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
            current,
            tampered,
            admitted: pod.annotations().get(readiness_annotation::ADMITTED_ANNOTATION).cloned(),
            gate_open: holds(READINESS_GATE),
            serving: holds("Ready"),
            refusal,
            injected,
            former,
        })
    }

    /// Names the Secrets that the variables of a former template reference.
    pub fn secret_names(&self) -> BTreeSet<String> {
        let variables = self.former.iter().flat_map(|former| &former.variables);
        let selectors = variables.filter_map(|variable| variable.value_from.as_ref()?.secret_key_ref.as_ref());
        selectors.map(|selector| selector.name.clone()).collect()
    }

    fn socket_address(&self, port: i32) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.address?, u16::try_from(port).ok()?))
    }

    /// The variables that were rendered for this pod, and the injected ones.
    fn rendered_variables(&self, desired: &DesiredObjects, secrets: &SecretTexts) -> Option<ServerConfig> {
        let rendered = || {
            let (_, deployment) = desired.deployments.iter().find(|(server, _)| *server == self.server)?;
            Some(template_variables(&deployment.spec.template))
        };
        let template = self.former.as_ref().map(|former| former.variables.as_slice()).or_else(rendered)?;
        let mut all = secrets.clone();
        for secret in &desired.secrets {
            all.insert(secret.name_any(), decode_secret(secret));
        }
        let facts = PodFacts { name: &self.name, address: self.address };
        let mut variables = resolve_variables(template, facts, &all).ok()?;
        for (name, value) in &self.injected {
            variables.entry(name.clone()).or_insert_with(|| value.clone());
        }
        ServerConfig::parse(variables).ok()
    }

    /// Converts to an edge that journeys run through; `None` while it has no address.
    pub fn to_edge(&self, cluster: &ValidCluster, desired: &DesiredObjects, secrets: &SecretTexts) -> Option<EdgePod> {
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

    /// Converts to a dispatcher that journeys check; `None` while it has no address.
    pub fn to_dispatcher(
        &self,
        cluster: &ValidCluster,
        desired: &DesiredObjects,
        secrets: &SecretTexts,
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

/// Number of pods that the manifest asks for, by the transport that they carry.
pub fn count_wanted_pods(valid: &ValidCluster, transports: &BTreeSet<Transport>) -> BTreeMap<Transport, usize> {
    let wanted = |transport: &Transport| {
        let serving = valid.servers.iter().filter(|server| server.kind.serves_as(transport.server_kind()));
        serving.map(|server| usize::try_from(server.replicas).unwrap_or_default()).sum()
    };
    transports.iter().map(|transport| (*transport, wanted(transport))).collect()
}

/// Splits a live container into the container of its template and the variables that EKS injected.
fn split_injected(container: &Container) -> (Container, BTreeMap<String, String>) {
    let (mut kept, mut injected) = (container.clone(), BTreeMap::new());
    // A rendered variable comes first; EKS appends its own of the same name.
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
    /// A pod of the rendered template, without an address.
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
            former: None,
        }
    }
}
