//! The course of a rehearsed move, for people and programs.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::visitors::VisitCounts;
use crate::api::migration::{MigrationPhase, MigrationReason, MigrationTrack, RealtimeMigrationStatus, TrackProgress};
use crate::migration::track::{TrackObservations, TrackPlan, describe_track, summarize_move};
use crate::process::clock::whole_ms;

/// A phase as it was entered.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseRecord {
    /// Time since the start, in ms.
    pub at_ms: u64,
    /// The phase that was entered.
    pub phase: MigrationPhase,
    /// The reason of the phase.
    pub reason: MigrationReason,
    /// The event in a sentence.
    pub message: String,
    /// The next step, and whose it is.
    pub next_step: String,
    /// Weight that the target's record should have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u8>,
    /// Sessions at the source so far.
    pub source_sessions: u64,
    /// Sessions at the target so far.
    pub target_sessions: u64,
    /// Webhooks that arrived so far.
    pub webhooks: u64,
}

/// The course and the end of a rehearsed move.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationReport {
    /// Whether every client was moved.
    pub completed: bool,
    /// Duration of the move in ms.
    pub elapsed_ms: u64,
    /// Times that the deciding process was killed.
    pub kills: u32,
    /// Weights in the order in which they were written; `null` for a deleted record.
    pub written: Vec<Option<u8>>,
    /// The phases in their order.
    pub phases: Vec<PhaseRecord>,
    /// Lookups, sessions and webhooks of the clients.
    pub visits: VisitCounts,
    /// Time from the edit to weight 0, in ms; absent without both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub brake_ms: Option<u64>,
    /// Lookups that reached the target after weight 0 was written for the last time; absent if it never was after an edit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lookups_after_brake: Option<u64>,
    /// The status of the move at its end.
    pub status: RealtimeMigrationStatus,
}

/// Collects a report while a move runs.
pub struct ReportBuilder {
    began: Instant,
    phase_began: Instant,
    phases: Vec<PhaseRecord>,
    written: Vec<Option<u8>>,
    kills: u32,
    writes_asked: u32,
    edited: Option<Instant>,
    /// Time from the edit to weight 0, and the lookups at the target until then.
    braked: Option<(Duration, u64)>,
}

impl ReportBuilder {
    /// Starts a report of a plan.
    pub fn start(plan: &TrackPlan) -> Self {
        let began = Instant::now();
        Self {
            began,
            phase_began: began,
            phases: Vec::with_capacity(plan.steps.len() * 3),
            written: vec![],
            kills: 0,
            writes_asked: 0,
            edited: None,
            braked: None,
        }
    }

    /// Adds a phase, and returns it.
    pub fn add_phase(
        &mut self,
        plan: &TrackPlan,
        progress: &TrackProgress,
        observations: &TrackObservations,
        counts: &VisitCounts,
    ) -> &PhaseRecord {
        self.phase_began = Instant::now();
        let transport = crate::api::migration::TrackTransport::Sockjs;
        let status = describe_track((plan, transport), progress, observations, None);
        let record = PhaseRecord {
            at_ms: whole_ms(self.began.elapsed()),
            phase: progress.phase,
            reason: progress.reason,
            message: status.message,
            next_step: status.next_step,
            weight: progress.desired,
            source_sessions: counts.source_sessions,
            target_sessions: counts.target_sessions,
            webhooks: counts.arrived_webhooks,
        };
        let place = self.phases.len();
        self.phases.push(record);
        &self.phases[place]
    }

    /// Time since the latest phase began.
    pub fn phase_age(&self) -> Duration {
        self.phase_began.elapsed()
    }

    /// Whether the process is killed before this write: before every one, once.
    pub fn is_kill_due(&mut self) -> bool {
        self.writes_asked += 1;
        self.writes_asked % 2 == 1
    }

    /// Notes a kill of the deciding process.
    pub fn note_kill(&mut self) {
        self.kills += 1;
    }

    /// Notes that the edits are on.
    pub fn note_edits(&mut self) {
        self.edited = Some(Instant::now());
    }

    /// Notes a write of the record.
    pub fn note_write(&mut self, weight: Option<u8>, target_lookups: u64) {
        self.written.push(weight);
        if let Some(edited) = self.edited.filter(|_| weight == Some(0)) {
            self.braked = Some((edited.elapsed(), target_lookups));
        }
    }

    /// Ends the report with the last observations.
    pub fn finish(
        self,
        (plan, track): (&TrackPlan, &MigrationTrack),
        progress: &TrackProgress,
        observations: &TrackObservations,
        visits: VisitCounts,
    ) -> MigrationReport {
        let sessions = visits.source_sessions + visits.target_sessions;
        let observed = (sessions > 0).then_some((visits.target_sessions, sessions));
        let described = describe_track((plan, track.transport), progress, observations, observed);
        MigrationReport {
            completed: progress.phase == MigrationPhase::Completed,
            elapsed_ms: whole_ms(self.began.elapsed()),
            kills: self.kills,
            written: self.written,
            phases: self.phases,
            brake_ms: self.braked.map(|(after, _)| whole_ms(after)),
            lookups_after_brake: self.braked.map(|(_, before)| visits.target_lookups.saturating_sub(before)),
            visits,
            status: summarize_move(vec![described], 1, &RealtimeMigrationStatus::default(), jiff::Timestamp::now()),
        }
    }
}
