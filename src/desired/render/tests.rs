//! Tests of the rendered objects.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::EnvVar;
use serde_json::json;

use super::*;
use crate::api::fixture::MINIMAL_CLUSTER;
use crate::config::{ServerConfig, Variable};
use crate::desired::{
    ClusterInputs, Manifests, SecretReaders, SecretReference, SecretTexts, ServerImage, estimate_rollout,
    generate_credentials, list_injected_variables, validate,
};
use crate::protocol::Transport;
use crate::protocol::registry::ENDPOINTS_FILE;

fn cluster(identity: &str, extra: &str) -> ValidCluster {
    let text = MINIMAL_CLUSTER.replace("{ type: PodIdentity }", identity);
    cluster_with_values(&format!("{text}{extra}"), &BTreeMap::new(), &BTreeMap::new())
}

/// A cluster with the texts of Secrets and the known generated values.
fn cluster_with_values(text: &str, secrets: &SecretTexts, known: &BTreeMap<String, String>) -> ValidCluster {
    let mut manifests = Manifests::default();
    manifests.add_file("eu.yaml", text).expect("a manifest");
    let (_, mut cluster) = manifests.clusters.remove(0);
    cluster.metadata.uid = Some("1a2b3c4d-0000".to_owned());
    let generate = |purpose: &str| format!("generated-{purpose}");
    let inputs = ClusterInputs {
        cluster: &cluster,
        apps: &[],
        secrets,
        credentials: &generate_credentials(&cluster, known, BTreeMap::new(), generate),
        receiver: "receiver.svc:8090",
        own_networks: &[],
        own_image: &ServerImage::of_operator(None),
        recorded_image: None,
        stream: None,
    };
    validate(&inputs).expect("a cluster")
}

/// Variables as kubelet would set them, with placeholders for Secrets and fields.
fn environment(desired: &DesiredObjects, server: ServerKind) -> BTreeMap<String, String> {
    let (_, deployment) = desired.deployments.iter().find(|(found, _)| *found == server).expect("a deployment");
    let pod = deployment.spec.template.spec.as_ref().expect("a pod");
    let field = |variable: &EnvVar| Some(variable.value_from.as_ref()?.field_ref.as_ref()?.field_path.clone());
    let value = |variable: &EnvVar| match field(variable).as_deref() {
        Some("status.podIP") => "10.0.0.1".to_owned(),
        _ => variable.value.clone().unwrap_or_else(|| "from elsewhere".to_owned()),
    };
    pod.containers[0].env.iter().flatten().map(|variable| (variable.name.clone(), value(variable))).collect()
}

#[test]
fn rendered_variables_start_every_server_with_every_identity() {
    let roles = "edge: { roleARN: 'arn:e' }, dispatcher: { roleARN: 'arn:d' }";
    for identity in [
        "{ type: PodIdentity }".to_owned(),
        "{ type: NodeRole }".to_owned(),
        "{ type: StaticKeys, secretRef: { name: k } }".to_owned(),
        format!("{{ type: IRSA, {roles} }}"),
        format!("{{ type: WebIdentity, {roles} }}"),
    ] {
        let (apart, both) = (cluster(&identity, ""), cluster(&identity, "  servers: Combined\n"));
        let source = apart.stream.identity.clone();
        let (apart, both) = (render_objects(&apart).expect("objects"), render_objects(&both).expect("objects"));
        for server in ServerKind::ALL {
            let desired = if server == ServerKind::Edge { &both } else { &apart };
            let injected = list_injected_variables(&source, server);
            let rendered = environment(desired, server);
            let values = ServerConfig::parse(rendered.clone().into_iter().chain(injected.clone()));
            assert_eq!(values.map(|values| values.server()), Ok(server), "{identity}");
            if let Some(missing) = injected.keys().next() {
                let others = injected.clone().into_iter().filter(|(name, _)| name != missing);
                let refusal = ServerConfig::parse(rendered.into_iter().chain(others)).expect_err("not injected");
                let refusal = refusal.to_string();
                assert!(refusal.contains(missing.as_str()) && refusal.contains("was not injected"), "{refusal}");
            }
        }
    }
}

#[test]
fn the_dispatcher_alone_writes_dead_letters_and_only_where_the_manifest_asks_for_them() {
    let streams = |webhooks: &str| {
        let desired = render_objects(&cluster("{ type: PodIdentity }", webhooks)).expect("objects");
        let servers = desired.deployments.iter().map(|(server, _)| *server);
        let stream = |server| environment(&desired, server).remove("REALTIME_DEAD_LETTER_STREAM");
        servers.filter_map(|server| Some((server, stream(server)?))).collect::<Vec<_>>()
    };
    assert_eq!(streams(""), []);
    assert_eq!(streams("  webhooks: { deadLetter: { mode: 'Off' } }\n"), []);
    let derived = (ServerKind::Dispatcher, "rtc-channels-eu-1a2b3c-dead-letter".to_owned());
    assert_eq!(streams("  webhooks: { deadLetter: {} }\n"), [derived]);
    let named = (ServerKind::Dispatcher, "lost".to_owned());
    assert_eq!(streams("  webhooks: { deadLetter: { name: lost, shards: 2 } }\n"), [named]);
}

#[test]
fn secrets_are_never_rendered_as_text() {
    let desired = render_objects(&cluster("{ type: StaticKeys, secretRef: { name: k } }", "")).expect("objects");
    for (_, deployment) in &desired.deployments {
        let pod = deployment.spec.template.spec.as_ref().expect("a pod");
        for variable in pod.containers[0].env.iter().flatten() {
            let secret = Variable::by_name(&variable.name).is_some_and(|row| row.secret);
            let referenced = variable.value_from.as_ref().is_some_and(|from| from.secret_key_ref.is_some());
            assert_eq!(secret, referenced, "{}", variable.name);
        }
    }
}

#[test]
fn the_authority_of_redis_is_read_from_its_secret_by_edges_alone() {
    let mut given = cluster("{ type: PodIdentity }", "");
    let named = |desired: &DesiredObjects, server: ServerKind| {
        let template =
            desired.deployments.iter().find(|(found, _)| *found == server).map(|(_, found)| &found.spec.template);
        let container = template.and_then(|template| template.spec.as_ref()).map(|pod| &pod.containers[0]);
        let variables = container.and_then(|container| container.env.clone()).unwrap_or_default();
        let found = variables.into_iter().find(|variable| variable.name == "REALTIME_REDIS_CA")?;
        let key = found.value_from?.secret_key_ref?;
        Some((key.name, key.key))
    };
    assert_eq!(named(&render_objects(&given).expect("objects"), ServerKind::Sockjs), None);
    given.redis.ca = Some(SecretReference {
        name: "redis-tls".to_owned(),
        key: "ca.crt".to_owned(),
        purpose: "TLS",
        readers: SecretReaders::Edges,
    });
    let desired = render_objects(&given).expect("objects");
    let expected = Some(("redis-tls".to_owned(), "ca.crt".to_owned()));
    assert_eq!(named(&desired, ServerKind::Websocket), expected);
    assert_eq!(named(&desired, ServerKind::Sockjs), expected);
    assert_eq!(named(&desired, ServerKind::Dispatcher), None);
}

#[test]
fn a_changed_value_changes_the_templates_of_the_servers_that_read_it_alone() {
    use ServerKind::{Dispatcher, Sockjs, Websocket};
    // One Secret for Redis and for AWS.
    let text = MINIMAL_CLUSTER
        .replace("{ type: PodIdentity }", "{ type: StaticKeys, secretRef: { name: eu-redis } }")
        .replace("key: url }", "key: url }, caSecretRef: { name: eu-redis, key: ca.crt }");
    let marks = |changed: &str| {
        let value = |key: &str| if key == changed { "new" } else { "old" }.to_owned();
        let keys = ["url", "ca.crt", "accessKeyID", "secretAccessKey", "else"];
        let texts = keys.map(|key| (key.to_owned(), value(key))).into();
        let known = ["admin-token", "peer-secret"].map(|purpose| (purpose.to_owned(), value(purpose))).into();
        let cluster = cluster_with_values(&text, &[("eu-redis".to_owned(), texts)].into(), &known);
        let deployments = render_objects(&cluster).expect("objects").deployments.into_iter();
        let mark = |found: &Deployment| template_mark(&found.spec.template, TEMPLATE_ANNOTATION).map(str::to_owned);
        deployments.map(|(server, found)| (server, mark(&found).expect("a mark"))).collect::<BTreeMap<_, _>>()
    };
    let before = marks("");
    for (changed, expected) in [
        ("url", vec![Websocket, Sockjs]),
        ("ca.crt", vec![Websocket, Sockjs]),
        ("accessKeyID", vec![Websocket, Sockjs, Dispatcher]),
        ("secretAccessKey", vec![Websocket, Sockjs, Dispatcher]),
        ("else", vec![]),
        ("admin-token", vec![Websocket, Sockjs, Dispatcher]),
        ("peer-secret", vec![Sockjs]),
    ] {
        let after = marks(changed);
        let rolled: Vec<ServerKind> = before.keys().copied().filter(|server| before[server] != after[server]).collect();
        assert_eq!(rolled, expected, "{changed}");
    }
}

#[test]
fn webhooks_off_is_rendered_explicitly() {
    let off = cluster("{ type: PodIdentity }", "  webhooks: { mode: Off, acknowledgeNoWebhooks: eu }\n");
    let desired = render_objects(&off).expect("objects");
    assert_eq!(environment(&desired, ServerKind::Sockjs)["REALTIME_WEBHOOKS"], "off");
    let on = render_objects(&cluster("{ type: PodIdentity }", "")).expect("objects");
    assert_eq!(environment(&on, ServerKind::Sockjs)["REALTIME_WEBHOOKS"], "kinesis");
}

#[test]
fn settings_of_sockjs_clients_are_rendered_for_the_sockjs_server_alone() {
    let given = "  sockjsClients: { scripts: [https://a.example/s.js, https://b.example/s.js], cookie: Enabled }\n";
    let desired = render_objects(&cluster("{ type: PodIdentity }", given)).expect("objects");
    let fallbacks = environment(&desired, ServerKind::Sockjs);
    assert_eq!(fallbacks["REALTIME_SOCKJS_SCRIPTS"], "https://a.example/s.js,https://b.example/s.js");
    assert_eq!(fallbacks["REALTIME_SOCKJS_COOKIE"], "on");
    assert!(!environment(&desired, ServerKind::Websocket).contains_key("REALTIME_SOCKJS_COOKIE"));
    assert!(!fallbacks.contains_key("REALTIME_SESSION_HOST"), "clients stay where they began");
    let pinned =
        render_objects(&cluster("{ type: PodIdentity }", "  sockjsClients: { canonicalHost: '{pod}.rt.example' }\n"));
    assert_eq!(environment(&pinned.expect("objects"), ServerKind::Sockjs)["REALTIME_SESSION_HOST"], "{pod}.rt.example");
    let without = render_objects(&cluster("{ type: PodIdentity }", "")).expect("objects");
    assert!(
        !environment(&without, ServerKind::Sockjs).contains_key("REALTIME_SOCKJS_SCRIPTS"),
        "the server's own list"
    );
}

#[test]
fn trusted_proxies_are_rendered_for_edges_alone() {
    let given = "  trustedProxies: [10.0.0.0/8, 'fd00::/8']\n";
    let desired = render_objects(&cluster("{ type: PodIdentity }", given)).expect("objects");
    for server in [ServerKind::Websocket, ServerKind::Sockjs] {
        assert_eq!(environment(&desired, server)["REALTIME_TRUSTED_PROXIES"], "10.0.0.0/8,fd00::/8");
    }
    assert!(!environment(&desired, ServerKind::Dispatcher).contains_key("REALTIME_TRUSTED_PROXIES"));
}

#[test]
fn a_log_level_is_rendered_for_every_server_unless_it_is_their_default() {
    let rendered = |given: &str| {
        let desired = render_objects(&cluster("{ type: PodIdentity }", given)).expect("objects");
        [ServerKind::Websocket, ServerKind::Sockjs, ServerKind::Dispatcher]
            .map(|server| environment(&desired, server).get("REALTIME_LOG").cloned())
    };
    for (level, filter) in [("Error", "error"), ("Warn", "warn"), ("Debug", "info,realtime_operator=debug")] {
        let every_server = std::array::from_fn(|_| Some(filter.to_owned()));
        assert_eq!(rendered(&format!("  logLevel: {level}\n")), every_server, "{level}");
    }
    assert_eq!(rendered("  logLevel: Info\n"), [const { None }; 3]);
    assert_eq!(rendered(""), [const { None }; 3]);
}

#[test]
fn settings_for_load_balancers_are_rendered_for_edges_of_releases_that_read_them() {
    let names = [
        "ACTIVITY_TIMEOUT_SECONDS",
        "KEEP_ALIVE_SECONDS",
        "PROXY_PROTOCOL",
        "BASE_PATH",
        "CONNECTIONS_MAX",
        "METRICS_APPS",
    ];
    let rendered = |given: &str, server| {
        let desired = render_objects(&cluster("{ type: PodIdentity }", given)).expect("objects");
        let own = environment(&desired, server);
        names.map(|name| own.get(&format!("REALTIME_{name}")).cloned().unwrap_or_default())
    };
    let given = "  websocket: { activityTimeoutSeconds: 300, keepAliveSeconds: 600, proxyProtocol: Accepted, basePath: /ws, connectionsMax: 500, metricsApps: 200 }\n  sockjs: { activityTimeoutSeconds: 40, basePath: /rt }\n";
    assert_eq!(rendered(given, ServerKind::Websocket), ["300", "600", "accepted", "/ws", "500", "200"]);
    assert_eq!(rendered(given, ServerKind::Sockjs), ["40", "", "", "/rt", "", ""]);
    for server in [ServerKind::Websocket, ServerKind::Sockjs] {
        assert_eq!(rendered("", server), [""; 6], "the server's defaults");
    }
    assert_eq!(rendered(given, ServerKind::Dispatcher), [""; 6]);
    for name in names {
        let row = Variable::by_name(&format!("REALTIME_{name}")).expect("a row");
        assert!(!row.is_read_by("0.1.0".parse().expect("a release")), "{name}: servers of 0.1.0 refuse it");
    }
}

#[test]
fn edges_with_http_sessions_find_each_other_and_share_their_secret_with_no_other_server() {
    let desired = render_objects(&cluster("{ type: PodIdentity }", "")).expect("objects");
    for (server, deployment) in &desired.deployments {
        let pod = deployment.spec.template.spec.as_ref().expect("a pod");
        let ports = pod.containers[0].ports.iter().flatten();
        let peer: Vec<i32> = ports.filter(|p| p.name.as_deref() == Some("peer")).map(|p| p.container_port).collect();
        let own = environment(&desired, *server);
        let asks = server.serves_as(ServerKind::Sockjs);
        assert_eq!(peer, if asks { vec![PEER_PORT] } else { vec![] }, "{server}");
        for name in ["REALTIME_POD_IP", "REALTIME_PEER_SECRET"] {
            assert_eq!(own.contains_key(name), asks, "{server} {name}");
        }
    }
    let port = Variable::by_name("REALTIME_PEER_ADDRESS").map(|row| row.need);
    assert_eq!(port, Some(crate::config::Requirement::Default("[::]:8081")), "what is rendered is what it listens on");
}

#[test]
fn the_termination_grace_covers_hold_drain_and_the_queued_records() {
    let given = "  websocket: { drain: { holdSeconds: 120, windowSeconds: 300 } }\n";
    let desired = render_objects(&cluster("{ type: PodIdentity }", given)).expect("objects");
    let grace = |(server, deployment): &(ServerKind, Deployment)| {
        let pod = deployment.spec.template.spec.as_ref().expect("a pod");
        (*server, pod.termination_grace_period_seconds)
    };
    let graces: Vec<_> = desired.deployments.iter().map(grace).collect();
    let expected =
        [(ServerKind::Websocket, Some(450)), (ServerKind::Sockjs, Some(165)), (ServerKind::Dispatcher, Some(60))];
    assert_eq!(graces, expected);
    for (server, expected) in [(ServerKind::Websocket, ["120", "300"]), (ServerKind::Sockjs, ["15", "120"])] {
        let own = environment(&desired, server);
        assert_eq!(["HOLD", "WINDOW"].map(|part| own[&format!("REALTIME_DRAIN_{part}_SECONDS")].as_str()), expected);
    }
}

#[test]
fn a_disabled_server_is_not_rendered_and_children_have_distinct_names() {
    let desired =
        render_objects(&cluster("{ type: PodIdentity }", "  sockjs: { state: Disabled }\n")).expect("objects");
    assert_eq!(
        desired.deployments.iter().map(|(s, _)| *s).collect::<Vec<_>>(),
        [ServerKind::Websocket, ServerKind::Dispatcher]
    );
    let mut names: Vec<String> =
        desired.children.iter().map(|o| format!("{}/{}", o["kind"], o["metadata"]["name"])).collect();
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn every_child_is_of_a_row_of_the_table_and_in_its_order() {
    let exposed = |controller: &str| {
        let gateway = format!("expose: {{ type: Gateway, controller: {controller}, parentRefs: [{{ name: g }}] }}");
        let ingress = "expose: { type: Ingress, controller: Other }";
        let servers =
            format!("  websocket: {{ hosts: [a.test], {gateway} }}\n  sockjs: {{ hosts: [b.test], {ingress} }}\n");
        render_objects(&cluster("{ type: PodIdentity }", &servers)).expect("objects").children
    };
    let rows: Vec<(&str, &str)> = CHILD_TABLE.iter().map(|row| (row.api_version, row.kind)).collect();
    let row_of = |child: &Value| {
        let types = (child["apiVersion"].as_str().expect("a version"), child["kind"].as_str().expect("a kind"));
        rows.iter().position(|row| *row == types).unwrap_or_else(|| panic!("{types:?} is of no row"))
    };
    let mut built = std::collections::BTreeSet::new();
    for controller in ["EnvoyGateway", "NginxGatewayFabric"] {
        let order: Vec<usize> = exposed(controller).iter().map(row_of).collect();
        assert!(order.is_sorted());
        built.extend(order);
    }
    assert_eq!(built.len(), rows.len() - 1, "every kind but the ReplicaSet, which belongs to its Deployment");
    let optional = rows.iter().filter(|(_, kind)| find_optional_kind(kind).is_some()).count();
    assert_eq!((optional, WATCHED_KINDS.len()), (4, rows.len() - 5), "the Secret and optional kinds are read by name");
    assert!(
        is_pruned("Service")
            && is_pruned("Ingress")
            && !is_pruned("HTTPRoute")
            && !is_pruned("ReplicaSet")
            && !is_pruned("Secret")
    );
}

#[test]
fn servers_combined_are_one_deployment_behind_the_same_services() {
    let desired =
        render_objects(&cluster("{ type: PodIdentity }", "  servers: Combined\n  websocket: { replicas: 5 }\n"));
    let desired = desired.expect("objects");
    let deployments: Vec<_> = desired.deployments.iter().map(|(s, d)| (*s, d.spec.replicas)).collect();
    assert_eq!(deployments, [(ServerKind::Edge, Some(5)), (ServerKind::Dispatcher, Some(2))]);
    let all: Vec<&str> = Transport::ALL.into_iter().map(Transport::name).collect();
    assert_eq!(environment(&desired, ServerKind::Edge)["REALTIME_TRANSPORTS"], all.join(","));
    let pods = desired.deployments[0].1.spec.template.metadata.clone().and_then(|metadata| metadata.labels);
    let pods = pods.expect("labels");
    let services: Vec<_> = desired.services.iter().map(|s| s.metadata.name.clone().unwrap_or_default()).collect();
    assert_eq!(services, ["eu-websocket", "eu-sockjs"], "where clients connect does not depend on it");
    for service in &desired.services {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone()).expect("a selector");
        assert!(selector.iter().all(|(name, value)| pods.get(name) == Some(value)), "{selector:?}");
    }
    let budgets = desired.children.iter().filter(|child| child["kind"] == "PodDisruptionBudget");
    let names: Vec<_> = budgets.filter_map(|budget| budget["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["eu-edge", "eu-dispatcher"]);
}

#[test]
fn pods_are_restricted_and_get_no_service_links() {
    let desired = render_objects(&cluster("{ type: PodIdentity }", "")).expect("objects");
    for (server, deployment) in &desired.deployments {
        let pod = deployment.spec.template.spec.as_ref().expect("a pod");
        assert_eq!(pod.enable_service_links, Some(false), "{server}");
        let security = pod.containers[0].security_context.as_ref().expect("a context");
        assert_eq!(security.read_only_root_filesystem, Some(true), "{server}");
        assert_eq!(security.allow_privilege_escalation, Some(false), "{server}");
    }
}

#[test]
fn the_address_of_the_receiver_is_in_the_registry_and_in_no_template() {
    let here = cluster("{ type: PodIdentity }", "");
    let there = ValidCluster { receiver: "receiver.elsewhere.svc:8090".to_owned(), ..here.clone() };
    let (here, there) = (render_objects(&here).expect("objects"), render_objects(&there).expect("objects"));
    let templates = |desired: &DesiredObjects| serde_json::to_string(&desired.deployments).expect("JSON");
    assert_eq!(templates(&here), templates(&there));
    assert!(!templates(&here).contains("receiver.svc"), "not even in a variable");
    let endpoints = |desired: &DesiredObjects| {
        let found = desired.registry.iter().filter_map(|secret| secret.data.as_ref()?.get(ENDPOINTS_FILE).cloned());
        found.map(|bytes| String::from_utf8(bytes.0).expect("a text")).collect::<Vec<_>>()
    };
    assert_eq!(endpoints(&here), ["receiver.svc:8090\n"]);
    assert_eq!(endpoints(&there), ["receiver.elsewhere.svc:8090\n"]);
}

#[test]
fn the_estimate_follows_the_largest_server_and_the_gate() {
    let estimate = |extra: &str| estimate_rollout(&cluster("{ type: NodeRole }", extra)).as_secs();
    assert_eq!(estimate(""), 60 + 3 * 45 + 3 * 2 + 10, "stream, pods of one server, rounds, one journey");
    assert_eq!(estimate("  websocket: { replicas: 12 }\n"), estimate("") + 9 * 45);
    assert_eq!(estimate("  gate: { openAfter: 5 }\n"), estimate("") + 2 * 2);
}

#[test]
fn pods_have_the_settings_of_the_platform_and_no_user_of_their_own() {
    let settings = "  image: { pullPolicy: Always, imagePullSecrets: [pull] }\n  serviceAccounts: { edge: { name: clients, create: Never } }\n  websocket:\n    resources: { requests: { cpu: 2 }, limits: { memory: 1Gi } }\n    nodeSelector: { pool: edge }\n    tolerations: [{ key: edge, operator: Exists }]\n    priorityClassName: high\n    podLabels: { team: a }\n    podAnnotations: { example.com/a: b }\n    podDisruptionBudget: { maxUnavailable: 20% }\n";
    let desired = render_objects(&cluster("{ type: NodeRole }", settings)).expect("objects");
    let [websocket, sockjs, dispatcher] =
        [0, 1, 2].map(|index| serde_json::to_value(&desired.deployments[index].1.spec.template).expect("JSON"));
    for (pointer, expected) in [
        ("/metadata/labels/team", json!("a")),
        ("/metadata/labels/app.kubernetes.io~1component", json!("websocket")),
        ("/metadata/annotations/example.com~1a", json!("b")),
        ("/spec/nodeSelector", json!({ "pool": "edge" })),
        ("/spec/tolerations", json!([{ "key": "edge", "operator": "Exists" }])),
        ("/spec/priorityClassName", json!("high")),
        ("/spec/serviceAccountName", json!("clients")),
        ("/spec/imagePullSecrets", json!([{ "name": "pull" }])),
        ("/spec/containers/0/imagePullPolicy", json!("Always")),
        ("/spec/containers/0/resources", json!({ "requests": { "cpu": "2" }, "limits": { "memory": "1Gi" } })),
    ] {
        assert_eq!(websocket.pointer(pointer), Some(&expected), "{pointer}");
    }
    for template in [&websocket, &sockjs, &dispatcher] {
        assert_eq!(template.pointer("/spec/securityContext/runAsNonRoot"), Some(&json!(true)));
        assert_eq!(template.pointer("/spec/securityContext/runAsUser"), None, "a platform may assign a range");
        assert_eq!(template["spec"]["topologySpreadConstraints"].as_array().map(Vec::len), Some(2));
    }
    assert_eq!(
        sockjs.pointer("/spec/containers/0/resources/requests"),
        Some(&json!({ "cpu": "25m", "memory": "64Mi" }))
    );
    let names = |kind: &str| -> Vec<&str> {
        let children = desired.children.iter().filter(|child| child["kind"] == kind);
        children.filter_map(|child| child["metadata"]["name"].as_str()).collect()
    };
    assert_eq!(names("ServiceAccount"), ["eu-dispatcher"], "an account that exists is not rendered");
    let budget = desired
        .children
        .iter()
        .find(|child| child["metadata"]["name"] == "eu-websocket" && child["kind"] == "PodDisruptionBudget");
    assert_eq!(budget.map(|budget| &budget["spec"]["maxUnavailable"]), Some(&json!("20%")));
}

#[test]
fn a_field_that_is_removed_from_the_manifest_changes_the_digest_of_its_child() {
    let digests = |settings: &str| -> Vec<(String, Value)> {
        let desired = render_objects(&cluster("{ type: NodeRole }", settings)).expect("objects");
        let named = desired.children.into_iter().map(|child| {
            let name = format!("{} {}", child["kind"], child["metadata"]["name"]);
            (name, child["metadata"]["annotations"][RENDERING_ANNOTATION].clone())
        });
        named.collect()
    };
    let (with, without) =
        (digests("  websocket: { nodeSelector: { pool: edge }, podLabels: { team: a } }\n"), digests(""));
    assert_eq!(without, digests(""), "the same manifest is rendered alike");
    let changed: Vec<&str> = with
        .iter()
        .zip(&without)
        .filter(|(with, without)| with != without)
        .map(|((name, _), _)| name.as_str())
        .collect();
    assert_eq!(changed, [r#""Deployment" "eu-websocket""#]);
    for (name, digest) in &without {
        assert_eq!(digest.is_null(), name.starts_with("\"Secret\""), "{name}: {digest}");
    }
}
