//! A move between two clusters in this process, with its time compressed: the real servers and journeys of both, the real
//! decisions, and doubles of the zone, of the tool that writes its record and of resolvers.
//!
//! In: the migration, both clusters, and an edit of one. Out: how the move went, and every lookup, session and webhook
//! meanwhile. This place must not know another way to decide than [`crate::migration::track`].

mod report;
mod time;
mod visitors;
mod zone;

pub use report::{MigrationReport, PhaseRecord};
pub use visitors::VisitCounts;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use self::report::ReportBuilder;
use self::time::{LOOP_INTERVAL, compress_gate, compress_plan};
use self::visitors::{Entrances, Visitors};
use self::zone::WeightedZone;
use super::{ManifestOverride, RehearsalError, RehearsalOptions, RunningRehearsal, SharedGroup, Switch};
use crate::api::migration::{MigrationPhase, MigrationTrack, RECORD_WEIGHT_MAX, TrackProgress};
use crate::api::{RealtimeApp, RealtimeCluster, RealtimeMigration};
use crate::config::ServerKind;
use crate::desired::SecretTexts;
use crate::gate::{GatePhase, Verdict};
use crate::migration::track::{
    GateEvidence, PreflightResult, ProofReading, ReviewReading, TrackAction, TrackObservations, TrackPlan, TrackProof,
    advance_track, needed_queries,
};
use crate::prober::{ProbeApp, prove_track};
use crate::process::clock::now_ms;
use crate::protocol::{AppKey, Secret};

/// Longest time for the webhooks of the last visits to arrive.
const LAST_WEBHOOKS_TIMEOUT: Duration = Duration::from_secs(15);

/// Time for which a frozen move is watched before the rehearsal ends.
const FROZEN_TIMEOUT: Duration = Duration::from_secs(8);

/// The input of a rehearsed move.
pub struct MigrationOptions {
    /// The move to rehearse.
    pub migration: RealtimeMigration,
    /// The cluster that has the clients.
    pub source: RealtimeCluster,
    /// The cluster that gets them.
    pub target: RealtimeCluster,
    /// The apps of both clusters.
    pub apps: Vec<RealtimeApp>,
    /// The texts of the Secrets that the files hold.
    pub secrets: SecretTexts,
    /// The review of both clusters.
    pub review: ReviewReading,
    /// Obstacle that the checks before the first record found.
    pub obstacle: Option<String>,
    /// Manual changes of the source's and of the target's servers.
    pub edits: [Vec<ManifestOverride>; 2],
    /// Weight from whose bake on the edits are on; `None` for the start.
    pub edits_from: Option<u8>,
    /// Number of times that the deciding process is killed and started again.
    pub kills: u32,
    /// Longest duration of the rehearsal.
    pub timeout: Duration,
}

/// Rehearses a move. `show` gets every phase as it is entered.
///
/// # Errors
/// A cluster cannot be started.
pub async fn rehearse_migration(
    options: MigrationOptions,
    mut show: impl FnMut(&PhaseRecord),
) -> Result<MigrationReport, RehearsalError> {
    let Some(track) = options.migration.spec.tracks.first().cloned() else {
        return Err(RehearsalError::Http("the migration has no track".to_owned()));
    };
    let (source, target) = Box::pin(start_clusters(&options)).await?;
    let moved = Move::new(&options, &track, &source, &target);
    let report = Box::pin(moved.run(&options, (&source, &target), &mut show)).await;
    tokio::join!(source.stop(), target.stop());
    Ok(report)
}

/// Starts both clusters as one group.
async fn start_clusters(options: &MigrationOptions) -> Result<(RunningRehearsal, RunningRehearsal), RehearsalError> {
    let group = SharedGroup::of_cluster(&options.target, &options.apps);
    let [source_edits, target_edits] = &options.edits;
    let start = |cluster: &RealtimeCluster, edits: &[ManifestOverride]| {
        RunningRehearsal::start(RehearsalOptions {
            cluster: compress_gate(cluster),
            apps: options.apps.clone(),
            secrets: options.secrets.clone(),
            edits: edits.to_vec(),
            page_port: None,
            interposers: BTreeMap::new(),
            account: None,
            group: Some(group.clone()),
        })
    };
    let source = start(&options.source, source_edits).await?;
    let target = match start(&options.target, target_edits).await {
        Ok(target) => target,
        Err(error) => {
            source.stop().await;
            return Err(error);
        }
    };
    if options.edits_from.is_some() {
        for (cluster, edits) in [(&source, source_edits), (&target, target_edits)] {
            switch_edits(cluster, edits.len(), false).await;
        }
    }
    Ok((source, target))
}

async fn switch_edits(cluster: &RunningRehearsal, edits: usize, on: bool) {
    for place in 0..edits {
        if let Err(error) = cluster.faults.switch(Switch::Edit(place), on).await {
            tracing::warn!(%error, place, on, "edit was not switched");
        }
    }
}

/// One move under way.
struct Move {
    plan: TrackPlan,
    track: MigrationTrack,
    zone: WeightedZone,
    progress: TrackProgress,
    /// Time of the latest result of each side's journeys.
    evidence_ms: [u64; 2],
    visitors: Option<Visitors>,
    kills_left: u32,
    report: ReportBuilder,
}

impl Move {
    fn new(
        options: &MigrationOptions,
        track: &MigrationTrack,
        source: &RunningRehearsal,
        target: &RunningRehearsal,
    ) -> Self {
        let plan = compress_plan(&TrackPlan::of_track(&options.migration.spec, track), options.edits_from);
        let zone = WeightedZone::with_source(plan.source_weight);
        let entrance = |cluster: &RunningRehearsal| {
            let (id, key, secret) = cluster.serving.apps.first()?.clone();
            let app = ProbeApp { id, key: AppKey(key), secret: Secret::new(secret) };
            Some((cluster.serving.sockjs?, app))
        };
        let entrances = entrance(source).zip(entrance(target)).map(|(source, target)| Entrances { source, target });
        let visitors = entrances.map(|entrances| {
            let webhooks = [source.delivered.subscribe(), target.delivered.subscribe()];
            Visitors::start(&zone, Duration::from_millis(plan.ttl_ms), &entrances, webhooks)
        });
        Self {
            report: ReportBuilder::start(&plan),
            plan,
            track: track.clone(),
            zone,
            progress: TrackProgress::default(),
            evidence_ms: [0; 2],
            visitors,
            kills_left: options.kills,
        }
    }

    async fn run(
        mut self,
        options: &MigrationOptions,
        clusters: (&RunningRehearsal, &RunningRehearsal),
        show: &mut impl FnMut(&PhaseRecord),
    ) -> MigrationReport {
        let deadline = Instant::now() + options.timeout;
        let mut edits_are_due = options.edits_from.is_some();
        let observations = loop {
            tokio::time::sleep(LOOP_INTERVAL).await;
            let observations = self.observe(options, clusters);
            self.turn(&observations, show);
            let is_at_weight = self.progress.phase == MigrationPhase::Baking
                && self.progress.desired >= options.edits_from
                && edits_are_due;
            if is_at_weight {
                edits_are_due = false;
                self.report.note_edits();
                switch_edits(clusters.0, options.edits[0].len(), true).await;
                switch_edits(clusters.1, options.edits[1].len(), true).await;
            }
            if self.is_over(clusters.1) || Instant::now() > deadline {
                break observations;
            }
        };
        let visits = match self.visitors {
            Some(visitors) => visitors.finish(LAST_WEBHOOKS_TIMEOUT).await,
            None => VisitCounts::default(),
        };
        self.report.finish((&self.plan, &self.track), &self.progress, &observations, visits)
    }

    /// One turn, as a controller would have it; a killed one ends between the stored progress and the write.
    fn turn(&mut self, observations: &TrackObservations, show: &mut impl FnMut(&PhaseRecord)) {
        let (next, actions) = advance_track(&self.plan, &self.progress, observations, now_ms());
        let entered = (next.phase, next.reason) != (self.progress.phase, self.progress.reason);
        self.progress = next;
        let counts = self.visitors.as_ref().map(Visitors::counts).unwrap_or_default();
        if entered {
            show(self.report.add_phase(&self.plan, &self.progress, observations, &counts));
        }
        if !actions.is_empty() && self.kills_left > 0 && self.report.is_kill_due() {
            self.kills_left -= 1;
            self.restart();
            return;
        }
        for action in actions {
            self.execute(action, counts.target_lookups);
        }
        if self.progress.phase == MigrationPhase::CuttingOver && self.zone.written() == Some(RECORD_WEIGHT_MAX) {
            // The source's people, whom the status asks for it.
            self.zone.set_source(self.plan.source_weight_at(self.progress.step));
        }
    }

    /// Forgets everything but the progress as it is stored in a status.
    fn restart(&mut self) {
        let stored = serde_json::to_string(&self.progress).unwrap_or_default();
        match serde_json::from_str(&stored) {
            Ok(progress) => self.progress = progress,
            Err(error) => tracing::error!(%error, "stored progress cannot be read"),
        }
        self.report.note_kill();
    }

    fn execute(&mut self, action: TrackAction, target_lookups: u64) {
        let weight = match action {
            TrackAction::WriteWeight(weight) => Some(weight),
            TrackAction::DeleteRecord => None,
            TrackAction::ShedSessions(_) | TrackAction::ReleaseObject => return,
        };
        self.report.note_write(weight, target_lookups);
        self.zone.write_target(weight);
    }

    fn observe(
        &mut self,
        options: &MigrationOptions,
        (source, target): (&RunningRehearsal, &RunningRehearsal),
    ) -> TrackObservations {
        let now = now_ms();
        let mut read = |side: usize, cluster: &RunningRehearsal| {
            let verdict = latest_verdict(cluster);
            let proof = verdict
                .as_ref()
                .map_or(TrackProof::Failing("connect".to_owned()), |verdict| prove_track(verdict, ServerKind::Sockjs));
            // A prober that goes on renews its evidence with every verdict.
            self.evidence_ms[side] = now;
            (ProofReading { proof, at_ms: self.evidence_ms[side] }, verdict.map(|verdict| verdict.fingerprint))
        };
        let (source_reading, _) = read(0, source);
        let (target_reading, fingerprint) = read(1, target);
        let written = self.zone.written();
        let source_weight = self.plan.source_weight_at(self.progress.step);
        let answers = self.zone.sample(needed_queries(written.unwrap_or(0), source_weight), now);
        let obstacle = options.obstacle.clone();
        let spec = &options.migration.spec;
        TrackObservations {
            target: Some(target_reading),
            source: Some(source_reading),
            fingerprint: fingerprint.unwrap_or_default(),
            preflight: obstacle.map_or(PreflightResult::Passed, PreflightResult::Obstacle),
            approved_hash: spec.review.approved_hash.clone().or_else(|| Some(options.review.hash.clone())),
            review: Ok(options.review.clone()),
            written,
            answers: Some(answers),
            // Clients leave by themselves, and the rehearsal is over with the rollback.
            sessions: None,
            // Two clusters of one process have no limits of their own to compare.
            gates: GateEvidence::default(),
            // A rehearsal has nobody to wait for.
            approved_through: Some(RECORD_WEIGHT_MAX),
            resume_token: String::new(),
            is_suspended: false,
            is_deleted: false,
        }
    }

    /// Whether nothing further happens by itself.
    fn is_over(&self, target: &RunningRehearsal) -> bool {
        let stays = self.report.phase_age() > FROZEN_TIMEOUT;
        match self.progress.phase {
            MigrationPhase::Completed | MigrationPhase::RolledBack | MigrationPhase::Failed => true,
            MigrationPhase::Frozen | MigrationPhase::Preflight | MigrationPhase::Reviewing => stays,
            MigrationPhase::Gated => {
                !target.refusals.is_empty()
                    || latest_verdict(target).is_some_and(|verdict| verdict.phase == GatePhase::Refused)
            }
            _ => false,
        }
    }
}

fn latest_verdict(cluster: &RunningRehearsal) -> Option<Verdict> {
    cluster.prober.as_ref().map(|prober| prober.verdicts.borrow().clone())
}
