//! Channel names: their validity, and the kind that a name's prefix declares.
//!
//! Source: the channel naming conventions in Pusher's documentation (`using_channels/channels`).

use std::fmt;
use std::sync::Arc;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name that the server SDKs send. Pusher documents 164, its SDKs accept 200.
pub const CHANNEL_NAME_MAX_LEN: usize = 200;

/// The kind that a channel's prefix declares: it decides which clients may subscribe and whether members are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// Any client may subscribe.
    Public,
    /// A subscription needs a signature.
    Private,
    /// As private, with payloads that only the members can decrypt.
    Encrypted,
    /// As private, with a roster of members.
    Presence,
    /// Reserved for the server: never in a list, never in a record.
    Internal,
}

/// Prefix of the channel for one user's connections; the user's id follows.
const USER_CHANNEL_PREFIX: &str = "#server-to-user-";

/// Prefix of the channel for the connections that signed in as a user.
const SIGNED_IN_PREFIX: &str = "#signed-in-";

/// Prefix of the channel for the connections that watch a user.
const WATCHING_PREFIX: &str = "#watching-";

/// The channel of all connections of an app.
const CONNECTIONS_CHANNEL: &str = "#connections";

/// Prefixes of internal channels that belong to a user.
const INTERNAL_PREFIXES: [&str; 3] = [USER_CHANNEL_PREFIX, SIGNED_IN_PREFIX, WATCHING_PREFIX];

/// Longest user id, in characters, as Pusher documents it.
pub const USER_ID_MAX_LEN: usize = 128;

/// A valid channel name. A clone shares the text: sockets, rosters and queued events hold the same names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// Parses a name: 1 to 200 of `A-Z a-z 0-9 _ - = @ , . ;`.
    ///
    /// # Errors
    /// The name is invalid, with the reason; `#` is refused because only the server names such channels.
    pub fn parse(text: &str) -> Result<Self, InvalidChannelName> {
        if text.is_empty() {
            return Err(InvalidChannelName::Empty);
        }
        if text.len() > CHANNEL_NAME_MAX_LEN {
            return Err(InvalidChannelName::TooLong(text.chars().count()));
        }
        let is_allowed =
            |sign: char| sign.is_ascii_alphanumeric() || matches!(sign, '_' | '-' | '=' | '@' | ',' | '.' | ';');
        match text.chars().find(|sign| !is_allowed(*sign)) {
            Some(sign) => Err(InvalidChannelName::Character(sign)),
            None => Ok(Self(text.into())),
        }
    }

    /// Parses a name that [`Self::parse`] accepts, or that of an internal channel.
    ///
    /// # Errors
    /// The name is invalid, with the reason.
    pub fn parse_any(text: &str) -> Result<Self, InvalidChannelName> {
        if text == CONNECTIONS_CHANNEL {
            return Ok(Self::all_connections());
        }
        match INTERNAL_PREFIXES.into_iter().find_map(|prefix| text.strip_prefix(prefix).map(|user| (prefix, user))) {
            Some((prefix, user)) => Self::of_user(prefix, user).ok_or(InvalidChannelName::User),
            None => Self::parse(text),
        }
    }

    /// The channel on which a server addresses all connections of one user. `None` when this cannot be a user's id.
    #[must_use]
    pub fn to_user(user_id: &str) -> Option<Self> {
        Self::of_user(USER_CHANNEL_PREFIX, user_id)
    }

    /// The channel of the connections that signed in as a user.
    #[must_use]
    pub fn signed_in(user_id: &str) -> Option<Self> {
        Self::of_user(SIGNED_IN_PREFIX, user_id)
    }

    /// The channel of the connections that are notified when a user goes online or offline.
    #[must_use]
    pub fn watchers_of(user_id: &str) -> Option<Self> {
        Self::of_user(WATCHING_PREFIX, user_id)
    }

    /// The channel of all connections of an app, counted only where the app has a limit of connections.
    #[must_use]
    pub fn all_connections() -> Self {
        Self(CONNECTIONS_CHANNEL.into())
    }

    fn of_user(prefix: &str, user_id: &str) -> Option<Self> {
        let length = user_id.chars().count();
        let valid = (1..=USER_ID_MAX_LEN).contains(&length) && !user_id.chars().any(char::is_control);
        valid.then(|| Self(format!("{prefix}{user_id}").into()))
    }

    /// The user whom the server addresses on this channel.
    #[must_use]
    pub fn addressed_user(&self) -> Option<&str> {
        self.0.strip_prefix(USER_CHANNEL_PREFIX)
    }

    /// The user of a channel of signed-in connections.
    #[must_use]
    pub fn signed_in_user(&self) -> Option<&str> {
        self.0.strip_prefix(SIGNED_IN_PREFIX)
    }

    /// The name as a string slice.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The kind that the prefix declares. The order of the tests matters: `private-encrypted-` begins with `private-`.
    #[must_use]
    pub fn kind(&self) -> ChannelKind {
        if self.0.starts_with('#') {
            ChannelKind::Internal
        } else if self.0.starts_with("private-encrypted-") {
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
        matches!(self.kind(), ChannelKind::Private | ChannelKind::Encrypted | ChannelKind::Presence)
    }

    /// Whether the last event is kept for later subscribers: `cache-` follows the prefix of the kind.
    #[must_use]
    pub fn is_cached(&self) -> bool {
        let base = match self.kind() {
            ChannelKind::Public => "",
            ChannelKind::Private => "private-",
            ChannelKind::Encrypted => "private-encrypted-",
            ChannelKind::Presence => "presence-",
            ChannelKind::Internal => return false,
        };
        self.0[base.len()..].starts_with("cache-")
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for ChannelName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ChannelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;

        impl Visitor<'_> for NameVisitor {
            type Value = ChannelName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a channel")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ChannelName, E> {
                ChannelName::parse(text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(NameVisitor)
    }
}

/// The reason why a channel name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChannelName {
    /// The name is empty.
    #[error("the channel name is empty")]
    Empty,
    /// The name has more characters than any SDK sends.
    #[error("the channel name has {0} characters, at most {CHANNEL_NAME_MAX_LEN} are allowed")]
    TooLong(usize),
    /// The name has a character outside the documented set.
    #[error("the channel name has `{0}` in it: use letters, digits and _ - = @ , . ;")]
    Character(char),
    /// The user's id in an internal name is invalid.
    #[error("a user id has 1 to {USER_ID_MAX_LEN} characters and no control characters")]
    User,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_prefix_declares_the_kind() {
        for (name, kind) in [
            ("room", ChannelKind::Public),
            ("cache-room", ChannelKind::Public),
            ("private-room", ChannelKind::Private),
            ("private-encrypted-room", ChannelKind::Encrypted),
            ("presence-room", ChannelKind::Presence),
            ("Private-room", ChannelKind::Public),
            ("private-cache-room", ChannelKind::Private),
            ("private-encrypted-cache-room", ChannelKind::Encrypted),
        ] {
            assert_eq!(ChannelName::parse(name).map(|n| n.kind()), Ok(kind), "{name}");
        }
    }

    #[test]
    fn a_channel_caches_by_the_prefix_after_its_kind() {
        for (name, caches) in [
            ("cache-room", true),
            ("private-cache-room", true),
            ("private-encrypted-cache-room", true),
            ("presence-cache-room", true),
            ("room-cache-", false),
            ("private-room", false),
            ("private-cached", false),
            ("cache", false),
        ] {
            assert_eq!(ChannelName::parse(name).map(|name| name.is_cached()), Ok(caches), "{name}");
        }
    }

    #[test]
    fn a_client_cannot_name_an_internal_channel() {
        let long = "u".repeat(USER_ID_MAX_LEN + 1);
        for (user, valid) in [("7", true), ("ann@example.com/é", true), ("", false), ("a\n", false), (&*long, false)] {
            let name = ChannelName::to_user(user);
            assert_eq!(name.is_some(), valid, "{user}");
            let Some(name) = name else { continue };
            assert_eq!((name.kind(), name.addressed_user()), (ChannelKind::Internal, Some(user)));
            assert_eq!(ChannelName::parse_any(name.as_str()), Ok(name.clone()));
            assert!(ChannelName::parse(name.as_str()).is_err() && !name.needs_auth() && !name.is_cached());
        }
        let all = ChannelName::all_connections();
        assert_eq!((all.kind(), ChannelName::parse_any(all.as_str())), (ChannelKind::Internal, Ok(all)));
        assert_eq!(ChannelName::parse_any("#server-to-user-"), Err(InvalidChannelName::User));
        assert_eq!(ChannelName::parse_any("#else"), Err(InvalidChannelName::Character('#')));
        let home = ChannelName::signed_in("7").expect("a name");
        assert_eq!((home.addressed_user(), home.signed_in_user()), (None, Some("7")));
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

    proptest! {
        #[test]
        fn a_name_of_documented_characters_is_accepted_unchanged(name in "[A-Za-z0-9_=@,.;-]{1,200}") {
            let parsed = ChannelName::parse(&name).expect("a name");
            prop_assert_eq!(parsed.as_str(), &name);
            prop_assert_eq!(ChannelName::parse_any(&name), Ok(parsed));
        }

        #[test]
        fn any_other_character_is_refused(before in "[a-z]{0,9}", sign in any::<char>(), after in "[a-z]{0,9}") {
            prop_assume!(!sign.is_ascii_alphanumeric() && !"_-=@,.;".contains(sign));
            prop_assert_eq!(ChannelName::parse(&format!("{before}{sign}{after}")), Err(InvalidChannelName::Character(sign)));
        }

        #[test]
        fn the_user_is_parsed_from_an_internal_name(user in any::<String>()) {
            if let Some(name) = ChannelName::to_user(&user) {
                prop_assert_eq!(name.addressed_user(), Some(&*user));
                prop_assert_eq!(ChannelName::parse_any(name.as_str()), Ok(name));
            }
        }
    }
}
