//! The published addresses of the load balancers, for the status. Pure.
//!
//! In: the exposures, and their live Services, Ingresses and Gateways. Out: one entry per object that publishes addresses.

use serde_json::Value;

use super::exposure_status::published_addresses;
use crate::api::cluster::EntranceStatus;
use crate::desired::ValidCluster;
use crate::desired::expose::{Entrance, Exposure, PLAIN_PORT, ParentGateway, TLS_PORT};
use crate::desired::render::{balancer_name, entrance_name};

/// A live Gateway, or the error of its read.
#[derive(Clone, Debug)]
pub struct ReadGateway {
    /// Namespace of the Gateway.
    pub namespace: String,
    /// Name of the Gateway.
    pub name: String,
    /// The object; the error is a clause for a message.
    pub object: Result<Value, String>,
}

/// The namespace of a Gateway, which defaults to that of the cluster.
pub fn namespace_of<'a>(parent: &'a ParentGateway, cluster: &'a ValidCluster) -> &'a str {
    parent.namespace.as_deref().unwrap_or(&cluster.namespace)
}

/// Lists the entrances of the hosts with their addresses.
pub fn list_entrances(
    cluster: &ValidCluster,
    gateways: &[ReadGateway],
    find: impl Fn(&str, &str) -> Option<Value>,
) -> Vec<EntranceStatus> {
    let with_hosts = cluster.exposures.iter().filter(|exposure| !exposure.hosts.is_empty());
    let list = |exposure: &Exposure| -> Vec<EntranceStatus> {
        let (kind, name) = match &exposure.entrance {
            Entrance::ClusterIp => return vec![],
            Entrance::LoadBalancer(_) | Entrance::Nlb(_) => ("Service", balancer_name(&cluster.name, exposure)),
            Entrance::Alb(..) | Entrance::Ingress(_) => ("Ingress", entrance_name(&cluster.name, exposure)),
            Entrance::Gateway(_, parents) => {
                return parents.iter().map(|parent| read_entrance(cluster, exposure, parent, gateways)).collect();
            }
        };
        let tls = exposure.has_tls();
        vec![EntranceStatus {
            object: format!("{kind} {name}"),
            hosts: exposure.hosts.clone(),
            addresses: published_addresses(&find(kind, &name).unwrap_or_default()),
            port: if tls { TLS_PORT } else { PLAIN_PORT },
            tls,
            problem: String::new(),
        }]
    };
    with_hosts.flat_map(list).collect()
}

fn read_entrance(
    cluster: &ValidCluster,
    exposure: &Exposure,
    parent: &ParentGateway,
    gateways: &[ReadGateway],
) -> EntranceStatus {
    let namespace = namespace_of(parent, cluster);
    let unknown = EntranceStatus {
        object: format!("Gateway {namespace}/{}", parent.name),
        hosts: exposure.hosts.clone(),
        ..EntranceStatus::default()
    };
    let read = gateways.iter().find(|read| read.namespace == namespace && read.name == parent.name);
    let gateway = match read.map(|read| &read.object) {
        Some(Ok(gateway)) => gateway,
        Some(Err(error)) => return EntranceStatus { problem: error.clone(), ..unknown },
        None => return unknown,
    };
    let Some((port, tls)) = choose_listener(gateway, parent.section_name.as_deref(), &exposure.hosts) else {
        let problem = "it has no HTTP or HTTPS listener for the hosts".to_owned();
        return EntranceStatus { problem, ..unknown };
    };
    let addresses = gateway.pointer("/status/addresses").and_then(Value::as_array).into_iter().flatten();
    let addresses = addresses.filter_map(|address| address["value"].as_str().map(str::to_owned));
    EntranceStatus { addresses: addresses.collect(), port, tls, ..unknown }
}

/// Port of the listener that takes the hosts, with TLS if there is one with it.
fn choose_listener(gateway: &Value, section: Option<&str>, hosts: &[String]) -> Option<(u16, bool)> {
    let listeners = gateway.pointer("/spec/listeners").and_then(Value::as_array)?;
    let takes = |listener: &&Value| {
        let is_section = section.is_none_or(|section| listener["name"] == section);
        let hostname = listener["hostname"].as_str().filter(|hostname| !hostname.is_empty());
        is_section && hostname.is_none_or(|pattern| hosts.iter().any(|host| is_covered(pattern, host)))
    };
    let port_of = |protocol: &str| {
        let mut found = listeners.iter().filter(takes).filter(|listener| listener["protocol"] == protocol);
        found.find_map(|listener| u16::try_from(listener["port"].as_u64()?).ok())
    };
    port_of("HTTPS").map(|port| (port, true)).or_else(|| port_of("HTTP").map(|port| (port, false)))
}

/// Whether a listener's hostname takes a host: `*.example.com` takes every name below (Gateway API, Hostname).
fn is_covered(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        None => pattern == host,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::operator::exposure_status::tests::cluster;

    const GATEWAY: &str = "  websocket: { hosts: [a.test], expose: { type: Gateway, controller: Other, parentRefs: [{ name: g, namespace: edge }] } }\n";

    fn line(entry: &EntranceStatus) -> String {
        let EntranceStatus { object, hosts, addresses, port, tls, problem } = entry;
        format!("{object} {} [{}] {port} {tls} {problem}", hosts.join(","), addresses.join(",")).trim_end().to_owned()
    }

    fn lines(extra: &str, gateways: &[ReadGateway], live: &Value) -> Vec<String> {
        list_entrances(&cluster(extra), gateways, |_, _| Some(live.clone())).iter().map(line).collect()
    }

    #[test]
    fn a_service_and_an_ingress_publish_the_addresses_of_their_load_balancer() {
        let live = json!({ "status": { "loadBalancer": { "ingress": [{ "hostname": "k8s.elb.test" }, { "ip": "192.0.2.1" }] } } });
        let nlb = "  websocket: { hosts: [a.test], tls: { acmCertificateARN: 'arn:aws:acm:x' }, expose: { type: EKSNLB, controller: EKSAutoMode, scheme: InternetFacing } }\n";
        let plain = "  websocket: { hosts: [a.test], expose: { type: LoadBalancer } }\n";
        let alb = "  websocket: { hosts: [a.test, b.test], expose: { type: EKSALB, controller: EKSAutoMode, scheme: Internal } }\n";
        for (manifest, live, expected) in [
            (nlb, &live, vec!["Service eu-websocket-public a.test [k8s.elb.test,192.0.2.1] 443 true"]),
            (nlb, &json!({}), vec!["Service eu-websocket-public a.test [] 443 true"]),
            (plain, &live, vec!["Service eu-websocket-public a.test [k8s.elb.test,192.0.2.1] 80 false"]),
            (alb, &live, vec!["Ingress eu-websocket a.test,b.test [k8s.elb.test,192.0.2.1] 443 true"]),
            ("  websocket: { hosts: [a.test] }\n", &live, vec![]),
            ("  websocket: { expose: { type: LoadBalancer } }\n", &live, vec![]),
        ] {
            assert_eq!(lines(manifest, &[], live), expected, "{manifest}");
        }
    }

    #[test]
    fn a_gateway_publishes_its_addresses_and_the_listener_that_takes_the_hosts() {
        let listener = |name: &str, protocol: &str, port: u16, hostname: Option<&str>| json!({ "name": name, "protocol": protocol, "port": port, "hostname": hostname });
        let gateway = |listeners: &[Value]| json!({ "spec": { "listeners": listeners }, "status": { "addresses": [{ "value": "192.0.2.7" }] } });
        let (web, secure) = (listener("web", "HTTP", 80, None), listener("secure", "HTTPS", 8443, Some("*.test")));
        let other = listener("other", "HTTPS", 443, Some("*.other"));
        for (object, expected) in [
            (Ok(gateway(&[web.clone(), secure])), "Gateway edge/g a.test [192.0.2.7] 8443 true"),
            (Ok(gateway(&[other.clone(), web])), "Gateway edge/g a.test [192.0.2.7] 80 false"),
            (Ok(gateway(&[other])), "Gateway edge/g a.test [] 0 false it has no HTTP or HTTPS listener for the hosts"),
            (Err("reading it: forbidden".to_owned()), "Gateway edge/g a.test [] 0 false reading it: forbidden"),
        ] {
            let read = ReadGateway { namespace: "edge".to_owned(), name: "g".to_owned(), object };
            assert_eq!(lines(GATEWAY, &[read], &Value::Null), [expected]);
        }
        assert_eq!(lines(GATEWAY, &[], &Value::Null), ["Gateway edge/g a.test [] 0 false"]);
    }
}
