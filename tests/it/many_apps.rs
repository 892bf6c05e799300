//! Thousands of apps that are applied at once: all of them are served, and one more change is one small write.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use k8s_openapi::api::core::v1::Secret;
use realtime_operator::api::{RealtimeApp, RealtimeCluster};
use realtime_operator::desired::{decode_secret, render_objects};
use realtime_operator::protocol::registry::{App, ENDPOINTS_FILE};

use crate::fixtures::{parse_documents, validate_with_stand_ins};

const CLUSTER: &str = include_str!("../fixtures/minimal-cluster.yaml");

/// Apps of one `kubectl apply`.
const APPS: usize = 2_000;

/// Largest Secret that the API server accepts, in bytes.
const SECRET_BYTES_MAX: usize = 1024 * 1024;

fn app(number: usize, client_events: &str) -> String {
    format!(
        "---
apiVersion: realtime-operator.dev/v1alpha1
kind: RealtimeApp
metadata: {{ name: app-{number}, namespace: channels, creationTimestamp: '2026-01-01T00:00:00Z', uid: '{number:08}' }}
spec:
  appID: '{}'
  clientEvents: {client_events}
  webhooks: [{{ name: orders, url: 'https://shop-{number}.example.com/hook' }}]
",
        10_000 + number
    )
}

/// The Secrets of the registry, by name.
fn render_registry(text: &str) -> BTreeMap<String, Secret> {
    let mut documents = parse_documents(text).into_iter();
    let read = |document| serde_json::from_value(document).expect("a cluster");
    let cluster: RealtimeCluster = documents.next().map(read).expect("a cluster");
    let apps: Vec<RealtimeApp> = documents.map(|app| serde_json::from_value(app).expect("an app")).collect();
    let valid = validate_with_stand_ins(cluster, &apps).expect("a cluster");
    assert!(valid.refused.is_empty(), "{} apps are refused", valid.refused.len());
    let desired = render_objects(&valid).expect("objects");
    desired.registry.into_iter().map(|secret| (secret.metadata.name.clone().expect("a name"), secret)).collect()
}

fn apps_of(secret: &Secret) -> Vec<App> {
    // One of the Secrets holds a file of endpoints besides.
    let texts = decode_secret(secret).into_iter().filter(|(file, _)| file != ENDPOINTS_FILE);
    texts.flat_map(|(_, text)| serde_json::from_str::<Vec<App>>(&text).expect("apps")).collect()
}

#[test]
fn two_thousand_apps_of_one_apply_are_served_and_one_change_rewrites_one_secret() {
    let mut text = CLUSTER.to_owned();
    (0..APPS).for_each(|number| write!(text, "{}", app(number, "Enabled")).expect("a string"));
    let before = render_registry(&text);
    let mut served = BTreeSet::new();
    for (name, secret) in &before {
        let size: usize = secret.data.iter().flatten().map(|(key, bytes)| key.len() + bytes.0.len()).sum();
        assert!(size < SECRET_BYTES_MAX / 4, "{name} has {size} bytes: 20,000 apps must have room too");
        served.extend(apps_of(secret).into_iter().map(|app| app.id.to_string()));
    }
    let missing: Vec<usize> = (0..APPS).filter(|number| !served.contains(&(10_000 + number).to_string())).collect();
    assert_eq!(missing, Vec::<usize>::new());

    let changed = text.replace(&app(1_234, "Enabled"), &app(1_234, "Disabled"));
    assert_ne!(changed, text);
    let after = render_registry(&changed);
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    let rewritten: Vec<&Secret> =
        after.iter().filter(|(name, secret)| before[*name] != **secret).map(|(_, secret)| secret).collect();
    assert_eq!(rewritten.len(), 1, "the other Secrets stay as they are");
    let app = apps_of(rewritten[0]).into_iter().find(|app| app.id.as_str() == "11234").expect("the app");
    assert!(!app.client_events);
}
