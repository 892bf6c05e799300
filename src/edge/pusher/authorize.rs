//! The authorization of a subscription: the signature, and on presence channels the member.
//!
//! In: the app, the socket, the client's message, the signed-in user. Out: the member for presence channels, or the
//! reason of the refusal. Pure.

use crate::protocol::channel::USER_ID_MAX_LEN;
use crate::protocol::frame::PresenceMember;
use crate::protocol::registry::App;
use crate::protocol::{ChannelKind, ChannelName, SocketId, signature};

/// Largest `user_info`, in bytes, as Pusher documents it.
pub const USER_INFO_BYTES_MAX: usize = 1024;

/// Authorizes one subscription.
///
/// # Errors
/// A sentence for the client that names the mismatch.
pub fn authorize_subscription(
    app: &App,
    socket: &SocketId,
    channel: &ChannelName,
    auth: Option<&str>,
    channel_data: Option<&str>,
    user: Option<&PresenceMember>,
) -> Result<Option<PresenceMember>, String> {
    if !channel.needs_auth() {
        return Ok(None);
    }
    let auth = auth.ok_or_else(|| format!("`{channel}` needs a signature: `auth` is missing"))?;
    verify_auth(app, auth, &signature::channel_message(socket.as_str(), channel.as_str(), channel_data))?;
    if channel.kind() != ChannelKind::Presence {
        return Ok(None);
    }
    let member = match (channel_data, user) {
        (Some(data), _) => {
            PresenceMember::parse(data).ok_or("`channel_data` must be a JSON object with a `user_id`")?
        }
        (None, Some(user)) => user.clone(),
        (None, None) => return Err("a presence channel needs `channel_data`, or a client that signed in".into()),
    };
    if member.user_id.chars().count() > USER_ID_MAX_LEN {
        return Err(format!("`user_id` is longer than {USER_ID_MAX_LEN} characters"));
    }
    if member.user_info.to_string().len() > USER_INFO_BYTES_MAX {
        return Err(format!("`user_info` is larger than {USER_INFO_BYTES_MAX} bytes"));
    }
    Ok(Some(member))
}

/// Checks that `auth`, in the form `KEY:SIGNATURE`, signs this message for this app.
///
/// # Errors
/// A sentence for the client that names the mismatch.
pub fn verify_auth(app: &App, auth: &str, message: &str) -> Result<(), String> {
    let (key, hex) = auth.trim().split_once(':').ok_or("`auth` must be KEY:SIGNATURE")?;
    let secret = app.secret_for(key).ok_or_else(|| format!("the key in `auth` does not belong to app {}", app.id))?;
    if signature::verify_signature(secret, message.as_bytes(), hex) {
        Ok(())
    } else {
        Err(format!("invalid signature: expected the HMAC-SHA256 in hexadecimal of {message:?}"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::protocol::Secret;
    use crate::protocol::registry::{self, CredentialState};

    pub fn test_app() -> App {
        registry::tests::app("1", &[("k", CredentialState::Active)])
    }

    fn signed_auth(channel: &str, data: Option<&str>) -> String {
        let message = signature::channel_message("1.2", channel, data);
        format!("k:{}", signature::sign_message(&Secret::new("s"), message.as_bytes()))
    }

    #[test]
    fn a_table_of_subscriptions() {
        let user = Some(r#"{"user_id":7}"#);
        let long = format!(r#"{{"user_id":"{}"}}"#, "u".repeat(129));
        let large = format!(r#"{{"user_id":"u","user_info":"{}"}}"#, "x".repeat(1024));
        for (name, channel, auth, data, expected) in [
            ("public needs nothing", "room", None, None, Ok(None)),
            ("private, signed", "private-a", Some(signed_auth("private-a", None)), None, Ok(None)),
            ("private, data is signed too", "private-a", Some(signed_auth("private-a", user)), user, Ok(None)),
            (
                "private, data is not signed",
                "private-a",
                Some(signed_auth("private-a", None)),
                user,
                Err("invalid sig"),
            ),
            (
                "a line end of the backend's template",
                "private-a",
                Some(signed_auth("private-a", None) + "\n"),
                None,
                Ok(None),
            ),
            ("private, no auth", "private-a", None, None, Err("`auth` is missing")),
            ("encrypted is private", "private-encrypted-a", None, None, Err("`auth` is missing")),
            ("auth without a key", "private-a", Some("abc".into()), None, Err("KEY:SIGNATURE")),
            ("another app's key", "private-a", Some("x:abc".into()), None, Err("does not belong to app 1")),
            ("another channel's", "private-b", Some(signed_auth("private-a", None)), None, Err("invalid signature")),
            ("a member", "presence-a", Some(signed_auth("presence-a", user)), user, Ok(Some("7"))),
            ("nobody", "presence-a", Some(signed_auth("presence-a", None)), None, Err("needs `channel_data`")),
            ("no user", "presence-a", Some(signed_auth("presence-a", Some("{}"))), Some("{}"), Err("`user_id`")),
            (
                "long id",
                "presence-a",
                Some(signed_auth("presence-a", Some(&long))),
                Some(&*long),
                Err("128 characters"),
            ),
            (
                "large info",
                "presence-a",
                Some(signed_auth("presence-a", Some(&large))),
                Some(&*large),
                Err("1024 bytes"),
            ),
        ] {
            let channel = ChannelName::parse(channel).expect("a name");
            let found = authorize_subscription(&test_app(), &"1.2".into(), &channel, auth.as_deref(), data, None);
            match (found, expected) {
                (Ok(member), Ok(user)) => assert_eq!(member.map(|m| m.user_id).as_deref(), user, "{name}"),
                (Err(told), Err(part)) => assert!(told.contains(part), "{name}: {told}"),
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
    }

    #[test]
    fn who_signed_in_needs_no_channel_data() {
        let channel = ChannelName::parse("presence-a").expect("a name");
        let user = PresenceMember { user_id: "7".into(), user_info: serde_json::Value::Null };
        let auth = signed_auth("presence-a", None);
        let member = authorize_subscription(&test_app(), &"1.2".into(), &channel, Some(&auth), None, Some(&user));
        assert_eq!(member, Ok(Some(user.clone())));
        let data = r#"{"user_id":"8"}"#;
        let auth = signed_auth("presence-a", Some(data));
        let member = authorize_subscription(&test_app(), &"1.2".into(), &channel, Some(&auth), Some(data), Some(&user));
        assert_eq!(
            member.map(|member| member.map(|member| member.user_id)),
            Ok(Some("8".into())),
            "what is signed wins"
        );
    }
}
