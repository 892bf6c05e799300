//! The networks of the Kubernetes cluster itself whose addresses are public: webhooks must not be sent to them.
//!
//! Private addresses are refused anyway. Pods and nodes with IPv6, and pods in a public range of IPv4, have public ones. The
//! operator takes them from the pods that it watches, so that it needs no permission to read nodes.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::Pod;

use crate::protocol::egress_policy::is_global;

/// Prefix of a subnet of IPv6: pods and nodes of one subnet share it.
const SUBNET_PREFIX_V6: u8 = 64;
/// Prefix of the smallest range that pods of one node have by default.
const POD_RANGE_PREFIX_V4: u8 = 24;

/// Finds the networks of pods and of their nodes, as far as they are public.
pub fn find_own_networks<'a>(pods: impl Iterator<Item = &'a Pod>) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for status in pods.filter_map(|pod| pod.status.as_ref()) {
        let of_pod = status.pod_ips.iter().flatten().map(|address| address.ip.as_str());
        let of_node = status.host_ips.iter().flatten().map(|address| address.ip.as_str());
        let is_on_node = |address: &IpAddr| of_node.clone().any(|node| node.parse() == Ok(*address));
        for address in of_pod.clone().chain(of_node.clone()).filter_map(|text| text.parse::<IpAddr>().ok()) {
            // Neighbours of the public IPv4 address of a node may belong to other customers of a cloud.
            let prefix = if is_on_node(&address) { 32 } else { POD_RANGE_PREFIX_V4 };
            let network = match address {
                IpAddr::V4(v4) => Ipv4Net::new(v4, prefix).map(|network| IpNet::V4(network.trunc())),
                IpAddr::V6(v6) => Ipv6Net::new(v6, SUBNET_PREFIX_V6).map(|network| IpNet::V6(network.trunc())),
            };
            networks.extend(network.ok().filter(|_| is_global(address)));
        }
    }
    IpNet::aggregate(&networks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_networks_of_pods_and_nodes_are_found() {
        let pod = |pod: &[&str], node: &[&str]| -> Pod {
            let list = |ips: &[&str]| ips.iter().map(|ip| serde_json::json!({ "ip": ip })).collect::<Vec<_>>();
            let status = serde_json::json!({ "podIPs": list(pod), "hostIPs": list(node) });
            serde_json::from_value(serde_json::json!({ "metadata": {}, "status": status })).expect("a pod")
        };
        for (name, pods, expected) in [
            ("a pod without addresses", vec![Pod::default()], vec![]),
            ("private addresses", vec![pod(&["10.1.2.3", "fd00::5"], &["192.168.1.1"])], vec![]),
            ("CGNAT", vec![pod(&["100.64.3.4"], &["10.0.0.1"])], vec![]),
            (
                "IPv6 of one subnet",
                vec![
                    pod(&["2600:1f18:1:2:aaaa::5"], &["2600:1f18:1:2::9"]),
                    pod(&["2600:1f18:1:2:bbbb::6"], &["2600:1f18:1:2::a"]),
                ],
                vec!["2600:1f18:1:2::/64"],
            ),
            ("pods in a public range", vec![pod(&["11.0.7.3"], &["10.0.0.1"])], vec!["11.0.7.0/24"]),
            ("a public node", vec![pod(&["10.0.0.9"], &["93.184.216.34"])], vec!["93.184.216.34/32"]),
            (
                "a pod on its node's network",
                vec![pod(&["93.184.216.34"], &["93.184.216.34"])],
                vec!["93.184.216.34/32"],
            ),
        ] {
            let found: Vec<String> = find_own_networks(pods.iter()).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{name}");
        }
    }
}
