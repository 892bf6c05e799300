//! Which room may import which: a room imports only from floors below it.

use std::fs;
use std::path::{Path, PathBuf};

/// The floors, lowest first. A folder of `src/` that is not here fails the test.
const FLOORS: &[&[&str]] = &[
    &["contract"],
    &["protocol", "api", "runtime"],
    &["kinesis", "bus", "kubernetes", "desired", "gate"],
    &["edge", "dispatcher", "probe"],
    &["operator", "rehearsal", "bench"],
    &["cli"],
];

/// Crates that stand for a client, and the rooms that may use them.
const CLIENTS: &[(&str, &[&str])] = &[
    ("aws_sdk_kinesis", &["kinesis"]),
    ("aws_config", &["kinesis"]),
    ("aws_smithy_http_client", &["kinesis"]),
    ("kube::Client", &["kubernetes", "operator", "cli"]),
    ("kube::Api", &["kubernetes", "operator", "cli"]),
    ("reqwest", &["dispatcher", "probe"]),
    ("tokio_tungstenite::client_async", &["probe"]),
    ("tokio_tungstenite::connect_async", &["probe"]),
    ("ferrokinesis", &["rehearsal"]),
    ("fred", &["bus"]),
];

/// Most lines of a file without its tests.
const MAX_LINES: usize = 500;

struct Source {
    path: PathBuf,
    room: String,
    /// Without the tests at its end and without comments.
    code: String,
    lines: usize,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of src/") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inside = path.strip_prefix(&root).expect("below src/");
                let folder = match inside.components().count() {
                    1 => String::new(),
                    _ => inside.components().next().expect("a part").as_os_str().to_string_lossy().into_owned(),
                };
                let text = fs::read_to_string(&path).expect("a source file");
                let body = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
                let code: Vec<&str> = body.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
                found.push(Source { path, room: folder, lines: body.lines().count(), code: code.join("\n") });
            }
        }
    }
    assert!(found.len() > 20, "the sources were found");
    found
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// Rooms that a piece of code imports: what follows `crate::` or the library's own name.
fn imports(code: &str) -> Vec<String> {
    ["crate::", "realtime_operator::"]
        .iter()
        .flat_map(|prefix| code.split(prefix).skip(1))
        .flat_map(|rest| {
            let names = rest.strip_prefix('{').map_or_else(
                || vec![rest],
                |group| group.split('}').next().unwrap_or_default().split(',').map(str::trim).collect(),
            );
            names
                .into_iter()
                .map(|name| name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>())
        })
        .filter(|name| floor(name).is_some())
        .collect()
}

#[test]
fn a_room_imports_only_from_floors_below() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !source.room.is_empty()) {
        let Some(own) = floor(&source.room) else {
            wrong.push(format!("{}: the room `{}` stands on no floor", source.path.display(), source.room));
            continue;
        };
        for import in imports(&source.code) {
            if import != source.room && floor(&import).is_some_and(|other| other >= own) {
                wrong.push(format!("{}: `{}` must not import `{import}`", source.path.display(), source.room));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn clients_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for source in &sources() {
        for (client, rooms) in CLIENTS {
            let used = source.code.match_indices(client).any(|(at, _)| {
                // `reqwest` also ends other words.
                !source.code[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            });
            if used && !rooms.contains(&source.room.as_str()) {
                wrong.push(format!("{}: `{client}` belongs to {}", source.path.display(), rooms.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_have_one_concern_and_so_few_lines() {
    let long: Vec<String> = sources()
        .iter()
        .filter(|source| source.lines > MAX_LINES)
        .map(|source| format!("{}: {} lines without tests, at most {MAX_LINES}", source.path.display(), source.lines))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn servers_cannot_tell_the_probe_from_a_customer() {
    let told: Vec<String> = sources()
        .iter()
        .filter(|source| ["edge", "dispatcher"].contains(&source.room.as_str()))
        .filter(|source| source.code.to_lowercase().contains("probe"))
        .map(|source| source.path.display().to_string())
        .collect();
    assert!(told.is_empty(), "these speak of the probe: {}", told.join(", "));
}

#[test]
fn the_check_of_imports_can_fail() {
    assert_eq!(imports("use crate::edge::Session;"), ["edge"]);
    assert_eq!(imports("use crate::{bus::Bus, kinesis};"), ["bus", "kinesis"]);
    assert_eq!(imports("realtime_operator::cli::run()"), ["cli"]);
    assert_eq!(imports("use std::fmt;"), [""; 0]);
}
