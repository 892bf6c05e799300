//! Who may enter a channel: the signature, and on presence channels the member.
//!
//! In: the app, the socket, what the client sent. Out: the member to enter as, if any, or why not. Pure.

use crate::protocol::frame::Member;
use crate::protocol::registry::App;
use crate::protocol::{ChannelKind, ChannelName, SocketId, signature};

/// Longest user id, in characters, as Pusher documents it.
const MAX_USER_ID: usize = 128;

/// Largest `user_info`, in bytes, as Pusher documents it.
const MAX_USER_INFO: usize = 1024;

/// Decides on one subscription.
///
/// # Errors
/// A sentence for the client.
pub fn authorize(
    app: &App,
    socket: &SocketId,
    channel: &ChannelName,
    auth: Option<&str>,
    channel_data: Option<&str>,
) -> Result<Option<Member>, String> {
    if !channel.needs_auth() {
        return Ok(None);
    }
    let auth = auth.ok_or_else(|| format!("`{channel}` needs a signature: `auth` is missing"))?;
    let (key, hex) = auth.split_once(':').ok_or("`auth` must be KEY:SIGNATURE")?;
    let secret = app.secret(key).ok_or_else(|| format!("the key in `auth` does not belong to app {}", app.id))?;
    let message = signature::channel_message(socket.as_str(), channel.as_str(), channel_data);
    if !signature::verify(secret, message.as_bytes(), hex) {
        return Err(format!("invalid signature: expected the HMAC-SHA256 in hexadecimal of {message:?}"));
    }
    if channel.kind() != ChannelKind::Presence {
        return Ok(None);
    }
    let data = channel_data.ok_or("a presence channel needs `channel_data`")?;
    let member = Member::parse(data).ok_or("`channel_data` must be a JSON object with a `user_id`")?;
    if member.user_id.chars().count() > MAX_USER_ID {
        return Err(format!("`user_id` is longer than {MAX_USER_ID} characters"));
    }
    if member.user_info.to_string().len() > MAX_USER_INFO {
        return Err(format!("`user_info` is larger than {MAX_USER_INFO} bytes"));
    }
    Ok(Some(member))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Secret;
    use crate::protocol::registry::{Credential, CredentialState, Limits};

    fn app() -> App {
        let credential = Credential { key: "k".into(), secret: Secret::new("s"), state: CredentialState::Active };
        let limits = Limits { client_events_per_second: 10 };
        let (enabled, client_events) = (true, true);
        App { id: "1".into(), credentials: vec![credential], enabled, client_events, limits, webhooks: vec![] }
    }

    fn signed(channel: &str, data: Option<&str>) -> String {
        let message = signature::channel_message("1.2", channel, data);
        format!("k:{}", signature::sign(&Secret::new("s"), message.as_bytes()))
    }

    #[test]
    fn a_table_of_subscriptions() {
        let user = Some(r#"{"user_id":7}"#);
        let long = format!(r#"{{"user_id":"{}"}}"#, "u".repeat(129));
        let large = format!(r#"{{"user_id":"u","user_info":"{}"}}"#, "x".repeat(1024));
        for (name, channel, auth, data, expected) in [
            ("public needs nothing", "room", None, None, Ok(None)),
            ("private, signed", "private-a", Some(signed("private-a", None)), None, Ok(None)),
            ("private, data is signed too", "private-a", Some(signed("private-a", user)), user, Ok(None)),
            ("private, data is not signed", "private-a", Some(signed("private-a", None)), user, Err("invalid sig")),
            ("private, no auth", "private-a", None, None, Err("`auth` is missing")),
            ("encrypted is private", "private-encrypted-a", None, None, Err("`auth` is missing")),
            ("auth without a key", "private-a", Some("abc".into()), None, Err("KEY:SIGNATURE")),
            ("another app's key", "private-a", Some("x:abc".into()), None, Err("does not belong to app 1")),
            ("another channel's", "private-b", Some(signed("private-a", None)), None, Err("invalid signature")),
            ("a member", "presence-a", Some(signed("presence-a", user)), user, Ok(Some("7"))),
            ("nobody", "presence-a", Some(signed("presence-a", None)), None, Err("needs `channel_data`")),
            ("no user", "presence-a", Some(signed("presence-a", Some("{}"))), Some("{}"), Err("`user_id`")),
            ("long id", "presence-a", Some(signed("presence-a", Some(&long))), Some(&*long), Err("128 characters")),
            ("large info", "presence-a", Some(signed("presence-a", Some(&large))), Some(&*large), Err("1024 bytes")),
        ] {
            let channel = ChannelName::parse(channel).expect("a name");
            let found = authorize(&app(), &"1.2".into(), &channel, auth.as_deref(), data);
            match (found, expected) {
                (Ok(member), Ok(user)) => assert_eq!(member.map(|m| m.user_id).as_deref(), user, "{name}"),
                (Err(told), Err(part)) => assert!(told.contains(part), "{name}: {told}"),
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
    }
}
