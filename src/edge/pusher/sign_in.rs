//! The verification of a sign-in: the signature, the user, and its watchlist.
//!
//! In: the app, the socket, the client's message. Out: the user, or the reason of the refusal.

use serde_json::value::RawValue;

use crate::edge::hub::user_presence::SignedInUser;
use crate::edge::pusher::authorize::verify_auth;
use crate::protocol::client_json::{self, RawFields};
use crate::protocol::frame::PresenceMember;
use crate::protocol::registry::App;
use crate::protocol::{ChannelName, SocketId, signature};

/// Users that one connection may watch, as Pusher documents it.
pub const WATCHED_USERS_MAX: usize = 100;

/// Largest `user_data`, in bytes: kept as long as the connection. A whole watchlist fits.
pub const USER_DATA_BYTES_MAX: usize = 32 << 10;

/// Verifies one sign-in.
///
/// # Errors
/// A sentence for the client that names the mismatch.
pub fn verify_sign_in(app: &App, socket: &SocketId, auth: &str, user_data: &str) -> Result<SignedInUser, String> {
    if user_data.len() > USER_DATA_BYTES_MAX {
        return Err(format!("`user_data` is larger than {USER_DATA_BYTES_MAX} bytes"));
    }
    verify_auth(app, auth, &signature::user_message(socket.as_str(), user_data))?;
    let data: RawFields =
        client_json::parse(user_data).map_err(|_| "`user_data` must be a JSON object with an `id`")?;
    let user_id = data.get("id").and_then(|id| client_json::parse_id(id));
    let user_id = user_id.ok_or("`user_data` must be an object with an `id`, a text or a number")?;
    if ChannelName::to_user(&user_id).is_none() {
        return Err("the user's `id` has 1 to 128 characters and no control characters".into());
    }
    let (mut watchlist, mut cut) = (Vec::new(), false);
    let watched: Option<Vec<Box<RawValue>>> =
        data.get("watchlist").and_then(|list| serde_json::from_str(list.get()).ok());
    for id in watched.into_iter().flatten() {
        let id = client_json::parse_id(&id).filter(|id| ChannelName::watchers_of(id).is_some());
        let id = id.ok_or("`watchlist` must be a list of users' ids")?;
        if watchlist.contains(&id) {
            continue;
        }
        if watchlist.len() == WATCHED_USERS_MAX {
            cut = true;
            break;
        }
        watchlist.push(id);
    }
    let user_info = PresenceMember::parse_user_info(&data).unwrap_or_default();
    Ok(SignedInUser { member: PresenceMember { user_id, user_info }, watchlist, is_watchlist_cut: cut })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::pusher::authorize::tests::test_app;
    use crate::protocol::Secret;
    use serde_json::json;

    fn signed_auth(user_data: &str) -> String {
        format!(
            "k:{}",
            signature::sign_message(&Secret::new("s"), signature::user_message("1.2", user_data).as_bytes())
        )
    }

    #[test]
    fn a_table_of_sign_ins() {
        let long: Vec<String> = (0..101).map(|n| n.to_string()).collect();
        let hundred: Vec<&String> = long.iter().take(100).chain(long.iter().take(3)).collect();
        for (name, data, expected) in [
            ("a user", json!({ "id": "7" }), Ok((0, false))),
            ("a watcher", json!({ "id": "7", "watchlist": ["a", "b", "a"] }), Ok((2, false))),
            ("a hundred and some twice", json!({ "id": "7", "watchlist": hundred }), Ok((100, false))),
            ("too many", json!({ "id": "7", "watchlist": long }), Ok((100, true))),
            ("no id", json!({ "user_info": {} }), Err("`id`")),
            ("a number", json!({ "id": 7 }), Ok((0, false))),
            ("no watchlist", json!({ "id": "7", "watchlist": null, "user_info": null }), Ok((0, false))),
            ("an empty id", json!({ "id": "" }), Err("a text or a number")),
            ("a long id", json!({ "id": "u".repeat(129) }), Err("1 to 128")),
            ("watching a number and its text", json!({ "id": "7", "watchlist": [1, "1"] }), Ok((1, false))),
            ("watching nobody", json!({ "id": "7", "watchlist": [null] }), Err("`watchlist`")),
            ("large", json!({ "id": "7", "user_info": "x".repeat(USER_DATA_BYTES_MAX) }), Err("larger than")),
            ("no object", json!("7"), Err("`id`")),
        ] {
            let data = data.to_string();
            match (verify_sign_in(&test_app(), &"1.2".into(), &signed_auth(&data), &data), expected) {
                (Ok(user), Ok(found)) => assert_eq!((user.watchlist.len(), user.is_watchlist_cut), found, "{name}"),
                (Err(told), Err(part)) => assert!(told.contains(part), "{name}: {told}"),
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
        let data = r#"{"id":42,"user_info":{"name":"Ann \ud83d"}}"#;
        let user = verify_sign_in(&test_app(), &"1.2".into(), &signed_auth(data), data).expect("a user");
        assert_eq!(user.member, PresenceMember { user_id: "42".into(), user_info: json!({ "name": "Ann \u{fffd}" }) });
        let data = r#"{"id":"7","user_info":{"name":"x"}}"#;
        let user = verify_sign_in(&test_app(), &"1.2".into(), &signed_auth(data), data).expect("a user");
        assert_eq!(user.member, PresenceMember { user_id: "7".into(), user_info: json!({ "name": "x" }) });
        for (name, socket, auth) in [
            ("another socket's", "1.3", signed_auth(data)),
            ("no key", "1.2", "x".into()),
            ("forged", "1.2", "k:0".into()),
        ] {
            assert!(verify_sign_in(&test_app(), &socket.into(), &auth, data).is_err(), "{name}");
        }
    }
}
