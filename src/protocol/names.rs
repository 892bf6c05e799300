//! Newtypes for names that are easily confused.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub String);

        impl $type {
            /// The name as a string slice.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $type {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl From<String> for $type {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
    };
}

name!(
    /// An app's id: digits only, because the server SDKs refuse others.
    AppId
);
name!(
    /// The public half of an app's credentials.
    AppKey
);
name!(
    /// The name of a Kinesis stream.
    StreamName
);
name!(
    /// The id of a shard, as Kinesis assigns it.
    ShardId
);
name!(
    /// A connection's public id: two runs of digits joined by a dot, which every server SDK checks.
    SocketId
);

impl SocketId {
    /// The id made of two random numbers. The caller takes them from the operating system: an id that repeats would let
    /// old signatures admit strangers.
    #[must_use]
    pub fn from_random(high: u64, low: u64) -> Self {
        Self(format!("{high}.{low}"))
    }

    /// Whether the text has the documented form `^\d+\.\d+$`.
    #[must_use]
    pub fn is_valid(text: &str) -> bool {
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        text.split_once('.').is_some_and(|(high, low)| digits(high) && digits(low))
    }
}

/// A secret, redacted in logs and debug output.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text of a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself: for signing, or for writing into a Secret object.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn socket_ids_have_the_form_that_sdks_check() {
        assert!(SocketId::is_valid(SocketId::from_random(u64::MAX, 0).as_str()));
        for bad in ["", ".", "1", "1.", ".1", "1.2.3", "a.1", "1.-2"] {
            assert!(!SocketId::is_valid(bad), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_redacted_in_debug_output() {
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
    }

    proptest! {
        #[test]
        fn every_generated_id_has_the_form_that_sdks_check(high in any::<u64>(), low in any::<u64>()) {
            prop_assert!(SocketId::is_valid(SocketId::from_random(high, low).as_str()));
        }

        #[test]
        fn no_text_makes_the_check_panic(text in any::<String>()) {
            let digits = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            prop_assert!(!SocketId::is_valid(&text) || digits);
        }
    }
}
