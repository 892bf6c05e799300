//! The benchmark, small: every figure is there, and what is counted is counted.

use std::process::Command;

use realtime_operator::bench::{Sequence, Tally};
use serde_json::Value;

#[test]
fn a_small_run_has_every_figure_and_loses_no_event() {
    let output = Command::new(env!("CARGO_BIN_EXE_realtime"))
        .args(["bench", "edge", "-o", "json"])
        // Long enough for two idle polls.
        .args(["--sockets", "20", "--seconds", "1", "--rounds", "1", "--polling", "26"])
        .env_clear()
        .output()
        .expect("the binary runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    let figures = report["figures"].as_array().expect("figures");
    let standing = |id: &str| {
        let figure = figures.iter().find(|figure| figure["id"] == id);
        figure.and_then(|figure| figure["standing"].as_str()).unwrap_or_else(|| panic!("{id}: {report:#}"))
    };
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
    let missed = figures.iter().any(|figure| figure["standing"] == "missed");
    let expected = if report["void"] == true { 2 } else { i32::from(missed) };
    assert_eq!(output.status.code(), Some(expected), "{stderr}");
    assert!(stderr.contains("round 1 of 1"), "progress is told: {stderr}");
}

#[test]
fn a_broken_sequence_is_told() {
    let mut sequence = Sequence::default();
    for number in [0, 1, 3, 3, 4] {
        sequence.take(number);
    }
    assert_eq!(sequence.end(6), Tally { delivered: 5, missed: 2, repeated: 1 });
}

#[test]
fn a_peer_that_is_not_there_is_told_with_what_to_do() {
    for peer in ["sockudo=/nowhere/sockudo", "other=/bin/true", "sockudo"] {
        let output = Command::new(env!("CARGO_BIN_EXE_realtime")).args(["bench", "edge", "--peer", peer]).output();
        let output = output.expect("the binary runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("edge-against-sockudo") || stderr.contains("sockudo=PATH"), "{stderr}");
    }
}
