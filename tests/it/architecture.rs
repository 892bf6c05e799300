//! Which file may import which: rooms import downwards only, files in no circle, and each client has its rooms.
//!
//! A file imports another when a path in it, through whatever re-exports, ends at an item that the other defines.
//! Declarations (`mod x;`), re-exports and a `mod.rs` that uses what is below it make no circle.

mod checks;
mod graph;
mod paths;
mod reader;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::OnceLock;

use graph::Graph;

use crate::source_tree::{read_rust_files, read_sources};

/// Rooms by floor, lowest first: a room imports only from floors below its own.
struct Floors {
    /// The folder whose rooms these are, with `/` at its end; empty for `src/` itself.
    folder: &'static str,
    floors: &'static [&'static [&'static str]],
}

/// The floors of `src/`. A folder or file of `src/` that is not here fails the test.
const FLOORS: Floors = Floors {
    folder: "",
    floors: &[
        &["config"],
        &["protocol", "api", "process"],
        &["kinesis", "bus", "kubernetes", "desired", "gate", "migration"],
        &["edge", "dispatcher", "prober"],
        &["operator", "rehearsal", "bench"],
        &["cli"],
    ],
};

/// The floors inside the edge.
const EDGE_FLOORS: Floors = Floors {
    folder: "edge/",
    floors: &[
        &["error", "close_reason", "drop_reason", "connection_log"],
        &["metrics"],
        &["apps"],
        &["intake"],
        &["session"],
        &["recorder"],
        &["hub"],
        &["pusher"],
        &["transport"],
        &["relay", "http_api"],
        &["http"],
        &["server"],
    ],
};

/// A type or function that stands for a client, by every path of its crate that leads to it, and the rooms that may use
/// it. A path of one part is a whole crate.
type Client = (&'static [&'static str], &'static [&'static str]);

const CLIENTS: &[Client] = &[
    (&["aws_sdk_kinesis"], &["kinesis"]),
    (&["aws_config"], &["kinesis"]),
    (&["aws_smithy_http_client"], &["kinesis"]),
    (&["kube::Client", "kube::client::Client"], &["kubernetes", "operator", "cli"]),
    (&["kube::Api", "kube::api::Api"], &["kubernetes", "operator", "cli"]),
    (&["reqwest"], &["prober", "rehearsal"]),
    // One set-up; names of endpoints, and the authoritative servers of a move's zone.
    (&["hickory_resolver"], &["process", "dispatcher", "operator"]),
    (&["tokio_rustls"], &["dispatcher", "prober"]),
    (
        &[
            "tokio_tungstenite::client_async",
            "tokio_tungstenite::client_async_with_config",
            "tokio_tungstenite::connect_async",
            "tokio_tungstenite::connect_async_with_config",
        ],
        &["prober"],
    ),
    (&["ferrokinesis"], &["rehearsal"]),
    (&["fred"], &["bus"]),
];

/// Files that work on the validated cluster. What they import of `api` would be a part of the raw manifest.
const AFTER_VALIDATION: &[&str] = &[
    "desired/cluster.rs",
    "desired/environment.rs",
    "desired/render/",
    "operator/pods.rs",
    "prober/plan.rs",
    "rehearsal/kubelet_double.rs",
    "rehearsal/overrides.rs",
    "rehearsal/page.rs",
];

/// Lines of a file without its tests.
const FILE_LINES_MAX: usize = 500;

/// Lines of a function, from its signature to its end.
const FUNCTION_LINES_MAX: usize = 100;

/// Files in circles today, one a line: a list that only gets shorter.
const CIRCLES_FILE: &str = "tests/it/circles.txt";

/// The graph of `src/`, made once.
fn source_graph() -> &'static Graph {
    static GRAPH: OnceLock<Graph> = OnceLock::new();
    GRAPH.get_or_init(|| Graph::parse(&read_sources()))
}

fn assert_none(wrong: impl IntoIterator<Item = impl AsRef<str>>) {
    let wrong: Vec<String> = wrong.into_iter().map(|line| line.as_ref().to_owned()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_room_stands_on_a_floor() {
    assert_none(source_graph().unknown_rooms(&FLOORS));
}

#[test]
fn a_room_imports_only_from_floors_below() {
    assert_none(source_graph().upward_imports(&FLOORS));
}

#[test]
fn a_room_of_the_edge_imports_only_from_floors_below() {
    assert_none(source_graph().unknown_rooms(&EDGE_FLOORS));
    assert_none(source_graph().upward_imports(&EDGE_FLOORS));
}

#[test]
fn clients_stay_in_their_rooms() {
    assert_none(source_graph().misplaced_clients(CLIENTS));
    for client in CLIENTS {
        let nobody = [(client.0, &[][..])];
        assert!(!source_graph().misplaced_clients(&nobody).is_empty(), "no room uses `{}`: strike it out", client.0[0]);
    }
}

#[test]
fn files_have_one_concern_and_so_few_lines() {
    assert_none(source_graph().long_files());
    let tests = read_rust_files("tests/it").into_iter().map(|(path, text)| (path, text.lines().count()));
    let long = tests.filter(|(_, lines)| *lines > FILE_LINES_MAX);
    assert_none(long.map(|(path, lines)| format!("tests/it/{path}: {lines} lines, at most {FILE_LINES_MAX}")));
}

#[test]
fn functions_have_one_concern_and_so_few_lines() {
    assert_none(source_graph().long_functions());
}

#[test]
fn nothing_after_validation_reads_a_manifest() {
    assert_none(source_graph().imports_of_room("api", AFTER_VALIDATION));
    for file in AFTER_VALIDATION {
        let exists = source_graph().files.iter().any(|found| found.path.starts_with(file));
        assert!(exists, "src/{file} does not exist: correct AFTER_VALIDATION");
    }
}

#[test]
fn servers_do_not_mention_the_prober() {
    assert_none(source_graph().files_that_mention("probe", &["edge", "dispatcher"]));
}

/// Differences between the circles and the committed list of their files.
fn compare_circles(circles: &[Vec<&str>], listed: &BTreeSet<&str>) -> Vec<String> {
    let today: BTreeSet<&str> = circles.iter().flatten().copied().collect();
    let mut wrong: Vec<String> = Vec::new();
    for circle in circles {
        let news: Vec<&str> = circle.iter().filter(|file| !listed.contains(*file)).copied().collect();
        if !news.is_empty() {
            wrong.push(format!("in a circle, and not before: {}; the circle: {}", news.join(", "), circle.join(", ")));
        }
    }
    for file in listed.difference(&today) {
        wrong.push(format!("src/{file} is in no circle any more: strike it out in {CIRCLES_FILE}"));
    }
    wrong
}

#[test]
fn no_more_files_are_in_circles() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(CIRCLES_FILE);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let listed: BTreeSet<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let circles = source_graph().circles();
    for circle in &circles {
        println!("circle of {}: {}", circle.len(), circle.join(", "));
    }
    let today: BTreeSet<&str> = circles.iter().flatten().copied().collect();
    // A renamed file takes the place of its old name; the list never grows.
    if std::env::var_os("UPDATE_LIMITS").is_some() && (text.is_empty() || today.len() <= listed.len()) {
        let head =
            "# Files of src/ that import each other in a circle. `UPDATE_LIMITS=1 cargo test --test it` strikes out.\n";
        let lines: Vec<&str> = today.iter().copied().collect();
        std::fs::write(&path, format!("{head}{}\n", lines.join("\n"))).expect("the list of circles");
        return;
    }
    assert_none(compare_circles(&circles, &listed));
}
