//! A request of a session that one process hands on to the process that has the session, and how they know each other.
//!
//! In: the request, the shared secrets, the time. Out: two headers, or whether those of a request that arrived may be
//! believed. One header says who hands on what to whom, the other signs it together with the request itself. Each is
//! good for one process, once, and for half a minute.

use std::collections::HashSet;
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use super::{Secret, signature};

/// What the headers begin with that only processes of a cluster may send each other.
pub const RELAY_HEADER_PREFIX: &str = "x-realtime-";

/// The header that says who hands on what to whom.
pub const RELAY_HEADER: &str = "x-realtime-relay";

/// The header that signs it.
pub const RELAY_SIGNATURE_HEADER: &str = "x-realtime-signature";

/// The header by which the process that was asked says why it does not serve a request; a served one has none.
pub const REFUSAL_HEADER: &str = "x-realtime-refused";

/// What [`REFUSED`] says of a session that the process does not have.
pub const UNKNOWN_SESSION: &str = "unknown";

/// How far the clocks of two processes may differ, and how long a request may be under way, in ms.
pub const REQUEST_TTL_MS: u64 = 30_000;

/// Nonces that are remembered in twice the window, 16 bytes each. Beyond, requests are refused: to forget one would let
/// its request be replayed.
const NONCES_MAX: usize = 1 << 19;

/// The first word of the header, so that another form can be told from this one.
const HEADER_VERSION: &str = "1";

/// What stands in the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayHeader {
    /// How often the request was handed on, this time included.
    pub hops: u32,
    /// The process that it is for.
    pub target: String,
    /// When it was handed on, in ms since 1970.
    pub time_ms: u64,
    /// Unique for each time that a request is handed on.
    pub nonce: u128,
    /// Unique for each request, and the same when it is handed on again because no answer came.
    pub number: u128,
    /// SHA-256 of the body, in lower-case hexadecimal.
    pub body: String,
    /// The client's address.
    pub client: IpAddr,
}

/// The request itself.
#[derive(Clone, Copy, Debug)]
pub struct RelayedRequest<'a> {
    /// In capital letters.
    pub method: &'a str,
    /// As it stands in the request, not decoded.
    pub path: &'a str,
    /// What follows the question mark, or nothing.
    pub query: &'a str,
}

/// Why a request is not believed, or not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RelayRefusal {
    /// Nobody of this cluster signed it as it is.
    Forged,
    /// It came before.
    Replayed,
    /// Its time is too far from now.
    Expired,
    /// It was handed on before it was handed here.
    TwoHops,
    /// It is for another process.
    WrongTarget,
    /// It is no request of a session.
    NotASession,
    /// It came in where clients do.
    PublicPort,
    /// More requests come than can be told from replays.
    Full,
}

impl RelayRefusal {
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
    /// The header's value.
    #[must_use]
    pub fn encode(&self) -> String {
        let Self { hops, target, time_ms, nonce, number, body, client } = self;
        format!("{HEADER_VERSION} {hops} {target} {time_ms} {nonce:032x} {number:032x} {body} {client}")
    }

    /// Reads a header's value. `None` when it is none.
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

/// The value of the header that signs.
#[must_use]
pub fn sign_request(secret: &Secret, request: RelayedRequest<'_>, handed: &str) -> String {
    signature::sign_message(secret, build_message(request, handed).as_bytes())
}

fn build_message(RelayedRequest { method, path, query }: RelayedRequest<'_>, handed: &str) -> String {
    // None of the first three can hold a line break.
    format!("{method}\n{path}\n{query}\n{handed}")
}

/// Whether a request was handed to this process by another one of its cluster. Its body is still to be compared with
/// [`Handed::body`], so that nobody is read to the end who did not sign.
///
/// # Errors
/// Why it is not believed.
pub fn verify_request(
    secrets: &[Secret],
    request: RelayedRequest<'_>,
    (handed, signed): (&[&str], &[&str]),
    process: &str,
    nonces: &mut NonceCache,
    now_ms: u64,
) -> Result<RelayHeader, RelayRefusal> {
    let (handed, signed) = match (handed, signed) {
        ([handed], [signed]) => (*handed, *signed),
        // A second pair is what a process would add that hands on what was handed to it.
        ([_, _, ..], _) | (_, [_, _, ..]) => return Err(RelayRefusal::TwoHops),
        _ => return Err(RelayRefusal::Forged),
    };
    let message = build_message(request, handed);
    if !secrets.iter().any(|secret| signature::verify_signature(secret, message.as_bytes(), signed)) {
        return Err(RelayRefusal::Forged);
    }
    let handed = RelayHeader::parse(handed).ok_or(RelayRefusal::Forged)?;
    if handed.hops != 1 {
        return Err(RelayRefusal::TwoHops);
    }
    if handed.target != process {
        return Err(RelayRefusal::WrongTarget);
    }
    if handed.time_ms.abs_diff(now_ms) > REQUEST_TTL_MS {
        return Err(RelayRefusal::Expired);
    }
    nonces.insert(handed.nonce, now_ms)?;
    Ok(handed)
}

/// The nonces that were seen, for as long as a request with one of them could be believed.
#[derive(Debug, Default)]
pub struct NonceCache {
    current: HashSet<u128>,
    previous: HashSet<u128>,
    /// Since when they go into `now`, in ms since 1970.
    since_ms: u64,
}

impl NonceCache {
    fn insert(&mut self, nonce: u128, now_ms: u64) -> Result<(), RelayRefusal> {
        // A request may be of the future by the window, and is then believed for two windows.
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

    fn verify_arrival(request: RelayedRequest<'_>, handed: &str, signed: &str) -> Result<RelayHeader, RelayRefusal> {
        verify_request(&secrets(), request, (&[handed], &[signed]), "01P", &mut NonceCache::default(), NOW)
    }

    #[test]
    fn what_was_handed_on_arrives_under_either_secret() {
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
    fn a_table_of_forgeries() {
        let text = test_header().encode();
        let signed = sign_request(&secrets()[0], SEND_REQUEST, &text);
        let other = |change: &dyn Fn(&mut RelayHeader)| {
            let mut handed = test_header();
            change(&mut handed);
            handed.encode()
        };
        for (name, request, text) in [
            ("another method", RelayedRequest { method: "GET", ..SEND_REQUEST }, text.clone()),
            ("another path", RelayedRequest { path: "/pusher/app/k/1/abd/xhr_send", ..SEND_REQUEST }, text.clone()),
            ("another query", RelayedRequest { query: "t=1&n=3", ..SEND_REQUEST }, text.clone()),
            (
                "path and query parted elsewhere",
                RelayedRequest { path: "/pusher", query: "", ..SEND_REQUEST },
                text.clone(),
            ),
            ("another body", SEND_REQUEST, other(&|handed| handed.body = hash_body(b"[\"y\"]"))),
            ("another client", SEND_REQUEST, other(&|handed| handed.client = "192.0.2.1".parse().expect("an address"))),
            ("another target", SEND_REQUEST, other(&|handed| handed.target = "02P".to_owned())),
            ("another time", SEND_REQUEST, other(&|handed| handed.time_ms += 1)),
            ("another nonce", SEND_REQUEST, other(&|handed| handed.nonce += 1)),
            ("another number", SEND_REQUEST, other(&|handed| handed.number += 1)),
            ("more hops", SEND_REQUEST, other(&|handed| handed.hops += 1)),
            ("an empty header", SEND_REQUEST, String::new()),
        ] {
            assert_eq!(verify_arrival(request, &text, &signed), Err(RelayRefusal::Forged), "{name}");
        }
        for (name, handed, signed) in [
            ("no headers", vec![], vec![]),
            ("no signature", vec![text.as_str()], vec![]),
            ("only a signature", vec![], vec![signed.as_str()]),
            ("an empty signature", vec![text.as_str()], vec![""]),
        ] {
            let found =
                verify_request(&secrets(), SEND_REQUEST, (&handed, &signed), "01P", &mut NonceCache::default(), NOW);
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
    fn a_table_of_what_is_signed_and_refused_all_the_same() {
        let case = |change: &dyn Fn(&mut RelayHeader)| {
            let mut handed = test_header();
            change(&mut handed);
            let text = handed.encode();
            verify_arrival(SEND_REQUEST, &text, &sign_request(&secrets()[1], SEND_REQUEST, &text)).map(|_| ())
        };
        for (name, found, expected) in [
            ("as old as may be", case(&|handed| handed.time_ms = NOW - REQUEST_TTL_MS), Ok(())),
            ("as new as may be", case(&|handed| handed.time_ms = NOW + REQUEST_TTL_MS), Ok(())),
            ("too old", case(&|handed| handed.time_ms = NOW - REQUEST_TTL_MS - 1), Err(RelayRefusal::Expired)),
            ("of the future", case(&|handed| handed.time_ms = NOW + REQUEST_TTL_MS + 1), Err(RelayRefusal::Expired)),
            ("for another process", case(&|handed| handed.target = "02P".to_owned()), Err(RelayRefusal::WrongTarget)),
            ("handed on twice", case(&|handed| handed.hops = 2), Err(RelayRefusal::TwoHops)),
            ("handed on by nobody", case(&|handed| handed.hops = 0), Err(RelayRefusal::TwoHops)),
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
    fn a_nonce_is_good_once_for_as_long_as_its_request_could_be_believed() {
        let mut nonces = NonceCache::default();
        // It is of the future by as much as may be.
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
    fn nonces_take_a_bounded_room_and_none_is_forgotten_early() {
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
        fn headers_read_back_as_they_were(
            hops in any::<u32>(), target in "[0-9A-Z]{0,26}", time_ms in any::<u64>(), nonce in any::<u128>(),
            number in any::<u128>(), body in "[0-9a-f]{0,64}", client in any::<IpAddr>(),
        ) {
            let handed = RelayHeader { hops, target, time_ms, nonce, number, body, client };
            prop_assert_eq!(RelayHeader::parse(&handed.encode()), Some(handed));
        }

        #[test]
        fn no_header_breaks_the_reader(text in any::<String>()) {
            let _ = RelayHeader::parse(&text);
        }
    }
}
