//! Rows of `realtime fleet`, and the conditions by which they are chosen. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::str::FromStr;

use serde::Serialize;

use super::columns::align_columns;
use super::moves::{MoveRow, render_moves};
use crate::api::cluster::TransportState;
use crate::config::{VARIABLE_TABLE, Variable, suggest_name};
use crate::migration::ClusterSnapshot;

/// All rows, and the sources that gave none.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FleetReport {
    /// Clusters that the conditions choose.
    pub clusters: Vec<FleetRow>,
    /// Tracks of moves, unless a condition chooses clusters.
    pub moves: Vec<MoveRow>,
    /// Contexts and files that could not be read.
    pub unread: Vec<UnreadSource>,
    /// Contexts of which only the moves could not be read.
    pub unread_moves: Vec<UnreadSource>,
    /// Number of contexts and files.
    pub sources: usize,
    /// Number of clusters before a condition.
    pub total: usize,
}

/// A context or a file that could not be read.
#[derive(Debug, Serialize)]
pub struct UnreadSource {
    /// Name of the context, or path of the file.
    pub context: String,
    /// The error in one line.
    pub error: String,
}

/// One cluster of one context.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FleetRow {
    /// Name of the context, or path of the file.
    pub context: String,
    /// `NAMESPACE/NAME` of the cluster.
    pub cluster: String,
    /// Status of the condition Ready: `True`, `False` or `Unknown`.
    pub ready: String,
    /// Reason of the condition Ready.
    pub reason: String,
    /// Message of the condition Ready.
    pub message: String,
    /// The first broken hop of each transport that fails.
    pub broken: BTreeMap<String, String>,
    /// Age of the last proof, in seconds.
    pub proven_age_seconds: Option<u64>,
    /// Release of the servers.
    pub version: Option<String>,
    /// Image of each server.
    pub images: BTreeMap<String, String>,
    /// Values of the variables of the conditions, by variable and server.
    pub variables: BTreeMap<String, BTreeMap<String, String>>,
}

impl FleetRow {
    /// The row of a cluster; `None` if a condition does not hold.
    pub fn of(context: &str, snapshot: &ClusterSnapshot, conditions: &[WhereCondition], now_ms: u64) -> Option<Self> {
        if !conditions.iter().all(|condition| condition.holds(snapshot)) {
            return None;
        }
        let gate = snapshot.gate.as_ref();
        let failing = gate.into_iter().flat_map(|gate| &gate.transports);
        let failing = failing.filter(|transport| transport.state == TransportState::Failing);
        let is_current = gate.is_none_or(|gate| gate.current);
        let ready = gate.map_or("Unknown", |gate| if is_current { gate.ready.as_str() } else { "Unknown" });
        let reason = gate.map_or("NoOperator", |gate| gate.reason.as_str());
        Some(Self {
            context: context.to_owned(),
            cluster: snapshot.cluster.clone(),
            ready: ready.to_owned(),
            reason: if is_current || reason.is_empty() {
                reason.to_owned()
            } else {
                format!("{reason}, of an older manifest")
            },
            message: gate.map(|gate| gate.message.clone()).unwrap_or_default(),
            broken: failing.map(|transport| (transport.name.clone(), transport.hop.clone())).collect(),
            proven_age_seconds: gate.and_then(|gate| age_seconds(gate.passed_at.as_deref()?, now_ms)),
            version: snapshot.version.clone(),
            images: snapshot.servers.iter().map(|(kind, server)| (kind.to_string(), server.image.clone())).collect(),
            variables: conditions.iter().map(|found| (found.variable.clone(), found.values(snapshot))).collect(),
        })
    }

    /// Whether the cluster is Ready, of its newest manifest.
    pub fn is_ready(&self) -> bool {
        self.ready == "True"
    }
}

/// Age of a time, in seconds; `None` if it is none, or in the future.
fn age_seconds(time: &str, now_ms: u64) -> Option<u64> {
    let time: jiff::Timestamp = time.parse().ok()?;
    let time_ms = u64::try_from(time.as_millisecond()).ok()?;
    Some(now_ms.checked_sub(time_ms)? / 1_000)
}

/// A condition `VARIABLE=VALUE`, which holds for a cluster if it holds for one of its servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WhereCondition {
    /// Name of the variable.
    pub variable: String,
    /// Value that one server must have.
    pub value: String,
}

impl FromStr for WhereCondition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hint = "write VARIABLE=VALUE, such as REALTIME_WEBHOOKS=off";
        let (variable, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is no condition: {hint}"))?;
        match Variable::by_name(variable) {
            Some(row) if row.secret => return Err(format!("{variable} is a secret, which is not compared by value")),
            None if variable.starts_with("REALTIME_") || variable.is_empty() => {
                let names = VARIABLE_TABLE.iter().map(|row| row.name);
                let near = suggest_name(variable, names).map(|name| format!(", did you mean {name}?"));
                let near = near.unwrap_or_default();
                return Err(format!("`{variable}` is no variable of this release{near}: {hint}"));
            }
            _ => {}
        }
        Ok(Self { variable: variable.to_owned(), value: value.to_owned() })
    }
}

impl WhereCondition {
    fn holds(&self, snapshot: &ClusterSnapshot) -> bool {
        self.values(snapshot).values().any(|value| *value == self.value)
    }

    fn values(&self, snapshot: &ClusterSnapshot) -> BTreeMap<String, String> {
        let value = |kind| Some((format!("{kind}"), snapshot.effective_text(kind, &self.variable)?.to_owned()));
        snapshot.servers.keys().filter_map(|kind| value(*kind)).collect()
    }
}

/// Renders the rows for a person. Writing to a text cannot fail.
pub fn render_table(report: &FleetReport, conditions: &[WhereCondition]) -> String {
    let head = ["CONTEXT", "CLUSTER", "READY", "REASON", "BROKEN HOP", "PROVEN", "VERSION", "IMAGE"].map(str::to_owned);
    let mut lines = vec![head.into_iter().chain(conditions.iter().map(|found| found.variable.clone())).collect()];
    lines.extend(report.clusters.iter().map(|row| list_cells(row, conditions)));
    let mut text = String::new();
    if !report.clusters.is_empty() {
        align_columns(&mut text, &lines);
    }
    text.push_str(&render_moves(&report.moves));
    for source in &report.unread {
        let _ = writeln!(text, "{}: not read: {}", source.context, source.error);
    }
    for source in &report.unread_moves {
        let _ = writeln!(text, "{}: moves not read: {}", source.context, source.error);
    }
    let not_ready = report.clusters.iter().filter(|row| !row.is_ready()).count();
    let _ = writeln!(
        text,
        "{} of {} clusters in {} contexts shown, {not_ready} of them not Ready; {} contexts not read",
        report.clusters.len(),
        report.total,
        report.sources,
        report.unread.len(),
    );
    text
}

fn list_cells(row: &FleetRow, conditions: &[WhereCondition]) -> Vec<String> {
    let or_dash = |text: &str| if text.is_empty() { "–".to_owned() } else { text.to_owned() };
    let mut images: Vec<&str> = row.images.values().map(String::as_str).collect();
    images.dedup();
    let mut cells = vec![
        row.context.clone(),
        row.cluster.clone(),
        row.ready.clone(),
        or_dash(&row.reason),
        or_dash(&group_by_value(&row.broken)),
        row.proven_age_seconds.map_or_else(|| "never".to_owned(), format_age),
        or_dash(row.version.as_deref().unwrap_or_default()),
        or_dash(&images.join(" ")),
    ];
    for condition in conditions {
        cells.push(row.variables.get(&condition.variable).map(group_by_value).unwrap_or_default());
    }
    cells
}

/// `off (sockjs), kinesis (websocket)`: each value once, with those that have it.
fn group_by_value(values: &BTreeMap<String, String>) -> String {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (holder, value) in values {
        groups.entry(value).or_default().push(holder);
    }
    let groups = groups.into_iter().map(|(value, holders)| format!("{value} ({})", holders.join(", ")));
    groups.collect::<Vec<_>>().join(", ")
}

/// The two largest units of an age.
fn format_age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;
    use crate::config::ServerKind;
    use crate::migration::{ServerSnapshot, VariableValue};

    const NOW_MS: u64 = 1_767_225_780_000;

    fn snapshot(status: &str, webhooks: [&str; 2]) -> ClusterSnapshot {
        let time = "lastTransitionTime: '2026-01-01T00:00:00Z'";
        let cluster = applied_cluster(&format!(
            "status:\n  observedGeneration: 2\n  version: 0.2.0\n  gate: {{ phase: Open, passedAt: '2026-01-01T00:00:00Z' }}\n  \
             conditions: [{{ type: Ready, {status}, message: why, {time} }}]\n  transports:\n  \
             - {{ name: websocket, server: websocket, state: Passing, pods: 1/1 }}\n  \
             - {{ name: xhr_streaming, server: sockjs, state: Failing, hop: record, pods: 0/1 }}\n  \
             - {{ name: xhr_polling, server: sockjs, state: Failing, hop: record, pods: 0/1 }}\n"
        ));
        let server = |webhooks: &str| ServerSnapshot {
            image: "a/b:1".to_owned(),
            variables: [("REALTIME_WEBHOOKS".to_owned(), VariableValue::Text(webhooks.to_owned()))].into(),
            ..ServerSnapshot::default()
        };
        let servers = [(ServerKind::Websocket, server(webhooks[0])), (ServerKind::Sockjs, server(webhooks[1]))];
        ClusterSnapshot::of_cluster(&cluster, servers.into())
    }

    fn condition(text: &str) -> WhereCondition {
        text.parse().expect("a condition")
    }

    #[test]
    fn a_row_names_the_broken_hop_and_the_servers_with_a_value() {
        let asked = [condition("REALTIME_WEBHOOKS=off")];
        let found = snapshot("status: 'False', reason: ConfigurationDrift", ["kinesis", "off"]);
        let row = FleetRow::of("prod-eu", &found, &asked, NOW_MS).expect("a row");
        let report = FleetReport { clusters: vec![row], sources: 2, total: 3, ..FleetReport::default() };
        let text = render_table(&report, &asked);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("CONTEXT  CLUSTER      READY  REASON              BROKEN HOP"), "{text}");
        let row = "prod-eu  channels/eu  False  ConfigurationDrift  record (xhr_polling, xhr_streaming)  3m      0.2.0    \
                   a/b:1  kinesis (websocket), off (sockjs)";
        assert_eq!(lines[1], row, "{text}");
        assert_eq!(lines[2], "1 of 3 clusters in 2 contexts shown, 1 of them not Ready; 0 contexts not read");
    }

    #[test]
    fn a_condition_holds_if_it_holds_for_one_server_and_all_must_hold() {
        let found = snapshot("status: 'True', reason: Proven", ["kinesis", "off"]);
        for (conditions, is_shown) in [
            (&[][..], true),
            (&["REALTIME_WEBHOOKS=off"], true),
            (&["REALTIME_WEBHOOKS=kinesis"], true),
            (&["REALTIME_WEBHOOKS=of"], false),
            (&["REALTIME_WEBHOOKS=off", "REALTIME_LOG=info"], true),
            (&["REALTIME_WEBHOOKS=off", "REALTIME_LOG=debug"], false),
            (&["GOGC=50"], false),
        ] {
            let asked: Vec<WhereCondition> = conditions.iter().map(|text| condition(text)).collect();
            assert_eq!(FleetRow::of("c", &found, &asked, NOW_MS).is_some(), is_shown, "{conditions:?}");
        }
        for (bad, says) in [
            ("REALTIME_WEBHOOKS", "is no condition"),
            ("REALTIME_WEBHOKS=off", "did you mean REALTIME_WEBHOOKS?"),
            ("REALTIME_REDIS_URL=redis://r", "is a secret"),
            ("=off", "is no variable"),
        ] {
            let refusal = bad.parse::<WhereCondition>().expect_err(bad);
            assert!(refusal.contains(says), "{bad}: {refusal}");
        }
    }

    #[test]
    fn a_status_of_an_older_manifest_is_not_ready() {
        let mut found = snapshot("status: 'True', reason: Proven", ["kinesis", "kinesis"]);
        assert!(FleetRow::of("c", &found, &[], NOW_MS).is_some_and(|row| row.is_ready()));
        found.gate.get_or_insert_default().current = false;
        let row = FleetRow::of("c", &found, &[], NOW_MS).expect("a row");
        assert!(!row.is_ready() && row.reason == "Proven, of an older manifest", "{row:?}");
        found.gate = None;
        assert_eq!(FleetRow::of("c", &found, &[], NOW_MS).expect("a row").reason, "NoOperator");
    }

    #[test]
    fn an_age_has_one_unit() {
        for (seconds, text) in [(0, "0s"), (119, "119s"), (120, "2m"), (7_200, "2h"), (172_800, "2d")] {
            assert_eq!(format_age(seconds), text);
        }
        assert_eq!(age_seconds("2026-01-01T00:00:00Z", NOW_MS), Some(180));
        assert_eq!(age_seconds("2027-01-01T00:00:00Z", NOW_MS), None);
    }
}
