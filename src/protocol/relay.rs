//! Relayed requests: the headers with which one process forwards a session's request to the process that owns the
//! session, and by which the two authenticate each other.
//!
//! In: the request, the shared secrets, the time. Out: two headers, or whether those of a request that arrived are
//! authentic. One header names the target and describes the relay, the other signs it together with the request itself.
//! Each is valid for one process, once, and for half a minute.

use std::collections::HashSet;
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use super::{Secret, signature};

/// Prefix of the headers that only processes of a cluster may send each other.
pub const RELAY_HEADER_PREFIX: &str = "x-realtime-";

/// The header that describes the relay: its target, time, nonce and client.
pub const RELAY_HEADER: &str = "x-realtime-relay";

/// The header that signs the relay header.
pub const RELAY_SIGNATURE_HEADER: &str = "x-realtime-signature";

/// The header in which the target gives the reason for not serving a request; absent on a served one.
pub const REFUSAL_HEADER: &str = "x-realtime-refused";

/// The header in which the target gives its time, in ms since 1970, when it refuses a request as expired.
pub const CLOCK_HEADER: &str = "x-realtime-clock";

/// Value of [`REFUSAL_HEADER`] for a session that the process does not own.
pub const UNKNOWN_SESSION: &str = "unknown";

/// Bounds the difference of two processes' clocks, and the time for which a request may be in flight, in ms.
pub const REQUEST_TTL_MS: u64 = 30_000;

/// Bounds the nonces remembered in twice the window, 16 bytes each. Beyond it requests are refused: a forgotten nonce
/// would let its request be replayed.
const NONCES_MAX: usize = 1 << 19;

/// The first word of the header, so that another version can be distinguished from this one.
const HEADER_VERSION: &str = "1";

/// The content of the relay header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayHeader {
    /// Number of times the request was relayed, this one included.
    pub hops: u32,
    /// The process that the request is for.
    pub target: String,
    /// Time of the relay, in ms since 1970.
    pub time_ms: u64,
    /// Unique for each relay of a request.
    pub nonce: u128,
    /// Unique for each request, and the same when it is relayed again because no answer came.
    pub number: u128,
    /// SHA-256 of the body, in lower-case hexadecimal.
    pub body: String,
    /// The address of the client.
    pub client: IpAddr,
}

/// The request that is relayed.
#[derive(Clone, Copy, Debug)]
pub struct RelayedRequest<'a> {
    /// The method in capital letters.
    pub method: &'a str,
    /// The request path, not decoded.
    pub path: &'a str,
    /// The text after the question mark, or nothing.
    pub query: &'a str,
}

/// The reason why a request is not authentic, or not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RelayRefusal {
    /// No process of this cluster signed it as it is.
    Forged,
    /// The same request arrived before.
    Replayed,
    /// Its time is too far from now.
    Expired,
    /// It was relayed more than once.
    TwoHops,
    /// It is for another process.
    WrongTarget,
    /// It is no request of a session.
    NotASession,
    /// It arrived at the listener for clients.
    PublicPort,
    /// More requests arrive than nonces can be remembered.
    Full,
}

impl RelayRefusal {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 8] = [
        Self::Forged,
        Self::Replayed,
        Self::Expired,
        Self::TwoHops,
        Self::WrongTarget,
        Self::NotASession,
        Self::PublicPort,
        Self::Full,
    ];

    /// The word for logs, metrics and the answer.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Forged => "forged",
            Self::Replayed => "replayed",
            Self::Expired => "expired",
            Self::TwoHops => "two_hops",
            Self::WrongTarget => "wrong_target",
            Self::NotASession => "not_a_session",
            Self::PublicPort => "public_port",
            Self::Full => "full",
        }
    }
}

impl RelayHeader {
    /// Encodes the header's value.
    #[must_use]
    pub fn encode(&self) -> String {
        let Self { hops, target, time_ms, nonce, number, body, client } = self;
        format!("{HEADER_VERSION} {hops} {target} {time_ms} {nonce:032x} {number:032x} {body} {client}")
    }

    /// Parses a header's value. `None` when it is invalid.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(' ').collect();
        let [HEADER_VERSION, hops, target, time_ms, nonce, number, body, client] = parts[..] else { return None };
        let hex = |text: &str| (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok())?;
        Some(Self {
            hops: hops.parse().ok()?,
            target: target.to_owned(),
            time_ms: time_ms.parse().ok()?,
            nonce: hex(nonce)?,
            number: hex(number)?,
            body: body.to_owned(),
            client: client.parse().ok()?,
        })
    }
}

/// SHA-256 of a body, in lower-case hexadecimal.
#[must_use]
pub fn hash_body(body: &[u8]) -> String {
    hex::encode(Sha256::digest(body))
}

/// The value of the signature header.
#[must_use]
pub fn sign_request(secret: &Secret, request: RelayedRequest<'_>, header: &str) -> String {
    signature::sign_message(secret, build_message(request, header).as_bytes())
}

fn build_message(RelayedRequest { method, path, query }: RelayedRequest<'_>, header: &str) -> String {
    // None of the first three can hold a line break.
    format!("{method}\n{path}\n{query}\n{header}")
}

/// Verifies that another process of the cluster relayed this request to this process. The body is still to be compared
/// with [`RelayHeader::body`], so that no unsigned body is read to its end.
///
/// # Errors
/// The reason why the request is not authentic.
pub fn verify_request(
    secrets: &[Secret],
    request: RelayedRequest<'_>,
    (header, signed): (&[&str], &[&str]),
    process: &str,
    nonces: &mut NonceCache,
    now_ms: u64,
) -> Result<RelayHeader, RelayRefusal> {
    let (header, signed) = match (header, signed) {
        ([header], [signed]) => (*header, *signed),
        // A process that relays an already relayed request would add a second pair.
        ([_, _, ..], _) | (_, [_, _, ..]) => return Err(RelayRefusal::TwoHops),
        _ => return Err(RelayRefusal::Forged),
    };
    let message = build_message(request, header);
    if !secrets.iter().any(|secret| signature::verify_signature(secret, message.as_bytes(), signed)) {
        return Err(RelayRefusal::Forged);
    }
    let header = RelayHeader::parse(header).ok_or(RelayRefusal::Forged)?;
    if header.hops != 1 {
        return Err(RelayRefusal::TwoHops);
    }
    if header.target != process {
        return Err(RelayRefusal::WrongTarget);
    }
    if header.time_ms.abs_diff(now_ms) > REQUEST_TTL_MS {
        return Err(RelayRefusal::Expired);
    }
    nonces.insert(header.nonce, now_ms)?;
    Ok(header)
}

/// The nonces that were seen, for as long as a request with one of them could be valid.
#[derive(Debug, Default)]
pub struct NonceCache {
    current: HashSet<u128>,
    previous: HashSet<u128>,
    /// Time since which nonces go into `now`, in ms since 1970.
    since_ms: u64,
}

impl NonceCache {
    fn insert(&mut self, nonce: u128, now_ms: u64) -> Result<(), RelayRefusal> {
        // A request may be of the future by the window, and is then valid for two windows.
        let age = now_ms.abs_diff(self.since_ms);
        if age >= 2 * REQUEST_TTL_MS {
            self.previous = std::mem::take(&mut self.current);
            if age >= 4 * REQUEST_TTL_MS {
                self.previous = HashSet::new();
            }
            self.since_ms = now_ms;
        }
        if self.current.contains(&nonce) || self.previous.contains(&nonce) {
            return Err(RelayRefusal::Replayed);
        }
        if self.current.len() >= NONCES_MAX {
            return Err(RelayRefusal::Full);
        }
        self.current.insert(nonce);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_790_000_000_000;
    const SEND_REQUEST: RelayedRequest<'_> =
        RelayedRequest { method: "POST", path: "/pusher/app/k/1/abc/xhr_send", query: "t=1&n=2" };

    fn test_header() -> RelayHeader {
        RelayHeader {
            hops: 1,
            target: "01P".to_owned(),
            time_ms: NOW,
            nonce: 7,
            number: 9,
            body: hash_body(b"[\"x\"]"),
            client: "2001:db8::1".parse().expect("an address"),
        }
    }

    fn secrets() -> [Secret; 2] {
        [Secret::new("new"), Secret::new("old")]
    }

    fn verify_arrival(request: RelayedRequest<'_>, header: &str, signed: &str) -> Result<RelayHeader, RelayRefusal> {
        verify_request(&secrets(), request, (&[header], &[signed]), "01P", &mut NonceCache::default(), NOW)
    }

    #[test]
    fn a_relayed_request_verifies_under_either_secret() {
        let text = test_header().encode();
        for secret in secrets() {
            assert_eq!(
                verify_arrival(SEND_REQUEST, &text, &sign_request(&secret, SEND_REQUEST, &text)),
                Ok(test_header())
            );
        }
        assert_eq!(
            verify_arrival(SEND_REQUEST, &text, &sign_request(&Secret::new("older"), SEND_REQUEST, &text)),
            Err(RelayRefusal::Forged)
        );
    }

    #[test]
    fn a_changed_request_or_header_does_not_verify() {
        let text = test_header().encode();
        let signed = sign_request(&secrets()[0], SEND_REQUEST, &text);
        let other = |change: &dyn Fn(&mut RelayHeader)| {
            let mut header = test_header();
            change(&mut header);
            header.encode()
        };
        for (name, request, text) in [
            ("another method", RelayedRequest { method: "GET", ..SEND_REQUEST }, text.clone()),
            ("another path", RelayedRequest { path: "/pusher/app/k/1/abd/xhr_send", ..SEND_REQUEST }, text.clone()),
            ("another query", RelayedRequest { query: "t=1&n=3", ..SEND_REQUEST }, text.clone()),
            (
                "path and query split elsewhere",
                RelayedRequest { path: "/pusher", query: "", ..SEND_REQUEST },
                text.clone(),
            ),
            ("another body", SEND_REQUEST, other(&|header| header.body = hash_body(b"[\"y\"]"))),
            ("another client", SEND_REQUEST, other(&|header| header.client = "192.0.2.1".parse().expect("an address"))),
            ("another target", SEND_REQUEST, other(&|header| header.target = "02P".to_owned())),
            ("another time", SEND_REQUEST, other(&|header| header.time_ms += 1)),
            ("another nonce", SEND_REQUEST, other(&|header| header.nonce += 1)),
            ("another number", SEND_REQUEST, other(&|header| header.number += 1)),
            ("more hops", SEND_REQUEST, other(&|header| header.hops += 1)),
            ("an empty header", SEND_REQUEST, String::new()),
        ] {
            assert_eq!(verify_arrival(request, &text, &signed), Err(RelayRefusal::Forged), "{name}");
        }
        for (name, header, signed) in [
            ("no headers", vec![], vec![]),
            ("no signature", vec![text.as_str()], vec![]),
            ("only a signature", vec![], vec![signed.as_str()]),
            ("an empty signature", vec![text.as_str()], vec![""]),
        ] {
            let found =
                verify_request(&secrets(), SEND_REQUEST, (&header, &signed), "01P", &mut NonceCache::default(), NOW);
            assert_eq!(found, Err(RelayRefusal::Forged), "{name}");
        }
        let unreadable = "1 1 01P";
        let signed = sign_request(&secrets()[0], SEND_REQUEST, unreadable);
        assert_eq!(
            verify_arrival(SEND_REQUEST, unreadable, &signed),
            Err(RelayRefusal::Forged),
            "signed, and none of our headers"
        );
        assert_eq!(
            verify_request(&[], SEND_REQUEST, (&[&text], &[&signed]), "01P", &mut NonceCache::default(), NOW),
            Err(RelayRefusal::Forged)
        );
    }

    #[test]
    fn signed_requests_are_refused_by_time_target_and_hops() {
        let case = |change: &dyn Fn(&mut RelayHeader)| {
            let mut header = test_header();
            change(&mut header);
            let text = header.encode();
            verify_arrival(SEND_REQUEST, &text, &sign_request(&secrets()[1], SEND_REQUEST, &text)).map(|_| ())
        };
        for (name, found, expected) in [
            ("as old as may be", case(&|header| header.time_ms = NOW - REQUEST_TTL_MS), Ok(())),
            ("as new as may be", case(&|header| header.time_ms = NOW + REQUEST_TTL_MS), Ok(())),
            ("too old", case(&|header| header.time_ms = NOW - REQUEST_TTL_MS - 1), Err(RelayRefusal::Expired)),
            ("of the future", case(&|header| header.time_ms = NOW + REQUEST_TTL_MS + 1), Err(RelayRefusal::Expired)),
            ("for another process", case(&|header| header.target = "02P".to_owned()), Err(RelayRefusal::WrongTarget)),
            ("relayed twice", case(&|header| header.hops = 2), Err(RelayRefusal::TwoHops)),
            ("relayed by no process", case(&|header| header.hops = 0), Err(RelayRefusal::TwoHops)),
        ] {
            assert_eq!(found, expected, "{name}");
        }
        let text = test_header().encode();
        let signed = sign_request(&secrets()[0], SEND_REQUEST, &text);
        let twice = verify_request(
            &secrets(),
            SEND_REQUEST,
            (&[&text, &text], &[&signed]),
            "01P",
            &mut NonceCache::default(),
            NOW,
        );
        assert_eq!(twice, Err(RelayRefusal::TwoHops));
    }

    #[test]
    fn a_nonce_is_accepted_once_for_as_long_as_its_request_is_valid() {
        let mut nonces = NonceCache::default();
        // The request is of the future by as much as allowed.
        let ahead = RelayHeader { time_ms: NOW + REQUEST_TTL_MS, ..test_header() }.encode();
        let signed = sign_request(&secrets()[0], SEND_REQUEST, &ahead);
        let mut at =
            |ms| verify_request(&secrets(), SEND_REQUEST, (&[&ahead], &[&signed]), "01P", &mut nonces, ms).map(|_| ());
        assert_eq!(at(NOW), Ok(()));
        for later in [1, 29_000, 31_000, 2 * REQUEST_TTL_MS] {
            assert_eq!(at(NOW + later), Err(RelayRefusal::Replayed), "after {later} ms");
        }
        assert_eq!(at(NOW + 2 * REQUEST_TTL_MS + 1), Err(RelayRefusal::Expired));
    }

    #[test]
    fn the_nonce_cache_is_bounded_and_forgets_none_early() {
        let mut nonces = NonceCache { since_ms: NOW, ..NonceCache::default() };
        for nonce in 0..NONCES_MAX as u128 {
            assert_eq!(nonces.insert(nonce, NOW), Ok(()));
        }
        assert_eq!(nonces.insert(u128::MAX, NOW + 1), Err(RelayRefusal::Full));
        assert_eq!(nonces.insert(u128::MAX, NOW + 2 * REQUEST_TTL_MS), Ok(()));
        assert_eq!(nonces.insert(5, NOW + 2 * REQUEST_TTL_MS), Err(RelayRefusal::Replayed));
        assert_eq!(nonces.insert(6, NOW + 6 * REQUEST_TTL_MS), Ok(()));
    }

    proptest! {
        #[test]
        fn headers_round_trip(
            hops in any::<u32>(), target in "[0-9A-Z]{0,26}", time_ms in any::<u64>(), nonce in any::<u128>(),
            number in any::<u128>(), body in "[0-9a-f]{0,64}", client in any::<IpAddr>(),
        ) {
            let header = RelayHeader { hops, target, time_ms, nonce, number, body, client };
            prop_assert_eq!(RelayHeader::parse(&header.encode()), Some(header));
        }

        #[test]
        fn no_header_makes_the_parser_panic(text in any::<String>()) {
            let _ = RelayHeader::parse(&text);
        }
    }
}
