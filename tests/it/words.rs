//! The words of the program, counted: its names say an object beside a verb, its comments have a technical subject.
//!
//! Each measure has a goal and a limit; the limits, in `words_limits.txt`, only fall. The table is printed by
//! `cargo test --test it words -- --nocapture`, the offenders of a measure by `WORDS=functions` before it, and
//! `UPDATE_LIMITS=1` before it lowers the limits.

mod counter;
mod measures;

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use counter::count_sources;
use measures::{Figure, MEASURES, Tallies, Tally, Unit, read_limits, write_limits};

use crate::source_tree::{parse_sources, read_sources};

const LIMITS_FILE: &str = "tests/it/words_limits.txt";

/// Functions whose one word is the language's or the field's, and says enough.
const KNOWN_FUNCTIONS: &[&str] = &[
    "new",
    "default",
    "fmt",
    "from",
    "drop",
    "clone",
    "eq",
    "hash",
    "deref",
    "next",
    "main",
    "poll",
    "call",
    "try_from",
    "from_str",
    "as_str",
    "into",
    "len",
    "is_empty",
    "get",
    "run",
    "start",
    "build",
    "parse",
    "encode",
    "decode",
    "read",
    "write",
    "name",
    "push",
    "pop",
    "insert",
    "remove",
    "contains",
    "iter",
    "send",
    "recv",
    "close",
    "open",
    "serve",
    "reconcile",
    "validate",
    "apply",
];

/// Types whose one word is the language's, and clap's.
const KNOWN_TYPES: &[&str] = &["Error", "Result", "Err", "Output", "Target", "Item", "Response", "Future", "Arguments"];

const KNOWN_CONSTANTS: &[&str] = &["ALL"];

/// Modules whose constants are written with the module before them: `code::OVER_QUOTA`.
const QUALIFIED_MODULES: &[&str] = &["code", "name", "condition"];

/// Last words of a constant that is a `Duration`. Beside the bounds of a wait: `MAX` for the longest back-off, `WINDOW`
/// for the time over which something is counted, `AGE` for how old something may be.
const DURATION_SUFFIXES: &[&str] = &["TIMEOUT", "INTERVAL", "DELAY", "TTL", "BACKOFF", "GRACE", "MAX", "WINDOW", "AGE"];

/// First words of a sentence that has no technical noun for its subject.
const PRONOUNS: &[&str] = &["What", "Who", "Whose", "Whoever", "Those", "Where"];

/// Forms of a verb that stood for publish, report, notify, admit and more.
const TELL_FORMS: &[&str] = &["tell", "tells", "telling", "told"];

const FILLER_PREFIXES: &[&str] = &["get_", "do_", "handle_", "process_", "perform_"];
const FILLER_SUFFIXES: &[&str] = &["_data", "_info", "_value", "_inner"];

/// Words of a doc comment that only repeats a name.
const SHORT_COMMENT_WORDS: usize = 3;

/// Characters of a commit's subject.
const SUBJECT_CHARS_MAX: usize = 72;

/// Commits up to this one keep their subjects.
const FIRST_COMMIT: &str = "8cafedf";

fn count_subjects(log: &str) -> Tally {
    let mut tally = Tally::default();
    for (commit, subject) in log.lines().filter_map(|line| line.split_once(' ')) {
        let is_long = subject.chars().count() > SUBJECT_CHARS_MAX;
        tally.add(is_long, || format!("{commit}: {subject}"));
    }
    tally
}

/// Commits since [`FIRST_COMMIT`], or why they cannot be read: a copy of the sources has no history, a shallow clone
/// not enough.
fn read_log() -> Result<String, String> {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        let output = command.arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(arguments).output();
        let output = output.map_err(|error| format!("git does not start: {error}"))?;
        let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(printed.into_owned()) } else { Err(errors.trim().to_owned()) }
    };
    git(&["merge-base", "--is-ancestor", FIRST_COMMIT, "HEAD"])
        .map_err(|error| format!("no history since {FIRST_COMMIT} {error}"))?;
    git(&["log", "--no-merges", "--format=%h %s", &format!("{FIRST_COMMIT}..HEAD")])
}

fn table(tallies: &Tallies, limits: &BTreeMap<&'static str, Figure>) -> String {
    let mut text = format!("{:16}{:66}{:>8}{:>15}{:>7}{:>7}\n", "key", "measure", "now", "", "goal", "limit");
    for measure in MEASURES {
        let Some(tally) = tallies.0.get(measure.key) else { continue };
        let limit = limits.get(measure.key).map_or_else(|| "-".to_owned(), |limit| measure.show(*limit));
        let (now, goal) = (measure.show(measure.figure(tally)), measure.show(measure.goal));
        let of = format!("{} of {}", tally.offenders.len(), tally.total);
        let (key, title) = (measure.key, measure.title);
        let written = writeln!(text, "{key:16}{title:66}{now:>8}{of:>15}{goal:>7}{limit:>7}");
        assert!(written.is_ok(), "a string takes every row");
    }
    text
}

#[test]
fn the_words_of_the_program_get_no_worse() {
    let mut tallies = count_sources(&parse_sources(&read_sources()));
    match read_log() {
        Ok(log) => _ = tallies.0.insert("subjects", count_subjects(&log)),
        Err(reason) => println!("commit subjects are not counted: {reason}"),
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(LIMITS_FILE);
    let mut limits = read_limits(&std::fs::read_to_string(&path).unwrap_or_default());
    if let Ok(key) = env::var("WORDS") {
        for (_, tally) in tallies.0.iter().filter(|(known, _)| key == "all" || **known == key) {
            println!("{}", tally.offenders.join("\n"));
        }
    }
    let counted = MEASURES.iter().filter_map(|measure| Some((measure, tallies.0.get(measure.key)?)));
    if env::var_os("UPDATE_LIMITS").is_some() {
        for (measure, tally) in counted.clone() {
            let old = limits.get(measure.key).copied();
            limits.insert(measure.key, measure.lowered(measure.figure(tally), old));
        }
        std::fs::write(&path, write_limits(&limits)).expect("the file of limits");
    }
    println!("{}", table(&tallies, &limits));
    let wrong: Vec<String> = counted
        .filter_map(|(measure, tally)| measure.check(measure.figure(tally), limits.get(measure.key).copied()))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The offenders of a measure in one file, without their places, and the total.
fn offenders(key: &str, text: &str) -> (Vec<String>, usize) {
    let tallies = count_sources(&parse_sources(&[("edge/a.rs", text)]));
    let tally = tallies.0.get(key);
    let names = tally.map(|tally| tally.offenders.iter().map(|line| line.split_once(": ").unwrap_or_default().1));
    (names.into_iter().flatten().map(str::to_owned).collect(), tally.map_or(0, |tally| tally.total))
}

#[test]
fn functions_are_counted_but_for_those_that_others_named() {
    let text = "struct Lease { owner: u8 } trait Bus { fn leave(); }
        impl Lease { fn owner(&self) {} fn age(&self) {} fn new() {} fn renew_all(&self) { fn inner() {} } }
        impl Bus for Lease { fn leave() {} } impl fmt::Display for Lease { fn fmt() {} fn width() {} }
        fn owner() {} fn publish_event() {} #[test] fn holds() {} #[cfg(test)] mod tests { fn helper() {} }";
    let (names, total) = offenders("functions", text);
    assert_eq!(names, ["leave", "age", "inner", "leave", "owner"]);
    assert_eq!(total, 7);
    let (names, total) = offenders("repeated_types", "impl KubeLease { fn renew_lease(&self) {} fn renew(&self) {} }");
    assert_eq!((names, total), (vec!["renew_lease of KubeLease".to_owned()], 2));
    let (names, total) = offenders("fillers", "fn get_all() {} fn forget_all() {} fn app_data() {}");
    assert_eq!((names, total), (vec!["get_all".to_owned(), "app_data".to_owned()], 3));
}

#[test]
fn types_are_counted() {
    let text = "pub struct SockJs; pub enum Standing {} type Error = u8; trait Door {} mod b { pub struct Standing; }
        impl Iterator for SockJs { type Item = u8; } struct HTTP; #[cfg(test)] struct Fake;";
    assert_eq!(offenders("types", text).0, ["Standing", "Door", "Standing", "HTTP"]);
    assert_eq!(offenders("types", text).1, 5);
    assert_eq!(offenders("ambiguous_types", text).0, ["Standing", "Standing"]);
    assert_eq!(offenders("ambiguous_types", "pub struct A; struct B; mod b { struct B; }").0, [""; 0]);
}

#[test]
fn constants_are_counted() {
    let text = "const GRACE: Duration = X; pub const FAREWELL: std::time::Duration = X; const QUEUE_MAX: usize = 1;
        mod code { pub const OTHER: u16 = 1; } impl A { const ALL: u8 = 1; const FIRST: u8 = 1; } static SHARED: u8 = 1;
        impl Default for A { const B: u8 = 1; } fn f() { const RETRY_DELAY: Duration = X; } const _: () = ();";
    assert_eq!(offenders("constants", text).0, ["GRACE", "FAREWELL", "FIRST", "SHARED"]);
    assert_eq!(offenders("constants", text).1, 6);
    assert_eq!(offenders("durations", text), (vec!["FAREWELL".to_owned()], 3));
}

#[test]
fn comments_are_counted_by_sentence() {
    let text = "//! What this is: a file. Whoever reads it is told more.\n//!\n//! Where it ends, e.g. here.\n
        /// The shard.\n struct A {\n /// Its name,\n /// in lower case.\n name: u8, }
        made! {\n /// Those.\n B }\n /// # Errors\n /// ```\n /// What?\n /// ```\n /// - Nobody tells. Whatever.\n fn f() {}";
    let (comments, total) = offenders("short_comments", text);
    assert_eq!((comments, total), (vec!["The shard.".to_owned(), "Those.".to_owned()], 5));
    let (pronouns, total) = offenders("pronouns", text);
    assert_eq!(
        pronouns,
        ["What this is: a file.", "Whoever reads it is told more.", "Where it ends, e.g. here.", "Those."]
    );
    assert_eq!(total, 8);
    assert_eq!(offenders("tell", text).0, ["Whoever reads it is told more.", "Nobody tells."]);
}

#[test]
fn long_subjects_are_counted() {
    let log = format!("1a edge: admit {}\n2b edge: {}\n", "x".repeat(60), "ü".repeat(67));
    let tally = count_subjects(&log);
    assert_eq!((tally.offenders.len(), tally.total), (1, 2));
    assert!(tally.offenders[0].starts_with("2b: edge"), "72 characters are allowed");
}

#[test]
fn a_limit_only_falls() {
    let [share, count] = [&MEASURES[0], &MEASURES[5]];
    assert_eq!((share.unit, count.unit), (Unit::Share, Unit::Count));
    let over = share.check(803, Some(802)).unwrap_or_default();
    assert!(over.contains("80.3, at most 80.2. `WORDS=functions`"), "{over}");
    assert_eq!(share.check(797, Some(802)), None);
    let under = share.check(796, Some(802)).unwrap_or_default();
    assert!(under.contains("Write `functions 79.6` into"), "{under}");
    assert_eq!(share.check(200, Some(400)), None, "the goal is reached");
    assert!(share.check(200, Some(500)).is_some_and(|wrong| wrong.contains("`functions 40.0`")));
    assert!(share.check(200, None).is_some_and(|wrong| wrong.contains("`functions 40.0`")));
    assert!(
        count.check(1, Some(0)).is_some() && count.check(0, Some(0)).is_none() && count.check(0, Some(3)).is_some()
    );
    assert_eq!((share.lowered(900, Some(802)), share.lowered(700, Some(802))), (802, 700));
    let limits = BTreeMap::from([(share.key, 802), (count.key, 537)]);
    assert_eq!(read_limits(&write_limits(&limits)), limits);
    assert_eq!(read_limits("functions 80.22\nothers 1\nshort_comments many"), BTreeMap::new());
    let tally = Tally { total: 3, offenders: vec![String::new()] };
    assert_eq!((share.figure(&tally), count.figure(&tally)), (334, 1));
}
