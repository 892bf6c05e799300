//! Names of channels, users and sockets.

use super::protocol::channel::{CHANNEL_NAME_MAX_LEN, USER_ID_MAX_LEN};
use super::protocol::{ChannelKind, ChannelName, SocketId};

/// Bytes of what is said of a name that is refused.
const MAX_TOLD: usize = 120;

/// A name, or a user's id.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match ChannelName::parse(text) {
        Ok(name) => {
            assert_eq!(name.as_str(), text);
            assert!(text.is_ascii() && (1..=CHANNEL_NAME_MAX_LEN).contains(&text.len()));
            assert!(!text.contains(['#', ':', '/', '"', '\\', '*', '{', '}']), "safe in keys, patterns and signatures");
            assert_ne!(name.kind(), ChannelKind::Internal);
            assert_eq!(name.needs_auth(), text.starts_with("private-") || text.starts_with("presence-"));
            assert!(!name.is_cached() || text.contains("cache-"));
            assert_eq!(ChannelName::parse_any(text).as_ref(), Ok(&name));
            let json = serde_json::to_string(&name).expect("json");
            assert_eq!(serde_json::from_str::<ChannelName>(&json).ok(), Some(name));
        }
        Err(error) => {
            assert!(error.to_string().len() <= MAX_TOLD, "{error}");
            assert!(serde_json::from_value::<ChannelName>(text.into()).is_err());
            own(text);
        }
    }
    user(text);
    let digits = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
    let parts: Vec<&str> = text.split('.').collect();
    assert_eq!(SocketId::is_valid(text), parts.len() == 2 && parts.into_iter().all(digits));
}

/// The name of a channel of the server's own.
fn own(text: &str) {
    match ChannelName::parse_any(text) {
        Ok(name) => {
            assert_eq!((name.as_str(), name.kind()), (text, ChannelKind::Internal));
            assert!(!name.needs_auth() && !name.is_cached());
            if let Some(user) = name.addressed_user() {
                assert_eq!(ChannelName::to_user(user), Some(name.clone()));
            }
        }
        Err(error) => assert!(error.to_string().len() <= MAX_TOLD, "{error}"),
    }
}

fn user(id: &str) {
    let names = [ChannelName::to_user(id), ChannelName::signed_in(id), ChannelName::watchers_of(id)];
    let valid = (1..=USER_ID_MAX_LEN).contains(&id.chars().count()) && !id.chars().any(char::is_control);
    assert!(names.iter().all(|name| name.is_some() == valid));
    let [Some(to), Some(signed_in), Some(watching)] = names else { return };
    assert!(to != signed_in && signed_in != watching && watching != to);
    assert_eq!(to.addressed_user(), Some(id));
    for name in [to, signed_in, watching] {
        assert!(ChannelName::parse(name.as_str()).is_err(), "no client can name it");
        assert_eq!(ChannelName::parse_any(name.as_str()), Ok(name));
    }
}
