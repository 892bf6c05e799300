//! Observes a move before its turn: both clusters, their review, and the obstacles of a first record.

use std::sync::Arc;

use kube::ResourceExt;
use kube::runtime::reflector::{ObjectRef, Store};

use super::answers::{check_zone, measure_weight, summarize_answers};
use super::record::LiveRecord;
use super::sessions::{EdgeControl, count_open_sessions, sum_fresh_loads};
use super::snapshot_reader::{SnapshotReader, read_delivery};
use super::source::{read_digester, read_source};
use super::zone_sampler::ZoneResult;
use crate::api::migration::{
    MigrationTrack, RESUME_ANNOTATION, RecordEngine, SnapshotIdentity, TrackProgress, TrackTransport,
};
use crate::api::{RealtimeCluster, RealtimeMigration};
use crate::config::ServerKind;
use crate::gate::Verdict;
use crate::migration::track::{
    AnswerSample, ClusterEvidence, GateEvidence, PreflightResult, ProofReading, ReviewReading, TrackObservations,
    TrackPlan, TrackProof,
};
use crate::migration::{
    ClusterSnapshot, DeliverySnapshot, FindingCode, ReviewOptions, VariableValue, find_session_obstacle,
    fingerprint_servers, review_migration,
};
use crate::operator::context::ControllerContext;
use crate::prober::{EdgeSessions, prove_track};

/// The latest verdict on a cluster; `None` before its prober has one.
pub type VerdictSource = dyn Fn(&RealtimeCluster) -> Option<Verdict> + Send + Sync;

/// Both clusters of a move at a turn.
pub struct ClusterObservations {
    /// The target; `None` while it does not exist, or is being deleted.
    pub target: Option<Arc<RealtimeCluster>>,
    /// The latest looks at the edges of the target; empty while its prober has none.
    pub edges: Vec<Arc<EdgeSessions>>,
    /// Deliveries of the target to the endpoints of customers; `None` without it.
    pub delivery: Option<DeliverySnapshot>,
    /// Snapshot of the target; `None` without it or without a key.
    pub target_snapshot: Option<ClusterSnapshot>,
    /// Snapshot of the source, or the reason for which it is not known.
    pub source: Result<(ClusterSnapshot, SnapshotIdentity), String>,
}

/// The server that carries a track's transport.
pub fn server_of(track: &MigrationTrack) -> ServerKind {
    match track.transport {
        TrackTransport::Websocket => ServerKind::Websocket,
        TrackTransport::Sockjs => ServerKind::Sockjs,
    }
}

impl ClusterObservations {
    /// Reads both clusters, and the key of their snapshots.
    pub async fn read(
        context: &ControllerContext,
        clusters: &Store<RealtimeCluster>,
        targets: &SnapshotReader,
        edges: &dyn EdgeControl,
        migration: &RealtimeMigration,
        now_ms: u64,
    ) -> Self {
        let namespace = migration.namespace().unwrap_or_default();
        let reference = ObjectRef::new(&migration.spec.cluster_ref.name).within(&namespace);
        let target = clusters.get(&reference).filter(|cluster| cluster.metadata.deletion_timestamp.is_none());
        let edges = target.as_ref().map(|cluster| edges.sessions(cluster)).unwrap_or_default();
        let delivery = target.as_ref().map(|cluster| read_delivery(context, cluster));
        let digester = match read_digester(context, migration).await {
            Ok(digester) => digester,
            Err(error) => return Self { target, edges, delivery, target_snapshot: None, source: Err(error) },
        };
        let uid = target.as_ref().and_then(|cluster| cluster.uid()).unwrap_or_default();
        let source = read_source(context, migration, &digester, &uid, now_ms).await;
        let target_snapshot = match &target {
            Some(cluster) => Some(targets.take_snapshot(context, migration, cluster, &digester).await),
            None => None,
        };
        Self { target, edges, delivery, target_snapshot, source }
    }

    /// Evidence of both clusters for the gates beyond the proof.
    fn collect_gate_evidence(&self, server: ServerKind, now_ms: u64) -> GateEvidence {
        let load = sum_fresh_loads(&self.edges, now_ms).remove(&server);
        let target = ClusterEvidence { delivery: self.delivery.clone(), load };
        let Ok((snapshot, identity)) = &self.source else { return GateEvidence { target, ..GateEvidence::default() } };
        let load = snapshot.loads.get(&server).copied();
        let source = ClusterEvidence { delivery: snapshot.delivery.clone(), load };
        GateEvidence { target, source, source_at_ms: identity.sequence }
    }

    /// The review of both clusters as it concerns a track.
    fn review(&self, migration: &RealtimeMigration, track: &MigrationTrack) -> Result<ReviewReading, String> {
        let (source, _) = self.source.as_ref().map_err(Clone::clone)?;
        let target = self.target_snapshot.as_ref().ok_or("the target is not read yet")?;
        let mut accepted = migration.spec.review.accepted.clone();
        if migration.spec.acknowledgements.split_fan_out.as_ref() == Some(&track.host) {
            accepted.push(FindingCode::FanoutSplit.to_string());
        }
        let options = ReviewOptions { servers: vec![server_of(track)], accepted };
        let review = review_migration(source, target, &options);
        let blocked = review.findings.iter().find(|finding| finding.blocks);
        let blocked = blocked.map(|found| format!("{} {}: {}", found.code, found.subject, found.message));
        Ok(ReviewReading { hash: review.approval_hash, blocked })
    }

    fn prove_target(&self, verdicts: &VerdictSource, track: &MigrationTrack, now_ms: u64) -> Option<ProofReading> {
        let verdict = verdicts(self.target.as_ref()?);
        let proof = verdict.map_or(TrackProof::Unknown, |verdict| prove_track(&verdict, server_of(track)));
        // A prober that does not take its turns ends the process: its verdict is that of now.
        Some(ProofReading { proof, at_ms: now_ms })
    }
}

/// The record of a track as its writer has it.
pub enum WrittenRecord {
    /// The object of external-dns; `None` if it does not exist.
    Object(Option<Box<LiveRecord>>),
    /// The API server does not serve the kind, or denies it: no record of ours can exist. The reason with its remedy.
    Unavailable(String),
    /// Somebody else writes the record.
    External,
}

/// The input of the observations of one track.
pub struct TrackView<'a> {
    pub migration: &'a RealtimeMigration,
    pub track: &'a MigrationTrack,
    pub plan: &'a TrackPlan,
    pub progress: &'a TrackProgress,
    pub zone: Option<&'a ZoneResult>,
    pub written: &'a WrittenRecord,
    /// The first reason not to begin that concerns neither the zone nor the clusters.
    pub obstacle: Option<String>,
    /// The obstacle in the ownership of the host's records.
    pub ownership: Option<String>,
}

/// Composes the observations of a track.
pub fn observe_track(
    view: &TrackView<'_>,
    clusters: &ClusterObservations,
    verdicts: &VerdictSource,
    now_ms: u64,
) -> TrackObservations {
    let TrackView { migration, track, plan, progress, zone, written, .. } = view;
    let reading = zone.and_then(|zone| zone.as_ref().ok());
    let answers = reading.and_then(|reading| summarize_answers(reading, plan, progress));
    let source = clusters.source.as_ref().ok();
    let server = server_of(track);
    let complete = clusters.target_snapshot.as_ref().filter(|snapshot| is_complete(snapshot));
    let fingerprint = complete.map(|snapshot| fingerprint_servers(snapshot, server));
    TrackObservations {
        target: clusters.prove_target(verdicts, track, now_ms),
        source: source.and_then(|(snapshot, _)| snapshot.read_proof(server)),
        // One that cannot be read is not known to have changed.
        fingerprint: fingerprint.unwrap_or_else(|| progress.fingerprint.clone()),
        preflight: check_before_start(view, clusters),
        review: clusters.review(migration, track),
        written: weigh_record(written, answers, plan, progress),
        answers,
        sessions: count_open_sessions(&clusters.edges, server, now_ms),
        gates: clusters.collect_gate_evidence(server, now_ms),
        approved_hash: migration.spec.review.approved_hash.clone(),
        approved_through: migration.spec.approved_through,
        resume_token: migration.annotations().get(RESUME_ANNOTATION).cloned().unwrap_or_default(),
        is_suspended: migration.spec.suspend,
        is_deleted: migration.metadata.deletion_timestamp.is_some(),
    }
}

/// Whether every variable of a snapshot was read.
fn is_complete(snapshot: &ClusterSnapshot) -> bool {
    let mut values = snapshot.servers.values().flat_map(|server| server.variables.values());
    !snapshot.servers.is_empty() && values.all(|value| !matches!(value, VariableValue::Unknown(_)))
}

fn weigh_record(
    written: &WrittenRecord,
    answers: Option<AnswerSample>,
    plan: &TrackPlan,
    progress: &TrackProgress,
) -> Option<u8> {
    match written {
        WrittenRecord::Object(live) => live.as_ref().map(|live| live.weight),
        WrittenRecord::Unavailable(_) => None,
        WrittenRecord::External => measure_weight(answers, plan, progress),
    }
}

/// Looks for the first obstacle, those that a person has to mend in the manifest first.
fn check_before_start(view: &TrackView<'_>, clusters: &ClusterObservations) -> PreflightResult {
    let accepted = &view.migration.spec.review.accepted;
    let unknown = accepted.iter().find(|word| {
        let code = word.split(':').next().unwrap_or_default();
        !FindingCode::ALL.iter().any(|known| known.to_string() == code)
    });
    let unknown =
        unknown.map(|word| format!("FindingUnknown: review.accepted has {word}, which no review has: remove it"));
    let unavailable = match view.written {
        WrittenRecord::Unavailable(reason) => Some(reason.clone()),
        WrittenRecord::Object(Some(live)) if !live.is_ours => {
            Some("RecordNotOurs: a DNSEndpoint of this name exists, which this move did not make: delete it".to_owned())
        }
        _ => None,
    };
    let sessions = || {
        let (source, _) = clusters.source.as_ref().ok()?;
        find_session_obstacle(&view.migration.spec, source, clusters.target_snapshot.as_ref()?)
    };
    match view.obstacle.clone().or(unknown).or(unavailable).or_else(sessions) {
        Some(obstacle) => PreflightResult::Obstacle(obstacle),
        None => match (check_zone(view.zone, view.track), &view.ownership) {
            (PreflightResult::Passed, Some(obstacle)) => PreflightResult::Obstacle(obstacle.clone()),
            (found, _) => found,
        },
    }
}

/// The reason for which a move may not begin beside others: another one moves the same host, and is older.
pub fn find_rival(migration: &RealtimeMigration, host: &str, others: &[Arc<RealtimeMigration>]) -> Option<String> {
    let age = |found: &RealtimeMigration| {
        let created = found.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, found.namespace(), found.name_any())
    };
    let is_rival = |other: &&Arc<RealtimeMigration>| {
        other.uid() != migration.uid()
            && other.spec.tracks.iter().any(|track| track.host == host)
            && age(other) < age(migration)
    };
    let rival = others.iter().find(is_rival)?;
    let (namespace, name) = (rival.namespace().unwrap_or_default(), rival.name_any());
    Some(format!("HostTaken: RealtimeMigration {namespace}/{name} moves {host} already: delete one of both"))
}

/// Whether the operator writes the record of a track.
pub fn is_written_here(track: &MigrationTrack) -> bool {
    track.engine == RecordEngine::DNSEndpoint
}
