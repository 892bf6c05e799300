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
pub const PREFIX: &str = "x-realtime-";

/// The header that says who hands on what to whom.
pub const HANDED: &str = "x-realtime-relay";

/// The header that signs it.
pub const SIGNATURE: &str = "x-realtime-signature";

/// The header by which the process that was asked says why it does not serve a request; a served one has none.
pub const REFUSED: &str = "x-realtime-refused";

/// What [`REFUSED`] says of a session that the process does not have.
pub const UNKNOWN: &str = "unknown";

/// How far the clocks of two processes may differ, and how long a request may be under way, in ms.
pub const WINDOW_MS: u64 = 30_000;

/// Nonces that are remembered in twice the window, 16 bytes each. Beyond, requests are refused: to forget one would let
/// its request be replayed.
const MAX_NONCES: usize = 1 << 19;

/// The first word of the header, so that another form can be told from this one.
const VERSION: &str = "1";

/// What stands in the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
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
pub struct Request<'a> {
    /// In capital letters.
    pub method: &'a str,
    /// As it stands in the request, not decoded.
    pub path: &'a str,
    /// What follows the question mark, or nothing.
    pub query: &'a str,
}

/// Why a request is not believed, or not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
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

impl Refusal {
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

impl Handed {
    /// The header's value.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { hops, target, time_ms, nonce, number, body, client } = self;
        format!("{VERSION} {hops} {target} {time_ms} {nonce:032x} {number:032x} {body} {client}")
    }

    /// Reads a header's value. `None` when it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(' ').collect();
        let [VERSION, hops, target, time_ms, nonce, number, body, client] = parts[..] else { return None };
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
pub fn digest(body: &[u8]) -> String {
    hex::encode(Sha256::digest(body))
}

/// The value of the header that signs.
#[must_use]
pub fn sign(secret: &Secret, request: Request<'_>, handed: &str) -> String {
    signature::sign(secret, message(request, handed).as_bytes())
}

fn message(Request { method, path, query }: Request<'_>, handed: &str) -> String {
    // None of the first three can hold a line break.
    format!("{method}\n{path}\n{query}\n{handed}")
}

/// Whether a request was handed to this process by another one of its cluster. Its body is still to be compared with
/// [`Handed::body`], so that nobody is read to the end who did not sign.
///
/// # Errors
/// Why it is not believed.
pub fn check(
    secrets: &[Secret],
    request: Request<'_>,
    (handed, signed): (&[&str], &[&str]),
    process: &str,
    nonces: &mut Nonces,
    now_ms: u64,
) -> Result<Handed, Refusal> {
    let (handed, signed) = match (handed, signed) {
        ([handed], [signed]) => (*handed, *signed),
        // A second pair is what a process would add that hands on what was handed to it.
        ([_, _, ..], _) | (_, [_, _, ..]) => return Err(Refusal::TwoHops),
        _ => return Err(Refusal::Forged),
    };
    let message = message(request, handed);
    if !secrets.iter().any(|secret| signature::verify(secret, message.as_bytes(), signed)) {
        return Err(Refusal::Forged);
    }
    let handed = Handed::parse(handed).ok_or(Refusal::Forged)?;
    if handed.hops != 1 {
        return Err(Refusal::TwoHops);
    }
    if handed.target != process {
        return Err(Refusal::WrongTarget);
    }
    if handed.time_ms.abs_diff(now_ms) > WINDOW_MS {
        return Err(Refusal::Expired);
    }
    nonces.take(handed.nonce, now_ms)?;
    Ok(handed)
}

/// The nonces that were seen, for as long as a request with one of them could be believed.
#[derive(Debug, Default)]
pub struct Nonces {
    now: HashSet<u128>,
    before: HashSet<u128>,
    /// Since when they go into `now`, in ms since 1970.
    since_ms: u64,
}

impl Nonces {
    fn take(&mut self, nonce: u128, now_ms: u64) -> Result<(), Refusal> {
        // A request may be of the future by the window, and is then believed for two windows.
        let age = now_ms.abs_diff(self.since_ms);
        if age >= 2 * WINDOW_MS {
            self.before = std::mem::take(&mut self.now);
            if age >= 4 * WINDOW_MS {
                self.before = HashSet::new();
            }
            self.since_ms = now_ms;
        }
        if self.now.contains(&nonce) || self.before.contains(&nonce) {
            return Err(Refusal::Replayed);
        }
        if self.now.len() >= MAX_NONCES {
            return Err(Refusal::Full);
        }
        self.now.insert(nonce);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_790_000_000_000;
    const SEND: Request<'_> = Request { method: "POST", path: "/pusher/app/k/1/abc/xhr_send", query: "t=1&n=2" };

    fn handed() -> Handed {
        Handed {
            hops: 1,
            target: "01P".to_owned(),
            time_ms: NOW,
            nonce: 7,
            number: 9,
            body: digest(b"[\"x\"]"),
            client: "2001:db8::1".parse().expect("an address"),
        }
    }

    fn secrets() -> [Secret; 2] {
        [Secret::new("new"), Secret::new("old")]
    }

    fn arrives(request: Request<'_>, handed: &str, signed: &str) -> Result<Handed, Refusal> {
        check(&secrets(), request, (&[handed], &[signed]), "01P", &mut Nonces::default(), NOW)
    }

    #[test]
    fn what_was_handed_on_arrives_under_either_secret() {
        let text = handed().text();
        for secret in secrets() {
            assert_eq!(arrives(SEND, &text, &sign(&secret, SEND, &text)), Ok(handed()));
        }
        assert_eq!(arrives(SEND, &text, &sign(&Secret::new("older"), SEND, &text)), Err(Refusal::Forged));
    }

    #[test]
    fn a_table_of_forgeries() {
        let text = handed().text();
        let signed = sign(&secrets()[0], SEND, &text);
        let other = |change: &dyn Fn(&mut Handed)| {
            let mut handed = handed();
            change(&mut handed);
            handed.text()
        };
        for (name, request, text) in [
            ("another method", Request { method: "GET", ..SEND }, text.clone()),
            ("another path", Request { path: "/pusher/app/k/1/abd/xhr_send", ..SEND }, text.clone()),
            ("another query", Request { query: "t=1&n=3", ..SEND }, text.clone()),
            ("path and query parted elsewhere", Request { path: "/pusher", query: "", ..SEND }, text.clone()),
            ("another body", SEND, other(&|handed| handed.body = digest(b"[\"y\"]"))),
            ("another client", SEND, other(&|handed| handed.client = "192.0.2.1".parse().expect("an address"))),
            ("another target", SEND, other(&|handed| handed.target = "02P".to_owned())),
            ("another time", SEND, other(&|handed| handed.time_ms += 1)),
            ("another nonce", SEND, other(&|handed| handed.nonce += 1)),
            ("another number", SEND, other(&|handed| handed.number += 1)),
            ("more hops", SEND, other(&|handed| handed.hops += 1)),
            ("an empty header", SEND, String::new()),
        ] {
            assert_eq!(arrives(request, &text, &signed), Err(Refusal::Forged), "{name}");
        }
        for (name, handed, signed) in [
            ("no headers", vec![], vec![]),
            ("no signature", vec![text.as_str()], vec![]),
            ("only a signature", vec![], vec![signed.as_str()]),
            ("an empty signature", vec![text.as_str()], vec![""]),
        ] {
            let found = check(&secrets(), SEND, (&handed, &signed), "01P", &mut Nonces::default(), NOW);
            assert_eq!(found, Err(Refusal::Forged), "{name}");
        }
        let unreadable = "1 1 01P";
        let signed = sign(&secrets()[0], SEND, unreadable);
        assert_eq!(arrives(SEND, unreadable, &signed), Err(Refusal::Forged), "signed, and none of our headers");
        assert_eq!(check(&[], SEND, (&[&text], &[&signed]), "01P", &mut Nonces::default(), NOW), Err(Refusal::Forged));
    }

    #[test]
    fn a_table_of_what_is_signed_and_refused_all_the_same() {
        let case = |change: &dyn Fn(&mut Handed)| {
            let mut handed = handed();
            change(&mut handed);
            let text = handed.text();
            arrives(SEND, &text, &sign(&secrets()[1], SEND, &text)).map(|_| ())
        };
        for (name, found, expected) in [
            ("as old as may be", case(&|handed| handed.time_ms = NOW - WINDOW_MS), Ok(())),
            ("as new as may be", case(&|handed| handed.time_ms = NOW + WINDOW_MS), Ok(())),
            ("too old", case(&|handed| handed.time_ms = NOW - WINDOW_MS - 1), Err(Refusal::Expired)),
            ("of the future", case(&|handed| handed.time_ms = NOW + WINDOW_MS + 1), Err(Refusal::Expired)),
            ("for another process", case(&|handed| handed.target = "02P".to_owned()), Err(Refusal::WrongTarget)),
            ("handed on twice", case(&|handed| handed.hops = 2), Err(Refusal::TwoHops)),
            ("handed on by nobody", case(&|handed| handed.hops = 0), Err(Refusal::TwoHops)),
        ] {
            assert_eq!(found, expected, "{name}");
        }
        let text = handed().text();
        let signed = sign(&secrets()[0], SEND, &text);
        let twice = check(&secrets(), SEND, (&[&text, &text], &[&signed]), "01P", &mut Nonces::default(), NOW);
        assert_eq!(twice, Err(Refusal::TwoHops));
    }

    #[test]
    fn a_nonce_is_good_once_for_as_long_as_its_request_could_be_believed() {
        let mut nonces = Nonces::default();
        // It is of the future by as much as may be.
        let ahead = Handed { time_ms: NOW + WINDOW_MS, ..handed() }.text();
        let signed = sign(&secrets()[0], SEND, &ahead);
        let mut at = |ms| check(&secrets(), SEND, (&[&ahead], &[&signed]), "01P", &mut nonces, ms).map(|_| ());
        assert_eq!(at(NOW), Ok(()));
        for later in [1, 29_000, 31_000, 2 * WINDOW_MS] {
            assert_eq!(at(NOW + later), Err(Refusal::Replayed), "after {later} ms");
        }
        assert_eq!(at(NOW + 2 * WINDOW_MS + 1), Err(Refusal::Expired));
    }

    #[test]
    fn nonces_take_a_bounded_room_and_none_is_forgotten_early() {
        let mut nonces = Nonces { since_ms: NOW, ..Nonces::default() };
        for nonce in 0..MAX_NONCES as u128 {
            assert_eq!(nonces.take(nonce, NOW), Ok(()));
        }
        assert_eq!(nonces.take(u128::MAX, NOW + 1), Err(Refusal::Full));
        assert_eq!(nonces.take(u128::MAX, NOW + 2 * WINDOW_MS), Ok(()));
        assert_eq!(nonces.take(5, NOW + 2 * WINDOW_MS), Err(Refusal::Replayed));
        assert_eq!(nonces.take(6, NOW + 6 * WINDOW_MS), Ok(()));
    }

    proptest! {
        #[test]
        fn headers_read_back_as_they_were(
            hops in any::<u32>(), target in "[0-9A-Z]{0,26}", time_ms in any::<u64>(), nonce in any::<u128>(),
            number in any::<u128>(), body in "[0-9a-f]{0,64}", client in any::<IpAddr>(),
        ) {
            let handed = Handed { hops, target, time_ms, nonce, number, body, client };
            prop_assert_eq!(Handed::parse(&handed.text()), Some(handed));
        }

        #[test]
        fn no_header_breaks_the_reader(text in any::<String>()) {
            let _ = Handed::parse(&text);
        }
    }
}
