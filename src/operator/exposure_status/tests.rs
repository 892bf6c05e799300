//! Tests of the status of entrances.

use serde_json::json;

use super::*;
use crate::api::fixture::applied_cluster;
use crate::desired::{ClusterInputs, SecretTexts, ServerImage, generate_all_credentials, validate};

pub(in crate::operator) fn cluster(extra: &str) -> ValidCluster {
    let cluster = applied_cluster(&format!("  trustedProxies: [10.0.0.0/16]\n{extra}"));
    let generate = |purpose: &str| format!("generated-{purpose}");
    validate(&ClusterInputs {
        cluster: &cluster,
        apps: &[],
        secrets: &SecretTexts::new(),
        credentials: &generate_all_credentials(&cluster, &[], generate),
        receiver: "receiver.svc:8090",
        own_networks: &[],
        own_image: &ServerImage::of_operator(None),
        recorded_image: None,
        stream: None,
    })
    .expect("a valid cluster")
}

#[test]
fn the_options_of_pusher_js_name_the_hosts_and_ports_of_both_servers() {
    let of = |extra: &str| serde_json::to_value(list_endpoints(&cluster(extra), vec![])).expect("JSON");
    let plain = of("");
    assert_eq!(plain["websocket"], "eu-websocket.channels.svc:80");
    assert_eq!(plain["api"], "http://eu-websocket.channels.svc:80");
    assert!(plain["clientOptions"].is_null(), "no host, no client outside");
    let host = |host: &str, more: &str| {
        format!("hosts: [{host}]{more}, expose: {{ type: Gateway, controller: Other, parentRefs: [{{ name: g }}] }}")
    };
    let both = of(&format!(
        "  websocket: {{ {} }}\n  sockjs: {{ {} }}\n",
        host("ws.test", ""),
        host("sj.test", ", basePath: /rt")
    ));
    let expected = json!({
        "cluster": "", "wsHost": "ws.test", "wsPort": 80, "wssPort": 443, "httpHost": "sj.test", "httpPort": 80,
        "httpsPort": 443, "httpPath": "/rt/pusher", "forceTLS": true, "enableStats": false,
    });
    assert_eq!(both["clientOptions"], expected);
    let one = of("  websocket: { hosts: [ws.test], expose: { type: Ingress, controller: Traefik } }\n");
    let expected = json!({
        "cluster": "", "wsHost": "ws.test", "wsPort": 80, "wssPort": 443, "forceTLS": false, "enableStats": false,
        "enabledTransports": ["ws", "wss"],
    });
    assert_eq!(one["clientOptions"], expected);
    let one = of("  websocket: { state: Disabled }\n  sockjs: { hosts: [sj.test] }\n");
    assert_eq!(one["clientOptions"]["enabledTransports"], json!(["xhr_streaming", "xhr_polling"]));
    assert_eq!(one["api"], "http://eu-sockjs.channels.svc:80");
    assert!(one["publicAPI"].is_null());
    let api = |tls: &str| {
        of(&format!("  httpAPI: {{ host: api.test, {tls}expose: {{ type: Ingress, controller: Other }} }}\n"))
    };
    assert_eq!(api("tls: { certificateRefs: [{ name: api-tls }] }, ")["publicAPI"], "https://api.test");
    assert_eq!(api("")["publicAPI"], "http://api.test");
    assert!(api("")["clientOptions"].is_null(), "clients have no host");
}

#[test]
fn an_entrance_is_pending_until_it_has_an_address() {
    let decide = |extra: &str, refused: &[&str], live: Value| {
        let refused: Vec<String> = refused.iter().map(|line| (*line).to_owned()).collect();
        let found = decide_exposed(&cluster(extra), &refused, None, |_, _| Some(live.clone()))?;
        Some((found.status, found.reason, found.message))
    };
    let some = |status, reason, message: &str| Some((status, reason, message.to_owned()));
    let load_balancer = "  websocket: { expose: { type: LoadBalancer } }\n";
    let (pending, published) = (Reason::LoadBalancerPending, Reason::AddressPublished);
    assert_eq!(decide("", &[], json!({})), None, "no entrance");
    assert_eq!(decide("  websocket: { hosts: [a.test] }\n", &[], json!({})), None, "the front is the user's");
    let nothing = some("Unknown", pending, "Service eu-websocket-public: no address yet");
    assert_eq!(decide(load_balancer, &[], json!({})), nothing);
    let address =
        json!({ "status": { "loadBalancer": { "ingress": [{ "hostname": "a.elb.test" }, { "ip": "192.0.2.1" }] } } });
    let ready = some("True", published, "Service eu-websocket-public: a.elb.test, 192.0.2.1");
    assert_eq!(decide(load_balancer, &[], address), ready);
    let gateway =
        "  websocket: { hosts: [a.test], expose: { type: Gateway, controller: Other, parentRefs: [{ name: g }] } }\n";
    let route = |accepted: &str, generation: i64| {
        json!({ "metadata": { "generation": 2 }, "status": { "parents": [{ "parentRef": { "name": "g" }, "conditions": [
            { "type": "Accepted", "status": accepted, "observedGeneration": generation, "message": "no listener has this host" },
            { "type": "ResolvedRefs", "status": "True", "observedGeneration": generation },
        ] }] } })
    };
    let line = |text: &str| format!("HTTPRoute eu-websocket: {text}");
    for (live, status, reason, text) in [
        (json!({}), "Unknown", pending, "no Gateway has accepted it yet"),
        (route("True", 1), "Unknown", pending, "Gateway g has not looked at it yet"),
        (route("False", 2), "Unknown", pending, "Gateway g reports Accepted as false: no listener has this host"),
        (route("True", 2), "True", published, "accepted by Gateway g"),
    ] {
        assert_eq!(decide(gateway, &[], live), some(status, reason, &line(text)), "{text}");
    }
    let missing = "HTTPRoute eu-websocket of gateway.networking.k8s.io/v1: not found";
    assert_eq!(decide(gateway, &[missing], json!({})), some("False", Reason::ExposureUnavailable, missing));
}

#[test]
fn a_pod_without_the_readiness_gate_of_its_load_balancer_is_reported() {
    let balancer = |controller: &str| {
        format!(
            "  websocket: {{ hosts: [a.test], tls: {{ acmCertificateARN: 'arn:aws:acm:x' }}, expose: {{ type: EKSNLB, controller: {controller}, scheme: InternetFacing }} }}\n"
        )
    };
    let pod = |name: &str, server: &str, gates: &[&str], leaves: bool| -> Pod {
        let gates: Vec<Value> = gates.iter().map(|gate| json!({ "conditionType": gate })).collect();
        let mut pod = json!({
            "metadata": { "name": name, "labels": { COMPONENT_LABEL: server } },
            "spec": { "containers": [], "readinessGates": gates },
        });
        if leaves {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(pod).expect("a pod")
    };
    let own = "realtime-operator.dev/webhooks-delivered";
    let injected = "target-health.elbv2.k8s.aws/k8s-channels-eu";
    let controller = balancer("AWSLoadBalancerController");
    for (name, manifest, pods, expected) in [
        ("every pod has it", &controller, vec![pod("a", "websocket", &[own, injected], false)], None),
        ("one has not", &controller, vec![pod("a", "websocket", &[own], false)], Some("a")),
        ("another server", &controller, vec![pod("a", "sockjs", &[own], false)], None),
        ("a pod that leaves", &controller, vec![pod("a", "websocket", &[own], true)], None),
        ("EKS Auto Mode has no gates", &balancer("EKSAutoMode"), vec![pod("a", "websocket", &[own], false)], None),
    ] {
        assert_eq!(find_ungated_pod(&cluster(manifest), &pods).as_deref(), expected, "{name}");
    }
    let address = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } } });
    let found = decide_exposed(&cluster(&controller), &[], Some("eu-websocket-0"), |_, _| Some(address.clone()));
    let found = found.expect("an entrance");
    assert_eq!((found.status, found.reason), ("True", Reason::ReadinessGateMissing));
    assert!(found.message.contains("eu-websocket-0 has no readiness gate"), "{}", found.message);
}

#[test]
fn a_condition_is_kept_by_a_reconcile_that_learned_nothing_about_it() {
    let mut cluster = applied_cluster("");
    assert_eq!(keep_condition(&cluster, condition::EXPOSED), None);
    let known = json!({ "conditions": [{
        "type": "Exposed", "status": "Unknown", "reason": "LoadBalancerPending", "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }] });
    cluster.status = Some(serde_json::from_value(known).expect("a status"));
    let expected = ConditionUpdate::new(condition::EXPOSED, "Unknown", Reason::LoadBalancerPending, "m");
    assert_eq!(keep_condition(&cluster, condition::EXPOSED), Some(expected));
}
