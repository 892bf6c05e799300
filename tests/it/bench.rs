//! The benchmark, small: every figure is there, and what is counted is counted.

use std::process::Command;

use realtime_operator::bench::{DeliveryTally, EventSequence};
use serde_json::Value;

use crate::golden::golden;

/// The form of a report: its keys, and the rows with their units and targets, without measured values.
fn describe_form(report: &Value) -> String {
    let object = report.as_object().expect("an object");
    let mut lines: Vec<String> = object
        .iter()
        .map(|(key, value)| {
            let kind = match value {
                Value::Null => "null",
                Value::Bool(_) => "bool",
                Value::Number(_) => "number",
                Value::String(_) => "string",
                Value::Array(_) => "array",
                Value::Object(_) => "object",
            };
            format!("{key}: {kind}")
        })
        .collect();
    for figure in report["figures"].as_array().expect("figures") {
        let keys: Vec<&str> = figure.as_object().expect("an object").keys().map(String::as_str).collect();
        let text = |key: &str| figure[key].as_str().expect("a text").to_owned();
        lines.push(format!("{} | {} | {} | {} | {keys:?}", text("id"), text("name"), text("unit"), figure["target"]));
    }
    lines.join("\n") + "\n"
}

/// The report of one run, and how the run ended.
struct BenchRun {
    report: Value,
    code: Option<i32>,
    stderr: String,
}

impl BenchRun {
    fn run(command: &mut Command) -> Self {
        let output = command.output().expect("the binary runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let report = serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {stderr}"));
        let report = report.expect("a report");
        Self { report, code: output.status.code(), stderr }
    }

    fn figures(&self) -> &[Value] {
        self.report["figures"].as_array().expect("figures")
    }

    /// Whether a figure meets its target, in one word, and its value.
    fn figure(&self, id: &str) -> (&str, Option<f64>) {
        let figure = self.figures().iter().find(|figure| figure["id"] == id);
        let figure = figure.ok_or_else(|| format!("{id}: {:#}", self.report)).expect("the figure");
        (figure["standing"].as_str().expect("a word"), figure["value"].as_f64())
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_realtime"));
    command.env_clear();
    command
}

#[test]
fn a_small_run_has_every_figure_and_loses_no_event() {
    let run = BenchRun::run(
        program()
            .args(["bench", "edge", "-o", "json"])
            // Long enough for two idle polls.
            .args(["--sockets", "20", "--seconds", "1", "--rounds", "1", "--polling", "26"]),
    );
    let (report, figures) = (&run.report, run.figures());
    let standing = |id: &str| run.figure(id).0;
    for id in ["fan_missed", "fan_repeated", "crowd_missed", "crowd_repeated", "polling_s"] {
        assert_eq!(standing(id), "met", "{id}: {report:#}");
    }
    // What so few sockets hold or cost says nothing; that it was measured does.
    for id in ["plain_kib", "member_kib", "back", "session_kib", "fan_bare_ratio"] {
        assert!(["met", "missed"].contains(&standing(id)), "{id}: {report:#}");
    }
    for id in ["accept_us", "fan_us", "fan_bare_us", "fan_p50_ms", "fan_p99_ms", "one_ms", "echo_ms", "distance_ms"] {
        assert_eq!(standing(id), "told", "{id}: {report:#}");
    }
    for id in ["plain_ratio", "member_ratio", "accept_ratio", "fan_peer_ratio", "fan_p99_ratio"] {
        assert_eq!(standing(id), "notMeasured", "{id}: there is no peer");
    }
    for figure in figures {
        let rounds = figure["rounds"].as_array().expect("rounds");
        assert_eq!(figure["value"].is_number(), !rounds.is_empty(), "{figure}");
    }
    golden("bench-edge.txt", &describe_form(report));
    let missed = figures.iter().any(|figure| figure["standing"] == "missed");
    let expected = if report["void"] == true { 2 } else { i32::from(missed) };
    assert_eq!(run.code, Some(expected), "{}", run.stderr);
    assert!(run.stderr.contains("round 1 of 1"), "progress is reported: {}", run.stderr);
}

#[test]
fn two_edges_over_a_redis_have_every_figure_and_lose_no_event() {
    // The program takes its own place as a former build.
    let former = format!("realtime={}", env!("CARGO_BIN_EXE_realtime"));
    let directory = tempfile::tempdir().expect("a directory");
    let page = directory.path().join("page.md");
    let run = BenchRun::run(
        program()
            .args(["bench", "edge", "--pods", "2", "-o", "json", "--peer", &former])
            .args(["--sockets", "24", "--seconds", "1", "--rounds", "1", "--write"])
            .arg(&page)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default()),
    );
    let (report, figures) = (&run.report, run.figures());
    let found = |id: &str| run.figure(id);
    for id in ["missed", "repeated", "stayed", "removed_missed", "removed_repeated", "others_missed"] {
        assert_eq!(found(id), ("met", Some(0.0)), "{id}: {report:#}");
    }
    // Three sides: 50 events to 24 subscribers, 198 to 8 of each of 3 channels, 99 likewise.
    assert_eq!(found("delivered").1, Some(f64::from(3 * (50 * 24 + 198 * 8 + 99 * 8))), "{report:#}");
    assert_eq!(found("removed").1, Some(24.0), "{report:#}");
    // What so little costs says nothing; that it was measured does.
    let measured = ["fan_ratio", "crowd_ratio", "private_pairs", "presence_pairs", "private_kib", "presence_kib"];
    for id in measured.into_iter().chain(["sweep_s", "churn_p99_ms", "back_s", "storm_p99_ms"]) {
        assert!(["met", "missed"].contains(&found(id).0), "{id}: {report:#}");
    }
    let busy = found("calm_busy").1.expect("a share") >= 60.0;
    assert_eq!(found("added_ms").0 == "notMeasured", busy, "{report:#}");
    assert!(figures.iter().any(|figure| figure["id"] == "sweep_block_ms"), "{report:#}");
    for id in [
        "sweep_longest_ms",
        "sweep_half_ms",
        "fan_redis_us",
        "crowd_redis_us",
        "calm_p99_ms",
        "one_ms",
        "member_kib",
        "left_kib",
        "dead_s",
        "churn_per_second",
        "fan_former_ratio",
        "crowd_former_ratio",
        "calm_former_ratio",
        "one_former_ratio",
    ] {
        assert_eq!(found(id).0, "told", "{id}: {report:#}");
    }
    assert!(
        report["peer"].as_str().is_some_and(|over| over.contains("Redis ") || over.contains("Valkey ")),
        "{report:#}"
    );
    assert_eq!((&report["pods"], &report["rounds"]), (&Value::from(2), &Value::from(1)));
    golden("bench-pods.txt", &describe_form(report));
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    assert_eq!(written.contains("| latency that the bus adds"), report["void"] == false, "{written}");
}

#[test]
fn a_small_run_of_the_pipeline_has_every_figure_and_loses_no_event() {
    let directory = tempfile::tempdir().expect("a directory");
    let page = directory.path().join("page.md");
    let run = BenchRun::run(
        program()
            .args(["bench", "pipeline", "--quick", "-o", "json", "--events", "600", "--rounds", "1", "--write"])
            .arg(&page),
    );
    let report = &run.report;
    let found = |id: &str| run.figure(id);
    for id in ["missed", "repeated", "dropped"] {
        assert_eq!(found(id), ("met", Some(0.0)), "{id}: {report:#}");
    }
    // Four times 600, in bursts and with transitions that come in pairs, and 100 a second for 2 s.
    assert!(found("delivered").1.is_some_and(|count| (2_600.0..2_900.0).contains(&count)), "{report:#}");
    // Two shards, each read four times a second at most.
    assert!(found("shard_reads").1.is_some_and(|reads| (1.0..=16_000.0).contains(&reads)), "{report:#}");
    assert!(found("records").1.is_some_and(|records| (1.0..=1_000.0).contains(&records)), "{report:#}");
    for figure in run.figures() {
        assert_ne!(figure["standing"], "notMeasured", "{figure}");
    }
    assert_eq!((&report["shards"], &report["endpoints"]), (&Value::from(2), &Value::from(3)));
    golden("bench-pipeline.txt", &describe_form(report));
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    assert_eq!(written.contains("| throughput, in batches |"), report["void"] == false, "{written}");
}

#[test]
fn a_run_of_several_edges_that_cannot_start_says_what_to_do() {
    let bin = env!("CARGO_BIN_EXE_realtime");
    for (arguments, part) in [
        (&["--pods", "2"][..], "apt-get install redis-server"),
        (&["--pods", "1"], "2..=16"),
        (&["--pods", "2", "--peer", "sockudo=/bin/true"], "compare with --peer realtime=PATH"),
    ] {
        let output = Command::new(bin).args(["bench", "edge"]).args(arguments).env("PATH", "/nowhere").output();
        let output = output.expect("the binary runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(part), "{arguments:?}: {stderr}");
    }
}

#[test]
fn missed_and_repeated_events_are_counted() {
    let mut sequence = EventSequence::default();
    for number in [0, 1, 3, 3, 4] {
        sequence.add_arrival(number);
    }
    assert_eq!(sequence.into_tally(6), DeliveryTally { delivered: 5, missed: 2, repeated: 1 });
}

#[test]
fn a_missing_peer_is_reported_with_what_to_do() {
    for (peer, part) in [
        ("sockudo=/nowhere/sockudo", "edge-against-sockudo"),
        ("realtime=/nowhere/realtime", "of another release build"),
        ("nchan=/nowhere/nginx", "edge-against-nchan"),
        ("other=/bin/true", "sockudo=PATH, nchan=PATH or realtime=PATH"),
        ("sockudo", "sockudo=PATH, nchan=PATH or realtime=PATH"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_realtime")).args(["bench", "edge", "--peer", peer]).output();
        let output = output.expect("the binary runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(part), "{peer}: {stderr}");
    }
}
