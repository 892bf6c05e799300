//! The tracks that lead to a cluster, as its snapshot has them: their records, and the change that takes each back by hand. The
//! source reads them after the operator of the target has ended.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::record::WeightedRecord;
use crate::api::RealtimeMigration;
use crate::api::migration::MigrationPhase;

/// One track of a move to the cluster of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveSnapshot {
    /// `NAMESPACE/NAME` of the move.
    pub name: String,
    /// UID of the source's cluster; absent until a snapshot of the source was read.
    #[serde(rename = "sourceUID", default, skip_serializing_if = "Option::is_none")]
    pub source_uid: Option<String>,
    /// Host that clients look up.
    pub host: String,
    /// Host of the target, to which its record leads.
    pub target_host: String,
    /// Phase of the track.
    pub phase: MigrationPhase,
    /// Weight that the target's record should have; absent for no record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u8>,
    /// The change of Route 53 that takes every lookup from the target, to be made by hand.
    pub change_batch: Value,
}

impl MoveSnapshot {
    /// The tracks of a move, as its status has them; a move without a status has no record yet.
    #[must_use]
    pub fn of_migration(migration: &RealtimeMigration) -> Vec<Self> {
        let (metadata, status) = (&migration.metadata, migration.status.as_ref());
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        let name = format!("{}/{}", part(&metadata.namespace), part(&metadata.name));
        let source_uid = status.and_then(|status| status.source.as_ref()).map(|source| source.uid.clone());
        let tracks = migration.spec.tracks.iter().map(|track| {
            let known = status.and_then(|status| status.tracks.iter().find(|found| found.transport == track.transport));
            let progress = known.map(|known| &known.progress);
            Self {
                name: name.clone(),
                source_uid: source_uid.clone(),
                host: track.host.clone(),
                target_host: track.target_host.clone(),
                phase: progress.map(|progress| progress.phase).unwrap_or_default(),
                weight: progress.and_then(|progress| progress.desired),
                change_batch: WeightedRecord::of_track(track).to_change_batch(0),
            }
        });
        tracks.collect()
    }

    /// Whether the track has a record, and its move is not over.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.weight.is_some() && self.phase != MigrationPhase::Completed
    }
}
