//! Obstacles of the first record of a move. A test keeps `docs/reasons.md` complete.

use std::fmt::Write;

use super::super::documented_words::documented_words;

documented_words! {
    /// An obstacle of the first record: the word with which the message of `PreflightFailed` begins.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum MoveObstacle {
        /// Another track of the move comes first.
        TrackWaits,
        /// An older move has the same host.
        HostTaken,
        /// The manifest accepts a finding that no review has.
        FindingUnknown,
        /// The API server has no `DNSEndpoint`s, or denies them.
        DNSEndpointUnavailable,
        /// A `DNSEndpoint` of the record's name exists, which the move did not make.
        RecordNotOurs,
        /// Sessions of a cluster have no host of its own, and would follow the weights.
        SessionsUnpinned,
        /// external-dns of the target never removes a record, or never changes one.
        RecordsKept,
        /// The host is the name of a zone, which cannot have a CNAME.
        ZoneApex,
        /// No name server of a zone above the host is found.
        ZoneUnknown,
        /// The servers of the zone do not answer all lookups in time.
        ZoneSlow,
        /// No server of the zone answers.
        ZoneSilent,
        /// The host has records of another type, beside which no CNAME can be.
        RecordTypesDiffer,
        /// A record of the host leads to the target, which no step wrote.
        TargetAnswered,
        /// The host has no record, and the target would be the only answer.
        SourceRecordMissing,
        /// The source's record has another TTL than the track.
        TTLDiffers,
        /// The host of the target has no record.
        TargetHostUnknown,
        /// A TXT record in the zone gives the target's record to another owner: external-dns would create it, and neither change nor remove
        /// it.
        OwnerForeign,
        /// A TXT record gives the source's record to the owner that external-dns has at the target, which would remove it.
        OwnerShared,
    }
}

impl MoveObstacle {
    /// The user's remedy in one sentence.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::TrackWaits => "Nothing.",
            Self::HostTaken => "Delete one of both.",
            Self::FindingUnknown => "Correct the word in `review.accepted`.",
            Self::DNSEndpointUnavailable => "Install external-dns's CRD, grant the right, or write `engine: External`.",
            Self::RecordNotOurs => "Delete the object, or rename the move.",
            Self::SessionsUnpinned => "Write `sockjs.canonicalHost` in both clusters.",
            Self::RecordsKept => "Start external-dns of the target with `--policy=sync`, or write `engine: External`.",
            Self::ZoneApex => "Use a host below the zone's name.",
            Self::ZoneUnknown => {
                "Check the host, and the name servers of the operator's pod, or name them by `--zone-servers`."
            }
            Self::ZoneSlow => "Nothing, if it passes; otherwise check the path of the operator's pod to them.",
            Self::ZoneSilent => "Allow the operator's pod the path to port 53 of the servers named.",
            Self::RecordTypesDiffer => "Convert the record with `realtime migrate prepare` at the source.",
            Self::TargetAnswered => "Remove that record.",
            Self::SourceRecordMissing => "Give the source a weighted CNAME with `realtime migrate prepare`.",
            Self::TTLDiffers => "Write one TTL in both.",
            Self::TargetHostUnknown => "Give `targetHost` a record that leads to the target.",
            Self::OwnerForeign => {
                "Remove the TXT record named, or start external-dns of the target with `--migrate-from-txt-owner`."
            }
            Self::OwnerShared => "Give external-dns of each cluster a `--txt-owner-id` of its own.",
        }
    }

    /// The message of the obstacle as it was found.
    #[must_use]
    pub fn with(self, finding: &str) -> String {
        format!("{}: {finding}; {}", self.name(), self.remedy())
    }

    /// The obstacle with which a message begins.
    #[must_use]
    pub fn of_message(message: &str) -> Option<Self> {
        let word = message.split(':').next().unwrap_or_default();
        Self::ALL.iter().copied().find(|obstacle| obstacle.name() == word)
    }
}

/// Renders the table of the obstacles: each with its meaning and its remedy. Writing to a text cannot fail.
#[must_use]
pub fn obstacles_table() -> String {
    let mut table = String::from("| obstacle | meaning | remedy |\n|---|---|---|\n");
    for obstacle in MoveObstacle::ALL {
        let _ = writeln!(table, "| `{}` | {} | {} |", obstacle.name(), obstacle.about(), obstacle.remedy());
    }
    table
}
