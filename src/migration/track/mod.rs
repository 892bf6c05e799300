//! The state machine of one track: which weight its record should have, and why.
//!
//! In: the plan, the progress so far, what was observed, and the time. Out: the next progress and the writes that lead to
//! it. The caller stores the progress before it executes a write: after a crash in between, the next turn finds the
//! difference between progress and record, and writes again. This room must not know who writes records, nor clocks.

mod advance;
mod answers;
mod closed;
mod drain;
mod gates;
mod judgement;
mod open;
mod plan;
mod retreat;
mod sentences;
mod summary;
mod suspension;
mod turn;

pub use advance::advance_track;
pub use answers::{AnswerSample, needed_queries, share_of};
pub use drain::is_draining;
pub use gates::{ClusterEvidence, GateEvidence};
pub use plan::{MoveLimits, PlannedStep, TrackPlan};
pub use sentences::{describe_duration, describe_track};
pub use summary::summarize_move;

/// Everything that is observed before a turn.
#[derive(Clone, Debug, PartialEq)]
pub struct TrackObservations {
    /// Proof of the transport at the target; `None` while its cluster does not exist.
    pub target: Option<ProofReading>,
    /// Proof of the transport at the source; `None` where no snapshot has one, which counts as passing.
    pub source: Option<ProofReading>,
    /// Fingerprint of the target: its images and variables.
    pub fingerprint: String,
    /// Result of the checks before the first record.
    pub preflight: PreflightResult,
    /// The review of both clusters, or the reason for which there is no usable snapshot of the source.
    pub review: Result<ReviewReading, String>,
    /// Weight of the target's record as its writer has it, or as it was acknowledged; `None` for no record.
    pub written: Option<u8>,
    /// The latest answers of the zone's authoritative servers.
    pub answers: Option<AnswerSample>,
    /// Sessions of clients that are open at the target, by the track's transports; `None` while they are not known.
    pub sessions: Option<u64>,
    /// Evidence of the gates beyond the proof.
    pub gates: GateEvidence,
    /// Hash that a person approved.
    pub approved_hash: Option<String>,
    /// Largest weight that a person approved.
    pub approved_through: Option<u8>,
    /// Token of a resumption that a person asks for; empty for none.
    pub resume_token: String,
    /// Whether the manifest suspends the move.
    pub is_suspended: bool,
    /// Whether the move is being deleted.
    pub is_deleted: bool,
}

/// Proof of a transport at one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofReading {
    /// Result of the latest journeys.
    pub proof: TrackProof,
    /// Time of the evidence, in ms since 1970.
    pub at_ms: u64,
}

/// Result of journeys by the transports of a track.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrackProof {
    /// All of the journeys pass.
    Passing,
    /// One fails, at this hop; empty for one that is not known.
    Failing(String),
    /// There is no result.
    Unknown,
}

/// Result of the checks before the first record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreflightResult {
    /// They are under way.
    Running,
    /// Nothing is in the way of the move.
    Passed,
    /// An obstacle, with its remedy.
    Obstacle(String),
}

/// The review as the track needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReviewReading {
    /// Hash that an approval must name.
    pub hash: String,
    /// The first finding that blocks, with its remedy; `None` when none does.
    pub blocked: Option<String>,
}

/// A write. Those of the record are emitted while it differs from the progress, and have no effect if they are executed twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackAction {
    /// Create the record, or change its weight.
    WriteWeight(u8),
    /// Delete the target's record.
    DeleteRecord,
    /// Have a share of the target's clients reconnect, in percent.
    ShedSessions(u8),
    /// Let the object of the move go.
    ReleaseObject,
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
