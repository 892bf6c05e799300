//! The formats of the former release, `tests/fixtures/former-release`, against this build: servers of the former release run
//! under this operator, and servers of this build under an operator of the former release.

use std::collections::{BTreeMap, BTreeSet};

use realtime_operator::config::{Release, ServerConfig, ServerKind, VARIABLE_TABLE, Variable};
use realtime_operator::desired::{AwsIdentity, list_injected_variables};
use realtime_operator::protocol::admin::EffectiveReport;
use realtime_operator::protocol::registry::{
    App, AppLimits, AppRegistry, BatchMode, Credential, CredentialState, WebhookEndpoint,
};
use realtime_operator::protocol::{AppId, Secret};
use serde_json::{Value, json};

use crate::cli::{manifest, realtime};
use crate::fixtures::{parse_documents, read_file};

/// The former release.
const FORMER: &str = "0.1.0";

fn fixture(file: &str) -> String {
    read_file(&format!("tests/fixtures/former-release/{file}"))
}

/// A row of the former table.
struct FormerVariable {
    name: String,
    servers: BTreeSet<String>,
    needed: String,
}

fn former_table() -> Vec<FormerVariable> {
    let page = fixture("variables.md");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        FormerVariable {
            name: cells[1].trim_matches('`').to_owned(),
            servers: cells[2].split(", ").map(str::to_owned).collect(),
            needed: cells[4].to_owned(),
        }
    })
    .collect()
}

/// The variables of each server in rendered objects, with stand-ins for Secrets and fields.
fn environments(documents: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for object in parse_objects(documents) {
        if object["kind"] != "Deployment" {
            continue;
        }
        let container = &object["spec"]["template"]["spec"]["containers"][0];
        let variables = container["env"].as_array().expect("variables").iter().map(|variable| {
            let field = variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str);
            let value = match field {
                Some("status.podIP") => "10.0.0.1",
                _ => variable["value"].as_str().unwrap_or("from-elsewhere"),
            };
            (variable["name"].as_str().expect("a name").to_owned(), value.to_owned())
        });
        found.insert(container["name"].as_str().expect("a name").to_owned(), variables.collect());
    }
    assert_eq!(found.len(), 3, "websocket, sockjs and dispatcher");
    found
}

fn parse_objects(text: &str) -> Vec<Value> {
    // The golden file begins with a line for the exit code.
    let text = text.split_once('\n').map_or(text, |(first, rest)| if first.starts_with("exit") { rest } else { text });
    parse_documents(text)
}

/// `realtime render` of the example, for servers of this release.
fn render_for(release: &str) -> String {
    let file = manifest("spec:\n", &format!("spec:\n  version: {release}\n"));
    let output = realtime(&["render", file.path().to_str().expect("a path")], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn is_required(row: &Variable) -> bool {
    format!("{:?}", row.need).starts_with("Required")
}

#[test]
fn variables_of_the_former_release_are_still_read_and_new_ones_have_a_later_release() {
    let former = former_table();
    assert!(former.len() > 40, "the table was read: {} rows", former.len());
    let release: Release = FORMER.parse().expect("a release");
    for old in &former {
        let row =
            Variable::by_name(&old.name).unwrap_or_else(|| panic!("{} is gone: a server would refuse it", old.name));
        let servers: BTreeSet<String> = row.servers.iter().map(|server| server.name().to_owned()).collect();
        assert!(servers.is_superset(&old.servers), "{}: {servers:?}", old.name);
        assert!(row.is_read_by(release), "{}: since {}", old.name, row.since);
        assert!(!is_required(row) || old.needed == "always", "{} is required, and was not", old.name);
    }
    let known: BTreeSet<&str> = former.iter().map(|row| row.name.as_str()).collect();
    for row in VARIABLE_TABLE.iter().filter(|row| !known.contains(row.name)) {
        assert!(!row.is_read_by(release), "{} has since {}: servers of {FORMER} refuse it", row.name, row.since);
        assert!(!is_required(row), "{} is required, and an operator of {FORMER} does not set it", row.name);
    }
}

#[test]
fn servers_start_on_the_variables_that_an_operator_of_the_former_release_rendered() {
    for (server, variables) in environments(&fixture("render-eu.yaml")) {
        // Those of the identity are injected by EKS, whatever the release.
        let kind = server.parse::<ServerKind>().expect("a server");
        let injected = list_injected_variables(&AwsIdentity::PodIdentity, kind);
        let found = ServerConfig::parse(variables.into_iter().chain(injected)).map(|values| values.server().name());
        assert_eq!(found, Ok(server.as_str()));
    }
}

#[test]
fn servers_of_the_former_release_get_only_variables_that_they_know() {
    let former = former_table();
    for (server, variables) in environments(&render_for(FORMER)) {
        for name in variables.keys() {
            let known = former.iter().any(|row| row.name == *name && row.servers.contains(&server));
            assert!(known, "{server} of {FORMER} refuses {name}");
        }
    }
}

/// An upgrade of the operator changes no pod of a template; annotations and the names of Secrets are not compared.
#[test]
fn servers_of_the_former_release_are_rendered_as_it_rendered_them() {
    let templates = |documents: &str| -> BTreeMap<String, Value> {
        let objects = parse_objects(documents).into_iter().filter(|object| object["kind"] == "Deployment");
        objects
            .map(|object| {
                let mut pod = object["spec"]["template"]["spec"].clone();
                for variable in pod.pointer_mut("/containers/0/env").and_then(Value::as_array_mut).expect("variables") {
                    if let Some(secret) = variable.pointer_mut("/valueFrom/secretKeyRef") {
                        *secret = json!("a Secret");
                    }
                }
                (object["metadata"]["name"].to_string(), pod)
            })
            .collect()
    };
    let (now, former) = (templates(&render_for(FORMER)), templates(&fixture("render-eu.yaml")));
    assert_eq!(now.len(), 3);
    for (name, pod) in &former {
        assert_eq!(now.get(name), Some(pod), "{name}: a pod that runs {FORMER} would be restarted");
    }
}

/// An app that uses every field of the former release. Validating leaves out later ones for its servers.
fn full_app() -> App {
    App {
        id: AppId::from("17"),
        credentials: vec![Credential { key: "k".into(), secret: Secret::new("s"), state: CredentialState::Active }],
        enabled: true,
        client_events: true,
        subscription_count: true,
        authorization_seconds: Some(30),
        allowed_origins: vec!["https://a.test".to_owned()],
        limits: AppLimits { connections: Some(1), ..AppLimits::default() },
        webhooks: vec![WebhookEndpoint {
            name: "main".to_owned(),
            url: "https://a.test/".to_owned(),
            events: vec!["member_added".to_owned()],
            channel_prefix: "presence-".to_owned(),
            timeout_seconds: 5,
            batch: BatchMode::Many,
            headers: BTreeMap::new(),
            unsendable: None,
        }],
        disabled_webhooks: vec![],
    }
}

/// The fields that a reader of the former release knows, by the name of their object.
fn former_fields() -> BTreeMap<String, BTreeSet<String>> {
    let fields = |names: &str| names.split_whitespace().map(|name| name.trim_end_matches('?').to_owned()).collect();
    let text = fixture("registry-fields.txt");
    text.lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(object, names)| (object.to_owned(), fields(names)))
        .collect()
}

#[test]
fn the_registry_of_the_former_release_is_read_with_the_digests_that_it_reported() {
    let text = fixture("registry.txt");
    let (mut files, mut digests, mut current) = (Vec::new(), BTreeMap::new(), String::new());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("== ") {
            name.clone_into(&mut current);
        } else if let Some((id, digest)) = line.strip_prefix("digest ").and_then(|rest| rest.split_once(' ')) {
            digests.insert(AppId::from(id), digest.to_owned());
        } else {
            files.push((current.clone(), line.to_owned()));
        }
    }
    assert_eq!((files.len(), digests.len()), (16, 2));
    let registry = AppRegistry::parse(files.iter().map(|(name, text)| (name.as_str(), text.as_bytes())));
    assert_eq!(registry.expect("a registry").app_digests("salt"), digests);
}

#[test]
fn the_registry_has_only_fields_that_servers_of_the_former_release_know() {
    let known = former_fields();
    let app = serde_json::to_value(full_app()).expect("json");
    let objects = [
        ("App", &app),
        ("Credential", &app["credentials"][0]),
        ("AppLimits", &app["limits"]),
        ("WebhookEndpoint", &app["webhooks"][0]),
    ];
    for (name, object) in objects {
        let fields: BTreeSet<String> = object.as_object().expect("an object").keys().cloned().collect();
        let unknown: Vec<&String> = fields.difference(&known[name]).collect();
        assert!(unknown.is_empty(), "{name} has {unknown:?}, on which a server of {FORMER} refuses the whole registry");
    }
}

#[test]
fn a_registry_of_a_later_release_is_read_and_its_digest_covers_what_is_unknown() {
    let mut app = serde_json::to_value(full_app()).expect("json");
    for pointer in ["", "/credentials/0", "/limits", "/webhooks/0"] {
        let object = app.pointer_mut(pointer).expect("an object");
        object["ofALaterRelease"] = json!({ "a": [1] });
    }
    let digests = |app: &Value| {
        let text = format!("[{app}]");
        let registry = AppRegistry::parse([("7.json", text.as_bytes())]).expect("a registry");
        assert_eq!(registry.apps().collect::<Vec<_>>(), [&full_app()]);
        registry.app_digests("salt")
    };
    let later = digests(&app);
    let known = AppRegistry::new([full_app()]).app_digests("salt");
    assert_ne!(later, known, "the operator that wrote it sees that it has arrived");
    app["limits"]["ofALaterRelease"] = json!(2);
    assert_ne!(digests(&app), later);
}

#[test]
fn reports_of_the_former_and_of_a_later_release_are_read() {
    let former: EffectiveReport = serde_json::from_str(&fixture("effective.jsonl")).expect("a report");
    assert_eq!(former.version, FORMER);
    let fields =
        |report: &Value| -> BTreeSet<String> { report.as_object().expect("an object").keys().cloned().collect() };
    let written: Value = serde_json::from_str(&fixture("effective.jsonl")).expect("json");
    let mut now = serde_json::to_value(&former).expect("json");
    assert!(fields(&now).is_superset(&fields(&written)), "an operator of {FORMER} needs every field of its report");
    now["ofALaterRelease"] = json!(1);
    assert_eq!(serde_json::from_value::<EffectiveReport>(now).ok(), Some(former));
    assert_eq!(ServerKind::ALL.len(), 4, "the servers of the table");
}
