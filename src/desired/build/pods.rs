//! The pods: who they are, what they run, what they may.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, DownwardAPIProjection, DownwardAPIVolumeFile, HTTPGetAction, KeyToPath,
    ObjectFieldSelector, PodReadinessGate, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ProjectedVolumeSource,
    SeccompProfile, SecretProjection, SecurityContext, ServiceAccount, ServiceAccountTokenProjection, Volume,
    VolumeMount, VolumeProjection,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::Cluster;
use super::template::{READINESS_GATE, SECRETS, TEMPLATE, template_digest};
use super::variables::{TOKEN_DIRECTORY, edge, variables};
use super::{
    ADMIN_PORT, APPS_PATH, PEER_PORT, POD_PATH, PUBLIC_PORT, child, labels, metadata, registry_secret_name, selector,
};
use crate::api::cluster::{Drain, IdentityType};
use crate::contract::Server;
use crate::protocol::registry::{BUCKETS, file_name};

/// The user of the image.
const USER: i64 = 65532;

/// Seconds that a dispatcher may take to end: it finishes what it sends.
const GRACE_SECONDS: i64 = 60;

/// Seconds that an edge may take to end once its clients were sent away: they leave, and what waits is written.
const AFTER_DRAIN_SECONDS: u32 = 30;

fn account(server: Server) -> &'static str {
    if server == Server::Dispatcher { "dispatcher" } else { "edge" }
}

/// Two accounts, because least privilege needs two: edges write the stream, the dispatcher reads it. They are never
/// renamed: trust policies name them.
pub(super) fn service_accounts(cluster: &Cluster) -> Vec<ServiceAccount> {
    let identity = &cluster.spec.aws.identity;
    [("edge", &identity.edge), ("dispatcher", &identity.dispatcher)]
        .map(|(name, role)| {
            let mut metadata = metadata(cluster, child(cluster, name), name);
            if let (IdentityType::Irsa, Some(role)) = (identity.kind, role) {
                let annotation = ("eks.amazonaws.com/role-arn".to_owned(), role.role_arn.clone());
                metadata.annotations = Some(BTreeMap::from([annotation]));
            }
            ServiceAccount { metadata, automount_service_account_token: Some(false), ..ServiceAccount::default() }
        })
        .into()
}

pub(super) fn deployment(cluster: &Cluster, server: Server, replicas: i32) -> Deployment {
    Deployment {
        metadata: metadata(cluster, child(cluster, server.name()), server.name()),
        spec: DeploymentSpec {
            replicas: Some(replicas),
            selector: LabelSelector {
                match_labels: Some(selector(cluster, server.name())),
                ..LabelSelector::default()
            },
            // A new pod must be let in before an old one goes: a rollout to something that does not work ends there.
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template: template(cluster, server),
            ..DeploymentSpec::default()
        },
        ..Deployment::default()
    }
}

fn template(cluster: &Cluster, server: Server) -> PodTemplateSpec {
    let pod = pod(cluster, server);
    let digest = pod.containers.first().map(template_digest).unwrap_or_default();
    let secrets = cluster.secrets_digests.get(&server).cloned().unwrap_or_default();
    let annotations = [(TEMPLATE, digest), (SECRETS, secrets)];
    let metadata = ObjectMeta {
        labels: Some(labels(cluster, server.name())),
        annotations: Some(annotations.map(|(name, value)| (name.to_owned(), value)).into()),
        ..ObjectMeta::default()
    };
    PodTemplateSpec { metadata: Some(metadata), spec: Some(pod) }
}

/// At most one pod of a server goes at a time when a node is drained; one that never worked may always go.
pub(super) fn disruption_budget(cluster: &Cluster, server: Server) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(cluster, child(cluster, server.name()), server.name()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(selector(cluster, server.name())),
                ..LabelSelector::default()
            }),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

fn pod(cluster: &Cluster, server: Server) -> PodSpec {
    PodSpec {
        readiness_gates: Some(vec![PodReadinessGate { condition_type: READINESS_GATE.to_owned() }]),
        containers: vec![container(cluster, server)],
        service_account_name: Some(child(cluster, account(server))),
        // The dispatcher keeps its leases on the API server; edges have no business there.
        automount_service_account_token: Some(server == Server::Dispatcher),
        // kubelet would inject REALTIME_…_SERVICE_HOST for a Service named realtime-….
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(grace_seconds(cluster, server)),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        volumes: Some(volumes(cluster)),
        ..PodSpec::default()
    }
}

fn grace_seconds(cluster: &Cluster, server: Server) -> i64 {
    edge(cluster, server).map_or(GRACE_SECONDS, |edge| {
        let Drain { hold_seconds, window_seconds } = edge.drain;
        i64::from(hold_seconds + window_seconds + AFTER_DRAIN_SECONDS)
    })
}

fn container(cluster: &Cluster, server: Server) -> Container {
    let image = &cluster.spec.image;
    let edge = server != Server::Dispatcher;
    let reference = image.digest.as_ref().map_or_else(|| format!(":{}", cluster.tag), |digest| format!("@{digest}"));
    let mut ports = vec![port("admin", ADMIN_PORT)];
    if edge {
        ports.insert(0, port("public", PUBLIC_PORT));
    }
    if server.serves_as(Server::Sockjs) {
        ports.push(port("peer", PEER_PORT));
    }
    Container {
        name: server.name().to_owned(),
        image: Some(format!("{}{reference}", image.repository)),
        args: Some(vec![if edge { "edge" } else { "dispatcher" }.to_owned()]),
        env: Some(variables(cluster, server)),
        ports: Some(ports),
        volume_mounts: Some(mounts(cluster)),
        readiness_probe: Some(probe("/readyz", 2)),
        liveness_probe: Some(probe("/livez", 10)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort { name: Some(name.to_owned()), container_port: number, ..ContainerPort::default() }
}

fn probe(path: &str, period: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("admin".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(2),
        failure_threshold: Some(3),
        ..Probe::default()
    }
}

fn mounts(cluster: &Cluster) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let mut mounts = vec![mount("apps", APPS_PATH), mount("pod", POD_PATH)];
    if cluster.identity() == IdentityType::WebIdentity {
        mounts.push(mount("aws-token", TOKEN_DIRECTORY));
    }
    mounts
}

fn volumes(cluster: &Cluster) -> Vec<Volume> {
    let projected = |name: &str, sources: Vec<VolumeProjection>| Volume {
        name: name.to_owned(),
        projected: Some(ProjectedVolumeSource { sources: Some(sources), ..ProjectedVolumeSource::default() }),
        ..Volume::default()
    };
    let buckets = (0..BUCKETS).map(|bucket| VolumeProjection {
        secret: Some(SecretProjection {
            name: registry_secret_name(cluster, bucket),
            items: Some(vec![KeyToPath { key: file_name(bucket), path: file_name(bucket), ..KeyToPath::default() }]),
            ..SecretProjection::default()
        }),
        ..VolumeProjection::default()
    });
    let annotations = DownwardAPIVolumeFile {
        path: "annotations".to_owned(),
        field_ref: Some(ObjectFieldSelector {
            field_path: "metadata.annotations".to_owned(),
            ..ObjectFieldSelector::default()
        }),
        ..DownwardAPIVolumeFile::default()
    };
    let pod = VolumeProjection {
        downward_api: Some(DownwardAPIProjection { items: Some(vec![annotations]) }),
        ..VolumeProjection::default()
    };
    let mut volumes = vec![projected("apps", buckets.collect()), projected("pod", vec![pod])];
    if cluster.identity() == IdentityType::WebIdentity {
        let token = ServiceAccountTokenProjection {
            audience: Some("sts.amazonaws.com".to_owned()),
            expiration_seconds: Some(3600),
            path: "token".to_owned(),
            ..ServiceAccountTokenProjection::default()
        };
        let source = VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
        volumes.push(projected("aws-token", vec![source]));
    }
    volumes
}
