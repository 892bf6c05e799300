//! Manifests with random mistakes, from a fixed seed: each is refused with a reason, or becomes objects that an API server
//! accepts. Nothing panics.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use realtime_operator::desired::{self, Manifests, render_objects};
use serde_json::{Map, Value, json};

use crate::fixtures::{parse_documents, read_file, validate_with_stand_ins};

/// Number of manifests.
const MANIFESTS: u64 = 500;

/// Most mistakes in one manifest.
const MISTAKES_MAX: u64 = 2;

/// A cluster and an app that use nearly every field.
const FULL: &str = r#"
apiVersion: realtime-operator.dev/v1alpha1
kind: RealtimeCluster
metadata: { name: eu, namespace: channels, labels: { team: a }, annotations: { realtime-operator.dev/restarted-at: "1" } }
spec:
  suspend: false
  image: { repository: registry.example.com/realtime, tag: "0.1.0", pullPolicy: IfNotPresent, imagePullSecrets: [pull] }
  version: 0.1.0
  serviceAccounts: { edge: { name: eu-clients, create: Never }, dispatcher: {} }
  aws:
    region: eu-west-1
    endpointURL: https://kinesis.eu-west-1.amazonaws.com
    identity:
      type: WebIdentity
      edge: { roleARN: "arn:aws:iam::1234:role/edge" }
      dispatcher: { roleARN: "arn:aws:iam::1234:role/dispatcher" }
  bus: { type: Redis, redis: { urlSecretRef: { name: eu-redis, key: url }, caSecretRef: { name: eu-redis, key: ca.crt } } }
  servers: Separate
  dns: { type: ExternalDNS }
  websocket: { hosts: [ws.example.com], canonicalHost: ws-eu.example.com, tls: { certificateRefs: [{ name: ws-tls }] }, expose: { type: Ingress, controller: IngressNginx, className: nginx, annotations: { example.com/a: b }, labels: { team: a } }, state: Enabled, replicas: 2, drain: { holdSeconds: 5, windowSeconds: 60 }, env: [{ name: A, value: b }, { name: C }], resources: { requests: { cpu: 1 }, limits: { memory: 1Gi } }, nodeSelector: { pool: edge }, podLabels: { team: a }, podAnnotations: { example.com/a: b }, priorityClassName: high, podDisruptionBudget: { maxUnavailable: "20%" } }
  sockjs: { hosts: [sockjs.example.com], expose: { type: LoadBalancer, className: example.com/lb, sourceRanges: [203.0.113.0/24] }, replicas: 2, env: [{ name: A, value: b }] }
  sockjsClients: { scripts: ["https://cdn.example.com/sockjs.js"], cookie: Enabled, canonicalHost: "{pod}.example.com" }
  trustedProxies: [10.0.0.0/8]
  webhooks:
    mode: Kinesis
    allowedNetworks: [10.20.0.0/16]
    dispatcher: { replicas: 2, retryWindowSeconds: 60, maxBackoffSeconds: 10, env: [{ name: D, value: "e" }] }
    stream: { name: events, mode: Provisioned, shards: 4 }
  gate: { intervalSeconds: 15, timeoutSeconds: 10, openAfter: 3, closeAfter: 3, deadlineSeconds: 600 }
---
apiVersion: realtime-operator.dev/v1alpha1
kind: RealtimeApp
metadata: { name: shop, namespace: channels }
spec:
  appID: "1001"
  state: Enabled
  clientEvents: Enabled
  subscriptionCount: Enabled
  allowedOrigins: ["https://*.example.com"]
  credentials: [{ secretRef: { name: shop }, state: Active }]
  limits: { connections: 100, messageBytes: 1000, clientEventsPerSecond: 10 }
  webhooks: [{ name: orders, url: "https://shop.example.com/hook", events: [channel_occupied], channelPrefix: private-, timeoutSeconds: 4 }]
"#;

/// Texts that people and templates write by mistake, and words of the schema at the wrong place.
const TEXTS: [&str; 36] = [
    "",
    " ",
    "-",
    "a b",
    "a\nb",
    "ä",
    "eu.prod",
    "1eu",
    "EU",
    "eu-",
    "-eu",
    "a/b",
    "a:b",
    "a@b",
    "{pod}",
    "{{ .Values.x }}",
    "0.0.9",
    "9.9.9",
    "latest",
    "10.0.0.0/33",
    "0.0.0.0/0",
    "http://",
    "https://x",
    "ftp://x/y",
    "https://u:p@x/",
    "arn:",
    "REALTIME_WEBHOOKS",
    "AWS_REGION",
    "HTTPS_PROXY",
    "Combined",
    "Disabled",
    "Off",
    "IRSA",
    "StaticKeys",
    "abc",
    "eu-2",
];

/// Numbers at and beyond the bounds.
const NUMBERS: [i64; 10] = [-1, 0, 1, 2, 60, 1000, 3601, 86_401, i32::MAX as i64 + 1, i64::MAX];

/// A fixed sequence of numbers (splitmix64).
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).expect("a bound")).expect("below the bound")
    }
}

/// Pointers of every value in a document, the document itself left out.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    let mut visit = |name: &str, inner: &Value| {
        let pointer = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        found.push(pointer.clone());
        pointers(inner, &pointer, found);
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, inner)| visit(name, inner)),
        Value::Array(items) => items.iter().enumerate().for_each(|(index, inner)| visit(&index.to_string(), inner)),
        _ => {}
    }
}

/// Makes one mistake somewhere in the document.
fn make_mistake(document: &mut Value, sequence: &mut Sequence) {
    let mut all = Vec::new();
    pointers(document, "", &mut all);
    // Mistakes of the whole object are few: most are in its spec.
    let pointer = all[sequence.below(all.len())].clone();
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    let name = name.replace("~1", "/").replace("~0", "~");
    let copy = document.pointer(&all[sequence.below(all.len())]).cloned().unwrap_or_default();
    let text = format!("{}{}", TEXTS[sequence.below(TEXTS.len())], "x".repeat([0, 0, 0, 40, 300][sequence.below(5)]));
    let number = NUMBERS[sequence.below(NUMBERS.len())];
    let choice = sequence.below(10);
    if sequence.below(3) == 0 {
        match document.pointer_mut(parent) {
            Some(Value::Object(fields)) => drop(fields.remove(&name)),
            Some(Value::Array(items)) => drop(items.remove(name.parse().expect("an index"))),
            _ => {}
        }
        return;
    }
    let Some(value) = document.pointer_mut(&pointer) else { return };
    match (choice, value) {
        (1, Value::Object(fields)) => drop(fields.insert("unknownField".to_owned(), json!(1))),
        (1, Value::Array(items)) => items.extend(items.clone()),
        (2, value) => *value = Value::Null,
        (4, value) => *value = json!([copy]),
        (5, value) => *value = json!({ "a": copy }),
        (6, value) => *value = copy,
        // Most often a wrong value of the right type.
        (3, value) | (_, value @ Value::Number(_)) => *value = json!(number),
        (_, value @ Value::Bool(_)) => *value = json!(number == 1),
        (_, value) => *value = json!(text),
    }
}

/// The result for one manifest: the reasons of its refusal, or its objects.
fn judge(documents: &[Value]) -> Result<Vec<Value>, Vec<String>> {
    let text: Vec<String> = documents.iter().map(ToString::to_string).collect();
    let mut manifests = Manifests::default();
    manifests
        .add_file("mutated.yaml", &text.join("\n---\n"))
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let Some((_, cluster)) = manifests.clusters.pop() else { return Err(vec!["no cluster is left".to_owned()]) };
    let apps: Vec<_> = manifests.apps.into_iter().map(|(_, app)| app).collect();
    let valid = validate_with_stand_ins(cluster, &apps)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let desired = render_objects(&valid).map_err(|error| vec![error.to_string()])?;
    let registry = desired.registry.iter().map(|secret| serde_json::to_value(secret).expect("json"));
    let mut objects: Vec<Value> = desired.children.iter().cloned().chain(registry).collect();
    objects.push(desired::network_policy::render_network_policy(&valid, "redis://r", "operators"));
    Ok(objects)
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

fn is_label_value(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 63 && text.bytes().all(inner) && (text.is_empty() || (text.starts_with(edge) && text.ends_with(edge)))
}

/// The field of a child that an API server refuses by its own rules, if there is one.
fn find_refusal(object: &Value) -> Option<String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (kind, name, namespace) = (text("/kind"), text("/metadata/name"), text("/metadata/namespace"));
    let is_service_name = is_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase());
    if !is_subdomain(name) || (kind == "Service" && !is_service_name) {
        return Some(format!("{kind} has the name `{name}`"));
    }
    if !is_label(namespace) {
        return Some(format!("{kind} {name} is in namespace `{namespace}`"));
    }
    let empty = Map::new();
    for pointer in
        ["/metadata/labels", "/spec/template/metadata/labels", "/spec/selector", "/spec/selector/matchLabels"]
    {
        let labels = object.pointer(pointer).and_then(Value::as_object).unwrap_or(&empty);
        let wrong = labels.iter().find(|(_, value)| value.as_str().is_some_and(|value| !is_label_value(value)));
        if let Some((label, value)) = wrong {
            return Some(format!("{kind} {name}: label {label} is {value}"));
        }
    }
    let hosts = object.pointer("/spec/rules").and_then(Value::as_array).into_iter().flatten();
    if let Some(host) = hosts.filter_map(|rule| rule["host"].as_str()).find(|host| !is_subdomain(host)) {
        return Some(format!("{kind} {name}: host `{host}`"));
    }
    if object["spec"]["ingressClassName"].as_str().is_some_and(|class| !is_subdomain(class)) {
        return Some(format!("{kind} {name}: class {}", object["spec"]["ingressClassName"]));
    }
    if object.to_string().len() > 1_000_000 {
        return Some(format!("{kind} {name} has more than 1 MB"));
    }
    if object["spec"]["replicas"].as_i64().is_some_and(|replicas| !(0..=i64::from(i32::MAX)).contains(&replicas)) {
        return Some(format!("{kind} {name} has {} replicas", object["spec"]["replicas"]));
    }
    find_pod_refusal(object.pointer("/spec/template/spec")?).map(|why| format!("{kind} {name}: {why}"))
}

fn find_pod_refusal(pod: &Value) -> Option<String> {
    let list = |value: &Value, field: &str| value[field].as_array().cloned().unwrap_or_default();
    if pod["terminationGracePeriodSeconds"].as_i64().is_none_or(|seconds| seconds < 0) {
        return Some("no grace period".to_owned());
    }
    for container in list(pod, "containers") {
        let image = container["image"].as_str().unwrap_or_default();
        if image.is_empty() || image.trim() != image {
            return Some(format!("image `{image}`"));
        }
        let mut names = BTreeSet::new();
        for variable in list(&container, "env") {
            let name = variable["name"].as_str().unwrap_or_default().to_owned();
            let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            if name.is_empty() || !name.bytes().all(valid) || name.starts_with(|c: char| c.is_ascii_digit()) {
                return Some(format!("variable `{name}`"));
            }
            let key = variable.pointer("/valueFrom/secretKeyRef/key").and_then(Value::as_str);
            let secret = variable.pointer("/valueFrom/secretKeyRef/name").and_then(Value::as_str);
            if secret.is_some_and(|secret| !is_subdomain(secret))
                || key.is_some_and(|key| key.is_empty() || !key.bytes().all(valid))
            {
                return Some(format!("variable {name} reads {key:?} of Secret {secret:?}"));
            }
            // An apply merges this list by name, and refuses two of one name.
            if !names.insert(name.clone()) {
                return Some(format!("variable {name} twice"));
            }
        }
    }
    let mut names = BTreeSet::new();
    list(pod, "volumes").iter().find_map(|volume| {
        let name = volume["name"].as_str().unwrap_or_default().to_owned();
        (!is_label(&name) || !names.insert(name.clone())).then(|| format!("volume `{name}`"))
    })
}

fn base_documents() -> Vec<Vec<Value>> {
    vec![parse_documents(&read_file("examples/eu.yaml")), parse_documents(FULL)]
}

#[test]
fn the_manifests_without_a_mistake_are_accepted() {
    for documents in base_documents() {
        let objects = judge(&documents).expect("objects");
        assert!(objects.len() > 25, "{} objects", objects.len());
        assert_eq!(objects.iter().find_map(find_refusal), None);
    }
}

#[test]
fn a_rule_of_an_api_server_that_a_child_breaks_is_found() {
    let service = |name: &str, labels: Value| json!({ "kind": "Service", "metadata": { "name": name, "namespace": "n", "labels": labels } });
    assert_eq!(find_refusal(&service("eu", json!({}))), None);
    assert!(find_refusal(&service("1eu", json!({}))).is_some());
    assert!(find_refusal(&service("eu", json!({ "a": "b c" }))).is_some());
    let pod = |env: Value| {
        let pod = json!({ "terminationGracePeriodSeconds": 1, "containers": [{ "image": "i", "env": env }] });
        find_pod_refusal(&pod)
    };
    assert_eq!(pod(json!([{ "name": "A" }])), None);
    assert!(pod(json!([{ "name": "A" }, { "name": "A" }])).is_some());
    assert!(pod(json!([{ "name": "1A" }])).is_some());
}

#[test]
fn manifests_with_random_mistakes_are_refused_with_a_reason_or_rendered_to_objects_that_are_accepted() {
    let bases = base_documents();
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..MANIFESTS {
        let mut sequence = Sequence(seed);
        let mut documents = bases[sequence.below(bases.len())].clone();
        for _ in 0..=sequence.next() % MISTAKES_MAX {
            // Mostly in the cluster, sometimes in the app.
            let index = usize::from(sequence.below(4) == 0);
            make_mistake(&mut documents[index], &mut sequence);
        }
        let shown = || documents.iter().map(|document| format!("{document:#}")).collect::<Vec<_>>().join("\n---\n");
        let judged = catch_unwind(AssertUnwindSafe(|| judge(&documents)));
        match judged {
            Ok(Ok(objects)) => {
                accepted += 1;
                let refusal = objects.iter().find_map(find_refusal);
                assert_eq!(refusal, None, "seed {seed}: an API server refuses a child of\n{}", shown());
            }
            Ok(Err(reasons)) => {
                refused += 1;
                let all_say_why = !reasons.is_empty() && reasons.iter().all(|reason| reason.len() > 10);
                assert!(all_say_why, "seed {seed}: {reasons:?} for\n{}", shown());
            }
            Err(panic) => panic!("seed {seed} panics: {panic:?}, with\n{}", shown()),
        }
    }
    println!("{accepted} accepted, {refused} refused");
    assert!(accepted >= 25 && refused >= 200, "both happen: {accepted} accepted, {refused} refused");
}
