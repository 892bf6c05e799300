//! The binary as a user runs it: exit codes, and what is printed.

use std::process::{Command, Output};

use crate::fixtures::read_file;

/// Runs the binary with arguments, variables and nothing else of this process's environment.
pub fn realtime(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_realtime"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).env_clear().envs(variables.iter().copied());
    command.output().expect("the binary runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The example of a cluster in a file of its own, with one text replaced.
pub fn manifest(replace: &str, with: &str) -> tempfile::NamedTempFile {
    let example = read_file("examples/eu.yaml");
    assert!(example.contains(replace), "the example holds `{replace}`");
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().expect("a file");
    std::fs::write(file.path(), example.replacen(replace, with, 1)).expect("written");
    file
}

#[test]
fn a_server_refuses_its_configuration_in_one_line_with_exit_code_78() {
    for (name, variables, says) in [
        ("nothing at all", &[][..], "REALTIME_SERVER is missing"),
        (
            "an unknown name",
            &[("REALTIME_SERVER", "sockjs"), ("REALTIME_WEBHOKS", "off")][..],
            "REALTIME_WEBHOKS is not a variable of this release, did you mean REALTIME_WEBHOOKS?: remove it",
        ),
        ("another server's command", &[("REALTIME_SERVER", "dispatcher")][..], "REALTIME_"),
    ] {
        let output = realtime(&["edge"], variables);
        assert_eq!(output.status.code(), Some(78), "{name}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{name}: {}", stderr(&output));
        assert_eq!(stderr(&output).trim().lines().count(), 1, "{name}: one line: {}", stderr(&output));
    }
}

#[test]
fn bad_input_is_reported_with_file_path_and_remedy_and_exit_code_2() {
    for (name, replace, with, says) in [
        (
            "an unknown field",
            "  websocket:\n",
            "  websockets:\n",
            "spec.websockets is no field: did you mean `websocket`?",
        ),
        (
            "a wrong type",
            "replicas: 2",
            "replicas: two",
            "spec.websocket.replicas is the text `two`, a whole number is wanted",
        ),
        (
            "two identities",
            "type: PodIdentity\n",
            "type: PodIdentity\n      secretRef: { name: keys }\n",
            "keep one identity",
        ),
        (
            "a contract name in env",
            "replicas: 2\n",
            "replicas: 2\n    env: [{ name: REALTIME_WEBHOOKS, value: 'off' }]\n",
            "belongs to the operator",
        ),
        ("an empty region", "region: eu-west-1", "region: ''", "spec.aws.region is empty: write a value"),
        ("no replicas", "replicas: 2", "replicas: 0", "spec.websocket.replicas is 0: write a number from 1 to 1000"),
        ("a name that no Service may have", "name: eu\n", "name: eu.prod\n", "no Service can have this name"),
        (
            "a webhook with a password",
            "url: https://",
            "url: https://me:secret@",
            "spec.webhooks[0].url breaks a rule: the URL contains a user or a password",
        ),
        ("a name too long", "name: eu\n", &format!("name: {}\n", "e".repeat(41)), "more than 40 characters"),
    ] {
        let file = manifest(replace, with);
        let path = file.path().display().to_string();
        for arguments in [&["render", &path][..], &["rehearse", &path, "--once"][..]] {
            let output = realtime(arguments, &[]);
            assert_eq!(output.status.code(), Some(2), "{name}: {}", stderr(&output));
            assert!(stderr(&output).contains(says), "{name}: {}", stderr(&output));
            assert!(stderr(&output).contains(&path), "{name} names the file: {}", stderr(&output));
        }
    }
    let output = realtime(&["render", "nowhere.yaml"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("nowhere.yaml: cannot be read"), "{}", stderr(&output));
}

#[test]
fn a_platform_policy_that_cannot_be_used_ends_the_operator_with_file_line_key_and_exit_code_2() {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().expect("a file");
    std::fs::write(file.path(), "rules:\n  - namespaces: [a]\n    region: [eu-west-1]\n").expect("written");
    let path = file.path().display().to_string();
    for (path, parts) in [
        (path.as_str(), &["rules[0]: unknown field `region`", "at line 3", "did you mean `regions`?"][..]),
        ("nowhere.yaml", &["nowhere.yaml: cannot be read"]),
    ] {
        let arguments = ["operator", "--pod", "o", "--address", "127.0.0.1", "--platform-policy", path];
        let output = realtime(&arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        for part in [path].iter().chain(parts) {
            assert!(stderr(&output).contains(part), "{part}: {}", stderr(&output));
        }
    }
}

#[test]
fn an_endpoint_that_the_cluster_does_not_allow_is_reported_with_exit_code_2() {
    let file = manifest("url: https://", "url: http://");
    let path = file.path().display().to_string();
    for arguments in [&["render", &path][..], &["rehearse", &path, "--once"][..]] {
        let output = realtime(arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let says = "RealtimeApp shop: spec.webhooks[0].url gets no webhook from cluster eu: ";
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
}

#[test]
fn the_example_of_a_platform_policy_is_accepted() {
    let example = read_file("examples/platform-policy.yaml");
    let object: serde_json::Value = serde_yaml::from_str(&example).expect("a ConfigMap");
    let text = object["data"]["policy.yaml"].as_str().expect("a policy");
    realtime_operator::desired::PlatformPolicy::parse("policy.yaml", text).expect("a policy");
}

#[test]
fn cost_prints_the_bill_of_a_load_and_refuses_a_wrong_price_list() {
    let load = ["--events-per-second", "1000", "--event-bytes", "300"];
    let prices = ["cost", "examples/eu.yaml", "--prices", "examples/cost/prices.yaml"];
    let output = realtime(&[&prices[..], &load, &["-o", "json"]].concat(), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!((&report["cluster"], &report["shardsNeeded"]), (&"channels/eu".into(), &1.0.into()));
    // 730 stream hours, and 2,628 million records of 1 KiB written and read.
    let expected = 730.0 * 0.04 + 2_628e6 * 1024.0 / (1024.0 * 1024.0 * 1024.0) * 0.12;
    let found = report["perMonth"].as_f64().expect("a number");
    assert!((found - expected).abs() < 0.01, "{found} instead of {expected}");
    let warning = report["warnings"][0].as_str().expect("a warning");
    assert_eq!(warning, "the prices are those of us-east-1, the stream is in eu-west-1");

    let text = stdout(&realtime(&[&prices[..], &load].concat(), &[]));
    assert!(text.contains("stream hours") && text.contains("per million events"), "{text}");

    let wrong = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(wrong.path(), "region: us-east-1\nshardHours: 1\n").expect("written");
    let path = wrong.path().display().to_string();
    let output = realtime(&[&["cost", "examples/eu.yaml", "--prices", path.as_str()][..], &load].concat(), &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("shardHours"), "{}", stderr(&output));
}

#[test]
fn render_prints_what_a_manifest_becomes_and_no_secret() {
    let output = realtime(&["render", "examples/eu.yaml"], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for part in ["kind: Deployment", "REALTIME_WEBHOOKS", "eu-sockjs", "eu-apps-f", "secretKeyRef"] {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn crds_are_printed_as_three_documents() {
    let output = realtime(&["crd"], &[]);
    assert_eq!(stdout(&output).matches("kind: CustomResourceDefinition").count(), 3);
}

#[cfg(feature = "rehearsal")]
#[test]
fn a_port_in_use_is_reported() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let output = realtime(&["rehearse", "examples/eu.yaml", "--port", &port], &[]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(
        stderr(&output).contains(&format!("port {port} is taken: choose another with --port")),
        "{}",
        stderr(&output)
    );
}

#[cfg(feature = "rehearsal")]
#[test]
fn a_server_that_refuses_to_start_is_the_verdict() {
    let output =
        realtime(&["rehearse", "examples/eu.yaml", "--once", "-o", "json", "--edit", "sockjs:REALTIME_WEBHOOKS="], &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let verdict: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("json");
    assert_eq!(verdict["reason"], "ConfigurationRefused");
    let message = verdict["message"].as_str().expect("a message");
    assert!(message.contains("REALTIME_WEBHOOKS is ``: write one of kinesis, off"), "{message}");
}

#[cfg(feature = "rehearsal")]
#[test]
fn an_invalid_edit_is_reported() {
    let output = realtime(&["rehearse", "examples/eu.yaml", "--edit", "nobody:A=b"], &[]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("websocket, sockjs, edge, dispatcher"), "{}", stderr(&output));
}
