//! Validates manifests: checks the rules that the schema cannot express, applies defaults, resolves references. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::apps::{ClaimedNames, build_probe_app, find_credentials_problem, generated_of_app, validate_app};
use super::cluster::{
    AwsIdentity, DeadLetterStream, DispatcherSettings, EdgeSettings, GateSettings, LoadBalancerSettings, ProbeApp,
    RoleArns, ServerRole, ServerVariable, SockjsSettings, ValidCluster, ValidServer, ValidStream,
};
use super::credentials::ClusterCredentials;
use super::expose::{DrainPhases, ExposeDefaults, find_expose_problems, resolve_exposures};
use super::kubernetes_names::is_dns_label;
use super::pod_settings::{ServerAccount, ServerPods, find_key_problems};
use super::problem::{ManifestProblem, RefusalCause, RefusedApp, describe_app};
use super::secret_copies::{
    ADMIN_TOKEN_KEY, ADMIN_TOKEN_SOURCE, CopyNames, PEER_SECRET_KEY, PEER_SECRET_SOURCE, SecretCopy,
};
use super::secret_references::{RedisReferences, SecretTexts, collect_secret_references};
use super::server_image::{ServerImage, WantedImage};
use super::stream_goal::{StreamCapacity, StreamGoal, resolve_start};
use super::webhook_endpoints::{find_refused_endpoints, limit_to_release};
use crate::api::cluster::{
    DeadLetterMode, DeadLetterSpec, EdgeServer, ExtraVariable, GateSpec, IdentitySpec, IdentityType, PullPolicy,
    ServerLayout, StreamMode, WebhooksMode,
};
use crate::api::expose::ExposeSpec;
use crate::api::load_balancer::{LoadBalancerSpec, ProxyProtocol};
use crate::api::{API_GROUP, EnabledState, RealtimeApp, RealtimeCluster, RealtimeClusterSpec};
use crate::config::{RESTARTED_AT_ANNOTATION, Release, ServerKind, Variable, name};
use crate::protocol::egress_policy::EgressPolicy;
use crate::protocol::registry::{App, AppRegistry};
use crate::protocol::{StreamName, derive_journey_app};

/// Longest name of a Kinesis stream (API reference, `CreateStream`).
const STREAM_NAME_LEN_MAX: usize = 128;

/// Inputs from which a cluster is validated.
pub struct ClusterInputs<'a> {
    /// The cluster's manifest, as written.
    pub cluster: &'a RealtimeCluster,
    /// Manifests of the apps in its namespace, oldest first.
    pub apps: &'a [RealtimeApp],
    /// Texts of the Secrets of its namespace.
    pub secrets: &'a SecretTexts,
    /// Generated credentials of the cluster and of these apps.
    pub credentials: &'a ClusterCredentials,
    /// `HOST:PORT` of the operator's webhook receiver.
    pub receiver: &'a str,
    /// Networks of the Kubernetes cluster itself whose addresses are public.
    pub own_networks: &'a [ipnet::IpNet],
    /// The operator's own image, which a new cluster runs by default.
    pub own_image: &'a ServerImage,
    /// The image that the cluster runs; `None` for a new cluster.
    pub recorded_image: Option<&'a ServerImage>,
    /// The stream that was adopted or created; `None` means the one that the manifest asks for.
    pub stream: Option<&'a StreamIdentity>,
}

/// A stream that belongs to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamIdentity {
    /// Name of the stream.
    pub name: StreamName,
    /// Cluster id in the stream's records: that of the cluster that created it, which may have been deleted and applied
    /// again since.
    pub cluster_id: String,
    /// Time of the adoption, RFC 3339; `None` for a stream that the operator created.
    pub adopted_at: Option<String>,
}

/// Validates a cluster with its apps.
///
/// # Errors
/// All problems of the cluster, not only the first. A problem of an app refuses that app alone: [`ValidCluster::refused`].
pub fn validate(inputs: &ClusterInputs<'_>) -> Result<ValidCluster, Vec<ManifestProblem>> {
    let ClusterInputs { cluster, credentials, .. } = inputs;
    let spec = &cluster.spec;
    let mut problems = check_names(cluster);
    problems.extend(check_servers(cluster));
    problems.extend(check_networks(cluster));
    let wanted = WantedImage { image: &spec.image, version: spec.version.as_deref() };
    let image = ServerImage::choose(wanted, inputs.recorded_image, inputs.own_image);
    let image = image.map_err(|message| problems.push(cluster_problem(cluster, "spec.version", &message)));
    let stream = validate_stream(cluster, &credentials.uid).map_err(|found| problems.extend(found));
    let release = image.as_ref().map_or_else(|()| Release::own(), |image| image.release);
    let servers = resolve_servers(spec, release);
    let exposures = resolve_exposures(cluster, &servers, release);
    let found = find_expose_problems(spec, &exposures, release);
    problems.extend(found.iter().map(|(path, message)| cluster_problem(cluster, path, message)));
    let start_at = spec.webhooks.stream.start_at.as_deref();
    let adopted_at = inputs.stream.and_then(|stream| stream.adopted_at.as_deref());
    let start_ms = resolve_start(start_at, adopted_at).unwrap_or_else(|message| {
        problems.push(cluster_problem(cluster, "spec.webhooks.stream.startAt", &message));
        None
    });
    if let Ok(image) = &image {
        problems.extend(check_bus_group(cluster, image.release));
    }
    let (Ok(stream), Ok(image), []) = (stream, image, problems.as_slice()) else { return Err(problems) };
    let uid = inputs.stream.map_or_else(|| credentials.uid.clone(), |adopted| adopted.cluster_id.clone());
    let pair = credentials.probe.clone();
    let probe = ProbeApp { id: derive_journey_app(&uid), key: pair.key, secret: pair.secret };
    let (apps, refused) = validate_apps(inputs, &probe, image.release);
    Ok(ValidCluster {
        name: cluster_name(cluster),
        namespace: cluster_namespace(cluster),
        uid,
        owner: owner_reference(cluster),
        image,
        pull_policy: spec.image.pull_policy.map(PullPolicy::name),
        pull_secrets: spec.image.image_pull_secrets.clone(),
        edge_account: ServerAccount::resolve(&spec.service_accounts.edge, format!("{}-edge", cluster_name(cluster))),
        dispatcher_account: ServerAccount::resolve(
            &spec.service_accounts.dispatcher,
            format!("{}-dispatcher", cluster_name(cluster)),
        ),
        restarted_at: restarted_at(cluster),
        servers,
        exposures,
        secret_copies: copy_secrets(inputs),
        stream: ValidStream {
            name: inputs.stream.map_or(stream.name, |adopted| adopted.name.clone()),
            start_ms,
            ..stream
        },
        redis: RedisReferences::of_spec(&spec.bus.redis),
        bus_group: spec.bus.group.clone(),
        sockjs: resolve_sockjs(spec),
        trusted_proxies: spec.trusted_proxies.clone(),
        log_filter: spec.log_level.filter(),
        gate: resolve_gate(&spec.gate),
        registry: AppRegistry::new(apps),
        refused,
        probe,
        admin_token: credentials.admin_token.clone(),
        peer_secret: credentials.peer_secret.clone(),
        receiver: inputs.receiver.to_owned(),
        denied_networks: list_denied_networks(inputs),
    })
}

/// Validates the stream that a cluster asks for, whose UID is part of its default name.
///
/// # Errors
/// An identity without its roles or keys, or provisioned capacity without a number of shards.
pub fn validate_stream(cluster: &RealtimeCluster, uid: &str) -> Result<ValidStream, Vec<ManifestProblem>> {
    let (aws, stream) = (&cluster.spec.aws, &cluster.spec.webhooks.stream);
    let mut problems = Vec::new();
    let mut missing = |path: &str| problems.push(cluster_problem(cluster, path, "is missing: add it"));
    let identity = resolve_identity(&aws.identity);
    if identity.is_none() {
        missing(match aws.identity.kind {
            IdentityType::StaticKeys => "spec.aws.identity.secretRef",
            _ => "spec.aws.identity.edge and dispatcher",
        });
    }
    let shards = stream.shards.and_then(|shards| u32::try_from(shards).ok());
    let capacity = match stream.mode.unwrap_or_default() {
        StreamMode::OnDemand => Some(StreamCapacity::OnDemand),
        StreamMode::Provisioned => shards.map(StreamCapacity::Provisioned),
    };
    if capacity.is_none() {
        missing("spec.webhooks.stream.shards");
    }
    let (Some(identity), Some(capacity)) = (identity, capacity) else { return Err(problems) };
    let dead_letter = cluster.spec.webhooks.dead_letter.as_ref().filter(|spec| spec.mode == DeadLetterMode::Stream);
    let short: String = uid.chars().filter(char::is_ascii_alphanumeric).take(6).collect();
    let default_name = || format!("rtc-{}-{}-{short}", cluster_namespace(cluster), cluster_name(cluster));
    let valid = ValidStream {
        name: StreamName(stream.name.clone().unwrap_or_else(default_name)),
        region: aws.region.clone(),
        endpoint_url: aws.endpoint_url.clone(),
        identity,
        capacity,
        goal: StreamGoal::of_spec(stream, capacity),
        start_ms: None,
        dead_letter: dead_letter.map(resolve_dead_letter),
    };
    match find_dead_letter_problem(cluster, &valid) {
        None => Ok(valid),
        Some(problem) => Err(vec![problem]),
    }
}

fn resolve_dead_letter(spec: &DeadLetterSpec) -> DeadLetterStream {
    // The schema allows positive numbers only.
    let positive = |number: i32| u32::try_from(number).unwrap_or(1);
    DeadLetterStream {
        name: spec.name.clone().map(StreamName),
        shards: positive(spec.shards),
        retention_hours: positive(spec.retention_hours),
    }
}

/// Finds a problem of the name of the dead-letter stream: the schema cannot check a name that is derived.
fn find_dead_letter_problem(cluster: &RealtimeCluster, stream: &ValidStream) -> Option<ManifestProblem> {
    let name = stream.dead_letter_name()?;
    let message = if name == stream.name {
        format!("is `{name}`, the stream that the dispatcher reads: choose another name, or leave it out")
    } else if name.as_str().len() > STREAM_NAME_LEN_MAX {
        format!("would be `{name}`, which is longer than {STREAM_NAME_LEN_MAX} characters: write a shorter one")
    } else {
        return None;
    };
    Some(cluster_problem(cluster, "spec.webhooks.deadLetter.name", &message))
}

/// Checks the rules of the schema that an object of an older schema may break, and that are not evaluated again for it.
fn check_names(cluster: &RealtimeCluster) -> Vec<ManifestProblem> {
    let spec = &cluster.spec;
    let mut problems = Vec::new();
    let name = cluster_name(cluster);
    if !is_dns_label(&name) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        let message = format!("is `{name}`, which no Service can begin with: create a cluster with another name");
        problems.push(cluster_problem(cluster, "metadata.name", &message));
    }
    let namespace = cluster_namespace(cluster);
    if !is_dns_label(&namespace) || namespace.len() > 63 {
        let message = format!("is `{namespace}`, which no namespace can be named: write one such as channels");
        problems.push(cluster_problem(cluster, "metadata.namespace", &message));
    }
    let servers = [
        ("websocket", &spec.websocket.pods),
        ("sockjs", &spec.sockjs.pods),
        ("webhooks.dispatcher", &spec.webhooks.dispatcher.pods),
    ];
    for (path, pods) in servers {
        for (field, message) in find_key_problems(pods) {
            problems.push(cluster_problem(cluster, &format!("spec.{path}.{field}"), &message));
        }
        for (index, variable) in pods.env.iter().enumerate() {
            if pods.env.iter().take(index).any(|earlier| earlier.name == variable.name) {
                let message = format!("is `{}`, which an earlier entry has: remove one of them", variable.name);
                problems.push(cluster_problem(cluster, &format!("spec.{path}.env[{index}].name"), &message));
            }
        }
    }
    problems
}

fn check_servers(cluster: &RealtimeCluster) -> Vec<ManifestProblem> {
    let RealtimeClusterSpec { servers, websocket, sockjs, .. } = &cluster.spec;
    if *servers == ServerLayout::Combined && ![websocket, &EdgeServer::default()].contains(&sockjs) {
        let message = "is not what spec.websocket is: with servers: Combined leave it out, or write the same";
        return vec![cluster_problem(cluster, "spec.sockjs", message)];
    }
    vec![]
}

/// Checks that the servers know groups: those of an older release would keep to the bus of their own cluster, unnoticed.
fn check_bus_group(cluster: &RealtimeCluster, release: Release) -> Option<ManifestProblem> {
    let row = Variable::by_name(name::BUS_GROUP)?;
    if cluster.spec.bus.group.is_none() || row.is_read_by(release) {
        return None;
    }
    let message = format!("needs servers of release {}, and they are of {release}: raise spec.version", row.since);
    Some(cluster_problem(cluster, "spec.bus.group", &message))
}

fn check_networks(cluster: &RealtimeCluster) -> Vec<ManifestProblem> {
    let spec = &cluster.spec;
    let networks = [
        ("webhooks.allowedNetworks", &spec.webhooks.allowed_networks),
        ("webhooks.deniedNetworks", &spec.webhooks.denied_networks),
        ("trustedProxies", &spec.trusted_proxies),
    ];
    let mut problems = Vec::new();
    for (path, networks) in networks {
        for (index, network) in networks.iter().enumerate() {
            if network.parse::<ipnet::IpNet>().is_err() {
                let message = format!("is `{network}`: write a network such as 10.20.0.0/16");
                problems.push(cluster_problem(cluster, &format!("spec.{path}[{index}]"), &message));
            }
        }
    }
    problems
}

/// Returns the apps that are served, the probe app first, and those that are not accepted.
fn validate_apps(inputs: &ClusterInputs<'_>, probe: &ProbeApp, release: Release) -> (Vec<App>, Vec<RefusedApp>) {
    let probe = build_probe_app(probe, inputs.receiver);
    let mut claimed = ClaimedNames::of_app(&probe);
    let mut apps = vec![probe];
    let mut refused = Vec::new();
    let policy = egress_policy(inputs);
    for raw in inputs.apps {
        let generated = generated_of_app(raw, inputs.credentials);
        let refusal = generated.and_then(|generated| generated.refusal.as_ref());
        let (cause, problems) = match validate_app(raw, inputs.secrets, inputs.credentials) {
            Ok((mut app, headers)) => match claimed.claim(&app) {
                None => {
                    let settings = limit_to_release(raw, &mut app, release, Release::own());
                    apps.push(app);
                    let cluster = cluster_name(inputs.cluster);
                    let endpoints = policy.as_ref().map(|policy| find_refused_endpoints(raw, &cluster, policy));
                    let credentials = find_credentials_problem(raw, generated);
                    let cause = refusal.map_or(RefusalCause::EndpointNotAllowed, |refusal| refusal.cause);
                    let endpoints = endpoints.into_iter().flatten();
                    (cause, credentials.into_iter().chain(endpoints).chain(headers).chain(settings).collect())
                }
                Some(message) => {
                    let path = "spec.appID".to_owned();
                    (RefusalCause::KeyConflict, vec![ManifestProblem { object: describe_app(raw), path, message }])
                }
            },
            Err(found) => (refusal.map_or(RefusalCause::Invalid, |refusal| refusal.cause), found),
        };
        if !problems.is_empty() {
            refused.push(RefusedApp { name: raw.metadata.name.clone().unwrap_or_default(), cause, problems });
        }
    }
    (apps, refused)
}

/// The policy by which the cluster's dispatchers send; `None` without dispatchers.
fn egress_policy(inputs: &ClusterInputs<'_>) -> Option<EgressPolicy> {
    let webhooks = &inputs.cluster.spec.webhooks;
    let networks = webhooks.allowed_networks.iter().map(String::as_str);
    (webhooks.mode == WebhooksMode::Kinesis).then(|| {
        let policy = EgressPolicy::new(networks, std::iter::once(inputs.receiver));
        // All of them are networks: the manifest was checked before.
        let _ = policy.set_denied(list_denied_networks(inputs).iter().map(String::as_str));
        policy
    })
}

/// The networks that webhooks are not sent to although their addresses are public.
fn list_denied_networks(inputs: &ClusterInputs<'_>) -> Vec<String> {
    let denied = inputs.cluster.spec.webhooks.denied_networks.iter().cloned();
    denied.chain(inputs.own_networks.iter().map(ToString::to_string)).collect()
}

fn resolve_servers(spec: &RealtimeClusterSpec, release: Release) -> Vec<ValidServer> {
    let edges = match spec.servers {
        ServerLayout::Combined => vec![(ServerKind::Edge, &spec.websocket)],
        ServerLayout::Separate => {
            let mut edges = vec![(ServerKind::Websocket, &spec.websocket), (ServerKind::Sockjs, &spec.sockjs)];
            edges.retain(|(_, edge)| edge.state == EnabledState::Enabled);
            edges
        }
    };
    let of_api = spec.http_api.as_ref().map(|api| &api.expose);
    // The first one serves the HTTP API, too.
    let edges = edges.into_iter().enumerate().map(|(number, (kind, edge))| ValidServer {
        role: ServerRole::Edge(resolve_edge(edge, of_api.filter(|_| number == 0))),
        kind,
        replicas: edge.replicas,
        pods: ServerPods::resolve(&edge.pods, release),
        extra_variables: resolve_variables(&edge.pods.env),
    });
    let webhooks = &spec.webhooks;
    // Without webhooks there is no dispatcher.
    let dispatcher = (webhooks.mode == WebhooksMode::Kinesis).then(|| ValidServer {
        kind: ServerKind::Dispatcher,
        replicas: webhooks.dispatcher.replicas,
        pods: ServerPods::resolve(&webhooks.dispatcher.pods, release),
        extra_variables: resolve_variables(&webhooks.dispatcher.pods.env),
        role: ServerRole::Dispatcher(DispatcherSettings {
            retry_window: seconds(webhooks.dispatcher.retry_window_seconds),
            max_backoff: seconds(webhooks.dispatcher.max_backoff_seconds),
            allowed_networks: webhooks.allowed_networks.clone(),
        }),
    });
    edges.chain(dispatcher).collect()
}

fn resolve_variables(extra: &[ExtraVariable]) -> Vec<ServerVariable> {
    extra.iter().map(|extra| ServerVariable { name: extra.name.clone(), value: extra.value.clone() }).collect()
}

/// Resolves an identity; `None` if its roles or keys are missing.
fn resolve_identity(identity: &IdentitySpec) -> Option<AwsIdentity> {
    let roles = || {
        Some(RoleArns {
            edge: identity.edge.as_ref()?.role_arn.clone(),
            dispatcher: identity.dispatcher.as_ref()?.role_arn.clone(),
        })
    };
    Some(match identity.kind {
        IdentityType::Irsa => AwsIdentity::Irsa(roles()?),
        IdentityType::PodIdentity => AwsIdentity::PodIdentity,
        IdentityType::WebIdentity => AwsIdentity::WebIdentity(roles()?),
        IdentityType::StaticKeys => AwsIdentity::StaticKeys(identity.secret_ref.as_ref()?.name.clone()),
        IdentityType::NodeRole => AwsIdentity::NodeRole,
    })
}

fn resolve_sockjs(spec: &RealtimeClusterSpec) -> SockjsSettings {
    let clients = &spec.sockjs_clients;
    let sockjs = if spec.servers == ServerLayout::Combined { &spec.websocket } else { &spec.sockjs };
    SockjsSettings {
        scripts: clients.scripts.clone(),
        has_cookie: clients.cookie == Some(EnabledState::Enabled),
        session_host: clients.canonical_host.clone().or_else(|| sockjs.entrance.canonical_host.clone()),
    }
}

/// Resolves the settings of an edge by the entrances in front of it, that of its HTTP API among them; explicit ones win.
fn resolve_edge(edge: &EdgeServer, api: Option<&ExposeSpec>) -> EdgeSettings {
    let defaults = ExposeDefaults::of_entrance(edge.entrance.expose.as_ref()).extend_to_api(api);
    EdgeSettings {
        drain: DrainPhases {
            hold: seconds(edge.drain.hold_seconds.unwrap_or(defaults.hold_seconds)),
            window: seconds(edge.drain.window_seconds),
        },
        load_balancer: resolve_load_balancer(&edge.load_balancer, defaults),
        min_ready_seconds: defaults.min_ready_seconds,
    }
}

fn resolve_load_balancer(spec: &LoadBalancerSpec, defaults: ExposeDefaults) -> LoadBalancerSettings {
    LoadBalancerSettings {
        activity_timeout_seconds: spec.activity_timeout_seconds.or(defaults.activity_timeout_seconds),
        keep_alive_seconds: spec.keep_alive_seconds.or(defaults.keep_alive_seconds),
        connections_max: spec.connections_max,
        metrics_apps: spec.metrics_apps,
        proxy_protocol: match spec.proxy_protocol.unwrap_or(defaults.proxy_protocol) {
            ProxyProtocol::Disabled => None,
            ProxyProtocol::Accepted => Some("accepted"),
            ProxyProtocol::Required => Some("required"),
        },
        base_path: spec.base_path.clone(),
    }
}

fn resolve_gate(gate: &GateSpec) -> GateSettings {
    GateSettings {
        interval: seconds(gate.interval_seconds),
        timeout: seconds(gate.timeout_seconds),
        open_after: gate.open_after as usize,
        close_after: gate.close_after as usize,
    }
}

/// The annotation, or its last value: a removed annotation must not restart pods again.
fn restarted_at(cluster: &RealtimeCluster) -> Option<String> {
    let written =
        cluster.metadata.annotations.as_ref().and_then(|annotations| annotations.get(RESTARTED_AT_ANNOTATION));
    let known = cluster.status.as_ref().and_then(|status| status.restarted_at.as_ref());
    written.or(known).filter(|value| !value.is_empty()).cloned()
}

fn owner_reference(cluster: &RealtimeCluster) -> Option<OwnerReference> {
    let uid = cluster.metadata.uid.clone()?;
    Some(OwnerReference {
        api_version: format!("{API_GROUP}/v1alpha1"),
        kind: "RealtimeCluster".to_owned(),
        name: cluster_name(cluster),
        uid,
        controller: Some(true),
        block_owner_deletion: Some(true),
    })
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

fn cluster_name(cluster: &RealtimeCluster) -> String {
    cluster.metadata.name.clone().unwrap_or_default()
}

fn cluster_namespace(cluster: &RealtimeCluster) -> String {
    cluster.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned())
}

fn cluster_problem(cluster: &RealtimeCluster, path: &str, message: &str) -> ManifestProblem {
    ManifestProblem {
        object: format!("RealtimeCluster {}", cluster_name(cluster)),
        path: path.to_owned(),
        message: message.to_owned(),
    }
}

/// Copies all that pods read from Secrets at their start.
fn copy_secrets(inputs: &ClusterInputs<'_>) -> Vec<SecretCopy> {
    let ClusterCredentials { admin_token, peer_secret, .. } = inputs.credentials;
    let cluster = cluster_name(inputs.cluster);
    let names = CopyNames { cluster: &cluster, salt: admin_token };
    let mut copies = names.copy_references(&collect_secret_references(inputs.cluster, &[]), inputs.secrets);
    for (source, key, value) in
        [(ADMIN_TOKEN_SOURCE, ADMIN_TOKEN_KEY, admin_token), (PEER_SECRET_SOURCE, PEER_SECRET_KEY, peer_secret)]
    {
        copies.push(names.copy_values(source, &BTreeMap::from([(key, value.expose())])));
    }
    copies
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::{MINIMAL_CLUSTER, applied_cluster};
    use crate::desired::{Manifests, generate_all_credentials};
    use crate::protocol::registry::AppLimits;

    const APP: &str = "
apiVersion: realtime-operator.dev/v1alpha1
kind: RealtimeApp
metadata: { name: shop, namespace: channels }
spec: { appID: '1001', credentials: [{ secretRef: { name: shop } }] }
";

    #[test]
    fn a_group_needs_servers_that_know_it() {
        let grouped = MINIMAL_CLUSTER.replace("bus: {", "bus: { group: fleet,");
        assert_ne!(grouped, MINIMAL_CLUSTER);
        let valid = check_cluster(&grouped, &[], &[("eu-redis", &[("url", "redis://r")])]).expect("a valid cluster");
        assert_eq!(valid.bus_group.as_deref(), Some("fleet"));
        let older = format!("{grouped}  version: 0.1.0\n  image: {{ repository: a/b }}\n");
        let problems = check_cluster(&older, &[], &[("eu-redis", &[("url", "redis://r")])]).expect_err("refused");
        assert!(problems.iter().any(|found| found.to_string().contains("raise spec.version")), "{problems:?}");
    }

    fn check(apps: &[&str], secrets: &[(&str, &[(&str, &str)])]) -> Result<ValidCluster, Vec<ManifestProblem>> {
        check_cluster(MINIMAL_CLUSTER, apps, secrets)
    }

    fn check_cluster(
        cluster: &str,
        apps: &[&str],
        secrets: &[(&str, &[(&str, &str)])],
    ) -> Result<ValidCluster, Vec<ManifestProblem>> {
        let mut manifests = Manifests::default();
        manifests.add_file("c.yaml", cluster).expect("a cluster");
        for app in apps {
            manifests.add_file("a.yaml", app).expect("an app");
        }
        let (_, mut cluster) = manifests.clusters.remove(0);
        cluster.metadata.uid = Some("1a2b3c4d-0000".to_owned());
        let apps: Vec<RealtimeApp> = manifests.apps.into_iter().map(|(_, app)| app).collect();
        let texts = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let secrets = secrets.iter().map(|(name, pairs)| ((*name).to_owned(), texts(pairs))).collect();
        let generate = |purpose: &str| format!("generated-{purpose}");
        validate(&ClusterInputs {
            cluster: &cluster,
            apps: &apps,
            secrets: &secrets,
            credentials: &generate_all_credentials(&cluster, &apps, generate),
            receiver: "receiver.svc:8090",
            own_networks: &[],
            own_image: &ServerImage::of_operator(None),
            recorded_image: None,
            stream: None,
        })
    }

    #[test]
    fn names_are_derived_and_the_probe_app_is_registered() {
        let cluster = check(&[APP], &[("shop", &[("key", "k"), ("secret", "s")])]).expect("a cluster");
        assert_eq!(cluster.stream.name.as_str(), "rtc-channels-eu-1a2b3c");
        assert_eq!(cluster.stream.capacity.initial_shards(), 4);
        assert_eq!(cluster.registry.apps().count(), 2);
        assert!(cluster.probe.id.as_str().bytes().all(|b| b.is_ascii_digit()));
        assert_eq!(cluster.registry.by_key("k").map(|app| app.id.as_str()), Some("1001"));
    }

    #[test]
    fn a_missing_secret_and_a_duplicate_id_are_reported() {
        let problems = |apps: &[&str]| -> Vec<ManifestProblem> {
            let cluster = check(apps, &[]).expect("a cluster");
            cluster.refused.into_iter().flat_map(|refused| refused.problems).collect()
        };
        assert!(
            problems(&[APP])[0]
                .to_string()
                .contains("RealtimeApp shop: spec.credentials[0].secretRef references the Secret `shop`")
        );
        let bare = APP.replace(", credentials: [{ secretRef: { name: shop } }]", "");
        assert!(
            problems(&[&bare, &bare.replace("name: shop", "name: two")])[0]
                .to_string()
                .contains("RealtimeApp two: spec.appID is `1001`, which another app has")
        );
    }

    #[test]
    fn an_app_without_credentials_gets_generated_ones() {
        let bare = APP.replace(", credentials: [{ secretRef: { name: shop } }]", "");
        let cluster = check(&[&bare], &[]).expect("a cluster");
        assert!(cluster.registry.by_key("generated-shop-key").is_some());
    }

    #[test]
    fn origins_and_limits_reach_the_registry_and_invalid_ones_are_reported() {
        let origins = |origins: &str| {
            let limits = "limits: { connections: 5, messageBytes: 100 }";
            APP.replace("appID: '1001',", &format!("appID: '1001', allowedOrigins: [{origins}], {limits},"))
        };
        let secrets: &[(&str, &[(&str, &str)])] = &[("shop", &[("key", "k"), ("secret", "s")])];
        let good = check(&[&origins("'https://*.example.com', 'http://localhost:*'")], secrets).expect("a cluster");
        let app = good.registry.by_key("k").expect("the app");
        assert_eq!(app.allowed_origins, ["https://*.example.com", "http://localhost:*"]);
        assert_eq!(app.limits, AppLimits { connections: Some(5), message_bytes: 100, ..AppLimits::default() });
        let bad = check(&[&origins("'*', 'https://example.com/shop'")], secrets).expect("a cluster");
        let problems: Vec<String> = bad.refused[0].problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("spec.allowedOrigins[1] is `https://example.com/shop`"), "{problems:?}");
    }

    fn problems(spec: &str) -> Vec<String> {
        let valid = check_cluster(&format!("{MINIMAL_CLUSTER}{spec}"), &[], &[]);
        valid.err().unwrap_or_default().into_iter().map(|problem| problem.path).collect()
    }

    #[test]
    fn servers_combined_are_described_once() {
        let both = "  servers: Combined\n  websocket: { replicas: 2 }\n";
        assert_eq!(problems(both), [""; 0]);
        assert_eq!(problems(&format!("{both}  sockjs: {{ replicas: 2 }}\n")), [""; 0]);
        assert_eq!(problems(&format!("{both}  sockjs: {{ replicas: 5 }}\n")), ["spec.sockjs"]);
    }

    #[test]
    fn invalid_networks_are_reported() {
        let spec = "  trustedProxies: [10.0.0.0/8, proxy]\n  webhooks: { allowedNetworks: ['10.0.0.0/99'], deniedNetworks: [pods] }\n";
        let expected =
            ["spec.webhooks.allowedNetworks[0]", "spec.webhooks.deniedNetworks[0]", "spec.trustedProxies[1]"];
        assert_eq!(problems(spec), expected);
    }

    /// An API server refuses these by their rules; objects of an older schema were never checked.
    #[test]
    fn names_that_the_schema_refuses_are_reported_of_older_objects_too() {
        let mut cluster = applied_cluster("");
        assert_eq!(check_names(&cluster), []);
        for name in ["eu.prod", "1eu", "eu-", ""] {
            cluster.metadata.name = Some(name.to_owned());
            assert_eq!(check_names(&cluster).len(), 1, "{name}");
        }
        let variable = |name: &str| ExtraVariable { name: name.to_owned(), value: String::new() };
        let mut cluster = applied_cluster("");
        cluster.spec.sockjs.pods.env = ["A", "B", "A"].map(variable).into();
        let problems = check_names(&cluster);
        let paths: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, ["spec.sockjs.env[2].name"]);
        let mut app: RealtimeApp = serde_yaml::from_str(APP).expect("an app");
        let webhook = |url: &str| serde_json::from_value(serde_json::json!({ "name": "a", "url": url }));
        app.spec.webhooks = ["https://a.test", "https://b.test"].map(|url| webhook(url).expect("a webhook")).into();
        let secrets = SecretTexts::from([(
            "shop".to_owned(),
            [("key", "k"), ("secret", "s")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        )]);
        let credentials = generate_all_credentials(&cluster, &[], str::to_owned);
        let problems = validate_app(&app, &secrets, &credentials).expect_err("a second endpoint of one name");
        assert_eq!(problems[0].path, "spec.webhooks[1].name");
    }

    #[test]
    fn an_endpoint_that_the_cluster_does_not_allow_is_reported_and_the_app_is_served() {
        let secrets: &[(&str, &[(&str, &str)])] = &[("shop", &[("key", "k"), ("secret", "s")])];
        let check = |cluster: &str, url: &str| {
            let webhooks = format!("{{ appID: '1001', webhooks: [{{ name: a, url: '{url}' }}],");
            let valid = check_cluster(cluster, &[&APP.replace("{ appID: '1001',", &webhooks)], secrets);
            let valid = valid.expect("a cluster");
            assert!(valid.registry.by_key("k").is_some(), "{url}: its clients are served");
            let found = valid.refused.into_iter().flat_map(|refused| {
                assert_eq!(refused.cause, RefusalCause::EndpointNotAllowed);
                refused.problems
            });
            found.map(|problem| problem.to_string()).collect::<Vec<_>>()
        };
        for (url, refused) in [
            ("https://a.test/x", ""),
            ("https://a.test:8443/x", ""),
            ("http://a.test/x", "a.test:80 is not https on port 443 or 8443"),
            ("https://a.test:9443/x", "a.test:9443 is not https on port 443 or 8443"),
            ("https://10.0.0.1/x", "10.0.0.1 is not a public address"),
        ] {
            let found = check(MINIMAL_CLUSTER, url).join("; ");
            let expected = "RealtimeApp shop: spec.webhooks[0].url gets no webhook from cluster eu: ";
            let expected = if refused.is_empty() { String::new() } else { format!("{expected}{refused}") };
            assert!(found.starts_with(&expected) && found.is_empty() == expected.is_empty(), "{url}: {found}");
        }
        let allowing = format!("{MINIMAL_CLUSTER}  webhooks: {{ allowedNetworks: ['10.0.0.0/8'] }}\n");
        for url in ["http://a.test/x", "https://a.test:9443/x", "http://10.0.0.1/x"] {
            assert_eq!(check(&allowing, url), [""; 0], "{url}");
        }
        assert_eq!(check(&allowing, "http://192.168.0.1/x").len(), 1);
        let denying = format!("{MINIMAL_CLUSTER}  webhooks: {{ deniedNetworks: ['11.0.0.0/8'] }}\n");
        assert_eq!(check(&denying, "https://12.0.0.1/x"), [""; 0]);
        assert!(
            check(&denying, "https://11.0.0.1/x")[0]
                .contains("11.0.0.1 is in a network of the Kubernetes cluster itself")
        );
        let off = format!("{MINIMAL_CLUSTER}  webhooks: {{ mode: 'Off', acknowledgeNoWebhooks: eu }}\n");
        assert_eq!(check(&off, "http://a.test/x"), [""; 0], "nothing is sent");
    }

    #[test]
    fn a_secret_with_a_line_end_is_that_without_and_a_key_with_a_blank_is_refused() {
        let served = |key: &str| {
            let secret = format!(
                "apiVersion: v1\nkind: Secret\nmetadata: {{ name: shop, namespace: channels }}\nstringData: {{ key: {key}, secret: \"s\\n\" }}\n"
            );
            let mut manifests = Manifests::default();
            manifests.add_file("s.yaml", &secret).expect("a Secret");
            let texts = &manifests.secrets[&("channels".to_owned(), "shop".to_owned())];
            let texts: Vec<(&str, &str)> = texts.iter().map(|(key, text)| (key.as_str(), text.as_str())).collect();
            check(&[APP], &[("shop", &texts)]).expect("a cluster")
        };
        let cluster = served("\" k\\r\\n\"");
        assert_eq!(cluster.registry.by_key("k").map(|app| app.credentials[0].secret.expose()), Some("s"));
        for key in ["\"a b\"", "\"a\\nb\"", "ä"] {
            let refused = served(key).refused;
            assert!(refused[0].problems[0].to_string().contains("a character that no header can carry"), "{key}");
        }
    }

    #[test]
    fn an_app_that_could_sign_nothing_is_refused() {
        let retiring = APP.replace("{ name: shop } }", "{ name: shop }, state: Retiring }");
        let cluster = check(&[&retiring], &[("shop", &[("key", "k"), ("secret", "s")])]).expect("a cluster");
        assert!(cluster.refused[0].problems[0].to_string().contains("no Active pair"));
    }

    /// An API server refuses these by their rules; objects of an older schema were never checked.
    #[test]
    fn a_stream_without_its_identity_or_shards_is_reported() {
        let paths = |change: &dyn Fn(&mut RealtimeClusterSpec)| -> Vec<String> {
            let mut cluster = applied_cluster("");
            change(&mut cluster.spec);
            let problems = validate_stream(&cluster, "u").err().unwrap_or_default();
            problems.into_iter().map(|problem| problem.path).collect()
        };
        assert_eq!(paths(&|_| {}), [""; 0]);
        assert_eq!(paths(&|spec| spec.aws.identity.kind = IdentityType::StaticKeys), ["spec.aws.identity.secretRef"]);
        let roles = ["spec.aws.identity.edge and dispatcher"];
        assert_eq!(paths(&|spec| spec.aws.identity.kind = IdentityType::WebIdentity), roles);
        let dead_letter =
            |name: Option<&str>| Some(DeadLetterSpec { name: name.map(str::to_owned), ..DeadLetterSpec::default() });
        let of_main = ["spec.webhooks.deadLetter.name"];
        assert_eq!(paths(&|spec| spec.webhooks.dead_letter = dead_letter(Some("rtc-channels-eu-u"))), of_main);
        let long = |spec: &mut RealtimeClusterSpec| {
            spec.webhooks.stream.name = Some("s".repeat(120));
            spec.webhooks.dead_letter = dead_letter(None);
        };
        assert_eq!(paths(&long), of_main);
        let shards = ["spec.webhooks.stream.shards"];
        assert_eq!(paths(&|spec| spec.webhooks.stream.mode = Some(StreamMode::Provisioned)), shards);
    }
}
