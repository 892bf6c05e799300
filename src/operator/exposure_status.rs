//! The status of a cluster's entrances: addresses for clients, and the condition `Exposed`. Pure.

use serde_json::Value;

use super::status::ConditionUpdate;
use crate::api::cluster::{ClientOptions, EndpointsStatus};
use crate::api::conditions::condition;
use crate::api::{RealtimeCluster, Reason};
use crate::config::ServerKind;
use crate::desired::ValidCluster;
use crate::desired::expose::{Entrance, Exposure, PLAIN_PORT, TLS_PORT};
use crate::desired::render::{balancer_name, entrance_name};

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

/// Lists the addresses for clients and backends.
pub fn list_endpoints(cluster: &ValidCluster) -> EndpointsStatus {
    let serves = |asked: ServerKind| cluster.servers.iter().any(|server| server.kind.serves_as(asked));
    let address = |asked: ServerKind| {
        let address = format!("{}-{asked}.{}.svc:80", cluster.name, cluster.namespace);
        if serves(asked) { address } else { String::new() }
    };
    let (websocket, sockjs) = (address(ServerKind::Websocket), address(ServerKind::Sockjs));
    // Every edge serves the HTTP API.
    let backend = if websocket.is_empty() { &sockjs } else { &websocket };
    EndpointsStatus {
        api: format!("http://{backend}"),
        client_options: build_client_options(cluster),
        websocket,
        sockjs,
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

/// Decides the condition `Exposed` from the live objects by kind and name; `None` if the cluster has no entrance.
pub fn decide_exposed(
    cluster: &ValidCluster,
    refused: &[String],
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
    update("True", Reason::AddressPublished, ready.collect())
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
    let entries = live.pointer("/status/loadBalancer/ingress").and_then(Value::as_array).into_iter().flatten();
    let addresses: Vec<&str> =
        entries.filter_map(|entry| entry["hostname"].as_str().or_else(|| entry["ip"].as_str())).collect();
    if addresses.is_empty() { Err("no address yet".to_owned()) } else { Ok(addresses.join(", ")) }
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
mod tests;
