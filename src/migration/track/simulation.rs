//! A world for the machine's tests: a record's object, a zone that follows it later, two clusters and a person.

use super::gates::judge_gates;
use super::{
    AnswerSample, ClusterEvidence, GateEvidence, PreflightResult, ProofReading, ReviewReading, TrackAction,
    TrackObservations, TrackPlan, TrackProof, advance_track, describe_track, needed_queries,
};
use crate::api::migration::{
    ApprovalMode, FailureReaction, GateState, MigrationPhase, MigrationReason, RealtimeMigration, TrackProgress,
    TrackTransport,
};
use crate::migration::{DeliverySnapshot, EdgeLoad};

/// Time between two turns.
pub const TURN_MS: u64 = 10_000;
/// Hash of the review.
pub const HASH: &str = "00112233445566778899aabbccddeeff";

/// A way for a turn to end early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The progress is not stored: nothing happened.
    BeforeStore,
    /// The progress is stored, and no action executed.
    BeforeAction,
    /// The action is executed, and the process ends.
    AfterAction,
}

/// The world around one track.
pub struct World {
    pub plan: TrackPlan,
    /// The progress as it is stored, read anew at each turn.
    pub stored: TrackProgress,
    pub now_ms: u64,
    pub observations: TrackObservations,
    /// Weight of the target's record in the zone; it follows the object at the next synchronization.
    pub answered: Option<u8>,
    /// Weight of the source's record in the zone; `None` once a person deleted it.
    pub source: Option<u8>,
    /// Whether the zone follows the object.
    pub syncs: bool,
    /// Whether the source's people follow the request of the cutover.
    pub source_follows: bool,
    /// Sessions of clients at the target.
    pub sessions: u64,
    /// Every action that was executed.
    pub executed: Vec<TrackAction>,
    /// Phases with their reasons, as they were entered.
    pub phases: Vec<(MigrationPhase, MigrationReason)>,
    pub is_released: bool,
}

/// The plan of the fixture, with bakes of a minute.
pub fn short_plan() -> TrackPlan {
    let text = include_str!("../../../tests/fixtures/migration/move.yaml");
    let migration: RealtimeMigration = serde_yaml::from_str(text).expect("a migration");
    let mut plan = TrackPlan::of_track(&migration.spec, &migration.spec.tracks[0]);
    plan.steps.iter_mut().for_each(|step| step.bake_ms = 60_000);
    plan
}

/// Endpoints that deliver, and clients that have room everywhere.
pub fn roomy_evidence() -> GateEvidence {
    let evidence = |open| ClusterEvidence {
        delivery: Some(DeliverySnapshot { attempted: 100, ..DeliverySnapshot::default() }),
        load: Some(EdgeLoad { edges: 4, sessions_max: 4_000, open, others: 0 }),
    };
    GateEvidence { target: evidence(0), source: evidence(2_000), source_at_ms: 0 }
}

impl World {
    /// Both clusters pass, and everything is approved.
    pub fn new() -> Self {
        let now_ms = 1_000_000;
        let reading = ProofReading { proof: TrackProof::Passing, at_ms: now_ms };
        Self {
            plan: short_plan(),
            stored: TrackProgress::default(),
            now_ms,
            observations: TrackObservations {
                target: Some(reading.clone()),
                source: Some(reading),
                fingerprint: "one".to_owned(),
                preflight: PreflightResult::Passed,
                review: Ok(ReviewReading { hash: HASH.to_owned(), blocked: None }),
                written: None,
                answers: None,
                sessions: None,
                gates: GateEvidence::default(),
                approved_hash: Some(HASH.to_owned()),
                approved_through: Some(255),
                resume_token: String::new(),
                is_suspended: false,
                is_deleted: false,
            },
            answered: None,
            source: Some(20),
            syncs: true,
            source_follows: true,
            sessions: 0,
            executed: vec![],
            phases: vec![],
            is_released: false,
        }
    }

    /// A world in which both clusters report deliveries and loads.
    pub fn with_gates() -> Self {
        let mut world = Self::new();
        world.observations.gates = roomy_evidence();
        world
    }

    /// A world in which steps wait, or failures freeze.
    pub fn with(approval: ApprovalMode, on_failure: FailureReaction) -> Self {
        let mut world = Self::new();
        (world.plan.approval, world.plan.on_failure) = (approval, on_failure);
        world
    }

    pub fn set_target(&mut self, proof: TrackProof) {
        self.observations.target = Some(ProofReading { proof, at_ms: self.now_ms });
    }

    pub fn set_source(&mut self, proof: TrackProof) {
        self.observations.source = Some(ProofReading { proof, at_ms: self.now_ms });
    }

    pub fn phase(&self) -> MigrationPhase {
        self.stored.phase
    }

    /// Whether some record is answered because of its weight.
    pub fn has_answer(&self) -> bool {
        self.source.unwrap_or(0) > 0 || self.answered.unwrap_or(0) > 0
    }

    /// One turn, as a controller runs it: observe, decide, store, execute.
    pub fn turn(&mut self, crash: Option<Crash>) {
        if self.is_released {
            return;
        }
        self.now_ms += TURN_MS;
        self.sync();
        self.observe();
        let (next, actions) = advance_track(&self.plan, &self.stored, &self.observations, self.now_ms);
        if crash == Some(Crash::BeforeStore) {
            return;
        }
        if (next.phase, next.reason) != (self.stored.phase, self.stored.reason) {
            assert!(!next.message.is_empty(), "{:?} has no message", next.phase);
            self.phases.push((next.phase, next.reason));
        }
        self.stored = next;
        if crash == Some(Crash::BeforeAction) {
            return;
        }
        for action in actions {
            self.execute(action);
        }
    }

    /// Turns until the phase, 400 at most.
    pub fn run_until(&mut self, phase: MigrationPhase) {
        for _ in 0..400 {
            if self.phase() == phase {
                return;
            }
            self.turn(None);
        }
        panic!("{phase} was not reached: {:?}, {:?}", self.stored, self.phases);
    }

    /// Turns until a weight bakes.
    pub fn run_until_baking(&mut self, weight: u8) {
        for _ in 0..400 {
            if self.phase() == MigrationPhase::Baking && self.stored.desired == Some(weight) {
                return;
            }
            self.turn(None);
        }
        panic!("weight {weight} does not bake: {:?}", self.stored);
    }

    pub fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.turn(None));
    }

    fn execute(&mut self, action: TrackAction) {
        let written = self.observations.written;
        match action {
            TrackAction::WriteWeight(weight) => {
                assert_ne!(written, Some(weight), "an action twice");
                self.assert_may_write(weight);
                self.observations.written = Some(weight);
            }
            TrackAction::DeleteRecord => {
                assert!(written.is_some(), "an action twice");
                assert!(self.source.unwrap_or(0) > 0, "the last record is deleted");
                self.observations.written = None;
            }
            TrackAction::ShedSessions(share) => {
                let source = self.observations.source.as_ref().map(|reading| &reading.proof);
                assert!(!matches!(source, Some(TrackProof::Failing(_))), "clients are sent to a source that fails");
                // A record of weight 0 beside another is answered to nobody.
                assert!(self.source.unwrap_or(0) > 0, "no lookup leads to the source");
                assert_eq!(self.answered.unwrap_or(0), 0, "clients would come back");
                self.sessions -= (self.sessions * u64::from(share)).div_ceil(100);
            }
            TrackAction::ReleaseObject => {
                assert!(self.observations.is_deleted && !self.is_released, "an action twice");
                self.is_released = true;
            }
        }
        self.executed.push(action);
    }

    fn assert_may_write(&self, weight: u8) {
        if weight == 0 {
            assert!(self.source.unwrap_or(0) > 0, "the last record gets weight 0: {:?}", self.stored);
        }
        if weight > self.observations.written.unwrap_or(0) {
            let proof = self.observations.target.as_ref().map(|reading| &reading.proof);
            assert_eq!(proof, Some(&TrackProof::Passing), "a target that does not pass gets weight {weight}");
            assert_eq!(self.observations.approved_hash.as_deref(), Some(HASH), "without approval");
            let gates = judge_gates(&self.plan, &self.stored, &self.observations, self.now_ms);
            assert!(gates.iter().all(|gate| gate.state != GateState::Failing), "weight {weight}: {gates:?}");
            assert!(!self.observations.is_suspended, "a suspended move gets weight {weight}");
        }
    }

    fn sync(&mut self) {
        if self.syncs {
            self.answered = self.observations.written;
        }
        // The status asks for it from the cutover on, and for the former weight after a rollback.
        if self.source_follows && self.source.is_some() {
            let plan = (&self.plan, TrackTransport::Sockjs);
            let wanted = describe_track(plan, &self.stored, &self.observations, None).source_weight;
            let is_reached = wanted == self.plan.source_weight || self.answered == Some(255);
            self.source = if is_reached { Some(wanted) } else { self.source };
        }
    }

    /// Asks the zone, whose answers have exactly their share; of records of weight 0 alone each is answered.
    fn observe(&mut self) {
        self.observations.sessions = self.observations.sessions.map(|_| self.sessions);
        self.observations.gates.source_at_ms = self.now_ms;
        let (target, source) = (self.answered, self.source);
        let queries = needed_queries(target.unwrap_or(0), source.unwrap_or(0));
        let weights = match (target, source) {
            (Some(0), Some(0)) => (1, 1),
            (Some(0), None) => (1, 0),
            (None, Some(_)) => (0, 1),
            (target, source) => (target.unwrap_or(0), source.unwrap_or(0)),
        };
        let sum = u32::from(weights.0) + u32::from(weights.1);
        self.observations.answers = (sum > 0).then(|| {
            let target = (queries * u32::from(weights.0) + sum / 2) / sum;
            AnswerSample { queries, target, source: queries - target, at_ms: self.now_ms }
        });
        for reading in [&mut self.observations.target, &mut self.observations.source].into_iter().flatten() {
            reading.at_ms = self.now_ms;
        }
    }
}
