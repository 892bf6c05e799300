//! The signature of the HTTP API, which authenticates requests of an app's backend.
//!
//! Source: `rest-api` in Pusher's documentation. A request that is repeated within the window is accepted, as by
//! Pusher; one outside it, or with a body that its signature does not cover, is refused.

use super::{Secret, signature};

/// Bounds the deviation of a request's clock, in seconds in both directions, as Pusher documents it.
pub const CLOCK_SKEW_MAX_SECONDS: u64 = 600;

/// Answer to a request for an app that the server does not know, with status 404.
pub const UNKNOWN_APP_ANSWER: &str = "there is no app with this id";

/// A request as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct RestRequest<'a> {
    /// The method, in any case.
    pub method: &'a str,
    /// The path without the query.
    pub path: &'a str,
    /// The decoded pairs of the query.
    pub query: &'a [(String, String)],
    /// The raw bytes of the body.
    pub body: &'a [u8],
}

/// The reason why a request is not authentic; each is answered with 401.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestAuthError {
    /// A query parameter is absent.
    #[error("the query lacks `{0}`")]
    Missing(&'static str),
    /// The version of the signature is not 1.0, the only one.
    #[error("`auth_version` must be 1.0")]
    Version,
    /// The timestamp is too old, or from the future.
    #[error("`auth_timestamp` is more than {CLOCK_SKEW_MAX_SECONDS} s away from this server's clock, which says {now}")]
    Expired {
        /// The server's time, in seconds since 1970.
        now: u64,
    },
    /// The signature does not cover this body.
    #[error("`body_md5` is not the MD5 of the body")]
    BodyMd5,
    /// The secret is wrong, or the request was changed in transit.
    #[error("invalid signature: you should have sent the HMAC-SHA256 of {0:?} under your secret")]
    Signature(String),
}

impl<'a> RestRequest<'a> {
    /// The value of a query parameter.
    #[must_use]
    pub fn query_parameter(&self, name: &str) -> Option<&'a str> {
        query_parameter(self.query, name)
    }

    /// Whether `secret` signed this request, `now` being in seconds since 1970.
    ///
    /// # Errors
    /// The part of the signature that is absent or wrong.
    pub fn verify(&self, secret: &Secret, now: u64) -> Result<(), RestAuthError> {
        self.verify_query(secret, now, !self.body.is_empty())?;
        self.verify_body()
    }

    /// Whether `secret` signed the query, which names the digest of the body: so much is known before the body is read.
    ///
    /// # Errors
    /// The part of the signature that is absent or wrong.
    pub fn verify_query(&self, secret: &Secret, now: u64, has_body: bool) -> Result<(), RestAuthError> {
        let need = |name| self.query_parameter(name).ok_or(RestAuthError::Missing(name));
        let signature = need("auth_signature")?;
        let timestamp = need("auth_timestamp")?;
        if need("auth_version")? != "1.0" {
            return Err(RestAuthError::Version);
        }
        if timestamp.parse::<u64>().map_or(true, |then| then.abs_diff(now) > CLOCK_SKEW_MAX_SECONDS) {
            return Err(RestAuthError::Expired { now });
        }
        if has_body {
            need("body_md5")?;
        }
        let message = signature::rest_message(self.method, self.path, self.query);
        if signature::verify_signature(secret, message.as_bytes(), signature) {
            Ok(())
        } else {
            Err(RestAuthError::Signature(message))
        }
    }

    /// Whether the body is the one that the query names.
    ///
    /// # Errors
    /// The digest is absent, or that of another body.
    pub fn verify_body(&self) -> Result<(), RestAuthError> {
        if self.body.is_empty() {
            return Ok(());
        }
        let digest = self.query_parameter("body_md5").ok_or(RestAuthError::Missing("body_md5"))?;
        if signature::verify_body_md5(self.body, digest) { Ok(()) } else { Err(RestAuthError::BodyMd5) }
    }
}

/// The value of a parameter in the decoded pairs of a query.
#[must_use]
pub fn query_parameter<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// The path without percent-encoding, where that is another one: SDKs sign the path that they have, and HTTP clients and
/// proxies encode it on the way.
#[must_use]
pub fn decode_path(path: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(path.len()), path.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let encoded = if first == b'%' { after.get(..2) } else { None };
        let decoded = encoded.and_then(|digits| hex::decode(digits).ok()?.first().copied());
        bytes.push(decoded.unwrap_or(first));
        rest = if decoded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).ok().filter(|decoded| decoded != path)
}

/// The query that signs a request, as a server SDK sends it.
#[must_use]
pub fn signed_query(
    key: &str,
    secret: &Secret,
    (method, path): (&str, &str),
    body: &[u8],
    now: u64,
) -> Vec<(String, String)> {
    let mut query: Vec<(String, String)> = vec![
        ("auth_key".to_owned(), key.to_owned()),
        ("auth_timestamp".to_owned(), now.to_string()),
        ("auth_version".to_owned(), "1.0".to_owned()),
    ];
    if !body.is_empty() {
        query.push(("body_md5".to_owned(), signature::body_md5(body)));
    }
    let message = signature::rest_message(method, path, &query);
    query.push(("auth_signature".to_owned(), signature::sign_message(secret, message.as_bytes())));
    query
}

/// The path of a signed request with its query, as a server SDK sends it.
#[must_use]
pub fn signed_path(key: &str, secret: &Secret, (method, path): (&str, &str), body: &[u8], now: u64) -> String {
    let query = signed_query(key, secret, (method, path), body, now);
    // Every value is a number or hexadecimal but the key, which has no character that needs an escape.
    let pairs: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{path}?{}", pairs.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BODY: &[u8] = b"{}";

    fn verify_query(query: &[(String, String)], body: &[u8], now: u64) -> Result<(), RestAuthError> {
        let request = RestRequest { method: "POST", path: "/apps/1/events", query, body };
        request.verify(&Secret::new("s"), now)
    }

    #[test]
    fn a_signed_request_verifies_within_its_window_and_for_its_body() {
        let query = signed_query("k", &Secret::new("s"), ("POST", "/apps/1/events"), BODY, 1000);
        assert_eq!(verify_query(&query, BODY, 1000), Ok(()));
        assert_eq!(verify_query(&query, BODY, 1600), Ok(()));
        assert_eq!(verify_query(&query, BODY, 400), Ok(()));
        assert_eq!(verify_query(&query, BODY, 1601), Err(RestAuthError::Expired { now: 1601 }));
        assert_eq!(verify_query(&query, b"{ }", 1000), Err(RestAuthError::BodyMd5));
        assert_eq!(verify_query(&query, BODY, 399), Err(RestAuthError::Expired { now: 399 }), "from the future");
        let mut old = query.clone();
        old[2].1 = "0.9".to_owned();
        assert_eq!(verify_query(&old, BODY, 1000), Err(RestAuthError::Version));
        let other = signed_query("k", &Secret::new("t"), ("POST", "/apps/1/events"), BODY, 1000);
        assert!(matches!(verify_query(&other, BODY, 1000), Err(RestAuthError::Signature(_))));
    }

    #[test]
    fn a_body_that_the_signature_does_not_cover_is_refused() {
        let query = signed_query("k", &Secret::new("s"), ("POST", "/apps/1/events"), b"", 1000);
        assert_eq!(verify_query(&query, BODY, 1000), Err(RestAuthError::Missing("body_md5")));
        assert_eq!(verify_query(&[], BODY, 1000), Err(RestAuthError::Missing("auth_signature")));
    }

    #[test]
    fn a_path_is_decoded_where_it_is_encoded() {
        for (path, decoded) in [
            ("/apps/1/channels/presence-a%2Cb%3d", Some("/apps/1/channels/presence-a,b=")),
            ("/apps/1/users/%C3%A9", Some("/apps/1/users/é")),
            ("/apps/1/channels/a", None),
            ("/apps/1/channels/100%", None),
            ("/apps/1/channels/%zz%+1", None),
            ("/apps/1/channels/%ff", None),
        ] {
            assert_eq!(decode_path(path).as_deref(), decoded, "{path}");
        }
    }

    proptest! {
        #[test]
        fn only_the_signed_request_verifies(
            body in proptest::collection::vec(any::<u8>(), 0..64),
            secret in any::<String>(),
            now in CLOCK_SKEW_MAX_SECONDS..u64::MAX / 2,
            off in 0..=CLOCK_SKEW_MAX_SECONDS,
            (name, value) in any::<(String, String)>(),
        ) {
            let path = "/apps/1/events";
            let mut query = signed_query("k", &Secret::new(&*secret), ("POST", path), &body, now);
            let check = |query: &[(String, String)], body: &[u8], now| {
                RestRequest { method: "post", path, query, body }.verify(&Secret::new(&*secret), now)
            };
            prop_assert_eq!(check(&query, &body, now + off), Ok(()));
            prop_assert_eq!(check(&query, &body, now - off), Ok(()));
            prop_assert!(check(&query, &body, now + CLOCK_SKEW_MAX_SECONDS + 1).is_err());
            prop_assert!(check(&query, &[&body[..], b"x"].concat(), now).is_err());
            prop_assume!(!name.eq_ignore_ascii_case("auth_signature"));
            query.push((name, value));
            prop_assert!(check(&query, &body, now).is_err(), "a parameter that was not signed");
        }
    }
}
