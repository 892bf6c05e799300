//! Moves in `realtime fleet`: a row for each track. Pure.

use std::fmt::Write;

use kube::ResourceExt;
use serde::Serialize;

use super::columns::align_columns;
use crate::api::RealtimeMigration;
use crate::api::migration::{MigrationPhase, MigrationReason, MigrationTrack, TrackStatus};

/// One track of a move of one context.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveRow {
    /// Name of the context.
    pub context: String,
    /// `NAMESPACE/NAME` of the move.
    pub name: String,
    /// Host that clients look up.
    pub host: String,
    /// Phase of the track.
    pub phase: String,
    /// Number of the step, of all: `3/7`.
    pub step: String,
    /// Weight that the target's record should have, or `no record`.
    pub desired: String,
    /// Share of lookups that the zone's servers answer with the target.
    pub applied: String,
    /// Share of new connections at the target.
    pub observed: String,
    /// Time that the present bake still takes; empty outside a bake.
    pub bake_left: String,
    /// Reason of the phase.
    pub reason: String,
    /// The event in a sentence.
    pub message: String,
    /// The next step with its owner, in a sentence.
    pub next_step: String,
    /// Whether the track was stopped, or went back.
    pub is_stopped: bool,
}

impl MoveRow {
    /// The rows of a move, one for each track of its manifest.
    pub fn of_move(context: &str, migration: &RealtimeMigration) -> Vec<Self> {
        let statuses = migration.status.iter().flat_map(|status| &status.tracks);
        let row = |track: &MigrationTrack| {
            let found =
                statuses.clone().find(|status| status.transport == track.transport && status.host == track.host);
            Self::of_track(context, migration, track, found)
        };
        migration.spec.tracks.iter().map(row).collect()
    }

    fn of_track(
        context: &str,
        migration: &RealtimeMigration,
        track: &MigrationTrack,
        status: Option<&TrackStatus>,
    ) -> Self {
        let text = |read: fn(&TrackStatus) -> String| status.map(read).unwrap_or_default();
        Self {
            context: context.to_owned(),
            name: format!("{}/{}", migration.namespace().unwrap_or_default(), migration.name_any()),
            host: track.host.clone(),
            phase: text(|status| status.progress.phase.to_string()),
            step: text(|status| status.step.clone()),
            desired: text(|status| status.desired.clone()),
            applied: text(|status| status.applied.clone()),
            observed: text(|status| status.observed.clone()),
            bake_left: text(|status| status.bake_left.clone()),
            reason: status.map_or_else(|| "NoOperator".to_owned(), |status| status.reason.to_string()),
            message: text(|status| status.message.clone()),
            next_step: text(|status| status.next_step.clone()),
            is_stopped: status.is_some_and(is_stopped),
        }
    }
}

/// Whether a track was stopped, is held by a gate, or went back.
fn is_stopped(track: &TrackStatus) -> bool {
    use MigrationPhase::{Failed, Frozen, RolledBack, RollingBack};
    let is_held = track.reason == MigrationReason::GateFailing;
    is_held || matches!(track.progress.phase, Frozen | RollingBack | RolledBack | Failed)
}

/// Renders the rows for a person; nothing without rows. Writing to a text cannot fail.
pub fn render_moves(rows: &[MoveRow]) -> String {
    let mut text = String::new();
    if rows.is_empty() {
        return text;
    }
    let head = ["CONTEXT", "MOVE", "HOST", "PHASE", "STEP", "DESIRED", "APPLIED", "OBSERVED", "BAKE LEFT", "REASON"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        let cells = [
            &row.context,
            &row.name,
            &row.host,
            &row.phase,
            &row.step,
            &row.desired,
            &row.applied,
            &row.observed,
            &row.bake_left,
            &row.reason,
        ];
        cells.map(|cell| if cell.is_empty() { "–".to_owned() } else { cell.clone() }).to_vec()
    }));
    align_columns(&mut text, &lines);
    for row in rows.iter().filter(|row| row.is_stopped) {
        let _ = writeln!(text, "{}, {}: {}; next: {}", row.context, row.name, row.message, row.next_step);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(status: &str) -> RealtimeMigration {
        let manifest = format!("{}{status}", include_str!("../../../tests/fixtures/migration/move.yaml"));
        serde_yaml::from_str(&manifest).expect("a move")
    }

    fn status(phase: &str) -> String {
        format!(
            "status:\n  tracks:\n  - {{ transport: sockjs, host: sockjs-eu.example.com, step: 3/7, desired: '20', applied: 50.0 % of 200, \
             observed: not known, sourceWeight: 20, bakeLeft: 2 h, reason: BakeRunning, message: it bakes, nextStep: wait, \
             progress: {{ phase: {phase} }} }}\n"
        )
    }

    #[test]
    fn a_row_has_the_weight_the_answers_and_the_bake() {
        let rows = MoveRow::of_move("new", &migration(&status("Baking")));
        let text = render_moves(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("CONTEXT  MOVE                    HOST                   PHASE   STEP  DESIRED"),
            "{text}"
        );
        let row = "new      channels/sockjs-to-eks  sockjs-eu.example.com  Baking  3/7   20       50.0 % of 200  not known  2 h        BakeRunning";
        assert_eq!(lines[1..], [row], "{text}");
        assert!(!rows[0].is_stopped);
    }

    #[test]
    fn a_move_that_stopped_says_why_and_what_is_next() {
        let held = status("Baking").replace("reason: BakeRunning", "reason: GateFailing");
        assert!(MoveRow::of_move("new", &migration(&held))[0].is_stopped, "a gate holds it");
        let rows = MoveRow::of_move("new", &migration(&status("RolledBack")));
        assert!(rows[0].is_stopped);
        assert_eq!(render_moves(&rows).lines().last(), Some("new, channels/sockjs-to-eks: it bakes; next: wait"));
    }

    #[test]
    fn a_move_without_an_operator_has_a_row() {
        let rows = MoveRow::of_move("new", &migration(""));
        assert_eq!((rows[0].reason.as_str(), rows[0].phase.as_str()), ("NoOperator", ""));
        assert_eq!(render_moves(&[]), "");
    }
}
