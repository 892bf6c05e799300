//! Renders the pods: service accounts, Deployments, disruption budgets and pod templates.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, DownwardAPIProjection, DownwardAPIVolumeFile, HTTPGetAction, KeyToPath,
    LocalObjectReference, ObjectFieldSelector, PodReadinessGate, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecretProjection, SecurityContext, ServiceAccount,
    ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::{AwsIdentity, EdgeSettings, ServerRole, ValidCluster, ValidServer, template_digest};
use super::template::{READINESS_GATE, TEMPLATE_ANNOTATION};
use super::variables::{TOKEN_DIRECTORY, render_variables};
use super::{
    ADMIN_PORT, APPS_PATH, PEER_PORT, POD_PATH, PUBLIC_PORT, child_labels, child_metadata, child_name, pod_selector,
    registry_secret_name,
};
use crate::config::{IAM_ROLE_ANNOTATION, RESTARTED_AT_ANNOTATION, Release, ServerKind};
use crate::protocol::registry::{BUCKET_COUNT, ENDPOINTS_FILE, file_name};

/// User id of the image's unprivileged user.
const IMAGE_USER_ID: i64 = 65532;

/// Termination grace period of a dispatcher, in s: it finishes the webhooks that it is sending.
const DISPATCHER_GRACE_SECONDS: u64 = 60;

/// Renders two accounts for least privilege: edges write the stream, the dispatcher reads it. Their names never change,
/// since trust policies contain them. An account that exists is not rendered.
pub(super) fn render_service_accounts(cluster: &ValidCluster) -> Vec<ServiceAccount> {
    let servers = [(ServerKind::Edge, "edge"), (ServerKind::Dispatcher, "dispatcher")];
    let created = servers.into_iter().filter(|(server, _)| cluster.account_of(*server).is_created);
    created
        .map(|(server, component)| {
            let mut metadata = child_metadata(cluster, cluster.account_of(server).name.clone(), component);
            if let AwsIdentity::Irsa(roles) = &cluster.stream.identity {
                let annotation = (IAM_ROLE_ANNOTATION.to_owned(), roles.of_server(server).to_owned());
                metadata.annotations = Some(BTreeMap::from([annotation]));
            }
            ServiceAccount { metadata, automount_service_account_token: Some(false), ..ServiceAccount::default() }
        })
        .collect()
}

pub(super) fn render_deployment(cluster: &ValidCluster, server: &ValidServer) -> Deployment {
    Deployment {
        metadata: child_metadata(cluster, child_name(cluster, server.kind.name()), server.kind.name()),
        spec: DeploymentSpec {
            replicas: Some(server.replicas),
            min_ready_seconds: min_ready_seconds(server),
            selector: LabelSelector {
                match_labels: Some(pod_selector(cluster, server.kind.name())),
                ..LabelSelector::default()
            },
            // A new pod must be admitted before an old one is deleted: a rollout of a broken template stops at its first pod.
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template: render_pod_template(cluster, server),
            ..DeploymentSpec::default()
        },
        ..Deployment::default()
    }
}

/// Time for which a load balancer registers a new pod before an old one ends; `None` without such a wait.
fn min_ready_seconds(server: &ValidServer) -> Option<i32> {
    let seconds = server.edge().map_or(0, |edge| edge.min_ready_seconds);
    i32::try_from(seconds).ok().filter(|seconds| *seconds > 0)
}

fn render_pod_template(cluster: &ValidCluster, server: &ValidServer) -> PodTemplateSpec {
    let pod = render_pod_spec(cluster, server);
    let digest = template_digest(&pod);
    let restarted = cluster.restarted_at.clone().map(|value| (RESTARTED_AT_ANNOTATION, value));
    let own = std::iter::once((TEMPLATE_ANNOTATION, digest)).chain(restarted);
    let own = own.map(|(name, value)| (name.to_owned(), value));
    let (labels, annotations) = (server.pods.labels.clone(), server.pods.annotations.clone());
    let metadata = ObjectMeta {
        labels: Some(labels.into_iter().chain(child_labels(cluster, server.kind.name())).collect()),
        annotations: Some(annotations.into_iter().chain(own).collect()),
        ..ObjectMeta::default()
    };
    PodTemplateSpec { metadata: Some(metadata), spec: Some(pod) }
}

/// Allows one eviction per server at a time during a node drain; a pod that was never ready may always be evicted.
pub(super) fn render_disruption_budget(cluster: &ValidCluster, server: &ValidServer) -> PodDisruptionBudget {
    let name = server.kind.name();
    PodDisruptionBudget {
        metadata: child_metadata(cluster, child_name(cluster, name), name),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(server.pods.max_unavailable.clone()),
            selector: Some(LabelSelector {
                match_labels: Some(pod_selector(cluster, name)),
                ..LabelSelector::default()
            }),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

fn render_pod_spec(cluster: &ValidCluster, server: &ValidServer) -> PodSpec {
    let pods = &server.pods;
    let spread = pods.select_spread_pods(&pod_selector(cluster, server.kind.name()));
    // By default the user is that of the image, or of a range that the platform sets.
    let user = (cluster.image.release < Release::PLATFORM_DEFAULTS).then_some(IMAGE_USER_ID);
    let pull_secrets = cluster.pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() });
    PodSpec {
        node_selector: (!pods.node_selector.is_empty()).then(|| pods.node_selector.clone()),
        tolerations: none_if_empty(pods.tolerations.clone()),
        affinity: pods.affinity.clone(),
        topology_spread_constraints: none_if_empty(spread),
        priority_class_name: pods.priority_class.clone(),
        image_pull_secrets: none_if_empty(pull_secrets.collect()),
        readiness_gates: Some(vec![PodReadinessGate { condition_type: READINESS_GATE.to_owned() }]),
        containers: vec![render_container(cluster, server)],
        service_account_name: Some(cluster.account_of(server.kind).name.clone()),
        // The dispatcher keeps its leases on the API server; edges need no access.
        automount_service_account_token: Some(server.kind == ServerKind::Dispatcher),
        // kubelet would inject REALTIME_…_SERVICE_HOST for a Service named realtime-….
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(termination_grace_seconds(server)),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: user,
            run_as_group: user,
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }),
        volumes: Some(render_volumes(cluster)),
        ..PodSpec::default()
    }
}

fn none_if_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn termination_grace_seconds(server: &ValidServer) -> i64 {
    let seconds = match &server.role {
        ServerRole::Edge(EdgeSettings { drain, .. }) => drain.termination_grace().as_secs(),
        ServerRole::Dispatcher(_) => DISPATCHER_GRACE_SECONDS,
    };
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn render_container(cluster: &ValidCluster, server: &ValidServer) -> Container {
    let edge = server.kind != ServerKind::Dispatcher;
    let mut ports = vec![render_port("admin", ADMIN_PORT)];
    if edge {
        ports.insert(0, render_port("public", PUBLIC_PORT));
    }
    if server.kind.serves_as(ServerKind::Sockjs) {
        ports.push(render_port("peer", PEER_PORT));
    }
    Container {
        name: server.kind.name().to_owned(),
        image: Some(cluster.image.to_string()),
        image_pull_policy: cluster.pull_policy.map(str::to_owned),
        resources: Some(server.pods.resources.clone()).filter(|found| *found != ResourceRequirements::default()),
        args: Some(vec![if edge { "edge" } else { "dispatcher" }.to_owned()]),
        env: Some(render_variables(cluster, server)),
        ports: Some(ports),
        volume_mounts: Some(render_volume_mounts(cluster)),
        readiness_probe: Some(render_http_probe("/readyz", 2)),
        liveness_probe: Some(render_http_probe("/livez", 10)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

fn render_port(name: &str, number: i32) -> ContainerPort {
    ContainerPort { name: Some(name.to_owned()), container_port: number, ..ContainerPort::default() }
}

fn render_http_probe(path: &str, period: i32) -> Probe {
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

fn render_volume_mounts(cluster: &ValidCluster) -> Vec<VolumeMount> {
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let mut mounts = vec![mount("apps", APPS_PATH), mount("pod", POD_PATH)];
    if matches!(cluster.stream.identity, AwsIdentity::WebIdentity(_)) {
        mounts.push(mount("aws-token", TOKEN_DIRECTORY));
    }
    mounts
}

fn render_volumes(cluster: &ValidCluster) -> Vec<Volume> {
    let projected = |name: &str, sources: Vec<VolumeProjection>| Volume {
        name: name.to_owned(),
        projected: Some(ProjectedVolumeSource { sources: Some(sources), ..ProjectedVolumeSource::default() }),
        ..Volume::default()
    };
    let buckets = (0..BUCKET_COUNT).map(|bucket| VolumeProjection {
        secret: Some(SecretProjection {
            name: registry_secret_name(&cluster.name, bucket),
            items: Some(vec![KeyToPath { key: file_name(bucket), path: file_name(bucket), ..KeyToPath::default() }]),
            ..SecretProjection::default()
        }),
        ..VolumeProjection::default()
    });
    // Optional: a Secret that an older operator wrote has no such key.
    let endpoints = VolumeProjection {
        secret: Some(SecretProjection {
            name: registry_secret_name(&cluster.name, 0),
            items: Some(vec![KeyToPath {
                key: ENDPOINTS_FILE.to_owned(),
                path: ENDPOINTS_FILE.to_owned(),
                ..KeyToPath::default()
            }]),
            optional: Some(true),
        }),
        ..VolumeProjection::default()
    };
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
    let mut volumes = vec![projected("apps", buckets.chain([endpoints]).collect()), projected("pod", vec![pod])];
    if matches!(cluster.stream.identity, AwsIdentity::WebIdentity(_)) {
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
