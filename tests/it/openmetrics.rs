//! A strict reader of `OpenMetrics` 1.0 text, by which every process that is scraped is judged.
//!
//! Beside the format itself it holds what this project promises: base units, a help for each family, and labels whose
//! values come from fixed lists, so that no client, app or channel makes a series of its own.

use std::collections::{BTreeMap, BTreeSet};

/// Labels that exist, each with values from a list in the source.
const LABELS: [&str; 5] = ["app", "hop", "reason", "result", "transport"];

/// Units that have a base unit to be written in instead.
const OTHER_UNITS: [&str; 8] =
    ["milliseconds", "ms", "microseconds", "nanoseconds", "minutes", "hours", "kilobytes", "megabytes"];

/// One family.
#[derive(Debug, Default)]
pub struct Family {
    kind: String,
    help: bool,
    unit: String,
    /// What each series says.
    pub series: BTreeMap<String, f64>,
}

/// Reads what an admin listener answered.
///
/// # Errors
/// The first line that breaks a rule, and which one.
pub fn read(text: &str) -> Result<BTreeMap<String, Family>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("does not end with `# EOF`")?;
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in body.split_terminator('\n') {
        let fault = |rule: &str| format!("{rule}: {line}");
        if let Some(metadata) = line.strip_prefix("# ") {
            let mut parts = metadata.splitn(3, ' ');
            let (keyword, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let value = parts.next().unwrap_or_default();
            if !is_name(name) {
                return Err(fault("a family's name"));
            }
            if name != current {
                if families.contains_key(name) {
                    return Err(fault("a family stands together"));
                }
                name.clone_into(&mut current);
            }
            let family = families.entry(name.to_owned()).or_default();
            if !family.series.is_empty() {
                return Err(fault("what is said of a family comes before its series"));
            }
            match keyword {
                "TYPE" if family.kind.is_empty() && ["counter", "gauge", "histogram"].contains(&value) => {
                    value.clone_into(&mut family.kind);
                }
                "HELP" if !family.help && value.len() > 1 => family.help = true,
                "UNIT" if family.unit.is_empty() && name.ends_with(&format!("_{value}")) => {
                    value.clone_into(&mut family.unit);
                }
                _ => return Err(fault("a TYPE, HELP or UNIT, once each")),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').ok_or_else(|| fault("a series and its value"))?;
        let name = series.split('{').next().unwrap_or_default();
        let family = families.get_mut(&current).ok_or_else(|| fault("a family comes before its series"))?;
        let suffixes: &[&str] = match family.kind.as_str() {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        let suffix = name.strip_prefix(&current).filter(|suffix| suffixes.contains(suffix));
        let Some(suffix) = suffix else {
            return Err(fault("a series has its family's name, with _total if it counts"));
        };
        labels(&series[name.len()..], suffix == "_bucket").map_err(fault)?;
        let number: f64 = value.parse().map_err(|_| fault("a number"))?;
        if !number.is_finite() || (family.kind != "gauge" && number < 0.0) {
            return Err(fault("a finite number, and never below 0 if it counts"));
        }
        if family.series.insert(series.to_owned(), number).is_some() {
            return Err(fault("a series is there once"));
        }
    }
    for (name, family) in &families {
        promises(name, family).map_err(|rule| format!("{rule}: {name}"))?;
    }
    Ok(families)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Reads `{name="value",…}` or nothing; a bucket has its upper bound.
fn labels(text: &str, is_bucket: bool) -> Result<(), &'static str> {
    if text.is_empty() {
        return if is_bucket { Err("a bucket's bound") } else { Ok(()) };
    }
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).ok_or("labels in braces")?;
    let mut seen = BTreeSet::new();
    for pair in inner.split(',') {
        let (name, value) = pair.split_once('=').ok_or("a label and its value")?;
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).ok_or("a value in quotes")?;
        if is_bucket && name == "le" {
            if value.parse::<f64>().is_err() || !seen.insert(name) {
                return Err("a bucket's bound");
            }
            continue;
        }
        if !LABELS.contains(&name) {
            return Err("a label that is known");
        }
        // A word from the source; what comes from outside would need more characters sooner or later.
        if value.is_empty() || !value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err("a value that is a word");
        }
        if !seen.insert(name) {
            return Err("a label once");
        }
    }
    if is_bucket && !seen.contains("le") {
        return Err("a bucket's bound");
    }
    Ok(())
}

fn promises(name: &str, family: &Family) -> Result<(), &'static str> {
    let mut words = name.split('_');
    let last = words.next_back().unwrap_or_default();
    if family.kind.is_empty() || !family.help {
        return Err("a family has a TYPE and a HELP");
    }
    if !name.starts_with("realtime_") || last == "total" {
        return Err("a family's name begins with realtime_ and leaves _total to its series");
    }
    if words.chain([last]).any(|word| OTHER_UNITS.contains(&word)) {
        return Err("base units: seconds and bytes");
    }
    if ["seconds", "bytes"].contains(&last) == family.unit.is_empty() {
        return Err("a unit is in the name and has its line");
    }
    Ok(())
}

#[test]
fn a_table_of_what_is_no_open_metrics() {
    const HEAD: &str = "# HELP realtime_a Things.\n# TYPE realtime_a counter\n";
    const HISTOGRAM: &str =
        "# HELP realtime_h_seconds H.\n# TYPE realtime_h_seconds histogram\n# UNIT realtime_h_seconds seconds\n";
    for (name, text, rule) in [
        ("nothing", "", "does not end with"),
        ("no end", HEAD, "does not end with"),
        ("something after the end", &format!("{HEAD}# EOF\nrealtime_a_total 1\n"), "does not end with"),
        ("a counter without _total", &format!("{HEAD}realtime_a 1\n# EOF\n"), "with _total"),
        ("a counter below 0", &format!("{HEAD}realtime_a_total -1\n# EOF\n"), "never below 0"),
        ("no number", &format!("{HEAD}realtime_a_total x\n# EOF\n"), "a number"),
        ("no family", "realtime_a_total 1\n# EOF\n", "a family comes before"),
        ("twice", &format!("{HEAD}realtime_a_total 1\nrealtime_a_total 1\n# EOF\n"), "is there once"),
        ("a label of a client", &format!("{HEAD}realtime_a_total{{channel=\"1\"}} 1\n# EOF\n"), "that is known"),
        ("a value of a client", &format!("{HEAD}realtime_a_total{{reason=\"a b\"}} 1\n# EOF\n"), "a word"),
        ("a label twice", &format!("{HEAD}realtime_a_total{{reason=\"a\",reason=\"b\"}} 1\n# EOF\n"), "a label once"),
        ("a bound of a counter", &format!("{HEAD}realtime_a_total{{le=\"1.0\"}} 1\n# EOF\n"), "that is known"),
        ("a bucket without a bound", &format!("{HISTOGRAM}realtime_h_seconds_bucket 1\n# EOF\n"), "a bucket's bound"),
        (
            "a bound that is no number",
            &format!("{HISTOGRAM}realtime_h_seconds_bucket{{le=\"x\"}} 1\n# EOF\n"),
            "a bucket's bound",
        ),
        ("a histogram's total", &format!("{HISTOGRAM}realtime_h_seconds_total 1\n# EOF\n"), "its family's name"),
        ("an empty line", &format!("{HEAD}\n# EOF\n"), "a series and its value"),
        ("no help", "# TYPE realtime_a gauge\n# EOF\n", "a HELP"),
        ("milliseconds", "# HELP realtime_a_ms A.\n# TYPE realtime_a_ms gauge\n# EOF\n", "base units"),
        (
            "a unit without its line",
            "# HELP realtime_a_seconds A.\n# TYPE realtime_a_seconds gauge\n# EOF\n",
            "has its line",
        ),
        ("another's name", "# HELP a A.\n# TYPE a gauge\n# EOF\n", "begins with realtime_"),
        ("a total in the name", "# HELP realtime_total A.\n# TYPE realtime_total counter\n# EOF\n", "leaves _total"),
        (
            "families mixed",
            &format!("{HEAD}# HELP realtime_b B.\n# TYPE realtime_b gauge\n# UNIT realtime_a x\n# EOF\n"),
            "stands together",
        ),
    ] {
        let fault = read(text).map(|_| ()).expect_err(name);
        assert!(fault.contains(rule), "{name}: {fault}");
    }
    let good = format!(
        "{HEAD}realtime_a_total{{reason=\"b\"}} 1\n# HELP realtime_c_seconds C.\n# TYPE realtime_c_seconds gauge\n\
         # UNIT realtime_c_seconds seconds\nrealtime_c_seconds 0.5\n{HISTOGRAM}realtime_h_seconds_bucket{{le=\"+Inf\"}} 1\n\
         realtime_h_seconds_sum 0.5\nrealtime_h_seconds_count 1\n# EOF\n"
    );
    let read = read(&good).expect("good");
    assert_eq!(read["realtime_a"].series["realtime_a_total{reason=\"b\"}"].to_string(), "1");
}
