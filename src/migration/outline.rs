//! The outline of a move: everything that it will write, wait for and give up on, before it starts.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::record::{WeightedRecord, endpoint_name};
use super::track::{MoveLimits, TrackPlan, describe_duration, share_of};
use crate::api::migration::{
    FailureReaction, MigrationTrack, RecordEngine, RollbackSessions, SourceKind, TrackTransport,
};
use crate::api::{EnabledState, RealtimeMigration};

/// Time from a fault to the target's failed proof: a round of journeys every 15 s by default, and 20 s of confirmation.
const DETECTION_SECONDS: u64 = 35;

/// Time between two turns of a move.
const TURN_SECONDS: u64 = 10;

/// Interval of external-dns (its option `--interval`, one minute by default).
const SYNC_SECONDS: u64 = 60;

/// Time until every server of Route 53 answers by a change (developer guide, "Propagation": within 60 s normally).
const PROPAGATION_SECONDS: u64 = 60;

/// Share of lookups that a cutover may move at once without a remark, in percent.
const CUTOVER_SHARE_MAX: f64 = 10.0;

/// A move before it starts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveOutline {
    /// `NAMESPACE/NAME` of the migration.
    pub migration: String,
    /// Name of the cluster that gets the clients.
    pub target: String,
    /// Kind of the source.
    pub source: SourceKind,
    /// The tracks, one after the other.
    pub tracks: Vec<TrackOutline>,
}

/// One track before it starts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrackOutline {
    /// The transport that moves.
    pub transport: TrackTransport,
    /// Host that clients look up.
    pub host: String,
    /// Writer of the record.
    pub engine: RecordEngine,
    /// Objects that are written, as they are at weight 1.
    pub objects: Vec<Value>,
    /// Conditions of the first record, in the order in which they are checked.
    pub before: Vec<String>,
    /// The steps with their weights and waits.
    pub steps: Vec<OutlinedStep>,
    /// Shortest duration of the track, approvals apart.
    pub shortest: String,
    /// Conditions under which it stops or goes back.
    pub aborts: Vec<AbortRule>,
    /// Time from a fault to the last lookup that reaches the target, in its parts.
    pub way_back: WayBack,
    /// The change that takes every lookup from the target, to be made by hand if nobody else can.
    pub change_batch: Value,
    /// Remarks about this plan.
    pub notes: Vec<String>,
}

/// One step before it starts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutlinedStep {
    /// Weight of the target's record.
    pub weight: u8,
    /// Weight of the source's record.
    pub source_weight: u8,
    /// Share of lookups that the target gets, in percent.
    pub share: f64,
    /// Duration of the bake.
    pub bake: String,
    /// Approval that the step waits for; empty for none.
    pub approval: String,
}

/// A condition under which a move stops or goes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AbortRule {
    /// The condition in words.
    pub when: String,
    /// The consequence in words.
    pub then: String,
}

/// Time from a fault to the last lookup that reaches the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WayBack {
    /// Sum of the parts in minutes, rounded up, for a target that fails.
    pub minutes: u64,
    /// The same for a target whose state is not known.
    pub minutes_if_unknown: u64,
    /// The parts in seconds, with their names.
    pub parts: Vec<(String, u64)>,
}

/// Outlines a move from its manifest.
#[must_use]
pub fn outline_move(migration: &RealtimeMigration) -> MoveOutline {
    let metadata = &migration.metadata;
    let namespace = metadata.namespace.as_deref().unwrap_or("default");
    MoveOutline {
        migration: format!("{namespace}/{}", metadata.name.as_deref().unwrap_or_default()),
        target: migration.spec.cluster_ref.name.clone(),
        source: migration.spec.source.kind,
        tracks: migration.spec.tracks.iter().map(|track| outline_track(migration, namespace, track)).collect(),
    }
}

fn outline_track(migration: &RealtimeMigration, namespace: &str, track: &MigrationTrack) -> TrackOutline {
    let plan = TrackPlan::of_track(&migration.spec, track);
    let record = WeightedRecord::of_track(track);
    let objects = match track.engine {
        RecordEngine::DNSEndpoint => vec![record.to_endpoint(&endpoint_name(migration, track), namespace, 1)],
        RecordEngine::External => vec![],
    };
    let steps = (0_u32..).zip(&plan.steps).map(|(index, step)| {
        let source_weight = plan.source_weight_at(index);
        OutlinedStep {
            weight: step.weight,
            source_weight,
            share: (share_of(step.weight, source_weight) * 1000.0).round() / 10.0,
            bake: describe_duration(step.bake_ms),
            approval: describe_approval(&plan, index),
        }
    });
    let waits = plan.steps.iter().map(|step| step.bake_ms + plan.ttl_ms);
    let way_back = WayBack::of_plan(&plan, track.engine);
    TrackOutline {
        transport: track.transport,
        host: track.host.clone(),
        engine: track.engine,
        objects,
        before: list_conditions(migration, track),
        steps: steps.collect(),
        shortest: describe_duration(waits.sum()),
        aborts: list_aborts(&plan, way_back.minutes),
        way_back,
        change_batch: record.to_change_batch(0),
        notes: list_notes(&plan, track),
    }
}

fn describe_approval(plan: &TrackPlan, index: u32) -> String {
    let weight = plan.step(index).weight;
    if plan.needs_approval(index) { format!("spec.approvedThrough: {weight}") } else { String::new() }
}

fn list_conditions(migration: &RealtimeMigration, track: &MigrationTrack) -> Vec<String> {
    let acknowledged = &migration.spec.acknowledgements;
    let fan_out = if acknowledged.split_fan_out.as_ref() == Some(&track.host) {
        "accepted by acknowledgements.splitFanOut: clients of the two clusters may not hear each other"
    } else {
        "both clusters share one bus.group on one Redis"
    };
    let sessions = if acknowledged.unpinned_sessions.as_ref() == Some(&track.host) {
        "accepted by acknowledgements.unpinnedSessions: a session breaks when its client's next lookup leads elsewhere"
    } else {
        "both clusters keep a session by a canonicalHost of their own"
    };
    let record = match track.engine {
        RecordEngine::DNSEndpoint => {
            "external-dns has the source `crd`, `--policy sync` and a `--txt-owner-id` of its own"
        }
        RecordEngine::External => "somebody sets each weight, and acknowledges it",
    };
    let source = format!(
        "the source's record for {} is a CNAME of weight {} with TTL {} (`realtime migrate prepare`)",
        track.host, migration.spec.source.weight, track.ttl_seconds
    );
    let review = "the review of both clusters has no blocking finding, and its hash is spec.review.approvedHash";
    let proof = "the target passes its journeys over every transport of the track; until then it has no record";
    let texts: [String; 6] = [fan_out, sessions, record, &source, review, proof].map(str::to_owned);
    texts.into()
}

fn list_aborts(plan: &TrackPlan, minutes: u64) -> Vec<AbortRule> {
    let rule = |when: &str, then: &str| AbortRule { when: when.to_owned(), then: then.to_owned() };
    let sessions = match plan.after_rollback {
        RollbackSessions::Drain => "then open sessions are asked to reconnect",
        RollbackSessions::Keep => "open sessions stay (afterRollback: Keep)",
    };
    let back = format!("weight 0, then no record; at most {minutes} min to the last lookup; {sessions}");
    let failing = match plan.on_failure {
        FailureReaction::Rollback => back.as_str(),
        FailureReaction::Freeze => "the weight stays (onFailure: Freeze) until a person decides",
    };
    let unknown = describe_duration(plan.limits.unknown_ms);
    let mut rules = vec![
        rule("the target fails, and the source passes or is not known", failing),
        rule("both fail at one hop", "the weight stays: they share the cause, and moving cannot help"),
        rule("the source fails, and the target passes", "the weight stays, and a person decides"),
        rule(&format!("the target is not known for more than {unknown}"), "weight 0 until it passes again"),
        rule("weight 0 leaves the target in the answers during the brake's test", "the move ends as Failed"),
        rule("the target's images or variables change", "the bake begins again; a changed review needs an approval"),
        rule("the answers do not fit the weight any more", "the bake stops until they do"),
        rule("no other record is answered", "the weight stays: without it nothing would be answered"),
        rule("the migration is deleted before its end", "weight 0, then no record, then the object goes"),
    ];
    rules.extend(list_gate_rules(plan));
    rules
}

/// The gates beyond the proof, as far as they are enabled.
fn list_gate_rules(plan: &TrackPlan) -> Vec<AbortRule> {
    let hold = "the weight stays, no bake counts and no weight rises until they pass, or a person decides";
    let delivery = (plan.delivery.state == EnabledState::Enabled).then(|| {
        let most = plan.delivery.max_delta;
        format!("more than {most} % of the webhook endpoints fail at the target and not at the source")
    });
    let headroom = (plan.headroom.state == EnabledState::Enabled).then(|| {
        let way_back = match plan.after_rollback {
            RollbackSessions::Drain => ", or all clients none at the source",
            RollbackSessions::Keep => "",
        };
        let reserve = plan.headroom.reserve;
        format!("the clients of the next weight have no room at the target beyond a reserve of {reserve} %{way_back}")
    });
    delivery.into_iter().chain(headroom).map(|when| AbortRule { when, then: hold.to_owned() }).collect()
}

fn list_notes(plan: &TrackPlan, track: &MigrationTrack) -> Vec<String> {
    let mut notes = Vec::new();
    if let [.., last, cutover] = plan.steps.as_slice() {
        let moved = share_of(cutover.weight, 1) - share_of(last.weight, plan.source_weight);
        if moved * 100.0 > CUTOVER_SHARE_MAX {
            notes.push(format!(
                "the cutover moves {:.0} % of lookups at once: add a step with a weight above {}",
                moved * 100.0,
                last.weight
            ));
        }
    }
    if track.engine == RecordEngine::External {
        notes.push("the way back takes as long as whoever sets the weights: nothing else can do it".to_owned());
    }
    notes.push(
        "resolvers that ignore the TTL ask the former cluster for one or two days: keep the source at full size until the \
         end of the cutover's bake"
            .to_owned(),
    );
    notes.push("weights move lookups: open connections stay until they end or their pods are drained".to_owned());
    notes
}

impl WayBack {
    fn of_plan(plan: &TrackPlan, engine: RecordEngine) -> Self {
        let writing = match engine {
            RecordEngine::DNSEndpoint => {
                vec![("sync of external-dns", SYNC_SECONDS), ("propagation in Route 53", PROPAGATION_SECONDS)]
            }
            RecordEngine::External => {
                vec![("propagation in the zone, after somebody set the weight", PROPAGATION_SECONDS)]
            }
        };
        let first = [("proof of the failure", DETECTION_SECONDS), ("turn of the move", TURN_SECONDS)];
        let parts = first.into_iter().chain(writing).chain([("TTL of the record", plan.ttl_ms / 1000)]);
        let parts: Vec<(String, u64)> = parts.map(|(name, seconds)| (name.to_owned(), seconds)).collect();
        let seconds: u64 = parts.iter().map(|(_, seconds)| seconds).sum();
        let unknown =
            seconds - DETECTION_SECONDS + plan.limits.unknown_ms.max(MoveLimits::default().evidence_ms) / 1000;
        Self { minutes: seconds.div_ceil(60), minutes_if_unknown: unknown.div_ceil(60), parts }
    }
}

/// Renders an outline as a text for a terminal. Writing to a text cannot fail.
#[must_use]
pub fn render_outline(outline: &MoveOutline) -> String {
    let source = match outline.source {
        SourceKind::Operator => "an operated source",
        SourceKind::Foreign => "a foreign source",
    };
    let mut text = format!("Move {} from {source} to {}\n", outline.migration, outline.target);
    for track in &outline.tracks {
        add_track(&mut text, track);
    }
    text
}

fn add_track(text: &mut String, track: &TrackOutline) {
    let _ = writeln!(text, "\n{}: at least {}, approvals apart", track.host, track.shortest);
    text.push_str("\nBefore the first record\n");
    for (number, condition) in (1..).zip(&track.before) {
        let _ = writeln!(text, "  {number}. {condition}");
    }
    text.push_str("\n  step  weight  source  share of lookups  bake       approval\n");
    text.push_str("  test  1, 0, 1 before any bake: weight 0 must take the target out of all answers\n");
    for (number, step) in (1..).zip(&track.steps) {
        let share = format!("{:.1} %", step.share);
        let line = format!(
            "  {number:<5} {:<7} {:<7} {share:<17} {:<10} {}",
            step.weight, step.source_weight, step.bake, step.approval
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text.push_str("\nIt stops or goes back when\n");
    for rule in &track.aborts {
        let _ = writeln!(text, "  {}\n      → {}", rule.when, rule.then);
    }
    let back = &track.way_back;
    let parts: Vec<String> = back.parts.iter().map(|(name, seconds)| format!("{name} {seconds} s")).collect();
    let _ = writeln!(
        text,
        "\nNo new lookup reaches the target {} min after a fault at the latest ({} min if its state is not known):\n  {}",
        back.minutes,
        back.minutes_if_unknown,
        parts.join(" + ")
    );
    for object in &track.objects {
        let yaml = crate::api::yaml::yaml_document(object).unwrap_or_default();
        let _ = writeln!(text, "\nTo be written, at weight 1\n{}", indent(yaml.trim_start_matches("---\n")));
    }
    let _ = writeln!(
        text,
        "\nBack by hand, if nobody else can: stop external-dns, which would write its weight again, and then\n  \
         aws route53 change-resource-record-sets --hosted-zone-id ZONE --change-batch '{}'",
        track.change_batch
    );
    text.push_str("\nNotes\n");
    for note in &track.notes {
        let _ = writeln!(text, "  {note}");
    }
}

fn indent(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(more: &str) -> MoveOutline {
        let text = include_str!("../../tests/fixtures/migration/move.yaml");
        let text =
            text.replace("targetHost: sockjs.eks.example.com", &format!("targetHost: sockjs.eks.example.com, {more}"));
        outline_move(&serde_yaml::from_str(&text).expect("a migration"))
    }

    #[test]
    fn a_plan_has_every_weight_with_its_share_and_the_time_of_the_way_back() {
        let outline = outline("");
        let track = &outline.tracks[0];
        let steps: Vec<(u8, u8, f64)> =
            track.steps.iter().map(|step| (step.weight, step.source_weight, step.share)).collect();
        assert_eq!(steps[0], (1, 20, 4.8));
        assert_eq!(steps.last(), Some(&(255, 1, 99.6)));
        assert_eq!(track.steps.last().map(|step| step.approval.as_str()), Some("spec.approvedThrough: 255"));
        let sum: u64 = track.way_back.parts.iter().map(|(_, seconds)| seconds).sum();
        assert_eq!((sum, track.way_back.minutes, track.way_back.minutes_if_unknown), (225, 4, 10));
        assert_eq!(track.objects[0]["spec"]["endpoints"][0]["setIdentifier"], "sockjs.eks.example.com");
        assert_eq!(track.change_batch["Changes"][0]["ResourceRecordSet"]["Weight"], 0);
        let text = render_outline(&outline);
        for part in ["4 min after a fault", "aws/weight", "change-batch '{\"", "--policy sync", "at least 11 d 1 h"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn gates_that_are_enabled_are_in_the_plan() {
        let rules = |more: &str| -> Vec<String> {
            let track = outline(more).tracks.remove(0);
            let gates = track.aborts.into_iter().filter(|rule| rule.then.contains("until they pass"));
            gates.map(|rule| rule.when).collect()
        };
        let all = rules("onFailure: Rollback");
        assert!(all.len() == 2 && all[0].starts_with("more than 1 %") && all[1].contains("30 %, or all"), "{all:?}");
        let one = rules("afterRollback: Keep, gates: { delivery: { state: Disabled }, headroom: { reserve: 10 } }");
        assert!(one.len() == 1 && one[0].ends_with("a reserve of 10 %"), "{one:?}");
    }

    #[test]
    fn a_cutover_that_moves_much_at_once_and_a_slow_engine_are_remarked() {
        let outline =
            outline("engine: External, steps: [{ weight: 1, bakeSeconds: 600 }, { weight: 20, bakeSeconds: 600 }]");
        let track = &outline.tracks[0];
        assert!(track.objects.is_empty() && track.notes.iter().any(|note| note.contains("50 % of lookups at once")));
        assert!(track.notes.iter().any(|note| note.contains("as long as whoever sets the weights")));
    }
}
