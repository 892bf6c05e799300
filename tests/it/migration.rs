//! `realtime fleet`, `snapshot` and `migrate` as a person runs them: on files, and on API servers that do not answer.

// Helpers end a test where they stand; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::{manifest, realtime};

const SOURCE: &str = "tests/fixtures/migration/source.yaml";
const TARGET: &str = "tests/fixtures/migration/target.yaml";

/// Runs the program without a kubeconfig: exit code, standard output and standard error.
fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    run_with_kubeconfig(arguments, "/nowhere")
}

fn run_with_kubeconfig(arguments: &[&str], kubeconfig: &str) -> (Option<i32>, String, String) {
    let output = realtime(arguments, &[("KUBECONFIG", kubeconfig)]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn parse_json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn write_temporary(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    file
}

/// A kubeconfig with a context for each of these ports of loopback.
fn write_kubeconfig(ports: &[u16]) -> tempfile::NamedTempFile {
    let entries = |entry: &dyn Fn(usize, u16) -> String| {
        ports.iter().enumerate().map(|(number, port)| entry(number, *port)).collect::<String>()
    };
    let clusters =
        entries(&|n, port| format!("- {{ name: c{n}, cluster: {{ server: 'http://127.0.0.1:{port}' }} }}\n"));
    let contexts = entries(&|n, _| format!("- {{ name: ctx{n}, context: {{ cluster: c{n}, user: u }} }}\n"));
    write_temporary(&format!(
        "apiVersion: v1\nkind: Config\nclusters:\n{clusters}contexts:\n{contexts}users:\n- {{ name: u, user: {{}} }}\n"
    ))
}

#[test]
fn the_clusters_that_run_with_a_value_are_found_in_snapshots() {
    let fleet = |more: &[&str]| {
        let (code, text, error) = run(&[&["fleet", SOURCE, TARGET, "-o", "json"], more].concat());
        let clusters = parse_json(&text)["clusters"].as_array().expect("rows").clone();
        let names: Vec<String> =
            clusters.iter().map(|row| row["cluster"].as_str().expect("a name").to_owned()).collect();
        (code, names, clusters, error)
    };
    let (code, names, _, _) = fleet(&[]);
    assert_eq!((code, names), (Some(1), vec!["channels/eu-old".to_owned(), "channels/eu".to_owned()]));
    let (code, names, rows, _) = fleet(&["--where", "REALTIME_WEBHOOKS=off"]);
    assert_eq!((code, names), (Some(1), vec!["channels/eu".to_owned()]), "the question of the outage, in one command");
    assert_eq!(rows[0]["variables"]["REALTIME_WEBHOOKS"]["sockjs"], "off");
    assert_eq!(rows[0]["broken"]["xhr_streaming"], "record");
    let (code, names, _, _) = fleet(&["--where", "REALTIME_WEBHOOKS=kinesis", "--where", "REALTIME_SOCKJS_COOKIE=on"]);
    assert_eq!((code, names), (Some(0), vec!["channels/eu-old".to_owned()]));
    let (_, names, _, _) = fleet(&["--where", "REALTIME_ACTIVITY_TIMEOUT_SECONDS=55"]);
    assert_eq!(names.len(), 2, "a default counts");
    let (_, names, _, _) = fleet(&["--failing"]);
    assert_eq!(names, ["channels/eu"]);
    let (code, _, error) = run(&["fleet", SOURCE, "--where", "REALTIME_WEBHOKS=off"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("did you mean REALTIME_WEBHOOKS?"), "{error}");
}

#[test]
fn a_context_that_does_not_answer_is_a_row_and_holds_no_other_back() {
    // Listeners that accept and never answer, and a port on which nobody listens.
    let silent: Vec<TcpListener> = (0..8).map(|_| TcpListener::bind("127.0.0.1:0").expect("a listener")).collect();
    let mut ports: Vec<u16> = silent.iter().map(|found| found.local_addr().expect("an address").port()).collect();
    let closed = TcpListener::bind("127.0.0.1:0").expect("a listener").local_addr().expect("an address").port();
    ports.push(closed);
    let kubeconfig = write_kubeconfig(&ports);
    let path = kubeconfig.path().display().to_string();
    let contexts: Vec<String> = (0..ports.len()).map(|number| format!("--context=ctx{number}")).collect();
    let mut arguments = vec!["fleet", SOURCE, "--timeout", "2s", "-o", "json", "--context=nowhere"];
    arguments.extend(contexts.iter().map(String::as_str));
    let began = Instant::now();
    let (code, text, error) = run_with_kubeconfig(&arguments, &path);
    let taken = began.elapsed();
    let report = parse_json(&text);
    assert_eq!(code, Some(2), "a cluster may be missing: {text} {error}");
    assert_eq!(report["clusters"].as_array().map(Vec::len), Some(1), "the file is shown all the same");
    let unread = report["unread"].as_array().expect("a list");
    let error_of = |name: &str| {
        let found =
            unread.iter().find(|source| source["context"] == name).unwrap_or_else(|| panic!("no {name}: {text}"));
        found["error"].as_str().expect("a text").to_owned()
    };
    assert_eq!(unread.len(), ports.len() + 1);
    assert!(error_of("ctx0").contains("no answer in 2 s"), "{}", error_of("ctx0"));
    assert!(error_of("ctx8").contains("refused"), "{}", error_of("ctx8"));
    assert!(!error_of("nowhere").is_empty());
    assert!(taken < Duration::from_secs(2 * 8), "eight contexts were read one after the other: {taken:?}");

    let (code, table, _) = run_with_kubeconfig(&["fleet", "--timeout", "1s", "--context", "ctx8"], &path);
    assert_eq!(code, Some(2));
    assert!(table.contains("ctx8: not read: ") && table.contains("1 contexts not read"), "{table}");
}

#[test]
fn a_manifest_with_webhooks_off_is_blocked_and_an_equal_one_is_not() {
    let key = write_temporary("0123456789abcdef0123456789abcdef\n");
    let key = key.path().display().to_string();
    let source = manifest("type: Redis\n", "type: Redis\n    group: fleet\n");
    let source = source.path().display().to_string();
    let off = std::fs::read_to_string(&source).expect("a manifest").replacen(
        "  websocket:\n",
        "  webhooks: { mode: \"Off\", acknowledgeNoWebhooks: eu }\n  websocket:\n",
        1,
    );
    let off = write_temporary(&off);
    let off = off.path().display().to_string();
    let review = |target: &str| {
        let (code, text, error) = run(&["migrate", "review", &source, target, "--key", &key, "-o", "json"]);
        assert!(error.is_empty(), "{error}");
        (code, parse_json(&text))
    };
    let (code, equal) = review(&source);
    assert_eq!((code, &equal["blocked"]), (Some(0), &Value::Bool(false)), "{equal:#}");
    let codes: Vec<&str> =
        equal["findings"].as_array().expect("a list").iter().filter_map(|it| it["code"].as_str()).collect();
    assert!(codes.iter().all(|code| *code == "Unread"), "secrets that no file holds are not compared: {codes:?}");
    let (code, blocked) = review(&off);
    assert_eq!(code, Some(1));
    let first = &blocked["findings"][0];
    assert_eq!((&first["code"], &first["target"]), (&"WebhooksOff".into(), &"off".into()), "{blocked:#}");
    assert_ne!(equal["approvalHash"], blocked["approvalHash"]);
}

#[test]
fn a_snapshot_of_a_manifest_has_no_secret_and_is_read_again() {
    let key = write_temporary("0123456789abcdef0123456789abcdef");
    let key = key.path().display().to_string();
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: { name: eu-redis, namespace: channels }\nstringData: { url: redis://hush:hush@r }\n";
    let secret = write_temporary(secret);
    let secret = secret.path().display().to_string();
    let (code, text, error) = run(&["snapshot", "-f", "examples/eu.yaml", "-f", &secret, "--key", &key]);
    assert_eq!(code, Some(0), "{error}");
    assert!(!text.contains("hush") && text.contains("REALTIME_WEBHOOKS:\n        text: kinesis"), "{text}");
    let snapshot = write_temporary(&text);
    let path = snapshot.path().display().to_string();
    let (code, review, error) = run(&["migrate", "review", &path, &path, "--accept", "FanoutSplit"]);
    assert_eq!(code, Some(0), "{review}{error}");
    assert!(!review.contains("REALTIME_REDIS_URL"), "it was in the files, and is equal: {review}");

    let short = write_temporary("short");
    let (code, _, error) = run(&["snapshot", "-f", "examples/eu.yaml", "--key", &short.path().display().to_string()]);
    assert_eq!(code, Some(2));
    assert!(error.contains("openssl rand -hex 32"), "{error}");
    let (code, _, error) = run(&["snapshot", "eu", "--key", &key]);
    assert_eq!(code, Some(2));
    assert!(error.contains("KUBECONFIG"), "{error}");
}

#[test]
fn a_plan_names_every_weight_and_the_change_by_hand() {
    let (code, text, error) = run(&["migrate", "plan", "examples/migration.yaml"]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    for part in
        ["sockjs-eu.example.com: at least", "99.6 %", "spec.approvedThrough: 255", "change-resource-record-sets"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, text, _) = run(&["migrate", "plan", "examples/migration.yaml", "-o", "json"]);
    let track = &parse_json(&text)["tracks"][0];
    assert_eq!((code, track["steps"].as_array().map(Vec::len)), (Some(0), Some(7)));
    assert_eq!(track["objects"][0]["kind"], "DNSEndpoint");
    let websocket = std::fs::read_to_string("examples/migration.yaml").expect("an example");
    let file = write_temporary(&websocket.replace("transport: sockjs", "transport: websocket"));
    let (code, _, error) = run(&["migrate", "plan", &file.path().display().to_string()]);
    assert!(code == Some(2) && error.contains("FallbackGateMissing"), "{error}");
    let (code, _, error) = run(&["migrate", "plan", "examples/eu.yaml"]);
    assert!(code == Some(2) && error.contains("holds 0 RealtimeMigrations"), "{error}");
}

#[test]
fn both_sides_get_one_key_that_snapshots_take() {
    let (code, text, _) = run(&["migrate", "init", "-n", "channels"]);
    let secret: Value = serde_yaml::from_str(&text).expect("YAML");
    let key = secret["stringData"]["key"].as_str().expect("a key");
    assert_eq!((code, key.len(), secret["kind"].as_str()), (Some(0), 64, Some("Secret")));
    let (_, other, _) = run(&["migrate", "init", "-n", "channels"]);
    assert_ne!(text, other, "each run makes another key");
    let file = write_temporary(key);
    let path = file.path().display().to_string();
    let (code, _, error) = run(&["snapshot", "-f", "examples/migration.yaml", "--key", &path]);
    assert_eq!(code, Some(0), "{error}");
}

#[test]
fn a_preparation_is_a_script_that_a_shell_can_read() {
    let prepare = ["migrate", "prepare", "examples/migration.yaml", "--owner", "ingress/sockjs", "-n", "legacy"];
    let (code, text, error) = run(&[&prepare[..], &["--source-host", "sockjs.old.example.com"]].concat());
    assert_eq!(code, Some(0), "{error}");
    let file = write_temporary(&text);
    let checked = std::process::Command::new("sh").arg("-n").arg(file.path()).output().expect("sh");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    for (arguments, owner, expected) in [
        (r#"["--source=crd","--policy=sync","--txt-owner-id=old","--txt-prefix=owner-"]"#, "old", ""),
        (r#"["--source=crd","--policy","upsert-only"]"#, "default", "RecordsKept"),
        (r#"["--source=crd","--txt-owner-id=new","--txt-prefix=owner-"]"#, "old", "OwnerForeign"),
        (r#"["--source=crd","--txt-prefix=%{record_type}-owner-"]"#, "default", ""),
        (r#"["--source=crd"]"#, "old", "OwnerForeign"),
    ] {
        let (applied, error) = run_preparation(file.path(), arguments, owner);
        assert_eq!(applied, expected.is_empty(), "{arguments}: {error}");
        assert!(error.contains(expected), "{arguments}: {error}");
    }
    let (code, _, error) = run(&[&prepare[..], &["--source-host", "sockjs-eu.example.com"]].concat());
    assert!(code == Some(2) && error.contains("leads to the source alone"), "{error}");
}

/// Runs a preparation with doubles of `kubectl`, whose external-dns has these arguments, and of `dig`, whose zone has one TXT record
/// with this owner. Returns whether it came to its first write, and its errors.
fn run_preparation(script: &std::path::Path, arguments: &str, owner: &str) -> (bool, String) {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a double");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a double that runs");
    };
    let marker = folder.path().join("applied");
    let apply = format!("case \"$1\" in get) printf '%s' '{arguments}' ;; apply) cat >'{}' ;; esac", marker.display());
    write("kubectl", apply);
    let text = format!("\"heritage=external-dns,external-dns/owner={owner},external-dns/resource=crd/legacy/sockjs\"");
    write(
        "dig",
        format!(
            "case \"$*\" in *' NS '*|*'.example.com CNAME') echo 127.0.0.1 ;; \
             *'cname-sockjs-eu.example.com TXT'|*' cname-owner-sockjs-eu.example.com TXT') echo '{text}' ;; \
             '+short sockjs.old.example.com') echo 192.0.2.1 ;; esac"
        ),
    );
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap_or_default());
    let ran = std::process::Command::new("sh")
        .arg(script)
        .env("PATH", path)
        .env("ZONE", "example.com")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("sh");
    (marker.exists(), String::from_utf8_lossy(&ran.stderr).into_owned())
}

#[test]
fn the_page_names_every_phase_and_reason() {
    use realtime_operator::api::migration::MigrationReason;
    let page = std::fs::read_to_string("docs/migration.md").expect("a page");
    let missing: Vec<_> =
        MigrationReason::ALL.into_iter().filter(|reason| !page.contains(&format!("`{reason}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[cfg(feature = "rehearsal")]
fn rehearse(more: &[&str]) -> (Option<i32>, Value) {
    let arguments = ["rehearse", "migration", "examples/migration.yaml", "-o", "json"];
    let (code, text, error) = run(&[&arguments[..], more].concat());
    assert!(error.is_empty(), "{error}");
    (code, parse_json(&text))
}

#[cfg(feature = "rehearsal")]
#[test]
fn a_rehearsed_move_brings_every_client_and_webhook_over_kills() {
    let (code, report) = rehearse(&[]);
    assert_eq!(code, Some(0), "{report:#}");
    let written: Vec<u64> = report["written"].as_array().expect("weights").iter().filter_map(Value::as_u64).collect();
    assert_eq!(written, [1, 0, 1, 5, 20, 60, 180, 250, 255], "{report:#}");
    let visits = &report["visits"];
    let count = |name: &str| visits[name].as_u64().unwrap_or_else(|| panic!("no {name}: {report:#}"));
    assert!(count("sourceSessions") > 0 && count("targetSessions") > 0, "{report:#}");
    assert_eq!((count("missingWebhooks"), count("refused")), (0, 0), "{report:#}");
    assert!(report["kills"].as_u64() >= Some(9), "{report:#}");
    assert_eq!(report["status"]["tracks"][0]["sourceWeight"], 1);
}

/// The outage that does not happen.
#[cfg(feature = "rehearsal")]
#[test]
fn a_rehearsed_target_without_webhooks_gets_no_record_and_no_lookup() {
    let (code, report) = rehearse(&["--edit", "target:sockjs:REALTIME_WEBHOOKS=off"]);
    assert_eq!((code, report["written"].as_array().map(Vec::len)), (Some(1), Some(0)), "{report:#}");
    let visits = &report["visits"];
    assert_eq!((&visits["targetLookups"], &visits["missingWebhooks"]), (&0.into(), &0.into()), "{report:#}");
    assert!(visits["sourceSessions"].as_u64() > Some(0), "{report:#}");
    assert_eq!(report["status"]["tracks"][0]["reason"], "TargetNotProven");
}

#[cfg(feature = "rehearsal")]
#[test]
fn a_rehearsed_target_that_loses_its_webhooks_at_weight_20_is_left() {
    let (code, report) = rehearse(&["--edit", "target:sockjs:REALTIME_WEBHOOKS=off", "--from-weight", "20"]);
    let written = report["written"].as_array().expect("weights");
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(written[written.len() - 3..], [Value::from(20), Value::from(0), Value::Null], "{report:#}");
    let brake_ms = report["brakeMs"].as_u64().expect("a brake");
    assert!(brake_ms < 40_000, "{report:#}");
    assert_eq!(
        report["phases"].as_array().and_then(|all| all.last()).map(|last| &last["phase"]),
        Some(&"RolledBack".into())
    );
}
