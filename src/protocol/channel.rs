//! Channel names: which are valid, and what a name's prefix promises.
//!
//! Source: the channel naming conventions in Pusher's documentation (`using_channels/channels`).

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest name that the server SDKs send. Pusher documents 164, its SDKs let 200 through.
pub const MAX_CHANNEL_NAME: usize = 200;

/// What a channel's prefix says about who may enter and what is known of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// Anyone may subscribe.
    Public,
    /// A signature is needed.
    Private,
    /// As private, with payloads that only the members can read.
    Encrypted,
    /// As private, with a roster of members.
    Presence,
}

/// A channel name that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChannelName(String);

impl ChannelName {
    /// Checks a name: 1 to 200 of `A-Z a-z 0-9 _ - = @ , . ;`.
    ///
    /// # Errors
    /// Says what is wrong with the name; `#` is refused because only the server names such channels.
    pub fn parse(text: &str) -> Result<Self, InvalidChannelName> {
        if text.is_empty() {
            return Err(InvalidChannelName::Empty);
        }
        if text.len() > MAX_CHANNEL_NAME {
            return Err(InvalidChannelName::TooLong(text.chars().count()));
        }
        match text.chars().find(|&c| !c.is_ascii_alphanumeric() && !"_-=@,.;".contains(c)) {
            Some(c) => Err(InvalidChannelName::Character(c)),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the prefix promises. The order of the tests matters: `private-encrypted-` begins with `private-`.
    #[must_use]
    pub fn kind(&self) -> ChannelKind {
        if self.0.starts_with("private-encrypted-") {
            ChannelKind::Encrypted
        } else if self.0.starts_with("private-") {
            ChannelKind::Private
        } else if self.0.starts_with("presence-") {
            ChannelKind::Presence
        } else {
            ChannelKind::Public
        }
    }

    /// Whether a subscription needs a signature.
    #[must_use]
    pub fn needs_auth(&self) -> bool {
        self.kind() != ChannelKind::Public
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ChannelName {
    type Error = InvalidChannelName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<ChannelName> for String {
    fn from(name: ChannelName) -> Self {
        name.0
    }
}

/// Why a channel name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChannelName {
    /// No name at all.
    #[error("the channel name is empty")]
    Empty,
    /// More characters than any SDK sends.
    #[error("the channel name has {0} characters, at most {MAX_CHANNEL_NAME} are allowed")]
    TooLong(usize),
    /// A character outside the documented set.
    #[error("the channel name has `{0}` in it: use letters, digits and _ - = @ , . ;")]
    Character(char),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_tells_the_kind() {
        for (name, kind) in [
            ("room", ChannelKind::Public),
            ("cache-room", ChannelKind::Public),
            ("private-room", ChannelKind::Private),
            ("private-encrypted-room", ChannelKind::Encrypted),
            ("presence-room", ChannelKind::Presence),
            ("Private-room", ChannelKind::Public),
        ] {
            assert_eq!(ChannelName::parse(name).map(|n| n.kind()), Ok(kind), "{name}");
        }
    }

    #[test]
    fn names_outside_the_documented_set_are_refused() {
        assert_eq!(ChannelName::parse(""), Err(InvalidChannelName::Empty));
        assert_eq!(ChannelName::parse("a b"), Err(InvalidChannelName::Character(' ')));
        assert_eq!(ChannelName::parse("#server-to-user-1"), Err(InvalidChannelName::Character('#')));
        assert_eq!(ChannelName::parse("é"), Err(InvalidChannelName::Character('é')));
        assert!(ChannelName::parse(&"x".repeat(200)).is_ok());
        assert_eq!(ChannelName::parse(&"x".repeat(201)), Err(InvalidChannelName::TooLong(201)));
        assert!(ChannelName::parse("a_-=@,.;Z9").is_ok());
    }
}
