//! The reasons of conditions: constants in one file, each with a paragraph in `docs/reasons.md` that a test keeps
//! complete.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// Why a condition has its status: one word that stays the same, for people, alerts and programs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name),+
        }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// What it means, in a sentence.
            #[must_use]
            pub fn about(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),+ }
            }

            /// The word.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }
        }
    };
}

reasons! {
    /// Every dimension is proven on this fingerprint.
    Proven,
    /// Webhooks are off because someone wrote it; hops 1 to 6 are proven.
    ReadyWithoutWebhooks,
    /// The first proof is under way.
    Proving,
    /// No connection to the edge.
    EdgeUnreachable,
    /// The transport's own handshake failed.
    HandshakeRejected,
    /// The connection was not established for the app's key.
    SessionRefused,
    /// A signed subscription was refused or not answered.
    SubscribeRejected,
    /// A client event was refused.
    PublishRejected,
    /// A send reached a server that does not know the session.
    AffinityBroken,
    /// Another session did not get the event.
    FanoutBroken,
    /// The event did not reach the stream, and nobody said why.
    RecordMissing,
    /// The stream refused the event.
    RecordRefused,
    /// The event is in the stream and its shard is not read.
    DispatcherStuck,
    /// The event was read and no webhook arrived.
    WebhookMissing,
    /// A webhook arrived whose signature does not verify.
    SignatureInvalid,
    /// A webhook arrived that says something else than what happened.
    PayloadWrong,
    /// Leaving was not told.
    VacatedMissing,
    /// A server runs another configuration than was rendered.
    ConfigurationDrift,
    /// A server refused its configuration.
    ConfigurationRefused,
    /// A server knows an app otherwise than was rendered.
    AppsInconsistent,
    /// A server's clock is off by more than 30 s.
    ClockSkew,
    /// A transport, a shard's holder or a server has nobody behind it.
    NoPods,
    /// The stream does not exist.
    StreamMissing,
    /// The stream is being made.
    StreamCreating,
    /// The stream is there and ours.
    StreamActive,
    /// A stream of the wanted name belongs to someone else, and was not touched.
    StreamNotOurs,
    /// Kinesis will never take the stream as it is asked for.
    StreamInvalid,
    /// Kinesis does not answer.
    StreamUnreachable,
    /// The operator's identity may not do what it has to.
    AccessDenied,
    /// Every child is as it should be.
    Applied,
    /// An object of a child's name belongs to someone else, and was not touched.
    ChildNotOurs,
    /// A Secret that the manifest names is not there, or lacks the key.
    SecretMissing,
    /// The manifest contradicts itself in a way that the schema cannot see.
    SpecInvalid,
    /// The API server refused an object.
    ApplyFailed,
    /// Pods of the wanted template are still coming up.
    RollingOut,
    /// The app is served.
    AppAccepted,
    /// Another app has this id or key.
    KeyConflict,
    /// What the app names is not there or not usable.
    AppInvalid,
    /// Some pods do not have the latest registry yet.
    AppsStale,
    /// The proof is too old to be believed.
    EvidenceStale,
    /// Not proven within the time that the gate allows.
    DeadlineExceeded,
    /// The cluster is being deleted.
    Deleting,
    /// Let in because its configuration was proven before, while the way behind the edges is broken for all.
    AdmittedOnRecord,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The types of conditions.
pub mod condition {
    /// Whether the cluster is operational: the only one to wait for.
    pub const READY: &str = "Ready";
    /// Present while something is under way.
    pub const RECONCILING: &str = "Reconciling";
    /// Present while only a person can go on.
    pub const STALLED: &str = "Stalled";
    /// Whether the stream is there and ours.
    pub const STREAM_READY: &str = "StreamReady";
    /// Whether every child is applied and every pod of the wanted template is up.
    pub const WORKLOADS_AVAILABLE: &str = "WorkloadsAvailable";
    /// Whether every app is known to every pod.
    pub const APPS_SYNCED: &str = "AppsSynced";
    /// Whether the journeys hold, whatever else is said.
    pub const WEBHOOKS_DELIVERED: &str = "WebhooksDelivered";
    /// Whether there are webhooks at all.
    pub const WEBHOOKS_ENABLED: &str = "WebhooksEnabled";
    /// On an app: whether it is served.
    pub const ACCEPTED: &str = "Accepted";
}

/// `docs/reasons.md`: every reason with what it means and what to do about it.
#[must_use]
pub fn reasons_page() -> String {
    let mut page = String::from(
        "<!-- Generated by `realtime reasons`; a test compares. -->\n\
         # Reasons\n\n\
         Why a cluster is, or is not, Ready. The message of the condition names transport, hop, pod and, where one is to\n\
         blame, the variable with what was wanted and what was found.\n\n\
         | reason | what it means | what to do |\n|---|---|---|\n",
    );
    for reason in Reason::ALL {
        // Writing to a String cannot fail.
        let _ = writeln!(page, "| `{reason}` | {} | {} |", reason.about(), reason.remedy());
    }
    page
}

impl Reason {
    /// What a person does about it.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Proven
            | Self::Proving
            | Self::StreamCreating
            | Self::StreamActive
            | Self::Applied
            | Self::AppAccepted
            | Self::Deleting => "Nothing.",
            Self::ReadyWithoutWebhooks => "Nothing, if it is meant; else set `webhooks.mode: Kinesis`.",
            Self::EdgeUnreachable => "Look at the pod named: does it run, and does it listen?",
            Self::HandshakeRejected => {
                "Look for a proxy that answers in the server's place, buffers or refuses the upgrade."
            }
            Self::SessionRefused => "Compare the app's key at the server with the registry.",
            Self::SubscribeRejected => "Compare the app's secret at the edge with the registry.",
            Self::PublishRejected => "Read the edge's answer in the message: client events or a limit of the app.",
            Self::AffinityBroken => "Let requests of one session reach the pod that holds it.",
            Self::FanoutBroken => "Look at the bus: address, credentials, and whether it is this cluster's own.",
            Self::RecordMissing => {
                "Look whether the edge writes at all: `REALTIME_WEBHOOKS`, the stream's name, a proxy between."
            }
            Self::RecordRefused => "Read the stream's answer in the message: name, region, permission or throughput.",
            Self::DispatcherStuck => "Look whether a dispatcher holds the shard named and reads this stream.",
            Self::WebhookMissing => {
                "Look at the dispatcher's last error: resolving, connecting, or the endpoint's answer."
            }
            Self::SignatureInvalid => "Compare the app's secret at the dispatcher with the registry.",
            Self::PayloadWrong => "Compare the releases of edge and dispatcher.",
            Self::VacatedMissing => "Look at the dispatcher's debounce and at the clock of the edge.",
            Self::ConfigurationDrift => "Undo what changed the variable named: a hand, a policy, an injector.",
            Self::ConfigurationRefused => "Do what the server's line says.",
            Self::AppsInconsistent => "Look why the server named has another copy of the registry.",
            Self::ClockSkew => "Set the clock of the node.",
            Self::NoPods => "Scale up what has no pod, or look why its pods do not start.",
            Self::StreamMissing => "Create the stream, or correct its name.",
            Self::StreamNotOurs => "Choose another `webhooks.stream.name`, or remove the stream if nobody needs it.",
            Self::StreamInvalid => {
                "Correct `webhooks.stream` by Kinesis's answer in the message; where it knows no on-demand streams, \
                 write `mode: Provisioned` there."
            }
            Self::StreamUnreachable => "Look at region, endpoint and network between the operator and Kinesis.",
            Self::AccessDenied => "Allow the operator's identity what the message names.",
            Self::ChildNotOurs => "Rename or delete the object named, or give the cluster another name.",
            Self::SecretMissing => "Create the Secret with the key named; nothing needs to be restarted.",
            Self::SpecInvalid => "Correct the field named.",
            Self::ApplyFailed => "Read the API server's answer: a quota, a policy or a missing permission.",
            Self::RollingOut => "Wait; if it lasts, look at the newest pod of the Deployment named.",
            Self::KeyConflict => "Give the younger app another id or key.",
            Self::AppInvalid => "Correct the field named, or create the Secret it names.",
            Self::AppsStale => "Look at the pods named: they learn of apps through their mounted Secrets.",
            Self::EvidenceStale => "Wait for the next round.",
            Self::DeadlineExceeded => "Read the message: it names the hop that does not hold.",
            Self::AdmittedOnRecord => "Mend what is behind the edges; Ready stays False until it works.",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_says_what_it_means_and_what_to_do() {
        for reason in Reason::ALL {
            assert!(reason.about().ends_with('.'), "{reason}");
            assert!(reason.remedy().ends_with(['.', '?']), "{reason}");
        }
    }
}
