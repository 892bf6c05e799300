//! Resolves the exposures of a cluster from its manifest and its resolved servers.

use std::time::Duration;

use super::{
    AwsController, AwsEntrance, DnsRecords, Entrance, Exposure, ExposureTiming, GatewayDialect, IngressDialect,
    IngressEntrance, ParentGateway,
};
use crate::api::cluster::{EdgeServer, ServerLayout, TransportState};
use crate::api::expose::{
    DnsType, EntranceSpec, ExposeController, ExposeSpec, ExposeType, LoadBalancerScheme, ParentGatewayRef, TlsSpec,
};
use crate::api::{EnabledState, RealtimeCluster, RealtimeClusterSpec};
use crate::config::{Release, ServerKind};
use crate::desired::cluster::ValidServer;
use crate::protocol::Transport;

/// TLS policy of load balancers of AWS; their controllers' own default is of 2016.
const DEFAULT_SECURITY_POLICY: &str = "ELBSecurityPolicy-TLS13-1-2-2021-06";

/// Activity timeout of servers without the variable for it, and of those that read it.
const FORMER_ACTIVITY_TIMEOUT: Duration = Duration::from_mins(2);
const DEFAULT_ACTIVITY_TIMEOUT: Duration = Duration::from_secs(55);

/// Resolves the exposures: one per server with hosts or an object, one for both servers if they share their hosts.
pub fn resolve_exposures(cluster: &RealtimeCluster, servers: &[ValidServer], release: Release) -> Vec<Exposure> {
    let spec = &cluster.spec;
    let mut exposures: Vec<Exposure> = Vec::new();
    for (asked, edge) in asked_servers(spec) {
        let Some(server) = servers.iter().find(|server| server.kind.serves_as(asked)) else { continue };
        let Some(exposure) = resolve_exposure(cluster, (asked, edge), server, release) else { continue };
        let shared = exposures.iter_mut().find(|known| !exposure.hosts.is_empty() && known.hosts == exposure.hosts);
        match shared {
            Some(known) => {
                known.servers.push(asked);
                known.timing = known.timing.extend_to(exposure.timing);
                if exposure.records == DnsRecords::HeldBack {
                    known.records = DnsRecords::HeldBack;
                }
            }
            None => exposures.push(exposure),
        }
    }
    exposures.extend(resolve_http_api(cluster, servers, release));
    exposures
}

/// Resolves the exposure of the HTTP API, which each edge serves: that of `websocket` if there is one.
fn resolve_http_api(cluster: &RealtimeCluster, servers: &[ValidServer], release: Release) -> Option<Exposure> {
    let api = cluster.spec.http_api.as_ref()?;
    let asked = [ServerKind::Websocket, ServerKind::Sockjs]
        .into_iter()
        .find(|asked| servers.iter().any(|server| server.kind.serves_as(*asked)))?;
    let server = servers.iter().find(|server| server.kind.serves_as(asked))?;
    let hosts = vec![api.host.clone()];
    let entrance = resolve_entrance(&api.expose, api.tls.as_ref());
    let exposure = resolve_object(Some(&api.expose), entrance, (asked, server), release)?;
    let records = resolve_records(cluster, &hosts);
    Some(Exposure { servers: vec![], is_http_api: true, base_path: None, hosts, records, ..exposure })
}

/// The servers that clients ask for, with their settings: those of `websocket` for both, if one server is both.
fn asked_servers(spec: &RealtimeClusterSpec) -> [(ServerKind, &EdgeServer); 2] {
    let sockjs = if spec.servers == ServerLayout::Combined { &spec.websocket } else { &spec.sockjs };
    [(ServerKind::Websocket, &spec.websocket), (ServerKind::Sockjs, sockjs)]
}

fn resolve_exposure(
    cluster: &RealtimeCluster,
    (asked, edge): (ServerKind, &EdgeServer),
    server: &ValidServer,
    release: Release,
) -> Option<Exposure> {
    let EntranceSpec { hosts, canonical_host, tls, expose } = &edge.entrance;
    // One load balancer without hosts leads to both servers, too.
    if cluster.spec.servers == ServerLayout::Combined && asked == ServerKind::Sockjs && hosts.is_empty() {
        return None;
    }
    let entrance = expose.as_ref().map_or(Entrance::ClusterIp, |expose| resolve_entrance(expose, tls.as_ref()));
    if entrance == Entrance::ClusterIp && hosts.is_empty() {
        return None;
    }
    let exposure = resolve_object(expose.as_ref(), entrance, (asked, server), release)?;
    Some(Exposure {
        hosts: hosts.iter().chain(canonical_host).cloned().collect(),
        records: resolve_records(cluster, hosts),
        ..exposure
    })
}

/// Resolves the object in front of a server, without hosts.
fn resolve_object(
    spec: Option<&ExposeSpec>,
    entrance: Entrance,
    (asked, server): (ServerKind, &ValidServer),
    release: Release,
) -> Option<Exposure> {
    let settings = server.edge()?;
    let wanted = settings.load_balancer.activity_timeout_seconds;
    let activity = wanted.map_or(DEFAULT_ACTIVITY_TIMEOUT, |seconds| Duration::from_secs(seconds.into()));
    let knows_variable = release >= Release::LOAD_BALANCER_SETTINGS;
    let activity = if knows_variable { activity } else { FORMER_ACTIVITY_TIMEOUT };
    Some(Exposure {
        server: asked,
        servers: vec![asked],
        is_http_api: false,
        hosts: vec![],
        entrance,
        timing: ExposureTiming { activity, drain: settings.drain },
        base_path: settings.load_balancer.base_path.clone(),
        has_proxy_header: settings.load_balancer.proxy_protocol.is_some(),
        source_ranges: spec.map(|spec| spec.source_ranges.clone()).unwrap_or_default(),
        annotations: spec.map(|spec| spec.annotations.clone()).unwrap_or_default(),
        labels: spec.map(|spec| spec.labels.clone()).unwrap_or_default(),
        records: DnsRecords::Manual,
    })
}

fn resolve_records(cluster: &RealtimeCluster, hosts: &[String]) -> DnsRecords {
    let author = cluster.spec.dns.as_ref().map(|dns| dns.kind).unwrap_or_default();
    let published = cluster.status.as_ref().map(|status| status.published_hosts.as_slice()).unwrap_or_default();
    match author {
        DnsType::Manual => DnsRecords::Manual,
        DnsType::ExternalDns if hosts.iter().all(|host| published.contains(host)) => DnsRecords::Published,
        DnsType::ExternalDns => DnsRecords::HeldBack,
    }
}

/// The hosts whose records may exist: those that were published before and are still named, and those whose servers' transports
/// all pass now.
#[must_use]
pub fn find_published_hosts(cluster: &RealtimeCluster) -> Vec<String> {
    let Some(status) = &cluster.status else { return vec![] };
    let passes = |asked: ServerKind| {
        let mut of_server = Transport::ALL.into_iter().filter(|transport| transport.server_kind() == asked);
        let is_passing = |transport: Transport| {
            let known = status.transports.iter().find(|known| known.name == transport.name());
            known.is_some_and(|known| known.state == TransportState::Passing)
        };
        of_server.all(is_passing)
    };
    let servers = asked_servers(&cluster.spec);
    let enabled = servers.iter().filter(|(_, edge)| edge.state == EnabledState::Enabled);
    let is_proven = |host: &String| {
        let of_host = enabled.clone().filter(|(_, edge)| edge.entrance.hosts.contains(host));
        of_host.into_iter().all(|(asked, _)| passes(*asked))
    };
    let mut published: Vec<String> = Vec::new();
    for (_, edge) in enabled.clone() {
        for host in &edge.entrance.hosts {
            if (status.published_hosts.contains(host) || is_proven(host)) && !published.contains(host) {
                published.push(host.clone());
            }
        }
    }
    if let (Some(api), Some((serving, _))) = (&cluster.spec.http_api, enabled.clone().next())
        && (status.published_hosts.contains(&api.host) || passes(*serving))
    {
        published.push(api.host.clone());
    }
    published
}

fn resolve_entrance(spec: &ExposeSpec, tls: Option<&TlsSpec>) -> Entrance {
    let aws = || AwsEntrance {
        controller: match spec.controller {
            Some(ExposeController::EksAutoMode) => AwsController::AutoMode,
            _ => AwsController::LoadBalancerController,
        },
        is_public: spec.scheme == Some(LoadBalancerScheme::InternetFacing),
        certificate: tls.and_then(|tls| tls.acm_certificate_arn.clone()),
        security_policy: spec.security_policy.clone().unwrap_or_else(|| DEFAULT_SECURITY_POLICY.to_owned()),
        has_cross_zone: spec.cross_zone != Some(EnabledState::Disabled),
    };
    match spec.kind {
        ExposeType::ClusterIp => Entrance::ClusterIp,
        ExposeType::LoadBalancer => Entrance::LoadBalancer(spec.class_name.clone()),
        ExposeType::EksNlb => Entrance::Nlb(aws()),
        ExposeType::EksAlb => Entrance::Alb(aws(), spec.class_name.clone().unwrap_or_else(|| "alb".to_owned())),
        ExposeType::Ingress => Entrance::Ingress(IngressEntrance {
            dialect: match spec.controller {
                Some(ExposeController::IngressNginx) => IngressDialect::IngressNginx,
                Some(ExposeController::F5Nginx) => IngressDialect::F5Nginx,
                _ => IngressDialect::Portable,
            },
            class_name: spec.class_name.clone(),
            certificate: tls.and_then(|tls| tls.certificate_refs.first()).map(|secret| secret.name.clone()),
        }),
        ExposeType::Gateway => {
            let dialect = match spec.controller {
                Some(ExposeController::EnvoyGateway) => GatewayDialect::EnvoyGateway,
                Some(ExposeController::NginxGatewayFabric) => GatewayDialect::NginxGatewayFabric,
                _ => GatewayDialect::Portable,
            };
            Entrance::Gateway(dialect, spec.parent_refs.iter().map(resolve_parent).collect())
        }
    }
}

fn resolve_parent(reference: &ParentGatewayRef) -> ParentGateway {
    let ParentGatewayRef { name, namespace, section_name } = reference.clone();
    ParentGateway { name, namespace, section_name }
}
