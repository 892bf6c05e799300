//! The review of a move: compares the snapshots of its source and its target.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::rules::{Finding, FindingCode, is_switched_off};
use super::{AppDigest, ClusterSnapshot, ServerSnapshot, SnapshotOrigin, VariableValue};
use crate::api::Reason;
use crate::config::{ServerKind, Variable, name};

/// Hexadecimal digits of the hash by which a review is approved.
const APPROVAL_DIGITS: usize = 32;

/// Apps that one finding names.
const NAMED_APPS_MAX: usize = 20;

/// Decisions of a person about a review.
#[derive(Clone, Debug, Default)]
pub struct ReviewOptions {
    /// Servers whose traffic moves; empty for all of the source.
    pub servers: Vec<ServerKind>,
    /// Findings that do not block: `CODE`, or `CODE:SUBJECT` for one of them.
    pub accepted: Vec<String>,
}

/// The outcome of a review.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationReview {
    /// Name of the source.
    pub source: String,
    /// Name of the target.
    pub target: String,
    /// Whether a finding blocks the move.
    pub blocked: bool,
    /// Identifies the compared values, the findings and what was accepted: an approval holds for these alone.
    pub approval_hash: String,
    /// The findings, the heaviest first.
    pub findings: Vec<Finding>,
}

/// Compares the snapshots of the source and the target of a move.
#[must_use]
pub fn review_migration(
    source: &ClusterSnapshot,
    target: &ClusterSnapshot,
    options: &ReviewOptions,
) -> MigrationReview {
    let comparison = Comparison { source, target, options };
    let mut findings = comparison.compare_servers();
    findings.extend(comparison.check_webhooks());
    findings.extend(comparison.check_proof());
    findings.extend(comparison.check_fan_out());
    findings.extend(comparison.check_keys());
    findings.extend(comparison.compare_apps());
    for finding in &mut findings {
        let exact = format!("{}:{}", finding.code, finding.subject);
        finding.blocks &= !options.accepted.iter().any(|word| *word == finding.code.to_string() || *word == exact);
    }
    // Those that block come first, whatever their kind.
    findings.sort_by(|a, b| b.blocks.cmp(&a.blocks).then_with(|| a.cmp(b)));
    findings.dedup();
    MigrationReview {
        source: source.cluster.clone(),
        target: target.cluster.clone(),
        blocked: findings.iter().any(|finding| finding.blocks),
        approval_hash: hash_review(source, target, options, &findings),
        findings,
    }
}

/// Hashes what was compared: the values, and of each finding its kind, its subject and whether it blocks. The text of a
/// finding may have ages and pods in it, which change while nothing does; an accepted finding would need a new approval then.
fn hash_review(
    source: &ClusterSnapshot,
    target: &ClusterSnapshot,
    options: &ReviewOptions,
    findings: &[Finding],
) -> String {
    let part = |snapshot: &ClusterSnapshot| {
        let ClusterSnapshot { cluster, key_id, version, servers, stream, apps, .. } = snapshot;
        // An autoscaler changes the number of pods, which nobody approves.
        let servers: Vec<_> = servers.iter().map(|(kind, server)| (kind, &server.image, &server.variables)).collect();
        serde_json::json!([cluster, key_id, version, servers, stream.as_ref().map(|stream| &stream.name), apps])
    };
    let findings: Vec<_> = findings.iter().map(|found| (found.code, &found.subject, found.blocks)).collect();
    let text = serde_json::json!([part(source), part(target), options.servers, options.accepted, findings]);
    let mut digits = hex::encode(Sha256::digest(text.to_string()));
    digits.truncate(APPROVAL_DIGITS);
    digits
}

struct Comparison<'a> {
    source: &'a ClusterSnapshot,
    target: &'a ClusterSnapshot,
    options: &'a ReviewOptions,
}

/// The same kind of server in both clusters.
#[derive(Clone, Copy)]
struct ServerPair<'a> {
    source: (ServerKind, &'a ServerSnapshot),
    target: (ServerKind, &'a ServerSnapshot),
}

impl<'a> Comparison<'a> {
    fn source_servers(&self) -> impl Iterator<Item = (ServerKind, &'a ServerSnapshot)> {
        let wanted = &self.options.servers;
        let moves = move |kind: &ServerKind| {
            wanted.is_empty() || wanted.iter().any(|other| kind.serves_as(*other) || other.serves_as(*kind))
        };
        self.source.servers.iter().map(|(kind, server)| (*kind, server)).filter(move |(kind, _)| moves(kind))
    }

    /// Servers of the target that do the work of one of the source: a combined edge does that of both others.
    fn counterparts(&self, kind: ServerKind) -> impl Iterator<Item = (ServerKind, &'a ServerSnapshot)> {
        let all = self.target.servers.iter().map(|(found, server)| (*found, server));
        all.filter(move |(found, _)| found.serves_as(kind) || kind.serves_as(*found))
    }

    fn compare_servers(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (kind, server) in self.source_servers() {
            let mut is_served = false;
            for target in self.counterparts(kind) {
                is_served = true;
                findings.extend(self.compare_variables(ServerPair { source: (kind, server), target }));
            }
            if !is_served {
                let message = "no server of the target does its work: enable it there";
                findings.push(
                    Finding::new(FindingCode::ServerMissing, kind.name(), message)
                        .with_values(server.deployment.as_str(), "–"),
                );
            }
        }
        findings
    }

    fn compare_variables(&self, pair: ServerPair<'_>) -> Vec<Finding> {
        let names: BTreeSet<&String> = pair.source.1.variables.keys().chain(pair.target.1.variables.keys()).collect();
        names.into_iter().filter_map(|name| self.compare_variable(pair, name)).collect()
    }

    fn compare_variable(&self, pair: ServerPair<'_>, name: &str) -> Option<Finding> {
        let row = Variable::by_name(name);
        // Each cluster has its own; webhooks, the bus and its group have rules of their own.
        if row.is_some_and(|row| !row.key.is_fleet_wide()) || [name::WEBHOOKS, name::BUS_GROUP].contains(&name) {
            return None;
        }
        let (source, target) =
            (effective_value(self.source, pair.source, name), effective_value(self.target, pair.target, name));
        let subject = format!("{}/{name}", pair.target.0);
        let found = |code, message: &str| {
            let values = (describe(source.as_ref()), describe(target.as_ref()));
            Some(Finding::new(code, subject.as_str(), message).with_values(values.0, values.1))
        };
        let text = |value: &Option<VariableValue>| match value {
            Some(VariableValue::Text(text)) => Some(text.clone()),
            _ => None,
        };
        let is_off = |value: &Option<VariableValue>| text(value).is_some_and(|text| is_switched_off(&text));
        if name == name::TRANSPORTS {
            return self.compare_transports(&subject, &text(&source)?, &text(&target)?);
        }
        match (&source, &target) {
            (Some(VariableValue::Unknown(_)), _) | (_, Some(VariableValue::Unknown(_))) => found(
                FindingCode::Unread,
                "cannot be compared: compare it by hand, or take the snapshot with the right to read it",
            ),
            (Some(a), Some(b)) if a == b => {
                let is_remarkable = is_off(&target) && pair.target.1.variables.contains_key(name);
                if is_remarkable {
                    found(FindingCode::Suspicious, "is off in both clusters: is that intended?")
                } else {
                    None
                }
            }
            (Some(_), Some(_)) if is_off(&target) && !is_off(&source) => found(
                FindingCode::SwitchedOff,
                "is on at the source and off at the target: set it as the source has it",
            ),
            (Some(_), Some(_)) => found(FindingCode::Changed, "differs: is that intended?"),
            (Some(_), None) if row.is_none() => found(
                FindingCode::Missing,
                "is no variable of the target's servers: find the field of the manifest that does its work",
            ),
            (Some(_), None) => found(FindingCode::Missing, "is not set at the target"),
            (None, Some(_)) if is_off(&target) => {
                found(FindingCode::Suspicious, "switches something off that the source's servers do not know")
            }
            (None, Some(_)) => found(FindingCode::Extra, "is set at the target only"),
            (None, None) => None,
        }
    }

    fn compare_transports(&self, subject: &str, source: &str, target: &str) -> Option<Finding> {
        let list = |text: &str| text.split(',').map(|item| item.trim().to_owned()).collect::<BTreeSet<String>>();
        // Every edge of the target together, since one of the source may be split over two of them.
        let of_target: BTreeSet<String> = self.target.servers.keys().fold(list(target), |mut all, kind| {
            all.extend(list(self.target.effective_text(*kind, name::TRANSPORTS).unwrap_or_default()));
            all
        });
        let missing: Vec<String> = list(source).difference(&of_target).cloned().collect();
        if missing.is_empty() {
            return None;
        }
        let message = format!("the target does not serve {}", missing.join(", "));
        Some(Finding::new(FindingCode::TransportsMissing, subject, message).with_values(source, target))
    }

    /// Finds edges of the target without webhooks. An edge that writes none gives no other sign of it.
    fn check_webhooks(&self) -> Vec<Finding> {
        let wanted = |kind: ServerKind| {
            let moved = &self.options.servers;
            kind != ServerKind::Dispatcher
                && (moved.is_empty() || moved.iter().any(|other| kind.serves_as(*other) || other.serves_as(kind)))
        };
        let of_source = |kind: ServerKind| {
            let servers = self.source.servers.keys().filter(|found| found.serves_as(kind) || kind.serves_as(**found));
            let texts = servers.filter_map(|found| self.source.effective_text(*found, name::WEBHOOKS));
            texts.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
        };
        let mut findings = Vec::new();
        let mut writers = 0;
        for (kind, server) in self.target.servers.iter().filter(|(kind, _)| wanted(**kind)) {
            let subject = format!("{kind}/{}", name::WEBHOOKS);
            let before = of_source(*kind);
            match server.variables.get(name::WEBHOOKS) {
                Some(VariableValue::Text(text)) if !is_switched_off(text) => writers += 1,
                found => {
                    let is_known_off = !before.is_empty() && before.split(", ").all(is_switched_off);
                    let (code, message) = if is_known_off {
                        (FindingCode::Suspicious, "neither cluster sends webhooks: is that intended?")
                    } else {
                        (
                            FindingCode::WebhooksOff,
                            "no webhook of this server's clients is sent: set webhooks.mode: Kinesis",
                        )
                    };
                    let before = if before.is_empty() { "not known" } else { &before };
                    findings.push(Finding::new(code, subject, message).with_values(before, describe(found)));
                }
            }
        }
        let has_dispatcher = self.target.servers.contains_key(&ServerKind::Dispatcher);
        if writers > 0 && !has_dispatcher && self.target.origin != SnapshotOrigin::Foreign {
            let message = "edges write events to the stream, and no dispatcher sends them";
            findings.push(Finding::new(FindingCode::DispatcherMissing, "dispatcher", message));
        }
        findings
    }

    fn check_proof(&self) -> Option<Finding> {
        let gate = self.target.gate.as_ref()?;
        let without_webhooks = gate.reason == Reason::ReadyWithoutWebhooks.to_string();
        if gate.ready == "True" && gate.current && !without_webhooks {
            return None;
        }
        let found = match (gate.ready.as_str(), gate.current) {
            ("True", false) => "Ready, of an older manifest".to_owned(),
            (ready, _) => format!("Ready is {ready} ({})", gate.reason),
        };
        let message = if gate.message.is_empty() { "wait until it is Ready" } else { &gate.message };
        Some(Finding::new(FindingCode::NotProven, "gate", message).with_values("", found))
    }

    /// While both clusters have clients, they must hear each other: by one group on one Redis.
    fn check_fan_out(&self) -> Option<Finding> {
        let group = |snapshot: &ClusterSnapshot| {
            let groups = snapshot.servers.keys().filter_map(|kind| snapshot.effective_text(*kind, name::BUS_GROUP));
            groups.filter(|group| !group.is_empty()).map(str::to_owned).next()
        };
        let (source, target) = (group(self.source), group(self.target));
        let message = match (&source, &target) {
            (Some(a), Some(b)) if a == b => {
                let stores = |snapshot: &ClusterSnapshot| {
                    let stores = snapshot.servers.values().filter_map(|server| server.variables.get(name::REDIS_URL));
                    stores.map(|value| describe(Some(value))).collect::<BTreeSet<_>>()
                };
                let differs = self.source.key_id == self.target.key_id && stores(self.source) != stores(self.target);
                if !differs {
                    return None;
                }
                "both are of one group, on two addresses of Redis: use one, or check that both lead to the same"
            }
            _ => {
                "while both have clients, those of one miss the events of the other, and rosters differ: \
                 write the same bus.group in both, on one Redis"
            }
        };
        let word = |group: Option<String>| group.unwrap_or_else(|| "its own bus".to_owned());
        Some(Finding::new(FindingCode::FanoutSplit, "bus", message).with_values(word(source), word(target)))
    }

    fn check_keys(&self) -> Option<Finding> {
        let (source, target) = (self.source.key_id.as_ref()?, self.target.key_id.as_ref()?);
        let message = "secrets cannot be compared: take both snapshots with one key";
        (source != target).then(|| {
            Finding::new(FindingCode::KeysDiffer, "key", message).with_values(source.as_str(), target.as_str())
        })
    }

    fn compare_apps(&self) -> Vec<Finding> {
        let (Some(source), Some(target)) = (&self.source.apps, &self.target.apps) else {
            let known = |apps: &Option<_>| if apps.is_some() { "read" } else { "not read" };
            let message = "compare the apps by hand: a client whose key is missing gets 4001 and never comes back";
            let found = Finding::new(FindingCode::Unread, "apps", message);
            return vec![found.with_values(known(&self.source.apps), known(&self.target.apps))];
        };
        if self.source.key_id != self.target.key_id {
            return vec![];
        }
        let mut by_fault: BTreeMap<(FindingCode, &str), Vec<&str>> = BTreeMap::new();
        for (id, app) in source.iter().filter(|(_, app)| app.enabled) {
            for fault in compare_app(app, target.get(id)) {
                by_fault.entry(fault).or_default().push(id.as_str());
            }
        }
        for id in target.keys().filter(|id| !source.contains_key(id)) {
            by_fault.entry((FindingCode::Extra, "apps that the source lacks")).or_default().push(id.as_str());
        }
        let counts = (format!("{} apps", source.len()), format!("{} apps", target.len()));
        let report = |((code, fault), ids): ((FindingCode, &str), Vec<&str>)| {
            Finding::new(code, "apps", format!("{fault}: {}", list_apps(&ids)))
                .with_values(counts.0.as_str(), counts.1.as_str())
        };
        by_fault.into_iter().map(report).collect()
    }
}

/// The value of a variable as the server has it, defaults included.
fn effective_value(
    snapshot: &ClusterSnapshot,
    (kind, server): (ServerKind, &ServerSnapshot),
    name: &str,
) -> Option<VariableValue> {
    let default = || snapshot.default_text(kind, name).map(|text| VariableValue::Text(text.to_owned()));
    server.variables.get(name).cloned().or_else(default)
}

/// The faults of one app at the target.
fn compare_app(source: &AppDigest, target: Option<&AppDigest>) -> Vec<(FindingCode, &'static str)> {
    let Some(target) = target else {
        return vec![(
            FindingCode::AppsMissing,
            "apps that the target lacks, whose clients get 4001 and never come back",
        )];
    };
    let mut faults = Vec::new();
    if !target.enabled {
        faults.push((FindingCode::AppsChanged, "apps that are disabled at the target"));
    }
    match (&source.credentials, &target.credentials) {
        (Some(source), Some(target)) if source.iter().all(|pair| target.contains(pair)) => {}
        (Some(_), Some(_)) => {
            faults.push((FindingCode::AppsMissing, "apps with a key or a secret that the target lacks"));
        }
        _ => faults.push((FindingCode::Unread, "apps whose keys were not read")),
    }
    if source.endpoints.keys().any(|name| !target.endpoints.contains_key(name)) {
        faults.push((FindingCode::AppsMissing, "apps with a webhook endpoint that the target lacks"));
    }
    let both = || source.endpoints.iter().filter_map(|(name, found)| Some((found, target.endpoints.get(name)?)));
    if both().any(|(source, target)| source.settings.is_none() || target.settings.is_none()) {
        faults.push((FindingCode::Unread, "apps with headers of a webhook endpoint that were not read"));
    }
    if both().any(|(source, target)| {
        source.settings.as_ref().zip(target.settings.as_ref()).is_some_and(|(source, target)| source != target)
    }) {
        faults.push((FindingCode::AppsChanged, "apps with another URL, filter or header of a webhook endpoint"));
    }
    if both().any(|(source, target)| target.refused && !source.refused) {
        faults.push((FindingCode::AppsChanged, "apps with an endpoint to which the target may not send"));
    }
    if source.settings != target.settings {
        faults.push((FindingCode::Changed, "apps with other limits, origins or client settings"));
    }
    faults
}

fn list_apps(ids: &[&str]) -> String {
    let named = ids.iter().take(NAMED_APPS_MAX).copied().collect::<Vec<_>>().join(", ");
    match ids.len().saturating_sub(NAMED_APPS_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

fn describe(value: Option<&VariableValue>) -> String {
    match value {
        None => "–".to_owned(),
        Some(VariableValue::Text(text)) if text.is_empty() => "(empty)".to_owned(),
        Some(VariableValue::Text(text)) => text.clone(),
        Some(VariableValue::Digest(digest)) => format!("secret {digest}"),
        Some(VariableValue::Field(field)) => format!("the pod's {field}"),
        Some(VariableValue::Unknown(reason)) => format!("not known: {reason}"),
    }
}

#[cfg(test)]
mod tests;
