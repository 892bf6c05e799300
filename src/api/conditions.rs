//! The reasons of conditions: constants in one file, each with a paragraph in `docs/reasons.md` that a test keeps
//! complete.

use std::fmt;

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
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
