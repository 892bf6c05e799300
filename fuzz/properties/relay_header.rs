//! The header with which one process relays a request to another.

use super::protocol::Secret;
use super::protocol::relay::{NonceCache, RelayHeader, RelayRefusal, RelayedRequest, sign_request, verify_request};

const NOW_MS: u64 = 1_700_000_000_000;

/// A header's value.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let secret = Secret::new("between processes");
    let request = RelayedRequest { method: "POST", path: "/pusher/app/k/7/s/xhr_send", query: "n=1" };
    let verify = |header: &str, signed: &str, nonces: &mut NonceCache| {
        let secrets = std::slice::from_ref(&secret);
        verify_request(secrets, request, (&[header], &[signed]), "01JTARGET", nonces, NOW_MS)
    };
    let mut nonces = NonceCache::default();
    assert_eq!(verify(text, text, &mut nonces), Err(RelayRefusal::Forged), "a stranger signs nothing");
    let signed = sign_request(&secret, request, text);
    let parsed = RelayHeader::parse(text);
    let verified = verify(text, &signed, &mut nonces);
    match (&parsed, verified) {
        (Some(parsed), Ok(verified)) => {
            assert_eq!(*parsed, verified);
            assert_eq!((parsed.hops, parsed.target.as_str()), (1, "01JTARGET"));
            assert_eq!(verify(text, &signed, &mut nonces), Err(RelayRefusal::Replayed));
        }
        (None, verified) => assert_eq!(verified, Err(RelayRefusal::Forged)),
        (Some(_), Err(_)) => {}
    }
    if let Some(parsed) = parsed {
        assert_eq!(RelayHeader::parse(&parsed.encode()), Some(parsed), "written and read again");
    }
}
