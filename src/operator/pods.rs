//! Reads a pod into the facts that the gate decides on. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{EnvVar, Pod, PodTemplateSpec};
use kube::ResourceExt;

use super::pod_audit::{PodAudit, PodDifference, WantedIdentity, audit_pod};
use crate::config::{ServerConfig, ServerKind, Variable};
use crate::desired::render::{
    ADMIN_PORT, COMPONENT_LABEL, PUBLIC_PORT, READINESS_GATE, TEMPLATE_ANNOTATION, is_rendered_template, template_mark,
};
use crate::desired::{
    DesiredObjects, KnownInjectors, PodFacts, SecretTexts, ValidCluster, decode_secret, resolve_variables,
    template_variables,
};
use crate::prober::{DispatcherPod, EdgePod};
use crate::process::readiness_annotation;
use crate::protocol::Transport;
use crate::protocol::signature::salted_digest;

/// Exit code with which a server refuses its configuration: `EX_CONFIG` of sysexits.
const CONFIG_REFUSED_EXIT_CODE: i32 = 78;

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
    /// Digest in the template from which it was created.
    pub template: String,
    /// Whether it was created from the template that is rendered now.
    pub current: bool,
    /// Whether its template is one that was rendered. A Deployment that was edited by hand creates pods of another.
    pub rendered: bool,
    /// The differences from its template, and the additions of known injectors.
    pub audit: PodAudit,
    /// Digest of the configuration with which the pod was admitted.
    pub admitted: Option<String>,
    /// Whether the readiness gate's condition is True.
    pub gate_open: bool,
    /// Whether the pod is Ready, so that Services route clients to it.
    pub serving: bool,
    /// Termination message of a server that refused its configuration.
    pub refusal: Option<String>,
    /// The variables of its template.
    pub variables: Vec<EnvVar>,
}

/// The parts of a cluster with which its pods are compared.
#[derive(Clone, Copy)]
pub struct PodReader<'a> {
    pub cluster: &'a ValidCluster,
    pub desired: &'a DesiredObjects,
    /// The injectors whose additions are accepted.
    pub injectors: &'a KnownInjectors,
}

impl PodReader<'_> {
    /// Reads a pod with the template of its `ReplicaSet`; `None` for one that terminates, has ended, or belongs to no
    /// server.
    pub fn read(&self, pod: &Pod, template: &PodTemplateSpec) -> Option<ServerPod> {
        let status = pod.status.as_ref()?;
        let ended = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
        if pod.metadata.deletion_timestamp.is_some() || ended {
            return None;
        }
        let component = pod.labels().get(COMPONENT_LABEL)?;
        let server = ServerKind::ALL.into_iter().find(|server| server.name() == component)?;
        let wanted = self.desired.deployments.iter().find(|(found, _)| *found == server);
        let wanted = wanted.map(|(_, deployment)| &deployment.spec.template);
        let mark = template_mark(template, TEMPLATE_ANNOTATION);
        let current = mark.is_some() && mark == wanted.and_then(|wanted| template_mark(wanted, TEMPLATE_ANNOTATION));
        let digest = mark.unwrap_or_default().to_owned();
        let rendered = is_rendered_template(template);
        // Of a template that was never rendered, the difference from the one that is.
        let template = if rendered { template } else { wanted.unwrap_or(template) };
        let is_used = self.cluster.dispatcher().is_some();
        let identity = WantedIdentity { name: self.cluster.stream.identity.name(), is_used };
        let live = pod.spec.as_ref()?;
        let audit = audit_pod(template.spec.as_ref()?, live, self.injectors, identity, server.name());
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
        Some(ServerPod {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            server,
            created: pod.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            address: status.pod_ip.as_ref().filter(|_| running).and_then(|ip| ip.parse().ok()),
            template: digest,
            current,
            rendered,
            audit,
            admitted: pod.annotations().get(readiness_annotation::ADMITTED_ANNOTATION).cloned(),
            gate_open: holds(READINESS_GATE),
            serving: holds("Ready"),
            refusal,
            variables: template_variables(template).to_vec(),
        })
    }
}

impl ServerPod {
    /// Whether it runs its template, which was rendered, with no more than known injectors add.
    pub fn runs_its_template(&self) -> bool {
        self.rendered && self.audit.differences.is_empty()
    }

    /// Whether it runs a template that was rendered formerly: during a rollout that stands still clients need it.
    pub fn is_former(&self) -> bool {
        !self.current && self.runs_its_template()
    }

    /// The first difference from its template.
    pub fn first_difference(&self) -> Option<&PodDifference> {
        self.audit.differences.first()
    }

    /// Names the Secrets that its variables reference.
    pub fn secret_names(&self) -> BTreeSet<String> {
        let selectors =
            self.variables.iter().filter_map(|variable| variable.value_from.as_ref()?.secret_key_ref.as_ref());
        selectors.map(|selector| selector.name.clone()).collect()
    }

    fn socket_address(&self, port: i32) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.address?, u16::try_from(port).ok()?))
    }

    /// The variables that were rendered for this pod, and the injected ones.
    fn rendered_variables(&self, desired: &DesiredObjects, secrets: &SecretTexts) -> Option<ServerConfig> {
        let mut all = secrets.clone();
        for secret in &desired.secrets {
            all.insert(secret.name_any(), decode_secret(secret));
        }
        let facts = PodFacts { name: &self.name, address: self.address };
        let mut variables = resolve_variables(&self.variables, facts, &all).ok()?;
        // Only of a pod without differences: what else was added is to be found as drift.
        for (name, value) in self.audit.injected_variables.iter().filter(|_| self.audit.differences.is_empty()) {
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

/// Adds the cause to the line of a server that refuses a variable of ours: its image is older than the release that it is
/// rendered for.
pub fn explain_refusal(line: &str) -> String {
    let name = line.split_once(" is not a variable of this release").map(|(name, _)| name);
    match name.and_then(Variable::by_name) {
        Some(row) => format!(
            "{line}. The image is older than {}, the first release that reads {}: write the release of the image into \
             spec.version, or a newer image",
            row.since, row.name
        ),
        None => line.to_owned(),
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
            template: "t1".to_owned(),
            current: true,
            rendered: true,
            audit: PodAudit {
                differences: tampered.then(|| PodDifference::for_test(false)).into_iter().collect(),
                ..PodAudit::default()
            },
            admitted: admitted.map(str::to_owned),
            gate_open: admitted.is_some(),
            serving: admitted.is_some(),
            refusal: None,
            variables: vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_of_ours_that_a_server_does_not_know_is_one_of_a_later_release() {
        let line = "REALTIME_BUS is not a variable of this release: remove it";
        let explained = explain_refusal(line);
        assert!(explained.starts_with(line) && explained.contains("write the release of the image into spec.version"));
        for line in ["REALTIME_BUSS is not a variable of this release: remove it", "REALTIME_BUS is missing: set it"] {
            assert_eq!(explain_refusal(line), line);
        }
    }
}
