//! What signatures cover: subscriptions, sign-ins, requests of the HTTP API.

use url::form_urlencoded;

use super::protocol::rest::{CLOCK_SKEW_MAX_SECONDS, RestAuthError, RestRequest, signed_query};
use super::protocol::signature::{
    body_md5, channel_message, rest_message, sign_message, user_message, verify_signature,
};
use super::protocol::{ChannelName, Secret};

const NOW: u64 = 1_700_000_000;

/// A request: its method, path and query on a line each, then its body. The same lines are a channel, another, and what
/// is signed with them.
pub fn check(data: &[u8]) {
    let mut lines = data.splitn(4, |byte| *byte == b'\n');
    let mut line = || String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let (method, path, query) = (line(), line(), line());
    let body = lines.next().unwrap_or_default();
    believed(&method, &path, body);
    forged(&method, &path, &query, body);
    if let (Ok(one), Ok(other)) = (ChannelName::parse(&method), ChannelName::parse(&path)) {
        distinct(&one, &other, &query, &String::from_utf8_lossy(body));
    }
    let secret = Secret::new(&*query);
    let signature = sign_message(&secret, data);
    assert!(signature.len() == 64 && signature.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
    assert!(verify_signature(&secret, data, &signature) && !verify_signature(&secret, data, &signature[1..]));
    assert!(!verify_signature(&secret, body, &query), "a text of someone else's making");
}

/// A request that was signed is believed in its window, in any order of its query, and for its own body only.
fn believed(method: &str, path: &str, body: &[u8]) {
    let secret = Secret::new("secret");
    let mut query = signed_query("key", &secret, (method, path), body, NOW);
    let check = |query: &[(String, String)], body: &[u8], secret: &Secret, now| {
        RestRequest { method, path, query, body }.verify(secret, now)
    };
    for now in [NOW, NOW - CLOCK_SKEW_MAX_SECONDS, NOW + CLOCK_SKEW_MAX_SECONDS] {
        assert_eq!(check(&query, body, &secret, now), Ok(()));
    }
    for now in [0, NOW - CLOCK_SKEW_MAX_SECONDS - 1, NOW + CLOCK_SKEW_MAX_SECONDS + 1, u64::MAX] {
        assert_eq!(check(&query, body, &secret, now), Err(RestAuthError::Expired { now }));
    }
    assert!(matches!(check(&query, body, &Secret::new("other"), NOW), Err(RestAuthError::Signature(_))));
    assert!(check(&query, &[body, b" "].concat(), &secret, NOW).is_err(), "another body");
    query.reverse();
    assert_eq!(check(&query, body, &secret, NOW), Ok(()));
    query.push(("info".to_owned(), String::new()));
    assert!(check(&query, body, &secret, NOW).is_err(), "a parameter that was not signed");
}

/// Whatever a stranger writes is not believed.
fn forged(method: &str, path: &str, query: &str, body: &[u8]) {
    let query: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let request = RestRequest { method, path, query: &query, body };
    assert!(request.verify(&Secret::new("a secret that the stranger does not know"), NOW).is_err());
    let message = rest_message(method, path, &query);
    let mut sorted = query.clone();
    sorted.sort();
    assert_eq!(rest_message(method, path, &sorted), message, "the order of a query says nothing");
    sorted.push(("auth_signature".to_owned(), body_md5(body)));
    assert_eq!(rest_message(method, path, &sorted), message, "a signature does not sign itself");
}

/// No signature of one thing admits to another.
fn distinct(one: &ChannelName, other: &ChannelName, data: &str, more: &str) {
    let socket = "1.2";
    let all = [
        channel_message(socket, one.as_str(), None),
        channel_message(socket, one.as_str(), Some(data)),
        channel_message(socket, one.as_str(), Some(more)),
        channel_message(socket, other.as_str(), None),
        channel_message(socket, other.as_str(), Some(data)),
        user_message(socket, data),
        user_message(socket, more),
    ];
    let meant = [
        (Some(one), None),
        (Some(one), Some(data)),
        (Some(one), Some(more)),
        (Some(other), None),
        (Some(other), Some(data)),
        (None, Some(data)),
        (None, Some(more)),
    ];
    for (a, first) in all.iter().zip(&meant) {
        for (b, second) in all.iter().zip(&meant) {
            assert_eq!(a == b, first == second, "{a:?} and {b:?}");
        }
    }
}
