//! The status of a cluster's entrances: addresses for clients, and the condition `Exposed`. Pure.

use std::str::FromStr;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::Value;

use super::status::ConditionUpdate;
use crate::api::cluster::{ClientOptions, EndpointsStatus, EntranceStatus};
use crate::api::conditions::condition;
use crate::api::{RealtimeCluster, Reason};
use crate::config::ServerKind;
use crate::desired::ValidCluster;
use crate::desired::expose::{Entrance, Exposure, PLAIN_PORT, TLS_PORT, has_injected_gates};
use crate::desired::render::{COMPONENT_LABEL, balancer_name, entrance_name};

/// Prefix of the readiness gates that the AWS Load Balancer Controller injects (its guide "Pod readiness gate").
const BALANCER_GATE_PREFIX: &str = "target-health.elbv2.k8s.aws/";

/// Transports of pusher-js that a WebSocket server serves, and those of a server for the HTTP fallbacks.
const WEBSOCKET_TRANSPORTS: [&str; 2] = ["ws", "wss"];
const FALLBACK_TRANSPORTS: [&str; 2] = ["xhr_streaming", "xhr_polling"];

/// The state of one entrance.
enum EntranceState {
    /// It has these addresses, or these Gateways.
    Ready(String),
    /// It has none yet.
    Pending(String),
}

/// Lists the addresses for clients and backends; `entrances` are the load balancers.
pub fn list_endpoints(cluster: &ValidCluster, entrances: Vec<EntranceStatus>) -> EndpointsStatus {
    let serves = |asked: ServerKind| cluster.servers.iter().any(|server| server.kind.serves_as(asked));
    let address = |asked: ServerKind| {
        let address = format!("{}-{asked}.{}.svc:80", cluster.name, cluster.namespace);
        if serves(asked) { address } else { String::new() }
    };
    let (websocket, sockjs) = (address(ServerKind::Websocket), address(ServerKind::Sockjs));
    // Every edge serves the HTTP API.
    let backend = if websocket.is_empty() { &sockjs } else { &websocket };
    let public_api = cluster.exposures.iter().find(|exposure| exposure.is_http_api).and_then(|exposure| {
        let scheme = if exposure.has_tls() { "https" } else { "http" };
        Some(format!("{scheme}://{}", exposure.hosts.first()?))
    });
    EndpointsStatus {
        api: format!("http://{backend}"),
        public_api,
        client_options: build_client_options(cluster),
        websocket,
        sockjs,
        entrances,
    }
}

/// Builds the options of pusher-js; `None` if no server has a host.
fn build_client_options(cluster: &ValidCluster) -> Option<ClientOptions> {
    let find = |asked: ServerKind| {
        let found = cluster.exposures.iter().find(|exposure| exposure.servers.contains(&asked))?;
        Some((found, found.hosts.first()?.clone()))
    };
    let (websocket, sockjs) = (find(ServerKind::Websocket), find(ServerKind::Sockjs));
    if websocket.is_none() && sockjs.is_none() {
        return None;
    }
    let force_tls = websocket.iter().chain(&sockjs).all(|(exposure, _)| exposure.has_tls());
    let mut options = ClientOptions { force_tls, ..ClientOptions::default() };
    if let Some((exposure, host)) = &websocket {
        options.ws_host = Some(host.clone());
        options.ws_port = Some(PLAIN_PORT);
        options.wss_port = Some(TLS_PORT);
        options.ws_path.clone_from(&exposure.base_path);
    } else {
        options.enabled_transports = FALLBACK_TRANSPORTS.map(str::to_owned).into();
    }
    if let Some((exposure, host)) = &sockjs {
        options.http_host = Some(host.clone());
        options.http_port = Some(PLAIN_PORT);
        options.https_port = Some(TLS_PORT);
        options.http_path = exposure.base_path.as_ref().map(|_| exposure.path_of(ServerKind::Sockjs));
    } else {
        options.enabled_transports = WEBSOCKET_TRANSPORTS.map(str::to_owned).into();
    }
    Some(options)
}

/// Decides the condition `Exposed` from the live objects by kind and name; `None` if the cluster has no entrance. `ungated` is a pod
/// without the readiness gate of its load balancer.
pub fn decide_exposed(
    cluster: &ValidCluster,
    refused: &[String],
    ungated: Option<&str>,
    find: impl Fn(&str, &str) -> Option<Value>,
) -> Option<ConditionUpdate> {
    let states: Vec<EntranceState> =
        cluster.exposures.iter().filter_map(|exposure| assess_entrance(cluster, exposure, &find)).collect();
    if states.is_empty() {
        return None;
    }
    let update = |status, reason, lines: Vec<&str>| {
        Some(ConditionUpdate::new(condition::EXPOSED, status, reason, lines.join("; ")))
    };
    if !refused.is_empty() {
        return update("False", Reason::ExposureUnavailable, refused.iter().map(String::as_str).collect());
    }
    let pending = states.iter().filter_map(|state| match state {
        EntranceState::Pending(line) => Some(line.as_str()),
        EntranceState::Ready(_) => None,
    });
    let pending: Vec<&str> = pending.collect();
    if !pending.is_empty() {
        return update("Unknown", Reason::LoadBalancerPending, pending);
    }
    let ready = states.iter().map(|state| match state {
        EntranceState::Ready(line) | EntranceState::Pending(line) => line.as_str(),
    });
    let ready: Vec<&str> = ready.collect();
    let Some(pod) = ungated else { return update("True", Reason::AddressPublished, ready) };
    let missing = format!(
        "{pod} has no readiness gate of its load balancer, so that a rollout waits minReadySeconds instead of its registration"
    );
    update("True", Reason::ReadinessGateMissing, ready.into_iter().chain([missing.as_str()]).collect())
}

/// Finds a pod behind a load balancer of the AWS Load Balancer Controller without the readiness gate that it injects.
pub fn find_ungated_pod<'a>(cluster: &ValidCluster, pods: impl IntoIterator<Item = &'a Pod>) -> Option<String> {
    let exposures: Vec<&Exposure> = cluster.exposures.iter().filter(|exposure| has_injected_gates(exposure)).collect();
    let is_behind = |pod: &&Pod| {
        let server = pod.labels().get(COMPONENT_LABEL).and_then(|name| ServerKind::from_str(name).ok());
        let asked = exposures.iter().flat_map(|exposure| exposure.paths());
        server.is_some_and(|server| asked.into_iter().any(|(_, asked)| server.serves_as(asked)))
    };
    let has_gate = |pod: &Pod| {
        let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
        gates.into_iter().any(|gate| gate.condition_type.starts_with(BALANCER_GATE_PREFIX))
    };
    let living = pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    living.filter(is_behind).find(|pod| !has_gate(pod)).map(ResourceExt::name_any)
}

fn assess_entrance(
    cluster: &ValidCluster,
    exposure: &Exposure,
    find: impl Fn(&str, &str) -> Option<Value>,
) -> Option<EntranceState> {
    let (kind, name) = match &exposure.entrance {
        Entrance::ClusterIp => return None,
        Entrance::LoadBalancer(_) | Entrance::Nlb(_) => ("Service", balancer_name(&cluster.name, exposure)),
        Entrance::Alb(..) | Entrance::Ingress(_) => ("Ingress", entrance_name(&cluster.name, exposure)),
        Entrance::Gateway(..) => ("HTTPRoute", entrance_name(&cluster.name, exposure)),
    };
    let live = find(kind, &name).unwrap_or_default();
    let found = if kind == "HTTPRoute" { list_gateways(&live) } else { list_addresses(&live) };
    Some(match found {
        Ok(found) => EntranceState::Ready(format!("{kind} {name}: {found}")),
        Err(missing) => EntranceState::Pending(format!("{kind} {name}: {missing}")),
    })
}

/// Addresses of a Service or of an Ingress.
fn list_addresses(live: &Value) -> Result<String, String> {
    let addresses = published_addresses(live);
    if addresses.is_empty() { Err("no address yet".to_owned()) } else { Ok(addresses.join(", ")) }
}

/// Addresses of the load balancer of a Service or of an Ingress, a DNS name before an IP address.
pub(super) fn published_addresses(live: &Value) -> Vec<String> {
    let entries = live.pointer("/status/loadBalancer/ingress").and_then(Value::as_array).into_iter().flatten();
    let text = |entry: &Value| entry["hostname"].as_str().or_else(|| entry["ip"].as_str()).map(str::to_owned);
    entries.filter_map(text).collect()
}

/// Gateways that have accepted a route, or the words of the first one that has not.
fn list_gateways(live: &Value) -> Result<String, String> {
    let generation = &live["metadata"]["generation"];
    let parents: Vec<&Value> =
        live.pointer("/status/parents").and_then(Value::as_array).into_iter().flatten().collect();
    let mut accepted = Vec::new();
    for parent in parents {
        let name = parent.pointer("/parentRef/name").and_then(Value::as_str).unwrap_or_default();
        let conditions: Vec<&Value> = parent["conditions"].as_array().into_iter().flatten().collect();
        for kind in ["Accepted", "ResolvedRefs"] {
            let found = conditions.iter().find(|condition| condition["type"] == kind);
            let current = found.filter(|condition| condition["observedGeneration"] == *generation);
            match current {
                Some(condition) if condition["status"] == "True" => {}
                Some(condition) => {
                    let message = condition["message"].as_str().unwrap_or_default();
                    return Err(format!("Gateway {name} reports {kind} as false: {message}"));
                }
                None => return Err(format!("Gateway {name} has not looked at it yet")),
            }
        }
        accepted.push(name);
    }
    if accepted.is_empty() {
        return Err("no Gateway has accepted it yet".to_owned());
    }
    Ok(format!("accepted by Gateway {}", accepted.join(", ")))
}

/// The condition of a type as it was written last, for a reconcile that learned nothing about it.
pub fn keep_condition(cluster: &RealtimeCluster, kind: &'static str) -> Option<ConditionUpdate> {
    let known = cluster.status.as_ref()?.find_condition(kind)?;
    let status = ["True", "False", "Unknown"].into_iter().find(|status| *status == known.status)?;
    Some(ConditionUpdate::new(kind, status, Reason::by_name(&known.reason)?, known.message.clone()))
}

#[cfg(test)]
pub(super) mod tests;
