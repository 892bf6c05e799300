//! One turn of a move: observe, decide, store, carry out, report.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::events::EventType;
use kube::runtime::reflector::Store;

use super::observation::{
    ClusterObservations, TrackView, VerdictSource, WrittenRecord, find_rival, is_written_here, observe_track, server_of,
};
use super::record::{delete_record, read_record, write_record};
use super::record_writers::{RecordWriters, find_ownership_obstacle};
use super::sessions::{EdgeControl, count_opened_sessions};
use super::share_meter::ShareMeter;
use super::snapshot_reader::SnapshotReader;
use super::zone_reader::ZoneQuery;
use super::zone_sampler::ZoneSampler;
use crate::api::migration::{
    MigrationPhase, MigrationReason, MigrationTrack, RealtimeMigrationStatus, TrackProgress, TrackStatus,
    TrackTransport,
};
use crate::api::{RealtimeCluster, RealtimeMigration};
use crate::migration::track::{
    TrackAction, TrackObservations, TrackPlan, advance_track, describe_track, is_draining, needed_queries, share_of,
    summarize_move,
};
use crate::migration::{check_policy, endpoint_name, list_ownership_names};
use crate::operator::context::{ControllerContext, SharedContext};
use crate::operator::finalizer::patch_finalizers;
use crate::operator::reconcile_error::ReconcileError;
use crate::operator::status::apply_status;

/// Finalizer that keeps a move until its record is removed, or stays by intention.
pub const RECORD_FINALIZER: &str = "realtime-operator.dev/record";

/// Field manager of the status.
const STATUS_MANAGER: &str = "realtime-operator-migration";

/// Time between two turns while a weight is being applied, and in other phases.
const SHIFTING_TURN_INTERVAL: Duration = Duration::from_secs(5);
const STEADY_TURN_INTERVAL: Duration = Duration::from_secs(10);

/// Time between two readings of a zone: while a weight is being applied, while a record exists, before the first one, and
/// after the end of a move.
const SHIFTING_READING_INTERVAL: Duration = Duration::from_secs(10);
const STEADY_READING_INTERVAL: Duration = Duration::from_secs(20);
const CLOSED_READING_INTERVAL: Duration = Duration::from_secs(30);
const COMPLETED_READING_INTERVAL: Duration = Duration::from_mins(10);

/// Clients and state that the turns of all moves share.
pub struct MoveDriver {
    pub context: SharedContext,
    pub clusters: Store<RealtimeCluster>,
    pub verdicts: Box<VerdictSource>,
    pub edges: Arc<dyn EdgeControl>,
    /// The wall clock, in ms since 1970.
    pub clock: Box<dyn Fn() -> u64 + Send + Sync>,
    pub sampler: ZoneSampler,
    pub writers: RecordWriters,
    pub targets: SnapshotReader,
    pub shares: ShareMeter,
}

/// One track after its decision.
struct DecidedTrack<'a> {
    track: &'a MigrationTrack,
    written: WrittenRecord,
    /// New connections of the target and of both clusters; `None` while they are not known.
    observed: Option<(u64, u64)>,
    status: TrackStatus,
    actions: Vec<TrackAction>,
}

impl MoveDriver {
    /// Takes one turn, and returns the time until the next; `None` for a move that is over and gone.
    ///
    /// # Errors
    /// The status cannot be written, or an action fails: the next turn repeats what is left to do.
    pub async fn take_turn(&self, migration: &RealtimeMigration) -> Result<Option<Duration>, ReconcileError> {
        let has_finalizer = migration.finalizers().iter().any(|found| found == RECORD_FINALIZER);
        if !has_finalizer {
            if migration.metadata.deletion_timestamp.is_some() {
                return Ok(None);
            }
            set_finalizer(&self.context, migration, true).await?;
            return Ok(Some(Duration::ZERO));
        }
        let now_ms = (self.clock)();
        let clusters =
            ClusterObservations::read(&self.context, &self.clusters, &self.targets, &*self.edges, migration, now_ms)
                .await;
        let mut decided: Vec<DecidedTrack<'_>> = Vec::new();
        for track in &migration.spec.tracks {
            let waits_for = decided.iter().find(|former| former.status.progress.phase != MigrationPhase::Completed);
            let waits_for = waits_for.map(|former| former.track.host.as_str());
            decided.push(self.decide_track(migration, track, waits_for, &clusters, now_ms).await);
        }
        let former = migration.status.clone().unwrap_or_default();
        let statuses = decided.iter().map(|track| track.status.clone()).collect();
        let generation = migration.metadata.generation.unwrap_or_default();
        let mut status = summarize_move(statuses, generation, &former, Timestamp::now());
        if let Ok((_, identity)) = &clusters.source {
            status.source = Some(identity.clone());
        }
        self.report_metrics(migration, &decided, &status, now_ms);
        if is_news(&former, &status) {
            self.context.ensure_leader()?;
            let written = apply_status(&self.context, migration, STATUS_MANAGER, &status).await;
            written.map_err(|error| ReconcileError::from_call("writing the status of a move", &error))?;
            self.publish_changes(migration, &former, &status).await;
        }
        let is_released = self.carry_out(migration, &decided, clusters.target.as_deref()).await?;
        let is_shifting = decided.iter().any(|track| is_shifting(track.status.progress.phase));
        let wait = if is_shifting { SHIFTING_TURN_INTERVAL } else { STEADY_TURN_INTERVAL };
        Ok((!is_released).then_some(wait))
    }

    /// Decides about one track. A record that cannot be read is not taken for one that does not exist: nothing is decided then.
    async fn decide_track<'a>(
        &self,
        migration: &RealtimeMigration,
        track: &'a MigrationTrack,
        waits_for: Option<&str>,
        clusters: &ClusterObservations,
        now_ms: u64,
    ) -> DecidedTrack<'a> {
        let plan = TrackPlan::of_track(&migration.spec, track);
        let known = find_status(migration.status.as_ref(), track.transport);
        let progress = known.map(|known| known.progress.clone()).unwrap_or_default();
        let queries = count_queries(&plan, &progress);
        let writers = if is_written_here(track) && !has_record(progress.phase) {
            Some(self.writers.find(&self.context, migration, &track.host, now_ms).await)
        } else {
            None
        };
        let ownership = writers.as_ref().map(|writers| list_ownership_names(&track.host, writers)).unwrap_or_default();
        let query = ZoneQuery { host: track.host.clone(), target: track.target_host.clone(), queries, ownership };
        let interval = reading_interval(progress.phase, is_draining(&plan, &progress, now_ms));
        let key = sampling_key(migration, track);
        let zone = self.sampler.latest(&key, &query, interval, now_ms);
        let written = match self.read_written(migration, track, progress.phase).await {
            Ok(written) => written,
            Err(message) => return keep_decision(track, &plan, known, message),
        };
        let others = self.context.live.migrations.find_all(|_| true);
        let obstacle = waits_for
            .map(|host| format!("TrackWaits: the track of {host} comes first"))
            .or_else(|| find_rival(migration, &track.host, &others))
            .or_else(|| check_policy(writers.as_deref()?));
        let zone = zone.as_deref();
        let ownership = match (&writers, zone) {
            (Some(writers), Some(Ok(reading))) => {
                find_ownership_obstacle(&self.context, (migration, track), writers, &reading.owners).await
            }
            _ => None,
        };
        let (plan, progress) = (&plan, &progress);
        let view = TrackView { migration, track, plan, progress, zone, written: &written, obstacle, ownership };
        let observations = observe_track(&view, clusters, &*self.verdicts, now_ms);
        let (next, actions) = advance_track(plan, progress, &observations, now_ms);
        let source = clusters.source.as_ref().ok().and_then(|(snapshot, _)| snapshot.sessions.as_ref());
        let counts = (source, count_opened_sessions(&clusters.edges, now_ms));
        let observed = self.shares.measure(&key, server_of(track), counts, now_ms);
        let mut status = describe_track((plan, track.transport), &next, &observations, observed);
        let step = describe_external_step(track, &next, &observations, plan);
        if let Some(step) = step.or_else(|| describe_unapplied_step(&next, &written)) {
            status.next_step = step;
        }
        DecidedTrack { track, written, observed, status, actions }
    }

    /// Reads the record as its writer has it.
    async fn read_written(
        &self,
        migration: &RealtimeMigration,
        track: &MigrationTrack,
        phase: MigrationPhase,
    ) -> Result<WrittenRecord, String> {
        if !is_written_here(track) {
            return Ok(WrittenRecord::External);
        }
        match read_record(&self.context, migration, track).await {
            Ok(live) => Ok(WrittenRecord::Object(live.map(Box::new))),
            Err(error) if error.is_unavailable() => {
                let reason = format!(
                    "DNSEndpointUnavailable: {error}; external-dns needs its CRD and the source `crd`, or write engine: External"
                );
                // While a record may exist, an API server that denies it says nothing about it.
                if has_record(phase) { Err(reason) } else { Ok(WrittenRecord::Unavailable(reason)) }
            }
            Err(error) => Err(format!("the record cannot be read: {error}")),
        }
    }

    /// Carries out the decisions, each of which was stored before; returns whether the object was released.
    async fn carry_out(
        &self,
        migration: &RealtimeMigration,
        decided: &[DecidedTrack<'_>],
        target: Option<&RealtimeCluster>,
    ) -> Result<bool, ReconcileError> {
        for DecidedTrack { track, written, status, actions, .. } in decided {
            for action in actions {
                if let (TrackAction::ShedSessions(share), Some(cluster)) = (action, target) {
                    self.context.ensure_leader()?;
                    self.edges.shed(cluster, server_of(track), *share).await;
                }
            }
            let WrittenRecord::Object(live) = written else { continue };
            for action in actions {
                match action {
                    TrackAction::WriteWeight(weight) => {
                        write_record(&self.context, (migration, track), live.as_deref(), *weight).await?;
                    }
                    TrackAction::DeleteRecord => {
                        if let Some(live) = live {
                            delete_record(&self.context, live).await?;
                        }
                    }
                    TrackAction::ShedSessions(_) | TrackAction::ReleaseObject => {}
                }
            }
            let Some(live) = live.as_deref().filter(|live| live.is_ours && has_record(status.progress.phase)) else {
                continue;
            };
            // Another part of the object was edited by hand: its weight is the decided one.
            if actions.is_empty() && status.progress.desired == Some(live.weight) && !live.is_intact(migration, track) {
                write_record(&self.context, (migration, track), Some(live), live.weight).await?;
            }
        }
        let may_go = decided.iter().all(|track| track.actions.contains(&TrackAction::ReleaseObject));
        if may_go && migration.metadata.deletion_timestamp.is_some() {
            set_finalizer(&self.context, migration, false).await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Publishes an Event for each change of a track's phase or reason.
    async fn publish_changes(
        &self,
        migration: &RealtimeMigration,
        former: &RealtimeMigrationStatus,
        status: &RealtimeMigrationStatus,
    ) {
        for track in &status.tracks {
            let before = find_status(Some(former), track.transport);
            let state = |track: &TrackStatus| (track.progress.phase, track.reason);
            if before.map(state) == Some(state(track)) {
                continue;
            }
            let note = format!("{}: {}; next: {}", track.host, track.message, track.next_step);
            let (kind, reason) = (judge_event(track), track.reason.to_string());
            let action = track.progress.phase.to_string();
            self.context.publish_change(migration, kind, &reason, &action, note).await;
        }
    }

    fn report_metrics(
        &self,
        migration: &RealtimeMigration,
        decided: &[DecidedTrack<'_>],
        status: &RealtimeMigrationStatus,
        now_ms: u64,
    ) {
        let (series, namespace) = (&self.context.metrics.series, migration.namespace().unwrap_or_default());
        let cluster = &migration.spec.cluster_ref.name;
        if let Some(track) = decided.first() {
            let progress = &track.status.progress;
            let plan = TrackPlan::of_track(&migration.spec, track.track);
            let weight = progress.desired.unwrap_or(0);
            series.migration_weights.set(&namespace, cluster, f64::from(weight));
            let share = share_of(weight, plan.source_weight_at(progress.step));
            series.migration_shares.set(&namespace, cluster, share);
            match track.observed {
                Some((target, all)) => {
                    let share = count_as_f64(target) / count_as_f64(all);
                    series.migration_observed_shares.set(&namespace, cluster, share);
                }
                None => series.migration_observed_shares.remove(&namespace, cluster),
            }
        }
        if let Some(source) = &status.source {
            let age = Duration::from_millis(now_ms.saturating_sub(source.sequence));
            series.migration_snapshot_age_seconds.set(&namespace, cluster, age.as_secs_f64());
        }
    }

    /// Forgets a move that is gone.
    pub fn forget(&self, migration: &RealtimeMigration) {
        let (series, namespace) = (&self.context.metrics.series, migration.namespace().unwrap_or_default());
        let cluster = &migration.spec.cluster_ref.name;
        for gauge in [
            &series.migration_weights,
            &series.migration_shares,
            &series.migration_observed_shares,
            &series.migration_snapshot_age_seconds,
        ] {
            gauge.remove(&namespace, cluster);
        }
        self.targets.forget(&migration.uid().unwrap_or_default());
        for track in &migration.spec.tracks {
            let key = sampling_key(migration, track);
            self.sampler.forget(&key);
            self.shares.forget(&key);
        }
    }
}

/// A number of connections, which is exact far beyond the number of clients.
fn count_as_f64(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}

fn sampling_key(migration: &RealtimeMigration, track: &MigrationTrack) -> String {
    format!("{} {}", migration.uid().unwrap_or_default(), endpoint_name(migration, track))
}

/// The status of a track as it was written last.
fn find_status(status: Option<&RealtimeMigrationStatus>, track: TrackTransport) -> Option<&TrackStatus> {
    status?.tracks.iter().find(|found| found.transport == track)
}

/// Whether a phase has a record, or ended with one.
fn has_record(phase: MigrationPhase) -> bool {
    phase >= MigrationPhase::Shifting && !matches!(phase, MigrationPhase::RolledBack)
}

fn reading_interval(phase: MigrationPhase, is_draining: bool) -> Duration {
    match phase {
        _ if is_draining => STEADY_READING_INTERVAL,
        MigrationPhase::Completed => COMPLETED_READING_INTERVAL,
        phase if is_shifting(phase) => SHIFTING_READING_INTERVAL,
        phase if has_record(phase) => STEADY_READING_INTERVAL,
        _ => CLOSED_READING_INTERVAL,
    }
}

/// Whether the time of each turn is needed: that of the turn before a bake, those in it, and those of a drain.
fn counts_turns(progress: &TrackProgress) -> bool {
    let is_draining = progress.reason == MigrationReason::DrainingSessions;
    is_shifting(progress.phase) || progress.phase == MigrationPhase::Baking || is_draining
}

/// Whether a weight is being applied in a phase.
fn is_shifting(phase: MigrationPhase) -> bool {
    matches!(phase, MigrationPhase::Shifting | MigrationPhase::CuttingOver | MigrationPhase::RollingBack)
}

/// As many lookups as show the rarer record at both weights that the source may have.
fn count_queries(plan: &TrackPlan, progress: &TrackProgress) -> u32 {
    let weight = progress.desired.unwrap_or(0);
    let needed = |source| needed_queries(weight, source);
    needed(plan.source_weight_at(progress.step)).max(needed(plan.source_weight))
}

/// A track about which nothing is decided at this turn.
fn keep_decision<'a>(
    track: &'a MigrationTrack,
    plan: &TrackPlan,
    known: Option<&TrackStatus>,
    message: String,
) -> DecidedTrack<'a> {
    let mut status = known.cloned().unwrap_or_else(|| TrackStatus {
        transport: track.transport,
        host: track.host.clone(),
        step: format!("0/{}", plan.steps.len()),
        desired: "no record".to_owned(),
        applied: "not known".to_owned(),
        observed: "not known".to_owned(),
        source_weight: plan.source_weight,
        sessions_left: None,
        bake_left: String::new(),
        gates: vec![],
        reason: TrackProgress::default().reason,
        message: String::new(),
        next_step: String::new(),
        progress: TrackProgress::default(),
    });
    "nothing is decided until the record can be read: mend what the message names".clone_into(&mut status.next_step);
    status.message = message;
    DecidedTrack { track, written: WrittenRecord::External, observed: None, status, actions: vec![] }
}

/// Whether a weight is not to be written for now.
fn is_held(reason: MigrationReason) -> bool {
    matches!(reason, MigrationReason::Suspended | MigrationReason::GateFailing)
}

/// The next step of a person or tool that writes the record.
fn describe_external_step(
    track: &MigrationTrack,
    next: &TrackProgress,
    observations: &TrackObservations,
    plan: &TrackPlan,
) -> Option<String> {
    let is_due = !is_written_here(track) && next.desired != observations.written && has_record(next.phase);
    if !is_due || next.phase == MigrationPhase::Completed || is_held(next.reason) {
        return None;
    }
    let MigrationTrack { host, target_host, .. } = track;
    Some(match next.desired {
        Some(weight) => format!(
            "set the record of {host} that leads to {target_host} to weight {weight}, beside {} of the source: `realtime \
             migrate plan` prints the change",
            plan.source_weight_at(next.step)
        ),
        None => format!("remove the record of {host} that leads to {target_host}"),
    })
}

/// The next step for a weight that the zone does not answer by: the part of external-dns that holds it up, as far as the object
/// shows.
fn describe_unapplied_step(next: &TrackProgress, written: &WrittenRecord) -> Option<String> {
    let WrittenRecord::Object(Some(live)) = written else { return None };
    if next.reason != MigrationReason::WeightNotApplied {
        return None;
    }
    let cause = if live.is_read() {
        "external-dns has read the DNSEndpoint, and the zone does not answer by it: its log names the cause, such as a host          outside its domain filter, a record of another TXT owner, or a refusal of the provider"
    } else {
        "external-dns has not read the DNSEndpoint: it must run, with the source `crd`, and see this namespace"
    };
    Some(format!("{cause}; the change batch of `realtime migrate plan` sets the weight by hand"))
}

/// Whether a status says more than the former one.
fn is_news(former: &RealtimeMigrationStatus, status: &RealtimeMigrationStatus) -> bool {
    let mut known = former.clone();
    for (before, after) in known.tracks.iter_mut().zip(&status.tracks) {
        if !counts_turns(&after.progress) {
            before.progress.turn_ms = after.progress.turn_ms;
        }
    }
    known != *status
}

fn judge_event(track: &TrackStatus) -> EventType {
    match track.progress.phase {
        MigrationPhase::Frozen | MigrationPhase::RollingBack | MigrationPhase::RolledBack | MigrationPhase::Failed => {
            EventType::Warning
        }
        _ if track.reason.needs_repair() => EventType::Warning,
        _ => EventType::Normal,
    }
}

/// Sets or removes the finalizer on the object as it is now: the status that was just written made another version.
async fn set_finalizer(
    context: &ControllerContext,
    migration: &RealtimeMigration,
    is_wanted: bool,
) -> Result<(), ReconcileError> {
    let (name, namespace) = (migration.name_any(), migration.namespace().unwrap_or_default());
    let api: Api<RealtimeMigration> = Api::namespaced(context.client.clone(), &namespace);
    let live = api.get_opt(&name).await.map_err(|error| ReconcileError::from_call("reading a move", &error))?;
    let Some(live) = live.filter(|live| live.uid() == migration.uid()) else { return Ok(()) };
    let others = live.finalizers().iter().map(String::as_str).filter(|found| *found != RECORD_FINALIZER);
    let finalizers = others.chain(is_wanted.then_some(RECORD_FINALIZER)).collect();
    patch_finalizers(context, &live, finalizers).await
}

#[cfg(test)]
mod tests;
