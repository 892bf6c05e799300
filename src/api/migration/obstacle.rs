//! Obstacles of the first record of a move. A test keeps `docs/reasons.md` complete.

use std::fmt::Write;

macro_rules! obstacles {
    ($($(#[doc = $doc:literal])+ $name:ident => $remedy:literal),+ $(,)?) => {
        /// An obstacle of the first record: the word with which the message of `PreflightFailed` begins.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum MoveObstacle {
            $($(#[doc = $doc])+ $name),+
        }

        impl MoveObstacle {
            /// All obstacles, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Meaning of the obstacle in one sentence.
            #[must_use]
            pub fn about(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),+ }
            }

            /// The obstacle as messages have it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }

            /// The user's remedy in one sentence.
            #[must_use]
            pub fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy),+ }
            }
        }
    };
}

obstacles! {
    /// Another track of the move comes first.
    TrackWaits => "Nothing.",
    /// An older move has the same host.
    HostTaken => "Delete one of both.",
    /// The manifest accepts a finding that no review has.
    FindingUnknown => "Correct the word in `review.accepted`.",
    /// The API server has no `DNSEndpoint`s, or denies them.
    DNSEndpointUnavailable => "Install external-dns's CRD, grant the right, or write `engine: External`.",
    /// A `DNSEndpoint` of the record's name exists, which the move did not make.
    RecordNotOurs => "Delete the object, or rename the move.",
    /// Sessions of a cluster have no host of its own, and would follow the weights.
    SessionsUnpinned => "Write `sockjs.canonicalHost` in both clusters.",
    /// external-dns of the target never removes a record, or never changes one.
    RecordsKept => "Start external-dns of the target with `--policy=sync`, or write `engine: External`.",
    /// The host is the name of a zone, which cannot have a CNAME.
    ZoneApex => "Use a host below the zone's name.",
    /// No name server of a zone above the host is found.
    ZoneUnknown => "Check the host, and the name servers of the operator's pod, or name them by `--zone-servers`.",
    /// The servers of the zone do not answer all lookups in time.
    ZoneSlow => "Nothing, if it passes; otherwise check the path of the operator's pod to them.",
    /// No server of the zone answers.
    ZoneSilent => "Allow the operator's pod the path to port 53 of the servers named.",
    /// The host has records of another type, beside which no CNAME can be.
    RecordTypesDiffer => "Convert the record with `realtime migrate prepare` at the source.",
    /// A record of the host leads to the target, which no step wrote.
    TargetAnswered => "Remove that record.",
    /// The host has no record, and the target would be the only answer.
    SourceRecordMissing => "Give the source a weighted CNAME with `realtime migrate prepare`.",
    /// The source's record has another TTL than the track.
    TTLDiffers => "Write one TTL in both.",
    /// The host of the target has no record.
    TargetHostUnknown => "Give `targetHost` a record that leads to the target.",
    /// A TXT record in the zone gives the target's record to another owner: external-dns would create it, and neither change nor remove
    /// it.
    OwnerForeign => "Remove the TXT record named, or start external-dns of the target with `--migrate-from-txt-owner`.",
    /// A TXT record gives the source's record to the owner that external-dns has at the target, which would remove it.
    OwnerShared => "Give external-dns of each cluster a `--txt-owner-id` of its own.",
}

impl MoveObstacle {
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
