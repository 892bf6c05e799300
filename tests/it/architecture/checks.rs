//! Each check of the architecture fails for a source that breaks its rule.

use std::collections::BTreeSet;

use super::graph::Graph;
use super::{AFTER_VALIDATION, CLIENTS, EDGE_FLOORS, FILE_LINES_MAX, FLOORS, FUNCTION_LINES_MAX, compare_circles};

/// The paths that each file of some sources imports.
fn imported(sources: &[(&str, &str)]) -> Vec<String> {
    let graph = Graph::parse(sources);
    let mut imports = Vec::new();
    for (from, targets) in graph.file_imports().iter().enumerate() {
        imports.extend(targets.iter().map(|to| format!("{} > {}", graph.files[from].path, graph.files[*to].path)));
    }
    imports.sort();
    imports
}

#[test]
fn an_import_leads_to_the_file_that_defines_the_item() {
    let bus = ("bus/mod.rs", "mod memory; mod name; pub use memory::{Bus, close as end}; pub use name::*;");
    let memory = ("bus/memory.rs", "pub struct Bus; pub fn close() {} pub mod code { pub const GONE: u8 = 1; }");
    let name = ("bus/name.rs", "made! { Key }");
    let others = [("lib.rs", "pub mod bus; pub mod edge; pub mod kinesis;"), ("kinesis.rs", "pub struct Client;")];
    let of = |text| imported(&[bus, memory, name, others[0], others[1], ("edge.rs", text)]);
    let through_memory = ["edge.rs > bus/memory.rs"];
    assert_eq!(of("use crate::{bus::{Bus}, kinesis};"), through_memory);
    let nested = of("use crate::{bus::{self, memory::{code, self as m}}, kinesis::Client}; fn f() { bus::end() }");
    assert_eq!(nested, ["edge.rs > bus/memory.rs", "edge.rs > kinesis.rs"]);
    assert_eq!(of("use super::bus as b; type A = Vec<b::Bus>;"), through_memory);
    assert_eq!(of("use crate::bus::*; fn f() { end() }"), through_memory);
    assert_eq!(of("fn f() { log!(\"{}\", crate::bus::Bus::new()) }"), through_memory);
    assert_eq!(of("fn f() { use crate::bus::Bus as _; }"), through_memory);
    assert_eq!(of("mod inner { fn f() -> super::super::bus::Bus { } }"), through_memory);
    assert_eq!(of("use crate::bus::memory::code; const A: u8 = code::GONE;"), through_memory);
    assert_eq!(of("fn f() { kinesis::open() } use crate::{bus::end as kinesis, kinesis};"), nested);
    assert_eq!(of("use crate::bus::name::Key;"), ["edge.rs > bus/name.rs"]);
    for none in [
        "use crate::bus;",
        "pub use crate::bus::Bus;",
        "use std::fmt; use Bus; pub(in crate::bus) fn f() {}",
        "fn f(end: u8) { end }",
    ] {
        assert_eq!(of(none), [""; 0], "{none}");
    }
}

#[test]
fn a_circle_is_seen_and_has_to_be_on_the_list() {
    let circle = [
        ("bus/mod.rs", "mod a; mod b; mod c; pub struct Bus; fn f() { a::f() }"),
        ("bus/a.rs", "use super::{b::g, Bus}; pub fn f() {}"),
        ("bus/b.rs", "pub fn g() { super::c::h() }"),
        ("bus/c.rs", "use super::a; pub fn h() { a::f() }"),
    ];
    let graph = Graph::parse(&circle);
    let circles = graph.circles();
    assert_eq!(circles, [["bus/a.rs", "bus/b.rs", "bus/c.rs"]], "a mod.rs may use its children");
    assert_eq!(compare_circles(&circles, &BTreeSet::from(["bus/a.rs", "bus/b.rs", "bus/c.rs"])), [""; 0]);
    let wrong = compare_circles(&circles, &BTreeSet::from(["bus/a.rs", "bus/b.rs", "bus/d.rs"]));
    assert!(wrong.len() == 2 && wrong[0].contains("not before: bus/c.rs;") && wrong[1].contains("bus/d.rs is in no"));
    assert!(Graph::parse(&circle[..3]).circles().is_empty());
}

#[test]
fn an_import_upwards_is_seen() {
    let of = |path, text| {
        let rooms = [("edge/mod.rs", "mod a; pub struct Edge;"), ("bus/mod.rs", "pub struct Bus;")];
        let sources = [("lib.rs", ""), ("config.rs", ""), rooms[0], rooms[1], (path, text)];
        Graph::parse(&sources).upward_imports(&FLOORS).len()
    };
    assert_eq!(of("bus/a.rs", "use crate::{config::{A, B}, edge::Edge};"), 1);
    assert_eq!(of("bus/a.rs", "pub use crate::edge::Edge;"), 1, "a re-export too");
    assert_eq!(of("dispatcher/a.rs", "fn f(_: crate::edge::Edge) {}"), 1, "of the same floor");
    assert_eq!(of("edge/a.rs", "use super::Edge; use crate::bus::Bus;"), 0);
    assert_eq!(of("main.rs", "fn main() { realtime_operator::edge::run() }"), 0);
    assert_eq!(Graph::parse(&[("stray.rs", ""), ("cli/mod.rs", "")]).unknown_rooms(&FLOORS), BTreeSet::from(["stray"]));
}

#[test]
fn an_import_upwards_inside_the_edge_is_seen() {
    let edge = |session: &str| {
        let sources = [
            ("lib.rs", "mod edge;"),
            ("edge/mod.rs", "mod hub; mod metrics; mod session; pub use session::Session; pub struct Settings;"),
            ("edge/hub/mod.rs", "mod quota; pub use quota::Quota; use super::session::Session;"),
            ("edge/hub/quota.rs", "pub struct Quota; use super::super::metrics::Metrics;"),
            ("edge/metrics.rs", "pub struct Metrics; use crate::bus::Bus;"),
            ("edge/session/mod.rs", session),
            ("bus/mod.rs", "pub struct Bus;"),
        ];
        let graph = Graph::parse(&sources);
        assert_eq!(graph.unknown_rooms(&EDGE_FLOORS), BTreeSet::new());
        graph.upward_imports(&EDGE_FLOORS)
    };
    assert_eq!(edge("pub struct Session; use crate::edge::metrics::Metrics;"), BTreeSet::new());
    let upward = edge("pub struct Session;\nuse super::hub::Quota;");
    assert!(upward.iter().eq(["src/edge/session/mod.rs:2: `super::hub::Quota`: `session` must not import `hub`"]));
    assert!(edge("pub struct Session; use super::Settings;").iter().any(|wrong| wrong.contains("the module above")));
    let stray = Graph::parse(&[("edge/mod.rs", ""), ("edge/drain.rs", ""), ("edge/hub.rs", "")]);
    assert_eq!(stray.unknown_rooms(&EDGE_FLOORS), BTreeSet::from(["drain"]));
}

#[test]
fn a_client_is_recognised_however_it_is_imported() {
    let of = |text| {
        let below = [("bus/mod.rs", "pub use fred as redis;"), ("kubernetes/mod.rs", "pub use kube::Client;")];
        let sources = [("lib.rs", ""), below[0], below[1], ("edge/mod.rs", text)];
        Graph::parse(&sources).misplaced_clients(CLIENTS).len()
    };
    assert!(of("use kube::{ResourceExt, Client};") == 1 && of("use kube::{api::{Api as X, Patch}};") == 1);
    assert!(of("use kube as k; fn f(_: k::api::Api<u8>) {}") == 1 && of("fn f(_: kube::Client) {}") == 1);
    assert!(of("use kube::client::*; fn f(_: Client) {}") == 1 && of("use crate::kubernetes::Client;") == 1);
    assert!(of("use crate::bus::redis; fn f() { redis::connect() }") >= 1 && of("use reqwest;") == 1);
    assert!(of("fn f() { spawn!(reqwest::get(1)) }") == 1 && of("use tokio_tungstenite::{connect_async};") == 1);
    assert_eq!(of("use kube::api::ApiResource; use tokio_tungstenite::WebSocketStream; fn reqwest() {}"), 0);
}

#[test]
fn a_manifest_that_is_read_after_validation_is_seen() {
    let of = |text: &str| {
        let api = [("api/mod.rs", "pub mod cluster; pub use cluster::Spec;"), ("api/cluster.rs", "pub struct Spec;")];
        let desired = [("desired/mod.rs", "pub use crate::api::Spec as Manifest;"), ("desired/render/pods.rs", text)];
        let sources = [("lib.rs", ""), api[0], api[1], desired[0], desired[1]];
        Graph::parse(&sources).imports_of_room("api", AFTER_VALIDATION).len()
    };
    assert!(of("use crate::api::cluster::Spec;") == 1 && of("use crate::api;") == 1);
    assert!(of("fn f(_: &crate::api::Spec) {}") == 1 && of("use super::super::Manifest;") == 1);
    assert_eq!(of("use super::super::ValidCluster; fn f(_: ValidCluster) {}"), 0);
}

#[test]
fn lengths_and_mentions_can_fail() {
    let lines = "let a = 1;\n".repeat(FUNCTION_LINES_MAX - 1);
    let of = |text: String| Graph::parse(&[("edge/a.rs", text)]);
    assert_eq!(of(format!("fn a() {{\n{lines}}}")).long_functions().len(), 1);
    assert_eq!(of(format!("impl A {{ fn a() {{\n{}}}\n}}", &lines[11..])).long_functions().len(), 0);
    let tests = |count: usize| format!("{}#[cfg(test)]\nmod tests {{\n}}\n", "fn a() {}\n".repeat(count));
    assert_eq!(of(tests(FILE_LINES_MAX)).long_files().len(), 0);
    assert_eq!(of(tests(FILE_LINES_MAX + 1)).long_files().len(), 1);
    let mentions = of("// A probe.\nfn a() {}".to_owned());
    assert_eq!(mentions.files_that_mention("probe", &["edge"]), [""; 0]);
    assert_eq!(of("fn a() { ask(\"Prober\") }".to_owned()).files_that_mention("probe", &["edge"]), ["edge/a.rs"]);
}
