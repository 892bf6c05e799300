//! The convention of metrics: every row of the table follows it, and the page of each process is its part of the table.

use std::collections::BTreeSet;

use realtime_operator::cli::metric_rows;
use realtime_operator::process::metrics::{MetricKind, MetricLabel, MetricRow};

/// Processes that export metrics.
const PROCESSES: [&str; 3] = ["edge", "dispatcher", "operator"];

/// Names of labels; each has its values from an enum.
const LABELS: [&str; 8] = ["controller", "hop", "operation", "reason", "resource", "result", "transport", "verb"];

/// Names of labels with the id of an app, or with the namespace and the name of a cluster.
const ID_LABELS: [&str; 3] = ["app", "namespace", "cluster"];

/// Words of a name that are a unit; only the first two are allowed, as the last word.
const UNIT_WORDS: [&str; 14] = [
    "seconds",
    "bytes",
    "ms",
    "milliseconds",
    "millis",
    "microseconds",
    "nanoseconds",
    "minutes",
    "hours",
    "kilobytes",
    "megabytes",
    "kb",
    "mb",
    "percent",
];

/// Least number of words in a help text: fewer only repeat the name.
const HELP_WORDS_MIN: usize = 4;

fn is_snake_case(text: &str) -> bool {
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.split('_').all(is_word)
}

/// Whether a word of a name is a plural: a word in `s`, but for those whose singular is written so.
fn is_plural(word: &str) -> bool {
    word.ends_with('s') && !word.ends_with("ss") && word != "bus"
}

fn is_sentence(text: &str) -> bool {
    text.ends_with('.') && !text.ends_with("..") && text.starts_with(char::is_uppercase)
}

/// Rules of the convention that a metric breaks.
fn broken_rules(row: &MetricRow) -> Vec<&'static str> {
    let words: Vec<&str> = row.stem.split('_').collect();
    let (last, unit) = (words.last().copied().unwrap_or_default(), row.unit());
    let before_last = &words[..words.len() - 1];
    let mut broken = Vec::new();
    let mut rule = |holds: bool, rule| {
        if !holds {
            broken.push(rule);
        }
    };
    rule(PROCESSES.contains(&row.process), "a name begins with realtime_ and a process");
    rule(is_snake_case(row.stem), "a name is in snake_case");
    rule(!words.contains(&"total"), "a name leaves _total to the type");
    rule(row.name().ends_with("_total") == (row.kind == MetricKind::Counter), "counters end in _total");
    let is_noun = match row.kind {
        _ if !unit.is_empty() => true,
        MetricKind::Counter | MetricKind::Histogram => words.iter().any(|word| is_plural(word)),
        MetricKind::Gauge => is_plural(last) || last == "up",
    };
    rule(is_noun, "a name is a plural noun, has a unit, or is a gauge in _up");
    let is_unit_last = !before_last.iter().any(|word| UNIT_WORDS.contains(word));
    rule(is_unit_last && (UNIT_WORDS.contains(&last) != unit.is_empty()), "a unit is seconds or bytes, and comes last");
    rule(unit.is_empty() || row.help.contains(&format!("in {unit}")), "a help text names the unit");
    rule(
        is_sentence(row.help) && row.help.split_whitespace().count() >= HELP_WORDS_MIN,
        "a help text is a sentence of four words or more",
    );
    rule(!row.help.contains(['|', '`', '\\', '\n']), "a help text is plain");
    rule(is_sentence(row.remedy) && !row.remedy.contains('|'), "a remedy is a sentence");
    for MetricLabel { name, values } in row.labels.iter().filter(|label| !ID_LABELS.contains(&label.name)) {
        let unique: BTreeSet<&str> = values.iter().map(|(value, _)| *value).collect();
        rule(LABELS.contains(name), "a label has a known name");
        rule(!values.is_empty() && unique.len() == values.len(), "a label has values, each once");
        rule(values.iter().all(|(value, _)| is_snake_case(value)), "label values are in snake_case");
        let is_meaning = |meaning: &str| meaning.is_empty() || (is_sentence(meaning) && !meaning.contains('|'));
        rule(values.iter().all(|(_, meaning)| is_meaning(meaning)), "the meaning of a label value is a sentence");
    }
    broken
}

#[test]
fn every_metric_follows_the_convention() {
    let rows = metric_rows();
    let broken: Vec<String> = rows
        .iter()
        .flat_map(|row| broken_rules(row).into_iter().map(|rule| format!("{}: {rule}", row.name())))
        .collect();
    assert_eq!(broken, [""; 0]);
    let names: BTreeSet<String> = rows.iter().map(MetricRow::name).collect();
    assert_eq!(names.len(), rows.len(), "each name stands once");
    let processes: BTreeSet<&str> = rows.iter().map(|row| row.process).collect();
    assert_eq!(processes, BTreeSet::from(PROCESSES));
}

#[test]
fn a_metric_that_breaks_the_convention_is_found() {
    let good = || MetricRow {
        process: "edge",
        stem: "frames_lost",
        kind: MetricKind::Counter,
        labels: vec![MetricLabel { name: "reason", values: vec![("too_slow", "The client is slow."), ("gone", "")] }],
        is_sparse: false,
        help: "Frames that were lost.",
        remedy: "Nothing.",
    };
    let gauge = |stem| MetricRow { stem, kind: MetricKind::Gauge, ..good() };
    let label = |name, values: &[(&'static str, &'static str)]| MetricRow {
        labels: vec![MetricLabel { name, values: values.to_vec() }],
        ..good()
    };
    let lag = MetricRow { help: "Age of the oldest frame, in seconds.", ..gauge("lag_seconds") };
    for row in [good(), lag.clone(), gauge("bus_up"), gauge("queued_events")] {
        assert_eq!(broken_rules(&row), [""; 0], "{}", row.name());
    }
    for (rule, row) in [
        ("begins with realtime_ and a process", MetricRow { process: "server", ..good() }),
        ("a name is in snake_case", MetricRow { stem: "lost-frames", ..good() }),
        ("a name is in snake_case", MetricRow { stem: "lostFrames", ..good() }),
        ("leaves _total to the type", MetricRow { stem: "frames_total", ..good() }),
        ("a plural noun", MetricRow { stem: "bus_decided", ..good() }),
        ("a plural noun", gauge("recorder_queued")),
        ("a plural noun", gauge("frames_waiting")),
        ("seconds or bytes", gauge("lag_ms")),
        ("seconds or bytes", MetricRow { help: lag.help, ..gauge("lag_seconds_of_frames") }),
        ("names the unit", MetricRow { help: "Age of the oldest frame.", ..lag.clone() }),
        ("four words or more", MetricRow { help: "Frames lost here.", ..good() }),
        ("four words or more", MetricRow { help: "Frames that were lost", ..good() }),
        ("four words or more", MetricRow { help: "frames that were lost.", ..good() }),
        ("is plain", MetricRow { help: "Frames that `were` lost.", ..good() }),
        ("a remedy is a sentence", MetricRow { remedy: "", ..good() }),
        ("a known name", label("channel", &[("gone", "")])),
        ("each once", label("reason", &[])),
        ("each once", label("reason", &[("gone", ""), ("gone", "")])),
        ("label values are in snake_case", label("reason", &[("TooSlow", "")])),
        ("label values are in snake_case", label("reason", &[("too-slow", "")])),
        ("the meaning of a label value", label("reason", &[("gone", "it has gone")])),
    ] {
        let broken = broken_rules(&row);
        assert!(broken.iter().any(|found| found.contains(rule)), "{rule} of {}: {broken:?}", row.name());
    }
}

/// A page without the values of its series, which are sorted within a family: a process writes them in any order.
pub fn without_values(page: &str) -> String {
    let (mut lines, mut series): (Vec<String>, Vec<String>) = Default::default();
    for line in page.lines() {
        match line.rsplit_once(' ') {
            Some((name, _)) if !line.starts_with('#') => series.push(format!("{name} <value>")),
            _ => {
                series.sort();
                lines.append(&mut series);
                lines.push(line.to_owned());
            }
        }
    }
    lines.append(&mut series);
    lines.push(String::new());
    lines.join("\n")
}

/// The series of a row that exist from the start: every combination of its labels' values.
fn series_lines(row: &MetricRow, name: &str) -> Vec<String> {
    if row.is_sparse {
        return vec![];
    }
    let mut sets = vec![String::new()];
    for MetricLabel { name, values } in &row.labels {
        let extend = |set: &String| {
            let comma = if set.is_empty() { "" } else { "," };
            // Of the series by app, that of all others exists everywhere.
            let values = if *name == "app" { &vec![("_other", "")] } else { values };
            values.iter().map(|(value, _)| format!("{set}{comma}{name}=\"{value}\"")).collect::<Vec<_>>()
        };
        sets = sets.iter().flat_map(extend).collect();
    }
    let braces = |labels: &str| if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    if row.kind != MetricKind::Histogram {
        return sets.iter().map(|set| format!("{name}{} <value>", braces(set))).collect();
    }
    let bounds = [
        "0.001", "0.0025", "0.005", "0.01", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "30.0", "90.0",
        "+Inf",
    ];
    let of_set = |set: &String| {
        let comma = if set.is_empty() { "" } else { "," };
        let buckets = bounds.iter().map(|bound| format!("{name}_bucket{{le=\"{bound}\"{comma}{set}}} <value>"));
        buckets.chain(["sum", "count"].map(|part| format!("{name}_{part}{} <value>", braces(set)))).collect::<Vec<_>>()
    };
    sets.iter().flat_map(of_set).collect()
}

/// The lines that rows become on a page, without values.
fn page_lines(rows: &[MetricRow]) -> BTreeSet<String> {
    let mut lines = BTreeSet::from(["# EOF".to_owned()]);
    for row in rows {
        let family = row.family();
        lines.insert(format!("# HELP {family} {}", row.help));
        lines.insert(format!("# TYPE {family} {}", row.kind.name()));
        if !row.unit().is_empty() {
            lines.insert(format!("# UNIT {family} {}", row.unit()));
        }
        let name = row.name();
        lines.extend(series_lines(row, &name));
    }
    lines
}

/// Differences between a page and these rows.
fn page_differences(rows: &[MetricRow], page: &str) -> Vec<String> {
    let (expected, page) = (page_lines(rows), without_values(page));
    let is_of_one_app = |line: &&str| line.contains("{app=") && !line.contains("_other");
    let found: BTreeSet<String> = page.lines().filter(|line| !is_of_one_app(line)).map(str::to_owned).collect();
    let missing = expected.difference(&found).map(|line| format!("in the table only: {line}"));
    missing.chain(found.difference(&expected).map(|line| format!("on the page only: {line}"))).collect()
}

/// Compares the page of a process with its part of the table.
pub fn assert_page_is_the_table(process: &str, page: &str) {
    let rows: Vec<MetricRow> = metric_rows().into_iter().filter(|row| row.process == process).collect();
    assert_eq!(page_differences(&rows, page), [""; 0]);
}

#[test]
fn a_page_that_differs_from_the_table_is_found() {
    let rows: Vec<MetricRow> =
        metric_rows().into_iter().filter(|row| row.family() == "realtime_operator_held_leases").collect();
    let name = rows[0].name();
    let page = format!("# HELP {name} {}\n# TYPE {name} gauge\n{name} 1\n# EOF\n", rows[0].help);
    assert_eq!(page_differences(&rows, &page), [""; 0]);
    let more = page.replace("# EOF", "realtime_operator_others 1\n# EOF");
    assert_eq!(page_differences(&rows, &more), ["on the page only: realtime_operator_others <value>"]);
    let less = page.replace(&format!("\n{name} 1"), "");
    assert_eq!(page_differences(&rows, &less), [format!("in the table only: {name} <value>")]);
    let other = page.replace("gauge", "counter");
    assert_eq!(page_differences(&rows, &other).len(), 2, "another type is missing and too much");
}
