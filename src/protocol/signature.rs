//! The signatures of the Pusher protocol: HMAC-SHA256, in lower-case hexadecimal.
//!
//! Source: `auth-signatures`, `rest-api` and `webhooks` in Pusher's documentation. The test vectors were recomputed; the
//! presence vector printed there does not verify and is not used.

use hmac::{Hmac, Mac};
use md5::Md5;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Secret;

/// HMAC-SHA256 of `message` under `secret`, in lower-case hexadecimal.
#[must_use]
pub fn sign_message(secret: &Secret, message: &[u8]) -> String {
    hex::encode(compute_mac(secret, message))
}

/// Whether `signature` is the one of `message`, in a time that does not depend on where they differ. It may be written in
/// capitals and with spaces or a line end around it: some languages and templates write it so.
#[must_use]
pub fn verify_signature(secret: &Secret, message: &[u8], signature: &str) -> bool {
    let expected = compute_mac(secret, message);
    !expected.is_empty() && hex::decode(signature.trim()).is_ok_and(|bytes| bool::from(expected.ct_eq(&bytes)))
}

fn compute_mac(secret: &Secret, message: &[u8]) -> Vec<u8> {
    // An HMAC key may have any length, so the error of `new_from_slice` cannot happen; an empty signature verifies
    // nothing should that ever change.
    Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).map_or_else(
        |_| Vec::new(),
        |mut mac| {
            mac.update(message);
            mac.finalize().into_bytes().to_vec()
        },
    )
}

/// The text that a subscription's `auth` signs: `SOCKET_ID:CHANNEL`, and `:CHANNEL_DATA` when that was sent, on private
/// channels too.
#[must_use]
pub fn channel_message(socket_id: &str, channel: &str, channel_data: Option<&str>) -> String {
    match channel_data {
        Some(data) => format!("{socket_id}:{channel}:{data}"),
        None => format!("{socket_id}:{channel}"),
    }
}

/// The text that a sign-in's `auth` signs.
#[must_use]
pub fn user_message(socket_id: &str, user_data: &str) -> String {
    format!("{socket_id}::user::{user_data}")
}

/// The text that a REST request signs: method, path and the sorted query without `auth_signature`, values not
/// percent-encoded.
#[must_use]
pub fn rest_message(method: &str, path: &str, query: &[(String, String)]) -> String {
    let mut pairs: Vec<(String, &str)> = query
        .iter()
        .filter(|(name, _)| !name.eq_ignore_ascii_case("auth_signature"))
        .map(|(name, value)| (name.to_lowercase(), value.as_str()))
        .collect();
    pairs.sort();
    let query: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{}\n{path}\n{}", method.to_uppercase(), query.join("&"))
}

/// MD5 of a body in hexadecimal, as `body_md5` carries it.
#[must_use]
pub fn body_md5(body: &[u8]) -> String {
    hex::encode(Md5::digest(body))
}

/// Whether `md5` is that of the body, written as a signature may be.
#[must_use]
pub fn verify_body_md5(body: &[u8], md5: &str) -> bool {
    hex::decode(md5.trim()).is_ok_and(|bytes| *bytes == *Md5::digest(body))
}

/// A salted digest that compares secrets without showing them.
#[must_use]
pub fn salted_digest(salt: &str, text: &str) -> String {
    sign_message(&Secret::new(salt), text.as_bytes())[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secret() -> Secret {
        Secret::new("7ad3773142a6692b25b8")
    }

    #[test]
    fn the_documented_vectors_verify() {
        let private = sign_message(&secret(), channel_message("1234.1234", "private-foobar", None).as_bytes());
        assert_eq!(private, "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4");
        let user = sign_message(&secret(), user_message("1234.1234", r#"{"id":"12345"}"#).as_bytes());
        assert!(user.starts_with("4708d583") && user.ends_with("36ba"), "{user}");
        let data = r#"{"user_id":10,"user_info":{"name":"Mr. Channels"}}"#;
        let presence = sign_message(&secret(), channel_message("1234.1234", "presence-foobar", Some(data)).as_bytes());
        assert!(presence.starts_with("31935e7d") && presence.ends_with("bc80"), "{presence}");
    }

    #[test]
    fn the_documented_rest_request_verifies() {
        let body = br#"{"name":"foo","channels":["project-3"],"data":"{\"some\":\"data\"}"}"#;
        assert_eq!(body_md5(body), "ec365a775a4cd0599faeb73354201b6f");
        let query: Vec<(String, String)> = [
            ("auth_version", "1.0"),
            ("auth_key", "278d425bdf160c739803"),
            ("auth_timestamp", "1353088179"),
            ("body_md5", "ec365a775a4cd0599faeb73354201b6f"),
            ("auth_signature", "ignored"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let message = rest_message("post", "/apps/3/events", &query);
        let signature = sign_message(&Secret::new("7ad3773142a6692b25b8"), message.as_bytes());
        assert_eq!(signature, "da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c");
    }

    #[test]
    fn a_signature_verifies_only_itself() {
        let good = sign_message(&secret(), b"message");
        assert!(verify_signature(&secret(), b"message", &good));
        assert!(!verify_signature(&secret(), b"massage", &good));
        assert!(!verify_signature(&Secret::new("other"), b"message", &good));
        assert!(!verify_signature(&secret(), b"message", ""));
        for written in [good.to_uppercase(), format!("{good}\n"), format!(" {good} ")] {
            assert!(verify_signature(&secret(), b"message", &written), "{written:?}");
        }
        for written in [&good[2..], &good[1..], &format!("{good}00"), &format!("\"{good}\"")] {
            assert!(!verify_signature(&secret(), b"message", written), "{written:?}");
        }
        let md5 = body_md5(b"{}");
        assert!(verify_body_md5(b"{}", &md5.to_uppercase()) && !verify_body_md5(b"{ }", &md5));
        assert!(!verify_body_md5(b"{}", "") && !verify_body_md5(b"{}", &md5[2..]));
    }

    proptest! {
        #[test]
        fn a_signature_verifies_its_own_message_only(
            message in proptest::collection::vec(any::<u8>(), 0..64),
            other in proptest::collection::vec(any::<u8>(), 0..64),
            text in any::<String>(),
        ) {
            let signature = sign_message(&secret(), &message);
            prop_assert!(verify_signature(&secret(), &message, &signature));
            prop_assert_eq!(verify_signature(&secret(), &other, &signature), message == other);
            prop_assert!(!verify_signature(&secret(), &message, &text));
        }

        #[test]
        fn no_subscription_is_signed_like_another_or_like_a_sign_in(
            names in proptest::array::uniform2("[a-z;=@.,_-]{1,9}"),
            data in proptest::array::uniform2(any::<String>()),
        ) {
            let [one, two] = [0, 1].map(|n| channel_message("1.2", &names[n], Some(&data[n])));
            prop_assert_eq!(one == two, names[0] == names[1] && data[0] == data[1]);
            prop_assert_ne!(&one, &channel_message("1.2", &names[1], None));
            prop_assert_ne!(one, user_message("1.2", &data[1]));
        }
    }
}
