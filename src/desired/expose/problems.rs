//! Problems of hosts and entrances that the schema cannot express.

use super::Exposure;
use super::annotations::is_rendered_key;
use crate::api::cluster::{EdgeServer, ServerLayout};
use crate::api::expose::{ExposeSpec, ExposeType};
use crate::api::{EnabledState, RealtimeClusterSpec};
use crate::config::Release;
use crate::desired::kubernetes_names::{is_dns_label, is_label_value, is_qualified_name};

/// Longest label of a DNS name (RFC 1035, 2.3.4).
const DNS_LABEL_LEN_MAX: usize = 63;

/// Finds the problems of all servers, each as path and message.
pub fn find_expose_problems(
    spec: &RealtimeClusterSpec,
    exposures: &[Exposure],
    release: Release,
) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    for (name, edge) in [("websocket", &spec.websocket), ("sockjs", &spec.sockjs)] {
        let found = find_server_problems(edge, release);
        problems.extend(found.into_iter().map(|(field, message)| (format!("spec.{name}.{field}"), message)));
    }
    if let Some(api) = &spec.http_api {
        let found = find_host_problem("host", &api.host).into_iter().chain(find_object_problems(&api.expose, release));
        problems.extend(found.map(|(field, message)| (format!("spec.httpAPI.{field}"), message)));
    }
    for exposure in exposures {
        for key in exposure.annotations.keys().filter(|key| is_rendered_key(exposure, key)) {
            let path = format!("spec.{}.expose.annotations", exposure.manifest_field());
            problems.push((path, format!("has `{key}`, which the operator renders: remove it")));
        }
    }
    problems.extend(find_shared_host_problem(spec));
    problems
}

fn find_server_problems(edge: &EdgeServer, release: Release) -> Vec<(String, String)> {
    let entrance = &edge.entrance;
    let hosts = entrance.hosts.iter().map(|host| ("hosts", host));
    let hosts = hosts.chain(entrance.canonical_host.iter().map(|host| ("canonicalHost", host)));
    let problems = hosts.filter_map(|(field, host)| find_host_problem(field, host));
    let of_object = entrance.expose.iter().flat_map(|expose| find_object_problems(expose, release));
    problems.chain(of_object).collect()
}

fn find_host_problem(field: &str, host: &str) -> Option<(String, String)> {
    let message = format!("has `{host}`, which is no DNS name: write one such as ws.example.com");
    (!is_host_name(host)).then(|| (field.to_owned(), message))
}

/// Finds the problems of the object that leads clients, each as path below the server and message.
fn find_object_problems(expose: &ExposeSpec, release: Release) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    for range in &expose.source_ranges {
        if range.parse::<ipnet::IpNet>().is_err() {
            let message = format!("has `{range}`: write a network such as 203.0.113.0/24");
            problems.push(("expose.sourceRanges".to_owned(), message));
        }
    }
    if matches!(expose.kind, ExposeType::EksNlb | ExposeType::EksAlb) && release < Release::LOAD_BALANCER_SETTINGS {
        let message = format!(
            "needs servers of release {} or later, whose public port has a health check: raise spec.version",
            Release::LOAD_BALANCER_SETTINGS
        );
        problems.push(("expose.type".to_owned(), message));
    }
    if let Some(class) = &expose.class_name {
        let is_class = match expose.kind {
            ExposeType::LoadBalancer => is_qualified_name(class),
            _ => is_host_name(class),
        };
        if !is_class {
            problems.push((
                "expose.className".to_owned(),
                format!("is `{class}`, which no class can be named: correct it"),
            ));
        }
    }
    for parent in &expose.parent_refs {
        if let Some(namespace) = parent.namespace.as_ref().filter(|namespace| !is_dns_label(namespace)) {
            let message = format!("has namespace `{namespace}`, which no namespace can be named: correct it");
            problems.push(("expose.parentRefs".to_owned(), message));
        }
    }
    let labels = expose.labels.iter().filter(|(key, value)| !is_qualified_name(key) || !is_label_value(value));
    let labels = labels.map(|(key, value)| ("expose.labels", format!("has `{key}: {value}`, which is no label")));
    let annotations = expose.annotations.keys().filter(|key| !is_qualified_name(&key.to_ascii_lowercase()));
    let annotations = annotations.map(|key| ("expose.annotations", format!("has `{key}`, which is no annotation")));
    let correct = |(field, message): (&str, String)| (field.to_owned(), format!("{message}: correct it"));
    problems.extend(labels.chain(annotations).map(correct));
    problems
}

/// Two servers that share hosts share one object, which has one set of settings.
fn find_shared_host_problem(spec: &RealtimeClusterSpec) -> Option<(String, String)> {
    let (websocket, sockjs) = (&spec.websocket, &spec.sockjs);
    let are_both = websocket.state == EnabledState::Enabled && sockjs.state == EnabledState::Enabled;
    if spec.servers == ServerLayout::Combined || !are_both {
        return None;
    }
    let names = |edge: &EdgeServer| -> Vec<String> {
        edge.entrance.hosts.iter().chain(&edge.entrance.canonical_host).cloned().collect()
    };
    let (of_websocket, of_sockjs) = (names(websocket), names(sockjs));
    if !of_websocket.iter().any(|host| of_sockjs.contains(host)) {
        return None;
    }
    let is_same =
        websocket.entrance == sockjs.entrance && websocket.load_balancer.base_path == sockjs.load_balancer.base_path;
    let message = "has a host of spec.websocket, so both are led by one object: write the same hosts, canonicalHost, tls, \
                   expose and basePath for both, or other hosts";
    (!is_same).then(|| ("spec.sockjs.hosts".to_owned(), message.to_owned()))
}

fn is_host_name(host: &str) -> bool {
    host.split('.').all(|label| is_dns_label(label) && label.len() <= DNS_LABEL_LEN_MAX)
}
