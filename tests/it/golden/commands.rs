//! Output of the program: its commands, options, exit codes, rendered objects and verdicts.

use super::*;
use crate::cli::realtime;

/// Runs the program without this machine's settings: its exit code, and what it prints.
fn run_program(arguments: &[&str]) -> (Option<i32>, String) {
    let output = realtime(arguments, &[("KUBECONFIG", "/nowhere")]);
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Names, labels, annotations, variables, ports and volumes of everything that a cluster becomes.
#[test]
fn rendered_objects() {
    let (code, objects) = run_program(&["render", "examples/eu.yaml"]);
    golden("render-eu.yaml", &format!("exit {code:?}\n{objects}"));
}

/// The names below `Commands:` of a help.
fn subcommands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    // A name is indented by two; the lines of its explanation by more.
    let entries = listed.take_while(|line| line.starts_with("  ")).filter(|line| !line.starts_with("   "));
    entries.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[cfg(all(feature = "rehearsal", feature = "bench"))]
#[test]
fn names_of_commands() {
    let (_, help) = run_program(&["--help"]);
    golden("commands.txt", &format!("{}\n", subcommands(&help).join("\n")));
}

#[cfg(all(feature = "rehearsal", feature = "bench"))]
#[test]
fn options_of_commands() {
    let mut text = String::new();
    let mut commands = vec![Vec::new()];
    while let Some(command) = commands.pop() {
        let arguments: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let (_, help) = run_program(&arguments);
        let below = subcommands(&help).into_iter().filter(|name| name != "help");
        commands.extend(below.map(|name| [command.clone(), vec![name]].concat()));
        writeln!(text, "== {}", [vec!["realtime".to_owned()], command].concat().join(" ")).expect("written");
        // The end of the name of an option or argument is where its explanation is set off, or the line.
        for option in help.lines().map(str::trim_start).filter(|line| line.starts_with(['-', '<'])) {
            writeln!(text, "{}", option.split("  ").next().unwrap_or_default()).expect("written");
        }
    }
    assert!(text.contains("--once") && text.contains("== realtime bench edge"), "{text}");
    golden("options.txt", &text);
}

/// The page that a pull request shows: the variable of the outage is its first line.
#[test]
fn review_of_a_migration() {
    let fixtures = ["tests/fixtures/migration/source.yaml", "tests/fixtures/migration/target.yaml"];
    let (code, page) = run_program(&[&["migrate", "review"], &fixtures[..]].concat());
    let first = page.lines().find(|line| line.starts_with("| W"));
    assert!(first.is_some_and(|line| line.contains("`sockjs/REALTIME_WEBHOOKS` | `kinesis` | `off`")), "{page}");
    golden("review.md", &format!("{page}\nexit {code:?}\n"));
}

#[test]
fn exit_codes() {
    let mut text = String::new();
    for arguments in [
        &["render", "examples/eu.yaml"][..],
        &["render", "nowhere.yaml"],
        &["crd"],
        &["crd", "--directory", "/nowhere"],
        &["variables"],
        &["limits"],
        &["reasons"],
        &["status"],
        &["fleet"],
        &["fleet", "nowhere.yaml"],
        &["fleet", "tests/fixtures/migration/source.yaml"],
        &["fleet", "tests/fixtures/migration/target.yaml"],
        &["snapshot"],
        &["snapshot", "eu", "--key", "nowhere"],
        &["migrate", "review", "tests/fixtures/migration/source.yaml", "tests/fixtures/migration/target.yaml"],
        &["migrate", "review", "nowhere.yaml", "nowhere.yaml"],
        &["diff"],
        &["diff", "nowhere.yaml"],
        &["diff", "examples/eu.yaml"],
        &["migrate", "plan", "examples/migration.yaml"],
        &["migrate", "plan", "examples/eu.yaml"],
        &["migrate", "init"],
        &["migrate", "prepare", "examples/migration.yaml", "--source-host", "a.test", "--owner", "ingress/a"],
        &["migrate", "prepare", "examples/migration.yaml", "--source-host", "a.test", "--owner", "a"],
        &["prove"],
        &["prove", "eu"],
        &["check"],
        &["check", "nowhere.yaml"],
        &["replay"],
        &["replay", "--since", "yesterday", "--stream", "s", "--region", "r", "--apps", "/nowhere"],
        &["operator"],
        &["operator", "--pod", "operator", "--address", "127.0.0.1"],
        &["edge"],
        &["dispatcher"],
        &["nonsense"],
    ] {
        writeln!(text, "{:?} {}", run_program(arguments).0, arguments.join(" ")).expect("written");
    }
    golden("exit-codes.txt", &text);
}

/// The verdict of a rehearsal, without its times and without its text for people.
#[cfg(feature = "rehearsal")]
#[test]
fn verdicts_as_json() {
    let mut text = String::new();
    for more in [&[][..], &["--edit", "sockjs:REALTIME_WEBHOOKS="]] {
        let (code, line) = run_program(&[&["rehearse", "examples/eu.yaml", "--once", "-o", "json"], more].concat());
        let mut verdict: serde_json::Value = serde_json::from_str(&line).expect("json");
        assert!(verdict["message"].is_string() && verdict["elapsedMs"].is_u64(), "{line}");
        verdict["message"] = "<text>".into();
        verdict["elapsedMs"] = 0.into();
        for transport in verdict["transports"].as_array_mut().expect("a list") {
            for (_, latency) in transport["latencyMs"].as_object_mut().expect("latencies") {
                assert!(latency.is_u64(), "{line}");
                *latency = 0.into();
            }
        }
        writeln!(text, "exit {code:?} {verdict}").expect("written");
    }
    golden("verdicts.txt", &text);
}
