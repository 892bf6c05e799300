//! `RealtimeMigration`: the move of one transport's clients from another cluster to the one of its namespace.
//!
//! In: nothing. Out: the desired move with its rules, and the status that a person reads. The decisions are those of the
//! room `migration`; this one must not know them.

mod gates;
mod obstacle;
mod status;

pub use gates::{DeliveryGate, GateName, GateState, HeadroomGate, MigrationGates, TrackGateStatus};
pub use obstacle::{MoveObstacle, obstacles_table};
pub use status::{
    BrakeTest, MigrationPhase, MigrationReason, RealtimeMigrationStatus, RecordedRollback, SnapshotIdentity,
    TrackProgress, TrackStatus,
};

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SecretKeyRef;

/// Largest weight of a record (Route 53, developer guide, "Weighted routing"), and the target's weight after the cutover.
pub const RECORD_WEIGHT_MAX: u8 = 255;

/// Secret with the key of both clusters' snapshots, as `realtime migrate init` names it.
pub const SNAPSHOT_KEY_SECRET: &str = "realtime-migration";

/// Field of that Secret with the key.
pub const SNAPSHOT_KEY_FIELD: &str = "key";

/// Annotation of a move whose new value asks to go on after a rollback, a freeze or a failure of the brake.
pub const RESUME_ANNOTATION: &str = "realtime-operator.dev/resume";

/// The desired state of a move.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "realtime-operator.dev",
    version = "v1alpha1",
    kind = "RealtimeMigration",
    plural = "realtimemigrations",
    shortname = "rtm",
    category = "realtime",
    namespaced,
    cel,
    doc = "A move of one transport's clients from another cluster to the cluster of this namespace, by the weight of a DNS record.",
    status = "RealtimeMigrationStatus",
    derive = "PartialEq",
    printcolumn(name = "Host", type_ = "string", json_path = ".status.tracks[0].host"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.tracks[0].step"),
    printcolumn(name = "Desired", type_ = "string", json_path = ".status.tracks[0].desired"),
    printcolumn(name = "Applied", type_ = "string", json_path = ".status.tracks[0].applied"),
    printcolumn(name = "Observed", type_ = "string", json_path = ".status.tracks[0].observed"),
    printcolumn(name = "Bake-Left", type_ = "string", json_path = ".status.tracks[0].bakeLeft"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.tracks[0].nextStep"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec.source.type != 'Foreign' || self.spec.tracks.all(track, track.transport != 'sockjs' || (has(self.spec.acknowledgements.unpinnedSessions) && self.spec.acknowledgements.unpinnedSessions == track.host))").message("sessions of a foreign source do not stay in their cluster when a client's next lookup leads to the other: write the track's host into acknowledgements.unpinnedSessions if you accept these losses"),
    validation = Rule::new("!has(self.spec.acknowledgements.splitFanOut) || self.spec.tracks.exists(track, track.host == self.spec.acknowledgements.splitFanOut)").message("acknowledgements.splitFanOut is the host of no track: write the host that may be split"),
    validation = Rule::new("self.spec.source.type != 'Operator' || !has(self.spec.acknowledgements.unpinnedSessions)").message("acknowledgements.unpinnedSessions is for a foreign source: an operated one keeps sessions by sockjs.canonicalHost"),
    validation = Rule::new("!has(self.spec.approvedThrough) || self.spec.approval != 'None'").message("approvedThrough without approval has no effect: remove it, or write approval: PerStep or Cutover"),
    validation = Rule::new("!has(self.spec.approvedThrough) || self.spec.approvedThrough == 255 || self.spec.tracks.exists(track, track.steps.exists(step, step.weight == self.spec.approvedThrough))").message("approvedThrough is the weight of no step: write the weight of a step, or 255 for the cutover")
)]
#[serde(rename_all = "camelCase")]
pub struct RealtimeMigrationSpec {
    /// The cluster that gets the clients, in this namespace. Immutable.
    #[x_kube(validation = Rule::new("self == oldSelf").message("clusterRef is immutable: create another RealtimeMigration"))]
    pub cluster_ref: ClusterRef,
    /// The cluster that has the clients.
    pub source: MigrationSource,
    /// Approval of the review of both clusters.
    #[serde(default)]
    pub review: ReviewApproval,
    /// The transports to move, one after the other.
    #[schemars(length(min = 1, max = 2))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["transport".into()]))]
    pub tracks: Vec<MigrationTrack>,
    /// Steps that wait for `approvedThrough`.
    #[serde(default)]
    pub approval: ApprovalMode,
    /// Largest weight that is approved; 255 approves the cutover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub approved_through: Option<u8>,
    /// Keeps the weight and stops the clock of the bake. A target that fails is taken out of the answers all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
    /// Losses that you accept, each by the host of its track.
    #[serde(default)]
    pub acknowledgements: MigrationAcknowledgements,
}

/// Reference to a RealtimeCluster in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterRef {
    /// Name of the RealtimeCluster.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
}

/// The cluster that has the clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationSource {
    /// Whether an operator of this project proves the source.
    #[serde(default, rename = "type")]
    pub kind: SourceKind,
    /// The latest snapshot of the source, as `realtime snapshot` prints it.
    pub snapshot: SnapshotRef,
    /// Key of a Secret with the key of both clusters' snapshots, as `realtime migrate init` prints it.
    #[serde(default = "default_snapshot_key")]
    pub key_secret_ref: SecretKeyRef,
    /// Weight of the source's record, which stays as it is until the cutover.
    #[serde(default = "default_source_weight")]
    #[schemars(range(min = 2, max = 255))]
    pub weight: u8,
}

/// Kinds of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SourceKind {
    /// A RealtimeCluster whose operator proves it.
    #[default]
    Operator,
    /// Servers that no operator of this project proves.
    Foreign,
}

/// Place of a snapshot: exactly one of the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.secretRef) != has(self.configMapRef)").message("source.snapshot has one place: write secretRef or configMapRef")
)]
pub struct SnapshotRef {
    /// Key of a Secret with the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyRef>,
    /// Key of a `ConfigMap` with the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<ConfigMapKeyRef>,
}

/// Reference to one key of a `ConfigMap` in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct ConfigMapKeyRef {
    /// Name of the `ConfigMap`.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')").message("this is no name of a ConfigMap: write lower-case letters, digits, dashes and dots"))]
    pub name: String,
    /// Key within the `ConfigMap`.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')").message("this is no key of a ConfigMap: write letters, digits, dashes, dots and underscores"))]
    pub key: String,
}

/// Approval of the review.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReviewApproval {
    /// Approval hash of the review that was read, as `realtime migrate review` prints it. No record is written without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f]{32}$')").message("review.approvedHash is no approval hash: copy the one at the end of the review"))]
    pub approved_hash: Option<String>,
    /// Findings that do not block, each `CODE`, or `CODE:SUBJECT` for one of them, as `realtime migrate review --accept` has
    /// them. The split of a fan-out is accepted by `acknowledgements.splitFanOut`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(length(max = 200)))]
    #[x_kube(validation = Rule::new("self.all(found, found.matches('^[A-Z][A-Za-z]+(:.+)?$'))").message("review.accepted is no list of findings: write CODE or CODE:SUBJECT, as the review has them"))]
    pub accepted: Vec<String>,
}

/// One transport and the record that its clients look up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.transport != 'websocket'").message("FallbackGateMissing: WebSocket clients that cannot connect fall back to the HTTP transports, and no gate measures their share yet: move websocket by hand, and sockjs by a track"),
    validation = Rule::new("self.host != self.targetHost").message("targetHost equals host: a CNAME cannot point to itself, write the host that only this cluster has"),
    validation = Rule::new("self.steps.all(step, step.bakeSeconds >= 2 * self.ttlSeconds)").message("a bake is shorter than two TTLs, in which lookups have not moved yet: write a longer bakeSeconds"),
    validation = Rule::new("self.cutover.bakeSeconds >= 2 * self.ttlSeconds").message("cutover.bakeSeconds is shorter than two TTLs, in which lookups have not moved yet: write a longer one")
)]
pub struct MigrationTrack {
    /// The transport that moves.
    pub transport: TrackTransport,
    /// Host that clients look up, which both clusters serve. Immutable.
    #[schemars(length(max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?[.]){2,}[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("host is no host below a zone: a weighted record is a CNAME, which the name of a zone cannot have"),
        validation = Rule::new("self == oldSelf").message("host is immutable: create another RealtimeMigration")
    )]
    pub host: String,
    /// Host that leads to this cluster alone, to which its weighted record points. Immutable.
    #[schemars(length(max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?[.])+[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("targetHost is no host name: write the host to which the record points"),
        validation = Rule::new("self == oldSelf").message("targetHost is immutable, since it identifies the record: create another RealtimeMigration")
    )]
    pub target_host: String,
    /// The writer of the record. Immutable.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("engine is immutable, since two writers of one record undo each other: create another RealtimeMigration"))]
    pub engine: RecordEngine,
    /// TTL of the record, the same as that of the source's. Immutable.
    #[serde(default = "default_ttl_seconds")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("ttlSeconds is immutable, since records of one host share it: create another RealtimeMigration"))]
    #[schemars(range(min = 5, max = 300))]
    pub ttl_seconds: u32,
    /// Weights of the target's record in their order, each with its bake.
    #[serde(default = "default_steps")]
    #[schemars(length(min = 1, max = 9))]
    #[x_kube(
        validation = Rule::new("self[0].weight == 1").message("the first step is not of weight 1: the brake is tested at weight 1 before any client counts on it"),
        validation = Rule::new("[0, 1, 2, 3, 4, 5, 6, 7].all(i, i + 1 >= self.size() || self[i].weight < self[i + 1].weight)").message("the weights of steps do not rise: write each weight above the one before")
    )]
    pub steps: Vec<MigrationStep>,
    /// The end of the move: weight 255 against 1 of the source, so that the brake stays.
    #[serde(default)]
    pub cutover: CutoverSpec,
    /// Reaction to a failure of the target while the source passes.
    #[serde(default)]
    pub on_failure: FailureReaction,
    /// Treatment of the sessions that are open at the target once a rollback has taken its lookups.
    #[serde(default)]
    pub after_rollback: RollbackSessions,
    /// Conditions under which the track goes on.
    #[serde(default)]
    pub gates: MigrationGates,
}

/// Transports of a track, each with a host of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TrackTransport {
    /// WebSocket, by its own host.
    Websocket,
    /// The HTTP fallbacks of pusher-js.
    Sockjs,
}

/// Writers of the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RecordEngine {
    /// An object `DNSEndpoint`, from which external-dns writes the record.
    #[default]
    DNSEndpoint,
    /// A person or another tool, which acknowledges each weight.
    External,
}

/// One weight and its bake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationStep {
    /// Weight of the target's record.
    #[schemars(range(min = 1, max = 254))]
    pub weight: u8,
    /// Seconds for which the target must pass at this weight before the next step.
    #[schemars(range(min = 10, max = 2_592_000))]
    pub bake_seconds: u32,
}

/// The end of the move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CutoverSpec {
    /// Seconds for which the target must pass at weight 255 before the move is complete. The source keeps its size meanwhile.
    #[schemars(range(min = 10, max = 2_592_000))]
    pub bake_seconds: u32,
}

impl Default for CutoverSpec {
    fn default() -> Self {
        Self { bake_seconds: 7 * 24 * 3600 }
    }
}

/// Reactions to a failure of the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FailureReaction {
    /// Weight 0, then no record.
    #[default]
    Rollback,
    /// The weight stays, and a person decides.
    Freeze,
}

/// Treatments of a target's sessions after a rollback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RollbackSessions {
    /// Clients are asked to reconnect, a share at a time, and find the source.
    #[default]
    Drain,
    /// Sessions stay until their clients leave: for a target whose server has clients of other hosts too.
    Keep,
}

/// Steps that wait for a person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApprovalMode {
    /// No step waits for one.
    None,
    /// Every step after the first, and the cutover.
    PerStep,
    /// The cutover waits alone.
    #[default]
    Cutover,
}

/// Losses that a person accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationAcknowledgements {
    /// Host of the track whose clients may miss the events of the other cluster, because the clusters share no bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub split_fan_out: Option<String>,
    /// Host of the track whose sessions break when a client's next lookup leads to the other cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub unpinned_sessions: Option<String>,
}

fn default_snapshot_key() -> SecretKeyRef {
    SecretKeyRef { name: SNAPSHOT_KEY_SECRET.to_owned(), key: SNAPSHOT_KEY_FIELD.to_owned() }
}

fn default_source_weight() -> u8 {
    20
}

fn default_ttl_seconds() -> u32 {
    60
}

/// An hour at weight 1, then shares of 20, 50, 75, 90 and 93 % against a source of weight 20.
fn default_steps() -> Vec<MigrationStep> {
    const HOUR: u32 = 3600;
    [(1, HOUR), (5, 12 * HOUR), (20, 24 * HOUR), (60, 24 * HOUR), (180, 24 * HOUR), (250, 12 * HOUR)]
        .map(|(weight, bake_seconds)| MigrationStep { weight, bake_seconds })
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::EnabledState;

    #[test]
    fn a_short_manifest_has_the_defaults_of_the_page() {
        let text = include_str!("../../../tests/fixtures/migration/move.yaml");
        let found: RealtimeMigration = serde_yaml::from_str(text).expect("a migration");
        assert!(found.validate_cel().is_ok(), "{:?}", found.validate_cel());
        let track = &found.spec.tracks[0];
        assert_eq!((found.spec.source.weight, track.ttl_seconds, track.gates.unknown_seconds), (20, 60, 120));
        let (delivery, headroom) = (track.gates.delivery, track.gates.headroom);
        assert_eq!((delivery.max_delta, headroom.reserve, headroom.state), (1, 30, EnabledState::Enabled));
        assert_eq!(track.steps.iter().map(|step| step.weight).collect::<Vec<_>>(), [1, 5, 20, 60, 180, 250]);
        assert_eq!((track.cutover.bake_seconds, track.on_failure), (604_800, FailureReaction::Rollback));
        assert_eq!((found.spec.approval, track.engine), (ApprovalMode::Cutover, RecordEngine::DNSEndpoint));
    }
}
