//! The target of a move as its source sees it: whether the operator there still reports, and the tracks that are open if it does
//! not. Pure.

use std::fmt::Write;

use super::track::MoveLimits;
use super::{ClusterSnapshot, MoveSnapshot, SealFault, SecretDigester, SnapshotOrigin};
use crate::api::migration::SnapshotIdentity;
use crate::process::clock::format_time;

/// Largest distance of a snapshot's time into the future, in ms: one that is farther off would look fresh for too long.
const CLOCK_SKEW_MAX_MS: u64 = 30_000;

/// A snapshot of the target that the source has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetReading {
    /// Cluster and time of the snapshot.
    pub identity: SnapshotIdentity,
    /// Tracks that move from the reader's cluster.
    pub tracks: Vec<MoveSnapshot>,
}

/// State of the target's reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetState {
    /// The latest snapshot is fresh.
    Reporting,
    /// The latest snapshot is old: the operator of the target, or the copy of its snapshots, has stopped.
    Silent,
    /// No snapshot is known that can be judged.
    Unread,
}

/// The target as its source judges it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetVerdict {
    /// State of the reports.
    pub state: TargetState,
    /// Age of the latest snapshot in ms; `None` without one.
    pub age_ms: Option<u64>,
    /// Number of tracks that have a record, by the latest snapshot; `None` without one.
    pub open_tracks: Option<usize>,
    /// The event and the next step in sentences. The same until the state or the snapshot changes.
    pub message: String,
}

impl TargetReading {
    /// Parses the snapshot of a target for the source with a UID. A snapshot that is older than its validity is read too: its age
    /// is judged here.
    ///
    /// # Errors
    /// It is no snapshot, its signature does not count, it is of the source itself, or it does not list moves: the reason with its
    /// remedy.
    pub fn parse(text: &str, digester: &SecretDigester, source_uid: &str, now_ms: u64) -> Result<Self, String> {
        let none = "the document is no snapshot of a live cluster: copy that which the target's operator publishes";
        let document = ClusterSnapshot::read_document(text);
        let snapshot = ClusterSnapshot::from_document(&document)?.ok_or(none)?;
        match snapshot.check_seal(document, digester, now_ms) {
            Ok(()) | Err(SealFault::Stale(_)) => {}
            Err(fault) => return Err(fault.to_string()),
        }
        let identity = snapshot.identity().ok_or(none)?;
        let cluster = &identity.cluster;
        if identity.uid == source_uid {
            return Err(format!("the snapshot is of this cluster itself, {cluster}: copy that of the target"));
        }
        let moves = snapshot.moves.filter(|_| snapshot.origin == SnapshotOrigin::Operator).ok_or_else(|| {
            format!(
                "the snapshot of {cluster} lists no moves: it must be published by an operator from release 0.2.0 on"
            )
        })?;
        let tracks = moves.into_iter().filter(|track| track.source_uid.as_deref() == Some(source_uid)).collect();
        Ok(Self { identity, tracks })
    }

    /// The newer one of two readings: a copy that arrives late, or is put back, does not count.
    #[must_use]
    pub fn newer(known: Option<&Self>, read: Self) -> Self {
        match known {
            Some(known) if known.identity.sequence > read.identity.sequence => known.clone(),
            _ => read,
        }
    }
}

/// Judges the target by its latest snapshot. `failure` is the reason for which none could be read now; one that was read before
/// goes on to count, and becomes old.
#[must_use]
pub fn judge_target(latest: Option<&TargetReading>, failure: Option<&str>, now_ms: u64) -> TargetVerdict {
    let Some(TargetReading { identity, tracks }) = latest else {
        let cause = failure.unwrap_or("none was read yet");
        let message = format!(
            "no snapshot of the target is known: {cause}; next: publish it there, and have it copied here; until then nothing \
             reports here that the target's operator has stopped"
        );
        return TargetVerdict { state: TargetState::Unread, age_ms: None, open_tracks: None, message };
    };
    let open: Vec<&MoveSnapshot> = tracks.iter().filter(|track| track.is_open()).collect();
    let taken = format_time(identity.sequence);
    let ahead_ms = identity.sequence.saturating_sub(now_ms);
    let age_ms = now_ms.saturating_sub(identity.sequence);
    let (state, message) = if ahead_ms > CLOCK_SKEW_MAX_MS {
        let message = format!(
            "the snapshot of {} is of {taken}, which is in the future here: its age is not known; next: set the clocks of both \
             clusters",
            identity.cluster
        );
        (TargetState::Unread, message)
    } else if age_ms > MoveLimits::default().evidence_ms {
        (TargetState::Silent, describe_silence(identity, &taken, failure, &open))
    } else {
        let moved: Vec<String> = open.iter().map(|track| describe_track(track)).collect();
        let moved = if moved.is_empty() { "no track has a record".to_owned() } else { moved.join("; ") };
        (TargetState::Reporting, format!("{} reports: {moved}", identity.cluster))
    };
    TargetVerdict { state, age_ms: Some(age_ms), open_tracks: Some(open.len()), message }
}

fn describe_track(track: &MoveSnapshot) -> String {
    let MoveSnapshot { name, host, target_host, phase, weight, .. } = track;
    format!("{name} ({phase}) has {host} lead to {target_host} with weight {}", weight.unwrap_or_default())
}

/// Writing to a text cannot fail.
fn describe_silence(identity: &SnapshotIdentity, taken: &str, failure: Option<&str>, open: &[&MoveSnapshot]) -> String {
    let mut text = format!(
        "the latest snapshot of {} is of {taken}: the operator there, or the copy of its snapshots, has stopped",
        identity.cluster
    );
    if let Some(failure) = failure {
        let _ = write!(text, " ({failure})");
    }
    if open.is_empty() {
        text.push_str("; no track had a record; next: start it again");
        return text;
    }
    text.push_str(
        ", and nobody takes a target that fails out of the answers; next: start the operator there again, or bring the clients \
         back by hand: stop external-dns of the target, which would write its weight again, and change each record",
    );
    for track in open {
        let _ = write!(
            text,
            "; {}: aws route53 change-resource-record-sets --hosted-zone-id ZONE --change-batch '{}'",
            describe_track(track),
            track.change_batch
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::RealtimeMigration;
    use crate::api::migration::{MigrationPhase, TrackProgress};

    const NOW_MS: u64 = 1_790_000_000_000;
    const KEY: &str = "0123456789abcdef";

    fn digester() -> SecretDigester {
        SecretDigester::new(KEY).expect("a key")
    }

    fn track(phase: MigrationPhase, weight: Option<u8>) -> MoveSnapshot {
        let text = include_str!("../../tests/fixtures/migration/move.yaml");
        let migration: RealtimeMigration = serde_yaml::from_str(text).expect("a migration");
        let track = MoveSnapshot::of_migration(&migration).remove(0);
        assert!(!track.is_open(), "a move without a status has no record");
        let TrackProgress { phase, desired, .. } = TrackProgress { phase, desired: weight, ..TrackProgress::default() };
        MoveSnapshot { source_uid: Some("s".to_owned()), phase, weight: desired, ..track }
    }

    fn published(origin: SnapshotOrigin, uid: &str, moves: Option<Vec<MoveSnapshot>>) -> String {
        let snapshot = ClusterSnapshot { moves, ..ClusterSnapshot::new(origin, "new/eu".to_owned(), [].into()) };
        serde_json::to_string(&snapshot.seal(&digester(), uid, NOW_MS)).expect("JSON")
    }

    fn reading(tracks: Vec<MoveSnapshot>) -> TargetReading {
        let identity = SnapshotIdentity { cluster: "new/eu".to_owned(), uid: "t".to_owned(), sequence: NOW_MS };
        TargetReading { identity, tracks }
    }

    #[test]
    fn a_target_that_reports_is_silent_six_minutes_later_and_names_the_change_by_hand() {
        let open = reading(vec![track(MigrationPhase::Baking, Some(20))]);
        let closed = reading(vec![track(MigrationPhase::RolledBack, None)]);
        let complete = reading(vec![track(MigrationPhase::Completed, Some(255))]);
        let (fresh, stale, week) = (NOW_MS + 360_000, NOW_MS + 360_001, NOW_MS + 8 * 86_400_000);
        let missing = Some("ConfigMap x does not exist");
        for (case, latest, failure, now_ms, state, tracks, part) in [
            ("fresh", Some(&open), None, fresh, TargetState::Reporting, Some(1), "with weight 20"),
            (
                "stale",
                Some(&open),
                None,
                stale,
                TargetState::Silent,
                Some(1),
                "\"SetIdentifier\":\"sockjs.eks.example.com\"",
            ),
            ("expired", Some(&open), None, week, TargetState::Silent, Some(1), "\"Weight\":0"),
            ("deleted after it was read", Some(&open), missing, fresh, TargetState::Reporting, Some(1), "reports"),
            ("deleted, and stale", Some(&open), missing, stale, TargetState::Silent, Some(1), "(ConfigMap x does not"),
            (
                "never seen",
                None,
                missing,
                fresh,
                TargetState::Unread,
                None,
                "ConfigMap x does not exist; next: publish",
            ),
            ("a clock ahead by little", Some(&open), None, NOW_MS - 30_000, TargetState::Reporting, Some(1), "reports"),
            ("a clock ahead", Some(&open), None, NOW_MS - 30_001, TargetState::Unread, Some(1), "set the clocks"),
            ("went back, stale", Some(&closed), None, stale, TargetState::Silent, Some(0), "no track had a record"),
            ("complete, stale", Some(&complete), None, stale, TargetState::Silent, Some(0), "no track had a record"),
        ] {
            let found = judge_target(latest, failure, now_ms);
            assert_eq!((found.state, found.open_tracks), (state, tracks), "{case}: {}", found.message);
            assert!(found.message.contains(part), "{case}: {}", found.message);
        }
        let message = |now_ms| judge_target(Some(&open), None, now_ms).message;
        assert_eq!(message(stale), message(week), "a status is not written again for the time alone");
        assert_eq!(judge_target(Some(&open), None, NOW_MS - 5).age_ms, Some(0));
    }

    #[test]
    fn a_snapshot_that_is_forged_of_the_source_itself_or_without_moves_does_not_count() {
        let moves = || {
            Some(vec![
                track(MigrationPhase::Baking, Some(20)),
                MoveSnapshot { source_uid: Some("other".to_owned()), ..track(MigrationPhase::Baking, Some(5)) },
            ])
        };
        let good = published(SnapshotOrigin::Operator, "t", moves());
        let parse = |text: &str| TargetReading::parse(text, &digester(), "s", NOW_MS + 8 * 86_400_000);
        let read = parse(&good).expect("one that is older than its validity");
        assert_eq!((read.identity.sequence, read.tracks.len()), (NOW_MS, 1), "without the tracks of another source");
        for (text, expected) in [
            (good.replace("new/eu", "new/us"), "forged"),
            (published(SnapshotOrigin::Operator, "s", moves()), "of this cluster itself"),
            (published(SnapshotOrigin::Operator, "t", None), "lists no moves"),
            (published(SnapshotOrigin::Foreign, "t", moves()), "lists no moves"),
            ("kind: ConfigMap".to_owned(), "is no snapshot"),
        ] {
            let found = parse(&text).expect_err("not to be used");
            assert!(found.contains(expected), "{found}");
        }
        let other = SecretDigester::new("another key of them").expect("a key");
        assert!(TargetReading::parse(&good, &other, "s", NOW_MS).is_err_and(|found| found.contains("foreign")));
        let mut later = read.clone();
        later.identity.sequence += 1;
        assert_eq!(TargetReading::newer(Some(&later), read.clone()), later, "an older copy that is put back");
        assert_eq!(TargetReading::newer(Some(&read), later.clone()), later);
    }
}
