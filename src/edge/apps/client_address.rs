//! The caller of a request: the address of the client, and the origin that its browser sends.
//!
//! In: the peer address of the connection, the request's headers, the networks of trusted proxies. Out: the client's
//! address. Any client can forge a header, so forwarded addresses are trusted from the right, only as far as trusted
//! proxies wrote them: up to the first address outside their networks.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

use crate::protocol::relay;

/// Forwarded entries that are read: more proxies than any deployment has.
const FORWARDED_HOPS_MAX: usize = 32;

const X_FORWARDED_FOR_HEADER: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Networks whose forwarded addresses are trusted.
pub type TrustedProxies = Arc<[IpNet]>;

/// The peer address of the connection, as the listener saw it.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub IpAddr);

/// The address of a client, as far as it can be known.
#[derive(Clone, Copy, Debug)]
struct ClientAddress(IpAddr);

/// The client that sent a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The address of the client.
    pub address: IpAddr,
    /// The origin of the page; `None` outside browsers.
    pub origin: Option<String>,
}

/// Removes headers that only servers of the cluster may set, and attaches the client's address to the request.
pub fn sanitize_request(request: &mut Request, trusted: &[IpNet]) {
    let ours: Vec<HeaderName> = request
        .headers()
        .keys()
        .filter(|name| name.as_str().starts_with(relay::RELAY_HEADER_PREFIX))
        .cloned()
        .collect();
    for name in ours {
        request.headers_mut().remove(name);
    }
    let peer = request.extensions().get::<PeerAddress>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0);
    let address = resolve_client_address(peer, request.headers(), trusted);
    request.extensions_mut().insert(ClientAddress(address));
}

/// Returns the client's address that was attached before.
pub fn address_of(parts: &Parts) -> IpAddr {
    parts.extensions.get::<ClientAddress>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.0)
}

/// Attaches the client's address to a request that another server forwarded.
pub fn set_client_address(parts: &mut Parts, address: IpAddr) {
    parts.extensions.insert(ClientAddress(address));
}

/// The client's address: the nearest one that is not a trusted proxy's. A proxy's `X-Forwarded-For`, if present, alone
/// counts, since such proxies pass a client's own `Forwarded` on.
fn resolve_client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut nearest = peer.to_canonical();
    let is_proxy = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    if !is_proxy(nearest) {
        return nearest;
    }
    let name = if headers.contains_key(X_FORWARDED_FOR_HEADER) { X_FORWARDED_FOR_HEADER } else { header::FORWARDED };
    let lines: Vec<&str> = headers.get_all(&name).iter().map(|line| line.to_str().unwrap_or_default()).collect();
    let entries = lines.iter().rev().flat_map(|line| line.rsplit(','));
    for entry in entries.take(FORWARDED_HOPS_MAX) {
        let found = if name == X_FORWARDED_FOR_HEADER { parse_address(entry) } else { parse_forwarded_element(entry) };
        // An unreadable entry ends the trust.
        let Some(found) = found else { break };
        nearest = found;
        if !is_proxy(nearest) {
            break;
        }
    }
    nearest
}

/// Parses an address, with or without brackets and port.
fn parse_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    address.map(|address| address.to_canonical())
}

/// Returns the address in one element of `Forwarded` (RFC 7239): `for=192.0.2.1;proto=https`, quoted if it has a colon.
fn parse_forwarded_element(element: &str) -> Option<IpAddr> {
    let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    let value = value.trim();
    parse_address(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let address = address_of(parts);
        let origin = parts.headers.get(header::ORIGIN);
        Ok(Self { address, origin: origin.map(|origin| String::from_utf8_lossy(origin.as_bytes()).into_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let parse = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).expect("a header's value"))
        };
        lines.iter().map(parse).collect()
    }

    #[test]
    fn a_table_of_forwarded_addresses() {
        const XFF: &str = "x-forwarded-for";
        const RFC: &str = "forwarded";
        let trusted: Vec<IpNet> =
            ["10.0.0.0/8", "fd00::/8"].iter().map(|network| network.parse().expect("a network")).collect();
        for (name, peer, lines, expected) in [
            ("no proxy", "192.0.2.1", &[][..], "192.0.2.1"),
            ("a stranger claims", "192.0.2.1", &[(XFF, "198.51.100.7")], "192.0.2.1"),
            ("a proxy says nothing", "10.0.0.1", &[], "10.0.0.1"),
            ("a proxy tells its client", "10.0.0.1", &[(XFF, "198.51.100.7")], "198.51.100.7"),
            ("the client claimed before", "10.0.0.1", &[(XFF, "203.0.113.9, 198.51.100.7")], "198.51.100.7"),
            ("two proxies", "10.0.0.1", &[(XFF, "203.0.113.9, 198.51.100.7, 10.0.0.2")], "198.51.100.7"),
            ("two lines", "10.0.0.1", &[(XFF, "203.0.113.9, 198.51.100.7"), (XFF, "10.0.0.2")], "198.51.100.7"),
            ("all of them are proxies", "10.0.0.1", &[(XFF, "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
            ("with a port", "10.0.0.1", &[(XFF, "198.51.100.7:4711")], "198.51.100.7"),
            ("IPv6", "fd00::1", &[(XFF, "2001:db8::7")], "2001:db8::7"),
            ("IPv6 with a port", "10.0.0.1", &[(XFF, "[2001:db8::7]:4711")], "2001:db8::7"),
            ("IPv4 in IPv6", "::ffff:10.0.0.1", &[(XFF, "::ffff:198.51.100.7")], "198.51.100.7"),
            ("not an address", "10.0.0.1", &[(XFF, "198.51.100.7, unknown")], "10.0.0.1"),
            ("nothing between commas", "10.0.0.1", &[(XFF, "198.51.100.7,,10.0.0.2")], "10.0.0.2"),
            ("not even text", "10.0.0.1", &[(XFF, "198.51.100.7"), (XFF, "\u{e4}")], "10.0.0.1"),
            ("as RFC 7239 has it", "10.0.0.1", &[(RFC, "for=198.51.100.7;proto=https")], "198.51.100.7"),
            ("quoted", "10.0.0.1", &[(RFC, r#"for=203.0.113.9, For="[2001:db8::7]:4711""#)], "2001:db8::7"),
            ("hidden", "10.0.0.1", &[(RFC, "for=198.51.100.7, for=_hidden")], "10.0.0.1"),
            ("not for anyone", "10.0.0.1", &[(RFC, "by=198.51.100.7")], "10.0.0.1"),
            ("both", "10.0.0.1", &[(RFC, "for=203.0.113.9"), (XFF, "198.51.100.7")], "198.51.100.7"),
        ] {
            let peer = peer.parse().expect("an address");
            assert_eq!(resolve_client_address(peer, &headers(lines), &trusted).to_string(), expected, "{name}");
            assert_eq!(
                resolve_client_address(peer, &headers(lines), &[]),
                peer.to_canonical(),
                "{name}, and nobody is trusted"
            );
        }
        let long = vec!["10.0.0.9"; 10_000].join(",");
        let found =
            resolve_client_address("10.0.0.1".parse().expect("an address"), &headers(&[(XFF, &long)]), &trusted);
        assert_eq!(found.to_string(), "10.0.0.9", "a long line is not read to its end");
    }

    #[test]
    fn what_servers_say_to_each_other_is_never_taken_from_a_client() {
        let request = Request::builder()
            .header("X-Realtime-Client", "192.0.2.1")
            .header("x-realtime-client", "192.0.2.2")
            .header("X-REALTIME-Signature", "00")
            .header("X-Realtimes", "mine")
            .header("Origin", "https://a.example");
        let mut request = request.body(Body::empty()).expect("a request");
        request.extensions_mut().insert(PeerAddress("192.0.2.9".parse().expect("an address")));
        sanitize_request(&mut request, &[]);
        let mut left: Vec<&str> = request.headers().keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["origin", "x-realtimes"]);
        assert_eq!(
            request.extensions().get::<ClientAddress>().map(|found| found.0.to_string()),
            Some("192.0.2.9".into())
        );
    }

    proptest! {
        #[test]
        fn no_stranger_moves_what_is_found(line in "[ -~]{0,80}", rfc in "[ -~]{0,80}") {
            let peer: IpAddr = "192.0.2.1".parse().expect("an address");
            let trusted: [IpNet; 1] = ["10.0.0.0/8".parse().expect("a network")];
            let lines = headers(&[("x-forwarded-for", &line), ("forwarded", &rfc)]);
            prop_assert_eq!(resolve_client_address(peer, &lines, &trusted), peer);
            // An entry of the client stands left of the proxy's, and does not count.
            let both = headers(&[("x-forwarded-for", &format!("{line}, 198.51.100.7"))]);
            prop_assert_eq!(resolve_client_address(trusted[0].addr(), &both, &trusted).to_string(), "198.51.100.7");
        }
    }
}
