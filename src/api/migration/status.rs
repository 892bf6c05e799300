//! Status of a `RealtimeMigration`: its phase and reason, the three facts of a weight, and the memory of its decisions.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{GateName, TrackGateStatus, TrackTransport};

/// Observed state of a move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RealtimeMigrationStatus {
    /// Generation of the spec that this status describes; -1 until it was first reconciled.
    #[serde(default = "unobserved_status")]
    pub observed_generation: i64,
    /// Phase of the move.
    #[serde(default)]
    pub phase: MigrationPhase,
    /// Conditions, one of each type: `Ready` is True while the move runs well, `Completed` once it is over.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The snapshot of the source that the decisions are made with; absent until one was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SnapshotIdentity>,
    /// State of each track.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["transport".into()]))]
    pub tracks: Vec<TrackStatus>,
}

/// Identity of a snapshot, which no other snapshot has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotIdentity {
    /// `NAMESPACE/NAME` of the cluster, or of the first Deployment.
    pub cluster: String,
    /// UID of the cluster, or of the first Deployment.
    pub uid: String,
    /// Time at which the snapshot was taken, in ms since 1970.
    pub sequence: u64,
}

impl Default for RealtimeMigrationStatus {
    fn default() -> Self {
        Self {
            observed_generation: unobserved_status(),
            phase: MigrationPhase::default(),
            conditions: vec![],
            source: None,
            tracks: vec![],
        }
    }
}

fn unobserved_status() -> i64 {
    -1
}

/// State of one track.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrackStatus {
    /// The transport that moves.
    pub transport: TrackTransport,
    /// Host that clients look up.
    pub host: String,
    /// Number of the step, of all with the cutover: `3/7`.
    pub step: String,
    /// Weight that the target's record should have: `20`, or `no record`.
    pub desired: String,
    /// Share of lookups that authoritative servers answer with the target: `48.5 % of 200`.
    pub applied: String,
    /// Share of new connections that the target gets: `47.1 %`.
    pub observed: String,
    /// Weight that the source's record should have.
    pub source_weight: u8,
    /// Time that the present bake still takes: `11 h 20 min`; empty outside a bake.
    #[serde(default)]
    pub bake_left: String,
    /// Sessions of clients that are left at the target after a rollback; absent otherwise, and while they are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions_left: Option<u64>,
    /// State of each gate beyond the proof.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<TrackGateStatus>,
    /// Reason of the phase.
    pub reason: MigrationReason,
    /// The event in a sentence.
    #[serde(default)]
    pub message: String,
    /// The next step, and whose it is, in a sentence.
    #[serde(default)]
    pub next_step: String,
    /// Memory of the decisions, from which a restarted operator goes on.
    pub progress: TrackProgress,
}

/// Phases of a move. A record exists from `Shifting` on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum MigrationPhase {
    /// The cluster of the move was not found yet.
    #[default]
    Pending,
    /// The record, the bus and the sessions are checked.
    Preflight,
    /// The review of both clusters waits for its approval.
    Reviewing,
    /// The target has to prove the transport.
    Gated,
    /// A weight is being applied.
    Shifting,
    /// The weight is applied, and its bake runs.
    Baking,
    /// The next step waits for a person.
    AwaitingApproval,
    /// The target's weight is 255, and the source's becomes 1.
    CuttingOver,
    /// The move is over, and the record stays.
    Completed,
    /// The weight stays as it is, since another one cannot help, or a person decides.
    Frozen,
    /// The weight becomes 0, then the record is deleted.
    RollingBack,
    /// The record is deleted, and the source has every lookup.
    RolledBack,
    /// The brake does not work: a person decides.
    Failed,
}

impl fmt::Display for MigrationPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Reasons of a phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum MigrationReason {
    /// The cluster of the move does not exist, or has no status.
    #[default]
    ClusterMissing,
    /// A check of the record, the bus or the sessions found an obstacle.
    PreflightFailed,
    /// A record of this move exists that no step of it wrote.
    RecordExists,
    /// There is no snapshot of the source that can be used.
    SnapshotMissing,
    /// A finding of the review blocks the move.
    ReviewBlocked,
    /// The review's hash is not the approved one.
    ReviewNotApproved,
    /// The target does not pass the transport's journeys yet.
    TargetNotProven,
    /// The brake is tested: weight 1, weight 0, weight 1.
    TestingBrake,
    /// The weight is written, and the servers of the zone do not answer by it yet.
    ApplyingWeight,
    /// The servers of the zone still do not answer by the weight after the time for it.
    WeightNotApplied,
    /// The answers stopped to fit the weight: the record was changed by another hand.
    WeightsDiffer,
    /// The bake of the step runs.
    BakeRunning,
    /// The target runs with another configuration, and the step's bake began again.
    FingerprintChanged,
    /// The bake is over, and the next step needs an approval.
    ApprovalMissing,
    /// A gate beyond the proof fails: no bake counts, and no weight rises.
    GateFailing,
    /// The manifest suspends the move.
    Suspended,
    /// The target has weight 255, and the source's record still has its former weight.
    SourceWeightAwaited,
    /// The cutover's bake is over.
    MoveCompleted,
    /// The target fails, and the source passes.
    TargetFailing,
    /// The target's state is not known.
    TargetUnknown,
    /// Both clusters fail at one hop: they share the cause.
    SharedFailure,
    /// The source fails, and the target passes.
    SourceFailing,
    /// Without the target's record no lookup would have an answer.
    NoWayBack,
    /// Weight 0 did not take the target out of the answers within its time.
    BrakeFailed,
    /// The move is being deleted.
    MoveDeleted,
    /// The record is deleted, and the target's clients are asked to reconnect.
    DrainingSessions,
    /// The record is deleted.
    RecordDeleted,
}

impl MigrationReason {
    /// Whether the move waits for a repair, whatever its phase.
    #[must_use]
    pub fn needs_repair(self) -> bool {
        matches!(self, Self::RecordExists | Self::WeightNotApplied | Self::WeightsDiffer | Self::GateFailing)
    }

    /// Every reason, in the order of a move.
    pub const ALL: [Self; 27] = [
        Self::ClusterMissing,
        Self::PreflightFailed,
        Self::RecordExists,
        Self::SnapshotMissing,
        Self::ReviewBlocked,
        Self::ReviewNotApproved,
        Self::TargetNotProven,
        Self::TestingBrake,
        Self::ApplyingWeight,
        Self::WeightNotApplied,
        Self::WeightsDiffer,
        Self::BakeRunning,
        Self::FingerprintChanged,
        Self::ApprovalMissing,
        Self::GateFailing,
        Self::Suspended,
        Self::SourceWeightAwaited,
        Self::MoveCompleted,
        Self::TargetFailing,
        Self::TargetUnknown,
        Self::SharedFailure,
        Self::SourceFailing,
        Self::NoWayBack,
        Self::BrakeFailed,
        Self::MoveDeleted,
        Self::DrainingSessions,
        Self::RecordDeleted,
    ];
}

impl fmt::Display for MigrationReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Memory of the decisions about one track: everything that a restarted operator needs to go on. Times are in ms since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrackProgress {
    /// Phase of the track.
    pub phase: MigrationPhase,
    /// Reason of the phase.
    pub reason: MigrationReason,
    /// The event in a sentence.
    pub message: String,
    /// Index of the step; the number of steps stands for the cutover.
    pub step: u32,
    /// Weight that the target's record should have; absent for no record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired: Option<u8>,
    /// State of the brake's test.
    pub brake: BrakeTest,
    /// Time of the latest turn.
    pub turn_ms: u64,
    /// Time at which the desired weight was decided.
    pub desired_ms: u64,
    /// Time since which the servers of the zone answer by the weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied_ms: Option<u64>,
    /// Time since which the target's state is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_ms: Option<u64>,
    /// Part of the step's bake that is over, in ms.
    pub baked_ms: u64,
    /// Gates that failed when they were last measured, at the present record.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failing_gates: Vec<GateName>,
    /// Fingerprint of the target for which the bake counts.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fingerprint: String,
    /// Token of the latest resumption that a person asked for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resume_token: String,
    /// The latest rollback, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RecordedRollback>,
}

/// A rollback, after which the move goes on with another fingerprint or by a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordedRollback {
    /// Fingerprint of the target that failed.
    pub fingerprint: String,
    /// Time at which the record was deleted.
    pub at_ms: u64,
    /// Number of rollbacks so far.
    pub count: u32,
    /// Sessions of clients that were open at the target at the latest turn of its drain; absent while they are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions_left: Option<u64>,
}

/// States of the brake's test: weight 1 is applied, taken back to 0, and applied again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BrakeTest {
    /// Weight 1 is being applied for the test.
    #[default]
    Untested,
    /// Weight 0 is being applied.
    Releasing,
    /// Weight 0 took the target out of the answers.
    Proven,
}
