//! The `NetworkPolicy` that a cluster needs in a namespace whose policies isolate its pods. Pure.
//!
//! Policies add up: a connection is allowed if one of them allows it. So the policy below can be added beside any others, and
//! changes nothing where no policy selects the pods.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};
use url::Url;

use super::render::{ADMIN_PORT, PEER_PORT, PUBLIC_PORT, child_labels, cluster_selector};
use super::{AwsIdentity, RECEIVER_PORT, ValidCluster};

/// Label that Kubernetes gives each namespace with its name.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

/// Address and port of the agent of EKS Pod Identity.
const POD_IDENTITY_AGENT: (&str, u16) = ("169.254.170.23/32", 80);

/// Address and port of the instance metadata of a node.
const NODE_METADATA: (&str, u16) = ("169.254.169.254/32", 80);

/// Ports of HTTPS: AWS, webhooks, and the API server behind its Service.
const HTTPS_PORTS: [u16; 3] = [443, 6443, 8443];

/// Names the policies that select pods of the cluster and therefore isolate them.
#[must_use]
pub fn find_isolating_policies(cluster: &ValidCluster, policies: &[NetworkPolicy]) -> Vec<String> {
    let servers: Vec<_> = cluster.servers.iter().map(|server| child_labels(cluster, server.kind.name())).collect();
    let isolates = |policy: &&NetworkPolicy| {
        let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.clone()).unwrap_or_default();
        servers.iter().any(|labels| is_selected(labels, &selector))
    };
    policies.iter().filter(isolates).filter_map(|policy| policy.metadata.name.clone()).collect()
}

fn is_selected(labels: &BTreeMap<String, String>, selector: &LabelSelector) -> bool {
    let mut wanted = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    wanted.all(|(name, value)| labels.get(name) == Some(value))
        && expressions.all(|expression| {
            let found = labels.get(&expression.key);
            let listed = |value: &String| expression.values.iter().flatten().any(|known| known == value);
            match expression.operator.as_str() {
                "In" => found.is_some_and(listed),
                "NotIn" => !found.is_some_and(listed),
                "Exists" => found.is_some(),
                _ => found.is_none(),
            }
        })
}

/// Name of the rendered policy.
#[must_use]
pub fn network_policy_name(cluster: &ValidCluster) -> String {
    format!("{}-realtime", cluster.name)
}

/// Renders the policy that allows the connections of clients, journeys, webhooks and of the servers themselves. `redis_url`
/// gives the port of Redis.
#[must_use]
pub fn render_network_policy(cluster: &ValidCluster, redis_url: &str, operator_namespace: &str) -> Value {
    let own_pods = cluster_selector(cluster);
    let operator = json!({ "namespaceSelector": { "matchLabels": { NAMESPACE_LABEL: operator_namespace } } });
    let tcp = |ports: &[i64]| -> Value {
        ports.iter().map(|port| json!({ "protocol": "TCP", "port": port })).collect::<Vec<_>>().into()
    };
    let ingress = json!([
        { "ports": tcp(&[PUBLIC_PORT.into()]) },
        { "from": [{ "podSelector": { "matchLabels": own_pods } }], "ports": tcp(&[PEER_PORT.into()]) },
        { "from": [operator], "ports": tcp(&[ADMIN_PORT.into()]) },
    ]);
    let mut outside: Vec<i64> = HTTPS_PORTS.map(i64::from).into();
    outside.extend(redis_ports(redis_url));
    outside.extend(cluster.stream.endpoint_url.as_deref().and_then(|url| port_of(url, 443)));
    outside.sort_unstable();
    outside.dedup();
    let mut egress = vec![
        json!({ "ports": [{ "protocol": "UDP", "port": 53 }, { "protocol": "TCP", "port": 53 }] }),
        json!({ "ports": tcp(&outside) }),
        json!({ "to": [{ "podSelector": { "matchLabels": own_pods } }], "ports": tcp(&[PEER_PORT.into()]) }),
        json!({ "to": [operator], "ports": tcp(&[RECEIVER_PORT.into()]) }),
    ];
    let agent = match cluster.stream.identity {
        AwsIdentity::PodIdentity => Some(POD_IDENTITY_AGENT),
        AwsIdentity::NodeRole => Some(NODE_METADATA),
        AwsIdentity::Irsa(_) | AwsIdentity::WebIdentity(_) | AwsIdentity::StaticKeys(_) => None,
    };
    let block = |network: &str| json!([{ "ipBlock": { "cidr": network } }]);
    egress.extend(agent.map(|(network, port)| json!({ "to": block(network), "ports": tcp(&[port.into()]) })));
    let networks = cluster.dispatcher().map(|dispatcher| dispatcher.allowed_networks.as_slice()).unwrap_or_default();
    egress.extend(networks.iter().map(|network| json!({ "to": block(network) })));
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": network_policy_name(cluster), "namespace": cluster.namespace },
        "spec": {
            "podSelector": { "matchLabels": own_pods },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    })
}

/// Ports of every host in the address of a Redis: its query has the further nodes of a cluster and the further Sentinels.
fn redis_ports(url: &str) -> Vec<i64> {
    let Ok(parsed) = Url::parse(url) else { return vec![6379] };
    let default = if parsed.scheme().ends_with("sentinel") { 26379 } else { 6379 };
    let nodes = parsed.query_pairs().filter(|(name, _)| name == "node");
    let further = nodes.filter_map(|(_, node)| node.rsplit_once(':').and_then(|(_, port)| port.parse().ok()));
    let mut ports: Vec<i64> = further.chain([parsed.port().map_or(default, i64::from)]).collect();
    // A Sentinel gives the address of the primary, which has the usual port.
    ports.extend((default == 26379).then_some(6379));
    ports
}

fn port_of(url: &str, default: i64) -> Option<i64> {
    let parsed = Url::parse(url).ok()?;
    Some(parsed.port_or_known_default().map_or(default, i64::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;
    use crate::desired::{ClusterInputs, SecretTexts, ServerImage, generate_all_credentials, validate};

    fn cluster(extra: &str) -> ValidCluster {
        let cluster = applied_cluster(extra);
        let inputs = ClusterInputs {
            cluster: &cluster,
            apps: &[],
            secrets: &SecretTexts::new(),
            credentials: &generate_all_credentials(&cluster, &[], str::to_owned),
            receiver: "receiver.svc:8090",
            own_networks: &[],
            own_image: &ServerImage::of_operator(None),
            recorded_image: None,
            stream: None,
        };
        validate(&inputs).expect("a cluster")
    }

    #[test]
    fn policies_that_select_a_pod_of_the_cluster_isolate_it() {
        let policy = |name: &str, selector: Value| -> NetworkPolicy {
            let spec = json!({ "podSelector": selector });
            serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec })).expect("a policy")
        };
        let labels = |name: &str, value: &str| json!({ "matchLabels": { name: value } });
        let component = |operator: &str, values: Value| {
            let expression = json!({ "key": "app.kubernetes.io/component", "operator": operator, "values": values });
            json!({ "matchExpressions": [expression] })
        };
        let policies = [
            policy("default-deny", json!({})),
            policy("of-this", labels("app.kubernetes.io/instance", "eu")),
            policy("of-another", labels("app.kubernetes.io/instance", "us")),
            policy("of-dispatchers", component("In", json!(["dispatcher"]))),
            policy("of-none", component("In", json!(["web"]))),
            policy("of-others", component("NotIn", json!(["websocket", "sockjs", "dispatcher"]))),
        ];
        let found = find_isolating_policies(&cluster(""), &policies);
        assert_eq!(found, ["default-deny", "of-this", "of-dispatchers"]);
    }

    #[test]
    fn the_policy_allows_every_connection_of_the_servers_by_its_port() {
        let ports = |extra: &str, redis: &str| {
            let policy = render_network_policy(&cluster(extra), redis, "operators");
            let typed: NetworkPolicy = serde_json::from_value(policy.clone()).expect("a policy of this API");
            assert_eq!(typed.metadata.name.as_deref(), Some("eu-realtime"));
            policy["spec"]["egress"].to_string()
        };
        let plain = ports("", "redis://r:6380");
        for part in ["6380", "443", "53", "8090", "8081", "169.254.170.23/32", "operators"] {
            assert!(plain.contains(part), "{part}: {plain}");
        }
        let sentinels = ports("", "redis-sentinel://h?sentinelServiceName=m&node=i:26380");
        for part in ["26379", "26380", "6379"] {
            assert!(sentinels.contains(part), "{part}: {sentinels}");
        }
        let private = ports("  webhooks: { allowedNetworks: [10.1.0.0/16] }\n", "redis://r");
        assert!(private.contains("10.1.0.0/16"), "{private}");
    }
}
